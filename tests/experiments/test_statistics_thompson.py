"""Shares that follow the chance to be the best."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.experiment import Metric
from router.experiments.statistics import Sums
from router.experiments.thompson import chances, shares

RATE, COST = Metric("binary"), Metric("number", higher_is="worse")


def answers(yes: int, no: int, each: int = 1) -> Sums:
    return Sums.of((unit, value) for unit, value in enumerate([1] * yes + [0] * no) for _ in range(each))


def costs(middle: float, count: int = 400) -> Sums:
    draw = random.Random(3)
    return Sums.of(enumerate(draw.gauss(middle, 1) for _ in range(count)))


def test_the_better_arm_gets_more_and_none_less_than_the_floor() -> None:
    found = shares({"control": answers(300, 700), "qwen": answers(380, 620)}, RATE, floor=5)
    assert found == {"control": 5.0, "qwen": 95.0}


def test_a_lower_cost_is_better() -> None:
    found = shares({"control": costs(2), "qwen": costs(1.5)}, COST, floor=10)
    assert found == {"control": 10.0, "qwen": 90.0}


def test_arms_that_are_alike_share_about_equally() -> None:
    for metric, sums in ((RATE, answers(50, 50)), (COST, costs(1))):
        found = shares({"control": sums, "qwen": sums, "kimi": sums}, metric, floor=0)
        assert found is not None
        assert all(abs(share - 33.3) < 4 for share in found.values())


def test_the_chance_is_that_of_the_difference() -> None:
    """Of two normal values that are one standard error of their difference apart: 0.841."""
    one, other = costs(1), costs(1 + (2 * costs(1).variance) ** 0.5)
    assert chances({"low": one, "high": other}, COST)["low"] == pytest.approx(0.841, abs=0.02)


def test_units_that_repeat_themselves_count_once() -> None:
    once = chances({"control": answers(30, 70), "qwen": answers(36, 64)}, RATE)
    often = chances({"control": answers(30, 70, each=20), "qwen": answers(36, 64, each=20)}, RATE)
    assert often["qwen"] == pytest.approx(once["qwen"], abs=0.03)


def test_the_same_input_gives_the_same_shares() -> None:
    arms = {"control": answers(50, 50), "qwen": answers(55, 45)}
    assert shares(arms, RATE, floor=5, seed=1) == shares(arms, RATE, floor=5, seed=1)
    assert len({chances(arms, RATE, seed)["qwen"] for seed in range(5)}) > 1


@settings(deadline=None)
@given(st.lists(st.integers(30, 200), min_size=1, max_size=7), st.floats(0, 14))
def test_shares_make_100_and_keep_the_floor(yes: list[int], floor: float) -> None:
    found = shares({f"arm {i}": answers(each, 200) for i, each in enumerate(yes)}, RATE, floor=floor, draws=50)
    assert found is not None
    assert sum(round(share * 10) for share in found.values()) == 1000
    assert all(share > floor - 0.1 for share in found.values())


def test_while_an_arm_has_few_units_the_shares_are_left_alone() -> None:
    assert shares({"control": answers(300, 700), "qwen": answers(10, 3)}, RATE, floor=5) is None
    assert shares({"control": answers(300, 700), "qwen": Sums()}, RATE, floor=5) is None


def test_arms_without_any_spread_are_equal() -> None:
    alike = Sums.of(enumerate([2.0] * 50))
    assert shares({"control": alike, "qwen": alike}, COST, floor=5) == {"control": 50.0, "qwen": 50.0}


@pytest.mark.parametrize("floor", [-1, 34])
def test_a_floor_that_cannot_be_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor"):
        shares(dict.fromkeys(("control", "qwen", "kimi"), answers(50, 50)), RATE, floor=floor)
