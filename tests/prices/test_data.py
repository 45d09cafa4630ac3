"""The prices of the package: well-formed, and where they are known by heart, right."""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from router.events import Usage
from router.money import CURRENCIES
from router.prices.book import CLASSES, MODES, STANDARD, Entry, Period, PriceList, Sheet, instant, rate
from router.prices.pricing import PriceBookPricing
from router.prices.shipped import Shipped
from router.prices.timeline import Clock, Priced
from router.provider import Target

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "router" / "prices" / "data"
SHIPPED = Shipped()
NAMES = sorted(SHIPPED.listed)
each_list = pytest.mark.parametrize("name", NAMES)
Book = Callable[..., PriceBookPricing]


def prices(name: str) -> PriceList:
    found = SHIPPED.prices(name)
    assert found is not None
    return found


def periods(name: str) -> Iterator[tuple[Entry, Period]]:
    for entry in prices(name).entries:
        for period in entry.periods:
            yield entry, period


def sheets(period: Period) -> list[Sheet]:
    return [period, *period.modes.values()]


# -- well-formed -----------------------------------------------------------------------------------------------------


def test_there_is_a_list_for_every_file_and_a_file_for_every_list() -> None:
    files = {path.stem for path in DATA.glob("*.json")} - {"index", "rates"}
    assert files == set(NAMES)


def test_the_lists_promised_are_there() -> None:
    promised = {"openai", "alibaba-cn", "alibaba-intl", "alibaba-us", "deepseek", "anthropic", "google", "xai"}
    assert promised | {"mistral", "groq", "moonshot"} <= set(NAMES)


def test_no_host_sells_at_two_lists() -> None:
    hosts = Counter(host for listed in SHIPPED.listed.values() for host in listed.hosts)
    assert not [host for host, count in hosts.items() if count > 1]


@each_list
def test_the_index_tells_the_truth(name: str) -> None:
    listed, found = SHIPPED.listed[name], prices(name)
    assert (listed.name, listed.title, listed.currency) == (found.name, found.title, found.currency)
    assert found.currency in CURRENCIES
    assert found.sources


@each_list
def test_a_name_means_one_price(name: str) -> None:
    names = Counter(model for entry in prices(name).entries for model in entry.models)
    assert not [model for model, count in names.items() if count > 1]
    assert all(re.fullmatch(r"\S+", model) for model in names)


@each_list
def test_every_period_has_a_source_and_the_day_it_was_seen(name: str) -> None:
    for entry, period in periods(name):
        assert re.match(r"https?://\S+$|genai-prices \d", period.source), entry.models
        assert re.fullmatch(r"20\d\d-[01]\d(-[0-3]\d)?", period.seen), entry.models
        instant(period.seen if len(period.seen) > 7 else f"{period.seen}-01")


@each_list
def test_periods_follow_each_other(name: str) -> None:
    for entry in prices(name).entries:
        begins = [instant(period.start) if period.start else -1 for period in entry.periods]
        ends = [instant(period.until) if period.until else None for period in entry.periods]
        assert begins == sorted(set(begins)), entry.models
        for begin, end, following in zip(begins, ends, [*begins[1:], None], strict=True):
            assert end is None or end > begin, entry.models
            assert end is None or following is None or end <= following, entry.models


@each_list
def test_every_sheet_compiles_in_every_mode_and_is_priced(name: str) -> None:
    for entry, period in periods(name):
        assert period.input is not None, entry.models
        assert all(rate(price) >= 0 for sheet in sheets(period) for price in said(sheet)), entry.models
        priced = Priced(prices(name), entry.models[0], period)
        modes = [mode for mode in (STANDARD, *period.modes) if mode not in ("thinking", period.hours)]
        for mode in modes:
            card = priced.card(mode, False, 0)
            assert card is not None, (entry.models, mode)
            assert card.cost(Usage(input=1000)) is not None, (entry.models, mode)
        assert priced.cards(), entry.models


def said(sheet: Sheet) -> Iterator[str]:
    for one in (sheet, *sheet.tiers):
        yield from (price for name in (*CLASSES, "cache_read_explicit") if (price := getattr(one, name)) is not None)


FREE = {
    ("google", "gemma-3-12b-it"),
    ("google", "gemma-3-27b-it"),
    ("google", "gemma-3-4b-it"),
    ("google", "gemma-3n-e2b-it"),
    ("google", "gemma-3n-e4b-it"),
    ("mistral", "mistral-moderation-2603"),
    ("zai", "glm-4.5-flash"),
    ("zai", "glm-4.6v-flash"),
    ("zai", "glm-4.7-flash"),
}
"""Models that their vendors' own price pages call free."""


@each_list
def test_nothing_costs_zero_but_what_its_vendor_calls_free(name: str) -> None:
    for entry, period in periods(name):
        if (name, entry.models[0]) in FREE:
            continue
        for one in (part for sheet in sheets(period) for part in (sheet, *sheet.tiers)):
            free = {token_class for token_class in CLASSES if getattr(one, token_class) in ("0", "0.0")}
            # an embedding has no output
            assert free <= ({"output"} if "embed" in entry.models[0] else set()), (entry.models, period.start)


def test_a_zero_that_nobody_calls_free_is_no_price_when_the_data_is_made_anew() -> None:
    launch = {"from": "2026-01-01", "input": "0", "output": "0"}
    paid = {"from": "2026-02-01", "input": "1", "cache_read": "0", "output": "2", "modes": {"batch": launch}}
    made = script().without_blanks(
        "zai", [{"models": ["m"], "periods": [launch, paid, launch | {"from": "2026-03-01"}]}]
    )
    last = {"from": "2026-02-01", "until": "2026-03-01", "input": "1", "output": "2"}
    assert made == [{"models": ["m"], "periods": [last]}]
    assert script().without_blanks("zai", [{"models": ["m"], "periods": [launch]}]) == []
    free = [{"models": ["glm-4.7-flash"], "periods": [launch]}]
    assert script().without_blanks("zai", free) == free


def test_deepseek_had_no_dear_hours_before_it_announced_them() -> None:
    begun = instant("2026-08-16T16:00Z")
    for entry, period in periods("deepseek"):
        if period.hours is not None:
            assert period.start is not None
            assert instant(period.start) >= begun, entry.models


def test_hours_that_begin_are_a_price_of_their_own_when_the_data_is_made_anew() -> None:
    plain, dear = {"input": "1", "output": "2"}, {"input": "1", "output": "2", "hours": "peak", "modes": {"peak": {}}}
    seed = script()
    assert not seed.says_more(dear, plain)
    assert seed.says_more(plain | {"cache_read": "0.1"}, plain)


@each_list
def test_tiers_ascend_and_say_what_their_sheet_says(name: str) -> None:
    for entry, period in periods(name):
        for sheet in sheets(period):
            above = [tier.above for tier in sheet.tiers]
            assert above == sorted(set(above)), entry.models
            for tier in sheet.tiers:
                # a longer band whose cache is priced as the shorter one's would be a figure that nobody has said
                missing = [one for one in CLASSES if getattr(sheet, one) and not getattr(tier, one)]
                assert not set(missing) - {"input_audio", "output_audio"}, (entry.models, missing)


@each_list
def test_modes_are_words_that_are_known(name: str) -> None:
    found = prices(name)
    for entry, period in periods(name):
        assert set(period.modes) <= {*MODES, *found.hours}, entry.models
        if period.hours is not None:
            assert period.hours in found.hours, entry.models
            assert period.hours in period.modes, entry.models
    assert set(found.service_tiers.values()) <= {STANDARD, *MODES}
    for hours in found.hours.values():
        Clock(hours)


@each_list
def test_what_follows_by_rule_follows_from_what_is_said(name: str) -> None:
    for target, (source, factor) in prices(name).derived.items():
        assert target in CLASSES
        assert source in ("input", "output")
        assert rate(factor) > 0


def test_the_exchange_rates_are_of_currencies_that_are_known() -> None:
    quotes = SHIPPED.quotes()
    assert len({one.day for one in quotes}) == len(quotes) > 24
    for one in quotes:
        assert one.per == "EUR"
        assert {"USD", "CNY", "GBP", "JPY"} <= set(one.rates) <= CURRENCIES
        assert all(found > 0 for found in one.rates.values())


def test_the_data_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 700_000


def test_the_lists_kept_by_hand_are_those_of_the_package() -> None:
    seed = script()
    for one in seed.by_hand():
        assert (DATA / f"{one['name']}.json").read_text("utf-8") == seed.written(one) + "\n"
        (listed,) = seed.index([one])
        assert listed in json.loads((DATA / "index.json").read_text("utf-8"))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seed_prices", ROOT / "scripts" / "seed_prices.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- right -----------------------------------------------------------------------------------------------------------

NOVEMBER = instant("2026-11-20T20:00Z")
"""A Friday, in nobody's dear hours."""
K = 1024


def paid(
    book: Book, target: str, at: int = NOVEMBER, *, tier: str | None = None, thinking: bool = False, **tokens: int
) -> str:
    """What a call costs, as amount, currency and price."""
    provider, _, model = target.partition("/")
    cost = book().cost(Target(provider, model), Usage(**tokens), at, service_tier=tier, thinking=thinking)
    assert cost is not None
    return f"{cost.nano / 10**9:.9g} {cost.currency} {cost.price}"


@pytest.mark.parametrize(
    ("target", "prices"),
    [
        # https://openai.com/api/pricing
        ("openai/gpt-4o-mini", {"input": 0.15, "cache_read": 0.075, "output": 0.60, "reasoning": 0.60}),
        ("openai/gpt-4o", {"input": 2.50, "cache_read": 1.25, "output": 10}),
        ("openai/gpt-5-mini", {"input": 0.25, "cache_read": 0.025, "output": 2, "reasoning": 2}),
        ("openai/gpt-5", {"input": 1.25, "cache_read": 0.125, "output": 10}),
        ("openai/gpt-audio", {"input": 2.50, "input_audio": 32, "output": 10, "output_audio": 64}),
        # https://platform.claude.com/docs/en/about-claude/pricing
        (
            "claude/claude-sonnet-4-5",
            {"input": 3, "cache_read": 0.30, "cache_write": 3.75, "cache_write_1h": 6, "output": 15, "reasoning": 15},
        ),
        (
            "claude/claude-haiku-4-5",
            {"input": 1, "cache_read": 0.10, "cache_write": 1.25, "cache_write_1h": 2, "output": 5},
        ),
        # https://ai.google.dev/gemini-api/docs/pricing
        ("gemini/gemini-2.5-flash", {"input": 0.30, "input_audio": 1, "cache_read": 0.03, "output": 2.50}),
        ("gemini/gemini-2.5-pro", {"input": 1.25, "cache_read": 0.125, "output": 10}),
        # https://api-docs.deepseek.com/quick_start/pricing, outside of the dear hours
        ("deepseek/deepseek-flash", {"input": 0.15, "cache_read": 0.003, "output": 0.60, "reasoning": 0.60}),
        ("deepseek/deepseek-v4-pro", {"input": 0.66, "cache_read": 0.022, "output": 1.98}),
        # https://help.aliyun.com/zh/model-studio/model-pricing
        ("qwen/qwen-plus", {"input": 0.8, "cache_read": 0.16, "cache_write": 1, "output": 2}),
        ("qwen/qwen-flash", {"input": 0.15, "cache_read": 0.03, "output": 1.5}),
        ("qwen/qwen-max", {"input": 2.4, "cache_read": 0.48, "output": 9.6}),
        ("qwen/qwen-turbo", {"input": 0.3, "output": 0.6}),
        ("qwen/qwen-long", {"input": 0.5, "output": 2}),
        ("qwen/qwen3-max", {"input": 2.5, "output": 10}),
        ("qwen/qwq-plus", {"input": 1.6, "output": 4, "reasoning": 4}),
        ("qwen/qwen-vl-plus", {"input": 0.8, "output": 2}),
        ("qwen/qwen3-coder-plus", {"input": 4, "output": 16}),
        ("qwen/deepseek-v3.2", {"input": 2, "cache_read": 0.4, "output": 3}),
        # https://www.alibabacloud.com/help/en/model-studio/model-pricing
        ("qwen-intl/qwen-plus", {"input": 0.4, "cache_read": 0.08, "cache_write": 0.5, "output": 1.2}),
        ("qwen-intl/qwen3-max", {"input": 1.2, "output": 6}),
        ("qwen-us/qwen-plus-us", {"input": 0.4, "output": 1.2}),
    ],
)
def test_a_known_price(book: Book, target: str, prices: dict[str, float]) -> None:
    """By class, in units of a million tokens, in the shortest band."""
    pricing = book()
    provider, _, model = target.partition("/")
    found = {}
    for name in prices:
        # thinking is asked for by its tokens alone: what is reasoned at Qwen's is tested below
        cost = pricing.cost(Target(provider, model), Usage(**{name: 1000}), NOVEMBER)
        assert cost is not None
        found[name] = cost.nano / 10**6
    assert found == pytest.approx(prices, rel=1e-12)


def test_qwen_in_china_is_priced_in_yuan_by_the_whole_band(book: Book) -> None:
    assert paid(book, "qwen/qwen-plus", input=128 * K, output=1000) == "0.1068576 CNY alibaba-cn/qwen-plus@2026-04"
    assert (
        paid(book, "qwen/qwen-plus", input=128 * K + 1, output=1000)
        == "0.3345752 CNY alibaba-cn/qwen-plus@2026-04#tier>131072"
    )
    # what was read from a cache counts towards the band
    assert paid(book, "qwen/qwen-plus", input=1, cache_read=128 * K).endswith("#tier>131072")
    assert paid(book, "qwen/qwen-plus", input=300 * K) == "1.47456 CNY alibaba-cn/qwen-plus@2026-04#tier>262144"


def test_a_launch_day_and_the_hours_before_dear_hours_are_priced_as_they_were(book: Book) -> None:
    before, after = instant("2026-06-10T02:00Z"), instant("2026-11-18T02:00Z")
    assert paid(book, "deepseek/deepseek-chat", before, output=1000) == "0.00028 USD deepseek/deepseek-chat@2026-06-06"
    assert paid(book, "deepseek/deepseek-chat", after, output=1000).endswith("deepseek-chat@2026-08-16#peak")
    assert paid(book, "openai/gpt-3.5-turbo", cache_read=1000).startswith("0.0005 USD")


def test_qwens_output_costs_more_when_it_thinks(book: Book) -> None:
    thinks = "0.008 CNY alibaba-cn/qwen-plus@2026-04#thinking"
    assert paid(book, "qwen/qwen-plus", output=1000, thinking=True) == thinks
    # tokens of reasoning are thinking, asked for or not, and so is the answer after them
    assert paid(book, "qwen/qwen-plus", output=400, reasoning=600) == thinks
    assert paid(book, "qwen/qwen-plus", output=1000) == "0.002 CNY alibaba-cn/qwen-plus@2026-04"
    # the input costs the same, and so do cache and bands
    assert paid(book, "qwen/qwen-plus", input=300 * K, thinking=True).startswith("1.47456 CNY")
    assert paid(book, "qwen/qwen-plus", input=150 * K, output=1000, thinking=True).startswith("0.39264 CNY")
    # what always thinks has one price
    assert paid(book, "qwen/qwen3-max", output=1000, thinking=True) == "0.01 CNY alibaba-cn/qwen3-max@2026-01-23"


def test_the_same_model_has_another_price_in_another_region(book: Book) -> None:
    prices = {
        paid(book, f"{name}/qwen3-coder-plus", input=1000, output=1000) for name in ("qwen", "qwen-intl", "qwen-us")
    }
    assert prices == {
        "0.02 CNY alibaba-cn/qwen3-coder-plus@2026-04",
        "0.006 USD alibaba-intl/qwen3-coder-plus@2025-07-29",
        "0.002868 USD alibaba-us/qwen3-coder-plus@2026-10",
    }


def test_service_tiers_have_prices_of_their_own(book: Book) -> None:
    for word in (None, "default", "auto", "standard"):
        assert paid(book, "openai/gpt-5-mini", tier=word, output=1000) == "0.002 USD openai/gpt-5-mini@2025-08-07"
    assert paid(book, "openai/gpt-5-mini", tier="flex", output=1000) == "0.001 USD openai/gpt-5-mini@2025-08-07#flex"
    priority = "0.0036 USD openai/gpt-5-mini@2025-08-07#priority"
    assert paid(book, "openai/gpt-5-mini", tier="priority", output=1000) == priority
    assert paid(book, "openai/gpt-5-mini", tier="fast", output=1000) == priority


def test_a_tier_without_a_price_is_unpriced(book: Book) -> None:
    pricing, target = book(), Target("openai", "gpt-5-mini")
    for word in ("scale", "surprise"):
        assert pricing.cost(target, Usage(input=1), NOVEMBER, service_tier=word) is None


def test_a_snapshot_costs_what_its_model_costs_unless_it_has_a_price_of_its_own(book: Book) -> None:
    assert paid(book, "openai/gpt-5-mini-2025-08-07", input=1000).endswith("openai/gpt-5-mini@2025-08-07")
    assert paid(book, "openai/gpt-5-mini-2026-12-24", input=1000).endswith("openai/gpt-5-mini@2025-08-07")
    assert paid(book, "openai/gpt-4o-2024-05-13", output=1000).startswith("0.015 USD openai/gpt-4o-2024-05-13")
    assert not book().knows(Target("openai", "gpt-5-minim"), NOVEMBER)


def test_prices_change_on_their_day(book: Book) -> None:
    assert paid(book, "openai/gpt-5.6-sol", instant("2026-08-20T23:59Z"), output=1000).startswith("0.03 USD")
    assert paid(book, "openai/gpt-5.6-sol", instant("2026-08-21"), output=1000).startswith("0.02 USD")


def test_deepseek_is_dear_in_working_hours_in_beijing(book: Book) -> None:
    cheap, dear = "0.0006 USD deepseek/deepseek-flash@2026-09-10", "0.0012 USD deepseek/deepseek-flash@2026-09-10#peak"
    days = {
        # a Wednesday
        "2026-11-18T00:59Z": cheap,
        "2026-11-18T01:00Z": dear,
        "2026-11-18T03:59Z": dear,
        "2026-11-18T04:00Z": cheap,
        "2026-11-18T09:59Z": dear,
        "2026-11-18T10:00Z": cheap,
        # a Sunday, and a holiday on a Thursday
        "2026-11-22T02:00Z": cheap,
        "2026-10-01T02:00Z": cheap,
    }
    assert {day: paid(book, "deepseek/deepseek-flash", instant(day), output=1000) for day in days} == days
    assert paid(book, "deepseek-yuan/deepseek-flash", instant("2026-11-18T02:00Z"), output=1000) == (
        "0.008 CNY deepseek-cn/deepseek-flash@2026-09-10#peak"
    )


def test_long_prompts_reprice_the_whole_request(book: Book) -> None:
    short = paid(book, "gemini/gemini-2.5-pro", input=200_000, output=1000)
    long = paid(book, "gemini/gemini-2.5-pro", input=200_001, output=1000)
    assert short.startswith("0.26 USD")
    assert long.startswith("0.5150025 USD")
    assert long.endswith("#tier>200000")
