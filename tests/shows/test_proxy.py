"""The proxy that cuts, before it is trusted with anything."""

import asyncio

import pytest

from support.proxy import Proxy, cuts_at, proxy, random_cuts
from support.raw import Raw
from support.vendor import Exchange, Vendor, sse, vendor

BODY = sse("one", "two", "[DONE]")


async def answers(exchange: Exchange) -> None:
    """A stream of three events, in a body without chunks, that ends with its connection."""
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + BODY)
    exchange.close()


async def says_whole(exchange: Exchange) -> None:
    await exchange.whole(200, b"{}", connection="close")
    exchange.close()


async def asked(through: Proxy) -> tuple[bytes, bool]:
    """What of a body arrives, and whether the connection was reset after it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
    got = b""
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nConnection: keep-alive\r\n\r\n")
        while data := await reader.read(65536):
            got += data
    except ConnectionResetError:
        return got.partition(b"\r\n\r\n")[2], True
    finally:
        writer.close()
    return got.partition(b"\r\n\r\n")[2], False


def ports(*vendors: Vendor) -> list[int]:
    return [int(each.url.split(":")[2].split("/")[0]) for each in vendors]


async def test_answers_are_cut_where_it_is_said_and_then_no_more() -> None:
    async with vendor(answers) as server, proxy(ports(server), cuts_at(0, 1, len(BODY) - 1)) as through:
        assert [await asked(through) for _ in range(4)] == [
            (b"", False),
            (BODY[:1], False),
            (BODY[:-1], False),
            (BODY, False),
        ]
        assert (through.cuts, through.streams, through.connections) == (3, 4, 4)
        await through.cut_times(3)


async def test_a_reset_is_one_and_what_came_before_it_was_sent() -> None:
    async with vendor(answers) as server, proxy(ports(server), cuts_at(20, how="rst")) as through:
        body, reset = await asked(through)
    assert reset
    # what the client's system had not handed out yet goes with the connection
    assert BODY[:20].startswith(body)


async def test_an_answer_that_ends_before_its_cut_is_whole_and_not_counted() -> None:
    async with vendor(answers) as server, proxy(ports(server), cuts_at(len(BODY) + 1)) as through:
        assert await asked(through) == (BODY, False)
        assert through.cuts == 0


async def test_other_answers_than_streams_are_not_cut() -> None:
    async with vendor(says_whole) as server, proxy(ports(server), cuts_at(0)) as through:
        assert await asked(through) == (b"{}", False)
        assert (through.cuts, through.streams) == (0, 0)


async def test_requests_go_to_the_servers_in_turn_on_connections_of_their_own() -> None:
    async with vendor(answers) as one, vendor(answers) as two, proxy(ports(one, two)) as through:
        for _ in range(4):
            await asked(through)
        assert through.served == dict.fromkeys(ports(one, two), 2)
        assert [each.headers["connection"] for each in (*one.requests, *two.requests)] == ["close"] * 4


async def test_a_server_that_is_gone_is_passed_over_and_without_any_the_client_is_dropped() -> None:
    async with vendor(answers) as gone:
        (closed,) = ports(gone)
    async with vendor(answers) as there:
        (alive,) = ports(there)
        async with proxy([closed, alive]) as through:
            assert [await asked(through) for _ in range(2)] == [(BODY, False)] * 2
            assert through.served == {alive: 2}
        async with proxy([closed]) as through:
            assert await asked(through) == (b"", False)


async def test_a_client_that_leaves_is_gone_for_the_server_too() -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(b"data: one\n\n")
        await exchange.stall()

    async with vendor(stalls) as server, proxy(ports(server)) as through:
        raw = await Raw.post(through.url, {})
        await raw.head()
        assert await raw.chunk() == b"data: one\n\n"
        raw.leave()
        await server.settled()
        assert server.abandoned == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_random_cuts_are_the_same_for_a_seed(seed: int) -> None:
    cuts = random_cuts(seed, 50, 1000)
    assert cuts == random_cuts(seed, 50, 1000) != random_cuts(seed + 1, 50, 1000)
    assert {how for _, how in cuts} == {"fin", "rst"}
    assert all(0 <= after <= 1000 for after, _ in cuts)
