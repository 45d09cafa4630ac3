"""Keeps what is kept in order: what is too old is removed, what a dead process left is settled, deleted words go."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from router.store import completions
from router.store.conversations import expired
from router.store.drafts import settle_abandoned
from router.store.items import Removed
from router.store.remains import clear
from router.store.store import Store, StoreAway

EVERY: Final = 60.0
"""Seconds between two rounds, half of it more or less, so that replicas do not go together."""
_FIRST: Final = 12.0
"""Seconds before the first one: the leases of a process that died just before are over then."""
_AT_ONCE: Final = 100


class Retention:
    """`keep`: how long after its last change a conversation is kept, in seconds; None: for ever. `forget`: removes
    what else there is of what was removed."""

    def __init__(
        self, store: Store, keep: Callable[[], float | None], forget: Callable[[Removed], Awaitable[None]]
    ) -> None:
        self._store = store
        self._keep = keep
        self._forget = forget
        self._log = structlog.get_logger("deltaway.conversations")

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        going = asyncio.create_task(self._go())
        try:
            yield
        finally:
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)

    async def round(self) -> None:
        """Raises `StoreAway`."""
        now = int(time.time() * 1000)
        settled = await settle_abandoned(self._store, at=now)
        if settled:
            self._log.info("answers of processes that died are kept as they are", items=len(settled))
        keep = self._keep()
        if keep is not None:
            before, count = now - int(keep * 1000), 0
            while removed := await expired(self._store, before=before, limit=_AT_ONCE):
                count += len(removed)
                for each in removed:
                    await self._forget(each)
            while old := await completions.expire(self._store, before=before, limit=_AT_ONCE):
                count += len(old)
            if count:
                self._log.info("conversations and completions were removed for their age", count=count)
        # a few pieces each time, so that others write in between
        await clear(self._store)

    async def _go(self) -> None:
        await asyncio.sleep(_FIRST)
        while True:
            try:
                await self.round()
            except StoreAway as error:
                self._log.warning("what is kept could not be put in order", reason=str(error))
            except Exception as error:
                self._log.error("what is kept could not be put in order by a fault of ours", exc_info=error)
            await asyncio.sleep(EVERY * random.uniform(0.5, 1.5))
