"""What an OpenAI-compatible vendor answers reaches a client of the same protocol with nothing lost, over real sockets.

One answer that has everything the protocol knows and some fields it does not: whole, and as a stream of three choices
whose chunks interleave. OpenAI's own client library adds the chunks up.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from openai._models import construct_type
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from support.serving import application, asking, client, config_for, served
from support.vendor import Exchange, sse, vendor

Json = dict[str, Any]


def token(text: str) -> Json:
    top = [{"token": text, "logprob": -0.1, "bytes": None}]
    return {"token": text, "logprob": -0.1, "bytes": list(text.encode()), "top_logprobs": top}


WHOLE: Json = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1790000000,
    "model": "m-2026",
    "service_tier": "default",
    "system_fingerprint": "fp_1",
    "prompt_filter_results": [
        {"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
    ],
    "citations": ["http://a", "http://b"],
    "metadata": {"a": "b"},
    "moderation": {"input": {"flagged": False}, "output": {"flagged": True}},
    "x_vendor": {"cost": 1.5, "n": None},
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": {"content": [token("Hi"), token(" you")], "refusal": None},
            "content_filter_results": {"hate": {"filtered": False}},
            "native_finish_reason": "eos",
            "message": {
                "role": "assistant",
                "content": "Hi you",
                "refusal": None,
                "reasoning_content": "hm",
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {"start_index": 0, "end_index": 2, "title": "T", "url": "http://a"},
                    }
                ],
                "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "hm"}],
            },
        },
        {
            "index": 1,
            "finish_reason": "tool_calls",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "w", "arguments": '{"city":"Oslo"}'},
                        "extra_content": {"google": {"thought_signature": "s"}},
                    },
                    {"id": "call_2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}},
                ],
            },
        },
        {
            "index": 2,
            "finish_reason": "stop",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": "no",
                "annotations": [],
                "audio": {"id": "audio_1", "data": "AA==", "expires_at": 12, "transcript": "Hello"},
            },
        },
    ],
    "usage": {
        "prompt_tokens": 20,
        "completion_tokens": 30,
        "total_tokens": 50,
        "cost": 0.1,
        "prompt_tokens_details": {
            "cached_tokens": 5,
            "cache_write_tokens": 0,
            "audio_tokens": 0,
            "text_tokens": 20,
            "image_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 12,
            "audio_tokens": 0,
            "text_tokens": 18,
            "accepted_prediction_tokens": 1,
            "rejected_prediction_tokens": 2,
        },
    },
}


HEAD = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1790000000,
    "model": "m-2026",
    "service_tier": "default",
    "system_fingerprint": "fp_1",
}


def chunk(index: int, delta: Json, finish: str | None = None, logprobs: Json | None = None, **choice: Any) -> Json:
    return {
        **HEAD,
        "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish, **choice}],
        "usage": None,
        "obfuscation": "abc",
    }


STREAM: list[Json] = [
    {**chunk(0, {}), "choices": [], "prompt_filter_results": WHOLE["prompt_filter_results"]},
    chunk(0, {"role": "assistant", "content": "", "refusal": None}),
    chunk(
        1,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "w", "arguments": ""},
                    "extra_content": {"google": {"thought_signature": "s"}},
                }
            ],
        },
    ),
    chunk(2, {"role": "assistant", "content": "", "refusal": None}),
    chunk(0, {"reasoning_content": "hm", "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "hm"}]}),
    chunk(0, {"content": "Hi"}, logprobs={"content": [token("Hi")], "refusal": None}),
    chunk(1, {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
    chunk(2, {"audio": {"id": "audio_1", "transcript": "Hel"}}),
    chunk(2, {"audio": {"data": "AA==", "transcript": "lo"}}),
    chunk(1, {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]}),
    chunk(1, {"tool_calls": [{"index": 1, "id": "call_2", "type": "custom", "custom": {"name": "sql", "input": ""}}]}),
    chunk(1, {"tool_calls": [{"index": 1, "custom": {"input": "select 1"}}]}),
    chunk(
        0,
        {"content": " you"},
        logprobs={"content": [token(" you")], "refusal": None},
        content_filter_results={"hate": {"filtered": False}},
    ),
    chunk(2, {"refusal": "n"}),
    chunk(2, {"refusal": "o"}),
    chunk(0, {"annotations": WHOLE["choices"][0]["message"]["annotations"]}),
    chunk(2, {"audio": {"expires_at": 12}}),
    chunk(0, {}, "stop", native_finish_reason="eos"),
    chunk(1, {}, "tool_calls"),
    chunk(2, {}, "stop"),
    {
        **chunk(0, {}),
        "choices": [],
        "usage": WHOLE["usage"],
        "citations": WHOLE["citations"],
        "metadata": {"a": "b"},
        "moderation": WHOLE["moderation"],
        "x_vendor": WHOLE["x_vendor"],
    },
]


def added_up(chunks: list[Json]) -> Any:
    state = ChatCompletionStreamState()
    for one in chunks:
        state.handle_chunk(construct_type(type_=ChatCompletionChunk, value=one))  # type: ignore[arg-type]
    return state.current_completion_snapshot.model_dump()


async def plays_everything(exchange: Exchange) -> None:
    if exchange.request.json().get("stream"):
        await exchange.head()
        for one in STREAM:
            await exchange.chunk(sse(one))
        await exchange.chunk(sse("[DONE]"))
        await exchange.end()
    else:
        await exchange.whole(200, json.dumps(WHOLE).encode())


@asynccontextmanager
async def before_it() -> AsyncIterator[httpx.AsyncClient]:
    async with (
        vendor(plays_everything) as played,
        served(application(config_for(played.url))) as url,
        client(url) as http,
    ):
        yield http


async def chunks_of(http: httpx.AsyncClient, **more: Any) -> list[Json]:
    response = await http.post("/v1/chat/completions", json=asking(n=3, **more))
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_a_whole_answer_arrives_as_it_was_said() -> None:
    async with before_it() as http:
        response = await http.post("/v1/chat/completions", json=asking(stream=False, n=3))
    assert response.json() == WHOLE


async def test_a_stream_adds_up_to_what_the_vendors_own_adds_up_to() -> None:
    async with before_it() as http:
        chunks = await chunks_of(http, stream_options={"include_usage": True})
    assert added_up(chunks) == added_up(STREAM)
    assert not any("obfuscation" in one for one in chunks)
    last = {key: value for key, value in chunks[-1].items() if key in ("choices", "usage")}
    assert last == {"choices": [], "usage": WHOLE["usage"]}


async def test_a_stream_adds_up_to_the_whole_answer() -> None:
    async with before_it() as http:
        chunks = await chunks_of(http, stream_options={"include_usage": True})
    streamed = added_up(chunks)
    assert streamed["usage"] == WHOLE["usage"]
    for choice, whole in zip(streamed["choices"], WHOLE["choices"], strict=True):
        message = choice["message"]
        for name in ("content", "refusal"):
            assert (message[name] or None) == whole["message"][name]
        for name in ("reasoning_content", "reasoning_details", "annotations", "audio"):
            assert (message.get(name) or None) == (whole["message"].get(name) or None)
        calls = [{k: v for k, v in call.items() if k != "index"} for call in message["tool_calls"] or ()]
        for call in calls:
            # the library's own
            if call.get("function") is None:
                call.pop("function", None)
            else:
                call["function"].pop("parsed_arguments", None)
        assert calls == whole["message"].get("tool_calls", [])
        assert choice["finish_reason"] == whole["finish_reason"]
        assert choice["logprobs"] == whole["logprobs"]


async def test_every_chunk_has_a_choice_where_the_vendors_has_one() -> None:
    async with before_it() as http:
        chunks = await chunks_of(http)
    assert not any("usage" in one for one in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert chunks[0]["prompt_filter_results"] == WHOLE["prompt_filter_results"]
    # the vendor tells its citations beside the usage, in a chunk of no choice
    assert [sorted(one.keys() - HEAD.keys()) for one in chunks if not one["choices"]] == [
        ["choices", "citations", "metadata", "moderation", "x_vendor"]
    ]
