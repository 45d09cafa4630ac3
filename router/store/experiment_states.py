"""What becomes of experiments while they run: arms that guardrails have stopped, shares that were adapted.

Every change counts `revisions['experiments']` up first, in its own transaction: that row's lock makes changes follow
one another. Whoever looks asks for the number, and reads the states only when it is another.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from router.experiment import ExperimentState
from router.store.store import Store
from router.store.tables import experiment_states, revisions

NAME: Final = "experiments"
"""The row of `revisions`."""


class KeptState(Struct, frozen=True):
    """The state of one experiment, and how it came about."""

    state: ExperimentState = ExperimentState()
    why: dict[str, Any] = {}
    """In words and figures, by what it explains: an arm that was stopped, or `shares`."""
    updated_at: int = 0
    """Unix milliseconds; 0: it was never changed."""


class AllStates(Struct, frozen=True):
    number: int
    """Of the last change to any of them; 0: there was none."""
    states: dict[str, KeptState]
    """By the experiment's name: those that were ever changed, whether or not they are configured."""


async def states_number(store: Store) -> int:
    """Another one than before: something has changed. Raises `StoreAway`."""
    async with store.reading() as connection:
        return await _number(connection)


async def all_states(store: Store) -> AllStates:
    """All of one moment. Raises `StoreAway`."""
    async with store.reading(snapshot=True) as connection:
        number = await _number(connection)
        rows = (await connection.execute(select(experiment_states))).mappings()
        return AllStates(number, {row["name"]: _kept(row) for row in rows})


async def change_state(
    store: Store, name: str, change: Callable[[ExperimentState], ExperimentState], why: dict[str, Any], at: int
) -> KeptState | None:
    """Put what `change` makes of the experiment's state in its place, and add `why` to what is known; gives the new
    state, or None where there was nothing to change. `change` sees the last word of any process, and its own `revision`
    does not matter. `at`: now, in Unix milliseconds. Raises `StoreAway`."""
    insert = insert_sqlite if store.dialect == "sqlite" else insert_postgres
    first = insert(revisions).values(name=NAME, number=1)
    counted = first.on_conflict_do_update(index_elements=["name"], set_={"number": revisions.c.number + 1})
    try:
        async with store.writing() as connection:
            number: int = (await connection.execute(counted.returning(revisions.c.number))).scalar_one()
            query = select(experiment_states).where(experiment_states.c.name == name)
            row = (await connection.execute(query)).mappings().one_or_none()
            before = KeptState() if row is None else _kept(row)
            after = change(before.state)
            if (after.stopped, after.shares) == (before.state.stopped, before.state.shares):
                raise _Unchanged
            state = ExperimentState(after.stopped, after.shares, number)
            kept = KeptState(state, {**before.why, **why}, at)
            values = {
                "stopped": list(state.stopped),
                "shares": state.shares,
                "why": kept.why,
                "revision": number,
                "updated_at": at,
            }
            put = insert(experiment_states).values(name=name, **values)
            await connection.execute(put.on_conflict_do_update(index_elements=["name"], set_=values))
    except _Unchanged:
        return None
    return kept


class _Unchanged(Exception):
    """Undoes the transaction, and with it the count."""


async def _number(connection: AsyncConnection) -> int:
    found = await connection.scalar(select(revisions.c.number).where(revisions.c.name == NAME))
    return 0 if found is None else int(found)


def _kept(row: Any) -> KeptState:
    state = ExperimentState(tuple(row["stopped"]), row["shares"], row["revision"])
    return KeptState(state, row["why"], row["updated_at"])
