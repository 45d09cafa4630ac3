"""Exact amounts of money: whole nano-units (a billionth) of an ISO 4217 currency. Pure; knows no price and no rate.

No float comes near an amount: text becomes a `Decimal`, a `Decimal` a whole number of nano-units.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Final, Self

from msgspec import Struct

NANO: Final = 10**9
"""Nano-units in one unit of a currency: 1 USD is 1,000,000,000 nano-dollars."""
CURRENCIES: Final = frozenset(
    (
        *("AED", "AFN", "ALL", "AMD", "ANG", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN"),
        *("BHD", "BIF", "BMD", "BND", "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF"),
        *("CLP", "CNY", "COP", "CRC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB"),
        *("EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HTG"),
        *("HUF", "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD", "JOD", "JPY", "KES", "KGS", "KHR", "KMF"),
        *("KPW", "KRW", "KWD", "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL", "LYD", "MAD", "MDL", "MGA"),
        *("MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK", "MXN", "MYR", "MZN", "NAD", "NGN", "NIO"),
        *("NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD"),
        *("RUB", "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD", "SSP", "STN"),
        *("SVC", "SYP", "SZL", "THB", "TJS", "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX"),
        *("USD", "UYU", "UZS", "VES", "VND", "VUV", "WST", "XAF", "XCD", "XOF", "XPF", "YER", "ZAR", "ZMW"),
    )
)
"""ISO 4217 codes that prices and budgets may be in."""
_MONEY: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([A-Za-z]{3})")


class Money(Struct, frozen=True, order=True):
    """An amount in one currency."""

    nano: int
    currency: str

    @classmethod
    def parse(cls, value: object) -> Self:
        """`10 USD`, `0.25 CNY`: what stands in a file or a request. Raises `ValueError`."""
        match = _MONEY.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError("must be an amount of zero or more with its currency, such as 10 USD or 2.50 CNY")
        return cls(nano_of(Decimal(match[1])), checked_currency(match[2]))

    def __str__(self) -> str:
        return f"{decimal_of(self.nano)} {self.currency}"


def checked_currency(code: str) -> str:
    """The code, if it is one of `CURRENCIES`. Raises `ValueError`."""
    if code not in CURRENCIES:
        raise ValueError(f"`{code[:8]}` is no currency that is known here: write an ISO 4217 code such as USD or CNY")
    return code


def nano_of(amount: Decimal | Fraction) -> int:
    """An amount in units as whole nano-units, the half to the even neighbour."""
    return rounded(Fraction(amount) * NANO)


def rounded(nano: Fraction) -> int:
    """A fraction of nano-units as whole ones, the half to the even neighbour."""
    return round(nano)


def decimal_of(nano: int) -> str:
    """Nano-units as a decimal number of units, all nine places: `0.000123400`."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    return f"{sign}{nano // NANO}.{nano % NANO:09d}"


def short_decimal(nano: int) -> str:
    """Nano-units for people: without the zeros at the end, but with two places at least."""
    whole, _, places = decimal_of(nano).partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"
