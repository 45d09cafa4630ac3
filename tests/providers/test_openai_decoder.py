"""What the transcripts cannot show of the OpenAI decoder: state, bounds, damaged text, arithmetic."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.openai import OpenAI, Options, decoder
from providers.openai.decoder import ChatDecoder
from providers.openai.tool_calls import Call
from providers.openai.usage import careful_usage_of, counts, usage_of
from router.errors import ProtocolViolated, ProviderError, StreamCut
from router.events import (
    ChoiceFinished,
    Completed,
    Event,
    Extra,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    check_order,
)
from router.messages import Assistant, ChatRequest, User
from router.provider import HttpHead, ProviderSettings, Target

TARGET = Target("vendor", "model-1")


def reading(*turns: Any, content_type: str = "text/event-stream", **options: Any) -> ChatDecoder:
    settings = ProviderSettings(name="vendor", base_url="https://vendor.example/v1", options=Options(**options))
    provider = OpenAI(settings)
    request = ChatRequest(model="chat", messages=turns or (User("Hi"),), protocol="openai", stream=True)
    head = HttpHead(200, {"content-type": content_type})
    return provider.decoder(request, TARGET, provider.encode(request, TARGET), head)


def chunk(delta: Any, finish: str | None = None, **top: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    value = {"id": "c1", "created": 1, "model": "m", "choices": [choice], **top}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


STOP = chunk({}, "stop")
DONE = b"data: [DONE]\n\n"


def events(body: bytes, **options: Any) -> list[Event]:
    made = reading(**options)
    return [*made.feed(body), *made.finish()]


def texts(found: list[Event]) -> list[str]:
    return [event.text for event in found if isinstance(event, TextDelta)]


# -- state ---------------------------------------------------------------------------------------------------------


def test_last_usage_is_known_before_the_end() -> None:
    made = reading()
    assert made.usage is None
    list(made.feed(chunk({"content": "Hi"}, usage={"prompt_tokens": 9, "completion_tokens": 1})))
    list(made.feed(chunk({"content": " you"}, usage={"prompt_tokens": 9, "completion_tokens": 2})))
    assert made.usage is not None
    assert (made.usage.input, made.usage.output) == (9, 2)
    with pytest.raises(StreamCut):
        list(made.finish())


def test_deltas_come_out_of_the_feed_that_completes_them() -> None:
    made = reading()
    first = list(made.feed(chunk({"content": "Hi"})))
    assert texts(first) == ["Hi"]
    data = chunk({"content": " you"})
    assert list(made.feed(data[:-1])) == []
    assert texts(list(made.feed(data[-1:]))) == [" you"]


def test_done_completes_at_once_and_what_follows_is_ignored() -> None:
    made = reading()
    found = list(made.feed(chunk({"content": "Hi"}) + STOP + DONE))
    assert isinstance(found[-1], Completed)
    assert list(made.feed(chunk({"content": "more"}))) == []
    assert list(made.finish()) == []


def test_content_after_the_finish_reason_is_not_lost() -> None:
    found = events(chunk({"content": "Hi"}, "stop") + chunk({"content": " you"}, "stop") + DONE)
    assert texts(found) == ["Hi", " you"]
    assert check_order(found)


def test_last_finish_reason_counts() -> None:
    found = events(chunk({"content": "Hi"}, "stop") + chunk({}, "length") + DONE)
    assert [event.reason for event in found if isinstance(event, ChoiceFinished)] == ["length"]


def test_events_before_a_failure_come_out_before_it_is_raised() -> None:
    made = reading()
    found = []
    with pytest.raises(ProtocolViolated):
        for event in made.feed(chunk({"content": "Hi"}) + b"data: <oops>\n\n" + STOP):
            found.append(event)  # noqa: PERF402 (what came before the error is what is tested)
    assert texts(found) == ["Hi"]
    assert list(made.feed(STOP)) == list(made.finish()) == []


# -- bounds and damage ---------------------------------------------------------------------------------------------


def test_whole_body_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MAX_BODY", 100)
    made = reading()
    list(made.feed(b'{"a":"' + b"x" * 90))
    with pytest.raises(ProtocolViolated) as caught:
        list(made.feed(b"x" * 90))
    assert caught.value.code == "body_too_large"


def test_web_page_is_kept_to_a_bound_only() -> None:
    made = reading(content_type="text/html")
    for _ in range(100):
        assert list(made.feed(b"<p>Sign in</p>" * 1000)) == []
    with pytest.raises(ProtocolViolated) as caught:
        list(made.finish())
    assert len(caught.value.message) < 700


def test_blank_lines_for_minutes_are_not_kept() -> None:
    made = reading(content_type="application/json")
    for _ in range(1000):
        assert list(made.feed(b"\n" * 100)) == []
    assert made._body == []
    list(made.feed(b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'))
    assert texts(list(made.finish())) == ["Hi"]


def test_bad_utf8_and_half_surrogates_become_replacement_characters() -> None:
    half = b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
    bad = b'data: {"choices":[{"delta":{"content":"b\xff"}}]}\n\n'
    assert texts(events(half + bad + STOP)) == ["a\ufffd", "b\ufffd"]


def test_deep_nesting_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolViolated):
        events(b"data: " + b"[" * 100_000 + b"\n\n" + DONE)


@pytest.mark.parametrize(
    "value", ["null", "[]", "[null]", '"x"', "1", "true", "{}", '{"choices":{}}', '{"choices":"x"}', '{"choices":true}']
)
def test_odd_json_is_no_chunk_and_no_fault(value: str) -> None:
    odd = f"data: {value}\n\n".encode()
    assert texts(events(odd + chunk({"content": "Hi"}) + odd + STOP + odd + DONE)) == ["Hi"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "id",
                    "created",
                    "model",
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "reasoning",
                    "refusal",
                    "tool_calls",
                    "index",
                    "function",
                    "name",
                    "arguments",
                    "finish_reason",
                    "usage",
                    "prompt_tokens",
                    "total_tokens",
                    "error",
                    "code",
                    "prompt_tokens_details",
                    "function_call",
                    "type",
                    "text",
                    "thinking",
                    "x_groq",
                    "object",
                    "base_resp",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4), st.booleans())
def test_no_json_breaks_the_decoder(values: list[Any], whole: bool) -> None:
    """Whatever the shape: events in legal order, or a provider's error."""
    if whole:
        body = json.dumps({"choices": values}).encode()
    else:
        body = b"".join(b"data: " + json.dumps({"choices": [v], "usage": v}).encode() + b"\n\n" for v in values)
        body += b"".join(b"data: " + json.dumps(v).encode() + b"\n\n" for v in values) + STOP + DONE
    try:
        found = events(body)
    except ProviderError:
        return
    check_order(found)


# -- tool calls ----------------------------------------------------------------------------------------------------

CALL = chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]})


def call_ids(*turns: Any) -> list[str]:
    made = reading(*turns)
    return [event.id for event in made.feed(CALL + STOP + DONE) if isinstance(event, ToolCallStarted)]


def test_made_up_ids_differ_between_the_turns_of_a_conversation_and_are_stable() -> None:
    """quirk 43"""
    one, two = call_ids(User("Hi")), call_ids(User("Hi"), Assistant("Hello"), User("And?"))
    assert one != two
    assert one == call_ids(User("Hi"))
    assert one[0].startswith("call_")


@given(
    st.recursive(
        st.text(max_size=5) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    st.data(),
)
def test_arguments_are_complete_at_their_last_bracket_however_they_are_cut(value: Any, data: st.DataObject) -> None:
    text = json.dumps({"a": value}, ensure_ascii=data.draw(st.booleans()))
    call = Call()
    place = 0
    while place < len(text):
        assert not call.complete
        size = data.draw(st.integers(1, 4))
        call.take(text[place : place + size])
        place += size
    assert call.complete


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["", "call_a", "call_b"]),
            st.sampled_from(["", "f", "g"]),
            st.sampled_from(["", "{", '"a":1', "}", "{}"]),
        ),
        max_size=8,
    )
)
def test_any_mixture_of_fragments_gives_legal_events_and_loses_no_argument(
    fragments: list[tuple[int, str, str, str]],
) -> None:
    body = b"".join(
        chunk({"tool_calls": [{"index": index, "id": identity, "function": {"name": name, "arguments": arguments}}]})
        for index, identity, name, arguments in fragments
    )
    try:
        found = check_order(events(body + chunk({"content": "x"}) + chunk({}, "length") + DONE))
    except ProtocolViolated:
        # a call that never got a name
        return
    sent = "".join(sorted("".join(arguments for *_, arguments in fragments)))
    assert "".join(sorted("".join(event.arguments for event in found if isinstance(event, ToolCallDelta)))) == sent


# -- usage ---------------------------------------------------------------------------------------------------------


def usage(**raw: Any) -> Usage:
    return usage_of(raw, "openai")


def classes(found: Usage) -> dict[str, int]:
    names = (
        "input",
        "cache_read",
        "cache_write",
        "cache_write_1h",
        "input_audio",
        "output",
        "reasoning",
        "output_audio",
    )
    return {name: value for name in names if (value := getattr(found, name))}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}, {"input": 9, "output": 3}),
        ({"input_tokens": 9, "output_tokens": 3}, {"input": 9, "output": 3}),
        ({"prompt_tokens": 9, "total_tokens": 12}, {"input": 9, "output": 3}),
        ({"completion_tokens": 3, "total_tokens": 12}, {"input": 9, "output": 3}),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 4},
                "cached_tokens": 4,
            },
            {"input": 5, "cache_read": 4, "output": 3},
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 0,
                "prompt_tokens_details": {
                    "cached_tokens": 2,
                    "cache_creation_input_tokens": 5,
                    "cache_creation": {"ephemeral_1h_input_tokens": 3, "ephemeral_5m_input_tokens": 2},
                },
            },
            {"input": 2, "cache_read": 2, "cache_write": 2, "cache_write_1h": 3},
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 0,
                "prompt_tokens_details": {"cache_creation": {"ephemeral_5m_input_tokens": 4}},
            },
            {"input": 5, "cache_write": 4},
        ),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 80, "audio_tokens": 90},
                "completion_tokens_details": {"audio_tokens": 40},
            },
            {"cache_read": 80, "input_audio": 20, "output": 10, "output_audio": 40},
        ),
        (
            {
                "prompt_tokens": 1,
                "completion_tokens": 9,
                "total_tokens": 10,
                "completion_tokens_details": {"reasoning_tokens": 9},
            },
            {"input": 1, "reasoning": 9},
        ),
    ],
)
def test_usage_becomes_disjoint_classes(raw: dict[str, Any], expected: dict[str, int]) -> None:
    found = usage_of(raw, "openai")
    assert classes(found) == expected
    assert found.flag is None
    assert found.extra == Extra("openai", answer={"usage": raw})


COUNT = st.integers(0, 50) | st.floats(0, 50) | st.none()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"), COUNT),
            "prompt_tokens_details": st.none()
            | st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens"]), COUNT),
            "completion_tokens_details": st.none()
            | st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens"]), COUNT),
        },
    ).filter(counts)
)
def test_classes_are_never_negative_and_add_up_unless_flagged(raw: dict[str, Any]) -> None:
    found = usage_of(raw, "openai")
    assert all(value > 0 for value in classes(found).values())
    prompt, completion, total = raw.get("prompt_tokens"), raw.get("completion_tokens"), raw.get("total_tokens")
    if found.flag is None and total is not None:
        assert found.prompt_total + found.completion_total == round(total)
    if found.flag is None and prompt is not None:
        assert found.prompt_total == round(prompt)
    if found.flag is None and completion is not None and total is None:
        assert found.completion_total == round(completion)


@pytest.mark.parametrize(
    "value", [None, {}, [], "x", {"queue_time": 0.2}, {"prompt_tokens": None}, {"prompt_tokens": True}]
)
def test_usage_without_counts_is_none(value: Any) -> None:
    assert not counts(value)


@pytest.mark.parametrize(
    ("raw", "expected", "flag"),
    [
        ({"completion_tokens": 3}, {"output": 3}, "the tokens of the prompt are not told"),
        ({"prompt_tokens": 9}, {"input": 9}, "the tokens of the completion are not told"),
        (
            {"prompt_tokens": "12", "completion_tokens": 3},
            {"output": 3},
            "prompt_tokens is no number; the tokens of the prompt are not told",
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1e15},
            {"input": 9},
            "completion_tokens is not believed; the tokens of the completion are not told",
        ),
        (
            {"prompt_tokens": 10**9 + 1, "completion_tokens": 3, "total_tokens": 10**9 + 4},
            {"output": 3},
            "prompt_tokens is not believed; total_tokens is not believed; the tokens of the prompt are not told",
        ),
        (
            {"total_tokens": 12},
            {"input": 12},
            "the tokens of the prompt are not told; the tokens of the completion are not told",
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 10**10}},
            {"input": 9, "output": 3},
            "cached_tokens is not believed",
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"audio_tokens": 10}},
            {"input_audio": 9, "output": 3},
            "audio_tokens is 10, more than prompt_tokens (9)",
        ),
    ],
)
def test_a_side_that_is_not_told_or_not_believed_is_flagged(
    raw: dict[str, Any], expected: dict[str, int], flag: str
) -> None:
    found = usage_of(raw, "openai")
    assert (classes(found), found.flag) == (expected, flag)


@pytest.mark.parametrize("many", [10**9 + 1, 10**12, 1e14, 1e300, float("inf"), float("nan")])
def test_a_count_beyond_belief_is_none_and_our_own_is_taken(many: float) -> None:
    assert not counts({"prompt_tokens": many, "completion_tokens": many, "total_tokens": many})
    assert usage(prompt_tokens=10**9, completion_tokens=0, total_tokens=10**9).input == 10**9


def test_negative_counts_are_flagged() -> None:
    found = usage(prompt_tokens=-5, completion_tokens=3)
    assert classes(found) == {"output": 3}
    assert found.flag == "a count is negative"


COUNTS = (
    st.integers(-3, 40) | st.sampled_from([10**9, 10**9 + 1, 10**12]) | st.none() | st.floats(-2, 40) | st.just("5")
)
PLAIN = st.integers(0, 40)


@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "cost"]), COUNTS
    ),
    st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "odd"]), COUNTS),
    st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens", "text_tokens"]), COUNTS),
)
def test_any_usage_object_is_counted_alike_on_the_short_and_the_careful_way(
    top: dict[str, Any], prompt: dict[str, Any], completion: dict[str, Any]
) -> None:
    raw = {**top, "prompt_tokens_details": prompt, "completion_tokens_details": completion}
    assert usage_of(raw, "openai") == careful_usage_of(raw, "openai")


@given(PLAIN, PLAIN, PLAIN, PLAIN, PLAIN)
def test_a_plain_usage_object_is_counted_alike_on_both_ways(
    prompt: int, completion: int, cached: int, audio: int, reasoning: int
) -> None:
    raw = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": audio},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    assert usage_of(raw, "openai") == careful_usage_of(raw, "openai")
