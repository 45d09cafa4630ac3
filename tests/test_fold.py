"""The fold of a stream: what it keeps, and how vendor fields that come in pieces add up."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.events import (
    BlockSigned,
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
)
from router.fold import (
    Answer,
    Fold,
    OpaqueBlock,
    ReasoningBlock,
    TextBlock,
    ToolCallBlock,
    merge,
)
from support.event_streams import OPENAI_EXTRAS, legal_streams


def folded(events: list[Event]) -> Answer:
    fold = Fold()
    for event in events:
        fold.add(event)
    return fold.result()


def said(events: list[Event], kind: type, choice: int, slot: int) -> str:
    return "".join(
        event.text  # type: ignore[attr-defined]
        for event in events
        if isinstance(event, kind) and (event.choice, event.slot) == (choice, slot)  # type: ignore[attr-defined]
    )


@given(legal_streams())
def test_the_fold_keeps_every_piece_in_its_place(events: list[Event]) -> None:
    answer = folded(events)
    finished = {event.choice: event.reason for event in events if isinstance(event, ChoiceFinished)}
    assert {choice.index: choice.finish_reason for choice in answer.choices} == finished
    assert [choice.index for choice in answer.choices] == sorted(finished)
    assert answer.complete
    for choice in answer.choices:
        for slot, block in enumerate(choice.blocks):
            here = [e for e in events if (getattr(e, "choice", None), getattr(e, "slot", None)) == (choice.index, slot)]
            content = block.content
            if isinstance(content, ToolCallBlock):
                (start,) = [event for event in here if isinstance(event, ToolCallStarted)]
                assert (content.id, content.name, content.kind) == (start.id, start.name, start.kind)
                arguments = [event.arguments for event in here if isinstance(event, ToolCallDelta)]
                assert content.arguments == "".join(arguments)
            elif isinstance(content, OpaqueBlock):
                assert {type(event) for event in here} <= {BlockSigned, Extended}
            elif isinstance(content, ReasoningBlock):
                assert "".join(content.parts) == said(events, ReasoningDelta, choice.index, slot)
                assert content.text == "\n\n".join(content.parts)
            else:
                kind = TextDelta if isinstance(content, TextBlock) else RefusalDelta
                assert content.text == said(events, kind, choice.index, slot)
            seals = {event.kind: event.value for event in here if isinstance(event, BlockSigned)}
            assert block.signed == seals


@given(legal_streams(extras=OPENAI_EXTRAS), st.data())
def test_a_fold_read_midway_says_what_has_come_and_goes_on_the_same(events: list[Event], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(events)))
    fold = Fold()
    for event in events[:at]:
        fold.add(event)
    assert copy.deepcopy(fold.result()) == folded(events[:at])
    assert fold.result().complete == (at == len(events))
    for event in events[at:]:
        fold.add(event)
    assert fold.result() == folded(events)


@given(legal_streams(extras=OPENAI_EXTRAS))
def test_folding_changes_no_event(events: list[Event]) -> None:
    """Events are kept elsewhere too: a resumable stream replays the very ones that were folded."""
    before = copy.deepcopy(events)
    answer = folded(events)
    for choice in answer.choices:
        merge(choice.extra, {"openai": {"logprobs": {"content": [{"token": "more"}]}}})
        for extra in (choice.message_extra, *(block.extra for block in choice.blocks)):
            merge(extra, {"openai": {"reasoning_details": [{"index": 0, "text": "more"}]}})
    assert events == before


@given(legal_streams(usage=True))
def test_the_usage_is_the_one_reported(events: list[Event]) -> None:
    (reported,) = [event.usage for event in events if isinstance(event, UsageReported)]
    assert folded(events).usage is reported


def test_two_folds_share_nothing() -> None:
    one, other = Fold(), Fold()
    one.add(Started("a", "m", 1, Extra("openai", answer={"service_tier": "x"})))
    one.add(TextDelta(0, 0, "hi"))
    assert other.result() == Answer()


def test_a_seal_that_comes_first_stays_with_the_content_it_seals() -> None:
    answer = folded([Started("", "", 0), BlockSigned(0, 0, "seal"), ToolCallStarted(0, 0, "id", "name")])
    (block,) = answer.choices[0].blocks
    assert block.content == ToolCallBlock("id", "name")
    assert block.signed == {"signature": "seal"}


def test_extras_of_two_protocols_stay_apart() -> None:
    """DashScope answers in its own words, but its `logprobs` have OpenAI's shape; a plugin may add a third."""
    answer = folded(
        [
            Started("", "", 0, Extra("dashscope", answer={"search_info": {"a": 1}})),
            TextDelta(0, 0, "hi", Extra("openai", choice={"logprobs": {}}, block={"b": 1})),
            ChoiceFinished(0, "stop", extra=Extra("dashscope", choice={"c": 1}, block={"d": 1})),
            Completed(Extra("mine", answer={"search_info": 2})),
        ]
    )
    (choice,) = answer.choices
    assert answer.extra == {"dashscope": {"search_info": {"a": 1}}, "mine": {"search_info": 2}}
    assert choice.extra == {"openai": {"logprobs": {}}, "dashscope": {"c": 1}}
    assert (choice.blocks[0].extra, choice.message_extra) == ({"openai": {"b": 1}}, {"dashscope": {"d": 1}})


def test_extras_land_on_the_level_they_were_found_on() -> None:
    extra = Extra("p", answer={"a": 1}, choice={"c": 2}, block={"b": 3})
    answer = folded([Started("", "", 0), TextDelta(0, 0, "x", extra), Extended(extra, 1), ChoiceFinished(0, "stop")])
    first, second = answer.choices
    assert answer.extra == {"p": {"a": 1}}
    assert (first.extra, first.blocks[0].extra, first.message_extra) == ({"p": {"c": 2}}, {"p": {"b": 3}}, {})
    assert (second.extra, second.message_extra) == ({"p": {"c": 2}}, {"p": {"b": 3}})


def test_whole_extras_replace_and_pieces_add_up() -> None:
    def numbers(*events: Event) -> Any:
        return folded([Started("", "", 0), *events]).choices[0].extra["p"]["list"]

    one, two = Extended(Extra("p", choice={"list": [1]}), 0), Extended(Extra("p", choice={"list": [2]}), 0)
    whole = Extended(Extra("p", choice={"list": [3]}, whole=True), 0)
    assert numbers(one, two) == [1, 2]
    assert numbers(one, two, whole) == [3]
    assert numbers(one, whole, two) == [3, 2]
    assert whole.extra.choice == {"list": [3]}


def test_an_answer_that_was_cut_is_not_complete() -> None:
    answer = folded([Started("", "", 0), TextDelta(0, 0, "half an ans")])
    assert not answer.complete
    assert answer.choices[0].text() == "half an ans"
    assert answer.choices[0].finish_reason is None


def test_the_native_reason_and_the_stop_sequence_are_kept() -> None:
    answer = folded([Started("", "", 0), ChoiceFinished(0, "stop", "eos", "END"), UsageReported(Usage()), Completed()])
    assert (answer.choices[0].native_reason, answer.choices[0].stop_sequence) == ("eos", "END")


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        (
            [{"audio": {"id": "a", "data": "UklG"}}, {"audio": {"data": "Rg=="}}],
            {"audio": {"id": "a", "data": "UklGRg=="}},
        ),
        ([{"id": "x"}, {"id": "x"}], {"id": "x"}),
        ([{"logprobs": {"content": [1], "refusal": None}}] * 2, {"logprobs": {"content": [1, 1], "refusal": None}}),
        ([{"a": 1}, {"a": None}], {"a": 1}),
        ([{"a": None}, {"a": {"b": 1}}], {"a": {"b": 1}}),
        ([{"a": "text"}, {"a": {"b": 1}}, {"a": [1]}], {"a": [1]}),
        (
            [{"d": [{"index": 0, "text": "a"}]}, {"d": [{"index": 1, "text": "x"}, {"index": 0, "text": "b"}]}],
            {"d": [{"index": 0, "text": "ab"}, {"index": 1, "text": "x"}]},
        ),
        (
            [{"d": [{"index": 0, "text": "a"}, {"index": 0, "text": "b"}]}],
            {"d": [{"index": 0, "text": "ab"}]},
        ),
        (
            [{"d": []}, {"d": [{"index": 3, "text": "a"}, {"index": 3, "text": "b"}]}],
            {"d": [{"index": 3, "text": "ab"}]},
        ),
        (
            [{"annotations": [{"index": 5, "url": "a"}]}, {"annotations": [{"index": 5, "url": "b"}]}],
            {"annotations": [{"index": 5, "url": "a"}, {"index": 5, "url": "b"}]},
        ),
        ([{"d": [{"index": [1]}]}, {"d": [{"index": [1]}]}], {"d": [{"index": [1]}, {"index": [1]}]}),
        ([{"n": 1}, {"n": 2}], {"n": 2}),
    ],
)
def test_vendor_fields_in_pieces_add_up(pieces: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    before = copy.deepcopy(pieces)
    total: dict[str, Any] = {}
    for piece in pieces:
        merge(total, piece)
    assert total == whole
    assert pieces == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["index", "text", "a", "annotations"]), inner)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(["index", "text", "a", "annotations"]), JSON)


@given(st.lists(OBJECTS, max_size=4))
def test_merging_takes_any_json_and_changes_none_of_it(pieces: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(pieces)
    total: dict[str, Any] = {}
    for piece in pieces:
        merge(total, piece)
    assert pieces == before
    assert set(total) == {key for piece in pieces for key in piece}
