"""Carries the journal's records into the store: one batch, one transaction, as many records as have gathered.

While the store is away the records wait: a bounded number in memory, all of them in the journal, from where they are
read again.
"""

import asyncio
import time
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Final

import structlog

from router.ledger.bringing import bring
from router.ledger.journal import Journal
from router.ledger.rows import Batch, Record, decode_record
from router.store.ledger import heartbeat
from router.store.store import Store, StoreAway

MOST: Final = 2000
"""Records of one batch."""
_IN_MEMORY: Final = 20_000
"""Records that wait in memory; more are read from the journal when their turn comes."""
_PATIENCE: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Seconds between tries while the store is away."""
_HEARTBEAT: Final = 20.0
"""Seconds between two signs of life in the store."""


class Writer:
    """The one writer of a process. `interval`: seconds that records may gather."""

    def __init__(self, store: Store, journal: Journal, interval: float, rejected: Path) -> None:
        self._store = store
        self._journal = journal
        self._interval = interval
        self._rejected = rejected
        self._pending: deque[tuple[int, Record]] = deque()
        self._loose: deque[Record] = deque()
        """Those that the journal could not take: here alone."""
        self._carried = 0
        """How many of them are in the batch."""
        self._behind = False
        """Whether records are in the journal that are not in memory."""
        self._more = False
        """Whether more than one batch has gathered."""
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._turn = asyncio.Event()
        """Set and replaced whenever `applied` or `away` has changed."""
        self._closing = False
        self.applied = 0
        """Number of the last record in the store."""
        self.taken = 0
        """Number of the last record that was handed to us."""
        self.away: str | None = None
        """Why the store cannot be written to; None while it can."""
        self._log = structlog.get_logger("deltaway.ledger")

    def put(self, position: int, record: Record) -> None:
        """A record that the journal has taken."""
        self.taken = position
        if self._behind or len(self._pending) >= _IN_MEMORY:
            self._behind = True
        else:
            self._pending.append((position, record))
        self._wake.set()

    def put_loose(self, record: Record) -> None:
        """A record that the journal has not taken: it is kept in memory until the store has it."""
        self._loose.append(record)
        self._wake.set()

    async def committed(self, position: int) -> bool:
        """Wait until the store has the records up to `position`; False as soon as it is known to be away."""
        self._hurry.set()
        while self.applied < position:
            if self.away is not None:
                return False
            await self._turn.wait()
        return True

    async def run(self) -> None:
        """Until `close`. Whatever fails is tried again: it never gives up while the process lives."""
        tries = 0
        batch: Batch | None = None
        while not (self._closing and batch is None and self.backlog == 0):
            try:
                if batch is None:
                    await self._gathered()
                    batch = await self._next()
                while batch is not None:
                    await bring(self._store, batch, self._rejected)
                    tries = 0
                    self._came_back()
                    self._progress(batch.position)
                    batch = None
                    if self._more:
                        batch = await self._next()
            except Exception as error:
                if not isinstance(error, StoreAway):
                    self._log.error("the writer failed by a fault of ours", exc_info=error)
                self._went_away(error)
                if self._closing:
                    return
                await self._pause(_PATIENCE[min(tries, len(_PATIENCE) - 1)])
                tries += 1

    async def close(self) -> None:
        """Let `run` end once all is in the store, or at the next failure."""
        self._closing = True
        self._wake.set()
        self._hurry.set()

    def loose(self) -> list[Record]:
        """What would be lost with the process now."""
        return list(self._loose)

    @property
    def backlog(self) -> int:
        """Records that are not in the store yet."""
        return self.taken - self.applied + len(self._loose)

    # -- one batch -------------------------------------------------------------------------------------------------

    async def _gathered(self) -> None:
        """Wait for a record, then for more, unless somebody waits for the store."""
        try:
            async with asyncio.timeout(_HEARTBEAT):
                await self._wake.wait()
        except TimeoutError:
            await self._beat()
            return
        if not self._hurry.is_set() and not self._closing:
            try:
                async with asyncio.timeout(self._interval):
                    await self._hurry.wait()
            except TimeoutError:
                pass
        self._wake.clear()
        self._hurry.clear()

    async def _next(self) -> Batch | None:
        if not self._pending and self._behind:
            stored = await asyncio.to_thread(self._journal.read, self.applied, MOST)
            self._pending.extend((position, decode_record(payload)) for position, payload in stored)
            # what comes from now on may follow in memory, once the journal has been read to its end
            self._behind = bool(stored) and stored[-1].position < self.taken
        pending = self._pending
        # what has come while a batch was under way gathers first, or each batch under load would be of a few records
        self._more = self._behind or max(len(pending), len(self._loose)) > MOST
        if not pending and not self._loose:
            return None
        batch = Batch(self._journal.id, self.applied)
        for _ in range(min(MOST, len(pending))):
            batch.add(*pending.popleft())
        # after those that came before them; they leave their queue once the batch is in the store
        self._carried = min(MOST, len(self._loose))
        for record in islice(self._loose, self._carried):
            batch.add(batch.position, record)
        return batch

    # -- the store's coming and going ------------------------------------------------------------------------------

    def _progress(self, position: int) -> None:
        self.applied = max(self.applied, position)
        for _ in range(self._carried):
            self._loose.popleft()
        self._carried = 0
        self._turned()
        try:
            self._journal.drop(self.applied)
        except OSError as error:
            # what is in it is in the store: it only takes up room
            self._log.warning("a segment of the journal could not be removed", reason=str(error))

    def _went_away(self, error: Exception) -> None:
        if self.away is None:
            self._log.error("the store is away: the journal holds what comes", reason=str(error))
        self.away = str(error)
        self._turned()

    def _came_back(self) -> None:
        if self.away is not None:
            self._log.warning("the store is back", backlog=self.backlog)
            self.away = None

    def _turned(self) -> None:
        self._turn.set()
        self._turn = asyncio.Event()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not self._closing:
                    await self._wake.wait()
                    self._wake.clear()
        except TimeoutError:
            pass
        self._wake.set()

    async def _beat(self) -> None:
        """Tell the others that this process lives, and see whether the store does."""
        try:
            await heartbeat(self._store, self._journal.id, _now())
        except StoreAway as error:
            self._went_away(error)
        else:
            self._came_back()
            self._turned()


def _now() -> int:
    return int(time.time() * 1000)
