"""DashScope's own protocol behind the whole gateway, for clients that speak Chat Completions, over real sockets.

The vendor's bytes are as Alibaba's service writes them: no space after a colon, the status in a comment, usage in every
frame, no `[DONE]`.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from support.serving import application, asking, client, served
from support.vendor import Exchange, Request, Script, Vendor, vendor

Json = dict[str, Any]
TEXT = "/v1/services/aigc/text-generation/generation"
MULTIMODAL = "/v1/services/aigc/multimodal-generation/generation"
COUNTS = {"input_tokens": 40, "output_tokens": 50, "total_tokens": 90}
KEY = "sk-dashscope-key"


def output(message: Json, finish: str = "null", usage: Json | None = None, **choice: Any) -> Json:
    said = {"role": "assistant", "content": "", **message}
    return {
        "output": {"choices": [{"message": said, "finish_reason": finish, **choice}]},
        "usage": usage or COUNTS,
        "request_id": "5b1c0f6e-0000-4000-8000-00000000abcd",
    }


def frames(*values: Json) -> bytes:
    """Results as frames; a value with a `code` is an error of status 400."""
    lines = []
    for number, value in enumerate(values, 1):
        name, status = ("error", 400) if "code" in value else ("result", 200)
        lines.append(f"id:{number}\nevent:{name}\n:HTTP_STATUS/{status}\ndata:{json.dumps(value)}\n\n")
    return "".join(lines).encode()


def answers(*values: Json, folded: Json | None = None) -> Script:
    """A vendor that streams the values if asked to, and else says `folded`."""

    async def script(exchange: Exchange) -> None:
        if exchange.request.headers.get("x-dashscope-sse") == "enable":
            await exchange.head(content_type="text/event-stream;charset=UTF-8")
            for value in values:
                await exchange.chunk(frames(value))
            await exchange.end()
        else:
            assert folded is not None, "asked for a whole answer"
            await exchange.whole(200, json.dumps(folded).encode())

    return script


@asynccontextmanager
async def before(script: Script) -> AsyncIterator[tuple[Vendor, httpx.AsyncClient]]:
    async with vendor(script) as played:
        rows = {"q": {"protocol": "dashscope", "base_url": played.url, "api_key": KEY}}
        config = json.dumps({"providers": rows, "plugins": ["logging", "usage"]})
        async with served(application(config)) as url, client(url) as http:
            yield played, http


async def ask(http: httpx.AsyncClient, model: str, stream: bool, **more: Any) -> tuple[Json, httpx.Response]:
    """The answer as a whole, whichever way it came."""
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = await http.post("/v1/chat/completions", json=asking(f"q/{model}", stream, **options, **more))
    if response.status_code != 200 or not stream:
        return response.json(), response
    return added_up(response.text), response


def added_up(body: str) -> Json:
    *lines, last, rest = body.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert rest == ""
    answer: Json = {"choices": {}, "ended": last == "data: [DONE]"}
    if not answer["ended"]:
        chunks.append(json.loads(last.removeprefix("data: ")))
    for chunk in chunks:
        if "error" in chunk:
            answer["error"] = chunk["error"]
            continue
        answer["model"] = chunk["model"]
        answer["usage"] = chunk["usage"] or answer.get("usage")
        for choice in chunk["choices"]:
            one = answer["choices"].setdefault(choice["index"], {"message": {"tool_calls": []}})
            message = one["message"]
            for key in ("content", "reasoning_content"):
                if choice["delta"].get(key):
                    message[key] = message.get(key, "") + choice["delta"][key]
            for call in choice["delta"].get("tool_calls", ()):
                if "id" in call:
                    message["tool_calls"].append({"id": call["id"], "type": "function", "function": {"arguments": ""}})
                function = message["tool_calls"][call["index"]]["function"]
                function["arguments"] += call["function"].pop("arguments")
                function |= call["function"]
            one["finish_reason"] = choice["finish_reason"] or one.get("finish_reason")
    answer["choices"] = [answer["choices"][index] for index in sorted(answer["choices"])]
    return answer


def sent(played: Vendor, index: int = -1) -> tuple[Request, Json]:
    request = played.requests[index]
    return request, request.json()


both_ways = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])

# -- answers ---------------------------------------------------------------------------------------------------------


@both_ways
async def test_a_plain_answer(stream: bool) -> None:
    script = answers(
        output({"content": "I am"}, usage={"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}),
        output({"content": " Qwen"}, usage={"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}),
        output({"content": ""}, "stop", usage={"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}),
        folded=output({"content": "I am Qwen"}, "stop", {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}),
    )
    async with before(script) as (played, http):
        answer, response = await ask(http, "qwen-max", stream)
        request, body = sent(played)
    assert answer["choices"][0]["message"]["content"] == "I am Qwen"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert {key: answer["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
        "prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12
    }  # fmt: skip
    assert answer["model"] == "qwen-max"
    assert "x-deltaway-dropped" not in response.headers
    assert request.path == TEXT
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert body["input"] == {"messages": [{"role": "user", "content": "Hi"}]}
    assert body["parameters"].get("incremental_output") is (True if stream else None)
    assert request.headers.get("x-dashscope-sse") == ("enable" if stream else None)


@both_ways
@pytest.mark.parametrize("model", ["qwq-plus", "qwen3-8b", "qwen3.5-plus"])
async def test_a_model_that_thinks_is_streamed_whatever_the_client_asked(model: str, stream: bool) -> None:
    usage = {**COUNTS, "output_tokens_details": {"reasoning_tokens": 20, "text_tokens": 30}}
    script = answers(
        output({"content": [], "reasoning_content": "Let me "}),
        output({"content": "", "reasoning_content": "see."}),
        output({"content": "3 C", "reasoning_content": ""}),
        output({}, "stop", usage),
    )
    async with before(script) as (played, http):
        answer, _ = await ask(http, model, stream)
        _, body = sent(played)
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Let me see.", "3 C")
    assert answer["usage"]["completion_tokens"] == 50
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    assert body["parameters"]["incremental_output"] is True


@both_ways
async def test_a_hybrid_thinks_for_a_whole_answer_only_when_asked(stream: bool) -> None:
    script = answers(output({"content": "Hi"}, "stop"), folded=output({"content": "Hi"}, "stop"))
    async with before(script) as (played, http):
        await ask(http, "qwen-plus", stream)
        _, plain = sent(played)
        await ask(http, "qwen-plus", stream, enable_thinking=True, thinking_budget=100)
        request, thinking = sent(played)
    assert plain["parameters"].get("enable_thinking") is (None if stream else False)
    assert thinking["parameters"]["enable_thinking"] is True
    assert thinking["parameters"]["thinking_budget"] == 100
    assert request.headers["x-dashscope-sse"] == "enable"


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]


def called(index: int, call_id: str, arguments: Any, **name: str) -> Json:
    return {"index": index, "id": call_id, "type": "function", "function": {"arguments": arguments, **name}}


@both_ways
async def test_parallel_tool_calls(stream: bool) -> None:
    whole = [called(0, "call_a", '{"x":1}', name="f"), called(1, "call_b", "{}", name="g")]
    script = answers(
        output({"tool_calls": [called(0, "call_a", "", name="f")]}),
        output({"tool_calls": [called(0, "", '{"x"')]}),
        output({"tool_calls": [called(0, "", ":1}")]}),
        output({"tool_calls": [called(1, "call_b", "", name="g")]}),
        output({}, "tool_calls"),
        folded=output({"tool_calls": whole}, "tool_calls"),
    )
    async with before(script) as (played, http):
        answer, _ = await ask(http, "qwen-max", stream, tools=TOOLS)
        _, body = sent(played)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in choice["message"]["tool_calls"]] == [
        ("call_a", "f", '{"x":1}'), ("call_b", "g", "{}")
    ]  # fmt: skip
    assert [tool["function"]["name"] for tool in body["parameters"]["tools"]] == ["f", "g"]


@both_ways
async def test_images_go_to_the_multimodal_service_and_lists_of_texts_come_back_as_text(stream: bool) -> None:
    parts = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]
    script = answers(
        output({"content": [{"text": "A "}]}),
        output({"content": [{"text": "cat"}]}),
        output({"content": []}, "stop", {**COUNTS, "input_tokens_details": {"image_tokens": 30, "text_tokens": 10}}),
        folded=output({"content": [{"text": "A cat"}]}, "stop"),
    )
    async with before(script) as (played, http):
        answer, _ = await ask(http, "qwen-vl-max", stream, messages=[{"role": "user", "content": parts}])
        request, body = sent(played)
    assert answer["choices"][0]["message"]["content"] == "A cat"
    assert request.path == MULTIMODAL
    assert body["input"]["messages"][0]["content"] == [{"text": "What?"}, {"image": "data:image/png;base64,AA=="}]


async def test_frames_that_repeat_the_whole_text_are_told_once() -> None:
    texts = ["The quick", "The quick brown", "The quick brown fox", "The quick brown fox jumps"]
    script = answers(*[output({"content": text}) for text in texts], output({"content": texts[-1]}, "stop"))
    async with before(script) as (_, http):
        answer, _ = await ask(http, "some-old-model", True)
    assert answer["choices"][0]["message"]["content"] == texts[-1]


@both_ways
@pytest.mark.parametrize(
    "written",
    [
        {"prompt_tokens_details": {"cached_tokens": 10, "cache_creation_input_tokens": 20, "cache_type": "ephemeral"}},
        {
            "prompt_tokens_details": {"cached_tokens": 10, "cache_creation": {"ephemeral_5m_input_tokens": 20}},
            "cache_creation": {"ephemeral_5m_input_tokens": 20},
        },
    ],
)
async def test_cache_hits_and_writing_and_reasoning_are_counted_within_the_totals(written: Json, stream: bool) -> None:
    usage = {**COUNTS, **written, "output_tokens_details": {"reasoning_tokens": 15}}
    script = answers(output({"content": "Hi"}, "stop", usage), folded=output({"content": "Hi"}, "stop", usage))
    async with before(script) as (_, http):
        answer, _ = await ask(http, "qwen-max", stream)
    found = answer["usage"]
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == (40, 50, 90)
    assert found["prompt_tokens_details"]["cached_tokens"] == 10
    assert found["prompt_tokens_details"]["cache_write_tokens"] == 20
    assert found["completion_tokens_details"]["reasoning_tokens"] == 15


async def test_what_has_no_equal_is_told_in_a_header() -> None:
    script = answers(folded=output({"content": "Hi"}, "stop"))
    async with before(script) as (_, http):
        _, response = await ask(
            http, "qwen-max", False, logit_bias={"1": 2}, verbosity="low", temperature=2, top_p=0, seed=1
        )
    assert response.headers["x-deltaway-dropped"] == "logit_bias, verbosity"


# -- lessons ---------------------------------------------------------------------------------------------------------

URL_ERROR = {"code": "InvalidParameter", "message": "url error, please check url!", "request_id": "r"}


async def refused_with_400(exchange: Exchange) -> None:
    await exchange.whole(400, json.dumps(URL_ERROR).encode())


async def refused_within_a_200(exchange: Exchange) -> None:
    await exchange.head(content_type="text/event-stream;charset=UTF-8")
    await exchange.chunk(frames(URL_ERROR))
    await exchange.end()


async def refused_in_frames_with_400(exchange: Exchange) -> None:
    await exchange.whole(400, frames(URL_ERROR))


@both_ways
@pytest.mark.parametrize(
    "refuse", [refused_with_400, refused_within_a_200, refused_in_frames_with_400], ids=lambda f: f.__name__
)
async def test_a_models_service_is_learned_from_its_refusal_and_kept(refuse: Script, stream: bool) -> None:
    answer_it = answers(output({"content": "Hi"}, "stop"), folded=output({"content": "Hi"}, "stop"))

    async def script(exchange: Exchange) -> None:
        await (refuse if exchange.request.path == TEXT else answer_it)(exchange)

    async with before(script) as (played, http):
        first, response = await ask(http, "brand-new", stream)
        second, again = await ask(http, "brand-new", stream)
    assert [request.path for request in played.requests] == [TEXT, MULTIMODAL, MULTIMODAL]
    assert first["choices"][0]["message"]["content"] == second["choices"][0]["message"]["content"] == "Hi"
    assert (response.headers["x-deltaway-attempts"], again.headers["x-deltaway-attempts"]) == ("2", "1")


async def test_a_model_that_no_service_knows_is_an_error_after_both() -> None:
    async with before(refused_with_400) as (played, http):
        answer, response = await ask(http, "brand-new", True)
    assert [request.path for request in played.requests] == [TEXT, MULTIMODAL]
    assert (response.status_code, answer["error"]["type"]) == (400, "invalid_request_error")


async def test_a_model_that_only_streams_is_learned_and_answers_a_client_that_does_not() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.headers.get("x-dashscope-sse"):
            await answers(output({"content": "Hi "}), output({"content": "you"}, "stop"))(exchange)
            return
        message = "This model only support stream mode, please enable the stream parameter to access the model."
        await exchange.whole(400, json.dumps({"code": "InvalidParameter", "message": message}).encode())

    async with before(script) as (played, http):
        for requests in (2, 3):
            answer, _ = await ask(http, "brand-new", False)
            assert (answer["object"], answer["choices"][0]["message"]["content"]) == ("chat.completion", "Hi you")
            assert len(played.requests) == requests


# -- errors ----------------------------------------------------------------------------------------------------------

INSPECTED = {"code": "DataInspectionFailed", "message": "Output data may contain inappropriate content."}


@both_ways
async def test_an_error_before_any_content_is_an_http_error(stream: bool) -> None:
    async with before(answers(INSPECTED, folded=INSPECTED)) as (_, http):
        answer, response = await ask(http, "qwen-max", stream)
    assert (response.status_code, answer["error"]["code"]) == (400, "content_filter")


async def test_an_error_after_content_is_told_in_the_stream_which_has_no_honest_end() -> None:
    async with before(answers(output({"content": "Some "}), output({"content": "thing"}), INSPECTED)) as (_, http):
        answer, response = await ask(http, "qwen-max", True)
    assert response.status_code == 200
    assert answer["choices"][0]["message"]["content"] == "Some thing"
    assert answer["error"]["code"] == "content_filter"
    assert not answer["ended"]


@both_ways
async def test_an_answer_that_is_cut_is_an_error(stream: bool) -> None:
    async with before(answers(output({"content": "Some"}), output({"content": "thing"}))) as (_, http):
        answer, response = await ask(http, "qwq-plus", stream)
    assert answer["error"]["code"] == "stream_cut"
    assert response.status_code == (200 if stream else 502)


def failing(status: int, code: str, message: str = "No.") -> Callable[[Exchange], Any]:
    async def script(exchange: Exchange) -> None:
        body = {"code": code, "message": f"{message} {KEY}", "request_id": "r"}
        await exchange.whole(status, json.dumps(body).encode(), retry_after="7")

    return script


@both_ways
@pytest.mark.parametrize(
    ("status", "code", "wanted", "word", "waits"),
    [
        (400, "InvalidParameter", 400, "invalid_request", False),
        (400, "DataInspectionFailed", 400, "content_filter", False),
        (400, "Arrearage", 502, "provider_quota_exhausted", False),
        (401, "InvalidApiKey", 502, "provider_authentication_failed", False),
        (403, "AccessDenied.Unpurchased", 502, "provider_permission_denied", False),
        (404, "ModelNotFound", 404, "model_not_found", False),
        (429, "Throttling.RateQuota", 429, "rate_limit_exceeded", True),
        (429, "insufficient_quota", 429, "rate_limit_exceeded", True),
        (500, "InternalError", 502, "upstream_error", True),
        (503, "ModelUnavailable", 503, "provider_overloaded", True),
        (504, "GatewayTimeout", 504, "provider_timeout", True),
    ],
)
async def test_errors_have_the_status_and_the_word_that_openais_users_know(
    status: int, code: str, wanted: int, word: str, waits: bool, stream: bool
) -> None:
    async with before(failing(status, code)) as (_, http):
        answer, response = await ask(http, "qwen-max", stream)
    assert (response.status_code, answer["error"]["code"]) == (wanted, word)
    assert sorted(answer["error"]) == ["code", "message", "param", "type"]
    assert response.headers.get("retry-after") == ("7" if waits else None)
    assert KEY not in response.text
