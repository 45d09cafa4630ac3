"""A browser's own EventSource reads answers through a proxy that cuts them, and misses nothing and sees nothing twice.

The page is of another origin than the gateway, and its script is a few lines: the reconnecting is the browser's. The
vendor is the mock, whose answers are known. `pytest -s` prints what was counted.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx
import pytest
from shows.processes import ADMIN_KEY, GatewayProcess, running

from providers.mock import _LOREM
from support.browser import Browser, browser
from support.proxy import Proxy, proxy, random_cuts
from support.stores import postgres_database

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(90)]

Setup: TypeAlias = Literal["one process", "two workers", "two replicas"]
SETUPS = [
    pytest.param("one process", id="one-process"),
    pytest.param("two workers", id="two-workers"),
    pytest.param("two replicas", id="two-replicas", marks=pytest.mark.needs("postgres", "redis")),
]
REDIS = "redis://127.0.0.1:6379/9"
DELTAS = 2000
ANSWER = " ".join(islice(cycle(_LOREM), DELTAS))
MODEL = f"mock/lorem-{DELTAS}+slow-4"
CUTS = 20
AUTHORIZED = {"authorization": f"Bearer {ADMIN_KEY}"}

EVENTS = """
const begun = await fetch(given.url + "/v1/chat/completions", {
  method: "POST",
  headers: {"content-type": "application/json", "authorization": "Bearer " + given.key, "prefer": "respond-async"},
  body: JSON.stringify({model: given.model, stream: true, messages: [{role: "user", content: "Go on"}]}),
});
const {id, url} = await begun.json();
const seen = {status: begun.status, place: begun.headers.get("location") === url, stream: id, ids: [], data: [],
              others: [], opened: 0};
await new Promise((ended) => {
  const source = new EventSource(given.url + url);
  source.onopen = () => { seen.opened += 1; };
  source.onmessage = (event) => { seen.ids.push(event.lastEventId); seen.data.push(event.data); };
  source.addEventListener("gap", (event) => seen.others.push(event.data));
  // the browser comes back by itself for as long as it is connecting; a 204 closes it
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) ended(); };
});
return seen;
"""

POSTED = """
const authorized = {"authorization": "Bearer " + given.key};
const seen = {ids: [], data: [], stream: null, opened: 0, broken: 0, others: []};
let rest = "";
async function read(answer) {
  seen.opened += 1;
  rest = "";
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\\n\\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\\n");
      const field = (name) => lines.find((line) => line.startsWith(name))?.slice(name.length);
      if (field("data: ") === undefined) continue;
      seen.ids.push(field("id: "));
      seen.data.push(field("data: "));
    }
  }
}
const posted = await fetch(given.url + "/v1/chat/completions", {
  method: "POST", credentials: "include",
  headers: {...authorized, "content-type": "application/json", "x-deltaway-resumable": "true"},
  body: JSON.stringify({model: given.model, stream: true, messages: [{role: "user", content: "Go on"}]}),
});
seen.status = posted.status;
seen.stream = posted.headers.get("x-deltaway-stream");
const address = given.url + "/v1/streams/" + seen.stream;
try { await read(posted); } catch { seen.broken += 1; }
while (seen.data.at(-1) !== "[DONE]") {
  const last = seen.ids.length ? {"last-event-id": seen.ids.at(-1)} : {};
  try {
    await read(await fetch(address, {credentials: "include", headers: {...authorized, ...last}}));
  } catch {
    seen.broken += 1;
  }
}
const over = await fetch(address, {credentials: "include", headers: {...authorized, "last-event-id": seen.ids.at(-1)}});
seen.over = over.status;
const unknown = await fetch(given.url + "/v1/streams/strm_01M82V4AKSHHVQGQTBC4SRCZVA", {headers: authorized});
seen.unknown = [unknown.status, (await unknown.json()).error.code, unknown.headers.get("x-request-id") !== null];
const keyless = await fetch(address);
seen.keyless = [keyless.status, (await keyless.json()).error.code];
const stopped = await fetch(address, {method: "DELETE", headers: authorized});
seen.stopped = [stopped.status, (await stopped.json()).outcome];
return seen;
"""

STRANGER = """
const asks = [
  () => fetch(given.url + "/v1/chat/completions", {method: "POST", headers: {"prefer": "respond-async"}, body: "{}"}),
  () => fetch(given.address),
  () => new Promise((opened, failed) => {
    const source = new EventSource(given.address);
    source.onopen = opened;
    source.onerror = () => { failed(source.readyState); source.close(); };
  }),
];
return Promise.all(asks.map((ask) => ask().then(() => "let in", (error) => `${error.name ?? error}`)));
"""


@dataclass
class Told:
    """What a page has seen of a stream."""

    stream: str
    numbers: list[int]
    text: str
    end: Any
    """`[DONE]`, or the error in the last event."""
    opened: int
    """Connections."""

    @classmethod
    def of(cls, seen: dict[str, Any]) -> "Told":
        assert not seen["others"], "nothing was evicted"
        stream, numbers = seen["stream"], []
        for each in seen["ids"]:
            name, _, number = each.rpartition("-")
            # the end of an interrupted stream says so in its id
            assert name.removesuffix("-end") == stream
            numbers.append(int(number))
        *data, last = seen["data"]
        chunks = [json.loads(each) for each in data]
        deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        return cls(stream, numbers, "".join(deltas), last if last == "[DONE]" else json.loads(last), seen["opened"])

    def check_whole(self) -> None:
        assert self.numbers == list(range(1, len(self.numbers) + 1)), "each event once, in order"
        assert self.text == ANSWER
        assert self.end == "[DONE]"


def config_for(pages: Browser, more: str = "") -> str:
    cors = f'{{allow_origins: ["{pages.origin}"], allow_credentials: true}}'
    return f"""
server: {{cors: {cors}, shutdown: {{delay: 0s, grace: 1s}}}}
providers:
  mock: {{protocol: mock}}
plugins: [logging, auth, usage]
streams: {{retry: 100ms, keep: 60s}}
{more}
"""


@asynccontextmanager
async def site(setup: Setup, directory: Path, pages: Browser) -> AsyncIterator[list[GatewayProcess]]:
    """Gateways that share their streams."""
    async with AsyncExitStack() as stack:
        gateways: list[GatewayProcess] = []
        if setup == "two replicas":
            store = await stack.enter_async_context(postgres_database())
            config = config_for(pages, f"store: {store}\nshared: {REDIS}")
            # each on a machine of its own, as far as they can tell
            gateways += [GatewayProcess(directory / name) for name in ("first", "second")]
        else:
            config = config_for(pages)
            gateways.append(GatewayProcess(directory / "gateway", workers=2 if setup == "two workers" else 1))
        for gateway in gateways:
            gateway.write({"providers.yaml": config})
            stack.push_async_callback(gateway.end)
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        yield gateways


async def forget(stream: str) -> None:
    """Remove what a stream has left in Redis."""
    from redis.asyncio import Redis

    async with Redis.from_url(REDIS) as redis:
        async for key in redis.scan_iter(f"*{stream}*"):
            await redis.delete(key)


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Browser]:
    async with browser(tmp_path) as opened:
        yield opened


# -- EventSource -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", SETUPS)
async def test_a_browser_reads_an_answer_whole_though_it_is_cut_twenty_times(
    setup: Setup, pages: Browser, tmp_path: Path
) -> None:
    async with site(setup, tmp_path, pages) as gateways:
        async with proxy([each.port for each in gateways], random_cuts(1, CUTS, 24_000)) as through:
            began = asyncio.get_running_loop().time()
            seen = await pages.show(EVENTS, url=through.url, key=ADMIN_KEY, model=MODEL)
            took = asyncio.get_running_loop().time() - began
    told = Told.of(seen)
    if setup == "two replicas":
        await forget(told.stream)
    assert (seen["status"], seen["place"]) == (202, True)
    assert (through.cuts, told.opened) == (CUTS, CUTS + 1)
    told.check_whole()
    if setup == "two replicas":
        assert min(through.served.values()) >= CUTS // 2, "each replica has served its half"
    print(f"\n{setup}: {len(told.numbers)} events in {took:.1f} s over {told.opened} connections")


async def test_a_browser_sees_an_answer_interrupted_whose_gateway_was_killed(pages: Browser, tmp_path: Path) -> None:
    async with running(tmp_path / "gateway", config_for(pages), keep_port=True) as gateway:
        async with proxy([gateway.port], random_cuts(2, CUTS, 12_000)) as through:
            shown = asyncio.create_task(pages.show(EVENTS, url=through.url, key=ADMIN_KEY, model=MODEL))
            await through.cut_times(10)
            port = gateway.port
            await gateway.kill()
            await gateway.start()
            assert gateway.port == port
            seen = await shown
        # what was logged before the kill is there for anybody
        told = Told.of(seen)
        async with httpx.AsyncClient(headers=AUTHORIZED, trust_env=False) as http:
            kept = await http.get(f"{gateway.url}/v1/streams/{told.stream}")
    check_interrupted(told)
    logged = [line[6:] for line in kept.text.splitlines() if line.startswith("data: ")]
    assert json.loads(logged[-1])["error"]["code"] == "interrupted"
    assert logged[:-1] == seen["data"][: len(logged) - 1]
    assert len(logged) > len(seen["data"]) // 2, "all but the last moments was logged"
    print(f"\n{len(told.numbers)} events over {told.opened} connections, {len(logged)} of them in the log")


async def test_a_browser_sees_an_answer_interrupted_whose_workers_were_killed(pages: Browser, tmp_path: Path) -> None:
    async with site("two workers", tmp_path, pages) as [gateway]:
        async with proxy([gateway.port], random_cuts(3, CUTS, 12_000)) as through:
            shown = asyncio.create_task(pages.show(EVENTS, url=through.url, key=ADMIN_KEY, model=MODEL))
            await through.cut_times(10)
            # one of them writes the answer, both serve it
            for worker in gateway.worker_pids():
                gateway.kill_worker(worker)
            killed = asyncio.get_running_loop().time()
            told = Told.of(await shown)
            print(f"\nseen {asyncio.get_running_loop().time() - killed:.1f} s after the kill")
    check_interrupted(told)


def check_interrupted(told: Told) -> None:
    """Nothing twice and nothing missing of what came before the end."""
    assert told.end["error"]["code"] == "interrupted"
    # the last event alone may bear a number that was seen: the log was a little behind those who read along
    assert told.numbers[:-1] == list(range(1, len(told.numbers)))
    assert told.text
    assert ANSWER.startswith(told.text)
    assert told.text != ANSWER


# -- fetch -------------------------------------------------------------------------------------------------------------


async def test_a_browser_posts_across_origins_and_comes_back_with_its_key(pages: Browser, tmp_path: Path) -> None:
    async with running(tmp_path / "gateway", config_for(pages)) as gateway:
        async with proxy([gateway.port], random_cuts(4, CUTS, 24_000)) as through:
            seen = await pages.show(POSTED, url=through.url, key=ADMIN_KEY, model=f"mock/lorem-{DELTAS}+slow-1")
    told = Told.of(seen)
    told.check_whole()
    assert (seen["status"], seen["over"]) == (200, 204)
    assert (through.cuts, seen["broken"], told.opened) == (CUTS, CUTS, CUTS + 1)
    assert seen["unknown"] == [404, "stream_not_found", True]
    assert seen["keyless"] == [401, "missing_api_key"]
    assert seen["stopped"] == [200, "finished"]
    check_preflights(through, pages.origin)


def check_preflights(through: Proxy, origin: str) -> None:
    """The browser asked first, for the call and for coming back. The answer for one method is good for the others."""
    asked = [head.decode().lower() for head in through.requests if head.startswith(b"OPTIONS")]
    assert all(f"origin: {origin}" in head for head in asked)
    for header in ("x-deltaway-resumable", "last-event-id", "authorization"):
        assert any(header in head.partition("access-control-request-headers:")[2] for head in asked), header


async def test_a_browser_keeps_a_page_of_an_origin_that_is_not_listed_out(pages: Browser, tmp_path: Path) -> None:
    async with browser(tmp_path) as strangers, running(tmp_path / "gateway", config_for(pages)) as gateway:
        async with httpx.AsyncClient(headers=AUTHORIZED, base_url=gateway.url, trust_env=False) as http:
            body = {"model": "mock/echo", "messages": [{"role": "user", "content": "Hi"}]}
            begun = await http.post("/v1/chat/completions", json=body, headers={"prefer": "respond-async"})
        address = gateway.url + begun.json()["url"]
        # an EventSource that was kept out does not try again
        assert await strangers.show(STRANGER, url=gateway.url, address=address) == ["TypeError", "TypeError", "2"]
        allowed = await pages.show("return (await fetch(given.address)).status", address=address)
    assert allowed == 200
