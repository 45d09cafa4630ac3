"""The streams of a process: who reads what, when a stream is deserted, and what happens while the log is away."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest

from router.errors import RouterError
from router.streams.live import TAIL, LiveStream
from router.streams.log import Appended, LogAway, StreamHead, Told
from router.streams.memory_log import MemoryLog
from router.streams.streams import Streams, StreamUnknown

ID = "strm_01M82WFKZC2FRMZ0AEN3SQ0GRC"


def head(stream: str = ID, writer: str = "jrn_a") -> StreamHead:
    return StreamHead(
        id=stream, owner="", writer=writer, request_id="req_1", dialect="openai.chat", model="m", created_at=1
    )


def block(text: object) -> bytes:
    return b"data: %b\n\n" % str(text).encode()


class Away(MemoryLog):
    """A log that can be taken away."""

    away = False

    async def begin(self, head: StreamHead) -> None:
        self._asked()
        await super().begin(head)

    async def append(self, writer: str, batch: Sequence[Appended]) -> Told:
        self._asked()
        return await super().append(writer, batch)

    def _asked(self) -> None:
        if self.away:
            raise LogAway("the disk is full")


def sealed(head: StreamHead, error: RouterError) -> bytes:
    return block(error.code)


@asynccontextmanager
async def opened(log: MemoryLog | None = None, writer: str = "jrn_a") -> AsyncIterator[Streams]:
    streams = Streams(log or Away(600, 1 << 20), writer, sealed, linger=0.05)
    async with streams.lifespan():
        yield streams


async def begun(streams: Streams, stream: str = ID) -> LiveStream:
    live = streams.begin(head(stream, streams.writer), linger=0.0, deserted=None)
    await streams.announced(live)
    return live


async def read(streams: Streams, after: int = 0, stream: str = ID) -> tuple[list[bytes], str | None]:
    """All blocks until the end, and how it ended."""
    blocks: list[bytes] = []
    ended: str | None = None
    async with asyncio.timeout(10), aclosing(streams.follow(stream, after)) as stretches:
        async for stretch in stretches:
            blocks += stretch.blocks
            ended = stretch.ended
    return blocks, ended


async def test_several_readers_get_every_block_once_and_the_end() -> None:
    async with opened() as streams:
        live = await begun(streams)
        readers = [asyncio.create_task(read(streams)) for _ in range(3)]
        for number in range(100):
            live.add(block(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        late = asyncio.create_task(read(streams, 90))
        await asyncio.sleep(0)
        live.add(block("end"))
        live.end("finished")
        whole = [block(number) for number in range(100)] + [block("end")]
        assert [await reader for reader in readers] == [(whole, "finished")] * 3
        assert await late == (whole[90:], "finished")


async def test_what_has_ended_is_read_from_the_log() -> None:
    async with opened() as streams:
        live = await begun(streams)
        live.add(block(1) + block(2))
        live.end("cut")
        while streams.live(ID) is not None:
            await asyncio.sleep(0.01)
        assert await read(streams, 1) == ([block(2)], "cut")


async def test_a_reader_that_is_cancelled_takes_no_other_with_it() -> None:
    async with opened() as streams:
        live = await begun(streams)
        one, other = asyncio.create_task(read(streams)), asyncio.create_task(read(streams))
        await asyncio.sleep(0.01)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert live.readers == 1
        live.add(block(1))
        live.end("finished")
        assert await other == ([block(1)], "finished")


async def test_an_unknown_stream_is_told() -> None:
    async with opened() as streams:
        with pytest.raises(StreamUnknown):
            await read(streams)


async def test_while_the_log_is_away_readers_here_miss_nothing_and_the_log_has_it_all_afterwards() -> None:
    log = Away(600, 1 << 20)
    log.away = True
    async with opened(log) as streams:
        live = await begun(streams)
        reader = asyncio.create_task(read(streams))
        for number in range(10):
            live.add(block(number))
            await asyncio.sleep(0)
        log.away = False
        live.end("finished")
        assert len((await reader)[0]) == 10
        async with asyncio.timeout(5):
            while streams.live(ID) is not None:
                await asyncio.sleep(0.01)
        found = await log.read(ID, 0)
        assert found is not None
        assert (len(found.blocks), found.ended) == (10, "finished")


async def test_memory_is_bounded_while_the_log_is_away_and_the_gap_is_told() -> None:
    log = Away(600, 100_000)
    log.away = True
    async with opened(log) as streams:
        live = await begun(streams)
        for _ in range(400):
            live.add(block("x" * 5000))
        stretch = live.stretch(0)
        assert stretch is None, "what was evicted is not taken for nothing"
        kept = live.stretch(live.first - 1)
        assert kept is not None
        assert live.last - live.first < 220
        log.away = False
        live.end("finished")
        async with asyncio.timeout(5):
            while streams.live(ID) is not None:
                await asyncio.sleep(0.01)
        found = await log.read(ID, 0)
        assert found is not None
        assert (found.last, found.begins > 300, found.ended) == (400, True, "finished")


async def test_what_is_logged_leaves_memory_but_for_its_tail() -> None:
    async with opened() as streams:
        live = await begun(streams)
        for _ in range(100):
            live.add(block("x" * 5000))
        async with asyncio.timeout(5):
            while live.flushed < 100:
                await asyncio.sleep(0.01)
        assert live.first > 80
        tail = live.stretch(live.first - 1)
        assert tail is not None
        assert sum(map(len, tail.blocks)) <= TAIL
        live.end("finished")
        assert len((await read(streams))[0]) == 100


async def test_a_stream_is_deserted_when_its_last_reader_has_left_for_its_time() -> None:
    deserted = asyncio.Event()
    async with opened() as streams:
        live = streams.begin(head(), linger=0.05, deserted=deserted.set)
        reader = asyncio.create_task(read(streams))
        await asyncio.sleep(0.01)
        again = asyncio.create_task(read(streams))
        await asyncio.sleep(0.01)
        reader.cancel()
        await asyncio.sleep(0.1)
        assert not deserted.is_set(), "another one reads it"
        again.cancel()
        async with asyncio.timeout(1):
            await deserted.wait()
        live.end("client_gone")


async def test_a_reader_who_comes_back_in_time_keeps_the_stream() -> None:
    deserted = asyncio.Event()
    async with opened() as streams:
        live = streams.begin(head(), linger=0.2, deserted=deserted.set)
        for _ in range(5):
            reader = asyncio.create_task(read(streams))
            await asyncio.sleep(0.01)
            reader.cancel()
            await asyncio.sleep(0.05)
        reader = asyncio.create_task(read(streams))
        await asyncio.sleep(0.3)
        assert not deserted.is_set()
        live.end("finished")
        await reader


async def test_what_ended_or_is_finished_by_its_policy_is_never_deserted() -> None:
    async with opened() as streams:
        live = streams.begin(head(), linger=0.0, deserted=lambda: pytest.fail("it has ended"))
        live.end("finished")
        assert await read(streams) == ([], "finished")


async def test_another_process_stops_it_and_reads_along() -> None:
    log = MemoryLog(600, 1 << 20)
    async with opened(log) as ours, opened(log, "jrn_b") as theirs:
        live = await begun(ours)
        stopped = asyncio.get_running_loop().create_future()
        live.stopping = stopped.set_result
        live.add(block(1))
        reader = asyncio.create_task(read(theirs))
        await theirs.stop(ID)
        async with asyncio.timeout(3):
            error = await stopped
        assert error.code == "stopped"
        live.add(block("stopped"))
        live.end("stopped")
        assert await reader == ([block(1), block("stopped")], "stopped")


async def test_what_is_removed_is_gone_at_once_and_stays_gone() -> None:
    log = Away(600, 1 << 20)
    async with opened(log) as streams:
        for begun_ in (True, False):
            log.away = not begun_
            live = await begun(streams)
            log.away = False
            live.add(block(1))
            await streams.remove(ID)
            assert await streams.look(ID, 0) is None
            live.add(block(2))
            live.end("stopped")
            await asyncio.sleep(0.2)
            assert await streams.look(ID, 0) is None
            assert len(streams) == 0


class Widowed(MemoryLog):
    """Its first writer has died."""

    async def living(self, writer: str) -> bool:
        return writer != "jrn_dead"


async def test_a_stream_whose_writer_died_ends_as_interrupted_for_all_readers_alike() -> None:
    log = Widowed(600, 1 << 20)
    await log.begin(head(writer="jrn_dead"))
    await log.append("jrn_dead", [Appended(ID, 1, (block(1), block(2)))])
    async with opened(log) as one, opened(log, "jrn_b") as other:
        both = await asyncio.gather(read(one), read(other, 1))
        assert both[0] == ([block(1), block(2), block("interrupted")], "interrupted")
        assert both[1] == ([block(2), block("interrupted")], "interrupted")
        # a reader who had seen more than the dead process had written down learns how it ended too
        assert await read(one, 40) == ([block("interrupted")], "interrupted")
        # also one who had seen just as much as the log and its end have
        assert await read(one, 3) == ([block("interrupted")], "interrupted")
