"""One call's way through its candidates until one of them has begun to answer: retries, fallbacks, hedges.

Nothing of it is seen outside: the client gets the answer of whoever begins, or the error that tells it the most.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

from router.adapters import Keyed
from router.attempts import Attempts, Opened, Refused
from router.call import Call, Role, Skipped
from router.catalog import Way
from router.errors import RateLimited, RouterError
from router.health import Health
from router.messages import ChatRequest
from router.provider import Target
from router.route import FallbackClass
from router.routing.candidates import Candidate
from router.routing.retrying import (
    RetryBudget,
    fallback_class,
    fitting,
    is_final,
    is_the_keys,
    remedy,
    telling,
    wait_before,
)

_LEAST_LEFT: Final = 0.05
"""Seconds of `timeouts.total` without which no further attempt is begun."""


class Budgets(Struct):
    """What a route may try beside one attempt a call."""

    retries: RetryBudget
    hedges: RetryBudget | None = None


class _Step(Struct, frozen=True):
    """What to try next."""

    candidate: Candidate
    keyed: Keyed
    role: Role
    why: str
    wait: float = 0.0
    """Seconds, before it."""


class Places(Protocol):
    """What is asked of the candidates while the trials go on; `router.chooser` knows."""

    def fallback(self, call: Call, way: Way, kind: FallbackClass) -> Sequence[Candidate]:
        """The candidates for what those of the call cannot serve, the best first."""
        ...

    def hindrance(self, candidate: Candidate) -> str | None:
        """Why it should not be tried at this moment; None: it may be."""
        ...


class Trials:
    """`asked`: what the vendors are asked for."""

    def __init__(
        self,
        call: Call,
        way: Way,
        candidates: Sequence[Candidate],
        asked: ChatRequest,
        places: Places,
        attempts: Attempts,
        budgets: Budgets,
        health: Health,
        draw: random.Random,
    ) -> None:
        self._call = call
        self._way = way
        self._pending = deque(candidates)
        self._asked = asked
        self._places = places
        self._attempts = attempts
        self._budgets = budgets
        self._health = health
        self._draw = draw
        self._made = 0
        """Attempts, as `retry.attempts` counts them: a lesson or another key is none of its own."""
        self._tries: dict[Target, int] = {}
        self._used: dict[Target, set[str]] = {}
        """The keys that were used at each target: none is tried twice in its turn."""
        self._again: list[tuple[Candidate, RouterError]] = []
        """Candidates that may be tried once more, with why they failed."""
        self._fallen: set[FallbackClass] = set()
        self._errors: list[RouterError] = []
        self._losers: list[asyncio.Task[Opened]] = []
        self._hedged = False
        self._same = False
        """Whether a target that died may no longer be asked to go on itself."""
        budgets.retries.deposit()
        if budgets.hedges is not None:
            budgets.hedges.deposit()

    async def begin(self) -> Opened:
        """The first attempt that gets as far as a content event. Raises `RouterError`."""
        step = self._step(self._pending.popleft(), "first", "")
        while True:
            if step.wait:
                await asyncio.sleep(step.wait)
            try:
                return await self._try(step)
            except Refused:
                raise telling(self._errors) from None
            except RouterError as error:
                following = self._following(step, error)
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
        why = f"{failed.candidate.target}: {error.code}"
        self._same = False
        following = self._in_the_middle(failed.candidate, error)
        # whoever was to go on and did not is not asked twice
        self._same = True
        while following is not None:
            candidate, keyed = following
            self._made += 1
            asked = request(candidate, keyed)
            try:
                return await self._attempts.open(self._call, candidate, keyed, asked, "continuation", why, seam=seam)
            except Refused:
                break
            except RouterError as again:
                following = self._in_the_middle(candidate, again)
        # the client has a part of the first answer: that it was cut is what it needs to know
        raise error

    async def close(self) -> None:
        """Wait until those that were cancelled have settled, whoever else gives up meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        while running := [task for task in self._losers if not task.done()]:
            try:
                await asyncio.wait(running)
            except asyncio.CancelledError as raised:
                cancelled = raised
        for task in self._losers:
            # looked at, so that nobody is told of it as an error that was lost
            if not task.cancelled():
                task.exception()
        self._losers.clear()
        if cancelled is not None:
            raise cancelled

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(self, candidate: Candidate, role: Role, why: str, wait: float = 0.0) -> _Step:
        """At the key whose turn it is."""
        return _Step(candidate, self._attempts.adapter(candidate).next_key(self._health), role, why, wait)

    def _open(self, step: _Step) -> Coroutine[Any, Any, Opened]:
        target = step.candidate.target
        self._used.setdefault(target, set()).add(step.keyed.id)
        return self._attempts.open(self._call, step.candidate, step.keyed, self._asked, step.role, step.why)

    async def _try(self, step: _Step) -> Opened:
        self._count(step.candidate)
        if self._way.hedge is None or self._hedged or not self._pending:
            return await self._open(step)
        return await self._side_by_side(step, self._way.hedge.after)

    def _count(self, candidate: Candidate) -> None:
        self._made += 1
        self._tries[candidate.target] = self._tries.get(candidate.target, 0) + 1

    async def _side_by_side(self, step: _Step, after: float) -> Opened:
        """The attempt, and when it has sent nothing for `after` seconds a second one elsewhere; who begins first."""
        loop = asyncio.get_running_loop()
        first = loop.create_task(self._open(step))
        running: dict[asyncio.Task[Opened], Candidate] = {first: step.candidate}
        failure: RouterError | None = None
        try:
            done, _ = await asyncio.wait(running, timeout=after)
            second = None if done else self._second(f"{step.candidate.target} sent nothing for {after:g} s")
            if second is not None:
                running[loop.create_task(self._open(second))] = second.candidate
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task.exception() is not None):
                    candidate, error = running.pop(task), task.exception()
                    if error is None:
                        self._leave(running)
                        opened = task.result()
                        opened.deadline.adopt()
                        return opened
                    if task is first and isinstance(error, RouterError):
                        failure = error
                        if is_final(error):
                            # what one vendor refuses is not for another to answer, because it was slow to say so
                            self._leave(running)
                            raise error
                    elif isinstance(error, RouterError):
                        self._failed(candidate, error)
                    elif task is first or not isinstance(error, Refused):
                        raise error
        except BaseException:
            self._leave(running)
            await self.close()
            raise
        if failure is None:
            raise RuntimeError("an attempt ended without an end")
        raise failure

    def _second(self, why: str) -> _Step | None:
        hedges = self._budgets.hedges
        candidate = None if hedges is None else self._next()
        if candidate is None or hedges is None:
            return None
        if not hedges.withdraw(time.monotonic()):
            self._pending.appendleft(candidate)
            return None
        self._hedged = True
        self._count(candidate)
        return self._step(candidate, "hedge", why)

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

    def _following(self, step: _Step, error: RouterError) -> _Step | None:
        """What to try after this failure; None: nothing more."""
        failed = step.candidate
        self._failed(failed, error)
        other = self._other_key(failed, error)
        if other is not None:
            self._made -= 1
            self._again = [each for each in self._again if each[0] is not failed]
            return _Step(*other, "retry", f"another key after {error.code}")
        retry, kind = self._way.retry, fallback_class(error)
        if self._made >= retry.attempts:
            return None
        why = f"{failed.target}: {error.code}"
        if kind is not None:
            self._fall_back(kind, failed)
            return self._elsewhere(why)
        if remedy(error) == "none":
            return None
        following = self._elsewhere(why) or self._once_more()
        if following is None or not self._may_try_more():
            return None
        return following

    def _may_try_more(self) -> bool:
        if self._budgets.retries.withdraw(time.monotonic()):
            return True
        self._note("no further attempt, the budget of retries is spent")
        return False

    def _other_key(self, failed: Candidate, error: RouterError) -> tuple[Candidate, Keyed] | None:
        """The same target with a key that was not used yet. Limited keys are told to be slow: that is no free try."""
        if not is_the_keys(error) or self._left(failed) < _LEAST_LEFT:
            return None
        used = self._used.setdefault(failed.target, set())
        keyed = self._attempts.adapter(failed).other_key(self._health, used)
        if keyed is None or (isinstance(error, RateLimited) and not self._may_try_more()):
            return None
        used.add(keyed.id)
        return failed, keyed

    def _fall_back(self, kind: FallbackClass, failed: Candidate) -> None:
        if kind not in self._way.fallback:
            self._pending = deque(fitting(kind, failed, self._pending))
        elif kind not in self._fallen:
            self._fallen.add(kind)
            listed = self._places.fallback(self._call, self._way, kind)
            self._pending = deque(each for each in listed if each.target not in self._tries)

    def _elsewhere(self, why: str) -> _Step | None:
        candidate = self._next()
        return None if candidate is None else self._step(candidate, "fallback", why)

    def _next(self) -> Candidate | None:
        """The next candidate that may be tried now; those before it are left out."""
        while self._pending:
            candidate = self._pending.popleft()
            why = self._places.hindrance(candidate)
            if why is None and self._left(candidate) < _LEAST_LEFT:
                why = "its `timeouts.total` is over"
            if why is None:
                return candidate
            self._call.trip.skipped += (Skipped(candidate.target, why),)
        return None

    def _once_more(self) -> _Step | None:
        """The target that may be tried again the soonest, if that is soon enough."""
        best: tuple[float, Candidate, RouterError] | None = None
        for candidate, error in self._again:
            wait = wait_before(self._way.retry, error, self._tries[candidate.target], self._draw)
            if wait is None or self._left(candidate) - wait < _LEAST_LEFT:
                continue
            if self._health.standing(candidate.target).state == "open":
                continue
            if best is None or wait < best[0]:
                best = (wait, candidate, error)
        if best is None:
            return None
        wait, candidate, error = best
        self._again = [each for each in self._again if each[0] is not candidate]
        # a new turn: the keys have rested
        self._used.pop(candidate.target, None)
        said = "as it asked" if error.retry_after is not None else "for a moment"
        return self._step(candidate, "retry", f"{error.code}; waited {wait:.2f} s {said}", wait)

    def _in_the_middle(self, failed: Candidate, error: RouterError) -> tuple[Candidate, Keyed] | None:
        """Who may go on with an answer that has begun: another key, the next target, or once the same if there is no
        other."""
        other = self._other_key(failed, error)
        if other is not None:
            return other
        candidate = self._next()
        if candidate is None and not self._same and remedy(error) == "anywhere" and self._left(failed) > _LEAST_LEFT:
            self._same = self._places.hindrance(failed) is None
            candidate = failed if self._same else None
        if candidate is None or not self._may_go_on():
            return None
        keyed = self._attempts.adapter(candidate).next_key(self._health)
        self._used.setdefault(candidate.target, set()).add(keyed.id)
        return candidate, keyed

    def _may_go_on(self) -> bool:
        if self._made >= max(self._way.retry.attempts, 2):
            self._note("not gone on with: `retry.attempts` are made")
            return False
        return self._may_try_more()

    def _note(self, words: str) -> None:
        self._call.trip.choice += f"; {words}"

    def _left(self, candidate: Candidate) -> float:
        """Seconds of the call's total deadline."""
        started = self._call.trip.started
        return candidate.timeouts.total - (time.monotonic() - started)
