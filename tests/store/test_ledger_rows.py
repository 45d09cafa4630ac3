"""Batches of the ledger in the store: each row settled once, whatever is brought in how often."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from router.call import Outcome
from router.ledger.rows import (
    AttemptRow,
    Audited,
    Batch,
    CallRow,
    Closed,
    Exposure,
    Gap,
    Labels,
    Opened,
    Progress,
    Record,
    Settled,
)
from router.store.batches import _ATTEMPT, _CALL, _EXPOSURE, _attempt_values, _call_values, _exposure_values
from router.store.ledger import (
    abandoned_journals,
    applied,
    attempt_row,
    bring_in,
    call_row,
    close_journal,
    enrol,
    heartbeat,
    open_rows,
)
from router.store.store import Store, StoreAway
from router.store.tables import attempts, calls, exposures, gaps, journals
from support.stores import BACKENDS, Backend, store_url

OUTCOMES = get_args(Outcome)
FULL_LABELS = Labels("chat", "chat", "k1", "u1", "team 1", {"team": "a", "ü": "€ 'q\""}, "trial", "control")
FULL_CALL = CallRow(
    *("req_1", 1_790_000_000_000, FULL_LABELS, "openai.chat", True, "j1"),
    *({"why": "first", "candidates": ["a/b"]}, 1_790_000_002_000, "failed", "openai/gpt-5-mini"),
    *({"status": 502, "vendor": {"code": None}}, {"duration_ms": 2000.25, "plugins": {"logging": 0.1}}),
)
FULL_ATTEMPT = AttemptRow(
    *("req_1", 32767, 1_790_000_000_001, FULL_LABELS, "openai", "gpt-5-mini", "j1", 1_790_000_001_999, "cut"),
    *({"status": 502}, {"first_token_ms": 310.2}, "vendor-1", 2**62, 2, 3, 4, 5, 6, 7, 8, "reported", "odd", "flex"),
    *(True, -(2**62), "USD", "openai/gpt-5-mini@2026-08-07", "continuation", "the vendor died", "2 of 3", 2**40),
)
FULL_EXPOSURE = Exposure(
    *("req_1", 1_790_000_000_000, "trial", "qwen", "5e" * 16, "user", True, "control=50,qwen=50", "req_0", "j1"),
)


def batch_of(records: Sequence[Record], first: int = 1, journal: str = "j1") -> Batch:
    batch = Batch(journal)
    for number, record in enumerate(records, first):
        batch.add(number, record)
    return batch


async def bring(store: Store, *records: Record, first: int = 1) -> None:
    await bring_in(store, batch_of(records, first), 1000)


async def rows(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All that the store has, but for when it was brought in."""
    async with store.reading() as connection:
        found = {
            table.name: [tuple(row) for row in await connection.execute(select(table).order_by(*table.primary_key))]
            for table in (calls, attempts, exposures, gaps)
        }
        progress = select(journals.c.id, journals.c.applied).order_by(journals.c.id)
        found["journals"] = [tuple(row) for row in await connection.execute(progress)]
        return found


async def the_call(store: Store) -> CallRow:
    async with store.reading() as connection:
        return call_row((await connection.execute(select(calls))).mappings().one())


async def the_attempt(store: Store) -> AttemptRow:
    async with store.reading() as connection:
        return attempt_row((await connection.execute(select(attempts))).mappings().one())


def plain(value: dict[str, Any] | None) -> object:
    return value


def test_every_field_of_a_row_has_its_column() -> None:
    """The names and the values are written down apart from each other, in the same order."""
    labels = {"model": "asked"} | {name: name for name in Labels.__struct_fields__[1:]}
    for row, names, values, table in (
        (FULL_CALL, _CALL, _call_values(FULL_CALL, plain), calls),
        (FULL_ATTEMPT, _ATTEMPT, _attempt_values(FULL_ATTEMPT, plain), attempts),
    ):
        flat = msgspec.structs.asdict(row)
        for name, value in msgspec.structs.asdict(flat.pop("labels")).items():
            flat[labels[name]] = value
        if table is attempts:
            # the name that was asked for and the vendor's are two
            assert flat["model"] == "gpt-5-mini"
        assert dict(zip(names, values, strict=True)) == flat
        later = {"counted_input", "counted_output"} if table is attempts else set()
        assert set(names) == {column.name for column in table.c} - later
    exposed = msgspec.structs.asdict(FULL_EXPOSURE)
    assert dict(zip(_EXPOSURE, _exposure_values(FULL_EXPOSURE), strict=True)) == exposed
    assert list(_EXPOSURE) == [column.name for column in exposures.c]


@pytest.mark.parametrize("call", [FULL_CALL, CallRow("req_1", 1, Labels("m"), "openai.chat", False, "j1")])
async def test_a_call_comes_back_as_it_was(store: Store, call: CallRow) -> None:
    await bring(store, Closed(call))
    assert await the_call(store) == call
    async with store.reading() as connection:
        # nothing said is NULL, not the JSON of nothing
        no_error = (await connection.execute(select(calls.c.id).where(calls.c.error.is_(None)))).all()
    assert bool(no_error) is (call.error is None)


@pytest.mark.parametrize("attempt", [FULL_ATTEMPT, AttemptRow("req_1", 1, 1, Labels("m"), "mock", "echo", "j1")])
async def test_an_attempt_comes_back_as_it_was(store: Store, attempt: AttemptRow) -> None:
    await bring(store, Settled(attempt))
    assert await the_attempt(store) == attempt


@pytest.mark.parametrize("shadow_of", [None, "req_0"])
async def test_an_exposure_comes_back_as_it_was_first_said(store: Store, shadow_of: str | None) -> None:
    said = msgspec.structs.replace(FULL_EXPOSURE, shadow_of=shadow_of)
    other = msgspec.structs.replace(said, arm="control", shares="control=100")
    await bring(store, Opened(attempt(), call(), said))
    await bring(store, Closed(call("finished"), other), first=2)
    async with store.reading() as connection:
        (found,) = (await connection.execute(select(exposures))).mappings()
    assert Exposure(**found) == said


# -- settled once --------------------------------------------------------------------------------------------------


def attempt(outcome: Outcome | None = None, output: int = 0, n: int = 1, id: str = "req_1") -> AttemptRow:  # noqa: A002
    settled = None if outcome is None else 2
    return AttemptRow(id, n, 1, Labels("m"), "mock", "echo", "j1", settled, outcome, output=output)


def call(outcome: Outcome | None = None, target: str | None = None, id: str = "req_1") -> CallRow:  # noqa: A002
    return CallRow(id, 1, Labels("m"), "openai.chat", True, "j1", {}, 2, outcome, target)


async def test_tokens_follow_until_the_settlement(store: Store) -> None:
    await bring(store, Opened(attempt(), call()))
    for output in (5, 9):
        await bring(store, Progress(attempt(output=output)))
        assert (await the_attempt(store)).output == output
    await bring(store, Settled(attempt("finished", 12)), Closed(call("finished", "mock/echo")))
    assert await the_attempt(store) == attempt("finished", 12)
    assert await the_call(store) == call("finished", "mock/echo")


@pytest.mark.parametrize("outcome", [outcome for outcome in OUTCOMES if outcome != "interrupted"])
async def test_a_settled_row_is_never_changed(store: Store, outcome: Outcome) -> None:
    await bring(store, Settled(attempt(outcome, 12)), Closed(call(outcome, "a/b")))
    for other in (None, "finished", "interrupted"):
        await bring(store, Settled(attempt(other, 99)), Closed(call(other, "x/y")))
    assert await the_attempt(store) == attempt(outcome, 12)
    assert await the_call(store) == call(outcome, "a/b")


async def test_an_interrupted_row_gives_way_to_its_real_end_alone(store: Store) -> None:
    await bring(store, Settled(attempt("interrupted", 5)), Closed(call("interrupted")))
    await bring(store, Progress(attempt(None, 9)), Closed(call(None, "x/y")))
    await bring(store, Settled(attempt("interrupted", 9)), Closed(call("interrupted", "x/y")))
    assert await the_attempt(store) == attempt("interrupted", 5)
    assert await the_call(store) == call("interrupted")
    await bring(store, Settled(attempt("finished", 12)), Closed(call("finished", "a/b")))
    assert await the_attempt(store) == attempt("finished", 12)
    assert await the_call(store) == call("finished", "a/b")


async def test_what_our_tokenizer_counts_stays_beside_what_was_reported(store: Store) -> None:
    await bring(store, Settled(attempt("finished", 12)), Audited("req_1", 1, 7, 11))
    await bring(store, Settled(attempt("finished", 12)), Audited("req_9", 1, 1, 1))
    async with store.reading() as connection:
        counted = select(attempts.c.output, attempts.c.counted_input, attempts.c.counted_output)
        assert (await connection.execute(counted)).all() == [(12, 7, 11)]


async def test_a_gap_is_counted_once(store: Store) -> None:
    gap = Gap("gap_1", "j1", 1, 2, 3, 4, 5, 6, {"USD": 7, "CNY": -(2**60)})
    await bring(store, gap)
    await bring(store, gap)
    async with store.reading() as connection:
        assert [dict(row) for row in (await connection.execute(select(gaps))).mappings()] == [
            msgspec.structs.asdict(gap)
        ]


# -- sequences -----------------------------------------------------------------------------------------------------


def beginning(name: str, arm: str | None) -> tuple[CallRow, Exposure | None]:
    """What comes with the first attempt of a call: in one arm, if any, as long as the test lasts."""
    exposed = None if arm is None else Exposure(name, 1, "trial", name, arm, "user", False, "a=100", None, "j1")
    return call(id=name), exposed


def is_first(row: dict[str, Any]) -> bool:
    return bool(row["n"] == 1)


ROWS = st.builds(lambda name, n: {"id": name, "n": n}, st.sampled_from(["req_1", "req_2"]), st.integers(1, 2))
TOKENS = st.integers(0, 99)
REAL_ENDS = st.sampled_from([outcome for outcome in OUTCOMES if outcome != "interrupted"])
ARMS = st.sampled_from([None, "control", "qwen"])
RECORDS = st.lists(
    st.one_of(
        st.builds(lambda row, arm: Opened(attempt(**row), *beginning(row["id"], arm)), ROWS.filter(is_first), ARMS),
        st.builds(lambda row: Opened(attempt(**row)), ROWS),
        st.builds(lambda row, tokens: Progress(attempt(None, tokens, **row)), ROWS, TOKENS),
        st.builds(lambda row, end, tokens: Settled(attempt(end, tokens, **row)), ROWS, REAL_ENDS, TOKENS),
        st.builds(lambda row, end: Closed(call(end, "a/b", row["id"])), ROWS, REAL_ENDS),
        st.builds(lambda row: Audited(row["id"], row["n"], 7, 8), ROWS),
        st.builds(lambda row: Gap(row["id"], "j1", 1, 2, 3, 4, 5, 6), ROWS),
    ),
    max_size=16,
)


def told_in_order(records: list[Record]) -> list[Record]:
    """The records as a process can have written them: nothing on a row after its end, nor before its beginning."""
    open_attempts, open_calls, told = set[tuple[str, int]](), set[str](), list[Record]()
    known = set[tuple[str, int]]()
    for record in records:
        match record:
            case Opened(row, first, _):
                if (row.call_id, row.n) in known or (first is not None and first.id in open_calls):
                    continue
                known.add((row.call_id, row.n))
                open_attempts.add((row.call_id, row.n))
                if first is not None:
                    open_calls.add(first.id)
            case Progress(row) if (row.call_id, row.n) not in open_attempts:
                continue
            case Settled(row):
                if (row.call_id, row.n) not in open_attempts:
                    continue
                open_attempts.remove((row.call_id, row.n))
            case Closed(row):
                if row.id not in open_calls:
                    continue
                open_calls.remove(row.id)
            case Audited(id, n) if (id, n) not in known or (id, n) in open_attempts:
                continue
        told.append(record)
    return told


@pytest.mark.parametrize("backend", BACKENDS)
def test_records_brought_in_twice_and_in_pieces_leave_the_same_rows(backend: Backend, tmp_path: Path) -> None:
    """A process that dies between the store's commit and its own note of it brings the same records in again."""
    with asyncio.Runner() as runner:

        async def emptied(store: Store) -> None:
            async with store.writing() as connection:
                for table in (calls, attempts, exposures, gaps, journals):
                    await connection.execute(delete(table))

        async def once(store: Store, records: list[Record]) -> Any:
            await emptied(store)
            await bring_in(store, batch_of(records), 1)
            return await rows(store)

        async def in_pieces(store: Store, records: list[Record], cuts: random.Random) -> Any:
            await emptied(store)
            done = 0
            while True:
                # each piece may begin before the end of the one before
                begin = cuts.randint(max(0, done - 4), done)
                done = cuts.randint(done, len(records))
                await bring_in(store, batch_of(records[begin:done], begin + 1), 2)
                if done == len(records):
                    break
            again = cuts.randint(0, len(records))
            await bring_in(store, batch_of(records[again:], again + 1), 3)
            return await rows(store)

        opening = store_url(backend, tmp_path, migrated=True)
        url = runner.run(opening.__aenter__())
        store = Store(url)
        runner.run(store.open())

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(RECORDS.map(told_in_order), st.randoms(use_true_random=False))
        def hold(records: list[Record], cuts: random.Random) -> None:
            expected = runner.run(once(store, records))
            assert runner.run(in_pieces(store, records, cuts)) == expected

        try:
            hold()
        finally:
            runner.run(store.close())
            runner.run(opening.__aexit__(None, None, None))


# -- journals ------------------------------------------------------------------------------------------------------


async def test_open_rows_are_those_of_the_journal_that_have_no_outcome(store: Store) -> None:
    await bring_in(store, batch_of([Opened(attempt(id="req_2"), call(id="req_2"))]), 1)
    await bring(store, Opened(attempt(), call()), Progress(attempt(output=3)), first=2)
    await bring(store, Settled(attempt("failed", n=2)), Closed(call("failed", id="req_3")), first=4)
    other = msgspec.structs.replace(attempt(n=3), journal="j2")
    await bring_in(store, batch_of([Opened(other)], journal="j2"), 1)
    assert await open_rows(store, "j1") == (
        [call(), call(id="req_2")],
        [attempt(output=3), attempt(id="req_2")],
    )
    assert await open_rows(store, "j2") == ([], [other])
    assert await open_rows(store, "j3") == ([], [])


async def test_a_journal_is_known_from_its_enrolment_to_its_close(store: Store) -> None:
    assert await applied(store, "j1") is None
    await enrol(store, "j1", "here", 100)
    assert await applied(store, "j1") == 0
    await bring_in(store, batch_of([Progress(attempt())], 7), 200)
    await bring_in(store, batch_of([Progress(attempt())], 3), 200)
    # what recovery settles is in no journal
    await bring_in(store, Batch("j1", attempts={("req_1", 1): attempt("interrupted")}), 200)
    assert await applied(store, "j1") == 7

    await enrol(store, "j2", "there", 250)
    assert await abandoned_journals(store, 200) == []
    assert await abandoned_journals(store, 201) == ["j1"]
    await heartbeat(store, "j1", 300)
    assert await abandoned_journals(store, 300) == ["j2"]
    assert await abandoned_journals(store, 301) == ["j1", "j2"]
    await close_journal(store, "j1", 400)
    await close_journal(store, "j2", 400)
    assert await abandoned_journals(store, 1000) == []
    async with store.reading() as connection:
        hosts = select(journals.c.id, journals.c.host, journals.c.closed_at).order_by(journals.c.id)
        assert (await connection.execute(hosts)).all() == [("j1", "here", 400), ("j2", "there", 400)]


async def test_a_process_that_was_taken_for_dead_is_heard_again(store: Store) -> None:
    await enrol(store, "j1", "here", 100)
    for alive in (lambda: heartbeat(store, "j1", 500), lambda: bring(store), lambda: enrol(store, "j1", "here", 500)):
        await close_journal(store, "j1", 400)
        assert await abandoned_journals(store, 10_000) == []
        await alive()
        assert await abandoned_journals(store, 10_000) == ["j1"]


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        msgspec.structs.replace(attempt("finished"), input=2**63),
        msgspec.structs.replace(attempt("finished"), vendor_request_id="\ud800"),
        msgspec.structs.replace(attempt("finished"), provider=None),
    ],
    ids=["number", "text", "nothing"],
)
async def test_a_row_that_cannot_be_stored_is_no_failure_of_the_store(store: Store, bad: AttemptRow) -> None:
    """The writer then brings the others in without it; with a store that is away it would wait for ever."""
    good = Settled(attempt("finished", id="req_0"))
    with pytest.raises(Exception, match=r".") as caught:
        await bring(store, good, Settled(bad))
    assert not isinstance(caught.value, StoreAway)
    assert (await rows(store))["attempts"] == []
    await bring(store, good)
    assert await the_attempt(store) == attempt("finished", id="req_0")
