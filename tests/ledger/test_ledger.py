"""The ledger between the request path and the store: what is told is kept, once, whatever fails in between."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from router.call import Attempt, Call, Principal
from router.errors import ClientGone, NotFound, PermissionDenied, StoreUnavailable, StreamCut
from router.events import Extended, Extra, TextDelta, Usage
from router.ids import ulid
from router.ledger import bringing, keeping, recovery, writer
from router.ledger.journal import Journal, JournalFull
from router.ledger.ledger import Ledger
from router.ledger.recovery import recover
from router.ledger.rows import TOKEN_CLASSES, AttemptRow, Batch, CallRow, Settled, decode_record
from router.ledger.writer import Writer
from router.messages import Audio
from router.pricing import Cost
from router.provider import Target
from router.settings import Durability
from router.settings import Ledger as Settings
from router.state.memory_accounts import MemoryAccounts
from router.state.memory_gates import MemoryGates
from router.store import ledger as stored
from router.store.store import Store, StoreAway
from router.store.tables import attempts, calls, gaps
from router.tokens import TokenCounter
from support.dispatching import Free, a_call, a_trip

PIECE_SENT = Audio("A" * 64_000, "pcm16")
PIECE_SAID = Extended(Extra("openai", block={"audio": {"data": "A" * 64_000}}), choice=0)
"""A second of audio: ten tokens when it is sent, twenty when it is said."""
USAGE = Usage(input=20, cache_read=4, output=6, reasoning=12)


class Priced(Free):
    """A nano-dollar a token."""

    def cost(self, target: Target, usage: Usage, at: int, **_: Any) -> Cost:
        return Cost(usage.prompt_total + usage.completion_total, "USD", "v/m@2026-01-01")


def a_priced_call(**fields: Any) -> Call:
    return msgspec.structs.replace(a_call(**fields), trip=a_trip(Priced()))


class Bench:
    """One process's ledger over `store`."""

    def __init__(self, store: Store, directory: Path, durability: Durability = "process", **settings: Any) -> None:
        self.store = store
        self.directory = directory / "journals"
        given = Settings(**{"audit": 0.0, "group_commit": 0.0, **settings})
        self.journal = Journal(self.directory, f"jrn_{ulid()}", given.journal_limit, 256 * 1024)
        self.writer = Writer(store, self.journal, given.group_commit, directory / "rejected")
        self.books = Ledger(
            given,
            durability,
            self.journal,
            self.writer,
            TokenCounter(),
            directory / "rejected",
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Bench"]:
        async def opening(account: Any) -> int:
            return 0

        accounts = MemoryAccounts(opening, "owner")
        keeps = keeping.kept(
            self.store, self.directory, self.journal, self.writer, self.books, MemoryGates(), accounts, Priced().convert
        )
        async with keeps:
            yield self

    async def begin(self, **fields: Any) -> tuple[Call, Attempt]:
        """A call whose attempt is on record."""
        call = msgspec.structs.replace(a_priced_call(**fields), id=f"req_{ulid()}").with_principal(
            Principal("dw-k1", team="t1")
        )
        attempt = Attempt(n=1, target=Target("v", "m"), started=call.trip.started, created_at=call.trip.created_at)
        waiting = self.books.open(call, attempt)
        call.trip.attempts.append(attempt)
        if waiting is not None:
            await waiting
        return call, attempt

    async def end(self, call: Call, attempt: Attempt, usage: Usage | None = USAGE, error: Any = None) -> None:
        attempt.usage, attempt.outcome = usage, "finished" if error is None else "cut"
        self.books.settle(call, attempt)
        waiting = self.books.close(call, error, ())
        if waiting is not None:
            await waiting


async def rows(store: Store) -> tuple[dict[str, CallRow], dict[tuple[str, int], AttemptRow]]:
    async with store.reading() as connection:
        found = [stored.call_row(row) for row in (await connection.execute(select(calls))).mappings()]
        tried = [stored.attempt_row(row) for row in (await connection.execute(select(attempts))).mappings()]
    return {row.id: row for row in found}, {(row.call_id, row.n): row for row in tried}


async def test_a_call_becomes_a_row_and_its_attempt_another(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        call, attempt = await bench.begin()
        await bench.end(call, attempt)
        assert call.trip.headers["x-deltaway-cost"] == "0.000000042 USD"
    found, tried = await rows(store)
    (row,), (settled,) = found.values(), tried.values()
    assert (row.id, row.outcome, row.target, row.labels.key, row.labels.team) == (
        call.id,
        "finished",
        "v/m",
        "dw-k1",
        "t1",
    )
    assert row.labels.route == row.labels.model == "chat"
    assert row.ended_at is not None
    assert {name: getattr(settled, name) for name in TOKEN_CLASSES} == {
        name: getattr(USAGE, name) for name in TOKEN_CLASSES
    }
    assert (settled.outcome, settled.source, settled.cost, settled.currency) == ("finished", "reported", 42, "USD")
    assert (settled.thinking, settled.price) == (True, "v/m@2026-01-01")
    # nothing is left for recovery
    assert not list((tmp_path / "journals").iterdir())


@pytest.mark.parametrize("durability", ["process", "disk", "store"])
async def test_an_attempt_is_on_record_before_its_vendor_is_called(
    store: Store, tmp_path: Path, durability: Durability
) -> None:
    async with Bench(store, tmp_path, durability, group_commit=5.0).open() as bench:
        call, attempt = await bench.begin()
        (opened,) = bench.journal.read(0, 10)
        assert opened.position == 1
        assert bench.journal._synced >= (1 if durability == "disk" else 0)
        if durability == "store":
            found, tried = await rows(store)
            assert (found[call.id].outcome, tried[call.id, 1].outcome) == (None, None)
        await bench.end(call, attempt)
        if durability == "store":
            found, tried = await rows(store)
            assert (found[call.id].outcome, tried[call.id, 1].outcome) == ("finished", "finished")


async def test_what_ends_a_call_stands_in_its_row(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        left, attempt = await bench.begin()
        await bench.end(left, attempt, error=ClientGone("the client left"))
        cut, attempt = await bench.begin()
        attempt.first_delta = cut.trip.first_delta = attempt.started
        await bench.end(cut, attempt, error=StreamCut("cut"))
        refused = msgspec.structs.replace(a_priced_call(), id="req_refused").with_principal(Principal("dw-k1"))
        bench.books.close(refused, PermissionDenied("no"), ())
        stranger = msgspec.structs.replace(a_priced_call(), id="req_stranger")
        bench.books.close(stranger, PermissionDenied("no"), ())
        # told twice, kept once
        bench.books.close(cut, None, ())
    found, _ = await rows(store)
    assert {row.id: row.outcome for row in found.values()} == {
        left.id: "client_gone",
        cut.id: "cut",
        "req_refused": "refused",
    }
    assert found["req_refused"].error == {
        "status": 403,
        "kind": "permission",
        "code": "permission_denied",
        "message": "no",
    }


async def test_what_a_dead_process_left_is_settled_once(store: Store, tmp_path: Path) -> None:
    dead = Bench(store, tmp_path, group_commit=5.0)
    dead.journal.open()
    call, attempt = await dead.begin()
    await dead.end(call, attempt)
    interrupted, attempt = await dead.begin()
    attempt.generated.note(TextDelta(0, 0, "hello world, how are you?"))
    dead.books._open[interrupted.id, 1].checkpoint_at = 0.0
    await dead.books._checkpoint()
    attempt.generated.note(TextDelta(0, 0, " I am well."))
    dead.books._open[interrupted.id, 1].checkpoint_at = 0.0
    await dead.books._checkpoint()
    unknown, _ = await dead.begin()
    # the kernel lets go of the lock, and nobody writes any more
    dead.journal.close(remove=False)
    told: list[str] = []

    async def settle(journal: str, calls: list[str]) -> None:
        told.append(journal)

    assert await recover(store, dead.directory, settle) == 2
    before = await rows(store)
    assert await recover(store, dead.directory, settle) == 0
    assert await rows(store) == before
    found, tried = before
    assert {row.id: row.outcome for row in found.values()} == {
        call.id: "finished",
        interrupted.id: "interrupted",
        unknown.id: "interrupted",
    }
    assert tried[call.id, 1].cost == 42
    known = tried[interrupted.id, 1]
    assert (known.outcome, known.source, known.output) == ("interrupted", "estimated", 10)
    assert known.cost == known.input + known.output > 0
    assert (tried[unknown.id, 1].source, tried[unknown.id, 1].cost) == (None, None)
    assert tried[unknown.id, 1].flag is not None
    assert told == [dead.journal.id]


async def test_a_checkpoint_knows_the_speech_that_has_come(store: Store, tmp_path: Path) -> None:
    dead = Bench(store, tmp_path, group_commit=5.0)
    dead.journal.open()
    call, attempt = await dead.begin(prompt=(PIECE_SENT,))
    for seconds in range(1, 4):
        attempt.generated.note(PIECE_SAID)
        dead.books._open[call.id, 1].checkpoint_at = 0.0
        await dead.books._checkpoint()
        assert dead.books._open[call.id, 1].row.output_audio == 20 * seconds
    dead.journal.close(remove=False)

    async def settle(journal: str, calls: list[str]) -> None:
        pass

    await recover(store, dead.directory, settle)
    (row,) = (await rows(store))[1].values()
    assert (row.input, row.input_audio, row.output, row.output_audio) == (3 + 3, 10, 0, 60)
    assert (row.outcome, row.source, row.flag) == ("interrupted", "estimated", None)


async def test_a_journal_that_was_brought_in_by_half_is_brought_in_whole(store: Store, tmp_path: Path) -> None:
    dead = Bench(store, tmp_path)
    dead.journal.open()
    ended = []
    for _ in range(5):
        call, attempt = await dead.begin()
        await dead.end(call, attempt)
        ended.append(call.id)
    half = Batch(dead.journal.id)
    for position, record in list(dead.writer._pending)[:5]:
        half.add(position, record)
    await stored.bring_in(store, half, 0)
    dead.journal.close(remove=False)

    async def settle(journal: str, calls: list[str]) -> None:
        return None

    assert await recover(store, dead.directory, settle) == 0
    found, tried = await rows(store)
    assert {row.id for row in found.values() if row.outcome == "finished"} == set(ended)
    assert sum(row.cost or 0 for row in tried.values()) == 5 * 42


async def test_a_process_that_was_taken_for_dead_and_was_not_has_the_last_word(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        call, attempt = await bench.begin()
        await bench.books.flushed()

        async def settle(journal: str, calls: list[str]) -> None:
            return None

        # no file of it is found here, and its last sign of life is long ago
        later = recovery._now() + int(2 * recovery.LOST_AFTER * 1000)
        assert await stored.abandoned_journals(store, later) == [bench.journal.id]
        assert await recovery.interrupt(store, bench.journal.id, tmp_path / "rejected") == [call.id]
        assert (await rows(store))[1][call.id, 1].outcome == "interrupted"
        await bench.end(call, attempt)
    found, tried = await rows(store)
    assert (found[call.id].outcome, tried[call.id, 1].outcome, tried[call.id, 1].cost) == ("finished", "finished", 42)


class Away:
    """A store that is away for as long as `gone`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gone = True
        bring_in = stored.bring_in

        async def brought(store: Store, batch: Batch, at: int) -> None:
            if self.gone:
                raise StoreAway("the disk is full")
            await bring_in(store, batch, at)

        monkeypatch.setattr(bringing, "bring_in", brought)
        monkeypatch.setattr(writer, "_PATIENCE", (0.01,))


@pytest.mark.parametrize("durability", ["process", "store"])
async def test_while_the_store_is_away_the_journal_holds_what_comes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    away = Away(monkeypatch)
    monkeypatch.setattr(writer, "_IN_MEMORY", 10)
    async with Bench(store, tmp_path, durability).open() as bench:
        ended = []
        for _ in range(30):
            call, attempt = await bench.begin()
            await bench.end(call, attempt)
            ended.append(call.id)
        assert (await rows(store))[0] == {}
        async with asyncio.timeout(5):
            while bench.books.away is None:
                await asyncio.sleep(0.01)
        assert bench.books.away == "the disk is full"
        assert bench.books.backlog == 90
        away.gone = False
        await asyncio.wait_for(bench.writer._turn.wait(), 5)
        async with asyncio.timeout(5):
            while bench.books.backlog:
                await asyncio.sleep(0.01)
        assert bench.books.away is None
    found, _ = await rows(store)
    assert sorted(found) == sorted(ended)
    assert {row.outcome for row in found.values()} == {"finished"}


async def test_a_stop_while_the_store_is_away_loses_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        Away(patched)
        async with Bench(store, tmp_path).open() as bench:
            call, attempt = await bench.begin()
            await bench.end(call, attempt)
    assert (await rows(store))[0] == {}
    async with Bench(store, tmp_path).open():
        found, _ = await rows(store)
    assert found[call.id].outcome == "finished"
    assert not list((tmp_path / "journals").iterdir())


async def test_a_full_journal_refuses_calls_and_settles_those_under_way(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    async with Bench(store, tmp_path).open() as bench:
        bench.journal._limit = 512 * 1024
        under_way = []
        with pytest.raises(StoreUnavailable) as caught:
            while True:
                under_way.append(await bench.begin())
        assert (caught.value.status, caught.value.code) == (503, "ledger_full")
        assert len(under_way) > 50
        for call, attempt in under_way:
            await bench.end(call, attempt)
        away.gone = False
        async with asyncio.timeout(10):
            while bench.books.backlog:
                await asyncio.sleep(0.01)
        call, attempt = await bench.begin()
        await bench.end(call, attempt)
    found, tried = await rows(store)
    assert len(found) == len(tried) == len(under_way) + 1
    assert {row.outcome for row in tried.values()} == {"finished"}


async def test_a_refused_call_takes_no_room_from_a_settlement_that_waits(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    async with Bench(store, tmp_path).open() as bench:
        bench.journal._limit = 512 * 1024
        under_way = []
        with pytest.raises(StoreUnavailable):
            while True:
                under_way.append(await bench.begin())

        def refuse() -> None:
            refused = msgspec.structs.replace(a_priced_call(), id=f"req_{ulid()}").with_principal(Principal("dw-k1"))
            assert bench.books.close(refused, NotFound("no such model"), ()) is None

        while bench.books._gap is None:
            # what little is left goes to them, until there is nothing
            refuse()
        call, attempt = under_way[0]
        attempt.usage, attempt.outcome = USAGE, "finished"
        bench.books.settle(call, attempt)
        refuse()
        bench.books.close(call, None, ())
        assert bench.writer.loose() == []
        written = [decode_record(stored.payload) for stored in bench.journal.read(0, 100_000)]
        settled = [record for record in written if isinstance(record, Settled)]
        assert [record.attempt.call_id for record in settled] == [call.id]
        away.gone = False
        async with asyncio.timeout(10):
            while bench.books.backlog:
                await asyncio.sleep(0.01)
    async with store.reading() as connection:
        (gap,) = (await connection.execute(select(gaps))).mappings()
    assert (gap["calls"], gap["attempts"], gap["costs"]) == (2, 0, {})


async def test_with_continue_what_cannot_be_recorded_is_counted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    async with Bench(store, tmp_path, on_store_failure="continue").open() as bench:
        bench.journal._limit = 512 * 1024
        count = 0
        while bench.books._gap is None or bench.books._gap.attempts < 7:
            call, attempt = await bench.begin()
            await bench.end(call, attempt)
            count += 1
        away.gone = False
        async with asyncio.timeout(10):
            while bench.books.backlog:
                await asyncio.sleep(0.01)
    found, tried = await rows(store)
    async with store.reading() as connection:
        (gap,) = (await connection.execute(select(gaps))).mappings()
    assert len(found) == len(tried) == count - 7
    assert (gap["calls"], gap["attempts"], gap["input"], gap["output"]) == (7, 7, 7 * 24, 7 * 18)
    assert gap["costs"] == {"USD": 7 * 42}


async def test_a_row_that_the_store_refuses_is_set_aside_and_the_others_go_in(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_in = stored.bring_in
    poisoned: set[str] = set()

    async def brought(store: Store, batch: Batch, at: int) -> None:
        if poisoned & batch.calls.keys():
            raise ValueError("this row cannot be")
        await bring_in(store, batch, at)

    monkeypatch.setattr(bringing, "bring_in", brought)
    async with Bench(store, tmp_path, group_commit=0.2).open() as bench:
        ended = []
        for number in range(5):
            call, attempt = await bench.begin()
            if number == 2:
                poisoned.add(call.id)
            await bench.end(call, attempt)
            ended.append(call.id)
    found, tried = await rows(store)
    assert set(found) == set(ended) - poisoned
    assert len(tried) == 5
    (line,) = (tmp_path / "rejected").read_text().splitlines()
    assert poisoned <= {msgspec.json.decode(line)[0][0]}


async def test_what_fails_for_another_reason_is_tried_again_and_keeps_its_words(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_in = stored.bring_in
    failures = [RuntimeError("can't start new thread"), MemoryError(), RuntimeError("again")]

    async def brought(store: Store, batch: Batch, at: int) -> None:
        if failures:
            raise failures.pop()
        await bring_in(store, batch, at)

    monkeypatch.setattr(bringing, "bring_in", brought)
    monkeypatch.setattr(writer, "_PATIENCE", (0.01,))
    async with Bench(store, tmp_path).open() as bench:
        call, attempt = await bench.begin(metadata={"team": "red"})
        await bench.end(call, attempt)
        async with asyncio.timeout(10):
            while bench.books.backlog:
                await asyncio.sleep(0.01)
    (row,) = (await rows(store))[0].values()
    assert (row.outcome, row.target) == ("finished", "v/m")
    assert not (tmp_path / "rejected").exists()


@pytest.mark.parametrize("count", [2**63, 2**64, -1])
async def test_counts_that_nothing_can_hold_are_cut_and_flagged(store: Store, tmp_path: Path, count: int) -> None:
    async with Bench(store, tmp_path).open() as bench:
        call, attempt = await bench.begin()
        await bench.end(call, attempt, Usage(input=count, output=3))
    (row,) = (await rows(store))[1].values()
    assert (row.outcome, row.output, row.cost) == ("finished", 3, 2 if count < 0 else None)
    assert count < 0 or (row.input == 2**63 - 1 and row.flag is not None)


async def test_words_that_no_store_takes_are_made_fit(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        call, attempt = await bench.begin(model="m\0\ud800" + "x" * 9000, metadata={})
        await bench.end(call, attempt)
    (row,) = (await rows(store))[0].values()
    assert row.labels.model.startswith("m\ufffd?x")
    assert len(row.labels.model) == 256


async def test_a_sampled_audit_counts_what_the_vendor_has_counted(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path, audit=1.0).open() as bench:
        call, attempt = await bench.begin()
        attempt.generated.note(TextDelta(0, 0, "hello world"))
        await bench.end(call, attempt)
        await asyncio.gather(*bench.books._audits._running)
    async with store.reading() as connection:
        counted = (await connection.execute(select(attempts.c.counted_input, attempts.c.counted_output))).one()
    assert tuple(counted) == (3 + 1 + 3, 2)


async def test_an_audit_counts_audio_by_its_length(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path, audit=1.0).open() as bench:
        call, attempt = await bench.begin(prompt=(PIECE_SENT,))
        for event in (TextDelta(0, 0, "hello world"), PIECE_SAID):
            attempt.generated.note(event)
        await bench.end(call, attempt)
        await asyncio.gather(*bench.books._audits._running)
    async with store.reading() as connection:
        counted = (await connection.execute(select(attempts.c.counted_input, attempts.c.counted_output))).one()
    assert tuple(counted) == (3 + 3 + 10, 2 + 20)


async def test_a_vendors_words_cannot_keep_the_gateway_from_starting(store: Store, tmp_path: Path) -> None:
    dead = Bench(store, tmp_path)
    dead.journal.open()
    call, attempt = await dead.begin()
    attempt.service_tier = attempt.vendor_request_id = "a\0b\ud800" * 500
    error = StreamCut("cut\0", vendor_code="a\0b", vendor_request_id="r\0")
    attempt.error = error
    await dead.end(call, attempt, error=error)
    huge, attempt = await dead.begin()
    await dead.end(huge, attempt, usage=Usage(input=2**63 - 1, output=2**63 - 1))
    plain, attempt = await dead.begin()
    await dead.end(plain, attempt)
    dead.journal.append([b"\xc1 of another version"])
    dead.journal.close(remove=False)

    async def settle(journal: str, calls: list[str]) -> None:
        return None

    assert await recover(store, dead.directory, settle) == 0
    found, tried = await rows(store)
    assert {row.id: row.outcome for row in found.values()} == {
        call.id: "failed",
        huge.id: "finished",
        plain.id: "finished",
    }
    assert (tried[huge.id, 1].outcome, tried[huge.id, 1].cost, tried[plain.id, 1].cost) == ("finished", None, 42)
    assert tried[call.id, 1].service_tier == ("a\ufffdb?" * 500)[:255] + "…"
    (rejected,) = dead.directory.glob("*.rejected")
    assert bytes.fromhex(rejected.read_text().strip()).endswith(b"version")


async def test_a_row_that_is_refused_goes_in_without_its_words(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_in = stored.bring_in

    async def brought(store: Store, batch: Batch, at: int) -> None:
        if any(row.outcome is not None and row.timing for row in batch.attempts.values()):
            raise ValueError("no such words")
        await bring_in(store, batch, at)

    monkeypatch.setattr(bringing, "bring_in", brought)
    async with Bench(store, tmp_path, "store").open() as bench:
        call, attempt = await bench.begin()
        await bench.end(call, attempt)
    row = (await rows(store))[1][call.id, 1]
    assert (row.outcome, row.input, row.cost) == ("finished", 20, 42)
    assert row.flag == "words left out: the store refused them"


async def test_checkpoints_leave_the_room_that_settlements_were_promised(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    monkeypatch.setattr(writer, "_IN_MEMORY", 5)
    async with Bench(store, tmp_path, checkpoint=0.001).open() as bench:
        bench.journal._limit = 1024 * 1024
        under_way = [await bench.begin() for _ in range(40)]
        for number in range(1000):
            for call, attempt in under_way:
                attempt.generated.note(TextDelta(0, 0, f"word {number}"))
                bench.books._open[call.id, 1].checkpoint_at = 0.0
            try:
                await bench.books._checkpoint()
            except JournalFull:
                break
        else:
            pytest.fail("the journal never became full")
        for call, attempt in under_way:
            await bench.end(call, attempt)
        away.gone = False
        async with asyncio.timeout(10):
            while bench.books.backlog:
                await asyncio.sleep(0.01)
    found, tried = await rows(store)
    assert len(found) == len(tried) == 40
    assert {row.outcome for row in tried.values()} == {"finished"}


async def test_what_the_journal_cannot_take_is_kept_in_memory_until_the_store_has_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    monkeypatch.setattr(writer, "_IN_MEMORY", 1)
    async with Bench(store, tmp_path).open() as bench:
        calls_ = [await bench.begin() for _ in range(5)]

        def broken(*_: object) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", broken)
            for call, attempt in calls_:
                await bench.end(call, attempt)
        assert bench.books.backlog == 5 + 10
        away.gone = False
        async with asyncio.timeout(10):
            while bench.books.backlog:
                await asyncio.sleep(0.01)
    _, tried = await rows(store)
    assert [row.outcome for row in tried.values()] == ["finished"] * 5


async def test_a_writer_that_fails_by_a_fault_of_ours_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, failed = Journal.drop, 0

    def failing(self: Journal, position: int) -> None:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise RuntimeError("a fault")
        drop(self, position)

    monkeypatch.setattr(Journal, "drop", failing)
    monkeypatch.setattr(writer, "_PATIENCE", (0.01,))
    async with Bench(store, tmp_path, "store").open() as bench:
        for _ in range(3):
            call, attempt = await bench.begin()
            await bench.end(call, attempt)
    assert len((await rows(store))[0]) == 3


async def test_a_call_that_never_ends_is_settled_when_the_process_stops(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        call, attempt = await bench.begin()
    found, tried = await rows(store)
    assert (found[call.id].outcome, tried[call.id, 1].outcome) == ("interrupted", "interrupted")
    # too late, and no file is left lying about
    await bench.end(call, attempt)
    assert not list((tmp_path / "journals").iterdir())


async def test_a_living_process_is_not_taken_for_dead_whatever_the_clocks_say(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        call, attempt = await bench.begin()
        await bench.books.flushed()
        await stored.heartbeat(store, bench.journal.id, 0)
        settled: list[str] = []

        async def settle(journal: str, calls: list[str]) -> None:
            settled.append(journal)

        assert await recover(store, bench.directory, settle) == 0
        assert settled == []
        await bench.end(call, attempt)


async def test_all_rows_of_a_call_are_filed_under_what_the_client_asked_for(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        outer = a_priced_call(model="chat")
        outer.trip.asked = "chat"
        inner = outer.with_principal(Principal("dw-k1")).with_request(
            msgspec.structs.replace(outer.request, model="v/other")
        )
        attempt = Attempt(n=1, target=Target("v", "other"), started=0.0, created_at=1)
        bench.books.open(inner, attempt)
        outer.trip.attempts.append(attempt)
        attempt.usage, attempt.outcome = USAGE, "finished"
        bench.books.settle(inner, attempt)
        bench.books.close(outer, None, ())
    found, tried = await rows(store)
    assert {row.labels.model for row in found.values()} == {row.labels.model for row in tried.values()} == {"chat"}


async def test_unrecorded_calls_that_end_after_the_gap_was_told_are_told_too(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    async with Bench(store, tmp_path, on_store_failure="continue").open() as bench:
        bench.journal._limit = 512 * 1024
        while not bench.books._without:
            last = await bench.begin()
        unrecorded = [last, await bench.begin()]
        await bench.end(*unrecorded[0])
        away.gone = False
        async with asyncio.timeout(10):
            while bench.books._gap is not None or bench.books.backlog:
                bench.books._flush()
                await asyncio.sleep(0.01)
        await bench.end(*unrecorded[1])
    async with store.reading() as connection:
        told = (await connection.execute(select(gaps.c.attempts))).scalars().all()
    assert list(told) == [1, 1]
