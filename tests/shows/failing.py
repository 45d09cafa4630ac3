"""Every way in which a vendor fails, as bytes on a socket, with what has to follow from it.

A failure is played to the calls whose model bears its name. What follows depends on how the model was asked for, which
is the name's second part: see `WAYS`.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from typing import Any, Literal, TypeAlias

from support.vendor import Exchange, Script, completion, delta, sse, usage_chunk

Outcome: TypeAlias = Literal["failed", "cut", "timeout"]
Source: TypeAlias = Literal["reported", "estimated"] | None
WAYS = ("named", "pair", "same")
"""`named`: by the name `provider/model`; `pair`: by a route with a second target that is well; `same`: by a route that
tries its one target twice, which is well again the second time."""

TEXT = "Hello"
HALF = "Hel"
"""What comes of the text before a failure in the middle."""
DASHSCOPE_COUNTS = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}


@dataclass(frozen=True)
class Ends:
    """What a failure is to the client and to the ledger when nothing takes its place."""

    status: int
    """200: the answer had begun."""
    code: str
    outcome: Outcome = "failed"
    source: Source = None
    """Whose count the attempt's tokens are; None: it cost nothing."""
    mends: Literal["nothing", "elsewhere", "anywhere"] = "anywhere"
    """Where another attempt is made: nowhere, at another target, or at the same too."""
    text: str = ""
    """What came before, as a regular expression."""
    retry_after: str | None = None
    """The header that the client gets."""


@dataclass(frozen=True)
class Failure:
    name: str
    shown: str
    script: Script
    streamed: Ends
    whole: Ends
    """When the client, and so the vendor, was asked for a whole answer."""
    provider: str = "a"
    wait: float = 0.0
    """Seconds after which the vendor may be asked again, and not before."""
    rests_key: bool = False
    """It is the key's failure: such calls have a provider of their own, so that they rest nobody else's."""
    always: bool = False
    """It is the same the second time."""
    heard: bool = True
    """Whether the vendor hears of the request at all."""

    def ends(self, *, streamed: bool) -> Ends:
        return self.streamed if streamed else self.whole


@dataclass
class Player:
    """The vendor's side: plays the failures, and remembers who was asked when."""

    failures: dict[str, Failure]
    asked: dict[str, list[float]] = field(default_factory=dict)
    """By model."""

    async def play(self, exchange: Exchange) -> None:
        model: str = exchange.request.json()["model"]
        times = self.asked.setdefault(model, [])
        times.append(time.monotonic())
        name, way, _ = model.split(".")
        failure = self.failures[name]
        if way == "same" and len(times) > 1 and not failure.always:
            await well(exchange)
        else:
            await failure.script(exchange)


# -- what vendors say ------------------------------------------------------------------------------------------------


def is_streamed(exchange: Exchange) -> bool:
    """Whether a stream is asked for, in either protocol."""
    return exchange.request.json().get("stream") is True or "x-dashscope-sse" in exchange.request.headers


def frame(text: str, finish: str = "null", **fields: Any) -> dict[str, Any]:
    """A result of DashScope's."""
    choices = [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]
    return {"output": {"choices": choices}, "usage": DASHSCOPE_COUNTS, "request_id": "11111111", **fields}


def framed(value: dict[str, Any], status: int = 200) -> bytes:
    event = "result" if status == 200 else "error"
    return f"id:1\nevent:{event}\n:HTTP_STATUS/{status}\ndata:{json.dumps(value)}\n\n".encode()


def head(exchange: Exchange) -> Awaitable[None]:
    """A connection serves one request, so that none is sent again because its connection was an old one."""
    return exchange.head(connection="close")


async def well(exchange: Exchange) -> None:
    """A good answer in the protocol that was asked."""
    dashscope = "/services/aigc/" in exchange.request.path
    if not is_streamed(exchange):
        body = json.dumps(frame(TEXT, "stop")).encode() if dashscope else completion(TEXT)
        await exchange.whole(200, body, connection="close")
        return
    await head(exchange)
    if dashscope:
        await exchange.chunk(framed(frame(HALF)) + framed(frame(TEXT.removeprefix(HALF), "stop")))
    else:
        rest = delta(TEXT.removeprefix(HALF))
        await exchange.chunk(sse(delta(HALF), rest, delta(finish="stop"), usage_chunk(), "[DONE]"))
    await exchange.end()


def answers(status: int, body: Any, content_type: str = "application/json", **headers: str) -> Script:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()

    async def script(exchange: Exchange) -> None:
        await exchange.whole(status, data, content_type, connection="close", **headers)

    return script


def error(message: str, code: str | None = None, kind: str = "server_error", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **fields}}


def limited(message: str = "Slow down", fields: dict[str, Any] | None = None, **headers: str) -> Script:
    return answers(429, error(message, "rate_limit_exceeded", "requests", **(fields or {})), **headers)


def limited_until_a_date(exchange: Exchange) -> Awaitable[None]:
    now = time.time()
    return limited(date=formatdate(now, usegmt=True), retry_after=formatdate(now + 1, usegmt=True))(exchange)


# -- how far it gets -------------------------------------------------------------------------------------------------

stalls: Script = Exchange.stall


async def resets(exchange: Exchange) -> None:
    exchange.reset()


async def closes(exchange: Exchange) -> None:
    exchange.close()


async def breaks_a_chunk(exchange: Exchange) -> None:
    await exchange.send(b"ff\r\ndata: {")
    exchange.close()


def after_head(then: Script) -> Script:
    async def script(exchange: Exchange) -> None:
        await head(exchange)
        await then(exchange)

    return script


def after_delta(then: Script) -> Script:
    """In the middle of the answer: a whole one has a length, and half of it comes."""

    async def script(exchange: Exchange) -> None:
        if is_streamed(exchange):
            await head(exchange)
            dashscope = "/services/aigc/" in exchange.request.path
            await exchange.chunk(framed(frame(HALF)) if dashscope else sse(delta(HALF)))
        else:
            await _half(exchange, b"content-length: %d\r\n" % len(completion(TEXT)))
        await then(exchange)

    return script


async def ends_with_the_connection(exchange: Exchange) -> None:
    """A body without a length, of which nobody can tell whether it is all."""
    if is_streamed(exchange):
        await exchange.send(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        await exchange.send(sse(delta(HALF)))
    else:
        await _half(exchange, b"")
    exchange.close()


async def _half(exchange: Exchange, length: bytes) -> None:
    body = completion(TEXT)
    await exchange.send(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\nconnection: close\r\n" + length + b"\r\n")
    await exchange.send(body[: len(body) // 2])


async def ends_early(exchange: Exchange) -> None:
    """A body that ends properly around half an answer."""
    await head(exchange)
    body = completion(TEXT)
    await exchange.chunk(sse(delta(HALF)) if is_streamed(exchange) else body[: len(body) // 2])
    await exchange.end()


def drips(pace: float) -> Script:
    """Without an end, something every `pace` seconds."""

    async def script(exchange: Exchange) -> None:
        await head(exchange)
        pieces = [sse(delta("tick "))] if is_streamed(exchange) else [b" "]
        while True:
            await exchange.chunk(pieces[0])
            await asyncio.sleep(pace)

    return script


def within(value: Any, *, after: bool = False) -> Script:
    """An error inside a 200, in OpenAI's shape."""

    async def script(exchange: Exchange) -> None:
        if not is_streamed(exchange):
            await exchange.whole(200, json.dumps(value).encode(), connection="close")
            return
        await head(exchange)
        if after:
            await exchange.chunk(sse(delta(HALF)))
        # some servers end even this with [DONE]
        await exchange.chunk(sse(value, "[DONE]"))
        await exchange.end()

    return script


def within_dashscope(status: int, code: str, *, after: bool = False) -> Script:
    """The same in DashScope's: an event named `error`, whose comment has the true status."""
    value = {"code": code, "message": "It does not work", "request_id": "11111111"}

    async def script(exchange: Exchange) -> None:
        if not is_streamed(exchange):
            await exchange.whole(200, json.dumps(value).encode(), connection="close")
            return
        await head(exchange)
        if after:
            await exchange.chunk(framed(frame(HALF)))
        await exchange.chunk(framed(value, status))
        await exchange.end()

    return script


# -- the failures ----------------------------------------------------------------------------------------------------

LOST = Ends(502, "connection_lost", source="estimated")
LOST_INSIDE = Ends(200, "connection_lost", "cut", "estimated", "nothing", HALF)
SILENT = Ends(504, "first_token_timeout", "timeout", "estimated")
CUT = Ends(200, "stream_cut", "cut", "estimated", "nothing", HALF)
BROKEN = Ends(502, "provider_protocol_error", source="estimated")
FAILED = Ends(502, "upstream_error")
OVERLOADED = Ends(503, "provider_overloaded")
REFUSED_KEY = Ends(502, "provider_authentication_failed", mends="elsewhere")
NO_QUOTA = Ends(502, "provider_quota_exhausted", mends="elsewhere")
FILTERED = Ends(400, "content_filter", mends="nothing")
QUOTA_WORDS = "You exceeded your current quota, please check your plan and billing details."
ARREARAGE = {"code": "Arrearage", "message": "Access denied, your account is not in good standing.", "request_id": "1"}
RETRY_INFO = {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.05s"}]}
TOO_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."


def limit(retry_after: str | None, mends: Literal["elsewhere", "anywhere"] = "anywhere") -> Ends:
    return Ends(429, "rate_limit_exceeded", mends=mends, retry_after=retry_after)


def _failure(name: str, shown: str, script: Script, streamed: Ends, whole: Ends | None = None, **more: Any) -> Failure:
    return Failure(name, shown, script, streamed, whole or streamed, **more)


def all_failures() -> dict[str, Failure]:
    """By name."""
    dashscope: Callable[..., Failure] = partial(_failure, provider="q")
    listed = [
        _failure("refused", "connection refused", stalls, Ends(502, "provider_unreachable"),
                 provider="nobody", always=True, heard=False),
        _failure("reset", "reset before the headers", resets, LOST),
        _failure("closed", "closed before the headers", closes, LOST),
        _failure("reset-headers", "reset after the headers", after_head(resets), LOST),
        _failure("closed-headers", "closed after the headers", after_head(closes), LOST),
        _failure("429-seconds", "429, `retry-after: 1`", limited(retry_after="1"), limit("1"), wait=1.0),
        _failure("429-date", "429, `retry-after` is a date", limited_until_a_date, limit("1"), wait=1.0),
        _failure("429-ms", "429, `retry-after-ms: 50`", limited(retry_after_ms="50"), limit("1"), wait=0.05),
        _failure("429-reset", "429, `x-ratelimit-reset-requests: 50ms`",
                 limited(x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="50ms"), limit("1"), wait=0.05),
        _failure("429-info", "429, `RetryInfo` of 0.05s", limited(fields=RETRY_INFO), limit("1"), wait=0.05),
        _failure("429-text", "429, \"try again in 1.5s\"", limited("Please try again in 1.5s."), limit("2"), wait=1.5),
        _failure("429-none", "429 without a time", limited(), limit(None)),
        _failure("429-long", "429, `retry-after: 60`", limited(retry_after="60"), limit("60", "elsewhere")),
        _failure("500", "500", answers(500, error("Oops")), FAILED),
        _failure("503", "503", answers(503, error("Full")), OVERLOADED),
        _failure("529", "529", answers(529, error("Overloaded", kind="overloaded_error")), OVERLOADED),
        _failure("should-not", "500, `x-should-retry: false`", answers(500, error("Oops"), x_should_retry="false"),
                 Ends(502, "upstream_error", mends="elsewhere")),
        _failure("stall", "stall before the headers", stalls, SILENT, provider="impatient"),
        _failure("stall-headers", "stall after the headers", after_head(stalls), SILENT, provider="impatient"),
        _failure("stall-delta", "stall after the first delta", after_delta(stalls),
                 Ends(200, "idle_timeout", "timeout", "estimated", "nothing", HALF), SILENT, provider="impatient"),
        _failure("drip", "slow drip", drips(0.05),
                 Ends(200, "rate_timeout", "timeout", "estimated", "nothing", "(tick )+"), SILENT,
                 provider="watched"),
        _failure("reset-delta", "reset in the middle", after_delta(resets), LOST_INSIDE, LOST),
        _failure("closed-delta", "closed in the middle", after_delta(closes), LOST_INSIDE, LOST),
        _failure("chunk", "closed inside a chunk", after_delta(breaks_a_chunk), LOST_INSIDE, LOST),
        _failure("no-length", "closed in the middle of a body without length", ends_with_the_connection, CUT, BROKEN),
        _failure("ends-early", "a proper end of the body in the middle of the answer", ends_early, CUT, BROKEN),
        _failure("inside", "error inside a 200, before the first delta", within(error("Oops")), FAILED),
        _failure("inside-delta", "error inside a 200, after it", within(error("Oops"), after=True),
                 Ends(200, "upstream_error", "cut", "estimated", "nothing", HALF), FAILED),
        dashscope("q-inside", "DashScope: `event:error` in a 200", within_dashscope(429, "Throttling.RateQuota"),
                  limit(None)),
        dashscope("q-inside-delta", "DashScope: `event:error` after the first delta",
                  within_dashscope(500, "InternalError", after=True),
                  Ends(200, "upstream_error", "cut", "reported", "nothing", HALF), FAILED),
        _failure("html", "a web page with 200", answers(200, "<html>Welcome</html>", "text/html"), BROKEN),
        _failure("401", "invalid key (401)", answers(401, error("Incorrect API key", "invalid_api_key")),
                 REFUSED_KEY, rests_key=True),
        _failure("quota", "no quota (429 `insufficient_quota`)",
                 answers(429, error(QUOTA_WORDS, "insufficient_quota", "insufficient_quota")),
                 NO_QUOTA, rests_key=True),
        dashscope("q-arrears", "DashScope: arrears (400 `Arrearage`)", answers(400, ARREARAGE),
                  NO_QUOTA, rests_key=True),
        _failure("filtered", "content filter (400)", answers(400, error("Flagged", "content_filter")), FILTERED),
        dashscope("q-filtered", "DashScope: `DataInspectionFailed`",
                  answers(400, {"code": "DataInspectionFailed", "message": "Inappropriate content", "request_id": "1"}),
                  FILTERED),
        _failure("long", "context too long (400)",
                 answers(400, error(TOO_LONG, "context_length_exceeded", "invalid_request_error")),
                 Ends(400, "context_length_exceeded", mends="nothing")),
        _failure("wrong", "wrong request (400)",
                 answers(400, error("Invalid temperature", None, "invalid_request_error")),
                 Ends(400, "invalid_request", mends="nothing")),
        _failure("404", "unknown model (404)",
                 answers(404, error("The model does not exist", "model_not_found", "invalid_request_error")),
                 Ends(404, "model_not_found", mends="elsewhere")),
    ]  # fmt: skip
    return {each.name: each for each in listed}
