"""Every attempt has token counts, whatever ends it: the vendor's own, or an estimate that says so."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from plugins.usage import UsagePlugin
from router.errors import ProtocolViolated, RateLimited, Rejected, StreamCut, TimedOut, Unreachable
from router.estimate import Estimator, filled
from router.events import (
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
    check_order,
)
from router.messages import Audio
from router.plugin import compose
from router.tokens import TokenCounter
from support.dispatching import a_call, collected, dispatched

START = Started("id-1", "model-1", 0)
TEXT = (TextDelta(0, 0, "hello"), TextDelta(0, 0, " world"))
FINISH = ChoiceFinished(0, "stop")
USAGE = Usage(input=7, output=2)
ANSWER: tuple[Event, ...] = (START, *TEXT, FINISH, UsageReported(USAGE), Completed())
SILENT: tuple[Event, ...] = (START, *TEXT, FINISH, Completed())
"""An answer without usage."""
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


async def test_what_the_vendor_reports_stands_and_nothing_is_counted() -> None:
    dispatch, books = dispatched(ANSWER, estimator=Estimator(NoCounter()))
    call = a_call()
    assert await collected(dispatch.stream(call)) == list(ANSWER)
    (attempt,) = books.settled
    assert (attempt.usage, attempt.outcome) == (USAGE, "finished")
    assert call.trip.usage == USAGE


async def test_what_is_not_reported_is_estimated_and_told_to_the_client_before_the_end(counter: TokenCounter) -> None:
    dispatch, books = dispatched(SILENT, estimator=Estimator(counter))
    call = a_call()
    events = await collected(compose([UsagePlugin()], dispatch.stream)(call))
    estimate = Usage(input=PROMPT, output=2, source="estimated")
    assert events == [*SILENT[:-1], UsageReported(estimate), Completed()]
    assert check_order(events) == events
    assert call.trip.usage == books.settled[0].usage == estimate


async def test_what_is_reported_is_told_once() -> None:
    dispatch, _ = dispatched(ANSWER)
    assert await collected(compose([UsagePlugin()], dispatch.stream)(a_call())) == list(ANSWER)


@pytest.mark.parametrize(
    ("reported", "settled"),
    [
        (Usage(output=3, untold=("prompt",)), Usage(input=PROMPT, output=3)),
        (Usage(cache_read=2, output=3, untold=("prompt",)), Usage(input=PROMPT - 2, cache_read=2, output=3)),
        (Usage(input=9, untold=("completion",)), Usage(input=9, output=2)),
        (Usage(input=9, reasoning=7, untold=("completion",)), Usage(input=9, output=2, reasoning=7)),
        (Usage(input=20, untold=("prompt", "completion")), Usage(input=18, output=2)),
        (Usage(input=1, untold=("prompt", "completion")), Usage(output=1)),
        (Usage(untold=("prompt", "completion")), Usage(input=PROMPT, output=2)),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_a_side_that_the_vendor_left_out_is_counted_and_the_other_stands(
    reported: Usage, settled: Usage, whole: bool, counter: TokenCounter
) -> None:
    told = msgspec.structs.replace(reported, flag="not all told")
    events = (*SILENT[:-1], UsageReported(told), *SILENT[-1:])
    cut = None if whole else StreamCut("the vendor went away")
    dispatch, books = dispatched(events if whole else events[:-1], cut, estimator=Estimator(counter))
    call = a_call()
    if whole:
        assert await collected(dispatch.stream(call)) == list(events)
    else:
        with pytest.raises(StreamCut):
            await collected(dispatch.stream(call))
    (attempt,) = books.settled
    expected = msgspec.structs.replace(settled, source="estimated", flag="not all told")
    assert attempt.usage == call.trip.usage == expected


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
    dispatch, _ = dispatched(answer, estimator=Estimator(counter))
    call = a_call()
    await collected(dispatch.stream(call))
    assert call.trip.usage is not None
    assert call.trip.usage.reasoning == 2
    assert call.trip.usage.output == counter.count_blocking(["hellohellohellohello"], "gpt-5")


async def test_the_targets_name_decides_the_vocabulary() -> None:
    asked: list[str] = []

    class Spy(TokenCounter):
        async def count(self, texts: Any, model: str) -> int:
            asked.append(model)
            return 1

    dispatch, _ = dispatched(SILENT, estimator=Estimator(Spy()))
    await collected(dispatch.stream(a_call("chat")))
    assert set(asked) == {"gpt-5"}


async def test_without_the_tokenizer_the_length_decides() -> None:
    dispatch, _ = dispatched(SILENT, estimator=Estimator(None))
    call = a_call()
    await collected(dispatch.stream(call))
    assert call.trip.usage == Usage(input=3 + 1 + 3, output=3, source="estimated")


@pytest.mark.parametrize("error", [StreamCut("cut"), TimedOut("idle"), KeyError("ours"), Rejected("filtered")])
async def test_a_broken_answer_counts_what_came(counter: TokenCounter, error: Exception) -> None:
    dispatch, books = dispatched((START, *TEXT), error, Estimator(counter))
    call = a_call()
    with pytest.raises(type(error)):
        await collected(dispatch.stream(call))
    assert call.trip.usage == books.settled[0].usage == Usage(input=PROMPT, output=2, source="estimated")


async def test_a_report_before_the_break_stands() -> None:
    dispatch, books = dispatched(ANSWER[:-1], StreamCut("cut"), Estimator(NoCounter()))
    with pytest.raises(StreamCut):
        await collected(dispatch.stream(a_call()))
    assert (books.settled[0].usage, books.settled[0].outcome) == (USAGE, "cut")


async def test_an_answer_that_the_client_leaves_counts_what_came(counter: TokenCounter) -> None:
    dispatch, books = dispatched(ANSWER[:4], StreamCut("late"), Estimator(counter))
    call = a_call()
    events = compose([], dispatch.stream)(call)
    for _ in range(3):
        await anext(events)
    await call.trip.close()
    assert books.settled[0].usage == Usage(input=PROMPT, output=2, source="estimated")


async def test_cancellation_while_the_vendor_is_silent_counts_the_prompt(counter: TokenCounter) -> None:
    dispatch, books = dispatched((), None, Estimator(counter))
    listed: Any = dispatch._attempts._adapters["openai"].upstream

    async def silent() -> bytes:
        await asyncio.sleep(3600)
        return b""

    listed.read = silent
    task = asyncio.create_task(collected(dispatch.stream(a_call())))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert books.settled[0].usage == Usage(input=PROMPT, source="estimated")
    assert listed.closed == 1


@pytest.mark.parametrize("answer", [SILENT, (START, *TEXT)], ids=["complete", "cut"])
async def test_cancellation_during_the_count_leaves_an_estimate(answer: tuple[Event, ...]) -> None:
    class Slow(TokenCounter):
        async def count(self, texts: Any, model: str) -> int:
            await asyncio.sleep(3600)
            return 0

    dispatch, books = dispatched(answer, StreamCut("cut"), Estimator(Slow()))
    task = asyncio.create_task(collected(dispatch.stream(a_call())))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (attempt,) = books.settled
    assert attempt.usage is not None
    assert (attempt.usage.output, attempt.usage.source) == (3, "estimated")


async def test_closing_waits_for_no_vocabulary_and_no_long_text(counter: TokenCounter) -> None:
    for unready, text in ((TokenCounter(), "hello world"), (counter, "hello world, " * 5000)):
        dispatch, books = dispatched((START, TextDelta(0, 0, text), FINISH), None, Estimator(unready))
        call = a_call()
        events = compose([], dispatch.stream)(call)
        await anext(events)
        await anext(events)
        await call.trip.close()
        (attempt,) = books.settled
        assert attempt.usage is not None
        assert attempt.usage.output == -(-len(text) // 4)


async def test_a_vendor_that_refuses_costs_nothing() -> None:
    dispatch, books = dispatched((), RateLimited("slow"), Estimator(NoCounter()))
    listed: Any = dispatch._attempts._adapters["openai"].upstream
    listed._read = True
    with pytest.raises(RateLimited):
        await collected(dispatch.stream(a_call()))
    assert (books.settled[0].usage, books.settled[0].outcome) == (None, "failed")


async def test_a_vendor_that_times_out_may_bill_the_prompt(counter: TokenCounter) -> None:
    dispatch, books = dispatched((), TimedOut("late"), Estimator(counter))
    with pytest.raises(TimedOut):
        await collected(dispatch.stream(a_call()))
    assert (books.settled[0].usage, books.settled[0].outcome) == (Usage(input=PROMPT, source="estimated"), "timeout")


@pytest.mark.parametrize(
    ("error", "owed"),
    [
        (Unreachable("the connection broke", code="connection_lost"), True),
        (ProtocolViolated("that is no answer"), True),
        (StreamCut("it ended before it began"), True),
        (TimedOut("nothing came"), True),
        (Unreachable("no such host"), False),
        (TimedOut("nobody there", code="connect_timeout"), False),
        (Rejected("no", vendor_status=400), False),
    ],
)
async def test_a_vendor_that_was_asked_and_did_not_refuse_may_bill_the_prompt(
    error: Exception, owed: bool, counter: TokenCounter
) -> None:
    dispatch, books = dispatched((), error, estimator=Estimator(counter))
    with pytest.raises(type(error)):
        await collected(dispatch.stream(a_call()))
    assert books.settled[0].usage == (Usage(input=PROMPT, source="estimated") if owed else None)


async def test_an_error_waits_for_the_vocabulary() -> None:
    dispatch, books = dispatched((START, *TEXT), StreamCut("cut"), Estimator(TokenCounter()))
    with pytest.raises(StreamCut):
        await collected(dispatch.stream(a_call()))
    assert books.settled[0].usage == Usage(input=PROMPT, output=2, source="estimated")


async def test_a_damaged_vocabulary_fails_no_answer(tmp_path: Path) -> None:
    dispatch, books = dispatched(SILENT, estimator=Estimator(TokenCounter(tmp_path)))
    with capture_logs() as lines:
        events = await collected(dispatch.stream(a_call()))
    assert isinstance(events[-1], Completed)
    assert books.settled[0].usage == Usage(input=PROMPT, output=3, source="estimated")
    assert [line["log_level"] for line in lines] == ["error"]


async def test_the_vendors_service_tier_is_noted() -> None:
    start = Started("id-1", "model-1", 0, Extra("openai", answer={"service_tier": "flex"}))
    dispatch, books = dispatched((start, *ANSWER[1:]))
    await collected(dispatch.stream(a_call()))
    assert books.settled[0].service_tier == "flex"


# -- speech --------------------------------------------------------------------------------------------------------

HALF_SECOND = "A" * 32_000
"""Base64 of 24,000 bytes: 24 kHz, 16 bits, mono."""
SPOKEN: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}


def say(**audio: str) -> Extended:
    return Extended(Extra("openai", block={"audio": audio}), choice=0)


SPEECH: tuple[Event, ...] = (START, say(id="a", transcript="hello"), *(say(data=HALF_SECOND) for _ in range(6)))
"""Three seconds of it, and a word of what is said."""


async def test_speech_that_is_cut_counts_as_long_as_it_is_and_its_words_as_text(counter: TokenCounter) -> None:
    dispatch, books = dispatched(SPEECH, StreamCut("cut"), Estimator(counter))
    with pytest.raises(StreamCut):
        await collected(dispatch.stream(a_call(extra=SPOKEN)))
    assert books.settled[0].usage == Usage(input=PROMPT, output=1, output_audio=60, source="estimated")


async def test_speech_that_the_client_leaves_counts_what_came(counter: TokenCounter) -> None:
    dispatch, books = dispatched(SPEECH, StreamCut("late"), Estimator(counter))
    call = a_call(extra=SPOKEN)
    events = compose([], dispatch.stream)(call)
    for _ in range(4):
        await anext(events)
    await call.trip.close()
    assert books.settled[0].usage == Usage(input=PROMPT, output=1, output_audio=20, source="estimated")


async def test_speech_beside_text_or_in_the_last_piece_counts_too(counter: TokenCounter) -> None:
    beside = Extra("openai", block={"audio": {"data": HALF_SECOND}})
    answer = (START, TextDelta(0, 0, "hello", beside), ChoiceFinished(0, "stop", extra=beside), Completed())
    dispatch, books = dispatched(answer, estimator=Estimator(counter))
    await collected(dispatch.stream(a_call(extra=SPOKEN)))
    assert books.settled[0].usage == Usage(input=PROMPT, output=1, output_audio=20, source="estimated")


async def test_a_length_that_is_not_known_flags_the_estimate(counter: TokenCounter) -> None:
    compressed = {**SPOKEN, "audio": {"voice": "alloy", "format": "mp3"}}
    part = Audio("https://example.com/a.mp3", "mp3")
    dispatch, books = dispatched(SPEECH, StreamCut("cut"), Estimator(counter))
    with pytest.raises(StreamCut):
        await collected(dispatch.stream(a_call(prompt=(part,), extra=compressed)))
    usage = books.settled[0].usage
    assert usage is not None
    assert (usage.input_audio, usage.output_audio, usage.input) == (300, 720, PROMPT - 1)
    assert usage.flag == "the length of the prompt's audio is not known; the length of the answer's audio is not known"


async def test_a_recording_in_the_prompt_is_audio_and_no_text(counter: TokenCounter) -> None:
    part = Audio(base64.b64encode(bytes(480_000)).decode(), "pcm16")
    dispatch, books = dispatched((START, *TEXT), StreamCut("cut"), Estimator(counter))
    with pytest.raises(StreamCut):
        await collected(dispatch.stream(a_call(prompt=(part,))))
    expected = Usage(input=PROMPT - 1, input_audio=100, output=2, source="estimated")
    assert books.settled[0].usage == expected


@pytest.mark.parametrize(
    ("reported", "settled"),
    [
        (Usage(input=9, untold=("completion",)), Usage(input=9, output=1, output_audio=60)),
        (Usage(input=9, output_audio=70, untold=("completion",)), Usage(input=9, output=1, output_audio=70)),
        (Usage(output=1, output_audio=60, untold=("prompt",)), Usage(input=PROMPT, output=1, output_audio=60)),
        (Usage(input=100, untold=("prompt", "completion")), Usage(input=39, output=1, output_audio=60)),
        (Usage(input=50, untold=("prompt", "completion")), Usage(output_audio=50)),
        # some tell the tokens of the first piece and no more
        (Usage(input=9, output=1), Usage(input=9, output=1, output_audio=60)),
    ],
)
async def test_a_side_that_the_vendor_left_out_is_counted_with_its_speech(
    reported: Usage, settled: Usage, counter: TokenCounter
) -> None:
    dispatch, books = dispatched((*SPEECH, FINISH, UsageReported(reported)), StreamCut("cut"), Estimator(counter))
    with pytest.raises(StreamCut):
        await collected(dispatch.stream(a_call(extra=SPOKEN)))
    assert books.settled[0].usage == msgspec.structs.replace(settled, source="estimated")


async def test_reported_speech_stands_when_its_answer_breaks_off() -> None:
    told = Usage(input=7, output=1, output_audio=58)
    dispatch, books = dispatched((*SPEECH, FINISH, UsageReported(told)), StreamCut("cut"), Estimator(NoCounter()))
    with pytest.raises(StreamCut):
        await collected(dispatch.stream(a_call(extra=SPOKEN)))
    assert books.settled[0].usage == told


def test_the_audio_of_a_prompt_that_was_not_told_is_taken_from_what_is_left_of_it() -> None:
    counted = Usage(input=10, input_audio=100, source="estimated")
    reported = Usage(cache_read=30, output=5, untold=("prompt",))
    assert filled(reported, counted) == Usage(cache_read=30, input_audio=80, output=5, source="estimated")
