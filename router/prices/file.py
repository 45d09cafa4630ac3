"""`prices.yaml`: the user's own prices and exchange rates, with every problem in it told by line and column.

Form is `router.reader`'s part, single values are their types'; here stands what takes two places to see: prices that
hold at the same time, tiers that do not ascend, a list that nothing uses. `docs/prices.md` is the format's reference.
"""

import re
from collections.abc import Collection
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Annotated, Final, Self, TypeAlias

from msgspec import Meta, Struct, field, structs

from router import document as documents
from router.document import ConfigError, Mapping, Node, Place, Problem, Sequence
from router.money import CURRENCIES
from router.nearest import did_you_mean
from router.prices.book import MODES, Basis, Entry, Period, PriceList, Rates, Sheet, Tier, instant, rate
from router.prices.rates import MS_A_DAY, Quotes
from router.reader import Path, Reader, Unreadable, find, short, written
from router.settings import Currency, ModelName, Rate

SECTIONS: Final = ("prices", "rates")


class Price(str):
    """An amount for a million tokens, in units of the entry's currency."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("must be a price of a million tokens, such as 0.25")
        try:
            amount = Decimal(str(value))
            if amount and amount.adjusted() < -9:
                # arithmetic could make a zero of it, which is free
                raise ValueError
            text = format(amount.normalize(), "f")
            rate(text)
        except (ArithmeticError, ValueError):
            raise ValueError(
                "must be a price of a million tokens: zero or more, with nine decimals at most, such as 0.25"
            ) from None
        if Decimal(text) > 10**6:
            raise ValueError("is more than a million for a million tokens: write the price of a million tokens")
        return cls(text)


class Instant(str):
    """A day, or a time in UTC."""

    @classmethod
    def parse(cls, value: object) -> Self:
        try:
            instant(value if isinstance(value, str) else "")
        except ValueError as error:
            wrong = "is no day of the calendar" if re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)) else str(error)
            raise ValueError(wrong) from None
        return cls(value)


class Mode(str):
    """A word of `MODES`."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if value not in MODES:
            known = ", ".join(MODES)
            raise ValueError(f"is no mode{did_you_mean(str(value), MODES)} (known: {known})")
        return cls(value)


class RatesEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    input: Price | None = None
    cache_read: Price | None = None
    cache_read_explicit: Price | None = None
    cache_write: Price | None = None
    cache_write_1h: Price | None = None
    input_audio: Price | None = None
    output: Price | None = None
    reasoning: Price | None = None
    output_audio: Price | None = None


class TierEntry(RatesEntry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    above: Annotated[int, Meta(ge=1)]


class SheetEntry(RatesEntry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tiers: tuple[TierEntry, ...] = ()
    basis: Basis = "whole"


class PriceEntry(SheetEntry, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of the file: a price for some models of a list, from a day on."""

    list_: str = field(name="list")
    models: tuple[ModelName, ...]
    currency: Currency
    start: Instant | None = field(name="from", default=None)
    until: Instant | None = None
    source: str = ""
    modes: dict[Mode, SheetEntry] = {}


_Said: TypeAlias = dict[tuple[int, str, str], tuple[Fraction, int]]
"""What the lines before have quoted: day and currencies by name → units of the second for one of the first, line."""


class OwnPrices(Struct, frozen=True):
    """What a file says."""

    lists: dict[str, tuple[PriceList, ...]] = {}
    """By name; a list may hold prices in several currencies."""
    quotes: tuple[Quotes, ...] = ()
    text: str | None = None
    """What the file says, as it was read."""


def load(path: FilePath, known_lists: Collection[str]) -> OwnPrices:
    """Read the file; `known_lists` are the names that something uses. Raises `ConfigError` with all its problems."""
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(documents.MAX_SIZE + 1)
    except FileNotFoundError:
        message = "there is no such file: mend `prices.file`, or write it"
        raise ConfigError((Problem(name, 0, 0, message),)) from None
    except OSError as error:
        raise ConfigError((Problem(name, 0, 0, f"cannot be read: {error.strerror or error}"),)) from None
    if len(data) > documents.MAX_SIZE:
        raise ConfigError((Problem(name, 1, 1, "the file is larger than 1 MiB: is it the right one?"),))
    text = documents.decode(data, name)
    return structs.replace(parse(text, name, known_lists), text=text)


def parse(text: str, name: str, known_lists: Collection[str]) -> OwnPrices:
    """Read a file's text; `name` stands for it in problems. Raises `ConfigError`."""
    if not re.search(r"^\s*[^\s#]", text, re.M):
        return OwnPrices()
    root, problems = documents.compose(text, name, {})
    if root is None:
        raise ConfigError(tuple(sorted(set(problems))))
    check = _Check(name, root, known_lists)
    own = check.prices()
    problems = sorted({*problems, *check.reader.problems})
    if problems:
        raise ConfigError(tuple(problems))
    return own


class _Row(Struct, frozen=True):
    """An entry and where it stands."""

    entry: PriceEntry
    path: Path
    place: Place

    @property
    def begins(self) -> int | None:
        return None if self.entry.start is None else instant(self.entry.start)


class _Check:
    def __init__(self, name: str, root: Node, known_lists: Collection[str]) -> None:
        self.reader = Reader(name)
        self.root = root
        self.known_lists = known_lists

    def prices(self) -> OwnPrices:
        """Valid only if the reader has no problems."""
        try:
            top = self.reader.mapping(self.root, ())
        except Unreadable:
            return OwnPrices()
        self.reader.keys(top, SECTIONS, ())
        rows: list[_Row] = []
        quotes: list[Quotes] = []
        said: _Said = {}
        for index, node in enumerate(self._items(top, "prices")):
            path = ("prices", index)
            try:
                entry = self.reader.read(node, PriceEntry, path)
            except Unreadable:
                continue
            rows.append(_Row(entry, path, node.place))
            self._fits(entry, node, path)
        for index, node in enumerate(self._items(top, "rates")):
            try:
                quotes.append(self._quotes(node, ("rates", index), said))
            except Unreadable:
                continue
        return OwnPrices(self._lists(rows), tuple(quotes))

    def _items(self, top: Mapping, section: str) -> list[Node]:
        entry = top.entries.get(section)
        if entry is None:
            return []
        if isinstance(entry.node, Sequence):
            return entry.node.items
        self.reader.report(entry.node.place, f"`{section}` must be a list: begin each of its lines with `-`")
        return []

    # -- prices ----------------------------------------------------------------------------------------------------

    def _fits(self, entry: PriceEntry, node: Node, path: Path) -> None:
        """Note what is wrong with an entry as a whole."""
        if entry.list_ not in self.known_lists:
            self._report(
                node,
                (*path, "list"),
                f"unknown price list `{short(entry.list_)}`{did_you_mean(entry.list_, self.known_lists)} "
                f"(known: {', '.join(sorted(self.known_lists))}; a provider's own name names one too)",
            )
        if not entry.models:
            self._report(node, (*path, "models"), f"{written((*path, 'models'))} is empty: name a model")
        if entry.start is not None and entry.until is not None and instant(entry.until) <= instant(entry.start):
            self._report(node, (*path, "until"), f"{written((*path, 'until'))} must be later than `from`")
        self._sheet(entry, node, path, own=True)
        for mode, sheet in entry.modes.items():
            self._sheet(sheet, node, (*path, "modes", str(mode)), own=False)

    def _sheet(self, sheet: SheetEntry, node: Node, path: Path, *, own: bool) -> None:
        prices = [getattr(one, name) for one in (sheet, *sheet.tiers) for name in RatesEntry.__struct_fields__]
        if not any(price is not None for price in prices):
            whole = "input: 0, output: 0"
            self._report(node, path, f"{written(path)} names no price: write `input` and `output` (free: `{whole}`)")
        elif own and not (sheet.input or sheet.output):
            self._report(node, path, f"{written(path)} needs a price for `input` or `output`")
        above = 0
        for index, tier in enumerate(sheet.tiers):
            at = (*path, "tiers", index, "above")
            if tier.above <= above:
                self._report(node, at, f"{written(at)} must be more than {above}: tiers ascend")
            above = max(above, tier.above)

    def _report(self, entry: Node, path: Path, message: str) -> None:
        """A problem at `path`, or at the nearest node above it that is in the file."""
        _, place = find(entry, path[2:])
        self.reader.report(place or entry.place, message)

    def _lists(self, rows: list[_Row]) -> dict[str, tuple[PriceList, ...]]:
        """The rows by list and model. Where two hold at once, that is noted."""
        by_model: dict[tuple[str, str], list[_Row]] = {}
        for row in rows:
            for named in dict.fromkeys(row.entry.models):
                by_model.setdefault((row.entry.list_, str(named)), []).append(row)
        found: dict[str, dict[str, list[Entry]]] = {}
        for (name, model), its in by_model.items():
            its.sort(key=lambda row: (row.begins is not None, row.begins or 0))
            self._apart(name, model, its)
            for row in its:
                # one entry a currency: a list has only one
                entries = found.setdefault(name, {}).setdefault(str(row.entry.currency), [])
                ends = [other.entry.start for other in its if (other.begins or 0) > (row.begins or 0)]
                until = row.entry.until or next((end for end in ends if end is not None), None)
                entries.append(Entry((model,), (_period(row.entry, until),)))
        return {
            name: tuple(
                PriceList(name=name, title="your own prices", currency=currency, entries=_joined(entries), own=True)
                for currency, entries in by_currency.items()
            )
            for name, by_currency in found.items()
        }

    def _apart(self, name: str, model: str, rows: list[_Row]) -> None:
        """Note rows of one model that hold at the same time. One without an end ends where the next begins."""
        for before, after in pairwise(rows):
            until = before.entry.until
            same = before.begins == after.begins
            if not same and (until is None or after.begins is None or instant(until) <= after.begins):
                continue
            what = f"the price of `{short(model)}` in `{short(name)}`"
            other = f"`{written(before.path)[1:-1]}` in line {before.place.line}"
            advice = "begins when that one does" if same else "begins before that one ends: mend its `until`"
            self.reader.report(after.place, f"{what} overlaps with {other}: it {advice}")

    # -- exchange rates --------------------------------------------------------------------------------------------

    def _quotes(self, node: Node, path: Path, said: _Said) -> Quotes:
        row = self.reader.mapping(node, path)
        day, per = None, None
        rates: dict[str, Fraction] = {}
        for key, entry in row.entries.items():
            try:
                if key == "from":
                    day = instant(self.reader.read(entry.node, Instant, (*path, key))) // MS_A_DAY
                elif key == "per":
                    per = self.reader.read(entry.node, Currency, (*path, key))
                else:
                    code = self._currency(key, entry.place)
                    rates[code] = Fraction(self.reader.read(entry.node, Rate, (*path, key)))
            except Unreadable:
                continue
        for key, value in (("from", day), ("per", per)):
            if value is None and key not in row.entries:
                self.reader.report(node.place, f"{written(path)} needs the key `{key}`")
        if not set(row.entries) - {"from", "per"} and per is not None:
            self.reader.report(node.place, f"{written(path)} names no rate: write a currency and its units for 1 {per}")
        if per in rates:
            self.reader.report(row.entries[str(per)].place, f"`{per}` cannot be quoted in itself: remove it")
        elif day is not None and per is not None:
            for code, units in rates.items():
                self._agrees(said, day, (per, code, units), row.entries[code].place, (*path, code))
        return Quotes(day or 0, per or "", rates, own=True)

    def _agrees(self, said: _Said, day: int, quote: tuple[str, str, Fraction], place: Place, path: Path) -> None:
        """Note a quote that says otherwise than one before it, of the same two currencies and the same day."""
        per, code, units = quote
        first, second = sorted((per, code))
        value = units if per == first else 1 / units
        before, line = said.setdefault((day, first, second), (value, place.line))
        if before != value:
            self.reader.report(
                place,
                f"{written(path)} is another rate of {per} and {code} than that of the same day (in UTC) in line "
                f"{line}: keep one of them",
            )

    def _currency(self, code: str, place: Place) -> str:
        if code in CURRENCIES:
            return code
        near = did_you_mean(code, ("from", "per", *sorted(CURRENCIES))) or ": write a code such as CNY"
        raise self.reader.wrong(place, f"`{short(code)}` is no currency, nor `from` or `per`{near}")


def _period(entry: PriceEntry, until: str | None) -> Period:
    said = structs.asdict(_sheet_of(entry))
    modes = {str(mode): _sheet_of(sheet) for mode, sheet in entry.modes.items()}
    return Period(**said, start=entry.start, until=until, source=entry.source, seen="", modes=modes)


def _sheet_of(sheet: SheetEntry) -> Sheet:
    tiers = tuple(Tier(above=tier.above, **_rates_of(tier)) for tier in sheet.tiers)
    return Sheet(**_rates_of(sheet), tiers=tiers, basis=sheet.basis)


def _rates_of(rates: RatesEntry) -> dict[str, str | None]:
    return {name: None if (price := getattr(rates, name)) is None else str(price) for name in _NAMES}


_NAMES: Final = Rates.__struct_fields__


def _joined(entries: list[Entry]) -> tuple[Entry, ...]:
    """The entries of one name as one."""
    periods: dict[tuple[str, ...], list[Period]] = {}
    for entry in entries:
        periods.setdefault(entry.models, []).extend(entry.periods)
    return tuple(Entry(models, tuple(its)) for models, its in periods.items())
