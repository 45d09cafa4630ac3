"""States of experiments: the last word of any process, and a number that says when to look."""

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from router.experiment import ExperimentState
from router.store.experiment_states import AllStates, KeptState, all_states, change_state, states_number
from router.store.store import Store


def stop(arm: str) -> Callable[[ExperimentState], ExperimentState]:
    return lambda state: replace(state, stopped=tuple(dict.fromkeys([*state.stopped, arm])))


async def test_a_change_is_counted_and_seen_by_all(store: Store) -> None:
    assert await states_number(store) == 0
    assert await all_states(store) == AllStates(0, {})
    kept = await change_state(store, "trial", stop("qwen"), {"qwen": {"metric": "errors"}}, 7)
    assert kept == KeptState(ExperimentState(("qwen",), None, 1), {"qwen": {"metric": "errors"}}, 7)
    adapted = {"control": 30.5, "qwen": 69.5}
    other = await change_state(store, "other", lambda state: replace(state, shares=adapted), {"shares": "Thompson"}, 8)
    assert other == KeptState(ExperimentState((), adapted, 2), {"shares": "Thompson"}, 8)
    assert await all_states(store) == AllStates(2, {"trial": kept, "other": other})
    again = await change_state(store, "trial", lambda state: replace(state, stopped=()), {"qwen": "an admin"}, 9)
    assert again == KeptState(ExperimentState((), None, 3), {"qwen": "an admin"}, 9)
    assert await states_number(store) == 3


async def test_what_changes_nothing_is_not_counted(store: Store) -> None:
    await change_state(store, "trial", stop("qwen"), {"qwen": "first"}, 7)
    before = await all_states(store)
    assert await change_state(store, "trial", stop("qwen"), {"qwen": "second"}, 8) is None
    assert await change_state(store, "other", lambda state: state, {}, 8) is None
    assert await all_states(store) == before


async def test_changes_at_once_lose_nothing(store: Store) -> None:
    arms = [f"arm{n}" for n in range(8)]
    await asyncio.gather(*(change_state(store, "trial", stop(arm), {arm: "worse"}, 1) for arm in arms))
    found = await all_states(store)
    assert set(found.states["trial"].state.stopped) == set(found.states["trial"].why) == set(arms)
    assert found.number == found.states["trial"].state.revision == 8
