"""An HTTP client that shows each chunk of a body as the server wrote it, and leaves when told."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

opened: "list[Raw]" = []
"""Those of the test that runs; a fixture closes them after it."""


class Raw:
    """One request on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def post(cls, url: str, body: Any, path: str = "/v1/chat/completions", **headers: str) -> "Raw":
        parts = urlsplit(url)
        # a small limit, so that a client that does not read soon makes the server wait
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**16)
        raw = cls(reader, writer)
        opened.append(raw)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", f"host: {parts.netloc}"]
        if not {"content_length", "transfer_encoding"} & headers.keys():
            lines.append(f"content-length: {len(data)}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        return raw

    async def head(self) -> int:
        """The status, once it is there."""
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)}
        return self.status

    async def chunk(self) -> bytes:
        """The next chunk; empty at the proper end of the body."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = await self._reader.readexactly(size)
        await self._reader.readexactly(2)
        return data

    async def chunks(self) -> list[bytes]:
        found = []
        while data := await self.chunk():
            found.append(data)
        return found

    async def body(self) -> bytes:
        """All of it. Raises `asyncio.IncompleteReadError` when it breaks off."""
        if "content-length" in self.headers:
            return await self._reader.readexactly(int(self.headers["content-length"]))
        return b"".join(await self.chunks())

    def leave(self) -> None:
        if self in opened:
            opened.remove(self)
        self._writer.close()

    def pause(self) -> None:
        """Read nothing more from the socket."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]
