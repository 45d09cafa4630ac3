"""What is left of deleted words in a SQLite file, and how it goes.

Deleted rows are overwritten at once (`secure_delete`). The words of an FTS5 index are not: a deletion adds a marker,
and the words stay in their segment until segments are merged. So deletions are counted, and all segments are merged
into one afterwards, a piece at a time because every piece holds the write lock. Then the log beside the file, which has
pages as they were, is emptied. In Postgres dead rows go with its own vacuum.
"""

from typing import Any, Final

from sqlalchemy import select, text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from router.store.store import Store
from router.store.tables import revisions

_REMOVED: Final = "contents.removed"
_CLEARED: Final = "contents.cleared"
_PIECE: Final = 500
"""Pages that are merged at a time: about 2 MB, a few milliseconds."""
_PIECES: Final = 4
"""Of them, before others have their turn."""
_NONE_DONE: Final = 2
"""Fewer changed rows than this: nothing was left to merge (https://www.sqlite.org/fts5.html#the_merge_command)."""


async def note(store: Store, connection: AsyncConnection) -> None:
    """In the transaction that deletes contents."""
    if store.dialect == "sqlite":
        counted = insert(revisions).values(name=_REMOVED, number=1)
        more = counted.on_conflict_do_update(index_elements=["name"], set_={"number": revisions.c.number + 1})
        await connection.execute(more)


async def clear(store: Store, *, pieces: int = _PIECES) -> bool:
    """Go on until nothing is left of what was deleted, or for so many pieces; whether nothing is left. Cheap where
    that is so. Call it every minute or so, by one process or several. Raises `StoreAway`."""
    if store.dialect == "postgresql":
        return True
    async with store.reading() as connection:
        removed, cleared = await _numbers(connection)
    if removed == cleared:
        return True
    for _ in range(pieces):
        async with store.writing() as connection:
            removed, _ = await _numbers(connection)
            before = await connection.scalar(text("SELECT total_changes()"))
            merge = "INSERT INTO contents_search(contents_search, rank) VALUES ('merge', :pages)"
            await connection.execute(text(merge), {"pages": -_PIECE})
            after = await connection.scalar(text("SELECT total_changes()"))
            if after - before >= _NONE_DONE:
                continue
            row: Any = insert(revisions).values(name=_CLEARED, number=removed)
            done = row.on_conflict_do_update(index_elements=["name"], set_={"number": row.excluded.number})
            await connection.execute(done)
        await store.empty_log()
        return True
    return False


async def _numbers(connection: AsyncConnection) -> tuple[int, int]:
    names = (_REMOVED, _CLEARED)
    rows = await connection.execute(select(revisions.c.name, revisions.c.number).where(revisions.c.name.in_(names)))
    found = {row.name: row.number for row in rows}
    return found.get(_REMOVED, 0), found.get(_CLEARED, 0)
