"""Connections to a SQLite file."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiosqlite

from router.store.away import StoreAway, explain_sqlite
from router.store.statement import Statement

_PRAGMAS: Final = ("foreign_keys = on", "secure_delete = on")
"""`secure_delete`: what is deleted is overwritten, it does not wait in the file for somebody to use its place."""


class SqliteConnection(aiosqlite.Connection):
    """A connection with a thread of its own."""

    def __init__(self, file: str, busy: float, *, readonly: bool, create: bool, durable: bool) -> None:
        path = Path(file).absolute()
        super().__init__(
            lambda: _open(file, path, busy, readonly=readonly, create=create, durable=durable), iter_chunk_size=64
        )
        self._path = path
        self._identity = (0, 0)
        self._stopped: asyncio.Future[Any] | None = None
        # a process may end while a statement waits for a lock
        self._thread.daemon = True

    async def connect(self) -> None:
        """Raises `StoreAway`."""
        try:
            await self
        except Exception:
            await self._gone()
            raise
        self._identity = _identity(self._path)

    async def write_many(self, statements: Sequence[Statement]) -> None:
        """All of them in one transaction, and in one change of threads. Once begun it is done to its end, even when
        the caller is cancelled. Raises `sqlite3.Error`."""
        await self._execute(_write_many, self._conn, statements)  # type: ignore[no-untyped-call]

    def is_closed(self) -> bool:
        """Also when the file was removed or replaced: what is written here now would be lost."""
        return self._connection is None or _identity(self._path) != self._identity

    async def close(self) -> None:
        """What still runs, whose caller was cancelled, is interrupted and undone."""
        if self._connection is not None:
            self._connection.interrupt()
            await self._execute(_undo, self._connection)  # type: ignore[no-untyped-call]
        await super().close()

    def stop(self) -> asyncio.Future[Any] | None:
        """Close it without waiting, after what it still does."""
        if self._connection is not None:
            self._tx.put_nowait((None, partial(_undo, self._connection)))
        self._stopped = super().stop()
        return self._stopped

    async def drop(self) -> None:
        """Close it after what it still does."""
        self.stop()
        await self._gone()

    async def _gone(self) -> None:
        # a thread that ends after the event loop complains
        if self._stopped is not None:
            await asyncio.shield(self._stopped)


async def connect_sqlite(
    file: str, *, busy: float, readonly: bool = False, create: bool = False, durable: bool = False
) -> SqliteConnection:
    """`busy`: how long to wait for another process's lock, in seconds. `durable`: a commit waits for the disk. Raises
    `StoreAway`."""
    connection = SqliteConnection(file, busy, readonly=readonly, create=create, durable=durable)
    await connection.connect()
    return connection


def place_of(file: str) -> str:
    """Which store, for people."""
    return f"the store {file}"


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _open(file: str, path: Path, busy: float, *, readonly: bool, create: bool, durable: bool) -> sqlite3.Connection:
    try:
        if not path.parent.is_dir():
            raise StoreAway(f"{place_of(file)} cannot be opened: the directory {path.parent} does not exist, create it")
    except PermissionError as error:
        raise StoreAway(f"{place_of(file)} cannot be opened: the way to {path.parent} is closed to us") from error
    # only `Store.open` makes the file: a store that was removed under our feet is not replaced by an empty one
    uri = f"{path.as_uri()}?mode={'rwc' if create else 'rw'}"
    connection = None
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=busy, isolation_level=None)
        _use_wal(connection, busy)
        # `normal` keeps the file sound when the power goes, and may lose the last commits; `full` loses none
        connection.execute(f"PRAGMA synchronous = {'full' if durable else 'normal'}")
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        if readonly:
            connection.execute("PRAGMA query_only = on")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise explain_sqlite(error, place_of(file)) or error from error
    return connection


def _use_wal(connection: sqlite3.Connection, busy: float) -> None:
    """The change to WAL does not wait for locks: several processes may be making it to a new file."""
    until = time.monotonic() + busy
    while True:
        try:
            connection.execute("PRAGMA journal_mode = wal")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(0.01)
        else:
            return


def _undo(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        # SQLite keeps a closed connection, and its lock, for as long as somebody holds one of its cursors
        connection.rollback()
        # an interruption that found nothing to interrupt waits for the next statement, else for the last checkpoint
        connection.execute("SELECT 1").close()


def _write_many(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for sql, rows in statements:
            connection.executemany(sql, rows)
        connection.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
