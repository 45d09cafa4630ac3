"""What the OpenAI adapter learns from a refusal: once, for the right scope, and never at the answer's cost."""

from typing import Any

import msgspec
import pytest

from providers.openai import OpenAI, Options
from providers.openai.lessons import GIVEN_UP
from router.messages import ChatRequest, FunctionTool, JsonSchema, Sampling, System, User
from router.provider import HttpError, HttpRequest, ProviderSettings, Target

A, B = Target("vendor", "model-a"), Target("vendor", "model-b")


@pytest.fixture
def adapter() -> OpenAI:
    return OpenAI(ProviderSettings(name="vendor", base_url="https://vendor.example/v1", api_key="key-1"))


def asked(**fields: Any) -> ChatRequest:
    messages = (System("Be brief.", role="developer"), User("Hi"))
    return ChatRequest(model="chat", messages=messages, protocol="openai", **fields)


def body(sent: HttpRequest) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(sent.body)
    return decoded


def refused(adapter: OpenAI, answer: Any, request: ChatRequest, *, target: Target = A, status: int = 400) -> bool:
    """Whether another try is worth while after this answer."""
    sent = adapter.encode(request, target)
    error = adapter.error(HttpError(status, {}, msgspec.json.encode(answer)), target)
    return adapter.learn(error, target, sent)


def openai_error(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def extra_forbidden(*fields: str) -> dict[str, Any]:
    detail = [{"type": "extra_forbidden", "loc": ["body", f], "msg": "Extra inputs are not permitted"} for f in fields]
    return {"detail": detail}


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (400, openai_error("Unrecognized request argument supplied: stream_options")),
        (422, extra_forbidden("stream_options")),
        (400, openai_error("stream_options: unknown field", "unknown_parameter", "stream_options.include_usage")),
        (400, {"error": "invalid stream_options"}),
    ],
)
def test_stream_options_are_given_up_for_the_whole_provider(adapter: OpenAI, status: int, answer: Any) -> None:
    request = asked(stream=True)
    assert refused(adapter, answer, request, status=status)
    for target in (A, B):
        assert "stream_options" not in body(adapter.encode(request, target))


def test_token_cap_changes_its_name_for_the_model(adapter: OpenAI) -> None:
    request = asked(sampling=Sampling(max_tokens=5))
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    assert refused(adapter, openai_error(message, "unsupported_parameter", "max_tokens"), request)
    assert body(adapter.encode(request, A))["max_completion_tokens"] == 5
    assert body(adapter.encode(request, B))["max_tokens"] == 5
    assert adapter.encode(request, A).dropped == ()


def test_token_cap_that_is_refused_under_both_names_is_not_tried_for_ever(adapter: OpenAI) -> None:
    request = asked(sampling=Sampling(max_tokens=5))
    assert refused(adapter, extra_forbidden("max_tokens"), request)
    assert not refused(adapter, extra_forbidden("max_completion_tokens"), request)


def test_a_wrong_value_teaches_nothing(adapter: OpenAI) -> None:
    request = asked(sampling=Sampling(max_tokens=5, temperature=3.0))
    assert not refused(adapter, openai_error("max_tokens is too large: 5", "invalid_value", "max_tokens"), request)
    assert not refused(
        adapter, openai_error("Invalid 'temperature'", "decimal_above_max_value", "temperature"), request
    )


@pytest.mark.parametrize(
    "answer",
    [
        openai_error("'developer' is not one of ['system', 'assistant', 'user', 'tool']", None, "messages.0.role"),
        openai_error("Unexpected role: developer"),
        openai_error("messages[0].role: unknown variant `developer`, expected one of `system`, `user`"),
    ],
)
def test_developer_role_becomes_system_for_the_model(answer: Any) -> None:
    settings = ProviderSettings(
        name="vendor", base_url="https://vendor.example/v1", options=Options(developer_role=True)
    )
    adapter = OpenAI(settings)
    assert body(adapter.encode(asked(), A))["messages"][0]["role"] == "developer"
    assert refused(adapter, answer, asked())
    assert body(adapter.encode(asked(), A))["messages"][0]["role"] == "system"
    assert body(adapter.encode(asked(), B))["messages"][0]["role"] == "developer"


@pytest.mark.parametrize(
    "answer",
    [
        openai_error("Unrecognized request argument supplied: store"),
        openai_error("Unknown parameter: 'store'.", "unknown_parameter", "store"),
        openai_error("nope", "unsupported_parameter", "store"),
        openai_error("property 'store' is unsupported"),
        openai_error("store: Extra inputs are not permitted"),
        openai_error('Invalid JSON payload received. Unknown name "store": Cannot find field.'),
        openai_error('json: unknown field "store"'),
        openai_error("create() got an unexpected keyword argument 'store'"),
        extra_forbidden("store"),
        {"object": "error", "message": extra_forbidden("store"), "type": "invalid_request_message_error"},
    ],
)
def test_refused_field_is_left_out_and_reported_from_then_on(adapter: OpenAI, answer: Any) -> None:
    request = asked(extra={"store": True}, user="u1")
    assert refused(adapter, answer, request)
    again = adapter.encode(request, A)
    assert "store" not in body(again)
    assert body(again)["user"] == "u1"
    assert again.dropped == ("store",)
    assert adapter.encode(request, B).dropped == ()


def test_all_refused_fields_of_one_answer_are_learned_at_once(adapter: OpenAI) -> None:
    request = asked(extra={"store": True, "service_tier": "flex"}, user="u1", parallel_tool_calls=True)
    assert refused(adapter, extra_forbidden("store", "user", "service_tier", "parallel_tool_calls"), request)
    assert set(adapter.encode(request, A).dropped) == {"store", "user", "service_tier", "parallel_tool_calls"}
    several = openai_error("Unrecognized request arguments supplied: seed, top_p")
    assert refused(adapter, several, asked(sampling=Sampling(seed=1, top_p=0.5)))
    assert set(adapter.encode(asked(sampling=Sampling(seed=1, top_p=0.5)), A).dropped) == {"seed", "top_p"}


def test_strict_is_given_up_inside_tools_and_schemas(adapter: OpenAI) -> None:
    request = asked(tools=(FunctionTool("f", strict=True),), response_format=JsonSchema("n", {}, strict=True))
    answer = {
        "detail": [{"type": "extra_forbidden", "loc": ["body", "tools", 0, "function", "strict"], "msg": "Extra"}]
    }
    assert refused(adapter, answer, request)
    again = adapter.encode(request, A)
    assert b"strict" not in again.body
    assert set(again.dropped) == {"tools[*].function.strict", "response_format.json_schema.strict"}


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "response_format", "tool_choice", "n", "stop", "logprobs", "modalities", "enable_search"],
)
def test_fields_the_answer_depends_on_are_never_given_up(adapter: OpenAI, name: str) -> None:
    assert name not in GIVEN_UP
    request = asked(
        tools=(FunctionTool("f"),),
        tool_choice="required",
        response_format=JsonSchema("n", {}),
        sampling=Sampling(n=2, stop=("x",), logprobs=True),
        extra={"modalities": ["audio"], "enable_search": True},
    )
    assert not refused(adapter, extra_forbidden(name), request)
    assert adapter.encode(request, A).dropped == ()


def test_the_same_lesson_is_not_taught_twice(adapter: OpenAI) -> None:
    request = asked(extra={"store": True})
    sent = adapter.encode(request, A)
    error = adapter.error(HttpError(422, {}, msgspec.json.encode(extra_forbidden("store"))), A)
    assert adapter.learn(error, A, sent)
    assert not adapter.learn(error, A, sent)
    assert not adapter.learn(error, A, adapter.encode(request, A))


def test_another_call_that_was_on_its_way_meanwhile_may_try_again(adapter: OpenAI) -> None:
    one = asked(extra={"store": True}, user="u1")
    two = asked(extra={"store": True}, user="u2")
    sent = [adapter.encode(request, A) for request in (one, two)]
    error = adapter.error(HttpError(422, {}, msgspec.json.encode(extra_forbidden("store"))), A)
    assert [adapter.learn(error, A, request) for request in sent] == [True, True]
    assert [adapter.learn(error, A, request) for request in sent] == [False, False]


def test_a_field_that_was_not_sent_teaches_nothing(adapter: OpenAI) -> None:
    assert not refused(adapter, extra_forbidden("store"), asked())
    assert not refused(adapter, openai_error("Unknown parameter: 'developer'"), asked())


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_only_refusals_of_the_request_teach(adapter: OpenAI, status: int) -> None:
    assert not refused(adapter, extra_forbidden("store"), asked(extra={"store": True}), status=status)


def test_memory_is_bounded(adapter: OpenAI) -> None:
    request = asked(extra={"store": True})
    targets = [Target("vendor", f"model-{n}") for n in range(600)]
    for target in targets:
        assert refused(adapter, extra_forbidden("store"), request, target=target)
    assert adapter.encode(request, targets[-1]).dropped == ("store",)
    assert adapter.encode(request, targets[0]).dropped == ()
