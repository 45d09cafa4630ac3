"""A cache on a shelf that may be away: then it has nothing, says so once in the log, and keeps nobody waiting."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import structlog

from router.cache.entry import Entry
from router.cache.shelf import Shelf, ShelfAway

T = TypeVar("T")

PATIENCE: Final = 0.5
"""Seconds to wait for the shelf, whose entry is worth no more than the vendor's first token."""
_CLEARING: Final = 30.0
"""Seconds to wait for entries to be removed: whoever asks for it wants to know that they are gone."""
_REST: Final = 1.0
"""Seconds in which a shelf that was away is not asked again."""


class SteadyCache:
    """The cache of one process, opened and closed with what is behind it."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._away_until: float | None = None
        """When it is asked again; None: it is there."""
        self._decoder = msgspec.json.Decoder(Entry)
        self._encoder = msgspec.json.Encoder()
        self._log = structlog.get_logger("deltaway.cache")

    async def close(self) -> None:
        await self._shelf.close()

    async def get(self, key: str) -> Entry | None:
        data = await self._tried(lambda: self._shelf.get(key))
        if data is None:
            return None
        try:
            return self._decoder.decode(data)
        except msgspec.MsgspecError:
            # another version's
            return None

    async def put(self, key: str, entry: Entry, ttl: float, *, most: int, room: int) -> None:
        try:
            data = self._encoder.encode(entry)
        except (OverflowError, TypeError, ValueError) as error:
            self._log.warning("an answer is not kept: it cannot be written as JSON", reason=str(error))
            return
        if len(data) <= min(most, room):
            await self._tried(lambda: self._shelf.put(key, entry.owner, data, ttl, room))

    async def remove(self, key: str) -> None:
        await self._tried(lambda: self._shelf.remove(key))

    async def clear(self, owner: str | None = None) -> int | None:
        # it is asked even if it was away just now
        self._away_until = None if self._away_until is None else 0.0
        return await self._tried(lambda: self._shelf.clear(owner), _CLEARING)

    async def _tried(self, ask: Callable[[], Awaitable[T]], patience: float = PATIENCE) -> T | None:
        now = asyncio.get_running_loop().time()
        if self._away_until is not None and now < self._away_until:
            return None
        try:
            async with asyncio.timeout(patience):
                answer = await ask()
        except (ShelfAway, TimeoutError) as away:
            if self._away_until is None:
                self._log.warning("the cache is away: calls go to the vendors", reason=str(away) or "no answer in time")
            self._away_until = now + _REST
            return None
        if self._away_until is not None:
            self._away_until = None
            self._log.info("the cache is back")
        return answer
