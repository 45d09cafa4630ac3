"""What a layer still has to do is done in time, or told that it was not, and costs nothing where nothing waits."""

import asyncio

import pytest

from plugins.errands import Errands, bounded


async def test_work_that_need_not_wait_is_done_at_once() -> None:
    async def work() -> int:
        return 7

    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    asyncio.get_running_loop().call_soon(turn)
    assert await bounded(work(), 0.001) == 7
    assert turns == 0


async def test_work_that_waits_is_done_in_the_same_task() -> None:
    async def work() -> "asyncio.Task[object] | None":
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        return asyncio.current_task()

    assert await bounded(work(), 5) is asyncio.current_task()


async def test_work_that_takes_too_long_is_given_up() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(TimeoutError):
        await bounded(work(), 0.01)
    assert ended == [True]


async def test_a_timeout_within_the_work_is_its_own() -> None:
    async def work() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            await asyncio.sleep(0)
            return "away"
        return "there"

    assert await bounded(work(), 5) == "away"


@pytest.mark.parametrize("first", [True, False])
async def test_what_work_raises_is_raised(first: bool) -> None:
    async def work() -> None:
        if not first:
            await asyncio.sleep(0)
        raise LookupError("x")

    with pytest.raises(LookupError):
        await bounded(work(), 5)


async def test_a_cancellation_reaches_the_work() -> None:
    seen = []
    waiting = asyncio.Event()

    async def work() -> None:
        try:
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append(True)
            raise

    async def bound() -> None:
        await bounded(work(), 5)

    task = asyncio.create_task(bound())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [True]


async def test_the_end_of_the_server_waits_for_errands_and_cuts_their_pauses_short() -> None:
    errands, done = Errands(), []

    async def errand() -> None:
        await errands.pause(3600)
        done.append(errands.closing)

    async with errands.lifespan():
        errands.run(errand())
        await asyncio.sleep(0)
        assert done == []
    assert done == [True]
