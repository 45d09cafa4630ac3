"""The chat endpoint: client bytes → call → events → client bytes. One function for whole answers and streams.

A bare ASGI route: Litestar's `Request` and response classes would cost more than all the rest of the way in. An answer
that shall outlive its connection is made and read in two places: `router.http.kept`.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from router.access import OnDisconnect
from router.call import Call, Trip, new_trip
from router.dialect import Asked, Dialect
from router.errors import ClientGone, MethodNotAllowed, RouterError
from router.events import Event
from router.fold import Fold
from router.generation import Generation, Generations
from router.http.ending import Ending, check_end
from router.http.incoming import incoming
from router.http.kept import Kept, Reading
from router.http.leaving import on_disconnect, when_left
from router.http.reply import Send, StreamedReply, call_headers, error_headers, send_json
from router.http.request import Receive, Scope, read_body, read_head
from router.http.streaming import pump
from router.ids import request_id
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
        ending: Ending,
        kept: Kept,
        methods: str = "POST",
    ) -> None:
        """`methods`: what its path takes, here and elsewhere."""
        self._dialect = dialect
        self._generations = generations
        self._running = running
        self._ending = ending
        self._kept = kept
        self._methods = methods
        self._log = structlog.get_logger("deltaway.chat")

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Never raises for what a client, a vendor or a plugin did."""
        call_id, trip, generation = request_id(), new_trip(), self._generations.current
        # from here to its end the call knows no other configuration
        trip.terms = generation.terms
        with generation.tracked():
            try:
                with self._running.tracked(trip):
                    reading = await self._answer(generation, call_id, trip, scope, receive, send)
                if reading is not None:
                    # the call has a task of its own; who reads its answer may leave it
                    await self._kept.read(generation, reading, receive, send)
            except asyncio.CancelledError:
                if trip.interruption is None:
                    raise
                # its client would not even take the news of its end: the server closes the connection

    async def _answer(
        self, generation: Generation, call_id: str, trip: Trip, scope: Scope, receive: Receive, send: Send
    ) -> Reading | None:
        """Answer the request, or begin a stream and give how it is read."""
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"`{scope['path']}` takes {self._methods}, not {scope['method']}")
            if self._running.stopping is not None:
                raise self._running.stopping
            head = read_head(scope)
            if generation.authenticator is not None and not _is_small(head.content_length):
                # the plugin will ask again, in its place among the layers; small bodies wait for that
                await generation.authenticator.authenticate(head.credentials)
            body = await read_body(receive, head, generation.body_limit)
            asked = self._dialect.decode(body)
            call = incoming(self._dialect.name, call_id, trip, asked, head, scope)
            if self._kept.wants(head, asked, call):
                return await self._kept.begin(generation, call, asked, head, body, receive)
        except BaseException as raised:
            error = self._ending.reason(call_id, trip, raised)
            if not isinstance(error, ClientGone):
                # no plugin has seen this request, so none will write its line
                self._log.info("refused", request_id=call_id, status=error.status, code=error.code)
                await self._refuse(send, call_id, trip, error)
            return None
        watch = asyncio.get_running_loop().create_task(
            when_left(receive, _left(generation, trip, head.on_disconnect, asyncio.current_task()))
        )
        try:
            answer = self._stream if asked.request.stream else self._whole
            await answer(generation, call, asked, send, watch.cancel)
        finally:
            watch.cancel()
            self._ending.abandon(generation, call)
        return None

    async def _whole(
        self, generation: Generation, call: Call, asked: Asked, send: Send, unwatch: Callable[[], object]
    ) -> None:
        """The answer as the fold of its stream."""
        fold, last, trip, ending = Fold(), None, call.trip, self._ending
        event: Event
        try:
            async for event in generation.layers(call):
                fold.add(event)
                last = event
            check_end(last)
            unwatch()
            await ending.close(call)
            body = self._dialect.whole(asked, fold.result(), call.id)
            headers = call_headers(call.id, trip)
            await ending.on_record(generation, call, None)
        except BaseException as raised:
            error = await ending.failure(generation, call, raised)
            if not isinstance(error, ClientGone):
                await self._refuse(send, call.id, trip, error)
            return
        await send_json(send, 200, body, headers)

    async def _stream(
        self, generation: Generation, call: Call, asked: Asked, send: Send, unwatch: Callable[[], object]
    ) -> None:
        """The answer as it comes."""
        trip, encoder, ending = call.trip, self._dialect.stream(asked, call.id), self._ending
        beat = self._dialect.heartbeat
        reply = StreamedReply(send, lambda: call_headers(call.id, trip), generation.heartbeat, beat, trip)
        batch: list[bytes] = []
        try:
            try:
                check_end(await pump(generation.layers(call), encoder.encode, reply.write, batch))
                unwatch()
                # every layer has settled, and the call is on record, before the last byte leaves
                await ending.close(call)
                await ending.on_record(generation, call, None)
                batch.append(encoder.end())
            except BaseException as raised:
                error = await ending.failure(generation, call, raised)
                await reply.stop()
                if isinstance(error, ClientGone):
                    return
                if not reply.started and not batch:
                    await self._refuse(send, call.id, trip, error)
                    return
                batch.append(self._dialect.failure(error, call.id))
            await reply.end(b"".join(batch))
        finally:
            reply.silence()

    async def _refuse(self, send: Send, call_id: str, trip: Trip, error: RouterError) -> None:
        headers = [*call_headers(call_id, trip), *error_headers(error)]
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", self._methods.encode()))
        await send_json(send, error.status, self._dialect.error(error, call_id), headers)


def _is_small(length: int | None) -> bool:
    return length is not None and length <= STRANGERS_BODY


def _left(
    generation: Generation, trip: Trip, asked: OnDisconnect | None, task: "asyncio.Task[object] | None"
) -> Callable[[], None]:
    """What is done when the client leaves: what it is sent from then on the server drops by itself."""

    def leave() -> None:
        if task is not None:
            interrupt(task, trip, ClientGone("the client left"))

    def left() -> None:
        if on_disconnect(generation, trip, asked) == "finish":
            return
        if trip.holders:
            trip.deserted = leave
        else:
            leave()

    return left
