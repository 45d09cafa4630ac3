"""Streams between processes: read, stopped and repeated at one gateway while another one writes them; and what is left
of them when their writer is told to stop."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from shows.processes import ADMIN_KEY, GatewayProcess, running

from support.serving import client
from support.stores import postgres_database, sqlite_url

Setup = Literal["two processes on SQLite", "two replicas on Redis"]
SETUPS = [
    pytest.param("two processes on SQLite", id="two-processes-on-sqlite"),
    pytest.param("two replicas on Redis", id="two-replicas-on-redis", marks=pytest.mark.needs("postgres", "redis")),
]
REDIS = "redis://127.0.0.1:6379/9"
ASYNC = {"prefer": "respond-async"}
SLOW = "mock/lorem-400+slow-20"


def config_for(store: str, shared: str, journal: Path) -> str:
    return f"""
store: {store}
shared: {shared}
ledger: {{journal: "{journal}"}}
server: {{shutdown: {{delay: 0s, grace: 1s}}}}
providers:
  mock: {{protocol: mock}}
plugins: [logging, auth, usage]
"""


@asynccontextmanager
async def both(setup: Setup, directory: Path) -> AsyncIterator[list[GatewayProcess]]:
    """Two gateways that share their streams: on one machine by its file, apart by Redis."""
    async with AsyncExitStack() as stack:
        if setup == "two processes on SQLite":
            store, shared = str(sqlite_url(directory)), "auto"
            journals = [directory / "journal", directory / "journal"]
        else:
            store, shared = str(await stack.enter_async_context(postgres_database())), REDIS
            journals = [directory / "journal-a", directory / "journal-b"]
        gateways = []
        for name, journal in zip("ab", journals, strict=True):
            place = directory / name
            gateways.append(
                await stack.enter_async_context(running(place, config_for(store, shared, journal), name=name))
            )
        yield gateways


def body(model: str, text: str = "Hi") -> dict[str, Any]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}


def blocks(data: bytes) -> list[str]:
    """The events, comments and the browser's waiting time left out."""
    text = data.decode()
    return [
        "\n".join(line for line in event.split("\n") if not line.startswith((":", "retry:")))
        for event in text.split("\n\n")[:-1]
    ]


async def outcome(http: httpx.AsyncClient, number: str) -> Any:
    async with asyncio.timeout(15):
        while True:
            receipt = (await http.get(f"/v1/requests/{number}")).json()
            if receipt.get("outcome") is not None:
                return receipt
            await asyncio.sleep(0.1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("setup", SETUPS)
async def test_what_one_gateway_writes_another_reads_stops_and_repeats(setup: Setup, tmp_path: Path) -> None:
    async with both(setup, tmp_path) as (a, b):
        async with client(a.url, ADMIN_KEY) as at_a, client(b.url, ADMIN_KEY) as at_b:
            # read along from the middle on, and again when it has ended
            sent = {"x-deltaway-resumable": "true"}
            whole = await at_a.post("/v1/chat/completions", json=body("mock/lorem-60+slow-10"), headers=sent)
            stream = whole.headers["x-deltaway-stream"]
            assert blocks((await at_b.get(f"/v1/streams/{stream}")).content) == blocks(whole.content)
            begun = (await at_a.post("/v1/chat/completions", json=body("mock/lorem-60+slow-10"), headers=ASYNC)).json()
            mine, theirs = await asyncio.gather(
                at_a.get(begun["url"]), at_b.get(begun["url"], headers={"authorization": ""})
            )
            assert blocks(mine.content) == blocks(theirs.content)
            assert mine.content.endswith(b"data: [DONE]\n\n")
            # stopped from the other one
            begun = (await at_a.post("/v1/chat/completions", json=body(SLOW), headers=ASYNC)).json()
            reading = asyncio.create_task(at_b.get(begun["url"]))
            await asyncio.sleep(0.3)
            assert (await at_b.delete(f"/v1/streams/{begun['id']}")).status_code == 202
            last = json.loads(blocks((await reading).content)[-1].partition("data: ")[2])
            assert last["error"]["code"] == "stopped"
            assert (await outcome(at_a, begun["request_id"]))["outcome"] == "stopped"
            # repeated at the other one while it runs, and afterwards
            key = {"idempotency-key": f"between processes {begun['id']}"}
            asked = body("mock/lorem-60+slow-10", "once")
            first = asyncio.create_task(at_a.post("/v1/chat/completions", json=asked, headers=key))
            await asyncio.sleep(0.2)
            second = await at_b.post("/v1/chat/completions", json=asked, headers=key)
            third = await at_b.post("/v1/chat/completions", json=asked, headers=key)
            assert (await first).content == second.content == third.content
            assert second.headers["idempotent-replayed"] == "true"
            await outcome(at_a, second.headers["x-request-id"])
            listed = (await at_a.get("/v1/requests", params={"limit": 100})).json()["data"]
            assert len({each["id"] for each in listed}) == len(listed) == 4


@pytest.mark.timeout(60)
async def test_a_gateway_that_stops_ends_what_nobody_is_connected_to_in_words(tmp_path: Path) -> None:
    async with running(tmp_path, config_for(str(sqlite_url(tmp_path)), "auto", tmp_path / "journal")) as gateway:
        async with client(gateway.url, ADMIN_KEY) as http:
            begun = (await http.post("/v1/chat/completions", json=body(SLOW), headers=ASYNC)).json()
            short = (await http.post("/v1/chat/completions", json=body("mock/lorem-20+slow-20"), headers=ASYNC)).json()
        await gateway.stop()
        await gateway.start()
        async with client(gateway.url, ADMIN_KEY) as http:
            last = json.loads(blocks((await http.get(begun["url"])).content)[-1].partition("data: ")[2])
            assert last["error"]["code"] == "shutting_down"
            assert (await outcome(http, begun["request_id"]))["outcome"] == "cut"
            assert (await http.get(short["url"])).content.endswith(b"data: [DONE]\n\n")
            assert (await outcome(http, short["request_id"]))["outcome"] == "finished"
