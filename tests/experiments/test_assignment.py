import math
import subprocess
import sys
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.experiment import Adapt, Arm, Experiment, ExperimentState, Ramp, Shadow
from router.experiments.assignment import (
    arm_of,
    assigned_arm,
    draw,
    expected_moves,
    expected_shares,
    included,
    is_held_out,
    is_included,
    is_shadowed,
    shares_in_force,
    unit_hash,
)
from router.money import Money
from router.provider import Target
from router.quantities import Timeout

UNITS = 100_000
FEWER = 20_000
HOUR = 3_600_000
CRITICAL = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467}
"""Of chi-square by degrees of freedom, at 0.1 per cent."""


@cache
def units(count: int = UNITS, salt: str = "trial") -> list[str]:
    return [unit_hash(salt, "user", f"user-{number}") for number in range(count)]


def an_experiment(**fields: Any) -> Experiment:
    arms = (Arm("control", 50), Arm("qwen", 50))
    return Experiment(
        **{"name": "trial", "route": "chat", "arms": arms, "control": "control", "salt": "trial", **fields}
    )


def chi_square(counts: dict[str, int], shares: dict[str, float]) -> float:
    total, whole = sum(counts.values()), math.fsum(shares.values())
    expected = {arm: total * share / whole for arm, share in shares.items()}
    return math.fsum((counts.get(arm, 0) - each) ** 2 / each for arm, each in expected.items())


# -- the shares ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shares",
    [
        {"control": 50.0, "qwen": 50.0},
        {"control": 60.0, "qwen": 40.0},
        {"control": 99.0, "qwen": 1.0},
        {"a": 70.0, "b": 20.0, "c": 10.0},
        {"a": 12.5, "b": 17.5, "c": 20.0, "d": 24.0, "e": 26.0},
    ],
    ids=lambda shares: "/".join(f"{share:g}" for share in shares.values()),
)
def test_units_fall_to_the_arms_in_their_shares(shares: dict[str, float]) -> None:
    counts: dict[str, int] = {}
    for unit in units():
        arm = arm_of(shares, unit)
        counts[arm] = counts.get(arm, 0) + 1
    assert chi_square(counts, shares) < CRITICAL[len(shares) - 1], counts


def test_two_experiments_assign_independently() -> None:
    shares = {"control": 50.0, "qwen": 50.0}
    both: dict[str, int] = {}
    for first, second in zip(units(FEWER, "one"), units(FEWER, "two"), strict=True):
        cell = f"{arm_of(shares, first)} {arm_of(shares, second)}"
        both[cell] = both.get(cell, 0) + 1
    assert chi_square(both, dict.fromkeys(both, 1.0)) < CRITICAL[3], both


def test_ramp_holdout_and_arm_of_a_unit_are_independent() -> None:
    cells: dict[str, int] = {}
    experiment = an_experiment(holdout=50, start=0, ramp=Ramp(50, Timeout(3600)))
    for unit in units(FEWER):
        cell = f"{is_included(experiment, unit, 0)} {is_held_out(experiment, unit)} {draw(unit, 'arm control') < 0.5}"
        cells[cell] = cells.get(cell, 0) + 1
    assert len(cells) == 8
    # 7 degrees of freedom at 0.1 per cent
    assert chi_square(cells, dict.fromkeys(cells, 1.0)) < 24.322, cells


def test_an_arm_without_a_share_gets_nobody() -> None:
    assert {arm_of({"control": 0.0, "qwen": 100.0}, unit) for unit in units(1000)} == {"qwen"}


# -- the same everywhere -------------------------------------------------------------------------------------------


def test_golden_values_hold_on_every_platform_and_in_every_version() -> None:
    assert unit_hash("trial", "user", "ann") == GOLDEN["hash"]
    assert unit_hash("trial", "user", "zoë") == GOLDEN["other"]
    assert draw(GOLDEN["hash"], "ramp") == float(GOLDEN["ramp"])
    shares = {"a": 20.0, "b": 30.0, "c": 50.0}
    assert "".join(arm_of(shares, unit) for unit in units(40)) == GOLDEN["arms"]


GOLDEN = {
    "hash": "ca12b4d335cb5e3b89a675e7ae1e4615",
    "other": "53522099667ca06c031911f8b7951ee7",
    "ramp": "0.7967813974858333",
    "arms": "ccbcabaccbcabbcbcccaaccccbbcccbccabcccca",
}

OTHER_PROCESS = """
import hashlib
from router.experiments.assignment import arm_of, unit_hash
shares = {"control": 60.0, "qwen": 30.0, "other": 10.0}
arms = "".join(arm_of(shares, unit_hash("trial", "user", f"user-{number}"))[0] for number in range(20_000))
print(hashlib.sha256(arms.encode()).hexdigest())
"""


def test_other_processes_with_other_hash_seeds_assign_alike() -> None:
    told = {
        subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4294967295")
    }
    assert len(told) == 1


def test_the_kind_and_the_salt_tell_units_apart() -> None:
    found = {unit_hash("trial", "user", "7"), unit_hash("trial", "key", "7"), unit_hash("other", "user", "7")}
    assert len(found) == 3


def test_a_unit_may_be_any_text() -> None:
    assert len(unit_hash("trial", "user", "\ud800 \0 好")) == 32


# -- changes -------------------------------------------------------------------------------------------------------


def moved(old: dict[str, float], new: dict[str, float], count: int = FEWER) -> dict[tuple[str, str], int]:
    moves: dict[tuple[str, str], int] = {}
    for unit in units(count):
        way = arm_of(old, unit), arm_of(new, unit)
        if way[0] != way[1]:
            moves[way] = moves.get(way, 0) + 1
    return moves


def test_from_50_50_to_60_40_a_tenth_moves_and_all_of_it_one_way() -> None:
    moves = moved({"control": 50, "qwen": 50}, {"control": 60, "qwen": 40}, UNITS)
    assert list(moves) == [("qwen", "control")]
    # four standard deviations of a binomial of 100,000
    assert abs(moves["qwen", "control"] - 0.1 * UNITS) < 4 * math.sqrt(UNITS * 0.1 * 0.9)


def test_a_new_arm_takes_its_share_from_the_others_and_nobody_moves_between_them() -> None:
    moves = moved({"a": 50, "b": 50}, {"a": 40, "b": 40, "c": 20})
    assert {to for _, to in moves} == {"c"}
    assert abs(sum(moves.values()) - 0.2 * FEWER) < 4 * math.sqrt(FEWER * 0.2 * 0.8)


def test_a_removed_arm_moves_its_own_units_alone() -> None:
    moves = moved({"a": 40, "b": 40, "c": 20}, {"a": 50, "b": 50})
    assert {origin for origin, _ in moves} == {"c"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": 50.0, "b": 50.0}, {"a": 60.0, "b": 40.0}),
        ({"a": 50.0, "b": 30.0, "c": 20.0}, {"a": 40.0, "b": 35.0, "c": 25.0}),
        ({"a": 50.0, "b": 30.0, "c": 20.0}, {"a": 20.0, "b": 30.0, "c": 50.0}),
        ({"a": 40.0, "b": 30.0, "c": 30.0}, {"a": 50.0, "b": 50.0, "d": 0.0}),
    ],
)
def test_as_many_move_as_is_expected(old: dict[str, float], new: dict[str, float]) -> None:
    expected = expected_moves(old, new)
    assert abs(sum(moved(old, new).values()) - expected * FEWER) < 4 * math.sqrt(FEWER * expected * (1 - expected))


SHARES = st.lists(st.integers(1, 1000), min_size=2, max_size=6)


@given(SHARES, st.data())
def test_expected_moves_lie_between_the_least_and_the_bound(old: list[int], data: st.DataObject) -> None:
    new = data.draw(st.lists(st.integers(1, 1000), min_size=len(old), max_size=len(old)))
    before, after = ({str(n): float(w) for n, w in enumerate(each)} for each in (old, new))
    least = sum(abs(a / sum(old) - b / sum(new)) for a, b in zip(old, new, strict=True)) / 2
    moves = expected_moves(before, after)
    assert least - 1e-9 <= moves <= 2 * least / (1 + least) + 1e-9
    if len(old) == 2:
        assert math.isclose(moves, least, abs_tol=1e-9)


@given(SHARES, st.data(), st.integers())
def test_a_unit_moves_only_to_an_arm_that_has_grown_against_its_own(
    old: list[int], data: st.DataObject, number: int
) -> None:
    new = data.draw(st.lists(st.integers(1, 1000), min_size=len(old), max_size=len(old)))
    before, after = ({str(n): float(w) for n, w in enumerate(each)} for each in (old, new))
    unit = unit_hash("trial", "user", str(number))
    origin, to = arm_of(before, unit), arm_of(after, unit)
    if origin != to:
        assert after[to] / before[to] > after[origin] / before[origin]


@given(st.integers(), st.floats(1, 1000))
def test_only_proportions_matter(number: int, factor: float) -> None:
    unit = unit_hash("trial", "user", str(number))
    assert arm_of({"a": 1, "b": 2, "c": 3}, unit) == arm_of({"a": factor, "b": 2 * factor, "c": 3 * factor}, unit)


# -- states --------------------------------------------------------------------------------------------------------


def test_a_stopped_arms_units_get_control_and_nobody_else_moves() -> None:
    arms = (Arm("control", 40), Arm("a", 30), Arm("b", 30))
    experiment, state = an_experiment(arms=arms), ExperimentState(stopped=("a",), revision=1)
    shares = shares_in_force(experiment, state)
    for unit in units(5000):
        before = assigned_arm(experiment, shares, ExperimentState(), unit)
        after = assigned_arm(experiment, shares, state, unit)
        assert after == ("control" if before == "a" else before)
    assert expected_shares(experiment, state) == {"control": 70.0, "a": 0.0, "b": 30.0}


def test_adapted_shares_are_in_force() -> None:
    state = ExperimentState(shares={"qwen": 80.0, "control": 20.0}, revision=1)
    assert shares_in_force(an_experiment(adapt=Adapt("errors")), state) == {"control": 20.0, "qwen": 80.0}


def test_adapted_shares_end_with_the_wish_to_adapt() -> None:
    state = ExperimentState(shares={"qwen": 80.0, "control": 20.0}, revision=1)
    assert shares_in_force(an_experiment(), state) == {"control": 50, "qwen": 50}


def test_adapted_shares_of_other_arms_are_not() -> None:
    """The configuration has been changed since."""
    state = ExperimentState(shares={"gone": 80.0, "control": 20.0}, revision=1)
    assert shares_in_force(an_experiment(adapt=Adapt("errors")), state) == {"control": 50, "qwen": 50}


# -- ramp, holdout, shadow -----------------------------------------------------------------------------------------


def test_a_ramp_grows_from_its_beginning_to_all() -> None:
    experiment = an_experiment(start=HOUR, ramp=Ramp(10, Timeout(3600)))
    parts = [included(experiment, at) for at in (HOUR, HOUR + HOUR // 2, 2 * HOUR, 9 * HOUR)]
    assert parts == pytest.approx([0.1, 0.55, 1.0, 1.0])
    inside = sum(is_included(experiment, unit, HOUR) for unit in units(FEWER))
    assert abs(inside - 0.1 * FEWER) < 4 * math.sqrt(FEWER * 0.1 * 0.9)


@given(st.integers(), st.floats(0, 100), st.lists(st.integers(0, 2 * HOUR), min_size=2, max_size=10))
def test_who_is_in_stays_in(number: int, begin: float, times: list[int]) -> None:
    experiment = an_experiment(start=0, ramp=Ramp(begin, Timeout(3600)))
    unit = unit_hash("trial", "user", str(number))
    for earlier, later in pairwise(is_included(experiment, unit, at) for at in sorted(times)):
        assert later or not earlier


def test_whoever_is_held_out_at_5_per_cent_is_at_10() -> None:
    small, large = an_experiment(holdout=5), an_experiment(holdout=10)
    held = [unit for unit in units(FEWER) if is_held_out(small, unit)]
    assert all(is_held_out(large, unit) for unit in held)
    assert abs(len(held) - 0.05 * FEWER) < 4 * math.sqrt(FEWER * 0.05 * 0.95)


def test_shadows_fall_on_their_share_of_calls_whatever_the_arm() -> None:
    experiment = an_experiment(unit="request", shadow=Shadow(Target("mock", "echo"), 5, Money.parse("1 USD")))
    shadowed: dict[str, int] = {"control": 0, "qwen": 0}
    for number in range(FEWER):
        if is_shadowed(experiment, f"req_{number}"):
            shadowed[arm_of({"control": 50, "qwen": 50}, unit_hash("trial", "request", f"req_{number}"))] += 1
    count = sum(shadowed.values())
    assert abs(count - 0.05 * FEWER) < 4 * math.sqrt(FEWER * 0.05 * 0.95)
    assert chi_square(shadowed, {"control": 50, "qwen": 50}) < CRITICAL[1]
