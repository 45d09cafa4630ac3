"""`prices.yaml`: what is right is read, what is wrong is told with its place and what to do."""

from pathlib import Path

import pytest

from router.document import ConfigError
from router.prices.file import OwnPrices, load, parse

KNOWN = ("openai", "alibaba-cn", "my-vllm", "mock")


def read(text: str) -> OwnPrices:
    return parse(text, "prices.yaml", KNOWN)


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()


def line(rest: str) -> str:
    return f"prices:\n  - {{list: openai, models: [m], currency: USD, {rest}}}\n"


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "prices: []\n", "prices: []\nrates: []\n"])
def test_a_file_may_say_nothing(text: str) -> None:
    assert read(text) == OwnPrices()


def test_a_line_is_read() -> None:
    own = read(
        """
prices:
  - list: openai
    models: [gpt-5-mini, gpt-5-nano]
    from: 2026-12-01
    currency: USD
    input: 0.20
    output: 1.60
    tiers: [{above: 200000, input: 0.4, output: 3.2}]
    modes: {batch: {input: 0.10, output: 0.80}}
"""
    )
    ((prices,),) = own.lists.values()
    assert (prices.name, prices.currency, prices.own) == ("openai", "USD", True)
    assert [entry.models for entry in prices.entries] == [("gpt-5-mini",), ("gpt-5-nano",)]
    (period,) = prices.entries[0].periods
    assert (period.start, period.input, period.output) == ("2026-12-01", "0.2", "1.6")
    assert (period.tiers[0].above, period.tiers[0].output) == (200_000, "3.2")
    assert period.modes["batch"].output == "0.8"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prices: {}\n", "1:9: `prices` must be a list: begin each of its lines with `-`"),
        ("- 1\n", "1:1: the file must be a mapping of keys to values, not a list"),
        ("price: []\n", "1:1: unknown key `price`: did you mean `prices`? (known: prices, rates)"),
        ("prices: [\n", "not closed"),
        (line("input: -0.1, output: 1"), "2:55: `prices[0].input` must be a price of a million tokens: zero or more"),
        (line("input: 0.25 USD, output: 1"), "`prices[0].input` must be a price of a million tokens"),
        (line("input: true, output: 1"), "`prices[0].input` must be a price of a million tokens, such as 0.25"),
        (line("input: 0.00000000001, output: 1"), "with nine decimals at most"),
        (line("input: 25000000, output: 1"), "is more than a million for a million tokens"),
        (line("inptu: 0.1, output: 1"), "unknown key `inptu` in `prices[0]`: did you mean `input`?"),
        (line("from: 2026-13-01, input: 1"), "2:54: `prices[0].from` is no day of the calendar"),
        (line("from: yesterday, input: 1"), "`prices[0].from` must be a day such as 2026-08-17, or a time in UTC"),
        (line("from: 2026-12-01, until: 2026-11-01, input: 1"), "2:73: `prices[0].until` must be later than `from`"),
        (line("input: 1, basis: hole"), "`prices[0].basis` must be one of whole, marginal: did you mean `whole`?"),
        (
            line("input: 1, modes: {flexx: {input: 1}}"),
            "the key `flexx` is no mode: did you mean `flex`? (known: thinking",
        ),
        (line("input: 1, modes: {flex: {}}"), "`prices[0].modes.flex` names no price"),
        (line("modes: {flex: {input: 1}}"), "2:5: `prices[0]` names no price: write `input` and `output`"),
        (line("cache_read: 1"), "`prices[0]` needs a price for `input` or `output`"),
        (
            line("input: 1, tiers: [{above: 9, input: 2}, {above: 9, input: 3}]"),
            "2:96: `prices[0].tiers[1].above` must be more than 9: tiers ascend",
        ),
        (line("input: 1, tiers: [{above: 0, input: 2}]"), "`prices[0].tiers[0].above` must be at least 1"),
        (line("input: 1, tiers: [{input: 2}]"), "`prices[0].tiers[0]` needs the key `above`"),
        (
            "prices:\n  - {list: opnai, models: [m], currency: USD, input: 1}\n",
            "2:12: unknown price list `opnai`: did you mean `openai`? (known: alibaba-cn, mock, my-vllm, openai;",
        ),
        ("prices:\n  - {list: openai, models: [], currency: USD, input: 1}\n", "2:28: `prices[0].models` is empty"),
        ("prices:\n  - {list: openai, models: [m], input: 1}\n", "2:5: `prices[0]` needs the key `currency`"),
        (
            "prices:\n  - {list: openai, models: [m], currency: USDD, input: 1}\n",
            "`prices[0].currency` is no currency: `USDD` is no currency that is known here",
        ),
        ("rates: [{per: USD, CNY: 7}]\n", "1:9: `rates[0]` needs the key `from`"),
        ("rates: [{from: 2026-11-01, CNY: 7}]\n", "1:9: `rates[0]` needs the key `per`"),
        ("rates: [{from: 2026-11-01, per: USD}]\n", "`rates[0]` names no rate"),
        ("rates: [{from: 2026-11-01, per: USD, CNY: 0}]\n", "1:43: `rates[0].CNY` must be a number above zero"),
        (
            "rates: [{from: 2026-11-01, per: USD, CNYY: 7}]\n",
            "1:38: `CNYY` is no currency, nor `from` or `per`: did you mean `CNY`?",
        ),
        ("rates: [{from: 2026-11-01, per: USD, USD: 1}]\n", "`USD` cannot be quoted in itself"),
        ("rates: [{from: 2026-02-30, per: USD, CNY: 7}]\n", "`rates[0].from` is no day of the calendar"),
        (
            "rates:\n  - {from: 2026-11-01, per: USD, CNY: 7}\n  - {from: 2026-11-01, per: USD, EUR: 0.9, CNY: 8}\n",
            "3:44: `rates[1].CNY` is another rate of USD and CNY than that of the same day (in UTC) in line 2",
        ),
        (
            "rates:\n  - {from: 2026-11-01, per: USD, CNY: 8}\n  - {from: 2026-11-01T16:00Z, per: CNY, USD: 0.13}\n",
            "3:41: `rates[1].USD` is another rate of CNY and USD than that of the same day (in UTC) in line 2",
        ),
    ],
)
def test_a_wrong_file_is_told_what_and_what_to_do(text: str, told: str) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert found[0].startswith("prices.yaml:")
    assert told in found[0], found[0]


@pytest.mark.parametrize("price", ["1e-400", '"1e-400"', "1e-10", '"1e-999999999"', '"1e999999999"', "1e-999", "-0.1"])
def test_a_price_that_cannot_be_kept_is_not_taken_for_another(price: str) -> None:
    (found,) = problems(line(f"input: {price}, output: 1"))
    assert "`prices[0].input` must be a price of a million tokens: zero or more, with nine decimals" in found


@pytest.mark.parametrize("price", ["0", "0.0", "0e-400", '"0"', "0.000000001", "1000000"])
def test_a_price_may_be_nothing_or_very_small_or_large(price: str) -> None:
    assert "openai" in read(line(f"input: {price}, output: 1")).lists


def test_one_rate_may_be_written_twice_for_a_day_in_either_direction() -> None:
    text = "rates:\n  - {from: 2026-11-01, per: USD, CNY: 8}\n  - {from: 2026-11-01, per: CNY, USD: 0.125}\n"
    assert len(read(text).quotes) == 2


def test_every_problem_is_told_at_once() -> None:
    text = """
prices:
  - {list: openai, models: [a], currency: USD, input: -1}
  - {list: nowhere, models: [b], currency: USD, input: 1}
rates: [{from: 2026-11-01, per: USD, CNY: seven}]
"""
    assert [told.split(":")[1] for told in problems(text)] == ["3", "4", "5"]


def test_prices_of_one_model_may_not_hold_at_once() -> None:
    text = """
prices:
  - {list: openai, models: [a, b], currency: USD, from: 2026-01-01, until: 2026-06-01, input: 1}
  - {list: openai, models: [b], currency: EUR, from: 2026-05-01, input: 2}
  - {list: my-vllm, models: [b], currency: EUR, from: 2026-05-01, input: 2}
"""
    (told,) = problems(text)
    assert told.startswith("prices.yaml:4:5: the price of `b` in `openai` overlaps with `prices[0]` in line 3: ")
    assert told.endswith("it begins before that one ends: mend its `until`")
    twice = line("input: 1") + "  - {list: openai, models: [m], currency: USD, input: 2}\n"
    assert (
        "the price of `m` in `openai` overlaps with `prices[0]` in line 2: it begins when that one does"
        in (problems(twice)[0])
    )


def test_a_price_without_an_end_ends_where_the_next_begins() -> None:
    text = """
prices:
  - {list: openai, models: [a], currency: USD, from: 2026-05-01, input: 2}
  - {list: openai, models: [a], currency: EUR, from: 2026-07-01, input: 3}
  - {list: openai, models: [a], currency: USD, input: 1}
"""
    spans = {
        (prices.currency, period.start, period.until)
        for prices in read(text).lists["openai"]
        for entry in prices.entries
        for period in entry.periods
    }
    assert spans == {("USD", None, "2026-05-01"), ("USD", "2026-05-01", "2026-07-01"), ("EUR", "2026-07-01", None)}


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "none.yaml", "there is no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=told):
            load(path, KNOWN)
    (tmp_path / "big.yaml").write_text("#" * 2_000_000)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load(tmp_path / "big.yaml", KNOWN)
    (tmp_path / "latin.yaml").write_bytes(b"prices: [] # \xff\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:1:14: this byte is not UTF-8"):
        load(tmp_path / "latin.yaml", KNOWN)
