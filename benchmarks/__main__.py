"""`python -m benchmarks`: start everything, measure in rounds, print a table, end everything."""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from benchmarks.gateways import GATEWAYS, UPSTREAM, Gateway
from benchmarks.loads import LOADS, Load, Run, check, measure
from benchmarks.processes import Failed, Running

YARDSTICK = "smg"
"""The gateway the others are held against."""
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _stopped)
    gateways = [gateway for gateway in GATEWAYS if gateway.name in arguments.only]
    loads = [load for load in LOADS if load.name in arguments.loads]
    if arguments.log:
        # each beside the one that it is held against
        loads = [each for load in loads for each in ((load, load.with_log()) if load.streamed else (load,))]
    started = datetime.now(UTC)
    try:
        runs = compare(gateways, loads, arguments.rounds, arguments.seconds, arguments.warm_up)
    except Failed as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted; everything that was started has been ended", file=sys.stderr)
        return 130
    machine = describe_machine()
    print(report(gateways, loads, runs, machine, started, arguments))
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{started:%Y-%m-%dT%H%M%SZ}.json"
        record = {
            "date": started.isoformat(timespec="seconds"),
            "machine": machine,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "gateways": {gateway.name: gateway.about for gateway in gateways},
            "runs": [run.as_json() for run in runs],
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nsaved as {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 1 if any(run.errors for run in runs) else 0


def compare(gateways: Sequence[Gateway], loads: Sequence[Load], rounds: int, seconds: int, warm_up: int) -> list[Run]:
    """Start everything, and in each round run every load on every gateway, in another order each time."""
    runs: list[Run] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deltaway-bench-")))
        processes: dict[str, Running] = {}
        for gateway in (UPSTREAM, *gateways):
            process = gateway.start(folder)
            stack.callback(process.stop)
            processes[gateway.name] = process
        for gateway in gateways:
            for load in loads:
                if runs_on(load, gateway):
                    check(gateway, load)
        for number in range(rounds):
            turn = number % len(gateways)
            for load in loads:
                for gateway in [*gateways[turn:], *gateways[:turn]]:
                    if not runs_on(load, gateway):
                        continue
                    run = measure(gateway, processes[gateway.name], load, number, seconds, warm_up)
                    runs.append(run)
                    print(
                        f"round {number + 1}/{rounds} {load.name:9} {gateway.name:14} {run.cpu_us:8.1f} us/request "
                        f"{run.per_second:9.1f}/s  p99 {run.p99_ms:7.2f} ms  {run.memory_mb:4.0f} MB"
                        + (f"  INVALID: {run.errors}" if run.errors else ""),
                        file=sys.stderr,
                        flush=True,
                    )
    return runs


def runs_on(load: Load, gateway: Gateway) -> bool:
    return gateway.logs or not load.logged


def report(
    gateways: Sequence[Gateway],
    loads: Sequence[Load],
    runs: Sequence[Run],
    machine: str,
    started: datetime,
    arguments: argparse.Namespace,
) -> str:
    lines = [
        f"{started:%Y-%m-%d}, {machine}; {arguments.rounds} rounds of {arguments.seconds} s; medians and ranges.",
        "",
    ]
    for load in loads:
        against = "the same without" if load.logged else YARDSTICK
        lines += [
            f"**{load.name}**: {load.about}",
            "",
            f"| gateway | CPU per request, us | of {against} | requests/s | p50, ms | p99, ms | memory, MB |",
            "|---|---|---|---|---|---|---|",
        ]
        here = [run for run in runs if run.load == load.name]
        # what a log costs is told by the same gateway without
        plain = [run for run in runs if f"{run.load}+log" == load.name]
        for gateway in gateways:
            if runs_on(load, gateway):
                yardstick = [run for run in plain if run.gateway == gateway.name] or [
                    run for run in here if run.gateway == YARDSTICK
                ]
                lines.append(_row(gateway, [run for run in here if run.gateway == gateway.name], yardstick))
        lines.append("")
    return "\n".join(lines).rstrip()


def _row(gateway: Gateway, runs: Sequence[Run], held_against: Sequence[Run]) -> str:
    name = f"{gateway.name} ({gateway.about})"
    valid = [run for run in runs if not run.errors]
    if not valid:
        return f"| {name} | invalid: {'; '.join(run.errors for run in runs)} | | | | | |"
    cpu = [run.cpu_us for run in valid]
    dropped = f", {len(runs) - len(valid)} invalid" if len(valid) < len(runs) else ""
    # runs of one round lie close together in time, so a drift of the machine falls out of their ratio
    yardstick = {run.round: run.cpu_us for run in held_against if not run.errors}
    ratios = [run.cpu_us / yardstick[run.round] for run in valid if yardstick.get(run.round)]
    ratio = f"{median(ratios):.2f}" if ratios else "–"

    def middle(of: Callable[[Run], float]) -> float:
        return median(of(run) for run in valid)

    return (
        f"| {name} | {median(cpu):.0f} ({min(cpu):.0f}–{max(cpu):.0f}{dropped}) | {ratio} "
        f"| {middle(lambda run: run.per_second):.0f} | {middle(lambda run: run.p50_ms):.2f} "
        f"| {middle(lambda run: run.p99_ms):.2f} | {middle(lambda run: run.memory_mb):.0f} |"
    )


def describe_machine() -> str:
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the CPU time per request of Deltaway and of others on three loads.",
    )
    names, kinds = [gateway.name for gateway in GATEWAYS], [load.name for load in LOADS]
    parser.add_argument("--rounds", type=int, default=3, help="each measures every load on every gateway (3)")
    parser.add_argument("--seconds", type=int, default=4, help="length of one measured run (4)")
    parser.add_argument("--warm-up", type=int, default=1, help="seconds before each run that do not count (1)")
    parser.add_argument("--only", type=_choices(names), default=names, help=f"gateways: {','.join(names)}")
    parser.add_argument("--loads", type=_choices(kinds), default=kinds, help=f"loads: {','.join(kinds)}")
    parser.add_argument("--log", action="store_true", help="ours once more with every stream logged, beside without")
    parser.add_argument("--save", action="store_true", help="write all runs to benchmarks/results/DATE.json")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1 or arguments.warm_up < 1:
        parser.error("--rounds, --seconds and --warm-up must be at least 1")
    return arguments


def _choices(names: Sequence[str]) -> Callable[[str], list[str]]:
    def chosen(value: str) -> list[str]:
        wanted = value.split(",")
        for name in wanted:
            if name not in names:
                raise argparse.ArgumentTypeError(f"`{name}` is none of {', '.join(names)}")
        return wanted

    return chosen


def _stopped(*_: Any) -> NoReturn:
    # as an exception, so that what was started is ended
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
