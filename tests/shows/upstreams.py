"""A vendor in the test's own process that remembers what it served to whom: the truth that a ledger is held against.

It speaks OpenAI's protocol. The last message's text is the call's marker and says how to be served: `quick-…` gets
three deltas at once, or a whole answer when it did not ask for a stream; `slow-…` gets a delta every tenth of a second,
some for seconds and most without an end, and `endless-…` without an end. Token counts are drawn from the marker, so
that no two calls are likely to use the same.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

WORD = " one"
"""What every delta says: one token, and four bytes."""
PACE = 0.1
ENDLESS = 10_000


@dataclass
class Served:
    """What one call got."""

    marker: str
    deltas: int = 0
    """Given to the socket."""
    ended: bool = False
    """Whether the end of the answer, with its usage, was given to the socket."""
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    @property
    def slow(self) -> bool:
        return not self.marker.startswith("quick-")

    @property
    def usage(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }

    @property
    def classes(self) -> dict[str, int]:
        """What a ledger's row has to say if it says that the vendor reported it."""
        return {
            "input": self.prompt - self.cached,
            "cache_read": self.cached,
            "cache_write": 0,
            "cache_write_1h": 0,
            "input_audio": 0,
            "output": self.completion - self.reasoning,
            "reasoning": self.reasoning,
            "output_audio": 0,
        }


@dataclass
class Upstream:
    served: dict[str, list[Served]] = field(default_factory=dict)
    """By marker: what was asked for twice is there twice."""
    url: str = ""
    open: int = 0
    """Answers under way."""
    streaming: int = 0
    """Of these, slow streams that have begun."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """When it is set, slow streams end with their next delta."""

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                asked = json.loads(await reader.readexactly(length))
                served = self._drawn(asked["messages"][-1]["content"])
                self.open += 1
                try:
                    if asked.get("stream") and served.slow:
                        self.streaming += 1
                        try:
                            await self._stream(writer, served)
                        finally:
                            self.streaming -= 1
                    elif asked.get("stream"):
                        await self._stream(writer, served)
                    else:
                        await _whole(writer, served)
                finally:
                    self.open -= 1
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, served: Served) -> None:
        draw = random.Random(f"{served.marker} paces")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        delta = _chunk(_event({"content": WORD}))
        # of the slow ones some end while the gateway lives, most are still running when it is killed
        lengths = (3,) if not served.slow else (15, 25, 35, ENDLESS, ENDLESS)
        for _ in range(ENDLESS if served.marker.startswith("endless-") else draw.choice(lengths)):
            served.deltas += 1
            writer.write(delta)
            await writer.drain()
            if served.slow:
                await asyncio.sleep(PACE)
                if self.hurry.is_set():
                    break
        served.ended = True
        final = _event({}, finish="stop") + _event(None, usage=served.usage) + b"data: [DONE]\n\n"
        writer.write(_chunk(final) + b"0\r\n\r\n")
        await writer.drain()

    def _drawn(self, marker: str) -> Served:
        draw = random.Random(marker)
        served = Served(marker)
        served.prompt, served.completion = draw.randrange(11, 9_000), draw.randrange(7, 4_000)
        served.cached = draw.choice((0, draw.randrange(served.prompt)))
        served.reasoning = draw.choice((0, draw.randrange(served.completion)))
        self.served.setdefault(marker, []).append(served)
        return served


async def _whole(writer: asyncio.StreamWriter, served: Served) -> None:
    message = {"role": "assistant", "content": WORD * 3}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({**_FRAME, "object": "chat.completion", "choices": [choice], "usage": served.usage}).encode()
    served.deltas, served.ended = 3, True
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


_FRAME = {"id": "chatcmpl-1", "created": 1790000000, "model": "m"}


def _event(delta: dict[str, str] | None, finish: str | None = None, usage: object = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    event: dict[str, object] = {**_FRAME, "object": "chat.completion.chunk", "choices": choices}
    if usage is not None:
        event["usage"] = usage
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    playing = Upstream()
    server = await asyncio.start_server(playing._connected, "127.0.0.1", 0, backlog=1024)
    playing.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield playing
    finally:
        server.close()
        await _gone(playing)


async def _gone(playing: Upstream) -> None:
    """The handlers end when their peers have left."""
    async with asyncio.timeout(10):
        while playing.open:
            await asyncio.sleep(0.01)
