"""The legal order of events, and what a `Usage` adds up to."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.events import (
    CONTENT,
    ORDER,
    BlockSigned,
    ChoiceFinished,
    Completed,
    Event,
    Extended,
    Extra,
    IllegalOrder,
    OrderCheck,
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
from support.event_streams import USAGES, legal_streams

START = Started("id", "model", 1)
STOP = ChoiceFinished(0, "stop")
END = Completed()
USED = UsageReported(Usage(input=1))


@given(legal_streams())
def test_every_legal_stream_passes(events: list[Event]) -> None:
    assert check_order(events) == events


@given(legal_streams(), st.data())
def test_a_stream_cut_anywhere_is_not_complete(events: list[Event], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(events) - 1))
    with pytest.raises(IllegalOrder, match="stopped in state"):
        check_order(events[:cut])


@given(legal_streams(), st.data())
def test_nothing_may_follow_completed(events: list[Event], data: st.DataObject) -> None:
    late = data.draw(st.sampled_from(events))
    with pytest.raises(IllegalOrder, match="state 'end'"):
        check_order([*events, late])


@given(legal_streams())
def test_started_may_not_come_twice(events: list[Event]) -> None:
    with pytest.raises(IllegalOrder, match="Started may not come"):
        check_order([events[0], *events])


@given(legal_streams(usage=True))
def test_usage_is_reported_once_and_last(events: list[Event]) -> None:
    *answer, usage, end = events
    with pytest.raises(IllegalOrder, match="UsageReported may not come in state 'counted'"):
        check_order([*answer, usage, usage, end])
    with pytest.raises(IllegalOrder, match="ChoiceFinished may not come in state 'counted'"):
        check_order([*answer[:-1], usage, answer[-1], end])


@given(legal_streams(), st.data())
def test_every_choice_must_finish(events: list[Event], data: st.DataObject) -> None:
    finishes = [at for at, event in enumerate(events) if isinstance(event, ChoiceFinished)]
    choices = {event.choice for event in events if isinstance(event, ChoiceFinished)}
    at = data.draw(st.sampled_from(finishes))
    missing = events[at].choice  # type: ignore[union-attr]
    rest = events[:at] + events[at + 1 :]
    heard_of = any(getattr(event, "choice", None) == missing for event in rest)
    if heard_of or len(choices) == 1:
        with pytest.raises(IllegalOrder, match="not every choice has finished"):
            check_order(rest)
    else:
        check_order(rest)


@pytest.mark.parametrize(
    "event",
    [
        TextDelta(0, 0, "late"),
        ReasoningDelta(0, 0, "late"),
        RefusalDelta(0, 0, "late"),
        ToolCallStarted(0, 0, "id", "name"),
        ToolCallDelta(0, 0, "late"),
        BlockSigned(0, 0, "late"),
        STOP,
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_finished_choice_says_nothing_more(event: Event) -> None:
    with pytest.raises(IllegalOrder, match="after choice 0 had finished"):
        check_order([START, STOP, event, END])


def test_vendor_fields_may_come_after_a_choice_has_finished() -> None:
    check_order([START, STOP, Extended(Extra("openai", choice={"content_filter_results": {}}), 0), USED, END])


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([TextDelta(0, 1, "x")], "slot 1 opened when 0 was next"),
        ([TextDelta(0, 0, "x"), ReasoningDelta(0, 2, "x")], "slot 2 opened when 1 was next"),
        ([TextDelta(0, 0, "x"), ReasoningDelta(0, 0, "x")], "slot 0 is text, not reasoning"),
        ([ReasoningDelta(0, 0, "x"), RefusalDelta(0, 0, "x")], "slot 0 is reasoning, not refusal"),
        ([TextDelta(0, 0, "x"), ToolCallDelta(0, 0, "x")], "slot 0 is text, not tool_call"),
        ([ToolCallDelta(0, 0, "x")], "has a delta before its start"),
        ([BlockSigned(0, 0, "x"), ToolCallDelta(0, 0, "x")], "has a delta before its start"),
        ([ToolCallStarted(0, 0, "i", "n"), ToolCallStarted(0, 0, "i", "n")], "cannot start a tool call"),
        ([TextDelta(0, 0, "x"), ToolCallStarted(0, 0, "i", "n")], "cannot start a tool call"),
    ],
)
def test_slots_are_dense_and_keep_their_kind(events: list[Event], why: str) -> None:
    with pytest.raises(IllegalOrder, match=why):
        check_order([START, *events, STOP, END])


@pytest.mark.parametrize("content", [TextDelta(0, 0, "x"), ReasoningDelta(0, 0, "x"), ToolCallStarted(0, 0, "i", "n")])
def test_a_seal_may_open_the_slot_of_what_it_seals(content: Event) -> None:
    check_order([START, BlockSigned(0, 0, "seal"), content, STOP, END])


def test_choices_have_slots_of_their_own() -> None:
    check_order([START, TextDelta(0, 0, "a"), TextDelta(1, 0, "b"), STOP, ChoiceFinished(1, "stop"), END])


def test_an_answer_without_a_choice_is_not_complete() -> None:
    with pytest.raises(IllegalOrder, match="not every choice has finished"):
        check_order([START, END])


def test_a_check_that_has_failed_keeps_its_state() -> None:
    check = OrderCheck()
    check.see(START)
    with pytest.raises(IllegalOrder):
        check.see(START)
    assert check.state == "open"


def test_the_order_speaks_of_every_event() -> None:
    spoken_of = {event for following in ORDER.values() for event in following}
    assert spoken_of == set(get_args(Event))
    assert set(get_args(Event)) - CONTENT == {Started, ChoiceFinished, UsageReported, Completed}


@given(legal_streams(extras=st.just(Extra("openai", choice={"logprobs": {"content": []}}))))
def test_events_survive_being_written_as_json(events: list[Event]) -> None:
    """The order of events is stored and sent between processes as JSON, told apart by `type`."""
    assert msgspec.json.decode(msgspec.json.encode(events), type=list[Event]) == events


@given(USAGES)
def test_every_token_is_counted_in_one_class(usage: Usage) -> None:
    counts: dict[str, Any] = msgspec.to_builtins(usage)
    total = sum(value for value in counts.values() if isinstance(value, int))
    assert usage.prompt_total + usage.completion_total == total
