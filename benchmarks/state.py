"""`python -m benchmarks.state [--redis URL] [--postgres URL]`: what a call pays for its limits and its budgets.

A call enters gates of two rates and a place and leaves with a correction; it reserves of two accounts and settles. One
call after the other in one process; the best of several rounds, wall time and CPU of this process in microseconds.
"""

import argparse
import asyncio
import contextlib
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from router.accounts import Account, Accounts, Hold, account
from router.gates import Gates, Parallel, Rate
from router.settings import StoreUrl
from router.state.fallback_accounts import FallbackAccounts
from router.state.ledger_accounts import LedgerAccounts
from router.state.machine import Machine
from router.state.machine_accounts import MachineAccounts
from router.state.machine_gates import MachineGates
from router.state.memory_accounts import MemoryAccounts
from router.state.memory_gates import MemoryGates
from router.state.redis import Redis
from router.state.redis_accounts import RedisAccounts
from router.state.redis_gates import RedisGates
from router.store.store import Store

NOW = int(time.time() * 1000)
KEY, TEAM = account("key", "dw-ab12cd34", "month", "USD", NOW), account("team", "research", "day", "USD", NOW)
HOLDS = (Hold(KEY, 10**18, 100), Hold(TEAM, 10**18, 100))
RATES = (Rate("rpm:key:dw-ab12cd34", 10**9, 60.0), Rate("tpm:key:dw-ab12cd34", 10**9, 60.0, 50))
PLACES = (Parallel("parallel:key:dw-ab12cd34", 10),)
CORRECTIONS = (Rate("tpm:key:dw-ab12cd34", 10**9, 60.0, -7),)


async def opening(account: Account) -> int:
    return 0


async def measure(name: str, rounds: int, count: int, call: Callable[[str], Awaitable[None]]) -> None:
    best = [float("inf"), float("inf")]
    await call("req_0")
    for turn in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        for index in range(count):
            await call(f"req_{turn}_{index}")
        took = time.perf_counter() - wall, time.process_time() - cpu
        best = [min(before, now / count * 1e6) for before, now in zip(best, took, strict=True)]
    print(f"{name:52}{best[0]:10.1f}{best[1]:10.1f}")


async def limits(name: str, gates: Gates, rounds: int, count: int) -> None:
    async def call(call_id: str) -> None:
        assert (await gates.enter(call_id, RATES, PLACES)).refused_by is None
        await gates.leave(call_id, CORRECTIONS)

    await measure(f"{name}: enter, leave", rounds, count, call)


async def budgets(name: str, accounts: Accounts, rounds: int, count: int) -> None:
    async def call(call_id: str) -> None:
        assert await accounts.reserve(call_id, HOLDS) is None
        await accounts.settle(call_id, {KEY: 50, TEAM: 50})

    await measure(f"{name}: reserve, settle", rounds, count, call)


async def on_a_machine(directory: Path, ledger: LedgerAccounts) -> None:
    machines = [Machine(directory / "shared.db") for _ in range(2)]
    await machines[0].open()
    gates = MachineGates(machines[0])
    accounts = FallbackAccounts(MachineAccounts(machines[0], opening, "jrn_1"), ledger)
    await limits("machine, alone", gates, 15, 1000)
    await budgets("machine, alone", accounts, 15, 1000)
    await machines[1].open()
    await limits("machine, shared", gates, 15, 300)
    await budgets("machine, shared", accounts, 15, 300)
    for machine in machines:
        await machine.close()


async def on_redis(url: str, ledger: LedgerAccounts) -> None:
    redis = Redis(url, f"benchmark-{uuid.uuid4().hex[:8]}")
    await redis.open()
    if redis.away is not None:
        raise SystemExit(redis.away)
    gates, accounts = RedisGates(redis), FallbackAccounts(RedisAccounts(redis, opening, "jrn_1"), ledger)
    await limits("redis", gates, 10, 200)
    await budgets("redis", accounts, 10, 200)

    async def fifty(call_id: str) -> None:
        async def one(number: int) -> None:
            assert await accounts.reserve(f"{call_id}_{number}", HOLDS) is None
            await accounts.settle(f"{call_id}_{number}", {KEY: 50, TEAM: 50})

        await asyncio.gather(*map(one, range(50)))

    await measure("redis: 50 at once reserve, settle", 10, 4, fifty)
    await redis.close()


async def main(redis: str | None, postgres: str | None) -> None:
    print(f"{'microseconds for both':52}{'wall':>10}{'CPU':>10}")
    await limits("memory", MemoryGates(), 15, 1000)
    await budgets("memory", MemoryAccounts(opening, "jrn_1"), 15, 1000)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = Store(StoreUrl.parse(f"sqlite:///{directory / 'deltaway.db'}"))
        await store.open()
        stack.push_async_callback(store.close)
        ledger = LedgerAccounts(store, lambda *_: None, "jrn_1")
        await on_a_machine(directory, ledger)
        if redis is not None:
            await on_redis(redis, ledger)
        await budgets("ledger, SQLite", ledger, 5, 50)
        if postgres is not None:
            other = Store(StoreUrl.parse(postgres))
            await other.open()
            stack.push_async_callback(other.close)
            await budgets("ledger, Postgres", LedgerAccounts(other, lambda *_: None, "jrn_1"), 5, 50)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--postgres", metavar="URL", help="an empty database")
    arguments = parser.parse_args()
    uvloop.run(main(arguments.redis, arguments.postgres))
