"""The stream log in Redis: how long keys stay, and what happens when it is away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from state.backends import REDIS, Clock, redis_of_its_own, redis_server

from router.settings import SharedUrl, Streams
from router.state.redis import Redis, RedisAway, Script
from router.state.redis_log import RedisLog
from router.state.stream_logs import stream_log
from router.streams.log import Appended, LogAway, StreamHead
from router.streams.machine_log import MachineLog
from router.streams.memory_log import MemoryLog

ID = "strm_01M82WFKZC2FRMZ0AEN3SQ0GRC"
WRITER = "jrn_a"
KEEP = 600.0

pytestmark = pytest.mark.needs("redis")


def head(stream: str = ID) -> StreamHead:
    return StreamHead(
        id=stream, owner="", writer=WRITER, request_id="req_1", dialect="openai.chat", model="m", created_at=1
    )


def block(text: object) -> bytes:
    return f"data: {text}\n\n".encode()


class Place:
    def __init__(self, another: Callable[[], Awaitable[Redis]], prefix: str, client: Any) -> None:
        self.another = another
        self._prefix = prefix
        self._client = client

    async def ttls(self) -> dict[str, float]:
        """Seconds that keys have left, by the name of what they are; without what all share."""
        found = {}
        async for key in self._client.scan_iter(f"{{{self._prefix}}}:*"):
            name = key.decode().split(":")[2]
            found[name] = await self._client.pttl(key) / 1000
        return found


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    import redis.asyncio

    async with redis_of_its_own() as another, redis.asyncio.Redis.from_url(REDIS, protocol=2) as client:
        yield Place(another, another.prefix, client)  # type: ignore[attr-defined]


async def test_every_key_goes_by_itself(place: Place) -> None:
    log = RedisLog(await place.another(), KEEP, 1 << 20)
    await log.claim("", "k", ID, "f")
    await log.begin(head())
    await log.append(WRITER, [Appended(ID, 1, (block(1), block(2)))])
    await log.stop(ID)
    await log.read(ID, 0)
    ttls = await place.ttls()
    assert set(ttls) == {"stream", "blocks", "claims", "claim", "seen", "open", "stopped", "read"}
    assert all(KEEP <= ttl <= KEEP * 2 + 86400 + 240 for ttl in ttls.values()), ttls
    await log.append(WRITER, [Appended(ID, 3, (), "finished")])
    ttls = await place.ttls()
    assert set(ttls) == {"stream", "blocks", "claims", "claim", "seen"}
    assert KEEP - 5 < ttls["blocks"] <= KEEP
    assert KEEP - 5 < ttls["claim"] <= KEEP
    assert KEEP + 86400 - 5 < ttls["stream"] <= KEEP + 86400
    await log.remove(ID)
    assert set(await place.ttls()) == {"seen"}


async def test_what_an_open_stream_has_is_renewed_while_its_writer_lives(place: Place) -> None:
    clock = Clock()
    redis = await place.another()
    log = RedisLog(redis, 100, 1 << 20, lambda: int(clock() * 1_000_000))
    await log.claim("", "k", ID, "f")
    await log.begin(head())
    await log.append(WRITER, [Appended(ID, 1, (block(1),))])
    # as if most of the time had gone by
    aged = Script(
        "for _, name in ipairs({'stream:', 'blocks:', 'claims:'}) do "
        "redis.call('PEXPIRE', root .. name .. ARGV[2], 5000) end"
    )
    await redis.run(aged, "", ID)
    clock.advance(59)
    await log.append(WRITER, [])
    assert (await place.ttls())["blocks"] <= 5
    clock.advance(2)
    await log.append(WRITER, [])
    ttls = await place.ttls()
    assert min(ttls[name] for name in ("stream", "blocks", "claims", "claim")) > 100


async def test_what_redis_evicted_by_itself_is_told_as_evicted(place: Place) -> None:
    redis = await place.another()
    log = RedisLog(redis, KEEP, 1 << 20)
    await log.begin(head())
    await log.append(WRITER, [Appended(ID, 1, (block(1), block(2)))])
    await redis.run(Script("redis.call('DEL', root .. 'blocks:' .. ARGV[2])"), "", ID)
    found = await log.read(ID, 0)
    assert found is not None
    assert (found.first, found.blocks, found.begins, found.last) == (3, (), 3, 2)
    await log.append(WRITER, [Appended(ID, 3, (block(3),))])
    found = await log.read(ID, 0)
    assert found is not None
    assert (found.first, found.blocks, found.begins, found.last) == (3, (block(3),), 3, 3)


async def test_while_redis_is_away_every_call_says_so(tmp_path: Path) -> None:
    async with redis_server(tmp_path / "redis") as server:
        redis = Redis(server.url)
        await redis.open()
        try:
            log = RedisLog(redis, KEEP, 1 << 20)
            await log.begin(head())
            server.kill()
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: log.begin(head()),
                lambda: log.append(WRITER, [Appended(ID, 1, (block(1),))]),
                lambda: log.append(WRITER, []),
                lambda: log.read(ID, 0),
                lambda: log.living(WRITER),
                lambda: log.seal(ID, block("end"), "interrupted"),
                lambda: log.stop(ID),
                lambda: log.claim("", "k", ID, "f"),
                lambda: log.release("", "k", ID),
                lambda: log.remove(ID),
            ]
            for call in calls:
                with pytest.raises(LogAway, match="Redis"):
                    await call()
        finally:
            await redis.close()


class Deaf(Redis):
    """The answer of the next script is lost."""

    deaf = False

    async def run(self, script: Script, *arguments: str | int | float) -> Any:
        answer = await super().run(script, *arguments)
        if self.deaf:
            self.deaf = False
            raise RedisAway("the connection was lost", sent=True)
        return answer


async def test_a_claim_whose_answer_was_lost_is_free_again(place: Place) -> None:
    plain = await place.another()
    redis = Deaf(REDIS, plain.root[1:-1])
    await redis.open()
    try:
        log = RedisLog(redis, KEEP, 1 << 20)
        redis.deaf = True
        with pytest.raises(LogAway):
            await log.claim("", "k", ID, "f")
        assert (await log.claim("", "k", "strm_other", "g")).fresh
        claiming = asyncio.create_task(log.claim("", "second", ID, "f"))
        await asyncio.sleep(0)
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        assert (await log.claim("", "second", "strm_other", "g")).fresh
    finally:
        await redis.close()


async def test_a_batch_whose_answer_was_lost_is_tried_again_with_what_came_since(place: Place) -> None:
    plain = await place.another()
    redis = Deaf(REDIS, plain.root[1:-1])
    await redis.open()
    try:
        log = RedisLog(redis, KEEP, 1 << 20)
        await log.begin(head())
        redis.deaf = True
        with pytest.raises(LogAway):
            await log.append(WRITER, [Appended(ID, 1, (block(1), block("🦊")))])
        await log.append(WRITER, [Appended(ID, 1, (block(1), block("🦊"), block(3)), "finished")])
        found = await log.read(ID, 0)
        assert found is not None
        assert (found.blocks, found.ended) == ((block(1), block("🦊"), block(3)), "finished")
    finally:
        await redis.close()


def test_the_log_is_where_shared_says(tmp_path: Path) -> None:
    settings = Streams()
    assert isinstance(stream_log(SharedUrl.parse("memory"), tmp_path, settings, None), MemoryLog)
    assert isinstance(stream_log(SharedUrl.parse("auto"), tmp_path, settings, None), MachineLog)
    log = stream_log(SharedUrl.parse(REDIS), tmp_path, settings, Redis(REDIS))
    assert isinstance(log, RedisLog)
    assert (log.keep, log.limit) == (600.0, 4 * 1024 * 1024)
