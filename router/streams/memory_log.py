"""A stream log in the memory of one process: for a process alone, and gone with it."""

import heapq
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from msgspec import Struct

from router.call import Outcome
from router.streams.log import DEAD, Appended, Claim, StreamHead, Stretch, Told, known_for


class _Kept(Struct):
    head: StreamHead
    blocks: deque[bytes]
    begins: int = 1
    last: int = 0
    size: int = 0
    ended: Outcome | None = None
    over: float | None = None
    """Since when nothing is added any more."""
    read_at: int = 0
    stopped: bool = False
    expired: bool = False


class MemoryLog:
    """`keep`: seconds after its end; `limit`: bytes of one stream; `clock` gives Unix seconds."""

    def __init__(self, keep: float, limit: int, clock: Callable[[], float] = time.time) -> None:
        self.keep = keep
        self.limit = limit
        self._clock = clock
        self._streams: dict[str, _Kept] = {}
        self._open: dict[str, dict[str, _Kept]] = {}
        """By writer."""
        self._touched: dict[str, dict[str, _Kept]] = {}
        """Of the open ones those that were read, or are to be stopped."""
        self._seen: dict[str, float] = {}
        """The last sign of life of writers."""
        self._over: list[tuple[float, int, _Kept]] = []
        """Heaps: since when, a number, and what is over; those that expired are in the next."""
        self._expired: list[tuple[float, int, _Kept]] = []
        self._number = 0
        self._claims: dict[tuple[str, str], tuple[str, str, float]] = {}
        self._claimed: dict[str, set[tuple[str, str]]] = {}
        """Claims by their streams."""
        self._swept = 0.0

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        yield

    async def begin(self, head: StreamHead) -> None:
        self._expire()
        self._seen[head.writer] = self._clock()
        if head.id not in self._streams:
            kept = self._streams[head.id] = _Kept(head, deque())
            self._open.setdefault(head.writer, {})[head.id] = kept

    async def append(self, writer: str, batch: Sequence[Appended]) -> Told:
        self._expire()
        lost = set()
        for appended in batch:
            kept = self._streams.get(appended.id)
            if kept is None or kept.head.writer != writer:
                lost.add(appended.id)
            elif kept.over is not None:
                again = appended.first + len(appended.blocks) - 1 <= kept.last
                if not again or appended.ended is None or appended.ended != kept.ended:
                    lost.add(appended.id)
            else:
                self._append(kept, appended)
        self._seen[writer] = self._clock()
        # idle streams, of which there may be thousands, are not looked at
        mine = self._touched.get(writer, {})
        return Told(
            frozenset(name for name, kept in mine.items() if kept.stopped),
            {name: kept.read_at for name, kept in mine.items() if kept.read_at},
            frozenset(lost),
        )

    async def read(self, stream: str, after: int, limit: int = 256 * 1024) -> Stretch | None:
        self._expire()
        kept = self._streams.get(stream)
        if kept is None:
            return None
        kept.read_at = int(self._clock() * 1000)
        self._touch(kept)
        first = min(max(after + 1, kept.begins), kept.last + 1)
        blocks: list[bytes] = []
        size = 0
        for index in range(first - kept.begins, len(kept.blocks)):
            block = kept.blocks[index]
            size += len(block)
            if blocks and size > limit:
                break
            blocks.append(block)
        return Stretch(kept.head, first, tuple(blocks), kept.begins, kept.last, kept.ended, kept.expired)

    async def living(self, writer: str) -> bool:
        return self._lives(writer)

    async def seal(self, stream: str, block: bytes, ended: Outcome) -> None:
        self._expire()
        kept = self._streams.get(stream)
        if kept is not None and kept.over is None:
            self._add(kept, block)
            self._end(kept, ended, self._seen[kept.head.writer])

    async def stop(self, stream: str) -> None:
        kept = self._streams.get(stream)
        if kept is not None and kept.over is None:
            kept.stopped = True
            self._touch(kept)

    async def claim(self, owner: str, key: str, stream: str, fingerprint: str) -> Claim:
        self._expire()
        found = self._claims.get((owner, key))
        if found is not None:
            kept = self._streams.get(found[0])
            if found[2] > self._clock() if kept is None else not kept.expired:
                return Claim(found[0], found[1], False)
        self._unclaim((owner, key))
        self._claims[owner, key] = (stream, fingerprint, self._clock() + self.keep)
        self._claimed.setdefault(stream, set()).add((owner, key))
        return Claim(stream, fingerprint, True)

    async def release(self, owner: str, key: str, stream: str) -> None:
        found = self._claims.get((owner, key))
        if found is not None and found[0] == stream:
            self._unclaim((owner, key))

    async def remove(self, stream: str) -> None:
        kept = self._streams.pop(stream, None)
        if kept is not None:
            self._close(kept)
            kept.blocks.clear()
        self._unclaim_all(stream)

    def _touch(self, kept: _Kept) -> None:
        if kept.over is None:
            self._touched.setdefault(kept.head.writer, {})[kept.head.id] = kept

    def _close(self, kept: _Kept) -> None:
        for streams in (self._open, self._touched):
            streams.get(kept.head.writer, {}).pop(kept.head.id, None)

    def _append(self, kept: _Kept, appended: Appended) -> None:
        if appended.first > kept.last + 1:
            kept.blocks.clear()
            kept.size, kept.last, kept.begins = 0, appended.first - 1, appended.first
        for block in appended.blocks[max(0, kept.last + 1 - appended.first) :]:
            self._add(kept, block)
        if appended.ended is not None:
            self._end(kept, appended.ended, self._clock())

    def _add(self, kept: _Kept, block: bytes) -> None:
        kept.blocks.append(block)
        kept.last += 1
        kept.size += len(block)
        while kept.size > self.limit and len(kept.blocks) > 1:
            kept.size -= len(kept.blocks.popleft())
            kept.begins += 1

    def _end(self, kept: _Kept, ended: Outcome | None, over: float) -> None:
        kept.ended, kept.over = ended, over
        self._close(kept)
        self._number += 1
        heapq.heappush(self._over, (over, self._number, kept))

    # -- what time takes -------------------------------------------------------------------------------------------

    def _lives(self, writer: str) -> bool:
        return writer in self._seen and self._clock() - self._seen[writer] < DEAD

    def _expire(self) -> None:
        now = self._clock()
        for writer in [each for each in self._seen if now - self._seen[each] >= max(self.keep, DEAD)]:
            # nobody has ended its streams for it
            seen = self._seen.pop(writer)
            self._touched.pop(writer, None)
            for kept in list(self._open.pop(writer, {}).values()):
                self._end(kept, None, seen)
        while self._over and now - self._over[0][0] >= self.keep:
            heapq.heappush(self._expired, self._over[0])
            _, _, kept = heapq.heappop(self._over)
            kept.expired, kept.begins = True, kept.last + 1
            kept.blocks.clear()
            if self._streams.get(kept.head.id) is kept:
                self._unclaim_all(kept.head.id)
        while self._expired and now - self._expired[0][0] >= known_for(self.keep):
            _, _, kept = heapq.heappop(self._expired)
            if self._streams.get(kept.head.id) is kept:
                del self._streams[kept.head.id]
        if now - self._swept >= self.keep:
            self._swept = now
            for key, (stream, _, until) in list(self._claims.items()):
                if until <= now and stream not in self._streams:
                    self._unclaim(key)

    def _unclaim(self, key: tuple[str, str]) -> None:
        found = self._claims.pop(key, None)
        if found is not None:
            of_stream = self._claimed[found[0]]
            of_stream.discard(key)
            if not of_stream:
                del self._claimed[found[0]]

    def _unclaim_all(self, stream: str) -> None:
        for key in list(self._claimed.get(stream, ())):
            self._unclaim(key)
