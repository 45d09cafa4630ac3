"""Accounts that nobody here has seen yet are opened with what the ledger says of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from router.accounts import Account, Opening
from router.state.once import Once


class Opened(NamedTuple):
    """What the ledger said was spent, and the Unix milliseconds in which it was asked."""

    spent: int
    asked: int


Told: TypeAlias = dict[Account, Opened]


class Openings:
    """`clock` gives Unix seconds."""

    def __init__(self, opening: Opening, clock: Callable[[], float]) -> None:
        self._once = Once(opening)
        self._clock = clock

    async def ask(self, missing: Sequence[Account], told: Told) -> None:
        """Ask for those that are not among the `told`, and put them there. Raises what the asking raises."""
        for account in missing:
            if account not in told:
                asked = int(self._clock() * 1000)
                told[account] = Opened(await self._once.ask(account), asked)
