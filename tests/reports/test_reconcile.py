"""A bill beside the ledger: what differs, by how much, and what only one of them knows."""

from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.bill import Bill, Columns, Entry, Mapping, read
from router.ledger.rows import TOKEN_CLASSES
from router.money import decimal_of
from router.reconcile import Difference, Missing, bucket_of, compare, providers_in, recorded, spans

EXACT: dict[str, Any] = {"percent": Decimal(0), "amount": Decimal(0)}


def sums(start: str, target: str, *, requests: int = 1, cost: dict[str, int] | None = None, **tokens: int) -> Any:
    """A row of `GET /v1/usage?by=target,provider`."""
    return {
        "start": start,
        "group": {"target": target, "provider": target.partition("/")[0]},
        "metered": requests,
        "tokens": dict.fromkeys(TOKEN_CLASSES, 0) | tokens,
        "cost": {
            "amounts": [{"amount": decimal_of(nano), "currency": code} for code, nano in (cost or {}).items()],
            "unpriced": 0,
        },
    }


def bill_of(text: str, **told: Any) -> Bill:
    columns = Columns(date="d", model="m", requests="r", prompt="p", output="o", cost="c")
    return read(f"d,m,r,p,o,c\n{text}".encode(), Mapping(columns=columns, currency="USD", **told))


MIDNIGHT = "2026-10-01T00:00:00Z"
SAME = sums(MIDNIGHT, "openai/gpt-5", requests=2, input=60, cache_read=40, output=5, reasoning=5, cost={"USD": 1500})


def test_what_agrees_agrees() -> None:
    bill = bill_of("2026-10-01,gpt-5,2,100,10,0.0000015\n")
    result = compare(bill, recorded([SAME], bill, "openai"), **EXACT)
    assert result.agrees
    assert result.compared == 1


def test_what_differs_is_told_with_its_measure_and_share() -> None:
    bill = bill_of("2026-10-01,gpt-5,4,80,10,0.0000010\n")
    result = compare(bill, recorded([SAME], bill, "openai"), **EXACT)
    assert result.differences == [
        Difference("2026-10-01", "gpt-5", "requests", 4, 2),
        Difference("2026-10-01", "gpt-5", "prompt", 80, 100),
        Difference("2026-10-01", "gpt-5", "cost", 1000, 1500, "USD"),
    ]
    assert [(found.difference, found.percent) for found in result.differences] == [(-2, -50), (20, 25), (500, 50)]
    tolerant = compare(bill, recorded([SAME], bill, "openai"), percent=Decimal(25), amount=Decimal(0))
    assert [found.measure for found in tolerant.differences] == ["requests", "cost"]
    rounded = compare(bill, recorded([SAME], bill, "openai"), percent=Decimal(50), amount=Decimal("0.01"))
    assert rounded.agrees


def test_what_only_one_side_knows_is_told() -> None:
    bill = bill_of("2026-10-01,gpt-5,2,100,10,0.0000015\n2026-10-02,gpt-5,1,7,1,0\n2026-10-02,nothing,0,0,0,0\n")
    other = sums("2026-10-01T00:00:00Z", "openai/o5", input=9)
    unbilled = sums("2026-10-01T00:00:00Z", "openai/failed", requests=0)
    another = sums("2026-10-01T00:00:00Z", "qwen/qwen-plus", input=9)
    result = compare(bill, recorded([SAME, other, unbilled, another], bill, "openai"), **EXACT)
    assert [(one.missing_in, one.period, one.model) for one in result.missing] == [
        ("bill", "2026-10-01", "o5"),
        ("ledger", "2026-10-02", "gpt-5"),
    ]
    assert result.missing[1] == Missing(
        "ledger", "2026-10-02", "gpt-5", Entry({"requests": 1, "prompt": 7, "output": 1}, {"USD": 0})
    )
    assert providers_in([SAME, another, unbilled]) == ["openai", "qwen"]


@pytest.mark.parametrize("billed", ["gpt-5-2026-08-07", "gpt-5@20260807", "GPT-5", "alias"])
def test_the_version_that_answered_is_the_model_that_was_asked_for(billed: str) -> None:
    bill = bill_of(f"2026-10-01,{billed},2,100,10,0.0000015\n", models={"alias": "gpt-5"})
    assert compare(bill, recorded([SAME], bill, "openai"), **EXACT).agrees


def test_a_name_that_only_looks_dated_is_kept() -> None:
    bill = bill_of("2026-10-01,qwen-plus-0919,2,100,10,0.0000015\n")
    assert not compare(bill, recorded([SAME], bill, "openai"), **EXACT).agrees


def test_days_of_another_zone_are_summed_from_hours() -> None:
    """A day in China ends at 16:00 UTC."""
    bill = bill_of("2026-10-01,gpt-5,1,1,1,0\n2026-10-02,gpt-5,1,2,1,0\n", timezone="+08:00")
    assert bucket_of(bill) == "hour"
    assert spans(bill) == [("2026-09-30T16:00:00Z", "2026-10-02T16:00:00Z")]
    hours = [
        sums("2026-10-01T15:00:00Z", "openai/gpt-5", input=1, output=1),
        sums("2026-10-01T16:00:00Z", "openai/gpt-5", input=2, output=1),
    ]
    assert compare(bill, recorded(hours, bill, "openai"), **EXACT).agrees


def test_months_and_bills_without_models_are_folded() -> None:
    bill = read(b"d,p\n2026-10,12\n", Mapping(columns=Columns(date="d", prompt="p")))
    assert spans(bill) == [("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z")]
    days = [sums(MIDNIGHT, "openai/a", input=5), sums("2026-10-31T00:00:00Z", "openai/b", input=7)]
    assert compare(bill, recorded(days, bill, "openai"), **EXACT).agrees


@given(st.dates(date(2000, 1, 1), date(2098, 1, 1)), st.integers(0, 400), st.sampled_from([0, 8, -5, 14]))
def test_spans_cover_every_moment_of_the_bill_once(first: date, days: int, hours: int) -> None:
    last = first + timedelta(days=days)
    bill = read(f"d,p\n{first},1\n{last},1\n".encode(), Mapping(columns=Columns(date="d", prompt="p")), hours=hours)
    found = spans(bill)
    assert all(before[1] == after[0] for before, after in pairwise(found))
    start, end = datetime.fromisoformat(found[0][0]), datetime.fromisoformat(found[-1][1])
    midnight = datetime.fromisoformat(f"{first}T00:00:00+00:00")
    assert start == midnight - timedelta(hours=hours)
    assert end - start == timedelta(days=days + 1)
