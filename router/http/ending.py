"""How a call ends: its reason in words, its layers closed, its end on record. The same whoever reads the answer."""

import asyncio

import structlog

from router.call import Call, Trip
from router.errors import ClientGone, InternalError, RouterError, ShuttingDown, StoreUnavailable
from router.events import Completed, Event
from router.generation import Generation
from router.ledger.books import Books


class Ending:
    def __init__(self, books: Books) -> None:
        self._books = books
        self._log = structlog.get_logger("deltaway.chat")

    async def failure(self, generation: Generation, call: Call, raised: BaseException) -> RouterError:
        """The error that a call ends with, all its layers closed. What is not ours to handle is raised on."""
        error = self.reason(call.id, call.trip, raised)
        await self.close(call)
        await self.on_record(generation, call, error)
        return error

    def reason(self, call_id: str, trip: Trip, raised: BaseException) -> RouterError:
        """`raised` as an error of ours, noted as what the layers that are still open see as GeneratorExit."""
        task = asyncio.current_task()
        error: RouterError
        if isinstance(raised, RouterError):
            error = raised
        elif isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling():
            # one CancelledError may stand for several requests: the client left, and a deadline passed
            while task.cancelling():
                task.uncancel()
            error = trip.interruption or ShuttingDown("the server has stopped; send the request again")
        elif isinstance(raised, Exception | asyncio.CancelledError):
            # nobody cancelled us: a layer waited for something that was cancelled
            self._log.error("a call failed by a fault of ours", request_id=call_id, exc_info=raised)
            error = InternalError(f"internal error; the server's log knows more under request id {call_id}")
            # a header may be what failed
            trip.headers.clear()
        else:
            raise raised
        if trip.interruption is None:
            trip.interruption = error
        return error

    async def on_record(self, generation: Generation, call: Call, error: RouterError | None) -> None:
        """Tell the ledger the call's end, and wait as long as its durability asks."""
        waiting = self._books.close(call, error, generation.layer_names)
        if waiting is not None and not isinstance(error, ClientGone):
            try:
                await waiting
            except StoreUnavailable as failed:
                # the answer is whole all the same, and its row goes to the store once more
                self._log.error("an end is not on the disk yet", request_id=call.id, reason=failed.message)

    async def close(self, call: Call) -> None:
        """Close all layers."""
        try:
            await call.trip.close()
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            self._log.error("a plugin failed while it closed", request_id=call.id, exc_info=error)

    def abandon(self, generation: Generation, call: Call) -> None:
        """An end that nobody has put into words is the end of this process. Does nothing if the call has ended."""
        self._books.close(call, asyncio.CancelledError(), generation.layer_names)


def check_end(last: Event | None) -> None:
    """Raises `InternalError` unless that is how a stream of events ends."""
    if type(last) is not Completed:
        raise InternalError("the stream of events ended without its end: a plugin dropped it")
