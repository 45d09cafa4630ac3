"""Keys and owners as operators write them: bodies of JSON, checked field by field."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

from router.access import Budget, Key, Limits, OnDisconnect, Owner, OwnerKind, Period
from router.errors import InvalidRequest
from router.money import NANO, Money

_SPAN: Final = re.compile(r"([0-9]{1,9}) ?(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_LIFE: Final = 3650 * 86400
LONGEST_OVERLAP: Final = 90 * 86400
MOST_PATTERNS: Final = 100
MOST_TAGS: Final = 16
MOST_BUDGETS: Final = 16
LARGEST_BUDGET: Final = 10**9
"""Units of a currency, as in the rules of `budget`: in nano-units it fits into 64 bits."""
LONGEST_WORD: Final = 200
"""Characters of a name, an id, a pattern, or a tag's name or value."""


class BudgetBody(Struct, frozen=True, forbid_unknown_fields=True):
    amount: str
    """With its currency: `10 USD`."""
    per: Period = "month"


class KeyBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may be told; what is left out stays as it is."""

    name: str | UnsetType = UNSET
    models: list[str] | UnsetType = UNSET
    routes: list[str] | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET
    user: str | UnsetType | None = UNSET
    team: str | UnsetType | None = UNSET
    limits: Limits | UnsetType = UNSET
    budgets: list[BudgetBody] | UnsetType = UNSET
    on_disconnect: OnDisconnect | UnsetType | None = UNSET
    """null: what the route or the server says."""
    expires_in: str | UnsetType = UNSET
    """`30d`, from now on."""
    expires_at: int | str | UnsetType | None = UNSET
    """Unix seconds, or a date of ISO 8601 (UTC where it does not say); null: never."""


class NewKeyBody(KeyBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    admin: bool = False


class RotationBody(Struct, frozen=True, forbid_unknown_fields=True):
    overlap: str = "24h"
    """For how long the secret before stays good; `0s`: not at all."""


class OwnerBody(Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    limits: Limits = Limits()
    budgets: list[BudgetBody] = []


def new_key(body: NewKeyBody, now: float) -> Key:
    """Without its id. `now` in Unix seconds. Raises `InvalidRequest`."""
    return Key(id="", admin=body.admin, **key_fields(body, now))


def key_fields(body: KeyBody, now: float) -> dict[str, Any]:
    """Field of `Key` → its value, of those that the body names. Raises `InvalidRequest`."""
    readers: dict[str, Callable[[Any], Any]] = {
        "name": lambda text: _word(text, "name"),
        "models": lambda patterns: _patterns(patterns, "models"),
        "routes": lambda patterns: _patterns(patterns, "routes"),
        "tags": _tags,
        "user": lambda text: None if text is None else _word(text, "user"),
        "team": lambda text: None if text is None else _word(text, "team"),
        "limits": lambda limits: limits,
        "budgets": _budgets,
        "on_disconnect": lambda word: word,
    }
    given = ((name, getattr(body, name)) for name in readers)
    fields = {name: readers[name](value) for name, value in given if value is not UNSET}
    if body.expires_in is not UNSET and body.expires_at is not UNSET:
        raise InvalidRequest("`expires_in` and `expires_at` say the same thing: give one of them", param="expires_in")
    if body.expires_in is not UNSET:
        fields["expires_at"] = int(now) + _life(body.expires_in)
    elif body.expires_at is not UNSET:
        fields["expires_at"] = None if body.expires_at is None else _moment(body.expires_at, now)
    return fields


def owner_of(kind: OwnerKind, owner_id: str, body: OwnerBody) -> Owner:
    """Raises `InvalidRequest`."""
    name = _word(body.name, "name") if body.name else ""
    return Owner(kind, checked_id(owner_id), name, body.limits, _budgets(body.budgets))


def checked_id(owner_id: str) -> str:
    """Raises `InvalidRequest`."""
    return _word(owner_id, "id")


def overlap_of(body: RotationBody) -> int:
    """Seconds. Raises `InvalidRequest`."""
    return _span(body.overlap, "overlap", LONGEST_OVERLAP, "24h")


def _word(text: str, param: str) -> str:
    if not text or len(text) > LONGEST_WORD or not text.isprintable() or text != text.strip():
        raise InvalidRequest(
            f"`{param}` must be 1 to {LONGEST_WORD} printable characters without white space at the ends", param=param
        )
    return text


def _patterns(patterns: list[str], param: str) -> tuple[str, ...]:
    _bounded(patterns, MOST_PATTERNS, param)
    for at, pattern in enumerate(patterns):
        _word(pattern, f"{param}[{at}]")
        if re.search(r"\s", pattern) or re.search(r"\[(?![^\[\]]+\])", pattern):
            raise InvalidRequest(
                f"`{param}[{at}]` is no pattern: write a name, with `*` for any characters, `?` for one, `[ab]` for "
                "one of some",
                param=f"{param}[{at}]",
            )
    return tuple(dict.fromkeys(patterns))


def _tags(tags: dict[str, str]) -> dict[str, str]:
    _bounded(tags, MOST_TAGS, "tags")
    for name, value in tags.items():
        # as the header `x-deltaway-tags` can say them
        if re.search(r"[,=]", name) or "," in value:
            raise InvalidRequest(
                "`tags` may not hold a comma, and no `=` in a name: the header `x-deltaway-tags` could not say them",
                param="tags",
            )
        _word(name, "tags")
        _word(value, f"tags.{name}")
    return tags


def _budgets(budgets: list[BudgetBody]) -> tuple[Budget, ...]:
    _bounded(budgets, MOST_BUDGETS, "budgets")
    found: list[Budget] = []
    for at, budget in enumerate(budgets):
        try:
            amount = Money.parse(budget.amount)
        except ValueError as error:
            raise InvalidRequest(f"`budgets[{at}].amount`: {error}", param=f"budgets[{at}].amount") from None
        if amount.nano > LARGEST_BUDGET * NANO:
            raise InvalidRequest(
                f"`budgets[{at}].amount` must be at most {LARGEST_BUDGET} {amount.currency}",
                param=f"budgets[{at}].amount",
            )
        if any(other.per == budget.per and other.amount.currency == amount.currency for other in found):
            raise InvalidRequest(
                f"`budgets[{at}]` is the second one in {amount.currency} per {budget.per}: keep the smaller",
                param=f"budgets[{at}]",
            )
        found.append(Budget(amount, budget.per))
    return tuple(found)


def _bounded(items: list[Any] | Mapping[str, Any], most: int, param: str) -> None:
    if len(items) > most:
        raise InvalidRequest(f"`{param}` holds more than {most}", param=param)


def _span(text: str, param: str, longest: int, example: str) -> int:
    match = _SPAN.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else longest + 1
    if seconds > longest:
        raise InvalidRequest(
            f"`{param}` must be a whole number with its unit, s, m, h or d, such as {example}, and at most "
            f"{longest // 86400}d",
            param=param,
        )
    return seconds


def _life(text: str) -> int:
    seconds = _span(text, "expires_in", LONGEST_LIFE, "30d")
    if not seconds:
        raise InvalidRequest(
            "`expires_in` must be more than nothing: revoke a key that should not work", param="expires_in"
        )
    return seconds


def _moment(value: int | str, now: float) -> int:
    if isinstance(value, str):
        try:
            # "Z" is known to Python from 3.11 on; a date alone is its first moment
            date = datetime.fromisoformat(value)
            value = int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
        except (ValueError, OverflowError):
            raise InvalidRequest(
                "`expires_at` is no date: write Unix seconds as a number, or a date such as 2030-12-31 or "
                "2030-12-31T18:00:00Z",
                param="expires_at",
            ) from None
    if not now < value <= now + LONGEST_LIFE:
        raise InvalidRequest(
            f"`expires_at` must lie ahead, by {LONGEST_LIFE // 86400} days at most", param="expires_at"
        )
    return value
