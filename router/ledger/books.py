"""What the request path tells the books, and books in which nothing is written."""

from collections.abc import Awaitable
from typing import Protocol

from router.call import Attempt, Call
from router.ledger.charge import price


class Books(Protocol):
    """What the request path tells. Each returned awaitable is what durability asks to wait for; None: nothing."""

    @property
    def away(self) -> str | None:
        """Why the store cannot be written to; None while it can."""
        ...

    @property
    def backlog(self) -> int:
        """Records that are not in the store yet."""
        ...

    def open(self, call: Call, attempt: Attempt) -> Awaitable[None] | None:
        """The attempt is about to be made. Raises `StoreUnavailable` when it cannot be put on record."""
        ...

    def settle(self, call: Call, attempt: Attempt) -> None:
        """The attempt has ended: `ended`, `outcome` and `usage` are set. Sets its cost. Never raises."""
        ...

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> Awaitable[None] | None:
        """The call has ended, all its layers closed. Never raises."""
        ...

    async def flushed(self) -> None:
        """Wait until the store has what has happened so far in this process, or is known to be away."""
        ...


class NoLedger:
    """`ledger: {enabled: false}`: nothing is recorded. Costs are still told to the plugins."""

    away = None
    backlog = 0

    def open(self, call: Call, attempt: Attempt) -> None:
        return None

    def settle(self, call: Call, attempt: Attempt) -> None:
        price(call.trip, attempt)

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> None:
        call.trip.closed = True

    async def flushed(self) -> None:
        return None
