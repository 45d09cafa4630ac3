"""The chat endpoint: client bytes → call → events → client bytes. One function for whole answers and streams.

A bare ASGI route: Litestar's `Request` and response classes would cost more than all the rest of the way in.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from router.call import Call, Trip, new_trip
from router.dialect import Asked, Dialect
from router.errors import ClientGone, InternalError, MethodNotAllowed, RouterError, ShuttingDown, StoreUnavailable
from router.events import Completed, Event
from router.fold import Fold
from router.generation import Generation, Generations
from router.http.reply import Send, StreamedReply, call_headers, error_headers, send_json
from router.http.request import Head, Receive, Scope, read_body, read_head
from router.http.streaming import pump
from router.ids import request_id
from router.ledger.books import Books
from router.running import Running, interrupt

STRANGERS_BODY: Final = 64 * 1024
"""Bytes of a body that are read before it is known who sends it. More is read only of who may call at all."""


class Chat:
    """`POST /v1/chat/completions`, or the like of another dialect."""

    def __init__(
        self,
        dialect: Dialect,
        generations: Generations,
        running: Running,
        books: Books,
    ) -> None:
        self._dialect = dialect
        self._generations = generations
        self._books = books
        self._running = running
        self._log = structlog.get_logger("deltaway.chat")

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Never raises for what a client, a vendor or a plugin did."""
        call_id, trip, generation = request_id(), new_trip(), self._generations.current
        # from here to its end the call knows no other configuration
        trip.terms = generation.terms
        with generation.tracked(), self._running.tracked(trip):
            try:
                await self._answer(generation, call_id, trip, scope, receive, send)
            except asyncio.CancelledError:
                if trip.interruption is None:
                    raise
                # its client would not even take the news of its end: the server closes the connection

    async def _answer(
        self, generation: Generation, call_id: str, trip: Trip, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"`{scope['path']}` takes POST, not {scope['method']}")
            if self._running.stopping is not None:
                raise self._running.stopping
            head = read_head(scope)
            if generation.authenticator is not None and not _is_small(head.content_length):
                # the plugin will ask again, in its place among the layers; small bodies wait for that
                await generation.authenticator.authenticate(head.credentials)
            asked = self._dialect.decode(await read_body(receive, head, generation.body_limit))
        except BaseException as raised:
            error = self._reason(call_id, trip, raised)
            if not isinstance(error, ClientGone):
                # no plugin has seen this request, so none will write its line
                self._log.info("refused", request_id=call_id, status=error.status, code=error.code)
                await self._refuse(send, call_id, trip, error)
            return
        call = self._call(call_id, trip, asked, head, scope)
        watch = asyncio.get_running_loop().create_task(_watch(receive, asyncio.current_task(), trip))
        try:
            answer = self._stream if asked.request.stream else self._whole
            await answer(generation, call, asked, send, watch.cancel)
        finally:
            watch.cancel()
            # an end that nobody has put into words is the end of this process
            self._books.close(call, asyncio.CancelledError(), generation.layer_names)

    def _call(self, call_id: str, trip: Trip, asked: Asked, head: Head, scope: Scope) -> Call:
        request = asked.request
        trip.asked = request.model
        client = scope.get("client")
        tags = {**request.metadata, **head.tags} if head.tags else request.metadata
        return Call(
            id=call_id,
            request=request,
            dialect=self._dialect.name,
            trip=trip,
            credentials=head.credentials,
            user=head.user or request.user,
            tags=tags,
            conversation=head.conversation,
            regions=head.regions,
            forced=head.forced,
            origin=client[0] if client else "",
        )

    async def _whole(
        self, generation: Generation, call: Call, asked: Asked, send: Send, unwatch: Callable[[], object]
    ) -> None:
        """The answer as the fold of its stream."""
        fold, last, trip = Fold(), None, call.trip
        event: Event
        try:
            async for event in generation.layers(call):
                fold.add(event)
                last = event
            _check_end(last)
            unwatch()
            await self._close(call)
            body = self._dialect.whole(asked, fold.result(), call.id)
            headers = call_headers(call.id, trip)
            await self._on_record(generation, call, None)
        except BaseException as raised:
            error = await self._failure(generation, call, raised)
            if not isinstance(error, ClientGone):
                await self._refuse(send, call.id, trip, error)
            return
        await send_json(send, 200, body, headers)

    async def _stream(
        self, generation: Generation, call: Call, asked: Asked, send: Send, unwatch: Callable[[], object]
    ) -> None:
        """The answer as it comes."""
        trip, encoder = call.trip, self._dialect.stream(asked, call.id)
        reply = StreamedReply(send, call.id, trip, generation.heartbeat, encoder.heartbeat)
        batch: list[bytes] = []
        try:
            try:
                _check_end(await pump(generation.layers(call), encoder.encode, reply.write, batch))
                unwatch()
                # every layer has settled, and the call is on record, before the last byte leaves
                await self._close(call)
                await self._on_record(generation, call, None)
                batch.append(encoder.end())
            except BaseException as raised:
                error = await self._failure(generation, call, raised)
                await reply.stop()
                if isinstance(error, ClientGone):
                    return
                if not reply.started and not batch:
                    await self._refuse(send, call.id, trip, error)
                    return
                batch.append(encoder.failure(error))
            await reply.end(b"".join(batch))
        finally:
            reply.silence()

    async def _failure(self, generation: Generation, call: Call, raised: BaseException) -> RouterError:
        """The error that a call ends with, all its layers closed. What is not ours to handle is raised on."""
        error = self._reason(call.id, call.trip, raised)
        await self._close(call)
        await self._on_record(generation, call, error)
        return error

    def _reason(self, call_id: str, trip: Trip, raised: BaseException) -> RouterError:
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

    async def _on_record(self, generation: Generation, call: Call, error: RouterError | None) -> None:
        """Tell the ledger the call's end, and wait as long as its durability asks."""
        waiting = self._books.close(call, error, generation.layer_names)
        if waiting is not None and not isinstance(error, ClientGone):
            try:
                await waiting
            except StoreUnavailable as failed:
                # the answer is whole all the same, and its row goes to the store once more
                self._log.error("an end is not on the disk yet", request_id=call.id, reason=failed.message)

    async def _close(self, call: Call) -> None:
        try:
            await call.trip.close()
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            self._log.error("a plugin failed while it closed", request_id=call.id, exc_info=error)

    async def _refuse(self, send: Send, call_id: str, trip: Trip, error: RouterError) -> None:
        headers = [*call_headers(call_id, trip), *error_headers(error)]
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", b"POST"))
        await send_json(send, error.status, self._dialect.error(error, call_id), headers)


def _is_small(length: int | None) -> bool:
    return length is not None and length <= STRANGERS_BODY


def _check_end(last: Event | None) -> None:
    if type(last) is not Completed:
        raise InternalError("the stream of events ended without its end: a plugin dropped it")


async def _watch(receive: Receive, task: "asyncio.Task[object] | None", trip: Trip) -> None:
    """Cancel the call when its client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if task is not None:
        interrupt(task, trip, ClientGone("the client left"))
