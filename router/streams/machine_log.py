"""A stream log in a SQLite file that the processes of one machine share, and that outlives them.

The file is opened when it is first needed, and used in one thread. Blocks are kept some together, as one append brought
them, and go as they came. What is deleted is overwritten with zeros. A file that is damaged is removed and begun anew:
nothing in it was to be kept for long.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog
from msgspec import Struct

from router.call import Outcome
from router.streams.alive import Alive
from router.streams.log import DEAD, Appended, Claim, LogAway, StreamHead, Stretch, Told, known_for, split_blocks
from router.streams.rows import rows_of

T = TypeVar("T")

FILE: Final = "streams.db"
"""In the directory of the journals."""
VERSION: Final = 1
_APPLICATION: Final = 0x44575354
_RUINED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_PAUSE: Final = 1.0
"""Seconds in which a file that was locked for too long is not tried again."""
_NOTED: Final = 250
"""Milliseconds between two notes that a stream was read."""
_SWEEP: Final = 30.0
"""Seconds between two looks for what has outlived its time, at most."""
_TOGETHER: Final = 100
"""Streams that are swept in one transaction: others have their turn in between."""
_TABLES: Final = (
    # `over` is when it ended, or when its writer was last seen alive; null while it is written
    """
    CREATE TABLE streams (
      n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, writer TEXT NOT NULL, head BLOB NOT NULL,
      begins INTEGER NOT NULL DEFAULT 1, last INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0,
      ended TEXT, over REAL, read_at INTEGER NOT NULL DEFAULT 0, stopped INTEGER NOT NULL DEFAULT 0,
      expired INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX streams_open ON streams (writer) WHERE over IS NULL",
    # what a writer is told with every batch: idle streams are not looked at
    "CREATE INDEX streams_told ON streams (writer) WHERE over IS NULL AND (stopped OR read_at)",
    "CREATE INDEX streams_over ON streams (expired, over) WHERE over IS NOT NULL",
    # the blocks from number `first` to `last`, joined
    """
    CREATE TABLE rows (
      stream INTEGER NOT NULL, last INTEGER NOT NULL, first INTEGER NOT NULL, data BLOB NOT NULL,
      PRIMARY KEY (stream, last)
    )
    """,
    "CREATE TABLE writers (name TEXT PRIMARY KEY, seen REAL NOT NULL) WITHOUT ROWID",
    """
    CREATE TABLE claims (
      owner TEXT NOT NULL, key TEXT NOT NULL, stream TEXT NOT NULL, fingerprint TEXT NOT NULL, until REAL NOT NULL,
      PRIMARY KEY (owner, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX claims_by_stream ON claims (stream)",
    "CREATE INDEX claims_by_end ON claims (until)",
)


class _Known(Struct):
    """What the file says of a stream, and what time has made of it since."""

    n: int
    id: str
    writer: str
    head: bytes
    begins: int
    last: int
    size: int
    ended: Outcome | None
    over: float | None
    read_at: int
    stopped: int
    expired: int


_COLUMNS: Final = "n, id, writer, head, begins, last, size, ended, over, read_at, stopped, expired"
"""As `_Known` has them."""


class MachineLog:
    """Used while its `lifespan` lasts. `keep`: seconds after its end; `limit`: bytes of one stream; `clock` gives Unix
    seconds, the same for all processes; a file that is found locked is tried for `patience` seconds."""

    def __init__(
        self, path: Path, keep: float, limit: int, clock: Callable[[], float] = time.time, patience: float = 1.0
    ) -> None:
        self.keep = keep
        self.limit = limit
        self._path = path
        self._clock = clock
        self._patience = patience
        self._alive = Alive(path.parent)
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._ruined: tuple[int, int] | None = None
        """The file that is known to be of no use."""
        self._unforgotten = False
        """Whether what was deleted may still be in the log of writes."""
        self._thread: ThreadPoolExecutor | None = None
        self._away_until = 0.0
        self._reason = ""
        self._unnoted_until = 0.0
        self._log = structlog.get_logger("deltaway.streams")

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._thread = ThreadPoolExecutor(1, "streams")
        sweeping = asyncio.create_task(self._sweeps())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            thread, self._thread = self._thread, None
            await asyncio.get_running_loop().run_in_executor(thread, self._leave)
            thread.shutdown(wait=False)

    async def begin(self, head: StreamHead) -> None:
        data = msgspec.msgpack.encode(head)
        await self._run(lambda connection: self._begin(connection, head, data))

    async def append(self, writer: str, batch: Sequence[Appended]) -> Told:
        return await self._run(lambda connection: self._append(connection, writer, batch))

    async def read(self, stream: str, after: int, limit: int = 256 * 1024) -> Stretch | None:
        return await self._run(lambda connection: self._read(connection, stream, after, limit))

    async def living(self, writer: str) -> bool:
        return await self._run(lambda connection: self._lives(writer, self._seen(connection, writer)))

    async def seal(self, stream: str, block: bytes, ended: Outcome) -> None:
        await self._run(lambda connection: self._seal(connection, stream, block, ended))

    async def stop(self, stream: str) -> None:
        def asked(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE streams SET stopped = 1 WHERE id = ? AND over IS NULL", (stream,))

        await self._run(asked)

    async def claim(self, owner: str, key: str, stream: str, fingerprint: str) -> Claim:
        try:
            return await self._run(lambda connection: self._claim(connection, owner, key, stream, fingerprint))
        except asyncio.CancelledError:
            # nobody will use it
            if self._thread is not None:
                self._thread.submit(self._done, lambda connection: _release(connection, owner, key, stream))
            raise

    async def release(self, owner: str, key: str, stream: str) -> None:
        await self._run(lambda connection: _release(connection, owner, key, stream))

    async def remove(self, stream: str) -> None:
        await self._run(lambda connection: self._remove(connection, stream))

    async def sweep(self) -> None:
        """Delete what has outlived its time. Done by itself every now and then."""
        while await self._run(self._sweep):
            pass
        await self._run(self._forget)

    async def _sweeps(self) -> None:
        while True:
            with suppress(LogAway):
                await self.sweep()
            await asyncio.sleep(min(_SWEEP, max(1.0, self.keep / 4)))

    # -- in the thread: streams --------------------------------------------------------------------------------------

    def _begin(self, connection: sqlite3.Connection, head: StreamHead, data: bytes) -> None:
        self._alive.hold(head.writer)
        with _changing(connection):
            self._see(connection, head.writer)
            if self._known(connection, head.id) is None:
                self._delete(connection, head.id)
            connection.execute(
                "INSERT INTO streams (id, writer, head) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (head.id, head.writer, data),
            )

    def _append(self, connection: sqlite3.Connection, writer: str, batch: Sequence[Appended]) -> Told:
        self._alive.hold(writer)
        with _changing(connection):
            self._see(connection, writer)
            lost = frozenset([each.id for each in batch if not self._add(connection, writer, each)])
            told = connection.execute(
                "SELECT id, stopped, read_at FROM streams WHERE writer = ? AND over IS NULL AND (stopped OR read_at)",
                (writer,),
            ).fetchall()
        return Told(
            frozenset([name for name, stopped, _ in told if stopped]),
            {name: read_at for name, _, read_at in told if read_at},
            lost,
        )

    def _add(self, connection: sqlite3.Connection, writer: str, appended: Appended) -> bool:
        """Whether the log has it now."""
        known = self._known(connection, appended.id)
        if known is None or known.writer != writer:
            return False
        if known.over is not None:
            again = appended.first + len(appended.blocks) - 1 <= known.last
            return again and appended.ended is not None and appended.ended == known.ended
        self._put(connection, known, appended.first, appended.blocks)
        if appended.ended is not None:
            known.ended, known.over = appended.ended, self._clock()
        self._save(connection, known)
        return True

    def _put(self, connection: sqlite3.Connection, known: _Known, first: int, blocks: Sequence[bytes]) -> None:
        done = max(0, known.last + 1 - first)
        rows = rows_of(first + done, blocks[done:], self.limit)
        first = rows[0].first if rows else first
        if first > known.last + 1:
            connection.execute("DELETE FROM rows WHERE stream = ?", (known.n,))
            known.begins, known.last, known.size = first, first - 1, 0
        for row in rows:
            connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (known.n, row.last, row.first, row.data))
            known.last = row.last
            known.size += len(row.data)
        while known.size > self.limit:
            last, size = connection.execute(
                "SELECT last, length(data) FROM rows WHERE stream = ? ORDER BY last LIMIT 1", (known.n,)
            ).fetchone()
            if last == known.last:
                break
            connection.execute("DELETE FROM rows WHERE stream = ? AND last = ?", (known.n, last))
            known.begins = last + 1
            known.size -= size

    def _read(self, connection: sqlite3.Connection, stream: str, after: int, limit: int) -> Stretch | None:
        # one view of all tables
        connection.execute("BEGIN")
        known = self._known(connection, stream)
        if known is None:
            connection.execute("ROLLBACK")
            return None
        first = min(max(after + 1, known.begins), known.last + 1)
        blocks = [] if known.expired else _blocks(connection, known.n, first, limit)
        connection.execute("COMMIT")
        if known.over is None:
            self._note(connection, known)
        head = msgspec.msgpack.decode(known.head, type=StreamHead)
        return Stretch(head, first, tuple(blocks), known.begins, known.last, known.ended, bool(known.expired))

    def _note(self, connection: sqlite3.Connection, known: _Known) -> None:
        """That it was read. Where nothing can be written it may be read all the same."""
        now = int(self._clock() * 1000)
        if now - known.read_at >= _NOTED and time.monotonic() >= self._unnoted_until:
            try:
                connection.execute("UPDATE streams SET read_at = max(read_at, ?) WHERE n = ?", (now, known.n))
            except sqlite3.OperationalError:
                self._unnoted_until = time.monotonic() + _PAUSE

    def _seal(self, connection: sqlite3.Connection, stream: str, block: bytes, ended: Outcome) -> None:
        with _changing(connection):
            known = self._known(connection, stream)
            if known is not None and known.over is None:
                self._put(connection, known, known.last + 1, (block,))
                known.ended, known.over = ended, self._seen(connection, known.writer)
                self._save(connection, known)

    def _remove(self, connection: sqlite3.Connection, stream: str) -> None:
        with _changing(connection):
            self._delete(connection, stream)
            self._unclaim(connection, stream)
        self._forget(connection)

    # -- in the thread: claims ---------------------------------------------------------------------------------------

    def _claim(self, connection: sqlite3.Connection, owner: str, key: str, stream: str, fingerprint: str) -> Claim:
        with _changing(connection):
            found = connection.execute(
                "SELECT stream, fingerprint, until FROM claims WHERE owner = ? AND key = ?", (owner, key)
            ).fetchone()
            if found is not None:
                known = self._known(connection, found[0])
                if (known is None and found[2] > self._clock()) or (known is not None and not known.expired):
                    return Claim(found[0], found[1], False)
            connection.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)",
                (owner, key, stream, fingerprint, self._clock() + self.keep),
            )
            return Claim(stream, fingerprint, True)

    # -- in the thread: time, and who lives --------------------------------------------------------------------------

    def _known(self, connection: sqlite3.Connection, stream: str) -> _Known | None:
        """The stream as it is now: what its time is over for need not be swept yet."""
        row = connection.execute(f"SELECT {_COLUMNS} FROM streams WHERE id = ?", (stream,)).fetchone()
        if row is None:
            return None
        known, now = _Known(*row), self._clock()
        if known.over is None:
            known.over = self._died(connection, known.writer)
        if known.over is None or now - known.over < self.keep:
            return known
        if now - known.over >= known_for(self.keep):
            return None
        known.begins, known.expired = known.last + 1, 1
        return known

    def _died(self, connection: sqlite3.Connection, writer: str) -> float | None:
        """The last sign of life of a process that is dead; None: it lives."""
        seen = self._seen(connection, writer)
        # whether its lock is held need not be asked as long as it makes no difference
        if self._clock() - seen < self.keep or self._lives(writer, seen):
            return None
        return seen

    def _lives(self, writer: str, seen: float) -> bool:
        return self._clock() - seen < DEAD and self._alive.lives(writer)

    def _seen(self, connection: sqlite3.Connection, writer: str) -> float:
        row = connection.execute("SELECT seen FROM writers WHERE name = ?", (writer,)).fetchone()
        return 0.0 if row is None else float(row[0])

    def _see(self, connection: sqlite3.Connection, writer: str) -> None:
        """A sign of life. Streams whose time was over by then are not open again."""
        self._bury(connection, writer)
        connection.execute("INSERT OR REPLACE INTO writers VALUES (?, ?)", (writer, self._clock()))

    def _bury(self, connection: sqlite3.Connection, writer: str) -> None:
        seen = self._died(connection, writer)
        if seen is not None:
            connection.execute("UPDATE streams SET over = ? WHERE writer = ? AND over IS NULL", (seen, writer))

    def _save(self, connection: sqlite3.Connection, known: _Known) -> None:
        connection.execute(
            "UPDATE streams SET begins = ?, last = ?, size = ?, ended = ?, over = ? WHERE n = ?",
            (known.begins, known.last, known.size, known.ended, known.over, known.n),
        )

    def _delete(self, connection: sqlite3.Connection, stream: str) -> None:
        found = connection.execute("SELECT n FROM streams WHERE id = ?", (stream,)).fetchone()
        if found is not None:
            connection.execute("DELETE FROM rows WHERE stream = ?", found)
            connection.execute("DELETE FROM streams WHERE n = ?", found)
            self._unforgotten = True

    def _unclaim(self, connection: sqlite3.Connection, stream: str) -> None:
        connection.execute("DELETE FROM claims WHERE stream = ?", (stream,))

    def _sweep(self, connection: sqlite3.Connection) -> bool:
        """Whether there may be more."""
        now = self._clock()
        with _changing(connection):
            writers = connection.execute("SELECT DISTINCT writer FROM streams WHERE over IS NULL").fetchall()
            for (writer,) in writers:
                self._bury(connection, writer)
            due = connection.execute(
                "SELECT n, id FROM streams WHERE expired = 0 AND over <= ? LIMIT ?", (now - self.keep, _TOGETHER)
            ).fetchall()
            for n, stream in due:
                connection.execute("DELETE FROM rows WHERE stream = ?", (n,))
                self._unclaim(connection, stream)
                connection.execute("UPDATE streams SET expired = 1, begins = last + 1, size = 0 WHERE n = ?", (n,))
            gone = connection.execute(
                "SELECT id FROM streams WHERE expired = 1 AND over <= ? LIMIT ?",
                (now - known_for(self.keep), _TOGETHER),
            ).fetchall()
            for (stream,) in gone:
                self._delete(connection, stream)
            connection.execute(
                "DELETE FROM claims WHERE until <= ? AND stream NOT IN (SELECT id FROM streams)",
                (now,),
            )
            connection.execute(
                "DELETE FROM writers WHERE seen <= ? AND name NOT IN (SELECT writer FROM streams WHERE over IS NULL)",
                (now - max(self.keep, DEAD),),
            )
        self._alive.clear()
        self._unforgotten = self._unforgotten or bool(due)
        return len(due) == _TOGETHER or len(gone) == _TOGETHER

    def _forget(self, connection: sqlite3.Connection) -> None:
        # a reader in another process may keep it there until the next time
        if self._unforgotten:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._unforgotten = bool(busy)

    # -- in the thread: the file -------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._thread is None:
            raise LogAway("the stream log is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._done, work)

    def _done(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._away_until and time.monotonic() < self._away_until:
            raise LogAway(self._reason)
        try:
            return self._worked(work)
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _LOCKED:
                # the next ones do not wait all over
                self._away_until = time.monotonic() + _PAUSE
                self._reason = f"`{self._path}` was locked for {self._patience:g} s: is another process stopped?"
                raise LogAway(self._reason) from error
            if code in _RUINED:
                self._ruined = self._inode
            self._close()
            raise LogAway(f"`{self._path}` cannot be used: {error}") from error
        except OSError as error:
            self._close()
            raise LogAway(f"`{self._path}` cannot be used: {error.strerror or error}") from error

    def _worked(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._opened()
        try:
            return work(connection)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None:
            if _inode(self._path) == self._inode:
                return self._connection
            self._close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._making():
            if self._ruined is not None and self._ruined == _inode(self._path):
                self._unlink()
            self._ruined = None
            try:
                connection = self._connect()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in _RUINED:
                    raise
                self._unlink()
                connection = self._connect()
            self._connection, self._inode = connection, _inode(self._path)
            # a process may have been killed between a removal and its checkpoint
            self._unforgotten = True
        return connection

    def _connect(self) -> sqlite3.Connection:
        # answers are nobody else's business
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=self._patience, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = normal")
            connection.execute("PRAGMA secure_delete = on")
            connection.execute("PRAGMA journal_size_limit = 4194304")
            with _changing(connection):
                found = _number(connection, "application_id"), _number(connection, "user_version")
                if found > (_APPLICATION, VERSION) and found[0] == _APPLICATION:
                    raise LogAway(f"`{self._path}` was written by a newer version of this program")
                if found != (_APPLICATION, VERSION):
                    for (name,) in connection.execute(
                        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
                    ).fetchall():
                        connection.execute(f'DROP TABLE "{name}"')
                    for statement in _TABLES:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _unlink(self) -> None:
        self._log.warning("the stream log was damaged, and is begun anew", file=str(self._path))
        for ending in ("", "-wal", "-shm", "-journal"):
            Path(f"{self._path}{ending}").unlink(missing_ok=True)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _leave(self) -> None:
        self._close()
        self._alive.release()

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Of all processes, one at a time is in here."""
        deadline = time.monotonic() + self._patience
        lock = os.open(self._path.with_suffix(".making"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise LogAway(f"`{self._path}` is being made by another process, which does not end") from None
                time.sleep(0.005)
            yield
        finally:
            os.close(lock)


@contextmanager
def _changing(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction, which has the lock from its beginning. Whoever called takes it back when it fails."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _blocks(connection: sqlite3.Connection, n: int, first: int, limit: int) -> list[bytes]:
    """Those from number `first`, up to `limit` bytes but one at least."""
    blocks: list[bytes] = []
    size = 0
    rows = connection.execute("SELECT first, data FROM rows WHERE stream = ? AND last >= ? ORDER BY last", (n, first))
    try:
        for begin, data in rows:
            for block in split_blocks(data)[max(0, first - begin) :]:
                size += len(block)
                if blocks and size > limit:
                    return blocks
                blocks.append(block)
    finally:
        rows.close()
    return blocks


def _release(connection: sqlite3.Connection, owner: str, key: str, stream: str) -> None:
    connection.execute("DELETE FROM claims WHERE owner = ? AND key = ? AND stream = ?", (owner, key, stream))


def _inode(path: Path) -> tuple[int, int]:
    """Another one when the file was made anew."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
