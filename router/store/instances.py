"""The processes that serve from one store, and the number that tells them all to read their configuration anew."""

from typing import Final

from msgspec import Struct, structs
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from router.store.store import Store
from router.store.tables import instances, revisions

NAME: Final = "config"
"""The row of `revisions`."""
PRESENT: Final = 30_000
"""Milliseconds after which a process that was not seen is left out."""
_REMEMBERED: Final = 86_400_000


class Instance(Struct, frozen=True):
    """One process. Times are Unix milliseconds."""

    id: str
    host: str
    pid: int
    version: str
    generation: str
    since: int
    """When that generation came into force there."""
    wanted: int
    """The number of the last announcement that it has dealt with."""
    error: str | None
    """Why it has not taken up what its file says."""
    seen_at: int


class Instances:
    """Raises `StoreAway` wherever the store cannot be reached."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def announced(self) -> int:
        """How often a new configuration was announced."""
        async with self._store.reading() as connection:
            found = await connection.scalar(select(revisions.c.number).where(revisions.c.name == NAME))
        return 0 if found is None else int(found)

    async def announce(self) -> int:
        """Tell every process to read its file; gives the announcement's number."""
        insert = insert_sqlite if self._store.dialect == "sqlite" else insert_postgres
        first = insert(revisions).values(name=NAME, number=1)
        counted = first.on_conflict_do_update(index_elements=["name"], set_={"number": revisions.c.number + 1})
        async with self._store.writing() as connection:
            number: int = (await connection.execute(counted.returning(revisions.c.number))).scalar_one()
        return number

    async def put(self, instance: Instance) -> None:
        """Write its row."""
        insert = insert_sqlite if self._store.dialect == "sqlite" else insert_postgres
        values = structs.asdict(instance)
        row = insert(instances).values(**values)
        changed = {name: value for name, value in values.items() if name != "id"}
        async with self._store.writing() as connection:
            await connection.execute(row.on_conflict_do_update(index_elements=["id"], set_=changed))

    async def forget(self, at: int) -> None:
        """Remove the rows of processes that were not seen for a day."""
        async with self._store.writing() as connection:
            await connection.execute(delete(instances).where(instances.c.seen_at < at - _REMEMBERED))

    async def remove(self, instance_id: str) -> None:
        async with self._store.writing() as connection:
            await connection.execute(delete(instances).where(instances.c.id == instance_id))

    async def present(self, at: int) -> list[Instance]:
        """Those that were seen of late, by host and process."""
        seen = select(instances).where(instances.c.seen_at >= at - PRESENT)
        async with self._store.reading() as connection:
            rows = (await connection.execute(seen.order_by(instances.c.host, instances.c.pid))).mappings().all()
        return [Instance(**row) for row in rows]
