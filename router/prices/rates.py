"""Exchange rates by day, for sums over several currencies and budgets in another one. Pure; exact.

A quote says how many units of other currencies are one unit of one. Between two currencies that no quote names
together the way goes over others, the euro and the US dollar first. A day without quotes has those of the last day
before it that has some; only where there is none, the first day after it.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Final

from msgspec import Struct

from router.money import rounded

MS_A_DAY: Final = 86_400_000
HUBS: Final = ("EUR", "USD")
_KEPT: Final = 10_000
"""Rates that are remembered."""


class Quotes(Struct, frozen=True):
    """The quotes of one day."""

    day: int
    """Days since 1970-01-01, in UTC."""
    per: str
    rates: dict[str, Fraction]
    """Currency → its units for one unit of `per`."""
    own: bool = False
    """Written by the user: from its day on it wins over the package's, however young those are."""


class _Pair:
    """The quotes of two currencies, by day: units of the second for one of the first."""

    def __init__(self) -> None:
        self._quotes: dict[bool, dict[int, Fraction]] = {True: {}, False: {}}
        self._days: dict[bool, list[int]] = {}

    def add(self, quotes: Quotes, rate: Fraction) -> None:
        self._quotes[quotes.own][quotes.day] = rate

    def at(self, day: int, *, later: bool) -> Fraction | None:
        if not self._days:
            self._days = {own: sorted(found) for own, found in self._quotes.items()}
        for own in (True, False):
            index = bisect_right(self._days[own], day)
            if index:
                return self._quotes[own][self._days[own][index - 1]]
        first = self._days[True] or self._days[False]
        return self._quotes[bool(self._days[True])][first[0]] if later else None


class ExchangeRates:
    def __init__(self, quotes: Iterable[Quotes]) -> None:
        self._pairs: dict[str, dict[str, _Pair]] = {}
        for one in quotes:
            for currency, rate in one.rates.items():
                self._pair(one.per, currency).add(one, rate)
                self._pair(currency, one.per).add(one, 1 / rate)
        self._known: dict[tuple[str, str, int], Fraction | None] = {}

    def convert(self, nano: int, currency: str, to: str, at: int) -> int | None:
        """An amount of the time `at` (Unix milliseconds) in another currency, rounded once; None without a rate."""
        if currency == to:
            return nano
        rate = self.rate(currency, to, at // MS_A_DAY)
        return None if rate is None else rounded(nano * rate)

    def rate(self, currency: str, to: str, day: int) -> Fraction | None:
        """Units of `to` for one unit of `currency`."""
        if currency == to:
            return Fraction(1)
        key = (currency, to, day)
        if key not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            rate = self._search(currency, to, day, later=False)
            self._known[key] = self._search(currency, to, day, later=True) if rate is None else rate
        return self._known[key]

    def _pair(self, first: str, second: str) -> _Pair:
        return self._pairs.setdefault(first, {}).setdefault(second, _Pair())

    def _search(self, currency: str, to: str, day: int, *, later: bool) -> Fraction | None:
        """The product along the shortest way."""
        ways = {currency: Fraction(1)}
        waiting = [currency]
        while waiting:
            following = []
            for here in waiting:
                for there, rate in self._quoted(here, day, later=later):
                    if there not in ways:
                        ways[there] = ways[here] * rate
                        following.append(there)
            if to in ways:
                return ways[to]
            waiting = sorted(following, key=_hub_first)
        return None

    def _quoted(self, currency: str, day: int, *, later: bool) -> Iterator[tuple[str, Fraction]]:
        for other, pair in sorted(self._pairs.get(currency, {}).items(), key=lambda item: _hub_first(item[0])):
            rate = pair.at(day, later=later)
            if rate is not None:
                yield other, rate


def _hub_first(currency: str) -> tuple[int, str]:
    return HUBS.index(currency) if currency in HUBS else len(HUBS), currency
