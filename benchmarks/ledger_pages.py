"""`python -m benchmarks.ledger_pages`: fill a ledger with a year of calls, then time pages of receipts and a report.

The rows come in as the product brings them in. They are read by the functions that its HTTP routes call, and over HTTP
from a gateway. A page far back is asked for by its cursor, as a client that has paged there would.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Select, select, text
from sqlalchemy.dialects import postgresql, sqlite

from benchmarks.__main__ import RESULTS, describe_machine
from benchmarks.gateways import KEY
from benchmarks.processes import Failed, Running, listening, wait_for
from router.ledger.rows import AttemptRow, Batch, CallRow, Labels
from router.prices.pricing import price_book
from router.settings import Config, StoreUrl
from router.store.ledger import bring_in
from router.store.receipts import page, receipts
from router.store.selection import Selection, first_id
from router.store.store import Store
from router.store.tables import calls
from router.store.usage import usage

PORT = 9350
LIMIT = 20
"""Receipts of a page."""
FAR = 10_000
"""The number of the far page."""
TRIES = 20
BATCH = 5_000
YEAR = 365 * 86_400_000
END = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()) * 1000
MONTH = (
    int(datetime(2026, 9, 1, tzinfo=UTC).timestamp()) * 1000,
    int(datetime(2026, 10, 1, tzinfo=UTC).timestamp()) * 1000,
)

OUTCOMES = {
    "finished": 92_000,
    "client_gone": 3_000,
    "failed": 2_500,
    "refused": 1_000,
    "cut": 800,
    "timeout": 600,
    "budget": 80,
    "interrupted": 20,
}
"""In 100,000 calls."""
MODELS = (
    ("openai/gpt-5-mini", "openai", "gpt-5-mini", "USD"),
    ("chat", "openai", "gpt-5-mini", "USD"),
    ("openai/gpt-5", "openai", "gpt-5", "USD"),
    ("qwen/qwen-plus", "qwen", "qwen-plus", "CNY"),
    ("fast", "qwen", "qwen-turbo", "CNY"),
    ("openai/gpt-5-nano", "openai", "gpt-5-nano", "USD"),
    ("qwen/qwen-max", "qwen", "qwen-max", "CNY"),
    ("qwen/qwen3-coder-plus", "qwen", "qwen3-coder-plus", "CNY"),
    ("openai/o5-pro", "openai", "o5-pro", "USD"),
)
"""As asked for, provider, model, currency; the first ones are asked for most."""
KEYS = 200
USERS = 5_000
TEAMS = 20
FEATURES = 30
RARE_TAG = ("experiment", "beta")
"""On one call in 10,000."""
REPORTED = 0.97


# -- a year of calls -------------------------------------------------------------------------------------------------


class Skewed:
    """Draws from many as life does: the first the most often (Zipf)."""

    def __init__(self, names: list[Any]) -> None:
        self._names = names
        self._weights = list(accumulate(1 / (place + 1) for place in range(len(names))))

    def draw(self, dice: random.Random) -> Any:
        return dice.choices(self._names, cum_weights=self._weights)[0]


def batches(count: int) -> Iterator[Batch]:
    """`count` calls with their attempts, evenly over the year, in batches in the order of time."""
    dice = random.Random(1)
    keys, users = Skewed([f"dw-{n:08d}" for n in range(KEYS)]), Skewed([f"user-{n}" for n in range(USERS)])
    models, features = Skewed(list(MODELS)), Skewed([f"feature-{n}" for n in range(FEATURES)])
    outcomes, weights = list(OUTCOMES), list(accumulate(OUTCOMES.values()))
    batch = Batch("jrn_bench")
    for number in range(count):
        at = END - YEAR + YEAR * number // count
        # the random part of an id, without asking the system for it two million times
        call_id = f"{first_id(at)}{dice.getrandbits(64):016X}"
        asked, provider, model, currency = models.draw(dice)
        key = keys.draw(dice)
        tags = {"feature": features.draw(dice)}
        if dice.random() < 1e-4:
            tags[RARE_TAG[0]] = RARE_TAG[1]
        labels = Labels(
            asked,
            None if "/" in asked else asked,
            key,
            users.draw(dice),
            f"team-{int(key[3:]) % TEAMS}",
            tags,
        )
        outcome: Any = dice.choices(outcomes, cum_weights=weights)[0]
        tries = 0 if outcome == "refused" else 2 if dice.random() < 0.03 else 1
        error = None if outcome == "finished" else {"status": 502, "kind": "upstream", "code": outcome, "message": "no"}
        batch.calls[call_id] = CallRow(
            call_id,
            at,
            labels,
            "openai.chat",
            number % 2 == 0,
            "jrn_bench",
            {"why": "asked for by name", "candidates": [f"{provider}/{model}"]},
            at + 2_100,
            outcome,
            f"{provider}/{model}" if tries else None,
            error,
            {"duration_ms": 2100.0, "overhead_ms": 0.9, "queue_ms": 0.3, "first_token_ms": 310.2, "plugins": {}},
        )
        for n in range(1, tries + 1):
            used, said = dice.randrange(20, 4_000), dice.randrange(1, 1_500)
            batch.attempts[call_id, n] = AttemptRow(
                call_id,
                n,
                at + n,
                labels,
                provider,
                model,
                "jrn_bench",
                at + 2_000,
                outcome if n == tries else "failed",
                error if n == tries else {"status": 502, "kind": "upstream", "code": "failed", "message": "no"},
                {"duration_ms": 2000.0, "first_token_ms": 300.0, "longest_gap_ms": 12.5},
                f"chatcmpl-{number}",
                input=used,
                cache_read=used // 3,
                output=said,
                reasoning=said // 2,
                source="reported" if dice.random() < REPORTED else "estimated",
                cost=used * 250 + said * 2000,
                currency=currency,
                price=f"{provider}/{model}@2026-08-07",
            )
        if len(batch.calls) == BATCH:
            yield batch
            batch = Batch("jrn_bench", 0, {}, {})
    if batch.calls:
        yield batch


async def fill(store: Store, count: int) -> tuple[int, float]:
    """Gives the number of attempts, and the seconds it took."""
    began, made, done = time.perf_counter(), 0, 0
    for batch in batches(count):
        await bring_in(store, batch, END)
        made, done = made + len(batch.attempts), done + len(batch.calls)
        if done % 100_000 < BATCH:
            print(f"  {done:,} calls", file=sys.stderr, flush=True)
    return made, time.perf_counter() - began


# -- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    what: str
    page: int
    rows: int
    first: float
    """Milliseconds of the first time, then of the others."""
    middle: float
    longest: float
    over_http: float
    """The median of the same over HTTP."""
    plan: list[str]


SELECTIONS: dict[str, Selection] = {
    "all": Selection(),
    "one key, of many calls": Selection(key="dw-00000000"),
    "one key, of few calls": Selection(key=f"dw-{KEYS - 1:08d}"),
    "one model": Selection(model="openai/gpt-5-mini"),
    "one user": Selection(user="user-0"),
    "a common outcome": Selection(outcomes=("finished",)),
    "a rare outcome": Selection(outcomes=("interrupted",)),
    "two rare outcomes": Selection(outcomes=("interrupted", "budget")),
    "a key and a rare outcome": Selection(key="dw-00000000", outcomes=("interrupted",)),
    "a common tag": Selection(tags=(("feature", "feature-0"),)),
    "a rare tag": Selection(tags=(RARE_TAG,)),
    "a tag that no call has": Selection(tags=(("feature", "none"),)),
    "a target": Selection(target="qwen/qwen-max"),
    "a target of no call": Selection(target="qwen/none"),
    "a provider": Selection(provider="qwen"),
    "all but the last day": Selection(since=END - YEAR, until=END - 86_400_000),
    "a month": Selection(since=MONTH[0], until=MONTH[1]),
    "a key in a month": Selection(key="dw-00000000", since=MONTH[0], until=MONTH[1]),
}


async def measured(store: Store) -> list[Timed]:
    """Needs a gateway on `PORT` that reads the same store."""
    found = []
    client = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    for what, selection in SELECTIONS.items():
        number, after = await _far(store, selection)
        for name, cursor in ((1, None), (number, after))[: 1 if number == 1 else 2]:

            async def read(selection: Selection = selection, cursor: str | None = cursor) -> int:
                return len((await receipts(store, selection, after=cursor, limit=LIMIT)).receipts)

            def ask(selection: Selection = selection, cursor: str | None = cursor) -> int:
                return _fetch(client, _query(selection, cursor))

            rows, times = await _timed(read)
            if await asyncio.to_thread(ask) != rows:
                raise Failed(f"over HTTP the page {name} of {what} has another number of receipts than {rows}")
            _, asked = await _timed(lambda ask=ask: asyncio.to_thread(ask))  # type: ignore[misc]
            plan = await _plan(store, page(selection, store.dialect, after=cursor, limit=LIMIT))
            found.append(Timed(what, name, rows, times[0], median(times[1:]), max(times[1:]), median(asked[1:]), plan))
    return found


def _query(selection: Selection, cursor: str | None) -> str:
    """The parameters of `GET /v1/requests` for it."""
    asked: list[tuple[str, Any]] = [("limit", LIMIT)]
    if cursor is not None:
        asked.append(("after", cursor))
    asked += [(n, value) for n in ("key", "user", "model", "target", "provider") if (value := getattr(selection, n))]
    asked += [("tag", f"{name}={value}") for name, value in selection.tags]
    if selection.outcomes:
        asked.append(("outcome", ",".join(selection.outcomes)))
    bounds = (("from", selection.since), ("to", selection.until))
    return urlencode(asked + [(name, at // 1000) for name, at in bounds if at is not None])


def _fetch(client: http.client.HTTPConnection, query: str) -> int:
    """Gives how many receipts there are on the page."""
    client.request("GET", f"/v1/requests?{query}", headers={"authorization": f"Bearer {KEY}"})
    response = client.getresponse()
    body = response.read()
    if response.status != 200:
        raise Failed(f"GET /v1/requests?{query} answers {response.status}: {body[:500].decode(errors='replace')}")
    return len(json.loads(body)["data"])


async def _far(store: Store, selection: Selection) -> tuple[int, str | None]:
    """The number of the far page, or of the last one where there are fewer, and the id that comes before it."""
    query = page(selection, store.dialect).with_only_columns(calls.c.id)
    async with store.reading() as connection:
        far = await connection.scalar(query.limit(1).offset((FAR - 1) * LIMIT - 1))
        if far is not None:
            return FAR, far
        ids = list(await connection.scalars(query.limit(None)))
    number = max(1, -(-len(ids) // LIMIT))
    return number, ids[(number - 1) * LIMIT - 1] if number > 1 else None


async def _timed(read: Callable[[], Awaitable[int]]) -> tuple[int, list[float]]:
    """What it gave, and the milliseconds of each try; the first is apart."""
    times, rows = [], 0
    for _ in range(TRIES + 1):
        began = time.perf_counter()
        rows = await read()
        times.append((time.perf_counter() - began) * 1000)
    return rows, times


async def _plan(store: Store, query: Select[Any]) -> list[str]:
    dialect: Any = sqlite.dialect() if store.dialect == "sqlite" else postgresql.dialect()  # type: ignore[no-untyped-call]
    sql = str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    explain = "EXPLAIN QUERY PLAN " if store.dialect == "sqlite" else "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) "
    async with store.reading() as connection:
        rows = (await connection.execute(text((explain + sql).replace(":", "\\:")))).all()
    return [str(row[-1]) for row in rows]


async def reported(store: Store) -> list[tuple[str, list[float]]]:
    """Sums over a month, as `GET /v1/usage` makes them."""
    pricing = price_book(Config(), None, {})
    month = Selection(since=MONTH[0], until=MONTH[1])
    mine = Selection(since=MONTH[0], until=MONTH[1], key="dw-00000000")
    found = []
    for what, selection, by, bucket in (
        ("a month by model", month, ("model",), None),
        ("a month by model and day", month, ("model",), "day"),
        ("a month by key", month, ("key",), None),
        ("a month by tag", month, ("tag:feature",), None),
        ("one key's month by model", mine, ("model",), None),
        ("the year by model", Selection(), ("model",), None),
    ):

        async def read(selection: Selection = selection, by: Any = by, bucket: Any = bucket) -> int:
            return len((await usage(store, pricing, selection, by, bucket, "USD")).groups)

        times = []
        for _ in range(4):
            began = time.perf_counter()
            await read()
            times.append((time.perf_counter() - began) * 1000)
        found.append((what, times))
    return found


# -- stores and gateways ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def sqlite_store(kept: str | None) -> AsyncIterator[tuple[Store, StoreUrl]]:
    with tempfile.TemporaryDirectory(prefix="deltaway-bench-") as folder:
        url = StoreUrl.parse(f"sqlite:///{kept or f'{folder}/ledger.db'}")
        async with _opened(url) as store:
            yield store, url


@contextlib.asynccontextmanager
async def postgres_store(server: str) -> AsyncIterator[tuple[Store, StoreUrl]]:
    """A database of its own, dropped afterwards."""
    import asyncpg  # type: ignore[import-untyped]

    name = f"deltaway_bench_{uuid.uuid4().hex[:12]}"
    administrator = await asyncpg.connect(f"{server}/postgres")
    try:
        await administrator.execute(f'CREATE DATABASE "{name}"')
        try:
            url = StoreUrl.parse(f"{server}/{name}")
            async with _opened(url) as store:
                yield store, url
        finally:
            await administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await administrator.close()


@contextlib.asynccontextmanager
async def _opened(url: StoreUrl) -> AsyncIterator[Store]:
    store = Store(url, patience=600)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def _gateway(url: StoreUrl) -> Iterator[None]:
    """`deltaway serve` on `PORT` with that store."""
    if listening(PORT):
        raise Failed(f"port {PORT} is taken: end what listens there")
    with tempfile.TemporaryDirectory(prefix="deltaway-bench-") as name:
        folder = Path(name)
        (folder / "providers.yaml").write_text(f'store: "{url}"\nplugins: [auth]\n')
        command = [sys.executable, "-m", "router", "serve", "--port", str(PORT)]
        process = Running("gateway", command, folder, {"DELTAWAY_ADMIN_KEY": KEY})
        try:
            wait_for(PORT, process)
            yield
        finally:
            process.stop()


async def _analyse(store: Store) -> None:
    """Postgres does so by itself a minute after such a change; SQLite only when it is told to."""
    if store.dialect == "postgresql":
        async with store.writing() as connection:
            await connection.execute(text("ANALYZE"))


# -- the table -------------------------------------------------------------------------------------------------------


async def run(arguments: argparse.Namespace) -> str:
    """Gives what it also prints as it goes."""
    said: list[str] = []

    def say(words: str) -> None:
        said.append(words)
        print(words, flush=True)

    say(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}; medians of {TRIES} times after the first.")
    for name in arguments.stores:
        made = sqlite_store(arguments.keep) if name == "sqlite" else postgres_store(arguments.postgres)
        async with made as (store, url):
            async with store.reading() as connection:
                filled = await connection.scalar(select(calls.c.id).limit(1)) is not None
            if not filled:
                attempts, seconds = await fill(store, arguments.calls)
                say(f"\n**{name}**: {arguments.calls:,} calls, {attempts:,} attempts, filled in {seconds:.0f} s")
            else:
                say(f"\n**{name}**: as it was kept")
            await _analyse(store)
            with _gateway(url):
                timed = await measured(store)
            say(_pages(timed))
            say(_reports(await reported(store)))
            say(_plans(timed))
    return "\n".join(said)


def _pages(timed: list[Timed]) -> str:
    lines = ["", "| receipts of | page | rows | first time, ms | median, ms | max, ms | over HTTP, ms |"]
    lines.append("|---|---|---|---|---|---|---|")
    for each in timed:
        figures = (each.first, each.middle, each.longest, each.over_http)
        shown = " | ".join(f"{figure:.1f}" for figure in figures)
        lines.append(f"| {each.what} | {each.page:,} | {each.rows} | {shown} |")
    return "\n".join(lines)


def _reports(reports: list[tuple[str, list[float]]]) -> str:
    lines = ["", "| usage of | first time, ms | median, ms |", "|---|---|---|"]
    lines += [f"| {what} | {times[0]:.0f} | {median(times[1:]):.0f} |" for what, times in reports]
    return "\n".join(lines)


def _plans(timed: list[Timed]) -> str:
    lines = ["", "Query plans:", ""]
    for each in timed:
        lines += [f"    {each.what}, page {each.page:,}", *(f"        {line}" for line in each.plan)]
    return "\n".join(lines)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ledger_pages",
        description="Fill a ledger, then time pages of its receipts and reports, on SQLite and on Postgres.",
    )
    parser.add_argument("--calls", type=int, default=1_000_000, help="how many calls to fill in (1000000)")
    parser.add_argument("--stores", default="sqlite,postgres", type=lambda value: value.split(","), help="which")
    parser.add_argument("--postgres", default="postgresql://postgres@127.0.0.1:5432", help="a server to use")
    parser.add_argument("--keep", type=_absolute, help="a SQLite file to fill and keep, or to measure as it is")
    parser.add_argument("--save", action="store_true", help="write it all to benchmarks/results/DATE-ledger-pages.md")
    arguments = parser.parse_args()
    try:
        said = asyncio.run(run(arguments))
    except Failed as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 1
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}-ledger-pages.md"
        path.write_text(said + "\n")
        print(f"\nsaved as {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
