"""Several processes count in one place: together they never pass a limit or a budget."""

import asyncio
import contextlib
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.stores import postgres_database, sqlite_url
from tests.state.backends import ledger, machine, postgres, redis, redis_of_its_own

ROOT = Path(__file__).resolve().parents[2]
ONE = """
import asyncio, sys
from pathlib import Path
from router.accounts import Hold, account
from router.gates import Parallel, Rate
from router.settings import StoreUrl
from router.state.ledger_accounts import LedgerAccounts
from router.state.machine import Machine
from router.state.machine_accounts import MachineAccounts
from router.state.machine_gates import MachineGates
from router.state.redis import Redis
from router.state.redis_accounts import RedisAccounts
from router.state.redis_gates import RedisGates
from router.store.store import Store

KEY, TEAM = account("key", "dw-1", "total", "USD", 0), account("team", "a", "total", "USD", 0)

async def opening(account):
    return 3

async def said(*words):
    print(*words, flush=True)
    await asyncio.to_thread(sys.stdin.readline)

async def main(kind, place, name):
    gates = None
    if kind == "machine":
        link = Machine(Path(place))
        await link.open()
        gates, accounts = MachineGates(link), MachineAccounts(link, opening, name)
    elif kind == "redis":
        link = Redis("redis://127.0.0.1:6379/0", place, patience=20)
        await link.open()
        gates, accounts = RedisGates(link), RedisAccounts(link, opening, name)
    else:
        link = Store(StoreUrl.parse(place))
        await link.open()
        accounts = LedgerAccounts(link, lambda *_: None, name)
    await said("ready")
    ids = [f"{name}-{n}" for n in range(50)]
    refusals = await asyncio.gather(*(accounts.reserve(id, [Hold(KEY, 103, 10), Hold(TEAM, 10**9, 1)]) for id in ids))
    passed = [id for id, refusal in zip(ids, refusals) if refusal is None]
    inside = 0
    if gates is not None:
        rates, places = [Rate("rpm:a", 30, 86400.0)], [Parallel("parallel:a", 7)]
        passages = await asyncio.gather(*(gates.enter(id, rates, places) for id in ids))
        inside = sum(passage.refused_by is None for passage in passages)
    await said(len(passed), inside)
    await asyncio.gather(*(accounts.settle(id, {KEY: 2}) for id in passed))
    if gates is not None:
        await asyncio.gather(*(gates.leave(id) for id in ids))
    await said("settled")
    standings = await accounts.standings([KEY, TEAM])
    print(*(standing.spent for standing in standings), *(standing.reserved for standing in standings), flush=True)
    await link.close()

asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.asynccontextmanager
async def place_for(kind: str, directory: Path) -> AsyncIterator[str]:
    if kind == "machine":
        yield str(directory / "shared.db")
    elif kind == "redis":
        async with redis_of_its_own() as another:
            yield another.prefix  # type: ignore[attr-defined]
    elif kind == "ledger":
        yield str(sqlite_url(directory))
    else:
        async with postgres_database() as url:
            yield str(url)


async def step(processes: list[subprocess.Popen[str]]) -> list[list[str]]:
    """What each has to say; then all go on."""

    def one(process: subprocess.Popen[str]) -> list[str]:
        assert process.stdout is not None
        return process.stdout.readline().split()

    answers = [await asyncio.to_thread(one, process) for process in processes]
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.flush()
    return answers


@pytest.mark.parametrize("kind", [machine, redis, ledger, postgres])
async def test_processes_share_limits_and_budgets(kind: str, tmp_path: Path) -> None:
    async with place_for(kind, tmp_path) as place:
        processes = [
            subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-c", ONE, kind, place, f"journal-{n}-{secrets.token_hex(2)}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for n in range(2)
        ]
        try:
            assert await step(processes) == [["ready"]] * 2
            counts = [(int(passed), int(inside)) for passed, inside in await step(processes)]
            begun = 0 if kind in ("ledger", "postgres") else 3
            assert sum(passed for passed, _ in counts) == 10
            if begun:
                assert sum(inside for _, inside in counts) == 7
            assert await step(processes) == [["settled"]] * 2
            spent = begun + 20 if begun else 0
            # in the ledger the charges wait for the rows of the calls
            reserved = 0 if begun else 20
            assert await step(processes) == [[str(spent), str(begun), str(reserved), "0"]] * 2
        finally:
            for process in processes:
                process.kill()
                process.communicate()
