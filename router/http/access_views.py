"""Keys and owners as operators see them: JSON, without any secret but a new one."""

from collections.abc import Iterable, Set
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from router.access import ENFORCERS, Budget, Key, Limits, OnDisconnect, Owner, OwnerKind, Period
from router.money import short_decimal

Status: TypeAlias = Literal["active", "expired", "revoked"]


class BudgetShown(Struct, frozen=True):
    amount: str
    per: Period


class KeyShown(Struct, frozen=True, kw_only=True):
    """A key without its secret. Times are Unix seconds."""

    id: str
    object: Literal["key"] = "key"
    name: str
    status: Status
    admin: bool
    models: tuple[str, ...]
    routes: tuple[str, ...]
    tags: dict[str, str]
    user: str | None
    team: str | None
    limits: Limits
    budgets: list[BudgetShown]
    on_disconnect: OnDisconnect | None
    """null: what the route or the server says."""
    created_at: int
    expires_at: int | None
    rotated_at: int | None
    previous_until: int | None
    """Until when the secret before the last rotation is still good."""
    revoked_at: int | None
    warnings: list[str]
    """What of it is kept and not enforced, for the plugin that would do so does not run."""


class KeyIssued(KeyShown, frozen=True, kw_only=True):
    """The only answer with the key itself."""

    key: str


class OwnerShown(Struct, frozen=True):
    id: str
    object: OwnerKind
    name: str
    limits: Limits
    budgets: list[BudgetShown]
    warnings: list[str]
    """As a key's."""


class OwnerRemoved(Struct, frozen=True):
    id: str
    object: Literal["user.deleted", "team.deleted"]
    deleted: bool = True


class KeyList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[KeyShown]
    first_id: str | None
    last_id: str | None
    has_more: bool


class OwnerList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[OwnerShown]
    first_id: str | None
    last_id: str | None
    has_more: bool


def key_shown(key: Key, now: float, plugins: Set[str]) -> KeyShown:
    """`plugins`: the names of those that run."""
    fields = _alike(key, KeyShown)
    previous = key.previous_until if key.previous_until is not None and key.previous_until > now else None
    return KeyShown(
        **{**fields, "budgets": _budgets_shown(key.budgets), "previous_until": previous},
        status=_status(key, now),
        warnings=_warnings(key, plugins),
    )


def key_issued(key: Key, text: str, now: float, plugins: Set[str]) -> KeyIssued:
    return KeyIssued(key=text, **msgspec.structs.asdict(key_shown(key, now, plugins)))


def owner_shown(owner: Owner, plugins: Set[str]) -> OwnerShown:
    budgets, warnings = _budgets_shown(owner.budgets), _warnings(owner, plugins)
    return OwnerShown(owner.id, owner.kind, owner.name, owner.limits, budgets, warnings)


def _warnings(subject: Key | Owner, plugins: Set[str]) -> list[str]:
    said = {"limits": subject.limits != Limits(), "budgets": bool(subject.budgets)}
    return [
        f"`{field}` is kept, but not enforced: put `{plugin}` into the list of plugins"
        for field, plugin in ENFORCERS.items()
        if said[field] and plugin not in plugins
    ]


def _alike(value: Struct, type_: type[Struct]) -> dict[str, Any]:
    names = {field.name for field in msgspec.structs.fields(type_)}
    return {name: field for name, field in msgspec.structs.asdict(value).items() if name in names}


def _budgets_shown(budgets: Iterable[Budget]) -> list[BudgetShown]:
    return [
        BudgetShown(f"{short_decimal(budget.amount.nano)} {budget.amount.currency}", budget.per) for budget in budgets
    ]


def _status(key: Key, now: float) -> Status:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"
