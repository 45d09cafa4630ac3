"""What holds for every cache of answers, wherever it keeps them."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from state.backends import Clock, redis_of_its_own, redis_server, until

from router.cache.entry import CacheStore, Entry, NoCache
from router.cache.machine_cache import FILE, MachineCache
from router.cache.memory_cache import MemoryCache
from router.cache.shelf import Shelf, ShelfAway
from router.cache.steady import SteadyCache
from router.events import (
    BlockSigned,
    ChoiceFinished,
    Completed,
    Event,
    Extended,
    Extra,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from router.state.caches import cache_beside
from router.state.redis import Redis
from router.state.redis_cache import RedisCache

EXTRA = Extra("openai", {"system_fingerprint": "fp_1"}, {"logprobs": {"content": [1, 2.5, None]}}, {"a": "ü"}, True)
EVERY_EVENT: tuple[Event, ...] = (
    Started("id-1", "model-1", 1_700_000_000, EXTRA),
    ReasoningDelta(0, 0, "hm", "summary", 1, EXTRA),
    BlockSigned(0, 0, "c2VhbA==", "encrypted"),
    TextDelta(0, 1, "he\u0000llo \U0001f600", EXTRA),
    RefusalDelta(0, 2, "no"),
    ToolCallStarted(0, 3, "call_1", "f", "custom", EXTRA),
    ToolCallDelta(0, 3, '{"a":'),
    Extended(EXTRA, 0, 4),
    ChoiceFinished(0, "stop", "end_turn", "###", EXTRA),
    UsageReported(Usage(input=3, output=4, source="estimated", untold=("prompt",), extra=EXTRA)),
    Completed(EXTRA),
)
ROOM: dict[str, Any] = {"most": 1 << 20, "room": 1 << 24}
Views = Callable[[], Awaitable[CacheStore]]


def an_entry(text: str = "hello", owner: str = "dw-a", call: str = "req_1") -> Entry:
    return Entry(events=(TextDelta(0, 0, text), Completed()), created_at=1_000, owner=owner, call=call)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(
    params=["memory", "machine", pytest.param("redis", marks=pytest.mark.needs("redis"))],
)
async def view(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Views]:
    """The cache as one more process sees it; in memory always the same."""
    opened: list[SteadyCache] = []
    async with contextlib.AsyncExitStack() as stack:
        memory = MemoryCache(clock)
        another = await stack.enter_async_context(redis_of_its_own()) if request.param == "redis" else None

        async def shelf() -> Shelf:
            if request.param == "memory":
                return memory
            if another is None:
                return MachineCache(tmp_path / FILE, clock)
            return RedisCache(await another(), lambda: int(clock() * 1_000_000))

        async def viewed() -> CacheStore:
            opened.append(SteadyCache(await shelf()))
            return opened[-1]

        yield viewed
        for each in opened:
            await each.close()


async def test_what_was_put_is_found_as_it_was(view: Views) -> None:
    cache = await view()
    entry = Entry(
        events=EVERY_EVENT,
        created_at=1_794_830_400_123,
        owner="dw-ü",
        call="req_9",
        target="openai/gpt-5",
        cost="0.000000001 USD",
        dropped=("seed",),
    )
    await cache.put("k1", entry, 60, **ROOM)
    assert await cache.get("k1") == entry
    assert await (await view()).get("k1") == entry


async def test_what_was_never_put_is_not_found(view: Views) -> None:
    cache = await view()
    assert await cache.get("k1") is None
    await cache.remove("k1")
    assert await cache.clear() == 0
    assert await cache.clear("dw-a") == 0


async def test_a_later_entry_takes_the_place_of_an_earlier(view: Views) -> None:
    cache = await view()
    await cache.put("k1", an_entry("one"), 60, **ROOM)
    await cache.put("k1", an_entry("two"), 60, **ROOM)
    assert await cache.get("k1") == an_entry("two")
    assert await cache.clear() == 1


async def test_an_entry_is_gone_when_its_time_is_over(view: Views, clock: Clock) -> None:
    cache = await view()
    await cache.put("k1", an_entry(), 10, **ROOM)
    await cache.put("k2", an_entry(), 20, **ROOM)
    clock.advance(9.9)
    assert await cache.get("k1") is not None
    clock.advance(0.2)
    assert await cache.get("k1") is None
    assert await cache.get("k2") is not None
    # what is over is not counted among what is removed
    assert await cache.clear() == 1


async def test_a_removed_entry_is_gone_for_everybody(view: Views) -> None:
    one, other = await view(), await view()
    await one.put("k1", an_entry(), 60, **ROOM)
    await one.put("k2", an_entry(), 60, **ROOM)
    await other.remove("k1")
    assert await one.get("k1") is None
    assert await one.get("k2") is not None


async def test_an_owners_entries_go_and_no_others(view: Views) -> None:
    cache = await view()
    owners = ("dw-a", "dw-a b", "", "dw-é")
    for number, owner in enumerate(owners):
        for each in range(3):
            await cache.put(f"k{number}{each}", an_entry(owner=owner), 60, **ROOM)
    for number, owner in enumerate(owners):
        assert await cache.get(f"k{number}0") is not None
        assert await cache.clear(owner) == 3
        assert await cache.get(f"k{number}0") is None
    assert await cache.clear() == 0


async def test_all_go_however_many_there_are(view: Views) -> None:
    cache = await view()
    for number in range(1_100):
        await cache.put(f"k{number}", an_entry(), 60, **ROOM)
    assert await cache.clear() == 1_100
    assert await cache.get("k7") is None
    # and there is room again
    await cache.put("k7", an_entry(), 60, most=4096, room=4096)
    assert await cache.get("k7") is not None


async def test_entries_make_room_and_the_newest_stays(view: Views, clock: Clock) -> None:
    cache = await view()
    kept: dict[str, Any] = {"most": 100_000, "room": 20_000}
    for number in range(20):
        clock.advance(0.001)
        await cache.put(f"k{number}", an_entry("x" * 3_000), 60, **kept)
    found = [number for number in range(20) if await cache.get(f"k{number}") is not None]
    # with what each takes beside its data
    assert found == list(range(15, 20))


async def test_what_is_too_large_is_not_kept_and_moves_nobody(view: Views) -> None:
    cache = await view()
    await cache.put("small", an_entry(), 60, most=1_000, room=10_000)
    await cache.put("large", an_entry("x" * 2_000), 60, most=1_000, room=10_000)
    await cache.put("larger", an_entry("x" * 20_000), 60, most=100_000, room=10_000)
    assert await cache.get("large") is None
    assert await cache.get("larger") is None
    assert await cache.get("small") is not None


async def test_what_cannot_be_written_is_not_kept(view: Views) -> None:
    cache = await view()
    entry = Entry(events=(Extended(Extra("x", {"a": object()})),), created_at=0, owner="", call="c")
    await cache.put("k1", entry, 60, **ROOM)
    assert await cache.get("k1") is None


async def test_what_another_version_wrote_is_not_found(tmp_path: Path) -> None:
    shelf = MemoryCache()
    await shelf.put("k1", "dw-a", b'{"events":[{"type":"hologram"}],"created_at":1}', 60, 10_000)
    assert await SteadyCache(shelf).get("k1") is None


async def test_many_at_once_keep_within_the_room(view: Views) -> None:
    caches = [await view() for _ in range(3)]

    async def busy(cache: CacheStore, name: int) -> None:
        for number in range(30):
            await cache.put(f"k{name}-{number}", an_entry("x" * 500), 60, most=10_000, room=20_000)
            await cache.get(f"k{(name + 1) % 3}-{number}")

    await asyncio.gather(*[busy(cache, name) for name, cache in enumerate(caches)])
    found = await caches[0].clear()
    assert found is not None
    assert 0 < found <= 20_000 // 1_000


# -- away --------------------------------------------------------------------------------------------------------------


class Broken:
    """A shelf that is away for as long as it is told."""

    def __init__(self) -> None:
        self.away = True
        self.asked = 0

    async def _ask(self) -> Any:
        self.asked += 1
        if self.away:
            raise ShelfAway("it is gone")

    async def close(self) -> None:
        return None

    async def get(self, key: str) -> bytes | None:
        await self._ask()
        return None

    async def put(self, key: str, owner: str, data: bytes, ttl: float, room: int) -> None:
        await self._ask()

    async def remove(self, key: str) -> None:
        await self._ask()

    async def clear(self, owner: str | None) -> int:
        await self._ask()
        return 3


async def test_a_cache_that_is_away_has_nothing_and_says_so_once() -> None:
    shelf = Broken()
    with structlog.testing.capture_logs() as logs:
        cache = SteadyCache(shelf)
        for _ in range(5):
            assert await cache.get("k1") is None
            await cache.put("k1", an_entry(), 60, **ROOM)
            await cache.remove("k1")
        # and it is not asked by every call
        assert shelf.asked == 1
        # who wants it emptied wants to know
        assert await cache.clear() is None
        shelf.away = False
        assert await cache.clear() == 3
        assert await cache.get("k1") is None
    assert [line["event"] for line in logs] == ["the cache is away: calls go to the vendors", "the cache is back"]


async def test_a_cache_that_does_not_answer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = MemoryCache()

    async def never(key: str) -> bytes | None:
        await asyncio.Event().wait()
        return None

    monkeypatch.setattr(shelf, "get", never)
    monkeypatch.setattr(SteadyCache._tried, "__defaults__", (0.01,))
    assert await SteadyCache(shelf).get("k1") is None


@pytest.mark.needs("redis")
async def test_redis_may_go_and_come_back(tmp_path: Path) -> None:
    async with redis_server(tmp_path / "redis") as server:
        redis = Redis(server.url, pause=0.02)
        await redis.open()
        cache = SteadyCache(RedisCache(redis))
        try:
            await cache.put("k1", an_entry(), 60, **ROOM)
            assert await cache.get("k1") == an_entry()
            server.kill()
            assert await cache.get("k1") is None
            assert await cache.clear() is None
            await server.start()
            await until(lambda: redis.away is None)
            assert await cache.clear() == 0
            await cache.put("k1", an_entry(), 60, **ROOM)
            assert await cache.get("k1") == an_entry()
        finally:
            await redis.close()


def files_of(directory: Path) -> list[Path]:
    return list(directory.glob(f"{FILE}*"))


# -- the file ----------------------------------------------------------------------------------------------------------


async def test_the_file_is_made_when_it_is_needed_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    cache = cache_beside(object(), tmp_path)
    assert await cache.clear() == 0
    assert not (tmp_path / FILE).exists()
    await cache.put("k1", an_entry(), 60, **ROOM)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    await cache.close()


@pytest.mark.parametrize("found", [b"no database at all" * 100, b"", "another's"])
async def test_a_file_of_no_use_is_made_anew(tmp_path: Path, found: bytes | str) -> None:
    path = tmp_path / FILE
    if isinstance(found, bytes):
        path.write_bytes(found)
    else:
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE entries (a)")
            other.commit()
    cache = SteadyCache(MachineCache(path))
    await cache.put("k1", an_entry(), 60, **ROOM)
    assert await cache.get("k1") == an_entry()
    await cache.close()


async def test_a_file_that_is_removed_is_made_anew(tmp_path: Path) -> None:
    cache = SteadyCache(MachineCache(tmp_path / FILE))
    await cache.put("k1", an_entry(), 60, **ROOM)
    for each in files_of(tmp_path):
        each.unlink()
    assert await cache.get("k1") is None
    await cache.put("k1", an_entry(), 60, **ROOM)
    assert await cache.get("k1") == an_entry()
    await cache.close()


async def test_a_directory_in_the_files_place_is_a_cache_that_is_away(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    cache = SteadyCache(MachineCache(tmp_path / FILE))
    assert await cache.get("k1") is None
    assert await cache.clear() is None
    await cache.close()


async def test_nothing_of_a_removed_answer_is_left_in_the_file(tmp_path: Path) -> None:
    cache = SteadyCache(MachineCache(tmp_path / FILE))
    secret = "the-secret-" * 200
    await cache.put("k1", an_entry(secret), 60, **ROOM)
    assert any(b"the-secret-" in each.read_bytes() for each in files_of(tmp_path))
    assert await cache.clear("dw-a") == 1
    assert not any(b"the-secret-" in each.read_bytes() for each in files_of(tmp_path))
    await cache.close()


async def test_a_file_outlives_its_process(tmp_path: Path) -> None:
    first = SteadyCache(MachineCache(tmp_path / FILE))
    await first.put("k1", an_entry(), 60, **ROOM)
    await first.close()
    second = SteadyCache(MachineCache(tmp_path / FILE))
    assert await second.get("k1") == an_entry()
    await second.close()


async def test_no_cache_keeps_nothing() -> None:
    cache = NoCache()
    await cache.put("k1", an_entry(), 60, **ROOM)
    await cache.remove("k1")
    assert await cache.get("k1") is None
    assert await cache.clear() == 0
