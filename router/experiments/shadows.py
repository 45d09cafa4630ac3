"""Shadow traffic: a share of an experiment's calls is repeated in the background at another target, and discarded.

The client's call has been answered when its shadow begins, and hears nothing of it. A shadow is a call of its own, with
its own row in the ledger (arm `shadow`, and the id of the call that it repeats), without the client's key, user, tags,
limits and budgets. What it may cost at most is reserved of the experiment's own budget before, in the same accounts
that budgets are kept in: it holds for all processes, and what was spent is known after a restart.
"""

import asyncio
from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import msgspec
import structlog
from msgspec import Struct

from router.accounts import Account, Accounts, AccountsAway, Hold, account
from router.audio import asks_for_audio, sends_audio
from router.call import Call, Credentials, Events, Outcome, Trip, new_trip, outcome_of
from router.errors import InternalError, RouterError
from router.events import ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta
from router.experiment import HOLDOUT, SHADOW, Assigned, Experiment, Shadow
from router.experiments.assignment import is_shadowed
from router.ids import request_id
from router.ledger.books import Books
from router.messages import ChatRequest
from router.pricing import Cost
from router.provider import Target
from router.running import Running
from router.tokens import BrokenVocabulary, TokenCounter, measured, rough_count

LeftOut: TypeAlias = Literal[
    "stopping", "load", "parallel", "provider", "region", "audio", "price", "rate", "budget", "accounts"
]
"""Why a call was not repeated: the server stops; it has much to do; as many shadows as may be are under way; half of
the room at the provider is taken, or its key is not set; the client says where it may be answered; the answer would be
spoken; no price or no rate is known; the budget does not allow it, or cannot be asked."""
OUTPUT: Final = 4096
"""Tokens that each choice may have at most if the request does not say."""
MOST_RUNNING: Final = 64
"""Calls under way in one worker beside which no shadow is begun."""
_THINKING: Final = 4096
"""Tokens of reasoning reserved where it is switched on without a bound."""
_PAUSE: Final = 0.02
"""Seconds before a shadow begins: the client's last bytes go first."""
_PATIENCE: Final = 5.0
"""Seconds to wait for the accounts."""
_RETRIES: Final = (0.0, 1.0, 5.0, 15.0)
"""Seconds before each try to book what a shadow has cost."""
_LONGEST: Final = 8
"""Characters of a token on the average of an answer, at most: what goes on beyond its bound is stopped."""
_SPARE: Final = 1024
_DEARER: Final = "priority"


class ShadowTally(Struct):
    """What one worker made of the calls that the lot fell on."""

    offered: int = 0
    made: int = 0
    outcomes: dict[Outcome, int] = {}
    """How those ended that were made."""
    left_out: dict[LeftOut, int] = {}


class _NotMade(Exception):
    """The shadow is left out."""

    def __init__(self, why: LeftOut) -> None:
        super().__init__(why)
        self.why = why


class Shadows:
    """Those of one process, whatever configurations they began under. `tokens` None: count by length alone."""

    def __init__(
        self,
        accounts: Accounts,
        books: Books,
        tokens: TokenCounter | None,
        running: Running,
        *,
        most_running: int = MOST_RUNNING,
    ) -> None:
        self._accounts = accounts
        self._books = books
        self._tokens = tokens
        self._running = running
        self._most_running = most_running
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_once: dict[str, int] = {}
        self._closing = False
        self.tallies: dict[str, ShadowTally] = {}
        """By the experiment's name."""
        self._log = structlog.get_logger("deltaway.shadows")

    def offering(
        self,
        experiments: Iterable[Experiment],
        stream: Callable[[Call], Events],
        *,
        tracked: Callable[[], AbstractContextManager[object]],
        crowded: Callable[[str], bool],
    ) -> "Callable[[Call], None] | None":
        """What one configuration tells of calls that have been answered well; None where it has no shadow.

        `stream`: dispatch. `tracked`: around a call that keeps its configuration. `crowded`: whether the provider of
        that name has little room left, or none. What is given back never raises.
        """
        by_route = {each.route: each for each in experiments if each.shadow is not None}
        if not by_route:
            return None

        def offer(call: Call) -> None:
            experiment = by_route.get(call.request.model)
            if experiment is not None:
                try:
                    self._offer(experiment, call, stream, tracked, crowded)
                except Exception as error:
                    self._log.error("a shadow failed by a fault of ours", request_id=call.id, exc_info=error)

        return offer

    async def settled(self) -> None:
        """Wait until none is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._closing = False
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """End those that are under way, which are recorded as stopped; none begins any more."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await self.settled()

    # -- before --------------------------------------------------------------------------------------------------------

    def _offer(
        self,
        experiment: Experiment,
        call: Call,
        stream: Callable[[Call], Events],
        tracked: Callable[[], AbstractContextManager[object]],
        crowded: Callable[[str], bool],
    ) -> None:
        assigned, shadow = call.trip.assigned, experiment.shadow
        if shadow is None or assigned is None or assigned.experiment != experiment.name:
            return
        if assigned.forced or assigned.arm in (HOLDOUT, SHADOW) or not is_shadowed(experiment, call.id):
            return
        tally = self.tallies.setdefault(experiment.name, ShadowTally())
        tally.offered += 1
        why = self._hindrance(experiment.name, shadow, call, crowded)
        if why is not None:
            self._leave_out(experiment.name, tally, why)
            return
        copy = _copy(call, assigned, shadow.target)
        flight = tracked()
        flight.__enter__()
        self._at_once[experiment.name] = self._at_once.get(experiment.name, 0) + 1
        task = asyncio.get_running_loop().create_task(self._repeat(experiment.name, shadow, tally, copy, stream))
        self._tasks.add(task)
        # also of a task that was cancelled before its first step
        task.add_done_callback(partial(self._ended, experiment.name, flight))

    def _hindrance(self, name: str, shadow: Shadow, call: Call, crowded: Callable[[str], bool]) -> LeftOut | None:
        if self._closing or self._running.draining:
            return "stopping"
        if len(self._running) > self._most_running:
            return "load"
        if self._at_once.get(name, 0) >= shadow.parallel:
            return "parallel"
        if crowded(shadow.target.provider):
            return "provider"
        if call.regions:
            return "region"
        return "audio" if asks_for_audio(call.request) else None

    def _ended(self, name: str, flight: AbstractContextManager[object], task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._at_once[name] -= 1
        flight.__exit__(None, None, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("a shadow failed by a fault of ours", experiment=name, exc_info=error)

    def _leave_out(self, name: str, tally: ShadowTally, why: LeftOut) -> None:
        if why not in tally.left_out:
            # the report counts the others
            self._log.info("a shadow was left out", experiment=name, reason=why)
        tally.left_out[why] = tally.left_out.get(why, 0) + 1

    # -- the repetition ------------------------------------------------------------------------------------------------

    async def _repeat(
        self, name: str, shadow: Shadow, tally: ShadowTally, call: Call, stream: Callable[[Call], Events]
    ) -> None:
        await asyncio.sleep(_PAUSE)
        budget = account("experiment", name, "total", shadow.budget.currency, call.trip.created_at)
        held, error = 0, None
        try:
            allowed = _allowed(call.request)
            amount = await self._most(call, shadow, allowed)
            # from here on something may be reserved, even if nobody waited to hear of it
            held = amount
            await self._reserve(call, Hold(budget, shadow.budget.nano, amount))
        except _NotMade as left:
            self._leave_out(name, tally, left.why)
            if left.why == "accounts":
                await self._settle(call, {})
            return
        except CancelledError:
            if held:
                await self._settle(call, {})
            raise
        tally.made += 1
        try:
            error = await self._read(call, stream, allowed * _LONGEST + _SPARE)
        except CancelledError:
            error = GeneratorExit()
            raise
        except RouterError as failed:
            error = failed
        except Exception as failed:
            self._log.error("a shadow failed by a fault of ours", request_id=call.id, exc_info=failed)
            error = InternalError("internal error")
        finally:
            self._books.close(call, error, ())
            outcome = outcome_of(error, call.trip)
            tally.outcomes[outcome] = tally.outcomes.get(outcome, 0) + 1
            assigned = call.trip.assigned
            self._log.info(
                "shadow",
                experiment=name,
                target=str(shadow.target),
                outcome=outcome,
                request_id=call.id,
                shadow_of=None if assigned is None else assigned.shadow_of,
                code=error.code if isinstance(error, RouterError) else None,
            )
            await self._settle(call, {budget: _spent(call.trip, budget.currency, held)})

    async def _read(self, call: Call, stream: Callable[[Call], Events], most: int) -> BaseException | None:
        """Read the answer and keep nothing of it. Gives what ended it but the end itself."""
        length = 0
        async with aclosing(stream(call)) as events:
            async for event in events:
                kind = type(event)
                if kind is TextDelta or kind is ReasoningDelta or kind is RefusalDelta:
                    length += len(event.text)  # type: ignore[union-attr]
                elif kind is ToolCallDelta:
                    length += len(event.arguments)  # type: ignore[union-attr]
                if length > most:
                    # a vendor that does not keep to `max_tokens`: no more of it is paid for
                    return GeneratorExit()
        return None

    # -- its budget ----------------------------------------------------------------------------------------------------

    async def _most(self, call: Call, shadow: Shadow, output: int) -> int:
        """The most that it can cost, in nano-units of the budget's currency. Raises `_NotMade`."""
        request, terms, at = call.request, call.trip.in_force, call.trip.created_at
        tokens = await self._input(request, shadow.target)
        ceiling = partial(
            terms.pricing.ceiling, shadow.target, tokens, output, at, audio_in=sends_audio(request), audio_out=False
        )
        most = ceiling()
        tier = request.extra.get("service_tier")
        if isinstance(tier, str):
            most = _dearer(most, ceiling(service_tier=_DEARER if tier == "auto" else tier))
        if most is None:
            raise _NotMade("price")
        nano = terms.pricing.convert(most.nano, most.currency, shadow.budget.currency, at)
        if nano is None:
            raise _NotMade("rate")
        return nano

    async def _input(self, request: ChatRequest, target: Target) -> int:
        """Tokens of the prompt, a quarter more than we count: a vendor may count otherwise."""
        texts, fixed = measured(request)
        count = None
        if self._tokens is not None:
            try:
                count = await self._tokens.count(texts, target.model)
            except BrokenVocabulary:
                # the log has it: the client's request was counted before
                pass
        return ((rough_count(texts) if count is None else count) + fixed) * 5 // 4 + 64

    async def _reserve(self, call: Call, hold: Hold) -> None:
        """Raises `_NotMade`."""
        try:
            async with asyncio.timeout(_PATIENCE):
                refusal = await self._accounts.reserve(call.id, [hold])
        except (AccountsAway, TimeoutError):
            raise _NotMade("accounts") from None
        if refusal is not None:
            raise _NotMade("budget")

    async def _settle(self, call: Call, charges: Mapping[Account, int]) -> None:
        """To settle twice is to settle once."""
        for seconds in _RETRIES:
            if seconds and self._closing:
                break
            await asyncio.sleep(seconds)
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._accounts.settle(call.id, charges)
            except (AccountsAway, TimeoutError):
                continue
            return
        self._log.error(
            "a shadow's cost could not be booked: its budget stands as reserved until that lapses", request_id=call.id
        )


def _copy(call: Call, assigned: Assigned, target: Target) -> Call:
    """The call again, for that target: nobody's but the experiment's."""
    trip = new_trip()
    trip.terms = call.trip.terms
    trip.asked = str(target)
    trip.assigned = Assigned(assigned.experiment, SHADOW, assigned.unit, assigned.kind, shadow_of=call.id)
    return Call(
        id=request_id(),
        request=_request(call.request, target),
        dialect=call.dialect,
        trip=trip,
        credentials=Credentials(None),
    )


def _request(request: ChatRequest, target: Target) -> ChatRequest:
    """What the client asked, of that target, as a stream, with a bound of its length, and not kept by the vendor."""
    changes: dict[str, Any] = {"model": str(target), "stream": True}
    if "store" in request.extra:
        changes["extra"] = {name: value for name, value in request.extra.items() if name != "store"}
    if (request.sampling.max_tokens or 0) <= 0:
        changes["sampling"] = msgspec.structs.replace(request.sampling, max_tokens=OUTPUT + _thinking(request))
    return msgspec.structs.replace(request, **changes)


def _allowed(request: ChatRequest) -> int:
    """Tokens that the answer can have at most: some vendors count reasoning beside `max_tokens`."""
    return ((request.sampling.max_tokens or 0) + _thinking(request)) * (request.sampling.n or 1)


def _thinking(request: ChatRequest) -> int:
    thinking = request.thinking
    if thinking.enabled is False or (thinking.enabled is None and thinking.effort == "none"):
        return 0
    if thinking.budget is not None:
        return max(0, thinking.budget)
    return _THINKING if thinking.enabled or thinking.effort is not None else 0


def _dearer(one: Cost | None, other: Cost | None) -> Cost | None:
    if one is None or (other is not None and other.nano > one.nano):
        return other
    return one


def _spent(trip: Trip, currency: str, held: int) -> int:
    """What it has cost. What was used at a price that is not known is never nothing: then what was reserved is paid."""
    total = 0
    for attempt in trip.attempts:
        cost = attempt.cost
        if cost is None:
            nano = None if attempt.usage is not None else 0
        else:
            nano = trip.in_force.pricing.convert(cost.nano, cost.currency, currency, trip.created_at)
        if nano is None:
            return held
        total += nano
    return total
