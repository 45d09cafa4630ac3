"""Feedback on calls: a row for each call and metric, replaced by what is said later. Times are Unix milliseconds."""

from msgspec import Struct
from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from router.experiment import MetricKind
from router.store.store import Store
from router.store.tables import calls, feedback


class Feedback(Struct, frozen=True, kw_only=True):
    call_id: str
    metric: str
    kind: MetricKind
    value: float
    """Of a binary metric 0 or 1."""
    comment: str | None = None
    key: str | None = None
    """Whose it is; None: no key was needed."""
    created_at: int
    updated_at: int


class Given(Struct, frozen=True):
    """Feedback as it stands now."""

    feedback: Feedback
    created: bool
    """Nothing had been said before."""
    replaced: bool
    """Something else had."""


class Subject(Struct, frozen=True):
    """The call that feedback is on."""

    id: str
    experiment: str | None


async def subject(store: Store, call_id: str, *, key: str | None = None) -> Subject | None:
    """The call; None where there is none of that id, or none that `key` made. Raises `StoreAway`."""
    query = select(calls.c.id, calls.c.experiment).where(calls.c.id == call_id)
    if key is not None:
        query = query.where(calls.c.key == key)
    async with store.reading() as connection:
        found = (await connection.execute(query)).one_or_none()
    return None if found is None else Subject(found.id, found.experiment)


async def give(store: Store, said: Feedback) -> Given:
    """Keep it. The same again changes nothing; another value takes the place of the first, with its comment, and so
    does another comment. Raises `StoreAway`."""
    insert = insert_sqlite if store.dialect == "sqlite" else insert_postgres
    values = {name: getattr(said, name) for name in Feedback.__struct_fields__}
    fresh = insert(feedback).values(values).on_conflict_do_nothing(index_elements=["call_id", "metric"])
    this = (feedback.c.call_id == said.call_id, feedback.c.metric == said.metric)
    async with store.writing() as connection:
        if (await connection.execute(fresh.returning(feedback.c.call_id))).first() is not None:
            return Given(said, created=True, replaced=False)
        query = select(feedback).where(*this).with_for_update()
        before = Feedback(**(await connection.execute(query)).mappings().one())
        unlike = (before.kind, before.value) != (said.kind, said.value)
        if not unlike and said.comment in (None, before.comment):
            return Given(before, created=False, replaced=False)
        later = {name: values[name] for name in ("kind", "value", "comment", "key", "updated_at")}
        await connection.execute(update(feedback).where(*this).values(later))
    return Given(Feedback(**{**values, "created_at": before.created_at}), created=False, replaced=True)
