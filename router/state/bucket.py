"""The arithmetic of a rate: GCRA in its leaky-bucket form (ITU-T I.371, annex A). Pure; holds no clock.

A bucket is how many units were taken and have not run off yet, and when that was so. It runs off at `limit` units in
`period` seconds. Units, unlike the one time of the other form, keep their meaning when a limit is changed.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from router.gates import Parallel, Passage, Rate

TOLERANCE: Final = 1e-3
"""Units that rounding may give: costs are whole ones, and a clock in seconds since 1970 is good to a quarter of a
microsecond."""
PLACE_WAIT: Final = 1.0
"""Seconds that a call without a place in parallel is told to wait: nobody knows when a place falls free."""


Bucket: TypeAlias = tuple[float, float, float]
"""Units taken, as of when, and when nothing is taken any more: from then on the bucket need not be kept. Times are in
seconds, on the clock of whoever keeps it."""


def taken_now(taken: float, at: float, rate: Rate, now: float) -> float:
    """What has not run off yet. A clock that was set back lets nothing run off."""
    since = now - at
    if since <= 0.0:
        return taken
    left = taken - since * rate.limit / rate.period
    return left if left > 0.0 else 0.0


def put(taken: float, rate: Rate, now: float) -> Bucket:
    """The bucket with the cost taken. A negative cost gives back, as far as anything is taken."""
    taken += rate.cost
    if taken < 0.0:
        taken = 0.0
    return taken, now, now + taken * rate.period / rate.limit


def first_refusal(
    rates: Sequence[Rate], taken: Sequence[float], parallels: Sequence[Parallel], free: Sequence[int]
) -> tuple[str | None, float]:
    """The key of the gate that has to be waited for longest, and the seconds; None and 0: all can be passed.

    A cost over the limit passes when nothing is taken. `free` counts the place that the call has already.
    """
    refused_by, longest = None, 0.0
    for index, rate in enumerate(rates):
        limit, level = rate.limit, taken[index]
        over = level + rate.cost - limit if rate.cost <= limit else level
        if over > TOLERANCE and (seconds := over * rate.period / limit) > longest:
            refused_by, longest = rate.key, seconds
    if longest < PLACE_WAIT:
        for index, places in enumerate(free):
            if places <= 0:
                return parallels[index].key, PLACE_WAIT
    return refused_by, longest


def passage(
    refusal: tuple[str | None, float], rates: Sequence[Rate], taken: Sequence[float], places: Sequence[int]
) -> Passage:
    """`taken` and `places` (left, of each parallel) are as they are now, with what the call took if it passed."""
    left: list[int] = []
    whole: list[float] = []
    for index, rate in enumerate(rates):
        level = taken[index]
        count = int(rate.limit + TOLERANCE - level)
        left.append(count if count > 0 else 0)
        whole.append(level * rate.period / rate.limit)
    for count in places:
        left.append(count if count > 0 else 0)
        whole.append(0.0)
    refused_by, retry_after = refusal
    return Passage(refused_by, retry_after, tuple(left), tuple(whole))
