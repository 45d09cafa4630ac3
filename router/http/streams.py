"""`/v1/streams/{id}`: come back to a stream, stop it, get a token for it.

A bare ASGI route, as chat is. A reader may be whoever made the call, by the same key, an admin, or whoever has a token
(`router.http.stream_token`). The connection rules are those of the HTML standard's EventSource: 204 says that there is
nothing to come back for (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

import re
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from router.call import Outcome, Principal
from router.dialect import Dialect
from router.errors import (
    ClientGone,
    Gone,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RouterError,
    StoreUnavailable,
)
from router.generation import Generation, Generations
from router.http.delivery import deliver, last_seen
from router.http.query import Query
from router.http.reply import Headers, Send, StreamedReply, error_headers, send_json
from router.http.request import Receive, Scope, read_head
from router.http.stream_token import StreamTokens
from router.ids import request_id
from router.streams.log import LogAway, StreamHead, Stretch, is_stream_id
from router.streams.streams import Streams, StreamUnknown

PATHS: Final = ("/v1/streams/{id}", "/v1/streams/{id}/token")
_LAST_SEEN: Final = b"last-event-id"
_METHODS: Final = {"": "GET, DELETE", "/token": "POST"}
_BEYOND: Final = 2**53
"""After every block."""
_PATH: Final = re.compile(r"/([^/]{1,64})(/token)?/?")
"""Below `/v1/streams`: the rest has been taken off."""


class StreamState(Struct, frozen=True, kw_only=True):
    """`outcome` is null as long as the answer is being written; `created_at` is in Unix seconds."""

    id: str
    request_id: str
    model: str
    created_at: int
    outcome: Outcome | None
    object: str = "stream"


class Token(Struct, frozen=True, kw_only=True):
    """`url` can be opened by whoever has it, until `expires_at` (Unix seconds)."""

    url: str
    expires_at: int
    object: str = "stream.token"


class StreamEndpoint:
    def __init__(
        self, dialects: dict[str, Dialect], generations: Generations, streams: Streams, tokens: StreamTokens
    ) -> None:
        """`dialects`: by their names in receipts; the first of them also words errors."""
        self._dialects = dialects
        self._generations = generations
        self._streams = streams
        self._tokens = tokens
        self._first = next(iter(dialects.values()))
        self._log = structlog.get_logger("deltaway.streams")

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Never raises for what a client did."""
        generation, number = self._generations.current, request_id()
        with generation.tracked():
            try:
                found = _PATH.fullmatch(scope["path"])
                if found is None:
                    raise NotFound("nothing is served at that path: a stream is at `/v1/streams/strm_…`")
                stream, action = found[1], found[2] or ""
                method = scope["method"]
                if method not in _METHODS[action].split(", "):
                    raise MethodNotAllowed(f"`/v1/streams/{stream}{action}` takes {_METHODS[action]}, not {method}")
                if action:
                    await self._token(generation, scope, send, stream, number)
                elif method == "GET":
                    await self._read(generation, scope, receive, send, stream, number)
                else:
                    await self._stop(generation, scope, send, stream, number)
            except ClientGone:
                return
            except Exception as raised:
                await self._refuse(send, scope, raised, number)

    async def _read(
        self, generation: Generation, scope: Scope, receive: Receive, send: Send, stream: str, number: str
    ) -> None:
        query = Query(scope, ("token", "last_event_id"))
        after, saw_end = _after(scope, query, stream)
        state = await self._known(generation, scope, query, stream, after)
        head = state.head
        headers: Headers = [
            (b"x-request-id", head.request_id.encode()),
            (b"x-deltaway-stream", stream.encode()),
        ]
        if state.expired:
            raise Gone(
                "this stream has ended, and the time is over for which it could be read again (`streams.keep`)",
                code="stream_expired",
            )
        if state.ended is not None and after > state.last and state.ended != "interrupted":
            raise InvalidRequest(
                f"the last event id is beyond the end of this stream, which has {state.last} events",
                code="invalid_event_id",
                param="last-event-id",
            )
        if state.ended == "interrupted" and after >= state.last > 0 and not saw_end:
            # whatever was seen was not the end
            after = state.last - 1
        if state.ended is not None and after >= state.last:
            await _nothing(send, headers)
            return
        dialect = self._dialects.get(head.dialect, self._first)
        # whoever has no header to send has a browser's clock too
        retry = 0.0 if query.text("token") is None else float(generation.config.streams.retry)
        reply = StreamedReply(send, lambda: headers, generation.heartbeat, dialect.heartbeat)
        await deliver(
            reply,
            self._streams.follow(stream, after),
            receive,
            after=after,
            ids=True,
            retry=retry,
            broken=lambda error: dialect.failure(_unreadable(error), head.request_id),
        )

    async def _stop(self, generation: Generation, scope: Scope, send: Send, stream: str, number: str) -> None:
        state = await self._known(generation, scope, Query(scope, ("token",)), stream, _BEYOND)
        if state.ended is None and not state.expired:
            await self._streams.stop(stream)
        head = state.head
        body = StreamState(
            id=head.id,
            request_id=head.request_id,
            model=head.model,
            created_at=head.created_at // 1000,
            outcome=state.ended,
        )
        status = 202 if state.ended is None and not state.expired else 200
        await send_json(send, status, msgspec.json.encode(body), [(b"x-request-id", number.encode())])

    async def _token(self, generation: Generation, scope: Scope, send: Send, stream: str, number: str) -> None:
        state = await self._known(generation, scope, Query(scope, ()), stream, _BEYOND)
        token, expires = await self._tokens.made(state.head.id)
        body = Token(url=f"/v1/streams/{stream}?token={token}", expires_at=expires)
        await send_json(send, 200, msgspec.json.encode(body), [(b"x-request-id", number.encode())])

    async def _known(self, generation: Generation, scope: Scope, query: Query, stream: str, after: int) -> Stretch:
        """The stream, if this reader may know of it. Raises what is to be told."""
        token = query.text("token")
        principal: Principal | None = None
        if token is None and generation.authenticator is not None:
            principal = await generation.authenticator.authenticate(read_head(scope).credentials)
        if not is_stream_id(stream):
            raise NotFound("that is no id of a stream: it looks like `strm_…`", param="id")
        if token is not None:
            await self._tokens.check(token, stream)
        state = await self._streams.look(stream, after)
        if state is None or (principal is not None and not _may(principal, state.head)):
            raise NotFound(
                "no stream of that id that may be read with this key: there is none, it is another key's, or it has "
                "been forgotten",
                code="stream_not_found",
                param="id",
            )
        return state

    async def _refuse(self, send: Send, scope: Scope, raised: Exception, number: str) -> None:
        error: RouterError
        match raised:
            case RouterError():
                error = raised
            case LogAway() | StreamUnknown():
                error = _unreadable(raised)
            case _:
                self._log.error("a stream could not be read by a fault of ours", request_id=number, exc_info=raised)
                error = InternalError(f"internal error; the server's log knows more under request id {number}")
        headers: Headers = [(b"x-request-id", number.encode()), *error_headers(error)]
        if isinstance(error, MethodNotAllowed):
            found = _PATH.fullmatch(scope["path"])
            headers.append((b"allow", _METHODS[(found and found[2]) or ""].encode()))
        await send_json(send, error.status, self._first.error(error, number), headers)


def _unreadable(error: Exception) -> RouterError:
    if isinstance(error, RouterError):
        return error
    if isinstance(error, StreamUnknown):
        return Gone("this stream is not kept any more", code="stream_expired")
    return StoreUnavailable(f"streams cannot be read now: {error}", retry_after=2.0)


def _may(principal: Principal, head: StreamHead) -> bool:
    return principal.admin or principal.key == head.owner


def _after(scope: Scope, query: Query, stream: str) -> tuple[int, bool]:
    """The block that was read last. The header is newer than the address, which stays as it was first opened."""
    said = next((value for name, value in scope["headers"] if name == _LAST_SEEN), b"").decode("utf-8", "replace")
    said = said or query.text("last_event_id") or ""
    return last_seen(said, stream) if said else (0, False)


async def _nothing(send: Send, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
