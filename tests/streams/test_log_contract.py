"""What holds for every stream log, wherever it keeps them."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from state.backends import Clock, redis_of_its_own

from router.call import Outcome
from router.state.redis_log import RedisLog
from router.streams.log import DEAD, Appended, StreamHead, StreamLog, Stretch
from router.streams.machine_log import FILE, MachineLog
from router.streams.memory_log import MemoryLog
from router.streams.rows import rows_of

ID = "strm_01M82WFKZC2FRMZ0AEN3SQ0GRC"
OTHER = "strm_01M82WFKZC2FRMZ0AEN3SQ0GRD"
WRITER, READER = "jrn_a", "jrn_b"
KEEP = 600.0
DAY = 86400.0
BEYOND = 2**53


def head(stream: str = ID, writer: str = WRITER) -> StreamHead:
    return StreamHead(
        id=stream,
        owner="dw-ü",
        writer=writer,
        request_id="req_1",
        dialect="openai.chat",
        model="m",
        created_at=1_794_830_400_123,
        headers={"x-deltaway-target": "mock/echo"},
        conversation="conv_1",
    )


def block(text: object) -> bytes:
    return f"data: {text}\n\n".encode()


def blocks(first: int, last: int) -> tuple[bytes, ...]:
    return tuple(block(number) for number in range(first, last + 1))


class House:
    """`view` gives the log as one more process sees it; in memory always the same."""

    def __init__(self, clock: Clock, view: Callable[[int], Awaitable[StreamLog]]) -> None:
        self.clock = clock
        self._view = view

    async def view(self, limit: int = 1 << 20) -> StreamLog:
        return await self._view(limit)


@contextlib.asynccontextmanager
async def house_of(kind: str, directory: Path) -> AsyncIterator[House]:
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:
        memory: list[MemoryLog] = []
        another = await stack.enter_async_context(redis_of_its_own()) if kind == "redis" else None

        async def view(limit: int) -> StreamLog:
            log: StreamLog
            if kind == "memory":
                log = memory[0] if memory else MemoryLog(KEEP, limit, clock)
                memory.append(log)
            elif another is None:
                log = MachineLog(directory / FILE, KEEP, limit, clock)
            else:
                log = RedisLog(await another(), KEEP, limit, lambda: int(clock() * 1_000_000))
            await stack.enter_async_context(log.lifespan())
            return log

        yield House(clock, view)


@pytest.fixture(params=["memory", "machine", pytest.param("redis", marks=pytest.mark.needs("redis"))])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    async with house_of(request.param, tmp_path) as found:
        yield found


async def begun(house: House, *streams: str, limit: int = 1 << 20) -> StreamLog:
    log = await house.view(limit)
    for stream in streams or (ID,):
        await log.begin(head(stream))
    return log


async def add(
    log: StreamLog, first: int, added: Sequence[bytes] = (), ended: Outcome | None = None, writer: str = WRITER
) -> frozenset[str]:
    """The lost."""
    return (await log.append(writer, [Appended(ID, first, tuple(added), ended)])).lost


async def got(log: StreamLog, after: int = 0, stream: str = ID, limit: int = 1 << 24) -> Stretch:
    found = await log.read(stream, after, limit)
    assert found is not None
    return found


async def all_of(log: StreamLog) -> tuple[bytes, ...]:
    return (await got(log)).blocks


# -- beginning, appending --------------------------------------------------------------------------------------------


async def test_a_stream_that_nobody_began_is_not_known(house: House) -> None:
    log = await house.view()
    assert await log.read(ID, 0) is None
    assert await add(log, 1, blocks(1, 1)) == {ID}
    assert await log.read(ID, 0) is None
    for change in (log.stop(ID), log.remove(ID), log.seal(ID, block("end"), "interrupted")):
        await change
    assert await log.read(ID, 0) is None
    assert not await log.living("jrn_nobody")


async def test_a_stream_begins_without_blocks_and_its_head_is_told_as_it_was(house: House) -> None:
    log = await begun(house)
    assert await got(log) == Stretch(head(), 1, (), 1, 0, None)
    assert await got(log, BEYOND) == Stretch(head(), 1, (), 1, 0, None)


async def test_beginning_again_changes_nothing(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 2), "finished")
    await log.begin(head(writer=READER))
    assert await got(log) == Stretch(head(), 1, blocks(1, 2), 1, 2, "finished")


async def test_blocks_are_numbered_without_a_gap(house: House) -> None:
    log = await begun(house)
    for first, last in ((1, 1), (2, 5), (6, 6), (7, 30)):
        assert await add(log, first, blocks(first, last)) == set()
    for after in range(31):
        found = await got(log, after)
        assert (found.first, found.blocks) == (after + 1, blocks(after + 1, 30))
        assert (found.begins, found.last, found.ended) == (1, 30, None)


async def test_a_batch_tried_again_adds_nothing_twice(house: House) -> None:
    log = await begun(house)
    for _ in range(3):
        assert await add(log, 1, blocks(1, 4)) == set()
    for _ in range(2):
        assert await add(log, 5, blocks(5, 6), "cut") == set()
    assert await got(log) == Stretch(head(), 1, blocks(1, 6), 1, 6, "cut")


async def test_of_a_batch_that_overlaps_what_is_there_only_the_rest_is_added(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 4))
    assert await add(log, 3, blocks(3, 7)) == set()
    assert await add(log, 1, blocks(1, 8)) == set()
    assert await add(log, 2, blocks(2, 3)) == set()
    found = await got(log)
    assert (found.blocks, found.last) == (blocks(1, 8), 8)
    assert (await got(log, 5)).blocks == blocks(6, 8)


async def test_what_was_lost_between_two_batches_is_taken_as_evicted(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 4))
    assert await add(log, 8, blocks(8, 9)) == set()
    found = await got(log)
    assert (found.first, found.blocks, found.begins, found.last) == (8, blocks(8, 9), 8, 9)
    assert await add(log, 10, blocks(10, 10)) == set()
    assert (await got(log, 9)).blocks == blocks(10, 10)


async def test_blocks_may_be_lost_without_any_that_follow(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 4))
    await add(log, 8, (), "cut")
    found = await got(log)
    assert (found.first, found.blocks, found.begins, found.last, found.ended) == (8, (), 8, 7, "cut")


async def test_several_streams_are_added_to_in_one_go(house: House) -> None:
    log = await begun(house, ID, OTHER)
    batch = [
        Appended(ID, 1, blocks(1, 3)),
        Appended(OTHER, 1, (block("other"),), "stopped"),
        Appended("strm_unknown", 1, blocks(1, 1)),
    ]
    assert (await log.append(WRITER, batch)).lost == {"strm_unknown"}
    assert await all_of(log) == blocks(1, 3)
    found = await got(log, stream=OTHER)
    assert (found.blocks, found.ended) == ((block("other"),), "stopped")
    assert (await log.append(WRITER, [])).lost == set()


async def test_a_batch_of_many_streams_and_bytes_arrives_whole(house: House) -> None:
    log = await house.view(1 << 24)
    names = [f"strm_{number}" for number in range(40)]
    for name in names:
        await log.begin(head(name))
    # half a MiB of small blocks, and one of 10 MiB or so together
    small = tuple(block("x" * 900) for _ in range(500))
    batch = [Appended(name, 1, small if name == names[0] else (block("y" * 200_000),), "finished") for name in names]
    for _ in range(2):
        assert (await log.append(WRITER, batch)).lost == set()
    assert (await got(log, stream=names[0])).blocks == small
    for name in names[1:]:
        found = await got(log, stream=name)
        assert (found.last, found.blocks, found.ended) == (1, (block("y" * 200_000),), "finished")


async def test_blocks_come_back_as_they_were(house: House) -> None:
    log = await begun(house, limit=1 << 23)
    said = (
        block("🦊 ünïcödé 漢字 \u2028 \x00 \\n 'quoted' \"twice\" %s $1 {}"),
        block("x" * (1 << 20)),
        block("🦊" * (1 << 18)),
        b"event: a\ndata: b\ndata: c\n\n",
        b": comment\n\n",
        block(""),
    )
    await add(log, 1, said[:1])
    await add(log, 2, said[1:])
    assert await all_of(log) == said
    for after in range(len(said)):
        assert (await got(log, after)).blocks == said[after:]


async def test_two_processes_see_each_others_appends(house: House) -> None:
    one = await begun(house)
    other = await house.view()
    await other.begin(head(OTHER, READER))
    await add(one, 1, blocks(1, 2))
    assert await all_of(other) == blocks(1, 2)
    await other.append(READER, [Appended(OTHER, 1, blocks(1, 3), "failed")])
    found = await got(one, stream=OTHER)
    assert (found.blocks, found.ended, found.head.writer) == (blocks(1, 3), "failed", READER)
    await add(one, 3, blocks(3, 3))
    assert (await got(other, 2)).blocks == blocks(3, 3)


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_reading_beyond_the_end_gives_nothing_and_says_where_the_end_is(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 5), "finished")
    for after in (5, 6, 99, BEYOND):
        assert await got(log, after) == Stretch(head(), 6, (), 1, 5, "finished")


async def test_a_read_gives_as_many_bytes_as_are_asked_for_but_one_block_at_least(house: House) -> None:
    log = await begun(house)
    size = len(block("x" * 100))
    await add(log, 1, [block("x" * 100)] * 10)
    for _ in range(10, 13):
        await add(log, 11, [block("x" * 1000)])
    for limit, count in ((0, 1), (1, 1), (size, 1), (size * 2 - 1, 1), (size * 2, 2), (size * 7 + 3, 7)):
        assert len((await got(log, 0, limit=limit)).blocks) == count, limit
        assert len((await got(log, 2, limit=limit)).blocks) == count, limit
    found = await got(log, 10, limit=5)
    assert (found.first, found.blocks) == (11, (block("x" * 1000),))
    read: list[bytes] = []
    while True:
        stretch = await got(log, len(read), limit=350)
        assert stretch.first == len(read) + 1
        if not stretch.blocks:
            break
        read += stretch.blocks
    assert tuple(read) == await all_of(log)


async def test_what_is_not_asked_for_takes_no_room_in_a_read(house: House) -> None:
    log = await begun(house)
    size = len(block(100))
    await add(log, 1, blocks(100, 109))
    await add(log, 11, blocks(110, 119))
    for after in (1, 5, 8, 9, 10):
        for count in (1, 2, 5, 10):
            found = await got(log, after, limit=size * count)
            assert found.blocks == blocks(100 + after, 99 + after + count), (after, count)


async def test_when_it_was_read_is_told_to_its_writer_until_it_ends(house: House) -> None:
    log = await begun(house, ID, OTHER)
    other = await house.view()
    assert (await log.append(WRITER, [])).read_at == {}
    await got(other)
    first = int(house.clock() * 1000)
    assert (await log.append(WRITER, [])).read_at == {ID: first}
    house.clock.advance(1)
    assert (await log.append(WRITER, [])).read_at == {ID: first}
    await got(other, BEYOND)
    await got(other, 0, OTHER)
    assert (await log.append(WRITER, [])).read_at == {ID: first + 1000, OTHER: first + 1000}
    assert (await other.append(READER, [])).read_at == {}
    await add(log, 1, (), "finished")
    await got(other)
    assert (await log.append(WRITER, [])).read_at == {OTHER: first + 1000}


# -- what is evicted -------------------------------------------------------------------------------------------------


async def test_the_oldest_blocks_go_first_and_what_is_gone_is_told(house: House) -> None:
    size = len(block(100))
    log = await begun(house, limit=size * 10)
    for number in range(100, 150):
        assert await add(log, number - 99, [block(number)]) == set()
        found = await got(log)
        begins = max(1, number - 99 - 9)
        assert (found.begins, found.first, found.last) == (begins, begins, number - 99)
        assert found.blocks == blocks(begins + 99, number)
    for after in (0, 17, 40):
        assert (await got(log, after)).first == 41
    assert (await got(log, 45)).blocks == blocks(145, 149)


async def test_of_a_batch_that_is_larger_than_all_that_is_kept_its_end_stays(house: House) -> None:
    size = len(block(100))
    log = await begun(house, limit=size * 10)
    await add(log, 1, blocks(100, 102))
    for _ in range(2):
        assert await add(log, 3, blocks(102, 199), "finished") == set()
    found = await got(log)
    assert (found.begins, found.last, found.ended) == (91, 100, "finished")
    assert found.blocks == blocks(190, 199)


async def test_a_single_block_larger_than_the_limit_is_kept(house: House) -> None:
    log = await begun(house, limit=1000)
    large = block("x" * 5000)
    await add(log, 1, blocks(1, 5))
    await add(log, 6, [large])
    found = await got(log)
    assert (found.begins, found.last, found.blocks) == (6, 6, (large,))
    await add(log, 7, [block(7)])
    found = await got(log)
    assert (found.begins, found.last, found.blocks) == (7, 7, (block(7),))
    await add(log, 8, [block(8), large])
    assert (await got(log)).blocks == (large,)


def test_rows_are_small_and_leave_out_what_would_be_evicted_at_once() -> None:
    rows = rows_of(5, blocks(100, 199), 1 << 20)
    assert [(row.first, row.last, row.data) for row in rows] == [(5, 104, b"".join(blocks(100, 199)))]
    rows = rows_of(5, blocks(100, 199), len(block(100)) * 16)
    assert [(row.first, row.last) for row in rows] == [(n, n + 1) for n in range(89, 104, 2)]
    assert b"".join(row.data for row in rows) == b"".join(blocks(184, 199))
    assert rows_of(1, (), 100) == []
    assert [row.first for row in rows_of(1, [b"x" * 500, b"y" * 500], 100)] == [2]


# -- ending ----------------------------------------------------------------------------------------------------------


async def test_it_ends_once_and_the_first_end_stays(house: House) -> None:
    log = await begun(house)
    assert await add(log, 1, blocks(1, 1), "stopped") == set()
    assert await add(log, 2, (), "finished") == {ID}
    await log.seal(ID, block("sealed"), "interrupted")
    found = await got(log)
    assert (found.blocks, found.ended) == (blocks(1, 1), "stopped")


async def test_what_is_appended_after_the_end_is_lost(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 2), "finished")
    assert await add(log, 3, blocks(3, 3)) == {ID}
    assert await add(log, 3, blocks(3, 3), "finished") == {ID}
    assert await add(log, 2, blocks(2, 3)) == {ID}
    assert await all_of(log) == blocks(1, 2)


async def test_what_is_appended_after_it_was_removed_is_lost(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 2))
    await (await house.view()).remove(ID)
    assert await add(log, 3, blocks(3, 3)) == {ID}
    assert await log.read(ID, 0) is None


async def test_what_another_writer_appends_is_lost(house: House) -> None:
    log = await begun(house)
    other = await house.view()
    assert await add(other, 1, blocks(1, 2), "finished", writer=READER) == {ID}
    found = await got(log)
    assert (found.blocks, found.ended) == ((), None)


async def test_two_who_seal_at_once_add_one_block_and_its_writer_adds_no_more(house: House) -> None:
    log = await begun(house)
    views = [await house.view() for _ in range(3)]
    await add(log, 1, blocks(1, 2))
    await asyncio.gather(*[view.seal(ID, block("end"), "interrupted") for view in views for _ in range(3)])
    assert await got(log) == Stretch(head(), 1, (*blocks(1, 2), block("end")), 1, 3, "interrupted")
    assert await add(log, 3, blocks(3, 3)) == {ID}
    assert await add(log, 3, (), "finished") == {ID}
    assert await add(log, 3) == {ID}
    assert (await got(log)).last == 3


# -- stopping --------------------------------------------------------------------------------------------------------


async def test_that_it_shall_stop_is_told_to_its_writer_until_it_has_ended(house: House) -> None:
    log = await begun(house, ID, OTHER)
    other = await house.view()
    assert (await log.append(WRITER, [])).stopped == set()
    await other.stop(ID)
    await other.stop(ID)
    for _ in range(2):
        assert (await log.append(WRITER, [])).stopped == {ID}
    assert (await log.append(WRITER, [Appended(ID, 1, blocks(1, 1))])).stopped == {ID}
    assert (await other.append(READER, [])).stopped == set()
    assert (await log.append(WRITER, [Appended(ID, 2, (), "stopped")])).stopped == set()
    await other.stop(ID)
    assert (await log.append(WRITER, [])).stopped == set()


async def test_a_stream_that_was_removed_is_not_told_of(house: House) -> None:
    log = await begun(house)
    await log.stop(ID)
    await got(log)
    await log.remove(ID)
    told = await log.append(WRITER, [])
    assert not told.stopped
    assert not told.read_at


# -- who lives, and what time takes ----------------------------------------------------------------------------------


async def test_a_process_lives_by_its_signs_of_life(house: House) -> None:
    log = await begun(house)
    other = await house.view()
    assert await other.living(WRITER), "it has just begun a stream"
    assert not await other.living(READER)
    house.clock.advance(DEAD - 0.1)
    assert await other.living(WRITER)
    await log.append(WRITER, [])
    house.clock.advance(DEAD - 0.1)
    assert await other.living(WRITER)
    house.clock.advance(0.2)
    assert not await other.living(WRITER)
    await log.append(WRITER, [])
    assert await other.living(WRITER)


async def test_after_its_time_it_is_known_that_there_was_one_and_later_nothing(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 3), "finished")
    house.clock.advance(KEEP - 1)
    assert await all_of(log) == blocks(1, 3)
    house.clock.advance(1)
    for after in (0, 2, 3, BEYOND):
        assert await got(log, after) == Stretch(head(), 4, (), 4, 3, "finished", expired=True)
    assert await add(log, 4, blocks(4, 4)) == {ID}
    house.clock.advance(DAY - 1)
    assert (await got(log)).expired
    house.clock.advance(1)
    assert await log.read(ID, 0) is None
    assert await add(log, 4, blocks(4, 4)) == {ID}


async def test_an_open_stream_is_kept_for_as_long_as_its_writer_lives(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 1))
    for _ in range(int(KEEP * 3 / 9)):
        house.clock.advance(9)
        await log.append(WRITER, [])
    assert await all_of(log) == blocks(1, 1)
    assert await add(log, 2, blocks(2, 2), "finished") == set()
    assert await all_of(log) == blocks(1, 2)


async def test_a_stream_whose_writer_died_counts_from_its_last_sign_of_life(house: House) -> None:
    log = await begun(house)
    other = await house.view()
    await add(log, 1, blocks(1, 2))
    house.clock.advance(5)
    await log.append(WRITER, [])
    house.clock.advance(KEEP - 1)
    assert await all_of(other) == blocks(1, 2)
    house.clock.advance(1)
    assert await got(other) == Stretch(head(), 3, (), 3, 2, None, expired=True)
    await other.seal(ID, block("end"), "interrupted")
    assert (await got(other)).blocks == ()
    assert await add(log, 3, blocks(3, 3)) == {ID}, "its time is over, also if it was only asleep"
    house.clock.advance(DAY)
    assert await other.read(ID, 0) is None


async def test_a_sealed_stream_counts_from_its_writers_last_sign_of_life(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 2))
    house.clock.advance(KEEP / 2)
    await log.seal(ID, block("end"), "interrupted")
    assert await all_of(log) == (*blocks(1, 2), block("end"))
    house.clock.advance(KEEP / 2)
    assert (await got(log)).expired


async def test_an_id_that_was_forgotten_may_begin_again(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 3), "finished")
    house.clock.advance(KEEP + DAY)
    await log.begin(head())
    assert await got(log) == Stretch(head(), 1, (), 1, 0, None)
    assert await add(log, 1, blocks(1, 1)) == set()
    await log.remove(ID)
    await log.begin(head())
    assert await got(log) == Stretch(head(), 1, (), 1, 0, None)


async def test_a_process_that_wakes_up_ends_no_stream_that_another_began_since(house: House) -> None:
    log = await begun(house)
    other = await house.view()
    house.clock.advance(KEEP + DAY)
    await other.begin(head(writer=READER))
    await log.append(WRITER, [])
    assert await add(other, 1, blocks(1, 1), writer=READER) == set()
    assert await all_of(log) == blocks(1, 1)


async def test_what_was_removed_is_gone_for_everybody(house: House) -> None:
    log = await begun(house, ID, OTHER)
    other = await house.view()
    await add(log, 1, blocks(1, 3), "finished")
    await other.remove(ID)
    await other.remove(ID)
    assert await log.read(ID, 0) is None
    assert await log.read(OTHER, 0) is not None


# -- claims ----------------------------------------------------------------------------------------------------------


async def test_the_first_claim_wins_and_its_fingerprint_is_told(house: House) -> None:
    log = await house.view()
    other = await house.view()
    first = await log.claim("dw-a", "key 🦊", ID, "f1")
    assert (first.stream, first.fingerprint, first.fresh) == (ID, "f1", True)
    second = await other.claim("dw-a", "key 🦊", OTHER, "f2")
    assert (second.stream, second.fingerprint, second.fresh) == (ID, "f1", False)
    # owners have keys of their own, and the two are not mixed up
    for owner, key in (("dw-b", "key 🦊"), ("", "dw-akey 🦊"), ("dw-ak", "ey 🦊"), ("dw-a", "key"), ("", "")):
        assert (await other.claim(owner, key, OTHER, "f2")).fresh, (owner, key)


async def test_of_many_who_claim_at_once_one_wins(house: House) -> None:
    views = [await house.view() for _ in range(4)]
    for attempt in range(5):
        claims = await asyncio.gather(
            *[
                view.claim("", f"k{attempt}", f"strm_{n}_{m}", f"{n}{m}")
                for n, view in enumerate(views)
                for m in range(5)
            ]
        )
        assert sum(claim.fresh for claim in claims) == 1
        assert len({(claim.stream, claim.fingerprint) for claim in claims}) == 1


async def test_a_claim_stays_while_its_stream_is_kept_and_goes_with_its_blocks(house: House) -> None:
    log = await house.view()
    assert (await log.claim("", "k", ID, "f")).fresh
    await log.begin(head())
    for _ in range(int(KEEP * 2 / 9)):
        house.clock.advance(9)
        await log.append(WRITER, [])
    assert not (await log.claim("", "k", OTHER, "g")).fresh
    await add(log, 1, blocks(1, 1), "finished")
    house.clock.advance(KEEP - 1)
    assert (await log.claim("", "k", OTHER, "g")).stream == ID
    house.clock.advance(1)
    assert (await log.claim("", "k", OTHER, "g")).fresh
    # the old stream is no reason to lose the new claim
    assert (await got(log)).expired
    await log.remove(ID)
    assert (await log.claim("", "k", ID, "f")).stream == OTHER


async def test_a_claim_for_a_stream_whose_blocks_are_gone_holds_nobody_back(house: House) -> None:
    log = await begun(house)
    await add(log, 1, blocks(1, 1), "finished")
    house.clock.advance(KEEP)
    assert (await log.claim("", "k", ID, "f")).fresh
    assert (await log.claim("", "k", OTHER, "g")).fresh


async def test_a_claim_whose_stream_never_began_goes_after_its_time(house: House) -> None:
    log = await house.view()
    await log.claim("", "k", ID, "f")
    house.clock.advance(KEEP - 1)
    assert (await log.claim("", "k", OTHER, "g")).stream == ID
    house.clock.advance(1)
    taken = await log.claim("", "k", OTHER, "g")
    assert (taken.stream, taken.fingerprint, taken.fresh) == (OTHER, "g", True)


async def test_a_claim_goes_when_its_stream_is_removed(house: House) -> None:
    log = await begun(house)
    await log.claim("", "k", ID, "f")
    await log.claim("", "other", OTHER, "f")
    await (await house.view()).remove(ID)
    assert (await log.claim("", "k", OTHER, "g")).fresh
    assert not (await log.claim("", "other", ID, "g")).fresh


async def test_a_claim_is_released_by_its_own_stream_alone(house: House) -> None:
    log = await house.view()
    await log.claim("", "k", ID, "f")
    await log.release("", "k", OTHER)
    await log.release("x", "k", ID)
    await log.release("", "none", ID)
    assert (await log.claim("", "k", OTHER, "g")).stream == ID
    await (await house.view()).release("", "k", ID)
    assert (await log.claim("", "k", OTHER, "g")).fresh


# -- against a model -------------------------------------------------------------------------------------------------


class Model:
    """One stream as it should be: all its blocks, and the first that may be kept."""

    def __init__(self) -> None:
        self.all: list[bytes] = []
        self.begins = 1
        self.ended: Outcome | None = None

    def append(self, first: int, added: Sequence[bytes], ended: Outcome | None) -> bool:
        if self.ended is not None:
            return first + len(added) - 1 <= len(self.all) and ended == self.ended
        if first > len(self.all) + 1:
            self.all += [b""] * (first - 1 - len(self.all))
            self.begins = first
        self.all += added[max(0, len(self.all) + 1 - first) :]
        self.ended = ended
        return True


APPENDS = st.tuples(
    st.just("append"),
    st.integers(-3, 2),
    st.lists(st.integers(0, 300), max_size=6),
    st.sampled_from([None, None, None, None, None, "finished", "cut"]),
)
READS = st.tuples(st.just("read"), st.integers(0, 30), st.integers(0, 900))
SEALS = st.tuples(st.just("seal"))
STEPS = st.lists(st.one_of(APPENDS, APPENDS, READS, READS, SEALS), max_size=25)


@pytest.mark.parametrize("kind", ["memory", "machine"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_is_done_it_is_as_the_model_says(kind: str, tmp_path: Path, steps: list[tuple[object, ...]]) -> None:
    play(kind, tmp_path, steps)


@pytest.mark.needs("redis")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_is_done_in_redis_it_is_as_the_model_says(tmp_path: Path, steps: list[tuple[object, ...]]) -> None:
    play("redis", tmp_path, steps)


def play(kind: str, tmp_path: Path, steps: list[tuple[object, ...]]) -> None:
    limit = 1000

    async def played() -> None:
        directory = tmp_path / secrets.token_hex(4)
        directory.mkdir()
        async with house_of(kind, directory) as house:
            writer, reader = await begun(house, limit=limit), await house.view(limit)
            model = Model()
            for step in steps:
                match step:
                    case ("append", int(by), list(sizes), ended):
                        first = max(1, len(model.all) + 1 + by)
                        # a block is the same whenever it is tried again
                        added = [*model.all[first - 1 :][: len(sizes)]]
                        added += [block("x" * size) for size in sizes[len(added) :]]
                        lost = await add(writer, first, added, ended)  # type: ignore[arg-type]
                        assert lost == (set() if model.append(first, added, ended) else {ID})  # type: ignore[arg-type]
                    case ("seal",):
                        await reader.seal(ID, block("end"), "interrupted")
                        if model.ended is None:
                            model.append(len(model.all) + 1, [block("end")], "interrupted")
                    case ("read", int(after), int(most)):
                        found = await got(reader, after, limit=most)
                        assert model.begins <= found.begins <= max(1, len(model.all) + 1)
                        assert (found.last, found.ended) == (len(model.all), model.ended)
                        assert found.first == min(max(after + 1, found.begins), found.last + 1)
                        rest = model.all[found.first - 1 :]
                        assert list(found.blocks) == rest[: len(found.blocks)]
                        assert bool(found.blocks) == bool(rest)
                        size = sum(map(len, found.blocks))
                        assert size <= most or len(found.blocks) == 1
                        if len(found.blocks) < len(rest):
                            assert size + len(rest[len(found.blocks)]) > most
                        # no more is kept than may be, and no less than almost that
                        kept = sum(map(len, model.all[found.begins - 1 :]))
                        assert kept <= limit or found.begins == found.last
                        if found.begins > model.begins:
                            assert kept + sum(map(len, model.all[found.begins - 2 : found.begins - 1])) > limit * 7 / 8
                        model.begins = found.begins

    asyncio.run(played())
