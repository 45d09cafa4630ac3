"""The contract of the cache of answers: what is kept of one, and what a cache does with it.

A cache may forget anything at any time. It never keeps anybody waiting for long and never fails a call: one that is
away has nothing, and takes nothing.
"""

from typing import Protocol

from msgspec import Struct

from router.events import Event


class Entry(Struct, frozen=True, kw_only=True):
    """One finished answer."""

    events: tuple[Event, ...]
    """All of them, from `Started` to `Completed`."""
    created_at: int
    """When the call began that it was written for, in Unix milliseconds."""
    owner: str
    """The public id of the key that made this call; empty where calls need none."""
    call: str
    """The call's id."""
    target: str = ""
    """Who wrote it."""
    cost: str = ""
    """What it cost, as `x-deltaway-cost` said it; empty: not known."""
    dropped: tuple[str, ...] = ()
    """Fields of the request that the vendor was not told."""


class CacheStore(Protocol):
    """Where entries are kept. No method raises."""

    async def get(self, key: str) -> Entry | None:
        """None: there is none, its time is over, or the cache is away."""
        ...

    async def put(self, key: str, entry: Entry, ttl: float, *, most: int, room: int) -> None:
        """Keep it for `ttl` seconds, in the place of an older one, if it takes no more than `most` bytes. Entries make
        room for it, the oldest first, so that all together take no more than `room` bytes."""
        ...

    async def remove(self, key: str) -> None: ...

    async def clear(self, owner: str | None = None) -> int | None:
        """Remove the entries of an owner, or all. Gives how many there were; None: the cache is away."""
        ...


class NoCache:
    """Keeps nothing."""

    async def get(self, key: str) -> Entry | None:
        return None

    async def put(self, key: str, entry: Entry, ttl: float, *, most: int, room: int) -> None:
        return None

    async def remove(self, key: str) -> None:
        return None

    async def clear(self, owner: str | None = None) -> int | None:
        return 0
