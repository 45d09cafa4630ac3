"""`/admin/health`, and the word for it in `/v1/models`, over a real socket."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml

from router.app import Gateway, create_app
from router.errors import RateLimited, VendorFailed
from router.health import Ended, key_id
from router.http.health_views import ProviderHealth
from router.provider import Target
from router.quantities import decode
from router.route import HealthRules
from router.routing.health_book import HealthBook
from support.serving import asking, client, gateway, served
from support.vendor import Exchange, plays_hello, vendor

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "health.md"
ADMIN = "k" * 48
KEYS = ("sk-first-key-of-acme-AAAA", "sk-second-key-of-acme-BBBB", "tiny")
CONFIG = f"""
providers:
  acme: {{protocol: openai, base_url: "http://127.0.0.1:9", api_keys: [{", ".join(KEYS)}], models: [large, small]}}
  gone: {{protocol: openai, base_url: "http://127.0.0.1:9", api_key: "${{GONE_KEY}}", models: [any]}}
  mock: {{protocol: mock}}
models:
  chat: {{targets: [acme/large, mock/echo]}}
  alone: {{targets: [acme/large]}}
  lost: {{targets: [gone/any]}}
shared: memory
plugins: []
"""
LARGE, SMALL = Target("acme", "large"), Target("acme", "small")


class Running:
    def __init__(self, gateway: Gateway, url: str, http: httpx.AsyncClient) -> None:
        self.book: HealthBook = gateway.backing.health
        self.url = url
        self.http = http

    async def health(self) -> dict[str, Any]:
        response = await self.http.get("/admin/health")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def provider(self, name: str = "acme") -> dict[str, Any]:
        return next(row for row in (await self.health())["providers"] if row["name"] == name)

    async def models(self) -> dict[str, str | None]:
        return {row["id"]: row["health"] for row in (await self.http.get("/v1/models")).json()["data"]}

    def attempt(self, target: Target = LARGE, error: Any = None, seconds: float = 2.0) -> None:
        self.book.begin(target)
        self.book.end(Ended(target, error, error is None, 0.5 if error is None else None, seconds))

    def ruin(self, target: Target = LARGE) -> None:
        for _ in range(5):
            self.attempt(target, VendorFailed("the vendor failed"), 0.0)


@asynccontextmanager
async def running(text: str = CONFIG) -> AsyncIterator[Running]:
    built = gateway(text, {"DELTAWAY_ADMIN_KEY": ADMIN})
    async with served(create_app(built)) as url, client(url, ADMIN) as http:
        yield Running(built, url, http)


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as found:
        yield found


async def test_it_takes_an_admin_key(server: Running) -> None:
    async with client(server.url) as stranger, client(server.url, "wrong") as liar:
        for http in (stranger, liar):
            assert (await http.get("/admin/health")).status_code == 401
            assert (await http.post("/admin/health/reset", json={"provider": "acme"})).status_code == 401


async def test_providers_and_keys_are_shown_before_anything_was_tried(server: Running) -> None:
    health = await server.health()
    assert health["object"] == "health"
    assert abs(health["at"] - time.time()) < 60
    assert health["shared"] == {"kind": "memory", "trouble": None}
    acme, gone, mock = health["providers"]
    assert [(row["name"], row["available"], row["missing"]) for row in (acme, gone, mock)] == [
        ("acme", True, []),
        ("gone", False, ["GONE_KEY"]),
        ("mock", True, []),
    ]
    usable = {"state": "usable", "trouble": None, "words": "", "since": None, "until": None}
    assert acme["keys"] == [
        {"place": "1 of 3", "ending": "…AAAA", **usable},
        {"place": "2 of 3", "ending": "…BBBB", **usable},
        # so short that its end would tell too much of it
        {"place": "3 of 3", "ending": "", **usable},
    ]
    assert acme["targets"] == mock["keys"] == mock["targets"] == []


async def test_no_key_is_told(server: Running) -> None:
    for key in KEYS:
        server.book.rest_key("acme", key_id("acme", key), "invalid")
    text = (await server.http.get("/admin/health")).text
    for key in KEYS:
        assert key not in text
        assert key_id("acme", key) not in text


async def test_a_resting_target_is_shown_with_all_that_is_known(server: Running) -> None:
    server.attempt()
    server.ruin()
    (target,) = (await server.provider())["targets"]
    words, error, until = target.pop("words"), target.pop("error"), target.pop("until")
    # its averages are what failures made of them
    assert target.pop("first_token_ms") >= 500
    assert target.pop("duration_ms") >= 2000
    assert target == {
        "target": "acme/large",
        "health": "resting",
        "breaker": "open",
        "failures_in_a_row": 5,
        "attempts": 6,
        "failures": 5,
        "failure_rate": 0.8333,
        "running": 0,
    }
    assert words.endswith(" s more: 5 failures in a row")
    assert words.startswith("resting ")
    assert (error["code"], error["message"]) == ("upstream_error", "the vendor failed")
    assert abs(error["at"] - time.time()) < 60
    assert 0 < until - time.time() < 60


async def test_a_good_target_shows_its_times(server: Running) -> None:
    server.attempt()
    server.book.begin(LARGE)
    (target,) = (await server.provider())["targets"]
    assert (target["health"], target["words"], target["until"], target["error"]) == ("ok", "", None, None)
    assert (target["first_token_ms"], target["duration_ms"], target["running"]) == (500, 2000, 1)


async def test_a_limited_target_rests_without_being_ill(server: Running) -> None:
    server.attempt(error=RateLimited("slow down", retry_after=60))
    (target,) = (await server.provider())["targets"]
    assert (target["health"], target["breaker"], target["failures_in_a_row"]) == ("resting", "closed", 0)
    assert "the vendor limits the rate" in target["words"]


async def test_dead_keys_are_shown_with_their_trouble(server: Running) -> None:
    server.book.rest_key("acme", key_id("acme", KEYS[0]), "invalid")
    server.book.rest_key("acme", key_id("acme", KEYS[1]), "quota")
    server.book.rest_key("acme", key_id("acme", KEYS[2]), None, 30)
    keys = (await server.provider())["keys"]
    assert [(key["state"], key["trouble"]) for key in keys] == [
        ("resting", "invalid"),
        ("resting", "quota"),
        ("resting", "limited"),
    ]
    assert keys[0]["words"].endswith("s more: the vendor refused the key")
    assert keys[0]["until"] - keys[0]["since"] == 600


async def test_what_a_vendor_does_to_calls_is_seen(server: Running) -> None:
    for _ in range(5):
        response = await server.http.post("/v1/chat/completions", json=asking("mock/error-500", stream=False))
        assert response.status_code >= 500
    (target,) = (await server.provider("mock"))["targets"]
    assert target["target"] == "mock/error-500"
    assert target["health"] == "resting"
    assert target["error"]["code"]


# -- the word for everybody ----------------------------------------------------------------------------------------


async def test_models_say_how_well_they_are(server: Running) -> None:
    well = {"chat": "ok", "alone": "ok", "lost": None, "acme/large": "ok", "acme/small": "ok", "gone/any": None}
    assert await server.models() == well
    server.ruin()
    assert await server.models() == well | {"acme/large": "resting", "alone": "resting"}
    assert (await server.http.get("/v1/models/acme/large")).json()["health"] == "resting"
    assert (await server.http.get("/v1/models/mock/echo")).json()["health"] == "ok"


async def test_a_target_that_may_be_probed_is_recovering(server: Running) -> None:
    server.ruin()
    before = server.book.clock
    server.book.clock = lambda: before() + 11
    assert (await server.models())["alone"] == "recovering"
    (target,) = (await server.provider())["targets"]
    assert (target["health"], target["breaker"], target["until"]) == ("recovering", "half_open", None)
    assert target["words"] == "recovering: tried by one call at a time (5 failures in a row)"


async def test_a_provider_without_a_usable_key_rests(server: Running) -> None:
    server.attempt(SMALL)
    for key in KEYS:
        assert (await server.models())["acme/small"] == "ok"
        server.book.rest_key("acme", key_id("acme", key), "quota")
    assert (await server.models())["acme/small"] == "resting"
    (target,) = (await server.provider())["targets"]
    assert target["words"] == "resting 600 s more: none of the provider's keys may be used"


async def test_routes_are_as_good_as_their_best_target(server: Running) -> None:
    server.ruin()
    routes = {row["name"]: row for row in (await server.health())["routes"]}
    assert routes["chat"]["health"] == "ok"
    assert routes["chat"]["targets"] == {"acme/large": "resting", "mock/echo": "ok"}
    assert routes["chat"]["words"] == ""
    assert routes["alone"]["words"].endswith("s more: 5 failures in a row")
    assert (routes["lost"]["health"], routes["lost"]["targets"]) == (None, {})


async def test_the_command_says_why_a_model_rests_to_whoever_has_an_admin_key(server: Running) -> None:
    server.ruin()

    async def printed(**environ: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router", "models", "--url", server.url),
            env={"PATH": os.environ["PATH"], **environ},
            stdout=subprocess.PIPE,
        )
        stdout, _ = await process.communicate()
        assert process.returncode == 0
        return stdout.decode()

    known = await printed(DELTAWAY_ADMIN_KEY=ADMIN)
    for name in ("acme/large", "alone"):
        (line,) = [line for line in known.splitlines() if line.split()[0] == name]
        assert "s more: 5 failures in a row" in line
    unknown = await printed()
    (line,) = [line for line in unknown.splitlines() if line.split()[0] == "acme/large"]
    assert line.rstrip().endswith("resting")


# -- reset ---------------------------------------------------------------------------------------------------------


async def test_a_reset_closes_a_breaker(server: Running) -> None:
    server.ruin()
    server.ruin(SMALL)
    response = await server.http.post("/admin/health/reset", json={"target": "acme/large"})
    assert (response.status_code, response.json()) == (200, {"reset": 1, "object": "health.reset"})
    models = await server.models()
    assert (models["acme/large"], models["acme/small"]) == ("ok", "resting")


async def test_a_reset_of_a_provider_lets_its_keys_be_used_again(server: Running) -> None:
    server.ruin()
    server.book.rest_key("acme", key_id("acme", KEYS[0]), "invalid")
    response = await server.http.post("/admin/health/reset", json={"provider": "acme"})
    assert response.json()["reset"] == 2
    assert {key["state"] for key in (await server.provider())["keys"]} == {"usable"}
    assert (await server.http.post("/admin/health/reset", json={"provider": "acme"})).json()["reset"] == 0


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        ({}, "say `target` (provider/model) or `provider`, one of them", None),
        ({"target": "acme/large", "provider": "acme"}, "one of them", None),
        ({"target": "acme"}, "`target`: must be provider/model", "target"),
        ({"target": "acme/"}, "`target`: must be provider/model", "target"),
        ({"target": "/large"}, "there is no provider ``", "target"),
        ({"target": "acmee/large"}, "there is no provider `acmee`: did you mean", "target"),
        ({"provider": "nobody"}, "there is no provider `nobody`", "provider"),
        ({"provider": ""}, "there is no provider ``", "provider"),
        ({"targets": "acme/large"}, "unknown field `targets`", "targets"),
        ({"target": 5}, "`target`", "target"),
    ],
)
async def test_a_wrong_reset_is_refused_in_words(
    server: Running, body: dict[str, Any], words: str, param: str | None
) -> None:
    response = await server.http.post("/admin/health/reset", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"]
    assert error["param"] == param


async def test_it_says_where_health_is_shared() -> None:
    async with running(CONFIG.replace("shared: memory", "shared: auto")) as server:
        assert (await server.health())["shared"] == {"kind": "machine", "trouble": None}
    async with running(CONFIG.replace("shared: memory", "shared: redis://127.0.0.1:9/0")) as server:
        shared = (await server.health())["shared"]
        assert shared["kind"] == "redis"
        assert "Redis" in shared["trouble"]


# -- the document --------------------------------------------------------------------------------------------------


def example(language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S)
    return block


async def test_the_example_in_the_document_is_what_is_answered(server: Running) -> None:
    shown = msgspec.json.decode(example("json"), type=ProviderHealth)
    assert msgspec.json.decode(msgspec.json.encode(shown)) == msgspec.json.decode(example("json"))
    server.ruin()
    server.book.rest_key("acme", key_id("acme", KEYS[1]), "quota")
    found = await server.provider()
    assert found.keys() == msgspec.to_builtins(shown).keys()
    assert found["targets"][0].keys() == msgspec.to_builtins(shown.targets[0]).keys()
    assert shown.keys[1].words.partition(": ")[2] == found["keys"][1]["words"].partition(": ")[2]


def test_the_rules_in_the_document_are_those_that_hold_without() -> None:
    rules = yaml.safe_load(example("yaml"))["health"]
    assert msgspec.convert(rules, HealthRules, dec_hook=decode) == HealthRules()
    assert set(rules) == set(HealthRules.__struct_fields__)


async def test_a_model_that_the_account_may_not_use_takes_out_no_key() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.request.json()["model"] == "forbidden":
            body = {"error": {"message": "No access to forbidden.", "code": "permission_denied"}}
            await exchange.whole(403, msgspec.json.encode(body))
        else:
            await plays_hello(exchange)

    async with vendor(script) as played, running(CONFIG.replace("http://127.0.0.1:9", played.url)) as server:
        for _ in KEYS:
            answer = await server.http.post("/v1/chat/completions", json=asking("acme/forbidden", stream=False))
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_permission_denied")
        assert {row["state"] for row in (await server.provider())["keys"]} == {"usable"}
        answer = await server.http.post("/v1/chat/completions", json=asking("alone"))
        assert answer.status_code == 200
