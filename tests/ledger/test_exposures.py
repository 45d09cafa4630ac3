"""What experiments decide, and why attempts are made, on its way from the trip to the store."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from router.call import Attempt, Call, Principal, Role, Skipped, Terms, Trip
from router.errors import BudgetSpent, ProviderUnavailable
from router.events import Usage
from router.experiment import Assigned
from router.ids import ulid
from router.ledger.entries import _call_timing, _decision
from router.ledger.recovery import recover
from router.ledger.rows import AttemptRow, Batch, CallRow, Exposure, Labels, Opened, Settled, decode_record
from router.provider import Target
from router.store.store import Store
from router.store.tables import exposures
from support.dispatching import Free, a_call
from tests.ledger.test_ledger import Bench, rows

ASSIGNED = Assigned("trial", "qwen", "5e" * 16, "user", shares="control=50,qwen=50")
SHADOW = Assigned("trial", "shadow", "5e" * 16, "user", shares="control=50,qwen=50", shadow_of="req_0")


def assigned_call(assigned: Assigned | None, principal: Principal | None = None) -> Call:
    call = msgspec.structs.replace(a_call(), id=f"req_{ulid()}")
    call.trip.terms = Terms("g1", Free(), lambda name: name == "chat", keyed=True)
    call.trip.assigned = assigned
    return call if principal is None else call.with_principal(principal)


def an_attempt(call: Call, n: int = 1, role: Role = "first", **fields: Any) -> Attempt:
    target = Target("v", "m")
    made = Attempt(n=n, target=target, started=time.monotonic(), created_at=call.trip.created_at, role=role, **fields)
    call.trip.attempts.append(made)
    return made


async def exposed(store: Store) -> dict[str, Exposure]:
    async with store.reading() as connection:
        found = [Exposure(**row) for row in (await connection.execute(select(exposures))).mappings()]
    return {row.call_id: row for row in found}


async def test_an_assigned_call_has_its_exposure_and_its_labels(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        call = assigned_call(ASSIGNED, Principal("dw-k1"))
        for n, role in enumerate(("first", "retry"), 1):
            attempt = an_attempt(call, n, role)  # type: ignore[arg-type]
            bench.books.open(call, attempt)
            attempt.usage, attempt.outcome = Usage(input=1), "finished"
            bench.books.settle(call, attempt)
        bench.books.close(call, None, ())
        plain = assigned_call(None, Principal("dw-k1"))
        attempt = an_attempt(plain)
        bench.books.open(plain, attempt)
        bench.books.settle(plain, attempt)
        bench.books.close(plain, None, ())
    found, tried = await rows(store)
    assert await exposed(store) == {
        call.id: Exposure(
            *(call.id, call.trip.created_at, "trial", "qwen", "5e" * 16, "user", False, "control=50,qwen=50", None),
            bench.journal.id,
        )
    }
    for row in (found[call.id], tried[call.id, 1], tried[call.id, 2]):
        assert (row.labels.experiment, row.labels.arm) == ("trial", "qwen")
    assert (found[plain.id].labels.experiment, found[plain.id].labels.arm) == (None, None)


async def test_an_assigned_call_without_an_attempt_is_exposed_all_the_same(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        refused = assigned_call(ASSIGNED, Principal("dw-k1"))
        bench.books.close(refused, BudgetSpent("spent"), ())
    assert set(await exposed(store)) == {refused.id}
    found, _ = await rows(store)
    assert (found[refused.id].outcome, found[refused.id].labels.arm) == ("refused", "qwen")


@pytest.mark.parametrize("tried", [True, False])
async def test_a_shadow_has_rows_though_nobody_called_it(store: Store, tmp_path: Path, tried: bool) -> None:
    async with Bench(store, tmp_path).open() as bench:
        shadow, stranger = assigned_call(SHADOW), assigned_call(None)
        if tried:
            attempt = an_attempt(shadow)
            bench.books.open(shadow, attempt)
            attempt.outcome = "failed"
            bench.books.settle(shadow, attempt)
        bench.books.close(shadow, ProviderUnavailable("no"), ())
        bench.books.close(stranger, BudgetSpent("no"), ())
    found, _ = await rows(store)
    assert {row.id: row.labels.key for row in found.values()} == {shadow.id: None}
    assert {row.shadow_of for row in (await exposed(store)).values()} == {"req_0"}


async def test_recovery_keeps_exposures_and_reasons(store: Store, tmp_path: Path) -> None:
    dead = Bench(store, tmp_path, group_commit=5.0)
    dead.journal.open()
    call = assigned_call(ASSIGNED, Principal("dw-k1"))
    dead.books.open(call, an_attempt(call, role="continuation", why="`a/b` died", key="2 of 3", seam=17))
    refused = assigned_call(ASSIGNED, Principal("dw-k1"))
    dead.books.close(refused, BudgetSpent("spent"), ())
    dead.journal.close(remove=False)

    async def settle(journal: str, calls: list[str]) -> None:
        return None

    assert await recover(store, dead.directory, settle) == 1
    assert set(await exposed(store)) == {call.id, refused.id}
    row = (await rows(store))[1][call.id, 1]
    assert (row.outcome, row.role, row.why, row.vendor_key, row.seam) == (
        *("interrupted", "continuation", "`a/b` died", "2 of 3"),
        17,
    )


async def test_an_attempt_says_why_it_was_made(store: Store, tmp_path: Path) -> None:
    async with Bench(store, tmp_path).open() as bench:
        call = assigned_call(None, Principal("dw-k1"))
        first, second = an_attempt(call), an_attempt(call, 2, "retry", why="w" * 2000, key="1 of 2")
        for attempt in (first, second):
            bench.books.open(call, attempt)
            attempt.outcome = "finished"
            bench.books.settle(call, attempt)
        bench.books.close(call, None, ())
    tried = (await rows(store))[1]
    told = [(row.role, row.why, row.vendor_key, row.seam) for row in (tried[call.id, 1], tried[call.id, 2])]
    assert told == [("first", None, None, None), ("retry", "w" * 511 + "…", "1 of 2", None)]


def test_a_journal_of_the_version_before_is_read() -> None:
    row = AttemptRow("req_1", 1, 1, Labels("m"), "v", "m", "jrn", 2, "finished", cost=7, currency="USD", price="p")
    array = msgspec.msgpack.decode(msgspec.msgpack.encode(row))
    assert array[-4:] == [None, None, None, None]
    call = msgspec.msgpack.decode(msgspec.msgpack.encode(CallRow("req_1", 1, Labels("m"), "d", True, "jrn")))
    old: dict[str, Any] = {"o": [array[:-4], call], "s": [array[:-4]], "c": [call]}
    records = [decode_record(msgspec.msgpack.encode([tag, *fields])) for tag, fields in old.items()]
    batch = Batch("jrn")
    for position, record in enumerate(records, 1):
        batch.add(position, record)
    assert batch.attempts == {("req_1", 1): row}
    assert batch.exposures == {}
    opened, settled, _ = records
    assert isinstance(opened, Opened)
    assert isinstance(settled, Settled)
    assert opened.exposure is None


# -- the call's own row --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempts", "overhead"),
    [
        ([], 10.0),
        ([(1.0, 4.0), (5.0, 9.0)], 3.0),
        # a hedge beside the first, and one within it
        ([(1.0, 8.0), (3.0, 9.0)], 2.0),
        ([(1.0, 9.0), (3.0, 4.0), (4.0, None)], 1.0),
        ([(3.0, 6.0), (1.0, 4.0)], 5.0),
        # the loser of a race is closed when the call is over
        ([(0.0, 12.0), (2.0, 11.0)], 0.0),
    ],
)
def test_overlapping_attempts_count_once_in_the_overhead(
    attempts: list[tuple[float, float | None]], overhead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    trip = Trip(started=100.0, created_at=1)
    for n, (started, ended) in enumerate(attempts, 1):
        made = Attempt(n=n, target=Target("v", "m"), started=100 + started, created_at=1)
        made.ended = None if ended is None else 100 + ended
        trip.attempts.append(made)
    assert _call_timing(trip, ())["overhead_ms"] == overhead * 1000


def test_a_decision_says_what_was_left_out_and_by_which_configuration() -> None:
    trip = Trip(started=0.0, created_at=1)
    assert _decision(trip) == {}
    trip.candidates = (Target("a", "b"), Target("c", "d"))
    assert _decision(trip) == {"why": "asked for by name", "candidates": ["a/b", "c/d"]}
    trip.choice = "the cheapest first"
    trip.skipped = (Skipped(Target("e", "f"), "rests for 7 s"),)
    trip.terms = Terms("gen-7", Free(), lambda _: True, keyed=True)
    trip.assigned = SHADOW
    assert _decision(trip) == {
        "why": "the cheapest first",
        "candidates": ["a/b", "c/d"],
        "skipped": [{"target": "e/f", "why": "rests for 7 s"}],
        "generation": "gen-7",
        "experiment": {"unit": "user", "forced": False, "shadow_of": "req_0"},
    }
    trip.candidates = ()
    assert _decision(trip)["candidates"] == []


def test_a_refusal_before_any_choice_says_by_which_configuration_alone() -> None:
    trip = Trip(started=0.0, created_at=1, terms=Terms("gen-7", Free(), lambda _: True, keyed=True))
    assert _decision(trip) == {"generation": "gen-7"}
