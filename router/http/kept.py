"""Answers that outlive their connection: begun here, read here and at `/v1/streams`.

A call whose stream can be come back to, that is answered elsewhere (`Prefer: respond-async`), that may be repeated
(`Idempotency-Key`), that is a turn of a kept conversation, or is kept by itself (`store`), is made in a task of its own
and writes to a stream; whoever asked reads that stream like anybody else.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from router.call import Call, Trip
from router.conversations.completions import KeptCompletions
from router.conversations.turns import Turning, Turns
from router.dialect import Asked, Dialect
from router.errors import ClientGone, Conflict, Gone, InternalError, InvalidRequest, RouterError, StoreUnavailable
from router.events import Event
from router.generation import Generation
from router.http.aside import Aside
from router.http.delivery import Refused, deliver, gather, until_left
from router.http.leaving import on_disconnect, said_of
from router.http.metadata import checked_metadata
from router.http.production import Production, Saving, desertion
from router.http.reply import Headers, Send, StreamedReply, call_headers, error_headers, send_json
from router.http.request import Head, Receive
from router.http.stream_token import StreamTokens
from router.streams.live import LiveStream
from router.streams.log import LogAway, StreamHead, stream_id, stream_request
from router.streams.streams import Streams, StreamUnknown

STREAMS_PATH: Final = "/v1/streams"
CONVERSATION: Final = "conv_"
"""What the id of a kept conversation begins with. Another word in the header only says what belongs together."""
_AGAIN: Final = 0.05
"""Seconds between two looks whether the call that is repeated has begun its stream."""
_TRIES: Final = 60
_BEYOND: Final = 2**53
"""After every block."""


class Begun(Struct, frozen=True, kw_only=True):
    """The body of a 202: where the answer can be read. `url` bears a token, so that a browser's EventSource can open
    it, which sends no headers; `expires_at` (Unix seconds) is when that token does."""

    id: str
    request_id: str
    url: str
    expires_at: int
    object: str = "stream"


class Reading(Struct, frozen=True):
    """How the client of a kept call reads the answer."""

    stream: str
    whole: bool
    ids: bool
    headers: Headers
    """Those that do not depend on how the call goes."""
    trip: Trip | None = None
    """Of the call, if it was made for this client."""
    live: LiveStream | None = None
    begun: bytes | None = None
    """The body of a 202: nothing is read here."""


class _Freed:
    """Frees the idempotency key of a call that was refused before it was answered: it may be tried again."""

    def __init__(self, live: LiveStream, release: Callable[[], Awaitable[None]]) -> None:
        self._live = live
        self._release = release

    def add(self, event: Event, last: int) -> None:
        pass

    async def close(self, error: RouterError | None) -> None:
        if self._live.refused is not None:
            await self._release()


class Kept:
    def __init__(
        self,
        dialect: Dialect,
        streams: Streams,
        production: Production,
        tokens: StreamTokens,
        turns: Turns,
        aside: Aside,
        completions: KeptCompletions,
    ) -> None:
        self._dialect = dialect
        self._streams = streams
        self._production = production
        self._tokens = tokens
        self._turns = turns
        self._aside = aside
        self._completions = completions
        self._log = structlog.get_logger("deltaway.streams")

    def wants(self, head: Head, asked: Asked, call: Call) -> bool:
        """Whether the call is one for here."""
        return (
            head.resumable
            or head.respond_async
            or head.idempotency_key is not None
            or asked.store
            or asked.conversation is not None
            or (head.conversation is not None and head.conversation.startswith(CONVERSATION))
        )

    async def begin(
        self, generation: Generation, call: Call, asked: Asked, head: Head, body: bytes, receive: Receive
    ) -> Reading:
        """Begin the call, or find the one that it repeats. Raises whatever refuses it."""
        owner, admin = await self._owner(generation, call)
        if asked.store:
            checked_metadata(asked.request.metadata)
        stream = stream_id(call.id)
        if head.idempotency_key is not None:
            first = await self._claimed(owner, head, head.idempotency_key, stream, call, body)
            if first != stream:
                return await self._repeated(first, asked, head)
        try:
            if asked.conversation is None and not (head.conversation or "").startswith(CONVERSATION):
                reading = await self._begun(generation, call, asked, head, body, owner, stream)
            else:
                turning = await self._turning(generation, call, asked, head, owner, receive, admin=admin)
                try:
                    reading = await self._begun(generation, turning.call, asked, head, body, owner, stream, turning)
                except BaseException:
                    await self._turns.end(turning)
                    raise
        except BaseException:
            await self._release(owner, head, stream)
            raise
        # the call is on its way; its client is told of the stream when others can read it too
        assert reading.live is not None
        await self._streams.announced(reading.live)
        return reading

    async def read(self, generation: Generation, reading: Reading, receive: Receive, send: Send) -> None:
        """Write the answer to the client that asked for it, until it leaves."""
        if reading.begun is not None:
            await send_json(send, 202, reading.begun, self._headers(reading))
            return
        try:
            if reading.whole:
                await self._read_whole(reading, receive, send)
                return
            beat = self._dialect.heartbeat
            reply = StreamedReply(send, lambda: self._headers(reading), generation.heartbeat, beat)
            stretches = self._streams.follow(reading.stream, 0)
            live = reading.live
            number = stream_request(reading.stream)
            await deliver(
                reply,
                stretches,
                receive,
                ids=reading.ids,
                broken=lambda error: self._dialect.failure(_unreadable(error), number),
                refused=lambda: None if live is None else live.refused,
            )
        except Refused as refused:
            await self._refuse(send, reading, refused.error)
        except (StreamUnknown, LogAway, Gone) as error:
            await self._refuse(send, reading, _unreadable(error))

    # -- beginning -------------------------------------------------------------------------------------------------

    async def _owner(self, generation: Generation, call: Call) -> tuple[str, bool]:
        """Whose stream it will be, and whether that is an admin. Raises `AuthenticationFailed`."""
        if generation.authenticator is None:
            return "", True
        # the plugin will ask again, in its place among the layers
        principal = await generation.authenticator.authenticate(call.credentials)
        return principal.key, principal.admin

    async def _turning(
        self,
        generation: Generation,
        call: Call,
        asked: Asked,
        head: Head,
        owner: str,
        receive: Receive,
        *,
        admin: bool,
    ) -> Turning:
        """The call with what was said before, once it is its turn. Raises `ClientGone` too."""
        if None not in (asked.conversation, head.conversation) and asked.conversation != head.conversation:
            raise InvalidRequest(
                "`conversation` in the body and the header `x-deltaway-conversation` name two conversations: leave one "
                "of them out",
                param="conversation",
            )
        turning: Turning | None = None
        async with until_left(receive):
            turning = await self._turns.begin(
                generation,
                call,
                owner,
                admin=admin,
                parent=asked.parent,
                ask=lambda summary: self._aside.answer(generation, summary),
            )
        if turning is None:
            raise ClientGone("the client left while it waited for its turn in the conversation")
        return turning

    async def _claimed(self, owner: str, head: Head, key: str, stream: str, call: Call, body: bytes) -> str:
        """The stream that the key stands for. Raises `Conflict` if it was used for another request."""
        # what is asked, where it is said, and in what form the answer is wanted
        asked = [call.dialect, call.conversation, head.respond_async, call.regions, call.forced, head.tags]
        fingerprint = hashlib.sha256(msgspec.json.encode(asked) + b"\0" + body).hexdigest()
        try:
            claim = await self._streams.log.claim(owner, key, stream, fingerprint)
        except LogAway as error:
            # to go on could mean to pay twice, which is what the key is there to prevent
            raise _unreadable(error) from error
        if claim.fingerprint != fingerprint:
            raise Conflict(
                "this `Idempotency-Key` was used for another request: give each request a key of its own, and repeat "
                "it with the same body",
                code="idempotency_key_reused",
                param="idempotency-key",
            )
        return claim.stream

    async def _release(self, owner: str, head: Head, stream: str) -> None:
        if head.idempotency_key is not None:
            try:
                await self._streams.log.release(owner, head.idempotency_key, stream)
            except LogAway as error:
                self._log.warning("an idempotency key stays taken for a call that was refused", reason=str(error))

    async def _repeated(self, stream: str, asked: Asked, head: Head) -> Reading:
        found = await self._found(stream)
        headers: Headers = [
            (b"x-request-id", found.request_id.encode()),
            (b"x-deltaway-stream", stream.encode()),
            (b"idempotent-replayed", b"true"),
        ]
        if head.respond_async:
            return Reading(stream, found.whole, head.resumable, headers, begun=await self._body(found, headers))
        return Reading(stream, found.whole, head.resumable, headers, live=self._streams.live(stream))

    async def _found(self, stream: str) -> StreamHead:
        """The stream that was claimed by somebody else, who may not have begun it yet."""
        for _ in range(_TRIES):
            try:
                found = await self._streams.look(stream, _BEYOND)
            except LogAway as error:
                raise _unreadable(error) from error
            if found is not None:
                return found.head
            await asyncio.sleep(_AGAIN)
        raise Conflict(
            "a request with this `Idempotency-Key` is being begun: repeat it in a moment",
            code="idempotency_key_in_use",
            param="idempotency-key",
            retry_after=1.0,
        )

    async def _begun(
        self,
        generation: Generation,
        call: Call,
        asked: Asked,
        head: Head,
        body: bytes,
        owner: str,
        stream: str,
        turning: Turning | None = None,
    ) -> Reading:
        trip, saving = call.trip, list[Saving]()
        whole = not asked.request.stream
        if whole and head.respond_async:
            # whoever opens it reads a stream
            request = msgspec.structs.replace(asked.request, stream=True)
            asked, call, whole = msgspec.structs.replace(asked, request=request), call.with_request(request), False
        begun = StreamHead(
            id=stream,
            owner=owner,
            writer=self._streams.writer,
            request_id=call.id,
            dialect=call.dialect,
            model=call.request.model,
            created_at=trip.created_at,
            whole=whole,
            conversation=None if turning is None else turning.conversation,
        )
        stays = head.resumable or head.respond_async or head.idempotency_key is not None
        live: LiveStream

        def deserted() -> None:
            policy = on_disconnect(generation, trip, head.on_disconnect)
            if head.respond_async:
                # it was asked to be answered without anybody waiting
                policy = said_of(generation, trip, head.on_disconnect) or "finish"
            if policy == "cancel":
                desertion(live, call)

        headers: Headers = [(b"x-deltaway-stream", stream.encode())]
        if turning is not None:
            headers.append((b"x-deltaway-conversation", turning.conversation.encode()))
        told: bytes | None = None
        if head.respond_async:
            headers.append((b"x-request-id", call.id.encode()))
            told = await self._body(begun, headers)
        live = self._streams.begin(begun, linger=self._streams.linger if stays else 0.0, deserted=deserted)
        if head.idempotency_key is not None:
            saving.append(_Freed(live, lambda: self._release(owner, head, stream)))
        if turning is not None:
            saving.append(self._turns.answer(turning, live))
        if asked.store:
            saving.append(
                self._completions.saving(call, owner, body, lambda answer: self._dialect.whole(asked, answer, call.id))
            )
        self._production.start(generation, call, asked, live, saving)
        if told is not None:
            live.watch()
        return Reading(stream, whole, head.resumable, headers, trip=trip, live=live, begun=told)

    async def _body(self, head: StreamHead, headers: Headers) -> bytes:
        """The body of a 202; adds its headers."""
        token, expires = await self._tokens.made(head.id)
        url = f"{STREAMS_PATH}/{head.id}?token={token}"
        headers += [(b"location", url.encode()), (b"preference-applied", b"respond-async")]
        return msgspec.json.encode(Begun(id=head.id, request_id=head.request_id, url=url, expires_at=expires))

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read_whole(self, reading: Reading, receive: Receive, send: Send) -> None:
        last = await gather(self._streams.follow(reading.stream, 0), receive)
        if last is None:
            return
        if reading.live is not None and reading.live.refused is not None:
            raise Refused(reading.live.refused)
        if not last.blocks:
            raise StreamUnknown(reading.stream)
        body = last.blocks[-1].removeprefix(b"data: ").removesuffix(b"\n\n")
        # how it failed is in the body; the status of then is not kept
        status = 200 if last.ended in ("finished", "cached") else 502
        await send_json(send, status, body, self._headers(reading))

    def _headers(self, reading: Reading) -> Headers:
        if reading.trip is None or reading.live is None or reading.begun is not None:
            return reading.headers
        return [*call_headers(reading.live.head.request_id, reading.trip), *reading.headers]

    async def _refuse(self, send: Send, reading: Reading, error: RouterError) -> None:
        headers = [*self._headers(reading), *error_headers(error)]
        await send_json(send, error.status, self._dialect.error(error, ""), headers)


def _unreadable(error: Exception) -> RouterError:
    if isinstance(error, RouterError):
        return error
    if isinstance(error, StreamUnknown):
        return InternalError("the stream of this answer was lost: ask again")
    return StoreUnavailable(f"the stream log is away: {error}", retry_after=2.0)
