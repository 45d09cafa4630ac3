"""Calls that the gateway makes for itself while it serves another: they pass all layers, and nobody reads them live."""

from router.call import Call
from router.events import Event
from router.fold import Answer, Fold
from router.generation import Generation
from router.http.ending import Ending, check_end
from router.running import Running


class Aside:
    def __init__(self, running: Running, ending: Ending) -> None:
        self._running = running
        self._ending = ending

    async def answer(self, generation: Generation, call: Call) -> Answer:
        """The whole answer, once it is on record. Raises `RouterError`. Needs a task of its own: how that is ended,
        by `router.running.interrupt`, is how the call ends."""
        call.trip.terms = generation.terms
        fold = Fold()
        last: Event | None = None
        with generation.tracked(), self._running.tracked(call.trip):
            try:
                async for event in generation.layers(call):
                    fold.add(event)
                    last = event
                check_end(last)
                await self._ending.close(call)
                await self._ending.on_record(generation, call, None)
                return fold.result()
            except BaseException as raised:
                raise await self._ending.failure(generation, call, raised) from None
            finally:
                self._ending.abandon(generation, call)
