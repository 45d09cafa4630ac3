"""Chat calls that are turns of a kept conversation: what the vendor is sent, and what is there afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.app import Gateway
from support.raw import Raw
from support.serving import asking, client, config_for, create_app, gateway, served
from support.stores import BACKENDS, Backend, store_url
from support.vendor import Exchange, Script, Vendor, completion, delta, plays_hello, sse, usage_chunk, vendor

ALL = "/v1/conversations"
CHAT = "/v1/chat/completions"
UNKNOWN = "conv_01M82V4AKSHHVQGQTBC4SRCZVA"
KEYS = "[{auth: {keys: [{key: key-of-a, name: a}, {key: key-of-b, name: b}]}}, usage]"
MINE, THEIRS = ({"authorization": f"Bearer {key}"} for key in ("key-of-a", "key-of-b"))


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=BACKENDS)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The line of a configuration that names an empty store."""
    backend: Backend = request.param
    async with store_url(backend, tmp_path, migrated=True) as url:
        yield f"store: {url}\n"


class Opened:
    """A gateway with a scripted vendor behind it."""

    def __init__(self, http: httpx.AsyncClient, played: Vendor, url: str) -> None:
        self.http = http
        self.played = played
        self.url = url

    def sent(self, number: int = -1) -> list[Any]:
        """The messages that the vendor was sent."""
        return list(self.played.requests[number].json()["messages"])

    async def made(self, **body: Any) -> str:
        answer = await self.http.post(ALL, json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def says(
        self, conversation: str, /, *said: str | dict[str, Any], by: Any = None, **more: Any
    ) -> httpx.Response:
        messages = [{"role": "user", "content": each} if isinstance(each, str) else each for each in said]
        body = {"model": "v/m", "stream": False, "messages": messages, **more}
        return await self.http.post(CHAT, json=body, headers={"x-deltaway-conversation": conversation, **(by or {})})

    async def items(self, conversation: str) -> list[Any]:
        answer = await self.http.get(f"{ALL}/{conversation}/items", params={"order": "asc", "limit": 100})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    async def told(self, conversation: str) -> list[tuple[str, str, str]]:
        """Role, text and status of each item, all of them words."""
        return [(each["role"], text_of(each), each["status"]) for each in await self.items(conversation)]

    async def turns(self, conversation: str) -> list[Any]:
        """What was sent with each call, the newest first."""
        lines = (await self.http.get(f"{ALL}/{conversation}/export")).text.splitlines()
        return [turn for turn in map(json.loads, lines) if turn.get("object") == "conversation.turn"]

    async def until(self, conversation: str, count: int, status: str = "in_progress") -> Any:
        """The newest item, once there are so many and it is so far."""
        async with asyncio.timeout(10):
            while True:
                found = await self.items(conversation)
                if len(found) >= count and found[-1]["status"] == status:
                    return found[-1]
                await asyncio.sleep(0.02)

    async def receipts(self, **query: Any) -> list[Any]:
        answer = await self.http.get("/v1/requests", params=query)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])


@asynccontextmanager
async def opened(
    script: Script = plays_hello,
    more: str = "",
    plugins: str = "[logging, usage]",
    see: Callable[[Gateway], None] = lambda made: None,
) -> AsyncIterator[Opened]:
    async with vendor(script) as played:
        made = gateway(config_for(played.url, plugins) + more)
        see(made)
        async with served(create_app(made)) as url, client(url) as http:
            yield Opened(http, played, url)


def text_of(item: Any) -> str:
    return "".join(part["text"] for part in item["content"])


def answers(*texts: str) -> Script:
    """A vendor that says these one after the other, each in a delta for every word."""
    left = list(texts)

    async def script(exchange: Exchange) -> None:
        said = left.pop(0)
        if not exchange.request.json().get("stream"):
            await exchange.whole(200, completion(said))
            return
        await exchange.head()
        words = said.split(" ")
        deltas = [delta(word if place == 0 else f" {word}") for place, word in enumerate(words)]
        await exchange.chunk(sse(*deltas, delta(finish="stop"), usage_chunk(), "[DONE]"))
        await exchange.end()

    return script


def plays(*scripts: Script) -> Script:
    """One after the other."""
    left = list(scripts)

    async def script(exchange: Exchange) -> None:
        await left.pop(0)(exchange)

    return script


def begins(go_on: asyncio.Event, *, end: Callable[[Exchange], Awaitable[None]] | None = None) -> Script:
    """Says `one two `, and the rest when told."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse(delta("one "), delta("two ")))
        await go_on.wait()
        if end is not None:
            await end(exchange)
            return
        await exchange.chunk(sse(delta("three"), delta(finish="stop"), usage_chunk(), "[DONE]"))
        await exchange.end()

    return script


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def problem(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


# -- what is refused -----------------------------------------------------------------------------------------------


async def test_a_conversation_that_is_not_there_is_not_found() -> None:
    async with opened() as at:
        gone = await at.made()
        await at.http.delete(f"{ALL}/{gone}")
        told = set()
        for name in (UNKNOWN, gone, "conv_1", "conv_", "conv_☃"):
            answer = await at.http.post(CHAT, json=asking(), headers=[(b"x-deltaway-conversation", name.encode())])
            assert problem(answer)[:2] == (404, "conversation_not_found"), name
            told.add(answer.json()["error"]["message"])
            assert (await at.http.post(CHAT, json=asking(conversation=name))).status_code == 404
        assert len(told) == 1
        assert (await at.http.get(ALL)).json()["data"] == []
        assert at.played.requests == []


async def test_another_keys_conversation_is_not_found() -> None:
    async with opened(plugins=KEYS) as at:
        conversation = (await at.http.post(ALL, headers=MINE)).json()["id"]
        answers_of = [await at.says(name, "Hi", by=THEIRS) for name in (conversation, UNKNOWN)]
        assert [problem(each)[:2] for each in answers_of] == [(404, "conversation_not_found")] * 2
        assert len({each.json()["error"]["message"] for each in answers_of}) == 1
        assert (await at.http.get(f"{ALL}/{conversation}/items", headers=MINE)).json()["data"] == []
        assert (await at.says(conversation, "Hi", by=MINE)).status_code == 200


async def test_another_word_in_the_header_only_says_what_belongs_together() -> None:
    async with opened() as at:
        answer = await at.says("chat-17", "Hi")
        assert answer.status_code == 200
        assert "x-deltaway-stream" not in answer.headers
        assert at.sent() == [user("Hi")]
        assert (await at.http.get(ALL)).json()["data"] == []


BAD_TURNS: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"conversation": 1}, "conversation"),
    ({"conversation": {}}, "conversation.id"),
    ({"conversation": {"id": UNKNOWN, "last": "x"}}, "conversation.last"),
    ({"conversation": UNKNOWN}, "conversation"),
    ({"conversation": {"id": "SAME", "parent": 1}}, "conversation.parent"),
    ({"conversation": {"id": "SAME", "parent": "msg_1"}}, "conversation.parent"),
    ({"conversation": {"id": "SAME", "parent": "a\0b"}}, "conversation.parent"),
]


async def test_a_turn_that_is_wrong_is_refused_and_leaves_nothing() -> None:
    async with opened() as at:
        conversation = await at.made()
        for more, param in BAD_TURNS:
            body = json.loads(json.dumps(more).replace("SAME", conversation))
            answer = await at.says(conversation, "Hi", **body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), body
        assert await at.items(conversation) == []
        assert await at.turns(conversation) == []
        assert at.played.requests == []


async def test_a_parent_must_be_the_last_item() -> None:
    async with opened(answers("one", "two")) as at:
        conversation, other = await at.made(), await at.made(items=[{"role": "user", "content": "x"}])
        await at.says(conversation, "Hi")
        first, last = [each["id"] for each in await at.items(conversation)]
        (foreign,) = [each["id"] for each in await at.items(other)]
        answer = await at.says(conversation, "So?", conversation={"id": conversation, "parent": first})
        assert problem(answer) == (409, "stale_parent", "conversation.parent")
        assert last in answer.json()["error"]["message"]
        answer = await at.says(conversation, "So?", conversation={"id": conversation, "parent": foreign})
        assert problem(answer) == (400, "item_not_found", "conversation.parent")
        assert len(await at.items(conversation)) == 2
        answer = await at.says(conversation, "So?", conversation={"id": conversation, "parent": last})
        assert answer.status_code == 200
        assert [text for _, text, _ in await at.told(conversation)] == ["Hi", "one", "So?", "two"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refused_call_leaves_nothing_behind(database: str, stream: bool) -> None:
    async def refuses(exchange: Exchange) -> None:
        await exchange.whole(429, b'{"error": {"message": "slow down"}}')

    async with opened(plays(refuses, answers("one")), database) as at:
        conversation = await at.made()
        assert (await at.says(conversation, "Hi", stream=stream)).status_code == 429
        assert (await at.says(conversation, "Hi", stream=stream, model="nobody/x")).status_code == 404
        assert (await at.says(conversation, "Hi", stream=stream, model="v/m", n=0)).status_code == 400
        assert await at.items(conversation) == []
        assert await at.turns(conversation) == []
        assert (await at.says(conversation, "Hi", stream=stream)).status_code == 200
        assert at.sent() == [user("Hi")]
        assert await at.told(conversation) == [("user", "Hi", "completed"), ("assistant", "one", "completed")]
        assert len(await at.turns(conversation)) == 1


# -- what is sent and saved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_sends_what_was_said_and_both_sides_are_saved(database: str, stream: bool) -> None:
    async with opened(answers("I am well", "Of course"), database) as at:
        conversation = await at.made(items=[{"role": "system", "content": "Be kind."}])
        answer = await at.says(conversation, "How are you?", stream=stream)
        assert (answer.status_code, answer.headers["x-deltaway-conversation"]) == (200, conversation)
        # by the body, without the header
        body = asking("v/m", stream, "Help me", conversation={"id": conversation})
        assert (await at.http.post(CHAT, json=body)).status_code == 200
        assert at.sent() == [
            {"role": "system", "content": "Be kind."},
            user("How are you?"),
            {"role": "assistant", "content": "I am well"},
            user("Help me"),
        ]
        assert "conversation" not in at.played.requests[-1].json()
        assert await at.told(conversation) == [
            ("system", "Be kind.", "completed"),
            ("user", "How are you?", "completed"),
            ("assistant", "I am well", "completed"),
            ("user", "Help me", "completed"),
            ("assistant", "Of course", "completed"),
        ]


async def test_the_same_instructions_are_not_saved_twice() -> None:
    def system(text: str) -> dict[str, Any]:
        return {"role": "system", "content": text}

    async with opened(answers("1", "2", "3")) as at:
        conversation = await at.made()
        await at.says(conversation, system("Be brief."), "a")
        await at.says(conversation, system("Be brief."), "b")
        assert [each["role"] for each in at.sent()] == ["system", "user", "assistant", "user"]
        await at.says(conversation, system("Be long."), "c")
        assert [each["content"] for each in at.sent()] == ["Be brief.", "a", "1", "b", "2", "Be long.", "c"]
        said = [text for _, text, _ in await at.told(conversation)]
        assert said == ["Be brief.", "a", "1", "b", "2", "Be long.", "c", "3"]


def tool_call(index: int, identity: str, name: str, arguments: str) -> dict[str, Any]:
    return {"index": index, "id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


async def uses_tools(exchange: Exchange) -> None:
    """Thinks, says so, and calls two tools."""
    if not exchange.request.json().get("stream"):
        calls = [tool_call(0, "c0", "rain", '{"in": "Oslo"}'), tool_call(1, "c1", "time", "{}")]
        body = json.loads(completion("Let me look."))
        calls = [{name: value for name, value in call.items() if name != "index"} for call in calls]
        body["choices"][0]["message"] |= {"tool_calls": calls, "reasoning_content": "Where is Oslo?"}
        body["choices"][0]["finish_reason"] = "tool_calls"
        await exchange.whole(200, json.dumps(body).encode())
        return
    await exchange.head()
    deltas = [
        delta(reasoning_content="Where is "),
        delta(reasoning_content="Oslo?"),
        delta("Let me "),
        delta("look."),
        delta(tool_calls=[tool_call(0, "c0", "rain", "")]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"in": '}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '"Oslo"}'}}]),
        delta(tool_calls=[tool_call(1, "c1", "time", "{}")]),
        delta(finish="tool_calls"),
    ]
    await exchange.chunk(sse(*deltas, usage_chunk(), "[DONE]"))
    await exchange.end()


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_and_reasoning_are_kept_and_sent_again(database: str, stream: bool) -> None:
    async with opened(plays(uses_tools, answers("It rains at noon."), answers("Bye")), database) as at:
        conversation = await at.made()
        tools = [{"type": "function", "function": {"name": name}} for name in ("rain", "time")]
        assert (await at.says(conversation, "Rain?", stream=stream, tools=tools)).status_code == 200
        results = [{"role": "tool", "tool_call_id": f"c{n}", "content": said} for n, said in enumerate(("rain", "12"))]
        assert (await at.says(conversation, *results, stream=stream, tools=tools)).status_code == 200
        await at.says(conversation, "Thanks", stream=stream)
        question, called, *sent = at.sent()
        assert question == user("Rain?")
        assert (called["role"], called["content"]) == ("assistant", "Let me look.")
        assert [(call["id"], call["function"]) for call in called["tool_calls"]] == [
            ("c0", {"name": "rain", "arguments": '{"in": "Oslo"}'}),
            ("c1", {"name": "time", "arguments": "{}"}),
        ]
        assert sent == [*results, {"role": "assistant", "content": "It rains at noon."}, user("Thanks")]
        items = await at.items(conversation)
        assert [each["id"].partition("_")[0] for each in items] == [
            "msg",
            "rs",
            "msg",
            "fc",
            "fc",
            "fco",
            "fco",
            "msg",
            "msg",
            "msg",
        ]
        assert items[1]["content"] == [{"type": "reasoning_text", "text": "Where is Oslo?"}]
        assert (items[3]["call_id"], items[3]["arguments"]) == ("c0", '{"in": "Oslo"}')
        assert [each["output"] for each in items[5:7]] == ["rain", "12"]


async def test_the_answers_cost_is_its_receipts(database: str, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("prices: [{list: v, models: [m], currency: USD, input: 1, output: 3}]\n")
    async with opened(uses_tools, database + "prices: {file: prices.yaml}\n") as at:
        conversation = await at.made()
        answer = await at.says(conversation, "Rain?", stream=True)
        receipt = (await at.http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()
        _, *written = await at.items(conversation)
        for item in written:
            turn = item["deltaway"]["turn"]
            assert (turn["cost"], turn["usage"]) == (receipt["cost"], receipt["usage"])
        assert receipt["cost"]["amount"] == "0.000015000"
        (turn,) = await at.turns(conversation)
        assert (turn["request_id"], turn["turn"]["cost"]) == (receipt["id"], receipt["cost"])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_repeated_call_adds_its_turn_once(stream: bool) -> None:
    async with opened(answers("one", "two")) as at:
        conversation = await at.made()
        key = {"idempotency-key": "k1"}
        first, second = await asyncio.gather(
            *(at.says(conversation, "Hi", stream=stream, by=key) for _ in range(2)),
        )
        third = await at.says(conversation, "Hi", stream=stream, by=key)
        assert first.content == second.content == third.content
        assert len(at.played.requests) == 1
        assert await at.told(conversation) == [("user", "Hi", "completed"), ("assistant", "one", "completed")]


# -- how answers end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_broken_vendor_leaves_an_incomplete_answer(stream: bool) -> None:
    async def breaks(exchange: Exchange) -> None:
        exchange.cut()

    go_on = asyncio.Event()
    go_on.set()

    async def dies(exchange: Exchange) -> None:
        if stream:
            await begins(go_on, end=breaks)(exchange)
        else:
            exchange.cut()

    async with opened(plays(dies, dies, dies, answers("better")), "models: {r: {targets: [v/m]}}\n") as at:
        conversation = await at.made()
        answer = await at.says(conversation, "Hi", stream=stream)
        if stream:
            assert '"error"' in answer.text
            assert await at.told(conversation) == [
                ("user", "Hi", "completed"),
                ("assistant", "one two ", "incomplete"),
            ]
            (item,) = [each for each in await at.items(conversation) if each["role"] == "assistant"]
            assert item["deltaway"]["turn"]["outcome"] == "cut"
            assert "stream" not in item["deltaway"]
        else:
            assert answer.status_code == 502
            assert await at.items(conversation) == []
        at.played.script = answers("better")
        await at.says(conversation, "again", stream=stream)
        sent = [each["content"] for each in at.sent()]
        assert sent == (["Hi", "one two ", "again"] if stream else ["again"])


@pytest.mark.parametrize("policy", ["cancel", "finish"])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_becomes_of_the_answer_when_its_client_leaves(policy: str, stream: bool) -> None:
    go_on, asked = asyncio.Event(), asyncio.Event()

    async def script(exchange: Exchange) -> None:
        asked.set()
        if stream:
            await begins(go_on)(exchange)
        else:
            await go_on.wait()
            await exchange.whole(200, completion("one two three"))

    async with opened(script) as at:
        conversation = await at.made()
        said = {"x_deltaway_conversation": conversation, "x_deltaway_on_disconnect": policy}
        raw = await Raw.post(at.url, asking("v/m", stream), **said)
        await asyncio.wait_for(asked.wait(), 10)
        if stream:
            assert await raw.head() == 200
            await at.until(conversation, 2)
        raw.leave()
        if policy == "finish":
            # as long as nobody could see it leave in the meantime
            await asyncio.sleep(0.1)
            go_on.set()
            item = await at.until(conversation, 2, "completed")
            assert text_of(item) == "one two three"
            assert at.played.abandoned == 0
        elif stream:
            assert text_of(await at.until(conversation, 2, "incomplete")) == "one two "
            await at.played.settled()
            assert at.played.abandoned == 1
        else:
            await at.played.settled()
            assert await at.told(conversation) == [("user", "Hi", "completed")], "it was asked, and not answered"
        # and others may have it
        go_on.set()
        at.played.script = answers("more")
        assert (await at.says(conversation, "and?")).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_conversation_deleted_under_a_call_ends_it_and_stays_deleted(database: str, stream: bool) -> None:
    go_on, asked = asyncio.Event(), asyncio.Event()

    async def script(exchange: Exchange) -> None:
        asked.set()
        if stream:
            await begins(go_on)(exchange)
        else:
            await go_on.wait()
            await exchange.whole(200, completion("one two three"))

    async with opened(script, database) as at:
        conversation = await at.made()
        asking_ = asyncio.create_task(at.says(conversation, "Hi", stream=stream))
        await asyncio.wait_for(asked.wait(), 10)
        if stream:
            await at.until(conversation, 2)
        assert (await at.http.delete(f"{ALL}/{conversation}")).status_code == 200
        async with asyncio.timeout(5):
            answer = await asking_
        error = json.loads(answer.text.strip().rpartition("data: ")[2])["error"]
        assert error["code"] == "conversation_deleted"
        assert answer.status_code == (200 if stream else 410)
        await at.played.settled()
        assert at.played.abandoned == 1
        assert (await at.http.get(f"{ALL}/{conversation}")).status_code == 404
        assert (await at.http.get(ALL)).json()["data"] == []
        assert (await at.http.get(f"{ALL}/search", params={"q": "one"})).json()["data"] == []
        assert [each["outcome"] for each in await at.receipts()] == ["stopped"]
        stream_id = answer.headers["x-deltaway-stream"]
        async with asyncio.timeout(5):
            while (await at.http.get(f"/v1/streams/{stream_id}")).status_code == 200:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_deleted_is_not_read_at_its_stream_either(stream: bool) -> None:
    async with opened() as at:
        for path in ("{conversation}", "{conversation}/items/{item}"):
            conversation = await at.made()
            answer = await at.says(conversation, "Hi", stream=stream, by={"idempotency-key": path})
            place = f"/v1/streams/{answer.headers['x-deltaway-stream']}"
            assert (await at.http.get(place)).status_code == 200
            item = (await at.items(conversation))[1]["id"]
            gone = await at.http.delete(f"{ALL}/{path.format(conversation=conversation, item=item)}")
            assert gone.status_code == 200
            async with asyncio.timeout(5):
                # its last blocks may be on their way to the log just then
                while (await at.http.get(place)).status_code == 200:
                    await asyncio.sleep(0.02)


async def test_an_older_item_may_be_deleted_while_an_answer_is_written() -> None:
    go_on = asyncio.Event()
    async with opened(begins(go_on)) as at:
        conversation = await at.made(items=[user("old")])
        asked = asyncio.create_task(at.says(conversation, "Hi", stream=True))
        item = await at.until(conversation, 3)
        assert problem(await at.http.delete(f"{ALL}/{conversation}/items/{item['id']}"))[0] == 409
        old = (await at.items(conversation))[0]["id"]
        assert (await at.http.delete(f"{ALL}/{conversation}/items/{old}")).status_code == 200
        go_on.set()
        assert (await asked).text.endswith("[DONE]\n\n")
        assert [text for _, text, _ in await at.told(conversation)] == ["Hi", "one two three"]


async def test_an_answer_that_is_stopped_stays_as_far_as_it_came() -> None:
    async with opened(plays(begins(asyncio.Event()), answers("more"))) as at:
        conversation = await at.made()
        asked = asyncio.create_task(at.says(conversation, "Hi", stream=True))
        item = await at.until(conversation, 2)
        assert (await at.http.delete(item["deltaway"]["stream"])).status_code == 202
        assert '"code":"stopped"' in (await asked).text
        assert [each[1:] for each in await at.told(conversation)] == [("Hi", "completed"), ("one two ", "incomplete")]
        await at.says(conversation, "and?")
        assert [each["content"] for each in at.sent()] == ["Hi", "one two ", "and?"]


async def test_an_answer_that_nobody_waits_for_is_kept() -> None:
    async with opened(answers("one two three")) as at:
        conversation = await at.made()
        answer = await at.says(conversation, "Hi", stream=True, by={"prefer": "respond-async"})
        assert answer.status_code == 202
        assert answer.headers["x-deltaway-conversation"] == conversation
        assert text_of(await at.until(conversation, 2, "completed")) == "one two three"
        assert "one" in (await at.http.get(answer.json()["url"])).text


async def test_without_the_store_a_turn_is_refused_and_one_that_runs_is_saved_later() -> None:
    go_on, seen = asyncio.Event(), list[Gateway]()
    async with opened(begins(go_on), see=seen.append) as at:
        conversation = await at.made()
        asked = asyncio.create_task(at.says(conversation, "Hi", stream=True))
        await at.until(conversation, 2)
        store = seen[0].backing.store
        # as a store that is not open says: its connections stay whose they are
        engines, store._engines = store._engines, None
        refused = await at.says(conversation, "and?")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        go_on.set()
        await at.played.settled()
        store._engines = engines
        assert (await asked).text.endswith("[DONE]\n\n")
        assert [each[1:] for each in await at.told(conversation)] == [
            ("Hi", "completed"),
            ("one two three", "completed"),
        ]


# -- one at a time -------------------------------------------------------------------------------------------------


async def test_two_calls_at_once_come_one_after_the_other(database: str) -> None:
    go_on = asyncio.Event()
    async with opened(plays(begins(go_on), answers("second")), database + "conversations: {busy: wait}\n") as at:
        conversation = await at.made()
        first = asyncio.create_task(at.says(conversation, "a", stream=True))
        await at.until(conversation, 2)
        second = asyncio.create_task(at.says(conversation, "b", stream=True))
        other = await at.made()
        at_once = await at.http.post(CHAT, json=asking("mock/echo"), headers={"x-deltaway-conversation": other})
        assert at_once.status_code == 200, "only the one conversation is busy"
        assert len(at.played.requests) == 1
        go_on.set()
        assert [each.status_code for each in await asyncio.gather(first, second)] == [200, 200]
        assert [text for _, text, _ in await at.told(conversation)] == ["a", "one two three", "b", "second"]
        assert [each["content"] for each in at.sent()] == ["a", "one two three", "b"]


async def test_one_that_waits_too_long_or_leaves_meanwhile_says_nothing() -> None:
    go_on = asyncio.Event()
    more = "conversations: {wait: 300ms}\n"
    async with opened(plays(begins(go_on), answers("after")), more) as at:
        conversation = await at.made()
        first = asyncio.create_task(at.says(conversation, "a", stream=True))
        await at.until(conversation, 2)
        impatient = await Raw.post(at.url, asking("v/m", text="b"), x_deltaway_conversation=conversation)
        await asyncio.sleep(0.1)
        impatient.leave()
        answer = await at.says(conversation, "c")
        assert problem(answer)[:2] == (409, "conversation_busy")
        go_on.set()
        await first
        assert (await at.says(conversation, "d")).status_code == 200
        assert [text for _, text, _ in await at.told(conversation)] == ["a", "one two three", "d", "after"]


async def test_a_second_call_is_refused_where_that_is_said() -> None:
    go_on = asyncio.Event()
    async with opened(begins(go_on), "conversations: {busy: refuse}\n") as at:
        conversation = await at.made()
        first = asyncio.create_task(at.says(conversation, "a", stream=True))
        await at.until(conversation, 2)
        answer = await at.says(conversation, "b")
        assert problem(answer)[:2] == (409, "conversation_busy")
        assert answer.headers["retry-after"] == "1"
        go_on.set()
        await first
        assert [text for _, text, _ in await at.told(conversation)] == ["a", "one two three"]


# -- a page, and what comes after it -------------------------------------------------------------------------------


async def test_a_page_and_the_stream_from_there_are_the_whole_answer_at_any_moment(database: str) -> None:
    words = [f"word{number} " for number in range(30)]

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for word in words:
            await exchange.chunk(sse(delta(word)))
            await asyncio.sleep(0.04)
        await exchange.chunk(sse(delta(finish="stop"), usage_chunk(), "[DONE]"))
        await exchange.end()

    async def rest(beside: Any) -> str:
        answer = await at.http.get(beside["stream"], params={"last_event_id": beside["last_event_id"]})
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
        return "".join(choice["delta"].get("content") or "" for line in lines for choice in json.loads(line)["choices"])

    async with opened(script, database) as at:
        conversation = await at.made()
        asked = asyncio.create_task(at.says(conversation, "Hi", stream=True))
        pages: dict[str, tuple[str, asyncio.Task[str]]] = {}
        while not asked.done():
            for item in (await at.items(conversation))[1:]:
                if item["status"] == "in_progress":
                    beside = item["deltaway"]
                    if beside["last_event_id"] not in pages:
                        pages[beside["last_event_id"]] = text_of(item), asyncio.create_task(rest(beside))
            await asyncio.sleep(0.05)
        assert len(pages) >= 2
        for shown, tail in pages.values():
            assert shown + await tail == "".join(words)
        assert text_of((await at.items(conversation))[-1]) == "".join(words)


# -- context that fits ---------------------------------------------------------------------------------------------


def long_past(turns: int) -> list[dict[str, Any]]:
    filler = "and so on, and on, and on, as long stories go " * 8
    said = [{"role": "system", "content": "Be brief."}]
    for number in range(turns):
        said += [user(f"question {number} {filler}"), {"role": "assistant", "content": f"answer {number} {filler}"}]
    return said


async def test_older_turns_are_left_out_and_it_is_said() -> None:
    async with opened(answers("short")) as at:
        past = long_past(8)
        conversation = await at.made(items=past, context={"strategy": "truncate", "window": 1500})
        answer = await at.says(conversation, "now", max_tokens=100)
        sent = at.sent()
        assert sent[0] == past[0]
        assert sent[1:-1] == past[-len(sent[1:-1]) :]
        left_out = len(past) - 1 - len(sent[1:-1])
        assert 0 < left_out < 15
        assert answer.headers["x-deltaway-context"] == f"truncated; left_out={left_out}"
        (turn,) = await at.turns(conversation)
        items = await at.items(conversation)
        assert (turn["strategy"], turn["left_out"], turn["summary"]) == ("truncate", left_out, None)
        assert turn["first"] == items[1 + left_out]["id"]
        assert len(items) == len(past) + 2, "all of it stays stored"


async def test_a_summary_is_sent_in_place_of_older_turns(database: str) -> None:
    async def script(exchange: Exchange) -> None:
        said = "They talked a lot." if exchange.request.json()["model"] == "small" else "short"
        await answers(said)(exchange)

    async with opened(script, database) as at:
        past = long_past(8)
        rules = {"strategy": "summarise", "window": 1500, "model": "v/small", "max_tokens": 100}
        conversation = await at.made(items=past, context=rules)
        answer = await at.says(conversation, "now", max_tokens=100, stream=True)
        assert answer.status_code == 200
        asked, called = [each.json() for each in at.played.requests]
        assert (asked["model"], called["model"]) == ("small", "m")
        sent = called["messages"]
        assert "They talked a lot." in sent[1]["content"]
        left_out = len(past) - 1 - len(sent[2:-1])
        assert answer.headers["x-deltaway-context"] == f"summarised; left_out={left_out}"
        (turn,) = await at.turns(conversation)
        assert (turn["strategy"], turn["left_out"], turn["summary"]) == ("summarise", left_out, "They talked a lot.")
        rows = {row["model"]: row for row in await at.receipts()}
        assert rows.keys() == {"v/m", "v/small"}
        assert rows["v/small"]["tags"] == {"deltaway.purpose": "summary"}
        assert rows["v/small"]["id"] != rows["v/m"]["id"] == turn["request_id"]
        assert rows["v/small"]["outcome"] == "finished"
        # it is kept, and sent again
        await at.says(conversation, "and now", max_tokens=100)
        assert [each.json()["model"] for each in at.played.requests] == ["small", "m", "m"]
        assert [text for _, text, _ in (await at.told(conversation))[-4:]] == ["now", "short", "and now", "short"]


# -- what no id is, and what was begun ---------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["id", "parent"])
async def test_an_id_with_what_cannot_be_printed_is_refused_before_the_store_is_asked(
    database: str, field: str
) -> None:
    async with opened(answers("one"), database) as at:
        said = {"id": await at.made(), field: "conv_\0"}
        answer = await at.http.post(CHAT, json={**asking("v/m", stream=False), "conversation": said})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


async def test_a_whole_answer_that_fails_at_its_end_keeps_its_question() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": None}
    broken = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})

    async def breaks(exchange: Exchange) -> None:
        await exchange.whole(200, broken.encode())

    async with opened(breaks) as at:
        conversation = await at.made()
        answer = await at.says(conversation, "Hi", stream=False)
        assert answer.status_code == 502
        told = [each[1:] for each in await at.told(conversation)]
        assert told == [("Hi", "completed"), ("Hello", "incomplete")]
