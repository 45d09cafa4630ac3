"""What processes tell each other of breakers and keys: what one finds out the others know, and nothing outlives its
time."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from router.accounts import Account
from router.errors import VendorFailed
from router.health import Ended, key_id
from router.provider import Target
from router.route import HealthRules
from router.routing.health_book import HealthBook, Told
from router.settings import SharedUrl
from router.state.machine_health import MachineHealth
from router.state.redis import Redis
from router.state.redis_health import RedisHealth
from router.state.shared import State, shared_state
from router.state.shared_health import KEPT, MOST, HealthAway, HealthLink, SharedHealth
from router.store.store import Store
from support.stores import empty_store
from tests.state.backends import (
    Clock,
    a_machine,
    alone,
    machine,
    redis,
    redis_of_its_own,
    redis_server,
    same_currency,
    until,
)

TARGET, OTHER = Target("acme", "large/v2"), Target("acme", "small")
KEY = key_id("acme", "secret")
each_backend = pytest.mark.parametrize("backend", [machine, alone, redis])


class Process:
    """One process: its book, and how it speaks to the others."""

    def __init__(self, book: HealthBook, link: HealthLink) -> None:
        self.book = book
        self.shared = SharedHealth(book, link)
        book.on_told = lambda: None

    async def exchange(self) -> None:
        await self.shared.exchange()
        assert self.shared.trouble is None

    def fails(self, target: Target = TARGET) -> None:
        for _ in range(5):
            self.book.begin(target)
            self.book.end(Ended(target, VendorFailed("no"), False, None, 0.0))
        assert self.book.standing(target).state == "open"

    def answers(self, target: Target = TARGET) -> None:
        self.book.begin(target)
        self.book.end(Ended(target, None, True, 0.0, 0.0))
        assert self.book.standing(target).state == "closed"

    def sees(self, target: Target = TARGET) -> str:
        return self.book.standing(target).state


class House:
    """`process` gives one more process."""

    def __init__(self, clock: Clock, process: Callable[[str], Awaitable[Process]]) -> None:
        self.clock = clock
        self.process = process


@contextlib.asynccontextmanager
async def house(backend: str, directory: Path) -> AsyncIterator[House]:
    clock = Clock()

    def book(owner: str) -> HealthBook:
        return HealthBook(HealthRules(), clock, random.Random(owner))

    async with contextlib.AsyncExitStack() as stack:
        if backend == "redis":
            another = await stack.enter_async_context(redis_of_its_own())

            async def process(owner: str) -> Process:
                known = book(owner)
                return Process(known, RedisHealth(await another(), known, owner, clock))
        else:
            if backend == "machine":
                await a_machine(stack, directory)

            async def process(owner: str) -> Process:
                known, link = book(owner), await a_machine(stack, directory)
                return Process(known, MachineHealth(link, known, owner, clock))

        yield House(clock, process)


@pytest.fixture
async def shared(backend: str, tmp_path: Path) -> AsyncIterator[House]:
    async with house(backend, tmp_path) as found:
        yield found


@each_backend
async def test_an_opening_and_a_closing_are_known_to_all(shared: House) -> None:
    one, two = await shared.process("one"), await shared.process("two")
    one.fails()
    await one.exchange()
    await two.exchange()
    assert (two.sees(), two.sees(OTHER)) == ("open", "closed")
    shown = two.book.shown(TARGET)
    assert shown is not None
    assert shown.why == "5 failures in a row"
    two.answers()
    await two.exchange()
    await one.exchange()
    assert one.sees() == "closed"


@each_backend
async def test_a_dead_key_and_its_reset_are_known_to_all(shared: House) -> None:
    one, two = await shared.process("one"), await shared.process("two")
    one.book.rest_key("acme", KEY, "quota")
    await one.exchange()
    shared.clock.advance(100)
    await two.exchange()
    assert two.book.tells("acme", KEY) == "quota"
    assert two.book.key_free_at("acme", KEY) == pytest.approx(shared.clock() + 500, abs=0.001)
    assert two.book.reset("acme") == 1
    await two.exchange()
    await one.exchange()
    assert one.book.key_free_at("acme", KEY) is None


@each_backend
async def test_a_process_that_comes_later_hears_what_rests(shared: House) -> None:
    one = await shared.process("one")
    one.fails()
    one.book.rest_key("acme", KEY, "invalid")
    await one.exchange()
    late = await shared.process("late")
    await late.exchange()
    assert late.sees() == "open"
    assert late.book.tells("acme", KEY) == "invalid"


@each_backend
async def test_a_rest_that_is_over_is_not_heard_of(shared: House) -> None:
    one = await shared.process("one")
    one.fails()
    one.book.rest_key("acme", KEY, "invalid")
    await one.exchange()
    shared.clock.advance(30)
    late = await shared.process("late")
    await late.exchange()
    assert late.book.shown(TARGET) is None
    assert late.book.tells("acme", KEY) == "invalid"
    shared.clock.advance(600)
    later = await shared.process("later")
    await later.exchange()
    assert later.book.tells("acme", KEY) is None


@each_backend
async def test_what_was_heard_once_is_not_heard_again(shared: House) -> None:
    one, two = await shared.process("one"), await shared.process("two")
    one.fails()
    await one.exchange()
    await two.exchange()
    two.book.on_told = None
    two.answers()
    await two.exchange()
    assert two.sees() == "closed"


@each_backend
async def test_of_two_words_on_one_breaker_the_last_counts(shared: House) -> None:
    one, two, three = [await shared.process(name) for name in ("one", "two", "three")]
    one.fails()
    await one.exchange()
    one.answers()
    two.fails()
    await one.exchange()
    await two.exchange()
    await three.exchange()
    await one.exchange()
    assert [each.sees() for each in (one, two, three)] == ["open", "open", "open"]


@each_backend
async def test_nobody_speaks_of_more_than_a_bound(shared: House) -> None:
    one, two = await shared.process("one"), await shared.process("two")
    await one.exchange()
    told = [Told("rests", "acme", f"key{n}", 100, "invalid") for n in range(MOST + 10)]
    await one.shared._link.exchange(told)
    heard = await two.shared._link.exchange([])
    assert {each.name for each in heard} == {f"key{n}" for n in range(10, MOST + 10)}


@each_backend
async def test_words_of_another_version_are_passed_over(
    shared: House, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    one, two = await shared.process("one"), await shared.process("two")
    where = f"router.state.{'redis' if backend == 'redis' else 'machine'}_health.written"
    with monkeypatch.context() as patched:
        patched.setattr(where, lambda told: b'{"change": "explodes"}')
        one.fails()
        await one.exchange()
    one.fails(OTHER)
    await one.exchange()
    await two.exchange()
    assert (two.sees(), two.sees(OTHER)) == ("closed", "open")


@each_backend
async def test_what_could_not_be_told_is_told_later(shared: House, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await shared.process("one"), await shared.process("two")
    one.fails()

    async def away(told: object) -> list[Told]:
        raise HealthAway("it is away")

    with monkeypatch.context() as patched:
        patched.setattr(one.shared._link, "exchange", away)
        await one.shared.exchange()
    assert one.shared.trouble == "it is away"
    assert one.sees() == "open"
    await one.exchange()
    await two.exchange()
    assert two.sees() == "open"


# -- the file of one machine ---------------------------------------------------------------------------------------


async def test_the_file_holds_nothing_for_longer_than_it_is_needed(tmp_path: Path) -> None:
    def rows() -> int:
        with contextlib.closing(sqlite3.connect(tmp_path / "shared.db")) as connection:
            count: int = connection.execute("SELECT count(*) FROM health").fetchone()[0]
            return count

    async with house("machine", tmp_path) as shared:
        one = await shared.process("one")
        one.fails()
        one.answers()
        one.fails(OTHER)
        await one.exchange()
        assert rows() == 2
        shared.clock.advance(KEPT + 1)
        one.book.rest_key("acme", KEY, "quota")
        await one.exchange()
        assert rows() == 1


async def test_a_machine_that_was_alone_again_goes_on_telling(tmp_path: Path) -> None:
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:
        first = await a_machine(stack, tmp_path)
        known = HealthBook(HealthRules(), clock, random.Random(1))
        one = Process(known, MachineHealth(first, known, "one", clock))
        for name in ("two", "three"):
            async with contextlib.AsyncExitStack() as inner:
                book = HealthBook(HealthRules(), clock, random.Random(2))
                other = Process(book, MachineHealth(await a_machine(inner, tmp_path), book, name, clock))
                await one.exchange()
                other.fails()
                await other.exchange()
                await one.exchange()
                assert one.sees() == "open"
                one.answers()
                await one.exchange()
                await other.exchange()
                assert other.sees() == "closed"
            await until(lambda: first.alone)


# -- Redis ---------------------------------------------------------------------------------------------------------


@pytest.mark.needs("redis")
async def test_redis_keeps_nothing_for_longer_than_it_is_needed() -> None:
    import redis.asyncio

    async with redis_of_its_own() as another:
        clock = Clock()
        book = HealthBook(HealthRules(), clock, random.Random(1))
        one = Process(book, RedisHealth(await another(), book, "one", clock))
        one.fails()
        book.rest_key("acme", KEY, "quota")
        await one.exchange()
        async with redis.asyncio.Redis.from_url("redis://127.0.0.1:6379/0", protocol=2) as client:
            prefix = another.prefix  # type: ignore[attr-defined]
            left = {key: await client.pttl(key) async for key in client.scan_iter(f"{{{prefix}}}:*health*")}
    assert len(left) == 2
    assert all(590_000 < milliseconds <= 600_000 for milliseconds in left.values())


@pytest.mark.needs("redis")
@pytest.mark.parametrize("how", ["restarted", "emptied"])
async def test_a_redis_that_lost_everything_is_told_anew(tmp_path: Path, how: str) -> None:
    async with redis_server(tmp_path / "redis") as server, contextlib.AsyncExitStack() as stack:
        clock = Clock()

        async def process(owner: str) -> tuple[Redis, Process]:
            link = Redis(server.url, pause=0.05)
            await link.open()
            stack.push_async_callback(link.close)
            book = HealthBook(HealthRules(), clock, random.Random(owner))
            return link, Process(book, RedisHealth(link, book, owner, clock))

        (first, one), (second, two) = await process("one"), await process("two")
        one.fails()
        await one.exchange()
        await two.exchange()
        if how == "restarted":
            server.kill()
            for each in (one, two):
                await each.shared.exchange()
                assert each.shared.trouble is not None
            assert (one.sees(), two.sees()) == ("open", "open")
            await server.start()
        else:
            import redis.asyncio

            async with redis.asyncio.Redis.from_url(server.url, protocol=2) as client:
                await client.flushall()
            for each in (one, two):
                await each.shared.exchange()
        await until(lambda: first.away is None and second.away is None)
        two.fails(OTHER)
        await one.exchange()
        await two.exchange()
        await one.exchange()
        _, late = await process("late")
        await late.exchange()
        assert (late.sees(), late.sees(OTHER)) == ("open", "open")
        assert one.sees(OTHER) == "open"


# -- as the configuration says ---------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with empty_store("sqlite", tmp_path) as store:
        yield store


def state_at(shared: str, directory: Path, store: Store, owner: str) -> State:
    async def opening(account: Account) -> int:
        return 0

    return shared_state(SharedUrl.parse(shared), directory, owner, store, opening, same_currency)


def ruin(book: HealthBook, target: Target) -> None:
    for _ in range(5):
        book.begin(target)
        book.end(Ended(target, VendorFailed("no"), False, None, 0.0))


async def test_in_memory_each_process_goes_by_what_it_sees(tmp_path: Path, store: Store) -> None:
    async with state_at("memory", tmp_path, store, "one") as one, state_at("memory", tmp_path, store, "two") as two:
        assert one.shared_health is None
        ruin(one.health, TARGET)
        assert two.health.standing(TARGET).state == "closed"


@pytest.mark.parametrize("shared", ["auto", pytest.param("redis", marks=pytest.mark.needs("redis"))])
async def test_processes_that_share_state_know_soon_without_being_asked(
    tmp_path: Path, store: Store, shared: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if shared == "redis":
            shared = (await stack.enter_async_context(redis_server(tmp_path / "redis"))).url
        one, two = [await stack.enter_async_context(state_at(shared, tmp_path, store, name)) for name in ("one", "two")]
        await asyncio.sleep(0)
        ruin(one.health, TARGET)
        two.health.rest_key("acme", KEY, "invalid")
        await until(lambda: two.health.standing(TARGET).state == "open", 10)
        await until(lambda: one.health.tells("acme", KEY) == "invalid", 10)
        one.health.reset("acme")
        await until(lambda: two.health.standing(TARGET).state == "closed", 10)
        await until(lambda: two.health.tells("acme", KEY) is None, 10)


@pytest.mark.needs("redis")
async def test_without_redis_each_process_goes_on_alone(tmp_path: Path, store: Store) -> None:
    async with redis_server(tmp_path / "redis") as server, state_at(server.url, tmp_path, store, "one") as one:
        assert one.shared_health is not None
        server.kill()
        ruin(one.health, TARGET)
        assert one.health.standing(TARGET).state == "open"
        await until(lambda: one.shared_health.trouble is not None)
        await server.start()
        async with state_at(server.url, tmp_path, store, "two") as two:
            await until(lambda: two.health.standing(TARGET).state == "open")
        assert one.shared_health.trouble is None
