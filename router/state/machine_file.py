"""The SQLite file in which the processes of one machine count together.

It is used on the event loop, without a thread: a transaction takes tens of microseconds and waits for no disk
(`synchronous=OFF`; what a power cut takes away is in the ledger).
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

VERSION: Final = 2
"""Of the tables. A file of an older version is replaced, one of a newer left alone."""
_APPLICATION: Final = 0x44574159
_TABLES: Final = (
    # units taken by a rate's key, as of `at`
    "CREATE TABLE buckets (key TEXT PRIMARY KEY, taken REAL, at REAL, empty_at REAL) WITHOUT ROWID",
    # places taken in parallel
    "CREATE TABLE places (key TEXT PRIMARY KEY, taken INTEGER) WITHOUT ROWID",
    # calls that have entered, and a JSON array of the keys they have places of
    "CREATE TABLE inside (call_id TEXT PRIMARY KEY, until REAL, places TEXT) WITHOUT ROWID",
    # sums have no declared type: those beyond 64 bits are kept as text
    "CREATE TABLE accounts (name TEXT PRIMARY KEY, spent, reserved, asked INTEGER, ends INTEGER) WITHOUT ROWID",
    # calls that hold something, and a JSON object of account and amount
    "CREATE TABLE held (call_id TEXT PRIMARY KEY, owner TEXT, until REAL, lapsed INTEGER, amounts TEXT) WITHOUT ROWID",
    # calls that were charged after what they held had been lost
    "CREATE TABLE late (call_id TEXT PRIMARY KEY, until REAL) WITHOUT ROWID",
    # what processes tell each other of breakers and providers' keys, as JSON; the last word on each
    "CREATE TABLE health (subject TEXT PRIMARY KEY, told_at INTEGER, owner TEXT, until REAL, told) WITHOUT ROWID",
    "CREATE TABLE generation (id TEXT)",
)
_RUINED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class FileAway(Exception):
    """The file may not be used by this process. The message says why."""


class _OfNoUse(Exception):
    pass


class MachineFile:
    """What opens, replaces or removes the file is called under a lock that other processes respect; see `Machine`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = ""
        """Another one when the file was begun anew: what was held before is not there any more."""
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._inode = (0, 0)
        self._ruined: tuple[int, int] | None = None
        """The file that is known to be of no use."""

    @property
    def is_in_place(self) -> bool:
        """Whether it is open, and still the file of that name."""
        if self._cursor is None:
            return False
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return self._inode == (found.st_dev, found.st_ino)

    def transact(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """`work` in one transaction that has the write lock from its beginning. Raises `sqlite3.Error`."""
        cursor = self._cursor
        if cursor is None:
            raise FileAway("it is not open")
        cursor.execute("BEGIN IMMEDIATE")
        try:
            result = work(cursor)
            cursor.execute("COMMIT")
        except BaseException:
            if cursor.connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
        return result

    def open(self, generation: str | None = None) -> None:
        """Open the file, or make a new one in its place if it is of no use; a new one is of this generation.

        Raises `FileAway`, `OSError`, `sqlite3.Error`.
        """
        self.close()
        ruined, self._ruined = self._ruined, None
        if ruined is not None and ruined == _inode(self.path):
            self.remove()
        try:
            connection = _connect(self.path, generation)
        except (_OfNoUse, sqlite3.DatabaseError) as error:
            if not isinstance(error, _OfNoUse) and error.sqlite_errorcode & 0xFF not in _RUINED:
                raise
            self.remove()
            connection = _connect(self.path, generation)
        self._connection, self._cursor = connection, connection.cursor()
        self._inode = _inode(self.path)
        self.generation = self._cursor.execute("SELECT id FROM generation").fetchone()[0]

    def give_up(self, error: BaseException | None = None) -> None:
        """Close it after `error`, or because it is not wanted any more: the next `open` replaces it if it is ruined."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if error is None or code in _RUINED:
            self._ruined = self._inode
        self.close()

    def close(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def remove(self) -> None:
        # a connection to the old file that is still open somewhere closes without touching files of these names:
        # SQLite looks whether its file was moved away
        for ending in ("", "-wal", "-shm", "-journal"):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)


def _connect(path: Path, generation: str | None) -> sqlite3.Connection:
    # with the permissions that SQLite gives to the files beside it: keys' ids and users' names are nobody's business
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=0.5, isolation_level=None, cached_statements=64, check_same_thread=False)
    try:
        version, application = _number(connection, "user_version"), _number(connection, "application_id")
        if version == 0 and application == 0 and not _number(connection, "schema_version"):
            connection.execute("PRAGMA page_size = 1024")
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = off")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute("INSERT INTO generation VALUES (?)", (generation or os.urandom(8).hex(),))
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        elif application == _APPLICATION and version > VERSION:
            raise FileAway("it is used by a newer version: end this process")
        elif application != _APPLICATION or version != VERSION or not _is_whole(connection):
            raise _OfNoUse
        connection.execute("PRAGMA synchronous = off")
        connection.execute("PRAGMA wal_autocheckpoint = 200")
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_whole(connection: sqlite3.Connection) -> bool:
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return bool(tables == len(_TABLES) and connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _inode(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino
