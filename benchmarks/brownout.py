"""`python -m benchmarks.brownout`: one of three vendors falls half ill; what do clients notice, by each way to choose?

Three vendors on 127.0.0.1 answer in streams. From some moment on one of them refuses half of its calls and is ten times
slower, and later it is well again. For each way to choose a fresh gateway stands before them, and calls arrive at
random moments whether or not the earlier ones have been answered (an open loop). Times of health are a tenth of the
usual: a brown-out of a minute in some seconds.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any, NoReturn

import aiohttp
import uvloop

from benchmarks.__main__ import RESULTS, describe_machine
from benchmarks.processes import Failed, Running, wait_for
from benchmarks.upstream import Vendor

ILL = "a"
"""The vendor that falls ill: it is the first of the file, and the cheapest."""
VENDORS = (ILL, "b", "c")
FIRST, GAP, DELTAS = 0.04, 0.01, 5
"""Seconds to a vendor's first delta and between two, and how many there are."""
SLOWER, FAILING = 10, 0.5
SEED = 2026

HEALTH = "{consecutive: 5, rate: 50%, minimum: 10, window: 3s, rest: 1s, longest_rest: 30s}"
NEVER = "{consecutive: 1000000000, minimum: 1000000000}"
"""A breaker that does not open."""


@dataclass(frozen=True)
class Way:
    name: str
    route: str
    """The route's settings beside its targets, as YAML."""
    health: str = HEALTH


WAYS = (
    Way("random, one attempt, no breaker", "balance: weighted, retry: {attempts: 1}", NEVER),
    Way("ordered, the ill one first", "balance: ordered"),
    Way("weighted, all alike", "balance: weighted"),
    Way("latency", "balance: latency"),
    Way("cost, the ill one cheapest", "balance: cost"),
)


@dataclass
class Script:
    """How a vendor is now, and how often it was called."""

    slower: int = 1
    failing: float = 0.0
    calls: int = 0
    draw: random.Random = field(default_factory=lambda: random.Random(SEED))


class ScriptedVendor(Vendor):
    """A vendor whose answers begin after a while, and some of them never."""

    def __init__(self, loop: asyncio.AbstractEventLoop, script: Script) -> None:
        super().__init__(loop)
        self._script = script

    def _stream(self, body: bytes) -> None:
        script = self._script
        script.calls += 1
        fails, slower = script.draw.random() < script.failing, script.slower
        self._loop.call_later(FIRST * slower, self._begin, fails, GAP * slower)

    def _begin(self, fails: bool, gap: float) -> None:
        if not self._open:
            return
        if fails:
            self._refuse()
        else:
            self._start(DELTAS, gap)


@dataclass(frozen=True)
class Answer:
    """What one call came to. Times are seconds, `at` since the first call was due."""

    at: float
    error: str
    """Empty: it was answered to its end."""
    first: float | None
    whole: float


@dataclass
class Phase:
    """The calls that arrived in one part of the run."""

    calls: int
    errors: int
    first: list[float]
    """Milliseconds to the first delta, at the 50th and the 99th percentile."""
    whole: list[float]
    """Milliseconds to the end of the answer."""
    vendor_calls: dict[str, int]


async def run(way: Way, folder: Path, rate: float, seconds: tuple[float, float, float]) -> dict[str, Phase]:
    """One gateway before three vendors: well, with one of them ill, well again."""
    loop = asyncio.get_running_loop()
    scripts = {name: Script() for name in VENDORS}
    async with AsyncExitStack() as stack:
        ports = {}
        for name, script in scripts.items():
            server = await loop.create_server(partial(ScriptedVendor, loop, script), "127.0.0.1", 0)
            stack.callback(server.close)
            ports[name] = server.sockets[0].getsockname()[1]
        port = start_gateway(way, folder, ports, stack)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=aiohttp.TCPConnector(limit=0), trust_env=False)
        )
        for _ in range(10):
            # the first calls pay for imports and connections
            await ask(session, 0.0)
        before = {name: script.calls for name, script in scripts.items()}
        answers: list[asyncio.Task[Answer]] = []
        made, ends = [], []
        draw, start, due = random.Random(SEED), loop.time(), 0.0
        for number in range(len(seconds)):
            ill = number == 1
            scripts[ILL].slower, scripts[ILL].failing = (SLOWER, FAILING) if ill else (1, 0.0)
            ends.append(sum(seconds[: number + 1]))
            while due < ends[-1]:
                await asyncio.sleep(max(0.0, start + due - loop.time()))
                answers.append(loop.create_task(ask(session, due)))
                due += draw.expovariate(rate)
            made.append({name: script.calls for name, script in scripts.items()})
        done = await asyncio.gather(*answers)
    phases, begin = {}, 0.0
    for name, end, counted in zip(("well", "ill", "well again"), ends, made, strict=True):
        here = [answer for answer in done if begin <= answer.at < end]
        vendor_calls = {vendor: counted[vendor] - before[vendor] for vendor in VENDORS}
        phases[name] = summed(here, vendor_calls)
        begin, before = end, counted
    return phases


def start_gateway(way: Way, folder: Path, ports: dict[str, int], stack: AsyncExitStack) -> int:
    program = Path(sys.executable).with_name("deltaway")
    if not program.exists():
        raise Failed(f"{program} does not exist: `make bench` installs it")
    home = folder / re.sub(r"\W+", "-", way.name)
    home.mkdir()
    providers = "\n".join(
        f'  {name}: {{protocol: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: sk-bench}}'
        for name, port in ports.items()
    )
    targets = ", ".join(f"{name}/burst-{DELTAS}" for name in VENDORS)
    prices = "\n".join(
        f'  - {{list: {name}, models: ["*"], currency: USD, input: {price}, output: {price}}}'
        for name, price in zip(VENDORS, (1, 2, 3), strict=True)
    )
    (home / "prices.yaml").write_text(f"prices:\n{prices}\n")
    (home / "providers.yaml").write_text(
        f"providers:\n{providers}\nmodels:\n  chat: {{targets: [{targets}], {way.route}}}\nhealth: {way.health}\n"
        "server: {shutdown: {delay: 0s, grace: 1s}}\nprices: {file: prices.yaml}\n"
        "plugins: []\nledger: {enabled: false}\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [str(program), "serve", "--config", "providers.yaml", "--port", str(port)]
    process = Running("deltaway", command, home, {})
    stack.callback(process.stop)
    wait_for(port, process)
    return port


async def ask(session: aiohttp.ClientSession, at: float) -> Answer:
    """One call, streamed to its end."""
    body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    started, first, ended = time.perf_counter(), None, False
    error = ""
    try:
        async with session.post("/v1/chat/completions", json=body, timeout=aiohttp.ClientTimeout(30)) as response:
            if response.status != 200:
                error = str(response.status)
            async for line in response.content:
                if first is None and b'"content":"' in line:
                    first = time.perf_counter() - started
                if line.startswith(b'data: {"error"'):
                    error = "error in the stream"
                ended = ended or line.startswith(b"data: [DONE]")
    except (aiohttp.ClientError, TimeoutError) as failure:
        error = type(failure).__name__
    return Answer(at, error or ("" if ended else "no end"), first, time.perf_counter() - started)


def summed(answers: list[Answer], vendor_calls: dict[str, int]) -> Phase:
    well = [answer for answer in answers if not answer.error]
    return Phase(
        len(answers),
        len(answers) - len(well),
        _percentiles([answer.first for answer in well if answer.first is not None]),
        _percentiles([answer.whole for answer in well]),
        vendor_calls,
    )


def _percentiles(seconds: list[float]) -> list[float]:
    if len(seconds) < 2:
        raise Failed("too few calls were answered to say how long they took: let it run longer")
    cuts = quantiles(seconds, n=100, method="inclusive")
    return [round(cuts[49] * 1000, 1), round(cuts[98] * 1000, 1)]


def report(results: dict[str, dict[str, Phase]], heading: str) -> str:
    columns = (
        *("chosen by", "errors clients saw", "first delta, ms more: p50", "p99", "whole answer, ms more: p50", "p99"),
        *("vendor calls per call", "calls at the ill vendor: while ill", "afterwards"),
    )
    lines = [heading, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, phases in results.items():
        well, ill, again = phases["well"], phases["ill"], phases["well again"]
        more = [
            f"{round(now - usual):+d}"
            for now, usual in zip((*ill.first, *ill.whole), (*well.first, *well.whole), strict=True)
        ]
        lines.append(
            f"| {name} | {ill.errors} of {ill.calls} ({ill.errors / ill.calls:.1%}) | {' | '.join(more)} "
            f"| {sum(ill.vendor_calls.values()) / ill.calls:.2f} | {_share(ill)} | {_share(again)} |"
        )
    outside = {
        name: phases[phase].errors for name, phases in results.items() for phase in ("well", "well again")
        if phases[phase].errors
    }  # fmt: skip
    if outside:
        lines += ["", f"Errors while all were well: {outside}"]
    return "\n".join(lines)


def _share(phase: Phase) -> str:
    return f"{phase.vendor_calls[ILL] / max(1, sum(phase.vendor_calls.values())):.0%}"


async def measure(ways: list[Way], rate: float, seconds: tuple[float, float, float]) -> dict[str, dict[str, Phase]]:
    results = {}
    with tempfile.TemporaryDirectory(prefix="deltaway-bench-") as folder:
        for way in ways:
            results[way.name] = await run(way, Path(folder), rate, seconds)
            ill = results[way.name]["ill"]
            print(f"{way.name}: {ill.errors} errors in {ill.calls} calls", file=sys.stderr, flush=True)
    return results


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _stopped)
    started = datetime.now(UTC)
    ways = [way for way in WAYS if way.name.partition(",")[0] in arguments.only]
    try:
        results = uvloop.run(measure(ways, arguments.rate, tuple(arguments.seconds)))
    except Failed as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted; everything that was started has been ended", file=sys.stderr)
        return 130
    well, ill, again = arguments.seconds
    machine = describe_machine()
    heading = (
        f"{started:%Y-%m-%d}, {machine}; {arguments.rate:g} calls a second; {well:g} s well, {ill:g} s with one "
        f"of three vendors failing {FAILING:.0%} and {SLOWER} times slower, {again:g} s well again."
    )
    text = report(results, heading)
    print(text)
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{started:%Y-%m-%dT%H%M%SZ}-brownout"
        path.with_suffix(".md").write_text(text + "\n")
        record: dict[str, Any] = {
            "date": started.isoformat(timespec="seconds"),
            "machine": machine,
            "rate": arguments.rate,
            "seconds": arguments.seconds,
            "ways": {way.name: {"route": way.route, "health": way.health} for way in ways},
            "results": {
                name: {phase: asdict(counted) for phase, counted in phases.items()} for name, phases in results.items()
            },
        }
        path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nsaved as {path.name}.md and .json in {RESULTS.name}/")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.brownout",
        description="What clients notice when one of three vendors falls half ill, by each way to choose.",
    )
    names = [way.name.partition(",")[0] for way in WAYS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="ways to choose")
    parser.add_argument("--rate", type=float, default=30, help="calls a second (30)")
    parser.add_argument(
        "--seconds", type=float, nargs=3, default=[3, 6, 4], metavar=("WELL", "ILL", "AGAIN"), help="(3 6 4)"
    )
    parser.add_argument("--save", action="store_true", help="write the run to benchmarks/results/")
    arguments = parser.parse_args()
    if arguments.rate <= 0 or min(arguments.seconds) <= 0:
        parser.error("--rate and --seconds must be above 0")
    return arguments


def _stopped(*_: Any) -> NoReturn:
    # as an exception, so that what was started is ended
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
