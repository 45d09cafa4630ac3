"""One store, SQLite or Postgres: connections to read with, connections to write with, and one way to fail."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from router.settings import StoreUrl
from router.store import postgres, sqlite
from router.store.away import StoreAway, explain
from router.store.migrations import LOOKING, migrate
from router.store.postgres import PostgresConnection, connect_postgres, require_driver
from router.store.sqlite import SqliteConnection, connect_sqlite
from router.store.statement import Statement

__all__ = ["Store", "StoreAway"]

_BUSY: Final = 5.0
"""Seconds to wait for another process's lock on the SQLite file."""
_PATIENCE: Final = 30.0
"""Seconds that a statement may take on Postgres."""
_BATCH: Final = 10.0
"""Seconds that a batch may take there: calls may be waiting for it, and it can be brought in again."""
_MIGRATING: Final[dict[str, int]] = {"sqlite": 3, "postgresql": 12}
"""How many times longer to wait when the tables are old: another process may be at them."""
_EMPTYING: Final = 100
"""Milliseconds to wait for readers when SQLite's log is to be emptied."""
_QUEUE: Final = 10.0
"""Seconds to wait for a connection that others of this process use."""


class _Engines(Struct, frozen=True):
    reading: AsyncEngine
    writing: AsyncEngine


class Store:
    """`busy` and `patience` are in seconds: for a lock on the SQLite file, for a statement on Postgres. `durable`: what
    SQLite has committed survives the loss of power (Postgres has a setting of its own, which is on by default)."""

    dialect: Literal["sqlite", "postgresql"]

    def __init__(
        self, url: StoreUrl, *, busy: float = _BUSY, patience: float = _PATIENCE, durable: bool = True
    ) -> None:
        self._url = url
        self._busy = busy
        self._durable = durable
        self._patience = patience
        self.dialect = "postgresql" if url.file is None else "sqlite"
        self.place = postgres.place_of(url) if url.file is None else sqlite.place_of(url.file)
        """Where it is, for people: never with a password."""
        self._engines: _Engines | None = None
        self._direct: SqliteConnection | PostgresConnection | None = None
        self._turn = asyncio.Lock()
        """Who may write: SQLite has one writer at a time, and those of this process wait here, in their order."""

    async def open(self) -> None:
        """Connect, and bring the tables up to date. Safe when several processes do so at once. Raises `StoreAway`."""
        if self._engines is not None:
            return
        if self.dialect == "postgresql":
            require_driver()
        with self._seam():
            migrating = self._engine(_MIGRATING[self.dialect], create=True)
            try:
                await migrate(migrating, self.place)
            finally:
                await migrating.dispose()
        # more connections are made as they are needed
        self._engines = _Engines(self._engine(1, readonly=True), self._engine(1))

    async def close(self) -> None:
        """What still runs is cut off."""
        engines, self._engines = self._engines, None
        direct, self._direct = self._direct, None
        if direct is not None:
            await direct.close()
        if engines is not None:
            await engines.reading.dispose()
            await engines.writing.dispose()

    @asynccontextmanager
    async def reading(self, *, snapshot: bool = False) -> AsyncIterator[AsyncConnection]:
        """A connection that cannot write. `snapshot`: all that is read is of one moment. Raises `StoreAway`."""
        with self._seam():
            async with self._opened().reading.connect() as connection:
                if snapshot and self.dialect == "sqlite":
                    await connection.exec_driver_sql("BEGIN")
                elif snapshot:
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end and rolled back on an error. On SQLite it has the write lock from its
        beginning, so that what it reads stays true. Raises `StoreAway`."""
        with self._seam():
            async with self._my_turn() if self.dialect == "sqlite" else nullcontext():
                async with self._opened().writing.begin() as connection:
                    yield connection

    async def write_many(self, statements: Sequence[Statement]) -> None:
        """All of them in one transaction, past SQLAlchemy, whose cost for each would add up. Raises `StoreAway`, and
        the driver's own error for what the store refuses for what it says."""
        with self._seam():
            async with self._my_turn():
                self._opened()
                try:
                    if self._direct is not None and self._direct.is_closed():
                        await self._drop_direct()
                    if self._direct is None:
                        self._direct = await self._connect_directly()
                    await self._direct.write_many(statements)
                except BaseException:
                    # refused, cut off, or cancelled in the middle: nothing is left open
                    await self._drop_direct()
                    raise

    async def empty_log(self) -> None:
        """SQLite: bring all of the log into the file and empty it, where nobody reads what is older; pages as they
        were stay in it else. Raises `StoreAway`."""
        if self.dialect != "sqlite":
            return
        with self._seam():
            async with self._my_turn(), self._opened().writing.connect() as connection:
                alone = await connection.execution_options(**{LOOKING: True})
                # others write meanwhile only if this ends soon
                await alone.exec_driver_sql(f"PRAGMA busy_timeout = {_EMPTYING}")
                try:
                    await alone.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                finally:
                    await alone.exec_driver_sql(f"PRAGMA busy_timeout = {int(self._busy * 1000)}")

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._busy + _QUEUE):
                await self._turn.acquire()
        except TimeoutError as error:
            raise StoreAway(f"{self.place}: another transaction of this process does not end") from error
        try:
            yield
        finally:
            self._turn.release()

    def _opened(self) -> _Engines:
        if self._engines is None:
            raise StoreAway(f"{self.place} is not open")
        return self._engines

    @contextmanager
    def _seam(self) -> Iterator[None]:
        """Here, and nowhere else, an error of a driver becomes `StoreAway`."""
        try:
            yield
        except Exception as error:
            away = explain(error, self.place)
            if away is None or away is error:
                raise
            raise away from error

    # -- connections -----------------------------------------------------------------------------------------------

    async def _drop_direct(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            await direct.drop()

    async def _connect_directly(self) -> SqliteConnection | PostgresConnection:
        if self._url.file is not None:
            return await connect_sqlite(self._url.file, busy=self._busy, durable=self._durable)
        return PostgresConnection(await connect_postgres(self._url, patience=min(self._patience, _BATCH)))

    def _engine(self, times: int, *, readonly: bool = False, create: bool = False) -> AsyncEngine:
        """`times`: how much longer than usual to be patient; such an engine keeps no connections."""
        url, file = self._url, self._url.file
        options: dict[str, Any] = {
            "json_serializer": lambda value: msgspec.json.encode(value).decode(),
            "json_deserializer": msgspec.json.decode,
            # what rows say does not belong into a log
            "hide_parameters": True,
        }
        if times > 1:
            options["poolclass"] = NullPool
        else:
            size = 5 if self.dialect == "postgresql" or readonly else 1
            pool = {"pool_size": size, "max_overflow": 0, "pool_timeout": _QUEUE, "pool_use_lifo": True}
            options |= {"poolclass": AsyncAdaptedQueuePool} | pool
        if file is not None:
            engine = create_async_engine(
                "sqlite+aiosqlite://",
                async_creator=lambda: connect_sqlite(
                    file, busy=self._busy * times, readonly=readonly, create=create, durable=self._durable
                ),
                **options,
            )
            if not readonly:
                event.listen(engine.sync_engine, "begin", _begin_immediate)
            event.listen(engine.sync_engine, "checkout", _refuse_closed)
            return engine
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: connect_postgres(url, patience=self._patience * times),
            **options,
        )
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        return engine.execution_options(postgresql_readonly=True) if readonly else engine


def _begin_immediate(connection: Any) -> None:
    if connection.get_execution_options().get(LOOKING):
        return
    # SQLite takes the write lock at the first write else, and what was read before that may have changed
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _refuse_closed(connection: Any, record: Any, proxy: Any) -> None:
    """Tell the pool to make a new one. Asks the driver, not the server: a check of each would cost a round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError
