"""An answer of several vendors: what the client sees, what is dropped, and what cannot be gone on with."""

from collections.abc import Sequence
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
    OrderCheck,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from router.fold import Fold, TextBlock
from router.messages import (
    Assistant,
    ChatRequest,
    JsonObject,
    JsonSchema,
    PlainText,
    Sampling,
    Text,
    Thinking,
    User,
)
from router.provider import Target
from router.splice import INSTRUCTION, LONGEST_OVERLAP, SHORTEST_OVERLAP, Splice, continuation_of
from tests.support.event_streams import legal_streams

TARGET = Target("v", "m")


def asked(**fields: Any) -> ChatRequest:
    return ChatRequest(model="chat", messages=(User("Tell me."),), protocol="openai", **fields)


def text(*pieces: str, slot: int = 0) -> list[Event]:
    return [TextDelta(0, slot, piece) for piece in pieces]


def answer(*events: Event, usage: Usage | None = None) -> list[Event]:
    counted = [] if usage is None else [UsageReported(usage)]
    return [Started("id-2", "other", 2), *events, ChoiceFinished(0, "stop"), *counted, Completed()]


def seen(splice: Splice, events: Sequence[Event]) -> list[Event]:
    for event in events:
        splice.see(event)
    return list(events)


def spliced(first: Sequence[Event], *others: Sequence[Event], reads: int | None = None) -> list[Event]:
    """What the client gets when each vendor but the last dies after its events; `reads`: events of one read."""
    splice = Splice(asked())
    given = seen(splice, first)
    for events in others:
        splice.leave(None)
        step = reads or max(len(events), 1)
        for start in range(0, len(events), step):
            for event in splice.join(events[start : start + step]):
                splice.see(event)
                given.append(event)
    return given


def words(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def continued(before: str, after: Sequence[str]) -> str:
    return words(spliced([Started("id-1", "one", 1), *text(before)], answer(*text(*after))))


# -- one unbroken stream -------------------------------------------------------------------------------------------


def test_the_continuation_runs_on_in_the_same_text_of_the_same_answer() -> None:
    first = [Started("id-1", "one", 1), *text("The sky", " is")]
    assert spliced(first, answer(*text(" blue", "."))) == [
        *first,
        *text(" blue", "."),
        ChoiceFinished(0, "stop"),
        Completed(),
    ]


def test_a_text_that_follows_another_block_gets_a_slot_of_its_own() -> None:
    first = [Started("", "", 0), *text("One"), BlockSigned(0, 1, "seal", "redacted")]
    assert spliced(first, answer(*text(" two")))[3] == TextDelta(0, 2, " two")


def test_the_next_vendors_reasoning_and_what_it_says_beside_its_text_are_not_shown() -> None:
    cited = Extra("openai", block={"annotations": [{"start_index": 0}]})
    second = answer(
        ReasoningDelta(0, 0, "Hm."),
        BlockSigned(0, 0, "seal"),
        TextDelta(0, 1, " blue", cited),
        Extended(cited, 0, 1),
        Extended(Extra("openai", answer={"service_tier": "flex"})),
    )
    given = spliced([Started("", "", 0), *text("The sky is")], second)
    assert given[2:] == [TextDelta(0, 0, " blue"), ChoiceFinished(0, "stop"), Completed()]


def test_an_answer_of_which_only_reasoning_came_is_begun_anew_in_the_same_stream() -> None:
    first: list[Event] = [Started("", "", 0), ReasoningDelta(0, 0, "Hm")]
    splice = Splice(asked())
    seen(splice, first)
    assert (splice.text, splice.refusal()) == ("", None)
    given = spliced(first, answer(ReasoningDelta(0, 0, "Well."), TextDelta(0, 1, "Blue.")))
    assert given[2:] == [TextDelta(0, 1, "Blue."), ChoiceFinished(0, "stop"), Completed()]


def test_a_tool_call_after_the_text_keeps_what_belongs_to_it() -> None:
    signature = Extra("openai", block={"signature": "s"})
    second = answer(
        ReasoningDelta(0, 0, "Hm."),
        BlockSigned(0, 1, "early"),
        ToolCallStarted(0, 1, "call_1", "look", extra=signature),
        ToolCallDelta(0, 1, "{}"),
        Extended(signature, 0, 1),
    )
    given = spliced([Started("", "", 0), *text("I look")], second)
    assert given[2:] == [
        ToolCallStarted(0, 1, "call_1", "look", extra=signature),
        BlockSigned(0, 1, "early"),
        ToolCallDelta(0, 1, "{}"),
        Extended(signature, 0, 1),
        ChoiceFinished(0, "stop"),
        Completed(),
    ]


def test_a_third_vendor_goes_on_where_the_second_died() -> None:
    first = [Started("", "", 0), *text("The sky is")]
    given = spliced(first, [Started("", "", 0), *text(" blue")], answer(*text(" and high.")))
    assert words(given) == "The sky is blue and high."


CUT = st.tuples(legal_streams(), st.integers(0, 60)).map(lambda drawn: drawn[0][: 1 + drawn[1] % len(drawn[0])])


@given(st.lists(CUT, min_size=1, max_size=3), legal_streams(), st.integers(1, 5))
def test_whatever_is_cut_and_joined_is_a_legal_stream_with_the_text_of_all(
    begun: list[list[Event]], last: list[Event], reads: int
) -> None:
    check, fold, splice = OrderCheck(), Fold(), Splice(asked())

    def give(events: Sequence[Event]) -> None:
        for event in events:
            splice.see(event)
            check.see(event)
            fold.add(event)

    give(begun[0])
    for stream in [*begun[1:], last]:
        if splice.refusal() is not None:
            return
        before = splice.text
        splice.leave(None)
        for start in range(0, len(stream), reads):
            give([*splice.join(stream[start : start + reads])])
        come = "".join(event.text for event in stream if isinstance(event, TextDelta) and event.choice == 0)
        assert splice.text.startswith(before)
        # what is held back of a stream that was cut is not given, and never more than may be a repetition
        missing = len(before) + len(come) - len(splice.text)
        assert 0 <= missing <= max(LONGEST_OVERLAP, len(before))
        if len(before) < SHORTEST_OVERLAP:
            assert splice.text == before + come
    assert check.state == "end"
    assert sum(isinstance(block.content, TextBlock) for block in fold.result().choices[0].blocks) >= bool(splice.text)


# -- repetitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        ("The quick brown fox jumps", [" over"], "The quick brown fox jumps over"),
        ("The quick brown fox jumps", ["brown ", "fox ", "jumps", " over"], "The quick brown fox jumps over"),
        ("The quick brown fox jumps", ["brown fox jumps over"], "The quick brown fox jumps over"),
        ("The quick brown fox jumps", [*"brown fox jumps over"], "The quick brown fox jumps over"),
        # a vendor that gives the prefix back
        ("The quick brown fox jumps", ["The quick brown fox jumps", " over"], "The quick brown fox jumps over"),
        # nothing more to say
        ("The quick brown fox jumps", ["brown fox jumps"], "The quick brown fox jumps"),
        # a repetition that turns out to be none
        ("The quick brown fox jumps", ["brown ", "fox ", "jumped"], "The quick brown fox jumpsbrown fox jumped"),
        # too short to be no chance
        ("The quick brown fox jumps", ["jumps and jumps"], "The quick brown fox jumpsjumps and jumps"),
        # more of the same is no repetition
        ("| ------------------", ["------------------ |"], "| ------------------------------------ |"),
        ("if x:\n                ", ["                y()"], "if x:\n                                y()"),
        # no white space is added or taken away
        ("The quick brown fox jum", ["ps"], "The quick brown fox jumps"),
        ("The quick brown fox jumps ", [" over"], "The quick brown fox jumps  over"),
        ("Hi", ["Hi there"], "HiHi there"),
        ("", ["Hello"], "Hello"),
    ],
)
def test_a_repetition_of_the_end_is_cut_off_and_nothing_else(before: str, after: list[str], whole: str) -> None:
    assert continued(before, after) == whole


def test_a_long_text_that_is_given_back_whole_is_cut_off() -> None:
    long = " ".join(f"word{n}" for n in range(500))
    assert continued(long, [long[:700], long[700:] + " end"]) == long + " end"


@given(st.text(max_size=300), st.text(max_size=300), st.lists(st.integers(1, 9), max_size=9))
def test_text_is_cut_off_only_where_it_repeats_the_end(before: str, after: str, cuts: list[int]) -> None:
    pieces, rest = [], after
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    whole = continued(before, [*pieces, rest])
    dropped = len(before) + len(after) - len(whole)
    assert whole == before + after[dropped:]
    assert dropped == 0 or (dropped >= SHORTEST_OVERLAP and before.endswith(after[:dropped]))


@given(st.text("abcdefghij ", min_size=SHORTEST_OVERLAP, max_size=200), st.integers(SHORTEST_OVERLAP, 200))
def test_every_repetition_long_enough_is_cut_off(before: str, length: int) -> None:
    repeated = before[-length:]
    if len(set(repeated)) < 5:
        return
    assert continued(before, [*repeated, "; end"]) == before + "; end"


@pytest.mark.parametrize(
    ("provider", "after", "whole"),
    [
        ("prefilling", "- brown fox\n- cat", "- red fox\n- brown fox\n- brown fox\n- cat"),
        ("plain", "- brown fox\n- cat", "- red fox\n- brown fox\n- cat"),
        ("prefilling", "- red fox\n- brown fox\n- cat", "- red fox\n- brown fox\n- cat"),
        ("plain", "- red fox\n- brown fox\n- cat", "- red fox\n- brown fox\n- cat"),
    ],
)
def test_a_vendor_that_has_the_beginning_as_its_own_may_repeat_its_end_but_not_all(
    provider: str, after: str, whole: str
) -> None:
    vendor: Any = Prefilling() if provider == "prefilling" else Plain()
    splice = Splice(asked())
    seen(splice, [Started("", "", 0), *text("- red fox\n- brown fox\n")])
    splice.leave(None)
    request = splice.asked(vendor, TARGET)
    assert request == continuation_of(vendor, asked(), TARGET, "- red fox\n- brown fox\n")
    seen(splice, [event for piece in answer(*text(*after)) for event in splice.join([piece])])
    assert splice.text == whole


def test_text_that_may_be_a_repetition_is_given_before_the_tool_call_that_follows_it() -> None:
    second = answer(TextDelta(0, 0, "brown fox"), ToolCallStarted(0, 1, "c", "look"))
    given = spliced([Started("", "", 0), *text("The quick brown fox jumps")], second)
    assert given[2:4] == [TextDelta(0, 0, "brown fox"), ToolCallStarted(0, 1, "c", "look")]


def test_progress_of_which_nothing_is_shown_is_counted() -> None:
    splice = Splice(asked())
    seen(splice, [Started("", "", 0), *text("The quick brown fox jumps")])
    splice.leave(None)
    assert [*splice.join([Started("", "", 0), ReasoningDelta(0, 0, "Hm"), TextDelta(0, 1, "brown fox")])] == []
    assert splice.taken == 3


# -- what cannot be gone on with -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([ToolCallStarted(0, 0, "c", "look")], "a tool call has begun"),
        ([TextDelta(0, 0, "A"), RefusalDelta(0, 1, "No")], "the model has refused"),
        ([TextDelta(0, 0, "A"), ChoiceFinished(0, "stop")], "the answer has its finish reason"),
        ([TextDelta(0, 0, "A"), TextDelta(1, 0, "B")], "several choices have begun"),
        ([ReasoningDelta(1, 0, "B")], "several choices have begun"),
    ],
)
def test_what_has_come_may_forbid_a_continuation(events: list[Event], why: str) -> None:
    splice = Splice(asked())
    seen(splice, [Started("", "", 0), *events])
    assert splice.refusal() == why


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampling": Sampling(n=2)}, "several choices"),
        ({"sampling": Sampling(logprobs=True)}, "logprobs"),
        ({"response_format": JsonObject()}, "response_format"),
        ({"response_format": JsonSchema("s")}, "response_format"),
        ({"extra": {"modalities": ["text", "audio"]}}, "spoken"),
    ],
)
def test_what_was_asked_for_may_forbid_a_continuation(fields: dict[str, Any], words: str) -> None:
    refusal = Splice(asked(**fields)).refusal()
    assert refusal is not None
    assert words in refusal


def test_plain_text_may_be_gone_on_with() -> None:
    fields: dict[str, Any] = {"sampling": Sampling(n=1, logprobs=False), "response_format": PlainText()}
    splice = Splice(asked(**fields))
    seen(splice, [Started("", "", 0), ReasoningDelta(0, 0, "Hm"), *text("A", slot=1)])
    assert splice.refusal() is None


# -- usage ---------------------------------------------------------------------------------------------------------


def test_usage_has_the_prompt_once_and_what_all_have_written() -> None:
    splice = Splice(asked())
    seen(splice, [Started("", "", 0), *text("The sky is")])
    splice.leave(Usage(input=10, cache_read=5, output=3, reasoning=2, source="estimated", flag="doubtful"))
    events = [*splice.join(answer(*text(" blue"), usage=Usage(input=40, output=7, reasoning=1)))]
    total = Usage(
        input=10,
        cache_read=5,
        output=10,
        reasoning=3,
        source="estimated",
        flag="continued by other; doubtful",
    )
    assert UsageReported(total) in events
    assert splice.total(Usage(input=40, output=7, reasoning=1)) == total


def test_usage_of_an_answer_of_one_vendor_is_its_own() -> None:
    usage = Usage(input=1, output=2)
    assert Splice(asked()).total(usage) is usage


def test_sides_that_nobody_told_stay_untold() -> None:
    splice = Splice(asked())
    splice.leave(None)
    total = splice.total(Usage(input=40, output=7))
    assert total is not None
    assert (total.input, total.output, total.untold) == (0, 7, ("prompt", "completion"))
    assert splice.total(None) is None


# -- what the next vendor is asked ---------------------------------------------------------------------------------


class Plain:
    """A provider without a form of its own; no method of it is called."""


class Prefilling(Plain):
    def continued(self, request: ChatRequest, target: Target) -> ChatRequest | None:
        assert target == TARGET
        return None if request.thinking.enabled else request


def asked_of(provider: Any, request: ChatRequest, begun: str) -> ChatRequest:
    return continuation_of(provider, request, TARGET, begun)


def test_a_vendor_without_a_form_of_its_own_is_told_to_go_on() -> None:
    request = asked_of(Plain(), asked(), "The sky is")
    assert request.messages == (User("Tell me."), Assistant("The sky is"), User(INSTRUCTION))


def test_a_vendor_with_a_form_of_its_own_gets_the_beginning_as_its_own() -> None:
    assert asked_of(Prefilling(), asked(), "The sky is").messages == (User("Tell me."), Assistant("The sky is"))


def test_a_vendor_whose_form_does_not_fit_the_request_is_told_in_words() -> None:
    request = asked_of(Prefilling(), asked(thinking=Thinking(enabled=True)), "The sky is")
    assert request.messages[-1] == User(INSTRUCTION)


def test_an_answer_without_text_is_asked_for_as_before() -> None:
    request = asked(sampling=Sampling(max_tokens=5))
    assert asked_of(Plain(), request, "") is request


@pytest.mark.parametrize(("limit", "left"), [(None, None), (100, 90), (10, 1), (3, 1)])
def test_what_was_written_no_longer_counts_towards_max_tokens(limit: int | None, left: int | None) -> None:
    request = asked_of(Plain(), asked(sampling=Sampling(max_tokens=limit, seed=1)), "x" * 40)
    assert request.sampling == Sampling(max_tokens=left, seed=1)


@pytest.mark.parametrize(
    ("given_by_client", "begun"),
    [
        (Assistant("Once", extra={"partial": True}), "Once upon"),
        (Assistant((Text("Once"),)), (Text("Once"), Text(" upon"))),
    ],
)
def test_a_beginning_that_the_client_gave_stays_before_the_text(given_by_client: Assistant, begun: Any) -> None:
    request = ChatRequest(model="chat", messages=(User("Tell me."), given_by_client), protocol="openai")
    in_words, prefilled = asked_of(Plain(), request, " upon"), asked_of(Prefilling(), request, " upon")
    assert in_words.messages[1:] == (Assistant(begun), User(INSTRUCTION))
    assert prefilled.messages[1:] == (Assistant(begun, extra=given_by_client.extra),)
