"""Shares that follow the chance of each arm to be the best in one metric: Thompson sampling. Pure.

Values are drawn from what is known of each arm (W. R. Thompson, "On the likelihood that one unknown probability exceeds
another in view of the evidence of two samples", Biometrika 25, 1933): a Beta distribution for a binary metric, a normal
one for a number. Both count units that resemble themselves for less, by their clustering.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from router.experiment import Metric
from router.experiments.statistics import LEAST_UNITS, Sums

DRAWS: Final = 4000
"""They put a share within 0.8 points of the truth: two standard errors of a half."""


def shares(
    arms: Mapping[str, Sums], metric: Metric, *, floor: float, seed: int = 0, draws: int = DRAWS
) -> dict[str, float] | None:
    """Arm → per cent, to one decimal; they make 100, and none is below `floor` per cent by as much as a tenth.

    The same for the same input. None: an arm has too few units to say anything, so leave the shares as they are.
    Raises `ValueError` if the floors alone make more than 100.
    """
    if floor < 0 or floor * len(arms) > 100:
        raise ValueError(
            f"a floor of {floor:g} per cent for each of {len(arms)} arms makes more than 100 or less than 0"
        )
    if not arms or any(sums.weight < LEAST_UNITS for sums in arms.values()):
        return None
    spare = 100 - floor * len(arms)
    return _rounded({arm: floor + spare * chance for arm, chance in chances(arms, metric, seed, draws).items()})


def chances(arms: Mapping[str, Sums], metric: Metric, seed: int = 0, draws: int = DRAWS) -> dict[str, float]:
    """Arm → probability that it is the best. Every arm has two units at least."""
    random = Random(seed)
    names = list(arms)
    draw = [_posterior(sums, metric, random) for sums in arms.values()]
    best = max if metric.higher_is == "better" else min
    wins = dict.fromkeys(names, 0.0)
    for _ in range(draws):
        values = [one() for one in draw]
        top = best(values)
        leaders = [name for name, value in zip(names, values, strict=True) if value == top]
        # arms that are alike to the last bit, as without any spread, have the same chance
        for name in leaders:
            wins[name] += 1 / len(leaders)
    return {name: won / draws for name, won in wins.items()}


def _posterior(sums: Sums, metric: Metric, random: Random) -> Callable[[], float]:
    if metric.kind == "binary":
        weight = 1 / max(1.0, sums.clustering)
        ones, zeros = 1 + weight * sums.y, 1 + weight * (sums.n - sums.y)
        return lambda: random.betavariate(ones, zeros)
    mean, error = sums.mean, sums.variance**0.5
    return lambda: random.gauss(mean, error)


def _rounded(percent: Mapping[str, float]) -> dict[str, float]:
    """To tenths that make 1,000: those with the largest remainder are rounded up."""
    tenths = {arm: int(value * 10) for arm, value in percent.items()}
    by_remainder = sorted(percent, key=lambda arm: tenths[arm] - percent[arm] * 10)
    for arm in by_remainder[: 1000 - sum(tenths.values())]:
        tenths[arm] += 1
    return {arm: value / 10 for arm, value in tenths.items()}
