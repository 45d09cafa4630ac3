"""The streams of this process, and those of others as far as the log has them: begin, follow, stop.

Blocks go to the log beside the answer: one task gathers what has come for some milliseconds and appends it for all
streams in one go. Whoever reads along in this process has them at once, from memory.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from router.errors import Interrupted, RouterError, Stopped
from router.streams.live import LiveStream
from router.streams.log import LogAway, StreamHead, StreamLog, Stretch

_GATHER: Final = 0.05
"""Seconds that blocks may gather before they are appended."""
_BEAT: Final = 1.0
"""Seconds between two signs of life while streams are open and nothing comes."""
_TOGETHER: Final = 500
"""Streams of one batch."""
_AGAIN: Final = 1.0
"""Seconds before a log that is away is tried again."""
_PATIENCE: Final = 1.0
"""Seconds that a call waits for the log to take its stream; then it goes on without."""
_POLL: Final = (0.05, 0.25)
"""Seconds between two looks into the log at a stream of another process: at first, and at most."""
_OUTAGE: Final = 15.0
"""Seconds that a reader of another process' stream waits for a log that is away."""
_LIVING: Final = 1.0
"""Seconds between two looks whether that process lives."""


class StreamUnknown(Exception):
    """No stream of that id is known."""


class Streams:
    """`sealed` writes the last block of a stream whose process has died, in the stream's dialect."""

    def __init__(
        self, log: StreamLog, writer: str, sealed: Callable[[StreamHead, RouterError], bytes], *, linger: float
    ) -> None:
        self.log = log
        self.writer = writer
        self.linger = linger
        self._sealed = sealed
        self._live: dict[str, LiveStream] = {}
        self._dirty: dict[str, LiveStream] = {}
        self._wake = asyncio.Event()
        self._away = False
        self._closing = False
        self._log = structlog.get_logger("deltaway.streams")

    def __len__(self) -> int:
        return len(self._live)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self.log.lifespan():
            flushing = asyncio.create_task(self._flushes())
            try:
                yield
            finally:
                self._closing = True
                self._wake.set()
                done, _ = await asyncio.wait({flushing}, timeout=5.0)
                if not done:
                    flushing.cancel()
                    await asyncio.gather(flushing, return_exceptions=True)

    # -- streams of this process -----------------------------------------------------------------------------------

    def begin(self, head: StreamHead, *, linger: float, deserted: Callable[[], None] | None) -> LiveStream:
        """A stream that this process writes. Others can read it once it is `announced`."""
        live = LiveStream(head, self.log.limit, self._changed, linger=linger, deserted=deserted)
        self._live[head.id] = live
        return live

    async def announced(self, live: LiveStream) -> None:
        """Wait until the log knows it, so that whoever is told of it can read it anywhere; not for long."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.log.begin(live.head)
            live.begun = True
        except (LogAway, TimeoutError) as error:
            self._went_away(error)
        # from now on there are signs of life
        self._wake.set()

    def live(self, stream: str) -> LiveStream | None:
        return self._live.get(stream)

    # -- streams of anybody ----------------------------------------------------------------------------------------

    async def look(self, stream: str, after: int) -> Stretch | None:
        """What comes after block `after`, as far as it is there now; None: no such stream is known. Raises
        `LogAway`."""
        live = self._live.get(stream)
        found = None if live is None else live.stretch(after)
        return found or await self.log.read(stream, after)

    async def follow(self, stream: str, after: int) -> AsyncGenerator[Stretch, None]:
        """What comes after block `after`, until the end: the last stretch alone has `ended`, or is `expired`. A reader
        who has seen more than the log of a stream whose writer died gets its last block. To be closed by whoever
        leaves it early. Raises `StreamUnknown`, `LogAway`."""
        entered: LiveStream | None = None
        looked, pause = time.monotonic(), _POLL[0]
        known, away_since, given = False, None, 0
        try:
            while True:
                # who reads one that is removed sees how it ends
                live = self._live.get(stream, entered)
                if live is not None and entered is None:
                    entered = live
                    live.enter()
                found = None if live is None else live.stretch(after)
                if live is not None and found is not None and not found.blocks and found.ended is None:
                    await live.changed()
                    continue
                if found is None:
                    try:
                        found = await self.log.read(stream, after)
                        away_since = None
                    except LogAway:
                        away_since = away_since or time.monotonic()
                        if not known or time.monotonic() - away_since > _OUTAGE:
                            raise
                        # the answer goes on meanwhile, and so may its reader
                        await asyncio.sleep(_POLL[1])
                        continue
                if found is None:
                    raise StreamUnknown(stream)
                known = True
                if found.ended == "interrupted" and after >= found.last > given:
                    # it was ended for its writer after that reader had seen more than the log
                    after = found.last - 1
                    given = found.last
                    continue
                if found.blocks or found.ended is not None or found.expired:
                    yield found
                    if (found.ended is not None and _is_all(found)) or found.expired:
                        return
                    after = max(after, found.first + len(found.blocks) - 1)
                    given = max(given, after) if found.blocks else given
                    pause = _POLL[0]
                    continue
                if live is None and (time.monotonic() - looked >= _LIVING or found.head.writer == self.writer):
                    looked = time.monotonic()
                    if await self._is_dead(found.head):
                        continue
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _POLL[1])
        finally:
            if entered is not None:
                entered.leave()

    async def stop(self, stream: str) -> None:
        """Have it ended, wherever it is written. Raises `LogAway`."""
        live = self._live.get(stream)
        if live is None:
            await self.log.stop(stream)
        else:
            self._stop(live)

    async def remove(self, stream: str) -> None:
        """Stop it, and delete what is kept of it. Raises `LogAway`."""
        live = self._live.pop(stream, None)
        self._dirty.pop(stream, None)
        if live is not None:
            # what still comes is for nobody, and the log does not get to know the stream again
            live.begun = True
            self._stop(live)
        await self.log.stop(stream)
        await self.log.remove(stream)

    async def _is_dead(self, head: StreamHead) -> bool:
        """Whether its writer is gone; then it is ended for it."""
        if head.writer == self.writer:
            # it is ours, and has left us: a look that came while it ended sees its end next time
            if head.id in self._live:
                return True
        elif await self.log.living(head.writer):
            return False
        error = Interrupted("the process that wrote this answer ended in the middle of it: ask again")
        await self.log.seal(head.id, self._sealed(head, error), "interrupted")
        return True

    def _stop(self, live: LiveStream) -> None:
        if live.ended is None and live.stopping is not None:
            live.stopping(Stopped("this answer was stopped before its end, as was asked for"))

    # -- into the log ----------------------------------------------------------------------------------------------

    def _changed(self, live: LiveStream) -> None:
        self._dirty[live.head.id] = live
        if not self._wake.is_set():
            self._wake.set()

    async def _flushes(self) -> None:
        while not (self._closing and not self._dirty):
            try:
                async with asyncio.timeout(_BEAT if self._live else None):
                    await self._wake.wait()
                if not self._closing:
                    await asyncio.sleep(_GATHER)
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._flush()
                self._came_back()
            except LogAway as error:
                self._went_away(error)
                if self._closing:
                    return
                await asyncio.sleep(_AGAIN)
                self._wake.set()
            except Exception as error:
                self._log.error("the stream log failed by a fault of ours", exc_info=error)
                await asyncio.sleep(_AGAIN)

    async def _flush(self) -> None:
        dirty = list(self._dirty.values())
        for begin in range(0, max(len(dirty), 1), _TOGETHER):
            together = dirty[begin : begin + _TOGETHER]
            for live in together:
                if not live.begun:
                    await self.log.begin(live.head)
                    live.begun = True
            batch = [live.unflushed for live in together]
            told = await self.log.append(self.writer, batch)
            for live, appended in zip(together, batch, strict=True):
                live.logged(appended.first + len(appended.blocks) - 1)
                if live.last == live.flushed and live.ended == appended.ended:
                    self._dirty.pop(live.head.id, None)
                    if live.ended is not None:
                        self._live.pop(live.head.id, None)
            for stream in told.lost:
                lost = self._live.get(stream)
                if lost is not None:
                    # removed, or sealed by somebody who took us for dead: what comes is for those who read along here
                    self._dirty.pop(stream, None)
                    lost.logged(lost.last)
                    if lost.ended is not None:
                        self._live.pop(stream, None)
            for stream in told.stopped:
                stopped = self._live.get(stream)
                if stopped is not None:
                    self._stop(stopped)
            for stream, at in told.read_at.items():
                read = self._live.get(stream)
                if read is not None:
                    read.told_read(at)

    def _went_away(self, error: BaseException) -> None:
        if not self._away:
            self._away = True
            self._log.error(
                "the stream log is away: streams can be come back to in this process alone", reason=str(error)
            )

    def _came_back(self) -> None:
        if self._away:
            self._away = False
            self._log.warning("the stream log is back")


def _is_all(found: Stretch) -> bool:
    return found.first + len(found.blocks) - 1 >= found.last
