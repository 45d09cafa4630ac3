"""OpenAI's client library for Python on completions that are kept, as an application would use it."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def client(gateway_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway_url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def asking(text: str, topic: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return {"model": "mock/echo", "messages": messages, "store": True, "metadata": {"topic": topic}}


def test_a_whole_answer_is_retrieved_changed_listed_and_deleted(client: OpenAI) -> None:
    answer = client.chat.completions.create(**asking("Hello", "whole"))
    found = client.chat.completions.retrieve(answer.id)
    assert (found.id, found.created, found.model, found.usage) == (
        answer.id,
        answer.created,
        answer.model,
        answer.usage,
    )
    assert found.choices == answer.choices
    changed = client.chat.completions.update(answer.id, metadata={"topic": "other"})
    assert (changed.id, changed.to_dict()["metadata"]) == (answer.id, {"topic": "other"})
    assert client.chat.completions.list(metadata={"topic": "whole"}).data == []
    assert [each.id for each in client.chat.completions.list(metadata={"topic": "other"})] == [answer.id]
    deleted = client.chat.completions.delete(answer.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (answer.id, True, "chat.completion.deleted")
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.retrieve(answer.id)
    assert refused.value.code == "completion_not_found"


def test_a_streamed_answer_is_retrieved_by_the_id_that_its_chunks_bear(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(stream=True, **asking("Hello there", "streamed")))
    (identity,) = {chunk.id for chunk in chunks}
    found = client.chat.completions.retrieve(identity)
    assert found.choices[0].message.content == "Hello there"
    assert found.choices[0].finish_reason == "stop"
    assert found.created == chunks[0].created
    with client.chat.completions.stream(**asking("And again", "streamed")) as stream:
        helped = stream.get_final_completion()
    assert client.chat.completions.retrieve(helped.id).choices[0].message.content == "And again"


def test_messages_are_listed_in_pages(client: OpenAI) -> None:
    answer = client.chat.completions.create(**asking("Hello", "messages"))
    page = client.chat.completions.messages.list(answer.id, limit=1)
    assert [(each.id, each.role, each.content) for each in page.data] == [(f"{answer.id}-0", "system", "Be brief.")]
    assert [each.content for each in page] == ["Be brief.", "Hello"]
    assert [each.content for each in client.chat.completions.messages.list(answer.id, order="desc")] == [
        "Hello",
        "Be brief.",
    ]
    assert page.data[0].content_parts is None


async def test_a_list_is_read_to_its_end_in_pages(gateway_url: str) -> None:
    async with AsyncOpenAI(base_url=f"{gateway_url}/v1", api_key="any", max_retries=0) as client:
        ids = [(await client.chat.completions.create(**asking(f"{number}", "pages"))).id for number in range(5)]
        of_ours = {"model": "mock/echo", "metadata": {"topic": "pages"}, "limit": 2}
        assert [each.id async for each in client.chat.completions.list(**of_ours)] == ids
        assert [each.id async for each in client.chat.completions.list(order="desc", **of_ours)] == ids[::-1]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.list(after="chatcmpl-of-somebody-else")
        assert (refused.value.code, refused.value.param) == ("unknown_cursor", "after")
