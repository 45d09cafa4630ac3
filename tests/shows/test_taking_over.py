"""Who takes over when a vendor fails, and what becomes of the one that is left: another key, another target in the
middle of an answer, the quicker of two; and clients that leave while it happens. Over real sockets.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from shows.failing import (
    HALF,
    after_delta,
    after_head,
    answers,
    breaks_a_chunk,
    closes,
    drips,
    ends_early,
    ends_with_the_connection,
    error,
    head,
    limited,
    resets,
    stalls,
    well,
    within,
)
from shows.test_failures import Made, Seen, ask, read_stream, receipt_of
from shows.test_failures import made as attempts_of

from router.app import create_app
from support import raw as clients
from support.raw import Raw
from support.serving import asking, client, gateway, served
from support.vendor import Exchange, Request, Script, delta, plays_hello, sse, usage_chunk, vendor

KEYS = ("sk-first-of-two", "sk-second-of-two")
REST = "lo, world"
SCENES = 70
Condition = Callable[[dict[str, Any]], bool]
pytestmark = pytest.mark.asyncio(loop_scope="module")


def routes(n: int) -> dict[str, Any]:
    """Of one scene. `a`, `c` and `k` are rows for its first vendor: `a` is given up after a second of silence, and `k`
    has two keys."""
    a, b, c, k = (f"{row}{n}/m" for row in "abck")
    hedge = {"after": "100ms", "share": "100%"}
    found = {
        "pair": {"targets": [a, b]},
        "same": {"targets": [a], "retry": {"attempts": 2, "backoff": "10ms"}},
        "going-on": {"targets": [a, b], "continuation": True},
        "hedged": {"targets": [c, b], "hedge": hedge, "continuation": True},
        "keyed": {"targets": [k, b]},
        "written": {"targets": [a], "fallback": {"content_filter": [b], "context_length": [b]}},
        "short": {"targets": [c, b], "timeouts": {"first_token": "1s", "total": "1s"}},
        "nearly": {"targets": [c, b], "timeouts": {"idle": "970ms", "total": "1s"}, "continuation": True},
    }
    return {f"{name}.{n}": route for name, route in found.items()}


def config(first: str, second: str, directory: Path) -> str:
    """A scene has rows and routes of its own, so that health, keys and budgets of one are nothing to another."""
    rows: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for n in range(SCENES):
        row = {"protocol": "openai", "base_url": f"{first}/{n}", "api_key": "sk-of-the-first"}
        rows[f"a{n}"] = {**row, "timeouts": {"first_token": "1s", "idle": "300ms"}}
        rows[f"b{n}"] = {**row, "base_url": f"{second}/{n}"}
        rows[f"c{n}"] = row
        rows[f"k{n}"] = {"protocol": "openai", "base_url": f"{first}/{n}", "api_keys": KEYS}
        models |= routes(n)
    written = {
        "store": f"sqlite:///{directory}/deltaway.db",
        "ledger": {"journal": f"{directory}/deltaway.journal", "tokenizer": False},
        "providers": rows,
        "models": models,
        "plugins": ["logging", "usage"],
    }
    return json.dumps(written)


@dataclass
class Side:
    """What one of the vendors is in one scene."""

    script: Script
    requests: list[Request] = field(default_factory=list)
    busy: int = 0
    abandoned: int = 0
    """Exchanges whose peer left before the script had ended."""

    async def play(self, exchange: Exchange) -> None:
        self.requests.append(exchange.request)
        self.busy += 1
        try:
            await self.script(exchange)
        except (asyncio.CancelledError, ConnectionError):
            self.abandoned += 1
            raise
        finally:
            self.busy -= 1

    async def settled(self) -> None:
        async with asyncio.timeout(5):
            while self.busy:
                await asyncio.sleep(0.01)


@dataclass
class Scene:
    url: str
    http: httpx.AsyncClient
    n: int
    a: Side
    b: Side

    def name(self, model: str) -> str:
        """A route of this scene, or a model of one of its rows."""
        return model.replace("/", f"{self.n}/") if "/" in model else f"{model}.{self.n}"

    async def ask(self, model: str, streamed: bool = True, **more: Any) -> tuple[Seen, dict[str, Any]]:
        seen = await ask(self.url, self.name(model), streamed, **more)
        return seen, await receipt_of(self.http, seen)

    async def begin(self, model: str, streamed: bool = True) -> Raw:
        """A call that its client may leave."""
        return await Raw.post(self.url, asking(self.name(model), streamed), x_deltaway_user=f"leaver-{self.n}")

    async def receipt_when(self, condition: Condition) -> dict[str, Any]:
        """The leaver's receipt, as soon as it is so."""
        async with asyncio.timeout(10):
            while True:
                answer = await self.http.get("/v1/requests", params={"user": f"leaver-{self.n}"})
                found = answer.json()["data"]
                if found and condition(found[0]):
                    receipt: dict[str, Any] = found[0]
                    return receipt
                await asyncio.sleep(0.01)

    async def has_ended(self) -> dict[str, Any]:
        return await self.receipt_when(lambda receipt: receipt["outcome"] is not None)

    async def nobody_is_asked(self) -> None:
        """No vendor's connection has an exchange under way."""
        await self.a.settled()
        await self.b.settled()


@dataclass
class Stage:
    """One gateway before two vendors, for all scenes."""

    scenes: list[Scene] = field(default_factory=list)
    url: str = ""
    http: httpx.AsyncClient = field(init=False)

    def scene(self, a: Script, b: Script = well) -> Scene:
        assert len(self.scenes) < SCENES, "there are more scenes than `SCENES`"
        made = Scene(self.url, self.http, len(self.scenes), Side(a), Side(b))
        self.scenes.append(made)
        return made

    def _playing(self, exchange: Exchange) -> Scene:
        return self.scenes[int(exchange.request.path.split("/")[2])]

    async def play_a(self, exchange: Exchange) -> None:
        await self._playing(exchange).a.play(exchange)

    async def play_b(self, exchange: Exchange) -> None:
        await self._playing(exchange).b.play(exchange)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    opened = Stage()
    async with vendor(opened.play_a) as first, vendor(opened.play_b) as second:
        text = config(first.url, second.url, tmp_path_factory.mktemp("stage"))
        async with served(create_app(gateway(text))) as url, client(url) as http:
            opened.url, opened.http = url, http
            yield opened


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def connections_are_closed() -> AsyncIterator[None]:
    yield
    while clients.opened:
        clients.opened.pop().leave()


def made(receipt: dict[str, Any]) -> list[Made]:
    """With the rows' letters alone."""
    return [(each[0].rstrip("0123456789"), *each[1:]) for each in attempts_of(receipt)]


def says(text: str, then: Script | None = None) -> Script:
    """The text in one delta, and how it goes on from there: by its end, unless it is said."""

    async def script(exchange: Exchange) -> None:
        await head(exchange)
        await exchange.chunk(sse(delta(text)))
        if then is not None:
            await then(exchange)
            return
        await exchange.chunk(sse(delta(finish="stop"), usage_chunk(), "[DONE]"))
        await exchange.end()

    return script


def one_after_the_other(*scripts: Script) -> Script:
    """One for each request."""
    left = list(scripts)

    async def script(exchange: Exchange) -> None:
        await left.pop(0)(exchange)

    return script


def once(event: asyncio.Event, then: Script) -> Script:
    async def script(exchange: Exchange) -> None:
        await event.wait()
        await then(exchange)

    return script


def noting(event: asyncio.Event, then: Script) -> Script:
    """Sets the event when it is asked."""

    async def script(exchange: Exchange) -> None:
        event.set()
        await then(exchange)

    return script


# -- several keys ----------------------------------------------------------------------------------------------------


def by_key(refusal: Script, *, good: int) -> Script:
    """Refuses the keys one after the other as they are first used, but for the last `good`."""
    bad: list[str] = []

    async def script(exchange: Exchange) -> None:
        key = exchange.request.headers["authorization"].removeprefix("Bearer ")
        if key not in bad and len(bad) < len(KEYS) - good:
            bad.append(key)
        await (refusal if key in bad else well)(exchange)

    return script


def keys_used(played: Side) -> list[str]:
    return [request.headers["authorization"].removeprefix("Bearer ") for request in played.requests]


def quoting_the_key(exchange: Exchange) -> Any:
    key = exchange.request.headers["authorization"]
    return answers(401, error(f"Incorrect API key provided: {key}", "invalid_api_key"))(exchange)


BAD_KEYS = {
    "invalid": (quoting_the_key, "provider_authentication_failed"),
    "arrears": (answers(429, error("Pay first", "insufficient_quota")), "provider_quota_exhausted"),
    "limited": (limited(retry_after="30"), "rate_limit_exceeded"),
}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("why", BAD_KEYS)
@pytest.mark.parametrize("model", ["k/m", "keyed"])
async def test_another_key_answers_and_the_bad_one_rests(stage: Stage, model: str, why: str, streamed: bool) -> None:
    refusal, code = BAD_KEYS[why]
    on = stage.scene(by_key(refusal, good=1))
    seen, receipt = await on.ask(model, streamed)
    assert (seen.status, seen.text, seen.done) == (200, "Hello", int(streamed))
    assert made(receipt) == [("k", "first", "failed", code, None), ("k", "retry", "finished", None, "reported")]
    assert {each["key"] for each in receipt["attempts"]} == {"1 of 2", "2 of 2"}
    bad, well_one = keys_used(on.a)
    assert {bad, well_one} == set(KEYS)
    for _ in range(3):
        _, later = await on.ask(model, streamed)
        assert made(later) == [("k", "first", "finished", None, "reported")]
    assert keys_used(on.a)[2:] == [well_one] * 3
    assert not on.b.requests


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_when_both_keys_are_bad_the_error_says_so_without_them(stage: Stage, streamed: bool) -> None:
    on = stage.scene(by_key(quoting_the_key, good=0))
    seen, receipt = await on.ask("k/m", streamed)
    assert (seen.status, seen.done) == (502, 0)
    assert seen.error is not None
    assert seen.error["code"] == "provider_authentication_failed"
    assert "answered 401: Incorrect API key" in seen.error["message"]
    assert not any(key in json.dumps([seen.error, receipt]) for key in KEYS)
    refused = ("failed", "provider_authentication_failed", None)
    assert made(receipt) == [("k", "first", *refused), ("k", "retry", *refused)]
    assert sorted(keys_used(on.a)) == sorted(KEYS)


async def test_a_route_goes_elsewhere_when_all_keys_are_bad_and_straight_there_the_next_time(stage: Stage) -> None:
    on = stage.scene(by_key(quoting_the_key, good=0))
    seen, receipt = await on.ask("keyed")
    assert (seen.text, seen.done) == ("Hello", 1)
    assert [each[:3] for each in made(receipt)] == [
        ("k", "first", "failed"),
        ("k", "retry", "failed"),
        ("b", "fallback", "finished"),
    ]
    _, later = await on.ask("keyed")
    assert made(later) == [("b", "first", "finished", None, "reported")]
    assert len(on.a.requests) == 2


# -- an old connection -----------------------------------------------------------------------------------------------


async def test_a_request_that_dies_with_a_kept_connection_is_an_attempt_of_its_own(stage: Stage) -> None:
    on = stage.scene(one_after_the_other(plays_hello, resets, plays_hello))
    await on.ask("a/m")
    _, receipt = await on.ask("a/m")
    assert len(on.a.requests) == 1 + len(receipt["attempts"])


# -- what does not fit one target ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (answers(400, error("Flagged", "content_filter")), "content_filter"),
        (answers(400, error("Too long", "context_length_exceeded")), "context_length_exceeded"),
    ],
)
async def test_a_written_fallback_takes_what_does_not_fit_a_target(stage: Stage, refusal: Script, code: str) -> None:
    on = stage.scene(refusal)
    seen, receipt = await on.ask("written")
    assert (seen.text, seen.done) == ("Hello", 1)
    assert made(receipt) == [("a", "first", "failed", code, None), ("b", "fallback", "finished", None, "reported")]


async def test_when_the_calls_time_is_over_no_other_target_is_asked(stage: Stage) -> None:
    on = stage.scene(stalls)
    seen, receipt = await on.ask("short")
    await on.nobody_is_asked()
    assert not on.b.requests
    assert (seen.status, seen.error and seen.error["code"]) == (504, "total_timeout")
    assert made(receipt) == [("c", "first", "timeout", "total_timeout", "estimated")]


async def test_when_the_calls_time_is_nearly_over_no_other_target_goes_on(stage: Stage) -> None:
    on = stage.scene(after_delta(stalls))
    seen, receipt = await on.ask("nearly")
    await on.nobody_is_asked()
    assert not on.b.requests
    assert (seen.text, seen.done) == (HALF, 0)
    assert [each[:3] for each in made(receipt)] == [("c", "first", "timeout")]


# -- in the middle of an answer --------------------------------------------------------------------------------------

BREAKS: dict[str, tuple[Script, str, str]] = {
    "closed": (after_delta(closes), "cut", "connection_lost"),
    "reset": (after_delta(resets), "cut", "connection_lost"),
    "chunk": (after_delta(breaks_a_chunk), "cut", "connection_lost"),
    "no-length": (ends_with_the_connection, "cut", "stream_cut"),
    "ends-early": (ends_early, "cut", "stream_cut"),
    "inside": (within(error("Oops"), after=True), "cut", "upstream_error"),
    "overloaded": (within(error("Full", "slow_down"), after=True), "cut", "provider_overloaded"),
    "stall": (after_delta(stalls), "timeout", "idle_timeout"),
}


@pytest.mark.parametrize("how", BREAKS)
async def test_another_target_goes_on_with_an_answer_in_one_unbroken_stream(stage: Stage, how: str) -> None:
    script, outcome, code = BREAKS[how]
    on = stage.scene(script, says(REST))
    raw = await Raw.post(on.url, asking(on.name("going-on"), stream_options={"include_usage": True}))
    assert await raw.head() == 200
    body = (await raw.body()).decode()
    raw.leave()
    seen = read_stream(raw, body)
    receipt = await receipt_of(on.http, seen)
    told = on.b.requests[0].json()["messages"]
    await on.nobody_is_asked()
    assert (seen.text, seen.finish, seen.done, seen.error) == (HALF + REST, "stop", 1, None)
    assert made(receipt) == [
        ("a", "first", outcome, code, "estimated"),
        ("b", "continuation", "finished", None, "reported"),
    ]
    assert (receipt["outcome"], receipt["error"]) == ("finished", None)
    assert [each["seam"] for each in receipt["attempts"]] == [None, len(HALF)]
    assert code in receipt["attempts"][1]["why"]
    assert {"role": "assistant", "content": HALF} in told
    chunks = [json.loads(line[6:]) for line in body.split("\n") if line.startswith("data: {")]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({chunk["model"] for chunk in chunks}) == 1
    assert sum(bool(choice["finish_reason"]) for chunk in chunks for choice in chunk["choices"]) == 1
    # of what the client has: the prompt once, and both parts of the answer
    first, second = (each["usage"] for each in receipt["attempts"])
    usage = chunks[-1]["usage"]
    assert usage["prompt_tokens"] == first["input"]
    assert usage["completion_tokens"] == first["output"] + second["output"]
    assert receipt["usage"]["input"] == first["input"] + second["input"]
    assert receipt["usage"]["output"] == first["output"] + second["output"]


async def test_a_client_that_takes_the_whole_answer_gets_one_of_one_piece(stage: Stage) -> None:
    on = stage.scene(after_delta(closes), says(REST))
    seen, receipt = await on.ask("going-on", streamed=False)
    assert (seen.text, seen.finish) == (HALF + REST, "stop")
    lost = ("a", "first", "cut", "connection_lost", "estimated")
    assert made(receipt) == [lost, ("b", "continuation", "finished", None, "reported")]


async def test_a_tool_call_that_has_begun_is_not_gone_on_with(stage: Stage) -> None:
    begun = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"ci'}}

    async def script(exchange: Exchange) -> None:
        await head(exchange)
        await exchange.chunk(sse(delta(tool_calls=[begun])))
        exchange.close()

    on = stage.scene(script)
    seen, receipt = await on.ask("going-on")
    assert not on.b.requests
    assert seen.error is not None
    assert (seen.error["code"], seen.error["request_id"]) == ("connection_lost", seen.headers["x-request-id"])
    assert (seen.status, seen.done, seen.finish) == (200, 0, None)
    assert made(receipt) == [("a", "first", "cut", "connection_lost", "estimated")]
    assert receipt["outcome"] == "cut"


async def test_an_answer_that_the_vendor_itself_broke_off_for_its_content_is_not_gone_on_with(stage: Stage) -> None:
    on = stage.scene(within(error("Flagged", "content_filter"), after=True))
    seen, receipt = await on.ask("going-on")
    assert not on.b.requests
    assert (seen.text, seen.error and seen.error["code"], seen.done) == (HALF, "content_filter", 0)
    assert made(receipt) == [("a", "first", "cut", "content_filter", "estimated")]


async def test_who_goes_on_may_die_too_and_be_asked_again(stage: Stage) -> None:
    on = stage.scene(after_delta(closes), one_after_the_other(says("lo, ", closes), says("world")))
    seen, receipt = await on.ask("going-on")
    assert (seen.text, seen.done, seen.error) == (HALF + REST, 1, None)
    lost = ("cut", "connection_lost", "estimated")
    assert made(receipt) == [
        ("a", "first", *lost),
        ("b", "continuation", *lost),
        ("b", "continuation", "finished", None, "reported"),
    ]
    assert [each["seam"] for each in receipt["attempts"]] == [None, len(HALF), len(HALF + "lo, ")]


@pytest.mark.parametrize("refusal", [answers(500, error("Oops")), closes, after_head(closes)])
async def test_when_nobody_can_go_on_the_stream_says_that_it_was_cut(stage: Stage, refusal: Script) -> None:
    on = stage.scene(after_delta(closes), refusal)
    seen, receipt = await on.ask("going-on")
    assert len(on.a.requests) + len(on.b.requests) == len(receipt["attempts"])
    assert (seen.status, seen.text, seen.done, seen.finish) == (200, HALF, 0, None)
    assert seen.error is not None
    assert (seen.error["code"], seen.error["request_id"]) == ("connection_lost", seen.headers["x-request-id"])
    assert (receipt["outcome"], receipt["error"]["code"]) == ("cut", "connection_lost")
    assert [each[:3] for each in made(receipt)] == [("a", "first", "cut"), ("b", "continuation", "failed")]


# -- side by side ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("slow", [stalls, after_head(stalls)], ids=["before the headers", "after the headers"])
async def test_the_quicker_of_two_answers_and_the_other_is_cancelled_and_billed(
    stage: Stage, slow: Script, streamed: bool
) -> None:
    on = stage.scene(slow)
    seen, receipt = await on.ask("hedged", streamed)
    # the connection is closed, though the vendor would have gone on for ever
    await on.nobody_is_asked()
    assert on.a.abandoned == 1
    assert len(on.a.requests) == len(on.b.requests) == 1
    assert (seen.text, seen.done, seen.error) == ("Hello", int(streamed), None)
    assert made(receipt) == [("c", "first", "stopped", None, "estimated"), ("b", "hedge", "finished", None, "reported")]
    assert (receipt["outcome"], receipt["target"]) == ("finished", on.name("b/m"))
    assert seen.headers["x-deltaway-target"] == on.name("b/m")
    loser, winner = (each["usage"] for each in receipt["attempts"])
    assert loser["input"] > 0
    assert receipt["usage"]["input"] == loser["input"] + winner["input"]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_the_first_may_still_win(stage: Stage, streamed: bool) -> None:
    second_is_asked = asyncio.Event()
    on = stage.scene(once(second_is_asked, well), noting(second_is_asked, stalls))
    seen, receipt = await on.ask("hedged", streamed)
    await on.nobody_is_asked()
    assert on.b.abandoned == 1
    assert (seen.text, seen.done) == ("Hello", int(streamed))
    assert made(receipt) == [("c", "first", "finished", None, "reported"), ("b", "hedge", "stopped", None, "estimated")]
    assert (receipt["outcome"], receipt["target"]) == ("finished", on.name("c/m"))
    assert seen.headers["x-deltaway-target"] == on.name("c/m")


async def test_a_first_target_that_fails_at_once_is_followed_not_hedged(stage: Stage) -> None:
    on = stage.scene(answers(500, error("Oops")))
    seen, receipt = await on.ask("hedged")
    assert (seen.text, seen.done) == ("Hello", 1)
    assert [each[:3] for each in made(receipt)] == [("c", "first", "failed"), ("b", "fallback", "finished")]


@pytest.mark.parametrize("first_to_fail", ["first", "hedge"])
async def test_when_one_of_two_fails_the_other_answers(stage: Stage, first_to_fail: str) -> None:
    asked, failed = asyncio.Event(), asyncio.Event()
    fails = answers(500, error("Oops"))
    if first_to_fail == "first":
        scripts = once(asked, fails), noting(asked, once(failed, well))
    else:
        scripts = once(failed, well), fails
    on = stage.scene(*scripts)
    asking_ = asyncio.ensure_future(on.ask("hedged"))
    failing = on.a if first_to_fail == "first" else on.b
    async with asyncio.timeout(5):
        while not failing.requests or failing.busy:
            await asyncio.sleep(0.01)
    failed.set()
    seen, receipt = await asking_
    assert (seen.text, seen.done, seen.error) == ("Hello", 1, None)
    assert {each["role"]: each["outcome"] for each in receipt["attempts"]} == (
        {"first": "failed", "hedge": "finished"}
        if first_to_fail == "first"
        else {"first": "finished", "hedge": "failed"}
    )


async def test_when_both_of_two_fail_the_client_is_told_and_both_are_on_record(stage: Stage) -> None:
    asked = asyncio.Event()
    fails = answers(503, error("Full"))
    on = stage.scene(one_after_the_other(once(asked, fails), fails), noting(asked, fails))
    seen, receipt = await on.ask("hedged")
    assert len(on.a.requests) + len(on.b.requests) == len(receipt["attempts"])
    assert (seen.status, seen.error and seen.error["code"]) == (503, "provider_overloaded")
    assert [each[:3] for each in made(receipt)][:2] == [("c", "first", "failed"), ("b", "hedge", "failed")]
    assert all(each["outcome"] == "failed" for each in receipt["attempts"])


async def test_a_hedge_whose_winner_dies_is_gone_on_with(stage: Stage) -> None:
    on = stage.scene(stalls, one_after_the_other(says(HALF, closes), says(REST)))
    seen, receipt = await on.ask("hedged")
    await on.nobody_is_asked()
    assert (len(on.a.requests), len(on.b.requests)) == (1, 2)
    assert (seen.text, seen.done, seen.error) == (HALF + REST, 1, None)
    assert made(receipt) == [
        ("c", "first", "stopped", None, "estimated"),
        ("b", "hedge", "cut", "connection_lost", "estimated"),
        ("b", "continuation", "finished", None, "reported"),
    ]


# -- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_before_a_retry_is_the_end_of_it(stage: Stage, streamed: bool) -> None:
    on = stage.scene(limited(retry_after="5"))
    raw = await on.begin("same", streamed)
    await on.receipt_when(lambda receipt: any(each["outcome"] for each in receipt["attempts"]))
    raw.leave()
    receipt = await on.has_ended()
    await on.nobody_is_asked()
    assert len(on.a.requests) == 1
    assert receipt["outcome"] == "client_gone"
    assert made(receipt) == [("a", "first", "failed", "rate_limit_exceeded", None)]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_a_fallback_ends_it(stage: Stage, streamed: bool) -> None:
    asked = asyncio.Event()
    on = stage.scene(answers(500, error("Oops")), noting(asked, stalls))
    raw = await on.begin("pair", streamed)
    await asked.wait()
    raw.leave()
    receipt = await on.has_ended()
    await on.nobody_is_asked()
    assert on.b.abandoned == 1
    assert receipt["outcome"] == "client_gone"
    assert made(receipt) == [
        ("a", "first", "failed", "upstream_error", None),
        ("b", "fallback", "client_gone", None, "estimated"),
    ]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("stalled", [stalls, after_head(stalls)], ids=["before the headers", "after the headers"])
async def test_a_client_that_leaves_a_hedge_ends_both(stage: Stage, stalled: Script, streamed: bool) -> None:
    asked = asyncio.Event()
    on = stage.scene(stalled, noting(asked, stalled))
    raw = await on.begin("hedged", streamed)
    await asked.wait()
    raw.leave()
    receipt = await on.has_ended()
    await on.nobody_is_asked()
    assert (on.a.abandoned, on.b.abandoned) == (1, 1)
    assert receipt["outcome"] == "client_gone"
    gone = ("client_gone", None, "estimated")
    assert made(receipt) == [("c", "first", *gone), ("b", "hedge", *gone)]


async def test_a_client_that_leaves_before_the_continuation_begins_ends_it(stage: Stage) -> None:
    asked = asyncio.Event()
    on = stage.scene(after_delta(closes), noting(asked, stalls))
    raw = await on.begin("going-on")
    await asked.wait()
    raw.leave()
    receipt = await on.has_ended()
    await on.nobody_is_asked()
    assert on.b.abandoned == 1
    assert receipt["outcome"] == "client_gone"
    assert made(receipt) == [
        ("a", "first", "cut", "connection_lost", "estimated"),
        ("b", "continuation", "client_gone", None, "estimated"),
    ]


async def test_a_client_that_leaves_the_continuation_ends_it(stage: Stage) -> None:
    on = stage.scene(after_delta(closes), drips(0.01))
    raw = await on.begin("going-on")
    await raw.head()
    while b"tick" not in await raw.chunk():
        pass
    raw.leave()
    receipt = await on.has_ended()
    await on.nobody_is_asked()
    assert on.b.abandoned == 1
    assert receipt["outcome"] == "client_gone"
    assert made(receipt) == [
        ("a", "first", "cut", "connection_lost", "estimated"),
        ("b", "continuation", "client_gone", None, "estimated"),
    ]
    assert receipt["attempts"][1]["usage"]["output"] > 0


@pytest.mark.parametrize("script", [stalls, after_head(stalls), after_delta(stalls), drips(0.01)])
async def test_a_client_that_leaves_the_first_attempt_ends_it(stage: Stage, script: Script) -> None:
    asked = asyncio.Event()
    on = stage.scene(noting(asked, script))
    raw = await on.begin("c/m")
    await asked.wait()
    raw.leave()
    receipt = await on.has_ended()
    await on.nobody_is_asked()
    assert on.a.abandoned == 1
    assert receipt["outcome"] == "client_gone"
    assert made(receipt) == [("c", "first", "client_gone", None, "estimated")]
