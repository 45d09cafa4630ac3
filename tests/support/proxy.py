"""A proxy between a client and one or several servers of this machine, which cuts answers where it is told to.

Each connection carries one request, whatever its client would like (`connection: close` goes in its place), so that the
next request goes to the next server in turn. A server that does not take the connection is passed over; if none does,
the client's connection ends without an answer, as it would before a server that restarts. Only the bodies of answers
that are server-sent events are cut; other answers pass.
"""

import asyncio
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal, TypeAlias

How: TypeAlias = Literal["fin", "rst"]
Cut: TypeAlias = tuple[int, How]
"""After how many bytes of a body as it is on the wire, the framing of its chunks included, and how."""

_HEAD = b"\r\n\r\n"
_STREAM = re.compile(rb"^content-type: *text/event-stream", re.I | re.M)
_CONNECTION = re.compile(rb"^(connection|keep-alive):[^\r\n]*\r\n", re.I | re.M)


def cuts_at(*places: int, how: How = "fin") -> list[Cut]:
    return [(place, how) for place in places]


def random_cuts(seed: int, count: int, most: int) -> list[Cut]:
    """`count` cuts, each after 0 to `most` bytes, by FIN or RST: the same for the same seed."""
    draw = random.Random(seed)
    return [(draw.randint(0, most), draw.choice(("fin", "rst"))) for _ in range(count)]


class Proxy:
    """`cuts` are used up in their order, one for each stream of events that comes through; then none is cut."""

    def __init__(self, ports: Sequence[int], cuts: Iterable[Cut] = ()) -> None:
        self.ports = list(ports)
        self.port = 0
        self.connections = 0
        """Of clients."""
        self.cuts = 0
        """Answers that were cut."""
        self.streams = 0
        """Answers that were streams of events."""
        self.served: dict[int, int] = {}
        """Port → requests that it took."""
        self.requests: list[bytes] = []
        """The heads of the requests, as the clients sent them."""
        self._cuts = iter(cuts)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def cut_times(self, count: int, seconds: float = 30) -> None:
        """Wait until so many answers were cut."""
        async with asyncio.timeout(seconds):
            while self.cuts < count:
                self._changed.clear()
                await self._changed.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # a browser opens connections that it then does not use
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._exchange(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        head = await reader.readuntil(_HEAD)
        self.requests.append(head)
        opened = await self._open(self.connections - 1)
        if opened is None:
            return
        from_server, to_server = opened
        there = back = None
        try:
            first, end, rest = head.partition(b"\r\n")
            to_server.write(first + end + b"connection: close\r\n" + _CONNECTION.sub(b"", rest))
            there = asyncio.create_task(_copied(reader, to_server))
            back = asyncio.create_task(self._answered(from_server, writer))
            # the client leaves, or the answer ends
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.close()
            for each in (there, back):
                if each is not None:
                    each.cancel()
            await asyncio.gather(*filter(None, (there, back)), return_exceptions=True)

    async def _open(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for offset in range(len(self.ports)):
            port = self.ports[(number + offset) % len(self.ports)]
            with suppress(OSError):
                opened = await asyncio.open_connection("127.0.0.1", port)
                self.served[port] = self.served.get(port, 0) + 1
                return opened
        return None

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(_HEAD)
        cut: Cut | None = None
        if _STREAM.search(head):
            self.streams += 1
            cut = next(self._cuts, None)
        writer.write(head)
        left = None if cut is None else cut[0]
        while left != 0:
            data = await reader.read(65536 if left is None else min(left, 65536))
            if not data:
                break
            writer.write(data)
            await writer.drain()
            if left is not None:
                left -= len(data)
        if cut is None or left:
            return
        self.cuts += 1
        self._changed.set()
        if cut[1] == "rst":
            await _reset(writer)


async def _reset(writer: asyncio.StreamWriter) -> None:
    """Drop the connection by a RST, once the system has what was written before it."""
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Returns when the peer has left."""
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxy(ports: Sequence[int], cuts: Iterable[Cut] = ()) -> AsyncIterator[Proxy]:
    """A proxy on a port of this machine; ended with all that goes through it."""
    made = Proxy(ports, cuts)
    server = await asyncio.start_server(made._connected, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        tasks = list(made._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # closed connections leave in a later turn of the loop
        for _ in range(3):
            await asyncio.sleep(0)
