"""The innermost layer: choose targets, try them until one begins to answer, and give its events to the plugins.

Nothing of an attempt is seen outside until its first content event: up to then another may take its place
(`router.trials`). That event commits the call. What may still happen to a vendor then is either an error in the stream
or, on a route with `continuation`, the next target's going on with the answer (`router.splice`).
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Protocol

import msgspec

from router.adapters import Adapter
from router.attempts import Attempts, Opened, note, noted
from router.audio import asks_for_audio, sends_audio
from router.call import Call, Events, Skipped
from router.catalog import Catalog, Way
from router.errors import InvalidRequest, Overloaded, PriceUnknown, ProviderError, RouterError, StreamCut, TimedOut
from router.estimate import Estimator
from router.events import Completed, Event, TextDelta
from router.health import Health, Standing
from router.ledger.books import Books
from router.pricing import Pricing
from router.provider import Target
from router.routing.balance import choose
from router.routing.candidates import Candidate, Choice, Needs
from router.routing.expected_cost import expected_cost
from router.routing.needs import lacks, needs_of, wants_tokens
from router.routing.retrying import RetryBudget, remedy
from router.splice import Splice, continuation_of
from router.tokens import measured
from router.trials import Budgets, Trials


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
    """`estimator` None: an answer without reported usage is not counted. `unpriced`: whether unknown prices will do.
    `currency`: what prices are compared in. `home`: this gateway's region. `answered`: told of each call that has been
    answered to its end, as it came in here."""

    def __init__(
        self,
        catalog: Catalog,
        adapters: Mapping[str, Adapter],
        books: Books,
        pricing: Pricing,
        estimator: Estimator | None,
        health: Health,
        *,
        unpriced: bool = True,
        currency: str = "USD",
        home: str | None = None,
        experiments: Experiments | None = None,
        answered: Callable[[Call], None] | None = None,
        draw: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._adapters = adapters
        self._pricing = pricing
        self._estimator = estimator
        self._health = health
        self._attempts = Attempts(adapters, books, health, estimator)
        self._unpriced = unpriced
        self._currency = currency
        self._home = home
        self._experiments = experiments
        self._answered = answered
        self._draw = draw or random.Random()
        self._clock = clock
        self._budgets: dict[str, Budgets] = {}
        self._by_name = Budgets(RetryBudget(0.0, 0.0))

    async def stream(self, call: Call) -> Events:
        """The events of the call's answer. Raises `RouterError` where the vendor, or the way to it, fails."""
        asked, trip, arm = call, call.trip, None
        if self._experiments is not None:
            entered = self._experiments.enter(call)
            if entered is not None:
                call, arm = entered.call, entered.target
        way = self._catalog.resolve(call.request.model)
        candidates = self._chosen(call, way, arm)
        trip.candidates = tuple(each.target for each in candidates)
        trials = Trials(call, way, candidates, self._attempts, self._budgets_of(way), self._health, self._draw)
        splice = Splice(call.request) if way.continuation else None
        try:
            opened = await trials.begin()
            trip.first_delta = opened.attempt.first_delta
            while True:
                trip.answering = opened.attempt
                trip.dropped = opened.sent.dropped
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
                        if last is not before:
                            deadline.progress(count)
                        if opened.at_end or type(last) is Completed:
                            break
                        data = await deadline.wait(response.read())
                        opened.at_end = not data
                        events = decoder.feed(data) if data else decoder.finish()
                        if splice is not None and joining:
                            events = splice.join(noted(attempt, events))
                        if data:
                            arrived = time.monotonic()
                            attempt.longest_gap = max(attempt.longest_gap, arrived - previous)
                            previous = arrived
                    if type(last) is not Completed:
                        raise StreamCut(f"`{attempt.target}` ended its answer without an end")
                    complete = True
                except ProviderError as error:
                    ended = failure = error
                    if splice is None or not _may_go_on(error, splice):
                        raise
                except BaseException as error:
                    failure = error
                    # whoever closes us after the end does not undo it
                    complete = type(last) is Completed
                    raise
                finally:
                    await self._attempts.close(call, opened, None if complete else failure)
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
        text = splice.text
        return await trials.go_on(
            failed,
            error,
            lambda candidate, keyed: continuation_of(keyed.provider, call.request, candidate.target, text),
            len(text),
        )

    # -- where to ------------------------------------------------------------------------------------------------------

    def _chosen(self, call: Call, way: Way, arm: Target | None) -> list[Candidate]:
        """The candidates in the order in which to try them, one at least."""
        if not way.is_route:
            # asked for by name: nobody else could answer
            self._check_prices(call, way.candidates)
            return list(way.candidates)
        trip = call.trip
        needs = self._needs(call, way)
        choice = self._choice(call, way, way.candidates, needs)
        if not choice.candidates and arm is None:
            for kind in ("context_length", "unsupported"):
                other = self._choice(call, way, way.fallback.get(kind, ()), needs)
                if other.candidates:
                    skipped, why = choice.skipped + other.skipped, f"fallback for {kind}: {other.why}"
                    choice = Choice(other.candidates, skipped, why)
                    break
        candidates = list(choice.candidates)
        trip.skipped, trip.choice = choice.skipped, choice.why
        if arm is not None:
            first = self._catalog.arm(way.name, arm)
            candidates = [each for each in candidates if each.target != arm]
            trip.skipped = tuple(each for each in choice.skipped if each.target != arm)
            if first is None:
                trip.skipped += (Skipped(arm, "its provider is not available"),)
            elif (lacking := lacks(first, needs)) is not None:
                trip.skipped += (Skipped(arm, lacking),)
            else:
                candidates.insert(0, first)
                trip.choice = f"the arm of an experiment; then {choice.why}" if choice.why else "an experiment's arm"
        if not candidates:
            raise _nobody(way, choice)
        return self._check_prices(call, candidates)

    def _choice(self, call: Call, way: Way, candidates: Iterable[Candidate], needs: Needs) -> Choice:
        at = call.trip.created_at

        def price(target: Target) -> int | None:
            return expected_cost(self._pricing, target, needs, at, self._currency)

        return choose(
            tuple(candidates),
            needs,
            balance=way.balance,
            standing=self._standing,
            now=self._clock(),
            draw=self._draw,
            price=price if way.balance == "cost" else None,
            home=self._home,
            currency=self._currency,
        )

    def _needs(self, call: Call, way: Way) -> Needs:
        request = call.request
        candidates = (*way.candidates, *chain.from_iterable(way.fallback.values()))
        tokens: int | None = 0
        if wants_tokens(candidates, way.balance, request):
            tokens = next((count for asked, _, count in call.trip.counted if asked is request), None)
            if tokens is None:
                texts, fixed = measured(request, recordings=False)
                counter = self._estimator or Estimator(None)
                tokens = fixed + counter.count_now(texts, way.candidates[0].target.model)
        return needs_of(request, call.tags, call.regions, tokens)

    def _standing(self, target: Target) -> Standing:
        standing = self._health.standing(target)
        free_at = self._adapters[target.provider].free_at(self._health)
        if free_at is None or (standing.free_at is not None and standing.free_at >= free_at):
            return standing
        # the target may be well, but we have no key for it
        return msgspec.structs.replace(standing, state="open", free_at=free_at)

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

    # -- at what price -------------------------------------------------------------------------------------------------

    def _check_prices(self, call: Call, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those that may be called at what is known of their prices. Raises `PriceUnknown` when none is left."""
        if self._unpriced:
            return list(candidates)
        lacking = {each.target: self._unknown_price(each.target, call) for each in candidates}
        priced = [each for each in candidates if lacking[each.target] is None]
        if not priced:
            raise PriceUnknown(
                f"no price is known for {', '.join(filter(None, lacking.values()))}, and calls at an unknown price are "
                "refused here: add it to the prices file, or set `prices.unknown: flag`"
            )
        return priced

    def _unknown_price(self, target: Target, call: Call) -> str | None:
        """What has no price that the call would need one for."""
        request, pricing, at = call.request, self._pricing, call.trip.created_at
        hears, speaks = sends_audio(request), asks_for_audio(request)
        if not pricing.knows(target, at):
            return f"`{target}`"
        if (hears or speaks) and pricing.ceiling(target, 1, 1, at, audio_in=hears, audio_out=speaks) is None:
            return f"audio at `{target}`"
        return None


def _nobody(way: Way, choice: Choice) -> RouterError:
    reasons = "; ".join(f"{each.target}: {each.why}" for each in choice.skipped)
    if choice.full:
        return Overloaded(
            f"no target of `{way.name}` has room for one call more ({reasons}); try again shortly", retry_after=1.0
        )
    return InvalidRequest(f"no target of `{way.name}` can serve this call ({reasons})", code="no_target")


def _may_go_on(error: ProviderError, splice: Splice) -> bool:
    """Whether another target may go on where this one has failed."""
    if isinstance(error, TimedOut) and error.code == "total_timeout":
        return False
    return remedy(error) != "none" and splice.refusal() is None
