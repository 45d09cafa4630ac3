"""`Pricing` from the price book, for one configuration: whose prices hold for a provider, and what its calls cost.

A provider's list is the one its row names in `price_list`; else the one that the host of its address is known to sell
by; else one with the provider's own name, which is the user's to write: a name tells nothing about who sells there.
The mock is free, and nothing else is.
"""

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path as FilePath
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct, structs

from router.events import Usage
from router.nearest import did_you_mean
from router.prices.book import Entry, Period, PriceList, Rates
from router.prices.card import EXPLICIT_CACHE, Card, Part
from router.prices.file import OwnPrices, load
from router.prices.rates import ExchangeRates, Quotes
from router.prices.shipped import Shipped
from router.prices.timeline import Index, Priced, Timeline
from router.pricing import Cost
from router.provider import Target
from router.settings import Config, ProviderRow

MOCK: Final = "mock"
_KEPT: Final = 10_000
"""Targets whose prices are kept at hand: clients may ask for any name."""


class Choice(Struct, frozen=True):
    """The list that a provider's calls are priced by."""

    name: str
    own: bool = False
    """Whether nothing but the user's own prices of that name hold: who sells there is not known."""


class Coverage(Struct, frozen=True):
    """What is known of one target's price, for `deltaway check`."""

    target: Target
    prices: str
    """Name of the list that was looked in."""
    price: str | None
    """Id of the price; None where there is none."""
    words: str
    """The prices, or why there are none and what to do."""


class Breakdown(Struct, frozen=True):
    """A cost with what it is made of: the sum of the parts' exact amounts, rounded once."""

    cost: Cost
    parts: tuple[Part, ...]


class PriceBookPricing:
    """Implements `router.pricing.Pricing`. Times are Unix milliseconds, amounts nano-units."""

    def __init__(
        self, lists_by_provider: Mapping[str, Choice], own: OwnPrices, shipped: Shipped, config: Config
    ) -> None:
        self._lists = dict(lists_by_provider)
        self._own = own
        self._shipped = shipped
        self._config = config
        self._indexes: dict[Choice, tuple[tuple[Index, ...], Index | None]] = {}
        self._timelines: dict[Target, Timeline] = {}
        self._rates: ExchangeRates | None = None

    # -- what a call costs -----------------------------------------------------------------------------------------

    def cost(
        self,
        target: Target,
        usage: Usage,
        at: int,
        *,
        service_tier: str | None = None,
        thinking: bool = False,
        as_priced: str | None = None,
    ) -> Cost | None:
        """The cost of one attempt that began `at`. None: no price is known for it, which is never zero.

        Tokens of reasoning are thinking, asked for or not. `as_priced` is the id of the price that a recorded attempt
        was charged at: what only the vendor's own usage object tells is read from it where that object is gone.
        """
        card = self._card(target, usage, at, service_tier, thinking)
        return None if card is None else card.cost(usage, explicit_cache=_explicit(usage, as_priced))

    def breakdown(
        self,
        target: Target,
        usage: Usage,
        at: int,
        *,
        service_tier: str | None = None,
        thinking: bool = False,
        as_priced: str | None = None,
    ) -> Breakdown | None:
        """The same with its parts, each of one token class at one price."""
        card = self._card(target, usage, at, service_tier, thinking)
        if card is None:
            return None
        explicit = _explicit(usage, as_priced)
        cost, parts = card.cost(usage, explicit_cache=explicit), card.parts(usage, explicit_cache=explicit)
        return None if cost is None or parts is None else Breakdown(cost, parts)

    def knows(self, target: Target, at: int) -> bool:
        """Whether there is a price for it."""
        return self._priced(target, at) is not None

    def ceiling(
        self,
        target: Target,
        input_tokens: int,
        output_tokens: int,
        at: int,
        *,
        service_tier: str | None = None,
        audio_in: bool = False,
        audio_out: bool = False,
    ) -> Cost | None:
        """The most that so many tokens can cost: the dearest class, with or without thinking, in the dearest hours.

        Of the service tiers only the standard one is counted, or the one that is asked for; of audio what there may be.
        """
        priced = self._priced(target, at)
        if priced is None:
            return None
        costs = [
            card.ceiling(input_tokens, output_tokens, audio_in=audio_in, audio_out=audio_out)
            for card in priced.cards(service_tier)
        ]
        known = [cost for cost in costs if cost is not None]
        return max(known, key=lambda cost: cost.nano) if known and len(known) == len(costs) else None

    def convert(self, nano: int, currency: str, to: str, at: int) -> int | None:
        """An amount in another currency at the rate of that day; None where no rate is known."""
        if currency == to:
            return nano
        if self._rates is None:
            self._rates = ExchangeRates(self._quotes())
        return self._rates.convert(nano, currency, to, at)

    @property
    def own_text(self) -> str | None:
        """The user's own prices, as their file was read; None where there is none."""
        return self._own.text

    # -- what is known ---------------------------------------------------------------------------------------------

    def price_list(self, provider: str) -> str | None:
        """The name of the list that a provider's calls are priced by, whether or not there is such a list."""
        choice = self._lists.get(provider)
        return None if choice is None else choice.name

    def describe(self, target: Target, at: int) -> str | None:
        """The price in words: its id, what a million tokens cost, and in which other modes. None: there is none."""
        priced = self._priced(target, at)
        if priced is None:
            return None
        card = priced.card(None, False, at)
        also = f"; also {', '.join(priced.modes)}" if priced.modes else ""
        note = f" ({priced.period.note})" if priced.period.note else ""
        return f"{priced.id}: {card.words() if card else 'no standard price'}{also}{note}"

    def coverage(self, targets: Iterable[Target], at: int) -> list[Coverage]:
        """Price or its lack for each target."""
        found = []
        for target in targets:
            choice = self._choice(target.provider)
            name = choice.name
            priced, words = self._priced(target, at), self.describe(target, at)
            if priced is None or words is None:
                own, shipped = self._index(choice)
                models = [model for index in (*own, *([shipped] if shipped else [])) for model in index.models()]
                advice = f": write one in `prices.file`, with `list: {name}`"
                if choice.own and name in self._shipped.listed:
                    advice += f", or set `price_list: {name}` if it is that vendor's"
                words = f"no price in `{name}`{did_you_mean(target.model, models) or advice}"
                found.append(Coverage(target, name, None, words))
            else:
                found.append(Coverage(target, name, priced.id, words))
        return found

    def unknown_lists(self) -> dict[str, str]:
        """Providers whose `price_list` names a list that is neither the package's nor the user's, with what to do."""
        known = {*self._shipped.listed, *self._own.lists}
        return {
            row.name: f"unknown price list `{row.price_list}`{did_you_mean(row.price_list, known)} "
            f"(known: {', '.join(sorted(known))}; your own: write it in `prices.file`)"
            for row in self._config.providers.values()
            if row.price_list is not None
            and row.price_list not in known
            and not (row.price_list == MOCK and row.protocol == MOCK)
        }

    # -- looking up ------------------------------------------------------------------------------------------------

    def _choice(self, provider: str) -> Choice:
        return self._lists.get(provider) or Choice(provider, own=True)

    def _card(self, target: Target, usage: Usage, at: int, service_tier: str | None, thinking: bool) -> Card | None:
        timeline = self._timelines.get(target)
        priced = (timeline or self._timeline(target)).at(at)
        return None if priced is None else priced.card(service_tier, thinking or usage.reasoning > 0, at)

    def _priced(self, target: Target, at: int) -> Priced | None:
        return (self._timelines.get(target) or self._timeline(target)).at(at)

    def _timeline(self, target: Target) -> Timeline:
        if len(self._timelines) >= _KEPT:
            self._timelines.clear()
        own, shipped = self._index(self._choice(target.provider))
        head = shipped.head(target.model) if shipped is not None else None
        # the user's word on a model holds for what the vendor sells as the same
        layers = [index.exact(name) for name in dict.fromkeys((target.model, head)) for index in own]
        fitting = [pair for index in own for pair in index.patterns(target.model)]
        layers += [periods for _, periods in sorted(fitting, key=lambda pair: -len(pair[0]))]
        if shipped is not None:
            layers += [shipped.exact(head), *(periods for _, periods in shipped.patterns(target.model))]
        timeline = self._timelines[target] = Timeline(layers)
        return timeline

    def _index(self, choice: Choice) -> tuple[tuple[Index, ...], Index | None]:
        """The user's own prices of a list, and the package's."""
        if choice not in self._indexes:
            shipped = None
            if not choice.own:
                shipped = self._free() if choice.name == MOCK else self._shipped.prices(choice.name)
            own = self._own.lists.get(choice.name, ())
            if shipped is not None:
                # the vendor's words and rules hold for the user's own prices of it too
                rules = {"derived": shipped.derived, "service_tiers": shipped.service_tiers}
                own = tuple(structs.replace(one, **rules) for one in own)
            self._indexes[choice] = tuple(map(Index, own)), Index(shipped) if shipped is not None else None
        return self._indexes[choice]

    def _free(self) -> PriceList:
        free = Rates(input="0", cache_write="0", cache_write_1h="0", input_audio="0", output="0", output_audio="0")
        nothing = Period(**structs.asdict(free), source="", seen="")
        return PriceList(
            name=MOCK, title="the mock", currency=self._config.prices.currency, entries=(Entry(("*",), (nothing,)),)
        )

    def _quotes(self) -> list[Quotes]:
        quotes = list(self._shipped.quotes())
        prices = self._config.prices
        if prices.rates:
            rates = {str(code): Fraction(rate) for code, rate in prices.rates.items()}
            quotes.append(Quotes(max(one.day for one in quotes), str(prices.currency), rates, own=True))
        # of two quotes of one day the last one holds: the file's, for its lines name their days
        return [*quotes, *self._own.quotes]


def price_book(
    config: Config, config_path: str | None, protocol_addresses: Mapping[str, str | None]
) -> PriceBookPricing:
    """The pricing of a configuration. `protocol_addresses` are the default addresses, by protocol.

    A `prices.file` is looked for beside the configuration. Raises `ConfigError` for what is wrong in it.
    """
    shipped = Shipped()
    lists = {row.name: list_of(row, protocol_addresses, shipped.sold_by) for row in config.providers.values()}
    own = OwnPrices()
    if config.prices.file is not None:
        folder = FilePath(config_path).parent if config_path is not None else FilePath()
        own = load(
            folder / config.prices.file, {*shipped.listed, *lists, *(choice.name for choice in lists.values()), MOCK}
        )
    return PriceBookPricing(lists, own, shipped, config)


def list_of(
    row: ProviderRow, protocol_addresses: Mapping[str, str | None], sold_by: Callable[[str], str | None]
) -> Choice:
    """The list that a provider's calls are priced by; `sold_by` knows hosts."""
    if row.price_list is not None:
        return Choice(row.price_list, own=row.price_list == MOCK and row.protocol != MOCK)
    if row.protocol == MOCK:
        return Choice(MOCK)
    address = row.base_url or protocol_addresses.get(row.protocol)
    host = urlsplit(address).hostname if address else None
    vendor = sold_by(host) if host else None
    return Choice(row.name, own=True) if vendor is None else Choice(vendor)


def _explicit(usage: Usage, as_priced: str | None) -> bool:
    """Whether what was read from a cache is from one that the request itself asked for, and has written or kept alive.

    Such a cache and the vendor's own do not go together in one request: who writes one also reads from one. Where
    nothing was written the vendor's usage object may tell; where it does not, the reading was from the vendor's own.
    """
    if not usage.cache_read:
        return False
    if usage.cache_write or usage.cache_write_1h:
        return True
    if usage.extra is None:
        return as_priced is not None and as_priced.endswith(EXPLICIT_CACHE)
    return _cache_type(usage.extra.answer.get("usage")) == "ephemeral"


def _cache_type(usage: object) -> object:
    """`cache_type` of Alibaba's usage object, in whichever of its places."""
    if not isinstance(usage, dict):
        return None
    for part in (usage.get("prompt_tokens_details"), usage.get("input_tokens_details"), usage):
        if isinstance(part, dict) and part.get("cache_type") is not None:
            return part["cache_type"]
    return None
