"""OpenAI's client library for Python on conversations, as an application would use it."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.conversations import Message
from openai.types.responses import (
    ResponseFunctionToolCallItem,
    ResponseFunctionToolCallOutputItem,
    ResponseReasoningItem,
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def client(gateway_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway_url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def said(*texts: str) -> list[Any]:
    return [{"type": "message", "role": "user", "content": text} for text in texts]


def text_of(item: Any) -> str:
    assert isinstance(item, Message)
    part: Any = item.content[0]
    return str(part.text)


def test_a_conversation_is_created_retrieved_updated_and_deleted(client: OpenAI) -> None:
    made = client.conversations.create(metadata={"topic": "tea"}, items=said("Hello"))
    assert (made.object, made.metadata) == ("conversation", {"topic": "tea"})
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"topic": "rice"})
    assert (changed.id, changed.created_at, changed.metadata) == (made.id, made.created_at, {"topic": "rice"})
    deleted = client.conversations.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "conversation.deleted")
    for again in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError) as refused:
            again(made.id)
        assert refused.value.code == "conversation_not_found"
    assert client.conversations.create().metadata == {}


def test_items_are_created_listed_retrieved_and_deleted(client: OpenAI) -> None:
    conversation = client.conversations.create().id
    added = client.conversations.items.create(
        conversation,
        items=[
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
            {"role": "assistant", "content": "It rains."},
        ],
        include=["reasoning.encrypted_content"],
    )
    question, thought, call, output, answer = added.data
    assert (added.first_id, added.last_id, added.has_more) == (question.id, answer.id, False)
    assert (text_of(question), text_of(answer)) == ("Weather?", "It rains.")
    assert isinstance(thought, ResponseReasoningItem)
    assert thought.summary[0].text == "I look."
    assert isinstance(call, ResponseFunctionToolCallItem)
    assert (call.name, call.call_id, call.status) == ("weather", "call_1", "completed")
    assert isinstance(output, ResponseFunctionToolCallOutputItem)
    assert (output.call_id, output.output) == ("call_1", "rain")
    for item in added.data:
        assert item.id is not None
        assert client.conversations.items.retrieve(item.id, conversation_id=conversation, include=[]) == item
    assert list(client.conversations.items.list(conversation, order="asc")) == added.data
    assert list(client.conversations.items.list(conversation)) == added.data[::-1]
    left = client.conversations.items.delete(question.id or "", conversation_id=conversation)
    assert (left.id, left.object) == (conversation, "conversation")
    with pytest.raises(openai.NotFoundError) as refused:
        client.conversations.items.retrieve(question.id or "", conversation_id=conversation)
    assert refused.value.code == "item_not_found"


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_list_is_paged_to_its_end_in_either_order(gateway_url: str, order: Any) -> None:
    texts = [str(number) for number in range(7)]
    async with AsyncOpenAI(base_url=f"{gateway_url}/v1", api_key="any", max_retries=0) as client:
        conversation = (await client.conversations.create(items=said(*texts))).id
        page = await client.conversations.items.list(conversation, order=order, limit=2)
        assert (len(page.data), page.has_more) == (2, True)
        read = [text_of(item) async for item in page]
        assert read == (texts if order == "asc" else texts[::-1])
        other = (await client.conversations.create(items=said("other"))).id
        with pytest.raises(openai.BadRequestError) as refused:
            await client.conversations.items.list(other, after=page.last_id or "")
        assert (refused.value.code, refused.value.param) == ("unknown_cursor", "after")


def test_a_turn_of_a_chat_is_read_back_as_items(client: OpenAI) -> None:
    conversation = client.conversations.create(items=said("I am Ada.")).id
    answer = client.chat.completions.create(
        model="mock/echo",
        messages=[{"role": "user", "content": "Who am I?"}],
        extra_headers={"x-deltaway-conversation": conversation},
    )
    stored = list(client.conversations.items.list(conversation, order="asc"))
    assert [text_of(item) for item in stored] == ["I am Ada.", "Who am I?", answer.choices[0].message.content]
    beside: Any = stored[2].to_dict()["deltaway"]
    assert beside["turn"]["target"] == "mock/echo"


def test_what_cannot_be_added_is_refused_by_its_place(client: OpenAI) -> None:
    conversation = client.conversations.create().id
    wrong: Any = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "input_txt"}]}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.conversations.items.create(conversation, items=wrong)
    assert refused.value.param == "items[1].content[0].type"
    with pytest.raises(openai.BadRequestError) as refused:
        client.conversations.items.create(conversation, items=said(*["x"] * 21))
    assert refused.value.param == "items"
    assert list(client.conversations.items.list(conversation)) == []
