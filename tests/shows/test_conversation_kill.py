"""SIGKILL in the middle of a hundred streamed turns of conversations: what clients had read is there afterwards.

`pytest -s` shows how much of what was seen was saved.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from shows.processes import ADMIN_KEY, running

from support.serving import client
from support.stores import BACKENDS, Backend, store_url

CONVERSATIONS = 100
PACE_MS = 50
MODEL = f"mock/lorem-2000+slow-{PACE_MS}"
SECOND = 1.0
"""What came longer than this before the kill must have been saved."""


@dataclass
class Heard:
    """One client of one turn: the text with the time at which each piece came."""

    conversation: str
    pieces: list[tuple[float, str]] = field(default_factory=list)

    def text(self, until: float | None = None) -> str:
        return "".join(text for at, text in self.pieces if until is None or at <= until)


def config_for(url: str) -> str:
    return f"""
store: {url}
providers:
  mock: {{protocol: mock}}
plugins: [logging, auth, usage]
"""


async def listens(http: httpx.AsyncClient, heard: Heard, text: str) -> None:
    """One turn, until the gateway dies."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": text}]}
    headers = {"x-deltaway-conversation": heard.conversation}
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        heard.pieces.append((time.monotonic(), choice["delta"].get("content") or ""))
    except httpx.TransportError:
        pass


async def items_of(http: httpx.AsyncClient, conversation: str) -> list[Any]:
    answer = await http.get(f"/v1/conversations/{conversation}/items", params={"order": "asc"})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_kill_in_the_middle_of_a_hundred_turns_loses_no_more_than_a_second(
    backend: Backend, tmp_path: Path
) -> None:
    async with store_url(backend, tmp_path) as url, running(tmp_path, config_for(url)) as gateway:
        async with client(gateway.url, ADMIN_KEY) as http:
            made = await asyncio.gather(
                *(http.post("/v1/conversations", json={"metadata": {"n": str(n)}}) for n in range(CONVERSATIONS))
            )
            turns = [Heard(each.json()["id"]) for each in made]
            async with httpx.AsyncClient(
                base_url=gateway.url,
                headers={"authorization": f"Bearer {ADMIN_KEY}"},
                timeout=60,
                trust_env=False,
                limits=httpx.Limits(max_connections=2 * CONVERSATIONS),
            ) as many:
                listening = [
                    asyncio.create_task(listens(many, heard, f"question {n}")) for n, heard in enumerate(turns)
                ]
                async with asyncio.timeout(60):
                    while any(len(heard.pieces) < 3 for heard in turns):
                        await asyncio.sleep(0.05)
                await asyncio.sleep(4)
                killed_at = time.monotonic()
                await gateway.kill()
                await asyncio.gather(*listening)
        await gateway.start()
        async with client(gateway.url, ADMIN_KEY) as http:
            found = [await items_of(http, heard.conversation) for heard in turns]
            shares = []
            for number, (heard, items) in enumerate(zip(turns, found, strict=True)):
                question, answer = items
                assert question["content"][0]["text"] == f"question {number}"
                saved = answer["content"][0]["text"]
                assert heard.text().startswith(saved) or saved.startswith(heard.text()), "nothing is twice or missing"
                assert len(saved) >= len(heard.text(killed_at - SECOND)), "what came a second before is there"
                shares.append(len(saved) / len(heard.text()))
            # the conversation is free again, and the model is told what was there
            first = turns[0].conversation
            async with asyncio.timeout(30):
                again = await http.post(
                    "/v1/chat/completions",
                    json={"model": "mock/echo", "messages": [{"role": "user", "content": "go on"}]},
                    headers={"x-deltaway-conversation": first},
                )
            assert again.status_code == 200, again.text
            items = await items_of(http, first)
            assert [item["status"] for item in items] == ["completed", "incomplete", "completed", "completed"]
            receipts = (await http.get("/v1/requests", params={"outcome": "interrupted", "limit": 100})).json()
            assert len(receipts["data"]) == CONVERSATIONS
    print(
        f"\n{backend}: {CONVERSATIONS} turns killed, {sum(len(heard.pieces) for heard in turns)} deltas had been read; "
        f"of their text {min(shares):.1%} to {max(shares):.1%} was saved, {sum(shares) / len(shares):.1%} on average"
    )
