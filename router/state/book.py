"""Budgets in memory, for one thread: nothing here waits. The keepers of accounts say how they get here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from router.accounts import Account, Charge, Hold, Refusal, Standing
from router.state.holding import KEPT, MOST, wanted
from router.state.openings import Opened

_FEW: Final = 1024
"""Accounts that are kept without looking whether their period is over."""


class Sums:
    __slots__ = ("asked", "reserved", "spent")

    def __init__(self, spent: int, asked: int, reserved: int = 0) -> None:
        self.spent = spent
        self.asked = asked
        """When the ledger said what was spent before, in Unix milliseconds."""
        self.reserved = reserved


class Held:
    """What a call holds."""

    __slots__ = ("amounts", "owner", "until")

    def __init__(self, owner: str, until: float = 0.0, amounts: dict[Account, int] | None = None) -> None:
        self.owner = owner
        self.until = until
        self.amounts: dict[Account, int] = {} if amounts is None else amounts


class Book:
    """`expiry`: seconds after which what is held counts no longer. `now` is always in Unix seconds."""

    def __init__(self, expiry: float) -> None:
        self._expiry = expiry
        self.accounts: dict[Account, Sums] = {}
        self.held: dict[str, Held] = {}
        """What counts; the one that expires first is the first."""
        self.lapsed: dict[str, Held] = {}
        """What expired and counts no longer, in the order it did."""
        self.late: dict[str, float] = {}
        """Calls that were charged late, in the order they were, and until when that is known."""
        self._sweep_at = _FEW

    def reserve(
        self, call_id: str, owner: str, holds: Sequence[Hold], opened: Mapping[Account, Opened], now: float
    ) -> Refusal | list[Account] | None:
        """As `Accounts.reserve`; gives the accounts that are not open, if there are any. `opened` is what the ledger
        said of them."""
        self._lapse(now)
        accounts = self.accounts
        checks = wanted(holds)
        if missing := self._open([hold.account for hold in holds], opened):
            return missing
        for hold, amount in checks:
            sums = accounts[hold.account]
            if sums.spent + sums.reserved + amount > hold.limit or amount > MOST:
                return Refusal(hold, Standing(hold.account, sums.spent, sums.reserved))
        held = self.held.pop(call_id, None) or self.lapsed.pop(call_id, None) or Held(owner)
        held.until = now + self._expiry
        self.held[call_id] = held
        amounts = held.amounts
        for hold in holds:
            accounts[hold.account].reserved += hold.amount
            amounts[hold.account] = amounts.get(hold.account, 0) + hold.amount
        if len(accounts) > self._sweep_at:
            self._sweep(now)
        return None

    def settle(self, call_id: str, charges: Mapping[Account, int]) -> Held | None:
        """As `Accounts.settle`, but for what comes late. What the call held, if it held anything."""
        held = self.held.pop(call_id, None) or self.lapsed.pop(call_id, None)
        if held is None:
            return None
        for account, amount in held.amounts.items():
            if (sums := self.accounts.get(account)) is not None:
                sums.reserved -= amount
        for account, amount in charges.items():
            # one that is not open will be opened with what the ledger says, which is this too
            if (sums := self.accounts.get(account)) is not None:
                sums.spent += amount
        return held

    def charge_late(self, call_id: str, late: Sequence[Charge], held: Held | None, now: float) -> None:
        """What `Accounts.settle` says of it, for a call that `held` this."""
        if call_id in self.late:
            return
        for charge in late:
            sums = self.accounts.get(charge.account)
            if sums is not None and (sums.asked < charge.at or (held is not None and charge.account in held.amounts)):
                sums.spent += charge.amount
                # where nothing is booked, nothing will be either the next time it is tried
                self.late[call_id] = now + KEPT

    def standings(
        self, accounts: Sequence[Account], opened: Mapping[Account, Opened], now: float
    ) -> tuple[list[Standing], list[Account]]:
        """The standings; or the accounts that are not open, if there are any."""
        self._lapse(now)
        if missing := self._open(accounts, opened):
            return [], missing
        found = [(account, self.accounts[account]) for account in accounts]
        standings = [Standing(account, sums.spent, sums.reserved) for account, sums in found]
        if len(self.accounts) > self._sweep_at:
            self._sweep(now)
        return standings, []

    def held_by(self, owner: str) -> list[tuple[str, tuple[Account, ...]]]:
        return [(call_id, tuple(held.amounts)) for call_id, held in self.all_held() if held.owner == owner]

    def all_held(self) -> Iterator[tuple[str, Held]]:
        yield from self.lapsed.items()
        yield from self.held.items()

    def clear(self) -> None:
        for each in (self.accounts, self.held, self.lapsed, self.late):
            each.clear()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _open(self, accounts: Sequence[Account], opened: Mapping[Account, Opened]) -> list[Account]:
        missing = []
        for account in accounts:
            if account in self.accounts or account in missing:
                continue
            if (told := opened.get(account)) is None:
                missing.append(account)
            else:
                self.accounts[account] = Sums(*told)
        return missing

    def _lapse(self, now: float) -> None:
        while self.held:
            call_id, held = next(iter(self.held.items()))
            if held.until > now:
                break
            self.lapsed[call_id] = self.held.pop(call_id)
            for account, amount in held.amounts.items():
                self.accounts[account].reserved -= amount
                held.amounts[account] = 0
        while self.lapsed:
            call_id, held = next(iter(self.lapsed.items()))
            if held.until + KEPT > now:
                break
            del self.lapsed[call_id]
        while self.late:
            call_id, until = next(iter(self.late.items()))
            if until > now:
                break
            del self.late[call_id]

    def _sweep(self, now: float) -> None:
        before = int((now - KEPT) * 1000)
        held = {account for _, call in self.all_held() for account in call.amounts}
        for account in list(self.accounts):
            if account not in held and (until := account.until) is not None and until < before:
                del self.accounts[account]
        self._sweep_at = max(_FEW, 2 * len(self.accounts))
