"""The deadlines of one attempt, kept by one timer: none is set or cancelled per read or per delta.

Four limits, in seconds: `connect` (kept by the transport), `first_token` from the request to the first delta, `idle`
between two deltas (comments and keep-alives of the vendor do not count as progress), `total` for the whole call.
The clock of `idle` runs only while we wait for the vendor: a slow client is not the vendor's fault. That of `total`
runs always: when it passes while the client is slow, the whole call is interrupted.
"""

import asyncio
from collections.abc import Awaitable
from typing import Literal, TypeAlias, TypeVar

from router.call import Trip
from router.errors import TimedOut
from router.route import Timeouts
from router.running import interrupt

T = TypeVar("T")
Phase: TypeAlias = Literal["first_token", "idle", "total"]


class Deadline:
    """Cancels a wait for the vendor when a limit has passed, as `TimedOut`, or the call when only its client is slow.

    `asyncio.timeout` would do, but for two things: it may not stay open around a `yield` (PEP 789), and moving it
    for every read costs a timer each.
    """

    __slots__ = (
        "_expired",
        "_loop",
        "_mark",
        "_phase",
        "_task",
        "_timeouts",
        "_timer",
        "_total_at",
        "_trip",
        "_waiting",
        "_who",
    )

    def __init__(self, timeouts: Timeouts, total_at: float, who: str, trip: Trip) -> None:
        """`total_at` is in the loop's time; `who` names the target in messages."""
        self._trip = trip
        self._loop = asyncio.get_running_loop()
        self._timeouts = timeouts
        self._total_at = total_at
        self._who = who
        self._phase: Phase = "first_token"
        self._mark: float | None = self._loop.time()
        self._task = asyncio.current_task()
        self._waiting = False
        self._expired: Phase | None = None
        self._timer = self._loop.call_at(self._due()[0], self._tick)

    async def wait(self, step: Awaitable[T]) -> T:
        """The result of `step`, which waits for the vendor; `TimedOut` when a limit passes first."""
        if self._mark is None:
            self._mark = self._loop.time()
        # a layer may step us in a task of its own, as `asyncio.wait_for` of Python 3.11 does
        self._task = asyncio.current_task()
        self._waiting = True
        try:
            return await step
        except asyncio.CancelledError:
            if self._expired is None or self._task is None or self._task.uncancel() > 0:
                raise
            raise self._error(self._expired) from None
        finally:
            self._waiting = False

    def progress(self, count: int = 1) -> None:
        """A delta has arrived: from now on `idle` counts, from the next wait on."""
        self._mark = None
        if self._phase == "first_token":
            self._phase = "idle"
            if self._timeouts.idle < self._timeouts.first_token:
                self._timer.cancel()
                self._arm(self._loop.time() + self._timeouts.idle)

    def adopt(self) -> None:
        """The current task is the one to cancel from now on."""
        self._task = asyncio.current_task()

    def close(self) -> None:
        self._timer.cancel()

    def _arm(self, at: float) -> None:
        self._timer = self._loop.call_at(min(at, self._total_at), self._tick)

    def _due(self) -> tuple[float, Phase]:
        if self._mark is None:
            # not waiting for the vendor: look again when a wait that began now would be over
            phase_at = self._loop.time() + self._timeouts.idle
        else:
            limit = self._timeouts.first_token if self._phase == "first_token" else self._timeouts.idle
            phase_at = max(self._mark, self._trip.written_at) + limit
        return (self._total_at, "total") if self._total_at <= phase_at else (phase_at, self._phase)

    def _tick(self) -> None:
        due, phase = self._due()
        now = self._loop.time()
        if due > now:
            self._arm(due)
        elif self._task is not None and self._waiting and not self._trip.writing:
            self._expired = phase
            self._task.cancel()
        elif self._task is not None and now >= self._total_at and not self._task.done():
            # the client is slow, or does not read at all: it may not hold the vendor's connection for ever
            interrupt(self._task, self._trip, self._error("total"))
        else:
            self._timer = self._loop.call_at(now + 1.0, self._tick)

    def _error(self, phase: Phase) -> TimedOut:
        limits = self._timeouts
        if phase == "first_token":
            words = f"{self._who} sent no token within {limits.first_token:g} s"
        elif phase == "idle":
            words = f"{self._who} sent no further token for {limits.idle:g} s"
        else:
            words = f"{self._who} did not finish within {limits.total:g} s"
        return TimedOut(f"{words} (`timeouts.{phase}`)", code=f"{phase}_timeout")
