"""Items in OpenAI's words: what is refused, what is read, and that what is shown says the same if it is read again."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._models import construct_type
from openai.types.conversations import ConversationItem, Message

from router.conversation import Item
from router.conversations.items import RESPONSES, read_item, shown
from router.conversations.pieces import prefix_of
from router.errors import InvalidRequest
from router.messages import (
    Assistant,
    Audio,
    File,
    Image,
    OtherPart,
    Part,
    Reasoning,
    Refusal,
    System,
    Text,
    ToolCall,
    ToolResult,
    User,
)


def item(message: Any, protocol: str = "openai", status: Any = "completed") -> Item:
    return Item(id="x_1", message=message, protocol=protocol, status=status, created_at=1000)


def message(content: object, role: str = "user", **more: object) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **more}


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}

# -- bad input -----------------------------------------------------------------------------------------------------

BAD: list[tuple[object, str]] = [
    ("text", "items[0]"),
    (None, "items[0]"),
    ({}, "items[0].type"),
    ({"content": "x"}, "items[0].type"),
    ({"type": 1}, "items[0].type"),
    ({"type": "mesage", "role": "user", "content": "x"}, "items[0].type"),
    ({"type": "item_reference", "id": "msg_1"}, "items[0].type"),
    ({"type": "web_search_call", "id": "ws_1", "status": "completed"}, "items[0].type"),
    ({"role": "user"}, "items[0].content"),
    ({"role": "user", "content": None}, "items[0].content"),
    ({"role": "tool", "content": "x"}, "items[0].role"),
    ({"type": "message", "content": "x"}, "items[0].role"),
    (message(5), "items[0].content"),
    (message([]), "items[0].content"),
    (message({"type": "input_text", "text": "x"}), "items[0].content"),
    (message(["x"]), "items[0].content[0]"),
    (message([{"type": "input_text", "text": "a"}, {"type": "input_txt", "text": "b"}]), "items[0].content[1].type"),
    (message([{"text": "a"}]), "items[0].content[0].type"),
    (message([{"type": "input_text"}]), "items[0].content[0].text"),
    (message([{"type": "input_text", "text": 1}]), "items[0].content[0].text"),
    (message([{"type": "input_text", "text": "x", "colour": "red"}]), "items[0].content[0].colour"),
    (message([{"type": "refusal", "refusal": "no"}]), "items[0].content[0].type"),
    (message([{"type": "input_image"}]), "items[0].content[0]"),
    (message([{"type": "input_file", "filename": "a"}]), "items[0].content[0]"),
    (message([{"type": "input_audio", "input_audio": {"data": "x"}}]), "items[0].content[0].input_audio.format"),
    (message("x", name=1), "items[0].name"),
    (message("x", nme="a"), "items[0].nme"),
    (message("x", extra={"a": 1}), "items[0].extra"),
    (message("x", protocol="openai", extra=[]), "items[0].extra"),
    (message("x", protocol="openai", phase="commentary"), "items[0].phase"),
    (message("x", protocol=RESPONSES), "items[0].protocol"),
    (message("x", protocol="No protocol"), "items[0].protocol"),
    ({**CALL, "call_id": None}, "items[0].call_id"),
    ({**CALL, "arguments": {}}, "items[0].arguments"),
    ({**CALL, "input": "x"}, "items[0].input"),
    ({**OUTPUT, "call_id": ""}, "items[0].call_id"),
    ({**OUTPUT, "output": [{"type": "refusal", "refusal": "no"}]}, "items[0].output[0].type"),
    ({**OUTPUT, "is_error": "yes"}, "items[0].is_error"),
    ({"type": "reasoning", "summary": "x"}, "items[0].summary"),
    ({"type": "reasoning", "summary": [{"type": "reasoning_text", "text": "x"}]}, "items[0].summary[0].type"),
    ({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text"}]}, "items[0].content[0].text"),
]


@pytest.mark.parametrize(("value", "param"), BAD)
def test_what_is_wrong_is_refused_by_the_place_that_it_stands_at(value: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_item(value, "items[0]")
    assert refused.value.param == param
    assert param in str(refused.value)


# -- reading -------------------------------------------------------------------------------------------------------

READ: list[tuple[dict[str, Any], Any]] = [
    ({"role": "user", "content": "Hi"}, User("Hi")),
    (message([{"type": "input_text", "text": "Hi"}]), User("Hi")),
    (message("Be brief.", "developer"), System("Be brief.", "developer")),
    (message([{"type": "output_text", "text": "Hi", "annotations": []}], "assistant"), Assistant("Hi")),
    (message([{"type": "refusal", "refusal": "no"}], "assistant"), Assistant(refusal="no")),
    (
        message(
            [
                {"type": "input_text", "text": "See"},
                {"type": "input_image", "image_url": "https://a.example/b.png", "detail": "low"},
                {"type": "input_image", "file_id": "file-1", "detail": "auto"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            ]
        ),
        User(
            (
                Text("See"),
                Image("https://a.example/b.png", detail="low"),
                Image(file_id="file-1"),
                File(filename="a.pdf", data="data:application/pdf;base64,AA=="),
                Audio("AA==", "wav"),
            )
        ),
    ),
    ({**CALL, "id": "fc_1", "status": "completed"}, Assistant(tool_calls=(ToolCall("c", "f", "{}"),))),
    (
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"},
        Assistant(tool_calls=(ToolCall("c", "f", "x", "custom"),)),
    ),
    (OUTPUT, ToolResult("c", "x")),
    (
        {**OUTPUT, "output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        ToolResult("c", (Text("a"), Text("b"))),
    ),
    (
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "why"}],
            "encrypted_content": "…",
        },
        Assistant(reasoning=(Reasoning("why", encrypted="…"),)),
    ),
]


@pytest.mark.parametrize(("value", "wanted"), READ)
def test_items_are_read_as_messages_of_one_kind(value: dict[str, Any], wanted: Any) -> None:
    assert read_item(value, "items[0]") == (wanted, "openai")


BESIDE: list[tuple[dict[str, Any], str]] = [
    (message("x", "assistant", phase="commentary"), "phase"),
    ({**CALL, "namespace": "n", "caller": {"type": "direct"}}, "namespace"),
    ({**OUTPUT, "caller": {"type": "direct"}}, "caller"),
    ({"type": "custom_tool_call_output", "call_id": "c", "output": "x"}, "type"),
    ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]}, "summary"),
    (
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}],
            "content": [{"type": "reasoning_text", "text": "c"}],
        },
        "summary",
    ),
    ({"type": "reasoning", "content": [{"type": "reasoning_text", "text": "c"}] * 2}, "content"),
]


@pytest.mark.parametrize(("value", "field"), BESIDE)
def test_what_our_messages_have_no_word_for_is_kept_and_shown_again(value: dict[str, Any], field: str) -> None:
    said, protocol = read_item(value, "items[0]")
    assert protocol == RESPONSES
    found = shown(item(said, protocol))
    assert found[field] == value[field]
    assert read_item(found, "items[0]") == (said, protocol)


def test_what_stands_beside_a_part_is_kept_there() -> None:
    cited = {
        "type": "output_text",
        "text": "x",
        "annotations": [{"type": "url_citation", "url": "https://a.example", "title": "A"}],
        "logprobs": [],
    }
    file = {"type": "input_file", "file_id": "file-1", "detail": "low"}
    said, protocol = read_item(message([cited, file], "assistant"), "items[0]")
    assert shown(item(said, protocol))["content"] == [cited, file]


def test_the_text_of_reasoning_is_its_content_or_else_its_summary() -> None:
    summary = [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}]
    only, _ = read_item({"type": "reasoning", "summary": summary}, "items[0]")
    assert isinstance(only, Assistant)
    assert only.reasoning[0].text == "a\n\nb"
    assert shown(item(only, RESPONSES))["content"] == []
    content = [{"type": "reasoning_text", "text": "c"}]
    both, _ = read_item({"type": "reasoning", "summary": summary, "content": content}, "items[0]")
    assert isinstance(both, Assistant)
    assert both.reasoning[0].text == "c"


# -- showing -------------------------------------------------------------------------------------------------------


def test_what_was_said_by_chat_calls_is_shown_with_the_fields_of_its_protocol() -> None:
    spoken = Assistant("hi", extra={"audio": {"id": "audio_1"}})
    assert shown(item(spoken)) == {
        "id": "x_1",
        "status": "completed",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}],
        "extra": {"audio": {"id": "audio_1"}},
        "protocol": "openai",
    }
    assert "protocol" not in shown(item(Assistant("hi")))


def test_an_item_that_is_being_written_says_so() -> None:
    assert shown(item(Assistant("hi"), status="in_progress"))["status"] == "in_progress"


texts = st.text(max_size=8)
named = st.none() | st.text(min_size=1, max_size=4)
extras = st.dictionaries(st.text(min_size=1, max_size=4), st.integers() | texts, max_size=2)
inputs: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, texts, extras),
    st.builds(Image, st.text(min_size=1, max_size=5), st.none(), st.sampled_from([None, "low"]), extras),
    st.builds(Image, st.just(""), st.text(min_size=1, max_size=5), st.none(), extras),
    st.builds(Audio, texts, texts, extras),
    st.builds(File, st.text(min_size=1, max_size=5), named, named, named, extras),
    st.builds(OtherPart, extras.map(lambda fields: {**fields, "type": "video_url"})),
)
outputs: st.SearchStrategy[Part] = (
    inputs | st.builds(Refusal, texts, extras) | st.builds(Reasoning, texts, named, named, named, extras)
)


def content(parts: st.SearchStrategy[Part]) -> st.SearchStrategy[Any]:
    """As it is kept: one text alone is no list."""
    several = st.lists(parts, min_size=1, max_size=3).map(tuple)
    return texts | several.filter(lambda one: len(one) > 1 or not isinstance(one[0], Text | Refusal))


messages = st.one_of(
    st.builds(User, content(inputs), named, extras),
    st.builds(System, content(inputs), st.sampled_from(["system", "developer"]), named, extras),
    st.builds(Assistant, content(outputs), name=named, extra=extras),
    st.builds(Assistant, refusal=texts, name=named, extra=extras),
    st.builds(
        lambda call, name, extra: Assistant(tool_calls=(call,), name=name, extra=extra),
        st.builds(ToolCall, texts, texts, texts, st.sampled_from(["function", "custom"]), extras),
        named,
        extras,
    ),
    st.builds(
        lambda reasoning, name, extra: Assistant(reasoning=(reasoning,), name=name, extra=extra),
        st.builds(Reasoning, texts, named, named, named, extras),
        named,
        extras,
    ),
    st.builds(ToolResult, st.text(min_size=1, max_size=5), content(inputs), named, st.booleans(), extras),
    st.builds(ToolResult, st.none(), content(inputs), st.text(min_size=1, max_size=5), st.booleans(), extras),
)


@given(messages)
def test_an_item_that_is_read_and_added_again_says_the_same(said: Any) -> None:
    fields = json.loads(json.dumps(shown(item(said))))
    again, protocol = read_item(fields, "items[0]")
    assert (again, protocol) == (said, "openai")
    assert prefix_of(again) == prefix_of(said)


@given(messages)
def test_openais_library_has_a_class_for_every_item(said: Any) -> None:
    fields = shown(item(said))
    made: Any = construct_type(value=fields, type_=ConversationItem)
    assert isinstance(made, get_args(get_args(ConversationItem)[0]))
    assert made.type == fields["type"]
    if isinstance(made, Message):
        assert len(made.content) == len(fields["content"])
