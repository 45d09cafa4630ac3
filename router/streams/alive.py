"""Which processes of this machine live: each holds a lock on a file of its name, which the kernel lets go of when it
dies, however it dies. Whoever finds the file of a dead process removes it.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_ENDING: Final = ".alive"
_TRIES: Final = 5
_PAUSE: Final = 0.001
"""Seconds between two tries: whoever looks whether a file is locked has it for some microseconds."""


class Alive:
    """The files are in `directory`. Every method may raise `OSError`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[str, int] = {}

    def hold(self, name: str) -> None:
        """Say that `name` lives, until `release`. Nothing happens if another says so already."""
        path = self._path(name)
        held = self._held.get(name)
        if held is not None:
            if _is_in_place(held, path):
                return
            os.close(self._held.pop(name))
        for _ in range(_TRIES):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _locked(lock) and _is_in_place(lock, path):
                self._held[name] = lock
                return
            os.close(lock)
            time.sleep(_PAUSE)

    def lives(self, name: str) -> bool:
        if name in self._held:
            return True
        path = self._path(name)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if not _locked(lock):
                return True
            if _is_in_place(lock, path):
                path.unlink(missing_ok=True)
            return False
        finally:
            os.close(lock)

    def release(self) -> None:
        while self._held:
            name, lock = self._held.popitem()
            with suppress(OSError):
                self._path(name).unlink(missing_ok=True)
            os.close(lock)

    def clear(self) -> None:
        """Remove the files of dead processes."""
        for path in self._directory.glob(f"*{_ENDING}"):
            self.lives(path.name.removesuffix(_ENDING))

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{_ENDING}"


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_in_place(lock: int, path: Path) -> bool:
    """Whether the file has not been removed, or made anew, since it was opened."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(lock)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)
