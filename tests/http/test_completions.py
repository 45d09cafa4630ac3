"""Completions that are kept (`store: true`), seen by HTTP: bad input first, then keeping, reading and ownership."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from router.app import Gateway
from router.store.completions import keep
from router.store.store import StoreAway
from support.serving import asking, client, config_for, create_app, gateway, served
from support.vendor import plays_hello, vendor

CHAT = "/v1/chat/completions"
KEYS = "[{auth: {keys: [{key: key-of-a, name: a}, {key: key-of-b, name: b}], admin_key: the-admin-key}}, usage]"
UNKNOWN = "chatcmpl-01M82V4AKSHHVQGQTBC4SRCZVA"
MINE, THEIRS, ADMIN = ({"authorization": f"Bearer {key}"} for key in ("key-of-a", "key-of-b", "the-admin-key"))


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def opened(
    plugins: str = "[logging, usage]", more: str = "", see: Callable[[Gateway], None] = lambda made: None
) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway whose only vendor is the mock."""
    made = gateway(config_for("http://127.0.0.1:9", plugins) + more)
    see(made)
    async with served(create_app(made)) as url, client(url) as http:
        yield http


async def kept(http: httpx.AsyncClient, headers: dict[str, str] | None = None, **more: Any) -> Any:
    """A whole answer that is kept."""
    sent = {**asking("mock/echo", stream=False), "store": True, **more}
    answer = await http.post(CHAT, json=sent, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks(data: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def listed(http: httpx.AsyncClient, /, *, by: dict[str, str] | None = None, **query: Any) -> list[str]:
    answer = await http.get(CHAT, params=query, headers=by)
    assert answer.status_code == 200, answer.text
    return [each["id"] for each in answer.json()["data"]]


def bearing(**pairs: str) -> dict[str, Any]:
    return {f"metadata[{name}]": value for name, value in pairs.items()}


# -- bad input -----------------------------------------------------------------------------------------------------


async def test_a_completion_that_is_not_kept_is_not_found() -> None:
    async with opened() as http:
        for identity in (UNKNOWN, "chatcmpl-123", "x", "chatcmpl-☃", "%00", "a" * 300):
            path = f"{CHAT}/{identity}"
            for answer in (
                await http.get(path),
                await http.post(path, json={"metadata": {}}),
                await http.delete(path),
                await http.get(f"{path}/messages"),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "completion_not_found"), identity
                assert answer.headers["x-request-id"].startswith("req_")


BAD_QUERIES: list[tuple[str, str | None]] = [
    ("limit=0", "limit"),
    ("limit=101", "limit"),
    ("limit=ten", "limit"),
    ("limit=1&limit=2", "limit"),
    ("order=up", "order"),
    ("after=", "after"),
    (f"after={UNKNOWN}", "after"),
    ("after=conv_01M82V4AKSHHVQGQTBC4SRCZVA", "after"),
    ("before=x", "before"),
    ("metadata=x", "metadata"),
    ("metadata[]=x", "metadata"),
    ("metadata[a]=1&metadata[a]=2", "metadata"),
    (f"metadata[a]={'x' * 513}", "metadata.a"),
    (f"metadata[{'a' * 65}]=1", "metadata"),
    ("&".join(f"metadata[{number}]=1" for number in range(17)), "metadata"),
    ("%ff=1", None),
]


async def test_a_list_is_refused_for_what_it_does_not_know() -> None:
    async with opened() as http:
        for query, param in BAD_QUERIES:
            answer = await http.get(f"{CHAT}?{query}")
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), query
            assert answer.headers["x-request-id"].startswith("req_")


async def test_a_cursor_of_another_list_of_messages_is_refused() -> None:
    async with opened() as http:
        identity = (await kept(http))["id"]
        other = (await kept(http))["id"]
        path = f"{CHAT}/{identity}/messages"
        for place in ("{}-1", "{}-00", "{}--1", "{}", f"{UNKNOWN}-0", "{}-99999999999", "msg_1", f"{other}-0"):
            answer = await http.get(path, params={"after": place.format(identity)})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_cursor"), place
        assert (await http.get(path, params={"model": "x"})).json()["error"]["code"] == "unknown_parameter"


BAD_METADATA = [
    {str(number): "" for number in range(17)},
    {"a" * 65: "x"},
    {"": "x"},
    {"a\nb": "x"},
    {"a": "x" * 513},
    {"a": "\0"},
]


async def test_metadata_that_is_too_much_is_refused_and_changes_nothing() -> None:
    async with opened() as http:
        identity = (await kept(http, metadata={"a": "b"}))["id"]
        for metadata in (*BAD_METADATA, {"a": 1}, "x", ["a"]):
            answer = await http.post(f"{CHAT}/{identity}", json={"metadata": metadata})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"].startswith("metadata")
            sent = {**asking("mock/echo", False), "store": True, "metadata": metadata}
            refused = await http.post(CHAT, json=sent)
            assert (refused.status_code, refused.headers["x-request-id"][:4]) == (400, "req_")
        for body in (b"", b"{}", b'{"metadata": {}, "model": "x"}', b"[]", b"{"):
            assert (await http.post(f"{CHAT}/{identity}", content=body)).status_code == 400
        assert await listed(http) == [identity]
        assert (await http.get(f"{CHAT}/{identity}")).json()["metadata"] == {"a": "b"}


async def test_other_methods_are_refused() -> None:
    async with opened() as http:
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = await http.request(method, CHAT)
            assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
            assert answer.headers["allow"] == "GET, POST"
        assert (await http.put(f"{CHAT}/{UNKNOWN}")).status_code == 405


async def test_a_list_needs_a_key_where_calls_do() -> None:
    async with opened(KEYS) as http:
        assert (await http.get(CHAT)).status_code == 401
        assert (await http.get(CHAT, headers={"authorization": "Bearer x"})).status_code == 401
        assert (await http.get(CHAT, headers=MINE)).json()["data"] == []


async def test_a_completion_is_its_keys_own() -> None:
    async with opened(KEYS) as http:
        identity = (await kept(http, MINE))["id"]
        path, nowhere = f"{CHAT}/{identity}", f"{CHAT}/{UNKNOWN}"
        for method, below, body in (
            ("GET", "", None),
            ("POST", "", {"metadata": {"a": "b"}}),
            ("GET", "/messages", None),
            ("DELETE", "", None),
        ):
            answer = await http.request(method, path + below, json=body, headers=THEIRS)
            missing = await http.request(method, nowhere + below, json=body, headers=THEIRS)
            assert answer.status_code == 404
            assert answer.json() == missing.json(), "nobody learns that there is one"
        assert await listed(http, by=THEIRS) == []
        assert (await http.get(CHAT, params={"after": identity}, headers=THEIRS)).status_code == 400
        assert await listed(http, by=ADMIN) == await listed(http, by=MINE) == [identity]
        assert (await http.get(path, headers=ADMIN)).json() == (await http.get(path, headers=MINE)).json()
        assert (await http.delete(path, headers=ADMIN)).status_code == 200


# -- what is kept --------------------------------------------------------------------------------------------------


async def test_what_did_not_ask_for_it_is_not_kept() -> None:
    async with opened() as http:
        for store in ({}, {"store": False}, {"store": None}):
            assert (await http.post(CHAT, json={**asking("mock/echo", False), **store})).status_code == 200
        assert await listed(http) == []


async def test_a_call_that_fails_is_told_as_without_it_and_is_not_kept() -> None:
    async with opened() as http:
        for model in ("mock/error-429", "mock/error-500", "nobody/x", "mock/cut-2", "mock/lorem-8+cut-5"):
            for stream in (True, False):
                plain = await http.post(CHAT, json=asking(model, stream))
                answer = await http.post(CHAT, json={**asking(model, stream), "store": True})
                assert answer.status_code == plain.status_code
                assert set(plain.headers) <= set(answer.headers)
                if answer.status_code != 200:
                    assert answer.json()["error"] == plain.json()["error"]
        assert await listed(http) == []


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_an_answer_is_kept_under_the_id_that_its_client_saw_whatever_the_vendor_calls_it(stream: bool) -> None:
    async with vendor(plays_hello) as played:
        async with served(create_app(gateway(config_for(played.url)))) as url, client(url) as http:
            seen = []
            for _ in range(2):
                answer = await http.post(CHAT, json={**asking("v/m", stream), "store": True, "metadata": {"a": "b"}})
                told = chunks(answer.content) if stream else [answer.json()]
                assert b"id: " not in answer.content.replace(b'"id": ', b"")
                (identity,) = {each["id"] for each in told}
                assert identity == "chatcmpl-" + answer.headers["x-request-id"].removeprefix("req_")
                found = (await http.get(f"{CHAT}/{identity}")).json()
                assert {name: found[name] for name in ("id", "created", "model")} == {
                    name: told[0][name] for name in ("id", "created", "model")
                }
                assert found["choices"][0]["message"]["content"] == "Hello"
                assert found["usage"]["total_tokens"] > 0
                assert found["metadata"] == {"a": "b"}
                if not stream:
                    assert told[0].items() <= found.items()
                seen.append(identity)
            assert await listed(http) == seen
            plain = await http.post(CHAT, json=asking("v/m", stream=False))
            assert plain.json()["id"] == "chatcmpl-1"
        assert played.requests[0].json()["store"] is True


async def test_tool_calls_and_every_choice_are_kept() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    async with opened() as http:
        answer = await kept(http, model="mock/tools", tools=tools, temperature=0.5, user="u")
        found = (await http.get(f"{CHAT}/{answer['id']}")).json()
        assert found["choices"] == answer["choices"]
        assert found["choices"][0]["message"]["tool_calls"]
        assert (found["tools"], found["temperature"], found["seed"]) == (tools, 0.5, None)
        assert found["input_user"] == "u"
        (each,) = (await http.get(CHAT)).json()["data"]
        assert each.items() <= found.items()
        assert "tools" not in each, "a page of large requests would be larger than a client can want"


async def test_a_vendor_that_does_not_know_what_keeps_an_answer_is_not_said_to_lack_it() -> None:
    async with vendor(plays_hello) as played:
        config = config_for(played.url, more=", options: {drop: [store, metadata, seed]}")
        async with served(create_app(gateway(config))) as url, client(url) as http:
            keeping = {**asking("v/m", False), "store": True, "metadata": {"a": "b"}}
            answer = await http.post(CHAT, json={**keeping, "seed": 1})
            assert answer.headers["x-deltaway-dropped"] == "seed"
            assert {"store", "metadata"}.isdisjoint(played.requests[0].json())
            again = await http.post(CHAT, json=keeping)
            assert "x-deltaway-dropped" not in again.headers
            assert len(await listed(http, **bearing(a="b"))) == 2
            for store in (False, None):
                # the metadata were for the vendor
                answer = await http.post(CHAT, json={**keeping, "store": store})
                assert answer.headers["x-deltaway-dropped"] == "metadata"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_the_end_of_an_answer_waits_until_it_is_kept(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, kept_now = asyncio.Event(), asyncio.Event()
    ended: list[bool] = []

    async def slow(*given: Any) -> None:
        begun.set()
        await kept_now.wait()
        await keep(*given)

    monkeypatch.setattr("router.conversations.completions.keep", slow)
    async with opened() as http:

        async def asked() -> bytes:
            answer = await http.post(CHAT, json={**asking("mock/echo", stream), "store": True})
            ended.append(True)
            return answer.content

        call = asyncio.ensure_future(asked())
        await begun.wait()
        # a request and its answer go by meanwhile
        assert await listed(http) == []
        assert not ended
        kept_now.set()
        data = await call
        told = chunks(data) if stream else [json.loads(data)]
        assert await listed(http) == [told[0]["id"]]


async def test_a_cached_answer_is_kept_under_an_id_of_its_own() -> None:
    async with vendor(plays_hello) as played:
        config = config_for(played.url, "[cache, usage]")
        async with served(create_app(gateway(config))) as url, client(url) as http:
            first = await http.post(CHAT, json=asking("v/m", stream=False))
            second = await http.post(CHAT, json={**asking("v/m", stream=False), "store": True})
            third = await http.post(CHAT, json={**asking("v/m", stream=True), "store": True})
            assert first.json()["id"] == "chatcmpl-1"
            assert len(played.requests) == 1
            assert await listed(http) == [second.json()["id"], chunks(third.content)[0]["id"]]


async def test_a_repeated_call_is_kept_once() -> None:
    async with opened() as http:
        headers = {"idempotency-key": "one"}
        first, second = await kept(http, headers), await kept(http, headers)
        assert first == second
        assert await listed(http) == [first["id"]]


async def test_an_answer_that_is_read_elsewhere_is_kept_too() -> None:
    async with opened() as http:
        sent = {**asking("mock/lorem-5", stream=False), "store": True}
        told = (await http.post(CHAT, json=sent, headers={"prefer": "respond-async"})).json()
        stream = (await http.get(told["url"])).content
        assert await listed(http) == [json.loads(stream.split(b"data: ")[1].split(b"\n")[0])["id"]]


async def test_a_client_that_leaves_leaves_nothing_kept_unless_it_is_to_be_finished() -> None:
    async with opened() as http:
        for policy in ("cancel", "finish"):
            sent = {**asking("mock/lorem-10+slow-10"), "store": True}
            headers = {"x-deltaway-on-disconnect": policy}
            async with http.stream("POST", CHAT, json=sent, headers=headers) as answer:
                await anext(answer.aiter_lines())
                number = answer.headers["x-request-id"]
            async with asyncio.timeout(5):
                while (await http.get(f"/v1/requests/{number}")).json().get("outcome") is None:
                    await asyncio.sleep(0.02)
        async with asyncio.timeout(5):
            while not (found := await listed(http)):
                await asyncio.sleep(0.02)
        assert found == ["chatcmpl-" + number.removeprefix("req_")]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_an_answer_is_given_while_the_store_is_away(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> None:
        raise StoreAway("it is away")

    monkeypatch.setattr("router.conversations.completions.keep", away)
    async with opened() as http:
        with capture_logs() as lines:
            answer = await http.post(CHAT, json={**asking("mock/echo", stream), "store": True})
        assert answer.status_code == 200
        assert (b"[DONE]" in answer.content) is stream
        told = [line for line in lines if line["event"] == "a completion cannot be kept while the store is away"]
        assert [line["request_id"] for line in told] == [answer.headers["x-request-id"]]


async def test_a_fault_in_keeping_costs_nobody_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise TypeError("a fault")

    monkeypatch.setattr("router.conversations.completions.keep", broken)
    async with opened() as http:
        with capture_logs() as lines:
            assert (await kept(http))["choices"]
        assert "a completion could not be kept by a fault of ours" in {line["event"] for line in lines}


async def test_a_store_that_is_away_is_said_by_every_route() -> None:
    made: list[Gateway] = []
    async with opened(see=made.append) as http:
        identity = (await kept(http))["id"]
        await made[0].backing.store.close()
        for method, path in (("GET", CHAT), ("GET", f"{CHAT}/{identity}"), ("DELETE", f"{CHAT}/{identity}")):
            answer = await http.request(method, path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_it_can_be_stopped_from_elsewhere_and_is_not_kept_then() -> None:
    async with opened() as http:
        sent = {**asking("mock/lorem-500+slow-20"), "store": True}
        async with http.stream("POST", CHAT, json=sent) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            stopped = await http.delete(f"/v1/streams/{answer.headers['x-deltaway-stream']}")
            rest = [line async for line in lines]
        assert stopped.status_code == 202
        assert '"code":"stopped"' in rest[-2]
        assert await listed(http) == []


async def test_the_routes_are_described() -> None:
    async with opened() as http:
        paths = (await http.get("/schema/openapi.json")).json()["paths"]
        assert set(paths[CHAT]) == {"get", "post"}
        assert {each["name"] for each in paths[CHAT]["get"]["parameters"]} == {
            *("after", "limit", "order", "model", "metadata[name]"),
        }
        assert set(paths[f"{CHAT}/{{completion}}"]) == {"get", "post", "delete"}
        assert set(paths[f"{CHAT}/{{completion}}/messages"]) == {"get"}


# -- reading -------------------------------------------------------------------------------------------------------


async def test_a_list_is_paged_both_ways_and_filtered() -> None:
    async with opened() as http:
        ids = []
        for number in range(5):
            metadata = {"parity": str(number % 2), "n": str(number), "a%]b": 'x"y\n'}
            ids.append((await kept(http, model=f"mock/{'echo' if number < 3 else 'lorem-2'}", metadata=metadata))["id"])
        assert await listed(http) == await listed(http, order="asc") == ids
        assert await listed(http, order="desc") == ids[::-1]
        page = (await http.get(CHAT, params={"limit": 2, "after": ids[0]})).json()
        assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[1], ids[2], True)
        page = (await http.get(CHAT, params={"limit": 2, "after": ids[2]})).json()
        assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[3:], False)
        assert await listed(http, order="desc", after=ids[2]) == ids[1::-1]
        assert await listed(http, model="mock/echo") == ids[:3]
        assert await listed(http, **bearing(parity="1")) == ids[1::2]
        assert await listed(http, **bearing(parity="1", n="3")) == [ids[3]]
        assert await listed(http, **bearing(**{"a%]b": 'x"y\n'}), model="mock/lorem-2") == ids[3:]
        assert await listed(http, **bearing(parity="")) == []
        await http.delete(f"{CHAT}/{ids[2]}")
        assert (await http.get(CHAT, params={"after": ids[2]})).json()["error"]["code"] == "unknown_cursor"
        assert await listed(http) == [*ids[:2], *ids[3:]]


async def test_metadata_is_replaced_as_a_whole() -> None:
    async with opened() as http:
        identity = (await kept(http, metadata={"a": "1", "b": "2"}))["id"]
        path = f"{CHAT}/{identity}"
        before = (await http.get(path)).json()
        changed = (await http.post(path, json={"metadata": {"b": "3"}})).json()
        assert changed == {**before, "metadata": {"b": "3"}} == (await http.get(path)).json()
        assert await listed(http, **bearing(b="3")) == [identity]
        assert (await http.post(path, json={"metadata": None})).json()["metadata"] == {}


async def test_a_deleted_completion_is_not_found() -> None:
    async with opened() as http:
        identity = (await kept(http))["id"]
        path = f"{CHAT}/{identity}"
        answer = await http.delete(path)
        assert answer.json() == {"object": "chat.completion.deleted", "id": identity, "deleted": True}
        for again in (await http.delete(path), await http.get(path), await http.get(f"{path}/messages")):
            assert again.status_code == 404


async def test_the_messages_of_a_completion_are_those_of_its_request() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture], "name": "x"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "a cat"},
        {"role": "user", "content": []},
    ]
    async with opened() as http:
        identity = (await kept(http, messages=messages))["id"]
        path = f"{CHAT}/{identity}/messages"
        page = (await http.get(path)).json()
        assert [each["id"] for each in page["data"]] == [f"{identity}-{number}" for number in range(5)]
        assert (page["first_id"], page["last_id"], page["has_more"]) == (f"{identity}-0", f"{identity}-4", False)
        first, second, third, _, empty = page["data"]
        assert (first["content"], first["content_parts"], first["name"]) == ("Be brief.", None, None)
        assert (second["content"], second["content_parts"], second["name"]) == (None, messages[1]["content"], "x")
        assert (third["content"], third["tool_calls"]) == (None, messages[2]["tool_calls"])
        assert (empty["content"], empty["content_parts"]) == (None, [])
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 3, "order": "desc"}
        while True:
            page = (await http.get(path, params=query)).json()
            seen += [each["id"] for each in page["data"]]
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
        assert seen == [f"{identity}-{number}" for number in (4, 3, 2, 1, 0)]
