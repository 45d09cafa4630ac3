"""The prices and exchange rates that come with the package: `data/`, made by `scripts/seed_prices.py`.

Each list is read when it is first asked for and kept by the `Shipped` that read it. `data/SOURCES.md` tells where the
figures are from.
"""

from fractions import Fraction
from importlib.resources import files
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from router.prices.book import PriceList, instant
from router.prices.rates import MS_A_DAY, Quotes

T = TypeVar("T")


class Listed(Struct, frozen=True, forbid_unknown_fields=True):
    """A price list without its prices."""

    name: str
    title: str
    currency: str
    hosts: tuple[str, ...] = ()
    """Hosts that sell at these prices; `*.` stands for any name before the rest."""


class RateTable(Struct, frozen=True, forbid_unknown_fields=True):
    per: str
    sources: tuple[str, ...]
    days: dict[str, dict[str, str]]
    """Day → currency → its units for one unit of `per`."""


INDEX: Final = "index.json"
RATES: Final = "rates.json"


class Shipped:
    def __init__(self) -> None:
        self.listed = {one.name: one for one in _read(INDEX, tuple[Listed, ...])}
        self._lists: dict[str, PriceList] = {}
        self._quotes: tuple[Quotes, ...] | None = None

    def prices(self, name: str) -> PriceList | None:
        if name not in self._lists and name in self.listed:
            self._lists[name] = _read(f"{name}.json", PriceList)
        return self._lists.get(name)

    def sold_by(self, host: str) -> str | None:
        """The name of the list whose prices hold for calls to a host."""
        for listed in self.listed.values():
            for pattern in listed.hosts:
                if host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:])):
                    return listed.name
        return None

    def quotes(self) -> tuple[Quotes, ...]:
        if self._quotes is None:
            table = _read(RATES, RateTable)
            self._quotes = tuple(
                Quotes(instant(day) // MS_A_DAY, table.per, {code: Fraction(rate) for code, rate in rates.items()})
                for day, rates in table.days.items()
            )
        return self._quotes


def _read(name: str, type_: type[T]) -> T:
    return msgspec.json.decode(files("router.prices").joinpath("data", name).read_bytes(), type=type_)
