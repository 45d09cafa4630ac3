"""The stream log in a file of the machine: processes that die, files that are damaged, locked or full, what stays."""

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from state.backends import Clock

from router.streams.alive import Alive
from router.streams.log import Appended, LogAway, StreamHead, known_for
from router.streams.machine_log import FILE, MachineLog

ROOT = Path(__file__).resolve().parents[2]
ID = "strm_01M82WFKZC2FRMZ0AEN3SQ0GRC"
SECRET = "the-secret-that-was-said"
CHILD = """
import asyncio, sys
from pathlib import Path
from router.streams.log import Appended, StreamHead
from router.streams.machine_log import MachineLog

ID = "strm_01M82WFKZC2FRMZ0AEN3SQ0GRC"

async def main():
    log = MachineLog(Path(sys.argv[1]), 600, 1 << 20)
    async with log.lifespan():
        await log.begin(StreamHead(
            id=ID, owner="", writer="jrn_child", request_id="req_1", dialect="openai.chat", model="m", created_at=1))
        for number in range(1, 101):
            await log.append("jrn_child", [Appended(ID, number, (b"data: %d\\n\\n" % number,))])
        print("appended", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""

DIES_REMOVING = """
import asyncio, os, signal, sys
from pathlib import Path
from router.streams.log import Appended, StreamHead
from router.streams.machine_log import MachineLog

class Dies(MachineLog):
    def _remove(self, connection, stream):
        self._forget = lambda connection: os.kill(os.getpid(), signal.SIGKILL)
        super()._remove(connection, stream)

async def main():
    log = Dies(Path(sys.argv[1]), 600, 1 << 20)
    async with log.lifespan():
        await log.begin(StreamHead(
            id="s", owner="", writer="jrn_child", request_id="req_1", dialect="openai.chat", model="m", created_at=1))
        await log.append("jrn_child", [Appended("s", 1, (b"data: %s\\n\\n" % sys.argv[2].encode(),))])
        await log.remove("s")

asyncio.run(main())
"""
"""Killed when the removal is written, and the file is not yet tidied."""


def head(stream: str = ID, writer: str = "jrn_a") -> StreamHead:
    return StreamHead(
        id=stream, owner="", writer=writer, request_id="req_1", dialect="openai.chat", model="m", created_at=1
    )


def block(text: object) -> bytes:
    return f"data: {text}\n\n".encode()


def a_log(directory: Path, clock: Clock | None = None, keep: float = 600.0, patience: float = 1.0) -> MachineLog:
    return MachineLog(directory / FILE, keep, 1 << 20, clock or Clock(), patience)


@asynccontextmanager
async def written(directory: Path, clock: Clock | None = None, patience: float = 1.0) -> AsyncIterator[MachineLog]:
    """A log with a stream in it."""
    log = a_log(directory, clock, patience=patience)
    async with log.lifespan():
        await log.begin(head())
        await log.append("jrn_a", [Appended(ID, 1, (block(SECRET), block(2)))])
        yield log


def bytes_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir())


def files(directory: Path, pattern: str = "*") -> list[Path]:
    return list(directory.glob(pattern))


def spoil(file: Path) -> None:
    """All but its first page."""
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (file.stat().st_size - 4096))


# -- processes that end ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_child(directory: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A process that has appended a hundred blocks, and waits."""
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", CHILD, str(directory / FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        try:
            assert child.stdout is not None
            assert await asyncio.to_thread(child.stdout.readline) == b"appended\n"
            yield child
        finally:
            child.kill()


async def test_a_process_that_was_killed_is_dead_at_once_and_what_it_appended_is_there(tmp_path: Path) -> None:
    async with a_child(tmp_path) as child:
        log = MachineLog(tmp_path / FILE, 600, 1 << 20)
        async with log.lifespan():
            assert await log.living("jrn_child")
            assert await log.living("jrn_child"), "to look whether it lives takes nothing from it"
            child.kill()
            child.wait()
            assert not await log.living("jrn_child")
            found = await log.read(ID, 0)
            assert found is not None
            assert found.blocks == tuple(block(number) for number in range(1, 101))
            assert found.ended is None
            await log.seal(ID, block("end"), "interrupted")
            found = await log.read(ID, 100)
            assert found is not None
            assert (found.blocks, found.ended) == ((block("end"),), "interrupted")
    assert not files(tmp_path, "*.alive")


async def test_a_process_that_leaves_is_dead_at_once(tmp_path: Path) -> None:
    async with a_child(tmp_path) as child:
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.wait(20) == 0
        log = MachineLog(tmp_path / FILE, 600, 1 << 20)
        async with log.lifespan():
            assert not await log.living("jrn_child")
            assert await log.read(ID, 0) is not None


async def test_the_file_outlives_all_who_use_it(tmp_path: Path) -> None:
    clock = Clock()
    async with written(tmp_path, clock) as log:
        await log.append("jrn_a", [Appended(ID, 3, (), "finished")])
        await log.claim("", "k", ID, "f")
    async with (again := a_log(tmp_path, clock)).lifespan():
        found = await again.read(ID, 1)
        assert found is not None
        assert (found.blocks, found.ended) == ((block(2),), "finished")
        assert not (await again.claim("", "k", "strm_other", "g")).fresh


def test_a_name_is_held_by_one_and_whoever_looks_does_not_disturb_it(tmp_path: Path) -> None:
    one, other = Alive(tmp_path), Alive(tmp_path)
    assert not other.lives("jrn_a")
    one.hold("jrn_a")
    one.hold("jrn_a")
    assert one.lives("jrn_a")
    assert other.lives("jrn_a")
    other.hold("jrn_a")
    other.release()
    assert other.lives("jrn_a"), "it was never its own"
    other.clear()
    assert other.lives("jrn_a")
    (tmp_path / "jrn_a.alive").unlink()
    assert not other.lives("jrn_a")
    one.hold("jrn_a")
    assert other.lives("jrn_a"), "the file was removed, and is made again"
    (tmp_path / "jrn_dead.alive").touch()
    other.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jrn_a.alive"]
    one.release()
    assert not list(tmp_path.iterdir())


async def test_with_a_short_time_to_keep_a_living_process_loses_nothing(tmp_path: Path) -> None:
    clock = Clock()
    log, other = a_log(tmp_path, clock, keep=2), a_log(tmp_path, clock, keep=2)
    async with log.lifespan(), other.lifespan():
        await log.begin(head())
        await log.append("jrn_a", [Appended(ID, 1, (block(1),))])
        clock.advance(5)
        found = await other.read(ID, 0)
        assert found is not None
        assert found.blocks == (block(1),)
        assert not (await log.append("jrn_a", [Appended(ID, 2, (block(2),))])).lost


# -- what stays ------------------------------------------------------------------------------------------------------


async def test_of_what_was_removed_no_byte_stays_in_any_file(tmp_path: Path) -> None:
    async with written(tmp_path) as log, (other := a_log(tmp_path)).lifespan():
        assert await other.read(ID, 0) is not None
        assert SECRET.encode() in bytes_of(tmp_path)
        await other.remove(ID)
        assert SECRET.encode() not in bytes_of(tmp_path)
        assert await log.read(ID, 0) is None


async def test_of_what_outlived_its_time_no_byte_stays_in_any_file(tmp_path: Path) -> None:
    clock = Clock()
    async with written(tmp_path, clock) as log:
        await log.claim("", "k", ID, "2fd4e1c67a2d")
        await log.claim("", "never", "strm_never", "2fd4e1c67a2d")
        for number in range(250):
            await log.begin(head(f"strm_{number}"))
            ended = Appended(f"strm_{number}", 1, (block(f"{SECRET} {number}"),), "finished")
            await log.append("jrn_a", [ended])
        clock.advance(600)
        await log.sweep()
        data = bytes_of(tmp_path)
        assert SECRET.encode() not in data
        assert b"2fd4e1c67a2d" not in data
        assert b"strm_249" in data, "that there was one is known"
        # also of the stream that never ended
        found = await log.read(ID, 0)
        assert found is not None
        assert found.expired
        clock.advance(known_for(600))
        await log.sweep()
        data = bytes_of(tmp_path)
        assert b"strm_" not in data
        assert b"jrn_a" not in data


async def test_what_a_process_was_killed_over_removing_is_gone_when_the_file_is_opened_again(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", DIES_REMOVING, str(tmp_path / FILE), SECRET]
    died = await asyncio.to_thread(subprocess.run, arguments, cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert SECRET.encode() in bytes_of(tmp_path)
    async with (log := a_log(tmp_path)).lifespan():
        await log.sweep()
        assert await log.read("s", 0) is None
        assert SECRET.encode() not in bytes_of(tmp_path)


async def test_what_is_there_when_it_is_opened_is_swept(tmp_path: Path) -> None:
    clock = Clock()
    async with written(tmp_path, clock) as log:
        await log.append("jrn_a", [Appended(ID, 3, (), "finished")])
    (tmp_path / "jrn_dead.alive").touch()
    clock.advance(600)
    async with a_log(tmp_path, clock).lifespan():
        async with asyncio.timeout(10):
            while SECRET.encode() in bytes_of(tmp_path) or (tmp_path / "jrn_dead.alive").exists():
                await asyncio.sleep(0.01)


async def test_its_files_are_its_users_alone(tmp_path: Path) -> None:
    async with written(tmp_path):
        for path in files(tmp_path):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


# -- when it cannot be used ------------------------------------------------------------------------------------------


async def test_before_and_after_its_lifespan_it_is_away(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    with pytest.raises(LogAway, match="closed"):
        await log.read(ID, 0)
    async with log.lifespan():
        assert await log.read(ID, 0) is None
    with pytest.raises(LogAway, match="closed"):
        await log.read(ID, 0)


@pytest.mark.parametrize("damage", [b"this is no database at all" * 400, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_file_that_is_damaged_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE).write_bytes(damage)
    async with written(tmp_path) as log:
        found = await log.read(ID, 0)
        assert found is not None
        assert found.last == 2


async def test_a_file_that_is_damaged_while_it_is_used_is_away_once_and_then_begun_anew(tmp_path: Path) -> None:
    async with written(tmp_path) as log:
        for number in range(200):
            await log.append("jrn_a", [Appended(ID, number + 3, (block("x" * 3000),))])
        with closing(sqlite3.connect(tmp_path / FILE)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        spoil(tmp_path / FILE)
        with pytest.raises(LogAway, match="malformed"):
            await log.read(ID, 0)
        assert await log.read(ID, 0) is None
        await log.begin(head())
        assert not (await log.append("jrn_a", [Appended(ID, 1, (block(1),))])).lost


async def test_a_file_that_was_removed_or_replaced_is_made_anew(tmp_path: Path) -> None:
    async with written(tmp_path) as log, (other := a_log(tmp_path)).lifespan():
        assert await other.read(ID, 0) is not None
        for path in files(tmp_path, f"{FILE}*"):
            path.unlink()
        assert (await log.append("jrn_a", [Appended(ID, 3, (block(3),))])).lost == {ID}
        await log.begin(head("strm_new"))
        assert await other.read("strm_new", 0) is not None


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    async with written(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("PRAGMA user_version = 99")
    async with (log := a_log(tmp_path)).lifespan():
        with pytest.raises(LogAway, match="newer version"):
            await log.read(ID, 0)
    assert SECRET.encode() in bytes_of(tmp_path)


async def test_while_another_process_holds_the_file_it_can_be_read_but_not_written(tmp_path: Path) -> None:
    async with written(tmp_path, patience=0.05) as log:
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            found = await log.read(ID, 0)
            assert found is not None
            assert found.last == 2
            with pytest.raises(LogAway, match=r"was locked for 0\.05 s"):
                await log.append("jrn_a", [Appended(ID, 3, (block(3),))])


async def test_a_full_disk_is_told_and_what_is_there_can_be_read(tmp_path: Path) -> None:
    async with written(tmp_path) as log:
        connection = log._connection
        assert connection is not None
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LogAway, match="full"):
            await log.append("jrn_a", [Appended(ID, 3, (block("x" * 100_000),))])
        found = await log.read(ID, 0)
        assert found is not None
        assert found.last == 2
        # there is room again
        assert not (await log.append("jrn_a", [Appended(ID, 3, (block("x" * 100_000),))])).lost


async def test_a_place_where_no_file_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with (log := a_log(tmp_path / "file")).lifespan():
        for _ in range(2):
            with pytest.raises(LogAway, match="cannot be used"):
                await log.begin(head())


async def test_a_claim_that_nobody_waits_for_any_more_is_free_again(tmp_path: Path) -> None:
    async with written(tmp_path) as log:
        claiming = asyncio.create_task(log.claim("", "k", "strm_left", "f"))
        await asyncio.sleep(0)
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        assert (await log.claim("", "k", ID, "f")).fresh
