"""`deltaway requests`, `usage` and `reconcile` as a person uses them, against the real routes on a real store."""

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import click
import httpx
import pytest
from click.testing import CliRunner, Result
from msgspec import structs

from router.cli import chat
from router.client import GatewayError, _refusal
from router.commands.reconcile import reconcile
from router.commands.requests import requests
from router.commands.usage import usage
from router.ledger.rows import Gap
from router.store.store import Store
from support.ledgers import START, Book, Ledger, random_ledger
from tests.reports.routes import asking

BILLS = Path(__file__).parent / "bills"
SEPTEMBER = ("--from", "2026-09", "--to", "2026-12")
Run: TypeAlias = Callable[..., Awaitable[Result]]


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command whose client asks the routes of `store`."""

    async def run(command: click.Command, *words: str | Path, width: int = 220) -> Result:
        loop = asyncio.get_running_loop()

        async def got(path: str) -> httpx.Response:
            async with asking(store, Book(dearer=2)) as client:
                return await client.get(path)

        class Client:
            def __init__(self, url: str, key: str | None) -> None:
                pass

            def text(self, path: str) -> str:
                answer = asyncio.run_coroutine_threadsafe(got(path), loop).result(30)
                if answer.status_code != 200:
                    raise GatewayError(answer.json()["error"]["message"])
                return answer.text

            def models(self) -> list[dict[str, Any]]:
                return [
                    *({"id": f"{name}/a", "owned_by": name} for name in ("idle", "openai")),
                    {"id": "chat", "owned_by": "deltaway"},
                ]

            def call(self, method: str, path: str, body: Any | None = None) -> Any:
                assert (method, body) == ("GET", None)
                return json.loads(self.text(path))

        monkeypatch.setattr("router.commands.gateway.Client", Client)
        monkeypatch.setenv("COLUMNS", str(width))
        return await asyncio.to_thread(CliRunner().invoke, command, [str(word) for word in words])

    return run


@pytest.fixture
async def ledger(store: Store) -> Ledger:
    made = random_ledger(21, 60, days=30)
    # a client may put anything into its labels
    first = made.calls[0]
    odd = "\x1b[31mred\x07[bold]x"
    made.calls[0] = structs.replace(first, labels=structs.replace(first.labels, user=odd, model=odd))
    made.gaps.append(Gap("gap_1", "j", START, START + 500, 3, 4, 5, 6, {"CNY": 70}))
    await made.into(store)
    return made


# -- requests --------------------------------------------------------------------------------------------------------


async def test_requests_lists_the_newest_and_says_how_to_go_on(run: Run, ledger: Ledger) -> None:
    ids = sorted((call.id for call in ledger.calls), reverse=True)
    first = await run(requests, "--limit", "10")
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:11]] == ids[:10]
    assert f"--after {ids[9]}" in first.stderr
    second = await run(requests, "--limit", "100", "--after", ids[9])
    assert [line.split()[0] for line in second.stdout.splitlines()[1:]] == ids[10:]
    assert second.stderr == ""


async def test_requests_filters_and_prints_json(run: Run, ledger: Ledger) -> None:
    answer = await run(
        requests, "--outcome", "failed,refused", "--key-id", "dw-one", "--tag", "team=a", "--limit", "100", "--json"
    )
    found = {row["id"] for row in json.loads(answer.stdout)["data"]}
    wanted = {
        call.id
        for call in ledger.calls
        if call.outcome in ("failed", "refused") and (call.labels.key, call.labels.tags.get("team")) == ("dw-one", "a")
    }
    assert found == wanted != set()


async def test_requests_shows_one_call_in_words(run: Run, ledger: Ledger) -> None:
    row = next(row for row in ledger.attempts if row.cost and row.currency and row.source == "reported" and row.n == 2)
    answer = await run(requests, row.call_id)
    assert answer.exit_code == 0
    text = answer.stdout
    assert f"attempt 2 at {row.provider}/{row.model}" in text
    assert f"at {row.price}" in text
    assert "first token 310 ms" in text
    assert "auth 0.1 ms" in text
    assert "asked by name" in text or "asked for by name" in text
    assert json.loads((await run(requests, row.call_id, "--json")).stdout)["id"] == row.call_id


async def test_no_escape_sequence_of_a_client_reaches_the_terminal(run: Run, ledger: Ledger) -> None:
    for words in ([ledger.calls[0].id], ["--limit", "100"]):
        answer = await run(requests, *words)
        assert "?[31mred?[bold]x" in answer.stdout
        assert "\x07" not in answer.stdout


async def test_a_refusal_is_told_in_the_gateways_words(run: Run, ledger: Ledger) -> None:
    missing = await run(requests, "req_00000000000000000000000000")
    assert missing.exit_code == 1
    assert "no request of that id" in missing.stderr
    wrong = await run(requests, "--outcome", "finishd")
    assert wrong.exit_code == 1
    assert "did you mean `finished`" in " ".join(wrong.stderr.split())
    assert (await run(requests, "req_1", "--model", "m")).exit_code == 2


# -- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_prints_a_table_and_what_it_would_hide(run: Run, ledger: Ledger) -> None:
    answer = await run(usage, "--by", "provider,tag:team", "--bucket", "month", "--rerate", *SEPTEMBER)
    assert answer.exit_code == 0, answer.output
    text = answer.stdout
    assert "2026-09-01T00:00:00Z to 2027-01-01T00:00:00Z" in text
    assert "2026-09" in text
    assert "eurovend" in text
    (total,) = [line for line in text.splitlines() if line.strip().startswith("all")]
    assert f"{len(ledger.calls)}" in total
    for words in ("price that is not known", "estimated", "do not add up", "counted anew", "could not be recorded"):
        assert words in answer.stderr
    report = json.loads((await run(usage, "--by", "provider", "--json", *SEPTEMBER)).stdout)
    assert report["total"]["requests"] == len(ledger.calls)


async def test_usage_prints_csv_and_focus(run: Run, ledger: Ledger) -> None:
    answer = await run(usage, "--by", "model", "--csv", *SEPTEMBER)
    rows = list(csv.DictReader(io.StringIO(answer.stdout)))
    assert sum(int(row["requests"]) for row in rows) == len(ledger.calls)
    focus = await run(usage, "--focus", *SEPTEMBER)
    assert focus.stdout.startswith("BilledCost,")
    assert "without a known price" in focus.stderr
    for words in (["--focus", "--csv"], ["--focus", "--by", "model"]):
        assert (await run(usage, *words)).exit_code == 2


async def test_usage_of_nothing_is_a_sum_of_nothing(run: Run) -> None:
    answer = await run(usage)
    assert answer.exit_code == 0
    assert "0.00" in answer.stdout


# -- reconcile -------------------------------------------------------------------------------------------------------


def billed(ledger: Ledger, provider: str) -> str:
    """The bill of a vendor that has counted as we have."""
    lines = ["day,model,requests,in,out,cost,currency"]
    for row in ledger.attempts:
        if row.provider == provider and row.source is not None:
            day = f"{(row.created_at // 1000)}"
            prompt = row.input + row.cache_read + row.cache_write + row.cache_write_1h
            cost = f"{(row.cost or 0) // 10**9}.{(row.cost or 0) % 10**9:09d}"
            lines.append(f"{day},{row.model}-2026-08-07,1,{prompt},{row.output + row.reasoning},{cost},{row.currency}")
    return "\n".join(lines) + "\n"


MAPPING = (
    "columns: {date: day, model: model, requests: requests, prompt: in, output: out, cost: cost, currency: currency}\n"
)


@pytest.mark.parametrize("zone", ["UTC", "+08:00", "-05:00"])
async def test_a_bill_that_agrees_is_told_so(run: Run, ledger: Ledger, tmp_path: Path, zone: str) -> None:
    (tmp_path / "bill.csv").write_text(billed(ledger, "openai"))
    (tmp_path / "columns.yaml").write_text(MAPPING)
    words = ("--mapping", tmp_path / "columns.yaml", "--provider", "openai", "--rounding", "0", "--timezone", zone)
    answer = await run(reconcile, tmp_path / "bill.csv", *words)
    assert answer.exit_code == 0, answer.output
    assert "agree" in answer.stdout


async def test_a_bill_that_differs_ends_with_one(run: Run, ledger: Ledger, tmp_path: Path) -> None:
    lines = billed(ledger, "openai").splitlines()
    # one attempt less, one of another model more, one costs more
    day, model, *rest = lines[2].split(",")
    rest[3] = "7.5"
    changed = [lines[0], ",".join([day, model, *rest]), *lines[3:], f"{day},ghost,1,5,5,0.1,USD"]
    (tmp_path / "bill.csv").write_text("\n".join(changed))
    (tmp_path / "columns.yaml").write_text(MAPPING)
    words = (tmp_path / "bill.csv", "--mapping", tmp_path / "columns.yaml", "--provider", "openai")
    answer = await run(reconcile, *words)
    assert answer.exit_code == 1
    assert "in the bill, not in the ledger" in answer.stdout
    assert "ghost" in answer.stdout
    assert "7.50 USD" in answer.stdout or "%" in answer.stdout
    told = json.loads((await run(reconcile, *words, "--json")).stdout)
    assert not told["agrees"]
    assert {"missing_in": "ledger", "model": "ghost"}.items() <= told["missing"][-1].items()
    assert any(found["measure"] == "cost" and found["currency"] == "USD" for found in told["differences"])


async def test_whose_bill_it_is_must_be_said_when_it_could_be_several(run: Run, ledger: Ledger) -> None:
    answer = await run(reconcile, BILLS / "openai-activity.csv")
    assert answer.exit_code == 2
    assert "--provider" in answer.stderr


async def test_a_bill_of_nobody_who_is_known_is_an_error(run: Run, ledger: Ledger) -> None:
    unknown = await run(reconcile, BILLS / "openai-activity.csv", "--provider", "opneai", width=2000)
    assert unknown.exit_code == 2
    assert "`opneai` is no provider of the gateway: did you mean `openai`?" in " ".join(unknown.stderr.split())
    # configured, and never called: all of the bill is missing
    idle = await run(reconcile, BILLS / "openai-activity.csv", "--provider", "idle")
    assert idle.exit_code == 1
    assert "nothing of `idle` in this time" in " ".join(idle.stderr.split())
    # no longer configured, and in the ledger of another time
    (provider,) = {row.provider for row in ledger.attempts} & {"eurovend"}
    gone = await run(reconcile, BILLS / "alibaba-old.csv", "--provider", provider)
    assert gone.exit_code == 1


@pytest.mark.parametrize(
    ("environ", "used"),
    [
        ({"DELTAWAY_API_KEY": "own", "DELTAWAY_ADMIN_KEY": "root"}, "own"),
        ({"DELTAWAY_ADMIN_KEY": "root"}, "root"),
        ({}, None),
    ],
)
@pytest.mark.parametrize("words", [[requests], [usage], [reconcile, str(BILLS / "openai-activity.csv")], [chat]])
def test_the_key_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, words: list[Any], environ: dict[str, str], used: str | None
) -> None:
    keys = []

    class Client:
        def __init__(self, url: str, key: str | None) -> None:
            keys.append(key)
            raise GatewayError("stop here")

    monkeypatch.setattr("router.commands.gateway.Client", Client)
    for name in ("DELTAWAY_API_KEY", "DELTAWAY_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(words[0], words[1:], env=environ, input="hello")
    assert "stop here" in result.stderr
    assert keys == [used]


def test_who_is_refused_hears_of_both_variables() -> None:
    words = _refusal(401, b'{"error": {"message": "no key was sent"}}')
    assert "DELTAWAY_API_KEY or DELTAWAY_ADMIN_KEY" in words


async def test_a_bill_of_time_that_the_ledger_knows_nothing_of(run: Run) -> None:
    answer = await run(reconcile, BILLS / "alibaba-new.csv")
    assert answer.exit_code == 1
    assert "qwen-plus" in answer.stdout


WRONG = {
    "no file": ("nowhere.csv", None, "cannot be read"),
    "no bill": ("a,b\n1,2\n", None, "of no known bill"),
    "bad cell": ("start_time,input_tokens,output_tokens\nnow,1,2\n", None, "line 2: column 1"),
    "says nothing": ("start_time,input_tokens,output_tokens\n", None, "no line of it says anything"),
    "unknown key": ("d\n", "colums: {}\n", "colums.*did you mean `columns`"),
    "unknown column": ("d\n", "columns: {dat: d}\n", "did you mean `date`"),
    "bad zone": ("d\n", "timezone: +05:30\n", "whole hours"),
    "bad currency": ("d\n", "currency: doubloon\n", "ISO 4217"),
    "not YAML": ("d\n", "columns: [\n", "columns.yaml:"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_cannot_be_read_is_told_with_its_place(run: Run, tmp_path: Path, case: str) -> None:
    import re

    text, mapping, words = WRONG[case]
    file = tmp_path / ("nowhere.csv" if case == "no file" else "bill.csv")
    if case != "no file":
        file.write_text(text)
    options: list[str | Path] = []
    if mapping is not None:
        (tmp_path / "columns.yaml").write_text(mapping)
        options = ["--mapping", tmp_path / "columns.yaml"]
    answer = await run(reconcile, file, *options, width=2000)
    assert answer.exit_code == 1
    assert re.search(words, answer.stderr), answer.stderr
    assert "Traceback" not in answer.output


@pytest.mark.parametrize("words", [["--tolerance", "-1"], ["--rounding", "x"], ["--timezone", "+05:30"]])
async def test_an_option_that_is_wrong_is_told(run: Run, words: list[str]) -> None:
    answer = await run(reconcile, BILLS / "openai-activity.csv", *words)
    assert answer.exit_code == 2
    assert words[0] in answer.stderr
