"""Which candidates a call has, in the order in which to try them: the pure parts of `router.routing`, put together."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import msgspec

from router.adapters import Adapter
from router.audio import asks_for_audio, sends_audio
from router.call import Call, Skipped
from router.catalog import Catalog, Way
from router.errors import InvalidRequest, Overloaded, PriceUnknown, RouterError
from router.estimate import Estimator
from router.health import Health, Standing
from router.pricing import Pricing
from router.provider import Target
from router.route import FallbackClass
from router.routing.balance import choose, resting_words, rests
from router.routing.candidates import Candidate, Choice, Needs
from router.routing.expected_cost import expected_cost
from router.routing.needs import lacks, needs_of, wants_tokens
from router.tokens import measured


class Chooser:
    """`unpriced`: whether unknown prices will do. `currency`: what prices are compared in. `home`: this gateway's own
    region. `clock` is that of the health."""

    def __init__(
        self,
        catalog: Catalog,
        adapters: Mapping[str, Adapter],
        pricing: Pricing,
        estimator: Estimator | None,
        health: Health,
        *,
        unpriced: bool = True,
        currency: str = "USD",
        home: str | None = None,
        draw: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._adapters = adapters
        self._pricing = pricing
        self._estimator = estimator or Estimator(None)
        self._health = health
        self._unpriced = unpriced
        self._currency = currency
        self._home = home
        self._draw = draw
        self._clock = clock

    def candidates(self, call: Call, way: Way, arm: Target | None) -> list[Candidate]:
        """One at least; `arm`, the target of an experiment's arm, is the first. Notes in the trip why, and what was
        left out. Raises `InvalidRequest`, `Overloaded` or `PriceUnknown` when there is none."""
        if not way.is_route:
            # asked for by name: nobody else could answer
            if call.regions and (elsewhere := lacks(way.candidates[0], Needs(regions=call.regions))) is not None:
                call.trip.skipped = (Skipped(way.candidates[0].target, elsewhere),)
                raise _bound(way, elsewhere)
            self._check_prices(call, way.candidates)
            return list(way.candidates)
        trip = call.trip
        needs = self._needs(call, way)
        choice = self._choice(call, way, way.candidates, needs)
        if not choice.candidates and not choice.full and arm is None:
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
            elif (hindrance := lacks(first, needs) or self.hindrance(first)) is not None:
                # others answer in its place: what counts in the report is what the call was assigned to
                trip.skipped += (Skipped(arm, hindrance),)
            else:
                candidates.insert(0, first)
                trip.choice = f"the arm of an experiment; then {choice.why}" if choice.why else "an experiment's arm"
        if not candidates:
            raise _nobody(way, choice, needs)
        return self._check_prices(call, candidates)

    def fallback(self, call: Call, way: Way, kind: FallbackClass) -> Sequence[Candidate]:
        """The candidates for calls that the others of the route cannot serve for this reason, the best first. What a
        call may not do at first, it may not do then."""
        choice = self._choice(call, way, way.fallback.get(kind, ()), self._needs(call, way))
        try:
            return self._check_prices(call, choice.candidates)
        except PriceUnknown:
            return ()

    def hindrance(self, candidate: Candidate) -> str | None:
        """Why it should not be tried at this moment, in words: it rests, or is full. None: it may be tried."""
        stands, now = self._standing(candidate.target), self._clock()
        if candidate.max_parallel is not None and stands.running >= candidate.max_parallel:
            return f"full: {stands.running} of {candidate.max_parallel} calls at once"
        return resting_words(stands, now) if rests(stands, now) else None

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
        tokens = 0
        if wants_tokens(candidates, way.balance, request):
            counted = next((count for asked, _, count in call.trip.counted if asked is request), None)
            if counted is None:
                texts, fixed = measured(request, recordings=False)
                counted = fixed + self._estimator.count_now(texts, way.candidates[0].target.model)
            tokens = counted
        return needs_of(request, call.tags, call.regions, tokens)

    def _standing(self, target: Target) -> Standing:
        standing = self._health.standing(target)
        free_at = self._adapters[target.provider].free_at(self._health)
        if free_at is None or (standing.free_at is not None and standing.free_at >= free_at):
            return standing
        # the target may be well, but we have no key for it
        return msgspec.structs.replace(standing, state="open", free_at=free_at)

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


def _bound(way: Way, elsewhere: str) -> InvalidRequest:
    provider = way.candidates[0].target.provider
    return InvalidRequest(
        f"`{way.name}` is {elsewhere}, to which this call is bound: ask for a model that is there, or, if this one is, "
        f"write `providers.{provider}.region`",
        code="no_target",
    )


def _nobody(way: Way, choice: Choice, needs: Needs) -> RouterError:
    reasons = "; ".join(f"{each.target}: {each.why}" for each in choice.skipped)
    if choice.full:
        return Overloaded(
            f"no target of `{way.name}` has room for one call more ({reasons}); try again shortly", retry_after=1.0
        )
    # programs that shorten their history when they are told to know this word
    short = msgspec.structs.replace(needs, prompt_tokens=0, max_tokens=None)
    too_long = all(lacks(each, short) is None for each in way.candidates)
    return InvalidRequest(
        f"no target of `{way.name}` can serve this call ({reasons})",
        code="context_length_exceeded" if too_long else "no_target",
    )
