"""What clients may do to a connection, and how a call must end all the same."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.raw import Raw
from support.serving import asking, config_for, create_app, gateway, served
from support.vendor import Exchange, delta, plays_hello, sse, usage_chunk, vendor


async def connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port, limit=2**24)


def request(body: Any, *lines: str) -> bytes:
    data = json.dumps(body).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"content-length: {len(data)}", *lines, "", ""]
    return "\r\n".join(head).encode() + data


async def stalls(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(sse(delta("a")))
    await exchange.stall()


@pytest.mark.parametrize("together", [True, False], ids=["in one packet", "later"])
async def test_a_client_that_sends_its_next_request_early_and_leaves_is_seen_to_leave(together: bool) -> None:
    async with vendor(stalls) as played:
        gate = gateway(config_for(played.url))
        async with served(create_app(gate)) as url:
            _, writer = await connected(url)
            writer.write(request(asking()) * (2 if together else 1))
            while not played.requests:
                await asyncio.sleep(0.01)
            if not together:
                writer.write(request(asking()))
            await asyncio.sleep(0.05)
            writer.close()
            await played.settled(1)
            assert len(played.requests) == 1
            # what it had written is counted before its call is closed
            async with asyncio.timeout(3):
                while len(gate.running):
                    await asyncio.sleep(0.01)


async def test_a_request_sent_before_the_answer_to_the_last_one_finds_the_connection_closed_after_it() -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        reader, writer = await connected(url)
        writer.write(request(asking(stream=False)) * 2)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.count(b"HTTP/1.1 200") == 1
        assert b"Hello" in answer
        writer.close()


async def test_requests_one_after_the_other_share_a_connection_also_after_refusals() -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        reader, writer = await connected(url)
        for body, status in ((asking(stream=False), 200), ({"model": 3}, 400), (asking(stream=False), 200)):
            writer.write(request(body))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 %d" % status)
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        writer.close()


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nx-long: ", b"y" * 10_000),
        (b"POST /v1/chat/completions HTTP/1.1\r\n", b"x: y\r\n" * 2000),
        (b"POST /v1/chat/", b"y" * 10_000),
    ],
    ids=["one header", "many headers", "path"],
)
async def test_headers_without_end_are_a_431_in_the_dialects_shape(begin: bytes, more: bytes) -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        reader, writer = await connected(url)
        writer.write(begin)
        with_answer = asyncio.ensure_future(reader.read())
        for _ in range(12):
            writer.write(more)
            await asyncio.sleep(0.005)
        answer = await asyncio.wait_for(with_answer, 5)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"x-request-id: " in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"
        writer.close()


async def test_trailers_without_end_close_the_connection() -> None:
    async with vendor(plays_hello) as played:
        gate = gateway(config_for(played.url))
        async with served(create_app(gate)) as url:
            reader, writer = await connected(url)
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx: "
            )
            ended = asyncio.ensure_future(reader.read())
            for _ in range(12):
                writer.write(b"y" * 10_000)
                await asyncio.sleep(0.005)
            await asyncio.wait_for(asyncio.wait([ended]), 5)
            async with asyncio.timeout(2):
                while len(gate.running):
                    await asyncio.sleep(0.01)
            writer.close()


async def test_what_is_no_http_is_a_400_in_the_dialects_shape() -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        reader, writer = await connected(url)
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
        writer.close()


async def test_a_body_is_asked_for_where_the_client_waits_for_that() -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        reader, writer = await connected(url)
        head, _, body = request(asking(stream=False), "expect: 100-continue").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_an_offer_of_http_2_is_passed_over() -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        reader, writer = await connected(url)
        upgrade = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAB")
        for lines in (upgrade, ()):
            writer.write(request(asking(stream=False), *lines))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        writer.close()


async def floods(exchange: Exchange) -> None:
    """Far more than the sockets on the way hold."""
    await exchange.head()
    piece = sse(delta("x" * 60_000))
    for _ in range(400):
        await exchange.chunk(piece)
    await exchange.chunk(sse(delta(finish="stop"), usage_chunk(), "[DONE]"))
    await exchange.end()


async def test_a_client_that_stops_to_read_for_longer_than_idle_gets_the_whole_answer() -> None:
    config = config_for("URL", more=", timeouts: {idle: 300ms}")
    async with vendor(floods) as played, served(create_app(gateway(config.replace("URL", played.url)))) as url:
        raw = await Raw.post(url, asking())
        await raw.head()
        raw.pause()
        await asyncio.sleep(1)
        raw._writer.transport.resume_reading()  # type: ignore[attr-defined]
        chunks = await asyncio.wait_for(raw.chunks(), 20)
        assert chunks[-1].endswith(b"data: [DONE]\n\n")


async def test_a_client_that_never_reads_loses_the_vendor_when_the_total_has_passed() -> None:
    config = config_for("URL", more=", timeouts: {total: 500ms}")
    async with vendor(floods) as played:
        gate = gateway(config.replace("URL", played.url))
        async with served(create_app(gate)) as url:
            raw = await Raw.post(url, asking())
            await raw.head()
            raw.pause()
            await played.settled(3)
            assert gate.current.adapters["v"].upstream.open == 0  # type: ignore[attr-defined]
            raw.leave()
