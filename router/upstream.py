"""The sockets towards the vendors. The only importer of httpx (and of its aiohttp transport).

One `Upstream` per provider: how many calls may run, what becomes of a connection whose answer is done, and every
error of the libraries below mapped, once, to the tree of `router.errors`. What carries the bytes is a `Carrier`:

* `native`: our own HTTP/1.1 (`router.http1`), the cheapest;
* `aiohttp`, `httpx`: an httpx transport, called directly. `httpx.AsyncClient` would add redirects, cookies, event
  hooks and auth flows, none of which a gateway wants, for several times the cost of the transport.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Literal, Protocol, TypeAlias

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream

from router import http1
from router.errors import STALE, Overloaded, ProtocolViolated, ProviderError, RouterError, TimedOut, Unreachable
from router.provider import HttpHead, HttpRequest, InProcess
from router.route import Timeouts
from router.settings import Transport

READ_SIZE: Final = 256 * 1024
"""Bytes taken at most in one read: what the kernel has at hand becomes one batch of events."""
ERROR_BODY: Final = 64 * 1024
"""Bytes kept of a vendor's error page."""
WRITE_TIMEOUT: Final = 30.0
DRAIN: Final = 1.0
"""Seconds a vendor has to end the body of an answer that is complete."""


class Carried(Protocol):
    """One open response of a carrier; raises whatever its library raises."""

    head: HttpHead

    async def read(self) -> bytes:
        """The next bytes of the body, all that is at hand; empty at its end."""
        ...

    async def aclose(self) -> None:
        """Give the connection back, or end it if the body was not read to its end."""
        ...


class Carrier(Protocol):
    """Sends requests over connections that it keeps."""

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> Carried: ...

    async def aclose(self) -> None: ...


CarrierFactory: TypeAlias = Callable[[Transport, ssl.SSLContext], Carrier]


def tls_context() -> ssl.SSLContext:
    """Whom we trust: certifi's roots, or those of `SSL_CERT_FILE` or `SSL_CERT_DIR`. Made once, as it is slow to."""
    return httpx.create_ssl_context()


def make_carrier(name: Transport, context: ssl.SSLContext) -> Carrier:
    """A carrier without limits of its own: how many calls run at once is the provider's `max_parallel`.

    httpcore's pool leaks slots under cancellation when its limit is contended, and counts busy connections as
    idle ones (httpcore #1093, #1035), hence no limits there either.
    """
    if name == "native":
        return http1.Http1(context)
    if name == "httpx":
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=http1.KEEPALIVE)
        return HttpxCarrier(httpx.AsyncHTTPTransport(verify=context, limits=limits, trust_env=False, http2=False))

    def session() -> aiohttp.ClientSession:
        # httpx-aiohttp's own session would stop at 100 connections and keep the vendor's cookies
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=http1.KEEPALIVE, ssl=context)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("user-agent", "accept", "accept-encoding"),
            trust_env=False,
            read_bufsize=READ_SIZE,
        )

    return HttpxCarrier(AiohttpTransport(verify=context, trust_env=False, client=session))


class HttpxCarrier:
    """Any httpx transport; tests hand in respx's."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> "HttpxCarried":
        outgoing = httpx.Request(
            request.method,
            request.url,
            headers={"accept-encoding": "identity", **request.headers},
            content=request.body,
            extensions={
                "timeout": {"connect": timeouts.connect, "read": None, "write": WRITE_TIMEOUT, "pool": None},
            },
        )
        return HttpxCarried(await self._transport.handle_async_request(outgoing))

    async def aclose(self) -> None:
        await self._transport.aclose()


class HttpxCarried:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.head = HttpHead(response.status_code, response.headers)
        stream = response.stream
        if isinstance(stream, AiohttpResponseStream):
            stream.CHUNK_SIZE = READ_SIZE
        encoding = response.headers.get("content-encoding", "identity")
        self._body: AsyncIterator[bytes]
        if encoding in ("", "identity") and isinstance(stream, httpx.AsyncByteStream):
            self._body = aiter(stream)
        else:
            # asked for identity, but a proxy may compress all the same
            self._body = response.aiter_bytes()

    async def read(self) -> bytes:
        return await anext(self._body, b"")

    async def aclose(self) -> None:
        body = self._body
        if hasattr(body, "aclose"):
            await body.aclose()
        await self._response.aclose()


class VendorStream(Protocol):
    """One open response of a vendor."""

    head: HttpHead

    async def read(self) -> bytes:
        """The next bytes of the body, all that is at hand; empty at its end. Raises `ProviderError`."""
        ...

    async def release(self) -> None:
        """The answer is complete but the body may have an end to come: read it aside, so that the connection
        can serve again, and close."""
        ...

    async def aclose(self) -> None:
        """Give the connection back, or end it if the body was not read to its end."""
        ...


class Upstream(Protocol):
    async def send(self, request: HttpRequest, timeouts: Timeouts) -> VendorStream:
        """Send and wait for the vendor's status. Raises `ProviderError` or `Overloaded`."""
        ...

    @property
    def crowded(self) -> bool:
        """Whether more than half of its room is taken: nothing that can wait should be sent."""
        ...

    async def aclose(self) -> None: ...


class Room:
    """How many calls may run at one provider, and how many do."""

    def __init__(self, name: str, max_parallel: int) -> None:
        self.name = name
        self._max_parallel = max_parallel
        self.open = 0
        """Calls that wait for an answer or are reading one."""

    def enter(self) -> None:
        """Count one call more. Raises `Overloaded` when there is no room for it."""
        if self.open >= self._max_parallel:
            raise Overloaded(
                f"{self._max_parallel} calls to provider `{self.name}` are running, which is its `max_parallel`; "
                "try again shortly, or raise the limit",
                retry_after=1.0,
            )
        self.open += 1

    @property
    def crowded(self) -> bool:
        """Whether more than half of its room is taken: nothing that can wait should be sent."""
        return 2 * self.open >= self._max_parallel


class HttpUpstream(Room):
    """The vendor behind a socket."""

    def __init__(self, name: str, carrier: Carrier, max_parallel: int) -> None:
        super().__init__(name, max_parallel)
        self._carrier = carrier
        self._drains: dict[asyncio.Task[None], HttpStream] = {}

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> "HttpStream":
        self.enter()
        try:
            return HttpStream(self, await self._carrier.send(request, timeouts))
        except BaseException as error:
            self.open -= 1
            mapped = mapped_error(error, self.name)
            if mapped is None:
                raise
            raise mapped from error

    @property
    def draining(self) -> int:
        """Connections whose answer is complete and whose body's end is still to come."""
        return len(self._drains)

    async def aclose(self) -> None:
        drains = dict(self._drains)
        for drain in drains:
            drain.cancel()
        await asyncio.gather(*drains, return_exceptions=True)
        for stream in drains.values():
            # a task that was cancelled before its first step has closed nothing
            await stream.aclose()
        await self._carrier.aclose()

    def drain(self, stream: "HttpStream") -> None:
        """Read the end of a body whose answer is complete, for a bounded time, and close it."""
        task = asyncio.get_running_loop().create_task(_drained(stream))
        self._drains[task] = stream
        task.add_done_callback(self._drains.pop)


class HttpStream:
    """One response over a socket."""

    def __init__(self, upstream: HttpUpstream, carried: Carried) -> None:
        self._upstream = upstream
        self._carried = carried
        self._closed = self._counted_out = False
        self.head = carried.head

    async def read(self) -> bytes:
        try:
            return await self._carried.read()
        except BaseException as error:
            mapped = mapped_error(error, self._upstream.name, reading=True)
            if mapped is None:
                raise
            raise mapped from error

    async def release(self) -> None:
        # the call is over, though its connection is not free yet: the client's next one must find room
        self._count_out()
        self._upstream.drain(self)

    def _count_out(self) -> None:
        if not self._counted_out:
            self._counted_out = True
            self._upstream.open -= 1

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._count_out()
        try:
            await self._carried.aclose()
        except (httpx.HTTPError, httpx.StreamError, aiohttp.ClientError, OSError):
            # the connection was broken already: there is nothing left to give back
            return


class InProcessUpstream(Room):
    """The vendor in this process: `mock`."""

    def __init__(self, name: str, vendor: InProcess, max_parallel: int) -> None:
        super().__init__(name, max_parallel)
        self._vendor = vendor

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> "InProcessStream":
        self.enter()
        try:
            response = await self._vendor.respond(request)
        except BaseException:
            self.open -= 1
            raise
        return InProcessStream(self, HttpHead(response.status, response.headers), response.body)

    async def aclose(self) -> None:
        return


class InProcessStream:
    def __init__(self, room: Room, head: HttpHead, body: AsyncIterator[bytes]) -> None:
        self._room = room
        self._closed = False
        self.head = head
        self._body = body

    async def read(self) -> bytes:
        try:
            return await anext(self._body, b"")
        except OSError as error:
            message = f"the connection to provider `{self._room.name}` broke: {error}"
            raise Unreachable(message, code="connection_lost") from error

    async def release(self) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._room.open -= 1
        if hasattr(self._body, "aclose"):
            await self._body.aclose()


async def _drained(stream: HttpStream) -> None:
    try:
        async with asyncio.timeout(DRAIN):
            while await stream.read():
                pass
    except (TimeoutError, RouterError):
        # then the connection is closed, not reused
        pass
    finally:
        await stream.aclose()


async def read_error_body(stream: VendorStream) -> bytes:
    """The first bytes of an error page, bounded in size and time."""
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(10):
            while size < ERROR_BODY and (data := await stream.read()):
                pieces.append(data)
                size += len(data)
    except (TimeoutError, ProviderError):
        # the status alone says enough
        pass
    return b"".join(pieces)[:ERROR_BODY]


# -- the seam of errors --------------------------------------------------------------------------------------------

Cause: TypeAlias = Literal["connect_timeout", "timeout", "unreachable", "stale", "lost", "protocol", "setup"]

CAUSES: Final[Mapping[type[Exception], Cause]] = {
    httpx.ConnectTimeout: "connect_timeout",
    httpx.PoolTimeout: "connect_timeout",
    httpx.ReadTimeout: "timeout",
    httpx.WriteTimeout: "timeout",
    httpx.TimeoutException: "timeout",
    httpx.ConnectError: "unreachable",
    httpx.ProxyError: "unreachable",
    httpx.ReadError: "lost",
    httpx.WriteError: "lost",
    httpx.CloseError: "lost",
    httpx.NetworkError: "lost",
    httpx.RemoteProtocolError: "protocol",
    httpx.LocalProtocolError: "setup",
    httpx.ProtocolError: "protocol",
    httpx.DecodingError: "protocol",
    httpx.TooManyRedirects: "protocol",
    httpx.UnsupportedProtocol: "setup",
    httpx.InvalidURL: "setup",
    httpx.CookieConflict: "setup",
    httpx.StreamError: "setup",
    httpx.TransportError: "lost",
    httpx.RequestError: "lost",
    httpx.HTTPStatusError: "protocol",
    httpx.HTTPError: "lost",
    # what the native transport raises
    http1.CannotConnect: "unreachable",
    http1.ConnectTimeout: "connect_timeout",
    http1.NotHttp: "protocol",
    http1.StaleConnection: "stale",
    # what the aiohttp transport lets through unmapped
    aiohttp.ClientError: "lost",
    aiohttp.InvalidURL: "setup",
    OSError: "lost",
    ValueError: "setup",
}
"""Every error the libraries raise → what it means. The most specific class wins."""


def mapped_error(error: BaseException, provider: str, *, reading: bool = False) -> RouterError | None:
    """The error of our tree for one of the libraries'; None for what is not theirs (cancellation, our own)."""
    if isinstance(error, RouterError):
        return None
    cause = next((CAUSES[cls] for cls in type(error).__mro__ if cls in CAUSES), None)
    if cause is None:
        return None
    if cause == "connect_timeout" and _refused(error):
        cause = "unreachable"
    if cause == "connect_timeout":
        return TimedOut(f"no connection to provider `{provider}` in time (`timeouts.connect`)", code="connect_timeout")
    if cause == "timeout":
        return TimedOut(f"provider `{provider}` stopped in the middle of the exchange", code="provider_timeout")
    reason = _reason(error)
    if cause == "protocol" or (cause == "setup" and reading):
        return ProtocolViolated(f"provider `{provider}` broke HTTP: {reason}")
    if cause == "setup":
        return Unreachable(f"the request to provider `{provider}` cannot be sent: {reason}; check its `base_url`")
    if cause == "stale":
        return Unreachable(f"provider `{provider}`: {reason}", code=STALE)
    if cause == "lost" or reading:
        return Unreachable(f"the connection to provider `{provider}` broke: {reason}", code="connection_lost")
    return Unreachable(f"provider `{provider}` cannot be reached: {reason}")


def _refused(error: BaseException) -> bool:
    """httpx-aiohttp reports a refused or dropped connection as `ConnectTimeout`; its cause tells the truth."""
    cause = error.__cause__
    return isinstance(cause, aiohttp.ClientError) and not isinstance(cause, TimeoutError)


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
