"""The ledger as rows of FOCUS 1.2, the FinOps Open Cost and Usage Specification. Pure.

A row is what one class of tokens of one model cost in one day, for one key, user, team and set of tags, at one price.
The columns and their rules: https://focus.finops.org/focus-specification/v1-2/. All mandatory columns are here, and
of the conditional ones those whose condition can hold: a gateway sells no commitment and reserves no capacity.

A price that is not known is never zero, and FOCUS has no empty cost: attempts without a price make no row, they are
counted (`Charges.unpriced`).
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from msgspec import Struct

from router.ledger.rows import TOKEN_CLASSES, AttemptRow
from router.money import decimal_of, rounded, short_decimal
from router.prices.card import MILLION, Part

VERSION: Final = "1.2"
COLUMNS: Final = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
    # ours, as the specification asks: with `x_` before them
    "x_AskedModel",
    "x_EstimatedQuantity",
    "x_PriceId",
    "x_Team",
    "x_TokenClass",
    "x_User",
)
METERS: Final = {
    "input": "Input Tokens",
    "cache_read": "Cached Input Tokens",
    "cache_write": "Cache Write Tokens",
    "cache_write_1h": "One-hour Cache Write Tokens",
    "input_audio": "Audio Input Tokens",
    "output": "Output Tokens",
    "reasoning": "Reasoning Tokens",
    "output_audio": "Audio Output Tokens",
}
ALL: Final = "all"
"""The class of a row whose cost could not be told apart by classes."""
_DATED: Final = re.compile(r"@\d{4}(?:-\d{2}){1,2}")
_DAY_MS: Final = 86_400_000


class _Key(NamedTuple):
    day: int
    provider: str
    model: str
    asked: str
    key: str | None
    user: str | None
    team: str | None
    tags: str
    price: str
    currency: str
    token_class: str
    rate: int | None
    """Nano-units a million tokens; None where it is not what was charged."""


class _Sum(Struct):
    tokens: int = 0
    estimated: int = 0
    nano: int = 0


class TooMany(Exception):
    """The export would have more rows than it may."""


class Charges:
    """Gathers attempts; at most `most` rows come of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sums: dict[_Key, _Sum] = {}
        self.unpriced = 0
        """Attempts that used tokens at a price that is not known."""

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, row: AttemptRow, parts: Sequence[Part] | None) -> None:
        """`parts`: what the row's tokens cost at its price, class by class; None when that price is not known any
        more. The charged amount is divided in these proportions, to the last nano-unit. Raises `TooMany`."""
        used = sum(getattr(row, name) for name in TOKEN_CLASSES)
        if row.cost is None or row.currency is None:
            self.unpriced += bool(used)
            return
        labels = row.labels
        tags = json.dumps(labels.tags, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        for token_class, rate, tokens, nano in _divided(row.cost, used, parts):
            key = _Key(
                row.created_at // _DAY_MS,
                row.provider,
                row.model,
                labels.model,
                labels.key,
                labels.user,
                labels.team,
                tags,
                row.price or "",
                row.currency,
                token_class,
                rate,
            )
            found = self._sums.get(key)
            if found is None:
                if len(self._sums) >= self._most:
                    raise TooMany
                found = self._sums[key] = _Sum()
            found.tokens += tokens
            found.nano += nano
            if row.source == "estimated":
                found.estimated += tokens

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows by their columns, in a stable order. An empty text is FOCUS's null."""
        for key in sorted(self._sums, key=lambda key: tuple("" if part is None else str(part) for part in key)):
            yield _row(key, self._sums[key])


def apportion(total: int, weights: Sequence[Fraction | int]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to `total`: what is left over by rounding down goes to
    the largest remainders. The weights are zero or more, and not all zero unless `total` is."""
    whole = sum(weights, Fraction(0))
    if not whole:
        if total:
            raise ValueError("an amount cannot be divided by weights that are all zero")
        return [0] * len(weights)
    exact = [Fraction(total) * weight / whole for weight in weights]
    parts = [part.numerator // part.denominator for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _divided(cost: int, used: int, parts: Sequence[Part] | None) -> Iterator[tuple[str, int | None, int, int]]:
    """Class, nano-units a million tokens, tokens, nano-units charged for them."""
    exact = sum((part.nano for part in parts), Fraction(0)) if parts else Fraction(0)
    if not parts or (cost and not exact):
        if used or cost:
            yield ALL, None, used, cost
        return
    # a price that was charged is known; one of today's book that comes to something else was not
    charged = rounded(exact) == cost
    amounts = apportion(cost, [part.nano for part in parts])
    for part, nano in zip(parts, amounts, strict=True):
        yield part.token_class, part.rate if charged else None, part.tokens, nano


def _row(key: _Key, found: _Sum) -> dict[str, str]:
    start = datetime.fromtimestamp(key.day * _DAY_MS / 1000, UTC)
    month = start.replace(day=1)
    cost, target = decimal_of(found.nano), f"{key.provider}/{key.model}"
    meter = METERS.get(key.token_class, "Tokens")
    unit = "" if key.rate is None else short_decimal(key.rate)
    sku = f"{target}:{key.token_class}"
    price = f"{_DATED.sub('', key.price)}:{key.token_class}" if key.price else sku
    return {
        "BilledCost": cost,
        "BillingAccountId": key.provider,
        "BillingAccountName": key.provider,
        "BillingAccountType": "Provider",
        "BillingCurrency": key.currency,
        "BillingPeriodEnd": _instant((month + timedelta(days=32)).replace(day=1)),
        "BillingPeriodStart": _instant(month),
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": f"{meter} of {target}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": _instant(start + timedelta(days=1)),
        "ChargePeriodStart": _instant(start),
        "ConsumedQuantity": str(found.tokens),
        "ConsumedUnit": "Tokens",
        "ContractedCost": cost,
        "ContractedUnitPrice": unit,
        "EffectiveCost": cost,
        "InvoiceId": "",
        "InvoiceIssuerName": key.provider,
        "ListCost": cost,
        "ListUnitPrice": unit,
        "PricingCategory": "Standard",
        "PricingQuantity": f"{Decimal(found.tokens) / MILLION:f}",
        "PricingUnit": f"{MILLION} Tokens",
        "ProviderName": key.provider,
        "PublisherName": key.provider,
        "RegionId": "",
        "RegionName": "",
        "ResourceId": target,
        "ResourceName": key.model,
        "ResourceType": "Model",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model inference",
        "ServiceSubcategory": "Generative AI",
        "SkuId": sku,
        "SkuMeter": meter,
        "SkuPriceDetails": "",
        "SkuPriceId": price,
        "SubAccountId": key.key or "",
        "SubAccountName": "",
        "SubAccountType": "Key" if key.key else "",
        "Tags": key.tags,
        "x_AskedModel": key.asked,
        "x_EstimatedQuantity": str(found.estimated),
        "x_PriceId": key.price,
        "x_Team": key.team or "",
        "x_TokenClass": key.token_class,
        "x_User": key.user or "",
    }


def _instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
