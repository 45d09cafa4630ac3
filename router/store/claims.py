"""Work that one process of all does every now and then: who comes first has it for that time.

A claim is a row of `revisions`: its number is when it was made, in Unix milliseconds. A process that dies with one
costs the others one turn.
"""

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from router.store.store import Store
from router.store.tables import revisions


async def claim(store: Store, name: str, at: int, every: int) -> bool:
    """Whether the work of that name is ours at `at`; then nobody has it for `every` milliseconds.

    Raises `StoreAway`."""
    insert = insert_sqlite if store.dialect == "sqlite" else insert_postgres
    async with store.writing() as connection:
        first = insert(revisions).values(name=name, number=at).on_conflict_do_nothing(index_elements=["name"])
        if (await connection.execute(first)).rowcount == 1:
            return True
        # a clock that was ahead may not stop the work for ever
        due = (revisions.c.number <= at - every) | (revisions.c.number > at + every)
        taken = update(revisions).where(revisions.c.name == name, due).values(number=at)
        return (await connection.execute(taken)).rowcount == 1
