"""Whatever is sent, and whatever the vendor answers: the dialect's error shape, a request id; the server goes on."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import structlog

from support.raw import Raw
from support.serving import asking, client, config_for, create_app, gateway, served
from support.vendor import Exchange, completion, delta, plays_hello, sse, vendor

CONFIG = """
server: {body_limit: 100KiB}
providers:
  mock: {protocol: mock, models: [echo]}
  gone: {protocol: openai, api_key: "${GONE_API_KEY}"}
models:
  chat: {targets: [mock/echo]}
plugins:
  - logging
  - auth: {keys: [{key: dw-good, name: tester}, {key: dw-small, name: small, models: [chat]}]}
  - usage
"""


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with served(create_app(gateway(CONFIG))) as url, client(url, "dw-good") as opened:
        yield opened


def checked(response: httpx.Response, status: int) -> dict[str, str]:
    """The error of a response that has the status and the shape."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["content-type"] == "application/json"
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def goes_on(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=asking("mock/echo", stream=False))
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hi"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "JSON"),
        (b"", None, "JSON"),
        (b"\xff\xfe", None, "JSON"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b"[]", None, "object"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "model", "model"),
        (b'{"model": "mock/echo"}', "messages", "messages"),
        (b'{"model": "mock/echo", "messages": []}', "messages", "messages"),
        (b'{"model": 5, "messages": [{"role": "user", "content": "x"}]}', "model", "model"),
        (b'{"model": "mock/echo", "messages": [{"role": "user", "content": 5}]}', "messages[0].content", "content"),
        (b'{"model": "mock/echo", "messages": [{"role": "alien", "content": "x"}]}', "messages[0].role", "alien"),
        (b'{"model": "mock/echo", "temperature": "hot", "messages": [{"role": "user", "content": "x"}]}',
         "temperature", "temperature"),
    ],
    ids=["cut off", "empty", "not utf-8", "deep", "a list", "no model", "no messages", "no message", "model type",
         "content type", "role", "temperature type"],
)  # fmt: skip
async def test_a_wrong_body_is_a_400_that_names_the_place(
    http: httpx.AsyncClient, body: bytes, param: str | None, words: str
) -> None:
    error = checked(await http.post("/v1/chat/completions", content=body), 400)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    await goes_on(http)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unknown_model_is_a_404_with_near_names(http: httpx.AsyncClient, stream: bool) -> None:
    error = checked(await http.post("/v1/chat/completions", json=asking("mock/ehco", stream)), 404)
    assert error["code"] == "model_not_found"
    error = checked(await http.post("/v1/chat/completions", json=asking("chta", stream)), 404)
    assert "`chat`" in error["message"]
    await goes_on(http)


async def test_a_provider_without_its_key_is_a_503_that_names_the_variable(http: httpx.AsyncClient) -> None:
    error = checked(await http.post("/v1/chat/completions", json=asking("gone/gpt-5")), 503)
    assert "GONE_API_KEY" in error["message"]


@pytest.mark.parametrize("key", [None, "dw-wrong"], ids=["none", "wrong"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
async def test_no_key_or_a_wrong_one_is_a_401(http: httpx.AsyncClient, key: str | None, path: str) -> None:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    request = http.build_request("POST" if "chat" in path else "GET", path, json=asking("mock/echo"))
    request.headers.pop("authorization")
    request.headers.update(headers)
    response = await http.send(request)
    error = checked(response, 401)
    assert error["code"] == ("missing_api_key" if key is None else "invalid_api_key")
    assert error["type"] == "invalid_request_error"
    assert "dw-wrong" not in response.text
    assert response.headers["www-authenticate"] == "Bearer"


async def test_a_large_body_of_a_stranger_is_not_read_at_all(http: httpx.AsyncClient) -> None:
    url = str(http.base_url)
    for headers in ({"content_length": "90000"}, {"transfer_encoding": "chunked"}):
        # nothing of the body is sent, and the answer is there all the same
        raw = await Raw.post(url, b"", **headers)
        assert await raw.head() == 401
    known = await http.post("/v1/chat/completions", content=b"x" * 90_000)
    assert known.status_code == 400


async def test_x_api_key_is_taken_too(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/models", headers={"authorization": "Basic eDp5", "x-api-key": "dw-good"})
    assert response.status_code == 200


async def test_a_key_may_be_kept_to_some_models(http: httpx.AsyncClient) -> None:
    small = {"authorization": "Bearer dw-small"}
    error = checked(await http.post("/v1/chat/completions", json=asking("mock/echo"), headers=small), 403)
    assert "`chat`" in error["message"]
    listed = (await http.get("/v1/models", headers=small)).json()["data"]
    assert [model["id"] for model in listed] == ["chat"]


async def test_a_body_over_the_limit_is_a_413_told_or_not_in_its_length(http: httpx.AsyncClient) -> None:
    big = asking("mock/echo", text="x" * 200_000)
    error = checked(await http.post("/v1/chat/completions", json=big), 413)
    assert "body_limit" in error["message"]

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    checked(await http.post("/v1/chat/completions", content=pieces()), 413)
    await goes_on(http)


async def test_a_wrong_method_or_path_has_the_same_shape(http: httpx.AsyncClient) -> None:
    response = await http.put("/v1/chat/completions")
    checked(response, 405)
    assert response.headers["allow"] == "GET, POST"
    checked(await http.post("/v1/models", json={}), 405)
    error = checked(await http.post("/v1/chat/completion", json={}), 404)
    assert "/v1/chat/completions" in error["message"]
    checked(await http.get("/v1/models/nope"), 404)


async def test_every_answer_bears_a_request_id(http: httpx.AsyncClient) -> None:
    for path in ("/v1/models", "/health/live", "/health/ready", "/schema/openapi.json"):
        assert (await http.get(path)).headers["x-request-id"].startswith("req_")


async def test_a_request_that_is_refused_before_any_plugin_still_has_its_line_in_the_log(
    http: httpx.AsyncClient,
) -> None:
    with structlog.testing.capture_logs() as lines:
        chat = await http.post("/v1/chat/completions", content=b"{")
        elsewhere = await http.get("/nowhere")
    refused = {line["request_id"]: line["status"] for line in lines if line["event"] == "refused"}
    assert refused[chat.headers["x-request-id"]] == 400
    assert refused[elsewhere.headers["x-request-id"]] == 404


async def test_malformed_tags_name_the_header(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=asking("mock/echo"), headers={"x-deltaway-tags": "a;b"})
    assert checked(response, 400)["param"] == "x-deltaway-tags"


# -- what a vendor may answer ----------------------------------------------------------------------------------------


async def html_page(exchange: Exchange) -> None:
    page = b"<html><head><title>502</title></head><body><h1>Bad Gateway</h1><script>x()</script></body></html>"
    await exchange.whole(502, page, "text/html")


async def html_with_200(exchange: Exchange) -> None:
    await exchange.whole(200, b"<!doctype html><html><body>Please log in</body></html>", "text/html")


async def truncated_json(exchange: Exchange) -> None:
    await exchange.whole(200, completion("Hello")[:-20])


async def error_inside_a_200(exchange: Exchange) -> None:
    await exchange.whole(200, b'{"error": {"message": "the model is busy", "code": 503}}')


async def empty_200(exchange: Exchange) -> None:
    await exchange.whole(200, b"")


async def endless_line(exchange: Exchange) -> None:
    await exchange.head()
    while True:
        await exchange.chunk(b"data: " + b"x" * 1_000_000)


async def own_key_refused(exchange: Exchange) -> None:
    key = exchange.request.headers["authorization"].removeprefix("Bearer ")
    body = {"error": {"message": f"Incorrect API key provided: {key}", "code": "invalid_api_key"}}
    await exchange.whole(401, json.dumps(body).encode())


async def redirect(exchange: Exchange) -> None:
    await exchange.whole(302, b"", location="http://127.0.0.1:1/elsewhere")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("script", "status"),
    [
        (html_page, 502),
        (html_with_200, 502),
        (truncated_json, 502),
        (error_inside_a_200, 503),
        (empty_200, 502),
        (endless_line, 502),
        (own_key_refused, 502),
        (redirect, 502),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_vendors_nonsense_is_an_error_of_the_dialect_and_the_server_goes_on(
    script, status: int, stream: bool
) -> None:  # type: ignore[no-untyped-def]
    async with (
        vendor(script) as played,
        served(create_app(gateway(config_for(played.url)))) as url,
        client(url) as http,
    ):
        response = await http.post("/v1/chat/completions", json=asking(stream=stream))
        error = checked(response, status)
        assert "<" not in error["message"]
        assert "sk-vendor-key" not in response.text
        played.script = plays_hello
        assert (await http.post("/v1/chat/completions", json=asking())).status_code == 200


async def test_a_header_built_from_a_clients_words_cannot_break_the_response() -> None:
    async with vendor(plays_hello) as played, served(create_app(gateway(config_for(played.url)))) as url:
        raw = await Raw.post(url, asking("v/m\r\nx-injected: 1 ü"))
        assert await raw.head() == 200
        assert "x-injected" not in raw.headers


async def test_a_slow_body_that_never_ends_does_not_hold_others() -> None:
    async with served(create_app(gateway(CONFIG))) as url, client(url, "dw-good") as http:
        raw = await Raw.post(url, b"", content_length="1000")
        await goes_on(http)
        raw.leave()
        await goes_on(http)


async def test_a_stream_without_choices_is_no_answer() -> None:
    async def nothing(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse({**delta(), "choices": []}, "[DONE]"))
        await exchange.end()

    async with (
        vendor(nothing) as played,
        served(create_app(gateway(config_for(played.url)))) as url,
        client(url) as http,
    ):
        checked(await http.post("/v1/chat/completions", json=asking()), 502)
