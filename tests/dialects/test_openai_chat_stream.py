"""Events → OpenAI's chat completion chunks, read back by OpenAI's own client library."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import httpx_sse
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._models import BaseModel
from openai._streaming import SSEDecoder
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from router.dialect import Asked
from router.dialects.openai_chat import OpenAIChat
from router.dialects.openai_chat_stream import StreamEncoder
from router.errors import RateLimited, StreamCut
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
from router.fold import Fold
from router.messages import ChatRequest, FunctionTool, User
from support.event_streams import OPENAI_EXTRAS, legal_streams

DIALECT = OpenAIChat(clock=lambda: 1_790_000_000.9)
REQUEST = ChatRequest(model="route", messages=(User("Hi"),), protocol="openai", stream=True)
START = Started("chatcmpl-1", "m", 1)
SDK_KINDS = ("text", "reasoning", "refusal", "function", "opaque")
"""OpenAI's library has no word for a streamed call of a custom tool."""


def encoder(*, include_usage: bool = False, request: ChatRequest = REQUEST) -> StreamEncoder:
    return DIALECT.stream(Asked(request, include_usage), "req_7")


def encoded(events: list[Event], **options: Any) -> bytes:
    stream = encoder(**options)
    return b"".join(map(stream.encode, events))


def payloads(body: bytes) -> list[dict[str, Any]]:
    frames = body.split(b"\n\n")
    assert frames.pop() == b""
    assert all(frame.startswith(b"data: {") and b"\n" not in frame for frame in frames)
    return [json.loads(frame[6:]) for frame in frames]


def chunks(events: list[Event], **options: Any) -> list[dict[str, Any]]:
    return payloads(encoded(events, **options))


def deltas(events: list[Event], **options: Any) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks(events, **options) for choice in chunk["choices"]]


# -- every event ---------------------------------------------------------------------------------------------------


def test_a_text_answer_byte_by_byte() -> None:
    events: list[Event] = [START, TextDelta(0, 0, 'H"i\n'), ChoiceFinished(0, "stop"), Completed()]
    head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    assert encoded(events) == b"".join(
        [
            head
            + b'"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]}\n\n',
            head + b'"delta":{"content":"H\\"i\\n"},"logprobs":null,"finish_reason":null}]}\n\n',
            head + b'"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n',
        ]
    )


def test_the_end_the_heartbeat_and_a_failure() -> None:
    stream = encoder()
    assert stream.end() == b"data: [DONE]\n\n"
    assert DIALECT.heartbeat == b": ping\n"
    assert DIALECT.failure(StreamCut("upstream closed"), "req_7") == (
        b'data: {"error":{"message":"upstream closed","type":"server_error","param":null,"code":"stream_cut",'
        b'"request_id":"req_7"}}\n\n'
    )


def test_what_the_vendor_leaves_out_is_filled_in() -> None:
    (first, *_) = chunks([Started("", "", 0), ChoiceFinished(0, "stop")])
    assert (first["id"], first["model"], first["created"]) == ("chatcmpl-7", "route", 1_790_000_000)


def test_reasoning_and_refusals_have_fields_of_their_own() -> None:
    events: list[Event] = [START, ReasoningDelta(0, 0, "hm"), RefusalDelta(0, 1, "no"), RefusalDelta(0, 1, "!")]
    assert deltas(events)[1:] == [{"reasoning_content": "hm"}, {"refusal": "no"}, {"refusal": "!"}]


def test_the_parts_of_a_reasoning_summary_are_paragraphs() -> None:
    places = [(0, 0, "a"), (0, 0, "b"), (0, 1, "c"), (1, 0, "d"), (1, 3, "e"), (1, 3, "f")]
    events = [START, *(ReasoningDelta(0, slot, text, "summary", part) for slot, part, text in places)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas(events)) == "ab\n\ncd\n\nef"


def test_tool_calls_are_numbered_densely_with_id_and_name_once() -> None:
    events: list[Event] = [
        START,
        ReasoningDelta(0, 0, "hm"),
        ToolCallStarted(0, 1, "call_a", "look"),
        ToolCallStarted(0, 2, "call_b", "sql", "custom"),
        ToolCallDelta(0, 2, "select"),
        ToolCallDelta(0, 1, '{"a":'),
        ToolCallDelta(0, 1, "1}"),
    ]
    assert [delta["tool_calls"] for delta in deltas(events)[2:]] == [
        [{"index": 0, "id": "call_a", "type": "function", "function": {"name": "look", "arguments": ""}}],
        [{"index": 1, "id": "call_b", "type": "custom", "custom": {"name": "sql", "input": ""}}],
        [{"index": 1, "custom": {"input": "select"}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
    ]


def test_a_call_that_opens_the_choice_carries_the_role_and_a_null_content() -> None:
    """A strict client validates the `content: null` of an answer that is tool calls alone."""
    (delta,) = deltas([START, ToolCallStarted(1, 0, "call_a", "look")])
    assert (delta["role"], delta["content"]) == ("assistant", None)
    assert delta["tool_calls"][0]["index"] == 0


def test_a_zero_argument_call_gets_an_empty_object_before_its_finish() -> None:
    """quirk 48: arguments are null, empty or missing for tools without parameters; clients parse them."""
    events: list[Event] = [
        START,
        ToolCallStarted(0, 0, "a", "look"),
        ToolCallStarted(0, 1, "b", "find"),
        ToolCallStarted(0, 2, "c", "free", "custom"),
        ToolCallDelta(0, 0, ""),
        ToolCallDelta(0, 1, "{}"),
        ChoiceFinished(0, "tool_calls"),
    ]
    *_, last, finish = chunks(events)
    assert last["choices"][0]["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}
    assert finish["choices"][0]["finish_reason"] == "tool_calls"
    assert len(chunks(events)) == 7


def test_a_client_of_the_deprecated_functions_gets_a_function_call() -> None:
    request = ChatRequest(
        model="m", messages=(User("Hi"),), protocol="openai", tools=(FunctionTool("look", deprecated=True),)
    )
    events: list[Event] = [
        START,
        ToolCallStarted(0, 0, "a", "look"),
        ToolCallDelta(0, 0, "{}"),
        ToolCallStarted(0, 1, "b", "look"),
        ChoiceFinished(0, "tool_calls"),
    ]
    first, second, third, *_, finish = chunks(events, request=request)
    assert first["choices"][0]["delta"] == {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "look", "arguments": ""},
    }
    assert second["choices"][0]["delta"] == {"function_call": {"arguments": "{}"}}
    assert third["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
    assert finish["choices"][0]["finish_reason"] == "function_call"


def test_usage_comes_only_to_those_who_asked() -> None:
    events: list[Event] = [START, TextDelta(0, 0, "x"), ChoiceFinished(0, "stop")]
    usage: list[Event] = [UsageReported(Usage(input=2, output=1)), Completed()]
    assert chunks(events + usage) == chunks(events)
    assert all("usage" not in chunk for chunk in chunks(events))
    *before, last = chunks(events + usage, include_usage=True)
    assert len(before) == 3
    assert all(chunk["usage"] is None for chunk in before)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 3)


def test_seals_and_other_protocols_extras_are_not_for_these_clients() -> None:
    other = Extra("anthropic", answer={"a": 1}, choice={"b": 2}, block={"c": 3})
    plain: list[Event] = [START, TextDelta(0, 0, "x"), ChoiceFinished(0, "stop"), Completed()]
    events: list[Event] = [
        Started("chatcmpl-1", "m", 1, other),
        TextDelta(0, 0, "x", other),
        BlockSigned(0, 0, "seal", extra=other),
        Extended(other),
        Extended(other, 0),
        ChoiceFinished(0, "stop", extra=other),
        Completed(other),
    ]
    assert encoded(events) == encoded(plain)


def test_constants_of_the_answer_are_on_every_chunk() -> None:
    extra = Extra("openai", answer={"service_tier": "flex", "system_fingerprint": "fp", "obfuscation": "x"})
    events: list[Event] = [
        Started("", "", 0, extra),
        TextDelta(0, 0, "x"),
        TextDelta(0, 0, "y", Extra("openai", answer={"service_tier": "flex"})),
        ToolCallStarted(0, 1, "i", "n"),
        ToolCallDelta(0, 1, "{}"),
        ChoiceFinished(0, "stop"),
        UsageReported(Usage()),
    ]
    found = chunks(events, include_usage=True)
    assert len(found) == 7
    for chunk in found:
        assert (chunk["service_tier"], chunk["system_fingerprint"]) == ("flex", "fp")
        assert "obfuscation" not in chunk
    assert encoded(events).count(b'"service_tier"') == len(chunks(events))


def test_objects_about_the_answer_come_once() -> None:
    filters = [{"prompt_index": 0}]
    extra = Extra("openai", answer={"prompt_filter_results": filters})
    first, *others = chunks([Started("", "", 0, extra), TextDelta(0, 0, "x")], include_usage=True)
    # not in a chunk without choices, which many clients stumble over
    assert (first["choices"][0]["delta"]["role"], first["prompt_filter_results"]) == ("assistant", filters)
    assert not any("prompt_filter_results" in chunk for chunk in others)


def test_extras_are_written_on_their_level_and_replace_nothing_of_ours() -> None:
    extra = Extra(
        "openai",
        answer={"provider": "p", "id": "other", "choices": 1, "usage": 1},
        choice={"logprobs": {"content": []}, "index": 9, "finish_reason": "x", "content_filter_results": {}},
        block={"reasoning_details": [1], "content": "other", "role": "x"},
    )
    chunk = chunks([START, TextDelta(0, 0, "x"), TextDelta(0, 0, "y", extra)])[-1]
    assert chunk == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "provider": "p",
        "choices": [
            {
                "index": 0,
                "delta": {"content": "y", "reasoning_details": [1]},
                "logprobs": {"content": []},
                "finish_reason": None,
                "content_filter_results": {},
            }
        ],
    }


def test_fields_inside_a_tool_call_join_it() -> None:
    """Gemini's thought signatures come inside the item of `tool_calls`, and must return there."""
    signed = {"tool_calls": [{"index": 0, "extra_content": {"google": {"thought_signature": "s"}}}]}
    (delta,) = deltas([START, ToolCallStarted(0, 0, "i", "n", extra=Extra("openai", block=signed))])
    assert delta["tool_calls"] == [
        {
            "index": 0,
            "id": "i",
            "type": "function",
            "function": {"name": "n", "arguments": ""},
            "extra_content": {"google": {"thought_signature": "s"}},
        }
    ]


@pytest.mark.parametrize(
    "event",
    [
        Extended(Extra("openai", choice={"content_filter_results": {}}), 0),
        Extended(Extra("openai", block={"audio": {"id": "a"}}), 0),
        BlockSigned(0, 0, "s", extra=Extra("openai", block={"extra_content": {}})),
        ToolCallStarted(0, 0, "i", "n"),
        TextDelta(0, 0, "x", Extra("openai", choice={"a": 1})),
        ReasoningDelta(0, 0, "x"),
        RefusalDelta(0, 0, "x"),
        ChoiceFinished(0, "stop"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_whatever_opens_a_choice_the_role_comes_first(event: Event) -> None:
    assert deltas([START, event])[0]["role"] == "assistant"


def test_a_filter_result_may_follow_the_finish() -> None:
    late = Extended(Extra("openai", choice={"content_filter_results": {"hate": 1}}), 0)
    *_, chunk = chunks([START, TextDelta(0, 0, "x"), ChoiceFinished(0, "stop"), late])
    assert chunk["choices"][0]["content_filter_results"] == {"hate": 1}
    assert chunk["choices"][0]["finish_reason"] is None


def test_extras_of_the_end_have_a_chunk_of_their_own() -> None:
    chunk = chunks([START, ChoiceFinished(0, "stop"), Completed(Extra("openai", answer={"moderation": {}}))])[-1]
    assert (chunk["choices"], chunk["moderation"]) == ([], {})


# -- what clients make of it ---------------------------------------------------------------------------------------


def add(into: dict[str, Any], new: dict[str, Any]) -> None:
    """Accumulates deltas as OpenAI's documentation tells clients to: texts join, calls are keyed by index."""
    for key, value in new.items():
        old = into.get(key)
        if old is None:
            into[key] = [] if isinstance(value, list) else {} if isinstance(value, dict) else value
            old = into[key]
            if isinstance(value, str | int | None):
                continue
        if isinstance(value, str):
            into[key] = value if key in ("id", "type", "role", "finish_reason", "index") else old + value
        elif isinstance(value, dict):
            add(old, value)
        elif isinstance(value, list) and key in ("tool_calls", "reasoning_details"):
            for item in value:
                known = next((one for one in old if one["index"] == item["index"]), None)
                if known is None:
                    known = {}
                    old.append(known)
                add(known, item)
        elif isinstance(value, list):
            old.extend(value)


def accumulated(found: list[dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {key: value for key, value in found[0].items() if key not in ("choices", "usage")}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in found:
        if chunk.get("usage"):
            answer["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            one = choices.setdefault(choice["index"], {"message": {}})
            add(one["message"], choice["delta"])
            add(one, {key: value for key, value in choice.items() if key not in ("delta", "index")})
    answer["object"] = "chat.completion"
    answer["choices"] = [{"index": index, **choices[index]} for index in sorted(choices)]
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls", []):
            del call["index"]
    return answer


@given(legal_streams(extras=OPENAI_EXTRAS, in_order=True))
def test_the_accumulated_chunks_are_the_whole_answer(events: list[Event]) -> None:
    fold = Fold()
    for event in events:
        fold.add(event)
    whole = json.loads(DIALECT.whole(Asked(REQUEST), fold.result(), "req_7"))
    streamed = accumulated(chunks(events, include_usage=True))
    for answer in (whole, streamed):
        for choice in answer["choices"]:
            # a stream cannot know at its start that no text will come
            choice["message"]["content"] = choice["message"]["content"] or None
            # an empty piece of reasoning or refusal is nothing
            for key in ("refusal", "reasoning_content"):
                choice["message"][key] = choice["message"].get(key) or None
    assert streamed == whole
    assert "usage" in whole or not any(isinstance(event, UsageReported) for event in events)


@given(legal_streams(kinds=SDK_KINDS, extras=OPENAI_EXTRAS), st.booleans())
def test_openais_library_validates_every_chunk(events: list[Event], include_usage: bool) -> None:
    finished: dict[int, int] = {}
    roles: dict[int, int] = {}
    found = chunks(events, include_usage=include_usage)
    for fields in found:
        chunk = ChatCompletionChunk.model_validate(fields)
        assert (chunk.id, chunk.model, chunk.created) == (found[0]["id"], found[0]["model"], found[0]["created"])
        for choice in chunk.choices:
            finished[choice.index] = finished.get(choice.index, 0) + (choice.finish_reason is not None)
            roles[choice.index] = roles.get(choice.index, 0) + (choice.delta.role is not None)
            if roles[choice.index] == 1 and choice.delta.role:
                assert finished[choice.index] == 0
            for call in choice.delta.tool_calls or []:
                assert call.index >= 0
    choices = {event.choice for event in events if isinstance(event, ChoiceFinished)}
    assert finished == roles == dict.fromkeys(choices, 1)


@settings(max_examples=50)
@given(legal_streams(kinds=("text", "function", "custom")))
def test_tool_indexes_are_dense_from_zero(events: list[Event]) -> None:
    seen: dict[int, list[int]] = {}
    for chunk in chunks(events):
        for choice in chunk["choices"]:
            for call in choice["delta"].get("tool_calls", []):
                order = seen.setdefault(choice["index"], [])
                if "id" in call:
                    order.append(call["index"])
                assert call["index"] in order
    assert all(order == list(range(len(order))) for order in seen.values())


def sdk_data(pieces: list[bytes]) -> list[str]:
    return [sse.data for sse in SSEDecoder().iter_bytes(iter(pieces))]


def httpx_sse_data(pieces: list[bytes]) -> list[str]:
    class Body(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from pieces

    headers = {"content-type": "text/event-stream"}
    response = httpx.Response(200, headers=headers, stream=Body(), request=httpx.Request("POST", "http://x"))
    return [sse.data for sse in httpx_sse.EventSource(response).iter_sse()]


@pytest.mark.parametrize("read", [sdk_data, httpx_sse_data])
@settings(max_examples=40)
@given(legal_streams(kinds=SDK_KINDS), st.data())
def test_heartbeats_anywhere_between_chunks_are_not_seen(read: Any, events: list[Event], data: st.DataObject) -> None:
    stream = encoder(include_usage=True)
    pieces = [piece for piece in [*map(stream.encode, events), stream.end()] if piece]
    quiet = read(pieces)
    beats = data.draw(st.lists(st.integers(0, 2), min_size=len(pieces), max_size=len(pieces)))
    loud = read([part for piece, count in zip(pieces, beats, strict=True) for part in [b": ping\n"] * count + [piece]])
    assert loud == quiet
    assert quiet[-1] == "[DONE]"
    assert [json.loads(text) for text in quiet[:-1]] == chunks(events, include_usage=True)


@pytest.mark.parametrize("read", [sdk_data, httpx_sse_data])
def test_a_failure_is_one_event_even_after_a_heartbeat(read: Any) -> None:
    stream = encoder()
    error = DIALECT.failure(RateLimited("slow down", retry_after=2), "req_7")
    (text,) = read([stream.encode(START), DIALECT.heartbeat, error])
    assert json.loads(text)["error"]["type"] == "rate_limit_error"


def test_text_is_written_as_utf_8_and_line_separators_are_kept() -> None:
    text = "é 🐟 \u2028 \x00 \x7f </script>"
    body = encoded([START, TextDelta(0, 0, text)])
    assert "🐟".encode() in body
    assert payloads(body)[1]["choices"][0]["delta"]["content"] == text


def test_the_library_reads_a_custom_call_without_validating() -> None:
    (fields,) = chunks([START, ToolCallStarted(0, 0, "i", "sql", "custom")])
    chunk = ChatCompletionChunk.construct(**fields)
    assert isinstance(chunk, BaseModel)
    calls = chunk.choices[0].delta.tool_calls
    assert calls is not None
    assert calls[0].type == "custom"


@settings(max_examples=50)
@given(legal_streams(extras=OPENAI_EXTRAS))
def test_openais_library_validates_every_whole_answer(events: list[Event]) -> None:
    fold = Fold()
    for event in events:
        fold.add(event)
    whole = json.loads(DIALECT.whole(Asked(REQUEST), fold.result(), "req_7"))
    for choice in whole["choices"]:
        choice["message"].pop("annotations", None)
        choice["message"].pop("audio", None)
    answer = ChatCompletion.model_validate(whole)
    assert answer.to_dict(exclude_unset=True) == whole
