"""Peak-EWMA: bad news at once, good news with time, and a failure is never good news."""

import math

from hypothesis import given
from hypothesis import strategies as st

from router.routing.ewma import PeakEwma

seconds = st.floats(0.001, 600)


def known(level: float, at: float = 0.0) -> PeakEwma:
    average = PeakEwma(tau=10)
    average.add(level, at)
    return average


def test_nothing_is_known_at_first() -> None:
    assert PeakEwma().value(5) is None


def test_a_peak_is_believed_at_once() -> None:
    average = known(1)
    average.add(8, 0.1)
    assert average.value(0.1) == 8


def test_a_lower_value_is_believed_with_time() -> None:
    at_once, later = known(8), known(8)
    at_once.add(1, 0.0)
    later.add(1, 10.0)
    assert at_once.value(0.0) == 8
    assert math.isclose(later.value(10.0) or 0, 8 / math.e + 1 * (1 - 1 / math.e))


def test_what_is_not_used_decays_until_it_is_worth_a_try() -> None:
    average = known(8)
    values = [average.value(now) or 0 for now in (0, 10, 20, 100)]
    assert values == sorted(values, reverse=True)
    assert math.isclose(values[1], 8 / math.e)
    assert values[-1] < 0.01
    assert average.level == 8


def test_a_failure_counts_as_the_time_waited_or_as_worse_than_usual() -> None:
    quick, slow = known(2), known(2)
    quick.punish(0.01, 0)
    slow.punish(60, 0)
    assert quick.value(0) == 4
    assert slow.value(0) == 60


def test_a_quick_failure_of_a_target_that_nobody_knows_is_slow() -> None:
    average = PeakEwma()
    average.punish(0.001, 0)
    assert (average.value(0) or 0) >= 5


@given(st.lists(seconds, min_size=1, max_size=20), st.floats(0, 100))
def test_a_failure_never_makes_it_look_faster(values: list[float], waited: float) -> None:
    average = PeakEwma()
    for now, value in enumerate(values):
        average.add(value, float(now))
    before = average.value(50.0) or 0
    average.punish(waited, 50.0)
    assert (average.value(50.0) or 0) >= max(before, waited)


@given(st.integers(1, 200))
def test_failure_upon_failure_has_a_bound(count: int) -> None:
    average = PeakEwma()
    for now in range(count):
        average.punish(0.01, float(now))
    assert (average.value(float(count)) or 0) <= 30


@given(st.lists(st.tuples(st.floats(0, 100), seconds), min_size=1, max_size=50))
def test_it_stays_between_the_least_and_the_most(steps: list[tuple[float, float]]) -> None:
    average, now = PeakEwma(), 0.0
    for pause, value in steps:
        now += pause
        average.add(value, now)
    values = [value for _, value in steps]
    assert min(values) * 0.999 <= (average.level or 0) <= max(values) * 1.001


def test_a_clock_that_was_set_back_makes_nothing_larger() -> None:
    average = known(4, at=100)
    assert average.value(50) == 4
    average.add(2, 50)
    assert (average.value(50) or 0) <= 4
