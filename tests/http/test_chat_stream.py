"""Streamed answers over real sockets: batches, heartbeats, endings, leaving."""

import asyncio
import json

import pytest

from support.raw import Raw
from support.serving import asking, config_for, create_app, gateway, served
from support.vendor import Exchange, delta, plays_hello, sse, usage_chunk, vendor

GOOD_END = sse(delta(finish="stop"), usage_chunk(), "[DONE]")


def payloads(body: bytes) -> list[str]:
    return [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]


def said(body: bytes) -> str:
    """The text of a streamed body."""
    chunks = [json.loads(p) for p in payloads(body) if p != "[DONE]"]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))


async def test_an_answer_streams_and_ends_with_done() -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        raw = await Raw.post(url, asking())
        assert await raw.head() == 200
        assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert raw.headers["cache-control"] == "no-cache, no-transform"
        assert raw.headers["x-accel-buffering"] == "no"
        assert raw.headers["x-request-id"].startswith("req_")
        assert raw.headers["x-deltaway-target"] == "v/m"
        assert raw.headers["x-deltaway-attempts"] == "1"
        body = b"".join(await raw.chunks())
        assert said(body) == "Hello"
        assert body.endswith(b"data: [DONE]\n\n")
        assert b'"usage"' not in body
        sent = played.requests[0].json()
        assert sent["stream_options"] == {"include_usage": True}
        assert played.requests[0].headers["authorization"] == "Bearer sk-vendor-key"


async def test_usage_is_told_when_the_client_asks() -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        raw = await Raw.post(url, asking(stream_options={"include_usage": True}))
        await raw.head()
        chunks = [json.loads(p) for p in payloads(b"".join(await raw.chunks())) if p != "[DONE]"]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["prompt_tokens"] == 9
        assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_deltas_that_arrive_in_one_read_leave_in_one_write_and_a_lone_one_at_once() -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse(delta("a"), delta("b"), delta("c")))
        await go.wait()
        go.clear()
        await exchange.chunk(sse(delta("d")))
        await go.wait()
        await exchange.chunk(sse(delta("e")) + GOOD_END)
        await exchange.end()

    async with vendor(script) as played, served(create_app(gateway(config_for(played.url)))) as url:
        raw = await Raw.post(url, asking())
        await raw.head()
        assert said(await raw.chunk()) == "abc"
        go.set()
        assert said(await raw.chunk()) == "d"
        go.set()
        last = await raw.chunk()
        assert said(last) == "e"
        assert last.endswith(b"data: [DONE]\n\n")
        assert await raw.chunk() == b""


async def test_an_early_vendor_error_is_a_real_http_error() -> None:
    async def refuses(exchange: Exchange) -> None:
        body = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}
        await exchange.whole(429, json.dumps(body).encode(), retry_after="7")

    async with vendor(refuses) as played, served(create_app(gateway(config_for(played.url)))) as url:
        raw = await Raw.post(url, asking())
        assert await raw.head() == 429
        assert raw.headers["retry-after"] == "7"
        assert raw.headers["x-should-retry"] == "true"
        assert raw.headers["content-type"] == "application/json"


async def test_an_error_event_before_any_content_of_a_200_stream_is_a_real_http_error() -> None:
    async def refuses(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse({"error": {"message": "overloaded", "code": 503}}))
        await exchange.end()

    async with vendor(refuses) as played, served(create_app(gateway(config_for(played.url)))) as url:
        raw = await Raw.post(url, asking())
        assert await raw.head() >= 500


async def test_heartbeats_begin_before_the_first_byte_and_keep_the_dialects_safe_form() -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.35)
        await plays_hello(exchange)

    config = config_for("URL", server="{heartbeat: 100ms}")
    async with vendor(slow) as played, served(create_app(gateway(config.replace("URL", played.url)))) as url:
        raw = await Raw.post(url, asking())
        assert await raw.head() == 200
        chunks = await raw.chunks()
        beats = [chunk for chunk in chunks if chunk == b": ping\n"]
        assert len(beats) >= 2
        assert said(b"".join(chunks)) == "Hello"


async def test_no_heartbeat_while_deltas_flow() -> None:
    async def flows(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(10):
            await exchange.chunk(sse(delta("x")))
            await asyncio.sleep(0.03)
        await exchange.chunk(GOOD_END)
        await exchange.end()

    config = config_for("URL", server="{heartbeat: 150ms}")
    async with vendor(flows) as played, served(create_app(gateway(config.replace("URL", played.url)))) as url:
        raw = await Raw.post(url, asking())
        await raw.head()
        assert b": ping" not in b"".join(await raw.chunks())


async def test_an_error_after_a_heartbeat_is_told_in_the_stream() -> None:
    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(0.25)
        await exchange.whole(500, b'{"error": {"message": "boom"}}')

    config = config_for("URL", server="{heartbeat: 100ms}")
    async with vendor(late) as played, served(create_app(gateway(config.replace("URL", played.url)))) as url:
        raw = await Raw.post(url, asking())
        assert await raw.head() == 200
        body = b"".join(await raw.chunks())
        error = json.loads(payloads(body)[-1])["error"]
        assert "boom" in error["message"]
        assert raw.headers["x-request-id"] in json.dumps(error)
        assert b"[DONE]" not in body


async def cut(exchange: Exchange) -> None:
    exchange.cut()


async def end_of_file(exchange: Exchange) -> None:
    await exchange.end()


async def error_inside(exchange: Exchange) -> None:
    await exchange.chunk(sse({"error": {"message": "out of memory", "type": "server_error"}}, "[DONE]"))
    await exchange.end()


async def garbage(exchange: Exchange) -> None:
    await exchange.chunk(b"data: {not json\n\n" * 3)
    await exchange.end()


async def stall(exchange: Exchange) -> None:
    await exchange.stall()


@pytest.mark.parametrize("end", [cut, end_of_file, error_inside, garbage, stall], ids=lambda end: end.__name__)
async def test_a_stream_that_fails_in_the_middle_ends_with_an_error_event_and_never_with_done(end) -> None:  # type: ignore[no-untyped-def]
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse(delta("par"), delta("tial")))
        await asyncio.sleep(0.02)
        await end(exchange)

    config = config_for("URL", more=", timeouts: {idle: 200ms}")
    async with vendor(script) as played, served(create_app(gateway(config.replace("URL", played.url)))) as url:
        raw = await Raw.post(url, asking())
        assert await raw.head() == 200
        body = b"".join(await raw.chunks())
        assert said(body) == "partial"
        error = json.loads(payloads(body)[-1])["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        assert raw.headers["x-request-id"] in json.dumps(error)
        assert b"[DONE]" not in body
        await played.settled()


async def test_comments_of_the_vendor_do_not_hold_the_idle_limit_off() -> None:
    async def comments(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse(delta("a")))
        while True:
            await exchange.chunk(b": keep-alive\n\n")
            await asyncio.sleep(0.03)

    config = config_for("URL", more=", timeouts: {idle: 200ms}")
    async with vendor(comments) as played, served(create_app(gateway(config.replace("URL", played.url)))) as url:
        raw = await Raw.post(url, asking())
        await raw.head()
        error = json.loads(payloads(b"".join(await raw.chunks()))[-1])["error"]
        assert error["code"] == "idle_timeout"


async def never_answers(exchange: Exchange) -> None:
    await exchange.stall()


async def answers_half(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(sse(delta("a")))
    await exchange.stall()


async def only_headers(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.stall()


@pytest.mark.parametrize("script", [never_answers, only_headers, answers_half], ids=lambda script: script.__name__)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("transport", ["native", "aiohttp", "httpx"])
async def test_a_client_that_leaves_ends_the_vendors_work_within_a_second(script, stream: bool, transport: str) -> None:  # type: ignore[no-untyped-def]
    config = config_for("URL", more=f", transport: {transport}")
    async with vendor(script) as played:
        gate = gateway(config.replace("URL", played.url))
        async with served(create_app(gate)) as url:
            raw = await Raw.post(url, asking(stream=stream))
            while not played.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            raw.leave()
            await played.settled(1.0)
            assert played.abandoned == 1
            async with asyncio.timeout(1):
                while len(gate.running):
                    await asyncio.sleep(0.01)


async def test_a_client_that_does_not_read_makes_the_vendor_wait_instead_of_filling_memory() -> None:
    sent = 0

    async def floods(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.head()
        piece = sse(*[delta("x" * 1000)] * 50)
        for _ in range(2000):
            await exchange.chunk(piece)
            sent += len(piece)
        await exchange.chunk(GOOD_END)
        await exchange.end()

    async with vendor(floods) as played, served(create_app(gateway(config_for(played.url)))) as url:
        raw = await Raw.post(url, asking())
        await raw.head()
        raw.pause()
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        # what fits into the sockets' buffers on the way, of 120 MB
        assert sent < 30_000_000
        raw.leave()
        await played.settled()
