"""The innermost layer: choose targets, try them until one begins to answer, and give its events to the plugins.

Nothing of an attempt is seen outside until its first content event: up to then another may take its place
(`router.trials`). That event commits the call. What may still happen to a vendor then is either an error in the stream
or, on a route with `continuation`, the next target's going on with the answer (`router.splice`).
"""

import random
import time
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Final, Protocol

import msgspec

from router.attempts import Attempts, Opened, note, noted
from router.call import Call, Events
from router.catalog import Catalog, Way
from router.chooser import Chooser
from router.errors import ProviderError, RouterError, StreamCut
from router.events import Completed, Event, TextDelta
from router.health import Health
from router.messages import ChatRequest
from router.provider import Target
from router.route import Retry
from router.routing.retrying import RetryBudget, remedy
from router.splice import Splice
from router.trials import Budgets, Trials

_KEEPING: Final = ("store", "metadata")
"""Fields by which the gateway itself keeps an answer: nothing is lost with a vendor that does not know them."""


class Entered(Protocol):
    """What an experiment makes of a call."""

    @property
    def call(self) -> Call: ...
    @property
    def target(self) -> Target | None: ...


class Experiments(Protocol):
    def enter(self, call: Call) -> Entered | None:
        """None: the call is in no experiment. Raises `RequestError`."""
        ...


class Dispatch:
    """`answered` is told of each call that was answered to its end, as it came in here."""

    def __init__(
        self,
        catalog: Catalog,
        chooser: Chooser,
        attempts: Attempts,
        health: Health,
        *,
        experiments: Experiments | None = None,
        answered: Callable[[Call], None] | None = None,
        draw: random.Random | None = None,
    ) -> None:
        self._catalog = catalog
        self._chooser = chooser
        self._attempts = attempts
        self._health = health
        self._experiments = experiments
        self._answered = answered
        self._draw = draw or random.Random()
        self._budgets: dict[str, Budgets] = {}
        by_name = Retry()
        self._by_name = Budgets(RetryBudget(by_name.budget, by_name.reserve))

    def course(self, call: Call) -> tuple[str, ...]:
        """What decides, beside its request, who answers a call; as `router.services.Services.course`. A call that is in
        an experiment is assigned now."""
        entered = None if self._experiments is None else self._experiments.enter(call)
        assigned = None if entered is None else call.trip.assigned
        arm = () if assigned is None else (f"{assigned.experiment}={assigned.arm}",)
        tags = [f"{name}={call.tags.get(name, '')}" for name in self._catalog.tags(call.request.model)]
        return (*arm, *tags)

    async def stream(self, call: Call) -> Events:
        """The events of the call's answer. Raises `RouterError` where the vendor, or the way to it, fails."""
        asked, trip, arm = call, call.trip, None
        if self._experiments is not None:
            entered = self._experiments.enter(call)
            if entered is not None:
                call, arm = entered.call, entered.target
        way = self._catalog.resolve(call.request.model)
        candidates = self._chooser.candidates(call, way, arm)
        trip.candidates = tuple(each.target for each in candidates)
        wanted = _streamed(call.request) if way.streams else call.request
        trials = Trials(
            call,
            way,
            candidates,
            wanted,
            self._chooser,
            self._attempts,
            self._budgets_of(way),
            self._health,
            self._draw,
        )
        splice = Splice(wanted) if way.continuation else None
        try:
            opened = await trials.begin()
            trip.first_delta = opened.attempt.first_delta
            while True:
                trip.answering = opened.attempt
                trip.dropped = _not_taken(opened.sent.dropped, wanted)
                ended: RouterError | None = None
                complete = False
                failure: BaseException | None = None
                attempt, decoder, response, deadline = (
                    opened.attempt,
                    opened.decoder,
                    opened.response,
                    opened.deadline,
                )
                written, previous = attempt.generated.output, time.monotonic()
                events: Iterable[Event] = chain(opened.early, opened.rest)
                joining = splice is not None and splice.joining
                if splice is not None and joining:
                    events = splice.join(noted(attempt, events))
                last: Event | None = None
                try:
                    while True:
                        taken = 0 if splice is None else splice.taken
                        before, count = last, 0
                        for last in events:
                            kind = type(last)
                            if kind is Completed:
                                await self._attempts.count(opened)
                                trip.usage = attempt.usage
                                if splice is not None and joining:
                                    trip.usage = splice.total(attempt.usage)
                            elif joining:
                                pass
                            elif kind is TextDelta and last.extra is None:  # type: ignore[union-attr]
                                written.append(last.text)  # type: ignore[union-attr]
                            else:
                                note(attempt, last)
                            if splice is not None:
                                splice.see(last)
                            count += 1
                            yield last
                        if splice is not None and joining and splice.taken > taken:
                            # some of it may not be shown, as reasoning is not
                            deadline.progress(splice.taken - taken)
                        elif last is not before:
                            deadline.progress(count)
                        if opened.at_end or type(last) is Completed:
                            break
                        asked_at = time.monotonic()
                        data = await deadline.wait(response.read())
                        opened.at_end = not data
                        events = decoder.feed(data) if data else decoder.finish()
                        if splice is not None and joining:
                            events = splice.join(noted(attempt, events))
                        if data:
                            arrived = time.monotonic()
                            attempt.waited += arrived - asked_at
                            attempt.longest_gap = max(attempt.longest_gap, arrived - previous)
                            previous = arrived
                    if type(last) is not Completed:
                        raise StreamCut(f"`{attempt.target}` ended its answer without an end")
                    complete = True
                except ProviderError as error:
                    ended = failure = error
                    if splice is None or not _may_go_on(error):
                        raise
                    if (refusal := splice.refusal()) is not None:
                        trip.choice += f"; not gone on with: {refusal}"
                        raise
                except BaseException as error:
                    failure = error
                    # whoever closes us after the end does not undo it
                    complete = type(last) is Completed
                    raise
                finally:
                    await self._attempts.close(call, opened, None if complete else failure)
                    if splice is not None and joining:
                        trip.usage = splice.total(attempt.usage)
                    if complete and self._answered is not None:
                        self._answered(asked)
                if ended is None or splice is None:
                    return
                opened = await self._gone_on(call, trials, opened, ended, splice)
        finally:
            await trials.close()

    async def _gone_on(self, call: Call, trials: Trials, failed: Opened, error: RouterError, splice: Splice) -> Opened:
        """The next target's continuation of the answer."""
        splice.leave(failed.attempt.usage)
        return await trials.go_on(
            failed,
            error,
            lambda candidate, keyed: splice.asked(keyed.provider, candidate.target),
            len(splice.text),
        )

    def _budgets_of(self, way: Way) -> Budgets:
        if not way.is_route:
            return self._by_name
        found = self._budgets.get(way.name)
        if found is None:
            hedge, retry = way.hedge, way.retry
            found = self._budgets[way.name] = Budgets(
                RetryBudget(retry.budget, retry.reserve),
                None if hedge is None else RetryBudget(hedge.share, 0.0, 1.0),
            )
        return found


def _may_go_on(error: ProviderError) -> bool:
    """Whether another target may go on where this one has failed."""
    return remedy(error) != "none" and error.code != "total_timeout"


def _streamed(request: ChatRequest) -> ChatRequest:
    return request if request.stream else msgspec.structs.replace(request, stream=True)


def _not_taken(dropped: tuple[str, ...], request: ChatRequest) -> tuple[str, ...]:
    """What the client asked for and does not get."""
    # without `store` the metadata would have been for the vendor alone
    ours = _KEEPING if request.extra.get("store") is True else _KEEPING[:1]
    return tuple([name for name in dropped if name not in ours]) if dropped else dropped
