"""A call's budget holds over all its attempts: retries, rivals, and those that go on with an answer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from router.app import create_app
from support.serving import asking, client, gateway, served
from support.vendor import Exchange, delta, sse, vendor

PRICES = """
prices:
  - {list: dear, models: ["*"], from: 2020-01-01, currency: USD, input: 0, output: 1000}
  - {list: cheap, models: ["*"], from: 2020-01-01, currency: USD, input: 0, output: 1}
  - {list: prompts, models: ["*"], from: 2020-01-01, currency: USD, input: 1000, output: 0}
"""
WORDS = 400


def configuration(cheap: str, dear: str, limit: str) -> str:
    return f"""
prices: {{file: prices.yaml}}
ledger: {{checkpoint: 0s}}
providers:
  cheap: {{protocol: openai, base_url: "{cheap}", timeouts: {{first_token: 300ms}}}}
  dear: {{protocol: openai, base_url: "{dear}"}}
  prompts: {{protocol: openai, base_url: "{cheap}", timeouts: {{first_token: 50ms}}}}
models:
  hedged: {{targets: [dear/m, cheap/m], hedge: {{after: 50ms, share: 100%}}}}
  going-on: {{targets: [cheap/m, dear/m], continuation: true}}
  again: {{targets: [prompts/m], retry: {{attempts: 5, backoff: 0s}}}}
plugins:
  - auth: {{keys: [{{key: sk-one-client-of-these-tests, name: one}}]}}
  - budget: {{rules: [{{key: "*", amount: {limit}, per: total}}], output: 20}}
"""


async def stalls(exchange: Exchange) -> None:
    await exchange.stall()


async def dies(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(sse(delta("one "), delta("two ")))
    await asyncio.sleep(0.02)
    exchange.cut()


async def writes_slowly(exchange: Exchange) -> None:
    await asyncio.sleep(0.12)
    await exchange.head()
    for _ in range(WORDS):
        await exchange.chunk(sse(delta("word ")))
        await asyncio.sleep(0.001)
    await exchange.stall()


@pytest.fixture(autouse=True)
def prices(own_directory: Path) -> None:
    (own_directory / "prices.yaml").write_text(PRICES)


async def spent(model: str, limit: str, cheap: Any, dear: Any = stalls) -> tuple[float, dict[str, Any]]:
    """What one call has cost in dollars, and its receipt."""
    async with vendor(cheap) as one, vendor(dear) as other:
        gate = gateway(
            configuration(one.url, other.url, limit), {"DELTAWAY_ADMIN_KEY": "an-admin-key-of-these-tests-0"}
        )
        async with served(create_app(gate)) as url, client(url, key="sk-one-client-of-these-tests") as http:
            answer = await http.post("/v1/chat/completions", json=asking(model, text="many words " * 20))
            receipt = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()
    costs = [float(attempt["cost"]["amount"]) for attempt in receipt["attempts"] if attempt["cost"]]
    return sum(costs), receipt


async def test_a_rival_that_loses_does_not_set_the_price() -> None:
    cost, receipt = await spent("hedged", "0.1 USD", stalls, writes_slowly)
    assert [attempt["role"] for attempt in receipt["attempts"]] == ["first", "hedge"]
    assert receipt["outcome"] == "budget"
    assert cost <= 0.1


async def test_who_goes_on_is_reckoned_at_its_own_price() -> None:
    cost, receipt = await spent("going-on", "0.1 USD", dies, writes_slowly)
    assert [attempt["role"] for attempt in receipt["attempts"]] == ["first", "continuation"]
    assert receipt["outcome"] == "budget"
    assert cost <= 0.1


async def test_no_attempt_is_made_that_the_budget_has_nothing_for() -> None:
    cost, receipt = await spent("again", "0.07 USD", stalls)
    assert len(receipt["attempts"]) == 1
    assert receipt["error"]["code"] == "first_token_timeout"
    assert cost <= 0.07
