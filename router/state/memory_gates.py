"""Limits counted in the memory of one process."""

import time
from collections.abc import Callable, Sequence

from router.gates import Parallel, Passage, Rate
from router.state.turnstile import Turnstile


class MemoryGates:
    """Gates of one process. `clock` gives seconds; a call that does not leave is taken to have left after `expiry`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, expiry: float = 3600.0) -> None:
        self._turnstile = Turnstile(clock, expiry)

    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        return self._turnstile.enter(call_id, rates, parallels)

    async def leave(self, call_id: str, corrections: Sequence[Rate] = ()) -> None:
        self._turnstile.leave(call_id, corrections)
