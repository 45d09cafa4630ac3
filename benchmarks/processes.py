"""Processes that the benchmark starts: their CPU time and memory from /proc, and their end."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """Something the benchmark needs is not there or does not work; the message says what to do."""


class Running:
    """One started process and all that it starts, in a session of their own."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tree(self) -> list[int]:
        """The process, its children and theirs."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _stat(int(entry.name))):
                children.setdefault(int(stat[1]), []).append(int(entry.name))
        found = [self.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def cpu(self) -> float:
        """Seconds of CPU time, user and system, of all threads of all processes of the tree, since their start."""
        return sum(int(stat[11]) + int(stat[12]) for pid in self.tree() if (stat := _stat(pid))) * _TICK

    def memory(self) -> float:
        """Resident memory of the tree in MB."""
        pages = 0
        for pid in self.tree():
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def check(self) -> None:
        if (code := self._process.poll()) is not None:
            raise Failed(f"{self.name} ended with exit code {code}; the end of its log:\n{self.tail()}")

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, patience: float = 5) -> None:
        """End the process and what it started: politely, then not."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                pass
        try:
            # the session is the process's own, so nobody else is in its group
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(patience)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (proc(5)): 1 is the parent, 11 and 12 the CPU ticks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(port: int, process: Running, seconds: float = 30) -> None:
    """Wait until the process accepts connections."""
    end = time.monotonic() + seconds
    while not listening(port):
        process.check()
        if time.monotonic() > end:
            raise Failed(f"{process.name} does not listen on port {port} after {seconds:.0f} s:\n{process.tail()}")
        time.sleep(0.05)
