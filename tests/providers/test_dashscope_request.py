"""What the DashScope adapter sends: body, headers and path; what it reports as dropped; what it learns."""

from typing import Any

import msgspec
import pytest
from msgspec import structs

from providers.dashscope import DashScope
from providers.dashscope.families import FAMILIES, PATHS, UNKNOWN, family_of
from providers.dashscope.lessons import Lesson, Lessons
from providers.dashscope.provider import Options
from router.errors import InvalidRequest, ProviderError, Rejected, VendorFailed
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
    Message,
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
from router.provider import HttpError, HttpHead, HttpRequest, Provider, ProviderSettings, Target

BASE = "https://dashscope.example/api/v1"
TEXT, MULTIMODAL = BASE + PATHS["text"], BASE + PATHS["multimodal"]
HI = (User("Hi"),)
WEATHER = FunctionTool("get_weather", "Tells the weather", {"type": "object", "properties": {"city": {}}})
CLOCK = FunctionTool("now")


def provider(options: Options | None = None, **settings: Any) -> DashScope:
    return DashScope(ProviderSettings(name="qwen", base_url=BASE, api_key="sk-1", options=options, **settings))


def asked(*messages: Message, model: str = "model-1", protocol: str = "openai", **fields: Any) -> ChatRequest:
    return ChatRequest(model=model, messages=messages or HI, protocol=protocol, **fields)


def sent(request: ChatRequest, adapter: DashScope | None = None) -> HttpRequest:
    return (adapter or provider()).encode(request, Target("qwen", request.model))


def body(request: ChatRequest, adapter: DashScope | None = None) -> Any:
    return msgspec.json.decode(sent(request, adapter).body)


def parameters(request: ChatRequest, adapter: DashScope | None = None) -> dict[str, Any]:
    written: dict[str, Any] = body(request, adapter)["parameters"]
    return {key: value for key, value in written.items() if key not in ("result_format", "incremental_output")}


def messages(*given: Message, model: str = "model-1", **fields: Any) -> Any:
    return body(asked(*given, model=model, **fields))["input"]["messages"]


# -- shape -----------------------------------------------------------------------------------------------------------


def test_a_streamed_request_has_its_place_for_everything() -> None:
    request = asked(System("Be brief."), *HI, model="qwen-plus", stream=True, sampling=Sampling(temperature=0.7))
    written = sent(request)
    assert (written.method, written.url, written.streamed, written.dropped) == ("POST", TEXT, True, ())
    assert msgspec.json.decode(written.body) == {
        "model": "qwen-plus",
        "input": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
        "parameters": {"result_format": "message", "incremental_output": True, "temperature": 0.7},
    }
    assert written.headers == {
        "authorization": "Bearer sk-1",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "x-dashscope-sse": "enable",
    }


def test_a_whole_answer_is_asked_without_sse() -> None:
    written = sent(asked())
    assert not written.streamed
    assert "x-dashscope-sse" not in written.headers
    assert written.headers["accept"] == "application/json"
    assert msgspec.json.decode(written.body)["parameters"] == {"result_format": "message"}


def test_the_adapter_is_a_provider_with_a_default_address() -> None:
    adapter: Provider = provider()
    assert adapter.base_url == "https://dashscope.aliyuncs.com/api/v1"


def test_options_become_headers_and_the_rows_own_headers_win() -> None:
    adapter = provider(
        Options(workspace="ws_1-a", data_inspection='{"input": "cip"}'),
        headers={"X-DashScope-SSE": "no", "X-Mine": "1"},
    )
    headers = sent(asked(stream=True), adapter).headers
    assert headers["x-dashscope-workspace"] == "ws_1-a"
    assert headers["x-dashscope-datainspection"] == '{"input": "cip"}'
    assert headers["x-dashscope-sse"] == "no"
    assert headers["x-mine"] == "1"


@pytest.mark.parametrize("workspace", ["", "a b", "a/b", "evil.example#", "x" * 65, "a\n"])
def test_a_workspace_that_could_leave_its_place_is_refused(workspace: str) -> None:
    with pytest.raises(ValueError, match="workspace"):
        Options(workspace=workspace)


def test_a_header_value_with_a_line_end_is_refused() -> None:
    with pytest.raises(ValueError, match="data_inspection"):
        Options(data_inspection="x\r\ny: z")


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="worskpace"):
        msgspec.convert({"worskpace": "x"}, Options)


def test_a_base_url_may_end_in_a_slash_and_a_key_may_be_missing() -> None:
    adapter = DashScope(ProviderSettings(name="qwen", base_url=BASE + "/"))
    assert sent(asked(), adapter).url == TEXT
    assert "authorization" not in sent(asked(), adapter).headers


# -- families and paths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("qwen-plus", TEXT),
        ("qwen-max", TEXT),
        ("qwen3-max", TEXT),
        ("qwen3-32b", TEXT),
        ("qwq-plus", TEXT),
        ("deepseek-v3.2", TEXT),
        ("some-new-model", TEXT),
        ("qwen-vl-max", MULTIMODAL),
        ("qwen2.5-vl-72b-instruct", MULTIMODAL),
        ("qwen3-vl-plus", MULTIMODAL),
        ("qwen3-omni-flash", MULTIMODAL),
        ("qwen-omni-turbo", MULTIMODAL),
        ("qvq-max", MULTIMODAL),
        ("qwen3.5-plus", MULTIMODAL),
        ("qwen3.5-397b-a17b", MULTIMODAL),
        ("qwen3.7-plus", MULTIMODAL),
        ("qwen3.7-max", TEXT),
        ("qwen3.8-max", MULTIMODAL),
        ("Qwen3.8-Max-2026-08-01", MULTIMODAL),
    ],
)
def test_each_model_goes_to_its_path(model: str, url: str) -> None:
    assert sent(asked(model=model)).url == url


@pytest.mark.parametrize(
    ("model", "mode", "stream_only"),
    [
        ("qwen-plus-latest", "off", False),
        ("qwen-turbo", "off", False),
        ("qwen3-max-preview", "off", False),
        ("qwen-max", "never", False),
        ("qwen3-235b-a22b", "on", True),
        ("qwen3-235b-a22b-instruct-2507", "never", False),
        ("qwen3-235b-a22b-thinking-2507", "always", True),
        ("qwen3-next-80b-a3b-thinking", "always", True),
        ("qwen3-coder-plus", "never", False),
        ("qwen3.6-max-preview", "on", False),
        ("qwen-mt-plus", "never", False),
        ("kimi-k2.6", "unknown", False),
    ],
)
def test_each_model_thinks_in_its_way(model: str, mode: str, stream_only: bool) -> None:
    family = family_of(model)
    assert (family.thinking, family.stream_only) == (mode, stream_only)


def test_no_family_hides_behind_an_earlier_one() -> None:
    names = {
        "qwen-mt-plus", "qwen3.8-max", "qvq-max", "qwq-32b", "qwen-omni-turbo", "qwen3-vl-8b-thinking",
        "qwen3-vl-8b-instruct", "qwen3-vl-plus", "qwen-vl-max", "qwen-audio-turbo", "qwen3.5-plus", "qwen3.7-plus",
        "qwen3.7-max", "qwen3-coder-plus", "qwen-plus", "qwen3-4b-thinking-2507", "qwen3-4b-instruct-2507", "qwen3-4b",
    }  # fmt: skip
    assert {id(family_of(name)) for name in names} == {id(family) for family in FAMILIES}
    assert family_of("other") is UNKNOWN


def test_an_image_forces_the_multimodal_path() -> None:
    request = asked(User((Text("What is it?"), Image("https://example.com/cat.png"))), model="some-model")
    assert sent(request).url == MULTIMODAL


def test_a_configured_path_wins() -> None:
    adapter = provider(Options(path={"some-model": "multimodal", "qwen-vl-max": "text"}))
    assert sent(asked(model="some-model"), adapter).url == MULTIMODAL
    assert sent(asked(model="qwen-vl-max"), adapter).url == TEXT


def test_media_for_a_model_that_is_bound_to_text_is_an_error() -> None:
    adapter = provider(Options(path={"some-model": "text"}))
    request = asked(*HI, User((Text("?"), Image("https://example.com/cat.png"))), model="some-model")
    with pytest.raises(InvalidRequest, match="text only") as caught:
        sent(request, adapter)
    assert caught.value.param == "$.messages[1].content[1]"


# -- messages --------------------------------------------------------------------------------------------------------


def test_text_models_get_strings() -> None:
    given = (System((Text("a"), Text("b")), role="developer"), Assistant((Text("c"), Refusal("d"))), User((Text("e"),)))
    assert messages(*given) == [
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": "cd"},
        {"role": "user", "content": "e"},
    ]


def test_multimodal_models_get_lists_keyed_by_modality() -> None:
    parts = (
        Text("See", extra={"cache_control": {"type": "ephemeral"}}),
        Image("data:image/png;base64,AA==", extra={"min_pixels": 1, "max_pixels": 9}),
        Audio("QUJD", "wav"),
        Audio("https://example.com/a.mp3", "mp3"),
        OtherPart({"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}, "fps": 2}),
        OtherPart({"type": "video", "video": ["https://example.com/1.png", "https://example.com/2.png"]}),
        OtherPart({"image": "https://example.com/native.png"}),
    )
    given = (System("Be brief"), User(parts))
    assert messages(*given, model="qwen3-vl-plus") == [
        {"role": "system", "content": [{"text": "Be brief"}]},
        {
            "role": "user",
            "content": [
                {"text": "See", "cache_control": {"type": "ephemeral"}},
                {"image": "data:image/png;base64,AA==", "min_pixels": 1, "max_pixels": 9},
                {"audio": "data:audio/wav;base64,QUJD"},
                {"audio": "https://example.com/a.mp3"},
                {"video": "https://example.com/v.mp4", "fps": 2},
                {"video": ["https://example.com/1.png", "https://example.com/2.png"]},
                {"image": "https://example.com/native.png"},
            ],
        },
    ]


def test_an_address_in_alibabas_storage_asks_for_its_header() -> None:
    request = asked(User((Image("oss://bucket/cat.png"),)), model="qwen-vl-max")
    assert sent(request).headers["x-dashscope-ossresourceresolve"] == "enable"
    frames = asked(User((OtherPart({"type": "video", "video": ["oss://bucket/1.png"]}),)), model="qwen-vl-max")
    assert sent(frames).headers["x-dashscope-ossresourceresolve"] == "enable"
    assert "x-dashscope-ossresourceresolve" not in sent(asked(model="qwen-vl-max")).headers


def test_a_cache_mark_keeps_a_list_on_the_text_path_too() -> None:
    mark = {"type": "ephemeral"}
    marked = [{"type": "text", "text": "long"}, {"type": "text", "text": "!", "cache_control": mark}]
    assert messages(System((Text("long"), Text("!", extra={"cache_control": mark}))), *HI)[0]["content"] == marked
    # on the message itself, as some clients set it, it would do nothing
    assert messages(System("long", extra={"cache_control": mark}), *HI)[0]["content"] == [
        {"type": "text", "text": "long", "cache_control": mark}
    ]


def test_openais_cache_breakpoint_is_a_cache_mark() -> None:
    part = Text("long", extra={"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}})
    written = sent(asked(System((part,)), *HI))
    assert msgspec.json.decode(written.body)["input"]["messages"][0]["content"] == [
        {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}
    ]
    assert written.dropped == ("messages[0].content[0].prompt_cache_breakpoint.ttl",)


@pytest.mark.parametrize("model", ["qwen-plus", "qwen3-vl-plus"])
def test_tool_calls_and_results_are_the_same_on_both_paths(model: str) -> None:
    call = ToolCall("call_1", "get_weather", '{"city": "Oslo"}')
    written = messages(*HI, Assistant(None, (call,)), ToolResult("call_1", (Text("3 C"),), "get_weather"), model=model)
    assert written[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
                }
            ],
        },
        {"role": "tool", "content": "3 C", "tool_call_id": "call_1", "name": "get_weather"},
    ]


def test_the_deprecated_function_role_finds_its_call_by_name() -> None:
    call = {"function_call": {"name": "now", "arguments": ""}}
    request = asked(*HI, Assistant(None, extra=call), ToolResult(None, "12:00", "now"))
    written = body(request)["input"]["messages"]
    assert written[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert written[2]["tool_call_id"] == written[1]["tool_calls"][0]["id"]
    assert sent(request).dropped == ()


def test_a_custom_tools_call_of_another_vendor_becomes_json() -> None:
    call = ToolCall("call_1", "shell", "ls -l", "custom")
    written = messages(*HI, Assistant("", (call,)), ToolResult("call_1", "ok"))
    assert written[1]["tool_calls"][0]["function"]["arguments"] == '{"input":"ls -l"}'


def test_a_turn_that_came_in_pieces_is_one_message() -> None:
    turn = (Assistant("a"), Assistant(None, (ToolCall("call_1", "now", "{}"),)), Assistant("b", refusal="c"))
    written = messages(*HI, *turn, ToolResult("call_1", "12:00"))
    assert [message["role"] for message in written] == ["user", "assistant", "tool"]
    assert written[1]["content"] == "abc"
    assert len(written[1]["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ((User((File(file_id="file-1"),)),), "$.messages[0].content[0]"),
        ((User((OtherPart({"type": "hologram"}),)),), "$.messages[0].content[0]"),
        ((User((Image(file_id="file-1"),)),), "$.messages[0].content[0]"),
        ((*HI, ToolResult("call_1", (Image("https://example.com/1.png"),))), "$.messages[1].content[0]"),
    ],
)
def test_content_that_cannot_be_said_is_refused(given: tuple[Message, ...], place: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sent(asked(*given))
    assert caught.value.param == place


@pytest.mark.parametrize("last", [Assistant("Yes"), System("Be brief")])
def test_the_last_message_must_ask_something(last: Message) -> None:
    with pytest.raises(InvalidRequest, match="last message") as caught:
        sent(asked(*HI, last))
    assert caught.value.param == "$.messages[1]"


def test_partial_mode_continues_the_assistants_message() -> None:
    request = asked(*HI, Assistant("def fib(", extra={"partial": True}), model="qwen3.5-plus")
    written = body(request)
    assert written["input"]["messages"][-1]["partial"] is True
    # a thinking model does not continue, so a default of thinking gives way
    assert written["parameters"]["enable_thinking"] is False
    assert not sent(request).streamed


def test_anthropics_prefill_is_partial_mode() -> None:
    assert messages(*HI, Assistant("{"), protocol="anthropic")[-1] == {
        "role": "assistant",
        "content": "{",
        "partial": True,
    }


def test_earlier_reasoning_is_not_sent_unless_asked() -> None:
    turn = Assistant("3", reasoning=(Reasoning("1 + 2"),))
    request = asked(*HI, turn, *HI, model="qwen-plus")
    assert "reasoning_content" not in body(request)["input"]["messages"][1]
    assert sent(request).dropped == ("messages[1].reasoning_content",)
    keeping = structs.replace(request, extra={"preserve_thinking": True})
    assert body(keeping)["input"]["messages"][1]["reasoning_content"] == "1 + 2"
    assert parameters(keeping)["preserve_thinking"] is True
    assert sent(keeping).dropped == ()


def test_a_model_that_keeps_reasoning_gets_all_of_it_or_none() -> None:
    turn, silent = Assistant("3", reasoning=(Reasoning("1 + 2"),)), Assistant("4")
    whole = body(asked(*HI, turn, *HI, model="qwen3.8-max"))["input"]["messages"]
    assert whole[1]["reasoning_content"] == "1 + 2"
    parts = body(asked(*HI, turn, *HI, silent, *HI, model="qwen3.8-max"))["input"]["messages"]
    assert not any("reasoning_content" in message for message in parts)
    refused = asked(*HI, turn, *HI, model="qwen3.8-max", extra={"preserve_thinking": False})
    assert "reasoning_content" not in body(refused)["input"]["messages"][1]


# -- parameters ------------------------------------------------------------------------------------------------------


def test_sampling_is_kept_within_the_vendors_bounds() -> None:
    wanted = Sampling(
        temperature=2,
        top_p=0,
        top_k=20,
        presence_penalty=0.5,
        repetition_penalty=1.05,
        seed=-1,
        stop=("END",),
        max_tokens=512,
        n=1,
        logprobs=True,
        top_logprobs=5,
    )
    assert parameters(asked(sampling=wanted)) == {
        "temperature": 1.99,
        "top_p": 0.001,
        "top_k": 20,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.05,
        "seed": 2**31 - 1,
        "stop": ["END"],
        "max_tokens": 512,
        "logprobs": True,
        "top_logprobs": 5,
    }
    assert parameters(asked(sampling=Sampling(temperature=0, top_p=1, seed=2**31 - 1))) == {
        "temperature": 0,
        "top_p": 1,
        "seed": 2**31 - 1,
    }


def test_an_explicit_null_for_top_k_turns_it_off() -> None:
    assert parameters(asked(extra={"top_k": None})) == {"top_k": None}


@pytest.mark.parametrize("n", [0, 5])
def test_too_many_choices_are_refused(n: int) -> None:
    with pytest.raises(InvalidRequest, match="1 to 4") as caught:
        sent(asked(sampling=Sampling(n=n)))
    assert caught.value.param == "$.n"


def test_several_choices_and_tools_do_not_go_together() -> None:
    assert parameters(asked(sampling=Sampling(n=4)))["n"] == 4
    with pytest.raises(InvalidRequest, match="tools"):
        sent(asked(sampling=Sampling(n=2), tools=(WEATHER,)))


def test_dashscopes_own_words_are_taken_from_the_extra_fields() -> None:
    extra = {
        "enable_search": True,
        "search_options": {"forced_search": True},
        "translation_options": {"source_lang": "auto", "target_lang": "no"},
        "enable_code_interpreter": True,
        "vl_high_resolution_images": True,
    }
    assert parameters(asked(extra=extra)) == extra
    assert sent(asked(extra=extra)).dropped == ()


def test_new_parameters_can_be_configured() -> None:
    request = asked(extra={"brand_new": 1, "other": 2})
    assert sent(request).dropped == ("brand_new", "other")
    adapter = provider(Options(parameters=("brand_new",)))
    assert parameters(request, adapter) == {"brand_new": 1}
    assert sent(request, adapter).dropped == ("other",)


def test_what_has_no_equal_is_reported_in_the_clients_words() -> None:
    request = asked(
        User("Hi", name="Ada", extra={"mood": "good"}),
        Assistant("Yes", name="Bo", extra={"annotations": [1], "audio": {"id": "audio_1"}}),
        User(
            (
                Text("See", extra={"x": 1}),
                Image("https://example.com/1.png", detail="low", extra={"image_url": {"y": 1}}),
            )
        ),
        Assistant(None, (ToolCall("call_1", "now", "{}", extra={"function": {"z": 1}, "w": 1}),)),
        ToolResult("call_1", "12:00", is_error=True, extra={"cache_control": {"type": "ephemeral"}}),
        sampling=Sampling(frequency_penalty=0.5, logit_bias={"1": 1.0}, logprobs=True, top_logprobs=20),
        tools=(
            FunctionTool("f", strict=True, extra={"function": {"v": 1}, "u": 1}),
            CustomTool("shell"),
            OtherTool({"type": "mcp"}),
            FunctionTool("g", deprecated=True, strict=True),
        ),
        response_format=JsonSchema("s", {"type": "object"}, extra={"json_schema": {"t": 1}}),
        user="u1",
        metadata={"a": "b"},
        extra={
            "store": True,
            "service_tier": "auto",
            "prediction": {},
            "verbosity": "low",
            "nothing": None,
            "stream_options": {"include_obfuscation": False},
        },
    )
    assert set(sent(request).dropped) == {
        "messages[0].name",
        "messages[0].mood",
        "messages[1].name",
        "messages[1].annotations",
        "messages[1].audio",
        "messages[2].content[0].x",
        "messages[2].content[1].image_url.detail",
        "messages[2].content[1].image_url.y",
        "messages[3].tool_calls[0].function.z",
        "messages[3].tool_calls[0].w",
        "messages[4].is_error",
        "messages[4].cache_control",
        "frequency_penalty",
        "logit_bias",
        "top_logprobs",
        "tools[0].function.strict",
        "tools[0].function.v",
        "tools[0].u",
        "tools[1]",
        "tools[2]",
        "functions[3].strict",
        "response_format.json_schema.t",
        "user",
        "metadata",
        "store",
        "service_tier",
        "prediction",
        "verbosity",
    }


def test_a_default_that_changes_nothing_is_not_reported() -> None:
    request = asked(
        sampling=Sampling(frequency_penalty=0.0, logit_bias={}, n=1, logprobs=False),
        response_format=PlainText(),
        tools=(FunctionTool("f", strict=False),),
        extra={"modalities": ["text"]},
    )
    assert sent(request).dropped == ()


def test_response_formats() -> None:
    assert parameters(asked(response_format=JsonObject()))["response_format"] == {"type": "json_object"}
    schema = JsonSchema("s", {"type": "object"}, strict=True)
    assert parameters(asked(response_format=schema))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
    }
    assert sent(asked(response_format=OtherFormat({"type": "grammar"}))).dropped == ("response_format",)


def test_speech_is_for_omni_models() -> None:
    extra = {"modalities": ["text", "audio"], "audio": {"voice": "Cherry", "format": "wav"}}
    assert parameters(asked(model="qwen3-omni-flash", extra=extra)) == extra
    assert sent(asked(extra=extra)).dropped == ("modalities", "audio")


# -- tools -----------------------------------------------------------------------------------------------------------


def test_tools_are_written_as_functions() -> None:
    written = parameters(asked(tools=(WEATHER, CLOCK), tool_choice="auto", parallel_tool_calls=True))
    assert written["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Tells the weather",
                "parameters": {"type": "object", "properties": {"city": {}}},
            },
        },
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    ]
    assert written["tool_choice"] == "auto"
    assert written["parallel_tool_calls"] is True


def test_a_tool_named_search_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="`search`") as caught:
        sent(asked(tools=(CLOCK, FunctionTool("search"))))
    assert caught.value.param == "$.tools[1].function.name"


def test_other_vendors_built_in_tools_are_parameters() -> None:
    request = asked(tools=(OtherTool({"type": "web_search"}), OtherTool({"type": "code_interpreter", "container": {}})))
    assert parameters(request) == {"enable_search": True, "enable_code_interpreter": True}
    assert sent(request).dropped == ("tools[1].container",)
    options = asked(extra={"web_search_options": {"search_context_size": "low"}})
    assert parameters(options) == {"enable_search": True}
    assert sent(options).dropped == ("web_search_options.search_context_size",)


NAMED = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize(
    ("choice", "tools", "written", "names", "dropped"),
    [
        ("none", (CLOCK,), "none", ["now"], ()),
        (NamedTool("now"), (CLOCK, WEATHER), NAMED, ["now", "get_weather"], ()),
        ("required", (CLOCK,), NAMED, ["now"], ()),
        ("required", (CLOCK, WEATHER), None, ["now", "get_weather"], ("tool_choice",)),
        (
            AllowedTools("auto", ({"type": "function", "function": {"name": "now"}},)),
            (CLOCK, WEATHER),
            None,
            ["now"],
            (),
        ),
        (AllowedTools("required", ({"type": "function", "name": "now"},)), (CLOCK, WEATHER), NAMED, ["now"], ()),
        (OtherToolChoice({"type": "mcp"}), (CLOCK,), None, ["now"], ("tool_choice",)),
        (NamedTool("shell", "custom"), (CLOCK, CustomTool("shell")), None, ["now"], ("tools[1]", "tool_choice")),
    ],
)
def test_tool_choices(choice: Any, tools: Any, written: Any, names: list[str], dropped: tuple[str, ...]) -> None:
    request = asked(tools=tools, tool_choice=choice)
    given = parameters(request)
    assert given.get("tool_choice") == written
    assert [tool["function"]["name"] for tool in given["tools"]] == names
    assert sent(request).dropped == dropped


def test_a_forced_tool_turns_off_thinking_that_nobody_asked_for() -> None:
    request = asked(model="qwen3.5-plus", tools=(CLOCK,), tool_choice=NamedTool("now"))
    assert parameters(request)["tool_choice"] == NAMED
    assert parameters(request)["enable_thinking"] is False


@pytest.mark.parametrize("model", ["qwen3.5-plus", "qwq-plus", "some-model"])
def test_a_forced_tool_gives_way_to_thinking_that_was_asked_for(model: str) -> None:
    request = asked(model=model, tools=(CLOCK,), tool_choice=NamedTool("now"), thinking=Thinking(enabled=True))
    assert "tool_choice" not in parameters(request)
    assert sent(request).dropped == ("tool_choice",)


# -- thinking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "thinking", "written", "streamed", "dropped"),
    [
        # off by default: a whole answer says so
        ("qwen-plus", Thinking(), {"enable_thinking": False}, False, ()),
        ("qwen-plus", Thinking(enabled=True), {"enable_thinking": True}, True, ()),
        ("qwen-plus", Thinking(enabled=False), {"enable_thinking": False}, False, ()),
        ("qwen-plus", Thinking(budget=500), {"enable_thinking": True, "thinking_budget": 500}, True, ()),
        ("qwen-plus", Thinking(budget=0), {"enable_thinking": False}, False, ()),
        ("qwen-plus", Thinking(effort="none"), {"enable_thinking": False}, False, ()),
        ("qwen-plus", Thinking(effort="minimal"), {"enable_thinking": True, "thinking_budget": 1024}, True, ()),
        ("qwen-plus", Thinking(effort="medium"), {"enable_thinking": True, "thinking_budget": 16384}, True, ()),
        ("qwen-plus", Thinking(effort="high"), {"enable_thinking": True}, True, ()),
        ("qwen-plus", Thinking(effort="odd"), {"enable_thinking": True}, True, ("reasoning_effort",)),
        ("qwen-plus", Thinking(enabled=False, effort="high"), {"enable_thinking": False}, False, ()),
        # on by default: the same answer whether the client streams or not
        ("qwen3.5-plus", Thinking(), {}, True, ()),
        ("qwen3.5-plus", Thinking(enabled=False), {"enable_thinking": False}, False, ()),
        ("qwen3-32b", Thinking(enabled=False), {"enable_thinking": False}, True, ()),
        # efforts in the model's own words
        ("qwen3.8-max", Thinking(effort="none"), {"enable_thinking": False}, False, ()),
        ("qwen3.8-max", Thinking(effort="minimal"), {"enable_thinking": True, "reasoning_effort": "low"}, True, ()),
        ("qwen3.8-max", Thinking(effort="medium"), {"enable_thinking": True, "reasoning_effort": "medium"}, True, ()),
        ("qwen3.8-max", Thinking(effort="high"), {"enable_thinking": True, "reasoning_effort": "xhigh"}, True, ()),
        ("qwen3.8-max", Thinking(effort="max"), {"enable_thinking": True, "reasoning_effort": "xhigh"}, True, ()),
        (
            "qwen3.8-max",
            Thinking(effort="low", budget=9),
            {"enable_thinking": True, "thinking_budget": 9},
            True,
            ("reasoning_effort",),
        ),
        # always
        ("qwq-plus", Thinking(), {}, True, ()),
        ("qwq-plus", Thinking(enabled=True, budget=9), {"thinking_budget": 9}, True, ()),
        ("qwq-plus", Thinking(enabled=False), {}, True, ("enable_thinking",)),
        ("qwq-plus", Thinking(effort="none"), {}, True, ("reasoning_effort",)),
        # never
        ("qwen-max", Thinking(), {}, False, ()),
        ("qwen-max", Thinking(enabled=False), {}, False, ()),
        ("qwen-max", Thinking(effort="none"), {}, False, ()),
        ("qwen-max", Thinking(enabled=True, budget=9), {}, False, ("enable_thinking", "thinking_budget")),
        ("qwen-max", Thinking(effort="low"), {}, False, ("reasoning_effort",)),
        # not known: as asked
        ("some-model", Thinking(), {}, False, ()),
        ("some-model", Thinking(enabled=True), {"enable_thinking": True}, True, ()),
        ("some-model", Thinking(enabled=False), {"enable_thinking": False}, False, ()),
        # stream-only, whatever is asked
        ("qwen3-omni-flash", Thinking(), {}, True, ()),
    ],
)
def test_thinking_for_a_client_that_does_not_stream(
    model: str, thinking: Thinking, written: dict[str, Any], streamed: bool, dropped: tuple[str, ...]
) -> None:
    request = asked(model=model, thinking=thinking)
    assert parameters(request) == written
    assert sent(request).streamed is streamed
    assert ("incremental_output" in body(request)["parameters"]) is streamed
    assert sent(request).dropped == dropped


def test_a_streamed_hybrid_is_left_at_its_default() -> None:
    assert parameters(asked(model="qwen-plus", stream=True)) == {}


def test_dashscopes_words_for_thinking_count_in_the_extra_fields_too() -> None:
    request = asked(model="qwen-plus", protocol="other", extra={"enable_thinking": True, "thinking_budget": 7})
    assert parameters(request) == {"enable_thinking": True, "thinking_budget": 7}
    assert sent(request).dropped == ()


# -- learning --------------------------------------------------------------------------------------------------------

URL_ERROR = b'{"code":"InvalidParameter","message":"url error, please check url\xef\xbc\x81","request_id":"r-1"}'
FRAMED = b"id:1\nevent:error\n:HTTP_STATUS/400\ndata:" + URL_ERROR + b"\n\n"


def refused(adapter: DashScope, target: Target, answer: bytes) -> ProviderError:
    return adapter.error(HttpError(400, {"content-type": "application/json"}, answer), target)


def in_stream(adapter: DashScope, request: ChatRequest, target: Target, answer: bytes) -> ProviderError:
    decoder = adapter.decoder(request, target, sent(request, adapter), HttpHead(200, {}))
    with pytest.raises(ProviderError) as caught:
        list(decoder.feed(answer))
    return caught.value


@pytest.mark.parametrize("way", ["400", "framed 400", "in a 200 stream"])
def test_a_model_on_the_other_path_is_learned_once(way: str) -> None:
    adapter, request, target = provider(), asked(stream=True), Target("qwen", "model-1")
    first = sent(request, adapter)
    if way == "in a 200 stream":
        error = in_stream(adapter, request, target, FRAMED)
    else:
        error = refused(adapter, target, URL_ERROR if way == "400" else FRAMED)
    assert adapter.learn(error, target, first)
    second = sent(request, adapter)
    assert (first.url, second.url) == (TEXT, MULTIMODAL)
    assert msgspec.json.decode(second.body)["input"]["messages"] == [{"role": "user", "content": [{"text": "Hi"}]}]
    # refused on both paths: there is nothing more to learn, and no going in circles
    assert not adapter.learn(error, target, second)
    assert sent(request, adapter).url == MULTIMODAL
    assert sent(structs.replace(request, model="model-2"), adapter).url == TEXT


def test_calls_side_by_side_all_get_their_second_try() -> None:
    adapter, request, target = provider(), asked(), Target("qwen", "model-1")
    one, other = sent(request, adapter), sent(request, adapter)
    assert adapter.learn(refused(adapter, target, URL_ERROR), target, one)
    assert adapter.learn(refused(adapter, target, URL_ERROR), target, other)
    assert sent(request, adapter).url == MULTIMODAL


def test_a_text_model_that_was_sent_an_image_says_so_the_second_time() -> None:
    adapter, target = provider(), Target("qwen", "model-1")
    request = asked(User((Image("https://example.com/1.png"),)))
    assert adapter.learn(refused(adapter, target, URL_ERROR), target, sent(request, adapter))
    with pytest.raises(InvalidRequest, match="text only"):
        sent(request, adapter)
    assert sent(asked(), adapter).url == TEXT


def test_a_configured_path_is_not_unlearned() -> None:
    adapter, target = provider(Options(path={"model-1": "text"})), Target("qwen", "model-1")
    assert not adapter.learn(refused(adapter, target, URL_ERROR), target, sent(asked(), adapter))


@pytest.mark.parametrize(
    "message",
    [
        b"This model only support stream mode, please enable the stream parameter to access the model.",
        b"parameter.enable_thinking must be set to false for non-streaming calls",
    ],
)
def test_a_model_that_only_streams_is_learned_once(message: bytes) -> None:
    adapter, request, target = provider(), asked(), Target("qwen", "model-1")
    error = refused(adapter, target, b'{"code":"InvalidParameter","message":"' + message + b'"}')
    assert adapter.learn(error, target, sent(request, adapter))
    second = sent(request, adapter)
    assert second.streamed
    assert second.headers["x-dashscope-sse"] == "enable"
    assert not adapter.learn(error, target, second)


def test_a_model_that_takes_no_lists_loses_its_cache_marks() -> None:
    adapter, target = provider(), Target("qwen", "model-1")
    request = asked(System((Text("long", extra={"cache_control": {"type": "ephemeral"}}),)), *HI)
    error = refused(adapter, target, b'{"code":"InvalidParameter","message":"input content must be a string."}')
    first = sent(request, adapter)
    assert adapter.learn(error, target, first)
    second = sent(request, adapter)
    assert msgspec.json.decode(second.body)["input"]["messages"][0]["content"] == "long"
    assert second.dropped == ("messages[0].cache_control",)
    assert not adapter.learn(error, target, second)


def test_lessons_of_one_model_add_up() -> None:
    adapter, request, target = provider(), asked(), Target("qwen", "model-1")
    assert adapter.learn(refused(adapter, target, URL_ERROR), target, sent(request, adapter))
    error = refused(adapter, target, b'{"code":"InvalidParameter","message":"This model only support stream mode"}')
    assert adapter.learn(error, target, sent(request, adapter))
    assert (sent(request, adapter).url, sent(request, adapter).streamed) == (MULTIMODAL, True)


@pytest.mark.parametrize("error", [Rejected("no"), VendorFailed("url error"), VendorFailed("only support stream mode")])
def test_nothing_is_learned_from_other_errors(error: ProviderError) -> None:
    assert not provider().learn(error, Target("qwen", "model-1"), sent(asked()))


def test_lessons_are_bounded_and_the_oldest_goes_first() -> None:
    lessons = Lessons(max_models=2)
    for name in ("a", "b", "a", "c"):
        lessons.learn(name, Lesson(stream_only=True))
    assert [lessons.of(name).stream_only for name in ("a", "b", "c")] == [True, False, True]
