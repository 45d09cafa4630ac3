"""Robbins' bound: where it is narrowest, and that the p-value is its other face."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.experiments.confidence import always_valid_p, multiplier, tuned

alphas = st.floats(1e-6, 0.5)
clocks = st.floats(1e-3, 1e6)


@settings(deadline=None)
@given(alphas)
def test_the_bound_is_narrowest_where_it_is_tuned(alpha: float) -> None:
    best = tuned(alpha)
    least = multiplier(best, alpha)
    assert least == pytest.approx((1 + best) ** 0.5)
    assert least <= multiplier(best * 1.1, alpha)
    assert least <= multiplier(best / 1.1, alpha)


@settings(deadline=None)
@given(alphas, clocks)
def test_the_p_value_at_the_bound_is_alpha(alpha: float, clock: float) -> None:
    assert always_valid_p(multiplier(clock, alpha), clock) == pytest.approx(alpha)
    assert always_valid_p(1.01 * multiplier(clock, alpha), clock) < alpha


@settings(deadline=None)
@given(st.floats(-50, 50), clocks)
def test_a_p_value_is_between_0_and_1(z: float, clock: float) -> None:
    assert 0 <= always_valid_p(z, clock) <= 1
    assert always_valid_p(z, clock) == always_valid_p(-z, clock)


def test_the_figures_of_five_per_cent() -> None:
    assert tuned(0.05) == pytest.approx(8.2, abs=0.05)
    assert multiplier(tuned(0.05), 0.05) == pytest.approx(3.03, abs=0.01)
