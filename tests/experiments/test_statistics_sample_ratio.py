"""Counts of units against planned shares."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.experiments.sample_ratio import Period, _log_factor, sample_ratio

HALVES = {"control": 50.0, "qwen": 50.0}
counts = st.integers(0, 3000)


def split(control: int, qwen: int) -> Period:
    return Period(HALVES, {"control": control, "qwen": qwen})


def test_counts_as_planned_are_no_alarm() -> None:
    ratio = sample_ratio([split(5030, 4970)])
    assert not ratio.alarm
    assert ratio.p == 1
    assert ratio.expected == {"control": 5000, "qwen": 5000}
    assert ratio.counts == {"control": 5030, "qwen": 4970}


def test_counts_off_the_plan_are_an_alarm_once_there_are_enough() -> None:
    assert not sample_ratio([split(52, 48)]).alarm
    assert sample_ratio([split(26_000, 24_000)]).alarm
    assert sample_ratio([split(100, 0)]).alarm


def test_the_alarm_is_at_alpha() -> None:
    ratio = sample_ratio([split(5300, 4800)])
    assert sample_ratio([split(5300, 4800)], alpha=ratio.p).alarm
    assert not sample_ratio([split(5300, 4800)], alpha=ratio.p * 0.99).alarm


def test_nothing_seen_is_no_alarm() -> None:
    assert sample_ratio([]).p == 1
    assert sample_ratio([split(0, 0)]).p == 1
    assert sample_ratio([Period({}, {})]).p == 1


@settings(deadline=None)
@given(st.lists(st.tuples(counts, counts, counts), min_size=1, max_size=6))
def test_cutting_a_time_of_equal_shares_changes_nothing(parts: list[tuple[int, int, int]]) -> None:
    shares = {"control": 60.0, "qwen": 30.0, "kimi": 10.0}
    cut = sample_ratio([Period(shares, dict(zip(shares, part, strict=True))) for part in parts])
    whole = sample_ratio([Period(shares, dict(zip(shares, map(sum, zip(*parts, strict=True)), strict=True)))])
    assert cut.p == pytest.approx(whole.p, rel=1e-6)
    assert cut.counts == whole.counts


def test_each_period_is_held_against_its_own_plan() -> None:
    later = {"control": 10.0, "qwen": 90.0}
    moved = [split(5000, 5000), Period(later, {"control": 1000, "qwen": 9000})]
    assert not sample_ratio(moved).alarm
    assert sample_ratio([split(6000, 14_000)]).alarm


def test_what_one_period_shows_is_carried_to_the_next() -> None:
    """Half of an arm is lost: many short periods, each far too short for itself, tell it as one long would."""
    periods = []
    for number in range(60):
        share = 40 + number % 20
        periods.append(
            Period({"control": 100.0 - share, "qwen": float(share)}, {"control": 100 - share, "qwen": share // 2})
        )
    assert not any(sample_ratio([period]).alarm for period in periods)
    assert sample_ratio(periods).alarm


def test_units_in_an_arm_without_a_share_are_an_alarm_at_once() -> None:
    assert sample_ratio([Period({"control": 100.0, "qwen": 0.0}, {"control": 50, "qwen": 1})]).p == 0
    assert sample_ratio([Period({"control": 100.0}, {"control": 50, "qwen": 1})]).alarm
    assert not sample_ratio([Period({"control": 100.0, "qwen": 0.0}, {"control": 50})]).alarm


@pytest.mark.parametrize(
    ("period", "why"),
    [
        (Period({"control": 100.0, "qwen": -1.0}, {}), "below zero"),
        (Period(HALVES, {"control": -1}), "below zero"),
        (Period({}, {"control": 1}), "needs the shares"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(period: Period, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sample_ratio([period])


def test_the_factor_is_a_martingale_under_the_plan() -> None:
    """Over one more unit, its mean is what it was: here for each way in which 40 units may have come."""

    def factor(control: int, qwen: int) -> float:
        return math.exp(_log_factor({"control": 0.5, "qwen": 0.5}, {"control": control, "qwen": qwen}, {}, {}))

    for control in range(41):
        qwen = 40 - control
        after = 0.5 * factor(control + 1, qwen) + 0.5 * factor(control, qwen + 1)
        assert after == pytest.approx(factor(control, qwen))
