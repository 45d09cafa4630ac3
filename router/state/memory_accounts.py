"""Budgets counted in the memory of one process."""

import time
from collections.abc import Callable, Mapping, Sequence

from router.accounts import Account, Charge, Hold, Opening, Refusal, Standing
from router.state.book import Book
from router.state.holding import EXPIRY
from router.state.openings import Openings, Told


class MemoryAccounts:
    """Accounts of one process, which is `owner`. `clock` gives Unix seconds."""

    def __init__(
        self, opening: Opening, owner: str, clock: Callable[[], float] = time.time, expiry: float = EXPIRY
    ) -> None:
        self._openings = Openings(opening, clock)
        self._owner = owner
        self._clock = clock
        self._book = Book(expiry)

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        if not holds:
            return None
        told: Told = {}
        while True:
            found = self._book.reserve(call_id, self._owner, holds, told, self._clock())
            if not isinstance(found, list):
                return found
            await self._openings.ask(found, told)

    async def settle(self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()) -> None:
        held = self._book.settle(call_id, charges)
        if late:
            self._book.charge_late(call_id, late, held, self._clock())

    async def standings(self, accounts: Sequence[Account]) -> list[Standing]:
        told: Told = {}
        while True:
            found, missing = self._book.standings(accounts, told, self._clock())
            if not missing:
                return found
            await self._openings.ask(missing, told)

    async def held_by(self, owner: str) -> list[tuple[str, tuple[Account, ...]]]:
        return self._book.held_by(owner)
