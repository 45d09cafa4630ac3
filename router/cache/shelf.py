"""What a cache keeps its entries on: bytes by key, with an owner and an end."""

from typing import Protocol


class ShelfAway(Exception):
    """It cannot be reached, or does not take what it is given. The message says why."""


class Shelf(Protocol):
    """Every method may raise `ShelfAway`; none blocks the event loop. It is opened when it is first used."""

    async def close(self) -> None:
        """Never raises."""
        ...

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, owner: str, data: bytes, ttl: float, room: int) -> None:
        """Keep `data` for `ttl` seconds, in the place of what was there. What would end first, or was put first, makes
        room, so that all together take no more than `room` bytes."""
        ...

    async def remove(self, key: str) -> None: ...

    async def clear(self, owner: str | None) -> int:
        """Remove what an owner has there, or all (None). Gives how many there were."""
        ...
