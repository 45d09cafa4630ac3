"""`/v1/experiments` and `deltaway experiments` against a running gateway: calls, feedback, report."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from router.app import create_app
from router.cli import main
from support.serving import asking, client, gateway, served

CONFIG = """
providers: {mock: {protocol: mock}}
models: {chat: {targets: [mock/echo]}}
experiments:
  trial:
    route: chat
    arms: {control: {share: 50}, long: {share: 50, target: mock/lorem-20}}
    metrics: {thumbs: {kind: binary}}
    guardrails: [{metric: errors, worse_by: 50}]
plugins: [auth]
"""
ADMIN = "an-admin-key-that-is-long-enough-for-this"


@pytest.fixture
async def url(own_directory: Path) -> AsyncIterator[str]:
    async with served(create_app(gateway(CONFIG, {"DELTAWAY_ADMIN_KEY": ADMIN}))) as url:
        yield url


async def called(http: httpx.AsyncClient, user: str) -> tuple[str, str]:
    """The id and the arm of one call."""
    answer = await http.post("/v1/chat/completions", json=asking("chat", stream=False, user=user))
    assert answer.status_code == 200, answer.text
    return answer.headers["x-request-id"], answer.headers["x-deltaway-experiment"].removeprefix("trial=")


async def test_calls_and_feedback_are_in_the_report_at_once(url: str) -> None:
    async with client(url, key=ADMIN) as http:
        arms: dict[str, list[str]] = {"control": [], "long": []}
        for number in range(40):
            call_id, arm = await called(http, f"u{number % 20}")
            arms[arm].append(call_id)
        assert all(arms.values())
        given = {"request_id": arms["long"][0], "metric": "thumbs", "value": True}
        assert (await http.post("/v1/feedback", json=given)).status_code == 200
        report: dict[str, Any] = (await http.get("/v1/experiments/trial")).json()
    by_name = {arm["name"]: arm for arm in report["arms"]}
    assert {name: arm["exposures"] for name, arm in by_name.items()} == {name: len(ids) for name, ids in arms.items()}
    assert sum(arm["units"] for arm in report["arms"]) == 20
    assert by_name["long"]["metrics"]["thumbs"]["value"] == 1.0
    assert by_name["control"]["metrics"]["errors"]["value"] == 0.0
    assert by_name["long"]["metrics"]["duration"]["observations"] == len(arms["long"])
    assert by_name["long"]["metrics"]["errors"]["verdict"] == "too_early"
    assert report["sample_ratio"]["alarm"] is False
    assert report["sentences"]


async def test_experiments_are_listed_and_an_unknown_one_is_named(url: str) -> None:
    async with client(url, key=ADMIN) as http:
        listed = (await http.get("/v1/experiments")).json()
        assert [(each["id"], each["control"], each["metrics"]) for each in listed["data"]] == [
            ("trial", "control", ["thumbs"])
        ]
        unknown = await http.get("/v1/experiments/trail")
    assert unknown.status_code == 404
    assert "did you mean `trial`" in unknown.json()["error"]["message"]


async def test_only_operators_see_experiments(url: str) -> None:
    async with client(url, key=ADMIN) as http:
        made = (await http.post("/admin/keys", json={"name": "somebody"})).json()
    async with client(url, key=made["key"]) as http:
        assert (await http.get("/v1/experiments")).status_code == 403
        assert (await http.get("/v1/experiments/trial")).status_code == 403
    async with client(url) as http:
        assert (await http.get("/v1/experiments")).status_code == 401


async def test_the_command_prints_the_report_and_its_json(url: str) -> None:
    async with client(url, key=ADMIN) as http:
        for number in range(4):
            await called(http, f"u{number}")

    def run(*words: str) -> str:
        done = CliRunner().invoke(main, ["experiments", *words, "--url", url, "--key", ADMIN])
        assert done.exit_code == 0, done.output
        return done.output

    assert "trial" in await asyncio.to_thread(run)
    printed = await asyncio.to_thread(run, "trial")
    assert "control" in printed
    assert "nothing can be said yet" in printed
    assert json.loads(await asyncio.to_thread(run, "trial", "--json"))["name"] == "trial"
