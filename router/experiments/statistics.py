"""What an experiment says of one metric today, from sums over units. Pure: no clock, no store, nothing random.

A unit (a user, say) may be observed many times, and its observations resemble each other, so units are what is counted
as independent. An arm's value is the ratio of sums θ = ΣY / ΣN over its units, where Y is the sum of the metric over a
unit's observations and N their number. Its standard error comes from the residuals Y - θN, one for each unit
(linearisation, also called the delta method or a cluster-robust error).

Intervals hold at every look (`confidence.py`). The clock they run by is the variance of h(D - Δ), where D is the
difference to control and h = n₀n₁ / (n₀ + n₁); in observations, t = h² SE² / s² with s² the variance of single ones.
For independent observations t is h. Where units come back and resemble themselves, the increments of h(D - Δ) are
positively correlated, so that at any two looks it is correlated no less than a Brownian motion of the same variance; by
Slepian's inequality it then crosses an upper bound with no greater probability, and likewise a lower one. The decision
record "Statistics that hold at every look" has the argument, its limits and what was measured.
"""

import math
from collections.abc import Hashable, Iterable
from typing import Final, Literal, Self, TypeAlias

from msgspec import Struct

from router.experiment import Metric, MetricKind
from router.experiments.confidence import always_valid_p, multiplier, tuned

Verdict: TypeAlias = Literal["too_early", "undecided", "better", "worse"]
Lack: TypeAlias = Literal["units", "events", "spread"]
"""Why it is too early: few units in an arm; few of a binary metric's rarer value; all values alike so far."""

ALPHA: Final = 0.05
"""The chance that an interval of one arm and metric is ever wrong."""
LEAST_UNITS: Final = 30
"""In each arm, counted by `Sums.weight`, before anything is said: below that, no error estimated from them is to be
trusted."""
LEAST_EVENTS: Final = 10
"""Units with the rarer value of a binary metric, in each arm: seen there, or to be expected from both arms together."""
TUNED_TO: Final = 500.0
"""The clock (observations, see above) at which intervals are narrowest: about 1,000 observations in each arm."""
_ROUNDING: Final = 1e-12
"""Sums of floating-point numbers are exact to about this part of themselves; a spread below it is none."""


class Sums(Struct, frozen=True):
    """All that the statistics need of one arm and metric: sums over units, of which Y and N are as above."""

    units: int = 0
    """How many have been observed at least once."""
    n: float = 0
    """ΣN: observations."""
    y: float = 0
    """ΣY."""
    yy: float = 0
    """ΣY²."""
    yn: float = 0
    """ΣYN."""
    nn: float = 0
    """ΣN²."""
    squares: float = 0
    """The sum of the squares of single observations."""

    @classmethod
    def of(cls, observations: Iterable[tuple[Hashable, float]]) -> Self:
        """From pairs of unit and observed value. Exact for whole numbers."""
        totals: dict[Hashable, tuple[float, int]] = {}
        squares: float = 0
        for unit, value in observations:
            total, count = totals.get(unit, (0, 0))
            totals[unit] = total + value, count + 1
            squares += value * value
        return cls(
            units=len(totals),
            n=sum(n for _, n in totals.values()),
            y=sum(y for y, _ in totals.values()),
            yy=sum(y * y for y, _ in totals.values()),
            yn=sum(y * n for y, n in totals.values()),
            nn=sum(n * n for _, n in totals.values()),
            squares=squares,
        )

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of both. A unit that is in both is counted as two: add what has no unit in common."""
        return Sums(
            self.units + other.units,
            self.n + other.n,
            self.y + other.y,
            self.yy + other.yy,
            self.yn + other.yn,
            self.nn + other.nn,
            self.squares + other.squares,
        )

    @property
    def mean(self) -> float:
        """θ, of one observation at least."""
        return self.y / self.n

    @property
    def residuals(self) -> float:
        """Σ(Y - θN)², as exact as the sums are; 0 where it would be rounding alone."""
        theta = self.mean
        total = self.yy - 2 * theta * self.yn + theta * theta * self.nn
        return total if total > _ROUNDING * self.yy else 0.0

    @property
    def scatter(self) -> float:
        """Σ(y - θ)² over single observations; 0 where it would be rounding alone."""
        total = self.squares - self.y * self.y / self.n
        return total if total > _ROUNDING * self.squares else 0.0

    @property
    def weight(self) -> float:
        """How many units of equal activity would be worth as much (Kish): n² / ΣN², no more than `units`."""
        return self.n * self.n / self.nn if self.nn else 0.0

    @property
    def variance(self) -> float:
        """SE² of θ, of two units at least: the residuals through n², times weight / (weight - 1).

        Residuals are smaller than what they stand for, as θ follows the units; most so where few units make up the
        most of n. With units of equal activity the factor is the usual units / (units - 1).
        """
        return self.residuals / (self.n * self.n - self.nn)

    @property
    def clustering(self) -> float:
        """SE² through what it would be if all observations were independent (the design effect); 1 without spread."""
        return self.variance * self.n * (self.n - 1) / scatter if (scatter := self.scatter) else 1.0

    @property
    def ones(self) -> float:
        """Units with a 1 of a binary metric: (ΣY)² / ΣY², where one with many counts as one."""
        return self.y * self.y / self.yy if self.yy else 0.0

    @property
    def zeros(self) -> float:
        """Units with a 0 of a binary metric, as `ones`."""
        squared = self.nn - 2 * self.yn + self.yy
        return (self.n - self.y) ** 2 / squared if squared else 0.0


class Estimate(Struct, frozen=True):
    """One arm's value of a metric today."""

    units: int
    observations: int
    value: float | None
    """None: not observed yet. Of a binary metric, the share of ones."""
    error: float | None
    """Standard error; None: too early."""


class Interval(Struct, frozen=True):
    low: float
    high: float


class Comparison(Struct, frozen=True, kw_only=True):
    """What may be said of an arm beside control, in one metric."""

    metric: Metric
    control: Estimate
    arm: Estimate
    verdict: Verdict
    lack: Lack | None = None
    """With the verdict `too_early` alone."""
    difference: float | None = None
    """Arm minus control, in units of the metric."""
    interval: Interval | None = None
    """Holds the true difference at all looks together with probability 1 - alpha."""
    relative: float | None = None
    """The difference as a part of control's value; None also where control's value is not above zero."""
    relative_interval: Interval | None = None
    """As `interval`; None also where control's value is not above zero for certain."""
    p: float = 1.0
    """Always-valid, corrected for the number of arms. At or below alpha where the verdict is better or worse."""
    reach: float | None = None
    """Half the width of `interval`, in standard errors."""


def compare(control: Sums, arm: Sums, metric: Metric, *, arms: int = 1, alpha: float = ALPHA) -> Comparison:
    """One arm beside control.

    `arms` is the number of arms beside control. The chance that any of them is ever wrongly called better or worse in
    this metric is alpha at most: each gets alpha / arms (Bonferroni). Nothing is corrected for the number of metrics.
    """
    if lack := _lack(control, arm, metric.kind):
        return Comparison(metric=metric, control=_estimate(control), arm=_estimate(arm), verdict="too_early", lack=lack)
    of_control, of_arm = _variances(control, arm, metric.kind)
    error = math.sqrt(of_control + of_arm)
    share = alpha / arms
    clock = _observations(control, arm, of_control + of_arm, metric.kind) / TUNED_TO * tuned(share)
    reach = multiplier(clock, share)
    difference = arm.mean - control.mean
    interval = Interval(difference - reach * error, difference + reach * error)
    verdict: Verdict = "undecided"
    if interval.low > 0 or interval.high < 0:
        verdict = "better" if (interval.low > 0) == (metric.higher_is == "better") else "worse"
    return Comparison(
        metric=metric,
        control=_estimate(control, of_control),
        arm=_estimate(arm, of_arm),
        verdict=verdict,
        difference=difference,
        interval=interval,
        relative=difference / control.mean if control.mean > 0 else None,
        relative_interval=_ratios(control.mean, of_control, arm.mean, of_arm, reach),
        p=min(1.0, arms * always_valid_p(difference / error, clock)),
        reach=reach,
    )


def breaches(comparison: Comparison, *, worse_by: float) -> bool:
    """Whether the arm is worse than control by more than this part of control's value (0.1: a tenth) for certain.

    It is judged by θ_arm - (1 ± worse_by) θ_control, whose error is known also where control's value is near zero.
    """
    control, arm, reach = comparison.control, comparison.arm, comparison.reach
    if reach is None or control.value is None or arm.value is None or control.error is None or arm.error is None:
        return False
    up = comparison.metric.higher_is == "worse"
    factor = 1 + math.copysign(worse_by, control.value) * (1 if up else -1)
    beyond = (arm.value - factor * control.value) * (1 if up else -1)
    return beyond > reach * math.hypot(arm.error, factor * control.error)


def _estimate(sums: Sums, variance: float | None = None) -> Estimate:
    return Estimate(
        units=sums.units,
        observations=int(sums.n),
        value=sums.mean if sums.n else None,
        error=None if variance is None else math.sqrt(variance),
    )


def _lack(control: Sums, arm: Sums, kind: MetricKind) -> Lack | None:
    if min(control.weight, arm.weight) < LEAST_UNITS:
        return "units"
    if kind == "binary":
        both = control + arm
        for sums in (control, arm):
            # what both have counts in each: an arm that always fails is to be seen though control never does
            share = sums.n / both.n
            if min(max(sums.ones, share * both.ones), max(sums.zeros, share * both.zeros)) < LEAST_EVENTS:
                return "events"
        return None
    alike = control.residuals + arm.residuals == 0 or control.scatter + arm.scatter == 0
    return "spread" if alike else None


def _variances(control: Sums, arm: Sums, kind: MetricKind) -> tuple[float, float]:
    """SE² of both arms, neither of them zero."""
    if kind == "binary":
        clustering = max(1.0, (control + arm).clustering)
        return _binary_variance(control, clustering), _binary_variance(arm, clustering)
    # an arm whose values are all alike so far is taken to vary as the other does
    return (
        control.variance or arm.variance * arm.weight / control.weight,
        arm.variance or control.variance * control.weight / arm.weight,
    )


def _binary_variance(sums: Sums, clustering: float) -> float:
    """No less than of single observations with one more of each value (Agresti and Caffo, American Statistician 54,
    2000). Else an arm where the rare thing has not happened yet would be known exactly."""
    return max(sums.variance, clustering * _of_single(sums) / (sums.n + 2))


def _of_single(sums: Sums) -> float:
    """The variance of single observations of a binary metric, with one more of each value."""
    share = (sums.y + 1) / (sums.n + 2)
    return share * (1 - share)


def _observations(control: Sums, arm: Sums, variance: float, kind: MetricKind) -> float:
    """The clock: the variance of h(D - Δ), in independent observations."""
    total = control.n + arm.n
    if kind == "binary":
        single = (control.n * _of_single(control) + arm.n * _of_single(arm)) / total
    else:
        single = (control.scatter + arm.scatter) / (total - 2)
    return (control.n * arm.n / total) ** 2 * variance / single


def _ratios(control: float, of_control: float, arm: float, of_arm: float, reach: float) -> Interval | None:
    """All r for which θ_arm - (1 + r) θ_control may be zero (Fieller's interval), if they are bounded."""
    squared = reach * reach
    a = control * control - squared * of_control
    if a <= 0 or control <= 0:
        return None
    half = control * arm
    root = math.sqrt(max(0.0, half * half - a * (arm * arm - squared * of_arm)))
    return Interval((half - root) / a - 1, (half + root) / a - 1)
