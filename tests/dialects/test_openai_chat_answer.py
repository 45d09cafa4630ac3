"""Folded answers, usage and errors → the JSON that OpenAI's clients read."""

import json
from typing import Any

import pytest
from hypothesis import given
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion

from router.dialect import Asked
from router.dialects.openai_chat import OpenAIChat
from router.dialects.openai_chat_answer import usage_fields
from router.errors import (
    AuthenticationFailed,
    BodyTooLarge,
    BudgetSpent,
    ClientGone,
    ContextTooLong,
    InternalError,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    ProviderUnavailable,
    RateLimited,
    RouterError,
    TimedOut,
    UnknownModel,
    VendorAuthFailed,
    VendorFailed,
)
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
from support.event_streams import USAGES

DIALECT = OpenAIChat(clock=lambda: 1_790_000_000.9)
REQUEST = ChatRequest(model="route", messages=(User("Hi"),), protocol="openai")
STOP = ChoiceFinished(0, "stop")
CALLED = ChoiceFinished(0, "tool_calls")


def whole(*events: Event, start: Started | None = None, request: ChatRequest = REQUEST) -> dict[str, Any]:
    fold = Fold()
    for event in (start or Started("chatcmpl-1", "m", 1), *events, Completed()):
        fold.add(event)
    answer: dict[str, Any] = json.loads(DIALECT.whole(Asked(request), fold.result(), "req_7"))
    return answer


def message(*events: Event, request: ChatRequest = REQUEST) -> dict[str, Any]:
    found: dict[str, Any] = whole(*events, request=request)["choices"][0]["message"]
    return found


# -- whole answers -------------------------------------------------------------------------------------------------


def test_a_text_answer() -> None:
    answer = whole(TextDelta(0, 0, "Hel"), TextDelta(0, 0, "lo"), STOP, UsageReported(Usage(input=9, output=1)))
    assert answer == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 1,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
    }


def test_what_the_vendor_leaves_out_is_filled_in() -> None:
    answer = whole(STOP, start=Started("", "", 0))
    assert (answer["id"], answer["model"], answer["created"]) == ("chatcmpl-7", "route", 1_790_000_000)
    assert "usage" not in answer


def test_tool_calls_alone_have_a_null_content() -> None:
    events = [
        ToolCallStarted(0, 0, "a", "look"),
        ToolCallStarted(0, 1, "b", "sql", "custom"),
        ToolCallDelta(0, 1, "select 1"),
        ToolCallDelta(0, 0, '{"a":1}'),
    ]
    answer = whole(*events, CALLED)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
            {"id": "b", "type": "custom", "custom": {"name": "sql", "input": "select 1"}},
        ],
    }
    ChatCompletion.model_validate(answer)


def test_a_zero_argument_call_gets_an_empty_object() -> None:
    """quirk 48: arguments are null, empty or missing for tools without parameters; clients parse them."""
    function, custom = message(ToolCallStarted(0, 0, "a", "f"), ToolCallStarted(0, 1, "b", "c", "custom"), CALLED)[
        "tool_calls"
    ]
    assert (function["function"]["arguments"], custom["custom"]["input"]) == ("{}", "")


@pytest.mark.parametrize(
    ("events", "content"),
    [
        ([], ""),
        ([TextDelta(0, 0, "")], ""),
        ([ReasoningDelta(0, 0, "hm")], ""),
        ([RefusalDelta(0, 0, "no")], None),
        ([ToolCallStarted(0, 0, "a", "f")], None),
        ([ReasoningDelta(0, 0, "hm"), ToolCallStarted(0, 1, "a", "f")], None),
        ([TextDelta(0, 0, "I look."), ToolCallStarted(0, 1, "a", "f")], "I look."),
        ([Extended(Extra("openai", block={"audio": {"id": "a"}}), 0)], None),
    ],
)
def test_content_is_null_only_where_the_answer_is_something_else(events: list[Event], content: str | None) -> None:
    assert message(*events, STOP)["content"] == content


def test_reasoning_and_refusal() -> None:
    found = message(ReasoningDelta(0, 0, "hm"), RefusalDelta(0, 1, "no"), STOP)
    assert (found["reasoning_content"], found["refusal"]) == ("hm", "no")
    assert "reasoning_content" not in message(TextDelta(0, 0, "x"), BlockSigned(0, 1, "seal", "redacted"), STOP)


def test_choices_come_in_the_order_of_their_index() -> None:
    answer = whole(TextDelta(1, 0, "b"), TextDelta(0, 0, "a"), ChoiceFinished(1, "length"), STOP)
    found = [(choice["index"], choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]]
    assert found == [(0, "a", "stop"), (1, "b", "length")]


def test_a_client_of_the_deprecated_functions_gets_a_function_call() -> None:
    request = ChatRequest(
        model="m", messages=(User("Hi"),), protocol="openai", tools=(FunctionTool("look", deprecated=True),)
    )
    answer = whole(ToolCallStarted(0, 0, "a", "look"), CALLED, request=request)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "look", "arguments": "{}"}
    assert "tool_calls" not in choice["message"]
    ChatCompletion.model_validate(answer)


def test_openais_extras_come_back_on_their_level_and_replace_nothing_of_ours() -> None:
    citation = {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 1, "title": "t", "url": "u"}}
    token = {"token": "x", "bytes": None, "logprob": -0.1, "top_logprobs": []}
    extra = Extra(
        "openai",
        answer={"provider": "p", "id": "other", "choices": [{}], "usage": {}, "obfuscation": "x"},
        choice={"logprobs": {"content": [token], "refusal": None}, "finish_reason": "x", "message": {"a": 1}},
        block={"annotations": [citation], "content": "other", "role": "other"},
    )
    start = Started("chatcmpl-1", "m", 1, Extra("openai", answer={"service_tier": "flex", "system_fingerprint": "fp"}))
    answer = whole(TextDelta(0, 0, "x", extra), STOP, start=start)
    assert answer == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "service_tier": "flex",
        "system_fingerprint": "fp",
        "provider": "p",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x", "refusal": None, "annotations": [citation]},
                "logprobs": {"content": [token], "refusal": None},
                "finish_reason": "stop",
            }
        ],
    }
    ChatCompletion.model_validate(answer)


def test_fields_inside_a_tool_call_join_it() -> None:
    """Gemini's thought signatures come inside the item of `tool_calls`, and must return there."""
    signed = Extra("openai", block={"tool_calls": [{"index": 1, "extra_content": {"signature": "s"}}]})
    first, second = message(ToolCallStarted(0, 0, "a", "f"), ToolCallStarted(0, 1, "b", "g", extra=signed), CALLED)[
        "tool_calls"
    ]
    assert "extra_content" not in first
    assert second["extra_content"] == {"signature": "s"}
    assert "index" not in second


def test_other_protocols_extras_are_not_for_these_clients() -> None:
    other = Extra("anthropic", answer={"a": 1}, choice={"b": 2}, block={"c": 3})
    plain = whole(TextDelta(0, 0, "x"), STOP)
    start = Started("chatcmpl-1", "m", 1, other)
    assert whole(TextDelta(0, 0, "x", other), Extended(other, 0), STOP, start=start) == plain


# -- usage ---------------------------------------------------------------------------------------------------------


@given(USAGES)
def test_the_details_are_subsets_of_the_totals(usage: Usage) -> None:
    found = CompletionUsage.model_validate(usage_fields(usage))
    prompt, completion = found.prompt_tokens_details, found.completion_tokens_details
    assert prompt is not None
    assert completion is not None
    written = prompt.cache_write_tokens or 0
    uncached = found.prompt_tokens - (prompt.cached_tokens or 0) - (prompt.audio_tokens or 0) - written
    assert uncached == usage.input
    assert written == usage.cache_write + usage.cache_write_1h
    assert found.completion_tokens - (completion.reasoning_tokens or 0) - (completion.audio_tokens or 0) == usage.output
    assert found.total_tokens == found.prompt_tokens + found.completion_tokens


def test_written_cache_is_told_only_where_there_is_any() -> None:
    assert "cache_write_tokens" not in usage_fields(Usage(input=1))["prompt_tokens_details"]
    raw = {"prompt_tokens_details": {"cache_write_tokens": 0}}
    told = usage_fields(Usage(input=1, extra=Extra("openai", answer={"usage": raw})))
    assert told["prompt_tokens_details"]["cache_write_tokens"] == 0


def test_the_vendors_further_counts_stay_and_its_wrong_sums_do_not() -> None:
    """quirk 23: xAI leaves the reasoning out of `completion_tokens`."""
    raw = {
        "prompt_tokens": 307,
        "completion_tokens": 26,
        "total_tokens": 560,
        "cost": 0.1,
        "prompt_tokens_details": None,
        "completion_tokens_details": {"reasoning_tokens": 227, "accepted_prediction_tokens": 3},
    }
    usage = Usage(input=307, output=26, reasoning=227, extra=Extra("openai", answer={"usage": raw}))
    assert usage_fields(usage) == {
        "prompt_tokens": 307,
        "completion_tokens": 253,
        "total_tokens": 560,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 227, "audio_tokens": 0, "accepted_prediction_tokens": 3},
        "cost": 0.1,
    }


def test_another_protocols_counts_are_not_shown() -> None:
    raw = {"input_tokens": 1, "cost": 3}
    assert usage_fields(Usage(input=1, extra=Extra("anthropic", answer={"usage": raw}))) == usage_fields(Usage(input=1))


def test_an_estimate_is_shown_too() -> None:
    answer = whole(STOP, UsageReported(Usage(input=5, source="estimated")))
    assert answer["usage"]["prompt_tokens"] == 5


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InvalidRequest("m"), "invalid_request_error", "invalid_value"),
        (AuthenticationFailed("m"), "invalid_request_error", "invalid_api_key"),
        (PermissionDenied("m"), "permission_error", "permission_denied"),
        (UnknownModel("m"), "invalid_request_error", "model_not_found"),
        (BodyTooLarge("m"), "invalid_request_error", "request_too_large"),
        (ContextTooLong("m"), "invalid_request_error", "context_length_exceeded"),
        (RateLimited("m"), "rate_limit_error", "rate_limit_exceeded"),
        (BudgetSpent("m"), "insufficient_quota", "budget_exceeded"),
        (Overloaded("m"), "service_unavailable_error", "gateway_overloaded"),
        (ProviderUnavailable("m"), "service_unavailable_error", "provider_unavailable"),
        (TimedOut("m"), "server_error", "provider_timeout"),
        (VendorAuthFailed("m"), "server_error", "provider_authentication_failed"),
        (VendorFailed("m"), "server_error", "upstream_error"),
        (InternalError("m"), "server_error", "internal_error"),
        (ClientGone("m"), "server_error", "client_gone"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RouterError) else None,
)
def test_errors_have_all_four_keys_and_openais_words(error: RouterError, kind: str, code: str) -> None:
    body = json.loads(DIALECT.error(error, "req_7"))
    assert body == {"error": {"message": "m", "type": kind, "param": None, "code": code}}


def every_error(cls: type[RouterError] = RouterError) -> list[type[RouterError]]:
    return [cls, *(error for inner in cls.__subclasses__() for error in every_error(inner))]


@pytest.mark.parametrize("cls", every_error(), ids=lambda cls: cls.__name__)
def test_every_error_can_be_said(cls: type[RouterError]) -> None:
    error = json.loads(DIALECT.error(cls("m"), "req_7"))["error"]
    assert error["type"].endswith("_error") or error["type"] == "insufficient_quota"


@pytest.mark.parametrize(
    ("param", "written"),
    [("messages[0].role", "messages[0].role"), ("$.messages[0].role", "messages[0].role"), ("$", None), (None, None)],
)
def test_the_place_is_written_as_openai_does(param: str | None, written: str | None) -> None:
    assert json.loads(DIALECT.error(InvalidRequest("m", param=param), "r"))["error"]["param"] == written
