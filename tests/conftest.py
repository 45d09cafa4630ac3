"""What all tests share: the marker for what a machine may lack."""

import gc
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

STRICT = "DELTAWAY_REQUIRE_SERVICES"
"""Set by the automatic checks: what is lacking fails the tests that need it, where a developer's machine skips them."""


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


LACKING = {
    "chromium": lambda: not shutil.which("chromium"),
    "node": lambda: not shutil.which("node"),
    "npm": lambda: not shutil.which("npm"),
    "postgres": lambda: not listening(5432),
    "redis": lambda: not listening(6379),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"needs(name, …): needs {', '.join(LACKING)} on this machine")


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = {name for mark in item.iter_markers("needs") for name in mark.args}
    if lacking := sorted(name for name in wanted if LACKING[name]()):
        reason = f"not on this machine: {', '.join(lacking)}"
        if os.environ.get(STRICT):
            pytest.fail(f"{reason} ({STRICT} is set)", pytrace=False)
        pytest.skip(reason)


class Unhurried:
    """In place of the collector: a server tidies up at its start, which takes longer than most tests."""

    collect = staticmethod(lambda: None)
    freeze = staticmethod(gc.freeze)
    unfreeze = staticmethod(gc.unfreeze)


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.lifecycle.gc", Unhurried)


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a directory of its own: a gateway keeps its ledger where it was started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back() -> Iterator[None]:
    """Gateways of tests are circles of objects, some with vocabularies of 80 MB, and the collector takes its time."""
    yield
    gc.collect()
