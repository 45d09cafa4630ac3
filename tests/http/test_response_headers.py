"""The headers of an answer: what a call went through, what was left out of it, and which web pages may read it."""

from collections.abc import AsyncIterator

import httpx
import pytest

from support.serving import asking, client, config_for, create_app, gateway, served
from support.vendor import plays_hello, vendor

PAGE = "https://chat.example.com"
CONFIG = f"""
server: {{cors: {{allow_origins: ["{PAGE}"]}}}}
providers: {{mock: {{protocol: mock, models: [echo]}}}}
plugins: [{{auth: {{keys: [{{key: dw-good, name: tester}}]}}}}]
"""
CHAT = "/v1/chat/completions"


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with served(create_app(gateway(CONFIG))) as url, client(url, "dw-good") as opened:
        yield opened


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_an_answer_tells_its_request_its_target_and_how_often_it_was_tried(
    http: httpx.AsyncClient, stream: bool
) -> None:
    answer = await http.post(CHAT, json=asking("mock/echo", stream))
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-deltaway-target"] == "mock/echo"
    assert answer.headers["x-deltaway-attempts"] == "1"
    assert "x-deltaway-dropped" not in answer.headers


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_fields_that_the_target_cannot_take_are_named(stream: bool) -> None:
    more = ", options: {drop: [seed, logit_bias]}"
    async with vendor(plays_hello) as played:
        config = config_for(played.url, more=more)
        async with served(create_app(gateway(config))) as url, client(url) as http:
            answer = await http.post(CHAT, json=asking(stream=stream, seed=1, logit_bias={"5": 1}, temperature=0.5))
    assert answer.status_code == 200
    assert set(answer.headers["x-deltaway-dropped"].split(", ")) == {"seed", "logit_bias"}
    sent = played.requests[0].json()
    assert sent["temperature"] == 0.5
    assert "seed" not in sent


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, asking("mock/echo", stream=True), 200),
        (CHAT, asking("mock/echo", stream=False), 200),
        (CHAT, asking("mock/error-429"), 429),
        (CHAT, {}, 400),
        ("/v1/nowhere", {}, 404),
        ("/v1/models", {}, 405),
    ],
    ids=["streamed", "whole", "vendor's error", "wrong body", "wrong path", "wrong method"],
)
async def test_a_page_of_a_listed_origin_may_read_answers_and_errors(
    http: httpx.AsyncClient, path: str, body: dict[str, object], status: int
) -> None:
    answer = await http.post(path, json=body, headers={"origin": PAGE})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "origin" in answer.headers["vary"].lower()
    shown = answer.headers["access-control-expose-headers"]
    assert {"x-request-id", "x-deltaway-dropped", "retry-after"} <= set(shown.split(", "))


async def test_a_page_may_read_why_its_key_is_refused(http: httpx.AsyncClient) -> None:
    headers = {"origin": PAGE, "authorization": "Bearer dw-wrong"}
    for answer in (
        await http.post(CHAT, json=asking("mock/echo"), headers=headers),
        await http.get("/v1/models", headers=headers),
    ):
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
async def test_a_preflight_of_a_listed_origin_may_send_what_the_official_libraries_send(
    http: httpx.AsyncClient, path: str
) -> None:
    wanted = "authorization, content-type, x-api-key, x-stainless-os, x-deltaway-tags"
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": wanted}
    answer = await http.request("OPTIONS", path, headers={**asked, "authorization": ""})
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert set(wanted.split(", ")) <= allowed
    assert answer.headers["access-control-max-age"] == "600"


async def test_other_origins_are_not_let_in(http: httpx.AsyncClient) -> None:
    other = "https://elsewhere.example.com"
    asked = {"origin": other, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in (await http.request("OPTIONS", CHAT, headers=asked)).headers
    answer = await http.post(CHAT, json=asking("mock/echo"), headers={"origin": other})
    assert "access-control-allow-origin" not in answer.headers


async def test_without_cors_no_page_is_let_in() -> None:
    async with served(create_app(gateway("plugins: []\n"))) as url, client(url) as http:
        answer = await http.post(CHAT, json=asking("mock/echo"), headers={"origin": PAGE})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        asked = {"origin": PAGE, "access-control-request-method": "POST"}
        assert "access-control-allow-origin" not in (await http.request("OPTIONS", CHAT, headers=asked)).headers


async def test_any_origin_may_be_let_in() -> None:
    config = 'server: {cors: {allow_origins: ["*"]}}\nplugins: []\n'
    async with served(create_app(gateway(config))) as url, client(url) as http:
        answer = await http.post(CHAT, json=asking("mock/echo"), headers={"origin": PAGE})
        assert answer.headers["access-control-allow-origin"] in ("*", PAGE)
