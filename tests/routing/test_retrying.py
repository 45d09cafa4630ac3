"""What follows a failed attempt, as pure functions of the error."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import (
    ContentFiltered,
    ContextTooLong,
    InternalError,
    InvalidRequest,
    Overloaded,
    ProtocolViolated,
    ProviderError,
    RateLimited,
    Rejected,
    RouterError,
    StoreUnavailable,
    StreamCut,
    TimedOut,
    Unreachable,
    Unsupported,
    VendorAuthFailed,
    VendorFailed,
    VendorModelUnknown,
    VendorOverloaded,
    VendorQuotaExhausted,
)
from router.provider import Target
from router.quantities import Duration, Share
from router.route import Can, Retry, Timeouts
from router.routing.candidates import Candidate
from router.routing.retrying import (
    RetryBudget,
    fallback_class,
    fitting,
    is_the_keys,
    remedy,
    telling,
    wait_before,
)


def a_candidate(model: str, context: int | None = None) -> Candidate:
    return Candidate(Target("v", model), Timeouts(), can=Can(context=context))


@pytest.mark.parametrize(
    "error",
    [RateLimited, VendorOverloaded, VendorFailed, Unreachable, TimedOut, ProtocolViolated, StreamCut, Overloaded],
)
def test_an_ill_or_busy_vendor_may_be_tried_again_and_so_may_others(error: type[RouterError]) -> None:
    assert remedy(error("x")) == "anywhere"


@pytest.mark.parametrize("error", [VendorAuthFailed, VendorQuotaExhausted, VendorModelUnknown])
def test_a_dead_key_or_a_missing_model_sends_the_call_elsewhere_and_never_back(error: type[RouterError]) -> None:
    assert remedy(error("x")) == "elsewhere"


@pytest.mark.parametrize(
    "error", [Rejected, ContextTooLong, ContentFiltered, Unsupported, InvalidRequest, StoreUnavailable, InternalError]
)
def test_what_is_wrong_with_the_request_or_with_us_is_not_tried_again(error: type[RouterError]) -> None:
    assert remedy(error("x")) == "none"


def test_a_vendor_that_says_so_is_not_tried_again_though_others_are() -> None:
    assert remedy(VendorFailed("x", vendor_retry=False)) == "elsewhere"
    assert remedy(VendorFailed("x", vendor_retry=True)) == "anywhere"


def test_each_misfit_has_its_class_of_fallback_and_other_failures_have_none() -> None:
    assert fallback_class(ContextTooLong("x")) == "context_length"
    assert fallback_class(ContentFiltered("x")) == "content_filter"
    assert fallback_class(Unsupported("x")) == "unsupported"
    assert fallback_class(InvalidRequest("the adapter cannot say it")) == "unsupported"
    assert fallback_class(Rejected("x")) is None
    assert fallback_class(VendorFailed("x")) is None


def test_a_prompt_that_is_too_long_goes_to_larger_contexts_alone() -> None:
    failed, others = a_candidate("small", 8_000), [a_candidate("x"), a_candidate("y", 8_000), a_candidate("z", 32_000)]
    assert [each.target.model for each in fitting("context_length", failed, others)] == ["z"]
    assert [each.target.model for each in fitting("context_length", a_candidate("?"), others)] == ["y", "z"]


def test_what_one_vendor_filters_goes_to_no_other_unless_it_is_written() -> None:
    assert fitting("content_filter", a_candidate("a"), [a_candidate("b")]) == []


def test_what_one_target_cannot_do_the_next_may() -> None:
    assert fitting("unsupported", a_candidate("a"), [a_candidate("b")]) == [a_candidate("b")]


@given(st.integers(1, 20), st.integers(), st.floats(0, 5), st.floats(0, 60))
def test_a_back_off_is_never_longer_than_what_is_waited_at_most(
    tries: int, seed: int, backoff: float, most: float
) -> None:
    retry = Retry(backoff=Duration(backoff), max_wait=Duration(most))
    wait = wait_before(retry, VendorFailed("x"), tries, random.Random(seed))
    assert wait is not None
    assert 0 <= wait <= min(most, backoff * 2 ** (tries - 1))


@given(st.floats(0, 100), st.integers())
def test_a_vendor_is_never_asked_again_before_the_time_it_named(asked: float, seed: int) -> None:
    retry = Retry(max_wait=Duration(10))
    wait = wait_before(retry, RateLimited("x", retry_after=asked), 1, random.Random(seed))
    assert (wait is None) == (asked > 10)
    assert wait is None or asked <= wait <= asked + retry.backoff


def test_waits_are_spread_so_that_callers_do_not_come_back_together() -> None:
    draw = random.Random(1)
    waits = {wait_before(Retry(), VendorFailed("x"), 3, draw) for _ in range(50)}
    assert len(waits) == 50


def test_only_the_key_is_to_blame_for_a_refused_an_empty_or_a_limited_account() -> None:
    assert all(is_the_keys(error("x")) for error in (VendorAuthFailed, VendorQuotaExhausted, RateLimited))
    assert not is_the_keys(VendorFailed("x"))


def test_the_client_is_told_the_failure_that_may_pass() -> None:
    busy, dead = VendorOverloaded("busy"), VendorAuthFailed("our key")
    assert telling([busy, dead]) is busy
    assert telling([dead]) is dead
    first, last = Unreachable("1"), ProviderError("2")
    assert telling([first, last]) is first


class TestBudget:
    def test_extra_attempts_are_a_share_of_the_calls(self) -> None:
        budget, made = RetryBudget(Share(0.2), 0.0), 0
        for _ in range(1000):
            budget.deposit()
            made += budget.withdraw(0.0)
        # exactly a fifth, as far as floats go
        assert 199 <= made <= 200

    def test_a_quiet_route_has_its_reserve(self) -> None:
        budget = RetryBudget(Share(0.0), 2.0)
        assert sum(budget.withdraw(0.0) for _ in range(100)) == 20
        assert not budget.withdraw(0.4)
        assert budget.withdraw(1.0)

    def test_a_small_reserve_comes_now_and_then(self) -> None:
        budget = RetryBudget(Share(0.0), 0.05)
        assert budget.withdraw(0.0)
        assert not budget.withdraw(10.0)
        assert budget.withdraw(21.0)

    @given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=200), st.floats(0, 1), st.floats(0, 5))
    def test_never_more_than_share_and_reserve_allow(
        self, steps: list[tuple[bool, float]], share: float, reserve: float
    ) -> None:
        budget, now, calls, made = RetryBudget(share, reserve), 0.0, 0, 0
        for call, passed in steps:
            now += passed
            if call:
                calls += 1
                budget.deposit()
            made += budget.withdraw(now)
        assert made <= calls * share + max(reserve * 10, 1.0) + reserve * now + 1e-6

    def test_what_was_saved_in_quiet_times_has_a_bound(self) -> None:
        budget = RetryBudget(Share(0.5), 1.0)
        for _ in range(10_000):
            budget.deposit()
        assert sum(budget.withdraw(0.0) for _ in range(10_000)) <= 60
