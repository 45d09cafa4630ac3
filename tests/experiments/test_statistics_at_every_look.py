"""The promise itself, on experiments by the hundred: looked at every day, at most 1 in 20 is ever wrong.

Slower than other tests. `python -m benchmarks.experiments` has more kinds and more of each. The seed is fixed, so what
fails here has failed because of a change.
"""

from collections.abc import Callable

import pytest

from benchmarks import experiments
from benchmarks.experiments import BINARY, NUMBER, Case, Source, Split, alarms, measure
from router.experiments import confidence

TESTS, DAYS, SEED = 250, 30, 7
WITHOUT_DIFFERENCE = {case.name: case for case in experiments.A_A}


@pytest.mark.parametrize("name", [name for name in WITHOUT_DIFFERENCE if "return" not in name and "same" not in name])
def test_of_20_tests_without_a_difference_at_most_one_ever_raises_an_alarm(name: str) -> None:
    measured = measure(WITHOUT_DIFFERENCE[name], TESTS, DAYS, SEED)
    assert measured.decided <= 0.05
    assert measured.silent < 0.5
    # else this would show nothing: a test that is not made for it is wrong far more often
    assert measured.wrong_z > 0.15


@pytest.mark.parametrize("name", [name for name in WITHOUT_DIFFERENCE if "return" in name or "same" in name])
def test_so_it_is_where_units_come_back(name: str) -> None:
    measured = measure(WITHOUT_DIFFERENCE[name], 40, DAYS, SEED)
    assert measured.decided <= 0.05
    assert measured.silent < 0.5


def between(control: Source, arm: Source) -> Callable[[], tuple[Source, Source]]:
    return lambda: (control, arm)


@pytest.mark.parametrize(
    "case",
    [
        Case(
            "feedback",
            BINARY,
            between(experiments.binary(0.3, 50), experiments.binary(0.4, 50)),
            truth=0.1,
            of_control=0.3,
        ),
        Case(
            "cost",
            NUMBER,
            between(experiments.lognormal(2.0, 1.0, 40), experiments.lognormal(1.2, 1.0, 40)),
            truth=-0.8,
            of_control=2.0,
        ),
    ],
    ids=lambda case: case.name,
)
def test_the_truth_is_within_the_interval_at_all_looks_and_a_large_difference_is_found(case: Case) -> None:
    measured = measure(case, TESTS, DAYS, SEED)
    assert measured.wrong <= 0.05
    assert measured.wrong_relative <= 0.05
    assert measured.decided > 0.95
    assert measured.decided_wrong <= 0.025


def test_the_simulation_can_tell_an_interval_that_is_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.experiments.statistics.multiplier", lambda clock, alpha: 1.96)
    assert measure(WITHOUT_DIFFERENCE["normal, 50 a day"], TESTS, DAYS, SEED).wrong > 0.15


def test_counts_as_planned_raise_no_alarm_and_others_do() -> None:
    planned = [split for split in experiments.SPLITS if "as planned" in split.name]
    assert len(planned) == 3
    for split in planned:
        assert len(alarms(split, TESTS, DAYS, SEED)) <= 2
    found = alarms(Split("52/48", 0.5, 0.48), TESTS, DAYS, SEED)
    assert len(found) > 0.95 * TESTS


def test_a_brownian_motion_crosses_the_bound_as_rarely_as_it_says() -> None:
    """Of all that the clock passes, here from 0.01 to 100 times what the bound is tuned for."""
    random = experiments.Random(SEED)
    alpha, crossed, walks = 0.1, 0, 1000
    tuned = confidence.tuned(alpha)
    clocks = [tuned * 10 ** (step / 50) for step in range(-100, 101)]
    bounds = [clock**0.5 * confidence.multiplier(clock, alpha) for clock in clocks]
    for _ in range(walks):
        at, before = 0.0, 0.0
        for clock, bound in zip(clocks, bounds, strict=True):
            at += random.gauss(0, (clock - before) ** 0.5)
            before = clock
            if abs(at) > bound:
                crossed += 1
                break
    # between looks it may cross too, and after the last
    assert 0.04 < crossed / walks <= 0.1
