"""The Conversations API, seen by HTTP: bad input first, then conversations, items, answers, search, export, owners."""

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
from router.conversation import Conversation
from router.messages import User
from router.store import conversations as kept
from router.store.items import NewItem
from router.store.store import StoreAway
from router.store.turns import TurnPage
from support.serving import asking, client, config_for, create_app, gateway, served
from support.stores import BACKENDS, Backend, store_url
from support.vendor import Exchange, delta, plays_hello, sse, usage_chunk, vendor

ALL = "/v1/conversations"
CHAT = "/v1/chat/completions"
KEYS = "[{auth: {keys: [{key: key-of-a, name: a}, {key: key-of-b, name: b}], admin_key: the-admin-key}}, usage]"
MINE, THEIRS, ADMIN = ({"authorization": f"Bearer {key}"} for key in ("key-of-a", "key-of-b", "the-admin-key"))
UNKNOWN = "conv_01M82V4AKSHHVQGQTBC4SRCZVA"


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=BACKENDS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The line of a configuration that names an empty store."""
    backend: Backend = request.param
    async with store_url(backend, tmp_path, migrated=True) as url:
        yield f"store: {url}\n"


@asynccontextmanager
async def opened(
    plugins: str = "[logging, usage]",
    more: str = "",
    *,
    vendor_url: str = "http://127.0.0.1:9",
    row: str = "",
    see: Callable[[Gateway], None] = lambda made: None,
) -> AsyncIterator[httpx.AsyncClient]:
    made = gateway(config_for(vendor_url, plugins, more=row) + more)
    see(made)
    async with served(create_app(made)) as url, client(url) as http:
        yield http


def said(text: str, role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


async def made(http: httpx.AsyncClient, *texts: str, by: dict[str, str] | None = None, **more: Any) -> str:
    answer = await http.post(ALL, json={"items": [said(text) for text in texts], **more}, headers=by)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def items_of(http: httpx.AsyncClient, conversation: str, /, **query: Any) -> list[Any]:
    by = query.pop("by", None)
    answer = await http.get(f"{ALL}/{conversation}/items", params={"order": "asc", **query}, headers=by)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


async def texts_of(http: httpx.AsyncClient, conversation: str, /, **query: Any) -> list[str]:
    return [each["content"][0]["text"] for each in await items_of(http, conversation, **query)]


def problem(answer: httpx.Response) -> tuple[int, str, str | None]:
    assert answer.headers["x-request-id"].startswith("req_")
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


# -- bad input -----------------------------------------------------------------------------------------------------

OF_ONE: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("POST", "", {"metadata": {}}),
    ("DELETE", "", None),
    ("POST", "/fork", {}),
    ("GET", "/export", None),
    ("GET", "/items", None),
    ("POST", "/items", {"items": [said("x")]}),
    ("GET", "/items/msg_1", None),
    ("DELETE", "/items/msg_1", None),
]
"""Every route of one conversation."""


async def test_what_is_not_there_is_not_found_whatever_its_id_looks_like(database: str) -> None:
    async with opened(more=database) as http:
        deleted = await made(http, "x")
        assert (await http.delete(f"{ALL}/{deleted}")).status_code == 200
        told = set()
        for identity in (UNKNOWN, deleted, "conv_1", "CONV_01M82V4AKSHHVQGQTBC4SRCZVA", "☃", "%00", "a" * 300):
            for method, path, body in OF_ONE:
                answer = await http.request(method, f"{ALL}/{identity}{path}", json=body)
                assert problem(answer) == (404, "conversation_not_found", "conversation"), (method, identity, path)
                told.add(answer.json()["error"]["message"])
        assert len(told) == 1


async def test_another_keys_conversation_is_not_found_in_the_words_of_one_that_never_was() -> None:
    async with opened(KEYS) as http:
        conversation = await made(http, "x", by=MINE)
        for method, path, body in OF_ONE:
            answers = [
                await http.request(method, f"{ALL}/{identity}{path}", json=body, headers=THEIRS)
                for identity in (conversation, UNKNOWN)
            ]
            assert [problem(each)[0] for each in answers] == [404, 404]
            assert answers[0].json() == answers[1].json(), (method, path)
            assert (await http.request(method, f"{ALL}/{conversation}{path}", json=body)).status_code == 401
        assert await texts_of(http, conversation, by=MINE) == ["x"], "and nothing came of it"


BAD_PAGES = [
    ("limit=0", "limit"),
    ("limit=101", "limit"),
    ("limit=ten", "limit"),
    ("order=up", "order"),
    ("after=", "after"),
    ("after=%00", "after"),
    ("after=a&after=b", "after"),
    ("after=msg_1&before=msg_2", "before"),
    ("page=2", "page"),
]


async def test_a_page_is_refused_for_what_it_does_not_know(database: str) -> None:
    async with opened(more=database) as http:
        conversation = await made(http, "x")
        for path in (ALL, f"{ALL}/{conversation}/items"):
            for query, param in BAD_PAGES:
                answer = await http.get(f"{path}?{query}")
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), (path, query)


async def test_a_cursor_of_another_list_is_refused_and_named(database: str) -> None:
    async with opened(more=database) as http:
        here, there = await made(http, "a", "b"), await made(http, "c")
        foreign = (await items_of(http, there))[0]["id"]
        for name in ("after", "before"):
            for place in (foreign, here, "msg_1", "☃"):
                answer = await http.get(f"{ALL}/{here}/items", params={name: place})
                assert problem(answer) == (400, "unknown_cursor", name)
                assert f"`{place}`" in answer.json()["error"]["message"]
            for place in (foreign, UNKNOWN, "x"):
                assert problem(await http.get(ALL, params={name: place})) == (400, "unknown_cursor", name)
        deleted = (await items_of(http, here))[0]["id"]
        await http.delete(f"{ALL}/{here}/items/{deleted}")
        answer = await http.get(f"{ALL}/{here}/items", params={"after": deleted})
        assert problem(answer) == (400, "unknown_cursor", "after")


async def test_another_keys_conversation_is_no_place_in_a_list() -> None:
    async with opened(KEYS) as http:
        theirs = await made(http, by=THEIRS)
        answer = await http.get(ALL, params={"after": theirs}, headers=MINE)
        assert problem(answer) == (400, "unknown_cursor", "after")


async def test_an_item_of_another_conversation_is_not_found_here(database: str) -> None:
    async with opened(more=database) as http:
        here, there = await made(http, "a"), await made(http, "b")
        foreign = (await items_of(http, there))[0]["id"]
        for wrong in (foreign, "msg_1", "☃", "%00", "x" * 65):
            for method in ("GET", "DELETE"):
                answer = await http.request(method, f"{ALL}/{here}/items/{wrong}")
                assert problem(answer) == (404, "item_not_found", "item_id"), (method, wrong)
        for wrong in (foreign, "msg_1", "", "a\0b", "☃", "x" * 65):
            answer = await http.post(f"{ALL}/{here}/fork", json={"item": wrong})
            assert problem(answer) == (400, "item_not_found", "item"), wrong
            answer = await http.post(f"{ALL}/{here}/items", json={"items": [said("x")], "parent": wrong})
            assert problem(answer) == (400, "item_not_found", "parent"), wrong
        assert await texts_of(http, there) == ["b"]
        assert await texts_of(http, here) == ["a"]
        assert len((await http.get(ALL)).json()["data"]) == 2, "no fork was made"


async def test_a_parent_that_is_not_the_last_any_more_is_a_conflict_that_names_the_last(database: str) -> None:
    async with opened(more=database) as http:
        conversation = await made(http, "a", "b")
        first, last = [each["id"] for each in await items_of(http, conversation)]
        answer = await http.post(f"{ALL}/{conversation}/items", json={"items": [said("c")], "parent": first})
        assert problem(answer) == (409, "stale_parent", "parent")
        assert last in answer.json()["error"]["message"]
        assert await texts_of(http, conversation) == ["a", "b"]
        answer = await http.post(f"{ALL}/{conversation}/items", json={"items": [said("c")], "parent": last})
        assert answer.status_code == 200
        assert await texts_of(http, conversation) == ["a", "b", "c"]


BAD_BODIES: list[tuple[Any, str | None]] = [
    ([], None),
    ("x", None),
    ({"items": "x"}, "items"),
    ({"items": ["x"]}, "items[0]"),
    ({"items": [said("x"), {"role": "user"}]}, "items[1].content"),
    ({"items": [{**said("x"), "content": [{"type": "input_txt", "text": "x"}]}]}, "items[0].content[0].type"),
    ({"items": [said(str(number)) for number in range(21)]}, "items"),
    ({"itmes": []}, "itmes"),
    ({"items": [said("x")], "metadata": "x"}, "metadata"),
    ({"items": [said("x")], "metadata": {"a": 1}}, "metadata"),
    ({"items": [said("x")], "metadata": {"a": "x" * 513}}, "metadata.a"),
    ({"items": [said("x")], "metadata": {"a" * 65: "x"}}, "metadata"),
    ({"items": [said("x")], "metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"items": [said("x")], "context": {"strategy": "forget"}}, "context.strategy"),
    ({"items": [said("x")], "context": {"window": 1}}, "context.window"),
    ({"items": [said("x")], "context": {"budgt": 1}}, "context.budgt"),
]


async def test_a_conversation_is_not_made_from_what_is_wrong() -> None:
    async with opened() as http:
        for body, param in BAD_BODIES:
            answer = await http.post(ALL, json=body)
            assert answer.status_code == 400, body
            place = answer.json()["error"]["param"]
            assert place == param if param is None else place.startswith(param), (body, place)
        answer = await http.post(ALL, content=b"{", headers={"content-type": "application/json"})
        assert problem(answer) == (400, "invalid_json", None)
        deep = b'{"items": [' + b'{"extra":' * 2000 + b"1" + b"}" * 2000 + b"]}"
        assert (await http.post(ALL, content=deep)).status_code == 400
        assert (await http.get(ALL)).json()["data"] == []


async def test_items_are_added_all_or_none() -> None:
    async with opened() as http:
        conversation = await made(http, "a")
        path = f"{ALL}/{conversation}/items"
        for body, param in [
            ({}, "items"),
            ({"items": []}, "items"),
            ({"items": [said("b"), {"type": "mesage"}]}, "items[1].type"),
            ({"items": [said("b")] * 21}, "items"),
            ({"items": [said("b")], "parent": 1}, "parent"),
            ({"items": [said("b")], "metadata": {}}, "metadata"),
        ]:
            answer = await http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), body
        assert await texts_of(http, conversation) == ["a"]


async def test_a_body_over_the_limit_is_refused() -> None:
    text = config_for("http://127.0.0.1:9", server="{body_limit: 64KiB}")
    async with served(create_app(gateway(text))) as url, client(url) as http:
        assert (await http.post(ALL, json={"items": [said("x" * 70_000)]})).status_code == 413
        assert (await http.get(ALL)).json()["data"] == []


async def test_any_text_is_kept_as_it_was(database: str) -> None:
    odd = "\0 \x1f ☃ 𝄞 \u2028 ' \" \\ %s {}"
    long = " ".join(f"word{number}" for number in range(120_000))
    async with opened(more=database) as http:
        conversation = await made(http, odd, long, metadata={"a☃'": "☃'\\"})
        assert await texts_of(http, conversation) == [odd, long]
        assert (await http.get(f"{ALL}/{conversation}")).json()["metadata"] == {"a☃'": "☃'\\"}


async def test_a_store_that_is_away_is_said_by_every_route(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise StoreAway("it is away")

    seen: list[Gateway] = []
    async with opened(see=seen.append) as http:
        conversation = await made(http, "x")
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(seen[0].backing.store, "_opened", away)
            answers = [await http.get(ALL), await http.post(ALL, json={}), await http.get(f"{ALL}/search?q=x")]
            for method, path, body in OF_ONE:
                answers.append(await http.request(method, f"{ALL}/{conversation}{path}", json=body))
        for answer in answers:
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "5"), answer.url
        assert await texts_of(http, conversation) == ["x"], "and then it is back"


# -- conversations -------------------------------------------------------------------------------------------------


async def test_a_conversation_is_made_changed_and_deleted(database: str) -> None:
    async with opened(more=database) as http:
        answer = await http.post(ALL, json={"metadata": {"topic": "tea"}, "context": {"strategy": "truncate"}})
        first = answer.json()
        assert first["object"] == "conversation"
        assert (first["metadata"], first["context"]["strategy"]) == ({"topic": "tea"}, "truncate")
        path = f"{ALL}/{first['id']}"
        assert (await http.get(path)).json() == first
        changed = (await http.post(path, json={"metadata": {"topic": "rice"}})).json()
        assert (changed["metadata"], changed["context"]["strategy"]) == ({"topic": "rice"}, "truncate")
        changed = (await http.post(path, json={"context": None})).json()
        assert (changed["metadata"], changed["context"]) == ({"topic": "rice"}, None)
        assert (await http.post(path, json={"metadata": None})).json()["metadata"] == {}
        gone = await http.delete(path)
        assert gone.json() == {"id": first["id"], "object": "conversation.deleted", "deleted": True}
        assert (await http.get(path)).status_code == 404
        assert (await http.post(ALL)).status_code == 200, "without a body, as the library sends it"


async def test_conversations_are_listed_the_newest_first_and_paged_both_ways(database: str) -> None:
    async with opened(more=database) as http:
        ids = []
        for number in range(5):
            ids.append(await made(http, metadata={"n": str(number)}))
            # ids are by the millisecond
            await asyncio.sleep(0.002)
        new = ids[::-1]

        async def page(**query: Any) -> tuple[list[str], bool]:
            body = (await http.get(ALL, params=query)).json()
            found = [each["id"] for each in body["data"]]
            assert (body["first_id"], body["last_id"]) == ((found[0], found[-1]) if found else (None, None))
            return found, body["has_more"]

        assert await page() == (new, False)
        assert await page(limit=2) == (new[:2], True)
        assert await page(limit=2, after=new[1]) == (new[2:4], True)
        assert await page(limit=2, after=new[3]) == (new[4:], False)
        assert await page(limit=2, before=new[3]) == (new[1:3], True)
        assert await page(limit=2, before=new[1]) == (new[:1], False)
        assert await page(limit=2, before=new[0]) == ([], False)
        assert await page(order="asc", limit=3, after=ids[1]) == (ids[2:], False)


async def test_a_key_lists_its_own_and_an_admin_all() -> None:
    async with opened(KEYS) as http:
        mine, theirs = await made(http, "mine alone", by=MINE), await made(http, by=THEIRS)

        async def seen(by: dict[str, str]) -> set[str]:
            return {each["id"] for each in (await http.get(ALL, headers=by)).json()["data"]}

        assert (await seen(MINE), await seen(THEIRS), await seen(ADMIN)) == ({mine}, {theirs}, {mine, theirs})
        assert await texts_of(http, mine, by=ADMIN) == ["mine alone"]
        fork = (await http.post(f"{ALL}/{mine}/fork", json={}, headers=ADMIN)).json()["id"]
        assert await seen(MINE) == {mine, fork}, "it is whose the first one is"


async def test_a_fork_shares_the_past_and_nothing_else(database: str) -> None:
    async with opened(more=database) as http:
        first = await made(http, "a", "b", "c", context={"strategy": "truncate"})
        ids = [each["id"] for each in await items_of(http, first)]
        whole = (await http.post(f"{ALL}/{first}/fork")).json()
        assert (whole["forked_from"], whole["context"]["strategy"]) == (first, "truncate")
        body = {"item": ids[1], "metadata": {"try": "2"}}
        part = (await http.post(f"{ALL}/{first}/fork", json=body)).json()
        assert part["metadata"] == {"try": "2"}
        await http.post(f"{ALL}/{part['id']}/items", json={"items": [said("d")]})
        assert await texts_of(http, whole["id"]) == ["a", "b", "c"]
        assert await texts_of(http, part["id"]) == ["a", "b", "d"]
        assert [each["id"] for each in await items_of(http, part["id"])][:2] == ids[:2]
        assert (await http.delete(f"{ALL}/{first}")).status_code == 200
        assert await texts_of(http, whole["id"]) == ["a", "b", "c"]


# -- items ---------------------------------------------------------------------------------------------------------


async def test_items_are_paged_both_ways(database: str) -> None:
    async with opened(more=database) as http:
        conversation = await made(http, *"abcdefg")
        ids = dict(zip("abcdefg", [each["id"] for each in await items_of(http, conversation)], strict=True))

        async def page(**query: Any) -> tuple[str, bool]:
            body = (await http.get(f"{ALL}/{conversation}/items", params=query)).json()
            found = [each["id"] for each in body["data"]]
            assert (body["first_id"], body["last_id"]) == ((found[0], found[-1]) if found else (None, None))
            return "".join(each["content"][0]["text"] for each in body["data"]), body["has_more"]

        assert await page() == ("gfedcba", False)
        assert await page(limit=3) == ("gfe", True)
        assert await page(limit=3, after=ids["e"]) == ("dcb", True)
        assert await page(limit=3, after=ids["b"]) == ("a", False)
        assert await page(limit=2, before=ids["c"]) == ("ed", True)
        assert await page(limit=3, order="asc") == ("abc", True)
        assert await page(limit=4, order="asc", after=ids["c"]) == ("defg", False)
        assert await page(limit=2, order="asc", before=ids["c"]) == ("ab", False)
        assert await page(after=ids["a"]) == ("", False)
        assert await page(include="message.output_text.logprobs") == ("gfedcba", False)
        assert await page(**{"include[]": ["a", "b"]}) == ("gfedcba", False)


async def test_an_item_is_retrieved_and_deleted(database: str) -> None:
    async with opened(more=database) as http:
        conversation = await made(http, "a", "b")
        first, second = await items_of(http, conversation)
        path = f"{ALL}/{conversation}/items/{first['id']}"
        assert (await http.get(path, params={"include[]": "reasoning.encrypted_content"})).json() == first
        assert first["id"].startswith("msg_")
        assert first["deltaway"].keys() == {"created_at"}
        answer = await http.delete(path)
        assert (answer.json()["id"], answer.json()["object"]) == (conversation, "conversation")
        assert (await http.get(path)).status_code == 404
        assert (await http.delete(path)).status_code == 404
        assert await items_of(http, conversation) == [second]


async def test_items_of_all_kinds_are_added_and_read() -> None:
    added: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": "See"}, {"type": "input_image", "file_id": "f"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}], "encrypted_content": "…"},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": "found"},
        {"type": "custom_tool_call", "call_id": "d", "name": "paint", "input": "red"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "done"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "phase": "commentary"},
    ]
    async with opened() as http:
        conversation = await made(http)
        answer = await http.post(f"{ALL}/{conversation}/items?include=x", json={"items": added})
        body = answer.json()
        found = await items_of(http, conversation)
        assert body["data"] == found
        assert (body["first_id"], body["last_id"], body["has_more"]) == (found[0]["id"], found[-1]["id"], False)
        assert [each["id"].partition("_")[0] for each in found] == ["msg", "rs", "fc", "fco", "ctc", "fco", "msg"]
        for given, shown in zip(added, found, strict=True):
            assert {name: shown[name] for name in given if name != "content"} == {
                name: value for name, value in given.items() if name != "content"
            }
        assert {each["status"] for each in found} == {"completed"}
        again = await http.post(f"{ALL}/{conversation}/items", json={"items": found})
        assert again.status_code == 200, "what was read may be added"
        copies = again.json()["data"]
        assert not {each["id"] for each in copies} & {each["id"] for each in found}
        assert [{**each, "id": ""} for each in copies] == [
            {**each, "id": "", "deltaway": copy["deltaway"]} for each, copy in zip(found, copies, strict=True)
        ]


# -- answers -------------------------------------------------------------------------------------------------------


async def ask(http: httpx.AsyncClient, conversation: str, model: str = "mock/echo", **more: Any) -> httpx.Response:
    answer = await http.post(CHAT, json=asking(model, **more), headers={"x-deltaway-conversation": conversation})
    assert answer.status_code == 200, answer.text
    return answer


async def test_an_answer_has_what_it_used_beside_it(database: str, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("prices: [{list: v, models: [m], currency: USD, input: 1, output: 3}]\n")
    more = database + "prices: {file: prices.yaml}\n"
    async with vendor(plays_hello) as played, opened(more=more, vendor_url=played.url) as http:
        conversation = await made(http)
        answer = await ask(http, conversation, "v/m", stream=False)
        question, said_back = await items_of(http, conversation)
        number = answer.headers["x-request-id"].removeprefix("req_")
        assert question["deltaway"].keys() == {"created_at", "request_id"}
        assert said_back["id"] == f"msg_{number}00"
        beside = said_back["deltaway"]
        assert (beside["request_id"], "stream" in beside, "last_event_id" in beside) == (f"req_{number}", False, False)
        turn = beside["turn"]
        assert (turn["outcome"], turn["target"]) == ("finished", "v/m")
        assert (turn["usage"]["input"], turn["usage"]["output"], turn["usage"]["source"]) == (9, 2, "reported")
        assert turn["cost"] == {"amount": "0.000015000", "currency": "USD", "price": "v/m#own"}
        one = (await http.get(f"{ALL}/{conversation}/items/{said_back['id']}")).json()
        assert one == said_back


async def test_a_page_shows_an_answer_that_is_being_written_and_follows_it_from_there(database: str) -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse(*[delta(f"{number} ") for number in range(20)]))
        await go_on.wait()
        await exchange.chunk(sse(*[delta(f"{number} ") for number in range(20, 40)]))
        await exchange.chunk(sse(delta(finish="stop"), usage_chunk(), "[DONE]"))
        await exchange.end()

    async with vendor(script) as played, opened(more=database, vendor_url=played.url) as http:
        conversation = await made(http)
        asked = asyncio.create_task(ask(http, conversation, "v/m"))
        async with asyncio.timeout(10):
            while len(found := await items_of(http, conversation)) < 2:
                await asyncio.sleep(0.05)
        item = found[1]
        beside = item["deltaway"]
        assert item["status"] == "in_progress"
        stream = beside["stream"].removeprefix("/v1/streams/")
        assert beside["last_event_id"].startswith(f"{stream}-")
        refused = await http.delete(f"{ALL}/{conversation}/items/{item['id']}")
        assert problem(refused) == (409, "item_in_progress", "item_id")
        go_on.set()
        rest = await http.get(beside["stream"], headers={"last-event-id": beside["last_event_id"]})
        lines = [line.removeprefix("data: ") for line in rest.text.split("\n") if line.startswith("data: {")]
        tail = "".join(choice["delta"].get("content") or "" for line in lines for choice in json.loads(line)["choices"])
        assert item["content"][0]["text"] + tail == "".join(f"{number} " for number in range(40))
        await asked
        whole = (await items_of(http, conversation))[1]
        assert (whole["id"], whole["status"]) == (item["id"], "completed")
        assert whole["content"][0]["text"] == item["content"][0]["text"] + tail


async def test_the_log_of_an_answer_goes_with_its_item_and_its_conversation() -> None:
    async with opened() as http:
        for path in ("{conversation}", "{conversation}/items/{item}"):
            conversation = await made(http)
            headers = {"x-deltaway-conversation": conversation, "x-deltaway-resumable": "true"}
            answer = await http.post(CHAT, json=asking("mock/echo"), headers=headers)
            stream = f"/v1/streams/{answer.headers['x-deltaway-stream']}"
            assert (await http.get(stream)).status_code == 200
            item = (await items_of(http, conversation))[1]["id"]
            await http.delete(f"{ALL}/{path.format(conversation=conversation, item=item)}")
            async with asyncio.timeout(5):
                # its last blocks may be on their way to the log just then
                while (await http.get(stream)).status_code == 200:
                    await asyncio.sleep(0.02)
            assert problem(await http.get(stream))[:2] == (404, "stream_not_found")


async def test_a_conversation_that_is_deleted_stops_the_call_that_writes_in_it() -> None:
    async with opened() as http:
        conversation = await made(http)
        headers = {"x-deltaway-conversation": conversation}
        async with http.stream("POST", CHAT, json=asking("mock/lorem-1000+slow-20"), headers=headers) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert (await http.delete(f"{ALL}/{conversation}")).status_code == 200
            async with asyncio.timeout(10):
                rest = [line async for line in lines if line.startswith("data: ")]
        assert '"code":"conversation_deleted"' in rest[-1]
        assert (await http.get(f"{ALL}/{conversation}")).status_code == 404


# -- search and export ---------------------------------------------------------------------------------------------


async def found(http: httpx.AsyncClient, by: dict[str, str] | None = None, **query: Any) -> Any:
    answer = await http.get(f"{ALL}/search", params=query, headers=by)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_search_is_refused_for_what_it_does_not_know() -> None:
    async with opened() as http:
        conversation = await made(http, "x")
        other = await made(http, "y")
        item = (await items_of(http, other))[0]["id"]
        for query, wanted in [
            ("", (400, "missing_required_parameter", "q")),
            (f"q={'x' * 513}", (400, None, "q")),
            ("q=x&limit=0", (400, None, "limit")),
            ("q=x&before=y", (400, "unknown_parameter", "before")),
            ("q=x&after=y", (400, "unknown_cursor", "after")),
            (f"q=x&after={conversation}/{item}", (400, "unknown_cursor", "after")),
            (f"q=x&conversation={UNKNOWN}", (404, "conversation_not_found", "conversation")),
        ]:
            answer = await http.get(f"{ALL}/search?{query}")
            status, code, param = problem(answer)
            assert (status, param) == (wanted[0], wanted[2]), query
            assert wanted[1] in (None, code), query


async def test_what_was_said_is_found_in_pages_and_in_one_conversation(database: str) -> None:
    async with opened(more=database) as http:
        one, two = await made(http, "green tea", "black tea", "coffee"), await made(http, "white tea", "東京大学")
        page = await found(http, q="TEA", limit=2)
        assert (len(page["data"]), page["has_more"]) == (2, True)
        rest = await found(http, q="TEA", limit=2, after=page["next"])
        assert (len(rest["data"]), rest["has_more"], rest["next"]) == (1, False, None)
        hits = page["data"] + rest["data"]
        assert {each["item"]["content"][0]["text"] for each in hits} == {"green tea", "black tea", "white tea"}
        assert {each["snippet"] for each in hits} == {"green ‹tea›", "black ‹tea›", "white ‹tea›"}
        within = await found(http, q="tea", conversation=two)
        assert [(each["conversation"], each["item"]["content"][0]["text"]) for each in within["data"]] == [
            (two, "white tea")
        ]
        assert (await found(http, q="京大"))["data"][0]["conversation"] == two
        assert (await found(http, q="tea AND OR NOT * \" ' ("))["data"] == []
        await http.delete(f"{ALL}/{one}")
        assert [each["conversation"] for each in (await found(http, q="tea"))["data"]] == [two]


async def test_a_key_finds_what_it_said_alone() -> None:
    async with opened(KEYS) as http:
        mine, theirs = await made(http, "my secret", by=MINE), await made(http, "their secret", by=THEIRS)

        async def seen(by: dict[str, str], **query: Any) -> set[str]:
            return {each["conversation"] for each in (await found(http, by, q="secret", **query))["data"]}

        assert (await seen(MINE), await seen(THEIRS), await seen(ADMIN)) == ({mine}, {theirs}, {mine, theirs})
        answer = await http.get(f"{ALL}/search", params={"q": "secret", "conversation": theirs}, headers=MINE)
        assert problem(answer) == (404, "conversation_not_found", "conversation")


async def test_an_export_has_the_conversation_its_items_and_its_turns(database: str) -> None:
    async with opened(more=database) as http:
        conversation = await made(http, "a", metadata={"topic": "tea"})
        await ask(http, conversation, text="b")
        answer = await http.get(f"{ALL}/{conversation}/export")
        assert answer.headers["content-type"].startswith("application/jsonl")
        assert answer.headers["content-disposition"] == f'attachment; filename="{conversation}.jsonl"'
        first, *items, turn = [json.loads(line) for line in answer.text.splitlines()]
        assert first == (await http.get(f"{ALL}/{conversation}")).json()
        assert [each["content"][0]["text"] for each in items[:2]] == ["a", "b"]
        assert [each["id"] for each in items] == [each["id"] for each in await items_of(http, conversation)]
        assert (turn["object"], turn["request_id"]) == ("conversation.turn", items[-1]["deltaway"]["request_id"])
        assert (turn["strategy"], turn["turn"]["outcome"], turn["turn"]["target"]) == ("none", "finished", "mock/echo")
        again = await http.post(f"{ALL}", json={"items": items})
        assert await texts_of(http, again.json()["id"]) == await texts_of(http, conversation)
        assert (await http.get(f"{ALL}/{conversation}/export?format=csv")).status_code == 400


async def test_a_long_conversation_is_exported_to_its_end() -> None:
    now = 1_790_000_000_000
    seen: list[Gateway] = []
    async with opened(see=seen.append) as http:
        new = [NewItem(f"msg_{number}", User(f"{number}"), "openai", now) for number in range(1200)]
        conversation = Conversation(id=UNKNOWN, owner="", created_at=now, updated_at=now)
        await kept.create(seen[0].backing.store, conversation, new)
        _, *items = [json.loads(line) for line in (await http.get(f"{ALL}/{UNKNOWN}/export")).text.splitlines()]
        assert [each["id"] for each in items] == [each.id for each in new]


async def test_an_export_is_sent_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asyncio.Event()

    async def slowly(*_: Any, **__: Any) -> TurnPage:
        await seen.wait()
        return TurnPage((), False)

    monkeypatch.setattr("router.http.conversations.turns", slowly)
    async with opened() as http:
        conversation = await made(http, "a")
        async with http.stream("GET", f"{ALL}/{conversation}/export") as answer, asyncio.timeout(5):
            lines = answer.aiter_lines()
            assert json.loads(await anext(lines))["id"] == conversation
            assert json.loads(await anext(lines))["content"][0]["text"] == "a"
            seen.set()
            assert [line async for line in lines] == []


async def test_an_export_breaks_off_where_the_store_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> TurnPage:
        raise StoreAway("it is away")

    monkeypatch.setattr("router.http.conversations.turns", away)
    async with opened() as http:
        conversation = await made(http, "a")
        with capture_logs() as lines, pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"{ALL}/{conversation}/export")
        assert "conversations cannot be read or written" in {line["event"] for line in lines}


async def test_the_routes_are_described() -> None:
    async with opened() as http:
        paths = (await http.get("/schema/openapi.json")).json()["paths"]
    ours = {path: set(methods) for path, methods in paths.items() if path.startswith(ALL)}
    assert ours == {
        ALL: {"get", "post"},
        f"{ALL}/search": {"get"},
        f"{ALL}/{{conversation}}": {"get", "post", "delete"},
        f"{ALL}/{{conversation}}/fork": {"post"},
        f"{ALL}/{{conversation}}/export": {"get"},
        f"{ALL}/{{conversation}}/items": {"get", "post"},
        f"{ALL}/{{conversation}}/items/{{item_id}}": {"get", "delete"},
    }
    described = paths[f"{ALL}/{{conversation}}/items"]["get"]["parameters"]
    assert {each["name"] for each in described} == {"conversation", "limit", "after", "before", "order", "include"}
    for path, methods in paths.items():
        if path.startswith(ALL):
            assert all(method.get("summary") for method in methods.values()), path
