"""The configuration that was accepted last, kept in a file for workers that begin later.

A worker that dies is replaced by one that must not begin with whatever its file says by then: nobody has checked that
against what the other workers run. It begins with this text, and reads the file as any reload does.
"""

import os
from contextlib import suppress
from pathlib import Path

from router.document import decode


class Accepted:
    """A private file of one gateway's parent process, which the workers write when they take a new text up."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> str | None:
        """None: it is gone. Raises `OSError`, `ConfigError`."""
        try:
            return decode(self.path.read_bytes(), str(self.path))
        except FileNotFoundError:
            return None

    def write(self, text: str) -> None:
        """All of it or nothing, for its owner's eyes alone. Raises `OSError`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            aside.unlink()
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text.encode("utf-8"))
        aside.replace(self.path)

    def remove(self) -> None:
        """Raises nothing: what is left is overwritten by the next of that name."""
        with suppress(OSError):
            self.path.unlink()
