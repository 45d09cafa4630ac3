"""Budgets when the shared state comes and goes: the ledger stands in for it.

A call reserves in the shared state (`first`); if that is away, in the ledger (`second`). What makes the sums right
whenever one takes over from the other:

- **The first goes away.** The second knows from the rows of attempts what was spent, and not what running calls hold.
  So before anything is reserved there, each process carries over what its own running calls hold.
- **While it is away**, a call that ends releases what it holds in the second. What it was charged is remembered here,
  with the time, for the first still has to be told.
- **The first comes back with what it knew**, as after a broken network: it is told of every call that ended meanwhile.
  A call that holds something there is settled as usual; one that does not is charged all the same. Then it gets what
  the calls hold that run in the second now. Only then is anything reserved in it again.
- **The first comes back empty, or as it was some time ago**, as after a restart: it is another generation
  (`router.state.redis`), in which no account is open. Each is opened with what the ledger says, which includes the
  calls that ended before. Those that end later are charged, also if what they held is lost. The time of an account's
  opening tells the two apart.
- **Too much to remember**: then the first is made to forget everything, and is opened from the ledger as if new.

What stays inexact: other processes' calls, for as long as some see the first and others do not; a call whose rows come
into the ledger in the same tenths of a second in which an account is opened from it; and what a process was about to
tell the first when it died.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from msgspec import Struct

from router.accounts import Account, AccountsAway, Charge, Hold, Refusal, Standing
from router.state.holding import UNLIMITED, BackingAccounts, SharedAccounts

_REMEMBERED: Final = 20_000
"""Calls that ended while the first was away, and that it is told of later."""


class _Running(Struct):
    """What a call has reserved, and how much of it each of the two knows."""

    amounts: dict[Account, int] = {}
    first: dict[Account, int] = {}
    second: dict[Account, int] = {}


class _Ended(Struct, frozen=True):
    call_id: str
    charges: Mapping[Account, int]
    late: Sequence[Charge]
    at: int
    """Unix milliseconds."""


class FallbackAccounts:
    """`remembered`: how many calls that ended meanwhile the first is told of one by one."""

    def __init__(
        self,
        first: SharedAccounts,
        second: BackingAccounts,
        clock: Callable[[], float] = time.time,
        remembered: int = _REMEMBERED,
    ) -> None:
        self.away: str | None = None
        """Why the second is used; None: the first is."""
        self._first = first
        self._second = second
        self._clock = clock
        self._remembered = remembered
        self._running: dict[str, _Running] = {}
        self._ended: deque[_Ended] = deque()
        """What the first has to be told, in the order it happened."""
        self._held_still: dict[str, Mapping[Account, int]] = {}
        """Calls that ended while the second was away, too, and what they were charged: they hold something there."""
        self._generation = first.generation
        self._too_many = False
        self._changing = asyncio.Lock()

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        if not holds:
            return None
        try:
            if self.away is not None or self._generation != self._first.generation:
                await self._come_back()
            refusal = await self._first.reserve(call_id, holds)
        except AccountsAway as error:
            self.away = str(error)
        else:
            if refusal is None:
                running = self._running.setdefault(call_id, _Running())
                _add(holds, running.amounts, running.first)
            return refusal
        await self._carry_over()
        try:
            refusal = await self._second.reserve(call_id, holds)
        except BaseException:
            if call_id not in self._running:
                # nobody knows whether it was reserved, and nobody will settle it
                self._held_still[call_id] = {}
            raise
        if refusal is None:
            running = self._running.setdefault(call_id, _Running())
            _add(holds, running.amounts, running.second)
        return refusal

    async def settle(self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()) -> None:
        """Raises `AccountsAway` only for a call of another process: ours are remembered until they can be told."""
        running = self._running.pop(call_id, None)
        if running is None and (charges or not late):
            await self._second.settle(call_id, charges, late)
            await self._first.settle(call_id, charges, late)
            return
        if running is None:
            # one of ours that holds nothing: the second sees by its rows what it cost
            running = _Running()
        now = int(self._clock() * 1000)
        if running.second:
            try:
                await self._second.settle(call_id, charges, late)
            except AccountsAway:
                self._held_still[call_id] = charges
        if self.away is None:
            try:
                await self._first.settle(call_id, charges, late, None if running.first else now)
            except AccountsAway as error:
                self.away = str(error)
            else:
                return
        self._remember(_Ended(call_id, charges, late, now))

    async def standings(self, accounts: Sequence[Account]) -> list[Standing]:
        try:
            if self.away is not None or self._generation != self._first.generation:
                await self._come_back()
            return await self._first.standings(accounts)
        except AccountsAway as error:
            self.away = str(error)
        await self._carry_over()
        return await self._second.standings(accounts)

    async def held_by(self, owner: str) -> list[tuple[str, tuple[Account, ...]]]:
        """Of both: what a process holds may be in either. Raises `AccountsAway` if one is away."""
        found: dict[str, dict[Account, None]] = {}
        for accounts in (self._first, self._second):
            for call_id, held in await accounts.held_by(owner):
                found.setdefault(call_id, {}).update(dict.fromkeys(held))
        return [(call_id, tuple(held)) for call_id, held in found.items()]

    async def try_again(self) -> None:
        """Tell what is to be told, if it can be: called now and then, so that it does not wait for the next call.

        So a process that only has calls under way notices too that the first has gone, and the others, which ask the
        second now, see what it holds.
        """
        try:
            await self._come_back()
            if held := next((running.amounts for running in self._running.values() if running.amounts), None):
                await self._first.standings([next(iter(held))])
        except AccountsAway as error:
            self.away = str(error)
            with suppress(AccountsAway):
                await self._carry_over()
        with suppress(AccountsAway):
            await self._release()

    # -- from one to the other ---------------------------------------------------------------------------------------

    async def _come_back(self) -> None:
        """Make the first right, and use it again. Raises `AccountsAway` while it cannot be reached."""
        async with self._changing:
            # calls go on to begin and to end while the first is being told
            while self.away is not None or self._generation != self._first.generation:
                if self._too_many:
                    await self._first.begin_anew()
                    self._ended.clear()
                    self._too_many = False
                if self._generation != self._first.generation:
                    self._generation = self._first.generation
                    self.away = self.away or "the shared state was lost"
                    for running in self._running.values():
                        running.first.clear()
                while self._ended and not self._too_many:
                    ended = self._ended[0]
                    await self._first.settle(ended.call_id, ended.charges, ended.late, ended.at)
                    if self._ended and self._ended[0] is ended:
                        self._ended.popleft()
                unknown = [call_id for call_id, running in self._running.items() if running.first != running.amounts]
                if unknown:
                    await asyncio.gather(*map(self._give_back, unknown))
                elif not self._ended and not self._too_many:
                    self.away = None

    async def _give_back(self, call_id: str) -> None:
        if (running := self._running.get(call_id)) is None:
            return
        holds = _missing(running.amounts, running.first)
        await self._first.reserve(call_id, holds)
        # if the call has ended meanwhile, that is in `_ended` now, and releases this
        _add(holds, running.first)

    async def _carry_over(self) -> None:
        """The second learns what our running calls hold. Raises `AccountsAway`."""
        await self._release()
        async with self._changing:
            unknown = {
                call_id: _missing(running.amounts, running.second)
                for call_id, running in self._running.items()
                if running.second != running.amounts
            }
            if not unknown:
                return
            calls = {call_id: {hold.account: hold.amount for hold in holds} for call_id, holds in unknown.items()}
            await self._second.carry(calls)
            for call_id, holds in unknown.items():
                if (running := self._running.get(call_id)) is None:
                    # it has ended meanwhile
                    self._held_still.setdefault(call_id, {})
                else:
                    _add(holds, running.second)

    async def _release(self) -> None:
        """Give back what calls that have ended hold in the second. Raises `AccountsAway`."""
        for call_id, charges in list(self._held_still.items()):
            await self._second.settle(call_id, charges)
            self._held_still.pop(call_id, None)

    def _remember(self, ended: _Ended) -> None:
        if self._too_many:
            return
        self._ended.append(ended)
        if len(self._ended) > self._remembered:
            self._too_many = True
            self._ended.clear()


def _add(holds: Sequence[Hold], *sums: dict[Account, int]) -> None:
    for known in sums:
        for hold in holds:
            known[hold.account] = known.get(hold.account, 0) + hold.amount


def _missing(amounts: Mapping[Account, int], known: Mapping[Account, int]) -> list[Hold]:
    rest = {account: amount - known.get(account, 0) for account, amount in amounts.items()}
    return [Hold(account, UNLIMITED, amount) for account, amount in rest.items() if amount or account not in known]
