"""A client's connection: uvicorn's HTTP/1.1 on httptools, with what it lacks. Knows no call.

* Headers (and trailers, and what stands between the chunks of a body) have a size.
* A client that sends its next request before it has its answer gets that answer, and then the connection is closed:
  it must be ready to send the other again (RFC 9112, section 9.3.2). uvicorn would stop to read until the answer is
  complete, and so not see the client leave.
* An offer to speak another protocol is passed over (RFC 9110, section 7.8): Java's client offers HTTP/2 with every
  request. The parser takes it as accepted and would not read the request's body.
"""

from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from router.dialects.openai_chat import OpenAIChat
from router.errors import HeadersTooLarge, InvalidRequest, RequestError
from router.ids import request_id

MAX_HEAD: Final = 64 * 1024
"""Bytes in a row without a byte of a body among them. A read is judged as a whole: a little more may pass."""


class ClientConnection(HttpToolsProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._barren = 0
        self._last = False
        """Whether the answer under way is the last of this connection."""

    def data_received(self, data: bytes) -> None:
        if self._last:
            return
        if self._is_answering():
            self._make_last()
            return
        self._unset_keepalive_if_required()
        self._barren += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:
            self._stay(data[offered.args[0] :])
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("this is not a valid HTTP/1.1 request", code="invalid_http"))
        if self._barren > MAX_HEAD and not self.transport.is_closing():
            self._refuse(HeadersTooLarge(f"the request's headers are larger than {MAX_HEAD} bytes"))

    def on_headers_complete(self) -> None:
        self._barren = 0
        if self._is_answering():
            self._make_last()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._barren = 0
        if not self._last:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._barren = 0
        if not self._last and not self.parser.should_upgrade():
            super().on_message_complete()

    def _stay(self, rest: bytes) -> None:
        """Read the body of the request whose head has just been read, of which `rest` has come."""
        framing = [
            name + b": " + value + b"\r\n"
            for name, value in self.headers
            if name in (b"content-length", b"transfer-encoding")
        ]
        self.parser = httptools.HttpRequestParser(_Body(self))
        self.data_received(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n" + rest)

    def _is_answering(self) -> bool:
        """Whether a request has come in whole and has no whole answer yet."""
        cycle = self._cycle()
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _cycle(self) -> RequestResponseCycle | None:
        # uvicorn's own annotation forgets that there is none at first
        return self.cycle

    def _make_last(self) -> None:
        self._last = True
        self.cycle.keep_alive = False

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request, and close."""
        cycle = self._cycle()
        if cycle is None or cycle.response_complete:
            call_id = request_id()
            body = OpenAIChat().error(error, call_id)
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {call_id}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


class _Body:
    """Hands on the body of one request, then gives the connection a parser for the next."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def on_body(self, body: bytes) -> None:
        self._connection.on_body(body)

    def on_message_complete(self) -> None:
        self._connection.parser = httptools.HttpRequestParser(self._connection)
        self._connection.on_message_complete()
