"""The deadlines of one attempt, kept by one timer: none is set or cancelled per read or per delta.

Four limits, in seconds: `connect` (kept by the transport), `first_token` from the request to the first delta, `idle`
between two deltas (comments and keep-alives of the vendor do not count as progress), `total` for the whole call.
A fifth, `min_rate`, is of deltas a second, on the average of ten seconds, from the first delta on.
The clocks of `idle` and `min_rate` run only while we wait for the vendor: a slow client is not the vendor's fault. That
of `total` runs always: when it passes while the client is slow, the whole call is interrupted.
"""

import asyncio
from collections.abc import Awaitable
from typing import Final, Literal, TypeAlias, TypeVar

from router.call import Trip
from router.errors import TimedOut
from router.route import Timeouts
from router.running import interrupt

T = TypeVar("T")
Phase: TypeAlias = Literal["first_token", "idle", "total", "rate"]
RATE_WINDOW: Final = 10.0
"""Seconds of waiting over which `min_rate` is averaged."""
_SOON: Final = 1.0
"""Seconds until the timer looks again at what it cannot end now."""


class Deadline:
    """Cancels a wait for the vendor when a limit has passed, as `TimedOut`, or the call when only its client is slow.

    `asyncio.timeout` would do, but for two things: it may not stay open around a `yield` (PEP 789), and moving it
    for every read costs a timer each.
    """

    __slots__ = (
        "_come",
        "_expired",
        "_loop",
        "_mark",
        "_phase",
        "_rated",
        "_since",
        "_task",
        "_timeouts",
        "_timer",
        "_total_at",
        "_trip",
        "_waited",
        "_waiting",
        "_who",
        "_window",
    )

    def __init__(
        self, timeouts: Timeouts, total_at: float, who: str, trip: Trip, *, window: float = RATE_WINDOW
    ) -> None:
        """`total_at` is in the loop's time; `who` names the target in messages; `window` is that of `min_rate`."""
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
        self._window = window
        self._rated = False
        """Whether `min_rate` counts: from the first delta on, if it is set."""
        self._come = 0
        """Deltas of this window."""
        self._waited = 0.0
        """Seconds of this window, without the wait that lasts."""
        self._since = 0.0
        """When that began."""
        self._timer = self._loop.call_at(self._due()[0], self._tick)

    async def wait(self, step: Awaitable[T]) -> T:
        """The result of `step`, which waits for the vendor; `TimedOut` when a limit passes first."""
        if self._mark is None:
            self._mark = self._loop.time()
        # a layer may step us in a task of its own, as `asyncio.wait_for` of Python 3.11 does
        self._task = asyncio.current_task()
        self._waiting = True
        if self._rated:
            self._since = self._loop.time()
        try:
            return await step
        except asyncio.CancelledError:
            if self._expired is None or self._task is None or self._task.uncancel() > 0:
                raise
            raise self._error(self._expired) from None
        finally:
            if self._rated:
                # at once: until `progress` is called, the client may take its time
                self._waited += self._lasting()
            self._waiting = False

    def progress(self, count: int = 1) -> None:
        """So many deltas have arrived: from now on `idle` counts, from the next wait on."""
        self._mark = None
        self._come += count
        if self._phase == "first_token":
            self._phase = "idle"
            self._rated = self._timeouts.min_rate > 0
            soonest = min(self._timeouts.idle, self._window) if self._rated else self._timeouts.idle
            if soonest < self._timeouts.first_token:
                self._timer.cancel()
                self._arm(self._loop.time() + soonest)

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
        due: tuple[float, Phase] = (phase_at, self._phase)
        if self._rated:
            due = min(due, (self._rate_at(), "rate"))
        return (self._total_at, "total") if self._total_at <= due[0] else due

    def _rate_at(self) -> float:
        """When to look at the rate: at the end of the window, if we wait until then."""
        now = self._loop.time()
        left = self._window - self._waited - self._lasting()
        if left > 0:
            return now + (left if self._waiting and not self._trip.writing else max(left, min(_SOON, self._window)))
        if self._is_too_slow():
            return now
        # the next window
        self._come, self._waited, self._since = 0, 0.0, now
        return now + self._window

    def _is_too_slow(self) -> bool:
        return self._come < self._timeouts.min_rate * (self._waited + self._lasting())

    def _lasting(self) -> float:
        """Seconds that the wait for the vendor has lasted, as far as the client was not the slower one."""
        if not self._waiting or self._trip.writing:
            return 0.0
        return max(self._loop.time() - max(self._since, self._trip.written_at), 0.0)

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
            self._timer = self._loop.call_at(now + _SOON, self._tick)

    def _error(self, phase: Phase) -> TimedOut:
        limits = self._timeouts
        if phase == "first_token":
            words = f"{self._who} sent no token within {limits.first_token:g} s"
        elif phase == "idle":
            words = f"{self._who} sent no further token for {limits.idle:g} s"
        elif phase == "rate":
            waited = self._waited + self._lasting()
            words = f"{self._who} sent {self._come} pieces in {waited:.3g} s, fewer than {limits.min_rate:g} a second"
            return TimedOut(f"{words} (`timeouts.min_rate`)", code="rate_timeout")
        else:
            words = f"{self._who} did not finish within {limits.total:g} s"
        return TimedOut(f"{words} (`timeouts.{phase}`)", code=f"{phase}_timeout")
