"""Redis that is stopped, killed, emptied, restarted, and spread over a cluster."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.crc import key_slot

from router.accounts import Account, AccountsAway, Charge, Hold, Standing
from router.gates import GatesAway, Parallel, Rate
from router.state.redis import Redis, RedisAway
from router.state.redis_accounts import RedisAccounts
from router.state.redis_gates import RedisGates
from tests.state.backends import REDIS, Clock, RedisServer, an_account, redis_of_its_own, redis_server, until

pytestmark = pytest.mark.needs("redis")
KEY = an_account()
PLACE = [Parallel("parallel:key:dw-1", 1)]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def link(server: RedisServer) -> AsyncIterator[Redis]:
    link = Redis(server.url, pause=0.05)
    await link.open()
    try:
        yield link
    finally:
        await link.close()


def accounts_on(link: Redis, spent: int = 0, clock: Callable[[], float] | None = None) -> RedisAccounts:
    async def opening(account: Account) -> int:
        return spent

    return RedisAccounts(link, opening, "journal-1", clock or Clock())


async def ask(url: str, *command: Any) -> Any:
    async with redis.asyncio.Redis.from_url(url, protocol=2) as client:
        return await client.execute_command(*command)


async def keys_of(url: str) -> dict[str, int]:
    """Every key, with the milliseconds it has to live."""
    async with redis.asyncio.Redis.from_url(url, protocol=2) as client:
        return {key.decode(): await client.pttl(key) async for key in client.scan_iter("*")}


# -- away and back -----------------------------------------------------------------------------------------------------


async def test_a_server_that_dies_is_told_at_once_and_found_again(server: RedisServer, link: Redis) -> None:
    gates = RedisGates(link)
    assert (await gates.enter("req_1", [], PLACE)).refused_by is None
    server.kill()
    for _ in range(3):
        with pytest.raises(GatesAway, match="Redis"):
            await gates.enter("req_2", [], PLACE)
    await server.start()
    await until(lambda: link.away is None)
    assert (await gates.enter("req_2", [], PLACE)).refused_by is None


async def test_a_server_that_is_silent_is_waited_for_once(server: RedisServer, link: Redis) -> None:
    gates = RedisGates(link)
    await gates.enter("req_1", [], PLACE)
    server.send(signal.SIGSTOP)
    try:
        asked = [asyncio.create_task(gates.enter(f"req_{n}", [], [])) for n in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {GatesAway}
        assert "did not answer" in str(answers[0])
        # from now on nobody waits, whatever the patience
        link._patience = 3600
        async with asyncio.timeout(5):
            with pytest.raises(GatesAway):
                await gates.enter("req_2", [], [])
        link._patience = 0.25
    finally:
        server.send(signal.SIGCONT)
    await until(lambda: link.away is None)
    # the call got its place, or did not, and has left in any case
    await gates.leave("req_1")
    assert (await gates.enter("req_x", [], PLACE)).refused_by is None


async def test_a_server_that_is_away_at_the_start_is_found_later(tmp_path: Path) -> None:
    async with redis_server(tmp_path / "redis") as server:
        server.kill()
        link = Redis(server.url, pause=0.05)
        await link.open()
        try:
            with pytest.raises(RedisAway, match="cannot be reached"):
                await link.begin_anew()
            await server.start()
            await until(lambda: link.away is None)
            assert (await RedisGates(link).enter("req_1", [], PLACE)).refused_by is None
        finally:
            await link.close()


async def test_a_connection_that_was_closed_is_made_again(server: RedisServer, link: Redis) -> None:
    gates = RedisGates(link)
    await gates.enter("req_1", [], PLACE)
    await ask(server.url, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(GatesAway):
        await gates.enter("req_2", [], PLACE)
    await until(lambda: link.away is None)
    # the server is the same and knows what it knew
    assert (await gates.enter("req_2", [], PLACE)).refused_by == PLACE[0].key


async def test_who_gives_up_waiting_takes_no_other_call_with_him(server: RedisServer, link: Redis) -> None:
    gates = RedisGates(link)
    tasks = [asyncio.create_task(gates.enter(f"req_{n}", [Rate("r", 100, 60.0)], [])) for n in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert all(not isinstance(answer, BaseException) and answer.refused_by is None for answer in answers[1::2])


@pytest.mark.parametrize("ends", ["cancelled", "told that Redis is silent"])
async def test_a_call_that_never_learned_the_answer_holds_nothing(server: RedisServer, link: Redis, ends: str) -> None:
    gates, accounts = RedisGates(link), accounts_on(link)
    await accounts.reserve("req_1", [Hold(KEY, 100, 10)])
    server.send(signal.SIGSTOP)
    try:
        asked = [
            asyncio.create_task(gates.enter("req_2", [], PLACE)),
            asyncio.create_task(accounts.reserve("req_2", [Hold(KEY, 100, 10)])),
            asyncio.create_task(accounts.reserve("req_1", [Hold(KEY, 100, 10)])),
        ]
        # both have left for the server, which does not read
        await until(lambda: link._sending is not None and not link._waiting)
        if ends == "cancelled":
            for task in asked:
                task.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, asyncio.CancelledError | GatesAway | AccountsAway) for answer in answers)
    finally:
        server.send(signal.SIGCONT)
    await until(lambda: link.away is None and not link._overdue)
    assert (await gates.enter("req_3", [], PLACE)).refused_by is None
    # the server did it all; only the call that had reserved before will be settled by whoever runs it
    assert await accounts.standings([KEY]) == [Standing(KEY, 0, 20)]
    await accounts.settle("req_1", {KEY: 1})
    assert await accounts.standings([KEY]) == [Standing(KEY, 1, 0)]


async def test_calls_that_wait_are_told_when_the_link_is_closed(server: RedisServer) -> None:
    link = Redis(server.url)
    await link.open()
    server.send(signal.SIGSTOP)
    try:
        asking = asyncio.create_task(RedisGates(link).enter("req_1", [], []))
        await asyncio.sleep(0.01)
        await link.close()
        with pytest.raises(GatesAway):
            await asking
    finally:
        server.send(signal.SIGCONT)


async def test_scripts_that_were_flushed_are_sent_again(server: RedisServer, link: Redis) -> None:
    gates = RedisGates(link)
    await gates.enter("req_1", [], PLACE)
    await ask(server.url, "SCRIPT", "FLUSH")
    assert (await gates.enter("req_2", [], PLACE)).refused_by == PLACE[0].key


# -- what is lost ------------------------------------------------------------------------------------------------------


async def test_a_restart_forgets_what_was_held_and_loses_no_charge(server: RedisServer, link: Redis) -> None:
    clock = Clock()
    accounts = accounts_on(link, 3, clock)
    for call_id in ("req_1", "req_2", "req_3"):
        await accounts.reserve(call_id, [Hold(KEY, 100, 10)])
    clock.advance(1)
    server.kill()
    with pytest.raises(AccountsAway):
        await accounts.settle("req_1", {KEY: 5})
    await server.start()
    await until(lambda: link.away is None)
    # the ledger knows of this one by now
    accounts_after = accounts_on(link, 8, clock)
    assert await accounts_after.standings([KEY]) == [Standing(KEY, 8, 0)]
    await accounts.settle("req_1", {KEY: 5}, at=int(clock() * 1000))
    assert await accounts.standings([KEY]) == [Standing(KEY, 8, 0)]
    # these end later, and had been reserved before
    clock.advance(1)
    await accounts.settle("req_2", {KEY: 4})
    await accounts.settle("req_3", {KEY: 6}, at=int(clock() * 1000))
    await accounts.settle("req_3", {KEY: 6}, at=int(clock() * 1000))
    assert await accounts.standings([KEY]) == [Standing(KEY, 18, 0)]


async def test_what_a_call_held_that_was_lost_and_what_it_never_held_are_charged_once(
    server: RedisServer, link: Redis
) -> None:
    clock, other = Clock(), an_account("team", "research")
    accounts = accounts_on(link, 3, clock)
    await accounts.reserve("req_1", [Hold(KEY, 100, 10)])
    server.kill()
    with pytest.raises(AccountsAway):
        await accounts.standings([KEY])
    await server.start()
    await until(lambda: link.away is None)
    assert await accounts.standings([KEY, other]) == [Standing(KEY, 3, 0), Standing(other, 3, 0)]
    clock.advance(1)
    now = int(clock() * 1000)
    for _ in range(2):
        await accounts.settle("req_1", {KEY: 5}, [Charge(other, 7, now)])
        assert await accounts.standings([KEY, other]) == [Standing(KEY, 8, 0), Standing(other, 10, 0)]
        await accounts.settle("req_1", {KEY: 5}, [Charge(other, 7, now)], now)


async def test_a_restart_with_an_old_snapshot_brings_nothing_old_back(server: RedisServer, link: Redis) -> None:
    accounts, gates = accounts_on(link, 3), RedisGates(link)
    await accounts.reserve("req_1", [Hold(KEY, 100, 10)])
    await gates.enter("req_1", [], PLACE)
    await ask(server.url, "SAVE")
    await accounts.settle("req_1", {KEY: 5})
    await gates.leave("req_1")
    server.kill()
    await server.start()
    assert any("account" in key for key in await keys_of(server.url))
    with pytest.raises(AccountsAway):
        await accounts.standings([KEY])
    await until(lambda: link.away is None)
    assert await accounts_on(link, 8).standings([KEY]) == [Standing(KEY, 8, 0)]
    assert (await gates.enter("req_2", [], PLACE)).refused_by is None


async def test_a_server_that_is_emptied_is_begun_anew(server: RedisServer, link: Redis) -> None:
    accounts = accounts_on(link, 3)
    await accounts.reserve("req_1", [Hold(KEY, 100, 10)])
    await ask(server.url, "FLUSHALL")
    with pytest.raises(AccountsAway, match="removed"):
        await accounts.reserve("req_2", [Hold(KEY, 100, 10)])
    await until(lambda: link.away is None)
    await accounts.reserve("req_2", [Hold(KEY, 100, 10)])
    assert await accounts.standings([KEY]) == [Standing(KEY, 3, 10)]


async def test_processes_that_begin_anew_at_once_do_so_once() -> None:
    async with redis_of_its_own() as another:
        one, two = await another(), await another()
        accounts = accounts_on(one, 3)
        await accounts.reserve("req_1", [Hold(KEY, 100, 10)])
        await accounts.begin_anew()
        await accounts.reserve("req_2", [Hold(KEY, 100, 5)])
        assert await accounts_on(two, 9).standings([KEY]) == [Standing(KEY, 3, 5)]


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_all_keys_are_in_one_slot_and_only_one_stays_for_ever(server: RedisServer, link: Redis) -> None:
    accounts, gates = accounts_on(link), RedisGates(link)
    total, day = an_account(per="total"), an_account("tag", "feature={x}", "day")
    await accounts.reserve("req_1", [Hold(KEY, 100, 10), Hold(total, 100, 10), Hold(day, 100, 1)])
    await accounts.reserve("req_2", [Hold(KEY, 100, 10)])
    await accounts.settle("req_2", {KEY: 5})
    await accounts.settle("req_3", {KEY: 5}, at=2**50)
    await gates.enter("req_1", [Rate("rpm:{y}", 10, 60.0)], PLACE)
    found = await keys_of(server.url)
    assert len(found) > 8
    assert len({key_slot(key.encode()) for key in found}) == 1
    assert {key for key, life in found.items() if life < 0} == {"{deltaway}"}
    # a call that has ended leaves nothing behind but the sums
    await accounts.settle("req_1", {})
    await gates.leave("req_1")
    left = {key.split(":")[2] for key in await keys_of(server.url) if ":" in key}
    assert left == {"account", "bucket", "late"}


async def test_time_is_the_servers() -> None:
    async with redis_of_its_own() as another:
        link = await another()

        async def opening(account: Account) -> int:
            return 0

        gates, accounts = RedisGates(link, expiry=0.2), RedisAccounts(link, opening, "journal-1", expiry=0.2)
        await accounts.reserve("req_1", [Hold(KEY, 10, 10)])
        assert (await gates.enter("req_1", [Rate("r", 1, 0.2)], PLACE)).refused_by is None
        refused = await gates.enter("req_2", [Rate("r", 1, 0.2)], ())
        assert refused.refused_by == "r"
        assert 0 < refused.retry_after <= 0.2

        async def comes(question: Callable[[], Awaitable[bool]]) -> None:
            async with asyncio.timeout(10):
                while not await question():
                    await asyncio.sleep(0.01)

        async def passes() -> bool:
            return (await gates.enter("req_2", [Rate("r", 1, 0.2)], PLACE)).refused_by is None

        async def lapsed() -> bool:
            return await accounts.standings([KEY]) == [Standing(KEY, 0, 0)]

        await comes(passes)
        await comes(lapsed)


# -- cluster, passwords, the library -----------------------------------------------------------------------------------


async def test_the_node_of_a_cluster_that_has_our_keys_is_found(tmp_path: Path) -> None:
    async with (
        redis_server(tmp_path / "a", "--cluster-enabled", "yes") as one,
        redis_server(tmp_path / "b", "--cluster-enabled", "yes") as two,
    ):
        await ask(one.url, "CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        await ask(two.url, "CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        await ask(one.url, "CLUSTER", "MEET", "127.0.0.1", two.port)
        async with asyncio.timeout(30):
            for each in (one, two):
                while b"cluster_state:ok" not in await ask(each.url, "CLUSTER", "INFO"):
                    await asyncio.sleep(0.05)
        links = [Redis(each.url, pause=0.05) for each in (one, two)]
        try:
            for link in links:
                await link.open()
                assert link.away is None
            assert (await RedisGates(links[0]).enter("req_1", [], PLACE)).refused_by is None
            assert (await RedisGates(links[1]).enter("req_2", [], PLACE)).refused_by == PLACE[0].key
            await accounts_on(links[0]).reserve("req_1", [Hold(KEY, 100, 10)])
            assert await accounts_on(links[1]).standings([KEY]) == [Standing(KEY, 0, 10)]
        finally:
            for link in links:
                await link.close()


async def test_a_wrong_password_is_told_and_never_shown(tmp_path: Path) -> None:
    async with redis_server(tmp_path / "redis", "--requirepass", "right") as server:
        link = Redis(f"redis://:s3cret@127.0.0.1:{server.port}/0")
        await link.open()
        try:
            assert link.away is not None
            assert "password" in link.away
            assert "s3cret" not in link.away
        finally:
            await link.close()
        link = Redis(f"redis://:right@127.0.0.1:{server.port}/3")
        await link.open()
        try:
            assert (await RedisGates(link).enter("req_1", [], PLACE)).refused_by is None
        finally:
            await link.close()


async def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(RedisAway, match=r"deltaway\[redis\]"):
        await Redis(REDIS).open()
