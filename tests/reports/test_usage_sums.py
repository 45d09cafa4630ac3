"""The sums of the ledger against the same sums reckoned one row at a time."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.events import Usage
from router.ledger.rows import TOKEN_CLASSES, AttemptRow, CallRow, Gap, usage_of
from router.provider import Target
from router.store.selection import Selection
from router.store.store import Store
from router.store.usage import DIMENSIONS, TooManyGroups, usage
from support.ledgers import DAY, START, TARGETS, Book, Ledger, random_ledger, tokens_of

ODD_TAG = 'tag:we "quote" — ünï'
LABELS = ("key", "user", "team", "route", "experiment", "arm")


def of_attempt(row: AttemptRow, name: str) -> Any:
    if name.startswith("tag:"):
        return row.labels.tags.get(name[4:])
    if name in LABELS:
        return getattr(row.labels, name)
    return {
        "model": row.labels.model,
        "target": f"{row.provider}/{row.model}",
        "provider": row.provider,
        "outcome": row.outcome or "running",
        "price": row.price,
        "currency": row.currency,
    }[name]


def of_call(row: CallRow, name: str) -> Any:
    if name.startswith("tag:"):
        return row.labels.tags.get(name[4:])
    if name in LABELS:
        return getattr(row.labels, name)
    return {
        "model": row.labels.model,
        "target": row.target,
        "provider": row.target and row.target.partition("/")[0],
        "outcome": row.outcome or "running",
    }[name]


def started(at: int, bucket: str | None) -> tuple[int, ...]:
    if bucket is None:
        return ()
    moment = datetime.fromtimestamp(at / 1000, UTC).replace(minute=0, second=0, microsecond=0)
    if bucket != "hour":
        moment = moment.replace(hour=0)
    if bucket == "month":
        moment = moment.replace(day=1)
    return (int(moment.timestamp() * 1000),)


def reckoned(
    ledger: Ledger, keep: Callable[[Any], bool], by: tuple[str, ...], bucket: str | None, today: Book
) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    audits = {(audit.call_id, audit.n): audit for audit in ledger.audits}
    calls: dict[Any, list[CallRow]] = {}
    attempts: dict[Any, list[AttemptRow]] = {}
    for call in filter(keep, ledger.calls):
        if not {"price", "currency"} & set(by):
            group = (*started(call.created_at, bucket), *(of_call(call, name) for name in by))
            calls.setdefault(group, []).append(call)
    for row in filter(keep, ledger.attempts):
        group = (*started(row.created_at, bucket), *(of_attempt(row, name) for name in by))
        attempts.setdefault(group, []).append(row)
    for group in calls.keys() | attempts.keys():
        rows = attempts.get(group, [])
        estimated = [row for row in rows if row.source == "estimated"]
        audited = [row for row in rows if (row.call_id, row.n) in audits]
        totals = [(usage_of(row) or Usage()) for row in estimated]
        found[group] = {
            "requests": len(calls.get(group, ())),
            "outcomes": Counter(call.outcome or "running" for call in calls.get(group, ())),
            "attempts": len(rows),
            "metered": sum(row.source is not None for row in rows),
            "tokens": tokens_of(rows),
            "estimated": len(estimated),
            "estimated_input": sum(total.prompt_total for total in totals),
            "estimated_output": sum(total.completion_total for total in totals),
            "flagged": sum(row.flag is not None for row in rows),
            "unpriced": sum(row.cost is None and any(getattr(row, name) for name in TOKEN_CLASSES) for row in rows),
            "amounts": charged(rows, lambda row: (row.cost, row.currency)),
            "converted": converted(rows, lambda row: (row.cost, row.currency)),
            "rerated": charged(rows, lambda row: anew(row, today)),
            "audit": (
                len(audited),
                sum((usage_of(row) or Usage()).prompt_total for row in audited),
                sum(audits[row.call_id, row.n].counted_input for row in audited),
                sum((usage_of(row) or Usage()).completion_total for row in audited),
                sum(audits[row.call_id, row.n].counted_output for row in audited),
            ),
        }
    return found


def anew(row: AttemptRow, book: Book) -> tuple[int | None, str | None]:
    used = usage_of(row)
    if used is None:
        return None, None
    target = Target(row.provider, row.model)
    cost = book.cost(target, used, row.created_at, service_tier=row.service_tier, thinking=row.thinking)
    return (None, None) if cost is None else (cost.nano, cost.currency)


def charged(rows: list[AttemptRow], cost: Callable[[AttemptRow], tuple[Any, Any]]) -> dict[str, int]:
    amounts: Counter[str] = Counter()
    for nano, currency in map(cost, rows):
        if nano is not None:
            amounts[currency] += nano
    return dict(amounts)


def converted(rows: list[AttemptRow], cost: Callable[[AttemptRow], tuple[Any, Any]]) -> int:
    days: Counter[tuple[int, str]] = Counter()
    for row in rows:
        nano, currency = cost(row)
        if nano is not None:
            days[row.created_at // DAY, currency] += nano
    return sum(Book().convert(nano, currency, "USD", day * DAY) or 0 for (day, currency), nano in days.items())


DAYS = st.one_of(st.none(), st.integers(0, 41))


@pytest.fixture
async def ledger(store: Store) -> Ledger:
    made = random_ledger(7, 400)
    await made.into(store)
    return made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    by=st.lists(st.sampled_from([*DIMENSIONS, "tag:team", ODD_TAG]), max_size=3, unique=True).map(tuple),
    bucket=st.sampled_from([None, "hour", "day", "month"]),
    first=DAYS,
    last=DAYS,
    key=st.sampled_from([None, None, "dw-one", "dw-none"]),
    provider=st.sampled_from([None, None, *(provider for provider, _ in TARGETS)]),
    outcomes=st.sampled_from([(), (), ("finished",), ("failed", "running"), ("running",)]),
    tags=st.sampled_from([(), (), (("team", "a"),), ((ODD_TAG[4:], "x,y"), ("team", "b"))]),
)
async def test_sums_are_those_of_the_rows(
    store: Store, ledger: Ledger, by: Any, bucket: Any, first: Any, last: Any, key: Any, provider: Any, outcomes: Any,
    tags: Any,
) -> None:  # fmt: skip
    since = None if first is None else START + first * DAY
    until = None if last is None else START + last * DAY
    selection = Selection(since=since, until=until, key=key, provider=provider, outcomes=outcomes, tags=tags)

    def keep(row: CallRow | AttemptRow) -> bool:
        ended = row.outcome or "running"
        at = row.target.partition("/")[0] if isinstance(row, CallRow) and row.target else getattr(row, "provider", None)
        return (
            (since is None or row.created_at >= since)
            and (until is None or row.created_at < until)
            and key in (None, row.labels.key)
            and provider in (None, at)
            and (not outcomes or ended in outcomes)
            and all(row.labels.tags.get(name) == value for name, value in tags)
        )

    today = Book(dearer=3)
    report = await usage(store, today, selection, by, bucket, "USD", rerate=True)
    wanted = reckoned(ledger, keep, by, bucket, today)
    assert set(report.groups) == set(wanted)
    for group, sums in report.groups.items():
        found = {
            "requests": sums.requests,
            "outcomes": sums.outcomes,
            "attempts": sums.attempts,
            "metered": sums.metered,
            "tokens": sums.tokens,
            "estimated": sums.estimated,
            "estimated_input": sums.estimated_input,
            "estimated_output": sums.estimated_output,
            "flagged": sums.flagged,
            "unpriced": sums.cost.unpriced,
            "amounts": sums.cost.amounts,
            "converted": sums.cost.converted,
            "rerated": sums.rerated.amounts if sums.rerated else {},
            "audit": tuple(getattr(sums.audit, name) for name in sums.audit.__struct_fields__),
        }
        assert found == wanted[group], group
    total = report.total
    assert total.attempts == sum(group["attempts"] for group in wanted.values())
    assert total.tokens == tokens_of(filter(keep, ledger.attempts))


async def test_a_retry_is_no_other_request(store: Store) -> None:
    ledger = random_ledger(11, 200, days=1)
    await ledger.into(store)
    report = await usage(store, Book(), Selection(), (), None, "USD")
    assert report.total.requests == 200
    assert report.total.attempts == len(ledger.attempts) != 200


async def test_an_amount_without_a_rate_is_listed_and_not_lost(store: Store) -> None:
    ledger = random_ledger(3, 50, days=2)
    await ledger.into(store)
    report = await usage(store, Book(), Selection(), (), None, "JPY")
    assert report.total.cost.converted == 0
    assert report.total.cost.unconverted == report.total.cost.amounts != {}


@pytest.mark.parametrize("currency", ["IDR", "USD"])
async def test_sums_of_many_small_coins_are_exact(store: Store, currency: str) -> None:
    ledger = random_ledger(3, 2, days=1)
    first = msgspec.structs.replace(ledger.attempts[0], cost=5 * 10**18, currency="IDR", price="p")
    rows = [first, msgspec.structs.replace(first, n=2, cost=5 * 10**18 + 1)]
    await Ledger(ledger.calls, rows, [], []).into(store)
    report = await usage(store, Book(), Selection(), (), None, currency)
    assert report.total.cost.amounts == {"IDR": 10**19 + 1}


async def test_more_groups_than_allowed_are_refused(store: Store) -> None:
    await random_ledger(3, 50, days=5).into(store)
    with pytest.raises(TooManyGroups):
        await usage(store, Book(), Selection(), ("user", "key"), "hour", "USD", most=10)


async def test_gaps_in_the_time_asked_for_are_told(store: Store) -> None:
    gaps = [
        Gap(f"gap_{day}", "jrn", START + day * DAY, START + day * DAY + 1000, 3, 4, 50, 60, {"USD": 7})
        for day in range(4)
    ]
    await Ledger([], [], [], gaps).into(store)
    report = await usage(store, Book(), Selection(since=START + DAY + 500, until=START + 3 * DAY), (), None, "USD")
    assert report.gaps == gaps[1:3]


async def test_an_empty_ledger_sums_to_nothing(store: Store) -> None:
    report = await usage(store, Book(), Selection(), (), None, "USD", rerate=True)
    assert report.groups == {}
    assert report.total.requests == 0
