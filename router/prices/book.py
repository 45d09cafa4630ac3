"""Prices as data: lists by vendor and region, of models, of periods, of bands. Pure; no file is read here.

A price is decimal text, per million tokens. What a list does not say is None: not known, which is never zero.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field

from router.money import NANO

CLASSES: Final = (
    *("input", "cache_read", "cache_write", "cache_write_1h", "input_audio"),
    *("output", "reasoning", "output_audio"),
)
"""The token classes of `router.events.Usage`, in the order of every vector here."""
INPUTS: Final = 5
"""How many of them, from the first on, are the request's."""
STANDARD: Final = "standard"
THINKING: Final = "thinking"
MODES: Final = (THINKING, "batch", "flex", "priority", "fast", "ultrafast", "scale")
"""What a price may depend on beside the tokens and the hour: reasoning, and the service tier."""
SERVICE_TIERS: Final[dict[str | None, str]] = dict.fromkeys((None, "", "default", "auto", STANDARD), STANDARD)
"""Words for the standard tier. Any other word is the name of a mode."""
DERIVED: Final[dict[str, tuple[str, str]]] = {"cache_read": ("input", "1"), "reasoning": ("output", "1")}
"""Class → class and factor that its price follows from where the list says nothing else: no discount is known."""

Basis: TypeAlias = Literal["whole", "marginal"]
"""`whole`: the band that the request's input falls in prices all its tokens. `marginal`: each band prices the tokens
that fall in it, of input and output by their own counts."""


class Rates(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Prices of a million tokens of each class."""

    input: str | None = None
    cache_read: str | None = None
    cache_read_explicit: str | None = None
    """Of a cache that the request asked for, where the vendor bills its hits otherwise than those of its own cache."""
    cache_write: str | None = None
    cache_write_1h: str | None = None
    input_audio: str | None = None
    output: str | None = None
    reasoning: str | None = None
    output_audio: str | None = None


class Tier(Rates, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What changes when a request has more than `above` input tokens, cached ones included."""

    above: int


class Sheet(Rates, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    tiers: tuple[Tier, ...] = ()
    """Ascending."""
    basis: Basis = "whole"


class Period(Sheet, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A model's price for a time. `from` and `until` are instants (see `instant`), the second exclusive."""

    start: str | None = field(name="from", default=None)
    """None: since ever."""
    until: str | None = None
    """None: until the next period begins."""
    source: str
    """An address, or a data set and its version."""
    seen: str
    """The day, or the month, when the source said so."""
    note: str | None = None
    hours: str | None = None
    """Name of the list's hours, and of the mode that holds in them."""
    modes: dict[str, Sheet] = {}
    """Whole sheets of their own; `thinking` alone takes what it does not say from the standard one."""


class Entry(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Models of one price, the first of them naming it. A name may hold `*`."""

    models: tuple[str, ...]
    periods: tuple[Period, ...]


class Hours(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Hours of the day with prices of their own, in UTC."""

    windows: tuple[tuple[str, str], ...]
    """From and to, such as 01:00 and 04:00; the second is exclusive and may be on the next day."""
    weekdays_only: bool = False
    except_days: tuple[str, ...] = ()
    """Holidays, as days of the vendor's place."""
    utc_offset: int = 0
    """Hours that the vendor's place is ahead of UTC: what day it is there."""
    source: str


class PriceList(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The prices of one vendor in one region."""

    name: str
    title: str
    currency: str
    entries: tuple[Entry, ...]
    sources: tuple[str, ...] = ()
    """Where the list as a whole comes from, with versions and licences."""
    derived: dict[str, tuple[str, str]] = field(default_factory=lambda: dict(DERIVED))
    snapshots: str | None = None
    """A regular expression for what stands behind a model's name in the names of its snapshots, of the same price."""
    service_tiers: dict[str, str] = {}
    """The vendor's own words for modes."""
    hours: dict[str, Hours] = {}
    own: bool = False
    """Written by the user."""


def rate(price: str) -> int:
    """Decimal text as nano-units a million tokens. Raises `ValueError` for what is negative or finer than that."""
    nano = Decimal(price) * NANO
    if not nano.is_finite() or nano < 0 or nano != nano.to_integral_value():
        raise ValueError(f"a price must be zero or more, with nine decimals at most, not {price}")
    return int(nano)


_INSTANT: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:T([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)Z)?")


def instant(text: str) -> int:
    """`2026-08-17` (its first moment in UTC) or `2026-08-16T16:00Z` as Unix milliseconds. Raises `ValueError`."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise ValueError("must be a day such as 2026-08-17, or a time in UTC such as 2026-08-16T16:00Z")
    moment = datetime.fromisoformat(f"{match[1]}T{match[2] or '00:00'}").replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1000
