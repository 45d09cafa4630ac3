"""The gateways that are compared: how each is started before the same upstream, on 127.0.0.1."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import tools, upstream
from benchmarks.processes import Failed, Running, listening, wait_for

KEY = "dw-bench-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
"""Presented by every client; Deltaway with plugins looks it up."""


@dataclass(frozen=True)
class Gateway:
    name: str
    port: int
    command: Callable[[int], list[str]]
    """Its command line on a port."""
    about: str
    prefix: str = ""
    """Goes before the upstream's model names."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def logs(self) -> bool:
        """Whether it has streams that can be come back to."""
        return self.name.startswith("deltaway")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"

    def start(self, folder: Path) -> Running:
        """Start it, its files in `folder`, and wait until it listens."""
        if listening(self.port):
            raise Failed(f"port {self.port}, which {self.name} needs, is taken: end what listens there")
        home = folder / self.name
        home.mkdir()
        process = Running(self.name, self.command(self.port), home, self.environment)
        try:
            wait_for(self.port, process)
        except BaseException:
            process.stop()
            raise
        return process


def _nginx(port: int) -> list[str]:
    return [tools.program("nginx"), "-p", ".", "-c", str(tools.HERE / "nginx.conf")]


def _smg(port: int) -> list[str]:
    return [
        *(tools.smg(), "launch", "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"http://127.0.0.1:{upstream.PORT}"),
        # of its ways to reach an upstream over HTTP the fastest, and all off that costs it time besides passing on
        *("--policy", "random", "--history-backend", "none", "--log-level", "error"),
        *("--disable-retries", "--disable-circuit-breaker", "--disable-health-check", "--disable-load-monitoring"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(port + 1)),
    ]


def _deltaway(config: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        program = Path(sys.executable).with_name("deltaway")
        if not program.exists():
            raise Failed(f"{program} does not exist: `make bench` installs it")
        return [str(program), "serve", "--config", str(tools.HERE / config), "--port", str(port)]

    return command


_DELTAWAY_ENVIRONMENT = {"DELTAWAY_ADMIN_KEY": KEY, "BENCH_VENDOR_KEY": "sk-bench"}

UPSTREAM = Gateway(
    "upstream",
    upstream.PORT,
    lambda port: [sys.executable, str(Path(upstream.__file__)), str(port)],
    "the vendor itself",
)
GATEWAYS = (
    Gateway("nginx", 9300, _nginx, "passes bytes through unread: the floor"),
    Gateway("smg", 9310, _smg, f"{tools.SMG_VERSION}, Rust; no auth, no accounting"),
    Gateway(
        "deltaway",
        9320,
        _deltaway("deltaway.yaml"),
        "with logging, auth and usage, every call in the ledger (SQLite)",
        prefix="bench/",
        environment=_DELTAWAY_ENVIRONMENT,
    ),
    Gateway(
        "deltaway-full",
        9345,
        _deltaway("deltaway-full.yaml"),
        "the same with limits and budget",
        prefix="bench/",
        environment={"BENCH_CLIENT_KEY": KEY, "BENCH_VENDOR_KEY": "sk-bench"},
    ),
    Gateway(
        "deltaway-no-ledger",
        9340,
        _deltaway("deltaway-no-ledger.yaml"),
        "as deltaway, the ledger off",
        prefix="bench/",
        environment=_DELTAWAY_ENVIRONMENT,
    ),
    Gateway(
        "deltaway-bare",
        9330,
        _deltaway("deltaway-bare.yaml"),
        "neither plugins nor ledger",
        prefix="bench/",
        environment=_DELTAWAY_ENVIRONMENT,
    ),
)
