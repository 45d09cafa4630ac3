"""The price book of a configuration: whose prices hold, the user's own before the package's, unknown stays unknown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.document import ConfigError
from router.events import Extra, Usage
from router.prices.book import CLASSES, instant
from router.prices.pricing import PriceBookPricing, price_book
from router.pricing import Cost, Pricing
from router.provider import Target
from router.settings import Config, Currency, Prices, ProviderRow

Book = Callable[..., PriceBookPricing]
AT = instant("2026-11-20T20:00Z")
MINE = Target("my-vllm", "llama-3-70b")
MINI = Target("openai", "gpt-5-mini")
COUNT = Usage(input=1000, output=1000)


def priced(pricing: PriceBookPricing, target: Target, at: int = AT, usage: Usage = COUNT, **how: Any) -> Cost:
    cost = pricing.cost(target, usage, at, **how)
    assert cost is not None
    return cost


# -- whose prices ----------------------------------------------------------------------------------------------------


def test_it_is_the_pricing_that_others_were_promised(book: Book) -> None:
    pricing: Pricing = book()
    assert pricing.cost(MINI, COUNT, AT) == Cost(2_250_000, "USD", "openai/gpt-5-mini@2025-08-07")


def test_the_host_tells_the_list_and_a_row_may_say_otherwise(book: Book) -> None:
    pricing = book()
    lists = {
        "openai": "openai",
        "claude": "anthropic",
        "gemini": "google",
        "qwen": "alibaba-cn",
        "qwen-intl": "alibaba-intl",
        "qwen-us": "alibaba-us",
        "deepseek": "deepseek",
        "deepseek-yuan": "deepseek-cn",
        "mock": "mock",
        "my-vllm": "my-vllm",
        "homeless": "homeless",
    }
    assert {name: pricing.price_list(name) for name in lists} == lists


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://llm-abc.ap-southeast-1.maas.aliyuncs.com/compatible-mode/v1", "alibaba-intl"),
        ("https://llm-abc.us-east-1.maas.aliyuncs.com/compatible-mode/v1", "alibaba-us"),
        ("https://coding.dashscope.aliyuncs.com/v1", "row"),
        ("https://api.openai.com.example.com/v1", "row"),
        ("https://API.OPENAI.COM/v1", "openai"),
        ("https://api.openai.com:443/v1", "openai"),
        ("http://[::1]:8000/v1", "row"),
    ],
)
def test_only_a_vendors_own_host_tells_its_list(url: str, name: str) -> None:
    config = Config(providers={"row": ProviderRow(name="row", protocol="openai", base_url=url)})
    assert price_book(config, None, {"openai": "https://api.openai.com/v1"}).price_list("row") == name


PRIVATE = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("row", "model"),
    [
        (ProviderRow(name="mock", protocol="openai", base_url=PRIVATE), "gpt-5-mini"),
        (ProviderRow(name="mock", protocol="openai", base_url=PRIVATE, price_list="mock"), "gpt-5-mini"),
        (ProviderRow(name="openai", protocol="openai", base_url=PRIVATE), "gpt-5-mini"),
        (ProviderRow(name="anthropic", protocol="openai", base_url="https://proxy.example/v1"), "claude-sonnet-4-5"),
        (ProviderRow(name="anthropic", protocol="own"), "claude-sonnet-4-5"),
    ],
)
def test_a_rows_name_alone_gives_it_nobodys_prices(tmp_path: Path, row: ProviderRow, model: str) -> None:
    target = Target(row.name, model)
    assert not price_book(Config(providers={row.name: row}), None, {"own": None}).knows(target, AT)
    # the user's own prices of that name hold, and they alone
    (tmp_path / "prices.yaml").write_text(
        f"prices: [{{list: {row.name}, models: [mine], currency: USD, input: 1, output: 2}}]", "utf-8"
    )
    config = Config(providers={row.name: row}, prices=Prices(file="prices.yaml"))
    pricing = price_book(config, str(tmp_path / "providers.yaml"), {"own": None})
    assert priced(pricing, Target(row.name, "mine")) == Cost(3_000_000, "USD", f"{row.name}/mine#own")
    assert not pricing.knows(target, AT)


def test_a_provider_that_is_not_configured_has_nobodys_prices() -> None:
    pricing = price_book(Config(providers={}), None, {})
    assert not pricing.knows(MINI, AT)
    assert not pricing.knows(Target("mock", "echo"), AT)


def test_a_price_list_that_is_said_holds_whatever_the_address() -> None:
    for url in (PRIVATE, "https://api.deepseek.com"):
        row = ProviderRow(name="proxy", protocol="openai", base_url=url, price_list="openai")
        assert price_book(Config(providers={"proxy": row}), None, {}).knows(Target("proxy", "gpt-5-mini"), AT)


def test_no_price_list_makes_a_vendor_free() -> None:
    rows = {name: ProviderRow(name=name, protocol=name, price_list="mock") for name in ("openai", "mock")}
    assert list(price_book(Config(providers=rows), None, {}).unknown_lists()) == ["openai"]


def test_who_has_a_vendors_name_at_another_address_is_told_what_to_do() -> None:
    row = ProviderRow(name="openai", protocol="openai", base_url=PRIVATE)
    (found,) = price_book(Config(providers={"openai": row}), None, {}).coverage([MINI], AT)
    assert (found.prices, found.price) == ("openai", None)
    assert found.words == (
        "no price in `openai`: write one in `prices.file`, with `list: openai`, "
        "or set `price_list: openai` if it is that vendor's"
    )


def test_the_mock_is_free_which_is_known(book: Book) -> None:
    everything = Usage(**dict.fromkeys(CLASSES, 7))
    assert book().cost(Target("mock", "echo"), everything, 0, thinking=True) == Cost(0, "USD", "mock/*")
    assert book(currency=Currency("EUR")).cost(Target("mock", "anything"), everything, AT) == Cost(0, "EUR", "mock/*")
    assert book().ceiling(Target("mock", "echo"), 10**6, 10**6, AT) == Cost(0, "USD", "mock/*")


def test_a_cost_can_be_written_down(book: Book) -> None:
    own = "prices: [{list: my-vllm, models: [llama-3-70b], currency: USD, input: 1, output: 2}]"
    pricing = book(own)
    for target in (MINI, MINE, Target("mock", "echo")):
        cost = priced(pricing, target)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(cost), type=Cost) == cost


def test_what_is_not_known_is_not_zero(book: Book) -> None:
    pricing = book()
    for target in (MINE, Target("openai", "gpt-99"), Target("homeless", "m"), Target("nobody", "gpt-5-mini")):
        assert not pricing.knows(target, AT)
        assert pricing.cost(target, Usage(), AT) is None
        assert pricing.breakdown(target, COUNT, AT) is None
        assert pricing.ceiling(target, 1, 1, AT) is None
        assert pricing.describe(target, AT) is None
    before_it_was_sold = instant("2024-01-01")
    assert pricing.cost(MINI, COUNT, before_it_was_sold) is None
    # a class without a price
    assert pricing.cost(MINI, Usage(input=1, output_audio=1), AT) is None


def test_a_list_that_nobody_wrote_is_told_with_the_nearest_name() -> None:
    rows = {
        name: ProviderRow(name=name, protocol="openai", price_list=of) for name, of in (("a", "opnai"), ("b", "openai"))
    }
    told = price_book(Config(providers=rows), None, {}).unknown_lists()
    assert list(told) == ["a"]
    assert told["a"].startswith("unknown price list `opnai`: did you mean `openai`?")


# -- the user's own prices -------------------------------------------------------------------------------------------


def test_own_prices_name_a_provider_as_their_list(book: Book) -> None:
    pricing = book("prices:\n  - {list: my-vllm, models: [llama-3-70b], currency: EUR, input: 0.10, output: 0.30}\n")
    assert priced(pricing, MINE, at=0) == Cost(400_000, "EUR", "my-vllm/llama-3-70b#own")
    assert not pricing.knows(Target("my-vllm", "other"), AT)


def test_own_prices_win_in_their_time(book: Book) -> None:
    text = """
prices:
  - {list: openai, models: [gpt-5-mini], from: 2026-12-01, until: 2027-01-01, currency: USD, input: 0.20, output: 1.60}
"""
    pricing = book(text)
    theirs, ours = "openai/gpt-5-mini@2025-08-07", "openai/gpt-5-mini@2026-12-01#own"
    days = {"2026-11-30T23:59Z": theirs, "2026-12-01": ours, "2026-12-31T23:59Z": ours, "2027-01-01": theirs}
    assert {day: priced(pricing, MINI, at=instant(day)).price for day in days} == days
    during = instant("2026-12-24")
    assert priced(pricing, MINI, at=during).nano == 1_800_000
    # an own price is the whole price: a tier that it does not name has none
    assert pricing.cost(MINI, COUNT, during, service_tier="flex") is None
    # the vendor's words are understood all the same, and snapshots follow their model
    assert priced(pricing, Target("openai", "gpt-5-mini-2025-08-07"), at=during).price == ours
    # one that has a price of its own at the vendor's keeps it
    assert priced(pricing, Target("openai", "gpt-4o-2024-05-13"), at=during).price.startswith(
        "openai/gpt-4o-2024-05-13@"
    )


def test_own_prices_may_name_models_by_pattern(book: Book) -> None:
    text = """
prices:
  - {list: my-vllm, models: ["*"], currency: USD, input: 1}
  - {list: my-vllm, models: ["llama-*"], currency: EUR, input: 2}
  - {list: my-vllm, models: [llama-3-70b], currency: CNY, input: 3}
"""
    pricing = book(text)
    found = {
        model: priced(pricing, Target("my-vllm", model), usage=Usage(input=10**6))
        for model in ("a", "llama-1", "llama-3-70b")
    }
    assert {model: f"{cost.nano // 10**9} {cost.currency}" for model, cost in found.items()} == {
        "a": "1 USD",
        "llama-1": "2 EUR",
        "llama-3-70b": "3 CNY",
    }
    assert found["llama-1"].price == "my-vllm/llama-*#own"


def test_own_prices_have_modes_bands_and_thinking(book: Book) -> None:
    text = """
prices:
  - list: my-vllm
    models: [llama-3-70b]
    currency: EUR
    input: 1
    output: 2
    tiers: [{above: 1000, input: 10, output: 20}]
    modes:
      priority: {input: 5, output: 6}
      thinking: {output: 3, tiers: [{above: 1000, output: 30}]}
"""
    pricing = book(text)
    assert priced(pricing, MINE).nano == 3_000_000
    assert priced(pricing, MINE, usage=Usage(input=1001, output=1)).nano == 10_030_000
    assert priced(pricing, MINE, service_tier="priority").nano == 11_000_000
    assert priced(pricing, MINE, thinking=True).nano == 4_000_000
    assert priced(pricing, MINE, usage=Usage(input=1001, output=1), thinking=True).nano == 10_040_000
    # which price of thinking goes with priority nobody said
    assert pricing.cost(MINE, COUNT, AT, service_tier="priority", thinking=True) is None


def test_the_mock_may_be_given_prices(book: Book) -> None:
    pricing = book("prices:\n  - {list: mock, models: [echo], currency: USD, input: 1, output: 2}\n")
    assert priced(pricing, Target("mock", "echo")) == Cost(3_000_000, "USD", "mock/echo#own")
    assert priced(pricing, Target("mock", "tools")) == Cost(0, "USD", "mock/*")


def test_a_wrong_file_stops_the_start_with_its_place(book: Book) -> None:
    with pytest.raises(ConfigError, match=r"prices\.yaml:2:56: `prices\[0\]\.input`"):
        book("prices:\n  - {list: my-vllm, models: [m], currency: USD, input: -1}\n")
    with pytest.raises(ConfigError, match="there is no such file"):
        book(file="elsewhere.yaml")


def test_the_file_is_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "p.yaml").write_text("prices:\n  - {list: mock, models: [echo], currency: USD, input: 1}\n")
    config = Config(prices=Prices(file="p.yaml"))
    target = Target("mock", "echo")
    assert priced(price_book(config, str(tmp_path / "conf" / "providers.yaml"), {}), target, usage=Usage(input=1)).nano
    monkeypatch.chdir(tmp_path / "conf")
    assert priced(price_book(config, None, {}), target, usage=Usage(input=1)).nano


# -- caches that are asked for ---------------------------------------------------------------------------------------

QWEN = Target("qwen", "qwen-plus")


def usage(details: dict[str, Any], **tokens: int) -> Usage:
    return Usage(**tokens, extra=Extra("dashscope", answer={"usage": {"prompt_tokens_details": details}}))


def test_a_hit_in_an_explicit_cache_costs_half_of_one_in_the_vendors_own(book: Book) -> None:
    pricing = book()
    own, asked = "alibaba-cn/qwen-plus@2026-04", "alibaba-cn/qwen-plus@2026-04#explicit-cache"
    cases = [
        (usage({"cached_tokens": 1000}, cache_read=1000), 160_000, own),
        (usage({"cached_tokens": 1000, "cache_type": "implicit"}, cache_read=1000), 160_000, own),
        (usage({"cached_tokens": 1000, "cache_type": "ephemeral"}, cache_read=1000), 80_000, asked),
        # who writes into a cache reads from it too: the two kinds exclude each other
        (Usage(cache_read=1000, cache_write=1000), 80_000 + 1_000_000, asked),
        (Usage(cache_write=1000), 1_000_000, own),
        # nothing tells: as the vendor's own, which costs more
        (Usage(cache_read=1000), 160_000, own),
    ]
    for counted, nano, price in cases:
        assert priced(pricing, QWEN, usage=counted) == Cost(nano, "CNY", price)


def test_a_recorded_row_is_priced_as_it_was_charged(book: Book) -> None:
    charged = priced(book(), QWEN, usage=usage({"cache_type": "ephemeral"}, cache_read=1000))
    row = Usage(cache_read=1000)
    assert priced(book(), QWEN, usage=row, as_priced=charged.price) == charged
    assert priced(book(), QWEN, usage=row).nano == 2 * charged.nano


# -- what it is made of, what it may cost ----------------------------------------------------------------------------

TARGETS = (
    MINI,
    QWEN,
    Target("qwen", "qwen3-32b"),
    Target("claude", "claude-sonnet-4-5"),
    Target("deepseek", "deepseek-flash"),
)
tokens = st.integers(0, 400_000)
counted = st.builds(Usage, **dict.fromkeys(CLASSES, tokens))
moments = st.integers(instant("2026-11-01"), instant("2027-02-01"))
checked = settings(deadline=None)


@checked
@given(target=st.sampled_from(TARGETS), usage=counted, at=moments, thinking=st.booleans())
def test_the_parts_add_up_to_the_cost(
    pricing: PriceBookPricing, target: Target, usage: Usage, at: int, thinking: bool
) -> None:
    cost = pricing.cost(target, usage, at, thinking=thinking)
    found = pricing.breakdown(target, usage, at, thinking=thinking)
    assert (cost is None) == (found is None)
    if found is not None:
        assert found.cost == cost
        assert found.cost.nano == round(sum(part.nano for part in found.parts))
        assert {part.token_class: part.tokens for part in found.parts} == {
            name: count for name in CLASSES if (count := getattr(usage, name))
        }


@checked
@given(target=st.sampled_from(TARGETS), usage=counted, at=moments, thinking=st.booleans())
def test_no_call_costs_more_than_its_ceiling(
    pricing: PriceBookPricing, target: Target, usage: Usage, at: int, thinking: bool
) -> None:
    cost = pricing.cost(target, usage, at, thinking=thinking)
    ceiling = pricing.ceiling(
        target,
        usage.prompt_total,
        usage.completion_total,
        at,
        audio_in=usage.input_audio > 0,
        audio_out=usage.output_audio > 0,
    )
    if cost is not None:
        assert ceiling is not None
        assert ceiling.nano >= cost.nano
        assert ceiling.currency == cost.currency


def test_the_ceiling_takes_the_dearest_that_may_apply(book: Book) -> None:
    pricing = book()
    dear_hours = pricing.ceiling(Target("deepseek", "deepseek-flash"), 0, 10**6, AT)
    assert dear_hours == Cost(1_200_000_000, "USD", "deepseek/deepseek-flash@2026-09-10#peak")
    thinking = pricing.ceiling(QWEN, 0, 10**6, AT)
    assert thinking == Cost(8_000_000_000, "CNY", "alibaba-cn/qwen-plus@2026-04#thinking")
    # a tier is counted when it is asked for
    flex, standard, priority = (
        pricing.ceiling(MINI, 0, 10**6, AT, service_tier=word) for word in ("flex", None, "priority")
    )
    assert [cost.nano for cost in (flex, standard, priority) if cost] == [1_000_000_000, 2_000_000_000, 3_600_000_000]
    assert pricing.ceiling(MINI, 1, 1, AT, service_tier="scale") is None


def test_any_name_may_be_asked_for_without_growing(book: Book) -> None:
    pricing = book()
    for number in range(20_000):
        assert not pricing.knows(Target("openai", f"m{number}"), AT)
    assert len(pricing._timelines) <= 10_000


# -- in words --------------------------------------------------------------------------------------------------------


def test_a_price_is_told_in_words(book: Book) -> None:
    pricing = book()
    assert pricing.describe(MINI, AT) == (
        "openai/gpt-5-mini@2025-08-07: input 0.25, cache read 0.025, output 2.00 USD; also batch, flex, priority"
    )
    assert pricing.describe(Target("mock", "echo"), AT) == "mock/*: free"
    found = pricing.coverage([MINI, Target("openai", "gpt-5-minni"), MINE], AT)
    assert [(one.prices, one.price) for one in found] == [
        ("openai", "openai/gpt-5-mini@2025-08-07"),
        ("openai", None),
        ("my-vllm", None),
    ]
    assert found[1].words == "no price in `openai`: did you mean `gpt-5-mini`?"
    assert found[2].words == "no price in `my-vllm`: write one in `prices.file`, with `list: my-vllm`"


def test_a_model_whose_audio_has_no_price_has_no_ceiling_for_calls_with_audio(book: Book) -> None:
    pricing = book()
    unknown, known = Target("openai", "gpt-4o-audio-preview"), Target("openai", "gpt-audio")
    assert pricing.cost(unknown, Usage(input=40, output=10, output_audio=1), AT) is None
    for audio in ({"audio_in": True}, {"audio_out": True}):
        assert pricing.ceiling(unknown, 40, 4096, AT, **audio) is None
        assert pricing.ceiling(known, 40, 4096, AT, **audio) is not None
    words, speech = pricing.ceiling(known, 0, 10**6, AT), pricing.ceiling(known, 0, 10**6, AT, audio_out=True)
    assert [cost.nano for cost in (words, speech) if cost] == [10 * 10**9, 64 * 10**9]
