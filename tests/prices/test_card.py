"""What tokens cost by one sheet: exact, rounded once, never negative, unknown where a price is lacking."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.events import Usage
from router.prices.book import CLASSES, DERIVED, INPUTS, Rates, Sheet, Tier
from router.prices.card import Card, compiled, counts

PLACES = 9
prices = st.integers(0, 10**12).map(lambda nano: f"{nano // 10**PLACES}.{nano % 10**PLACES:0{PLACES}d}")
tokens = st.one_of(st.integers(0, 50), st.integers(0, 2_000_000))
usages = st.builds(Usage, **dict.fromkeys(CLASSES, tokens))
every_rate = st.fixed_dictionaries(dict.fromkeys(CLASSES, prices))
borders = st.lists(st.integers(1, 1_000_000), min_size=1, max_size=4, unique=True).map(sorted)


def card(sheet: Sheet, price: str = "list/model") -> Card:
    return compiled(sheet, None, "USD", DERIVED, price)


@st.composite
def sheets(draw: st.DrawFn, basis: str = "whole") -> Sheet:
    tiers = tuple(Tier(above=above, **draw(every_rate)) for above in draw(st.one_of(st.just([]), borders)))
    return Sheet(**draw(every_rate), tiers=tiers, basis=basis)  # type: ignore[arg-type]


@st.composite
def ascending(draw: st.DrawFn) -> Sheet:
    """A marginal sheet whose prices rise from band to band."""
    above = draw(borders)
    steps = [sorted(draw(st.lists(prices, min_size=len(above) + 1, max_size=len(above) + 1)), key=Fraction)]
    steps += [steps[0]] * (len(CLASSES) - 1)
    levels = [dict(zip(CLASSES, level, strict=True)) for level in zip(*steps, strict=True)]
    tiers = tuple(Tier(above=border, **level) for border, level in zip(above, levels[1:], strict=True))
    return Sheet(**levels[0], tiers=tiers, basis="marginal")


def exactly(sheet: Sheet, usage: Usage) -> Fraction:
    """The cost in nano-units by the words of the documentation, calculated anew."""
    vector = counts(usage)
    total = Fraction(0)
    if sheet.basis == "whole":
        said: Rates = sheet
        for tier in sheet.tiers:
            said = tier if sum(vector[:INPUTS]) > tier.above else said
        for name, count in zip(CLASSES, vector, strict=True):
            total += Fraction(getattr(said, name)) * count
        return total * 1000
    bounds = [0, *(tier.above for tier in sheet.tiers), 10**9]
    for side in (["cache_read", "cache_write", "cache_write_1h", "input", "input_audio"], list(CLASSES[INPUTS:])):
        queue = [name for name in side for _ in (0,) if getattr(usage, name)]
        place = 0
        for name in queue:
            end = place + getattr(usage, name)
            for (low, high), said in zip(pairwise(bounds), (sheet, *sheet.tiers), strict=True):
                total += Fraction(getattr(said, name)) * max(min(end, high) - max(place, low), 0)
            place = end
    return total * 1000


def nano(card: Card, usage: Usage) -> int:
    cost = card.cost(usage)
    assert cost is not None
    return cost.nano


def exact(card: Card, usage: Usage) -> Fraction:
    parts = card.parts(usage)
    assert parts is not None
    return sum((part.nano for part in parts), Fraction(0))


def added(one: Usage, other: Usage) -> Usage:
    return Usage(**{name: getattr(one, name) + getattr(other, name) for name in CLASSES})


@given(st.one_of(sheets(), sheets("marginal")), usages)
def test_a_cost_is_what_an_independent_calculation_gives_rounded_once(sheet: Sheet, usage: Usage) -> None:
    assert exact(card(sheet), usage) == exactly(sheet, usage)
    assert nano(card(sheet), usage) == round(exactly(sheet, usage))


@given(st.one_of(sheets(), sheets("marginal")), usages)
def test_a_cost_is_never_negative_and_nothing_costs_nothing(sheet: Sheet, usage: Usage) -> None:
    assert nano(card(sheet), usage) >= 0
    assert nano(card(sheet), Usage()) == 0
    assert card(sheet).parts(Usage()) == ()


@given(sheets(), usages, usages)
def test_costs_of_one_band_add_up(sheet: Sheet, one: Usage, other: Usage) -> None:
    flat = Sheet(**{name: getattr(sheet, name) for name in CLASSES})
    assert exact(card(flat), added(one, other)) == exact(card(flat), one) + exact(card(flat), other)


@given(sheets(), usages, usages)
def test_a_band_reprices_the_whole_request(sheet: Sheet, one: Usage, more: Usage) -> None:
    """Two requests of the same band cost together what both would cost as one row of that band."""
    usage = added(one, more)
    band = sheet
    for tier in sheet.tiers:
        band = tier if usage.prompt_total > tier.above else band  # type: ignore[assignment]
    flat = Sheet(**{name: getattr(band, name) for name in CLASSES})
    assert exact(card(sheet), usage) == exact(card(flat), usage)


@given(st.one_of(ascending(), sheets().filter(lambda sheet: not sheet.tiers)), usages, usages)
def test_more_tokens_never_cost_less(sheet: Sheet, usage: Usage, more: Usage) -> None:
    assert exact(card(sheet), added(usage, more)) >= exact(card(sheet), usage)


@given(ascending(), st.sampled_from(["input", "output"]))
def test_marginal_bands_are_continuous_at_their_borders(sheet: Sheet, name: str) -> None:
    for tier in sheet.tiers:
        step = exact(card(sheet), Usage(**{name: tier.above + 1})) - exact(card(sheet), Usage(**{name: tier.above}))
        assert step == Fraction(getattr(tier, name)) * 1000


@given(st.one_of(sheets(), ascending()), usages)
def test_no_split_into_classes_costs_more_than_the_ceiling(sheet: Sheet, usage: Usage) -> None:
    ceiling = card(sheet).ceiling(
        usage.prompt_total,
        usage.completion_total,
        audio_in=usage.input_audio > 0,
        audio_out=usage.output_audio > 0,
    )
    assert ceiling is not None
    assert nano(card(sheet), usage) <= ceiling.nano


DEAR_AUDIO = Sheet(input="1", input_audio="10", output="2", output_audio="20")


@pytest.mark.parametrize(
    ("sheet", "audio", "dollars"),
    [
        (DEAR_AUDIO, {}, 3),
        (DEAR_AUDIO, {"audio_in": True}, 12),
        (DEAR_AUDIO, {"audio_out": True}, 21),
        (DEAR_AUDIO, {"audio_in": True, "audio_out": True}, 30),
        (Sheet(input="1", input_audio="0.5", output="2", output_audio="0"), {"audio_in": True, "audio_out": True}, 3),
        (Sheet(input="1", cache_write="1.25", output="2"), {}, 3.25),
        (Sheet(input="1", output="2"), {"audio_in": True}, None),
        (Sheet(input="1", output="2"), {"audio_out": True}, None),
        (Sheet(input_audio="1", output="2"), {}, None),
        (Sheet(input="1", output_audio="2"), {"audio_out": True}, None),
    ],
)
def test_the_ceiling_has_the_price_of_audio_only_where_there_may_be_audio(
    sheet: Sheet, audio: dict[str, bool], dollars: float | None
) -> None:
    ceiling = card(sheet).ceiling(10**6, 10**6, **audio)
    assert (None if ceiling is None else ceiling.nano) == (None if dollars is None else dollars * 10**9)


def test_the_ceiling_of_audio_is_that_of_this_band_and_those_below_it() -> None:
    tier = Tier(above=1000, input="2", input_audio="4", output="1", output_audio="5")
    ceiling = card(
        Sheet(input="1", input_audio="8", output="3", output_audio="4", tiers=(tier,)),
    ).ceiling(2000, 1000, audio_in=True, audio_out=True)
    assert ceiling is not None
    assert ceiling.nano == 2000 * 8000 + 1000 * 5000


def test_a_border_belongs_to_the_band_below_it() -> None:
    sheet = Sheet(input="1", output="10", tiers=(Tier(above=1000, input="2", output="20"),))
    assert nano(card(sheet), Usage(input=1000, output=1)) == 1000 * 1000 + 10 * 1000
    assert nano(card(sheet), Usage(input=1001, output=1)) == 1001 * 2000 + 20 * 1000
    # what was read from a cache is input too
    assert nano(card(sheet), Usage(input=1, cache_read=1000, output=1)) == 1001 * 2000 + 20 * 1000


def test_the_id_names_the_band() -> None:
    sheet = Sheet(input="1", output="10", tiers=(Tier(above=1000, input="2", output="20"),))
    ids = [cost.price for count in (1, 1001) if (cost := card(sheet).cost(Usage(input=count)))]
    assert ids == ["list/model", "list/model#tier>1000"]
    flat = Sheet(input="1", tiers=(Tier(above=1000, input="2"),), basis="marginal")
    cost = card(flat).cost(Usage(input=5000))
    assert cost is not None
    assert cost.price == "list/model#tiers"


@pytest.mark.parametrize(
    ("tokens", "rounded"), [(1, 0), (3, 2), (5, 2), (7, 4)], ids=["half to 0", "half to 2", "half to 2", "half to 4"]
)
def test_half_a_nano_unit_goes_to_the_even_neighbour(tokens: int, rounded: int) -> None:
    # half a nano-unit a token
    assert nano(card(Sheet(input="0.0005")), Usage(input=tokens)) == rounded


def test_a_class_without_a_price_makes_the_row_unpriced_only_when_it_occurs() -> None:
    audible = card(Sheet(input="1", output="2"))
    assert audible.cost(Usage(input=5, output=5)) is not None
    for name in ("input_audio", "output_audio", "cache_write", "cache_write_1h"):
        assert audible.cost(Usage(input=5, output=5, **{name: 1})) is None
        assert audible.parts(Usage(input=5, output=5, **{name: 1})) is None


def test_what_a_vendor_does_not_price_apart_is_priced_as_what_it_is_part_of() -> None:
    plain = card(Sheet(input="1", output="2"))
    assert nano(plain, Usage(cache_read=10)) == 10_000
    assert nano(plain, Usage(reasoning=10)) == 20_000


def test_a_negative_count_has_no_cost() -> None:
    plain = card(Sheet(input="1", output="2"))
    assert plain.cost(Usage(input=-1)) is None
    assert plain.parts(Usage(input=-1)) is None


def test_a_tier_says_only_what_changes() -> None:
    sheet = Sheet(
        input="1", cache_read="0.1", output="2", tiers=(Tier(above=10, input="3"), Tier(above=20, output="5"))
    )
    assert nano(card(sheet), Usage(input=21, output=1)) == 21 * 3000 + 5000
    assert nano(card(sheet), Usage(input=11, output=1)) == 11 * 3000 + 2000


@pytest.mark.parametrize("price", ["-1", "0.0000000001", "NaN", "Infinity"])
def test_what_cannot_be_a_price_is_refused(price: str) -> None:
    with pytest.raises(ValueError):
        card(Sheet(input=price))
