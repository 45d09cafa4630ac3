"""A vendor that plays a script, byte for byte: for timing, cuts and stalls that no mocking library can play."""

import asyncio
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass
class Request:
    """What a gateway sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request being answered. `send` writes at once; `gone` is set when the peer has closed."""

    def __init__(self, request: Request, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        self.request = request
        self.gone = gone
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """A head whose body is chunked."""
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def whole(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    def cut(self) -> None:
        """Drop the connection, with what has not been written yet."""
        self._writer.transport.abort()

    def reset(self) -> None:
        """Drop the connection by a RST."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """End the connection, after what was sent."""
        self._writer.close()

    async def stall(self) -> None:
        """Say nothing until the peer leaves."""
        await self.gone.wait()


Script: TypeAlias = Callable[[Exchange], Awaitable[None]]


@dataclass
class Vendor:
    """`script` is played for every request; `open` counts connections on which an exchange is under way."""

    script: Script
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    busy: int = 0
    abandoned: int = 0
    """Exchanges whose peer left before the script had ended."""

    async def settled(self, seconds: float = 5.0) -> None:
        """Wait until no exchange is under way."""
        async with asyncio.timeout(seconds):
            while self.busy:
                await asyncio.sleep(0.01)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                request = await _request(reader)
                if request is None:
                    return
                self.requests.append(request)
                await self._exchange(request, reader, writer)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self.connections -= 1
            writer.close()

    async def _exchange(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.Event()
        exchange = Exchange(request, writer, gone)
        playing = asyncio.ensure_future(self.script(exchange))
        watching = asyncio.ensure_future(_closed(reader))
        self.busy += 1
        try:
            await asyncio.wait({playing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                playing.result()
                return
            gone.set()
            self.abandoned += 1
            playing.cancel()
            raise ConnectionResetError
        finally:
            self.busy -= 1
            for task in (playing, watching):
                task.cancel()
            await asyncio.gather(playing, watching, return_exceptions=True)


@asynccontextmanager
async def vendor(script: Script) -> AsyncIterator[Vendor]:
    """A vendor on a port of this machine."""
    played = Vendor(script)
    server = await asyncio.start_server(played._connected, "127.0.0.1", 0)
    played.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield played
    finally:
        server.close()


async def _request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


async def _closed(reader: asyncio.StreamReader) -> None:
    """Returns when the peer closes; a peer that pipelines would be a fault of ours."""
    while not reader.at_eof():
        if reader._buffer:  # type: ignore[attr-defined]
            raise AssertionError("the gateway sent a second request before the answer to the first")
        if reader.exception() is not None:
            return
        await asyncio.sleep(0.01)


def sse(*payloads: Any) -> bytes:
    """Server-sent events of JSON payloads; text stands for itself."""
    return b"".join(
        b"data: " + (p.encode() if isinstance(p, str) else json.dumps(p, separators=(",", ":")).encode()) + b"\n\n"
        for p in payloads
    )


def delta(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of an OpenAI stream."""
    content = {"content": text} if text is not None else {}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": "m",
        "choices": [{"index": 0, "delta": {**content, **more}, "finish_reason": finish}],
    }


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def usage_chunk() -> dict[str, Any]:
    return {**delta(), "choices": [], "usage": USAGE}


def completion(text: str) -> bytes:
    """A whole OpenAI answer."""
    message = {"role": "assistant", "content": text}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    return json.dumps(body).encode()


async def plays_hello(exchange: Exchange) -> None:
    """A good vendor: `Hello` in two deltas, or whole, as asked."""
    if not exchange.request.json().get("stream"):
        await exchange.whole(200, completion("Hello"))
        return
    await exchange.head()
    await exchange.chunk(sse(delta("Hel"), delta("lo"), delta(finish="stop"), usage_chunk(), "[DONE]"))
    await exchange.end()


def texts(body: bytes) -> list[str]:
    """The content deltas in a streamed body."""
    return re.findall(r'"content":"([^"]+)"', body.decode())
