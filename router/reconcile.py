"""Compares a vendor's bill with the ledger: by day and model, what one has and the other has not. Pure."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from router.bill import Bill, Entry
from router.money import nano_of

Side: TypeAlias = Literal["bill", "ledger"]
Key: TypeAlias = tuple[str, str]
"""Day or month, and model."""
_SNAPSHOT: Final = re.compile(r"(?<=[^-@])[-@](?:20\d{2}-\d{2}-\d{2}|20\d{6})$")
"""What vendors put behind a model's name for the version that answered."""


class Difference(Struct, frozen=True):
    period: str
    model: str
    measure: str
    """One of `router.bill.MEASURES`, or `cost`."""
    bill: int
    ledger: int
    currency: str | None = None
    """Of a cost; amounts are then nano-units."""

    @property
    def difference(self) -> int:
        """What the ledger has more."""
        return self.ledger - self.bill

    @property
    def percent(self) -> float | None:
        """Of what the bill says."""
        return round(100 * self.difference / self.bill, 4) if self.bill else None


class Missing(Struct, frozen=True):
    """A day and model that only one side knows."""

    missing_in: Side
    period: str
    model: str
    entry: Entry
    """What the other side says."""


class Reconciliation(Struct, frozen=True):
    compared: int
    """Days and models that both sides know."""
    missing: list[Missing]
    differences: list[Difference]
    unpriced: dict[Key, int]
    """Attempts in the ledger whose price is not known: their cost is in no sum."""

    @property
    def agrees(self) -> bool:
        return not self.missing and not self.differences


class Recorded(Struct):
    """What the ledger says of one day and model."""

    entry: Entry
    unpriced: int = 0


def spans(bill: Bill) -> list[tuple[str, str]]:
    """The stretches of time to ask the ledger for, first and last moment excluded, in the order of time."""
    periods = sorted({period for period, _ in bill.entries})
    if not periods:
        return []
    first, last = _first_day(periods[0]), _first_day(periods[-1])
    end = (last + timedelta(days=31)).replace(day=1) if bill.monthly else last + timedelta(days=1)
    # sums by the hour are many
    step = timedelta(days=31 if bucket_of(bill) == "day" else 2)
    found = []
    while first < end:
        until = min(first + step, end)
        found.append((_moment(first, bill.hours), _moment(until, bill.hours)))
        first = until
    return found


def bucket_of(bill: Bill) -> Literal["hour", "day"]:
    """The sums to ask the ledger for: its days are those of UTC, the bill's may be others."""
    return "hour" if bill.hours else "day"


def providers_in(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The providers that the ledger's sums by target and provider are of."""
    return sorted({row["group"]["provider"] for row in rows if row["group"]["provider"] and row["metered"]})


def recorded(rows: Iterable[Mapping[str, Any]], bill: Bill, provider: str) -> dict[Key, Recorded]:
    """The ledger's sums by `target,provider` in the bill's own days and names."""
    found: dict[Key, Recorded] = {}
    for row in rows:
        group = row["group"]
        if group["provider"] != provider or not row["metered"]:
            # an attempt without tokens is none that a vendor bills
            continue
        start = datetime.fromisoformat(row["start"]).astimezone(UTC) + timedelta(hours=bill.hours)
        period = f"{start:%Y-%m}" if bill.monthly else f"{start:%Y-%m-%d}"
        model = group["target"].removeprefix(f"{provider}/")
        known = found.setdefault(_key(period, model, bill), Recorded(Entry({}, {})))
        known.unpriced += row["cost"]["unpriced"]
        for measure, number in counts_of(row["tokens"], row["metered"]).items():
            known.entry.count(measure, number)
        for amount in row["cost"]["amounts"]:
            known.entry.charge(amount["currency"], nano_of(Decimal(amount["amount"])))
    return found


def counts_of(tokens: Mapping[str, int], requests: int) -> dict[str, int]:
    """The ledger's classes of tokens as the measures of a bill."""
    written = tokens["cache_write"] + tokens["cache_write_1h"]
    return {
        "requests": requests,
        "prompt": tokens["input"] + tokens["cache_read"] + written,
        "input": tokens["input"],
        "cache_read": tokens["cache_read"],
        "cache_write": written,
        "input_audio": tokens["input_audio"],
        "output": tokens["output"] + tokens["reasoning"],
        "output_audio": tokens["output_audio"],
    }


def compare(bill: Bill, ledger: Mapping[Key, Recorded], *, percent: Decimal, amount: Decimal) -> Reconciliation:
    """`percent`: how far counts and costs may be apart, of what the bill says; `amount`: how far costs may be apart in
    units of their currency, for bills that are rounded."""
    billed = _folded(bill)
    missing: list[Missing] = []
    differences: list[Difference] = []
    compared = 0
    for period, model in sorted(billed.keys() | ledger.keys()):
        theirs, ours = billed.get((period, model)), ledger.get((period, model))
        if theirs is None or _is_nothing(theirs):
            if ours is not None and not _is_nothing(ours.entry):
                missing.append(Missing("bill", period, model, ours.entry))
            continue
        if ours is None or _is_nothing(ours.entry):
            missing.append(Missing("ledger", period, model, theirs))
            continue
        compared += 1
        for measure in bill.measures:
            pair = theirs.counts.get(measure, 0), ours.entry.counts.get(measure, 0)
            if abs(pair[1] - pair[0]) * 100 > percent * abs(pair[0]):
                differences.append(Difference(period, model, measure, *pair))
        for currency in sorted(theirs.costs.keys() | ours.entry.costs.keys()) if bill.costs else ():
            pair = theirs.costs.get(currency, 0), ours.entry.costs.get(currency, 0)
            apart = abs(pair[1] - pair[0])
            if apart > nano_of(amount) and apart * 100 > percent * abs(pair[0]):
                differences.append(Difference(period, model, "cost", *pair, currency))
    unpriced = {key: known.unpriced for key, known in sorted(ledger.items()) if known.unpriced}
    return Reconciliation(compared, missing, differences, unpriced)


def _folded(bill: Bill) -> dict[Key, Entry]:
    """The bill's entries under the names that the ledger's are under."""
    found: dict[Key, Entry] = {}
    for (period, model), entry in bill.entries.items():
        known = found.setdefault(_key(period, model, bill), Entry({}, {}))
        for measure, number in entry.counts.items():
            known.count(measure, number)
        for currency, nano in entry.costs.items():
            known.charge(currency, nano)
    return found


def _key(period: str, model: str, bill: Bill) -> Key:
    """Vendors bill the version that answered, clients often ask for the name without one: both are one model here."""
    return period, _SNAPSHOT.sub("", model.casefold()) if bill.by_model else ""


def _is_nothing(entry: Entry) -> bool:
    return not any(entry.counts.values()) and not any(entry.costs.values())


def _first_day(period: str) -> date:
    return date.fromisoformat(period if len(period) == 10 else f"{period}-01")


def _moment(day: date, hours: int) -> str:
    """When the day begins, in UTC."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=hours)
    return f"{start:%Y-%m-%dT%H:%M:%SZ}"
