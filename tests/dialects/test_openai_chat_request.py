"""Client bodies of OpenAI's Chat Completions → requests: every field, every mistake, and nothing lost."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.dialect import Asked
from router.dialects.openai_chat import OpenAIChat
from router.errors import InvalidRequest
from router.messages import (
    AllowedTools,
    Assistant,
    Audio,
    ChatRequest,
    CustomTool,
    File,
    FunctionTool,
    Image,
    JsonObject,
    JsonSchema,
    NamedTool,
    OtherFormat,
    OtherPart,
    OtherTool,
    OtherToolChoice,
    PlainText,
    Reasoning,
    Refusal,
    Sampling,
    System,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    User,
)

DIALECT = OpenAIChat()
HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def decode(body: dict[str, Any]) -> Asked:
    return DIALECT.decode(json.dumps(body).encode())


def asked(**fields: Any) -> ChatRequest:
    return decode({**HI, **fields}).request


def refused(body: bytes | dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        DIALECT.decode(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


# -- what is understood --------------------------------------------------------------------------------------------


def test_the_least_request() -> None:
    assert decode(HI) == Asked(ChatRequest(model="m", messages=(User("Hi"),), protocol="openai"), False)


def test_every_sampling_field() -> None:
    request = asked(
        temperature=0.5,
        top_p=1,
        top_k=20,
        frequency_penalty=-1,
        presence_penalty=1.5,
        repetition_penalty=1.05,
        logit_bias={"50256": -100},
        seed=7,
        stop=["a", "b"],
        n=3,
        max_tokens=10,
        logprobs=True,
        top_logprobs=2,
    )
    assert request.sampling == Sampling(
        temperature=0.5,
        top_p=1.0,
        top_k=20,
        frequency_penalty=-1.0,
        presence_penalty=1.5,
        repetition_penalty=1.05,
        logit_bias={"50256": -100.0},
        seed=7,
        stop=("a", "b"),
        n=3,
        max_tokens=10,
        logprobs=True,
        top_logprobs=2,
    )
    assert request.extra == {}


def test_stop_may_be_one_string() -> None:
    assert asked(stop="END").sampling.stop == ("END",)


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
    ],
)
def test_max_completion_tokens_wins_over_its_deprecated_twin(fields: dict[str, Any], most: int) -> None:
    assert asked(**fields).sampling.max_tokens == most


def test_thinking_in_openais_and_qwens_words() -> None:
    request = asked(reasoning_effort="xhigh", enable_thinking=False, thinking_budget=100)
    assert request.thinking == Thinking(effort="xhigh", budget=100, enabled=False)
    assert request.extra == {}


def test_a_null_top_k_switches_the_filter_off_at_qwen_and_so_travels() -> None:
    assert asked(top_k=None).extra == {"top_k": None}
    assert asked().extra == {}


def test_stream_and_its_options() -> None:
    plain = decode({**HI, "stream": True})
    assert (plain.request.stream, plain.include_usage) == (True, False)
    counted = decode({**HI, "stream": True, "stream_options": {"include_usage": True}})
    assert (counted.include_usage, counted.request.extra) == (True, {})
    padded = decode({**HI, "stream": True, "stream_options": {"include_obfuscation": False, "chunk": 1}})
    assert padded.request.extra == {"stream_options": {"include_obfuscation": False, "chunk": 1}}


MESSAGES: list[tuple[dict[str, Any], Any]] = [
    ({"role": "system", "content": "s", "name": "n"}, System("s", "system", "n")),
    ({"role": "developer", "content": [{"type": "text", "text": "d"}]}, System((Text("d"),), "developer")),
    ({"role": "user", "content": "u", "name": "n"}, User("u", "n")),
    ({"role": "assistant", "content": "a", "name": "n", "refusal": "no"}, Assistant("a", refusal="no", name="n")),
    ({"role": "assistant"}, Assistant()),
    ({"role": "assistant", "content": None, "tool_calls": []}, Assistant()),
    (
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        Assistant("a", reasoning=(Reasoning("hm"),)),
    ),
    (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}},
            ],
        },
        Assistant(tool_calls=(ToolCall("1", "f", "{}"), ToolCall("2", "sql", "select 1", "custom"))),
    ),
    (
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}]},
        Assistant((Text("a"), Refusal("no"))),
    ),
    ({"role": "assistant", "audio": {"id": "audio_1"}}, Assistant(extra={"audio": {"id": "audio_1"}})),
    (
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        Assistant(extra={"function_call": {"name": "f", "arguments": "{}"}}),
    ),
    ({"role": "assistant", "content": "a", "annotations": []}, Assistant("a", extra={"annotations": []})),
    # what client libraries derived from the answer goes no further
    ({"role": "assistant", "content": '{"a":1}', "parsed": {"a": 1}}, Assistant('{"a":1}')),
    (
        {
            "role": "assistant",
            "content": None,
            "parsed": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}},
                }
            ],
        },
        Assistant(tool_calls=(ToolCall("1", "f", "{}"),)),
    ),
    ({"role": "tool", "tool_call_id": "1", "content": "42"}, ToolResult("1", "42")),
    (
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}], "name": "f"},
        ToolResult("1", (Text("42"),), "f"),
    ),
    ({"role": "function", "name": "f", "content": "42"}, ToolResult(None, "42", "f")),
    ({"role": "function", "name": "f", "content": None}, ToolResult(None, "", "f")),
    # unknown fields travel
    ({"role": "user", "content": "u", "a": 1}, User("u", extra={"a": 1})),
    ({"role": "assistant", "content": "def f(", "partial": True}, Assistant("def f(", extra={"partial": True})),
    ({"role": "system", "content": "s", "cache": {}}, System("s", extra={"cache": {}})),
    ({"role": "tool", "tool_call_id": "1", "content": "x", "b": None}, ToolResult("1", "x", extra={"b": None})),
    (
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "", "x": 1}},
                {"id": "2", "type": "custom", "custom": {"name": "g", "input": "", "y": 1}},
            ],
        },
        Assistant(
            tool_calls=(
                ToolCall("1", "f", "", extra={"index": 0, "function": {"x": 1}}),
                ToolCall("2", "g", "", "custom", {"custom": {"y": 1}}),
            )
        ),
    ),
]


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
def test_every_message(message: dict[str, Any], expected: Any) -> None:
    assert decode({"model": "m", "messages": [message]}).request.messages == (expected,)


BREAKPOINT = {"mode": "explicit", "ttl": "30m"}
PARTS: list[tuple[dict[str, Any], Any]] = [
    ({"type": "text", "text": "t"}, Text("t")),
    (
        {"type": "text", "text": "t", "prompt_cache_breakpoint": BREAKPOINT},
        Text("t", {"prompt_cache_breakpoint": BREAKPOINT}),
    ),
    ({"type": "image_url", "image_url": {"url": "u", "detail": "low"}}, Image("u", detail="low")),
    ({"type": "image_url", "image_url": "u"}, Image("u")),
    ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}, Audio("UklGRg==", "wav")),
    ({"type": "file", "file": {"file_id": "file-a"}}, File("file-a")),
    (
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,"}},
        File(None, "a.pdf", "data:application/pdf;base64,"),
    ),
    ({"type": "refusal", "refusal": "no"}, Refusal("no")),
    # unknown fields and types travel
    (
        {"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}},
        Text("t", {"cache_control": {"type": "ephemeral"}}),
    ),
    (
        {"type": "image_url", "image_url": {"url": "u", "a": 1}, "min_pixels": 2},
        Image("u", extra={"image_url": {"a": 1}, "min_pixels": 2}),
    ),
    (
        {"type": "input_audio", "input_audio": {"data": "d", "format": "wav", "rate": 1}},
        Audio("d", "wav", {"input_audio": {"rate": 1}}),
    ),
    ({"type": "file", "file": {"file_id": "f", "a": 1}}, File("f", extra={"file": {"a": 1}})),
    (
        {"type": "video_url", "video_url": {"url": "u"}, "fps": 2},
        OtherPart({"type": "video_url", "video_url": {"url": "u"}, "fps": 2}),
    ),
    ({"type": "opaque", "fields": {"a": 1}}, OtherPart({"type": "opaque", "fields": {"a": 1}})),
    ({"type": "text", "text": "t", "unknown": {"a": 1}}, Text("t", {"unknown": {"a": 1}})),
]


@pytest.mark.parametrize(("part", "expected"), PARTS)
def test_every_part(part: dict[str, Any], expected: Any) -> None:
    messages = [{"role": "user", "content": [part]}]
    assert decode({"model": "m", "messages": messages}).request.messages == (User((expected,)),)


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: list[tuple[dict[str, Any], Any]] = [
    ({"type": "function", "function": {"name": "f"}}, FunctionTool("f")),
    (
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}},
        FunctionTool("f", "d", SCHEMA, True),
    ),
    (
        {"type": "custom", "custom": {"name": "sql", "description": "d", "format": {"type": "text"}}},
        CustomTool("sql", "d", {"type": "text"}),
    ),
    (
        {"type": "function", "function": {"name": "f", "a": 1}, "cache_control": {}},
        FunctionTool("f", extra={"cache_control": {}, "function": {"a": 1}}),
    ),
    ({"type": "custom", "custom": {"name": "s", "a": 1}}, CustomTool("s", extra={"custom": {"a": 1}})),
    (
        {"type": "builtin_function", "function": {"name": "$web_search"}},
        OtherTool({"type": "builtin_function", "function": {"name": "$web_search"}}),
    ),
]


@pytest.mark.parametrize(("tool", "expected"), TOOLS)
def test_every_tool(tool: dict[str, Any], expected: Any) -> None:
    assert asked(tools=[tool]).tools == (expected,)


ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]}
CHOICES: list[tuple[Any, Any]] = [
    ("none", "none"),
    ("auto", "auto"),
    ("required", "required"),
    (None, None),
    ({"type": "function", "function": {"name": "f"}}, NamedTool("f")),
    ({"type": "custom", "custom": {"name": "s"}}, NamedTool("s", "custom")),
    ({"type": "allowed_tools", "allowed_tools": ALLOWED}, AllowedTools("auto", tuple(ALLOWED["tools"]))),
    ({"type": "hosted", "a": 1}, OtherToolChoice({"type": "hosted", "a": 1})),
    (
        {"type": "function", "function": {"name": "f", "a": 1}},
        OtherToolChoice({"type": "function", "function": {"name": "f", "a": 1}}),
    ),
    (
        {"type": "allowed_tools", "allowed_tools": {**ALLOWED, "a": 1}},
        OtherToolChoice({"type": "allowed_tools", "allowed_tools": {**ALLOWED, "a": 1}}),
    ),
]


@pytest.mark.parametrize(("choice", "expected"), CHOICES)
def test_every_tool_choice(choice: Any, expected: Any) -> None:
    assert asked(tool_choice=choice).tool_choice == expected


def test_a_vendors_own_word_for_a_tool_choice_travels() -> None:
    request = asked(tool_choice="any")
    assert (request.tool_choice, request.extra) == (None, {"tool_choice": "any"})


@pytest.mark.parametrize(
    ("function_call", "expected"),
    [("none", "none"), ("auto", "auto"), ({"name": "f"}, NamedTool("f", deprecated=True)), (None, None)],
)
def test_the_deprecated_functions(function_call: Any, expected: Any) -> None:
    request = asked(
        functions=[{"name": "f", "description": "d", "parameters": {}, "a": 1}], function_call=function_call
    )
    assert request.tools == (FunctionTool("f", "d", {}, deprecated=True, extra={"a": 1}),)
    assert request.tool_choice == expected


FORMATS: list[tuple[Any, Any]] = [
    (None, None),
    ({"type": "text"}, PlainText()),
    ({"type": "json_object"}, JsonObject()),
    (
        {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "strict": True, "schema": SCHEMA}},
        JsonSchema("n", SCHEMA, "d", True),
    ),
    (
        {"type": "json_schema", "json_schema": {"name": "n", "a": 1}, "b": 2},
        JsonSchema("n", extra={"json_schema": {"a": 1}, "b": 2}),
    ),
    ({"type": "json_object", "schema": {}}, OtherFormat({"type": "json_object", "schema": {}})),
    ({"type": "grammar", "grammar": "x"}, OtherFormat({"type": "grammar", "grammar": "x"})),
]


@pytest.mark.parametrize(("wanted", "expected"), FORMATS)
def test_every_response_format(wanted: Any, expected: Any) -> None:
    assert asked(response_format=wanted).response_format == expected


PASSED_ON: dict[str, Any] = {
    "verbosity": "low",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
    "web_search_options": {
        "search_context_size": "low",
        "user_location": {"type": "approximate", "approximate": {"city": "Oslo"}},
    },
    "service_tier": "flex",
    "store": True,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "moderation": {"model": "mod", "policy": {"input": {"mode": "score"}, "output": {"mode": "block"}}},
    # not OpenAI's, but sent by Qwen's users
    "enable_search": True,
    "search_options": {"forced_search": True},
    "preserve_thinking": False,
    "translation_options": {"source_lang": "auto", "target_lang": "English"},
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_what_only_this_protocol_knows_travels_as_it_came(name: str) -> None:
    assert asked(**{name: PASSED_ON[name]}).extra == {name: PASSED_ON[name]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": {"id": "v", "a": 1}, "b": 2}),
        ("prediction", {"type": "content", "content": [{"type": "text", "text": "x", "a": 1}], "b": 2}),
        ("moderation", {"model": "m", "policy": {"input": {"mode": "score", "a": 1}}}),
        ("web_search_options", {"filters": {"allowed_domains": []}}),
    ],
)
def test_unknown_fields_inside_known_ones_travel(name: str, value: Any) -> None:
    assert asked(**{name: value}).extra == {name: value}


def test_user_and_metadata() -> None:
    request = asked(user="u1", metadata={"team": "a"}, parallel_tool_calls=False)
    assert (request.user, request.metadata, request.parallel_tool_calls) == ("u1", {"team": "a"}, False)


def test_a_null_is_the_same_as_an_absent_field() -> None:
    names = [
        "stream", "stream_options", "temperature", "n", "stop", "seed", "tools", "functions", "logit_bias",
        "metadata", "audio", "prediction", "store", "user", "moderation", "enable_thinking", "reasoning_effort",
    ]  # fmt: skip
    assert asked(**dict.fromkeys(names)) == asked()


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"model": ""}, "model", "`model`: must not be empty."),
        ({"model": None}, "model", "`model`: expected string, got null."),
        ({"messages": []}, "messages", "`messages`: must not be empty."),
        ({"messages": "Hi"}, "messages", "`messages`: expected array, got string."),
        ({"messages": ["Hi"]}, "messages[0]", "`messages[0]`: expected object, got string."),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "`messages[0].content`: expected string or array of parts, got integer.",
        ),
        (
            {"messages": [{"role": "user"}]},
            "messages[0].content",
            "`messages[0].content`: required, but missing.",
        ),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "`messages[0].role`: required, but missing."),
        (
            {"messages": [{"role": "owner", "content": "x"}]},
            "messages[0].role",
            (
                "`messages[0].role`: 'owner' is not a known value; "
                "expected one of developer, system, user, assistant, tool, function."
            ),
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].tool_call_id",
            "`messages[0].tool_call_id`: required, but missing.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "`messages[0].content[0].text`: required, but missing.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
            "messages[0].content[0].type",
            "`messages[0].content[0].type`: required, but missing.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": 5}]}]},
            "messages[0].content[0].type",
            "`messages[0].content[0].type`: expected string, got integer.",
        ),
        ({"temperature": "hot"}, "temperature", "`temperature`: expected number or null, got string."),
        ({"stream": "yes"}, "stream", "`stream`: expected boolean or null, got string."),
        ({"n": 0}, "n", "`n`: expected integer >= 1."),
        ({"n": 1.5}, "n", "`n`: expected integer or null, got number."),
        ({"stop": 5}, "stop", "`stop`: expected string or array or null, got integer."),
        ({"logit_bias": {"1": "x"}}, "logit_bias", "`logit_bias[...]`: expected number, got string."),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "`tools[0].function`: required, but missing."),
        (
            {"tools": [{"type": "function", "function": {"name": ""}}]},
            "tools[0].function.name",
            "`tools[0].function.name`: must not be empty.",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
            "`tools[0].function.parameters`: expected object or null, got array.",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "x", "tools": []}}},
            "tool_choice.allowed_tools.mode",
            "`tool_choice.allowed_tools.mode`: 'x' is not a known value.",
        ),
        ({"metadata": {"a": 1}}, "metadata", "`metadata[...]`: expected string, got integer."),
        ({"metadata": {"a": "x" * 513}}, "metadata", "`metadata[...]`: expected string of length <= 512."),
        ({"metadata": {"a" * 65: "x"}}, "metadata", "`metadata`: one of its keys: expected string of length <= 64."),
        (
            {"metadata": {str(n): "x" for n in range(17)}},
            "metadata",
            "`metadata`: expected object of length <= 16.",
        ),
        (
            {"safety_identifier": "x" * 129},
            "safety_identifier",
            "`safety_identifier`: expected string of length <= 128.",
        ),
        (
            {"stream_options": {"include_usage": True}},
            "stream_options",
            "`stream_options`: only allowed when `stream` is true.",
        ),
        (
            {"stream": False, "stream_options": {}},
            "stream_options",
            "`stream_options`: only allowed when `stream` is true.",
        ),
    ],
)
@pytest.mark.parametrize("unknown", [{}, {"enable_search": True}], ids=["known fields", "with an unknown field"])
def test_a_mistake_is_named_with_its_place(
    change: dict[str, Any], param: str, message: str, unknown: dict[str, Any]
) -> None:
    error = refused({**HI, **change, **unknown})
    assert error.status == 400
    assert (error.message, error.param) == (message, param)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(name: str) -> None:
    error = refused({key: value for key, value in HI.items() if key != name})
    assert (error.message, error.param) == (f"`{name}`: required, but missing.", name)
    assert error.code == "missing_required_parameter"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is not valid JSON: it is cut off (byte 0)."),
        (b'{"model": "m', "The body is not valid JSON: it is cut off (byte 12)."),
        (b'{"model": NaN}', "The body is not valid JSON: JSON is malformed: invalid character (byte 10)."),
        (b'{"model": "m",}', "The body is not valid JSON: JSON is malformed: trailing comma in object (byte 14)."),
        (b'{"model": "\xff"}', "The body is not valid UTF-8 (byte 11)."),
        (
            b'{"model": "\\ud800"}',
            "The body is not valid JSON: it is cut off, or a string in it has half of a surrogate pair.",
        ),
        (b'{"a": ' + b"[" * 100_000, "The body is nested too deeply."),
        (b"[]", "The body is not a chat completion request: expected object, got array."),
        (b'"Hi"', "The body is not a chat completion request: expected object, got string."),
        (b"null", "The body is not a chat completion request: expected object, got null."),
    ],
)
def test_a_body_that_is_no_json_object_says_where(body: bytes, message: str) -> None:
    error = refused(body)
    assert (error.message, error.param) == (message, None)


@pytest.mark.parametrize("digits", ["1e999", "9" * 5000])
@pytest.mark.parametrize("name", ["seed", "vendor_field"])
def test_numbers_beyond_all_bounds_are_refused(digits: str, name: str) -> None:
    body = json.dumps(HI)[:-1] + f', "{name}": {digits}}}'
    assert "out of range" in refused(body.encode()).message


def test_of_a_key_that_stands_twice_the_last_counts() -> None:
    body = json.dumps(HI)[:-1].encode()
    assert DIALECT.decode(body + b', "n": 1, "n": 2}').request.sampling.n == 2
    assert DIALECT.decode(body + b', "x": 1, "n": 1, "n": 2, "x": 3}').request.extra == {"x": 3}


def test_a_message_quotes_little_of_what_the_client_sent() -> None:
    error = refused({"model": "m", "messages": [{"role": "secret " * 1000, "content": "x"}]})
    assert len(error.message) < 250


# -- properties ----------------------------------------------------------------------------------------------------

SEEDS: list[dict[str, Any]] = [
    HI,
    {"model": "m", "messages": [message for message, _ in MESSAGES]},
    {"model": "m", "messages": [{"role": "user", "content": [part for part, _ in PARTS]}]},
    {
        **HI,
        **PASSED_ON,
        "tools": [tool for tool, _ in TOOLS],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    *({**HI, "tool_choice": choice} for choice, _ in CHOICES),
    *({**HI, "response_format": wanted} for wanted, _ in FORMATS),
]
NAMES = st.sampled_from(
    ["model", "messages", "role", "content", "type", "text", "function", "name", "tools", "n", "stop", "opaque",
     "fields", "unknown", "image_url", "audio", "prediction", "tool_calls", "metadata", "response_format", "x"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["user", "assistant", "tool", "text", "function", "custom", "opaque", "auto", "json_schema", ""]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
    | st.text(max_size=3)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=15,
)


def either(body: bytes) -> Asked | InvalidRequest:
    try:
        return DIALECT.decode(body)
    except InvalidRequest as error:
        return error


@settings(max_examples=300)
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"model":"m","messages":[{"role":"user","content":[{"type":"opaque","fields":{}}]}],"unknown":{}}')
def test_no_body_at_all_fails_otherwise_than_as_an_invalid_request(body: bytes) -> None:
    outcome = either(body)
    assert isinstance(outcome, Asked) or outcome.message


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@settings(max_examples=300)
@given(st.data())
def test_a_valid_body_with_anything_anywhere_is_understood_or_refused(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 2))):
        body = changed(body, data.draw(st.sampled_from(places(body))), data.draw(JSON))
        if not body or not isinstance(body, dict):
            break
    outcome = either(json.dumps(body).encode())
    assert isinstance(outcome, Asked) or outcome.message


@settings(max_examples=200)
@given(st.sampled_from(SEEDS), st.data())
def test_a_valid_body_with_bytes_flipped_is_understood_or_refused(body: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(json.dumps(body).encode())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    outcome = either(bytes(raw))
    assert isinstance(outcome, Asked) or outcome.message


def without_extra(request: ChatRequest, name: str) -> ChatRequest:
    assert name in request.extra
    return msgspec.structs.replace(request, extra={key: value for key, value in request.extra.items() if key != name})


@given(st.sampled_from(SEEDS), JSON)
def test_an_unknown_field_travels_and_changes_nothing_else(body: dict[str, Any], value: Any) -> None:
    """The quick decoder and the one that keeps unknown fields understand the same."""
    known, unknown = decode(body), decode({**body, "vendor_field": value})
    assert unknown.request.extra["vendor_field"] == value
    assert without_extra(unknown.request, "vendor_field") == known.request
    assert unknown.include_usage == known.include_usage
