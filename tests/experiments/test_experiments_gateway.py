"""Experiments over a socket: what clients, admins and the ledger see of arms and shadows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.app import create_app
from router.config import ConfigError
from support.serving import asking, client, gateway, served
from support.vendor import Exchange, delta, plays_hello, sse, usage_chunk, vendor

CHAT = "/v1/chat/completions"
EXPERIMENT = "x-deltaway-experiment"
ADMIN = {"DELTAWAY_ADMIN_KEY": "an-admin-key-that-is-long-enough-for-this"}
PRICES = """
prices:
  - {list: v, models: ["*"], from: 2020-01-01, currency: USD, input: 1, output: 1000}
"""


def configuration(arms: str, more: str = "", *, vendor_url: str = "http://127.0.0.1:9", plugins: str = "[]") -> str:
    return f"""
prices: {{file: prices.yaml}}
providers:
  mock: {{protocol: mock}}
  v: {{protocol: openai, base_url: "{vendor_url}", api_key: sk-vendor-key}}
models:
  chat: {{targets: [mock/lorem-5]}}
  plain: {{targets: [mock/lorem-5]}}
experiments:
  trial:
    route: chat
    arms: {arms}
{more}
plugins: {plugins}
"""


ARMS = "{control: {share: 50}, short: {share: 50, target: mock/echo, parameters: {max_tokens: 2}, system: Be short}}"
ONE = "{control: {share: 100}}"


class Opened:
    def __init__(self, http: httpx.AsyncClient, shadows: Any) -> None:
        self.http = http
        self.shadows = shadows

    async def asked(self, model: str = "chat", headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = asking(model, stream=False, **more)
        return await self.http.post(CHAT, json=body, headers=headers or {})

    async def receipts(self, **query: str) -> list[dict[str, Any]]:
        response = await self.http.get("/v1/requests", params=query)
        assert response.status_code == 200, response.text
        data: list[dict[str, Any]] = response.json()["data"]
        return data


@pytest.fixture(autouse=True)
def prices(own_directory: Path) -> None:
    (own_directory / "prices.yaml").write_text(PRICES)


@asynccontextmanager
async def opened(text: str, environ: dict[str, str] | None = None, key: str | None = None) -> AsyncIterator[Opened]:
    made = gateway(text, environ)
    async with served(create_app(made)) as url, client(url, key) as http:
        yield Opened(http, made.shadows)


def error(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    return response.json()["error"]


# -- what is wrong -----------------------------------------------------------------------------------------------------


async def test_a_call_without_the_unit_is_told_which_and_where_to_put_it() -> None:
    async with opened(configuration(ARMS)) as gate:
        told = error(await gate.asked(), 400)
        assert (told["param"], told["code"]) == ("user", "missing_unit")
        assert "assigns by user" in told["message"]
        assert "`x-deltaway-user`" in told["message"]
        assert (await gate.asked("plain")).status_code == 200


@pytest.mark.parametrize(
    ("header", "value", "words"),
    [
        (EXPERIMENT, "trial", "must look like `name=arm`"),
        (EXPERIMENT, "trial=", "must look like `name=arm`"),
        (EXPERIMENT, "trail=short", "unknown experiment `trail`: did you mean `trial`?"),
        (EXPERIMENT, "trial=shrot", "unknown arm of `trial`: `shrot`: did you mean `short`?"),
        ("x-deltaway-region", ",", "names no region"),
    ],
)
async def test_a_header_that_is_wrong_is_named(header: str, value: str, words: str) -> None:
    async with opened(configuration(ARMS)) as gate:
        told = error(await gate.asked(headers={header: value, "x-deltaway-user": "ann"}), 400)
        assert told["param"] == header
        assert words in told["message"]


async def test_only_an_admin_may_choose_an_arm() -> None:
    async with opened(configuration(ARMS, plugins="[auth]"), ADMIN, ADMIN["DELTAWAY_ADMIN_KEY"]) as gate:
        made = await gate.http.post("/admin/keys", json={"name": "one"})
        assert made.status_code in (200, 201), made.text
        headers = {EXPERIMENT: "trial=short", "x-deltaway-user": "ann"}
        assert (await gate.asked(headers=headers)).headers[EXPERIMENT] == "trial=short"
        headers["authorization"] = f"Bearer {made.json()['key']}"
        told = error(await gate.asked(headers=headers), 403)
        assert "only an admin key may choose an arm" in told["message"]


def test_a_wrong_parameter_of_an_arm_stops_the_start() -> None:
    with pytest.raises(ConfigError, match=r"providers.yaml:\d+:\d+: .*parameters.temprature` is no parameter"):
        gateway(configuration("{control: {share: 100, parameters: {temprature: 1}}}"))


# -- arms --------------------------------------------------------------------------------------------------------------


async def test_users_stay_in_their_arm_which_answers_and_is_on_record() -> None:
    async with opened(configuration(ARMS)) as gate:
        arms: dict[str, set[str]] = {}
        for _ in range(2):
            for user in map(str, range(12)):
                response = await gate.asked(headers={"x-deltaway-user": user})
                assert response.status_code == 200, response.text
                arms.setdefault(user, set()).add(response.headers[EXPERIMENT])
                expected = "mock/echo" if response.headers[EXPERIMENT] == "trial=short" else "mock/lorem-5"
                assert response.headers["x-deltaway-target"] == expected
        assert all(len(found) == 1 for found in arms.values())
        assert set.union(*arms.values()) == {"trial=control", "trial=short"}
        for receipt in await gate.receipts(limit="100"):
            assert f"trial={receipt['experiment']['arm']}" in arms[receipt["user"]]


async def test_another_gateway_assigns_alike() -> None:
    found = []
    for _ in range(2):
        async with opened(configuration(ARMS)) as gate:
            answers = [await gate.asked(headers={"x-deltaway-user": str(user)}) for user in range(20)]
            found.append([answer.headers[EXPERIMENT] for answer in answers])
    assert found[0] == found[1]


async def test_what_an_arm_says_is_what_the_vendor_is_asked() -> None:
    bodies: list[Any] = []

    async def script(exchange: Exchange) -> None:
        bodies.append(exchange.request.json())
        await plays_hello(exchange)

    arms = "{one: {share: 100, target: v/m, parameters: {temperature: 0.2, extra_body: {own: 1}}, system: Be short}}"
    async with vendor(script) as played, opened(configuration(arms, vendor_url=played.url)) as gate:
        response = await gate.http.post(CHAT, json=asking("chat", temperature=1, user="ann"))
        assert response.status_code == 200, response.text
    (body,) = bodies
    assert (body["model"], body["temperature"], body["own"]) == ("m", 0.2, 1)
    assert body["messages"] == [{"role": "system", "content": "Be short"}, {"role": "user", "content": "Hi"}]


# -- shadows -----------------------------------------------------------------------------------------------------------


def shadow(target: str, budget: str = "100 USD", parallel: int = 2) -> str:
    return f"    shadow: {{target: {target}, share: 100, budget: {budget}, parallel: {parallel}}}"


async def test_a_shadow_has_a_row_of_its_own_that_names_the_call_and_nobody() -> None:
    async with opened(configuration(ONE, shadow("mock/lorem-9"), plugins="[auth]"), ADMIN, *ADMIN.values()) as gate:
        response = await gate.asked(headers={"x-deltaway-user": "ann", "x-deltaway-tags": "team=a"})
        assert response.headers["x-deltaway-target"] == "mock/lorem-5"
        await gate.shadows.settled()
        (row,) = await gate.receipts(experiment="trial", arm="shadow")
        assert (row["key"], row["user"], row["tags"], row["route"]) == (None, None, {}, None)
        assert (row["target"], row["outcome"]) == ("mock/lorem-9", "finished")
        assert row["usage"]["output"] == 9
        assert row["experiment"]["shadow_of"] == response.headers["x-request-id"]
        (own,) = await gate.receipts(user="ann")
        assert own["experiment"]["arm"] == "control"
        assert own["target"] == "mock/lorem-5"


@pytest.mark.parametrize("target", ["mock/stall-1", "mock/error-429", "mock/cut-2", "mock/error-500"])
async def test_a_shadow_that_stalls_or_fails_is_nothing_to_the_client(target: str) -> None:
    async with opened(configuration(ONE, shadow(target))) as gate:
        for number in range(5):
            headers = {"x-deltaway-user": str(number)}
            stream = await gate.http.post(CHAT, json=asking("chat"), headers=headers)
            assert stream.status_code == 200
            assert stream.text.rstrip().endswith("data: [DONE]")
            assert (await gate.asked(headers=headers)).status_code == 200
        tally = gate.shadows.tallies["trial"]
        assert tally.offered == 10
    # the gateway has stopped, and none is left
    assert tally.made + sum(tally.left_out.values()) <= 10
    assert sum(tally.outcomes.values()) == tally.made
    assert "finished" not in tally.outcomes


async def test_a_budget_that_does_not_allow_one_call_allows_none() -> None:
    async with vendor(plays_hello) as played:
        text = configuration(ONE, shadow("v/m", "1 USD"), vendor_url=played.url)
        async with opened(text) as gate:
            assert (await gate.asked(headers={"x-deltaway-user": "a"}, max_tokens=5000)).status_code == 200
            await gate.shadows.settled()
            assert gate.shadows.tallies["trial"].left_out == {"budget": 1}
            assert await gate.receipts(arm="shadow") == []


async def test_what_shadows_have_cost_is_known_after_a_restart() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        # five tokens of output, half a cent each
        await exchange.chunk(sse(delta("Hello"), delta(finish="stop"), usage_chunk()) + b"data: [DONE]\n\n")
        await exchange.end()

    async with vendor(script) as played:
        text = configuration(ONE, shadow("v/m", "0.012 USD"), vendor_url=played.url)
        costs = []
        made = []
        for start in range(2):
            async with opened(text) as gate:
                for number in range(6):
                    answer = await gate.asked(headers={"x-deltaway-user": f"{start}{number}"}, max_tokens=5)
                    assert answer.status_code == 200
                    await gate.shadows.settled()
                made.append(gate.shadows.tallies["trial"].made)
                costs = [float(row["cost"]["amount"]) for row in await gate.receipts(arm="shadow", limit="100")]
    assert made[0] > 0
    assert made[1] == 0
    assert len(costs) == made[0]
    assert sum(costs) <= 0.012


async def test_a_flood_is_cut_and_clients_go_on() -> None:
    going_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        try:
            while True:
                await exchange.chunk(sse(*[delta("x" * 1000)] * 20))
        finally:
            going_on.set()

    async with vendor(script) as played:
        async with opened(configuration(ONE, shadow("v/m"), vendor_url=played.url)) as gate:
            assert (await gate.asked(headers={"x-deltaway-user": "a"}, max_tokens=10)).status_code == 200
            await gate.shadows.settled()
            (row,) = await gate.receipts(arm="shadow")
            assert row["outcome"] == "stopped"
            assert (await gate.asked("plain")).status_code == 200
        await asyncio.wait_for(going_on.wait(), 10)
