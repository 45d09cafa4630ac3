"""Charges in the FOCUS format: what a row says, and that nothing is lost between its rows."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from router.events import Usage
from router.focus import COLUMNS, Charges, TooMany, apportion
from router.ledger.rows import TOKEN_CLASSES, AttemptRow, Labels
from router.prices.card import Part
from router.provider import Target
from support.ledgers import DAY, START, Book

MANDATORY = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd"),
    *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity"),
    *("PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
)
"""Of the cost and usage dataset in version 1.2."""


def attempt(usage: Usage, at: int = START, **more: Any) -> tuple[AttemptRow, tuple[Part, ...]]:
    made = Book().breakdown(Target("openai", "gpt-5-mini"), usage, at)
    assert made is not None
    classes = {name: getattr(usage, name) for name in TOKEN_CLASSES}
    labels = Labels("chat", "chat", "dw-one", "u1", "a", {"feature": "s", "b": "ü"})
    row = AttemptRow(
        *("req_1", 1, at, labels, "openai", "gpt-5-mini", "j"),
        **classes, source="reported", cost=made.cost.nano, currency="USD",
        price="openai/gpt-5-mini@2026-08-07#priority",
    )  # fmt: skip
    return structs.replace(row, **more), made.parts


def rows_of(*attempts: tuple[AttemptRow, Any]) -> list[dict[str, str]]:
    charges = Charges(1000)
    for row, parts in attempts:
        charges.add(row, parts)
    return list(charges.rows())


def test_a_row_says_what_the_specification_asks() -> None:
    at = int(datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp()) * 1000
    (row,) = rows_of(attempt(Usage(cache_read=1_500_000), at))
    assert tuple(row) == COLUMNS
    assert set(MANDATORY) <= set(COLUMNS)
    assert row == dict.fromkeys(COLUMNS, "") | {
        "BilledCost": "0.375000002",
        "BillingAccountId": "openai",
        "BillingAccountName": "openai",
        "BillingAccountType": "Provider",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": "2027-01-01T00:00:00Z",
        "BillingPeriodStart": "2026-12-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeDescription": "Cached Input Tokens of openai/gpt-5-mini",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2027-01-01T00:00:00Z",
        "ChargePeriodStart": "2026-12-31T00:00:00Z",
        "ConsumedQuantity": "1500000",
        "ConsumedUnit": "Tokens",
        "ContractedCost": "0.375000002",
        "ContractedUnitPrice": "0.250000001",
        "EffectiveCost": "0.375000002",
        "InvoiceIssuerName": "openai",
        "ListCost": "0.375000002",
        "ListUnitPrice": "0.250000001",
        "PricingCategory": "Standard",
        "PricingQuantity": "1.5",
        "PricingUnit": "1000000 Tokens",
        "ProviderName": "openai",
        "PublisherName": "openai",
        "ResourceId": "openai/gpt-5-mini",
        "ResourceName": "gpt-5-mini",
        "ResourceType": "Model",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model inference",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "openai/gpt-5-mini:cache_read",
        "SkuMeter": "Cached Input Tokens",
        "SkuPriceId": "openai/gpt-5-mini#priority:cache_read",
        "SubAccountId": "dw-one",
        "SubAccountType": "Key",
        "Tags": '{"b":"ü","feature":"s"}',
        "x_AskedModel": "chat",
        "x_EstimatedQuantity": "0",
        "x_PriceId": "openai/gpt-5-mini@2026-08-07#priority",
        "x_Team": "a",
        "x_TokenClass": "cache_read",
        "x_User": "u1",
    }


TOKENS = st.fixed_dictionaries({name: st.integers(0, 5000) for name in TOKEN_CLASSES})


@given(st.lists(st.tuples(TOKENS, st.integers(0, 2)), min_size=1, max_size=12), st.integers(-5, 5))
def test_rows_add_up_to_what_was_charged_and_counted(made: list[tuple[dict[str, int], int]], off: int) -> None:
    """`off`: the price was another one when it was charged."""
    attempts = [attempt(Usage(**tokens), START + day * DAY) for tokens, day in made]
    attempts = [(structs.replace(row, cost=max((row.cost or 0) + off, 0)), parts) for row, parts in attempts]
    rows = rows_of(*attempts)
    assert sum(Decimal(row["BilledCost"]) for row in rows) == sum(
        Decimal(row.cost or 0).scaleb(-9) for row, parts in attempts if parts or row.cost
    )
    for name in TOKEN_CLASSES:
        counted = sum(int(row["ConsumedQuantity"]) for row in rows if row["x_TokenClass"] == name)
        known = [row for row, parts in attempts if not row.cost or any(part.nano for part in parts)]
        assert counted == sum(getattr(row, name) for row in known)
    for row in rows:
        if row["ListUnitPrice"]:
            listed = Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
            # each attempt was rounded to a nano-unit
            assert abs(listed - Decimal(row["ListCost"])) <= Decimal(len(attempts)).scaleb(-9)
        assert Decimal(row["PricingQuantity"]) * 10**6 == int(row["ConsumedQuantity"])


@given(st.integers(0, 10**12), st.lists(st.fractions(0, 10**6), min_size=1, max_size=8))
def test_an_amount_is_divided_without_a_rest(total: int, weights: list[Fraction]) -> None:
    if not any(weights):
        weights = [*weights, Fraction(1)]
    parts = apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1
        assert weight or not part


def test_an_attempt_whose_price_is_not_known_any_more_is_one_row() -> None:
    row, _ = attempt(Usage(input=30, output=12))
    (charge,) = rows_of((row, None))
    assert (charge["x_TokenClass"], charge["ConsumedQuantity"], charge["ListUnitPrice"]) == ("all", "42", "")
    assert Decimal(charge["BilledCost"]) == Decimal(row.cost or 0).scaleb(-9)


def test_an_attempt_without_a_price_is_counted_and_no_row() -> None:
    row, _ = attempt(Usage(input=30))
    charges = Charges(10)
    charges.add(structs.replace(row, cost=None, currency=None, price=None), None)
    charges.add(structs.replace(row, input=0, cost=None, currency=None, price=None, source=None), None)
    assert (list(charges.rows()), charges.unpriced) == ([], 1)


def test_what_differs_is_in_rows_of_its_own_and_what_does_not_in_one() -> None:
    row, parts = attempt(Usage(input=10))
    labels = row.labels
    others = [
        structs.replace(row, created_at=START + DAY),
        structs.replace(row, model="gpt-5"),
        structs.replace(row, labels=structs.replace(labels, tags={})),
        structs.replace(row, labels=structs.replace(labels, key=None)),
        structs.replace(row, currency="CNY"),
        structs.replace(row, price="another@2026-01-01"),
        structs.replace(row, source="estimated"),
    ]
    rows = rows_of((row, parts), *((other, parts) for other in others))
    assert len(rows) == 7
    (same,) = [charge for charge in rows if charge["ConsumedQuantity"] == "20"]
    assert same["x_EstimatedQuantity"] == "10"
    assert {json.loads(charge["Tags"]).get("feature") for charge in rows} == {"s", None}


def test_more_rows_than_allowed_are_refused() -> None:
    charges = Charges(1)
    row, parts = attempt(Usage(input=10, output=3))
    with pytest.raises(TooMany):
        charges.add(row, parts)
