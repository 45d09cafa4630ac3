"""Asks once for all who want to know the same at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Once(Generic[K, V]):
    """`ask` is what is done for a key."""

    def __init__(self, ask: Callable[[K], Awaitable[V]]) -> None:
        self._ask = ask
        self._asking: dict[K, asyncio.Task[V]] = {}

    async def ask(self, key: K) -> V:
        """What is said of the key, to somebody who may have asked before us. Raises what the asking raises."""
        task = self._asking.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._run(key))
            self._asking[key] = task
            task.add_done_callback(_looked_at)
        # one who gives up waiting does not stop it for the others
        return await asyncio.shield(task)

    async def _run(self, key: K) -> V:
        try:
            return await self._ask(key)
        finally:
            del self._asking[key]


def _looked_at(task: asyncio.Task[V]) -> None:
    # a failure that everybody stopped waiting for is no failure of anybody
    if not task.cancelled():
        task.exception()
