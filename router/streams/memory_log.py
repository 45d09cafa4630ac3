"""A stream log in the memory of one process: for a process alone, and gone with it."""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from msgspec import Struct

from router.call import Outcome
from router.streams.log import Appended, Claim, StreamHead, Stretch, Told

_DAY: Final = 86400.0


class _Kept(Struct):
    head: StreamHead
    blocks: deque[bytes]
    begins: int = 1
    last: int = 0
    size: int = 0
    ended: Outcome | None = None
    ended_at: float = 0.0
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
        self._ended: deque[str] = deque()
        self._claims: dict[tuple[str, str], tuple[str, str, float]] = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        yield

    async def begin(self, head: StreamHead) -> None:
        self._expire()
        if head.id not in self._streams:
            kept = self._streams[head.id] = _Kept(head, deque())
            self._open.setdefault(head.writer, {})[head.id] = kept

    async def append(self, writer: str, batch: Sequence[Appended]) -> Told:
        lost = set()
        for appended in batch:
            kept = self._streams.get(appended.id)
            if kept is None or kept.ended is not None or kept.head.writer != writer:
                lost.add(appended.id)
                continue
            if appended.first > kept.last + 1:
                kept.blocks.clear()
                kept.size, kept.last, kept.begins = 0, appended.first - 1, appended.first
            for block in appended.blocks[max(0, kept.last + 1 - appended.first) :]:
                self._add(kept, block)
            if appended.ended is not None:
                self._end(kept, appended.ended)
        mine = self._open.get(writer, {})
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
        # whoever can ask lives in the same process
        return True

    async def seal(self, stream: str, block: bytes, ended: Outcome) -> None:
        kept = self._streams.get(stream)
        if kept is not None and kept.ended is None:
            self._add(kept, block)
            self._end(kept, ended)

    async def stop(self, stream: str) -> None:
        kept = self._streams.get(stream)
        if kept is not None and kept.ended is None:
            kept.stopped = True

    async def claim(self, owner: str, key: str, stream: str, fingerprint: str) -> Claim:
        self._expire()
        found = self._claims.get((owner, key))
        if found is not None and (found[0] in self._streams or found[2] > self._clock()):
            return Claim(found[0], found[1], False)
        self._claims[owner, key] = (stream, fingerprint, self._clock() + self.keep)
        return Claim(stream, fingerprint, True)

    async def release(self, owner: str, key: str, stream: str) -> None:
        found = self._claims.get((owner, key))
        if found is not None and found[0] == stream:
            del self._claims[owner, key]

    async def remove(self, stream: str) -> None:
        kept = self._streams.pop(stream, None)
        if kept is not None:
            self._open.get(kept.head.writer, {}).pop(stream, None)

    def _add(self, kept: _Kept, block: bytes) -> None:
        kept.blocks.append(block)
        kept.last += 1
        kept.size += len(block)
        while kept.size > self.limit and len(kept.blocks) > 1:
            kept.size -= len(kept.blocks.popleft())
            kept.begins += 1

    def _end(self, kept: _Kept, ended: Outcome) -> None:
        kept.ended, kept.ended_at = ended, self._clock()
        self._open.get(kept.head.writer, {}).pop(kept.head.id, None)
        self._ended.append(kept.head.id)

    def _expire(self) -> None:
        now = self._clock()
        while self._ended:
            kept = self._streams.get(self._ended[0])
            if kept is not None and now - kept.ended_at < self.keep + max(self.keep, _DAY):
                break
            self._ended.popleft()
            if kept is not None:
                del self._streams[kept.head.id]
        for name in self._ended:
            kept = self._streams.get(name)
            if kept is None or kept.expired:
                continue
            if now - kept.ended_at < self.keep:
                break
            kept.expired, kept.begins = True, kept.last + 1
            kept.blocks.clear()
