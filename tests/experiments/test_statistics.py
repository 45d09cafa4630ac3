"""One metric of an arm beside control: from sums over units to an interval and a verdict."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.experiment import Metric
from router.experiments.statistics import LEAST_EVENTS, LEAST_UNITS, Comparison, Sums, breaches, compare

RATE = Metric("binary")
COST = Metric("number", higher_is="worse")
SCORE = Metric("number")

Observed = Sequence[tuple[int, float]]
observations = st.lists(
    st.tuples(st.integers(0, 8), st.floats(-1000, 1000, allow_subnormal=False)), min_size=3, max_size=60
).filter(lambda pairs: len({unit for unit, _ in pairs}) > 1)


def values(middle: float, count: int, *, spread: float = 1.0, seed: int = 0, each: int = 1) -> Sums:
    """`count` units with `each` observations, all of a unit the same."""
    draw = random.Random(seed)
    own = [draw.gauss(middle, spread) for _ in range(count)]
    return Sums.of((unit, value) for unit, value in enumerate(own) for _ in range(each))


def answers(yes: int, no: int) -> Sums:
    """Units that have answered once."""
    return Sums.of(enumerate([1] * yes + [0] * no))


def test_sums_are_over_units() -> None:
    sums = Sums.of([("ada", 1), ("ada", 3), ("ben", 5)])
    assert sums == Sums(units=2, n=3, y=9, yy=16 + 25, yn=4 * 2 + 5, nn=4 + 1, squares=1 + 9 + 25)


def test_sums_of_different_units_add_up() -> None:
    one, other = [("ada", 1.0), ("ada", 3.0)], [("ben", 5.0)]
    assert Sums.of(one) + Sums.of(other) == Sums.of(one + other)
    assert Sums() + Sums.of(one) == Sums.of(one)


@settings(deadline=None)
@given(observations)
def test_the_error_is_that_of_the_residuals_of_units(pairs: Observed) -> None:
    sums = Sums.of(pairs)
    theta = Fraction(sum(Fraction(value) for _, value in pairs), len(pairs))
    residuals: dict[int, Fraction] = {}
    counts: dict[int, int] = {}
    for unit, value in pairs:
        residuals[unit] = residuals.get(unit, Fraction(0)) + Fraction(value) - theta
        counts[unit] = counts.get(unit, 0) + 1
    weight = Fraction(len(pairs) ** 2, sum(count**2 for count in counts.values()))
    squared = sum(residual**2 for residual in residuals.values()) / len(pairs) ** 2
    expected = float(squared * weight / (weight - 1))
    scale = max(abs(value) for _, value in pairs)
    assert sums.mean == pytest.approx(float(theta), rel=1e-9, abs=1e-12 * scale)
    assert sums.variance == pytest.approx(expected, rel=1e-6, abs=1e-9 * scale**2)


@settings(deadline=None)
@given(st.lists(st.floats(-1000, 1000, allow_subnormal=False), min_size=2, max_size=40))
def test_units_seen_once_have_the_usual_error_of_a_mean(seen: list[float]) -> None:
    middle = Fraction(sum(map(Fraction, seen)), len(seen))
    usual = float(sum((Fraction(value) - middle) ** 2 for value in seen) / (len(seen) * (len(seen) - 1)))
    scale = max(map(abs, seen))
    assert Sums.of(enumerate(seen)).variance == pytest.approx(usual, rel=1e-6, abs=1e-9 * scale**2)


def test_a_small_spread_about_a_large_value_is_kept() -> None:
    draw = random.Random(1)
    small = [draw.gauss(0, 1) for _ in range(1000)]
    large = Sums.of(enumerate(value + 1e5 for value in small))
    assert large.variance == pytest.approx(Sums.of(enumerate(small)).variance, rel=1e-3)


def test_values_that_are_all_alike_have_no_spread_though_their_sums_are_rounded() -> None:
    alike = Sums.of((unit % 40, 0.1) for unit in range(1001))
    assert alike.residuals == 0
    assert compare(alike, alike, COST).lack == "spread"
    other = Sums.of((unit % 40, 0.1 + 1e-15) for unit in range(1001))
    assert compare(alike, other, COST).verdict == "too_early"


def test_repeating_what_a_unit_said_makes_nothing_surer() -> None:
    once = compare(values(1, 200), values(1, 200, seed=1), SCORE)
    often = compare(values(1, 200, each=9), values(1, 200, seed=1, each=9), SCORE)
    assert once.arm.error == pytest.approx(often.arm.error)
    assert once.interval is not None
    assert often.interval is not None
    assert often.interval.high - often.interval.low > 0.95 * (once.interval.high - once.interval.low)


def test_units_of_which_one_makes_nearly_all_calls_count_as_few() -> None:
    sums = Sums.of([(0, float(value % 2)) for value in range(5000)] + [(unit, 1.0) for unit in range(1, 200)])
    assert sums.units == 200
    assert sums.weight < 2
    assert compare(sums, sums, SCORE).lack == "units"


def test_nothing_is_said_before_there_are_units() -> None:
    nothing = compare(Sums(), Sums(), RATE)
    assert (nothing.verdict, nothing.lack, nothing.interval, nothing.p) == ("too_early", "units", None, 1)
    assert nothing.control.value is None
    few = compare(values(1, LEAST_UNITS - 1), values(9, 500), SCORE)
    assert (few.verdict, few.lack) == ("too_early", "units")
    assert few.arm.value == pytest.approx(9, abs=0.2)
    assert compare(values(1, LEAST_UNITS), values(1, 500, seed=1), SCORE).verdict == "undecided"


@pytest.mark.parametrize("flipped", [False, True])
def test_nothing_is_said_of_what_has_hardly_happened(flipped: bool) -> None:
    def seen(rare: int, of: int) -> Sums:
        return answers(of - rare, rare) if flipped else answers(rare, of - rare)

    assert compare(seen(LEAST_EVENTS - 1, 500), seen(LEAST_EVENTS - 1, 500), RATE).lack == "events"
    assert compare(seen(LEAST_EVENTS, 500), seen(LEAST_EVENTS, 500), RATE).verdict == "undecided"


def test_an_arm_that_always_fails_is_seen_though_control_never_does() -> None:
    errors = Metric("binary", higher_is="worse")
    comparison = compare(answers(0, 100), answers(60, 0), errors)
    assert comparison.verdict == "worse"
    assert breaches(comparison, worse_by=0.5)


def test_ones_of_one_unit_count_once() -> None:
    one_angry_unit = Sums.of([(0, 1)] * 40 + [(unit, 0) for unit in range(1, 300) for _ in range(40)])
    assert one_angry_unit.ones == 1
    assert compare(one_angry_unit, one_angry_unit, RATE).lack == "events"


@pytest.mark.parametrize(
    ("metric", "verdict"), [(SCORE, "better"), (COST, "worse")], ids=["higher is better", "higher is worse"]
)
def test_the_verdict_knows_which_way_is_better(metric: Metric, verdict: str) -> None:
    low, high = values(1, 400), values(2, 400, seed=1)
    up, down = compare(low, high, metric), compare(high, low, metric)
    assert up.verdict == verdict
    assert down.verdict == ("worse" if verdict == "better" else "better")
    assert up.interval is not None
    assert 0 < up.interval.low < 1 < up.interval.high
    assert up.difference == pytest.approx(-(down.difference or 0))


def test_arms_that_are_alike_are_undecided() -> None:
    comparison = compare(values(1, 400), values(1, 400, seed=1), SCORE)
    assert comparison.verdict == "undecided"
    assert comparison.p > 0.05


@settings(deadline=None)
@given(st.floats(0.02, 0.8), st.integers(40, 400), st.integers(1, 5))
def test_p_the_interval_and_the_verdict_agree(difference: float, count: int, arms: int) -> None:
    comparison = compare(values(1, count), values(1 + difference, count, seed=1), SCORE, arms=arms)
    assert comparison.interval is not None
    outside = not comparison.interval.low <= 0 <= comparison.interval.high
    assert outside == (comparison.p <= 0.05) == (comparison.verdict != "undecided")
    if comparison.relative_interval is not None:
        assert outside == (not comparison.relative_interval.low <= 0 <= comparison.relative_interval.high)


def test_more_arms_make_each_interval_wider() -> None:
    control, arm = values(1, 400), values(1.1, 400, seed=1)
    alone, of_four = compare(control, arm, SCORE), compare(control, arm, SCORE, arms=4)
    assert alone.interval is not None
    assert of_four.interval is not None
    assert of_four.interval.low < alone.interval.low < alone.interval.high < of_four.interval.high
    assert of_four.p > alone.p


def test_an_interval_is_wider_than_that_of_a_single_look() -> None:
    for count in (LEAST_UNITS, 1000, 100_000):
        comparison = compare(values(1, count), values(1, count, seed=1), SCORE)
        assert comparison.reach is not None
        assert comparison.reach > 3


def test_the_relative_interval_is_of_the_ratio() -> None:
    comparison = compare(values(10, 2000), values(13, 2000, seed=1), COST)
    assert comparison.relative == pytest.approx(0.3, abs=0.01)
    inside = comparison.relative_interval
    assert inside is not None
    assert inside.low < 0.3 < inside.high
    assert inside.high - inside.low < 0.05


def test_nothing_relative_is_said_to_a_control_that_may_be_zero() -> None:
    near_zero = compare(values(0.01, 200), values(3, 200, seed=1), SCORE)
    assert near_zero.verdict == "better"
    assert near_zero.relative_interval is None
    below = compare(values(-5, 200), values(3, 200, seed=1), SCORE)
    assert (below.relative, below.relative_interval) == (None, None)


def of_cost(arm: float, control: float = 10, count: int = 2000) -> Comparison:
    return compare(values(control, count), values(arm, count, seed=1), COST)


def test_a_guardrail_is_breached_beyond_its_margin_alone() -> None:
    assert breaches(of_cost(11.5), worse_by=0.1)
    assert of_cost(10.7).verdict == "worse"
    assert not breaches(of_cost(10.7), worse_by=0.1)
    assert not breaches(of_cost(11.0), worse_by=0.1)
    assert not breaches(of_cost(5), worse_by=0)


def test_a_guardrail_of_what_should_be_high_is_breached_from_below() -> None:
    worse = compare(values(10, 2000), values(8, 2000, seed=1), SCORE)
    assert breaches(worse, worse_by=0.1)
    assert not breaches(worse, worse_by=0.3)
    assert not breaches(compare(values(10, 2000), values(12, 2000, seed=1), SCORE), worse_by=0)


def test_a_guardrail_counts_from_a_control_below_zero_too() -> None:
    worse = compare(values(-10, 2000), values(-12, 2000, seed=1), SCORE)
    assert breaches(worse, worse_by=0.1)
    assert not breaches(worse, worse_by=0.3)


def test_a_guardrail_agrees_with_the_relative_interval() -> None:
    comparison = of_cost(12)
    assert comparison.relative_interval is not None
    assert breaches(comparison, worse_by=comparison.relative_interval.low - 1e-6)
    assert not breaches(comparison, worse_by=comparison.relative_interval.low + 1e-6)


def test_a_guardrail_says_nothing_while_it_is_too_early() -> None:
    assert not breaches(compare(values(1, 5), values(100, 5, seed=1), COST), worse_by=0)


def test_an_arm_without_spread_is_taken_to_vary_as_the_other() -> None:
    alike = Sums.of((unit, 2.0) for unit in range(400))
    varied = values(2, 100)
    comparison = compare(varied, alike, SCORE)
    assert comparison.arm.error == pytest.approx((comparison.control.error or math.nan) / 2)
