"""What the ledger says, in words for a terminal."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

INPUT: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "input_audio")
OUTPUT: Final = ("output", "reasoning", "output_audio")


def path(route: str, /, **parameters: Any) -> str:
    """The route with those of the parameters that were given; a `_` at the end of their names is not said."""
    given = [
        (name.rstrip("_"), one)
        for name, value in parameters.items()
        for one in (value if isinstance(value, tuple | list) else (value,))
        if one is not None and one is not False
    ]
    return f"{route}?{urlencode([(name, 'true' if one is True else one) for name, one in given])}" if given else route


def plain(text: object) -> str:
    """Text of a client's or vendor's as a terminal may show it: it could hold escape sequences."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def number(value: int) -> str:
    """With thousands apart: `1,234,567`."""
    return f"{value:,}"


def count(value: int, noun: str) -> str:
    """`1 attempt`, `1,234 attempts`."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def amount(cost: Mapping[str, Any]) -> str:
    """`0.0001234 USD`: without the zeros at the end, but with two places at least."""
    whole, _, places = str(cost["amount"]).partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')} {cost['currency']}"


def amounts(costs: Any, *, unpriced: bool = False) -> str:
    """One cost, several, or none."""
    listed = costs if isinstance(costs, list) else [costs] if costs else []
    said = [amount(cost) for cost in listed]
    return " + ".join([*said, "no price"] if unpriced else said)


def milliseconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / 1000:,.1f} s" if value >= 10_000 else f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def total(usage: Mapping[str, Any] | None, classes: Iterable[str]) -> int:
    return sum(usage[name] for name in classes) if usage else 0


def tokens(usage: Mapping[str, Any]) -> str:
    """`20 input, 4 cache read, 18 output (reported)`."""
    said = [f"{number(usage[name])} {name.replace('_', ' ')}" for name in (*INPUT, *OUTPUT) if usage[name]]
    words = f"{', '.join(said) or 'none'} ({usage['source']})"
    return f"{words}; {plain(usage['flag'])}" if usage.get("flag") else words
