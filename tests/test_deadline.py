"""The deadlines of an attempt: which limit passes when, and what must not count."""

import asyncio

import pytest

from router.call import Trip, new_trip
from router.deadline import RATE_WINDOW, Deadline
from router.errors import TimedOut
from router.route import Timeouts

LIMITS = Timeouts(connect=5, first_token=0.05, idle=0.05, total=60)


def deadline(
    limits: Timeouts = LIMITS, total: float = 60, trip: Trip | None = None, window: float = RATE_WINDOW
) -> Deadline:
    return Deadline(limits, asyncio.get_running_loop().time() + total, "`v/m`", trip or new_trip(), window=window)


async def never() -> bytes:
    await asyncio.sleep(3600)
    return b""


async def test_a_wait_without_a_first_token_times_out_and_names_the_limit() -> None:
    limit = deadline()
    with pytest.raises(TimedOut, match=r"`v/m` sent no token within 0\.05 s \(`timeouts\.first_token`\)") as raised:
        await limit.wait(never())
    assert raised.value.code == "first_token_timeout"


async def test_after_a_delta_the_idle_limit_counts() -> None:
    limit = deadline(Timeouts(first_token=60, idle=0.05))
    limit.progress()
    with pytest.raises(TimedOut) as raised:
        await limit.wait(never())
    assert raised.value.code == "idle_timeout"


async def test_reads_without_a_delta_do_not_rearm_the_idle_limit() -> None:
    limit = deadline(Timeouts(first_token=60, idle=0.1))
    limit.progress()
    reads = 0
    with pytest.raises(TimedOut) as raised:
        while True:
            # a vendor's keep-alive comment
            await limit.wait(asyncio.sleep(0.02))
            reads += 1
    assert raised.value.code == "idle_timeout"
    assert reads < 10


async def test_the_time_a_slow_client_takes_is_not_the_vendors() -> None:
    limit = deadline(Timeouts(first_token=60, idle=0.05))
    for _ in range(3):
        limit.progress()
        await asyncio.sleep(0.12)
        await limit.wait(asyncio.sleep(0))
    limit.close()


async def test_the_total_limit_ends_a_stream_that_goes_on() -> None:
    limit = deadline(Timeouts(first_token=60, idle=60, total=0.1), total=0.1)
    with pytest.raises(TimedOut) as raised:
        while True:
            await limit.wait(asyncio.sleep(0.01))
            limit.progress()
    assert raised.value.code == "total_timeout"


async def test_a_timeout_leaves_the_task_uncancelled() -> None:
    limit = deadline()
    with pytest.raises(TimedOut):
        await limit.wait(never())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_cancellation_from_outside_stays_a_cancellation() -> None:
    async def waits() -> None:
        await deadline(Timeouts(first_token=60)).wait(never())

    task = asyncio.ensure_future(waits())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_closed_deadline_never_fires() -> None:
    limit = deadline()
    limit.close()
    await asyncio.sleep(0.1)


async def test_the_total_limit_interrupts_a_call_whose_client_does_not_read() -> None:
    trip = new_trip()

    async def writes() -> None:
        limit = deadline(Timeouts(first_token=60, idle=60, total=0.05), total=0.05, trip=trip)
        limit.progress()
        await asyncio.sleep(3600)

    task = asyncio.ensure_future(writes())
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 2)
    assert trip.interruption is not None
    assert trip.interruption.code == "total_timeout"


async def test_a_write_that_a_slow_client_holds_up_while_we_listen_does_not_count_as_idle() -> None:
    trip = new_trip()
    limit = deadline(Timeouts(first_token=60, idle=0.1), trip=trip)
    limit.progress()
    vendor: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read() -> bytes:
        # what the pump does: it writes to the client while the step waits for the vendor
        trip.writing = True
        await asyncio.sleep(0.3)
        trip.writing, trip.written_at = False, asyncio.get_running_loop().time()
        return await vendor

    asyncio.get_running_loop().call_later(0.35, vendor.set_result, b"data")
    assert await limit.wait(read()) == b"data"
    limit.close()


async def test_limits_hold_for_a_layer_that_steps_the_stream_in_tasks_of_its_own() -> None:
    limit = deadline()
    # made in this task, waited for in another, as `asyncio.wait_for` does in Python 3.11
    with pytest.raises(TimedOut):
        await asyncio.wait_for(asyncio.ensure_future(limit.wait(never())), 2)


# -- the rate ------------------------------------------------------------------------------------------------------

SLOW = Timeouts(first_token=60, idle=60, min_rate=50)


async def test_a_vendor_that_sends_too_few_deltas_a_second_times_out_and_is_told_the_limit() -> None:
    limit = deadline(SLOW, window=0.2)
    limit.progress()
    words = r"`v/m` sent \d pieces in 0\.\d+ s, fewer than 50 a second \(`timeouts\.min_rate`\)"
    with pytest.raises(TimedOut, match=words) as raised:
        while True:
            await limit.wait(asyncio.sleep(0.05))
            limit.progress()
    assert raised.value.code == "rate_timeout"


async def test_a_vendor_that_falls_silent_misses_the_rate_before_the_idle_limit() -> None:
    limit = deadline(SLOW, window=0.1)
    limit.progress(3)
    with pytest.raises(TimedOut, match=r"sent 3 pieces in 0\.[1-9]") as raised:
        await limit.wait(never())
    assert raised.value.code == "rate_timeout"


async def test_a_vendor_that_slows_down_is_measured_by_its_last_window() -> None:
    limit = deadline(SLOW, window=0.1)
    for _ in range(5):
        limit.progress(1000)
        await limit.wait(asyncio.sleep(0.05))
    with pytest.raises(TimedOut) as raised:
        await limit.wait(never())
    assert raised.value.code == "rate_timeout"


async def test_deltas_are_counted_and_not_reads() -> None:
    limit = deadline(SLOW, window=0.1)
    for _ in range(10):
        limit.progress(100)
        await limit.wait(asyncio.sleep(0.05))
    limit.close()


async def test_before_the_first_delta_there_is_no_rate() -> None:
    limit = deadline(SLOW, window=0.05)
    await limit.wait(asyncio.sleep(0.2))
    limit.close()


async def test_a_client_that_takes_its_time_lowers_no_rate() -> None:
    limit = deadline(SLOW, window=0.1)
    for _ in range(4):
        limit.progress()
        await asyncio.sleep(0.1)
        await limit.wait(asyncio.sleep(0))
    limit.close()


async def test_a_client_that_is_written_to_while_we_listen_lowers_no_rate() -> None:
    trip = new_trip()
    limit = deadline(SLOW, trip=trip, window=0.1)
    limit.progress()
    vendor: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read() -> bytes:
        trip.writing = True
        await asyncio.sleep(0.4)
        trip.writing, trip.written_at = False, asyncio.get_running_loop().time()
        vendor.set_result(b"data")
        return await vendor

    assert await limit.wait(read()) == b"data"
    limit.close()


async def test_without_a_rate_the_idle_limit_is_the_only_one() -> None:
    limit = deadline(Timeouts(first_token=60, idle=0.2), window=0.05)
    limit.progress()
    with pytest.raises(TimedOut) as raised:
        await limit.wait(never())
    assert raised.value.code == "idle_timeout"
