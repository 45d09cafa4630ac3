"""The contract of budgets: accounts whose money is reserved before a call and settled after it.

An account is one subject in one period in one currency: `key:dw-ab12cd34/month:2026-11/USD`. What was spent before
anybody here knew the account is asked of the ledger (`Opening`). Amounts are nano-units of the account's currency.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

from msgspec import Struct

from router.access import Period, SubjectKind


class Account(Struct, frozen=True):
    kind: SubjectKind
    subject: str
    """The key's id, the user, the team, `name=value` for a tag, or the experiment's name."""
    per: Period
    period: str
    """`2026-11-22`, `2026-11`, or empty for a total."""
    currency: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.subject}/{self.per}:{self.period}/{self.currency}"

    @property
    def since(self) -> int:
        """When the period began, in Unix milliseconds; 0 for a total."""
        if self.per == "total":
            return 0
        begin = self.period if self.per == "day" else f"{self.period}-01"
        return int(datetime.fromisoformat(begin).replace(tzinfo=UTC).timestamp() * 1000)

    @property
    def until(self) -> int | None:
        """When it ends (exclusive), in Unix milliseconds; None for a total."""
        if self.per == "total":
            return None
        if self.per == "day":
            return self.since + 86_400_000
        year, month = int(self.period[:4]), int(self.period[5:7])
        following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        return int(following.timestamp() * 1000)


def account(kind: SubjectKind, subject: str, per: Period, currency: str, at: int) -> Account:
    """The account of the period that `at` (Unix milliseconds) lies in."""
    day = datetime.fromtimestamp(at / 1000, UTC).date().isoformat()
    return Account(kind, subject, per, {"day": day, "month": day[:7], "total": ""}[per], currency)


class Hold(Struct, frozen=True):
    """`amount` wanted of an account in which `limit` may be spent in all."""

    account: Account
    limit: int
    amount: int


class Standing(Struct, frozen=True):
    account: Account
    spent: int
    reserved: int


class Refusal(Struct, frozen=True):
    """The hold that would have passed its limit, and how the account stood."""

    hold: Hold
    standing: Standing


class Charge(Struct, frozen=True):
    """What an attempt cost, in an account of which its call may hold nothing: it began before there was such a budget,
    or nobody could be asked."""

    account: Account
    amount: int
    at: int
    """When the attempt ended, in Unix milliseconds."""


Opening: TypeAlias = Callable[[Account], Awaitable[int]]
"""What the ledger says was spent in an account."""


class AccountsAway(Exception):
    """The state cannot be reached."""


class Accounts(Protocol):
    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        """Reserve all or nothing: spent + reserved + amount may not pass the limit. Adds to what the call holds.

        Raises `AccountsAway`.
        """
        ...

    async def settle(self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()) -> None:
        """Release what the call holds and book the charges as spent. Does nothing for a call that holds nothing, so
        it may be repeated.

        What comes `late` is booked of any call, once: on the accounts that it holds, and on those that were opened
        before the charge's time. What was spent before an account was opened, the ledger told at its opening.
        Raises `AccountsAway`."""
        ...

    async def standings(self, accounts: Sequence[Account]) -> list[Standing]:
        """How they stand. Raises `AccountsAway`."""
        ...

    async def held_by(self, owner: str) -> list[tuple[str, tuple[Account, ...]]]:
        """The calls of a process that hold something, with the accounts: what to settle when it has died."""
        ...
