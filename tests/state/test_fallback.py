"""Budgets while the shared state goes away, comes back, and has forgotten."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from router.accounts import Account, AccountsAway, Charge, Hold, Refusal, Standing
from router.state.fallback_accounts import FallbackAccounts
from router.state.ledger_accounts import LedgerAccounts
from router.state.redis import Redis
from router.state.redis_accounts import RedisAccounts
from router.store.spending import spent
from router.store.store import Store
from support.stores import empty_store
from tests.state.backends import Clock, RedisServer, an_account, record, redis_server, same_currency, until

pytestmark = pytest.mark.needs("redis")
KEY = an_account()
TEAM = an_account("team", "research", "total")


class Site:
    """A Redis of the test's own, a ledger, and processes that use both."""

    def __init__(self, server: RedisServer, store: Store, stack: contextlib.AsyncExitStack) -> None:
        self.server = server
        self.store = store
        self.clock = Clock()
        self.links: list[Redis] = []
        self.processes: list[FallbackAccounts] = []
        self._stack = stack

    async def process(self, remembered: int = 100) -> FallbackAccounts:
        link = Redis(self.server.url, pause=0.05)
        await link.open()
        self._stack.push_async_callback(link.close)
        owner = f"journal-{len(self.links)}"

        async def opening(account: Account) -> int:
            return (await spent(self.store, account, same_currency)).nano

        first = RedisAccounts(link, opening, owner, self.clock)
        second = LedgerAccounts(self.store, same_currency, owner, self.clock)
        self.links.append(link)
        self.processes.append(FallbackAccounts(first, second, self.clock, remembered))
        return self.processes[-1]

    async def end(
        self,
        accounts: FallbackAccounts,
        call_id: str,
        charges: Mapping[Account, int],
        late: Mapping[Account, int] = MappingProxyType({}),
    ) -> None:
        """As the core does: on record, then settled. Time goes on."""
        self.clock.advance(1)
        now = int(self.clock() * 1000)
        await record(self.store, call_id, {**charges, **late}, now)
        await accounts.settle(call_id, charges, [Charge(account, nano, now) for account, nano in late.items()])
        self.clock.advance(1)

    async def dies(self) -> None:
        self.server.kill()
        for accounts in self.processes:
            # whoever looks notices
            await accounts.standings([])
            assert accounts.away is not None

    async def comes_back(self) -> None:
        await self.server.start()
        await until(lambda: all(link.away is None for link in self.links))

    async def standing(self, account: Account = KEY) -> tuple[int, int]:
        """As all see it."""
        found = {
            (standing.spent, standing.reserved)
            for accounts in self.processes
            for standing in await accounts.standings([account])
        }
        assert len(found) == 1, found
        return found.pop()

    async def holds_in_the_ledger(self) -> int:
        async with self.store.reading() as connection:
            return int((await connection.exec_driver_sql("SELECT count(*) FROM holds WHERE owner <> ''")).scalar_one())


@pytest.fixture(params=["forgets", "remembers"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """One Redis forgets everything when it is killed. The other is not killed: the network to it breaks."""
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(empty_store("sqlite", tmp_path))
        server = await stack.enter_async_context(redis_server(tmp_path / "redis"))
        site: Site = Site(server, store, stack)
        if request.param == "remembers":
            site = await stack.enter_async_context(behind_a_network(site))
        yield site


@contextlib.asynccontextmanager
async def behind_a_network(site: Site) -> AsyncIterator[Site]:
    """The server's port is that of a relay, which can be closed."""
    real = site.server.port
    relay = Relay(real)
    await relay.start()

    class Network(RedisServer):
        def kill(self) -> None:
            relay.stop()

        async def start(self) -> None:
            await relay.start()

    network = object.__new__(Network)
    network.port, network.url = relay.port, f"redis://127.0.0.1:{relay.port}/0"
    site.server = network
    try:
        yield site
    finally:
        relay.stop()


class Relay:
    def __init__(self, to: int) -> None:
        self._to = to
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self._to)
        self._open |= {writer, forth}
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._copy(reader, forth), self._copy(back, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_a_budget_holds_before_during_and_after(site: Site) -> None:
    accounts = await site.process()
    hold = [Hold(KEY, 100, 30)]
    await accounts.reserve("req_1", hold)
    await accounts.reserve("req_2", hold)
    await site.end(accounts, "req_1", {KEY: 10})
    assert await site.standing() == (10, 30)

    await site.dies()
    # what runs since before counts: 10 spent, 30 held, 30 more
    assert await site.standing() == (10, 30)
    assert await accounts.reserve("req_3", hold) is None
    assert await accounts.reserve("req_4", hold) is None
    assert await accounts.reserve("req_5", hold) == Refusal(hold[0], Standing(KEY, 10, 90))
    # one from before ends, and one from now
    await site.end(accounts, "req_2", {KEY: 5})
    await site.end(accounts, "req_3", {KEY: 6})
    assert await site.standing() == (21, 30)

    await site.comes_back()
    assert await site.standing() == (21, 30)
    assert accounts.away is None
    assert await accounts.reserve("req_6", hold) is None
    assert await accounts.reserve("req_7", hold) == Refusal(hold[0], Standing(KEY, 21, 60))
    # one that began while it was away ends now
    await site.end(accounts, "req_4", {KEY: 7})
    await site.end(accounts, "req_6", {KEY: 8})
    assert await site.standing() == (36, 0)
    assert (await spent(site.store, KEY, same_currency)).nano == 36
    assert await site.holds_in_the_ledger() == 0


async def test_what_holds_nothing_is_charged_before_during_and_after(site: Site) -> None:
    accounts = await site.process()
    assert await site.standing() == (0, 0)
    for call_id in ("req_a", "req_b"):
        await accounts.reserve(call_id, [Hold(TEAM, 1000, 10)])
    await site.end(accounts, "req_1", {}, {KEY: 1})
    await site.end(accounts, "req_a", {TEAM: 1}, {KEY: 2})
    assert await site.standing() == (3, 0)
    await site.dies()
    await site.end(accounts, "req_2", {}, {KEY: 4})
    await site.end(accounts, "req_b", {TEAM: 1}, {KEY: 8})
    assert await site.standing() == (15, 0)
    await site.comes_back()
    await accounts.try_again()
    assert await site.standing() == (15, 0)
    await site.end(accounts, "req_3", {}, {KEY: 16})
    assert await site.standing() == (31, 0)
    assert await site.standing(TEAM) == (2, 0)


async def test_what_holds_nothing_is_remembered_while_nobody_can_be_told(site: Site) -> None:
    accounts = await site.process()
    assert await site.standing() == (0, 0)
    await site.dies()
    await site.store.close()
    with pytest.raises(AccountsAway):
        await accounts.reserve("req_1", [Hold(KEY, 100, 30)])
    # it was made all the same
    site.clock.advance(1)
    now = int(site.clock() * 1000)
    await accounts.settle("req_1", {}, [Charge(KEY, 5, now)])
    await site.store.open()
    await record(site.store, "req_1", {KEY: 5}, now)
    site.clock.advance(1)
    await site.comes_back()
    await accounts.try_again()
    assert await site.standing() == (5, 0)


async def test_several_processes_agree_again(site: Site) -> None:
    one, two = await site.process(), await site.process()
    for index, accounts in enumerate((one, two)):
        await accounts.reserve(f"req_a{index}", [Hold(KEY, 1000, 10), Hold(TEAM, 1000, 10)])
    await site.dies()
    for index, accounts in enumerate((one, two)):
        await accounts.reserve(f"req_b{index}", [Hold(KEY, 1000, 10)])
    assert await site.standing() == (0, 40)
    await site.end(one, "req_a0", {KEY: 1, TEAM: 1})
    await site.end(two, "req_b1", {KEY: 2})
    assert await site.standing() == (3, 20)
    await site.comes_back()
    await one.try_again()
    await two.try_again()
    assert await site.standing() == (3, 20)
    assert await site.standing(TEAM) == (1, 10)
    await site.end(two, "req_a1", {KEY: 3, TEAM: 3})
    await site.end(one, "req_b0", {KEY: 4})
    assert await site.standing() == (10, 0)
    assert await site.standing(TEAM) == (4, 0)


async def test_a_call_that_reserves_more_here_and_there_adds_up(site: Site) -> None:
    accounts = await site.process()
    for amount in (10, 20):
        await accounts.reserve("req_1", [Hold(KEY, 1000, amount)])
    await site.dies()
    await accounts.reserve("req_1", [Hold(KEY, 1000, 5), Hold(TEAM, 1000, 1)])
    assert await site.standing() == (0, 35)
    await site.comes_back()
    await accounts.reserve("req_1", [Hold(KEY, 1000, 2)])
    assert await site.standing() == (0, 37)
    assert await site.standing(TEAM) == (0, 1)
    await site.dies()
    assert await site.standing() == (0, 37)
    await accounts.reserve("req_1", [Hold(KEY, 1000, 3)])
    await site.comes_back()
    assert await site.standing() == (0, 40)
    await site.end(accounts, "req_1", {KEY: 9})
    assert await site.standing() == (9, 0)
    assert await site.standing(TEAM) == (0, 0)


async def test_what_is_too_much_to_remember_is_asked_of_the_ledger(site: Site) -> None:
    accounts = await site.process(remembered=3)
    await accounts.reserve("req_0", [Hold(KEY, 1000, 10)])
    await accounts.reserve("req_x", [Hold(KEY, 1000, 10)])
    await site.dies()
    for index in range(1, 8):
        await accounts.reserve(f"req_{index}", [Hold(KEY, 1000, 10)])
    for index in range(7):
        await site.end(accounts, f"req_{index}", {KEY: 1})
    await site.comes_back()
    assert await site.standing() == (7, 20)
    await site.end(accounts, "req_7", {KEY: 1})
    await site.end(accounts, "req_x", {KEY: 1})
    assert await site.standing() == (9, 0)


async def test_the_others_see_what_a_quiet_process_holds(site: Site) -> None:
    quiet, busy = await site.process(), await site.process()
    assert await quiet.reserve("req_1", [Hold(KEY, 100, 60)]) is None
    await site.dies()
    # nobody calls it: it only looks whether all is as it was
    await quiet.try_again()
    assert quiet.away is not None
    assert await busy.reserve("req_2", [Hold(KEY, 100, 60)]) is not None
    assert await busy.reserve("req_3", [Hold(KEY, 100, 40)]) is None


async def test_it_is_told_without_a_call_that_asks(site: Site) -> None:
    accounts = await site.process()
    await accounts.reserve("req_1", [Hold(KEY, 100, 30)])
    await site.dies()
    await site.end(accounts, "req_1", {KEY: 10})
    await accounts.try_again()
    assert accounts.away is not None
    await site.comes_back()
    await accounts.try_again()
    assert accounts.away is None


async def test_a_store_that_is_away_as_well_is_told_and_loses_nothing(site: Site) -> None:
    accounts = await site.process()
    await accounts.reserve("req_1", [Hold(KEY, 100, 30)])
    await site.dies()
    await accounts.reserve("req_2", [Hold(KEY, 100, 30)])
    await site.store.close()
    with pytest.raises(AccountsAway):
        await accounts.reserve("req_3", [Hold(KEY, 100, 30)])
    with pytest.raises(AccountsAway):
        await accounts.standings([KEY])
    # their ends are remembered
    site.clock.advance(1)
    await accounts.settle("req_1", {KEY: 1})
    await accounts.settle("req_2", {KEY: 2})
    await site.store.open()
    await record(site.store, "req_1", {KEY: 1}, int(site.clock() * 1000))
    await record(site.store, "req_2", {KEY: 2}, int(site.clock() * 1000))
    site.clock.advance(1)
    await accounts.try_again()
    assert await site.standing() == (3, 0)
    await site.comes_back()
    await accounts.try_again()
    assert await site.standing() == (3, 0)


async def test_what_a_dead_process_held_is_found_wherever_it_was(site: Site) -> None:
    dead, alive = await site.process(), await site.process()
    await dead.reserve("req_1", [Hold(KEY, 100, 10)])
    await site.dies()
    await dead.reserve("req_2", [Hold(KEY, 100, 20)])
    site.processes.remove(dead)
    with pytest.raises(AccountsAway):
        await alive.held_by("journal-0")
    await site.comes_back()
    await alive.try_again()
    found = dict(await alive.held_by("journal-0"))
    assert found["req_2"] == (KEY,)
    for call_id in found:
        await site.end(alive, call_id, {KEY: 1})
    assert await alive.held_by("journal-0") == []
    assert (await site.standing())[1] == 0


async def test_many_calls_at_once_never_pass_a_budget_while_it_comes_and_goes(site: Site) -> None:
    processes = [await site.process(), await site.process()]
    going, most, served = 0, 0, 0
    done = asyncio.Event()

    async def calls(worker: int) -> None:
        nonlocal going, most, served
        number = 0
        accounts = processes[worker % 2]
        while not done.is_set():
            number += 1
            call_id = f"req_{worker}_{number}"
            if await accounts.reserve(call_id, [Hold(TEAM, 10**6, 100_000)]) is not None:
                await asyncio.sleep(0.005)
                continue
            going += 1
            most = max(most, going)
            await asyncio.sleep(0.002)
            going -= 1
            served += 1
            await site.end(accounts, call_id, {TEAM: 1})

    forgets = type(site.server) is RedisServer
    workers = [asyncio.create_task(calls(worker)) for worker in range(16)]
    try:
        for _ in range(2):
            begun = served
            await until(lambda begun=begun: served > begun + 20)  # type: ignore[misc]
            site.server.kill()
            begun = served
            await until(lambda begun=begun: served > begun + 20)  # type: ignore[misc]
            await site.comes_back()
        begun = served
        await until(lambda: served > begun + 20)
    finally:
        done.set()
        await asyncio.gather(*workers)
    for accounts in processes:
        await accounts.try_again()
    # 16 wanted to: ten at a time may
    assert 5 < most <= 10
    counted, reserved = await site.standing(TEAM)
    assert reserved == 0
    # a Redis that forgets is told by the ledger, in the middle of calls that are being put on record
    assert abs(counted - served) <= (32 if forgets else 0)
