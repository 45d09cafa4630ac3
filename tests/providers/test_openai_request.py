"""What the OpenAI adapter sends: every field of the protocol, extras, what it drops and says so."""

from typing import Any

import msgspec
import pytest

from providers.openai import OpenAI, Options
from router.dialects.openai_chat_request import RequestDecoder
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
from router.provider import HttpRequest, ProviderSettings, Target

Json = dict[str, Any]


def provider(
    base_url: str = "https://vendor.example/v1", headers: dict[str, str] | None = None, **options: Any
) -> OpenAI:
    return OpenAI(
        ProviderSettings(
            name="vendor", base_url=base_url, api_key="key-1", headers=headers or {}, options=Options(**options)
        )
    )


def asked(*messages: Any, protocol: str = "openai", **fields: Any) -> ChatRequest:
    return ChatRequest(model="chat", messages=messages or (User("Hi"),), protocol=protocol, **fields)


def sent(request: ChatRequest, adapter: OpenAI | None = None, model: str = "model-1") -> HttpRequest:
    return (adapter or provider()).encode(request, Target("vendor", model))


def body(request: ChatRequest, adapter: OpenAI | None = None, model: str = "model-1") -> Json:
    decoded: Json = msgspec.json.decode(sent(request, adapter, model).body)
    return decoded


def message(*messages: Any, **options: Any) -> Json:
    """The last message as it is sent."""
    written: Json = body(asked(*messages), provider(**options))["messages"][-1]
    return written


# -- the HTTP request ----------------------------------------------------------------------------------------------


def test_request_goes_to_the_path_under_the_base_url_with_the_key_as_bearer() -> None:
    request = sent(asked())
    assert (request.method, request.url) == ("POST", "https://vendor.example/v1/chat/completions")
    assert request.headers["authorization"] == "Bearer key-1"
    assert request.headers["content-type"] == "application/json"
    assert request.streamed is False
    assert request.dropped == ()


def test_azure_is_a_row_with_a_path_a_query_and_another_header() -> None:
    adapter = provider(
        "https://name.openai.azure.com/openai",
        path="/deployments/{model}/chat/completions",
        query={"api-version": "2026-10-01 preview"},
        auth="api-key",
    )
    request = sent(asked(), adapter, "my model/1")
    assert request.url == (
        "https://name.openai.azure.com/openai/deployments/my%20model%2F1/chat/completions"
        "?api-version=2026-10-01+preview"
    )
    assert request.headers["api-key"] == "key-1"
    assert "authorization" not in request.headers


def test_headers_of_the_row_win_and_are_in_lower_case() -> None:
    request = sent(asked(), provider(headers={"OpenAI-Project": "p", "Authorization": "Other"}))
    assert request.headers["openai-project"] == "p"
    assert request.headers["authorization"] == "Other"


def test_requests_do_not_share_their_headers() -> None:
    adapter = provider()
    sent(asked(), adapter).headers["x-trace"] = "1"
    assert "x-trace" not in sent(asked(), adapter).headers


def test_without_a_key_no_authorization_is_sent() -> None:
    adapter = OpenAI(ProviderSettings(name="local", base_url="http://127.0.0.1:8000/v1/"))
    request = adapter.encode(asked(), Target("local", "m"))
    assert request.url == "http://127.0.0.1:8000/v1/chat/completions"
    assert "authorization" not in request.headers


# -- request fields ------------------------------------------------------------------------------------------------


def test_plain_request_has_model_and_messages_alone() -> None:
    assert body(asked()) == {"model": "model-1", "messages": [{"role": "user", "content": "Hi"}]}


def test_streamed_request_asks_for_usage_and_keeps_the_clients_stream_options() -> None:
    request = asked(stream=True, extra={"stream_options": {"include_obfuscation": False}})
    written = body(request)
    assert written["stream"] is True
    assert written["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert sent(request).streamed is True


def test_stream_options_are_left_out_and_reported_where_the_row_says_so() -> None:
    request = sent(
        asked(stream=True, extra={"stream_options": {"include_obfuscation": False}}), provider(stream_options=False)
    )
    assert "stream_options" not in msgspec.json.decode(request.body)
    assert request.dropped == ("stream_options",)


def test_sampling_and_thinking_fields_are_written_under_their_names() -> None:
    sampling: Json = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "repetition_penalty": 1.05,
        "seed": 7,
        "stop": ["END", "\n"],
        "n": 2,
        "max_tokens": 100,
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {"50256": -100, "11": 0.5},
    }
    request = asked(
        sampling=msgspec.convert(sampling, Sampling), thinking=Thinking(effort="low", budget=512, enabled=True)
    )
    written = body(request)
    assert {name: written[name] for name in sampling} == sampling
    assert (written["reasoning_effort"], written["thinking_budget"], written["enable_thinking"]) == ("low", 512, True)
    assert b'"50256":-100,' in sent(request).body


@pytest.mark.parametrize(
    ("base_url", "model", "option", "field"),
    [
        ("https://vendor.example/v1", "model-1", "auto", "max_tokens"),
        ("https://vendor.example/v1", "gpt-oss-120b", "auto", "max_tokens"),
        ("https://vendor.example/v1", "openai/gpt-5-mini", "auto", "max_completion_tokens"),
        ("https://vendor.example/v1", "o3", "auto", "max_completion_tokens"),
        ("https://api.openai.com/v1", "gpt-4o", "auto", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai", "mine", "auto", "max_completion_tokens"),
        ("https://api.openai.com/v1", "gpt-4o", "max_tokens", "max_tokens"),
        ("https://vendor.example/v1", "model-1", "max_completion_tokens", "max_completion_tokens"),
    ],
)
def test_token_cap_takes_the_name_the_model_knows(base_url: str, model: str, option: str, field: str) -> None:
    written = body(asked(sampling=Sampling(max_tokens=5)), provider(base_url, max_tokens_field=option), model)
    assert {"max_tokens", "max_completion_tokens"} & written.keys() == {field}
    assert written[field] == 5


def test_fields_openai_does_not_know_are_dropped_for_its_own_host_and_reported() -> None:
    request = asked(sampling=Sampling(top_k=5, repetition_penalty=1.1), thinking=Thinking(budget=9, enabled=False))
    adapter = provider("https://api.openai.com/v1")
    assert body(request, adapter).keys() == {"model", "messages"}
    assert set(sent(request, adapter).dropped) == {"top_k", "repetition_penalty", "thinking_budget", "enable_thinking"}


def test_fields_the_row_drops_are_reported() -> None:
    tool = FunctionTool("f", strict=True)
    request = asked(user="u1", tools=(tool,), extra={"store": True})
    adapter = provider(drop=("store", "user", "seed", "strict"))
    assert body(request, adapter)["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert set(sent(request, adapter).dropped) == {"store", "user", "tools[*].function.strict"}


def test_user_metadata_and_parallel_tool_calls_are_written() -> None:
    written = body(asked(user="u1", metadata={"team": "a"}, parallel_tool_calls=False))
    assert (written["user"], written["metadata"], written["parallel_tool_calls"]) == ("u1", {"team": "a"}, False)


def test_parallel_tool_calls_of_another_protocol_needs_tools() -> None:
    assert "parallel_tool_calls" not in body(asked(protocol="anthropic", parallel_tool_calls=True))


# -- messages ------------------------------------------------------------------------------------------------------


def test_every_role_is_written() -> None:
    call = ToolCall("call_1", "f", '{"a":1}')
    custom = ToolCall("call_2", "sql", "select 1", "custom")
    written = body(
        asked(
            System("Be brief.", name="s"),
            User("Hi", name="bob"),
            Assistant("Hello", name="a"),
            Assistant(None, (call, custom)),
            ToolResult("call_1", "ok"),
            ToolResult("call_2", (Text("1"),), name="sql"),
            ToolResult(None, "old", name="f"),
            Assistant(None, refusal="No."),
            Assistant(None),
        )
    )["messages"]
    assert written == [
        {"role": "system", "content": "Be brief.", "name": "s"},
        {"role": "user", "content": "Hi", "name": "bob"},
        {"role": "assistant", "content": "Hello", "name": "a"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "call_2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "ok"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "1"}], "name": "sql"},
        {"role": "function", "name": "f", "content": "old"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": ""},
    ]


def test_every_part_is_written() -> None:
    parts = (
        Text("Compare"),
        Image("data:image/png;base64,iVBORw0KGgo=", detail="auto"),
        Image("https://example.com/a.png"),
        Image(file_id="file-1"),
        Audio("UklGRg==", "wav"),
        File(file_id="file-abc"),
        File(filename="a.pdf", data="data:application/pdf;base64,JVBERi0="),
        File(url="https://example.com/a.pdf"),
        Refusal("No."),
        OtherPart({"type": "video_url", "video_url": {"url": "https://example.com/v"}}),
    )
    assert message(User(parts))["content"] == [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "auto"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-abc"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "file", "file": {"file_data": "https://example.com/a.pdf"}},
        {"type": "refusal", "refusal": "No."},
        {"type": "video_url", "video_url": {"url": "https://example.com/v"}},
    ]


@pytest.mark.parametrize(
    ("base_url", "model", "option", "role"),
    [
        ("https://vendor.example/v1", "model-1", "auto", "system"),
        ("https://vendor.example/v1", "model-1", True, "developer"),
        ("https://vendor.example/v1", "openai/gpt-5", "auto", "developer"),
        ("https://api.openai.com/v1", "gpt-4o", "auto", "developer"),
        ("https://api.openai.com/v1", "gpt-4o", False, "system"),
    ],
)
def test_developer_role_is_sent_where_it_is_known(base_url: str, model: str, option: Any, role: str) -> None:
    request = asked(System("Be brief.", role="developer"), User("Hi"))
    assert body(request, provider(base_url, developer_role=option), model)["messages"][0]["role"] == role


@pytest.mark.parametrize(
    ("option", "with_calls", "without"), [("never", False, False), ("tool_calls", True, False), ("always", True, True)]
)
def test_reasoning_of_earlier_turns_goes_back_as_the_row_says(option: str, with_calls: bool, without: bool) -> None:
    """quirk 39: DeepSeek refuses it in plain turns and needs it with tools, Qwen bills it."""
    thought = (Reasoning("Let me "), Reasoning("see."))
    call = (ToolCall("c", "f", "{}"),)
    request = asked(User("Hi"), Assistant("It is 3", reasoning=thought), Assistant(None, call, thought), User("And?"))
    _, plain, calling, _ = body(request, provider(echo_reasoning=option))["messages"]
    assert (plain.get("reasoning_content") == "Let me see.", calling.get("reasoning_content") == "Let me see.") == (
        without,
        with_calls,
    )
    dropped = sent(request, provider(echo_reasoning=option)).dropped
    assert dropped == (() if with_calls and without else ("messages[*].reasoning_content",))


def test_thought_among_the_parts_is_no_content() -> None:
    parts = (Reasoning("Hm", signature="sig"), Text("3"))
    written = message(Assistant(parts), echo_reasoning="always")
    assert written == {
        "role": "assistant",
        "content": [{"type": "text", "text": "3"}],
        "reasoning_content": "Hm",
    }
    assert sent(asked(Assistant(parts)), provider(echo_reasoning="always")).dropped == (
        "messages[*].reasoning.signature",
    )


def test_tool_call_ids_stay_verbatim() -> None:
    """quirk 54: Mistral wants nine characters, Kimi its own form; the history of the same vendor has them."""
    call = ToolCall("functions.f:0", "f", "{}")
    written = body(asked(Assistant(None, (call,)), ToolResult("functions.f:0", "ok")))["messages"]
    assert written[0]["tool_calls"][0]["id"] == written[1]["tool_call_id"] == "functions.f:0"


def test_neighbouring_assistant_turns_of_another_protocol_are_joined() -> None:
    call = ToolCall("c", "f", "{}")
    turns = (Assistant("Let me look."), Assistant(None, (call,), (Reasoning("Hm"),)), Assistant((Text("So."),)))
    written = body(asked(User("Hi"), *turns, protocol="anthropic"))["messages"]
    assert [one["role"] for one in written] == ["user", "assistant"]
    assert written[1]["content"] == [{"type": "text", "text": "Let me look."}, {"type": "text", "text": "So."}]
    assert len(written[1]["tool_calls"]) == 1
    assert len(body(asked(User("Hi"), *turns))["messages"]) == 4


# -- tools and formats ---------------------------------------------------------------------------------------------

SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}}


def test_tools_are_written() -> None:
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /.+/"}}
    tools = (
        FunctionTool("get_weather", "d", SCHEMA, True),
        FunctionTool("now"),
        CustomTool("sql", "d", grammar),
        OtherTool({"type": "web_search"}),
    )
    assert body(asked(tools=tools))["tools"] == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA, "strict": True},
        },
        {"type": "function", "function": {"name": "now"}},
        {"type": "custom", "custom": {"name": "sql", "description": "d", "format": grammar}},
        {"type": "web_search"},
    ]


def test_deprecated_functions_keep_their_form() -> None:
    functions = (FunctionTool("f", "d", SCHEMA, deprecated=True),)
    written = body(asked(tools=functions, tool_choice=NamedTool("f", deprecated=True)))
    assert written["functions"] == [{"name": "f", "description": "d", "parameters": SCHEMA}]
    assert written["function_call"] == {"name": "f"}
    assert "tools" not in written
    assert body(asked(tools=functions, tool_choice="none"))["function_call"] == "none"


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        ("none", "none"),
        ("auto", "auto"),
        ("required", "required"),
        (NamedTool("f"), {"type": "function", "function": {"name": "f"}}),
        (NamedTool("sql", "custom"), {"type": "custom", "custom": {"name": "sql"}}),
        (
            AllowedTools("auto", ({"type": "function", "function": {"name": "f"}},)),
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
            },
        ),
        (OtherToolChoice({"type": "web_search"}), {"type": "web_search"}),
    ],
)
def test_tool_choices_are_written(choice: Any, written: Any) -> None:
    assert body(asked(tools=(FunctionTool("f"),), tool_choice=choice))["tool_choice"] == written


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        (PlainText(), {"type": "text"}),
        (JsonObject(), {"type": "json_object"}),
        (OtherFormat({"type": "grammar", "grammar": "g"}), {"type": "grammar", "grammar": "g"}),
        (JsonSchema("person"), {"type": "json_schema", "json_schema": {"name": "person"}}),
        (
            JsonSchema("person", SCHEMA, "d", True, {"json_schema": {"x": 1}, "y": 2}),
            {
                "type": "json_schema",
                "json_schema": {"name": "person", "description": "d", "schema": SCHEMA, "strict": True, "x": 1},
                "y": 2,
            },
        ),
    ],
)
def test_response_formats_are_written(wanted: Any, written: Any) -> None:
    assert body(asked(response_format=wanted))["response_format"] == written


# -- extras --------------------------------------------------------------------------------------------------------

EVERYTHING: Json = {
    "model": "model-1",
    "messages": [
        {"role": "system", "content": "s", "cache": 1},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t", "prompt_cache_breakpoint": {"mode": "explicit"}, "cache_control": {}},
                {"type": "image_url", "image_url": {"url": "u", "detail": "low", "max_pixels": 9}, "min_pixels": 3},
                {"type": "input_audio", "input_audio": {"data": "d", "format": "wav", "rate": 8}},
                {"type": "file", "file": {"file_id": "f", "x": 1}},
                {"type": "video", "video": ["a"]},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "audio": {"id": "audio_1"},
            "reasoning_details": [{"text": "x"}],
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "f", "arguments": "{}", "thought": "t"},
                    "extra_content": {"s": 1},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "ok", "status": "done"},
        {"role": "assistant", "content": "def", "partial": True},
    ],
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False, "chunk": 1},
    "max_tokens": 5,
    "tools": [
        {"type": "function", "function": {"name": "f", "strict": True, "defer": True}, "cache_control": {"a": 1}},
        {"type": "web_search_preview"},
    ],
    "tool_choice": "any",
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "x": 1}},
    "verbosity": "low",
    "modalities": ["text"],
    "audio": {"voice": "v", "format": "wav"},
    "prediction": {"type": "content", "content": "p"},
    "web_search_options": {"search_context_size": "low"},
    "service_tier": "flex",
    "store": True,
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "moderation": {"model": "m"},
    "enable_search": True,
    "search_options": {"forced_search": True},
    "top_k": None,
    "translation_options": {"source_lang": "auto"},
}


def test_body_of_the_same_protocol_arrives_as_it_was_sent() -> None:
    request = RequestDecoder().decode(msgspec.json.encode(EVERYTHING)).request
    expected = msgspec.json.decode(msgspec.json.encode(EVERYTHING))
    # null says the same as nothing
    del expected["messages"][2]["refusal"]
    assert body(request) == expected
    assert sent(request).dropped == ()


def test_rows_may_drop_unknown_fields_and_keep_those_openai_names() -> None:
    request = RequestDecoder().decode(msgspec.json.encode(EVERYTHING)).request
    adapter = provider(extra_fields="drop")
    written = body(request, adapter)
    for name in ("verbosity", "modalities", "audio", "prediction", "service_tier", "store", "moderation"):
        assert written[name] == EVERYTHING[name]
    assert written["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert {
        "enable_search",
        "messages[*].cache",
        "messages[*].content[*].cache_control",
        "messages[*].content[*].image_url.max_pixels",
        "messages[*].tool_calls[*].function.thought",
        "stream_options.chunk",
        "tools[*].function.defer",
    } < set(sent(request, adapter).dropped)


def test_extras_never_replace_what_the_model_has() -> None:
    request = asked(User("Hi", extra={"role": "system"}), extra={"model": "other", "messages": [], "verbosity": "low"})
    written = body(request)
    assert written["model"] == "model-1"
    assert written["messages"] == [{"role": "user", "content": "Hi"}]
    assert written["verbosity"] == "low"


def test_words_of_another_protocol_are_reported_once_for_each_kind_of_place() -> None:
    request = asked(
        User((Text("a", {"cache_control": {}}), Text("b", {"cache_control": {}}), OtherPart({"type": "document"}))),
        User("c", extra={"x": 1}),
        ToolResult("c", "failed", is_error=True),
        protocol="anthropic",
        tools=(FunctionTool("f", extra={"cache_control": {}}), OtherTool({"type": "bash"})),
        tool_choice=OtherToolChoice({"type": "any"}),
        response_format=OtherFormat({"type": "x"}),
        extra={"container": "c"},
    )
    assert set(sent(request).dropped) == {
        "messages[*].content[*].cache_control",
        "messages[*].content[*]",
        "messages[*].x",
        "messages[*].is_error",
        "tools[*].cache_control",
        "tools[*]",
        "tool_choice",
        "response_format",
        "container",
    }
    assert body(request)["messages"][0]["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
