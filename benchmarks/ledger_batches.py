"""`python -m benchmarks.ledger_batches`: what it costs the gateway's process to bring rows into the store, by batch."""

import argparse
import sys
import time
from itertools import islice

import msgspec
import uvloop

from benchmarks.__main__ import describe_machine
from benchmarks.ledger_pages import batches, postgres_store, sqlite_store
from router.ledger.rows import AttemptRow, Batch, CallRow
from router.store.ledger import bring_in
from router.store.store import Store

AT_A_TIME = (1, 5, 50, 1000)
"""Calls in a batch: few when little happens, or when answers wait for the store."""
MOST = 4_000
"""Batches of one measurement."""


def cut(calls: int, size: int) -> list[Batch]:
    """Calls with their attempts: each batch twice, as the calls are opened and as they have ended."""
    made = []
    for large in batches(calls):
        rows = iter(large.calls.values())
        attempts: dict[str, list[AttemptRow]] = {}
        for attempt in large.attempts.values():
            attempts.setdefault(attempt.call_id, []).append(attempt)
        while several := list(islice(rows, size)):
            ended = Batch(large.journal)
            for row in several:
                ended.calls[row.id] = row
                ended.attempts.update(((row.id, tried.n), tried) for tried in attempts.get(row.id, ()))
            opened = Batch(
                large.journal,
                calls={key: begun_call(row) for key, row in ended.calls.items()},
                attempts={key: begun_attempt(row) for key, row in ended.attempts.items()},
            )
            made += [opened, ended]
    return made


def begun_call(row: CallRow) -> CallRow:
    return msgspec.structs.replace(row, ended_at=None, outcome=None, target=None, error=None, timing={}, decision={})


def begun_attempt(row: AttemptRow) -> AttemptRow:
    return AttemptRow(row.call_id, row.n, row.created_at, row.labels, row.provider, row.model, row.journal)


async def measure(store: Store, size: int) -> str:
    made = cut(min(20_000, MOST // 2 * size), size)
    await bring_in(store, Batch("jrn_bench"), 1)
    rows = sum(len(batch.calls) + len(batch.attempts) for batch in made)
    began, used, here = time.perf_counter(), time.process_time(), time.thread_time()
    for batch in made:
        await bring_in(store, batch, 1)
    took, used, here = time.perf_counter() - began, time.process_time() - used, time.thread_time() - here
    line = f"{store.dialect:<10} {size:>6} {rows:>9,} {rows / took:>9,.0f}"
    return line + f" {used / rows * 1e6:>9.1f} {here / rows * 1e6:>9.1f} {used / len(made) * 1e6:>10,.0f}"


async def run(arguments: argparse.Namespace) -> None:
    print(describe_machine())
    head = ("store", "calls", "rows", "rows/s", "µs/row", "in loop", "µs/batch")
    print(f"{head[0]:<10} {head[1]:>6} {head[2]:>9} {head[3]:>9} {head[4]:>9} {head[5]:>9} {head[6]:>10}")
    for name in arguments.stores:
        for size in AT_A_TIME:
            made = sqlite_store(None) if name == "sqlite" else postgres_store(arguments.postgres)
            async with made as (store, _):
                print(await measure(store, size), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ledger_batches",
        description="CPU time of this process for each row (a call or an attempt) that is brought into the store: all "
        "threads', and the event loop's.",
    )
    parser.add_argument("--stores", default="sqlite,postgres", type=lambda value: value.split(","), help="which")
    parser.add_argument("--postgres", default="postgresql://postgres@127.0.0.1:5432", help="a server to use")
    uvloop.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
