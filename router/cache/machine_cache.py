"""A cache in a SQLite file that the processes of one machine share. What was put first makes room.

The file is opened when it is first needed, and used in a thread. It is nobody's record: one that is of no use is made
anew, and a power cut may take it away (`synchronous=OFF`). What is removed is overwritten with zeros.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from router.cache.shelf import ShelfAway

T = TypeVar("T")

FILE: Final = "cache.db"
"""In the directory of the journals."""
VERSION: Final = 1
_APPLICATION: Final = 0x44574341
_RUINED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""Errors of a file that is no SQLite, or not ours."""
_TABLES: Final = (
    # `n` counts what was put; a replaced entry is put anew
    """
    CREATE TABLE entries (
      n INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, until REAL NOT NULL,
      size INTEGER NOT NULL, data BLOB NOT NULL
    )
    """,
    "CREATE INDEX entries_by_owner ON entries (owner)",
    "CREATE INDEX entries_by_end ON entries (until)",
    "CREATE TABLE taken (bytes INTEGER NOT NULL)",
    "INSERT INTO taken VALUES (0)",
)
_BESIDE: Final = 512
"""Bytes that an entry takes beside its data, about."""
_MOST_ENDED: Final = 200
"""Entries whose time is over that go with each new one."""
_BATCH: Final = 500
"""Entries that are cleared in one transaction: others have their turn in between."""


class MachineCache:
    """`clock` gives seconds, the same for all processes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._thread: ThreadPoolExecutor | None = None

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._close)
            thread.shutdown(wait=False)

    async def get(self, key: str) -> bytes | None:
        return await self._run(lambda connection: self._get(connection, key))

    async def put(self, key: str, owner: str, data: bytes, ttl: float, room: int) -> None:
        await self._run(lambda connection: self._put(connection, key, owner, data, ttl, room))

    async def remove(self, key: str) -> None:
        await self._run(lambda connection: _delete(connection, "key = ?", (key,)))

    async def clear(self, owner: str | None) -> int:
        if self._connection is None and not self._path.exists():
            return 0
        now, living = self._clock(), 0
        where, which = ("n > ?", (0,)) if owner is None else ("owner = ?", (owner,))

        def some(connection: sqlite3.Connection) -> tuple[int, int]:
            rows = connection.execute(
                f"SELECT n, until FROM entries WHERE {where} ORDER BY n LIMIT {_BATCH}",
                which,
            ).fetchall()
            connection.execute("BEGIN IMMEDIATE")
            for number, _ in rows:
                _delete_row(connection, number)
            connection.execute("COMMIT")
            return len(rows), sum(until > now for _, until in rows)

        while True:
            found, alive = await self._run(some)
            living += alive
            if found < _BATCH:
                break
        await self._run(_forget)
        return living

    # -- in the thread -----------------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "cache")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._done, work)

    def _done(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._worked(work)
        except sqlite3.Error as error:
            ruined = getattr(error, "sqlite_errorcode", 0) & 0xFF in _RUINED
            self._close()
            if ruined:
                self._unlink()
            raise ShelfAway(f"`{self._path}` cannot be used: {error}") from error
        except OSError as error:
            self._close()
            raise ShelfAway(f"`{self._path}` cannot be used: {error.strerror or error}") from error

    def _worked(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._opened()
        try:
            return work(connection)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _get(self, connection: sqlite3.Connection, key: str) -> bytes | None:
        row = connection.execute("SELECT data, until FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None or row[1] <= self._clock() else bytes(row[0])

    def _put(self, connection: sqlite3.Connection, key: str, owner: str, data: bytes, ttl: float, room: int) -> None:
        now, size = self._clock(), len(data) + _BESIDE
        connection.execute("BEGIN IMMEDIATE")
        ended = connection.execute("SELECT n FROM entries WHERE until <= ? LIMIT ?", (now, _MOST_ENDED)).fetchall()
        replaced = connection.execute("SELECT n FROM entries WHERE key = ?", (key,)).fetchall()
        for (number,) in {*ended, *replaced}:
            _delete_row(connection, number)
        (taken,) = connection.execute("SELECT bytes FROM taken").fetchone()
        while taken + size > room:
            row = connection.execute("SELECT n, size FROM entries ORDER BY n LIMIT 1").fetchone()
            if row is None:
                break
            _delete_row(connection, row[0])
            taken -= row[1]
        if size <= room:
            connection.execute(
                "INSERT INTO entries (key, owner, until, size, data) VALUES (?, ?, ?, ?, ?)",
                (key, owner, now + ttl, size, data),
            )
            connection.execute("UPDATE taken SET bytes = bytes + ?", (size,))
        connection.execute("COMMIT")

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None:
            if _inode(self._path) == self._inode:
                return self._connection
            self._close()
        try:
            connection = _connect(self._path)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _RUINED:
                raise
            self._unlink()
            connection = _connect(self._path)
        self._connection, self._inode = connection, _inode(self._path)
        return connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _unlink(self) -> None:
        for ending in ("", "-wal", "-shm", "-journal"):
            Path(f"{self._path}{ending}").unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    # answers are nobody else's business
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=0.4, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("PRAGMA synchronous = off")
        connection.execute("PRAGMA secure_delete = on")
        connection.execute("BEGIN IMMEDIATE")
        if (_number(connection, "application_id"), _number(connection, "user_version")) != (_APPLICATION, VERSION):
            for kind, name in connection.execute(
                "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND type = 'table'"
            ).fetchall():
                connection.execute(f'DROP {kind} "{name}"')
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _delete(connection: sqlite3.Connection, where: str, which: tuple[str, ...]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for (number,) in connection.execute(f"SELECT n FROM entries WHERE {where}", which).fetchall():
        _delete_row(connection, number)
    connection.execute("COMMIT")


def _delete_row(connection: sqlite3.Connection, number: int) -> None:
    connection.execute(
        "UPDATE taken SET bytes = bytes - coalesce((SELECT size FROM entries WHERE n = ?), 0)", (number,)
    )
    connection.execute("DELETE FROM entries WHERE n = ?", (number,))


def _forget(connection: sqlite3.Connection) -> None:
    # what was removed may still be in the log of writes; a reader in another process keeps it there until the next time
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _inode(path: Path) -> tuple[int, int]:
    """Another one when the file was made anew."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
