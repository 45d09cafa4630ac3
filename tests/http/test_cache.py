"""The cache over real sockets: what a client sees of it, what the ledger says, and when the vendor is left alone."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from state.backends import redis_server

from router.running import Running
from support.raw import Raw
from support.serving import application, asking, client, create_app, served
from support.serving import gateway as made
from support.vendor import Exchange, Vendor, completion, delta, plays_hello, sse, texts, usage_chunk, vendor

CHAT = "/v1/chat/completions"
HEADER = "x-deltaway-cache"
AUTH = "{auth: {admin_key: root, keys: [{key: key-a, name: a}, {key: key-b, name: b}]}}"
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def config(url: str, cache: str = "cache", *, auth: bool = False, more: str = "") -> str:
    plugins = ["logging", *([AUTH] if auth else []), cache, "usage"]
    return f"""
shared: memory
providers:
  v: {{protocol: openai, base_url: "{url}", api_key: sk-vendor-key}}
plugins: [{", ".join(plugins)}]
models:
  chat: {{targets: [v/m]}}
{more}
"""


@asynccontextmanager
async def gateway(
    script: Any = plays_hello, cache: str = "cache", key: str | None = None, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Vendor]]:
    async with vendor(script) as played:
        text = config(played.url, cache, auth=key is not None, **settings)
        async with served(application(text)) as url, client(url, key) as opened:
            yield opened, played


async def ask(opened: httpx.AsyncClient, *, control: str | None = None, key: str = "", **fields: Any) -> httpx.Response:
    headers = {"cache-control": control} if control else {}
    if key:
        headers["authorization"] = f"Bearer {key}"
    return await opened.post(CHAT, json=asking("chat", **fields), headers=headers)


async def receipt(opened: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = (await opened.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()
    return found


async def speaks_its_mind(exchange: Exchange) -> None:
    """All that a stream may hold: reasoning, logprobs, fields nobody knows, two choices."""
    chunks = [
        {**delta(reasoning_content="hm"), "system_fingerprint": "fp_1", "service_tier": "default"},
        delta("One", odd={"x": [1, None]}),
        {
            **delta("!"),
            "choices": [
                {
                    "index": 1,
                    "delta": {"content": "Two"},
                    "logprobs": {"content": [{"token": "Two", "logprob": -0.5}]},
                    "finish_reason": None,
                }
            ],
        },
        delta(finish="stop"),
        {**delta(), "choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]},
        usage_chunk(),
        "[DONE]",
    ]
    await exchange.head()
    await exchange.chunk(sse(*chunks))
    await exchange.end()


# -- a hit -------------------------------------------------------------------------------------------------------------


async def test_a_hit_is_the_first_answer_byte_for_byte() -> None:
    async with gateway(speaks_its_mind) as (opened, played):
        for usage in (True, False):
            more: dict[str, Any] = {"n": 2, "text": str(usage), "stream_options": {"include_usage": usage}}
            first, second = [await ask(opened, **more) for _ in range(2)]
            assert second.content == first.content
            assert first.content.endswith(b"data: [DONE]\n\n")
            assert b"logprob" in first.content
            assert (first.headers[HEADER], second.headers[HEADER]) == ("miss", "hit")
            assert first.headers["x-request-id"] != second.headers["x-request-id"]
            assert second.headers["x-deltaway-target"] == "v/m"
            assert second.headers["age"] == "0"
            assert "age" not in first.headers
        assert len(played.requests) == 2


async def test_a_whole_hit_is_the_first_answer_byte_for_byte() -> None:
    async with gateway() as (opened, played):
        first, second = [await ask(opened, stream=False) for _ in range(2)]
        assert second.content == first.content
        assert second.json()["choices"][0]["message"]["content"] == "Hello"
        assert len(played.requests) == 1


async def test_a_streamed_answer_serves_who_wants_it_whole_and_the_other_way() -> None:
    async with gateway() as (opened, played):
        await ask(opened, text="a")
        whole = await ask(opened, text="a", stream=False)
        assert whole.headers[HEADER] == "hit"
        assert whole.json()["choices"][0]["message"]["content"] == "Hello"
        await ask(opened, text="b", stream=False)
        streamed = await ask(opened, text="b", stream_options={"include_usage": True})
        assert streamed.headers[HEADER] == "hit"
        assert "".join(texts(streamed.content)) == "Hello"
        assert streamed.content.endswith(b"data: [DONE]\n\n")
        assert re.search(rb'"usage":\{"prompt_tokens":9', streamed.content)
        assert len(played.requests) == 2


async def test_a_hits_row_is_cached_and_costs_nothing() -> None:
    async with gateway() as (opened, _):
        first, second = [await ask(opened, user="u-1") for _ in range(2)]
        original, row = await receipt(opened, first), await receipt(opened, second)
        assert original["outcome"] == "finished"
        assert row["outcome"] == "cached"
        assert (row["attempts"], row["cost"], row["usage"], row["target"]) == ([], None, None, None)
        assert row["user"] == "u-1"
        assert row["decision"]["cache"] == {
            "how": "hit",
            "age": 0,
            "target": "v/m",
            "of": first.headers["x-request-id"],
        }
        listed = (await opened.get("/v1/requests?outcome=cached")).json()["data"]
        assert [each["id"] for each in listed] == [row["id"]]


async def test_the_key_order_of_the_body_is_no_matter() -> None:
    async with gateway() as (opened, played):
        await ask(opened, temperature=0.5)
        body = (
            b'{"temperature":0.5,"messages":[{"content":[{"text":"Hi","type":"text"}],"role":"user"}],"model":"chat"}'
        )
        answer = await opened.post(CHAT, content=body)
        assert answer.headers[HEADER] == "hit"
        assert len(played.requests) == 1


# -- whose, and what for -----------------------------------------------------------------------------------------------


async def test_a_key_never_gets_anothers_answer() -> None:
    async with gateway(key="key-a") as (opened, played):
        await ask(opened)
        other = await ask(opened, key="key-b")
        assert other.headers[HEADER] == "miss"
        assert (await ask(opened)).headers[HEADER] == "hit"
        assert len(played.requests) == 2


async def test_keys_share_where_that_is_configured() -> None:
    async with gateway(cache="{cache: {scope: shared}}", key="key-a") as (opened, played):
        first = await ask(opened)
        other = await ask(opened, key="key-b")
        assert other.headers[HEADER] == "hit"
        assert len(played.requests) == 1
        rows = await opened.get(
            f"/v1/requests/{other.headers['x-request-id']}", headers={"authorization": "Bearer key-b"}
        )
        assert first.headers["x-request-id"] not in rows.text


async def test_who_may_not_use_a_model_gets_no_answer_of_it() -> None:
    keys = "{auth: {keys: [{key: key-a, name: a}, {key: key-b, name: b, models: [other]}]}}"
    async with vendor(plays_hello) as played:
        text = config(played.url, "{cache: {scope: shared}}").replace("[logging, ", f"[logging, {keys}, ")
        async with served(application(text)) as url, client(url, "key-a") as opened:
            await ask(opened)
            assert (await ask(opened, key="key-b")).status_code == 403
            assert (await ask(opened, key="nobody")).status_code == 401


async def test_calls_with_tools_pass_by_unless_that_is_configured() -> None:
    async with gateway() as (opened, played):
        for _ in range(2):
            assert (await ask(opened, tools=TOOLS)).headers[HEADER] == "bypass"
        assert len(played.requests) == 2
    async with gateway(cache="{cache: {tools: true}}") as (opened, played):
        found = [(await ask(opened, tools=TOOLS)).headers[HEADER] for _ in range(2)]
        assert found == ["miss", "hit"]


async def test_tags_that_a_route_looks_at_are_part_of_the_question() -> None:
    routes = """
  sorted:
    targets:
      - {target: v/large, when: {tags: {task: hard}}}
      - v/small
"""
    async with gateway(more=routes) as (opened, played):
        found = []
        for tags in ("task=hard", "task=easy", "task=hard,run=1", "run=2,task=easy"):
            answer = await opened.post(CHAT, json=asking("sorted"), headers={"x-deltaway-tags": tags})
            found.append((answer.headers["x-deltaway-target"], answer.headers[HEADER]))
        assert found == [("v/large", "miss"), ("v/small", "miss"), ("v/large", "hit"), ("v/small", "hit")]
        assert len(played.requests) == 2


async def test_arms_of_an_experiment_have_answers_of_their_own() -> None:
    experiment = """
experiments:
  sizes:
    route: chat
    unit: user
    arms: {control: {share: 50}, larger: {share: 50, target: v/large}}
"""
    async with gateway(more=experiment) as (opened, played):
        seen: dict[str, set[str]] = {}
        hits = 0
        for number in range(12):
            answer = await ask(opened, user=f"u-{number}")
            arm = answer.headers["x-deltaway-experiment"]
            seen.setdefault(arm, set()).add(answer.headers["x-deltaway-target"])
            hits += answer.headers[HEADER] == "hit"
        assert seen == {"sizes=control": {"v/m"}, "sizes=larger": {"v/large"}}
        assert hits == 10
        assert len(played.requests) == 2


# -- cache-control -----------------------------------------------------------------------------------------------------


async def test_the_words_of_cache_control_are_respected() -> None:
    async with gateway() as (opened, played):
        none = await ask(opened, control="only-if-cached")
        assert none.status_code == 504
        assert none.json()["error"]["code"] == "not_cached"
        assert none.headers["x-should-retry"] == "false"
        row = await receipt(opened, none)
        assert (row["outcome"], row["attempts"]) == ("refused", [])
        found = [
            (await ask(opened, control=control)).headers[HEADER]
            for control in ("no-store", None, "no-cache", "no-store", "max-age=100", "only-if-cached", "max-age=0")
        ]
        assert found == ["bypass", "miss", "bypass", "bypass", "hit", "hit", "bypass"]
        assert len(played.requests) == 5


async def test_an_answer_is_forgotten_after_its_time() -> None:
    async with gateway(cache="{cache: {ttl: 1ms}}") as (opened, played):
        await ask(opened)
        await asyncio.sleep(0.005)
        assert (await ask(opened)).headers[HEADER] == "miss"
        assert len(played.requests) == 2


# -- removal -----------------------------------------------------------------------------------------------------------


async def test_a_key_removes_its_own_answers_and_an_admin_key_all() -> None:
    async with gateway(key="key-a") as (opened, _):
        for key in ("key-a", "key-b"):
            await ask(opened, key=key)
        assert (await opened.delete("/v1/cache")).json() == {"object": "cache.cleared", "entries": 1}
        assert (await ask(opened, key="key-b")).headers[HEADER] == "hit"
        assert (await ask(opened)).headers[HEADER] == "miss"
        every = await opened.delete("/v1/cache", headers={"authorization": "Bearer root"})
        assert every.json()["entries"] == 2
        assert (await opened.delete("/v1/cache", headers={"authorization": "Bearer no"})).status_code == 401
        assert (await opened.delete("/v1/cache?all=true")).status_code == 400


async def test_a_cache_that_cannot_be_emptied_says_so(tmp_path: Path) -> None:
    async with vendor(plays_hello) as played:
        text = config(played.url).replace("shared: memory", "shared: auto")
        (tmp_path / "deltaway.journal" / "cache.db").mkdir(parents=True)
        async with served(application(text)) as url, client(url) as opened:
            for _ in range(2):
                answer = await ask(opened)
                assert (answer.status_code, answer.headers[HEADER]) == (200, "miss")
            cleared = await opened.delete("/v1/cache")
            assert cleared.status_code == 503
            assert "still there" in cleared.json()["error"]["message"]


@pytest.mark.needs("redis")
async def test_replicas_have_each_others_answers(tmp_path: Path) -> None:
    async with vendor(plays_hello) as played, redis_server(tmp_path / "redis") as redis:
        text = config(played.url).replace("shared: memory", f"shared: {redis.url}")
        places = [text + f"ledger: {{journal: {tmp_path / name}}}\n" for name in ("one", "other")]
        async with served(application(places[0])) as url, client(url) as opened:
            await ask(opened)
        # its file differs, and so its configuration: it asks for itself
        async with served(application(places[1])) as url, client(url) as opened:
            assert (await ask(opened)).headers[HEADER] == "miss"
        async with served(application(places[0])) as url, client(url) as opened:
            assert (await ask(opened)).headers[HEADER] == "hit"
            assert (await opened.delete("/v1/cache")).json()["entries"] == 2
            redis.kill()
            assert (await ask(opened)).status_code == 200
        assert len(played.requests) == 3


async def test_another_process_of_the_machine_has_the_answers_too() -> None:
    async with vendor(plays_hello) as played:
        text = config(played.url).replace("shared: memory", "shared: auto")
        async with served(application(text)) as url, client(url) as opened:
            await ask(opened)
        async with served(application(text)) as url, client(url) as opened:
            assert (await ask(opened)).headers[HEADER] == "hit"
        assert len(played.requests) == 1


# -- one flight --------------------------------------------------------------------------------------------------------


class Paced:
    """A vendor that writes a delta whenever it is let, and then the end."""

    def __init__(self) -> None:
        self.more = asyncio.Semaphore(0)
        self.fails = False

    async def __call__(self, exchange: Exchange) -> None:
        if not exchange.request.json().get("stream"):
            await self.more.acquire()
            await exchange.whole(200, completion("Hello"))
            return
        await exchange.head()
        for number in range(4):
            await self.more.acquire()
            if self.fails and number == 2:
                exchange.reset()
                return
            await exchange.chunk(sse(delta(f"w{number}")))
        await exchange.chunk(sse(delta(finish="stop"), usage_chunk(), "[DONE]"))
        await exchange.end()

    def let(self, times: int) -> None:
        for _ in range(times):
            self.more.release()


class Flying(NamedTuple):
    url: str
    opened: httpx.AsyncClient
    played: Vendor
    running: Running

    def held(self) -> list[int]:
        """Of each call that others follow, how many do."""
        return [trip.holders for trip in self.running.trips() if trip.holders]

    async def reader(self) -> Raw:
        raw = await Raw.post(self.url, asking("chat"))
        await raw.head()
        await seen(raw, "w0")
        return raw

    async def outcomes(self) -> list[str]:
        rows = (await self.opened.get("/v1/requests?limit=100")).json()["data"]
        return sorted(row["outcome"] for row in rows)


@asynccontextmanager
async def flying(script: Any, **settings: Any) -> AsyncIterator[Flying]:
    async with vendor(script) as played:
        running = made(config(played.url, **settings))
        async with served(create_app(running)) as url, client(url, "key-a") as opened:
            yield Flying(url, opened, played, running.running)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def seen(raw: Raw, word: str) -> bytes:
    """What comes up to this word."""
    data = b""
    async with asyncio.timeout(10):
        while word.encode() not in data:
            data += await raw.chunk()
    return data


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_fifty_identical_calls_at_once_are_one_call_to_the_vendor(stream: bool) -> None:
    paced = Paced()
    async with flying(paced) as house:
        calls = [asyncio.ensure_future(ask(house.opened, stream=stream)) for _ in range(50)]
        await until(lambda: house.held() == [49])
        paced.let(4)
        answers = await asyncio.gather(*calls)
        assert len({answer.content for answer in answers}) == 1
        assert sorted(answer.headers[HEADER] for answer in answers) == ["miss", *["shared"] * 49]
        assert len(house.played.requests) == 1
        assert await house.outcomes() == ["cached"] * 49 + ["finished"]


async def test_the_vendor_goes_on_for_followers_when_the_leader_has_left() -> None:
    paced = Paced()
    async with flying(paced) as house:
        paced.let(1)
        leader, follower = await house.reader(), await house.reader()
        leader.leave()
        await until(lambda: any(trip.deserted is not None for trip in house.running.trips()))
        paced.let(3)
        data = await seen(follower, "[DONE]")
        assert [word in data for word in (b"w1", b"w2", b"w3")] == [True] * 3
        assert follower.headers[HEADER] == "shared"
        assert house.played.abandoned == 0
        await until(lambda: not house.running.trips())
        assert await house.outcomes() == ["cached", "finished"]
        assert (await ask(house.opened)).headers[HEADER] == "hit"


@pytest.mark.parametrize("first", ["leader", "follower"])
async def test_the_vendors_connection_is_closed_when_all_have_left(first: str) -> None:
    paced = Paced()
    async with flying(paced) as house:
        paced.let(1)
        leader, follower = await house.reader(), await house.reader()
        assert house.held() == [1]
        if first == "leader":
            leader.leave()
            await until(lambda: any(trip.deserted is not None for trip in house.running.trips()))
            assert house.played.busy == 1
            follower.leave()
        else:
            follower.leave()
            await until(lambda: house.held() == [])
            assert house.played.busy == 1
            leader.leave()
        await house.played.settled()
        assert house.played.abandoned == 1
        await until(lambda: not house.running.trips())
        assert await house.outcomes() == ["client_gone", "client_gone"]
        # nothing of it is kept
        paced.let(4)
        assert (await ask(house.opened)).headers[HEADER] == "miss"


async def test_a_vendors_failure_in_the_middle_is_everybodys() -> None:
    paced = Paced()
    paced.fails = True
    async with flying(paced) as house:
        calls = [asyncio.ensure_future(ask(house.opened)) for _ in range(5)]
        await until(lambda: house.held() == [4])
        paced.let(3)
        for answer in await asyncio.gather(*calls):
            assert b'"error"' in answer.content
            assert b"[DONE]" not in answer.content
        assert len(house.played.requests) == 1
        rows = (await house.opened.get("/v1/requests")).json()["data"]
        assert [row["outcome"] for row in rows] == ["cut"] * 5
        assert sum(bool(row["attempts"]) for row in rows) == 1
        paced.fails = False
        paced.let(4)
        assert (await ask(house.opened)).headers[HEADER] == "miss"


async def test_a_refusal_is_everybodys() -> None:
    waiting = asyncio.Event()

    async def refuses(exchange: Exchange) -> None:
        await waiting.wait()
        await exchange.whole(400, b'{"error": {"message": "no such thing", "code": "bad"}}')

    async with flying(refuses) as house:
        calls = [asyncio.ensure_future(ask(house.opened)) for _ in range(5)]
        await until(lambda: house.held() == [4])
        waiting.set()
        answers = await asyncio.gather(*calls)
        assert [answer.status_code for answer in answers] == [400] * 5
        assert len({answer.content for answer in answers}) == 1
        assert len(house.played.requests) == 1


async def test_a_key_never_follows_another() -> None:
    paced = Paced()
    async with flying(paced, auth=True) as house:
        keys = ("key-a", "key-b", "key-a", "key-b")
        calls = [asyncio.ensure_future(ask(house.opened, key=key)) for key in keys]
        await until(lambda: house.held() == [1, 1])
        paced.let(8)
        await asyncio.gather(*calls)
        assert len(house.played.requests) == 2


async def test_a_stream_to_come_back_to_is_a_hit_too() -> None:
    paced = Paced()
    async with flying(paced) as house:
        paced.let(4)
        first = await ask(house.opened)
        body = asking("chat")
        again = await house.opened.post(CHAT, json=body, headers={"x-deltaway-resumable": "true"})
        assert again.headers[HEADER] == "hit"
        assert re.sub(rb"(?m)^id: .*\n", b"", again.content) == first.content
        replayed = await house.opened.get(f"/v1/streams/{again.headers['x-deltaway-stream']}")
        assert replayed.content == again.content


# -- a configuration that changes --------------------------------------------------------------------------------------


async def test_a_setting_that_does_not_fit_is_told_at_the_start() -> None:
    for settings, words in (("ttl: 0s", "more than 0s"), ("scope: all", "scope"), ("max_entry: 1GiB", "max_size")):
        with pytest.raises(Exception, match=words):
            application(config("http://127.0.0.1:9/v1", f"{{cache: {{{settings}}}}}"))
    with pytest.raises(Exception, match="must be outside of `cache`"):
        application("providers: {mock: {protocol: mock}}\nplugins: [cache, logging]\n")


async def test_a_reload_asks_anew_and_takes_up_other_settings(tmp_path: Path) -> None:
    async with vendor(plays_hello) as played:
        text = config(played.url)
        running = made(text)
        async with served(create_app(running)) as url, client(url) as opened:
            await ask(opened)
            assert (await ask(opened, tools=TOOLS)).headers[HEADER] == "bypass"
            changed = text.replace(", cache,", ", {cache: {tools: true}},")
            (tmp_path / "providers.yaml").write_text(changed)
            assert (await running.reloader.reload())[0]
            assert (await ask(opened)).headers[HEADER] == "miss"
            assert (await ask(opened)).headers[HEADER] == "hit"
            assert (await ask(opened, tools=TOOLS)).headers[HEADER] == "miss"
