"""CORS as browsers ask for it, over a real socket: preflights, every kind of answer and error, caches between."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.http.cors import CorsLayer
from router.settings import Cors
from support.serving import asking, client, create_app, gateway, served

PAGE, OTHER = "https://chat.example.com", "https://elsewhere.example.com"
CHAT, STREAM = "/v1/chat/completions", "/v1/streams/strm_01M82V4AKSHHVQGQTBC4SRCZVA"
LISTED = f'{{allow_origins: ["{PAGE}"], allow_credentials: true}}'
ANY = '{allow_origins: ["*"]}'


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def opened(cors: str = LISTED, plugins: str = "[usage]") -> AsyncIterator[httpx.AsyncClient]:
    config = f"server: {{cors: {cors}}}\nproviders: {{mock: {{protocol: mock}}}}\nplugins: {plugins}\n"
    async with served(create_app(gateway(config))) as url, client(url) as http:
        yield http


async def preflight(
    http: httpx.AsyncClient, path: str, origin: str, method: str, headers: str | None = None
) -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": method}
    if headers is not None:
        asked["access-control-request-headers"] = headers
    return await http.request("OPTIONS", path, headers=asked)


def cors_of(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def varies(answer: httpx.Response) -> set[str]:
    return {name.strip().lower() for name in answer.headers.get("vary", "").split(",")}


# -- who is not let in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [OTHER, "null", PAGE + ".evil.example", PAGE + ":8443", "http" + PAGE[5:], "x"])
async def test_a_page_of_another_origin_is_told_nothing(origin: str) -> None:
    async with opened() as http:
        asked = await preflight(http, CHAT, origin, "POST", "authorization")
        assert (asked.status_code, cors_of(asked)) == (204, {})
        answer = await http.get("/v1/models", headers={"origin": origin})
        assert cors_of(answer) == {}
        for each in (asked, answer):
            assert "origin" in varies(each), "what it was given is not kept for a page that is let in"


async def test_an_answer_that_nobody_asked_from_a_page_is_not_kept_for_a_page() -> None:
    for cors in (LISTED, ANY):
        async with opened(cors) as http:
            for answer in (
                await http.get("/v1/models"),
                await http.get("/v1/nowhere"),
                await http.post(CHAT, json=asking("mock/echo")),
            ):
                assert cors_of(answer) == {}
                assert "origin" in varies(answer)


@pytest.mark.parametrize("names", ["a b", "a,,b", "{}", "x" * 40 + ":", ",", ""])
async def test_names_of_headers_that_are_none_are_not_allowed(names: str) -> None:
    async with opened() as http:
        answer = await preflight(http, CHAT, PAGE, "POST", names)
        assert answer.status_code == 204
        assert "access-control-allow-headers" not in answer.headers


async def test_an_options_that_is_no_preflight_is_not_taken_for_one() -> None:
    async with opened() as http:
        answer = await http.request("OPTIONS", CHAT, headers={"origin": PAGE})
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
        assert answer.headers["access-control-allow-origin"] == PAGE
        plain = await http.request("OPTIONS", CHAT, headers={"access-control-request-method": "POST"})
        assert plain.status_code == 405


# -- preflights ----------------------------------------------------------------------------------------------------


async def test_a_preflight_allows_with_credentials_what_is_asked_for_by_name() -> None:
    async with opened() as http:
        wanted = "authorization,content-type,last-event-id,idempotency-key,x-stainless-os,x-anything"
        for path in (CHAT, STREAM, "/v1/conversations", "/v1/nowhere"):
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                answer = await preflight(http, path, PAGE, method, wanted)
                assert (answer.status_code, answer.content) == (204, b"")
                told = cors_of(answer)
                # "*" stands for nothing where there are credentials, and never for `authorization`
                assert told["access-control-allow-headers"] == wanted
                assert method in told["access-control-allow-methods"].split(", ")
                assert told["access-control-allow-origin"] == PAGE
                assert told["access-control-allow-credentials"] == "true"
                assert told["access-control-max-age"] == "600"
                assert {"origin", "access-control-request-headers"} <= varies(answer)
                assert answer.headers["x-request-id"].startswith("req_")


async def test_a_preflight_needs_no_key() -> None:
    async with opened(plugins="[{auth: {keys: [{key: dw-good, name: tester}]}}]") as http:
        for path in (CHAT, "/v1/models", STREAM, "/v1/conversations"):
            assert (await preflight(http, path, PAGE, "GET", "authorization")).status_code == 204
            refused = await http.get(path, headers={"origin": PAGE})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == PAGE
            assert "www-authenticate" in refused.headers["access-control-expose-headers"].split(", ")


async def test_any_origin_is_let_in_without_credentials() -> None:
    async with opened(ANY) as http:
        asked = cors_of(await preflight(http, CHAT, OTHER, "DELETE", "authorization"))
        assert asked["access-control-allow-origin"] == "*"
        assert asked["access-control-allow-headers"] == "authorization"
        for origin in (OTHER, "null"):
            answer = await http.get("/v1/models", headers={"origin": origin, "cookie": "a=b"})
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers


async def test_a_page_of_the_internet_may_call_a_gateway_in_the_house_if_it_is_let_in() -> None:
    async with opened() as http:
        asked = {"access-control-request-method": "POST", "access-control-request-private-network": "true"}
        answer = await http.request("OPTIONS", CHAT, headers={"origin": PAGE, **asked})
        assert answer.headers["access-control-allow-private-network"] == "true"
        assert cors_of(await http.request("OPTIONS", CHAT, headers={"origin": OTHER, **asked})) == {}
        assert "access-control-allow-private-network" not in (await preflight(http, CHAT, PAGE, "POST")).headers


# -- answers -------------------------------------------------------------------------------------------------------


async def test_every_answer_and_every_error_can_be_read_by_a_page_that_is_let_in() -> None:
    async with opened() as http:
        made = await http.post(CHAT, json=asking("mock/lorem-3"), headers={"x-deltaway-resumable": "true"})
        stream = f"/v1/streams/{made.headers['x-deltaway-stream']}"
        seen = {"last-event-id": f"{made.headers['x-deltaway-stream']}-99"}
        last = max(int(line.rpartition("-")[2]) for line in made.text.splitlines() if line.startswith("id: "))
        all_seen = {"last-event-id": f"{made.headers['x-deltaway-stream']}-{last}"}
        wanted: list[tuple[int, str, str, Any, dict[str, str]]] = [
            (200, "POST", CHAT, asking("mock/echo", True), {}),
            (200, "POST", CHAT, asking("mock/echo", False), {}),
            (200, "GET", CHAT, None, {}),
            (202, "POST", CHAT, asking("mock/echo"), {"prefer": "respond-async"}),
            (200, "GET", stream, None, {}),
            (204, "GET", stream, None, all_seen),
            (400, "GET", stream, None, seen),
            (400, "POST", CHAT, {}, {}),
            (400, "GET", CHAT + "?limit=0", None, {}),
            (404, "POST", CHAT, asking("nobody/x"), {}),
            (404, "GET", STREAM, None, {}),
            (404, "GET", "/v1/streams/x/y/z", None, {}),
            (404, "GET", "/v1/nowhere", None, {}),
            (404, "GET", "/v1/conversations/x", None, {}),
            (405, "DELETE", CHAT, None, {}),
            (405, "PATCH", "/v1/models", None, {}),
            (405, "PUT", stream, None, {}),
            (429, "POST", CHAT, asking("mock/error-429"), {}),
            (502, "POST", CHAT, asking("mock/error-500"), {}),
        ]
        for status, method, path, body, headers in wanted:
            answer = await http.request(method, path, json=body, headers={"origin": PAGE, **headers})
            told = cors_of(answer)
            assert answer.status_code == status, (method, path)
            assert told.pop("access-control-expose-headers").startswith("x-request-id, ")
            assert told == {
                "access-control-allow-origin": PAGE,
                "access-control-allow-credentials": "true",
            }, (status, method, path)
            assert "origin" in varies(answer)


async def test_a_page_may_read_every_header_of_ours_and_of_plugins() -> None:
    async with opened() as http:
        sent = asking("mock/echo", stream=False)
        answer = await http.post(CHAT, json=sent, headers={"origin": PAGE, "x-deltaway-resumable": "true"})
        shown = answer.headers["access-control-expose-headers"].split(", ")
        assert {name for name in answer.headers if name.startswith("x-")} <= set(shown)
        assert {"x-deltaway-conversation", "x-deltaway-context", "retry-after", "location"} <= set(shown)
        assert len(shown) == len(set(shown))


async def test_a_header_that_nobody_listed_is_shown_if_an_answer_bears_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1"), (b"set-cookie", b"a")]})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    layer = CorsLayer(app, Cors(allow_origins=(PAGE,)))  # type: ignore[arg-type]
    scope = {"type": "http", "method": "GET", "headers": [(b"origin", PAGE.encode())]}
    await layer(scope, None, send)  # type: ignore[arg-type]
    headers = dict(sent[0]["headers"])
    assert headers[b"access-control-expose-headers"].endswith(b", x-own")
    assert b"set-cookie" not in headers[b"access-control-expose-headers"]
