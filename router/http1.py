"""HTTP/1.1 towards the vendors, on asyncio and httptools, at a tenth of a general client's cost per request.

Speaks what a vendor's API needs and no more (RFC 9110, RFC 9112): a request whose body is at hand, keep-alive,
bodies by length, by chunks or up to the end of the connection, interim responses, TLS, gzip and deflate. No proxy,
no HTTP/2, no redirects. Knows no vendor; raises `OSError` for what the network does and `ValueError` for what is
not HTTP, which `router.upstream` maps.
"""

import asyncio
import ssl
import time
import zlib
from collections import deque
from typing import Final, cast
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from router.provider import HttpHead, HttpRequest
from router.route import Timeouts

HIGH_WATER: Final = 1024 * 1024
"""Bytes of a body that may wait unread before the socket is no longer read."""
MAX_HEAD: Final = 256 * 1024
"""Bytes without a byte of a body among them: status line, headers and interim responses, trailers."""
RESEND_WITHIN: Final = 1.0
"""Seconds after which a connection that dies without an answer can no longer have been closed before our request: by
then the server may have worked on it, and bill it."""
MAX_INFLATED: Final = 16 * 1024 * 1024
"""Bytes that one read of a compressed body may become: a small body must not unpack into all the memory."""
KEEPALIVE: Final = 30.0
"""Seconds an idle connection is kept: less than the minute that load balancers keep theirs."""


class StaleConnection(ConnectionError):
    """A kept connection had died before the request reached the server, which may go out once more."""


class CannotConnect(OSError):
    """No connection came about: refused, no such host, no valid certificate, no route."""


class ConnectTimeout(TimeoutError):
    """No connection came about in time."""


class NotHttp(ValueError):
    """The peer's bytes are not HTTP/1.1, or not what we can read of it."""


class Origin(Struct, frozen=True):
    """Where connections of one pool go to, and how a request line and the `host` header name it."""

    tls: bool
    host: str
    port: int
    authority: str
    target: str


class Connection(asyncio.Protocol):
    """One connection to one origin; carries one exchange at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._received = 0
        self._barren = 0
        self._paused = False
        self._reusable = True
        self._closed = False
        self._complete = True
        self._error: Exception | None = None
        self._sent_at = 0.0
        self.idle_since = 0.0
        self.used = 0
        """Exchanges carried so far."""
        self.head_complete = False
        self.status = 0
        self.headers: dict[str, str] = {}

    @property
    def usable(self) -> bool:
        """Whether another exchange can begin."""
        return (
            self._complete
            and self._reusable
            and not self._closed
            and not self._pieces
            # answered before it had read all of our request: it may never read the rest
            and not self._transport.get_write_buffer_size()
        )

    @property
    def untouched(self) -> bool:
        """Whether the peer had closed before this exchange's request reached it, as far as one can tell."""
        return self.used > 1 and self._received == 0 and self._loop.time() - self._sent_at < RESEND_WITHIN

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._complete:
            # nobody asked: an answer that was not asked for must not become the next request's
            self.close()
            return
        self._received += len(data)
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(NotHttp("the server switched protocols unasked"))
        except httptools.HttpParserError as error:
            self._fail(NotHttp(f"not HTTP: {error}"))
        if self._barren > MAX_HEAD:
            self._fail(NotHttp(f"headers or trailers of more than {MAX_HEAD} bytes"))
        if self._size > HIGH_WATER and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._ended(exc)

    # -- what the parser calls

    def on_message_begin(self) -> None:
        if self._complete:
            # a second answer to one request: the first stands, the connection is not used again
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._complete:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if not self._complete:
            self.status = self._parser.get_status_code()
            self.head_complete = self.status >= 200

    def on_body(self, data: bytes) -> None:
        if not self._complete:
            self._pieces.append(data)
            self._size += len(data)
            self._barren = 0

    def on_message_complete(self) -> None:
        if self._complete:
            return
        if self.status < 200:
            # an interim response (100, 103): the real one follows
            self.headers = {}
            return
        self._complete = True
        self._reusable = self._reusable and self._parser.should_keep_alive()

    # -- one exchange

    def send(self, head: bytes, body: bytes) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._received = self._barren = 0
        self._sent_at = self._loop.time()
        self._complete = self.head_complete = False
        self.headers = {}
        self.used += 1
        if len(body) <= 65536:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    async def wait_head(self) -> None:
        while not self.head_complete:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """All of the body that has come; empty at its end."""
        while True:
            if self._pieces:
                data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                self._size = 0
                if self._paused:
                    self._paused = False
                    if not self._transport.is_closing():
                        self._transport.resume_reading()
                return data
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()

    def close(self) -> None:
        self._reusable = False
        if not self._closed:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if (
            self._waiter is not None
            and not self._waiter.done()
            and (self._pieces or self.head_complete or self._error is not None)
        ):
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self.close()
        self._wake()

    def _ended(self, exc: Exception | None) -> None:
        self._reusable = False
        if self._complete:
            return
        bounded = "content-length" in self.headers or "transfer-encoding" in self.headers
        if exc is None and self.head_complete and not bounded:
            # a body without a length ends with the connection (RFC 9112, section 6.3)
            self._complete = True
        elif self._error is None:
            where = "in the middle of its answer" if self.head_complete else "before it answered"
            reason = f": {exc}" if exc is not None and str(exc) else ""
            self._error = ConnectionResetError(f"the server closed the connection {where}{reason}")
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Response:
    """One answer. Closing it gives the connection back if the body was read to its end, else ends it."""

    def __init__(self, pool: "Http1", origin: Origin, connection: Connection) -> None:
        self._pool = pool
        self._origin = origin
        self._connection: Connection | None = connection
        self.head = HttpHead(connection.status, connection.headers)
        self._packed = False
        """Whether any of a compressed body has come."""
        self._inflate = _inflater(connection.headers.get("content-encoding", ""))

    async def read(self) -> bytes:
        if self._connection is None:
            return b""
        if self._inflate is None:
            return await self._connection.read()
        while data := await self._connection.read():
            if self._inflate.eof:
                # what follows the compressed body is no part of it, and zlib would gather it
                continue
            try:
                plain = self._inflate.decompress(data, MAX_INFLATED)
            except zlib.error as error:
                raise NotHttp(f"the body is not what its content-encoding says: {error}") from None
            if self._inflate.unconsumed_tail:
                raise NotHttp(f"the body unpacks to more than {MAX_INFLATED} bytes at once")
            self._packed = True
            if plain:
                return plain
        if self._packed and not self._inflate.eof:
            raise NotHttp("the compressed body ends before its end")
        return b""

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(self._origin, connection)


class Http1:
    """Keeps idle connections per origin; how many are busy has no limit here."""

    def __init__(self, context: ssl.SSLContext, keepalive: float = KEEPALIVE) -> None:
        self._context = context
        self._keepalive = keepalive
        self._origins: dict[str, Origin] = {}
        self._idle: dict[Origin, deque[Connection]] = {}
        self._busy: set[Connection] = set()

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> Response:
        """Send the request and wait for the head of its answer.

        A server may close an idle connection at the very moment we use it. If a used one dies at once and without a
        byte of an answer, the request cannot have been taken up (RFC 9112, section 9.3.1): `StaleConnection`. What was
        idle beside it is as old, and closed; who sends once more does so on a new one.
        """
        origin = self._origin(request.url)
        head = _head(request, origin)
        connection = self._take(origin) or await self._connect(origin, timeouts.connect)
        self._busy.add(connection)
        try:
            connection.send(head, request.body)
            await connection.wait_head()
            return Response(self, origin, connection)
        except ConnectionError as error:
            self._drop(connection)
            if not connection.untouched:
                raise
            for idle in self._idle.pop(origin, ()):
                idle.close()
            raise StaleConnection("the server closed a kept connection when it was used again") from error
        except BaseException:
            self._drop(connection)
            raise

    async def aclose(self) -> None:
        for connection in [*self._busy, *(c for idle in self._idle.values() for c in idle)]:
            connection.close()
        self._busy.clear()
        self._idle.clear()

    def give_back(self, origin: Origin, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection.usable:
            connection.idle_since = time.monotonic()
            self._idle.setdefault(origin, deque()).append(connection)
        else:
            connection.close()

    def _drop(self, connection: Connection) -> None:
        self._busy.discard(connection)
        connection.close()

    def _take(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        if not idle:
            return None
        oldest = time.monotonic() - self._keepalive
        while idle and idle[0].idle_since < oldest:
            idle.popleft().close()
        while idle:
            # the one used last, so that the others may grow old
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self, origin: Origin, timeout: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop),
                    origin.host,
                    origin.port,
                    ssl=self._context if origin.tls else None,
                    server_hostname=origin.host if origin.tls else None,
                )
        except TimeoutError:
            raise ConnectTimeout(f"no connection to {origin.authority} within {timeout:g} s") from None
        except OSError as error:
            raise CannotConnect(str(error)) from error
        return connection

    def _origin(self, url: str) -> Origin:
        origin = self._origins.get(url)
        if origin is None:
            if len(self._origins) >= 256:
                self._origins.clear()
            origin = self._origins[url] = parse_origin(url)
        return origin


def parse_origin(url: str) -> Origin:
    """Raises `ValueError` for an address that no request can go to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"no request can go to {url!r}")
    tls = parts.scheme == "https"
    host = parts.hostname.encode("idna").decode("ascii") if not parts.hostname.isascii() else parts.hostname
    port = parts.port or (443 if tls else 80)
    shown = f"[{host}]" if ":" in host else host
    authority = shown if parts.port is None else f"{shown}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or any(c <= " " or c == "\x7f" for c in target):
        raise ValueError(f"the path of {url!r} holds characters that must be percent-encoded")
    return Origin(tls, host, port, authority, target)


def _head(request: HttpRequest, origin: Origin) -> bytes:
    lines = [f"{request.method} {origin.target} HTTP/1.1", f"host: {origin.authority}"]
    for name, value in request.headers.items():
        lines.append(f"{name}: {value}")
    if "accept-encoding" not in request.headers:
        # a compressed stream would be held back until a block is full
        lines.append("accept-encoding: identity")
    lines.append(f"content-length: {len(request.body)}")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1 or "\0" in head:
        raise ValueError("a header of the request holds a line break")
    return (head + "\r\n\r\n").encode("latin-1")


def _inflater(encoding: str) -> "zlib._Decompress | None":
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":
            # 32 makes zlib look at the header itself, gzip's or its own
            return zlib.decompressobj(32 + zlib.MAX_WBITS)
        case other:
            raise NotHttp(f"the body is compressed with {other!r}, though only identity was asked for")
