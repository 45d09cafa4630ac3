"""SIGKILL in the middle of 200 open streams and 50 calls a second, ten times over one store; then all is counted.

The vendor and the clients live in the test's process and remember what they served and saw. `pytest -s` shows the
count.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
from shows.clients import Seen, ask
from shows.processes import GatewayProcess, running
from shows.stored import Rows, tokens_of
from shows.upstreams import Served, Upstream, upstream

from router.ledger.rows import TOKEN_CLASSES
from router.settings import StoreUrl
from support.stores import BACKENDS, Backend, store_url

KILLS = 10
STREAMS = 200
CALLS_A_SECOND = 50
LONG = (3, 7)
"""Kills that come late enough for every stream to have been written down."""
TWICE = (2, 6)
"""Kills after which the next start is killed too, while it recovers."""
DUE = 4.0
"""Seconds after which a stream has surely been written down once: twice the checkpoint's second, and as much again."""

PRICES = """
prices:
  - {list: v, models: [m], currency: USD,
     input: 1.237000301, cache_read: 0.123700003, output: 4.900000007, reasoning: 5.100000009}
"""
NANO_PER_MILLION = {"input": 1237000301, "cache_read": 123700003, "output": 4900000007, "reasoning": 5100000009}


@dataclass
class Round:
    """One life of the gateway."""

    number: int
    lasted: float = 0.0
    """Seconds from the moment all streams were open to the kill."""
    open: int = 0
    """Streams under way when it was killed."""
    killed_at: float = 0.0
    seen: list[Seen] = field(default_factory=list)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_ten_kills_lose_no_call_and_count_none_twice(backend: Backend, tmp_path: Path) -> None:
    dice = random.Random(20261122)
    async with store_url(backend, tmp_path) as url, upstream() as vendor:
        async with running(tmp_path, config_for(url, vendor.url), files={"prices.yaml": PRICES}) as gateway:
            rounds = [await one_life(number, gateway, vendor, dice) for number in range(1, KILLS + 1)]
            last = Round(KILLS + 1, killed_at=asyncio.get_running_loop().time())
            last.seen = await asyncio.gather(
                *(ask(gateway.port, f"quick-{last.number}-{i}", stream=i % 2 == 0) for i in range(20))
            )
            await gateway.stop()
        rows = await Rows.read(url)
    print_table(backend, [*rounds, last], vendor, rows)
    assert all(each.ended for each in last.seen), "the gateway that was killed ten times still serves"
    assert all(each.open == STREAMS for each in rounds)
    check(rounds, last, vendor, rows)
    assert any(row.source == "estimated" for [row] in rows.attempts.values()), "some streams were written down"
    left = [path.name for path in (tmp_path / "deltaway.journal").iterdir() if path.suffix in (".journal", ".lock")]
    assert not left, "a clean stop leaves no journal, and recovery none of the dead"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_killed_worker_is_replaced_and_its_calls_are_settled(backend: Backend, tmp_path: Path) -> None:
    """One of two workers is killed. Its calls are settled by the one that replaces it, and the other's go on."""
    async with store_url(backend, tmp_path) as url, upstream() as vendor:
        config = config_for(url, vendor.url)
        async with running(tmp_path, config, files={"prices.yaml": PRICES}, workers=2) as gateway:
            await until(lambda: gateway.said().count("Application startup complete") == 2)
            doomed, other = gateway.worker_pids()
            life, streams = Round(1), list[asyncio.Task[Seen]]()
            # the system gives a connection to the worker that is up first
            while len(streams) < 20 or not calls_of(doomed, vendor) or not calls_of(other, vendor):
                marker = f"endless-1-{len(streams)}"
                streams.append(asyncio.create_task(ask(gateway.port, marker, stream=True)))
                await until(lambda: vendor.streaming == len(streams))
            lost, kept = calls_of(doomed, vendor), calls_of(other, vendor)
            os.kill(doomed, signal.SIGKILL)
            life.killed_at = asyncio.get_running_loop().time()
            await until(lambda: gateway.said().count("recovered the journal of a process that had died") == 1)
            assert other in gateway.worker_pids()
            vendor.hurry.set()
            life.seen = await asyncio.gather(*streams)
            last = Round(2)
            last.seen = await asyncio.gather(*(ask(gateway.port, f"quick-2-{i}", stream=True) for i in range(20)))
            await gateway.stop()
        rows = await Rows.read(url)
    print_table(backend, [life, last], vendor, rows)
    assert all(each.ended for each in last.seen)
    outcomes = Counter(row.outcome for seen in life.seen for row in rows.attempts[seen.marker])
    assert outcomes == {"interrupted": lost, "finished": kept}
    check([life], last, vendor, rows)


def calls_of(worker: int, vendor: Upstream) -> int:
    """How many calls a worker has under way at the vendor."""
    port = int(vendor.url.split(":")[-1].split("/")[0])
    connections = psutil.Process(worker).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.raddr.port == port for each in connections)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def config_for(url: StoreUrl, vendor_url: str) -> str:
    return f"""
server: {{shutdown: {{delay: 0s}}}}
store: {url}
ledger: {{checkpoint: 1s}}
prices: {{file: prices.yaml}}
providers:
  v: {{protocol: openai, base_url: "{vendor_url}", api_key: sk-vendor}}
plugins: [logging, auth, usage]
"""


# -- one life --------------------------------------------------------------------------------------------------------


async def one_life(number: int, gateway: GatewayProcess, vendor: Upstream, dice: random.Random) -> Round:
    """Load the gateway, kill it, start it again."""
    life, loop = Round(number), asyncio.get_running_loop()
    stop = asyncio.Event()
    streams = [asyncio.create_task(keep_a_stream(life, gateway.port, i, stop)) for i in range(STREAMS)]
    quick = asyncio.create_task(keep_calling(life, gateway.port, stop))
    await until(lambda: vendor.streaming >= STREAMS)
    began = loop.time()
    await asyncio.sleep(dice.uniform(4.5, 5.0) if number in LONG else dice.uniform(0.3, 2.0))
    # many end at the same time, and others take their places
    await until(lambda: vendor.streaming >= STREAMS)
    life.open = vendor.streaming
    stop.set()
    await gateway.kill()
    life.killed_at = loop.time()
    life.lasted = life.killed_at - began
    await asyncio.gather(*streams, quick)
    if number in TWICE:
        gateway.start_only()
        await asyncio.sleep(dice.uniform(0.4, 1.2))
        await gateway.kill()
    await gateway.start()
    return life


async def keep_a_stream(life: Round, port: int, place: int, stop: asyncio.Event) -> None:
    """One stream after another, so that one is always open, for as long as they end well."""
    turn = 0
    while not stop.is_set():
        seen = await ask(port, f"slow-{life.number}-{place}-{turn}", stream=True)
        life.seen.append(seen)
        if not seen.ended:
            return
        turn += 1


async def keep_calling(life: Round, port: int, stop: asyncio.Event) -> None:
    """Whole answers and short streams at an even pace, however long they take."""
    loop, calling = asyncio.get_running_loop(), []
    begin, count = loop.time(), 0
    while not stop.is_set():
        calling.append(asyncio.create_task(ask(port, f"quick-{life.number}-{count}", stream=count % 2 == 0)))
        count += 1
        await asyncio.sleep(max(0.0, begin + count / CALLS_A_SECOND - loop.time()))
    life.seen += await asyncio.gather(*calling)


# -- the count -------------------------------------------------------------------------------------------------------


def check(rounds: Sequence[Round], last: Round, vendor: Upstream, rows: Rows) -> None:
    by_marker = {seen.marker: seen for life in (*rounds, last) for seen in life.seen}
    once = {marker: each[0] for marker, each in vendor.served.items() if len(each) == 1}
    assert sorted(vendor.served.keys() - once.keys()) == [], "the gateway asks a vendor once for each call"

    # no call is missing, none is there twice, none is left open
    assert sorted(once.keys() - rows.attempts.keys()) == [], "the vendor served a call that is not on record"
    assert sorted(rows.attempts.keys() - by_marker.keys()) == []
    assert {len(each) for each in (*rows.calls.values(), *rows.attempts.values())} == {1}
    assert sorted(rows.calls) == sorted(rows.attempts)
    attempt_of = {marker: each[0] for marker, each in rows.attempts.items()}
    call_of = {marker: each[0] for marker, each in rows.calls.items()}
    assert {row.outcome for row in (*attempt_of.values(), *call_of.values())} <= {"finished", "interrupted"}
    for marker, call in call_of.items():
        attempt, told = attempt_of[marker], by_marker[marker].request_id
        assert (attempt.call_id, attempt.n) == (call.id, 1)
        assert told in (None, call.id), "the receipt's id is the one that its client was told"

    # an end that a client has seen is on record to the last token and the last nano-dollar
    for marker, seen in by_marker.items():
        if seen.ended:
            assert call_of[marker].outcome == "finished", marker
            assert attempt_of[marker].outcome == "finished", marker
    # what the others have on record is exact too, or an honest part of what the vendor sent
    killed_at = {seen.marker: life.killed_at for life in rounds for seen in life.seen}
    for marker, row in attempt_of.items():
        served, seen = once.get(marker, Served(marker)), by_marker[marker]
        if row.outcome == "finished":
            assert served.ended
            assert tokens_of(row) == served.classes
            assert (row.source, row.flag) == ("reported", None)
            assert (row.cost, row.currency) == (cost_of(served.classes), "USD")
            continue
        assert not seen.ended
        assert row.source in (None, "estimated")
        assert row.output <= served.deltas
        assert tokens_of(row) | {"input": 0, "output": 0} == dict.fromkeys(TOKEN_CLASSES, 0)
        if row.source is None:
            assert row.cost is None
            assert row.flag
        else:
            assert row.cost == cost_of(tokens_of(row))
        if seen.began is not None and killed_at[marker] - seen.began > DUE:
            assert row.source == "estimated"
            assert row.output > 0
            assert row.input > 0

    # and so the sums are those of the vendor
    finished = [marker for marker, row in attempt_of.items() if row.source == "reported"]
    for name in TOKEN_CLASSES:
        assert sum(getattr(attempt_of[m], name) for m in finished) == sum(once[m].classes[name] for m in finished)


def cost_of(classes: dict[str, int]) -> int:
    exact = sum((Fraction(count * NANO_PER_MILLION.get(name, 0), 10**6) for name, count in classes.items()), Fraction())
    return round(exact)


def print_table(backend: str, rounds: Sequence[Round], vendor: Upstream, rows: Rows) -> None:
    heads = ("life", "seconds", "open", "asked", "vendor saw", "ends seen", "finished", "interrupted", "with tokens")
    print(f"\n{backend}: {len(rounds) - 1} kills")
    print(("{:>12}" * len(heads)).format(*heads) + f"{'tokens reported':>18}{'vendor says':>14}")
    total: Counter[str] = Counter()
    for life in rounds:
        markers = {seen.marker for seen in life.seen}
        here = [row for marker in markers for row in rows.attempts.get(marker, ())]
        reported = [row for row in here if row.source == "reported"]
        figures = {
            "open": life.open,
            "asked": len(markers),
            "vendor saw": len(markers & vendor.served.keys()),
            "ends seen": sum(seen.ended for seen in life.seen),
            "finished": sum(row.outcome == "finished" for row in here),
            "interrupted": sum(row.outcome == "interrupted" for row in here),
            "with tokens": sum(row.outcome == "interrupted" and row.source is not None for row in here),
            "tokens reported": sum(sum(tokens_of(row).values()) for row in reported),
            "vendor says": sum(sum(vendor.served[row.user][0].classes.values()) for row in reported),
        }
        total.update(figures)
        print(f"{life.number:>12}{life.lasted:>12.2f}" + _line(figures))
    print(f"{'all':>12}{sum(life.lasted for life in rounds):>12.2f}" + _line(total))


def _line(figures: dict[str, int]) -> str:
    *most, reported, says = figures.values()
    return "".join(f"{figure:>12}" for figure in most) + f"{reported:>18}{says:>14}"
