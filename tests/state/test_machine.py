"""The file that the processes of one machine share: damaged, removed, locked, full; and who begins it anew."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router.accounts import Account, AccountsAway, Charge, Hold, Standing
from router.gates import GatesAway, Parallel, Rate
from router.state.holding import EXPIRY, KEPT
from router.state.machine import Machine, MachineAway
from router.state.machine_accounts import MachineAccounts
from router.state.machine_file import VERSION
from router.state.machine_gates import MachineGates
from tests.state.backends import Clock, an_account, until

KEY = an_account()


@contextlib.asynccontextmanager
async def opened(path: Path, patience: float = 1.0) -> AsyncIterator[Machine]:
    machine = Machine(path, patience)
    await machine.open()
    try:
        yield machine
    finally:
        await machine.close()


@contextlib.asynccontextmanager
async def shared(path: Path, patience: float = 1.0) -> AsyncIterator[Machine]:
    """One of two: they count in the file."""
    async with opened(path), opened(path, patience) as machine:
        assert not machine.alone
        yield machine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deltaway.journal" / "shared.db"


def accounts_on(machine: Machine, spent: int = 0, clock: Clock | None = None) -> MachineAccounts:
    async def opening(account: Account) -> int:
        return spent

    return MachineAccounts(machine, opening, "journal-1", clock or Clock())


def in_use(path: Path) -> bool:
    return path.exists()


def lengths(machine_path: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(machine_path)) as connection:
        tables = ("buckets", "places", "inside", "accounts", "held", "late")
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}


async def test_the_first_process_begins_anew_and_others_join(path: Path) -> None:
    async with opened(path) as one:
        assert one.alone
        assert not in_use(path)
        accounts = accounts_on(one)
        await accounts.reserve("req_1", [Hold(KEY, 10, 4)])
        generation = one.generation
        async with opened(path) as two:
            assert not one.alone
            assert one.generation == two.generation == generation
            assert await accounts_on(two).standings([KEY]) == [Standing(KEY, 0, 4)]
            async with opened(path) as three:
                assert three.generation == generation
        # the last one takes all back into memory
        await until(lambda: one.alone)
        assert not in_use(path)
        assert one.generation == generation
        assert await accounts.standings([KEY]) == [Standing(KEY, 0, 4)]
    # nobody is left: what a process that died held binds no one, and the ledger is asked again
    async with opened(path) as later:
        assert later.generation != generation
        assert await accounts_on(later, spent=3).standings([KEY]) == [Standing(KEY, 3, 0)]


async def test_all_that_was_counted_goes_to_the_file_and_back(path: Path) -> None:
    clock, day = Clock(), an_account("tag", "a/b=c:d", "day", "CNY")
    async with opened(path) as one:
        gates, accounts = MachineGates(one, clock), accounts_on(one, spent=2**65, clock=clock)
        rate, place, limit = Rate("rpm:ü\n", 10, 60.0), Parallel("p", 3), 2**66
        await accounts.reserve("req_old", [Hold(KEY, limit, 1)])
        clock.advance(EXPIRY + 100)
        await gates.enter("req_1", [rate], [place])
        await gates.enter("req_2", [rate], [place])
        await accounts.reserve("req_1", [Hold(KEY, limit, 40), Hold(day, limit, 5)])
        await accounts.settle("req_late", {KEY: 100}, at=int(clock() * 1000))

        async def everything() -> object:
            held = {call_id: set(accounts) for call_id, accounts in await accounts.held_by("journal-1")}
            return await accounts.standings([KEY, day]), held, await gates.enter("req_2", [rate], [place])

        before = await everything()
        assert before[0] == [Standing(KEY, 2**65 + 100, 40), Standing(day, 2**65, 5)]  # type: ignore[index]
        assert set(before[1]) == {"req_old", "req_1"}  # type: ignore[index]
        for _ in range(2):
            await gates.leave("req_2", [Rate(rate.key, 10, 60.0, -1)])
            async with opened(path):
                assert not one.alone
                assert await everything() == before
                # told once is told, there and here
                await accounts.settle("req_late", {KEY: 100}, at=int(clock() * 1000))
                await gates.leave("req_2", [Rate(rate.key, 10, 60.0, -1)])
            await until(lambda: one.alone)
            assert await everything() == before
            await accounts.settle("req_late", {KEY: 100}, at=int(clock() * 1000))
        # a call of which nothing was held, told while there are two
        new = [Charge(KEY, 3, int(clock() * 1000))]
        async with opened(path):
            await accounts.settle("req_new", {}, new)
            await accounts.settle("req_new", {}, new)
        await until(lambda: one.alone)
        await accounts.settle("req_new", {}, new)
        assert await accounts.standings([KEY, day]) == [Standing(KEY, 2**65 + 103, 40), Standing(day, 2**65, 5)]
        # what expired can be charged, and what did not expires at its time
        await accounts.settle("req_old", {KEY: 7})
        clock.advance(EXPIRY + 100)
        assert await accounts.standings([KEY]) == [Standing(KEY, 2**65 + 110, 0)]


async def test_calls_go_on_while_processes_come_and_go(path: Path) -> None:
    async with opened(path) as one:
        gates, accounts, done = MachineGates(one), accounts_on(one), asyncio.Event()
        served = 0

        async def calls(worker: int, gates: MachineGates, accounts: MachineAccounts) -> None:
            nonlocal served
            number = 0
            while not done.is_set():
                number += 1
                call_id = f"req_{worker}_{number}"
                passage = await gates.enter(call_id, [], [Parallel("p", 3)])
                refusal = await accounts.reserve(call_id, [Hold(KEY, 10**9, 10**8)])
                await asyncio.sleep(0.001)
                if refusal is None:
                    await accounts.settle(call_id, {KEY: 1})
                    served += 1
                if passage.refused_by is None:
                    await gates.leave(call_id)

        workers = [asyncio.create_task(calls(n, gates, accounts)) for n in range(8)]
        for _ in range(2):
            async with opened(path) as two:
                more = asyncio.create_task(calls(100 + served, MachineGates(two), accounts_on(two)))
                begun = served
                await until(lambda begun=begun: served > begun + 100)  # type: ignore[misc]
                done.set()
                await more
                await asyncio.gather(*workers)
                done.clear()
                workers = [asyncio.create_task(calls(served + n, gates, accounts)) for n in range(8)]
            await until(lambda: one.alone)
        done.set()
        await asyncio.gather(*workers)
        assert await accounts.standings([KEY]) == [Standing(KEY, served, 0)]
        assert (await gates.enter("req_x", [], [Parallel("p", 3)])).remaining == (2,)


async def test_a_process_that_does_not_share_is_told_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.state.machine._JOIN", 0.1)
    async with opened(path) as one:
        one._looking.cancel()  # type: ignore[union-attr]
        with pytest.raises(MachineAway, match="does not share"):
            await Machine(path).open()
        # it goes on alone, and so does the next one
        assert one.alone
    async with opened(path) as later:
        assert later.alone


async def test_only_its_owner_may_read_the_file(path: Path) -> None:
    async with shared(path) as machine:
        await accounts_on(machine).reserve("req_1", [Hold(KEY, 10, 4)])
        for each in path.parent.iterdir():
            assert stat.S_IMODE(each.stat().st_mode) == 0o600, each


async def test_its_locks_are_not_taken_for_those_of_journals(path: Path) -> None:
    async with opened(path):
        assert not list(path.parent.glob("*.lock"))


@pytest.mark.parametrize("damage", ["text", "empty", "half", "other program", "old version", "missing table"])
async def test_a_file_of_no_use_is_replaced_while_others_use_it(path: Path, damage: str) -> None:
    clock = Clock()
    async with shared(path) as one:
        accounts = accounts_on(one, spent=3, clock=clock)
        await accounts.reserve("req_1", [Hold(KEY, 10, 4)])
        generation = one.generation
        damaged(path, damage)
        async with opened(path) as two:
            assert two.generation != generation
            assert await accounts_on(two, spent=5, clock=clock).standings([KEY]) == [Standing(KEY, 5, 0)]
            # who had the old one open finds the new one
            assert await accounts.standings([KEY]) == [Standing(KEY, 5, 0)]
            assert one.generation == two.generation
            # what it had reserved is lost, and what it spends is not: it was not in the ledger when that was asked
            clock.advance(1)
            await accounts.settle("req_1", {KEY: 2})
            await accounts.settle("req_1", {KEY: 2})
            assert await accounts.standings([KEY]) == [Standing(KEY, 7, 0)]
        await accounts.reserve("req_2", [Hold(KEY, 10, 1)])
        assert lengths(path)["held"] == 1


def damaged(path: Path, damage: str) -> None:
    if damage in ("text", "empty", "half"):
        whole = path.read_bytes()
        for ending in ("-wal", "-shm"):
            Path(f"{path}{ending}").unlink()
        path.unlink()
        path.write_bytes({"text": b"not a database " * 99, "empty": b"", "half": whole[: len(whole) // 2]}[damage])
        return
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if damage == "missing table":
            connection.execute("DROP TABLE held")
        else:
            connection.execute("PRAGMA user_version = 0")
            connection.execute(f"PRAGMA application_id = {1 if damage == 'other program' else 0x44574159}")


def overwrite(path: Path) -> None:
    """All but the first page, which says that it is a database."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * (size - 1024))


async def test_a_file_that_becomes_corrupt_under_our_hands_is_replaced(path: Path) -> None:
    async with shared(path) as one, opened(path) as two:
        accounts, others = accounts_on(one, spent=3), accounts_on(two, spent=3)
        for index in range(50):
            await accounts.reserve(f"req_{index}", [Hold(KEY, 10**6, 4)])
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        overwrite(path)
        assert await accounts.standings([KEY]) == [Standing(KEY, 3, 0)]
        assert await others.standings([KEY]) == [Standing(KEY, 3, 0)]
        assert one.generation == two.generation


async def test_a_file_that_is_removed_is_made_again(path: Path) -> None:
    async with shared(path) as one, opened(path) as two:
        gates, others = MachineGates(one), MachineGates(two)
        place = [Parallel("p", 1)]
        await gates.enter("req_1", [], place)
        os.unlink(path)
        assert (await gates.enter("req_2", [], place)).refused_by is None
        assert (await others.enter("req_3", [], place)).refused_by == "p"
        await gates.leave("req_1")
        await gates.leave("req_2")
        assert (await others.enter("req_3", [], place)).refused_by is None


async def test_closing_a_connection_to_the_old_file_leaves_the_new_one_whole(path: Path) -> None:
    async with shared(path) as one:
        await accounts_on(one).reserve("req_1", [Hold(KEY, 10, 1)])
        damaged(path, "text")
        async with opened(path) as two:
            await accounts_on(two).reserve("req_2", [Hold(KEY, 10, 2)])
            await one.close()
            assert os.stat(f"{path}-wal").st_size > 0
            async with opened(path) as three:
                assert await accounts_on(three).standings([KEY]) == [Standing(KEY, 0, 2)]


async def test_a_file_of_a_newer_version_is_left_to_those_who_use_it(path: Path) -> None:
    async with shared(path):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")
        with pytest.raises(MachineAway, match="newer version"):
            await Machine(path).open()
    # nobody uses it any more
    async with shared(path) as later:
        await accounts_on(later).reserve("req_1", [Hold(KEY, 10, 1)])


async def test_a_lock_that_is_never_given_back_is_told_and_then_not_waited_for(path: Path) -> None:
    async with shared(path, patience=0.05) as machine:
        gates, accounts = MachineGates(machine), accounts_on(machine)
        await accounts.reserve("req_1", [Hold(KEY, 10, 1)])
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(GatesAway, match="locked"):
                await gates.enter("req_1", [Rate("r", 1, 60.0)], [])
            machine._patience = 3600
            async with asyncio.timeout(10):
                with pytest.raises(AccountsAway, match="locked"):
                    await accounts.standings([KEY])
            other.execute("ROLLBACK")
        machine._away_until = 0.0
        assert await accounts.standings([KEY]) == [Standing(KEY, 0, 1)]


async def test_a_lock_of_another_process_is_waited_for(path: Path) -> None:
    async with shared(path, patience=30) as machine:
        gates = MachineGates(machine)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            entering = asyncio.create_task(gates.enter("req_1", [Rate("r", 1, 60.0)], []))
            await asyncio.sleep(0.05)
            assert not entering.done()
            other.execute("ROLLBACK")
        assert (await entering).refused_by is None


async def test_what_is_needed_no_more_is_removed(path: Path) -> None:
    clock = Clock()
    async with shared(path) as machine:
        gates, accounts = MachineGates(machine, clock), accounts_on(machine, clock=clock)
        for index in range(20):
            await gates.enter(f"req_{index}", [Rate(f"rpm:{index}", 1, 60.0)], [Parallel(f"p:{index}", 1)])
            day = an_account("key", f"dw-{index}", "day")
            await accounts.reserve(f"req_{index}", [Hold(day, 10, 1)])
        assert lengths(path) == {"buckets": 20, "places": 20, "inside": 20, "accounts": 20, "held": 20, "late": 0}
        clock.advance(EXPIRY + KEPT)
        # expired first, and removed with the next look
        for _ in range(2):
            await gates.enter("req_x", [], [])
            await gates.leave("req_x")
            await accounts.standings([])
            clock.advance(86_400)
        assert lengths(path) == dict.fromkeys(("buckets", "places", "inside", "accounts", "held", "late"), 0)


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineAway, match="cannot be opened"):
        await Machine(tmp_path / "file" / "shared.db").open()


# -- processes -------------------------------------------------------------------------------------------------------

JOINS = """
import asyncio, sys
from pathlib import Path
from router.accounts import Hold, account
from router.gates import Parallel
from router.state.machine import Machine
from router.state.machine_accounts import MachineAccounts
from router.state.machine_gates import MachineGates

async def main(path, name):
    machine = Machine(Path(path))
    await machine.open()
    async def opening(account): return 0
    accounts, gates = MachineAccounts(machine, opening, name), MachineGates(machine)
    key = account("key", "dw-1", "total", "USD", 0)
    await accounts.reserve(name, [Hold(key, 10**9, 1)])
    assert (await gates.enter(name, [], [Parallel("p", 100)])).refused_by is None
    print(machine.generation, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    standing, = await accounts.standings([key])
    print(standing.reserved, flush=True)
    await machine.close()

asyncio.run(main(*sys.argv[1:]))
"""


def process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", JOINS, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


def test_processes_that_start_at_once_on_a_ruined_file_share_one_new_file(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"ruin" * 1000)
    Path(f"{path}-wal").write_bytes(b"ruin" * 1000)
    processes = [process(str(path), f"journal-{n}") for n in range(6)]
    try:
        generations = {each.stdout.readline().strip() for each in processes if each.stdout}
        assert len(generations) == 1, generations
        answers = [each.communicate("")[0].strip() for each in processes]
        assert answers == ["6"] * 6
        assert {each.returncode for each in processes} == {0}
    finally:
        for each in processes:
            each.kill()
            each.communicate()


async def test_a_process_that_is_killed_leaves_the_file_whole_and_its_holds_to_be_found(path: Path) -> None:
    async with shared(path) as machine:
        accounts = accounts_on(machine)
        other = process(str(path), "journal-2")
        try:
            assert other.stdout is not None
            line = await asyncio.to_thread(other.stdout.readline)
            assert line.strip() == machine.generation
            os.kill(other.pid, signal.SIGKILL)
            await asyncio.to_thread(other.wait)
        finally:
            other.kill()
            other.communicate()
        ((call_id, (held,)),) = await accounts.held_by("journal-2")
        assert (call_id, held.subject) == ("journal-2", "dw-1")
        await accounts.settle(call_id, {held: 5})
        assert await accounts.standings([held]) == [Standing(held, 5, 0)]


async def test_a_process_that_is_stopped_in_a_transaction_does_not_stop_us_for_ever(path: Path) -> None:
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    async with shared(path, patience=0.1) as machine:
        gates = MachineGates(machine)
        other = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert other.stdout is not None
            await asyncio.to_thread(other.stdout.readline)
            with pytest.raises(GatesAway):
                await gates.enter("req_1", [], [])
        finally:
            other.kill()
            other.communicate()

        async def passes() -> bool:
            with contextlib.suppress(GatesAway):
                return (await gates.enter("req_1", [], [])).refused_by is None
            return False

        async with asyncio.timeout(20):
            while not await passes():
                await asyncio.sleep(0.05)
        await until(lambda: machine.generation != "")
