"""One call's way through its candidates until one of them has begun to answer: retries, fallbacks, hedges.

Nothing of it is seen outside: the client gets the answer of whoever begins, or the error that tells it the most.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from router.adapters import Keyed
from router.attempts import Attempts, Opened
from router.call import Call, Role
from router.catalog import Way
from router.errors import RouterError
from router.health import Health
from router.messages import ChatRequest
from router.provider import Target
from router.route import FallbackClass
from router.routing.candidates import Candidate
from router.routing.retrying import (
    RetryBudget,
    fallback_class,
    fitting,
    is_the_keys,
    remedy,
    telling,
    wait_before,
)

_MOST_KEYS: Final = 100
"""Attempts at one target with one key after the other."""
_LEAST_LEFT: Final = 0.05
"""Seconds of `timeouts.total` without which no further attempt is begun."""


class Budgets(Struct):
    """What a route may try beside one attempt a call."""

    retries: RetryBudget
    hedges: RetryBudget | None = None


class _Step(Struct, frozen=True):
    """What to try next."""

    candidate: Candidate
    role: Role
    why: str
    wait: float = 0.0
    """Seconds, before it."""


class Trials:
    """`fallback` gives the candidates for what those of the call cannot serve, the best first."""

    def __init__(
        self,
        call: Call,
        way: Way,
        candidates: Sequence[Candidate],
        fallback: Callable[[FallbackClass], Sequence[Candidate]],
        attempts: Attempts,
        budgets: Budgets,
        health: Health,
        draw: random.Random,
    ) -> None:
        self._call = call
        self._way = way
        self._pending = deque(candidates)
        self._fallback = fallback
        self._attempts = attempts
        self._budgets = budgets
        self._health = health
        self._draw = draw
        self._made = 0
        """Attempts, as `retry.attempts` counts them: a lesson or another key is none of its own."""
        self._keys = 0
        self._tries: dict[Target, int] = {}
        self._again: list[tuple[Candidate, RouterError]] = []
        """Candidates that may be tried once more, with why they failed."""
        self._fallen: set[FallbackClass] = set()
        self._errors: list[RouterError] = []
        self._losers: list[asyncio.Task[Opened]] = []
        self._hedged = False
        budgets.retries.deposit()
        if budgets.hedges is not None:
            budgets.hedges.deposit()

    async def begin(self) -> Opened:
        """The first attempt that gets as far as a content event. Raises `RouterError`."""
        step = _Step(self._pending.popleft(), "first", "")
        while True:
            if step.wait:
                await asyncio.sleep(step.wait)
            try:
                return await self._try(step)
            except RouterError as error:
                following = self._following(step.candidate, error)
                if following is None:
                    told = telling(self._errors)
                    if told is error:
                        raise
                    raise told from error
                step = following

    async def go_on(
        self, failed: Opened, error: RouterError, request: Callable[[Candidate, Keyed], ChatRequest], seam: int
    ) -> Opened:
        """Another attempt, which continues the answer that `failed` left off. Raises `error` when none can be made."""
        self._again.clear()
        self._errors.clear()
        candidate: Candidate | None = failed.candidate
        while True:
            if self._pending:
                candidate = self._pending.popleft()
            elif candidate is None:
                raise error
            if self._left(candidate) < _LEAST_LEFT:
                raise error
            self._made += 1
            if self._made > max(self._way.retry.attempts, 2) or not self._budgets.retries.withdraw(time.monotonic()):
                raise error
            try:
                return await self._attempts.open(
                    self._call,
                    candidate,
                    "continuation",
                    f"{failed.candidate.target}: {error.code}",
                    request=request,
                    seam=seam,
                )
            except RouterError:
                # the client has a part of the first answer: that it was cut is what it needs to know
                candidate = None

    async def close(self) -> None:
        """Wait until those that were cancelled have settled."""
        losers, self._losers = self._losers, []
        if losers:
            await asyncio.gather(*losers, return_exceptions=True)

    # -- one step --------------------------------------------------------------------------------------------------

    async def _try(self, step: _Step) -> Opened:
        candidate = step.candidate
        self._made += 1
        self._tries[candidate.target] = self._tries.get(candidate.target, 0) + 1
        if self._way.hedge is None or self._hedged or not self._pending:
            return await self._attempts.open(self._call, candidate, step.role, step.why)
        return await self._side_by_side(step, self._way.hedge.after)

    async def _side_by_side(self, step: _Step, after: float) -> Opened:
        """The attempt, and when it has sent nothing for `after` seconds a second one elsewhere; who begins first."""
        loop, open_ = asyncio.get_running_loop(), self._attempts.open
        running: dict[asyncio.Task[Opened], Candidate] = {
            loop.create_task(open_(self._call, step.candidate, step.role, step.why)): step.candidate
        }
        failure: RouterError | None = None
        try:
            done, _ = await asyncio.wait(running, timeout=after)
            second = None if done else self._second()
            if second is not None:
                why = f"{step.candidate.target} sent nothing for {after:g} s"
                running[loop.create_task(open_(self._call, second, "hedge", why))] = second
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task.exception() is not None):
                    candidate = running.pop(task)
                    error = task.exception()
                    if error is None:
                        self._leave(running)
                        opened = task.result()
                        opened.deadline.adopt()
                        return opened
                    if not isinstance(error, RouterError):
                        raise error
                    if candidate is step.candidate:
                        failure = error
                    else:
                        self._failed(candidate, error)
        except BaseException:
            self._leave(running)
            await self.close()
            raise
        if failure is None:
            raise RuntimeError("an attempt ended without an end")
        raise failure

    def _second(self) -> Candidate | None:
        hedges = self._budgets.hedges
        if not self._pending or hedges is None or not hedges.withdraw(time.monotonic()):
            return None
        self._hedged = True
        candidate = self._pending.popleft()
        self._made += 1
        self._tries[candidate.target] = self._tries.get(candidate.target, 0) + 1
        return candidate

    def _leave(self, running: dict[asyncio.Task[Opened], Candidate]) -> None:
        """Cancel them; they settle by themselves."""
        for task in running:
            if task.done() and not task.cancelled() and task.exception() is None:
                # it began in the same turn of the loop: as cancelled as the others
                task = asyncio.get_running_loop().create_task(self._given_up(task.result()))
            else:
                task.cancel()
            self._losers.append(task)

    async def _given_up(self, opened: Opened) -> Opened:
        await self._attempts.close(self._call, opened, asyncio.CancelledError())
        return opened

    # -- what follows ----------------------------------------------------------------------------------------------

    def _failed(self, candidate: Candidate, error: RouterError) -> None:
        self._errors.append(error)
        if remedy(error) == "anywhere":
            self._again.append((candidate, error))

    def _following(self, failed: Candidate, error: RouterError) -> _Step | None:
        """What to try after this failure; None: nothing more."""
        self._failed(failed, error)
        why = f"{failed.target}: {error.code}"
        if self._has_other_key(failed, error):
            self._made -= 1
            self._keys += 1
            self._again = [each for each in self._again if each[0] is not failed]
            return _Step(failed, "retry", f"another key after {error.code}")
        retry, kind = self._way.retry, fallback_class(error)
        if self._made >= retry.attempts:
            return None
        if kind is not None:
            return self._fallen_back(kind, failed, why)
        if remedy(error) == "none":
            return None
        step = self._elsewhere(why) or self._once_more()
        if step is None or self._left(step.candidate) < _LEAST_LEFT:
            return None
        if not self._budgets.retries.withdraw(time.monotonic()):
            self._call.trip.choice += "; no further attempt, the budget of retries is spent"
            return None
        return step

    def _has_other_key(self, failed: Candidate, error: RouterError) -> bool:
        if not is_the_keys(error) or self._keys >= _MOST_KEYS:
            return False
        adapter = self._attempts.adapter(failed)
        return len(adapter.keyed) > 1 and adapter.has_free_key(self._health)

    def _fallen_back(self, kind: FallbackClass, failed: Candidate, why: str) -> _Step | None:
        if kind not in self._way.fallback:
            self._pending = deque(fitting(kind, failed, self._pending))
        elif kind not in self._fallen:
            self._fallen.add(kind)
            self._pending = deque(each for each in self._fallback(kind) if each.target not in self._tries)
        return _Step(self._pending.popleft(), "fallback", why) if self._pending else None

    def _elsewhere(self, why: str) -> _Step | None:
        return _Step(self._pending.popleft(), "fallback", why) if self._pending else None

    def _once_more(self) -> _Step | None:
        """The target that may be tried again the soonest, if that is soon enough."""
        best: tuple[float, Candidate, RouterError] | None = None
        for candidate, error in self._again:
            wait = wait_before(self._way.retry, error, self._tries[candidate.target], self._draw)
            if wait is None or self._health.standing(candidate.target).state == "open":
                continue
            if best is None or wait < best[0]:
                best = (wait, candidate, error)
        if best is None:
            return None
        wait, candidate, error = best
        if self._left(candidate) - wait < _LEAST_LEFT:
            return None
        self._again = [each for each in self._again if each[0] is not candidate]
        said = "as it asked" if error.retry_after is not None else "for a moment"
        return _Step(candidate, "retry", f"{error.code}; waited {wait:.2f} s {said}", wait)

    def _left(self, candidate: Candidate) -> float:
        """Seconds of the call's total deadline."""
        started = self._call.trip.started
        return candidate.timeouts.total - (time.monotonic() - started)
