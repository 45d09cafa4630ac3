"""OpenAI's client library for Python, run against a gateway over real sockets, as an application would use it.

Where only the client matters the gateway is a process of its own with the provider `mock`, and sends a heartbeat
every 20 ms. Where it matters what the vendor is asked, or when, the vendor plays a script.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from support.serving import application, config_for, served
from support.vendor import Exchange, Script, Vendor, completion, delta, plays_hello, sse, usage_chunk, vendor

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
Kind = Literal["sync", "async"]
both_kinds = pytest.mark.parametrize("kind", ["sync", "async"])

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": CITY}}
    for name in ("weather", "time")
]


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def client(gateway_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway_url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def patient(url: str, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(**{"base_url": f"{url}/v1", "api_key": "any", "max_retries": 0, **options})


@asynccontextmanager
async def before(script: Script, server: str = "{}", **options: Any) -> AsyncIterator[tuple[Vendor, AsyncOpenAI]]:
    """A vendor `v` that plays the script, and a client of the gateway before it."""
    async with vendor(script) as played, served(application(config_for(played.url, server=server))) as url:
        async with patient(url, **options) as opened:
            yield played, opened


async def whole(kind: Kind, url: str, **request: Any) -> ChatCompletion:
    if kind == "async":
        async with patient(url) as asynchronous:
            return await asynchronous.chat.completions.create(**request)

    def ask() -> ChatCompletion:
        with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as synchronous:
            return synchronous.chat.completions.create(**request)

    return await asyncio.to_thread(ask)


async def streamed(kind: Kind, url: str, seen: list[ChatCompletionChunk] | None = None, **request: Any) -> Any:
    """All chunks of a stream; those before an error are in `seen`."""
    chunks: list[ChatCompletionChunk] = [] if seen is None else seen
    if kind == "async":
        async with patient(url) as asynchronous:
            async for chunk in await asynchronous.chat.completions.create(stream=True, **request):
                chunks.append(chunk)  # noqa: PERF401 - what came before an error counts
        return chunks

    def ask() -> None:
        with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as synchronous:
            for chunk in synchronous.chat.completions.create(stream=True, **request):
                chunks.append(chunk)  # noqa: PERF402

    await asyncio.to_thread(ask)
    return chunks


def said(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


# -- answers ---------------------------------------------------------------------------------------------------------


@both_kinds
async def test_a_whole_answer(gateway_url: str, kind: Kind) -> None:
    answer = await whole(kind, gateway_url, model="mock/echo", messages=user("one two three"))
    (choice,) = answer.choices
    assert choice.message.content == "one two three"
    assert choice.message.role == "assistant"
    assert choice.message.refusal is None
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "echo"
    assert abs(answer.created - time.time()) < 60
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


def test_address_and_key_may_come_from_the_environment(gateway_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{gateway_url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with OpenAI() as client:
        answer = client.chat.completions.create(model="mock/echo", messages=user("Hi"))
    assert answer.choices[0].message.content == "Hi"


def test_the_example_of_the_documentation_runs(gateway_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
    scope: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:8080", gateway_url), scope)
    scope["client"].close()
    assert capsys.readouterr().out == "Hello"


@both_kinds
async def test_a_stream(gateway_url: str, kind: Kind) -> None:
    chunks = await streamed(kind, gateway_url, model="mock/echo", messages=user("one two three"))
    assert said(chunks) == "one two three"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


@both_kinds
async def test_a_stream_is_counted_when_asked(gateway_url: str, kind: Kind) -> None:
    asked = {"model": "mock/reasoning", "messages": user("one two"), "stream_options": {"include_usage": True}}
    *chunks, last = await streamed(kind, gateway_url, **asked)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == []
    assert last.usage.prompt_tokens == 2
    assert last.usage.completion_tokens == last.usage.completion_tokens_details.reasoning_tokens + 2
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


@both_kinds
async def test_several_choices(gateway_url: str, kind: Kind) -> None:
    asked = {"model": "mock/echo", "messages": user("one two"), "n": 2}
    answer = await whole(kind, gateway_url, **asked)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "one two"), (1, "one two")]
    chunks = await streamed(kind, gateway_url, **asked)
    assert said(chunks, 0) == said(chunks, 1) == "one two"


def test_the_stream_helper_gives_events_and_the_whole_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(model="mock/echo", messages=user("one two three")) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    pieces = [event.delta for event in events if event.type == "content.delta"]
    # as OpenAI's own, the first chunk has a role and an empty content
    assert pieces == ["", "one", " two", " three"]
    (done,) = [event.content for event in events if event.type == "content.done"]
    assert done == final.choices[0].message.content == "one two three"
    assert final.choices[0].finish_reason == "stop"


def test_reasoning_is_in_the_message_and_in_the_deltas(client: OpenAI) -> None:
    asked: Any = {"model": "mock/reasoning", "messages": user("one two")}
    message: Any = client.chat.completions.create(**asked).choices[0].message
    assert message.content == "one two"
    assert len(message.reasoning_content) > 10
    pieces = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        piece: Any = chunk.choices[0].delta
        pieces.append(getattr(piece, "reasoning_content", None) or "")
    assert "".join(pieces) == message.reasoning_content


async def test_a_refusal_and_log_probabilities_reach_the_stream_helper() -> None:
    async def refuses(exchange: Exchange) -> None:
        first = delta("No")
        first["choices"][0]["logprobs"] = {
            "content": [{"token": "No", "logprob": -0.5, "bytes": [78, 111], "top_logprobs": []}],
            "refusal": None,
        }
        await exchange.head()
        await exchange.chunk(sse(first, delta(refusal="I will "), delta(refusal="not."), delta(finish="stop")))
        await exchange.chunk(sse(usage_chunk(), "[DONE]"))
        await exchange.end()

    async with before(refuses) as (_, client):
        asked: Any = {"model": "v/m", "messages": user("Hi"), "logprobs": True}
        async with client.chat.completions.stream(**asked) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        message = final.choices[0].message
        assert (message.content, message.refusal) == ("No", "I will not.")
        assert {"logprobs.content.delta", "logprobs.content.done", "refusal.delta", "refusal.done"} <= set(kinds)
        probabilities = final.choices[0].logprobs
        assert probabilities is not None
        assert probabilities.content is not None
        assert [token.logprob for token in probabilities.content] == [-0.5]


# -- tools -----------------------------------------------------------------------------------------------------------


@both_kinds
async def test_parallel_tool_calls_and_their_results(gateway_url: str, kind: Kind) -> None:
    asked = {"model": "mock/tools", "tools": TOOLS, "messages": user("What is it like?")}
    answer = await whole(kind, gateway_url, **asked)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls: list[Any] = choice.message.tool_calls or []
    assert [(call.type, call.function.name) for call in calls] == [("function", "weather"), ("function", "time")]
    assert all(isinstance(json.loads(call.function.arguments)["city"], str) for call in calls)
    assert len({call.id for call in calls}) == 2

    # the message goes back as the library gives it, with all its nulls
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": text}
        for call, text in zip(calls, ["rain", "noon"], strict=True)
    ]
    asked["messages"] = [*user("What is it like?"), choice.message, *results]
    again = await whole(kind, gateway_url, **asked)
    assert again.choices[0].message.content == "The tool says: rain, noon"

    chunks = await streamed(kind, gateway_url, **{**asked, "messages": user("What is it like?")})
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    assert [(piece.index, piece.function.name) for piece in pieces if piece.id] == [(0, "weather"), (1, "time")]
    for index, call in enumerate(calls):
        arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.index == index)
        assert json.loads(arguments) == json.loads(call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


class Weather(BaseModel):
    city: str
    unit: Literal["celsius", "fahrenheit"]


class Clock(BaseModel):
    city: str


def test_tool_calls_are_parsed_into_models(client: OpenAI) -> None:
    tools: list[Any] = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]
    answer = client.chat.completions.parse(model="mock/tools", messages=user("Hi"), tools=tools)
    parsed = [call.function.parsed_arguments for call in answer.choices[0].message.tool_calls or []]
    assert [type(found) for found in parsed] == [Weather, Clock]
    with client.chat.completions.stream(model="mock/tools", messages=user("Hi"), tools=tools) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [(event.index, event.name, event.parsed_arguments) for event in done] == [
        (0, "Weather", parsed[0]),
        (1, "Clock", parsed[1]),
    ]
    assert [call.function.parsed_arguments for call in final.choices[0].message.tool_calls or []] == parsed


def test_custom_tools_are_called_with_free_text(client: OpenAI) -> None:
    tools: list[Any] = [{"type": "custom", "custom": {"name": "sql"}}]
    answer = client.chat.completions.create(model="mock/tools", messages=user("Hi"), tools=tools)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "custom"
    assert (call.custom.name, call.custom.input) == ("sql", "text")


def test_the_stream_helper_does_not_add_up_a_custom_tools_call(client: OpenAI) -> None:
    """It knows a function's alone, whoever answers; the documentation says so."""
    tools: list[Any] = [{"type": "custom", "custom": {"name": "sql"}}]
    with client.chat.completions.stream(model="mock/tools", messages=user("Hi"), tools=tools) as stream:
        stream.until_done()
        with pytest.raises(AttributeError):
            stream.get_final_completion()


def test_the_old_functions_are_answered_in_the_old_form(client: OpenAI) -> None:
    asked: Any = {"model": "mock/tools", "messages": user("Hi"), "functions": [{"name": "weather", "parameters": CITY}]}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.tool_calls is None
    assert choice.message.function_call is not None
    assert choice.message.function_call.name == "weather"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    pieces = [c.choices[0].delta.function_call for c in chunks if c.choices[0].delta.function_call]
    assert "".join(piece.arguments or "" for piece in pieces) == choice.message.function_call.arguments
    assert pieces[0].name == "weather"


# -- structured answers ----------------------------------------------------------------------------------------------


class Step(BaseModel):
    explanation: str
    result: int


class Proof(BaseModel):
    steps: list[Step]
    answer: Literal["yes", "no"]
    certain: bool


def test_answers_are_parsed_into_models(client: OpenAI) -> None:
    asked: Any = {"model": "mock/echo", "messages": user("Prove it."), "response_format": Proof}
    message = client.chat.completions.parse(**asked).choices[0].message
    assert isinstance(message.parsed, Proof)
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == message.parsed


def test_an_answer_that_was_cut_by_its_limit_is_not_parsed(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError) as caught:
        client.chat.completions.parse(model="mock/echo", messages=user("Hi"), response_format=Proof, max_tokens=1)
    assert caught.value.completion.choices[0].finish_reason == "length"


async def test_what_the_library_parsed_comes_back_with_the_message_and_goes_no_further() -> None:
    """Strict vendors refuse the fields `parsed` and `parsed_arguments`, which no API has."""
    tools: list[Any] = [openai.pydantic_function_tool(Weather)]
    async with before(plays_hello) as (played, client):
        called = await client.chat.completions.parse(model="mock/tools", messages=user("Hi"), tools=tools)
        message = called.choices[0].message
        (call,) = message.tool_calls or []
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        messages: list[Any] = [*user("Hi"), message, result]
        await client.chat.completions.create(model="v/m", messages=messages, tools=tools)
        _, sent, _ = played.requests[0].json()["messages"]
        assert set(sent) == {"role", "content", "tool_calls"}
        assert set(sent["tool_calls"][0]["function"]) == {"name", "arguments"}


# -- what goes to the vendor -----------------------------------------------------------------------------------------


async def test_parts_and_fields_and_labels_reach_the_vendor_as_they_were_said() -> None:
    content: list[Any] = [
        {"type": "text", "text": "Look and listen."},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
    ]
    async with before(plays_hello) as (played, client):
        answer = await client.chat.completions.create(
            model="v/m",
            messages=[{"role": "user", "content": content}],
            temperature=0,
            seed=7,
            logit_bias={"50256": -100},
            extra_body={"chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1},
            extra_headers={"x-deltaway-user": "u1", "x-deltaway-tags": "team=a"},
            extra_query={"trace": "1"},
        )
        assert answer.choices[0].message.content == "Hello"
        (request,) = played.requests
        sent = request.json()
        assert sent["model"] == "m"
        assert sent["messages"] == [{"role": "user", "content": content}]
        assert (sent["temperature"], sent["seed"], sent["logit_bias"]) == (0, 7, {"50256": -100})
        assert sent["chat_template_kwargs"] == {"enable_thinking": False}
        assert sent["min_p"] == 0.1
        # whose client it is, and with what key, is not the vendor's business
        assert not [name for name in request.headers if name.startswith(("x-stainless", "x-deltaway"))]
        assert request.headers["authorization"] == "Bearer sk-vendor-key"


@pytest.mark.parametrize("part", ["image_url", "input_audio", "file"])
def test_a_part_that_a_model_does_not_read_is_no_error(client: OpenAI, part: str) -> None:
    parts: dict[str, Any] = {
        "image_url": {"url": "https://example.com/a.png"},
        "input_audio": {"data": "UklGRg==", "format": "wav"},
        "file": {"file_id": "file-1"},
    }
    content: list[Any] = [{"type": "text", "text": "What is it?"}, {"type": part, part: parts[part]}]
    answer = client.chat.completions.create(model="mock/echo", messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == "What is it?"


# -- headers ---------------------------------------------------------------------------------------------------------


def test_raw_responses_show_the_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="mock/echo", messages=user("Hi"))
    assert raw.status_code == 200
    assert raw.headers["x-request-id"] == raw.request_id
    assert raw.headers["x-deltaway-target"] == "mock/echo"
    assert raw.headers["x-deltaway-attempts"] == "1"
    assert raw.parse().choices[0].message.content == "Hi"
    with client.chat.completions.with_streaming_response.create(model="mock/echo", messages=user("Hi")) as response:
        assert response.headers["x-deltaway-target"] == "mock/echo"
        assert response.headers["content-type"] == "application/json"
        assert json.loads(response.read())["choices"][0]["message"]["content"] == "Hi"


def test_a_raw_response_of_a_stream_shows_the_headers_and_streams(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="mock/echo", messages=user("a b"), stream=True)
    assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-deltaway-target"] == "mock/echo"
    assert said(list(raw.parse())) == "a b"


def test_models_are_listed_and_retrieved_by_names_with_a_slash(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"impatient", "mock/echo"} <= set(models)
    assert models["mock/echo"].owned_by == "mock"
    for name in ("mock/echo", "impatient"):
        assert client.models.retrieve(name) == models[name]
    # not listed, but it can be called
    assert client.models.retrieve("mock/lorem-5").owned_by == "mock"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("impatent")
    assert caught.value.code == "model_not_found"
    assert "`impatient`" in caught.value.message


# -- errors before the answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind", "status", "code"),
    [
        ("mock/error-400", openai.BadRequestError, 400, "invalid_request"),
        ("mock/error-401", openai.InternalServerError, 502, "provider_authentication_failed"),
        ("mock/error-404", openai.NotFoundError, 404, "model_not_found"),
        ("mock/error-429", openai.RateLimitError, 429, "rate_limit_exceeded"),
        ("mock/error-500", openai.InternalServerError, 502, "upstream_error"),
        ("mock/error-503", openai.InternalServerError, 503, "provider_overloaded"),
        ("mock/ehco", openai.NotFoundError, 404, "model_not_found"),
        ("nosuch", openai.NotFoundError, 404, "model_not_found"),
        ("nosuch/model", openai.NotFoundError, 404, "model_not_found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_error_before_the_answer_is_raised_by_its_class(
    client: OpenAI, stream: bool, model: str, kind: type[openai.APIStatusError], status: int, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=model, messages=user("Hi"), stream=stream)
    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.code) == (status, code)
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    assert error.type is not None
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"extra_body": {"temperature": "hot"}}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"n": 0}, "n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_field_is_named(client: OpenAI, wrong: dict[str, Any], param: str) -> None:
    request: Any = {"model": "mock/echo", "messages": user("Hi"), **wrong}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**request)
    assert caught.value.param == param
    assert param in caught.value.message
    assert caught.value.type == "invalid_request_error"


def test_a_wrong_header_of_ours_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="mock/echo", messages=user("Hi"), extra_headers={"x-deltaway-tags": "nonsense"}
        )
    assert caught.value.param == "x-deltaway-tags"


def test_what_is_not_served_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.get("/no/such/thing", cast_to=object)
    assert caught.value.code == "not_found"
    assert caught.value.request_id is not None
    with pytest.raises(openai.APIStatusError) as other:
        client.get("/chat/completions/nosuch/messages", cast_to=object)
    assert other.value.status_code == 404


async def test_keys_are_asked_for() -> None:
    config = """
providers: {mock: {protocol: mock, models: [echo, tools]}}
plugins:
  - logging
  - auth: {keys: [{key: key-of-everything, name: all}, {key: key-of-echo, name: echo, models: [mock/echo]}]}
  - usage
"""
    async with served(application(config)) as url:
        async with patient(url, api_key="key-of-nothing") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await client.chat.completions.create(model="mock/echo", messages=user("Hi"))
            assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")
            assert "key-of-nothing" not in refused.value.message
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with patient(url, api_key="key-of-echo") as client:
            answer = await client.chat.completions.create(model="mock/echo", messages=user("Hi"))
            assert answer.choices[0].message.content == "Hi"
            with pytest.raises(openai.PermissionDeniedError) as forbidden:
                await client.chat.completions.create(model="mock/tools", messages=user("Hi"))
            assert forbidden.value.code == "model_not_allowed"
            assert {model.id async for model in client.models.list()} == {"mock/echo"}


async def test_a_body_over_the_limit_is_told_so_also_when_it_is_large() -> None:
    config = "server: {body_limit: 64KiB}\nproviders: {mock: {protocol: mock}}\n"
    async with served(application(config)) as url, patient(url) as client:
        for size in (100_000, 8_000_000):
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="mock/echo", messages=user("x" * size))
            assert caught.value.status_code == 413
            assert caught.value.code == "request_too_large"
        answer = await client.chat.completions.create(model="mock/echo", messages=user("Hi"))
        assert answer.choices[0].message.content == "Hi"


# -- tries -----------------------------------------------------------------------------------------------------------


def failing(times: int, status: int, **headers: str) -> Script:
    """A vendor that fails so often, and then says hello."""
    left = times

    async def script(exchange: Exchange) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            await exchange.whole(status, b'{"error": {"message": "not now", "type": "x", "code": null}}', **headers)
        else:
            await plays_hello(exchange)

    return script


async def test_a_rate_limit_is_tried_again_after_the_time_the_vendor_asked_for() -> None:
    async with before(failing(1, 429, retry_after="1"), max_retries=2) as (played, client):
        began = time.monotonic()
        answer = await client.chat.completions.create(model="v/m", messages=user("Hi"))
        assert answer.choices[0].message.content == "Hello"
        assert len(played.requests) == 2
        # the library's own first pause is half a second at most
        assert 0.95 < time.monotonic() - began < 5


async def test_an_error_that_a_vendor_tells_within_its_200_is_raised_with_its_status_and_tried_again() -> None:
    async def refuses(exchange: Exchange) -> None:
        if len(played.requests) > 1:
            await plays_hello(exchange)
            return
        await exchange.head()
        await exchange.chunk(sse({"error": {"message": "slow down", "type": "rate_limit_error", "code": "429"}}))
        await exchange.end()

    async with before(refuses) as (played, client):
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True)
        played.requests.clear()
        again = client.with_options(max_retries=1)
        stream = await again.chat.completions.create(model="v/m", messages=user("Hi"), stream=True)
        assert said([chunk async for chunk in stream]) == "Hello"
        assert len(played.requests) == 2


async def test_a_failing_vendor_is_tried_again_and_a_stream_too() -> None:
    async with before(failing(1, 500), max_retries=1) as (played, client):
        stream = await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True)
        assert said([chunk async for chunk in stream]) == "Hello"
        assert len(played.requests) == 2


async def test_what_no_try_can_mend_is_not_tried_again() -> None:
    """The library tries every status from 500 on again, unless `x-should-retry` says no."""
    async with before(failing(9, 401), max_retries=2) as (played, client):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="v/m", messages=user("Hi"))
        assert caught.value.code == "provider_authentication_failed"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(played.requests) == 1


async def test_the_library_gives_up_after_its_number_of_tries() -> None:
    async with before(failing(9, 429, retry_after="1"), max_retries=1) as (played, client):
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="v/m", messages=user("Hi"))
        assert caught.value.response.headers["retry-after"] == "1"
        assert len(played.requests) == 2


# -- errors in the answer --------------------------------------------------------------------------------------------


@both_kinds
async def test_an_answer_that_breaks_is_an_error_after_what_was_said(gateway_url: str, kind: Kind) -> None:
    seen: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError) as caught:
        await streamed(kind, gateway_url, seen, model="mock/cut-10", messages=user("Hi"))
    # an error inside of a stream has no status any more
    assert type(caught.value) is openai.APIError
    assert caught.value.code == "connection_lost"
    assert caught.value.message
    body: Any = caught.value.body
    assert body["request_id"].startswith("req_")
    assert len(said(seen).split()) == 10
    assert not any(chunk.choices[0].finish_reason for chunk in seen)
    with pytest.raises(openai.InternalServerError) as whole_caught:
        await whole(kind, gateway_url, model="mock/cut-10", messages=user("Hi"))
    assert (whole_caught.value.status_code, whole_caught.value.code) == (502, "connection_lost")


def test_an_answer_that_breaks_is_an_error_in_the_stream_helper(client: OpenAI) -> None:
    with pytest.raises(openai.APIError) as caught:
        with client.chat.completions.stream(model="mock/cut-3", messages=user("Hi")) as stream:
            stream.until_done()
    assert caught.value.code == "connection_lost"


async def test_an_answer_that_ends_without_its_end_is_an_error() -> None:
    async def stops_short(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse(delta("Hel")))
        await exchange.end()

    async with before(stops_short) as (_, client):
        seen = []
        with pytest.raises(openai.APIError) as caught:
            async for chunk in await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True):
                seen.append(chunk)  # noqa: PERF401 - what came before an error counts
        assert said(seen) == "Hel"
        assert caught.value.code == "stream_cut"


@both_kinds
async def test_an_answer_that_stalls_is_an_error_while_heartbeats_flow(gateway_url: str, kind: Kind) -> None:
    seen: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError) as caught:
        await streamed(kind, gateway_url, seen, model="impatient", messages=user("Hi"))
    assert caught.value.code == "idle_timeout"
    assert len(said(seen).split()) == 2
    with pytest.raises(openai.InternalServerError) as whole_caught:
        await whole(kind, gateway_url, model="impatient", messages=user("Hi"))
    assert whole_caught.value.status_code == 504


# -- silence ---------------------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("model", ["mock/echo+slow-70", "mock/reasoning+slow-25", "mock/tools+slow-70"])
async def test_heartbeats_between_deltas_change_nothing(gateway_url: str, kind: Kind, model: str) -> None:
    asked = {"messages": user("one two three four"), "tools": TOOLS, "stream_options": {"include_usage": True}}
    quick = await streamed(kind, gateway_url, model=model.partition("+")[0], **asked)
    slow = await streamed(kind, gateway_url, model=model, **asked)

    def told(chunks: list[ChatCompletionChunk]) -> list[Any]:
        # the calls of the mock are named after the whole request, the model's name included
        untold = {"id", "created", "model"}
        return [
            json.loads(json.dumps(chunk.model_dump(exclude=untold)).replace(_identity(chunks), "…")) for chunk in chunks
        ]

    assert told(slow) == told(quick)


def _identity(chunks: list[ChatCompletionChunk]) -> str:
    return chunks[0].id.removeprefix("mock-")


@pytest.mark.parametrize("model", ["mock/echo+slow-70", "mock/cut-3+slow-70", "impatient"])
def test_a_stream_has_data_lines_and_heartbeats_and_nothing_else(client: OpenAI, model: str) -> None:
    """After an `id:` line the library takes a comment and a blank line for an event, and fails."""
    asked: Any = {"model": model, "messages": user("one two three"), "stream": True}
    with client.chat.completions.with_streaming_response.create(**asked) as response:
        lines = b"".join(response.iter_bytes()).split(b"\n")
    beats = [number for number, line in enumerate(lines) if line == b": ping"]
    assert len(beats) >= 2
    # no blank line of its own, which could end an event
    assert all(lines[number + 1] != b"" for number in beats)
    assert all(line.startswith(b"data: ") or line in (b"", b": ping") for line in lines)


async def test_a_delta_is_with_the_client_before_the_vendor_says_more() -> None:
    heard = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await exchange.head()
        for word in ("one", "two", "three"):
            heard.clear()
            await exchange.chunk(sse(delta(word)))
            await heard.wait()
        await exchange.chunk(sse(delta(finish="stop"), "[DONE]"))
        await exchange.end()

    async with before(waits, timeout=5) as (_, client):
        words = []
        async for chunk in await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True):
            if said([chunk]):
                words.append(said([chunk]))
                heard.set()
        assert words == ["one", "two", "three"]


async def test_heartbeats_before_the_first_byte_keep_an_impatient_client() -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(1.0)
        await plays_hello(exchange)

    async with before(slow, server="{heartbeat: 50ms}", timeout=0.6) as (played, client):
        stream = await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True)
        assert said([chunk async for chunk in stream]) == "Hello"
        # nothing can be written ahead of a whole answer
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="v/m", messages=user("Hi"))
        await played.settled()
        assert played.abandoned == 1


async def test_an_error_after_heartbeats_is_an_error_of_the_stream() -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await failing(1, 429, retry_after="1")(exchange)

    async with before(slow, server="{heartbeat: 50ms}", max_retries=2) as (played, client):
        stream = await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True)
        with pytest.raises(openai.APIError) as caught:
            _ = [chunk async for chunk in stream]
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.type == "rate_limit_error"
        assert len(played.requests) == 1


async def test_without_heartbeats_a_silent_stream_times_out_at_the_client() -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse(delta("Hel")))
        await exchange.stall()

    async with before(stalls, server="{heartbeat: 0s}", timeout=0.3) as (played, client):
        with pytest.raises(openai.APITimeoutError):
            async for chunk in await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True):
                assert said([chunk]) in ("", "Hel")
        await played.settled()
        assert played.abandoned == 1


# -- leaving ---------------------------------------------------------------------------------------------------------


async def talks_on(exchange: Exchange) -> None:
    """A vendor that would talk for ten seconds."""
    if not exchange.request.json().get("stream"):
        await asyncio.sleep(10)
        await exchange.whole(200, completion("late"))
        return
    await exchange.head()
    for _ in range(500):
        await exchange.chunk(sse(delta("on and ")))
        await asyncio.sleep(0.02)


async def test_closing_a_stream_ends_the_vendors_request() -> None:
    async with before(talks_on) as (played, client):
        stream = await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True)
        async for chunk in stream:
            if said([chunk]):
                break
        assert played.busy == 1
        await stream.close()
        await played.settled()
        assert played.abandoned == 1


async def test_leaving_the_stream_helper_ends_the_vendors_request() -> None:
    async with before(talks_on) as (played, client):
        async with client.chat.completions.stream(model="v/m", messages=user("Hi")) as stream:
            async for event in stream:
                if event.type == "content.delta":
                    break
            assert played.busy == 1
        await played.settled()
        assert played.abandoned == 1


async def test_closing_a_synchronous_stream_ends_the_vendors_request() -> None:
    async with vendor(talks_on) as played, served(application(config_for(played.url))) as url:

        def reads_a_little() -> None:
            with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
                with client.chat.completions.create(model="v/m", messages=user("Hi"), stream=True) as stream:
                    assert next(said([chunk]) for chunk in stream if said([chunk]))

        await asyncio.to_thread(reads_a_little)
        await played.settled()
        assert played.abandoned == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_cancelling_the_task_ends_the_vendors_request(stream: bool) -> None:
    async with before(talks_on) as (played, client):

        async def asks() -> None:
            answer: Any = await client.chat.completions.create(model="v/m", messages=user("Hi"), stream=stream)
            async for _ in answer:
                pass

        task = asyncio.create_task(asks())
        async with asyncio.timeout(5):
            while not played.busy:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await played.settled()
        assert played.abandoned == 1


# -- many ------------------------------------------------------------------------------------------------------------


async def test_many_calls_share_one_client(gateway_url: str) -> None:
    async with patient(gateway_url) as client:

        async def ask(number: int) -> str:
            stream = await client.chat.completions.create(
                model="mock/echo+slow-1", messages=user(f"number {number}"), stream=True
            )
            return said([chunk async for chunk in stream])

        answers = await asyncio.gather(*(ask(number) for number in range(40)))
    assert answers == [f"number {number}" for number in range(40)]
