"""Writes responses to the ASGI server: one JSON body, or a stream with heartbeats."""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from router.call import Trip
from router.errors import AuthenticationFailed, InternalError, RouterError

Send: TypeAlias = Callable[[Any], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

_JSON: Final = (b"content-type", b"application/json")
_SSE: Final[Headers] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # no-transform keeps compressing middleboxes from holding deltas back; the last header is nginx's switch
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_MAX_HEADER: Final = 1024
_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A token of RFC 9110, section 5.6.2."""


def header_value(text: str) -> bytes:
    """The text as the value of a header: names of a client's choosing may end up there."""
    value = text if len(text) <= _MAX_HEADER else text[:_MAX_HEADER] + "..."
    if not (value.isascii() and value.isprintable()):
        value = "".join(c if c.isprintable() else "?" for c in value)
    return value.encode("ascii", "backslashreplace")


def call_headers(request_id: str, trip: Trip) -> Headers:
    """The headers that every answer to a call bears."""
    headers: Headers = [(b"x-request-id", request_id.encode())]
    target = trip.target
    if target is not None:
        headers.append((b"x-deltaway-target", header_value(str(target))))
        headers.append((b"x-deltaway-attempts", b"%d" % len(trip.attempts)))
    if trip.dropped:
        headers.append((b"x-deltaway-dropped", header_value(", ".join(trip.dropped))))
    for name, value in trip.headers.items():
        if not _NAME.fullmatch(name):
            raise InternalError(f"a plugin set the header {name!r}, which is no name of a header")
        headers.append((name.encode("ascii"), header_value(value)))
    return headers


def error_headers(error: RouterError) -> Headers:
    """What a client needs to know to do the right thing next; `x-should-retry` is read by the OpenAI SDKs."""
    headers: Headers = [(b"x-should-retry", b"true" if error.retryable else b"false")]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if isinstance(error, AuthenticationFailed):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


async def send_json(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """One whole response."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [_JSON, (b"content-length", b"%d" % len(body)), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


class StreamedReply:
    """A server-sent event stream. Status and headers leave with the first bytes, and not before.

    When nothing was written for `heartbeat` seconds (0: never), a comment goes out, also as the first thing: from
    then on the status is 200, and a failure can only be told in the stream. `headers` are asked for when they leave.
    """

    def __init__(
        self, send: Send, headers: Callable[[], Headers], heartbeat: float, beat: bytes, trip: Trip | None = None
    ) -> None:
        """`trip`: of a call that waits while its client is slow to read."""
        self._send = send
        self._headers = headers
        self._trip = trip
        self._heartbeat = heartbeat
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._writing = False
        self._beating: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(heartbeat, self._tick) if heartbeat > 0 else None
        self.started = False

    async def write(self, data: bytes) -> None:
        """Write whole events. Waits while the client is slow to read."""
        trip = self._trip
        self._writing = True
        if trip is not None:
            trip.writing = True
        try:
            if self._beating is not None:
                await self._beating
            await self._put(data, more=True)
        finally:
            self._writing = False
            if trip is not None:
                trip.writing = False
                trip.written_at = self._written_at

    async def end(self, data: bytes) -> None:
        """Write the last bytes and end the body."""
        await self.stop()
        await self._put(data, more=False)

    async def stop(self) -> None:
        """No heartbeat will be written any more, and none is being written."""
        self.silence()
        if self._beating is not None:
            await self._beating

    def silence(self) -> None:
        """No heartbeat will begin any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _put(self, data: bytes, *, more: bool) -> None:
        if not self.started:
            headers = [*_SSE, *self._headers()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self.started = True
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._written_at = self._loop.time()

    def _tick(self) -> None:
        # one timer a stream that looks back, instead of one that every write would have to move
        due = self._written_at + self._heartbeat
        now = self._loop.time()
        if now < due:
            self._timer = self._loop.call_at(due, self._tick)
            return
        if not self._writing and self._beating is None:
            self._beating = self._loop.create_task(self._put(self._beat, more=True))
            self._beating.add_done_callback(self._beaten)
        self._timer = self._loop.call_later(self._heartbeat, self._tick)

    def _beaten(self, task: "asyncio.Task[None]") -> None:
        self._beating = None
        if not task.cancelled():
            # a client that is gone is noticed by whoever watches it; the exception must only be looked at
            task.exception()
