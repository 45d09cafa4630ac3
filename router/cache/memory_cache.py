"""A cache in this process's memory: what was not read for longest makes room."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from msgspec import Struct

_BESIDE: Final = 512
"""Bytes that an entry takes beside its data, about."""


class _Kept(Struct, frozen=True):
    owner: str
    data: bytes
    until: float


class MemoryCache:
    """`clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        """The least recently read first."""
        self._taken = 0

    async def close(self) -> None:
        self._kept.clear()
        self._taken = 0

    async def get(self, key: str) -> bytes | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if found.until <= self._clock():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found.data

    async def put(self, key: str, owner: str, data: bytes, ttl: float, room: int) -> None:
        self._drop(key)
        self._kept[key] = _Kept(owner, data, self._clock() + ttl)
        self._taken += len(data) + _BESIDE
        while self._taken > room and self._kept:
            self._drop(next(iter(self._kept)))

    async def remove(self, key: str) -> None:
        self._drop(key)

    async def clear(self, owner: str | None) -> int:
        now = self._clock()
        found = [(key, kept.until) for key, kept in self._kept.items() if owner is None or kept.owner == owner]
        for key, _ in found:
            self._drop(key)
        return sum(until > now for _, until in found)

    def _drop(self, key: str) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self._taken -= len(found.data) + _BESIDE
