"""Limits counted in the memory of one process."""

import math
import time
from collections.abc import Callable, Sequence

from router.gates import Parallel, Passage, Rate
from router.state.turnstile import Turnstile


class MemoryGates:
    """Gates of one process. `clock` gives seconds. No call is inside for longer than the process lives."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._turnstile = Turnstile(clock, expiry=math.inf)

    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        return self._turnstile.enter(call_id, rates, parallels)

    async def leave(self, call_id: str, corrections: Sequence[Rate] = ()) -> None:
        self._turnstile.leave(call_id, corrections)
