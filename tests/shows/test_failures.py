"""Every failure of a vendor, streamed and whole, by name and through routes: what the client saw, and what the ledger
says. All are played to one gateway at once, over real sockets. `pytest -s` prints the table.
"""

import asyncio
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from shows.failing import TEXT, WAYS, Ends, Failure, Player, all_failures, well

from router.app import create_app
from support.raw import Raw
from support.serving import asking, client, gateway, served
from support.vendor import vendor

AT_ONCE = 40
FAILURES = all_failures()
CASES = [
    pytest.param(name, way, streamed, id=f"{name}-{way}-{'streamed' if streamed else 'whole'}")
    for name in FAILURES
    for way in WAYS
    for streamed in (True, False)
]
PROMPT_TOKENS, ANSWER_TOKENS = 9, 2
"""What a vendor that is well reports."""

# an attempt: target's provider, role, outcome, error's code, whose count its tokens are
Made = tuple[str, str, str, str | None, str | None]


@dataclass
class Seen:
    """An answer as its client saw it."""

    status: int
    headers: dict[str, str]
    text: str = ""
    error: dict[str, Any] | None = None
    done: int = 0
    """How often `[DONE]` came."""
    finish: str | None = None


@dataclass
class Played:
    seen: Seen
    receipt: dict[str, Any]
    asked: list[float]
    """When the failing vendor was asked for it."""
    asked_other: int
    """How often the other one was."""


def model_of(name: str, way: str, streamed: bool) -> str:
    return f"{name}.{way}.{'streamed' if streamed else 'whole'}"


def provider_of(failure: Failure, model: str) -> str:
    return model.replace(".", "-") if failure.rests_key else failure.provider


def config(failing: str, other: str, nobody: str, directory: Path) -> str:
    """`impatient`, `watched` and `nobody` are other rows for the failing vendor, or for no vendor at all."""
    a = {"protocol": "openai", "base_url": f"{failing}/v1"}
    q = {"protocol": "dashscope", "base_url": f"{failing}/api/v1"}
    providers: dict[str, Any] = {
        "a": {**a, "api_key": "sk-of-a-vendor"},
        "q": {**q, "api_key": "sk-of-q-vendor"},
        "b": {"protocol": "openai", "base_url": f"{other}/v1", "api_key": "sk-of-b-vendor"},
        "nobody": {"protocol": "openai", "base_url": f"{nobody}/v1"},
        "impatient": {**a, "timeouts": {"first_token": "1s", "idle": "300ms"}},
        "watched": {**a, "timeouts": {"first_token": "1s", "min_rate": 100, "total": "20s"}},
    }
    models: dict[str, Any] = {}
    for failure in FAILURES.values():
        for way in WAYS:
            for streamed in (True, False):
                model = model_of(failure.name, way, streamed)
                provider = provider_of(failure, model)
                if failure.rests_key:
                    providers[provider] = providers[failure.provider]
                if way == "pair":
                    models[model] = {"targets": [f"{provider}/{model}", f"b/{model}"]}
                elif way == "same":
                    models[model] = {"targets": [f"{provider}/{model}"], "retry": {"attempts": 2, "backoff": "10ms"}}
    written = {
        "store": f"sqlite:///{directory}/deltaway.db",
        "ledger": {"journal": f"{directory}/deltaway.journal", "tokenizer": False},
        "providers": providers,
        "models": models,
        "plugins": ["logging", "usage"],
    }
    return json.dumps(written)


async def play_all(directory: Path) -> dict[str, Played]:
    """By model."""
    player = Player(FAILURES)
    async with AsyncExitStack() as stack:
        nobody = stack.enter_context(socket.socket())
        # bound and not listening: connections are refused, and the port is nobody else's
        nobody.bind(("127.0.0.1", 0))
        failing, other = (
            await stack.enter_async_context(vendor(player.play)),
            await stack.enter_async_context(vendor(well)),
        )
        text = config(
            failing.url.removesuffix("/v1"),
            other.url.removesuffix("/v1"),
            f"http://127.0.0.1:{nobody.getsockname()[1]}",
            directory,
        )
        url = await stack.enter_async_context(served(create_app(gateway(text))))
        http = await stack.enter_async_context(client(url))
        places = asyncio.Semaphore(AT_ONCE)

        async def one(failure: Failure, way: str, streamed: bool) -> tuple[str, Seen]:
            model = model_of(failure.name, way, streamed)
            asked = f"{provider_of(failure, model)}/{model}" if way == "named" else model
            async with places:
                return model, await ask(url, asked, streamed)

        # first what takes the longest
        failures = sorted(FAILURES.values(), key=lambda failure: failure.provider != "watched")
        each = [(failure, way, streamed) for failure in failures for way in WAYS for streamed in (True, False)]
        seen = dict(await asyncio.gather(*[one(*case) for case in each]))
        receipts = await all_receipts(http)
        assert receipts.keys() == {of.headers["x-request-id"] for of in seen.values()}
        for played in (failing, other):
            await played.settled()
        others = Counter(request.json()["model"] for request in other.requests)
    return {
        model: Played(of, receipts[of.headers["x-request-id"]], player.asked.get(model, []), others[model])
        for model, of in seen.items()
    }


async def ask(url: str, model: str, streamed: bool, **more: Any) -> Seen:
    raw = await Raw.post(url, asking(model, streamed, **more))
    try:
        await raw.head()
        body = await raw.body()
    finally:
        raw.leave()
    if raw.headers["content-type"].startswith("text/event-stream"):
        return read_stream(raw, body.decode())
    seen, value = Seen(raw.status, raw.headers), json.loads(body)
    if "error" in value:
        seen.error = value["error"]
    else:
        choice = value["choices"][0]
        seen.text, seen.finish = choice["message"]["content"], choice["finish_reason"]
    return seen


def read_stream(raw: Raw, body: str) -> Seen:
    """Nothing may follow `[DONE]` or an error."""
    seen = Seen(raw.status, raw.headers)
    *events, rest = body.split("\n\n")
    assert rest == "", "the last event is not complete"
    for event in events:
        assert seen.error is None, "something follows the error"
        assert not seen.done, "something follows [DONE]"
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            seen.done += 1
            continue
        chunk = json.loads(data)
        seen.error = chunk.get("error")
        for choice in chunk.get("choices", ()):
            seen.text += choice["delta"].get("content") or ""
            seen.finish = choice["finish_reason"] or seen.finish
    return seen


async def receipt_of(http: httpx.AsyncClient, seen: Seen) -> dict[str, Any]:
    response = await http.get(f"/v1/requests/{seen.headers['x-request-id']}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def all_receipts(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """By request id."""
    found: dict[str, dict[str, Any]] = {}
    cursor: dict[str, str] = {}
    while True:
        page = (await http.get("/v1/requests", params={"limit": "100", **cursor})).json()
        found |= {receipt["id"]: receipt for receipt in page["data"]}
        if not page["has_more"]:
            return found
        cursor = {"after": page["last_id"]}


def made(receipt: dict[str, Any]) -> list[Made]:
    return [
        (
            each["target"].partition("/")[0],
            each["role"],
            each["outcome"],
            each["error"] and each["error"]["code"],
            each["usage"] and each["usage"]["source"],
        )
        for each in receipt["attempts"]
    ]


# -- what is expected ------------------------------------------------------------------------------------------------


def follows(failure: Failure, way: str, streamed: bool) -> tuple[Ends | None, list[Made]]:
    """How it ends for the client (None: it is answered), and the attempts."""
    ends, model = failure.ends(streamed=streamed), model_of(failure.name, way, streamed)
    provider = provider_of(failure, model)
    first: Made = (provider, "first", ends.outcome, ends.code, ends.source)
    if way == "pair" and ends.mends != "nothing":
        return None, [first, ("b", "fallback", "finished", None, "reported")]
    if way == "same" and ends.mends == "anywhere":
        if failure.always:
            return ends, [first, (provider, "retry", *first[2:])]
        return None, [first, (provider, "retry", "finished", None, "reported")]
    return ends, [first]


@pytest.fixture(scope="module")
def all_played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Played]]:
    played = asyncio.run(play_all(tmp_path_factory.mktemp("failures")))
    yield played
    print("\n" + table(played))


@pytest.fixture
def played(all_played: dict[str, Played], name: str, way: str, streamed: bool) -> Played:
    return all_played[model_of(name, way, streamed)]


@pytest.mark.parametrize(("name", "way", "streamed"), CASES)
def test_what_the_client_sees(played: Played, name: str, way: str, streamed: bool) -> None:
    seen, (ends, _) = played.seen, follows(FAILURES[name], way, streamed)
    if ends is None:
        assert (seen.status, seen.text, seen.finish, seen.error) == (200, TEXT, "stop", None)
        assert seen.done == streamed
        return
    assert seen.error is not None, seen
    assert (seen.status, seen.error["code"], seen.done) == (ends.status, ends.code, 0)
    assert re.fullmatch(ends.text, seen.text)
    assert seen.finish is None
    assert seen.headers.get("retry-after") == ends.retry_after
    assert seen.error["message"]
    assert "sk-of" not in json.dumps(seen.error)
    if ends.status == 200:
        # there is no other way left to say which request it was
        assert seen.error["request_id"] == seen.headers["x-request-id"]


@pytest.mark.parametrize(("name", "way", "streamed"), CASES)
def test_the_ledger_has_every_attempt_and_no_other(played: Played, name: str, way: str, streamed: bool) -> None:
    receipt, (ends, attempts) = played.receipt, follows(FAILURES[name], way, streamed)
    assert made(receipt) == attempts
    assert [each["n"] for each in receipt["attempts"]] == list(range(1, len(attempts) + 1))
    assert played.seen.headers["x-deltaway-attempts"] == str(len(attempts))
    assert receipt["stream"] is streamed
    if ends is None:
        assert (receipt["outcome"], receipt["error"]) == ("finished", None)
        usage = receipt["attempts"][-1]["usage"]
        assert (usage["input"], usage["output"]) == (PROMPT_TOKENS, ANSWER_TOKENS)
    else:
        assert (receipt["outcome"], receipt["error"]["code"]) == (ends.outcome, ends.code)
    for each in receipt["attempts"]:
        assert each["role"] == "first" or each["why"], "an attempt that is not the first says why it was made"
        assert each["usage"] is None or each["usage"]["input"] > 0
    others = sum(provider == "b" for provider, *_ in attempts)
    assert played.asked_other == others
    assert len(played.asked) == (len(attempts) - others if FAILURES[name].heard else 0)
    sums = [each["usage"]["output"] for each in receipt["attempts"] if each["usage"]]
    assert (receipt["usage"] or {"output": 0})["output"] == sum(sums)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", [each.name for each in FAILURES.values() if each.wait])
def test_a_vendor_that_says_when_is_not_asked_before(all_played: dict[str, Played], name: str, streamed: bool) -> None:
    first, second = all_played[model_of(name, "same", streamed)].asked
    assert second - first >= FAILURES[name].wait


# -- the table -------------------------------------------------------------------------------------------------------


def table(played: dict[str, Played]) -> str:
    """In Markdown: the streamed calls."""
    lines = [
        "| failure | by name: the client saw | the ledger says | a route of two targets | a route that tries again |",
        "|---|---|---|---|---|",
    ]
    for failure in FAILURES.values():
        named, pair, same = (played[model_of(failure.name, way, True)] for way in WAYS)
        cells = (failure.shown, saw(named.seen), said(named), followed(pair), followed(same))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def saw(seen: Seen) -> str:
    after = f", retry-after {seen.headers['retry-after']}" if "retry-after" in seen.headers else ""
    text = seen.text if len(seen.text) < 20 else seen.text[:14] + "…"
    if seen.error is None:
        return f'{seen.status}, "{text}", {"`[DONE]`" if seen.done else "no `[DONE]`"}'
    if seen.status == 200:
        return f'200, "{text}", error `{seen.error["code"]}`, {"`[DONE]`" if seen.done else "no `[DONE]`"}'
    return f"{seen.status} `{seen.error['code']}`{after}"


def said(played: Played) -> str:
    return "; ".join(_attempt(each) for each in played.receipt["attempts"])


def followed(played: Played) -> str:
    if len(played.receipt["attempts"]) == 1:
        return "the same"
    rest = "; ".join(f"{each['role']} {_attempt(each)}" for each in played.receipt["attempts"][1:])
    return f"{saw(played.seen)}; then {rest}"


def _attempt(each: dict[str, Any]) -> str:
    usage, code = each["usage"], f" `{each['error']['code']}`" if each["error"] else ""
    tokens = f"{usage['input']}+{usage['output']} {usage['source']}" if usage else "no tokens"
    return f"{each['outcome']}{code}, {tokens}"
