"""What a layer still has to do when its call is over: bounded in time, and not lost when the call is cancelled."""

import asyncio
import types
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")
PATIENCE: Final = 5.0
"""Seconds that a call waits for the state of limits and budgets before it counts as away."""
BRIEFLY: Final = 0.5
"""The same while it is known to be away."""
_GRACE: Final = 5.0
"""Seconds that errands have to end when the server stops."""


class Errands:
    """Tasks that outlive the call they belong to, kept from the garbage collector and waited for at the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    def run(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(errand)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the server stops: who waits then has its last chance."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._closing.clear()
        try:
            yield
        finally:
            self._closing.set()
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=_GRACE)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)


@types.coroutine
def bounded(work: Coroutine[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    """The result of `work`, run in this task; raises `TimeoutError` after `seconds`. Work that need not wait, as with
    state in memory, costs no timer."""
    try:
        waiting = work.send(None)
    except StopIteration as ready:
        return ready.value  # type: ignore[no-any-return]
    return (yield from _timed(work, waiting, seconds).__await__())


async def _timed(work: Coroutine[Any, Any, T], waiting: Any, seconds: float) -> T:
    async with asyncio.timeout(seconds):
        return await _resumed(work, waiting)


@types.coroutine
def _resumed(work: Coroutine[Any, Any, T], waiting: Any) -> Generator[Any, Any, T]:
    """The rest of `work`, which is suspended in `waiting`."""
    while True:
        try:
            step = partial(work.send, (yield waiting))
        except BaseException as error:
            step = partial(work.throw, error)
        try:
            waiting = step()
        except StopIteration as ready:
            return ready.value  # type: ignore[no-any-return]
