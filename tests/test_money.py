"""Amounts are exact."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.money import CURRENCIES, NANO, Money, checked_currency, decimal_of, nano_of, short_decimal


@given(st.integers(-(10**30), 10**30))
def test_an_amount_survives_being_written(nano: int) -> None:
    assert nano_of(Decimal(decimal_of(nano))) == nano == nano_of(Decimal(short_decimal(nano)))


@given(st.integers(0, 10**12 - 1), st.integers(0, 10**9 - 1), st.sampled_from(sorted(CURRENCIES)))
def test_what_is_written_is_read_to_the_nano_unit(units: int, places: int, currency: str) -> None:
    assert Money.parse(f"{units}.{places:09d} {currency}") == Money(units * NANO + places, currency)


@pytest.mark.parametrize(
    "wrong", ["", "10", "USD", "-1 USD", "1e3 USD", "1.0000000001 USD", "1,5 EUR", "nan USD", 10, None]
)
def test_what_is_no_amount_is_refused_with_words(wrong: object) -> None:
    with pytest.raises(ValueError, match="such as 10 USD"):
        Money.parse(wrong)


@pytest.mark.parametrize("code", ["usd", "BTC", "US", ""])
def test_an_unknown_currency_is_named(code: str) -> None:
    with pytest.raises(ValueError, match=f"`{code}` is no currency"):
        checked_currency(code)


def test_half_a_nano_unit_goes_to_the_even_neighbour() -> None:
    assert [nano_of(Fraction(n, 2 * NANO)) for n in (1, 3, 5)] == [0, 2, 2]
