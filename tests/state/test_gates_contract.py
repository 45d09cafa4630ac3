"""What holds for limits wherever they are counted."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.gates import Gates, Parallel, Passage, Rate
from router.state.memory_gates import MemoryGates
from router.state.renewing import RenewedGates
from router.state.turnstile import Turnstile
from tests.state.backends import Clock, GateHouse, alone, gate_house, machine, memory, redis


@pytest.fixture(params=[memory, alone, machine, redis])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GateHouse]:
    async with gate_house(request.param, tmp_path) as found:
        yield found


outliving = pytest.mark.parametrize("house", [alone, machine, redis], indirect=True)
"""Where gates outlive the process: in memory nothing is left of the dead."""


@pytest.fixture
async def gates(house: GateHouse) -> Gates:
    return await house.view()


async def renew(gates: Gates) -> None:
    """As each process does by itself."""
    if not isinstance(gates, MemoryGates):
        await cast(RenewedGates, gates).renew()


def rpm(limit: int = 10, cost: int = 1, key: str = "rpm:key:dw-1") -> Rate:
    return Rate(key, limit, 60.0, cost)


async def passes(gates: Gates, *rates: Rate, times: int = 1) -> int:
    """How many of so many calls in a row pass."""
    passages = [await gates.enter(f"req_{index}", rates, ()) for index in range(times)]
    return sum(passage.refused_by is None for passage in passages)


async def test_a_burst_may_be_as_large_as_the_limit_and_then_the_pace_is_even(gates: Gates, house: GateHouse) -> None:
    assert await passes(gates, rpm(10), times=15) == 10
    house.clock.advance(5.9)
    assert await passes(gates, rpm(10)) == 0
    house.clock.advance(0.2)
    assert await passes(gates, rpm(10), times=3) == 1
    house.clock.advance(3600)
    assert await passes(gates, rpm(10), times=15) == 10


async def test_who_waits_as_long_as_told_passes(gates: Gates, house: GateHouse) -> None:
    assert await passes(gates, rpm(7, cost=3), times=2) == 2
    refused = await gates.enter("req_x", [rpm(7, cost=3)], ())
    assert refused.refused_by == "rpm:key:dw-1"
    assert refused.retry_after == pytest.approx(2 * 60 / 7, abs=1e-3)
    house.clock.advance(refused.retry_after)
    assert (await gates.enter("req_x", [rpm(7, cost=3)], ())).refused_by is None


async def test_the_headers_can_say_what_is_left_and_when_all_is_again(gates: Gates, house: GateHouse) -> None:
    tpm = Rate("tpm:key:dw-1", 1000, 60.0, 250)
    places = Parallel("parallel:key:dw-1", 5)
    passage = await gates.enter("req_1", [rpm(10), tpm], [places])
    assert passage.remaining == (9, 750, 4)
    assert passage.reset_after == pytest.approx((6.0, 15.0, 0.0))
    assert (passage.refused_by, passage.retry_after) == (None, 0.0)
    house.clock.advance(3.0)
    passage = await gates.enter("req_2", [rpm(10), tpm], [places])
    assert passage.remaining == (8, 550, 3)
    assert passage.reset_after == pytest.approx((9.0, 27.0, 0.0))


async def test_a_refusal_takes_nothing_anywhere(gates: Gates) -> None:
    wide, narrow, places = rpm(10), rpm(1, key="rpm:team:a"), Parallel("parallel:key:dw-1", 1)
    assert (await gates.enter("req_1", [wide, narrow], [places])).refused_by is None
    by_rate = await gates.enter("req_2", [wide, narrow], [])
    assert by_rate.refused_by == "rpm:team:a"
    assert by_rate.remaining == (9, 0)
    by_place = await gates.enter("req_2", [wide], [places])
    assert by_place.refused_by == "parallel:key:dw-1"
    assert by_place.retry_after > 0
    assert by_place.remaining == (9, 0)
    await gates.leave("req_2", [Rate(wide.key, 10, 60.0, -5)])
    assert (await gates.enter("req_3", [wide], [])).remaining == (8,)


async def test_the_gate_to_wait_for_longest_is_the_one_that_refused(gates: Gates) -> None:
    slow, quick = Rate("slow", 1, 3600.0), Rate("quick", 1, 60.0)
    await gates.enter("req_1", [quick, slow], ())
    passage = await gates.enter("req_2", [quick, slow], ())
    assert passage.refused_by == "slow"
    assert passage.retry_after == pytest.approx(3600.0)


async def test_a_cost_over_the_limit_passes_only_when_nothing_is_taken(gates: Gates, house: GateHouse) -> None:
    assert (await gates.enter("req_1", [rpm(10, cost=25)], ())).remaining == (0,)
    refused = await gates.enter("req_2", [rpm(10, cost=25)], ())
    assert refused.retry_after == pytest.approx(150.0)
    # a small one waits until the large one has run off far enough
    assert (await gates.enter("req_2", [rpm(10)], ())).retry_after == pytest.approx(96.0)
    house.clock.advance(150.0)
    assert (await gates.enter("req_3", [rpm(10, cost=25)], ())).refused_by is None


async def test_places_are_given_back_once_however_often_a_call_leaves(gates: Gates) -> None:
    places = [Parallel("parallel:key:dw-1", 2), Parallel("parallel:team:a", 3)]
    assert (await gates.enter("req_1", (), places)).remaining == (1, 2)
    assert (await gates.enter("req_2", (), places)).remaining == (0, 1)
    assert (await gates.enter("req_3", (), places)).refused_by == "parallel:key:dw-1"
    for _ in range(3):
        await gates.leave("req_1")
    assert (await gates.enter("req_3", (), places)).remaining == (0, 1)
    assert (await gates.enter("req_4", (), places)).refused_by == "parallel:key:dw-1"


async def test_a_call_that_enters_again_keeps_its_place(gates: Gates) -> None:
    places = [Parallel("parallel:key:dw-1", 1)]
    assert (await gates.enter("req_1", (), places)).remaining == (0,)
    assert (await gates.enter("req_1", (), places)).refused_by is None
    await gates.leave("req_1")
    assert (await gates.enter("req_2", (), places)).refused_by is None


async def test_a_correction_spends_or_gives_back_once(gates: Gates) -> None:
    await gates.enter("req_1", [rpm(10, cost=4)], ())
    await gates.leave("req_1", [rpm(10, cost=3)])
    await gates.leave("req_1", [rpm(10, cost=3)])
    assert (await gates.enter("req_2", [rpm(10, cost=0)], ())).remaining == (3,)
    await gates.leave("req_2", [rpm(10, cost=-2)])
    assert (await gates.enter("req_3", [rpm(10, cost=0)], ())).remaining == (5,)
    # never more than all
    await gates.leave("req_3", [rpm(10, cost=-100)])
    assert await passes(gates, rpm(10), times=15) == 10


async def test_a_correction_never_waits_and_is_waited_for(gates: Gates, house: GateHouse) -> None:
    await gates.enter("req_1", [rpm(10, cost=10)], ())
    await gates.leave("req_1", [rpm(10, cost=20)])
    passage = await gates.enter("req_2", [rpm(10)], ())
    assert passage.remaining == (0,)
    assert passage.retry_after == pytest.approx(21 * 6.0)
    assert passage.reset_after == pytest.approx((30 * 6.0,))


async def test_a_call_that_never_entered_cannot_leave(gates: Gates) -> None:
    await gates.enter("req_1", [rpm(10)], [Parallel("p", 1)])
    await gates.leave("req_2", [rpm(10, cost=-1)])
    assert (await gates.enter("req_3", [rpm(10, cost=0)], [Parallel("p", 1)])).refused_by == "p"
    assert (await gates.enter("req_3", [rpm(10, cost=0)], [])).remaining == (9,)


@outliving
async def test_a_place_of_a_call_that_never_leaves_falls_free(gates: Gates, house: GateHouse) -> None:
    places = [Parallel("parallel:key:dw-1", 1)]
    await gates.enter("req_1", (), places)
    house.clock.advance(3590)
    assert (await gates.enter("req_2", (), places)).refused_by is not None
    house.clock.advance(20)
    assert (await gates.enter("req_2", (), places)).refused_by is None
    # its place is another's now
    await gates.leave("req_1")
    assert (await gates.enter("req_3", (), places)).refused_by is not None


async def test_a_call_keeps_its_place_and_its_correction_for_as_long_as_it_runs(gates: Gates, house: GateHouse) -> None:
    places = [Parallel("parallel:key:dw-1", 1)]
    await gates.enter("req_1", [Rate("tpm:key:dw-1", 1000, 60.0, 10)], places)
    for _ in range(30):
        house.clock.advance(3000)
        await renew(gates)
        assert (await gates.enter("req_2", (), places)).refused_by == "parallel:key:dw-1"
    await gates.leave("req_1", [Rate("tpm:key:dw-1", 1000, 60.0, 990)])
    passage = await gates.enter("req_2", [Rate("tpm:key:dw-1", 1000, 60.0, 0)], places)
    assert (passage.refused_by, passage.remaining) == (None, (10, 0))


@outliving
async def test_what_a_process_held_falls_free_when_it_speaks_no_more(house: GateHouse) -> None:
    dead, alive = await house.view(), await house.view()
    places = [Parallel("parallel:key:dw-1", 2)]
    await dead.enter("req_1", (), places)
    await alive.enter("req_2", (), places)
    house.clock.advance(3000)
    await renew(alive)
    assert (await alive.enter("req_3", (), places)).refused_by is not None
    house.clock.advance(1000)
    await renew(alive)
    assert (await alive.enter("req_3", (), places)).remaining == (0,)
    assert (await alive.enter("req_4", (), places)).refused_by is not None


@outliving
async def test_a_call_that_has_left_is_not_renewed(gates: Gates, house: GateHouse) -> None:
    places = [Parallel("parallel:key:dw-1", 1)]
    await gates.enter("req_1", (), places)
    await gates.leave("req_1")
    await renew(gates)
    assert (await gates.enter("req_2", (), places)).refused_by is None


@outliving
async def test_a_call_that_was_refused_is_not_renewed(house: GateHouse) -> None:
    one, two = await house.view(), await house.view()
    places = [Parallel("parallel:key:dw-1", 1)]
    await one.enter("req_1", (), places)
    assert (await two.enter("req_1b", (), places)).refused_by is not None
    house.clock.advance(3590)
    await renew(two)
    house.clock.advance(20)
    assert (await two.enter("req_2", (), places)).refused_by is None


@outliving
async def test_more_calls_are_renewed_than_go_into_one_script(gates: Gates, house: GateHouse) -> None:
    places = [Parallel("parallel:key:dw-1", 450)]
    await asyncio.gather(*(gates.enter(f"req_{index}", (), places) for index in range(450)))
    house.clock.advance(3000)
    await renew(gates)
    house.clock.advance(1000)
    assert (await gates.enter("req_x", (), places)).refused_by is not None


async def test_a_limit_that_is_raised_lets_more_pass_at_once(gates: Gates) -> None:
    assert await passes(gates, rpm(5), times=10) == 5
    assert await passes(gates, rpm(20), times=20) == 15


async def test_names_may_hold_any_text(gates: Gates) -> None:
    name = 'rpm:user:"ü"\n\\ {x} %s 名'
    places = [Parallel(name, 1)]
    assert (await gates.enter("req_1", [rpm(1, key=name)], places)).refused_by is None
    assert (await gates.enter("req_2", [rpm(1, key=name)], ())).refused_by == name
    await gates.leave("req_1")
    assert (await gates.enter("req_3", (), places)).refused_by is None


async def test_a_hundred_at_once_get_what_there_is_and_no_more(house: GateHouse) -> None:
    views = [await house.view() for _ in range(4)]
    rates, places = [rpm(30)], [Parallel("parallel:key:dw-1", 10)]
    passages = await asyncio.gather(*(views[n % 4].enter(f"req_{n}", rates, places) for n in range(100)))
    assert sum(passage.refused_by is None for passage in passages) == 10
    await asyncio.gather(*(views[n % 3].leave(f"req_{n}") for n in range(100)))
    again = await asyncio.gather(*(views[n % 4].enter(f"req_b{n}", rates, places) for n in range(100)))
    assert sum(passage.refused_by is None for passage in again) == 10
    assert {passage.remaining[0] for passage in passages + again} == set(range(10, 30))


# -- properties ------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.floats(0, 90, allow_nan=False), st.integers(0, 12), st.integers(-12, 12)), min_size=1, max_size=60
)


@given(STEPS, st.integers(1, 10), st.floats(1, 120))
async def test_no_window_lets_more_pass_than_a_burst_and_the_pace(
    steps: list[tuple[float, int, int]], limit: int, period: float
) -> None:
    clock = Clock(0.0)
    gates = MemoryGates(clock)
    passed: list[tuple[float, int]] = []
    for index, (pause, cost, _) in enumerate(steps):
        clock.advance(pause)
        rate = Rate("k", limit, period, min(cost, limit))
        if (await gates.enter(f"req_{index}", [rate], ())).refused_by is None:
            passed.append((clock.now, rate.cost))
    for first, (begin, _) in enumerate(passed):
        units = 0
        for end, cost in passed[first:]:
            units += cost
            assert units <= limit + limit * (end - begin) / period + 0.01


def _alike(one: Passage, other: Passage) -> bool:
    return (
        one.refused_by == other.refused_by
        and math.isclose(one.retry_after, other.retry_after, abs_tol=1e-3)
        and all(map(lambda a, b: math.isclose(a, b, abs_tol=1e-3), one.reset_after, other.reset_after))
        and all(abs(a - b) <= 1 for a, b in zip(one.remaining, other.remaining, strict=True))
    )


@pytest.mark.parametrize("backend", [alone, machine, redis])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40).map(lambda quarters: quarters / 4),
            st.sampled_from(["enter", "leave"]),
            st.integers(0, 5),
            st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 12)), max_size=2, unique_by=lambda r: r[0]),
            st.sets(st.sampled_from("xy")),
        ),
        max_size=30,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_shared_limits_do_as_those_in_memory(
    backend: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    # who is inside Redis forgets by its own time, not by ours: there nobody expires
    expiry = 3600.0 if backend == "redis" else 30.0
    async with gate_house(backend, tmp_path_factory.mktemp("gates"), expiry) as house:
        shared, model = [await house.view(), await house.view()], Turnstile(house.clock, expiry)
        for index, (pause, kind, call, costs, places) in enumerate(steps):
            house.clock.advance(pause)
            rates = [Rate(key, 8, 4.0, cost) for key, cost in costs]
            gates = shared[index % 2]
            if kind == "enter":
                parallels = [Parallel(key, 2) for key in sorted(places)]
                got = await gates.enter(f"req_{call}", rates, parallels)
                assert _alike(got, model.enter(f"req_{call}", rates, parallels)), got
            else:
                await gates.leave(f"req_{call}", rates)
                model.leave(f"req_{call}", rates)
