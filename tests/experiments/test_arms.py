from typing import Any

import pytest
from msgspec.structs import replace

from router.config import parse
from router.dialects.openai_chat_request import RequestDecoder
from router.experiment import Arm
from router.experiments.arms import change_of, check_arms, reading
from router.messages import Assistant, ChatRequest, FunctionTool, JsonObject, System, User
from router.wire.openai_chat import ChatCompletionRequest

BASE = """
providers: {mock: {protocol: mock}}
models: {chat: {targets: [mock/echo]}}
"""


def asked(body: bytes) -> ChatRequest:
    return RequestDecoder().decode(body).request


PLAIN = b'{"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}'
FULL = b"""{"model": "chat", "temperature": 0.1, "top_p": 0.5, "max_tokens": 10, "seed": 1, "top_k": null,
  "reasoning_effort": "low", "enable_thinking": true, "stop": "a", "tools": [{"type": "function", "function":
  {"name": "f"}}], "tool_choice": "any", "verbosity": "low", "own": 1, "user": "ann", "metadata": {"a": "b"},
  "messages": [{"role": "developer", "content": "Be long"}, {"role": "user", "content": "Hi"},
  {"role": "assistant", "content": "Yes"}, {"role": "system", "content": "Late"}]}"""


def applied(request: ChatRequest, system: str | None = None, **parameters: Any) -> ChatRequest:
    change = change_of(Arm("a", 100, None, parameters, system), reading())
    return request if change is None else change.applied(request)


def problems(parameters: str, more: str = "") -> list[str]:
    text = (
        f"{BASE}experiments:\n  trial:\n    route: chat\n    arms:\n      control: {{share: 50}}\n"
        f"      other:\n        share: 50\n        parameters: {parameters}\n{more}"
    )
    loaded = parse(text, "c.yaml", {})
    return [str(problem) for problem in check_arms(loaded.config, loaded.document)]


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (
            "{temprature: 0.2}",
            "parameters.temprature` is no parameter of a request: did you mean `temperature`?",
        ),
        ("{nonsense: 1}", "is no parameter of a request (what only a vendor knows stands under `extra_body`)"),
        (
            "{temperature: hot}",
            "c.yaml:11:35: `experiments.trial.arms.other.parameters.temperature` is wrong: expected",
        ),
        ("{n: 0}", "`experiments.trial.arms.other.parameters.n` is wrong: "),
        ("{response_format: {type: json_schema}}", "is wrong: `json_schema`: required, but missing"),
        ("{model: mock/echo}", "cannot be changed by an arm: the arm's `target` says what answers"),
        ("{messages: []}", "cannot be changed by an arm: the arm's `system` replaces the system prompt"),
        ("{stream: true}", "cannot be changed by an arm: the client says how it wants its answer"),
        ("{user: ann}", "cannot be changed by an arm: it says who the client's user is"),
        ("{extra_body: 1}", "c.yaml:11:34: `experiments.trial.arms.other.parameters.extra_body` must be a mapping"),
        ("{extra_body: {seed: 1}}", "extra_body.seed` is not for a vendor alone: write it beside `extra_body`"),
        ("{extra_body: {unknown: 1, model: a}}", "extra_body.model` is not for a vendor alone"),
    ],
)
def test_a_parameter_that_is_wrong_is_named_with_its_place(parameters: str, problem: str) -> None:
    found = problems(parameters)
    assert len(found) == 1
    assert problem in found[0]
    assert found[0].startswith("c.yaml:11:")


def test_every_wrong_parameter_is_told() -> None:
    assert len(problems("{temperature: hot, top_p: low, seed: 1}")) == 2


def test_a_number_is_taken_as_it_would_be_of_a_client() -> None:
    long = "9" * 39
    assert problems(f"{{max_tokens: {long}}}") == []
    assert applied(asked(PLAIN), max_tokens=int(long)).sampling.max_tokens == int(long)


def test_a_shadow_whose_targets_name_is_a_routes_is_told() -> None:
    text = (
        "providers: {mock: {protocol: mock}}\n"
        "models: {chat: {targets: [mock/echo]}, mock/lorem-5: {targets: [mock/echo]}}\n"
        "experiments:\n  trial:\n    route: chat\n    arms: {control: {share: 100}}\n"
        "    shadow: {target: mock/lorem-5, share: 5, budget: 1 USD}\n"
    )
    loaded = parse(text, "c.yaml", {})
    (found,) = check_arms(loaded.config, loaded.document)
    assert str(found).startswith("c.yaml:7:22: a route is named `mock/lorem-5` too")


def test_a_shadow_without_a_ledger_is_told() -> None:
    shadow = "    shadow: {target: mock/echo, share: 5, budget: 1 USD}\n"
    (found,) = problems("{}", f"{shadow}ledger: {{enabled: false}}\n")
    assert "its budget is remembered by the ledger" in found
    assert problems("{}", shadow) == []


# -- what an arm changes -------------------------------------------------------------------------------------------


def test_an_arm_that_changes_nothing_leaves_the_request_alone() -> None:
    request = asked(FULL)
    assert applied(request) is request


def test_parameters_take_the_place_of_the_clients_and_the_rest_stays() -> None:
    before = asked(FULL)
    after = applied(before, temperature=0.9, max_completion_tokens=50, reasoning_effort="high", stop=["x", "y"])
    assert after.sampling == replace(before.sampling, temperature=0.9, max_tokens=50, stop=("x", "y"))
    assert after.thinking == replace(before.thinking, effort="high")
    assert (after.messages, after.tools, after.extra) == (before.messages, before.tools, before.extra)


def test_what_the_client_did_not_say_is_said() -> None:
    tool = {"type": "function", "function": {"name": "g"}}
    after = applied(asked(PLAIN), response_format={"type": "json_object"}, tools=[tool], tool_choice="required")
    assert after.response_format == JsonObject()
    assert after.tools == (FunctionTool("g"),)
    assert after.tool_choice == "required"


def test_a_parameter_that_is_null_takes_the_clients_away() -> None:
    after = applied(asked(FULL), temperature=None, max_tokens=None, verbosity=None, tools=None, tool_choice=None)
    assert after.sampling.temperature is None
    assert after.sampling.max_tokens is None
    assert after.tools == ()
    assert after.tool_choice is None
    assert after.extra == {"own": 1, "top_k": None}


def test_fields_of_one_protocol_and_a_vendors_own_go_along() -> None:
    after = applied(asked(FULL), verbosity="high", top_k=5, extra_body={"own": 2, "more": {"a": [1]}})
    assert after.extra == {"verbosity": "high", "own": 2, "more": {"a": [1]}, "tool_choice": "any"}
    assert after.sampling.top_k == 5


def test_a_tool_choice_replaces_the_clients_in_whatever_words() -> None:
    after = applied(asked(FULL), tool_choice="auto")
    assert after.tool_choice == "auto"
    assert "tool_choice" not in after.extra


def test_every_parameter_that_the_check_accepts_is_applied() -> None:
    """A field of the format that lands nowhere would be dropped in silence."""
    values: dict[str, Any] = {
        **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty", "repetition_penalty"), 0.5),
        **dict.fromkeys(("top_k", "seed", "n", "max_tokens", "max_completion_tokens", "thinking_budget"), 3),
        **dict.fromkeys(("logprobs", "enable_thinking", "parallel_tool_calls", "web_search_options"), True),
        "top_logprobs": 1,
        "logit_bias": {"1": 1},
        "stop": "x",
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": {"name": "g"}}],
        "functions": [{"name": "g"}],
        "tool_choice": "auto",
        "function_call": "auto",
        "response_format": {"type": "json_object"},
        "modalities": ["text"],
        "audio": {"voice": "a", "format": "wav"},
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_options": {"mode": "a"},
        "moderation": {"model": "a"},
        "web_search_options": {},
    }
    request = asked(PLAIN)
    refused = {"model", "messages", "stream", "stream_options", "user", "metadata", "store", "unknown"}
    for name in ChatCompletionRequest.__struct_encode_fields__:
        if name not in refused:
            assert applied(request, **{name: values.get(name, "x")}) != request, name


# -- the system prompt ---------------------------------------------------------------------------------------------


def test_a_system_prompt_comes_first_where_there_was_none() -> None:
    assert applied(asked(PLAIN), "Be short").messages == (System("Be short"), User("Hi"))


def test_a_system_prompt_replaces_the_clients_wherever_they_stand_and_keeps_the_role() -> None:
    after = applied(asked(FULL), "Be short")
    assert after.messages == (System("Be short", "developer"), User("Hi"), Assistant("Yes"))


def test_an_empty_system_prompt_takes_the_clients_away() -> None:
    assert applied(asked(FULL), "").messages == (User("Hi"), Assistant("Yes"))
