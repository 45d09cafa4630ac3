"""A running gateway takes up another file: all of it or nothing, and never in the middle of a call."""

import asyncio
import gc
import importlib
import json
import os
import re
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.app import Gateway, build, create_app, read_config
from router.generation import generation_id
from support.serving import asking, client, served
from support.vendor import plays_hello, vendor

ADMIN = "admin-key-of-these-tests"
ENVIRON = {"DELTAWAY_ADMIN_KEY": ADMIN, "ONE": "sk-one", "TWO": "sk-two"}
FIRST = """
providers:
  mock: {protocol: mock}
models:
  old: {targets: [mock/slow-20]}
  chat: {targets: [mock/echo]}
plugins: [usage]
"""
SECOND = """
providers:
  mock: {protocol: mock}
models:
  chat: {targets: [mock/tools]}
  new: {targets: [mock/echo]}
plugins: [usage]
"""
BAD = """
server: {heartbeat: 15}
providers:
  mock: {protocol: mok}
models:
  chat: {targets: [mock/echo, mok/echo]}
plugins: [usage]
"""


class Served:
    """A gateway on a file, and an admin's client of it."""

    def __init__(self, gateway: Gateway, file: Path, http: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.file = file
        self.http = http

    async def reload(self, text: str | None = None) -> httpx.Response:
        if text is not None:
            self.file.write_text(text)
        return await self.http.post("/admin/config/reload")

    async def taken_up(self, text: str | None = None) -> Any:
        answer = await self.reload(text)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def plan(self, text: str | None = None) -> Any:
        answer = await self.http.post("/admin/config/plan", json={} if text is None else {"text": text})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ask(self, model: str, stream: bool = False) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=asking(model, stream))


@asynccontextmanager
async def serving(directory: Path, text: str = FIRST) -> AsyncIterator[Served]:
    file = directory / "providers.yaml"
    file.write_text(text)
    gateway = build(read_config(str(file), ENVIRON), ENVIRON)
    async with served(create_app(gateway)) as url, client(url, ADMIN) as http:
        yield Served(gateway, file, http)


# -- all of it, or nothing -------------------------------------------------------------------------------------------


async def test_a_reload_puts_another_file_in_force(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        assert (await gate.ask("new")).status_code == 404
        before = gate.gateway.current.id
        said = await gate.taken_up(SECOND)
        assert said["changed"]
        assert said["announced"]
        assert said["generation"] == gate.gateway.current.id == generation_id(SECOND, None) != before
        assert (await gate.ask("new")).status_code == 200
        assert (await gate.ask("old")).status_code == 404
        listed = [model["id"] for model in (await gate.http.get("/v1/models")).json()["data"]]
        assert "new" in listed
        assert "old" not in listed


async def test_the_generation_is_told_where_one_looks_for_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        digits = generation_id(FIRST, None)
        for path in ("/health/ready", "/health/live", "/admin/config"):
            assert (await gate.http.get(path)).json()["generation"] == digits
        call = (await gate.ask("chat")).headers["x-request-id"]
        receipt = (await gate.http.get(f"/v1/requests/{call}")).json()
        assert receipt["decision"]["generation"] == digits
        shown = (await gate.http.get("/admin/config")).json()
        assert (shown["file"], shown["watch"], shown["error"]) == (str(gate.file), False, None)


async def test_a_bad_file_changes_nothing_and_says_all_that_is_wrong(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        before = await told(gate)
        answer = await gate.reload(BAD)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "invalid_configuration"
        for line in (f"{gate.file}:2:21: ", f"{gate.file}:4:20: ", f"{gate.file}:6:31: "):
            assert line in error["message"]
        assert await told(gate) == before
        (row,) = (await gate.http.get("/admin/config")).json()["instances"]
        assert f"{gate.file}:2:21: " in row["error"]
        # and the mended file is taken up as ever
        assert (await gate.taken_up(SECOND))["changed"]
        (row,) = (await gate.http.get("/admin/config")).json()["instances"]
        assert (row["error"], row["generation"]) == (None, generation_id(SECOND, None))


async def told(gate: Served) -> list[bytes]:
    """What clients see, byte for byte but for ids and times."""
    answers = [await gate.http.get("/v1/models"), await gate.ask("chat", stream=True), await gate.ask("new")]
    texts = [answer.content.replace(answer.headers["x-request-id"].encode(), b"ID") for answer in answers]
    return [gate.gateway.current.id.encode(), *(re.sub(rb'"created":\d+|chatcmpl[-_]\w+', b"", text) for text in texts)]


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        gate.file.unlink()
        answer = await gate.reload()
        assert answer.status_code == 400
        assert "there is no such file" in answer.json()["error"]["message"]
        assert (await gate.ask("old")).status_code == 200


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("store: sqlite:///other.db\n", "`store` cannot change"),
        ("shared: memory\n", "`shared` cannot change"),
        ("ledger: {audit: 0.5}\n", "`ledger` cannot change"),
        ("server: {body_limit: 1MiB}\n", "`server.body_limit` cannot change"),
        ("server: {shutdown: {grace: 1s}}\n", "`server.shutdown` cannot change"),
        ("server: {cors: {allow_origins: ['*']}}\n", "`server.cors` cannot change"),
    ],
)
async def test_what_takes_a_restart_is_refused_as_a_whole(tmp_path: Path, added: str, named: str) -> None:
    async with serving(tmp_path) as gate:
        answer = await gate.reload(SECOND + added)
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert named in message
        assert "restart" in message
        assert f"{gate.file}:{1 + SECOND.count(chr(10))}:" in message
        assert (await gate.ask("old")).status_code == 200
        plan = await gate.plan()
        assert plan["would_be"] is None
        assert named in plan["refused"][0]["message"]


async def test_what_of_the_server_may_change_does(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        await gate.taken_up(FIRST + "server: {heartbeat: 3s, watch: true, region: eu}\n")
        assert gate.gateway.current.heartbeat == 3.0
        assert (await gate.http.get("/admin/config")).json()["watch"]


async def test_no_reload_takes_the_keys_away_where_others_can_reach_the_gateway(tmp_path: Path) -> None:
    guarded = FIRST.replace("[usage]", "[auth, usage]")
    async with serving(tmp_path, guarded) as gate:
        gate.gateway.reloader.keys_needed = True
        answer = await gate.reload(FIRST)
        assert answer.status_code == 400
        assert "leave `auth` in the list of plugins" in answer.json()["error"]["message"]
        async with client(str(gate.http.base_url)) as stranger:
            assert (await stranger.post("/v1/chat/completions", json=asking("chat"))).status_code == 401
        # on an address of this machine alone it may go
        gate.gateway.reloader.keys_needed = False
        await gate.taken_up()
        async with client(str(gate.http.base_url)) as stranger:
            assert (await stranger.post("/v1/chat/completions", json=asking("chat"))).status_code == 200


async def test_a_stranger_may_neither_look_nor_reload(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate, client(str(gate.http.base_url)) as stranger:
        for method, path in (("GET", ""), ("POST", "/plan"), ("POST", "/reload")):
            assert (await stranger.request(method, f"/admin/config{path}")).status_code == 401


# -- running calls ---------------------------------------------------------------------------------------------------


async def test_a_stream_ends_on_the_configuration_it_began_under(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as gate,
        gate.http.stream("POST", "/v1/chat/completions", json=asking("old", text="one two three four five")) as stream,
    ):
        lines = stream.aiter_lines()
        first = await anext(lines)
        old = weakref.ref(gate.gateway.current)
        plan = await gate.plan(SECOND)
        words = [change["words"] for change in plan["changes"]]
        removed = "the route `old` is removed: 1 call runs on it and finishes; new calls to it get 404"
        assert removed in words
        await gate.taken_up(SECOND)
        assert (await gate.ask("old")).status_code == 404
        assert gate.gateway.generations.draining == 1
        rest = [line async for line in lines if line]
        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"
        await until(lambda: not gate.gateway.generations.draining)
        call = stream.headers["x-request-id"]
        receipt = (await gate.http.get(f"/v1/requests/{call}")).json()
        assert (receipt["outcome"], receipt["route"]) == ("finished", "old")
        assert receipt["decision"]["generation"] == generation_id(FIRST, None)
        del plan
        gc.collect()
        assert old() is None


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


VENDORS = """
providers:
  kept: {protocol: openai, base_url: "URL", api_key: "${ONE}"}
  gone: {protocol: openai, base_url: "URL", api_key: "${ONE}"}
plugins: [usage]
"""


async def test_an_unchanged_provider_keeps_its_connections_and_another_loses_them(tmp_path: Path) -> None:
    async with vendor(plays_hello) as played:
        text = VENDORS.replace("URL", played.url)
        async with serving(tmp_path, text) as gate:
            for name in ("kept", "gone"):
                assert (await gate.ask(f"{name}/m")).status_code == 200
            before = gate.gateway.current.adapters
            closed = asyncio.Event()
            noted(before["gone"].upstream, closed)
            after = text.replace('gone: {protocol: openai, base_url: "URL", api_key: "${ONE}"}', "").replace(
                'api_key: "${ONE}"}\n  gone', 'api_key: "${ONE}", models: [m]}\n  gone'
            )
            after = "\n".join(line for line in after.splitlines() if "gone:" not in line) + "\n"
            await gate.taken_up(after)
            assert gate.gateway.current.adapters["kept"] is before["kept"]
            async with asyncio.timeout(10):
                await closed.wait()
            await gate.taken_up(after.replace("${ONE}", "${TWO}"))
            assert gate.gateway.current.adapters["kept"] is not before["kept"]
            assert (await gate.ask("kept/m")).status_code == 200


def noted(upstream: Any, closed: asyncio.Event) -> None:
    close = upstream.aclose

    async def aclose() -> None:
        await close()
        closed.set()

    upstream.aclose = aclose


PLUGIN = """
from contextlib import asynccontextmanager

LOG = []

class Lived:
    class Settings(__import__("msgspec").Struct, frozen=True):
        name: str
        fails: bool = False

    def __init__(self, settings):
        self.settings = settings

    @asynccontextmanager
    async def lifespan(self):
        if self.settings.fails:
            raise OSError("no way in")
        LOG.append(f"{self.settings.name} opens")
        yield
        LOG.append(f"{self.settings.name} closes")

    def stream(self, call, call_next):
        return call_next(call)
"""
LIVED = FIRST.replace("[usage]", "['lived_for_test:Lived': {name: NAME}, usage]")


@pytest.fixture
def lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "lived_for_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lived_for_test", raising=False)
    log: list[str] = importlib.import_module("lived_for_test").LOG
    return log


async def test_a_plugin_opens_before_the_swap_and_closes_after_its_last_call(tmp_path: Path, lived: list[str]) -> None:
    async with serving(tmp_path, LIVED.replace("NAME", "a")) as gate:
        async with gate.http.stream("POST", "/v1/chat/completions", json=asking("old", text="one two")) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            await gate.taken_up(LIVED.replace("NAME", "b"))
            assert lived == ["a opens", "b opens"]
            assert [line async for line in lines if line][-1] == "data: [DONE]"
        await until(lambda: len(lived) == 3)
        assert lived == ["a opens", "b opens", "a closes"]
    assert lived == ["a opens", "b opens", "a closes", "b closes"]


async def test_a_plugin_that_cannot_open_changes_nothing(tmp_path: Path, lived: list[str]) -> None:
    async with serving(tmp_path, LIVED.replace("NAME", "a")) as gate:
        before = gate.gateway.current
        answer = await gate.reload(LIVED.replace("NAME", "b, fails: true"))
        assert answer.status_code == 400
        assert "the plugin `lived_for_test:Lived` could not be opened: OSError: no way in" in answer.text
        assert gate.gateway.current is before
        (row,) = (await gate.http.get("/admin/config")).json()["instances"]
        assert "no way in" in row["error"]
        await gate.taken_up(LIVED.replace("NAME", "c"))
        await until(lambda: lived == ["a opens", "c opens", "a closes"])


@pytest.mark.parametrize(
    ("opening", "told"),
    [
        ("await asyncio.Event().wait()", "took longer than 0.2 seconds"),
        ("raise asyncio.CancelledError", "CancelledError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
async def test_a_plugin_that_hangs_or_would_end_the_process_fails_its_own_reload_alone(
    tmp_path: Path, lived: list[str], monkeypatch: pytest.MonkeyPatch, opening: str, told: str
) -> None:
    bad = PLUGIN.replace('if self.settings.fails:\n            raise OSError("no way in")', opening)
    (tmp_path / "stuck_for_test.py").write_text("import asyncio\n" + bad)
    monkeypatch.delitem(sys.modules, "stuck_for_test", raising=False)
    importlib.invalidate_caches()
    async with serving(tmp_path, LIVED.replace("NAME", "a")) as gate:
        before, gate.gateway.generations.patience = gate.gateway.current, 0.2
        stuck = LIVED.replace("lived_for_test:Lived': {name: NAME}", "stuck_for_test:Lived': {name: b}")
        async with asyncio.timeout(20):
            answer = await gate.reload(stuck)
        assert answer.status_code == 400
        assert told in answer.json()["error"]["message"]
        assert gate.gateway.current is before
        assert (await gate.taken_up(SECOND))["changed"]
        await until(lambda: not gate.gateway.generations.draining)


async def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        gate.file.unlink()
        os.mkfifo(gate.file)
        async with asyncio.timeout(20):
            answer = await gate.reload()
        assert answer.status_code == 400
        assert "is not a regular file" in answer.json()["error"]["message"]
        gate.file.unlink()
        await gate.taken_up(SECOND)


async def test_a_file_that_changes_while_the_gateway_starts_is_taken_up(tmp_path: Path) -> None:
    file = tmp_path / "providers.yaml"
    file.write_text(FIRST + "server: {watch: true}\n")
    loaded = read_config(str(file), ENVIRON)
    file.write_text(SECOND)
    gateway = build(loaded, ENVIRON)
    async with served(create_app(gateway)):
        await until(lambda: gateway.current.id == generation_id(SECOND, None))


async def test_many_requests_for_a_reload_are_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        gate.file.write_text(SECOND)
        reads: list[str | None] = []
        reloader = gate.gateway.reloader
        read = reloader._read
        reloader._read = lambda text: (reads.append(text), read(text))[1]  # type: ignore[func-returns-value]
        for _ in range(100):
            reloader.soon("SIGHUP")
        await until(lambda: gate.gateway.current.id == generation_id(SECOND, None))
        assert len(reads) == 1


async def test_generations_without_calls_are_freed(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        seen = [weakref.ref(gate.gateway.current)]
        for text in (SECOND, FIRST, SECOND, FIRST, SECOND):
            await gate.taken_up(text)
            seen.append(weakref.ref(gate.gateway.current))
        await until(lambda: not gate.gateway.generations.draining)
        gc.collect()
        assert [each() is not None for each in seen] == [False] * 5 + [True]


# -- prices ----------------------------------------------------------------------------------------------------------

PRICED = FIRST + "prices: {file: prices.yaml}\n"
PRICES = "prices:\n  - {list: mock, models: ['*'], currency: USD, input: 1, output: PRICE}\n"


async def test_a_changed_prices_file_is_another_generation(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES.replace("PRICE", "2"))
    async with serving(tmp_path, PRICED) as gate:
        before = (await gate.http.get("/admin/config")).json()["generation"]
        cheap = (await gate.ask("chat")).headers["x-deltaway-cost"]
        prices.write_text(PRICES.replace("PRICE", "200"))
        (change,) = (await gate.plan())["changes"]
        assert change == {"path": "prices.file", "words": "what prices.yaml says has changed"}
        assert (await gate.taken_up())["generation"] != before
        assert (await gate.ask("chat")).headers["x-deltaway-cost"] != cheap


async def test_a_prices_file_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES.replace("PRICE", "2"))
    async with serving(tmp_path, PRICED) as gate:
        prices.write_text(PRICES.replace("PRICE", "much"))
        answer = await gate.reload()
        assert answer.status_code == 400
        assert f"{prices}:2:" in answer.json()["error"]["message"]


# -- a plan ----------------------------------------------------------------------------------------------------------


async def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        before = gate.gateway.current
        plan = await gate.plan(SECOND)
        assert (plan["generation"], plan["would_be"]) == (before.id, generation_id(SECOND, None))
        assert [change["path"] for change in plan["changes"]] == [
            "models.old",
            "models.chat.targets",
            "models.chat.targets[0]",
            "models.new",
        ]
        assert gate.gateway.current is before
        assert (await gate.ask("old")).status_code == 200
        assert (await gate.plan())["changes"] == []


async def test_a_plan_of_a_text_that_is_wrong_says_where(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        plan = await gate.plan(BAD)
        assert plan["would_be"] is None
        assert plan["changes"] == []
        assert [(each["file"], each["line"]) for each in plan["refused"]] == [(str(gate.file), n) for n in (2, 4, 6)]


async def test_a_change_of_form_alone_is_told_as_such(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        (change,) = (await gate.plan("# a comment\n" + FIRST))["changes"]
        assert "only comments" in change["words"]


async def test_a_body_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as gate:
        answer = await gate.http.post("/admin/config/plan", content=json.dumps({"txt": "x"}))
        assert answer.status_code == 400
        assert "`text`" in answer.json()["error"]["message"]


async def test_a_plan_of_a_text_that_was_sent_shows_no_variables_value(tmp_path: Path) -> None:
    secret = ENVIRON["DELTAWAY_ADMIN_KEY"]
    named = FIRST.replace("models:", "models:\n  shown: {targets: ['mock/${DELTAWAY_ADMIN_KEY}']}", 1)
    wrong = FIRST.replace("models:", "models:\n  shown: {targets: ['none/${DELTAWAY_ADMIN_KEY}']}", 1)
    async with serving(tmp_path) as gate:
        for text in (named, wrong):
            answer = await gate.http.post("/admin/config/plan", json={"text": text})
            assert answer.status_code == 200
            assert secret[:10] not in answer.text
