"""One stream that this process writes: its newest blocks, who reads it here, and what of it the log has."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from router.call import Outcome
from router.errors import RouterError
from router.streams.log import Appended, StreamHead, Stretch, split_blocks

TAIL: Final = 64 * 1024
"""Bytes that stay in memory although the log has them: whoever reads along is never far behind."""
_LEAST: Final = 1024 * 1024
"""Bytes that may wait for the log in any case."""
_MOST: Final = 256 * 1024
"""Bytes that a reader is given at once."""


class LiveStream:
    """`limit`: bytes kept in memory at most while the log is away. `changed` is told that there is something to log."""

    __slots__ = (
        "_blocks",
        "_changed",
        "_deserted",
        "_evicted",
        "_limit",
        "_linger",
        "_size",
        "_timer",
        "_told_read",
        "_waiting",
        "begun",
        "ended",
        "first",
        "flushed",
        "head",
        "last",
        "read_elsewhere",
        "readers",
        "refused",
        "stopping",
    )

    def __init__(
        self,
        head: StreamHead,
        limit: int,
        changed: Callable[["LiveStream"], None],
        *,
        linger: float = 0.0,
        deserted: Callable[[], None] | None = None,
    ) -> None:
        """`deserted` is called when nobody has read for `linger` seconds."""
        self.head = head
        self.first = 1
        """The number of the oldest block in memory, or of the next one to come."""
        self.last = 0
        self.flushed = 0
        """The number of the newest block that the log has."""
        self.ended: Outcome | None = None
        self.refused: RouterError | None = None
        """Why there is no answer, if the call failed before it began."""
        self.begun = False
        """Whether the log knows it."""
        self.readers = 0
        self.read_elsewhere = float("-inf")
        """When another process last read it, as far as we have heard (`time.monotonic()`)."""
        self._told_read = 0
        self.stopping: Callable[[RouterError], None] | None = None
        """Ends it early, for a reason."""
        self._limit = max(limit, _LEAST)
        self._changed = changed
        self._linger = linger
        self._deserted = deserted
        self._timer: asyncio.TimerHandle | None = None
        self._blocks: list[bytes] = []
        self._evicted = 0
        """How many at the front of the list are gone."""
        self._size = 0
        self._waiting: set[asyncio.Future[None]] = set()

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(self, data: bytes) -> None:
        """Encoded events. Never waits."""
        blocks: tuple[bytes, ...] = (data,) if data.count(b"\n\n") == 1 else split_blocks(data)
        if not blocks:
            return
        self._blocks.extend(blocks)
        self.last += len(blocks)
        self._size += len(data)
        if self._size > self._limit:
            # the log is away, or far behind: what is older is lost to those who come later
            self._drop(self._limit, self.last)
        self._tell()

    def end(self, outcome: Outcome) -> None:
        if self.ended is None:
            self.ended = outcome
            self._disarm()
            self._tell()

    def _tell(self) -> None:
        self._changed(self)
        if self._waiting:
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)
            self._waiting.clear()

    # -- reading ---------------------------------------------------------------------------------------------------

    def stretch(self, after: int) -> Stretch | None:
        """What came after block `after`; None: some of it is not in memory any more."""
        if after + 1 < self.first:
            return None
        begin = after + 1 - self.first + self._evicted
        blocks, size = self._blocks[begin:], 0
        if len(blocks) > 1:
            for index, block in enumerate(blocks):
                size += len(block)
                if size > _MOST and index:
                    blocks = blocks[:index]
                    break
        number = min(after, self.last) + 1
        whole = number + len(blocks) - 1 == self.last
        ended = self.ended if whole else None
        return Stretch(self.head, number, tuple(blocks), self.first, self.last, ended)

    async def changed(self) -> None:
        """Wait until there is more, or the end."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    def enter(self) -> None:
        """Somebody reads it here. Each `enter` needs its `leave`."""
        self.readers += 1
        self._disarm()

    def leave(self) -> None:
        self.readers -= 1
        self.watch()

    def watch(self) -> None:
        """See whether anybody reads; if not, wait for somebody for a while."""
        if self.readers or self.ended is not None or self._deserted is None or self._timer is not None:
            return
        # a moment in any case: the call may not have had its first step yet
        self._timer = asyncio.get_running_loop().call_later(self._linger, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.readers or self.ended is not None or self._deserted is None:
            return
        if self._linger and time.monotonic() - self.read_elsewhere < self._linger:
            self.watch()
        else:
            self._deserted()

    def told_read(self, at: int) -> None:
        """The log says when others last read it, by a clock that need not be ours: what counts is that it changed."""
        if at != self._told_read:
            self._told_read = at
            self.read_elsewhere = time.monotonic()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- logging ---------------------------------------------------------------------------------------------------

    @property
    def unflushed(self) -> Appended:
        """What the log has not."""
        begin = max(self.flushed + 1, self.first)
        blocks = tuple(self._blocks[begin - self.first + self._evicted :])
        return Appended(self.head.id, begin, blocks, self.ended)

    def logged(self, last: int) -> None:
        """The log has the blocks up to number `last`."""
        self.flushed = max(self.flushed, last)
        if self._size > TAIL:
            self._drop(TAIL, self.flushed)

    def _drop(self, size: int, until: int) -> None:
        """Forget the oldest blocks, none after number `until`, until no more than `size` bytes are left."""
        while self._size > size and self.first <= until and self.first < self.last:
            self._size -= len(self._blocks[self._evicted])
            self._blocks[self._evicted] = b""
            self._evicted += 1
            self.first += 1
        if self._evicted > 64 and self._evicted * 2 > len(self._blocks):
            del self._blocks[: self._evicted]
            self._evicted = 0
