"""Every recorded answer of a vendor, as OpenAI's client library for Python reads it from the gateway.

The transcripts are those of the providers (`tests/providers`). What they must come to is written there as events; here
it must come to the same through adapter, dialect, sockets and the library, streamed and whole.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from msgspec import Struct
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from router.dialects.openai_chat_answer import usage_fields
from router.events import Event
from router.fold import Answer, Fold, ToolCallBlock
from support.serving import application, served
from support.vendor import Exchange, vendor

TRANSCRIPTS = Path(__file__).parents[1] / "providers" / "transcripts"
CONTENT_TYPES = {".sse": "text/event-stream", ".json": "application/json"}
AT_ONCE = 8


class Case(Struct):
    """One transcript, as a row of the configuration. `code` is that of the error at its end, if it says one."""

    name: str
    folder: Path
    answer: Answer
    fails: bool
    code: str | None
    status: int
    headers: dict[str, str]
    options: dict[str, Any]
    asked: dict[str, Any]

    @property
    def body(self) -> bytes:
        (path,) = self.folder.glob("upstream.*")
        return path.read_bytes()


def case(folder: Path) -> Case:
    def read(name: str) -> Any:
        path = folder / name
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    (upstream,) = folder.glob("upstream.*")
    fold, failure = Fold(), read("error.json")
    for item in read("events.json") or []:
        if "raises" in item:
            failure = item
        else:
            fold.add(msgspec.convert(item, Event))
    response = read("response.json") or {}
    content_type = CONTENT_TYPES.get(upstream.suffix)
    n = ((read("request.json") or {}).get("sampling") or {}).get("n")
    return Case(
        name=f"{folder.parent.name}-{folder.name}",
        folder=folder,
        answer=fold.result(),
        fails=failure is not None,
        code=(failure or {}).get("code"),
        status=response.get("status", 200),
        headers=response.get("headers") or ({"content-type": content_type} if content_type else {}),
        options=read("options.json") or {},
        asked={} if n is None else {"n": n},
    )


CASES = [case(path.parent) for path in sorted(TRANSCRIPTS.glob("*/*/upstream.*")) if path.parent.parent.name != "mock"]


def configuration(vendor_url: str) -> str:
    rows = {
        one.name: {
            "protocol": one.folder.parent.name,
            "base_url": f"{vendor_url}/{one.name}",
            "api_key": "sk-vendor-key",
            "options": one.options,
        }
        for one in CASES
    }
    return json.dumps({"providers": rows, "plugins": ["usage"], "server": {"heartbeat": "20ms"}})


async def plays_the_transcript(exchange: Exchange) -> None:
    """The path's second part names it."""
    request = exchange.request
    one = next(one for one in CASES if one.name == request.path.split("/")[2])
    status, headers, body = one.status, one.headers, one.body
    streamed = request.headers.get("x-dashscope-sse") == "enable" or request.json().get("stream")
    if not streamed:
        whole = one.folder / "whole.json"
        headers, body = {"content-type": "application/json"}, whole.read_bytes()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    await exchange.send("\r\n".join([*lines, "", ""]).encode() + body)


def expected(answer: Answer, *, ids: bool = True) -> list[Any]:
    return [
        {
            "index": choice.index,
            "text": choice.text(),
            "reasoning": choice.reasoning(),
            "refusal": choice.refusal(),
            "calls": [(call.id if ids else "", *called(call)) for call in choice.tool_calls()],
            "finish": choice.finish_reason,
        }
        for choice in answer.choices
    ]


def called(call: ToolCallBlock) -> tuple[str, str]:
    return call.name, call.arguments or ("{}" if call.kind == "function" else "")


def read_whole(answer: ChatCompletion, *, ids: bool = True) -> list[Any]:
    found = []
    for choice in answer.choices:
        message: Any = choice.message
        found.append(
            {
                "index": choice.index,
                "text": message.content or "",
                "reasoning": getattr(message, "reasoning_content", None) or "",
                "refusal": message.refusal or "",
                "calls": [
                    (call.id if ids else "", call.function.name, call.function.arguments)
                    if call.type == "function"
                    else (call.id if ids else "", call.custom.name, call.custom.input)
                    for call in message.tool_calls or []
                ],
                "finish": choice.finish_reason,
            }
        )
    return found


async def read_stream(stream: Any) -> tuple[list[Any], Any]:
    """The choices added up from the chunks, and the usage."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for piece in chunk.choices:
            fresh = {"index": piece.index, "text": "", "reasoning": "", "refusal": "", "calls": [], "finish": None}
            choice, delta = choices.setdefault(piece.index, fresh), piece.delta
            choice["text"] += delta.content or ""
            choice["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            choice["refusal"] += delta.refusal or ""
            choice["finish"] = piece.finish_reason or choice["finish"]
            for call in delta.tool_calls or []:
                if call.index == len(choice["calls"]):
                    choice["calls"].append(("", "", ""))
                what = call.function.model_dump() if call.function else call.custom
                id_, name, arguments = choice["calls"][call.index]
                more = what.get("arguments") or what.get("input") or ""
                choice["calls"][call.index] = (call.id or id_, what.get("name") or name, arguments + more)
    return [choices[index] for index in sorted(choices)], usage


def counts(usage: Any) -> Any:
    return None if usage is None else (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def expected_counts(answer: Answer) -> Any:
    if answer.usage is None:
        return None
    fields = usage_fields(answer.usage)
    return fields["prompt_tokens"], fields["completion_tokens"], fields["total_tokens"]


async def all_of(wanted: list[Case], ask: Any) -> dict[str, Any]:
    """What was wrong, by the names of the transcripts."""
    assert len(wanted) > 10
    wrong: dict[str, Any] = {}
    slots = asyncio.Semaphore(AT_ONCE)

    async with vendor(plays_the_transcript) as played, served(application(configuration(played.url))) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=20) as client:

            async def one_of(one: Case) -> None:
                request = {"model": f"{one.name}/model-1", "messages": [{"role": "user", "content": "Hi"}], **one.asked}
                async with slots:
                    try:
                        await ask(client, one, request)
                    except Exception as error:
                        wrong[one.name] = error

            await asyncio.gather(*(one_of(one) for one in wanted))
    return wrong


async def streams(client: AsyncOpenAI, one: Case, request: dict[str, Any]) -> None:
    stream = await client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    choices, usage = await read_stream(stream)
    assert choices == expected(one.answer)
    if one.answer.usage is not None:
        assert counts(usage) == expected_counts(one.answer)


async def helps(client: AsyncOpenAI, one: Case, request: dict[str, Any]) -> None:
    finishes = {choice.finish_reason for choice in one.answer.choices}
    try:
        async with client.chat.completions.stream(**request) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
    except openai.LengthFinishReasonError:
        # the helper raises when a model has been stopped
        assert "length" in finishes
    except openai.ContentFilterFinishReasonError:
        assert "content_filter" in finishes
    else:
        assert read_whole(final) == expected(one.answer)


async def asks_whole(client: AsyncOpenAI, one: Case, request: dict[str, Any]) -> None:
    answer = await client.chat.completions.create(**request)
    # a call that its vendor gave no id gets one, made of the vendor's bytes
    assert read_whole(answer, ids=False) == expected(one.answer, ids=False)
    assert all(call.id for choice in answer.choices for call in choice.message.tool_calls or [])
    if one.answer.usage is not None:
        assert counts(answer.usage) == expected_counts(one.answer)


async def fails(client: AsyncOpenAI, one: Case, request: dict[str, Any]) -> None:
    with pytest.raises(openai.APIError) as caught:
        await read_stream(await client.chat.completions.create(**request, stream=True))
    # told by the gateway, before the answer or in it, and no failure of the library to read it
    assert isinstance(caught.value, openai.APIStatusError) or type(caught.value) is openai.APIError
    assert caught.value.code == (one.code or caught.value.code) is not None
    assert caught.value.message


async def test_every_recorded_stream_is_read_chunk_by_chunk() -> None:
    assert await all_of([one for one in CASES if not one.fails], streams) == {}


async def test_every_recorded_stream_is_read_by_the_stream_helper() -> None:
    def custom(one: Case) -> bool:
        return any(call.kind == "custom" for choice in one.answer.choices for call in choice.tool_calls())

    # the helper adds up calls of functions alone, whoever answers
    assert await all_of([one for one in CASES if not one.fails and not custom(one)], helps) == {}


async def test_every_recorded_whole_answer_is_read() -> None:
    assert await all_of([one for one in CASES if (one.folder / "whole.json").exists()], asks_whole) == {}


async def test_every_recorded_failure_is_an_error_with_a_code() -> None:
    assert await all_of([one for one in CASES if one.fails], fails) == {}
