"""What tokens cost by one sheet of prices, compiled so that it takes a few microseconds. Pure.

A compiled rate is a whole number of nano-units a million tokens. The cost of a row is one exact sum over its token
classes, rounded once, the half to the even neighbour. A class that occurs and has no price makes the row unpriced.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from operator import attrgetter
from typing import Final, NamedTuple

from router.events import Usage
from router.money import short_decimal
from router.prices.book import CLASSES, INPUTS, Basis, Sheet, rate
from router.pricing import Cost

MILLION: Final = 10**6
"""Tokens that a price is for."""


class Part(NamedTuple):
    """The tokens of one class, at one price, in a cost."""

    token_class: str
    tokens: int
    rate: int
    """Nano-units a million tokens."""
    nano: Fraction
    """What they cost, exactly."""


class Dearest(NamedTuple):
    """The highest rates of one side of a call. None: no price is known for what always occurs there."""

    text: int | None
    """Of a call without audio on this side."""
    audio: int | None
    """Of one that may have audio too."""


class Band(NamedTuple):
    """One compiled band of a sheet. `rates` are in the order of `CLASSES`."""

    above: int
    rates: tuple[int | None, ...]
    explicit: tuple[int | None, ...] | None
    """The same for a cache that the request asked for; None when it makes no difference."""
    dearest: tuple[Dearest, Dearest]
    """Of the request's classes and of the answer's, in this band and those below it."""
    id: str


counts: Final = attrgetter(*CLASSES)
"""The token counts of a usage as a vector."""
EXPLICIT_CACHE: Final = "#explicit-cache"


class Card:
    """A compiled sheet: prices a usage in a few microseconds."""

    __slots__ = ("_first", "bands", "basis", "currency")

    def __init__(self, currency: str, basis: Basis, bands: tuple[Band, ...]) -> None:
        self.currency = currency
        self.basis = basis
        self.bands = bands
        self._first = bands[0] if len(bands) == 1 else None

    def cost(self, usage: Usage, *, explicit_cache: bool = False) -> Cost | None:
        """None: there is no price for a class that occurs, or a count is negative."""
        vector: tuple[int, ...] = counts(usage)
        band = self._first
        if band is None:
            if self.basis == "marginal":
                return self._marginal_cost(usage, vector)
            band = self._band(sum(vector[:INPUTS]))
        rates, price = band.rates, band.id
        if explicit_cache and band.explicit is not None and vector[1]:
            rates, price = band.explicit, price + EXPLICIT_CACHE
        total = 0
        for count, per_million in zip(vector, rates, strict=True):
            if count:
                if per_million is None or count < 0:
                    return None
                total += count * per_million
        return Cost(divided(total), self.currency, price)

    def parts(self, usage: Usage, *, explicit_cache: bool = False) -> tuple[Part, ...] | None:
        """What the cost is made of; it is the sum of the parts, rounded. None as in `cost`."""
        vector: tuple[int, ...] = counts(usage)
        if min(vector) < 0:
            return None
        found = []
        for index, tokens, band in self._pieces(vector):
            rates = band.explicit if explicit_cache and band.explicit is not None else band.rates
            per_million = rates[index]
            if per_million is None:
                return None
            found.append(Part(CLASSES[index], tokens, per_million, Fraction(tokens * per_million, MILLION)))
        return tuple(found)

    def ceiling(
        self, input_tokens: int, output_tokens: int, *, audio_in: bool = False, audio_out: bool = False
    ) -> Cost | None:
        """The most that so many tokens cost, of whatever class, rounded up; of audio only where there may be any.

        None: no price is known for a class that there may be.
        """
        band = self._band(input_tokens)
        last = self._band(output_tokens) if self.basis == "marginal" else band
        asked, given = band.dearest[0], last.dearest[1]
        total = 0
        for tokens, per_million in (
            (input_tokens, asked.audio if audio_in else asked.text),
            (output_tokens, given.audio if audio_out else given.text),
        ):
            if tokens:
                if per_million is None:
                    return None
                total += tokens * per_million
        return Cost(-(-total // MILLION), self.currency, band.id)

    def _band(self, input_tokens: int) -> Band:
        """The band that a request with so many input tokens falls in."""
        found = self.bands[0]
        for band in self.bands:
            if band.above < input_tokens:
                found = band
        return found

    def _pieces(self, vector: tuple[int, ...]) -> Iterable[tuple[int, int, Band]]:
        """Class, tokens and band; of each class that occurs, in `marginal` once for each band it reaches into."""
        if self.basis == "whole":
            band = self._band(sum(vector[:INPUTS]))
            yield from ((index, tokens, band) for index, tokens in enumerate(vector) if tokens)
            return
        # what was read from a cache and written to one is the beginning of the prompt
        for side in ((1, 2, 3, 0, 4), range(INPUTS, len(CLASSES))):
            place = 0
            for index in side:
                end = place + vector[index]
                for at, band in enumerate(self.bands):
                    upper = self.bands[at + 1].above if at + 1 < len(self.bands) else end
                    tokens = min(end, max(upper, band.above)) - max(place, band.above)
                    if tokens > 0:
                        yield index, tokens, band
                place = end

    def _marginal_cost(self, usage: Usage, vector: tuple[int, ...]) -> Cost | None:
        parts = self.parts(usage)
        if parts is None:
            return None
        return Cost(divided(sum(part.tokens * part.rate for part in parts)), self.currency, self.bands[0].id)

    def words(self) -> str:
        """The rates for people: `input 0.25, cache read 0.025, output 2.00 USD`, band by band."""
        if not any(per for band in self.bands for per in band.rates):
            return "free"
        said = []
        for band in self.bands:
            names = (f"{name.replace('_', ' ')} {short_decimal(per)}" for name, per in _told(band) if per is not None)
            above = f"above {band.above} tokens of input: " if band.above else ""
            said.append(f"{above}{', '.join(names)} {self.currency}")
        return "; ".join(said)


def _told(band: Band) -> Iterable[tuple[str, int | None]]:
    """The rates that say something: a class that follows another one does not."""
    rates = dict(zip(CLASSES, band.rates, strict=True))
    follows = {"cache_read": "input", "cache_write": "input", "reasoning": "output"}
    for name, per_million in rates.items():
        if name not in follows or per_million != rates[follows[name]]:
            yield name, per_million


def divided(total: int) -> int:
    """Tokens times nano-units a million tokens as nano-units, the half to the even neighbour."""
    nano, rest = divmod(total, MILLION)
    return nano + (rest * 2 > MILLION or (rest * 2 == MILLION and nano & 1))


def compiled(
    sheet: Sheet, below: Sheet | None, currency: str, derived: Mapping[str, tuple[str, str]], price: str
) -> Card:
    """The sheet as a card of the id `price`; `below` says what `sheet` does not. Raises `ValueError`."""
    sheets = [sheet] if below is None else [sheet, below]
    borders = sorted({0, *(tier.above for one in sheets for tier in one.tiers)})
    marginal = sheet.basis == "marginal" or (below is not None and below.basis == "marginal")
    bands: list[Band] = []
    below_it = (Dearest(None, None), Dearest(None, None))
    for border in borders:

        def said(name: str, border: int = border) -> int | None:
            for one in sheets:
                for layer in (*reversed([tier for tier in one.tiers if tier.above <= border]), one):
                    text: str | None = getattr(layer, name)
                    if text is not None:
                        return rate(text)
            return None

        def known(name: str) -> int | None:
            per_million = said(name)
            if per_million is None and name in derived:
                source, factor = derived[name]
                base = said(source)
                per_million = None if base is None else _scaled(base, factor)
            return per_million

        rates = tuple(known(name) for name in CLASSES)
        explicit = known("cache_read_explicit")
        asked = (rates[0], explicit, *rates[2:])
        mark = f"#tier>{border}" if border and not marginal else "#tiers" if marginal and len(borders) > 1 else ""
        different = explicit is not None and explicit != rates[1]
        dearest = (
            _dearest((*rates[: INPUTS - 1], explicit), rates[INPUTS - 1], below_it[0]),
            _dearest(rates[INPUTS:-1], rates[-1], below_it[1]),
        )
        below_it = dearest
        bands.append(Band(border, rates, asked if different else None, dearest, price + mark))
    # a setting's own kind of text is none that a journal can write
    return Card(str(currency), "marginal" if marginal else "whole", tuple(bands))


def _dearest(texts: tuple[int | None, ...], audio: int | None, below: Dearest) -> Dearest:
    """Of one side's rates; the first of `texts` is of the class that always occurs."""
    if texts[0] is None:
        return Dearest(None, None)
    text = max(per for per in (*texts, below.text) if per is not None)
    return Dearest(text, None if audio is None else max(text, audio, below.audio or 0))


def _scaled(per_million: int, factor: str) -> int:
    scaled = Fraction(factor) * per_million
    if scaled.denominator != 1:
        raise ValueError(f"{factor} of a price is finer than nine decimals")
    return int(scaled)
