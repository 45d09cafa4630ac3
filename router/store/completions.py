"""Single answers that clients wanted to be kept (`store: true`), each with its request. Times are Unix milliseconds."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct
from sqlalchemy import ColumnElement, delete, func, insert, select, tuple_, update

from router.conversation import Order
from router.store.contents import portions
from router.store.items import UnknownCursor
from router.store.selection import Dialect
from router.store.store import Store
from router.store.tables import completions as rows_of

_of: Final = rows_of.c
_LISTED: Final = [column for column in _of if column.name != "request"]
_IN_ORDER: Final = (_of.created_at, _of.id)
_metadata: Final = msgspec.json.Decoder(dict[str, str])


class Answered(Struct, frozen=True, kw_only=True):
    """A completion without its request, which may be large: as lists have it."""

    id: str
    owner: str
    """The public id of the key that made the call; empty where calls need none."""
    created_at: int
    model: str
    """The name by which it can be found."""
    answer: Raw
    """JSON, as the client got it."""
    metadata: dict[str, str] = {}
    call: str | None = None


class Completion(Answered, frozen=True, kw_only=True):
    request: Raw
    """JSON, as the client wrote it."""


class CompletionPage(Struct, frozen=True):
    completions: tuple[Answered, ...]
    more: bool


async def keep(store: Store, completion: Completion) -> None:
    """A second time with one id changes nothing. Raises `StoreAway`."""
    values = msgspec.structs.asdict(completion) | {
        "request": bytes(completion.request).decode(),
        "answer": bytes(completion.answer).decode(),
        "metadata": _json(completion.metadata),
    }
    async with store.writing() as connection:
        if await connection.scalar(select(_of.id).where(_of.id == completion.id)) is None:
            await connection.execute(insert(rows_of).values(values))


async def completion(store: Store, completion_id: str, *, owner: str | None) -> Completion | None:
    """None: there is none of that id, or not of that owner. Raises `StoreAway`."""
    async with store.reading() as connection:
        query = select(rows_of).where(*_whose(completion_id, owner))
        row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else _completion(row)


async def completions(
    store: Store,
    *,
    owner: str | None,
    model: str | None = None,
    metadata: Mapping[str, str] | None = None,
    after: str | None = None,
    limit: int = 20,
    order: Order = "asc",
) -> CompletionPage:
    """A page of those of a model, with all of that metadata, in the order they were made. Raises `UnknownCursor`,
    `StoreAway`."""
    wanted = dict(metadata or {})
    query = select(*_LISTED).where(*[_bearing(store.dialect, key, value) for key, value in wanted.items()])
    query = query.order_by(*(_IN_ORDER if order == "asc" else [column.desc() for column in _IN_ORDER]))
    if owner is not None:
        query = query.where(_of.owner == owner)
    if model is not None:
        query = query.where(_of.model == model)
    found: list[Answered] = []
    async with store.reading() as connection:
        place: Any = None
        if after is not None:
            place = (await connection.execute(select(*_IN_ORDER).where(*_whose(after, owner)))).one_or_none()
            if place is None:
                raise UnknownCursor(after)
        while True:
            page = query
            if place is not None:
                here, there = tuple_(*_IN_ORDER), tuple_(*place)
                page = query.where(here > there if order == "asc" else here < there)
            rows = (await connection.execute(page.limit(limit + 1))).mappings().all()
            for each in map(_answered, rows):
                if wanted.items() <= each.metadata.items():
                    if len(found) == limit:
                        return CompletionPage(tuple(found), True)
                    found.append(each)
            if len(rows) <= limit:
                return CompletionPage(tuple(found), False)
            place = (rows[-1]["created_at"], rows[-1]["id"])


async def change_metadata(
    store: Store, completion_id: str, *, owner: str | None, metadata: dict[str, str]
) -> Completion | None:
    """None: as `completion`. Raises `StoreAway`."""
    changed = update(rows_of).where(*_whose(completion_id, owner)).values(metadata=_json(metadata)).returning(rows_of)
    async with store.writing() as connection:
        row = (await connection.execute(changed)).mappings().one_or_none()
    return None if row is None else _completion(row)


async def remove(store: Store, completion_id: str, *, owner: str | None) -> bool:
    """False: as None of `completion`. Raises `StoreAway`."""
    async with store.writing() as connection:
        return bool((await connection.execute(delete(rows_of).where(*_whose(completion_id, owner)))).rowcount)


async def expire(store: Store, *, before: int, limit: int = 100) -> tuple[str, ...]:
    """Delete the next that were made before that, `limit` at most, and give their ids. Call it again until there are
    none. Raises `StoreAway`."""
    old = select(_of.id).where(_of.created_at < before).order_by(*_IN_ORDER)
    async with store.reading() as connection:
        if (await connection.execute(old.limit(1))).first() is None:
            return ()
    async with store.writing() as connection:
        found = (await connection.scalars(old.limit(limit).with_for_update(skip_locked=True))).all()
        for some in portions(found):
            await connection.execute(delete(rows_of).where(_of.id.in_(some)))
    return tuple(found)


def _whose(completion_id: str, owner: str | None) -> list[Any]:
    found: list[Any] = [_of.id == completion_id]
    if owner is not None:
        found.append(_of.owner == owner)
    return found


def _bearing(dialect: Dialect, key: str, value: str) -> ColumnElement[bool]:
    """Rows whose metadata looks as if it had that pair: any text that JSON can say may be looked for so, which none of
    the databases' own JSON can. What only looks so is passed over when it is read."""
    pair = f"{_json(key)}:{_json(value)}"
    if dialect == "sqlite":
        return func.instr(_of.metadata, pair) > 0
    return func.strpos(_of.metadata, pair) > 0


def _completion(row: Any) -> Completion:
    return Completion(**{**row, "request": Raw(row["request"]), **_decoded(row)})


def _answered(row: Any) -> Answered:
    return Answered(**{**row, **_decoded(row)})


def _decoded(row: Any) -> dict[str, Any]:
    return {"answer": Raw(row["answer"]), "metadata": _metadata.decode(row["metadata"])}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
