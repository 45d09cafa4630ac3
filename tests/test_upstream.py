"""The seam towards the vendors' sockets: every error of the libraries maps to one of ours, on every transport."""

import asyncio
import inspect
import socket
import ssl
from collections.abc import AsyncGenerator

import aiohttp
import httpx
import pytest
import respx

from router.errors import (
    Overloaded,
    ProtocolViolated,
    ProviderError,
    RouterError,
    TimedOut,
    Unreachable,
)
from router.provider import HttpRequest, VendorResponse
from router.route import Timeouts
from router.settings import Transport
from router.upstream import CAUSES, HttpUpstream, HttpxCarrier, InProcessUpstream, make_carrier, mapped_error
from support.vendor import Exchange, vendor

LIMITS = Timeouts(connect=2)
CONTEXT = ssl.create_default_context()


@pytest.fixture(params=["native", "aiohttp", "httpx"])
def transport(request: pytest.FixtureRequest) -> Transport:
    name: Transport = request.param
    return name


def upstream(name: Transport, max_parallel: int = 100) -> HttpUpstream:
    return HttpUpstream("v", make_carrier(name, CONTEXT), max_parallel)


def posting(url: str, body: bytes = b"{}") -> HttpRequest:
    return HttpRequest(url, {"content-type": "application/json", "authorization": "Bearer k"}, body, streamed=True)


async def everything(sent: HttpUpstream, url: str) -> bytes:
    stream = await sent.send(posting(url), LIMITS)
    try:
        return b"".join([data async for data in reads(stream)])
    finally:
        await stream.aclose()


async def reads(stream):  # type: ignore[no-untyped-def]
    while data := await stream.read():
        yield data


# -- the map ---------------------------------------------------------------------------------------------------------


def exceptions_of(module: object) -> list[type[Exception]]:
    return [cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, Exception)]


@pytest.mark.parametrize("cls", exceptions_of(httpx), ids=lambda cls: cls.__name__)
def test_every_error_of_httpx_has_a_row_of_its_own(cls: type[Exception]) -> None:
    named = cls in CAUSES or issubclass(cls, httpx.StreamError)
    assert named, f"httpx grew {cls.__name__}: say in CAUSES what it means"
    mapped = mapped_error(cls.__new__(cls), "v")
    assert isinstance(mapped, ProviderError)
    assert "`v`" in mapped.message


CLIENT_ERRORS = [cls for cls in exceptions_of(aiohttp) if issubclass(cls, aiohttp.ClientError)]


@pytest.mark.parametrize("cls", CLIENT_ERRORS, ids=lambda cls: cls.__name__)
def test_every_client_error_that_aiohttp_lets_through_falls_under_a_row(cls: type[Exception]) -> None:
    assert next(CAUSES[base] for base in cls.__mro__ if base in CAUSES) in {"lost", "setup", "protocol"}


def test_our_own_errors_and_cancellation_pass_unmapped() -> None:
    assert mapped_error(asyncio.CancelledError(), "v") is None
    assert mapped_error(RouterError("x"), "v") is None
    assert mapped_error(GeneratorExit(), "v") is None


# -- what the sockets do ---------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_unreachable(transport: Transport) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        sent = upstream(transport)
        with pytest.raises(Unreachable, match="provider `v`"):
            await everything(sent, url)
        assert sent.open == 0
        await sent.aclose()


async def test_an_unknown_host_is_unreachable(transport: Transport) -> None:
    sent = upstream(transport)
    with pytest.raises(Unreachable):
        await everything(sent, "http://no-such-host.invalid/v1")
    await sent.aclose()


async def test_a_vendor_that_does_not_speak_http_violates_the_protocol(transport: Transport) -> None:
    async def garbage(exchange: Exchange) -> None:
        await exchange.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await exchange.stall()

    async with vendor(garbage) as played:
        sent = upstream(transport)
        with pytest.raises((ProtocolViolated, Unreachable)):
            await everything(sent, played.url)
        await sent.aclose()


async def test_a_reset_before_the_headers_is_a_lost_connection(transport: Transport) -> None:
    async def resets(exchange: Exchange) -> None:
        exchange.cut()

    async with vendor(resets) as played:
        sent = upstream(transport)
        with pytest.raises(ProviderError) as raised:
            await everything(sent, played.url)
        assert isinstance(raised.value, Unreachable | ProtocolViolated)
        assert raised.value.retryable
        await sent.aclose()


async def test_a_body_cut_in_the_middle_is_an_error_after_the_bytes_that_came(transport: Transport) -> None:
    async def cuts(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(b"data: 1\n\n")
        await asyncio.sleep(0.05)
        exchange.cut()

    async with vendor(cuts) as played:
        sent = upstream(transport)
        stream = await sent.send(posting(played.url), LIMITS)
        assert await stream.read() == b"data: 1\n\n"
        with pytest.raises(ProviderError):
            await stream.read()
        await stream.aclose()
        assert sent.open == 0
        await sent.aclose()


async def test_a_gzipped_answer_is_decoded_though_identity_was_asked(transport: Transport) -> None:
    import gzip

    async def zips(exchange: Exchange) -> None:
        await exchange.whole(200, gzip.compress(b"data: 1\n\n"), "text/event-stream", content_encoding="gzip")

    async with vendor(zips) as played:
        sent = upstream(transport)
        assert await everything(sent, played.url) == b"data: 1\n\n"
        await sent.aclose()


async def test_a_connection_serves_again_after_a_released_answer(transport: Transport) -> None:
    async def answers(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(b"data: [DONE]\n\n")
        await asyncio.sleep(0.02)
        await exchange.end()

    async with vendor(answers) as played:
        sent = upstream(transport)
        for _ in range(3):
            stream = await sent.send(posting(played.url), LIMITS)
            assert await stream.read() == b"data: [DONE]\n\n"
            await stream.release()
            async with asyncio.timeout(2):
                while sent.draining:
                    await asyncio.sleep(0.01)
        assert played.connections == 1
        await sent.aclose()


async def test_closing_an_unfinished_answer_ends_the_vendors_connection(transport: Transport) -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(b"data: 1\n\n")
        await exchange.stall()

    async with vendor(stalls) as played:
        sent = upstream(transport)
        stream = await sent.send(posting(played.url), LIMITS)
        await stream.read()
        await stream.aclose()
        await played.settled(2)
        assert played.abandoned == 1
        await sent.aclose()


async def test_a_cancelled_wait_for_headers_ends_the_vendors_connection(transport: Transport) -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.stall()

    async with vendor(stalls) as played:
        sent = upstream(transport)
        waiting = asyncio.ensure_future(sent.send(posting(played.url), LIMITS))
        while not played.requests:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await played.settled(2)
        assert sent.open == 0
        await sent.aclose()


async def test_more_calls_than_max_parallel_are_refused_with_words(transport: Transport) -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.stall()

    async with vendor(stalls) as played:
        sent = upstream(transport, max_parallel=1)
        first = await sent.send(posting(played.url), LIMITS)
        with pytest.raises(Overloaded, match="max_parallel"):
            await sent.send(posting(played.url), LIMITS)
        await first.aclose()
        second = await sent.send(posting(played.url), LIMITS)
        await second.aclose()
        await sent.aclose()


class Inside:
    """A vendor in this process; `fails`: with what it answers next."""

    fails: BaseException | None = None

    async def respond(self, request: HttpRequest) -> VendorResponse:
        if self.fails is not None:
            raise self.fails

        async def body() -> AsyncGenerator[bytes]:
            yield b"one"
            yield b"two"

        return VendorResponse(200, {}, body())


@pytest.mark.parametrize("end", ["release", "aclose", "both"])
async def test_max_parallel_holds_for_a_vendor_in_this_process(end: str) -> None:
    inside = Inside()
    sent = InProcessUpstream("v", inside, max_parallel=2)
    assert not sent.crowded
    first, second = await sent.send(posting("mock"), LIMITS), await sent.send(posting("mock"), LIMITS)
    assert sent.crowded
    with pytest.raises(Overloaded, match="2 calls to provider `v` are running, which is its `max_parallel`"):
        await sent.send(posting("mock"), LIMITS)
    assert await first.read() == b"one"
    if end != "aclose":
        await first.release()
    if end != "release":
        await first.aclose()
    assert sent.open == 1
    for failure in (OSError("broken"), asyncio.CancelledError()):
        inside.fails = failure
        with pytest.raises(type(failure)):
            await sent.send(posting("mock"), LIMITS)
        assert sent.open == 1
    await second.aclose()
    assert sent.open == 0


async def test_two_hundred_answers_can_be_open_at_once(transport: Transport) -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.stall()

    async with vendor(stalls) as played:
        sent = upstream(transport, max_parallel=1000)
        streams = await asyncio.gather(*(sent.send(posting(played.url), LIMITS) for _ in range(200)))
        assert played.busy == 200
        for stream in streams:
            await stream.aclose()
        await played.settled()
        await sent.aclose()


async def test_a_slow_connect_times_out() -> None:
    sent = HttpUpstream("v", HttpxCarrier(httpx.MockTransport(_raises(httpx.ConnectTimeout("slow")))), 10)
    with pytest.raises(TimedOut, match=r"timeouts\.connect"):
        await sent.send(posting("http://v/v1"), LIMITS)
    assert sent.open == 0


def _raises(error: Exception):  # type: ignore[no-untyped-def]
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    return handler


async def test_respx_can_stand_in_for_the_vendor() -> None:
    with respx.MockRouter() as router:
        router.post("http://v/v1").respond(200, content=b"data: 1\n\n", headers={"content-type": "text/event-stream"})
        sent = HttpUpstream("v", HttpxCarrier(httpx.MockTransport(router.async_handler)), 10)
        assert await everything(sent, "http://v/v1") == b"data: 1\n\n"


async def test_a_complete_answer_makes_room_for_the_next_call_before_its_body_ends(transport: Transport) -> None:
    async def lingers(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.stall()

    async with vendor(lingers) as played:
        sent = upstream(transport, max_parallel=1)
        for _ in range(2):
            stream = await sent.send(posting(played.url), LIMITS)
            await stream.read()
            await stream.release()
        assert sent.open == 0
        await sent.aclose()
