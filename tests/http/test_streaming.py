"""The pump: what is at hand leaves in one write, a lone delta at once, and nothing stays open."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from router.events import ChoiceFinished, Completed, Event, Started, TextDelta
from router.http.streaming import MAX_BATCH, pump


class Written:
    """What was written, one entry a write; `slow` makes each write wait."""

    def __init__(self, *, slow: bool = False) -> None:
        self.writes: list[bytes] = []
        self.slow = slow

    async def write(self, data: bytes) -> None:
        if self.slow:
            await asyncio.sleep(0.01)
        self.writes.append(data)


def encode(event: Event) -> bytes:
    return event.text.encode() if isinstance(event, TextDelta) else b""


async def stream(*groups: str, pause: float = 0.01) -> AsyncGenerator[Event, None]:
    """Each group's letters come at once; between groups the vendor takes its time."""
    yield Started("id", "m", 0)
    for group in groups:
        await asyncio.sleep(pause)
        for letter in group:
            yield TextDelta(0, 0, letter)
    yield ChoiceFinished(0, "stop")
    yield Completed()


async def test_what_came_together_leaves_together_and_the_last_batch_is_the_callers() -> None:
    written, batch = Written(), list[bytes]()
    last = await pump(stream("abc", "d", "efg"), encode, written.write, batch)
    assert written.writes == [b"abc", b"d"]
    assert b"".join(batch) == b"efg"
    assert isinstance(last, Completed)


async def test_a_lone_delta_leaves_before_the_next_is_waited_for() -> None:
    written, seen = Written(), list[list[bytes]]()

    async def watched() -> AsyncGenerator[Event, None]:
        for letter in "ab":
            yield TextDelta(0, 0, letter)
            await asyncio.sleep(0.01)
            seen.append(list(written.writes))
        yield Completed()

    await pump(watched(), encode, written.write, [])
    assert seen == [[b"a"], [b"a", b"b"]]


async def test_an_endless_burst_is_written_in_bounded_batches_and_lets_the_loop_run() -> None:
    written, turns = Written(), 0

    async def burst() -> AsyncGenerator[Event, None]:
        for _ in range(10 * MAX_BATCH):
            yield TextDelta(0, 0, "x")
        yield Completed()

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.ensure_future(other())
    await pump(burst(), encode, written.write, [])
    beside.cancel()
    assert max(map(len, written.writes)) <= MAX_BATCH
    assert turns >= 9


async def test_what_came_before_an_error_is_left_in_the_batch() -> None:
    async def fails() -> AsyncGenerator[Event, None]:
        yield TextDelta(0, 0, "a")
        raise ValueError("the vendor died")

    batch: list[bytes] = []
    with pytest.raises(ValueError, match="the vendor died"):
        await pump(fails(), encode, Written().write, batch)
    assert batch == [b"a"]


@pytest.mark.parametrize("slow", [False, True], ids=["while it waits for the vendor", "while it waits for the client"])
async def test_a_cancellation_reaches_every_layer_and_leaves_the_stream_closable(slow: bool) -> None:
    ended: list[str] = []

    async def inner() -> AsyncGenerator[Event, None]:
        try:
            yield TextDelta(0, 0, "a")
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        finally:
            ended.append("closed")

    async def outer(events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
        try:
            async for event in events:
                yield event
        finally:
            ended.append("outer closed")

    events = outer(inner())
    task = asyncio.ensure_future(pump_in_task(events, Written(slow=slow)))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await events.aclose()
    assert ended == ["cancelled", "closed", "outer closed"]


async def pump_in_task(events: AsyncGenerator[Event, None], written: Written) -> None:
    await pump(events, encode, written.write, [])


async def test_a_layer_that_recovers_from_a_cancellation_goes_on() -> None:
    async def stubborn() -> AsyncGenerator[Event, None]:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        await asyncio.sleep(0.01)
        yield TextDelta(0, 0, "z")
        yield Completed()

    batch: list[bytes] = []

    async def run() -> Event | None:
        return await pump(stubborn(), encode, Written().write, batch)

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0.01)
    task.cancel()
    assert isinstance(await task, Completed)
    assert b"".join(batch) == b"z"


async def test_a_client_that_leaves_while_it_is_written_to_cancels_the_tasks_that_a_layer_waits_for() -> None:
    ended = asyncio.Event()

    async def child() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async def layer() -> AsyncGenerator[Event, None]:
        yield TextDelta(0, 0, "a")
        await asyncio.create_task(child())
        yield Completed()

    class Blocked(Written):
        async def write(self, data: bytes) -> None:
            await asyncio.sleep(3600)

    events = layer()
    task = asyncio.ensure_future(pump_in_task(events, Blocked()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 2)
    await asyncio.wait_for(ended.wait(), 2)
    await events.aclose()
