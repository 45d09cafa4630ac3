"""1,000 reloads under load: no call fails, and none sees two configurations.

Two configurations bear a mark each, in four places that a call passes: its route's target, the vendor's address, a
plugin's header and the price. A call under a mixture would show two marks. `pytest -s` prints the count.
"""

import asyncio
import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from router.app import build, create_app, read_config
from router.generation import generation_id
from router.settings import StoreUrl
from router.store.tables import attempts, calls
from support.serving import asking, client, served
from support.stores import opened_store, sqlite_url
from support.vendor import Exchange, delta, sse, vendor

RELOADS = 1000
AT_ONCE = 4
ADMIN = "admin-key-of-these-tests"
ENVIRON = {"DELTAWAY_ADMIN_KEY": ADMIN, "KEY": "sk-vendor"}
PRICES = {"a": 1, "b": 2}
"""US dollars for a million tokens."""

PLUGIN = '''
"""Marks every call that it sees."""

from msgspec import Struct


class Mark:
    class Settings(Struct, frozen=True):
        mark: str

    def __init__(self, settings):
        self._mark = settings.mark

    def stream(self, call, call_next):
        call.trip.headers["x-mark"] = self._mark
        return call_next(call)
'''
CONFIG = """
server: {heartbeat: 60s}
prices: {file: prices-MARK.yaml}
providers:
  v: {protocol: openai, base_url: "URL", api_key: "${KEY}", price_list: mine}
  idle: {protocol: openai, base_url: "URL", api_key: "${KEY}"}
models:
  chat: {targets: [v/model-MARK]}
  only-MARK: {targets: [v/model-MARK]}
plugins: [{"marking_for_test:Mark": {mark: MARK}}, usage]
"""
PRICE_FILE = "prices:\n  - {list: mine, models: ['*'], currency: USD, input: PRICE, output: PRICE}\n"


@pytest.fixture
def marking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "marking_for_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))


def marked(mark: str) -> Any:
    """A vendor whose answer says its own mark, and which model it was asked for."""

    async def plays(exchange: Exchange) -> None:
        model = exchange.request.json()["model"]
        await exchange.head()
        await exchange.chunk(sse(delta(f"{mark} ")))
        # long enough for a reload to come between
        await asyncio.sleep(0.05)
        usage = {**delta(), "choices": [], "usage": {"prompt_tokens": 500, "completion_tokens": 500}}
        await exchange.chunk(sse(delta(model), delta(finish="stop"), usage, "[DONE]"))
        await exchange.end()

    return plays


@pytest.mark.timeout(240)
async def test_a_thousand_reloads_under_load_fail_no_call_and_mix_none(tmp_path: Path, marking: None) -> None:
    url = sqlite_url(tmp_path)
    async with vendor(marked("a")) as first, vendor(marked("b")) as second:
        addresses = {"a": first.url, "b": second.url}
        texts = {mark: CONFIG.replace("MARK", mark).replace("URL", addresses[mark]) for mark in PRICES}
        for mark, price in PRICES.items():
            (tmp_path / f"prices-{mark}.yaml").write_text(PRICE_FILE.replace("PRICE", str(price)))
        file = tmp_path / "providers.yaml"
        file.write_text(texts["a"])
        gateway = build(read_config(str(file), ENVIRON), ENVIRON)
        seen: dict[str, str] = {}
        """Request → its mark, once all its marks were the same."""
        crossed: Counter[bool] = Counter()
        """Whether another configuration was in force at the end of a call than at its beginning."""
        stop = asyncio.Event()
        async with served(create_app(gateway)) as address, client(address, ADMIN) as http:

            async def calls_on_end(streamed: bool) -> None:
                while not stop.is_set():
                    began = gateway.current.id
                    answer = await http.post("/v1/chat/completions", json=asking("chat", streamed))
                    crossed[gateway.current.id != began] += 1
                    assert answer.status_code == 200, answer.text
                    call = answer.headers["x-request-id"]
                    seen[call] = one_mark(answer, streamed)

            load = [asyncio.create_task(calls_on_end(place % 2 == 0)) for place in range(AT_ONCE)]
            started = time.monotonic()
            reloads = 0
            for reloads, mark in enumerate(itertools.islice(itertools.cycle("ba"), RELOADS), 1):
                file.write_text(texts[mark])
                if reloads % 100:
                    await gateway.reloader.reload("never" if reloads % 10 else "always")
                else:
                    assert (await http.post("/admin/config/reload")).status_code == 200
                assert gateway.current.config.prices.file == f"prices-{mark}.yaml"
                assert not any(each.done() for each in load), "a call failed"
            took = time.monotonic() - started
            stop.set()
            await asyncio.gather(*load)
            async with asyncio.timeout(10):
                while gateway.generations.draining:
                    await asyncio.sleep(0.01)
        rows = await ledger(url)
    ids = {generation_id(texts[mark], PRICE_FILE.replace("PRICE", str(price))): mark for mark, price in PRICES.items()}
    assert {call: ids[row.decision["generation"]] for call, (row, _) in rows.items()} == seen
    for call, (row, attempt) in rows.items():
        mark = seen[call]
        assert (row.outcome, row.route, row.target) == ("finished", "chat", f"v/model-{mark}")
        assert (attempt.outcome, attempt.cost, attempt.currency) == ("finished", PRICES[mark] * 1_000_000, "USD")
    assert crossed[True] > 0
    marks = Counter(seen.values())
    assert set(marks) == set(PRICES)
    # the figures are for people
    print(
        f"\n{reloads} reloads in {took:.1f} s; {len(seen)} calls, none failed and none mixed: "
        f"{marks['a']} all of the one, {marks['b']} all of the other, {crossed[True]} with a reload in their middle"
    )


def one_mark(answer: httpx.Response, streamed: bool) -> str:
    """The mark that the answer bears in all four places."""
    if streamed:
        assert answer.text.rstrip().endswith("data: [DONE]")
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        cost = None
    else:
        text = answer.json()["choices"][0]["message"]["content"]
        cost = answer.headers["x-deltaway-cost"]
    address, _, model = text.partition(" model-")
    mark = answer.headers["x-mark"]
    assert (address, model, answer.headers["x-deltaway-target"]) == (mark, mark, f"v/model-{mark}")
    assert cost in (None, f"0.00{PRICES[mark]}000000 USD")
    return mark


async def ledger(url: StoreUrl) -> dict[str, tuple[Any, Any]]:
    """Each call with its only attempt."""
    async with opened_store(url) as store, store.reading() as connection:
        rows = {row.id: row for row in await connection.execute(select(calls))}
        tried = list(await connection.execute(select(attempts)))
    assert len(tried) == len(rows)
    return {row.call_id: (rows[row.call_id], row) for row in tried}
