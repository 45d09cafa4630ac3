"""Where limits and budgets can be counted, for tests that hold for all of them: time is the test's."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from router.accounts import Account, Accounts, Charge, account
from router.gates import Gates
from router.ledger.rows import AttemptRow, Batch, CallRow, Closed, Labels, Opened, Settled
from router.state.ledger_accounts import LedgerAccounts
from router.state.machine import Machine
from router.state.machine_accounts import MachineAccounts
from router.state.machine_gates import MachineGates
from router.state.memory_accounts import MemoryAccounts
from router.state.memory_gates import MemoryGates
from router.state.redis import Redis
from router.state.redis_accounts import RedisAccounts
from router.state.redis_gates import RedisGates
from router.store.ledger import bring_in
from router.store.store import Store
from support.stores import empty_store

REDIS = "redis://127.0.0.1:6379/0"
BEGIN = 1_794_830_400.0
"""2026-11-16 12:00 UTC."""

memory = pytest.param("memory", id="memory")
alone = pytest.param("alone", id="machine-alone")
"""Views come later: then it is alone no more."""
machine = pytest.param("machine", id="machine")
redis = pytest.param("redis", id="redis", marks=pytest.mark.needs("redis"))
ledger = pytest.param("ledger", id="ledger")
postgres = pytest.param("postgres", id="ledger-postgres", marks=pytest.mark.needs("postgres"))


class Clock:
    def __init__(self, now: float = BEGIN) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@contextlib.asynccontextmanager
async def redis_of_its_own(url: str = REDIS) -> AsyncIterator[Callable[[], Awaitable[Redis]]]:
    """Connections to a part of Redis that is nobody else's, removed afterwards."""
    import redis.asyncio

    prefix = f"test-{secrets.token_hex(8)}"
    opened: list[Redis] = []

    async def another() -> Redis:
        opened.append(Redis(url, prefix))
        await opened[-1].open()
        assert opened[-1].away is None
        return opened[-1]

    another.prefix = prefix  # type: ignore[attr-defined]
    try:
        yield another
    finally:
        for each in opened:
            await each.close()
        async with redis.asyncio.Redis.from_url(url, protocol=2) as client:
            async for key in client.scan_iter(f"{{{prefix}}}*"):
                await client.delete(key)


async def a_machine(stack: contextlib.AsyncExitStack, directory: Path) -> Machine:
    machine = Machine(directory / "shared.db")
    await machine.open()
    stack.push_async_callback(machine.close)
    return machine


# -- limits ----------------------------------------------------------------------------------------------------------


class GateHouse:
    """`view` gives the gates as one more process sees them; in memory, always the same. Nobody renews."""

    def __init__(self, clock: Clock, view: Callable[[], Awaitable[Gates]]) -> None:
        self.clock = clock
        self.view = view


@contextlib.asynccontextmanager
async def gate_house(backend: str, directory: Path, expiry: float = 3600.0) -> AsyncIterator[GateHouse]:
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:
        if backend == "memory":
            gates = MemoryGates(clock)

            async def view() -> Gates:
                return gates
        elif backend in ("machine", "alone"):
            if backend == "machine":
                await a_machine(stack, directory)

            async def view() -> Gates:
                return MachineGates(await a_machine(stack, directory), clock, expiry)
        else:
            another = await stack.enter_async_context(redis_of_its_own())

            async def view() -> Gates:
                return RedisGates(await another(), clock, expiry)

        yield GateHouse(clock, view)


# -- budgets ---------------------------------------------------------------------------------------------------------


class Bank:
    """`view` gives the accounts as the process of that name sees them; in memory there is one process."""

    def __init__(self, clock: Clock, shared: bool) -> None:
        self.clock = clock
        self.shared = shared
        self.told: dict[Account, int] = {}
        """What the ledger says was spent, if it is not the bank itself."""
        self.asked: list[Account] = []
        self.view: Callable[[str], Awaitable[Accounts]]
        self.store: Store | None = None

    async def opening(self, account: Account) -> int:
        self.asked.append(account)
        await asyncio.sleep(0)
        return self.told.get(account, 0)

    async def spent_before(self, account: Account, nano: int) -> None:
        """The ledger knows of it, and nobody has seen the account yet."""
        self.told[account] = nano
        if self.store is not None:
            await record(self.store, f"before-{secrets.token_hex(4)}", {account: nano}, int(self.clock() * 1000))

    async def settle(
        self, accounts: Accounts, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()
    ) -> None:
        """As the core does: what was spent is on record before a budget hears of it."""
        spent = dict(charges)
        for charge in late:
            spent[charge.account] = spent.get(charge.account, 0) + charge.amount
        if self.store is not None:
            await record(self.store, call_id, spent, int(self.clock() * 1000))
        for each, nano in spent.items():
            self.told[each] = self.told.get(each, 0) + nano
        await accounts.settle(call_id, charges, late)


def same_currency(nano: int, currency: str, to: str, at: int) -> int | None:
    raise AssertionError(f"{currency} is not converted here")


@contextlib.asynccontextmanager
async def bank(backend: str, directory: Path, expiry: float = 3600.0) -> AsyncIterator[Bank]:
    clock = Clock()
    found = Bank(clock, backend != "memory")
    async with contextlib.AsyncExitStack() as stack:
        if backend == "memory":
            only: list[Accounts] = []

            async def view(owner: str) -> Accounts:
                if not only:
                    only.append(MemoryAccounts(found.opening, owner, clock, expiry))
                return only[0]
        elif backend in ("machine", "alone"):
            if backend == "machine":
                await a_machine(stack, directory)

            async def view(owner: str) -> Accounts:
                return MachineAccounts(await a_machine(stack, directory), found.opening, owner, clock, expiry)
        elif backend == "redis":
            another = await stack.enter_async_context(redis_of_its_own())

            async def view(owner: str) -> Accounts:
                return RedisAccounts(await another(), found.opening, owner, clock, expiry, own_time=True)
        else:
            store = await stack.enter_async_context(
                empty_store("postgres" if backend == "postgres" else "sqlite", directory)
            )
            found.store = store

            async def view(owner: str) -> Accounts:
                return LedgerAccounts(store, same_currency, owner, clock, expiry)

        found.view = view
        yield found


def an_account(kind: Any = "key", subject: str = "dw-ab12cd34", per: Any = "month", currency: str = "USD") -> Account:
    return account(kind, subject, per, currency, int(BEGIN * 1000))


def labels_of(account: Account) -> Labels:
    if account.kind == "tag":
        name, _, value = account.subject.partition("=")
        return Labels("mock/echo", tags={name: value})
    return Labels("mock/echo", **{account.kind: account.subject})


async def record(store: Store, call_id: str, charges: Mapping[Account, int], at: int, *, ended: bool = True) -> None:
    """A call of one attempt for each account, as the ledger's writer brings it in."""
    batch = Batch(f"journal-of-{call_id}")
    call = CallRow(call_id, at, Labels("mock/echo"), "openai.chat", False, batch.journal)
    records: list[Any] = []
    for n, (charged, nano) in enumerate(charges.items(), 1):
        attempt = AttemptRow(call_id, n, at, labels_of(charged), "mock", "echo", batch.journal)
        records.append(Opened(attempt, call if n == 1 else None))
        settled = AttemptRow(
            *(call_id, n, at, labels_of(charged), "mock", "echo", batch.journal),
            settled_at=at,
            outcome="finished",
            cost=nano,
            currency=charged.currency,
            price="mock/echo@2026-01-01",
        )
        records.append(Settled(settled))
    if ended:
        records.append(
            Closed(
                CallRow(
                    *(call_id, at, Labels("mock/echo"), "openai.chat", False, batch.journal),
                    ended_at=at,
                    outcome="finished",
                )
            )
        )
    for position, each in enumerate(records, 1):
        batch.add(position, each)
    await bring_in(store, batch, at)


# -- servers that are ended --------------------------------------------------------------------------------------------


def free_port() -> int:
    """One whose second, 10,000 higher, is free as well: there the nodes of a cluster listen for each other."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 10_000))
                return port


class RedisServer:
    """A Redis of the test's own, which may be stopped, killed and started again. It keeps nothing by itself."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._directory.mkdir(exist_ok=True)
        self.process = subprocess.Popen(  # noqa: ASYNC220
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)),
                *("--save", "", "--appendonly", "no", *self._options),
            ],
            stdout=subprocess.DEVNULL,
        )
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    await writer.wait_closed()
                    return
                assert self.process.poll() is None, "redis-server did not start"
                await asyncio.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.asynccontextmanager
async def redis_server(directory: Path, *options: str) -> AsyncIterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("not on this machine: redis-server")
    server = RedisServer(directory, *options)
    try:
        await server.start()
        yield server
    finally:
        server.kill()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
