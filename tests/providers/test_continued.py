"""How each protocol says that the vendor is to go on with the beginning of an answer."""

from typing import Any

import msgspec
import pytest

from providers.dashscope import DashScope
from providers.openai import OpenAI
from providers.openai.options import Options
from router.messages import Assistant, ChatRequest, Thinking, ToolCall, User
from router.provider import Continues, ProviderSettings, Target
from router.splice import INSTRUCTION, continuation_of

BEGUN = Assistant("The sky is")


def asked(*messages: Any, **fields: Any) -> ChatRequest:
    return ChatRequest(
        model="chat", messages=(User("Tell me."), *messages), protocol=fields.pop("protocol", "openai"), **fields
    )


def openai(**options: Any) -> OpenAI:
    settings = ProviderSettings(name="v", base_url="https://v.example/v1", options=msgspec.convert(options, Options))
    return OpenAI(settings)


def dashscope() -> DashScope:
    return DashScope(ProviderSettings(name="qwen", base_url="https://dashscope.example/api/v1"))


def body_of(provider: OpenAI | DashScope, request: ChatRequest, model: str = "m") -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(provider.encode(request, Target("v", model)).body)
    return body


def sent(provider: OpenAI | DashScope, request: ChatRequest, model: str = "m") -> dict[str, Any]:
    return body_of(provider, continuation_of(provider, request, Target("v", model), "The sky is"), model)


def test_both_protocols_may_have_a_form_of_their_own() -> None:
    assert isinstance(openai(), Continues)
    assert isinstance(dashscope(), Continues)


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("prefill", "mark", "beside"),
    [
        ("plain", {}, {}),
        ("prefix", {"prefix": True}, {}),
        ("partial", {"partial": True}, {}),
        ("continue_final_message", {}, {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
@pytest.mark.parametrize("extra_fields", ["forward", "drop"])
def test_an_openai_row_marks_the_beginning_as_it_is_told(
    prefill: str, mark: dict[str, Any], beside: dict[str, Any], extra_fields: str, protocol: str
) -> None:
    body = sent(openai(prefill=prefill, extra_fields=extra_fields), asked(protocol=protocol))
    assert body["messages"][-1] == {"role": "assistant", "content": "The sky is", **mark}
    assert {name: value for name, value in body.items() if name not in ("model", "messages")} == beside


def test_without_the_option_the_vendor_is_asked_in_words() -> None:
    messages = sent(openai(), asked())["messages"]
    assert messages[1:] == [{"role": "assistant", "content": "The sky is"}, {"role": "user", "content": INSTRUCTION}]


@pytest.mark.parametrize("thinking", [Thinking(enabled=True), Thinking(effort="high"), Thinking(budget=100)])
def test_a_model_that_is_asked_to_think_is_asked_in_words(thinking: Thinking) -> None:
    request = asked(thinking=thinking)
    assert sent(openai(prefill="prefix"), request)["messages"][-1]["content"] == INSTRUCTION
    assert sent(dashscope(), request, "qwen-plus")["input"]["messages"][-1]["content"] == INSTRUCTION


@pytest.mark.parametrize("last", [(), (Assistant(None, (ToolCall("c", "look", "{}"),)),)])
def test_a_request_that_ends_otherwise_is_not_marked(last: tuple[Assistant, ...]) -> None:
    marked, plain = openai(prefill="continue_final_message"), openai()
    assert body_of(marked, asked(*last)) == body_of(plain, asked(*last))


def test_a_beginning_that_a_client_gave_is_marked_too() -> None:
    assert body_of(openai(prefill="prefix"), asked(BEGUN))["messages"][-1]["prefix"] is True


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize("model", ["qwen-plus", "qwen-max", "qwen3-coder-plus"])
def test_dashscope_marks_the_beginning_as_partial(model: str, protocol: str) -> None:
    messages = sent(dashscope(), asked(protocol=protocol), model)["input"]["messages"]
    assert messages[-1] == {"role": "assistant", "content": "The sky is", "partial": True}


def test_a_dashscope_model_that_thinks_by_default_does_not_when_it_goes_on() -> None:
    body = sent(dashscope(), asked(), "qwen3.7-max")
    assert body["input"]["messages"][-1]["partial"] is True
    assert body["parameters"]["enable_thinking"] is False


@pytest.mark.parametrize("model", ["qwq-plus", "qwen-mt-plus", "deepseek-v3.1", "qwen3-omni-flash"])
def test_dashscope_models_without_partial_mode_are_asked_in_words(model: str) -> None:
    last = sent(dashscope(), asked(), model)["input"]["messages"][-1]
    assert last["role"] == "user"
    assert INSTRUCTION in str(last["content"])
