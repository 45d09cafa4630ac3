"""What a call is expected to cost: the measure of `balance: cost`."""

from router.events import Usage
from router.prices.pricing import PriceBookPricing, price_book
from router.provider import Target
from router.routing.candidates import Needs
from router.routing.expected_cost import ANSWER, expected_cost
from router.settings import Config, ProviderRow

AT = 1_790_000_000_000
MINI, QWEN = Target("openai", "gpt-5-mini"), Target("qwen", "qwen-plus")


def pricing() -> PriceBookPricing:
    rows = (ProviderRow(name="openai", protocol="openai"), ProviderRow(name="qwen", protocol="dashscope"))
    addresses = {"openai": "https://api.openai.com/v1", "dashscope": "https://dashscope.aliyuncs.com/api/v1"}
    return price_book(Config(providers={row.name: row for row in rows}), None, addresses)


def test_it_is_the_price_of_the_prompt_and_of_a_guessed_answer() -> None:
    book = pricing()
    exact = book.cost(MINI, Usage(input=10_000, output=ANSWER), AT)
    assert exact is not None
    assert expected_cost(book, MINI, Needs(prompt_tokens=10_000), AT, "USD") == exact.nano > 0


def test_an_answer_that_is_allowed_less_costs_less_and_one_that_is_allowed_more_is_not_taken_to_use_it() -> None:
    book = pricing()
    usual = expected_cost(book, MINI, Needs(prompt_tokens=100), AT, "USD")
    short = expected_cost(book, MINI, Needs(prompt_tokens=100, max_tokens=10), AT, "USD")
    assert usual is not None
    assert short is not None
    assert short < usual
    assert expected_cost(book, MINI, Needs(prompt_tokens=100, max_tokens=100_000), AT, "USD") == usual


def test_prices_of_several_currencies_are_compared_in_one() -> None:
    book = pricing()
    yuan = expected_cost(book, QWEN, Needs(prompt_tokens=100_000), AT, "CNY")
    dollars = expected_cost(book, QWEN, Needs(prompt_tokens=100_000), AT, "USD")
    assert yuan is not None
    assert dollars is not None
    assert 5 < yuan / dollars < 10


def test_the_dearer_mode_of_a_model_that_is_asked_to_reason_counts() -> None:
    book = pricing()
    plain = expected_cost(book, QWEN, Needs(prompt_tokens=100), AT, "CNY")
    thinking = expected_cost(book, QWEN, Needs(prompt_tokens=100, reasoning=True), AT, "CNY")
    assert plain is not None
    assert thinking is not None
    assert thinking > plain


def test_a_price_that_is_not_known_is_not_guessed() -> None:
    assert expected_cost(pricing(), Target("openai", "no-such-model"), Needs(prompt_tokens=100), AT, "USD") is None
    assert expected_cost(pricing(), MINI, Needs(prompt_tokens=100), AT, "ISK") is None
