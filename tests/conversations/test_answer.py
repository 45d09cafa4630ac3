"""Answers and messages taken apart into what a conversation keeps."""

from typing import Any

from hypothesis import given

from router.conversations.answer import answer_messages
from router.conversations.pieces import pieces, prefix_of
from router.events import (
    BlockSigned,
    ChoiceFinished,
    Event,
    Extended,
    Extra,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from router.fold import Fold
from router.messages import Assistant, Message, Reasoning, Text, ToolCall, ToolResult, User
from support.event_streams import legal_streams


def kept(*events: Event) -> list[tuple[int, str, Message]]:
    fold = Fold()
    for event in (Started("id", "m", 1), *events):
        fold.add(event)
    return answer_messages(fold.result(), "openai")


def test_each_block_is_a_message_of_its_own_in_the_order_of_slots() -> None:
    assert kept(
        ReasoningDelta(0, 0, "Let me "),
        ReasoningDelta(0, 0, "see."),
        BlockSigned(0, 0, "seal"),
        TextDelta(0, 1, "Here "),
        ToolCallStarted(0, 2, "call_1", "look"),
        ToolCallDelta(0, 2, '{"a"'),
        TextDelta(0, 1, "it is"),
        RefusalDelta(0, 3, "no"),
        ToolCallStarted(0, 4, "call_2", "paint", "custom"),
        ToolCallDelta(0, 4, "red"),
    ) == [
        (0, "rs_", Assistant(reasoning=(Reasoning("Let me see.", "seal"),))),
        (1, "msg_", Assistant("Here it is")),
        (2, "fc_", Assistant(tool_calls=(ToolCall("call_1", "look", '{"a"'),))),
        (3, "msg_", Assistant(refusal="no")),
        (4, "ctc_", Assistant(tool_calls=(ToolCall("call_2", "paint", "red", "custom"),))),
    ]


def test_only_the_first_choice_goes_on_with_the_conversation() -> None:
    assert kept(TextDelta(1, 0, "other"), TextDelta(0, 0, "this")) == [(0, "msg_", Assistant("this"))]
    assert kept(TextDelta(1, 0, "other")) == []


def test_what_has_been_opened_and_holds_nothing_is_no_message() -> None:
    assert kept(TextDelta(0, 0, ""), ReasoningDelta(0, 1, ""), TextDelta(0, 2, "x")) == [(2, "msg_", Assistant("x"))]


def test_hidden_reasoning_keeps_its_seal() -> None:
    assert kept(BlockSigned(0, 0, "…", "redacted"), ChoiceFinished(0, "stop")) == [
        (0, "rs_", Assistant(reasoning=(Reasoning(redacted="…"),)))
    ]


def test_fields_of_the_same_protocol_stay_and_spoken_words_keep_their_id_alone() -> None:
    audio: dict[str, Any] = {"audio": {"id": "audio_1", "data": "AAAA", "transcript": "hi"}}
    assert kept(
        TextDelta(0, 0, "hi", Extra("openai", block=audio)),
        Extended(Extra("other", block={"x": 1}), 0, 0),
    ) == [(0, "msg_", Assistant("hi", extra={"audio": {"id": "audio_1"}}))]


@given(legal_streams())
def test_whatever_a_legal_stream_says_can_be_kept_at_every_moment(events: list[Event]) -> None:
    fold = Fold()
    for event in events:
        fold.add(event)
        for slot, prefix, message in answer_messages(fold.result(), "openai"):
            assert slot >= 0
            assert prefix == prefix_of(message)
            assert len(pieces(message)) == 1


def test_a_message_of_several_kinds_is_taken_apart_and_nothing_of_it_is_lost() -> None:
    whole = Assistant(
        (Text("a"), Text("b")),
        (ToolCall("1", "x", "{}"), ToolCall("2", "y", "z", "custom")),
        (Reasoning("why"),),
        "no",
        "me",
        {"k": 1},
    )
    taken = pieces(whole)
    assert [prefix_of(piece) for piece in taken] == ["rs_", "msg_", "msg_", "fc_", "ctc_"]
    assert taken[0] == Assistant(reasoning=(Reasoning("why"),), name="me", extra={"k": 1})
    assert taken[1] == Assistant((Text("a"), Text("b")), name="me")
    assert pieces(User("x")) == (User("x"),)
    assert pieces(Assistant()) == (Assistant(),)
    assert prefix_of(ToolResult("1", "x")) == "fco_"
