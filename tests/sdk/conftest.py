"""A gateway as its users start it, in a process of its own, for client libraries of other people."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

CONFIG = """
# so short that a heartbeat falls between most deltas of `slow-…`, and before the headers of a slow vendor
server: {heartbeat: 20ms, body_limit: 1MiB, shutdown: {delay: 0s, grace: 1s}}
providers:
  mock: {protocol: mock, models: [echo, tools]}
models:
  impatient: {targets: [mock/stall-2], timeouts: {idle: 200ms}}
plugins: [logging, usage]
"""


@pytest.fixture(scope="session")
def gateway_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway with the provider `mock` and without keys."""
    place = tmp_path_factory.mktemp("gateway")
    (place / "providers.yaml").write_text(CONFIG)
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    log = place / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "router", "serve", "--port", "0"],
            cwd=place,
            env=environment,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _address(process, log)
        assert "Traceback" not in log.read_text(), "the gateway logged a fault of its own"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where the gateway serves, once it does."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        assert process.poll() is None, f"the gateway ended: {log.read_text()}"
        if found := re.search(r"serves (http://\S+)/v1", log.read_text()):
            try:
                with urlopen(f"{found[1]}/health/ready", timeout=5):
                    return found[1]
            except OSError:
                pass
        time.sleep(0.05)
    raise AssertionError(f"the gateway did not start: {log.read_text()}")
