"""Who may do what: keys and their owners, limits and budgets. Values alone; the store and the plugins act on them."""

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from router.money import Money

Period: TypeAlias = Literal["day", "month", "total"]
"""Of a budget. Days and months are those of UTC."""
OwnerKind: TypeAlias = Literal["user", "team"]
SubjectKind: TypeAlias = Literal["key", "user", "team", "tag", "experiment"]
"""What limits and budgets are counted by. `experiment`: the calls that one repeats in the background."""
OnDisconnect: TypeAlias = Literal["cancel", "finish"]
"""What becomes of a call whose client leaves: the vendor's work is ended, or goes on into what is kept."""
Count: TypeAlias = Annotated[int, Meta(ge=1, le=10**12)]

ENFORCERS: Final = {"limits": "limits", "budgets": "budget"}
"""Field of a key or owner → the plugin that holds calls to it."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """How much in a minute, and how much at once. None: no limit."""

    rpm: Count | None = None
    """Requests a minute."""
    tpm: Count | None = None
    """Tokens a minute, input and output."""
    parallel: Count | None = None
    """Calls at once."""


class Budget(Struct, frozen=True, forbid_unknown_fields=True):
    """What may be spent in a period."""

    amount: Money
    per: Period = "month"


class Owner(Struct, frozen=True, forbid_unknown_fields=True):
    """A user or a team: what all its keys may do together."""

    kind: OwnerKind
    id: str
    name: str = ""
    limits: Limits = Limits()
    budgets: tuple[Budget, ...] = ()


class Key(Struct, frozen=True, kw_only=True):
    """A key as the store keeps it, without its secret. Times are Unix seconds."""

    id: str
    """`dw-` and eight characters: public, in logs and receipts."""
    name: str
    admin: bool = False
    models: tuple[str, ...] = ()
    """What it may ask for, as shell patterns (`openai/*`, a route's name); empty: all."""
    routes: tuple[str, ...] = ()
    """Routes it may ask for, as shell patterns, when not empty; then `provider/model` only by `models`."""
    tags: dict[str, str] = {}
    """Tags that all its calls bear. A call that gives one of them another value is refused."""
    user: str | None = None
    team: str | None = None
    limits: Limits = Limits()
    budgets: tuple[Budget, ...] = ()
    on_disconnect: OnDisconnect | None = None
    """What becomes of its calls whose client leaves; None: what the route or the server says."""
    created_at: int = 0
    expires_at: int | None = None
    rotated_at: int | None = None
    previous_until: int | None = None
    """Until when the secret before the last rotation is still good."""
    revoked_at: int | None = None
