"""Limits in memory, for one thread: nothing here waits. The keepers of gates say how they get here."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from router.gates import Parallel, Passage, Rate
from router.state.bucket import Bucket, first_refusal, passage, put, taken_now

_FEW: Final = 1024
"""Buckets that are kept without looking whether they are still needed."""


class Inside(NamedTuple):
    """A call that has entered and not left."""

    until: float
    places: tuple[str, ...]


class Turnstile:
    """`clock` gives seconds; a call that neither leaves nor is renewed is taken to have left after `expiry` seconds."""

    def __init__(self, clock: Callable[[], float], expiry: float) -> None:
        self._clock = clock
        self._expiry = expiry
        self.buckets: dict[str, Bucket] = {}
        self._sweep_at = _FEW
        self.inside: dict[str, Inside] = {}
        """The one that entered or was renewed first is the first."""
        self.places: dict[str, int] = {}
        """Places taken, where any are."""

    def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        """As `Gates.enter`."""
        now = self._clock()
        self._forget_expired(now)
        taken = [self._taken(rate, now) for rate in rates]
        inside = self.inside.get(call_id)
        held = () if inside is None else inside.places
        free = [
            1 if parallel.key in held else parallel.limit - self.places.get(parallel.key, 0) for parallel in parallels
        ]
        refusal = first_refusal(rates, taken, parallels, free)
        if refusal[0] is None:
            for index, rate in enumerate(rates):
                bucket = self.buckets[rate.key] = put(taken[index], rate, now)
                taken[index] = bucket[0]
            for parallel in parallels:
                if parallel.key not in held:
                    self.places[parallel.key] = self.places.get(parallel.key, 0) + 1
                    held = (*held, parallel.key)
            if inside is not None:
                del self.inside[call_id]
            self.inside[call_id] = Inside(now + self._expiry, held)
            if len(self.buckets) > self._sweep_at:
                self._sweep(now)
        places = [parallel.limit - self.places.get(parallel.key, 0) for parallel in parallels]
        return passage(refusal, rates, taken, places)

    def leave(self, call_id: str, corrections: Sequence[Rate]) -> None:
        """As `Gates.leave`."""
        inside = self.inside.pop(call_id, None)
        if inside is None:
            return
        self._free(inside)
        if corrections:
            now = self._clock()
            for rate in corrections:
                self.buckets[rate.key] = put(self._taken(rate, now), rate, now)

    def renew(self, call_ids: Iterable[str]) -> None:
        """As `RenewedGates.renew`, for those of the calls that are inside."""
        until = self._clock() + self._expiry
        for call_id in call_ids:
            inside = self.inside.pop(call_id, None)
            if inside is not None:
                self.inside[call_id] = Inside(until, inside.places)

    def clear(self) -> None:
        for each in (self.buckets, self.inside, self.places):
            each.clear()

    def _taken(self, rate: Rate, now: float) -> float:
        bucket = self.buckets.get(rate.key)
        return 0.0 if bucket is None else taken_now(bucket[0], bucket[1], rate, now)

    def _free(self, inside: Inside) -> None:
        for key in inside.places:
            if left := self.places[key] - 1:
                self.places[key] = left
            else:
                del self.places[key]

    def _forget_expired(self, now: float) -> None:
        while self.inside:
            call_id, inside = next(iter(self.inside.items()))
            if inside.until > now:
                return
            del self.inside[call_id]
            self._free(inside)

    def _sweep(self, now: float) -> None:
        # as many again must come before the next sweep: each one costs no more than it saves
        self.buckets = {key: bucket for key, bucket in self.buckets.items() if bucket[2] > now}
        self._sweep_at = max(_FEW, 2 * len(self.buckets))
