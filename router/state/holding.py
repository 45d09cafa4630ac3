"""What all keepers of accounts agree on, and what one must be able to do to stand in front of the ledger."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from router.accounts import Account, Accounts, Charge, Hold

EXPIRY: Final = 31 * 86_400.0
"""Seconds after which what a call reserved counts no longer, if it neither settles nor reserves more: longer than any
call may take (`timeouts.total`). What a dead process held is settled long before, when its journal is recovered."""
KEPT: Final = 86_400.0
"""Seconds that such a call is remembered, so that it can still be charged; and an account after its period."""
MOST: Final = 2**62
"""The most that one call can hold of an account: what 64 bits keep."""
UNLIMITED: Final = 10**24
"""More than any limit."""


class SharedAccounts(Accounts, Protocol):
    """Accounts that several processes share, and that can be lost or out of reach while calls go on."""

    @property
    def generation(self) -> str:
        """Another one once everything was lost, as far as this process has seen it."""
        ...

    async def settle(
        self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = (), at: int | None = None
    ) -> None:
        """As `Accounts.settle`. With `at`, the Unix milliseconds in which the call was settled elsewhere, the charges
        of a call that holds nothing here are late ones of that time."""
        ...

    async def begin_anew(self) -> None:
        """Forget every account and what is held of it, so that the ledger is asked for each. Raises `AccountsAway`."""
        ...


class BackingAccounts(Accounts, Protocol):
    """Accounts that are used while those are out of reach."""

    async def carry(self, calls: Mapping[str, Mapping[Account, int]]) -> None:
        """Hold what calls have reserved elsewhere, whatever the limits. Raises `AccountsAway`."""
        ...


def lost(charges: Mapping[Account, int], at: int) -> list[Charge]:
    """The charges of a call whose reservation was lost, and that was settled `at` (Unix milliseconds)."""
    return [Charge(account, amount, at) for account, amount in charges.items()]


def wanted(holds: Sequence[Hold]) -> list[tuple[Hold, int]]:
    """Each hold, with what it and those before it want of its account."""
    sums: dict[Account, int] = {}
    result = []
    for hold in holds:
        amount = sums[hold.account] = sums.get(hold.account, 0) + hold.amount
        result.append((hold, amount))
    return result
