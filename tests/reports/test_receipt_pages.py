"""Pages of receipts: nothing twice, nothing missing, and never a look at rows that are not on the page."""

import re
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy import text
from sqlalchemy.dialects import postgresql, sqlite

from router.store.receipts import Counted, page, receipt, receipts
from router.store.selection import Selection
from router.store.store import Store
from support.ledgers import DAY, START, Ledger, call_id, random_ledger

ODD_TAG = ('we "quote" — ünï', "x,y")


@pytest.fixture
async def ledger(store: Store) -> Ledger:
    # three days: many calls share a millisecond
    made = random_ledger(5, 300, days=3)
    await made.into(store)
    return made


SELECTIONS: list[tuple[Selection, Any]] = [
    (Selection(), lambda call: True),
    (Selection(key="dw-one"), lambda call: call.labels.key == "dw-one"),
    (Selection(user="=cmd|' /C calc'!A0"), lambda call: call.labels.user == "=cmd|' /C calc'!A0"),
    (Selection(team="a", key="dw-two"), lambda call: (call.labels.team, call.labels.key) == ("a", "dw-two")),
    (Selection(model="fast", route="chat"), lambda call: (call.labels.model, call.labels.route) == ("fast", "chat")),
    (Selection(outcomes=("finished",)), lambda call: call.outcome == "finished"),
    (Selection(outcomes=("failed", "running")), lambda call: call.outcome in ("failed", None)),
    (Selection(provider="qwen"), lambda call: (call.target or "").startswith("qwen/")),
    (Selection(target="eurovend/gros/modele"), lambda call: call.target == "eurovend/gros/modele"),
    (Selection(tags=(("team", "a"), ("feature", "s"))), lambda call: call.labels.tags.get("feature") == "s"),
    (Selection(tags=(ODD_TAG,)), lambda call: ODD_TAG[0] in call.labels.tags),
    (Selection(experiment="trial", arm="new"), lambda call: call.labels.arm == "new"),
    (
        Selection(since=START + DAY, until=START + 2 * DAY, key="dw-one"),
        lambda call: START + DAY <= call.created_at < START + 2 * DAY and call.labels.key == "dw-one",
    ),
    (Selection(since=START + 1, until=START + 2), lambda call: call.created_at == START + 1),
    (Selection(user="nobody"), lambda call: False),
]


def newest_first(ledger: Ledger, keep: Any) -> list[str]:
    return sorted((call.id for call in ledger.calls if keep(call)), reverse=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(selected=st.sampled_from(SELECTIONS), limits=st.lists(st.integers(1, 100), min_size=1, max_size=5))
async def test_pages_forwards_and_backwards_hold_every_call_once(
    store: Store, ledger: Ledger, selected: Any, limits: list[int]
) -> None:
    selection, keep = selected
    wanted = newest_first(ledger, keep)
    forwards: list[str] = []
    ends: list[str] = []
    after: str | None = None
    while True:
        limit = limits[len(ends) % len(limits)]
        found = await receipts(store, selection, after=after, limit=limit)
        ids = [receipt.call.id for receipt in found.receipts]
        assert len(ids) == limit or not found.more
        forwards += ids
        if not found.more:
            break
        after = ids[-1]
        ends.append(after)
    assert forwards == wanted
    backwards: list[str] = []
    before = "req_0"
    while True:
        # from the oldest on; each page still has its newest first
        found = await receipts(store, selection, before=before, limit=limits[0])
        ids = [receipt.call.id for receipt in found.receipts]
        backwards = ids + backwards
        if not found.more:
            break
        before = ids[0]
    assert backwards == wanted


async def test_a_page_comes_with_its_attempts_in_order(store: Store, ledger: Ledger) -> None:
    found = await receipts(store, Selection(), limit=100)
    for receipt_ in found.receipts:
        wanted = [row for row in ledger.attempts if row.call_id == receipt_.call.id]
        assert receipt_.attempts == wanted
        assert receipt_.call in ledger.calls
        audited = {
            a.n: Counted(a.counted_input, a.counted_output) for a in ledger.audits if a.call_id == receipt_.call.id
        }
        assert receipt_.audits == audited


async def test_calls_that_come_in_meanwhile_do_not_move_a_page(store: Store, ledger: Ledger) -> None:
    first = await receipts(store, Selection(), limit=50)
    later = [
        structs.replace(call, id=call_id(START + 50 * DAY, number)) for number, call in enumerate(ledger.calls[:20])
    ]
    await Ledger(later).into(store)
    second = await receipts(store, Selection(), after=first.receipts[-1].call.id, limit=50)
    assert [receipt.call.id for receipt in second.receipts] == newest_first(ledger, lambda call: True)[50:100]


async def test_a_receipt_is_shown_to_its_key_alone(store: Store, ledger: Ledger) -> None:
    call = next(call for call in ledger.calls if call.labels.key == "dw-one")
    own = await receipt(store, call.id, key="dw-one")
    assert own is not None
    assert own.call == call
    assert await receipt(store, call.id, key="dw-two") is None
    assert await receipt(store, call.id) == own
    assert await receipt(store, "req_0") is None


PAGES = {
    "all": (Selection(), None),
    "key": (Selection(key="dw-one"), "calls_by_key"),
    "user": (Selection(user="u1"), "calls_by_user"),
    "team": (Selection(team="a"), "calls_by_team"),
    "model": (Selection(model="chat"), "calls_by_asked"),
    "outcome": (Selection(outcomes=("finished",)), "calls_by_outcome"),
    "key and outcome": (Selection(key="dw-one", outcomes=("finished",)), "calls_by_"),
    "key and days": (Selection(key="dw-one", since=START + DAY, until=START + 30 * DAY), "calls_by_key"),
    "days": (Selection(since=START + DAY, until=START + 30 * DAY), None),
    "several outcomes": (Selection(outcomes=("finished", "failed")), None),
    "key and tag": (Selection(key="dw-one", tags=(("team", "a"),)), "calls_by_key"),
    "provider": (Selection(provider="openai"), None),
}


GUESSED = ("key and tag", "provider")
"""How many rows have a tag Postgres can only guess: in a table of a few thousand it may as well read them all."""


async def test_every_page_is_read_by_an_index_in_its_order(store: Store) -> None:
    """Neither a look at the whole table nor a sort: the ten-thousandth page costs what the first one does."""
    ledger = random_ledger(1, 3000)
    await ledger.into(store)
    async with store.writing() as connection:
        await connection.execute(text("ANALYZE"))
    middle = sorted(call.id for call in ledger.calls)[1500]
    cursors: list[dict[str, Any]] = [{}, {"after": middle}, {"before": middle}]
    dialect = sqlite.dialect() if store.dialect == "sqlite" else postgresql.dialect()
    explain = "EXPLAIN QUERY PLAN" if store.dialect == "sqlite" else "EXPLAIN"
    for name, cursor in product(PAGES, cursors):
        selection, index = PAGES[name]
        if name in GUESSED and store.dialect == "postgresql":
            continue
        query = page(selection, store.dialect, **cursor)
        sql = str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})).replace("%%", "%")
        async with store.reading() as connection:
            rows = await connection.exec_driver_sql(f"{explain} {sql}")
            plan = f"{name} {cursor}: " + "\n".join(str(row[-1]) for row in rows)
        assert not re.search("B-TREE|Seq Scan|Sort|Bitmap", plan), plan
        assert re.search("SEARCH calls USING INDEX|SCAN calls USING INDEX|Index Scan", plan), plan
        if index is not None:
            assert index in plan, plan
