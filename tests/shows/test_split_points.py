"""Byte for byte: a stream up to any byte, and what whoever comes back with its last whole event gets, are all of it.

Every byte of every recorded stream is a split point. Comments are left out: they are there or not as time passes.
"""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeAlias

import httpx
import pytest

from support.serving import application, asking, client, served
from support.vendor import Exchange, delta, sse, usage_chunk, vendor

Backend: TypeAlias = Literal["memory", "machine", "redis"]
Resume: TypeAlias = Callable[[str | None], Awaitable[bytes]]
"""From an event's id; None: from the beginning."""

BACKENDS = [
    pytest.param("memory", id="memory"),
    pytest.param("machine", id="machine"),
    pytest.param("redis", id="redis", marks=pytest.mark.needs("redis")),
]
REDIS = "redis://127.0.0.1:6379/9"
PATHS = {"openai.chat": "/v1/chat/completions"}
"""Dialect → where it is spoken."""
MODELS = (
    *("openai/m", "openai/breaks", "dashscope/qwen-max", "dashscope/breaks"),
    *("mock/lorem-40+slow-2", "mock/reasoning", "mock/cut-5", "mock/lorem-4+slow-start-100"),
)
RESUMABLE = {"x-deltaway-resumable": "true"}
ODD = ("é", "data: x\n\n", "id: 7", "\r\n", "\u2028", "🦀🦀", "\x00", '"}', "\\n\\n", "中文", ":", " ")
_ID = re.compile(rb"^id: (.*)$", re.M)
_COMMENT = re.compile(rb"^:[^\n]*\n\n?", re.M)


# -- the property ------------------------------------------------------------------------------------------------------


async def check_every_split(uncut: bytes, resume: Resume) -> int:
    """Cut the stream at each of its bytes, and come back. Gives how many different places there were to come back to.

    A reader forgets an event that has not come whole, so all splits within one event come back to the same place.
    """
    assert uncut.endswith(b"\n\n")
    wanted, rests, whole = without_comments(uncut), dict[str | None, bytes](), b"never"
    for place in range(len(uncut) + 1):
        end = uncut.rfind(b"\n\n", 0, place)
        # all that a reader has of what it was sent, and as long as that is the same, so is the rest
        if whole == (whole := uncut[: end + 2] if end >= 0 else b""):
            continue
        ids = _ID.findall(whole)
        last = ids[-1].decode() if ids else None
        if last not in rests:
            rests[last] = await resume(last)
        assert without_comments(whole + rests[last]) == wanted, f"cut at byte {place} of {len(uncut)}, after {last}"
    return len(rests)


def without_comments(data: bytes) -> bytes:
    return _COMMENT.sub(b"", data)


def events_in(data: bytes) -> int:
    return without_comments(data).count(b"\n\n")


def test_the_check_finds_what_is_missing_and_what_is_there_twice() -> None:
    uncut = b"id: s-1\ndata: a\n\n: ping\n\nid: s-2\ndata: b\n\nid: s-3\ndata: c\n\n"
    places = {None: 0, "s-1": 17, "s-2": 42, "s-3": 59}

    async def right(last: str | None) -> bytes:
        return uncut[places[last] :]

    async def late(last: str | None) -> bytes:
        return uncut[places[last] :] if last != "s-2" else b""

    async def twice(last: str | None) -> bytes:
        return uncut[places[last] :] if last != "s-3" else b"id: s-3\ndata: c\n\n"

    assert asyncio.run(check_every_split(uncut, right)) == 4
    for wrong in (late, twice):
        with pytest.raises(AssertionError, match="cut at byte"):
            asyncio.run(check_every_split(uncut, wrong))


# -- gateways ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def gateways(backend: Backend, **vendors: str) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """One that is asked, and one that is come back to: in memory the same, else another with the same log."""
    async with AsyncExitStack() as stack:
        opened = []
        for name in ("first", "second")[: 1 if backend == "memory" else 2]:
            config: dict[str, Any] = {
                "server": {"heartbeat": "30ms", "shutdown": {"delay": "0s", "grace": "1s"}},
                "shared": {"memory": "memory", "machine": "auto", "redis": REDIS}[backend],
                "providers": {
                    "mock": {"protocol": "mock"},
                    **{
                        each: {"protocol": each, "base_url": url, "api_key": "sk-vendor"}
                        for each, url in vendors.items()
                    },
                },
                "plugins": ["logging", "usage"],
            }
            if backend == "redis":
                # each on a machine of its own, as far as they can tell
                config |= {"store": f"sqlite:///{name}.db", "ledger": {"journal": f"{name}.journal"}}
            url = await stack.enter_async_context(served(application(json.dumps(config))))
            opened.append(await stack.enter_async_context(client(url)))
        yield opened[0], opened[-1]


async def recorded(http: httpx.AsyncClient, dialect: str, body: Any) -> tuple[str, bytes]:
    """Id and bytes of a stream that was read without a break."""
    answer = await http.post(PATHS[dialect], json=body, headers=RESUMABLE)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-deltaway-stream"], answer.content


def coming_back(http: httpx.AsyncClient, stream: str, *, query: bool = False) -> Resume:
    """With the id in the header, or in the address."""

    async def resume(last: str | None) -> bytes:
        address, named = f"/v1/streams/{stream}", {} if last is None else {"last_event_id": last}
        if query:
            answer = await http.get(address, params=named)
        else:
            answer = await http.get(address, headers={name.replace("_", "-"): value for name, value in named.items()})
        assert answer.status_code in (200, 204), answer.text
        return answer.content

    return resume


async def forget(stream: str) -> None:
    """Remove what a stream has left in Redis."""
    from redis.asyncio import Redis

    async with Redis.from_url(REDIS) as redis:
        async for key in redis.scan_iter(f"*{stream}*"):
            await redis.delete(key)


# -- vendors -----------------------------------------------------------------------------------------------------------


async def speaks_openai(exchange: Exchange) -> None:
    """Odd texts, a tool call, and pauses; or as much of it, and then the connection breaks."""
    await exchange.head()
    for text in ODD:
        await exchange.chunk(sse(delta(text)))
    await asyncio.sleep(0.1)
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    rest = {"index": 0, "function": {"arguments": '{"a": "\\n\\n"}'}}
    await exchange.chunk(sse(delta(tool_calls=[call]), delta(tool_calls=[rest])))
    if exchange.request.json()["model"] == "breaks":
        exchange.cut()
        return
    await exchange.chunk(sse(delta(finish="tool_calls"), usage_chunk(), "[DONE]"))
    await exchange.end()


async def speaks_dashscope(exchange: Exchange) -> None:
    await exchange.head(content_type="text/event-stream;charset=UTF-8")
    for number, text in enumerate((*ODD, ""), 1):
        message = {"role": "assistant", "content": text, "reasoning_content": ""}
        if number == 3:
            await asyncio.sleep(0.1)
        if number == 5 and b'"breaks"' in exchange.request.body:
            exchange.cut()
            return
        output = {"choices": [{"message": message, "finish_reason": "null" if text else "stop"}]}
        usage = {"input_tokens": 9, "output_tokens": number, "total_tokens": 9 + number}
        data = json.dumps({"output": output, "usage": usage, "request_id": "5b1c0f6e"})
        await exchange.chunk(f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{data}\n\n".encode())
    await exchange.end()


# -- the shows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_stream_that_is_cut_at_any_byte_and_come_back_to_is_the_whole_stream(
    backend: Backend, dialect: str
) -> None:
    async with AsyncExitStack() as stack:
        openai = await stack.enter_async_context(vendor(speaks_openai))
        dashscope = await stack.enter_async_context(vendor(speaks_dashscope))
        first, second = await stack.enter_async_context(gateways(backend, openai=openai.url, dashscope=dashscope.url))
        for model in MODELS:
            stream, uncut = await recorded(first, dialect, asking(model))
            try:
                here = await check_every_split(uncut, coming_back(first, stream))
                there = await check_every_split(uncut, coming_back(second, stream, query=True))
            finally:
                if backend == "redis":
                    await forget(stream)
            # the beginning, and after each event
            assert here == there == events_in(uncut) + 1, model


@pytest.mark.parametrize("backend", BACKENDS)
async def test_random_answers_of_odd_texts_are_whole_however_they_are_cut(backend: Backend) -> None:
    draw = random.Random(5)
    async with gateways(backend) as (first, second):
        for _ in range(8):
            text = " ".join(draw.choice(ODD) + chr(draw.randrange(33, 0xD7FF)) for _ in range(draw.randrange(1, 30)))
            model = f"mock/echo+slow-{draw.choice((0, 0, 1))}"
            stream, uncut = await recorded(first, "openai.chat", asking(model, text=text))
            try:
                assert await check_every_split(uncut, coming_back(second, stream)) == events_in(uncut) + 1
            finally:
                if backend == "redis":
                    await forget(stream)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_who_comes_back_while_the_answer_runs_gets_the_rest_as_it_comes(backend: Backend) -> None:
    """The vendor stops after each delta until somebody has come back for it."""
    step = asyncio.Semaphore(0)

    async def steps(exchange: Exchange) -> None:
        await exchange.head()
        for text in ODD:
            await exchange.chunk(sse(delta(text)))
            await step.acquire()
        await exchange.chunk(sse(delta(finish="stop"), usage_chunk(), "[DONE]"))
        await exchange.end()

    async with vendor(steps) as played, gateways(backend, openai=played.url) as (first, second):
        parts = list[bytes]()
        begun = {**RESUMABLE, "x-deltaway-on-disconnect": "finish"}
        async with first.stream("POST", PATHS["openai.chat"], json=asking("openai/m"), headers=begun) as answer:
            stream = answer.headers["x-deltaway-stream"]
            parts.append(await one_event(answer))
        try:
            for http in [second, first] * (len(ODD) // 2 - 1):
                step.release()
                headers = {"last-event-id": last_id(parts)}
                async with http.stream("GET", f"/v1/streams/{stream}", headers=headers) as answer:
                    assert answer.status_code == 200
                    parts.append(await one_event(answer))
            for _ in ODD:
                step.release()
            parts.append(await coming_back(second, stream)(last_id(parts)))
            joined = without_comments(b"".join(parts))
            assert joined.endswith(b"data: [DONE]\n\n")
            assert joined == without_comments(await coming_back(first, stream)(None))
            await check_every_split(joined, coming_back(second, stream))
        finally:
            if backend == "redis":
                await forget(stream)


async def one_event(answer: httpx.Response) -> bytes:
    """The next events that come together."""
    data = b""
    async for piece in answer.aiter_raw():
        data += piece
        if without_comments(data).endswith(b"\n\n"):
            return without_comments(data)
    raise AssertionError(f"the stream ended after {data!r}")


def last_id(parts: list[bytes]) -> str:
    return _ID.findall(b"".join(parts))[-1].decode()
