"""State that the processes of one machine share.

A process that is alone counts in its own memory. As soon as another comes, it writes what it has counted into a SQLite
file beside the journals (`router.state.machine_file`), and both count there; the last one takes it back.

Who is there is known by a lock on `shared.users`: one process holds it alone, several share it. The kernel lets go of
it when a process dies. A process that comes and finds it held by one alone makes the file `shared.wanted`, which the
other looks for. Every change of these locks, and of which file has the name, happens under a lock on `shared.making`.

What was counted is worth something only while a process runs. The first of a machine begins anew, so that what was
counted long ago, or by processes that died, binds nobody.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, TypeVar

from router.state.machine_file import FileAway, MachineFile

T = TypeVar("T")

_WAITS: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_LONGEST_PAUSE: Final = 0.02
_PAUSE: Final = 1.0
"""Seconds in which a file that was locked for too long is not tried again."""
_JOIN: Final = 10.0
"""Seconds in which the process that is alone has to share."""
_LOOK: Final = 0.05
"""Seconds between two looks of one that is alone whether another has come."""
_LOOK_AROUND: Final = 1.0
"""Seconds between two looks of one that shares whether it is alone."""


class MachineAway(Exception):
    """What is shared cannot be used: locked for too long, no space, no permission. The message says which."""


class Part(Protocol):
    """What is counted: limits, or budgets."""

    def write(self, cursor: sqlite3.Cursor) -> None:
        """From memory into the file, which is empty."""
        ...

    def read(self, cursor: sqlite3.Cursor) -> None:
        """From the file into memory, which is empty."""
        ...

    def clear(self) -> None:
        """Empty the memory."""
        ...


class Machine:
    """What is shared at `path`. A file that is found locked is tried for `patience` seconds."""

    def __init__(self, path: Path, patience: float = 1.0) -> None:
        self.alone = False
        self.parts: list[Part] = []
        self._file = MachineFile(path)
        self._generation = ""
        self._patience = patience
        self._users = -1
        self._changing = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        self._away_until = 0.0
        self._reason = ""

    @property
    def generation(self) -> str:
        """Another one when all was begun anew: what was held before is not there any more."""
        return self._generation if self.alone else self._file.generation

    async def open(self) -> None:
        """Be the first, or join those who are there. Raises `MachineAway`."""
        try:
            self._file.path.parent.mkdir(parents=True, exist_ok=True)
            self._users = os.open(self._beside("users"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            await self._join()
        except (OSError, sqlite3.Error, FileAway) as error:
            await self.close()
            raise self._away("cannot be opened", error) from error
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        self._file.close()
        if self._users >= 0:
            os.close(self._users)
            self._users = -1

    async def begin_anew(self) -> None:
        """Forget all that was counted. Raises `MachineAway`."""
        alone = await self.run(lambda: True, lambda cursor: False)
        if alone:
            self._clear()
        else:
            self._file.give_up()
            await self.run(lambda: None, lambda cursor: None)

    async def run(self, alone: Callable[[], T], shared: Callable[[sqlite3.Cursor], T]) -> T:
        """`alone` if this process is, else `shared` in one transaction on the file. Neither waits for anything;
        `shared` may be tried more than once. Raises `MachineAway`."""
        if self.alone:
            return alone()
        if self._away_until and time.monotonic() < self._away_until:
            raise MachineAway(self._reason)
        deadline, pause, renewed = 0.0, 0.0, False
        while True:
            try:
                if not self._file.is_in_place and await self._open_again():
                    return alone()
                return self._file.transact(shared)
            except sqlite3.ProgrammingError:
                raise
            except FileAway as error:
                raise self._away("cannot be used", error) from error
            except (sqlite3.Error, OSError) as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _WAITS:
                    self._file.give_up(error)
                    if renewed:
                        raise self._away("cannot be used", error) from error
                    renewed = True
                    continue
                now = time.monotonic()
                deadline = deadline or now + self._patience
                if now >= deadline:
                    # the next ones do not wait all over
                    self._away_until = now + _PAUSE
                    away = self._away(f"was locked for {self._patience:g} s", "is another process stopped?")
                    self._reason = str(away)
                    raise away from error
            # the other's transaction is over when we look again, unless its process was put aside in the middle of it
            await asyncio.sleep(pause)
            pause = min(max(0.0005, pause * 2), _LONGEST_PAUSE)

    async def _open_again(self) -> bool:
        """Whether there is no file to open, because this process is alone by now."""
        async with self._making():
            if not self.alone and not self._file.is_in_place:
                self._file.open()
            return self.alone

    # -- who is there ----------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        deadline = time.monotonic() + _JOIN
        while True:
            async with self._making():
                if _locked(self._users, fcntl.LOCK_EX):
                    self._file.remove()
                    self._wanted.unlink(missing_ok=True)
                    self._clear()
                    self.alone = True
                    return
                if _locked(self._users, fcntl.LOCK_SH):
                    self._file.open()
                    return
                self._wanted.touch(0o600)
            if time.monotonic() >= deadline:
                raise FileAway("the process that counts alone does not share: is it stopped?")
            await asyncio.sleep(0.01)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK if self.alone else _LOOK_AROUND)
            with suppress(OSError, sqlite3.Error, FileAway):
                if not self.alone:
                    await self._be_alone()
                elif self._wanted.exists():
                    await self._share()

    async def _share(self) -> None:
        """Write down what was counted in memory, and let others in."""
        async with self._making():
            self._file.remove()
            self._file.open(self._generation)
            try:
                self._file.transact(self._write)
            except BaseException:
                self._file.close()
                raise
            self.alone = False
            for part in self.parts:
                part.clear()
            # between the two locks there is none, and nobody who looks
            fcntl.flock(self._users, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._wanted.unlink(missing_ok=True)

    async def _be_alone(self) -> None:
        """If the others have gone, take into memory what was counted."""
        async with self._making():
            if not self._file.is_in_place:
                return
            if not _locked(self._users, fcntl.LOCK_EX):
                # the lock is lost by trying, and nobody has taken it meanwhile
                fcntl.flock(self._users, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            try:
                self._file.transact(self._read)
            except BaseException:
                fcntl.flock(self._users, fcntl.LOCK_SH | fcntl.LOCK_NB)
                raise
            self._generation, self.alone = self._file.generation, True
            self._file.close()
            self._file.remove()

    def _write(self, cursor: sqlite3.Cursor) -> None:
        for part in self.parts:
            part.write(cursor)

    def _read(self, cursor: sqlite3.Cursor) -> None:
        for part in self.parts:
            part.clear()
            part.read(cursor)

    def _clear(self) -> None:
        self._generation = os.urandom(8).hex()
        for part in self.parts:
            part.clear()

    # -- inside ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _making(self) -> AsyncIterator[None]:
        """Of all processes and tasks, one at a time is in here."""
        async with self._changing:
            deadline = time.monotonic() + self._patience
            lock = os.open(self._beside("making"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while not _locked(lock, fcntl.LOCK_EX):
                    if time.monotonic() >= deadline:
                        raise FileAway("another process is making it, and does not end")
                    await asyncio.sleep(0.005)
                if self._closed:
                    raise FileAway("it is closed")
                yield
            finally:
                os.close(lock)

    @property
    def _wanted(self) -> Path:
        return self._beside("wanted")

    def _beside(self, ending: str) -> Path:
        return self._file.path.with_suffix(f".{ending}")

    def _away(self, what: str, why: object) -> MachineAway:
        return MachineAway(f"the shared state in `{self._file.path}` {what}: {why}")


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
