"""OpenAI's client library for Node, run against a gateway over real sockets: node/client.mjs does, this looks."""

import asyncio
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.serving import application, config_for, served
from support.vendor import Exchange, delta, plays_hello, sse, vendor

FOLDER = Path(__file__).parent / "node"
DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
INSTALLED = FOLDER / "node_modules" / ".package-lock.json"

pytestmark = pytest.mark.needs("node", "npm")


@pytest.fixture(scope="session")
def library() -> None:
    """The pinned client library, installed when it is missing or another one."""
    lock = FOLDER / "package-lock.json"
    if INSTALLED.exists() and _pins(INSTALLED) == _pins(lock):
        return
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    installed = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=55, check=False)
    assert installed.returncode == 0, f"npm ci failed:\n{installed.stdout}{installed.stderr}"


def _pins(lock: Path) -> dict[str, str]:
    packages = json.loads(lock.read_text("utf-8"))["packages"]
    return {name: package["integrity"] for name, package in packages.items() if name}


async def node(*words: str, **environment: str) -> bytes:
    """What a script prints that may import the library."""
    process = await asyncio.create_subprocess_exec(
        "node",
        *words,
        cwd=FOLDER,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 40)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out


async def does(theme: str, url: str) -> Any:
    """What the library makes of the theme."""
    return json.loads(await node("client.mjs", theme, f"{url}/v1"))


@pytest.mark.usefixtures("library")
class TestAnswers:
    async def test_a_whole_answer(self, gateway_url: str) -> None:
        found = await does("whole", gateway_url)
        answer = found["answer"]
        (choice,) = answer["choices"]
        assert choice["message"]["content"] == "one two three"
        assert choice["message"]["reasoning_content"]
        assert choice["finish_reason"] == "stop"
        assert answer["object"] == "chat.completion"
        assert answer["usage"]["total_tokens"] > 6
        assert found["requestID"].startswith("req_")

    async def test_a_stream(self, gateway_url: str) -> None:
        found = await does("stream", gateway_url)
        for stream in found.values():
            assert stream["text"] == "one two three"
            assert stream["reasoning"]
            assert stream["finish"] == ["stop"]
            assert len(stream["ids"]) == 1
            assert stream["error"] is None
        assert found["plain"]["usage"] is None
        assert found["counted"]["usage"]["prompt_tokens"] == 3

    async def test_address_and_key_may_come_from_the_environment(self, gateway_url: str) -> None:
        out = await node("client.mjs", "environment", OPENAI_BASE_URL=f"{gateway_url}/v1", OPENAI_API_KEY="any")
        assert json.loads(out) == "one two three"

    async def test_the_example_of_the_documentation_runs(self, gateway_url: str) -> None:
        (example,) = re.findall(r"```js\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
        script = example.replace("http://127.0.0.1:8080", gateway_url)
        assert await node("--input-type=module", "--eval", script) == b"Hello"

    async def test_several_choices(self, gateway_url: str) -> None:
        assert await does("choices", gateway_url) == ["one two three"] * 2

    async def test_the_stream_helper(self, gateway_url: str) -> None:
        found = await does("helper", gateway_url)
        assert found["content"] == "".join(found["pieces"]) == "one two three"
        assert found["finish"] == "stop"

    async def test_parallel_tool_calls_and_their_results(self, gateway_url: str) -> None:
        found = await does("tools", gateway_url)
        calls = [call["function"] for call in found["message"]["tool_calls"]]
        assert [call["name"] for call in calls] == ["weather", "time"]
        assert all("city" in json.loads(call["arguments"]) for call in calls)
        assert found["finish"] == "tool_calls"
        assert found["streamed"]["calls"] == calls
        assert found["streamed"]["finish"] == ["tool_calls"]
        assert found["again"] == "The tool says: rain, noon"

    async def test_the_library_runs_the_tools_itself(self, gateway_url: str) -> None:
        said = "The tool says: rain, noon"
        assert await does("runner", gateway_url) == {"whole": said, "streamed": said}

    async def test_conversations_are_kept_and_paged(self, gateway_url: str) -> None:
        found = await does("conversations", gateway_url)
        assert found["ascending"] == ["a", "b", "c", "d", "d", "e"]
        assert found["descending"] == ["e", "d", "d", "c", "b", "a"]
        assert found["ids"] == [True] * 4
        assert found["topics"] == ["tea", "rice", "rice"]
        assert (found["missing"]["status"], found["missing"]["code"]) == (404, "conversation_not_found")

    async def test_an_answer_to_a_schema_is_parsed(self, gateway_url: str) -> None:
        parsed = await does("schema", gateway_url)
        assert isinstance(parsed["certain"], bool)
        assert isinstance(parsed["steps"], list)
        assert parsed["answer"] in ("yes", "no")

    async def test_models_are_listed_and_retrieved_by_names_with_a_slash(self, gateway_url: str) -> None:
        found = await does("models", gateway_url)
        assert {"impatient", "mock/echo"} <= set(found["listed"])
        assert found["retrieved"]["id"] == "mock/echo"
        assert found["retrieved"]["object"] == "model"
        assert found["missing"]["class"] == "NotFoundError"

    async def test_headers_are_there_before_the_stream(self, gateway_url: str) -> None:
        found = await does("headers", gateway_url)
        assert found["text"] == "one two three"
        assert found["requestID"].startswith("req_")
        assert found["target"] == "mock/echo"
        assert found["type"] == "text/event-stream; charset=utf-8"

    async def test_heartbeats_between_deltas_change_nothing(self, gateway_url: str) -> None:
        found = await does("heartbeats", gateway_url)
        for model, (quick, slow) in found.items():
            assert {**slow, "ids": []} == {**quick, "ids": []}, model
            assert quick["error"] is None
            assert quick["finish"] == ["tool_calls" if model == "mock/tools" else "stop"]


@pytest.mark.usefixtures("library")
class TestErrors:
    async def test_errors_before_the_answer_have_their_class(self, gateway_url: str) -> None:
        found = await does("errors", gateway_url)
        wanted = {
            "mock/error-400": ("BadRequestError", 400, "invalid_request"),
            "mock/error-401": ("InternalServerError", 502, "provider_authentication_failed"),
            "mock/error-429": ("RateLimitError", 429, "rate_limit_exceeded"),
            "mock/error-500": ("InternalServerError", 502, "upstream_error"),
            "mock/error-503": ("InternalServerError", 503, "provider_overloaded"),
            "nosuch/model": ("NotFoundError", 404, "model_not_found"),
            "wrong": ("BadRequestError", 400, "invalid_type"),
            "large": ("APIError", 413, "request_too_large"),
            "path": ("NotFoundError", 404, "not_found"),
        }
        assert set(found) == set(wanted)
        for name, errors in found.items():
            for error in errors:
                assert (error["class"], error["status"], error["code"]) == wanted[name]
                assert re.fullmatch(r"req_\w+", error["requestID"])
        assert found["wrong"][0]["param"] == "messages[0].content"

    async def test_an_answer_that_breaks_is_an_error_after_what_was_said(self, gateway_url: str) -> None:
        found = await does("cut", gateway_url)
        streamed = found["streamed"]
        assert len(streamed["text"].split()) == 10
        assert streamed["finish"] == []
        assert streamed["error"]["class"] == "APIError"
        assert streamed["error"]["status"] is None
        assert streamed["error"]["code"] == "connection_lost"
        assert streamed["error"]["requestID"].startswith("req_")
        assert (found["whole"]["class"], found["whole"]["status"]) == ("InternalServerError", 502)

    async def test_an_answer_that_stalls_is_an_error_while_heartbeats_flow(self, gateway_url: str) -> None:
        found = await does("stalled", gateway_url)
        assert len(found["text"].split()) == 2
        assert found["error"]["code"] == "idle_timeout"

    async def test_keys_are_asked_for(self) -> None:
        config = """
providers: {mock: {protocol: mock}}
plugins: [logging, {auth: {keys: [{key: key-1, name: one, models: [mock/echo]}]}}, usage]
"""
        async with served(application(config)) as url:
            found = await does("keys", url)
        assert (found["wrong"]["class"], found["wrong"]["code"]) == ("AuthenticationError", "invalid_api_key")
        assert found["right"] == "one two three"
        assert (found["other"]["class"], found["other"]["status"]) == ("PermissionDeniedError", 403)

    async def test_a_rate_limit_is_tried_again_after_the_time_the_vendor_asked_for(self) -> None:
        tries = iter([429, 200])

        async def script(exchange: Exchange) -> None:
            if next(tries) == 200:
                await plays_hello(exchange)
            else:
                await exchange.whole(429, b'{"error": {"message": "not now"}}', retry_after="1")

        async with vendor(script) as played, served(application(config_for(played.url))) as url:
            found = await does("retried", url)
            assert found["text"] == "Hello"
            # the library's own first pause is half a second at most
            assert found["milliseconds"] > 950
            assert len(played.requests) == 2

    async def test_what_no_try_can_mend_is_not_tried_again(self) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.whole(401, b'{"error": {"message": "wrong key"}}')

        async with vendor(script) as played, served(application(config_for(played.url))) as url:
            found = await does("notRetried", url)
            assert found["status"] == 502
            assert len(played.requests) == 1


async def talks_on(exchange: Exchange) -> None:
    """A vendor that would talk for twenty seconds."""
    if not exchange.request.json().get("stream"):
        await asyncio.sleep(20)
        return
    await exchange.head()
    for _ in range(1000):
        await exchange.chunk(sse(delta("on and ")))
        await asyncio.sleep(0.02)


@pytest.mark.usefixtures("library")
class TestLeaving:
    @pytest.mark.parametrize("theme", ["aborted", "abortedWhole", "timeout", "left"])
    async def test_leaving_ends_the_vendors_request(self, theme: str) -> None:
        async with vendor(talks_on) as played, served(application(config_for(played.url))) as url:
            doing = asyncio.create_task(does(theme, url))
            async with asyncio.timeout(20):
                while not (played.abandoned or doing.done()):
                    await asyncio.sleep(0.01)
            assert not doing.done(), "the request went on for as long as the process lived"
            found = await doing
            await played.settled()
            assert played.abandoned == len(played.requests) == 1
            wanted = {"abortedWhole": "APIUserAbortError", "timeout": "APIConnectionTimeoutError"}
            assert found.get("class") == wanted.get(theme)
            if theme in ("aborted", "left"):
                assert found["text"].startswith("on and")


@pytest.mark.usefixtures("library")
async def test_heartbeats_before_the_first_byte_keep_an_impatient_client() -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(1.0)
        await plays_hello(exchange)

    config = "{heartbeat: 50ms}"
    async with vendor(slow) as played, served(application(config_for(played.url, server=config))) as url:
        assert await does("impatient", url) == "Hello"


@pytest.mark.usefixtures("library")
async def test_parts_and_fields_reach_the_vendor_as_they_were_said() -> None:
    async with vendor(plays_hello) as played, served(application(config_for(played.url))) as url:
        assert await does("extra", url) == "Hello"
        (request,) = played.requests
        sent = request.json()
        assert sent["messages"][0]["content"] == [
            {"type": "text", "text": "Look."},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        ]
        assert sent["chat_template_kwargs"] == {"enable_thinking": False}
        assert sent["temperature"] == 0
        assert not [name for name in request.headers if name.startswith(("x-stainless", "x-deltaway"))]


@pytest.mark.usefixtures("library")
async def test_what_the_library_parsed_comes_back_with_the_message_and_goes_no_further() -> None:
    async with vendor(plays_hello) as played, served(application(config_for(played.url))) as url:
        assert "parsed" in await does("returned", url)
        _, sent, _ = played.requests[0].json()["messages"]
        assert set(sent) <= {"role", "content", "tool_calls", "refusal"}
        assert set(sent["tool_calls"][0]["function"]) == {"name", "arguments"}
