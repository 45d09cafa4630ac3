"""What makes two calls the same question."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.cache.fingerprint import fingerprint, normalised
from router.call import Call, Credentials, Principal, new_trip
from router.dialects.openai_chat import OpenAIChat
from router.messages import ChatRequest

BODY: dict[str, Any] = {
    "model": "chat",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "look",
                "description": "looks",
                "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
            },
        }
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 7,
    "stop": ["a", "b"],
    "n": 2,
    "max_tokens": 100,
    "logit_bias": {"5": 1},
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "object"}}},
    "service_tier": "flex",
    "verbosity": "low",
    "some_vendors_word": {"a": [1, 2]},
}
CHANGES: list[dict[str, Any]] = [
    {"model": "other"},
    {"messages": BODY["messages"][:-1]},
    {"messages": [*BODY["messages"][:-1], {"role": "tool", "tool_call_id": "c1", "content": "a dog"}]},
    {"messages": [*BODY["messages"][:-1], {"role": "tool", "tool_call_id": "c2", "content": "a cat"}]},
    {"messages": [{"role": "developer", "content": "Be brief."}, *BODY["messages"][1:]]},
    {"messages": [{"role": "system", "content": "Be brief.", "name": "a"}, *BODY["messages"][1:]]},
    {"messages": [{"role": "system", "content": "Be brief.", "cache_control": {"type": "x"}}, *BODY["messages"][1:]]},
    {"tools": []},
    {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]},
    {"tool_choice": "none"},
    {"tool_choice": {"type": "function", "function": {"name": "look"}}},
    {"parallel_tool_calls": True},
    {"temperature": 0.6},
    {"temperature": None},
    {"top_p": 0.8},
    {"seed": 8},
    {"stop": ["b", "a"]},
    {"n": 1},
    {"max_tokens": 101},
    {"logit_bias": {"5": 2}},
    {"frequency_penalty": 0.1},
    {"presence_penalty": 0.1},
    {"logprobs": True},
    {"reasoning_effort": "high"},
    {"response_format": {"type": "json_object"}},
    {"response_format": None},
    {"service_tier": "default"},
    {"verbosity": "high"},
    {"some_vendors_word": {"a": [2, 1]}},
    {"another_word": 1},
]
SAME: list[dict[str, Any]] = [
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}},
    {"user": "u-1"},
    {"metadata": {"team": "a"}},
    {"store": True},
    {"safety_identifier": "s", "prompt_cache_key": "p"},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *BODY["messages"][1:]]},
]


def a_call(body: dict[str, Any], **fields: Any) -> Call:
    request = OpenAIChat().decode(json.dumps(body).encode()).request
    return Call(
        id="req_1", request=request, dialect="openai.chat", trip=new_trip(), credentials=Credentials(None), **fields
    )


def printed(body: dict[str, Any], scope: str = "key:a", course: tuple[str, ...] = (), **fields: Any) -> str:
    return fingerprint(normalised(a_call(body, **fields), scope, course))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: json.dumps(change)[:60])
def test_what_may_change_the_answer_changes_the_print(change: dict[str, Any]) -> None:
    changed = {name: value for name, value in {**BODY, **change}.items() if value is not None}
    assert printed(changed) != printed(BODY)


def test_every_change_has_a_print_of_its_own() -> None:
    prints = [
        printed({name: value for name, value in {**BODY, **change}.items() if value is not None}) for change in CHANGES
    ]
    assert len(set(prints)) == len(CHANGES)


@pytest.mark.parametrize("change", SAME, ids=json.dumps)
def test_what_does_not_change_the_answer_leaves_the_print(change: dict[str, Any]) -> None:
    assert printed({**BODY, **change}) == printed(BODY)


def test_who_may_have_the_answer_is_in_the_print() -> None:
    assert len({printed(BODY, scope) for scope in ("key:a", "key:b", "key:", "shared")}) == 4


def test_the_way_that_the_call_goes_is_in_the_print() -> None:
    found = [
        printed(BODY),
        printed(BODY, course=("g1",)),
        printed(BODY, course=("g1", "test=a")),
        printed(BODY, course=("g1", "test=b")),
        printed(BODY, regions=("eu",)),
        printed(BODY, regions=("eu", "us")),
        printed(BODY, forced={"test": "a"}),
    ]
    assert len(set(found)) == len(found)


def test_who_calls_and_in_which_conversation_is_not() -> None:
    caller = Principal("dw-1", "one")
    other = printed(BODY, principal=caller, user="u", tags={"a": "b"}, conversation="c", origin="1.2.3.4")
    assert other == printed(BODY)


def test_it_is_a_sha_256() -> None:
    assert len(printed(BODY)) == 64
    assert set(printed(BODY)) <= set("0123456789abcdef")


def shuffled(value: Any, draw: Any) -> Any:
    """The same JSON with its keys in another order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name], draw) for name in draw(st.permutations(list(value)))}
    if isinstance(value, list):
        return [shuffled(each, draw) for each in value]
    return value


@given(st.data())
def test_the_order_of_keys_is_no_matter(data: st.DataObject) -> None:
    assert printed(shuffled(BODY, data.draw)) == printed(BODY)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_two_values_of_an_unknown_field_have_two_prints(one: Any, other: Any) -> None:
    request = ChatRequest(model="m", messages=(), protocol="openai")
    call = replace(a_call(BODY), request=request)
    prints = [
        fingerprint(normalised(call.with_request(replace(request, extra={"field": value})), "s"))
        for value in (one, other)
    ]
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    # -0.0 and 0.0 are told apart, which is no harm
    assert (prints[0] == prints[1]) == same


@pytest.mark.parametrize("value", [object(), "\ud800"], ids=["no-json", "a-lone-half"])
def test_what_cannot_be_written_is_no_question_that_can_be_kept(value: Any) -> None:
    request = ChatRequest(model="m", messages=(), protocol="openai", extra={"field": value})
    with pytest.raises(ValueError, match="cannot be written"):
        normalised(replace(a_call(BODY), request=request), "s")
