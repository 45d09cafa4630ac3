"""What was written to be sent in place of the beginning of a conversation."""

from sqlalchemy import func, select

from router.conversations.summary import Summary
from router.store.store import Store
from router.store.tables import summaries
from router.store.turns import keep_with


class StoredSummaries:
    """`router.conversations.summary.Summaries`, in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def latest_summary(self, conversation: str) -> Summary | None:
        return await latest_summary(self._store, conversation)

    async def keep_summary(self, summary: Summary) -> None:
        await keep_summary(self._store, summary)

    async def summary_tokens_since(self, conversation: str, since: int) -> int:
        return await summary_tokens_since(self._store, conversation, since)


async def latest_summary(store: Store, conversation: str) -> Summary | None:
    """Raises `StoreAway`."""
    query = select(summaries).where(summaries.c.conversation == conversation)
    async with store.reading() as connection:
        found = await connection.execute(
            query.order_by(summaries.c.created_at.desc(), summaries.c.call.desc()).limit(1)
        )
        row = found.mappings().one_or_none()
    return None if row is None else Summary(**row)


async def keep_summary(store: Store, summary: Summary) -> None:
    """Nothing happens where its conversation is gone. Raises `StoreAway`."""
    async with store.writing() as connection:
        await keep_with(connection, summaries, summary)


async def summary_tokens_since(store: Store, conversation: str, since: int) -> int:
    """What those cost that were made at `since` (Unix milliseconds) or later. Raises `StoreAway`."""
    mine = (summaries.c.conversation == conversation, summaries.c.created_at >= since)
    async with store.reading() as connection:
        return int(await connection.scalar(select(func.coalesce(func.sum(summaries.c.tokens), 0)).where(*mine)) or 0)
