"""`python -m benchmarks.idle_streams`: what thousands of streams cost a gateway while nothing comes in them.

Each is a streamed call whose vendor (the mock, within the gateway) says one delta and then nothing more. They are
opened in a gateway of one process, by this process; then both wait. Once with plain streams and once for each log with
streams that can be come back to, each time in a fresh gateway.
"""

import argparse
import asyncio
import json
import random
import re
import resource
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from benchmarks.__main__ import RESULTS, describe_machine
from benchmarks.processes import Failed, Running, wait_for

OPENING = 200
"""Streams that are being opened at once."""
WARM_UP = 100
"""Streams opened and closed before anything is measured: the first ones pay for imports and tables."""
SETTLE = 3.0
"""Seconds after the last stream is open."""
LOOKED_AT = 20
"""Streams that are come back to at the end."""
SPARE = 200
"""Descriptors beside those of the streams."""
_STREAM = re.compile(rb"\r\nx-deltaway-stream: *(strm_\w+)\r\n", re.I)


@dataclass(frozen=True)
class Kind:
    name: str
    resumable: bool
    shared: str


KINDS = (
    Kind("plain", False, "memory"),
    Kind("memory", True, "memory"),
    Kind("machine", True, "auto"),
    Kind("redis", True, "redis://127.0.0.1:6379/9"),
)
"""Plain streams, and a log each. The last needs a Redis there."""


@dataclass(frozen=True)
class Result:
    kind: str
    streams: int
    opened_in: float
    """Seconds until all were open."""
    before_mb: float
    after_mb: float
    kb_each: float
    cpu: float
    """CPU seconds a second while idle."""
    beats: int
    """Heartbeats that came in that time."""
    stayed: int
    """Streams that were open at the end."""


class Stream(asyncio.Protocol):
    """One call and its answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._head = b""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream: str | None = None
        self.open = False
        self.beats = 0
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, though they do the same
        self.transport = transport  # type: ignore[assignment]
        self.open = True
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.begun.done():
            self.beats += data.count(b": ping")
            return
        self._head += data
        if b'"content":"' in self._head:
            if found := _STREAM.search(self._head):
                self.stream = found[1].decode()
            self._head = b""
            self.begun.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if not self.begun.done():
            self.begun.set_exception(Failed(f"a stream was closed before it began: {self._head[:500]!r}"))


async def run(kind: Kind, folder: Path, streams: int, seconds: float) -> Result:
    with ExitStack() as stack:
        port, process = start_gateway(kind, folder, streams, stack)
        head = "x-deltaway-resumable: true\r\nx-deltaway-on-disconnect: cancel\r\n" if kind.resumable else ""
        asked = {"model": "mock/stall-1", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        body = json.dumps(asked)
        request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n{head}"
            f"content-length: {len(body)}\r\n\r\n{body}"
        ).encode()
        warming = await opened(port, request, WARM_UP)
        for stream in warming:
            stream.transport.abort()
        await asyncio.sleep(SETTLE)
        loop = asyncio.get_running_loop()
        before, began = process.memory(), loop.time()
        found = await opened(port, request, streams)
        took = loop.time() - began
        try:
            await asyncio.sleep(SETTLE)
            after, spent = process.memory(), process.cpu()
            beats, began = sum(stream.beats for stream in found), loop.time()
            await asyncio.sleep(seconds)
            cpu = (process.cpu() - spent) / (loop.time() - began)
            beats = sum(stream.beats for stream in found) - beats
            process.check()
            if kind.resumable:
                await come_back(port, random.Random(1).sample(found, min(LOOKED_AT, streams)))
            stayed = sum(stream.open for stream in found)
        finally:
            for stream in found:
                stream.transport.abort()
            if kind.shared.startswith("redis:"):
                process.stop()
                await forget(kind.shared, {stream.stream for stream in (*warming, *found)})
        each = (after - before) * 1000 / streams
        return Result(kind.name, streams, took, before, after, each, cpu, beats, stayed)


async def opened(port: int, request: bytes, count: int) -> list[Stream]:
    """That many streams, each with its first delta."""
    loop, found = asyncio.get_running_loop(), list[Stream]()
    for begin in range(0, count, OPENING):
        made = await asyncio.gather(
            *(
                loop.create_connection(lambda: Stream(request), "127.0.0.1", port)
                for _ in range(min(OPENING, count - begin))
            )
        )
        found += [stream for _, stream in made]
        async with asyncio.timeout(30):
            await asyncio.gather(*(stream.begun for stream in found[begin:]))
    return found


async def forget(url: str, streams: set[str | None]) -> None:
    """Remove what they have left in Redis."""
    from redis.asyncio import Redis

    named = re.compile(rb"strm_\w{26}")
    async with Redis.from_url(url) as redis:
        left = [key async for key in redis.scan_iter("*strm_*", count=5000)]
        ours = [key for key in left if (found := named.search(key)) and found[0].decode() in streams]
        for begin in range(0, len(ours), 1000):
            await redis.delete(*ours[begin : begin + 1000])


async def come_back(port: int, streams: list[Stream]) -> None:
    """They can be read from their beginning. Raises `Failed`."""
    for stream in streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET /v1/streams/{stream.stream} HTTP/1.1\r\nhost: gateway\r\n\r\n".encode())
            async with asyncio.timeout(5):
                read = b""
                while b'"content":"' not in read:
                    data = await reader.read(65536)
                    if not data:
                        raise Failed(f"a stream cannot be come back to: {read[:500]!r}")
                    read += data
        except TimeoutError:
            raise Failed(f"whoever comes back to a stream waits in vain for what was in it: {read[:500]!r}") from None
        finally:
            writer.close()


def start_gateway(kind: Kind, folder: Path, streams: int, stack: ExitStack) -> tuple[int, Running]:
    program = Path(sys.executable).with_name("deltaway")
    if not program.exists():
        raise Failed(f"{program} does not exist: `make bench` installs it")
    home = folder / kind.name
    home.mkdir()
    (home / "providers.yaml").write_text(
        "server: {shutdown: {delay: 0s, grace: 0s}}\n"
        f"shared: {kind.shared}\n"
        "providers:\n"
        f"  mock: {{protocol: mock, max_parallel: {streams + SPARE}, timeouts: {{idle: 1h, total: 1h}}}}\n"
        "plugins: [usage]\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = Running("deltaway", [str(program), "serve", "--config", "providers.yaml", "--port", str(port)], home, {})
    stack.callback(process.stop)
    wait_for(port, process)
    return port, process


def report(results: list[Result], heading: str) -> str:
    columns = (
        "streams",
        "memory each, KB",
        "memory before → after, MB",
        "CPU s a second, idle",
        "heartbeats",
        "open in, s",
    )
    lines = [heading, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for each in results:
        name = "plain" if each.kind == "plain" else f"can be come back to, log: {each.kind}"
        lines.append(
            f"| {each.streams} {name} | {each.kb_each:.1f} | {each.before_mb:.0f} → {each.after_mb:.0f} "
            f"| {each.cpu:.3f} | {each.beats} | {each.opened_in:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _stopped)
    started = datetime.now(UTC)
    results: list[Result] = []
    try:
        _allow_sockets(arguments.streams + SPARE)
        with tempfile.TemporaryDirectory(prefix="deltaway-bench-") as folder:
            for kind in [each for each in KINDS if each.name in arguments.only]:
                results.append(uvloop.run(run(kind, Path(folder), arguments.streams, arguments.seconds)))
                print(results[-1], file=sys.stderr, flush=True)
    except Failed as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted; everything that was started has been ended", file=sys.stderr)
        return 130
    machine = describe_machine()
    heading = (
        f"{started:%Y-%m-%d}, {machine}; {arguments.streams} streams idle for {arguments.seconds:g} s in one process."
    )
    text = report(results, heading)
    print(text)
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{started:%Y-%m-%dT%H%M%SZ}-idle-streams"
        path.with_suffix(".md").write_text(text + "\n")
        record: dict[str, Any] = {
            "date": started.isoformat(timespec="seconds"),
            "machine": machine,
            "seconds": arguments.seconds,
            "results": [asdict(each) for each in results],
        }
        path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nsaved as {path.name}.md and .json in {RESULTS.name}/")
    lost = [f"{each.streams - each.stayed} of {each.kind}" for each in results if each.stayed < each.streams]
    if lost:
        print(f"benchmarks: streams were closed that should have stayed open: {', '.join(lost)}", file=sys.stderr)
    return 1 if lost else 0


def _allow_sockets(wanted: int) -> None:
    """As many descriptors for this process, and for the gateway that it starts. Raises `Failed`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    with suppress(ValueError, OSError):
        # root may go beyond the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        return
    raise Failed(f"{wanted} sockets are needed, and {hard} are allowed: raise the limit (ulimit -n), or ask for fewer")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.idle_streams", description="What idle streams cost in memory and CPU time."
    )
    names = [kind.name for kind in KINDS]
    parser.add_argument("--streams", type=int, default=10_000, help="open at once (10000)")
    parser.add_argument("--seconds", type=float, default=20, help="that they idle (20)")
    parser.add_argument("--only", nargs="+", choices=names, default=names[:3], help="(all but redis)")
    parser.add_argument("--save", action="store_true", help="write the run to benchmarks/results/")
    arguments = parser.parse_args()
    if arguments.streams < 1 or arguments.seconds <= 0:
        parser.error("--streams and --seconds must be above 0")
    return arguments


def _stopped(*_: Any) -> NoReturn:
    # as an exception, so that what was started is ended
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
