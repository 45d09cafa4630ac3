"""Budgets counted in the ledger itself: slower than the shared state, and there when that is away.

What was spent is what the rows of attempts say. What running calls hold is kept beside them and counted in the same
transaction, one at a time for each account.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from msgspec import Struct

from router.accounts import Account, AccountsAway, Charge, Hold, Refusal, Standing
from router.state.holding import EXPIRY, KEPT, MOST, wanted
from router.state.names import account_named
from router.state.once import Once
from router.store import holds as rows
from router.store.holds import Connection
from router.store.spending import Convert, added_up, day_totals
from router.store.store import Store, StoreAway

_SETTLING: Final = 60_000
"""Milliseconds that a charge counts while the rows of its attempts do not come. They take a fraction of a second."""
_RECENT: Final = 900_000
"""Milliseconds of which the rows are added up for every call: attempts that began before have ended."""
_REMEMBERED: Final = 300_000
"""Milliseconds that the sum of the rows before is remembered, for attempts that took longer after all."""
_SWEEP: Final = 60_000


class _Before(Struct, frozen=True):
    """What was spent before `cut`, as the ledger said `at` (Unix milliseconds)."""

    nano: int
    cut: int
    at: int


class LedgerAccounts:
    """Accounts as the process `owner` sees them. `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        convert: Convert,
        owner: str,
        clock: Callable[[], float] = time.time,
        expiry: float = EXPIRY,
    ) -> None:
        self._store = store
        self._convert = convert
        self._owner = owner
        self._clock = clock
        self._expiry = round(expiry * 1000)
        self._before: dict[Account, _Before] = {}
        self._asking = Once(self._add_up_before)
        self._swept_at = 0
        self._reserving: set[str] = set()
        """Running calls of this process."""

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        if not holds:
            return None
        checks = wanted(holds)
        amounts = {hold.account: amount for hold, amount in checks}
        with _away():
            before = [await self._spent_before(account) for account in amounts]
            async with self._store.writing() as connection:
                await rows.lock(connection, self._store.dialect, list(map(str, amounts)))
                now = self._now()
                standings = await self._stand(connection, list(amounts), before, now)
                for hold, amount in checks:
                    standing = standings[hold.account]
                    if standing.spent + standing.reserved + amount > hold.limit or amount > MOST:
                        return Refusal(hold, standing)
                self._reserving.add(call_id)
                await self._hold(connection, call_id, amounts, now)
        return None

    async def carry(self, calls: Mapping[str, Mapping[Account, int]]) -> None:
        """Hold what calls have reserved elsewhere, whatever the limits. Raises `AccountsAway`."""
        accounts = {str(account) for amounts in calls.values() for account in amounts}
        with _away():
            async with self._store.writing() as connection:
                await rows.lock(connection, self._store.dialect, list(accounts))
                for call_id, amounts in calls.items():
                    await self._hold(connection, call_id, amounts, self._now())

    async def settle(self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()) -> None:
        """What was charged is in the call's rows, or will be in a moment: what comes late comes with them."""
        with _away():
            if call_id not in self._reserving:
                async with self._store.reading() as connection:
                    if not await rows.held(connection, call_id):
                        return
            async with self._store.writing() as connection:
                held = await rows.held(connection, call_id)
                charged = {str(account): amount for account, amount in charges.items()} if held else {}
                await rows.lock(connection, self._store.dialect, [*held, *charged])
                now = self._now()
                if held:
                    await rows.settle(connection, self._store.dialect, call_id, charged, now, now + _SETTLING)
                if now - self._swept_at >= _SWEEP:
                    self._swept_at = now
                    await rows.sweep(connection, now, now - round(KEPT * 1000))
        self._reserving.discard(call_id)

    async def standings(self, accounts: Sequence[Account]) -> list[Standing]:
        with _away():
            before = [await self._spent_before(account) for account in accounts]
            async with self._store.reading() as connection:
                standings = await self._stand(connection, accounts, before, self._now())
        return [standings[account] for account in accounts]

    async def held_by(self, owner: str) -> list[tuple[str, tuple[Account, ...]]]:
        with _away():
            async with self._store.reading() as connection:
                found = await rows.of_owner(connection, owner)
        return [(call_id, tuple(map(account_named, accounts))) for call_id, accounts in found.items()]

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _hold(self, connection: Connection, call_id: str, amounts: Mapping[Account, int], now: int) -> None:
        named = {str(account): amount for account, amount in amounts.items()}
        await rows.add(connection, self._store.dialect, call_id, named, self._owner, now, now + self._expiry)

    async def _stand(
        self, connection: Connection, accounts: Sequence[Account], before: Sequence[_Before], now: int
    ) -> dict[Account, Standing]:
        # in this order: the rows of a call that ends in between are counted twice rather than not at all
        reserved = await rows.reserved(connection, list(map(str, accounts)), now)
        standings = {}
        for account, earlier in zip(accounts, before, strict=True):
            totals = await day_totals(connection, self._store.dialect, account, earlier.cut, account.until)
            recent = added_up(totals, account.currency, self._convert).nano
            standings[account] = Standing(account, earlier.nano + recent, reserved[str(account)])
        return standings

    async def _spent_before(self, account: Account) -> _Before:
        before = self._before.get(account)
        if before is None or not 0 <= self._now() - before.at < _REMEMBERED:
            before = await self._asking.ask(account)
        return before

    async def _add_up_before(self, account: Account) -> _Before:
        now = self._now()
        cut = max(account.since, now - _RECENT)
        if account.until is not None:
            cut = min(cut, account.until)
        async with self._store.reading() as connection:
            totals = await day_totals(connection, self._store.dialect, account, account.since, cut)
        # what is remembered of others for long is asked for again when it is needed
        self._before = {kept: each for kept, each in self._before.items() if 0 <= now - each.at < _REMEMBERED}
        before = self._before[account] = _Before(added_up(totals, account.currency, self._convert).nano, cut, now)
        return before

    def _now(self) -> int:
        return int(self._clock() * 1000)


@contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except StoreAway as error:
        raise AccountsAway(str(error)) from error
