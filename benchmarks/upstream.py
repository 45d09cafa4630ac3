"""A vendor that costs next to nothing, so that what is measured is the gateway before it: uvloop and httptools.

    python -m benchmarks.upstream [PORT]

`POST …/chat/completions` answers by the request's `model`, of which a `vendor/` prefix is ignored:

* anything, not streamed: one JSON answer of about 850 bytes, at once;
* `burst-N`, streamed: N deltas in one write, then the finish, the usage and `[DONE]`;
* `paced-N-MS`, streamed: N deltas, one write each, MS milliseconds apart, then the same end.

`GET …/models` lists the three; any other path answers `{}`, which pleases the health checks of gateways. Every
answer is made of bytes that are built once.
"""

import asyncio
import json
import re
import sys
from functools import lru_cache
from typing import Any, cast

import httptools
import uvloop

PORT = 9100
TEXT = "The quick brown fox jumps over the lazy dog. " * 8
DELTA_TEXT = " lazy"

_MODEL = re.compile(rb'"model"\s*:\s*"(?:[A-Za-z0-9_.-]+/)?(burst|paced)-(\d+)(?:-(\d+))?"')
_STREAMED = re.compile(rb'"stream"\s*:\s*true')
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_COMMON: dict[str, Any] = {
    "id": "chatcmpl-abc123",
    "created": 1700000000,
    "model": "gpt-4o-mini",
    "service_tier": "default",
    "system_fingerprint": "fp_x",
}


def _usage(completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": 200,
        "completion_tokens": completion,
        "total_tokens": 200 + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _json(body: dict[str, Any]) -> bytes:
    raw = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(raw), raw)


def _event(data: str) -> bytes:
    """One server-sent event as one chunk of a chunked body."""
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def _chunk(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
    body = {**_COMMON, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
    return _event(json.dumps(body, separators=(",", ":")))


def _choice(delta: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]


_FIRST = _STREAM_HEAD + _chunk(_choice({"role": "assistant", "content": "", "refusal": None}))
_DELTA = _chunk(_choice({"content": DELTA_TEXT}))
_OTHER = _json({})
_REFUSAL = _json({"error": {"message": "The server had an error", "type": "server_error", "code": None}}).replace(
    b"200 OK", b"500 Internal Server Error"
)
_MODELS = _json(
    {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 1, "owned_by": "bench"}
            for name in ("x", "burst-100", "paced-50-10")
        ],
    }
)
_WHOLE = _json(
    {
        **_COMMON,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": _usage(90),
    }
)


@lru_cache(maxsize=64)
def _ending(deltas: int) -> bytes:
    return _chunk(_choice({}, "stop")) + _chunk([], _usage(deltas)) + _event("[DONE]") + b"0\r\n\r\n"


@lru_cache(maxsize=64)
def _burst(deltas: int) -> bytes:
    return _FIRST + _DELTA * deltas + _ending(deltas)


class Vendor(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._url = b""
        self._open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, though they do the same
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        if self._url.endswith(b"/models"):
            self._transport.write(_MODELS)
        elif not self._url.endswith(b"/chat/completions"):
            self._transport.write(_OTHER)
        elif not _STREAMED.search(body):
            self._transport.write(_WHOLE)
        else:
            self._stream(body)

    def _stream(self, body: bytes) -> None:
        found = _MODEL.search(body)
        kind, deltas, gap = (found[1], int(found[2]), int(found[3] or 0)) if found else (b"burst", 100, 0)
        if kind == b"burst":
            self._transport.write(_burst(deltas))
        else:
            self._start(deltas, gap / 1000)

    def _start(self, deltas: int, seconds: float) -> None:
        self._transport.write(_FIRST)
        self._pace(deltas, deltas, seconds)

    def _refuse(self) -> None:
        self._transport.write(_REFUSAL)

    def _pace(self, left: int, deltas: int, seconds: float) -> None:
        if not self._open:
            return
        if left:
            self._transport.write(_DELTA)
            self._loop.call_later(seconds, self._pace, left - 1, deltas, seconds)
        else:
            self._transport.write(_ending(deltas))


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Vendor(loop), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else PORT))
