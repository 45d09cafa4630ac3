"""What may be said of an experiment today: its sums beside its definition, put into figures and words. Pure.

Everything is compared with control, metric by metric, with intervals that hold at every look (`statistics`). An arm's
calls are those that were assigned to it, whoever has answered them in the end.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from router.experiment import HOLDOUT, SHADOW, Experiment, Metric
from router.experiments.assignment import expected_shares
from router.experiments.confidence import multiplier, tuned
from router.experiments.sample_ratio import Period, SampleRatio, sample_ratio
from router.experiments.sentence import sentence
from router.experiments.statistics import ALPHA, LEAST_UNITS, Comparison, Interval, Sums, breaches, compare
from router.store.experiment_states import KeptState
from router.store.experiments import Difference, ExperimentSums, ShadowPairs, Stratum

Standing: TypeAlias = Literal["not_begun", "running", "ended"]
OWN: Final[Mapping[str, Metric]] = {
    "errors": Metric("binary", "worse"),
    "first_token": Metric("number", "worse"),
    "duration": Metric("number", "worse"),
    "tokens_per_second": Metric("number", "better"),
    "cost": Metric("number", "worse"),
}
"""Of every call: errors as a share, times in milliseconds, cost in the report's currency."""
UNITS: Final = {"errors": "share", "first_token": "ms", "duration": "ms", "tokens_per_second": "tokens/s"}
_PAIR_TUNED: Final = 500.0
"""Pairs at which the interval of a shadow's difference is narrowest."""


class MetricReport(Struct, frozen=True):
    """One metric of one arm. Differences are arm minus control, `relative` as a part of control's value."""

    unit: str
    higher_is: str
    value: float | None
    error: float | None
    """Standard error; None: too early."""
    observations: int
    difference: float | None = None
    interval: tuple[float, float] | None = None
    relative: float | None = None
    relative_interval: tuple[float, float] | None = None
    verdict: str | None = None
    """`better`, `worse`, `undecided` or `too_early`; None for control."""
    p: float | None = None


class ArmReport(Struct, frozen=True):
    name: str
    share: float | None
    """Per cent of the units that come now; None: it is no arm of the definition any more."""
    exposures: int
    units: int
    metrics: dict[str, MetricReport]
    unpriced: int = 0
    stopped: str | None = None
    """Why a guardrail has stopped it."""


class Guard(Struct, frozen=True):
    metric: str
    worse_by: float
    """Per cent."""
    breached_by: list[str]
    """Arms that are worse by more than that for certain."""


class Pairs(Struct, frozen=True):
    """A shadow's answers less the originals', over pairs in which both are known."""

    n: int
    mean: float | None
    interval: tuple[float, float] | None
    """None: fewer than `LEAST_UNITS` pairs, or pairs that are not independent."""
    original: float | None
    """The originals' mean."""


class ShadowReport(Struct, frozen=True):
    target: str
    budget: str
    pairs: int
    same_outcome: int
    """Pairs that ended alike."""
    original_errors: int
    shadow_errors: int
    differences: dict[str, Pairs]


class Report(Struct, frozen=True, kw_only=True):
    name: str
    route: str
    unit: str
    control: str
    standing: Standing
    start: int | None
    end: int | None
    holdout: float
    currency: str
    since: int | None
    """Of the calls that figures and verdicts are made of; Unix milliseconds, as all times here."""
    until: int | None
    first_at: int | None
    last_at: int | None
    arms: list[ArmReport]
    """Control first."""
    sample_ratio: SampleRatio | None
    guardrails: list[Guard]
    shadow: ShadowReport | None
    sentences: list[str]
    object: str = "experiment.report"


def metrics_of(experiment: Experiment) -> dict[str, Metric]:
    """All that is measured, those of every call first."""
    return {**OWN, **experiment.metrics}


def compared(experiment: Experiment, sums: ExperimentSums) -> dict[str, dict[str, Comparison]]:
    """Arm → metric → what may be said of it beside control. The holdout is an arm like the others."""
    control = sums.arms.get(experiment.control)
    others = [
        name
        for name in (*(arm.name for arm in experiment.arms), HOLDOUT)
        if name != experiment.control and name in sums.arms
    ]
    if control is None:
        return {}
    return {
        name: {
            metric: compare(
                control.metrics.get(metric, Sums()), sums.arms[name].metrics.get(metric, Sums()), kind, arms=len(others)
            )
            for metric, kind in metrics_of(experiment).items()
        }
        for name in others
    }


def breached(experiment: Experiment, comparisons: Mapping[str, Mapping[str, Comparison]]) -> list[tuple[str, str]]:
    """Arms and the metric in which a guardrail says that they must be stopped. Never the holdout."""
    return [
        (arm, guard.metric)
        for arm, metrics in comparisons.items()
        if arm != HOLDOUT
        for guard in experiment.guardrails
        if guard.metric in metrics and breaches(metrics[guard.metric], worse_by=guard.worse_by / 100)
    ]


def report(
    experiment: Experiment,
    sums: ExperimentSums,
    pairs: Mapping[str, ShadowPairs],
    kept: KeptState,
    strata: Sequence[Stratum],
    currency: str,
    now: int,
    period: tuple[int | None, int | None] = (None, None),
) -> Report:
    """`sums` are of the calls of `period`, `strata` of all. `now` and the period: Unix milliseconds."""
    comparisons = compared(experiment, sums)
    shares = expected_shares(experiment, kept.state)
    listed = [experiment.control, *(arm.name for arm in experiment.arms if arm.name != experiment.control)]
    if experiment.holdout or HOLDOUT in sums.arms:
        listed.append(HOLDOUT)
    arms = [_arm(experiment, name, sums, comparisons, shares, kept, currency) for name in listed]
    ratio = _sample_ratio(strata)
    wrong = breached(experiment, comparisons)
    guards = [
        Guard(guard.metric, guard.worse_by, [arm for arm, metric in wrong if metric == guard.metric])
        for guard in experiment.guardrails
    ]
    return Report(
        name=experiment.name,
        route=experiment.route,
        unit=experiment.unit,
        control=experiment.control,
        standing=_standing(experiment, now),
        start=experiment.start,
        end=experiment.end,
        holdout=experiment.holdout,
        currency=currency,
        since=period[0],
        until=period[1],
        first_at=sums.first_at,
        last_at=sums.last_at,
        arms=arms,
        sample_ratio=ratio,
        guardrails=guards,
        shadow=_shadow(experiment, pairs),
        sentences=_sentences(experiment, arms, comparisons, ratio, strata, period),
    )


def _day(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _standing(experiment: Experiment, now: int) -> Standing:
    if experiment.start is not None and now < experiment.start:
        return "not_begun"
    return "ended" if experiment.end is not None and now >= experiment.end else "running"


def _arm(
    experiment: Experiment,
    name: str,
    sums: ExperimentSums,
    comparisons: Mapping[str, Mapping[str, Comparison]],
    shares: Mapping[str, float],
    kept: KeptState,
    currency: str,
) -> ArmReport:
    found, beside = sums.arms.get(name), comparisons.get(name, {})
    metrics: dict[str, MetricReport] = {}
    for metric, kind in metrics_of(experiment).items():
        of_arm = Sums() if found is None else found.metrics.get(metric, Sums())
        comparison = beside.get(metric)
        error = None
        if comparison is not None:
            error = comparison.arm.error
        elif name == experiment.control:
            error = next((each[metric].control.error for each in comparisons.values() if each[metric].reach), None)
        metrics[metric] = MetricReport(
            currency if metric == "cost" else UNITS.get(metric, "share" if kind.kind == "binary" else ""),
            kind.higher_is,
            of_arm.mean if of_arm.n else None,
            error,
            int(of_arm.n),
            *(() if comparison is None else _beside(comparison)),
        )
    why = kept.why.get(name)
    return ArmReport(
        name,
        experiment.holdout if name == HOLDOUT else shares.get(name),
        0 if found is None else found.exposures,
        0 if found is None else found.units,
        metrics,
        0 if found is None else found.unpriced,
        str(why or "stopped") if name in kept.state.stopped else None,
    )


def _beside(
    comparison: Comparison,
) -> tuple[float | None, tuple[float, float] | None, float | None, tuple[float, float] | None, str, float]:
    return (
        comparison.difference,
        _ends(comparison.interval),
        comparison.relative,
        _ends(comparison.relative_interval),
        comparison.verdict,
        comparison.p,
    )


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)


def comparable(experiment: Experiment, strata: Sequence[Stratum]) -> tuple[int | None, int | None]:
    """From when and until when the shares were the last ones that gave every arm some: (None, None) if they never were
    others.

    With other shares at other times, what changes with time looks like a difference between arms. Where the shares are
    adapted all the time there is no such period.
    """
    if experiment.adapt is not None or len(strata) < 2:
        return None, None
    names = {arm.name for arm in experiment.arms if arm.share}
    until: int | None = None
    for stratum in reversed(strata):
        shares = _shares(stratum.shares) if stratum.shares else {}
        if names <= {name for name, share in shares.items() if share > 0}:
            return stratum.first_at, until
        until = stratum.first_at
    return None, None


def _sample_ratio(strata: Sequence[Stratum]) -> SampleRatio | None:
    """Units by arm beside the shares that were in force when each came; None: there are none yet."""
    periods = [Period(_shares(stratum.shares), stratum.units) for stratum in strata if stratum.shares]
    return sample_ratio(periods) if periods else None


def _shares(text: str) -> dict[str, float]:
    """As `Assigned.shares` has them."""
    parts = (pair.rpartition("=") for pair in text.split(","))
    return {name: float(share) for name, _, share in parts}


def _shadow(experiment: Experiment, pairs: Mapping[str, ShadowPairs]) -> ShadowReport | None:
    shadow, found = experiment.shadow, list(pairs.values())
    if shadow is None:
        return None
    names = dict.fromkeys(name for each in found for name in each.differences)
    return ShadowReport(
        str(shadow.target),
        str(shadow.budget),
        sum(each.pairs for each in found),
        sum(each.same_outcome for each in found),
        sum(each.original_errors for each in found),
        sum(each.repeated_errors for each in found),
        {
            name: _pairs(
                [each.differences[name] for each in found if name in each.differences],
                independent=experiment.unit == "request",
            )
            for name in names
        },
    )


def _pairs(differences: Sequence[Difference], *, independent: bool) -> Pairs:
    """The mean difference of pairs. It has an interval only where the unit is the request: pairs of one user or key
    resemble each other, and are not as many as they seem."""
    total = Difference()
    for each in differences:
        total += each
    if not total.n:
        return Pairs(0, None, None, None)
    mean = total.sum / total.n
    if total.n < LEAST_UNITS or not independent:
        return Pairs(total.n, mean, None, total.original / total.n)
    variance = max(total.squares - total.n * mean * mean, 0.0) / (total.n - 1)
    half = math.sqrt(variance / total.n) * multiplier(total.n / _PAIR_TUNED * tuned(ALPHA), ALPHA)
    return Pairs(total.n, mean, (mean - half, mean + half), total.original / total.n)


def _sentences(
    experiment: Experiment,
    arms: Sequence[ArmReport],
    comparisons: Mapping[str, Mapping[str, Comparison]],
    ratio: SampleRatio | None,
    strata: Sequence[Stratum],
    period: tuple[int | None, int | None],
) -> list[str]:
    said: list[str] = []
    if ratio is not None and ratio.alarm:
        counts = ", ".join(f"{arm} {ratio.counts[arm]} instead of {ratio.expected[arm]:.0f}" for arm in ratio.expected)
        said.append(
            f"Units do not reach the arms in the planned shares ({counts}): find out why before you believe any other "
            "figure."
        )
    if period[0] is not None and len(strata) > 1:
        said.append(
            f"The shares were changed while it ran: figures are of calls since {_day(period[0])}, so that what has "
            "changed with time is not taken for a difference between arms."
        )
    elif len(strata) > 1:
        said.append(
            "The shares were changed while it ran: what has changed with time may look like a difference between arms."
        )
    if not any(arm.exposures for arm in arms):
        return [*said, "No call has been in the experiment yet."]
    told = {name: dict(metrics) for name, metrics in comparisons.items() if name != SHADOW}
    for name, metrics in told.items():
        units = next(arm.units for arm in arms if arm.name == name)
        control = next(arm.units for arm in arms if arm.name == experiment.control)
        measured = {
            metric: comparison
            for metric, comparison in metrics.items()
            if comparison.arm.observations or comparison.control.observations
        }
        said.append(sentence(units + control, name, experiment.control, measured))
    said += [f"`{arm.name}` was stopped: {arm.stopped}." for arm in arms if arm.stopped is not None]
    if not told:
        said.append(f"There is nothing to compare with `{experiment.control}` yet.")
    return said
