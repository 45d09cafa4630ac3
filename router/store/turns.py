"""What was sent of a conversation with each call."""

from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import insert, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from router.conversation import Turn
from router.store.store import Store
from router.store.tables import conversations
from router.store.tables import turns as rows_of


class TurnPage(Struct, frozen=True):
    turns: tuple[Turn, ...]
    """The newest first."""
    more: bool


async def record_turn(store: Store, turn: Turn) -> None:
    """Keep it; nothing happens where its conversation is gone. Raises `StoreAway`."""
    async with store.writing() as connection:
        await keep_with(connection, rows_of, turn)


async def turns(store: Store, conversation: str, *, limit: int = 20, after: str | None = None) -> TurnPage:
    """The newest first. `after`: those before that call. Raises `StoreAway`."""
    page = select(rows_of).where(rows_of.c.conversation == conversation)
    if after is not None:
        page = page.where(rows_of.c.call < after)
    async with store.reading() as connection:
        rows = (await connection.execute(page.order_by(rows_of.c.call.desc()).limit(limit + 1))).mappings().all()
    return TurnPage(tuple(Turn(**row) for row in rows[:limit]), len(rows) > limit)


async def keep_with(connection: AsyncConnection, table: Any, row: Struct) -> None:
    """Insert a row of a conversation, if that is there. One of the same call takes its place."""
    values = msgspec.structs.asdict(row)
    mine = (table.c.conversation == values["conversation"], table.c.call == values["call"])
    await connection.execute(table.delete().where(*mine))
    there = select(*[literal(value, table.c[name].type) for name, value in values.items()])
    there = there.select_from(conversations).where(conversations.c.id == values["conversation"])
    # it stays until the row is there
    locked = there.with_for_update(read=True, key_share=True)
    await connection.execute(insert(table).from_select(list(values), locked))
