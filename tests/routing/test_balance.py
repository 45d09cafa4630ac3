"""Which target a call goes to, and in which order the others follow."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.health import Standing
from router.provider import Target
from router.route import Balance, Can, Timeouts
from router.routing.balance import choose
from router.routing.candidates import Candidate, Choice, Needs

NOW: Final = 1000.0
NOTHING: Final = Needs()
BALANCES: Final[tuple[Balance, ...]] = get_args(Balance)


def target(name: str) -> Target:
    return Target("vendor", name)


def candidate(name: str, **fields: Any) -> Candidate:
    return Candidate(target(name), Timeouts(), **fields)


def chosen(
    *candidates: Candidate,
    needs: Needs = NOTHING,
    balance: Balance = "ordered",
    standing: Mapping[str, Standing] = {},
    seed: int = 1,
    prices: Mapping[str, int] | None = None,
    home: str | None = None,
) -> Choice:
    return choose(
        candidates,
        needs,
        balance=balance,
        standing=lambda one: standing.get(one.model, Standing()),
        now=NOW,
        draw=random.Random(seed),
        price=None if prices is None else lambda one: prices.get(one.model),
        home=home,
        currency="USD",
    )


def names(choice: Choice) -> list[str]:
    return [each.target.model for each in choice.candidates]


def skipped(choice: Choice) -> dict[str, str]:
    return {each.target.model: each.why for each in choice.skipped}


A, B, C = candidate("a"), candidate("b"), candidate("c")
OPEN: Final = Standing(state="open", free_at=NOW + 11.2)


# -- who may be tried ----------------------------------------------------------------------------------------------


def test_a_target_that_cannot_serve_the_call_is_never_tried() -> None:
    choice = chosen(candidate("a", can=Can(images=False)), B, needs=Needs(images=True))
    assert names(choice) == ["b"]
    assert skipped(choice) == {"a": "no images"}
    assert choice.why == "the only one of the route that can serve it now"


def test_no_target_at_all_is_not_said_to_be_a_matter_of_room() -> None:
    choice = chosen(candidate("a", can=Can(images=False)), needs=Needs(images=True))
    assert names(choice) == []
    assert not choice.full


def test_a_resting_target_is_left_out_while_others_are_well() -> None:
    choice = chosen(A, B, C, standing={"a": OPEN})
    assert names(choice) == ["b", "c"]
    assert skipped(choice) == {"a": "resting 12 s more after failures"}


def test_a_target_whose_vendor_asked_to_wait_is_left_out_until_then() -> None:
    limited = Standing(free_at=NOW + 3)
    assert skipped(chosen(A, B, standing={"a": limited})) == {"a": "resting 3 s more, as its vendor asked"}
    assert names(chosen(A, B, standing={"a": Standing(free_at=NOW)})) == ["a", "b"]


def test_when_all_rest_the_one_that_is_free_soonest_is_tried_alone() -> None:
    later = Standing(state="open", free_at=NOW + 60)
    choice = chosen(A, B, C, standing={"a": later, "b": OPEN, "c": later})
    assert names(choice) == ["b"]
    assert choice.why == "all targets rest: vendor/b is free soonest (resting 12 s more after failures)"
    assert set(skipped(choice)) == {"a", "c"}


def test_a_target_that_lacks_something_is_not_tried_though_all_others_rest() -> None:
    choice = chosen(candidate("a", can=Can(tools=False)), B, needs=Needs(tools=True), standing={"b": OPEN})
    assert names(choice) == ["b"]


def test_a_full_target_is_left_out() -> None:
    choice = chosen(candidate("a", max_parallel=2), B, standing={"a": Standing(running=2)})
    assert names(choice) == ["b"]
    assert skipped(choice) == {"a": "full: 2 of 2 calls at once"}
    assert names(chosen(candidate("a", max_parallel=2), B, standing={"a": Standing(running=1)})) == ["a", "b"]


def test_when_all_are_full_nobody_is_tried_and_it_is_said_that_room_is_wanting() -> None:
    choice = chosen(candidate("a", max_parallel=1), B, standing={"a": Standing(running=1), "b": OPEN})
    assert names(choice) == []
    assert choice.full
    assert set(skipped(choice)) == {"a", "b"}


@pytest.mark.parametrize("balance", BALANCES)
def test_a_target_whose_rest_is_over_may_be_tried(balance: Balance) -> None:
    half = Standing(state="half_open", free_at=NOW - 1)
    assert set(names(chosen(A, B, balance=balance, standing={"b": half}))) == {"a", "b"}


def test_by_latency_a_target_whose_rest_is_over_is_tried_first_for_else_it_would_never_be() -> None:
    slow = Standing(state="half_open", first_token=30, duration=60)
    well = Standing(first_token=1, duration=2)
    choice = chosen(A, B, balance="latency", standing={"a": well, "b": slow})
    assert names(choice) == ["b", "a"]
    assert choice.why == "vendor/b is tried again after failures"
    reserve = candidate("b", weight=0)
    assert names(chosen(A, reserve, balance="latency", standing={"a": well, "b": slow})) == ["a", "b"]


# -- the order -----------------------------------------------------------------------------------------------------


def test_ordered_keeps_the_files_order() -> None:
    choice = chosen(C, A, B)
    assert names(choice) == ["c", "a", "b"]
    assert choice.why == "the first of the route that can serve it"


def test_the_cheapest_is_first_and_what_has_no_price_last() -> None:
    choice = chosen(A, B, C, balance="cost", prices={"b": 200_000, "c": 120_000})
    assert names(choice) == ["c", "b", "a"]
    assert choice.why == "cheapest: 0.000120 USD expected"


def test_equal_prices_keep_the_files_order() -> None:
    assert names(chosen(B, A, C, balance="cost", prices={"a": 5, "b": 5, "c": 5})) == ["b", "a", "c"]


def test_without_any_price_the_files_order_holds_and_is_said_to() -> None:
    choice = chosen(B, A, balance="cost")
    assert names(choice) == ["b", "a"]
    assert "no price is known" in choice.why


def test_the_gateways_own_region_comes_first_and_the_others_after_it() -> None:
    us, eu = candidate("us", region="us"), candidate("eu", region="eu")
    choice = chosen(A, us, eu, home="eu")
    assert names(choice) == ["eu", "a", "us"]
    assert choice.why.endswith("of those in the region eu")
    assert names(chosen(A, us, eu)) == ["a", "us", "eu"]
    assert names(chosen(A, us, home="eu")) == ["a", "us"]


def test_the_calls_own_regions_come_in_its_order_wherever_the_gateway_is() -> None:
    us, eu = candidate("us", region="us"), candidate("eu", region="eu")
    assert names(chosen(A, us, eu, needs=Needs(regions=("eu", "us")), home="us")) == ["eu", "us"]


def test_weight_0_is_last_even_at_home() -> None:
    reserve = candidate("home", region="eu", weight=0)
    for seed in range(20):
        choice = chosen(reserve, A, B, balance="weighted", home="eu", seed=seed)
        assert names(choice)[-1] == "home"
        assert "region" not in choice.why


def shares(counted: Counter[str], weights: Mapping[str, float]) -> float:
    """Chi-square of counts against weights."""
    total, whole = counted.total(), sum(weights.values())
    return sum(
        (counted[name] - total * weight / whole) ** 2 / (total * weight / whole) for name, weight in weights.items()
    )


def test_weights_are_kept() -> None:
    weights = {"a": 5.0, "b": 3.0, "c": 1.5, "d": 0.5}
    route = [candidate(name, weight=weight) for name, weight in weights.items()]
    firsts = Counter(names(chosen(*route, balance="weighted", seed=seed))[0] for seed in range(8000))
    # three degrees of freedom: above 16.3 once in a thousand; the seeds are fixed
    assert shares(firsts, weights) < 16.3


def test_the_second_is_drawn_by_weight_among_those_that_are_left() -> None:
    route = [candidate("a", weight=6), candidate("b", weight=3), candidate("c", weight=1)]
    orders = [names(chosen(*route, balance="weighted", seed=seed)) for seed in range(8000)]
    seconds = Counter(order[1] for order in orders if order[0] == "a")
    # one degree of freedom
    assert shares(seconds, {"b": 3, "c": 1}) < 10.8


def test_the_reason_names_the_drawn_target_and_its_weight() -> None:
    choice = chosen(candidate("a", weight=0), candidate("b", weight=2.5), balance="weighted")
    assert choice.why == "weighted: drew vendor/b (weight 2.5 of 2.5)"
    assert names(choice) == ["b", "a"]


def test_only_weights_of_0_left_are_tried_all_the_same() -> None:
    choice = chosen(candidate("a", weight=0), candidate("b", weight=0), candidate("c"), balance="weighted",
                    standing={"c": OPEN})  # fmt: skip
    assert names(choice) == ["a", "b"]
    assert choice.why == "weighted: only targets of weight 0 are left"


def test_two_choices_never_take_the_slowest_and_send_most_to_the_fastest() -> None:
    standing = {
        "a": Standing(first_token=0.2, duration=1),
        "b": Standing(first_token=0.4, duration=2),
        "c": Standing(first_token=4, duration=20),
    }
    firsts = Counter(names(chosen(A, B, C, balance="latency", standing=standing, seed=seed))[0] for seed in range(3000))
    # of three pairs the fastest wins two, the middle one the third
    assert firsts["c"] == 0
    assert shares(firsts, {"a": 2, "b": 1}) < 10.8


def test_calls_under_way_count_against_a_fast_target() -> None:
    standing = {"a": Standing(first_token=0.2, duration=1, running=9), "b": Standing(first_token=0.4, duration=2)}
    choice = chosen(A, B, balance="latency", standing=standing)
    assert names(choice) == ["b", "a"]
    assert choice.why == "latency: 2.40 s against 12.00 s of vendor/a"


def test_an_unknown_target_gets_one_call_at_once_and_no_more() -> None:
    slow = Standing(first_token=5, duration=50, running=3)
    unknown = chosen(A, B, balance="latency", standing={"a": slow})
    assert names(unknown) == ["b", "a"]
    assert "not yet known" in unknown.why
    assert names(chosen(A, B, balance="latency", standing={"a": slow, "b": Standing(running=1)})) == ["a", "b"]


def test_among_unknown_targets_the_one_with_fewer_calls_is_taken() -> None:
    standing = {"a": Standing(running=3), "b": Standing(running=2)}
    assert names(chosen(A, B, balance="latency", standing=standing)) == ["b", "a"]


# -- whatever comes ------------------------------------------------------------------------------------------------

seconds = st.none() | st.floats(0, 100)
standings = st.builds(
    Standing,
    state=st.sampled_from(["closed", "open", "half_open"]),
    free_at=st.none() | st.floats(NOW - 100, NOW + 100),
    first_token=seconds,
    duration=seconds,
    running=st.integers(0, 4),
)
abilities = st.sampled_from([True, False, None])
cans = st.builds(Can, tools=abilities, images=abilities, context=st.none() | st.integers(1, 5000))
candidates = st.builds(
    Candidate,
    target=st.builds(Target, st.just("vendor"), st.sampled_from("abcdef")),
    timeouts=st.just(Timeouts()),
    weight=st.sampled_from([0, 0.5, 1, 7]),
    region=st.sampled_from([None, "eu", "us"]),
    max_parallel=st.none() | st.integers(1, 3),
    can=cans,
)
routes = st.lists(candidates, max_size=6, unique_by=lambda each: each.target)
everything = st.builds(
    Needs,
    tools=st.booleans(),
    images=st.booleans(),
    prompt_tokens=st.integers(0, 5000),
    regions=st.sampled_from([(), ("eu",), ("us", "eu")]),
)


@given(
    routes,
    everything,
    st.sampled_from(BALANCES),
    st.fixed_dictionaries(dict.fromkeys("abcdef", standings)),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10**12)),
    st.sampled_from([None, "eu"]),
    st.integers(0, 2**32),
)
def test_every_target_is_either_tried_or_skipped_with_a_reason_and_none_that_may_not(
    route: list[Candidate],
    needs: Needs,
    balance: Balance,
    standing: dict[str, Standing],
    prices: dict[str, int],
    home: str | None,
    seed: int,
) -> None:
    def choice() -> Choice:
        return chosen(*route, needs=needs, balance=balance, standing=standing, seed=seed, prices=prices, home=home)

    made = choice()
    tried, left = [each.target for each in made.candidates], [each.target for each in made.skipped]
    assert sorted(map(str, tried + left)) == sorted(str(each.target) for each in route)
    assert all(each.why for each in made.skipped)
    assert made.why

    def may(each: Candidate) -> bool:
        """Written anew, without the words."""
        can, stands = each.can, standing[each.target.model]
        short = can.context is not None and needs.prompt_tokens * 0.8 > can.context
        lacking = (can.tools is False and needs.tools) or (can.images is False and needs.images) or short
        elsewhere = bool(needs.regions) and each.region not in needs.regions
        full = each.max_parallel is not None and stands.running >= each.max_parallel
        return not lacking and not elsewhere and not full

    def rests(each: Candidate) -> bool:
        stands = standing[each.target.model]
        return stands.free_at > NOW if stands.free_at is not None else stands.state == "open"

    assert all(may(each) for each in made.candidates)
    well = [each for each in route if may(each) and not rests(each)]
    if well:
        assert set(tried) == {each.target for each in well}
    else:
        assert len(tried) <= 1
    assert choice() == made, "the same dice give the same order"
    if balance == "weighted":
        weights = [each.weight == 0 for each in made.candidates]
        assert weights == sorted(weights)
