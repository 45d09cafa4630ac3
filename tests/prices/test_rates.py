"""Exchange rates: of the day, exact, over other currencies where no quote names both, and the user's own first."""

from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.prices.book import instant
from router.prices.pricing import PriceBookPricing
from router.prices.rates import MS_A_DAY, ExchangeRates, Quotes
from router.prices.shipped import Shipped
from router.settings import Currency, Rate

Book = Callable[..., PriceBookPricing]
UNIT = 10**9
ECB = Shipped().quotes()
LAST = max(one.day for one in ECB)


def quotes(day: str, per: str, *, own: bool = False, **rates: str) -> Quotes:
    return Quotes(instant(day) // MS_A_DAY, per, {code: Fraction(rate) for code, rate in rates.items()}, own=own)


EURO = (
    quotes("2026-01-02", "EUR", USD="1.25", CNY="8", GBP="0.8"),
    quotes("2026-02-02", "EUR", USD="1.2", CNY="8.4", GBP="0.8"),
)


@pytest.mark.parametrize(
    ("currency", "to", "day", "rate"),
    [
        ("EUR", "USD", "2026-01-02", Fraction(5, 4)),
        ("USD", "EUR", "2026-01-02", Fraction(4, 5)),
        ("USD", "CNY", "2026-01-02", Fraction(32, 5)),
        ("CNY", "GBP", "2026-01-15", Fraction(1, 10)),
        ("EUR", "USD", "2026-02-01", Fraction(5, 4)),
        ("EUR", "USD", "2026-02-02", Fraction(6, 5)),
        ("EUR", "USD", "2030-01-01", Fraction(6, 5)),
        # before the first quote: the first there is
        ("EUR", "USD", "2020-01-01", Fraction(5, 4)),
        ("USD", "JPY", "2026-01-02", None),
        ("CHF", "JPY", "2026-01-02", None),
        ("CHF", "CHF", "2026-01-02", Fraction(1)),
    ],
)
def test_the_rate_of_a_day(currency: str, to: str, day: str, rate: Fraction | None) -> None:
    assert ExchangeRates(EURO).rate(currency, to, instant(day) // MS_A_DAY) == rate


def test_an_own_quote_wins_from_its_day_on_over_younger_ones_of_the_package() -> None:
    rates = ExchangeRates((*EURO, quotes("2026-01-20", "USD", CNY="7", own=True)))
    by_day = {
        day: rates.rate("USD", "CNY", instant(day) // MS_A_DAY) for day in ("2026-01-19", "2026-01-20", "2026-03-01")
    }
    assert by_day == {"2026-01-19": Fraction(32, 5), "2026-01-20": 7, "2026-03-01": 7}
    own = ExchangeRates((*EURO, quotes("2026-01-20", "EUR", USD="2", own=True)))
    assert own.rate("EUR", "USD", instant("2026-03-01") // MS_A_DAY) == 2


def test_an_own_quote_opens_a_way_to_a_currency_that_nobody_else_quotes() -> None:
    rates = ExchangeRates((*EURO, quotes("2026-01-20", "USD", AED="3.6725", own=True)))
    assert rates.rate("EUR", "AED", instant("2026-01-20") // MS_A_DAY) == Fraction(5, 4) * Fraction("3.6725")
    # on a day before it too: there is no other
    assert rates.rate("AED", "USD", instant("2026-01-01") // MS_A_DAY) == 1 / Fraction("3.6725")


@given(st.integers(0, 10**18), st.sampled_from(["USD", "CNY", "GBP"]), st.sampled_from(["EUR", "CNY", "USD"]))
def test_an_amount_is_rounded_once(nano: int, currency: str, to: str) -> None:
    day = instant("2026-01-02")
    rates = ExchangeRates(EURO)
    rate = rates.rate(currency, to, day // MS_A_DAY)
    assert rate is not None
    assert rates.convert(nano, currency, to, day) == (nano if currency == to else round(nano * rate))


def test_the_package_knows_the_yuan_and_the_dollar(book: Book) -> None:
    at = instant("2026-10-30")
    # the European Central Bank on 2026-10-30: 1 EUR = 1.1172 USD = 7.4326 CNY
    assert book().convert(UNIT, "EUR", "USD", at) == 1_117_200_000
    assert book().convert(UNIT, "EUR", "CNY", at) == 7_432_600_000
    assert book().convert(74_326 * UNIT, "CNY", "USD", at) == 11_172 * UNIT
    assert book().convert(5, "XAU", "USD", at) is None
    assert book().convert(5, "XAU", "XAU", at) == 5


def test_rates_of_the_configuration_hold_from_the_day_the_book_ends_on(book: Book) -> None:
    pricing = book(currency=Currency("USD"), rates={Currency("CNY"): Rate(Decimal("7.1"))})
    assert pricing.convert(71 * UNIT, "CNY", "USD", LAST * MS_A_DAY) == 10 * UNIT
    assert pricing.convert(71 * UNIT, "CNY", "USD", (LAST + 900) * MS_A_DAY) == 10 * UNIT
    before = (LAST - 1) * MS_A_DAY
    assert (
        pricing.convert(71 * UNIT, "CNY", "USD", before) == book().convert(71 * UNIT, "CNY", "USD", before) != 10 * UNIT
    )


def test_a_planned_rate_of_another_currency_moves_no_rate_of_the_configuration(book: Book) -> None:
    planned = "rates:\n  - {from: 2027-01-01, per: USD, EUR: 0.9}\n"
    pricing = book(planned, currency=Currency("USD"), rates={Currency("CNY"): Rate(Decimal("9.99"))})
    assert pricing.convert(UNIT, "USD", "CNY", instant("2026-11-22")) == 9_990_000_000


@pytest.mark.parametrize(
    ("days_later", "day", "units"), [(-200, -1, 7), (-200, 0, 9), (0, 0, 7), (0, 100, 7), (60, 59, 9), (60, 60, 7)]
)
def test_of_the_configurations_rate_and_the_files_the_later_one_holds(
    book: Book, days_later: int, day: int, units: int
) -> None:
    """Days are counted from the book's last one."""
    begins = date(1970, 1, 1) + timedelta(days=LAST + days_later)
    text = f"rates:\n  - {{from: {begins}, per: USD, CNY: 7}}\n"
    pricing = book(text, currency=Currency("USD"), rates={Currency("CNY"): Rate(Decimal(9))})
    assert pricing.convert(UNIT, "USD", "CNY", (LAST + day) * MS_A_DAY) == units * UNIT


def test_rates_of_the_file_have_their_days(book: Book) -> None:
    pricing = book("rates:\n  - {from: 2026-11-01, per: USD, CNY: 7.12}\n  - {from: 2026-12-01, per: USD, CNY: 7}\n")
    days = {"2026-11-01": 7_120_000_000, "2026-11-30": 7_120_000_000, "2026-12-01": 7_000_000_000}
    assert {day: pricing.convert(UNIT, "USD", "CNY", instant(day)) for day in days} == days
