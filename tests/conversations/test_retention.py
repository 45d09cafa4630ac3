"""What keeps conversations in order: removal by age, answers that dead processes left, a store that is away."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from router.conversations import retention
from router.conversations.retention import Retention
from router.store import conversations as kept
from router.store.items import Removed
from router.store.store import Store, StoreAway
from support.kept import conversation, draft, said
from support.stores import BACKENDS, Backend, empty_store

HOUR = 3600.0


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    backend: Backend = request.param
    async with empty_store(backend, tmp_path) as opened:
        yield opened


def now() -> int:
    return int(time.time() * 1000)


async def filled(store: Store, name: str, hours_ago: float) -> None:
    at = now() - int(hours_ago * HOUR * 1000)
    made = conversation(name, created_at=at, updated_at=at)
    await kept.create(store, made, [said("msg_1", name, at)])


async def left(store: Store) -> set[str]:
    return {each.id for each in (await kept.listed(store, owner=None)).conversations}


class Forgotten:
    def __init__(self) -> None:
        self.all: list[Removed] = []

    async def __call__(self, removed: Removed) -> None:
        self.all.append(removed)


async def test_what_was_not_changed_for_longer_than_it_is_kept_is_removed_and_forgotten(store: Store) -> None:
    for number in range(3):
        await filled(store, f"old{number}", 3 + number)
    await filled(store, "young", 1)
    await kept.save(store, [draft("m", "x", "completed", conversation="conv_old0", created_at=1, stream="strm_7")])
    forgotten = Forgotten()
    await Retention(store, lambda: 2 * HOUR, forgotten).round()
    assert await left(store) == {"conv_young"}
    assert {each.conversation: each.streams for each in forgotten.all} == {
        "conv_old0": ("strm_7",),
        "conv_old1": (),
        "conv_old2": (),
    }


async def test_what_was_said_in_it_lately_keeps_it(store: Store) -> None:
    await filled(store, "a", 5)
    await kept.add(store, "conv_a", [said("msg_2", "again")], at=now())
    await Retention(store, lambda: 2 * HOUR, Forgotten()).round()
    assert await left(store) == {"conv_a"}


async def test_one_in_which_a_call_is_writing_stays(store: Store) -> None:
    await filled(store, "a", 5)
    assert await kept.take(store, "conv_a", call="req_1", writer="w", at=now(), until=now() + 10_000)
    sweeping = Retention(store, lambda: 2 * HOUR, Forgotten())
    await sweeping.round()
    assert await left(store) == {"conv_a"}
    await kept.release(store, "conv_a", call="req_1")
    await sweeping.round()
    assert await left(store) == set()


async def test_without_a_setting_all_is_kept_and_a_new_setting_holds_from_the_next_round_on(store: Store) -> None:
    await filled(store, "a", 10_000)
    keep: list[float | None] = [None]
    sweeping = Retention(store, lambda: keep[0], Forgotten())
    await sweeping.round()
    assert await left(store) == {"conv_a"}
    keep[0] = HOUR
    await sweeping.round()
    assert await left(store) == set()


async def test_more_than_are_removed_at_once_are_removed_in_one_round(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    for number in range(5):
        await filled(store, f"{number}", 5)
    forgotten = Forgotten()
    await Retention(store, lambda: HOUR, forgotten).round()
    assert (await left(store), len(forgotten.all)) == (set(), 5)


async def test_an_answer_whose_process_died_becomes_incomplete(store: Store) -> None:
    await filled(store, "a", 0)
    await kept.take(store, "conv_a", call="req_1", writer="w", at=1, until=2)
    await kept.save(store, [draft("m", "half of")])
    await Retention(store, lambda: None, Forgotten()).round()
    found = await kept.item(store, "conv_a", "m")
    assert found is not None
    assert (found.status, found.message.content) == ("incomplete", "half of")


async def test_a_store_that_is_away_is_said_and_the_next_round_comes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_FIRST", 0.0)
    monkeypatch.setattr(retention, "EVERY", 0.01)
    failures: list[Exception] = [StoreAway("it is away"), TypeError("a fault")]
    done = asyncio.Event()

    class Failing(Retention):
        async def round(self) -> None:
            if failures:
                raise failures.pop(0)
            await super().round()
            done.set()

    await filled(store, "a", 5)
    with capture_logs() as lines:
        async with Failing(store, lambda: HOUR, Forgotten()).lifespan(), asyncio.timeout(5):
            await done.wait()
    assert await left(store) == set()
    assert [(line["log_level"], line["event"]) for line in lines][:2] == [
        ("warning", "what is kept could not be put in order"),
        ("error", "what is kept could not be put in order by a fault of ours"),
    ]
