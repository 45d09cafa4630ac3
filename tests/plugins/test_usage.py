"""Every call has token counts, whatever ends it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from plugins.usage import UsagePlugin
from router.call import Call, Events
from router.errors import RateLimited, Rejected, StreamCut, TimedOut
from router.events import (
    ChoiceFinished,
    Completed,
    Event,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
    check_order,
)
from router.plugin import compose
from router.tokens import TokenCounter
from tests.plugins.calls import ANSWER, FINISH, SILENT, START, TEXT, USAGE, a_call, collect, vendor

PROMPT = 3 + 1 + 3
"""Tokens of the prompt "Hi": a message around it, and the answer's beginning."""


class NoCounter(TokenCounter):
    """Fails where tiktoken would be used."""

    def count_now(self, *_: Any) -> int | None:
        raise AssertionError("counted")

    count_blocking = count_now  # type: ignore[assignment]


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    counter = TokenCounter()
    counter.count_blocking(["warm"], "gpt-5")
    return counter


def usage(counter: TokenCounter | None = None, **settings: Any) -> UsagePlugin:
    return UsagePlugin(UsagePlugin.Settings(**settings), counter)


async def test_what_the_vendor_reports_passes_and_nothing_is_counted() -> None:
    call = a_call()
    assert await collect(compose([usage(NoCounter())], vendor())(call)) == list(ANSWER)
    assert call.trip.usage == call.trip.attempts[-1].usage == USAGE


async def test_what_is_not_reported_is_estimated_before_the_end(counter: TokenCounter) -> None:
    call = a_call()
    events = await collect(compose([usage(counter)], vendor(SILENT))(call))
    estimate = Usage(input=PROMPT, output=2, source="estimated")
    assert events == [*SILENT[:-1], UsageReported(estimate), Completed()]
    assert check_order(events) == events
    assert call.trip.usage == call.trip.attempts[-1].usage == estimate


async def test_all_that_was_generated_is_estimated_reasoning_apart(counter: TokenCounter) -> None:
    answer: list[Event] = [
        START,
        ReasoningDelta(0, 0, "hello"),
        ReasoningDelta(0, 0, " world"),
        TextDelta(0, 1, "hello"),
        ToolCallStarted(0, 2, "c1", "hello"),
        ToolCallDelta(0, 2, "hello"),
        RefusalDelta(0, 3, "hello"),
        ChoiceFinished(0, "tool_calls"),
        Completed(),
    ]
    call = a_call()
    await collect(compose([usage(counter)], vendor(answer))(call))
    assert call.trip.usage is not None
    assert call.trip.usage.reasoning == 2
    assert call.trip.usage.output == counter.count_blocking(["hellohellohellohello"], "gpt-5")


async def test_the_targets_name_decides_the_vocabulary() -> None:
    asked: list[str] = []

    class Spy(TokenCounter):
        async def count(self, texts: Any, model: str) -> int:
            asked.append(model)
            return 1

    await collect(compose([usage(Spy())], vendor(SILENT))(a_call("my-route")))
    assert set(asked) == {"gpt-5"}


async def test_without_the_tokenizer_the_length_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenCounter, "__init__", NoCounter.count_now)
    call = a_call()
    await collect(compose([usage(tokenizer=False)], vendor(SILENT))(call))
    assert call.trip.usage == Usage(input=3 + 1 + 3, output=3, source="estimated")


@pytest.mark.parametrize("error", [StreamCut("cut"), TimedOut("idle"), KeyError("ours"), Rejected("filtered")])
async def test_a_broken_answer_counts_what_came(counter: TokenCounter, error: Exception) -> None:
    call = a_call()
    with pytest.raises(type(error)):
        await collect(compose([usage(counter)], vendor((START, *TEXT), error))(call))
    assert call.trip.usage == Usage(input=PROMPT, output=2, source="estimated")


async def test_a_report_before_the_break_stands() -> None:
    call = a_call()
    with pytest.raises(StreamCut):
        await collect(compose([usage(NoCounter())], vendor(ANSWER[:-1], StreamCut("cut")))(call))
    assert call.trip.usage == USAGE


async def test_an_answer_that_the_client_leaves_counts_what_came(counter: TokenCounter) -> None:
    call = a_call()
    events = compose([usage(counter)], vendor())(call)
    for _ in range(3):
        await anext(events)
    await call.trip.close()
    assert call.trip.usage == Usage(input=PROMPT, output=2, source="estimated")


async def test_cancellation_while_the_vendor_is_silent_counts_the_prompt(counter: TokenCounter) -> None:
    call = a_call()

    async def silent(call: Call) -> Events:
        await asyncio.sleep(3600)
        yield START

    task = asyncio.create_task(collect(compose([usage(counter)], silent)(call)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.trip.usage == Usage(input=PROMPT, source="estimated")


async def test_cancellation_during_the_count_leaves_an_estimate() -> None:
    class Slow(TokenCounter):
        async def count(self, texts: Any, model: str) -> int:
            await asyncio.sleep(3600)
            return 0

    call = a_call()
    task = asyncio.create_task(collect(compose([usage(Slow())], vendor(SILENT))(call)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.trip.usage is not None
    assert (call.trip.usage.output, call.trip.usage.source) == (3, "estimated")


async def test_closing_waits_for_no_vocabulary_and_no_long_text(counter: TokenCounter) -> None:
    for unready, text in ((TokenCounter(), "hello world"), (counter, "hello world, " * 5000)):
        call = a_call()
        events = compose([usage(unready)], vendor((START, TextDelta(0, 0, text), FINISH)))(call)
        await anext(events)
        await anext(events)
        await call.trip.close()
        assert call.trip.usage is not None
        assert call.trip.usage.output == -(-len(text) // 4)


async def test_a_vendor_that_refuses_costs_nothing() -> None:
    call = a_call()
    with pytest.raises(RateLimited):
        await collect(compose([usage(NoCounter())], vendor((), RateLimited("slow")))(call))
    assert call.trip.usage is None


async def test_a_call_that_no_vendor_was_asked_for_costs_nothing() -> None:
    call = a_call(asked=False)
    with pytest.raises(TimedOut):
        await collect(compose([usage(NoCounter())], vendor((), TimedOut("late")))(call))
    assert call.trip.usage is None


async def test_a_vendor_that_times_out_may_bill_the_prompt(counter: TokenCounter) -> None:
    call = a_call()
    with pytest.raises(TimedOut):
        await collect(compose([usage(counter)], vendor((), TimedOut("late")))(call))
    assert call.trip.usage == Usage(input=PROMPT, source="estimated")


async def test_an_error_waits_for_the_vocabulary() -> None:
    call = a_call()
    with pytest.raises(StreamCut):
        await collect(compose([usage(TokenCounter())], vendor((START, *TEXT), StreamCut("cut")))(call))
    assert call.trip.usage == Usage(input=PROMPT, output=2, source="estimated")


async def test_a_damaged_vocabulary_fails_no_answer(tmp_path: Path) -> None:
    call = a_call()
    with capture_logs() as lines:
        events = await collect(compose([usage(TokenCounter(tmp_path))], vendor(SILENT))(call))
    assert isinstance(events[-1], Completed)
    assert call.trip.usage == Usage(input=PROMPT, output=3, source="estimated")
    assert [(line["log_level"], line["request_id"]) for line in lines] == [("error", "req_1")]
