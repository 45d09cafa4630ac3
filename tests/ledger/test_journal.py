"""The journal: what it has taken survives its process, whatever end that comes to."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.ledger import journal as journals
from router.ledger.journal import Journal, JournalFull, left_behind

LIMIT = 64 * 1024


def opened(directory: Path, name: str = "jrn_1", limit: int = LIMIT, segment: int = 4096) -> Journal:
    journal = Journal(directory, name, limit, segment)
    journal.open()
    return journal


def left(directory: Path, after: int = 0) -> dict[str, list[tuple[int, bytes]]]:
    return {each.id: [tuple(stored) for stored in each.records(after)] for each in left_behind(directory)}


def test_what_was_appended_is_read_again_by_number(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert journal.append([b"one", b"two"]) == 2
    assert journal.append([b"three" * 1000]) == 3
    assert journal.append([b"four"]) == 4
    assert [stored.position for stored in journal.read(1, 100)] == [2, 3, 4]
    assert [stored.payload for stored in journal.read(1, 2)] == [b"two", b"three" * 1000]
    journal.close(remove=False)
    assert left(tmp_path, after=2) == {"jrn_1": [(3, b"three" * 1000), (4, b"four")]}


def test_the_journal_of_a_process_that_lives_is_not_taken(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append([b"one"])
    assert left(tmp_path) == {}
    journal.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_of_two_takers_one_gets_a_dead_journal(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append([b"one"])
    journal.close(remove=False)
    taking = left_behind(tmp_path)
    assert next(taking).id == "jrn_1"
    assert left(tmp_path) == {}
    taking.close()
    assert left(tmp_path) == {"jrn_1": [(1, b"one")]}


def test_what_a_killed_process_had_appended_is_there(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom router.ledger.journal import Journal\n"
        f"journal = Journal(Path({str(tmp_path)!r}), 'jrn_k', 1 << 20, 4096)\njournal.open()\n"
        "for n in range(500): journal.append([b'%d' % n])\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert left(tmp_path) == {}
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert left(tmp_path) == {"jrn_k": [(n + 1, b"%d" % n) for n in range(500)]}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payloads=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=12), data=st.data())
def test_a_journal_torn_at_any_byte_keeps_what_came_before(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("torn")
    journal = opened(directory, segment=8192)
    for payload in payloads:
        journal.append([payload])
    journal.close(remove=False)
    (path,) = directory.glob("*.journal")
    whole = path.read_bytes()
    end = 16 + sum(8 + len(payload) for payload in payloads)
    cut = data.draw(st.integers(16, end), label="cut")
    # a crash leaves zeros, or half of a block
    path.write_bytes(whole[:cut] + b"\0" * (len(whole) - cut))
    found = [payload for _, payload in left(directory)["jrn_1"]]
    kept, at = [], 16
    for payload in payloads:
        at += 8 + len(payload)
        # a tail of zeros may be what the record ended in anyway
        if at <= cut or not any(whole[cut:at]):
            kept.append(payload)
        else:
            break
    assert found == kept


def test_what_is_in_the_store_makes_room(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for _ in range(40):
        position = journal.append([b"x" * 1000])
        journal.drop(position)
    assert len(list(tmp_path.glob("*.journal"))) <= 2
    assert journal.read(0, 100)[-1].position == 40


def test_a_promise_is_refused_at_the_bound_and_kept_below_it(tmp_path: Path) -> None:
    journal = opened(tmp_path, limit=16 * 1024)
    promised = 0
    with pytest.raises(JournalFull, match="journal_limit"):
        while True:
            journal.append([b"opened" * 50], promise=1000)
            promised += 1
    assert promised > 5
    for _ in range(promised):
        # what was promised can be written although nothing new is taken
        journal.append([b"s" * 800], promised=True)
        journal.release(1000)
    assert len(journal.read(0, 1000)) == 2 * promised


def test_a_full_disk_refuses_promises_and_settles_what_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path, limit=1 << 20)
    journal.append([b"opened"], promise=1000)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(JournalFull, match="the disk is full"):
        for _ in range(100):
            journal.append([b"opened" * 20], promise=1000)
    count = journal.position
    journal.append([b"settled" * 100], promised=True)
    assert journal.position == count + 1
    assert journal.read(count, 1)[0].payload == b"settled" * 100
    assert not [path for path in tmp_path.glob("*.journal") if path.stat().st_size < 4096]


@pytest.mark.parametrize("lacking", ["the function", "the file system"])
def test_where_space_cannot_be_allocated_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if lacking == "the function":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    journal = opened(tmp_path)
    journal.append([b"opened"], promise=100)
    (path,) = tmp_path.glob("*.journal")
    assert path.stat().st_blocks * 512 >= path.stat().st_size > 0
    assert journal.read(0, 1)[0].payload == b"opened"


def test_what_was_not_promised_leaves_the_promised_room_alone(tmp_path: Path) -> None:
    journal = opened(tmp_path, limit=8 * 1024)
    journal.append([b"opened"], promise=3000)
    with pytest.raises(JournalFull):
        while True:
            journal.append([b"progress" * 20])
    journal.append([b"s" * 2900], promised=True)


def test_a_journal_that_is_closed_takes_nothing(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.close(remove=True)
    with pytest.raises(JournalFull, match="closed"):
        journal.append([b"late"], promised=True)
    assert not list(tmp_path.iterdir())


async def test_running_out_of_file_descriptors_fails_one_sync_and_not_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path)
    position = journal.append([b"record"])

    def none_left(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", none_left)
        with pytest.raises(OSError, match="Too many"):
            await journal.synced(position)
    await journal.synced(position)


async def test_many_waiters_share_an_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = journals._fsync

    def counted(fds: list[int], directory: Path) -> None:
        synced.append(len(fds))
        sync(fds, directory)

    monkeypatch.setattr(journals, "_fsync", counted)
    journal = opened(tmp_path)
    positions = [journal.append([b"record"]) for _ in range(50)]
    await asyncio.gather(*(journal.synced(position) for position in positions))
    assert len(synced) == 1
    await journal.synced(positions[-1])
    assert len(synced) == 1


async def test_a_disk_that_fails_to_sync_says_so_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path)
    position = journal.append([b"record"])

    def broken(fds: list[int], directory: Path) -> None:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(journals, "_fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            await journal.synced(position)
    await journal.synced(position)
