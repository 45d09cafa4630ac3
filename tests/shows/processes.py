"""A gateway as a process of its own, so that it can be killed and started again on the same files."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

ADMIN_KEY = "admin-key-of-these-tests"
_GREETING = re.compile(rb"serves (http://127\.0\.0\.1:(\d+))/v1")


class GatewayProcess:
    """`deltaway serve` in `directory`, with the configuration `config` there.

    Its port changes at each start, unless it is to stay (`keep_port`) where it was first.
    """

    def __init__(self, directory: Path, name: str = "gateway", workers: int = 1, *, keep_port: bool = False) -> None:
        self.directory = directory
        self.workers = workers
        self.keep_port = keep_port
        self.log = directory / f"{name}.log"
        self.port = 0
        self.url = ""
        self._environ = {**os.environ, "DELTAWAY_ADMIN_KEY": ADMIN_KEY}
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, files: Mapping[str, str]) -> None:
        """Put files into its directory: `providers.yaml`, and what that names."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            (self.directory / path).write_text(text)

    async def start(self, seconds: float = 60.0) -> None:
        """Start it and wait until it takes calls."""
        begin = self.start_only()
        assert self._process is not None
        async with asyncio.timeout(seconds):
            while (greeting := _GREETING.search(self._said(begin))) is None or not await self._ready(greeting):
                if (code := self._process.poll()) is not None:
                    raise AssertionError(f"the gateway ended with {code}: {self._said(begin)[-3000:].decode()}")
                await asyncio.sleep(0.02)

    def start_only(self) -> int:
        """Start it and wait for nothing. Gives where its log begins."""
        command = [sys.executable, "-m", "router", "serve", "--config", "providers.yaml"]
        command += ["--port", str(self.port if self.keep_port else 0), "--workers", str(self.workers)]
        begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return begin

    async def kill(self) -> None:
        """SIGKILL: it is gone with all its workers, and with it everything it had in memory."""
        assert self._process is not None
        # the session is its own, so nobody else is in its group
        os.killpg(self._process.pid, signal.SIGKILL)
        await self._ended(10)

    def worker_pids(self) -> list[int]:
        """Of `workers` processes, which its own starts."""
        assert self._process is not None
        own = self._process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def kill_worker(self, worker: int) -> None:
        """SIGKILL to one of `worker_pids`, which is started anew."""
        assert worker in self.worker_pids()
        os.kill(worker, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """To the process that was started, not to its workers."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self) -> None:
        """SIGTERM, as an operator stops it."""
        assert self._process is not None
        self._process.terminate()
        assert await self._ended(40) in (0, -signal.SIGTERM), self._said(0)[-3000:].decode()

    async def end(self) -> None:
        """Leave nothing running, whatever has happened."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._ended(10)

    def said(self) -> str:
        """All that it has logged, over all its lives."""
        return self._said(0).decode()

    async def _ended(self, seconds: float) -> int:
        assert self._process is not None
        async with asyncio.timeout(seconds):
            while (code := self._process.poll()) is None:
                await asyncio.sleep(0.005)
        return code

    async def _ready(self, greeting: re.Match[bytes]) -> bool:
        self.url, self.port = greeting[1].decode(), int(greeting[2])
        try:
            status, _ = await fetch(self.port, "/health/ready")
        except OSError:
            return False
        return status == 200

    def _said(self, begin: int) -> bytes:
        return self.log.read_bytes()[begin:]


@asynccontextmanager
async def running(
    directory: Path,
    config: str,
    name: str = "gateway",
    files: Mapping[str, str] | None = None,
    workers: int = 1,
    *,
    keep_port: bool = False,
) -> AsyncIterator[GatewayProcess]:
    """A gateway that runs; ended whatever happens. `files` are written beside its configuration."""
    gateway = GatewayProcess(directory, name, workers, keep_port=keep_port)
    gateway.write({"providers.yaml": config, **(files or {})})
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.end()


async def fetch(port: int, path: str) -> tuple[int, Any]:
    """Status and JSON of one GET with the admin key. Raises `OSError` when nobody answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"GET {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {ADMIN_KEY}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.read()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    if not answer:
        raise ConnectionResetError("the gateway closed the connection without an answer")
    head_bytes, _, body = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), json.loads(body)
