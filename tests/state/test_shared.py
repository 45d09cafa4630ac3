"""The state as the configuration names it, from its beginning to its end."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router.accounts import Account, AccountsAway, Hold, Standing
from router.gates import Gates, GatesAway, Parallel
from router.settings import SharedUrl
from router.state.machine_gates import MachineGates
from router.state.memory_gates import MemoryGates
from router.state.redis_gates import RedisGates
from router.state.shared import State, StateUnavailable, shared_state
from router.store.spending import spent
from router.store.store import Store
from support.stores import empty_store
from tests.state.backends import an_account, record, redis_server, same_currency, until

KEY = an_account()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with empty_store("sqlite", tmp_path) as store:
        yield store


def state_at(shared: str, directory: Path, store: Store, owner: str = "journal-1") -> State:
    async def opening(account: Account) -> int:
        return (await spent(store, account, same_currency)).nano

    return shared_state(SharedUrl.parse(shared), directory, owner, store, opening, same_currency)


async def counts(state: State) -> None:
    """What was spent before is known, and what happens now is counted."""
    assert await state.accounts.reserve("req_1", [Hold(KEY, 100, 30)]) is None
    assert await state.accounts.standings([KEY]) == [Standing(KEY, 7, 30)]
    await state.accounts.settle("req_1", {KEY: 3})
    assert await state.accounts.standings([KEY]) == [Standing(KEY, 10, 0)]
    assert (await state.gates.enter("req_1", [], [Parallel("p", 1)])).refused_by is None
    assert (await state.gates.enter("req_2", [], [Parallel("p", 1)])).refused_by == "p"
    assert state.trouble is None


@pytest.mark.parametrize(("shared", "kind"), [("memory", MemoryGates), ("auto", MachineGates)])
async def test_without_a_service_it_counts_in_memory_or_in_a_file(
    store: Store, tmp_path: Path, shared: str, kind: type
) -> None:
    await record(store, "req_0", {KEY: 7}, 1_794_830_400_000)
    directory = tmp_path / "deltaway.journal"
    state = state_at(shared, directory, store)
    assert isinstance(state.gates, kind)
    async with state:
        await counts(state)
    assert directory.exists() == (shared == "auto")


async def test_the_processes_of_one_machine_share_it(store: Store, tmp_path: Path) -> None:
    async with state_at("auto", tmp_path, store) as one, state_at("auto", tmp_path, store, "journal-2") as two:
        await one.gates.enter("req_1", [], [Parallel("p", 1)])
        assert (await two.gates.enter("req_2", [], [Parallel("p", 1)])).refused_by == "p"
        await one.accounts.reserve("req_1", [Hold(KEY, 100, 30)])
        assert await two.accounts.standings([KEY]) == [Standing(KEY, 0, 30)]


@pytest.mark.parametrize("shared", ["auto", pytest.param("redis", marks=pytest.mark.needs("redis"))])
async def test_calls_that_run_are_renewed_until_the_state_is_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: str
) -> None:
    renewed: list[Gates] = []

    async def note(gates: Gates) -> None:
        renewed.append(gates)
        # this one failed, and the next one is made all the same
        raise GatesAway("away")

    monkeypatch.setattr("router.state.renewing.INTERVAL", 0.001)
    for kind in (MachineGates, RedisGates):
        monkeypatch.setattr(kind, "renew", note)
    async with contextlib.AsyncExitStack() as stack:
        if shared == "redis":
            shared = (await stack.enter_async_context(redis_server(tmp_path / "redis"))).url
        async with state_at(shared, tmp_path, store) as state:
            await until(lambda: len(renewed) > 1)
            assert {*renewed} == {state.gates}
        assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.needs("redis")
async def test_redis_may_come_late_and_go_early(store: Store, tmp_path: Path) -> None:
    await record(store, "req_0", {KEY: 7}, 1_794_830_400_000)
    async with redis_server(tmp_path / "redis") as server:
        server.kill()
        state = state_at(server.url, tmp_path, store)
        assert isinstance(state.gates, RedisGates)
        async with state:
            assert state.trouble is not None
            with pytest.raises(GatesAway):
                await state.gates.enter("req_1", [], [])
            assert await state.accounts.reserve("req_x", [Hold(KEY, 100, 50)]) is None
            await server.start()
            # nobody asks for anything meanwhile
            await until(lambda: state.trouble is None)
            await state.accounts.settle("req_x", {})
            await counts(state)
            server.kill()
            with contextlib.suppress(GatesAway):
                await state.gates.enter("req_1", [], [])
            await until(lambda: state.trouble is not None)


async def test_a_store_that_is_away_when_an_account_is_opened_is_told(store: Store, tmp_path: Path) -> None:
    async with state_at("auto", tmp_path, store) as state:
        await store.close()
        with pytest.raises(AccountsAway):
            await state.accounts.reserve("req_1", [Hold(KEY, 100, 30)])
        await store.open()
        assert await state.accounts.reserve("req_1", [Hold(KEY, 100, 30)]) is None


async def test_what_cannot_be_used_is_told_at_the_start(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnavailable, match="cannot be opened"):
        async with state_at("auto", tmp_path / "file", store):
            pass
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(StateUnavailable, match=r"deltaway\[redis\]"):
        async with state_at("redis://127.0.0.1:6379/0", tmp_path, store):
            pass
