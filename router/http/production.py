"""Has a call answered into a stream of its own, in a task of its own: whoever reads it may come and go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from router.call import Call, outcome_of
from router.dialect import Asked, Dialect
from router.errors import ClientGone, RouterError, ShuttingDown
from router.events import Event
from router.fold import Fold
from router.generation import Generation
from router.http.ending import Ending, check_end
from router.lifecycle import LAST_WORDS
from router.running import Running, interrupt
from router.streams.live import LiveStream

_BURST: Final = 256
"""Events after which a vendor that never pauses lets others have their turn."""


class Saving(Protocol):
    """What an answer is saved into while it comes."""

    def add(self, event: Event, last: int) -> None:
        """An event, and the number of the newest block once it is in the stream. Never waits."""
        ...

    async def close(self, error: RouterError | None) -> None:
        """The answer has ended; returns when it is kept. Never raises."""
        ...


class Production:
    """`patience`: seconds that calls may take to end once the server stops."""

    def __init__(self, dialect: Dialect, running: Running, ending: Ending, patience: float) -> None:
        self._dialect = dialect
        self._patience = patience
        self._running = running
        self._ending = ending
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """At its end the calls that run may end in the time that the server gives them, though nobody is connected."""
        try:
            yield
        finally:
            if not self._running.draining:
                # nobody has been told to hurry, and nobody will be
                self._running.interrupt_all(ShuttingDown("the server has stopped; send the request again"))
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self._patience if self._running.draining else LAST_WORDS)

    def start(self, generation: Generation, call: Call, asked: Asked, live: LiveStream, saving: list[Saving]) -> None:
        """The stream ends when the call does, whatever ends it; `live.stopping` ends it early."""
        produced = self._produced(generation, call, asked, live, saving)
        task = asyncio.get_running_loop().create_task(produced, name=f"call {call.id}")
        # the loop alone would let it be collected
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # a task that was cancelled before its first step has ended nothing
        task.add_done_callback(lambda done: live.end("interrupted"))
        live.stopping = lambda error: interrupt(task, call.trip, error)

    async def _produced(
        self, generation: Generation, call: Call, asked: Asked, live: LiveStream, saving: list[Saving]
    ) -> None:
        trip = call.trip
        with generation.tracked(), self._running.tracked(trip):
            try:
                answer = self._streamed if asked.request.stream else self._whole
                await answer(generation, call, asked, live, saving)
            finally:
                self._ending.abandon(generation, call)
                live.end("interrupted")

    async def _streamed(
        self, generation: Generation, call: Call, asked: Asked, live: LiveStream, saving: list[Saving]
    ) -> None:
        encoder, ending = self._dialect.stream(asked, call.id), self._ending
        last: Event | None = None
        error: RouterError | None = None
        burst = 0
        try:
            async for event in generation.layers(call):
                last = event
                if data := encoder.encode(event):
                    live.add(data)
                for each in saving:
                    each.add(event, live.last)
                burst += 1
                if burst >= _BURST:
                    burst = 0
                    await asyncio.sleep(0)
            check_end(last)
            # every layer has settled, and the call is on record and kept, before the last block can be read
            await ending.close(call)
            await ending.on_record(generation, call, None)
            mark = encoder.end()
        except BaseException as raised:
            error = await ending.failure(generation, call, raised)
            if live.last == 0:
                live.refused = error
            mark = self._dialect.failure(error, call.id)
        for each in saving:
            await each.close(error)
        live.add(mark)
        live.end(outcome_of(error, call.trip))

    async def _whole(
        self, generation: Generation, call: Call, asked: Asked, live: LiveStream, saving: list[Saving]
    ) -> None:
        """The answer as one block, so that it can be kept and read as a stream is."""
        ending, fold = self._ending, Fold()
        last: Event | None = None
        error: RouterError | None = None
        try:
            async for event in generation.layers(call):
                last = event
                fold.add(event)
                for each in saving:
                    each.add(event, live.last)
            check_end(last)
            await ending.close(call)
            body = self._dialect.whole(asked, fold.result(), call.id)
            await ending.on_record(generation, call, None)
        except BaseException as raised:
            error = await ending.failure(generation, call, raised)
            live.refused = error
            body = self._dialect.error(error, call.id)
        for each in saving:
            await each.close(error)
        live.add(b"data: %b\n\n" % body)
        live.end(outcome_of(error, call.trip))


def desertion(live: LiveStream, call: Call) -> None:
    """Nobody reads the answer any more: end it, unless others wait for it inside."""

    def left() -> None:
        # somebody may have come back while others held it
        if live.stopping is not None and not live.readers:
            live.stopping(ClientGone("whoever read this answer has left"))

    if call.trip.holders:
        call.trip.deserted = left
    else:
        left()
