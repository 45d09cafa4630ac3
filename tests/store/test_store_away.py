"""A store that cannot be used says so, in words that help, and is used again as soon as it can be."""

import asyncio
import contextlib
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text

from router.settings import StoreUrl
from router.store import sqlite
from router.store.store import Store, StoreAway
from router.store.tables import revisions, secrets
from support.stores import administer, empty_store, opened_store, postgres_database, postgres_url, sqlite_url

INSERT = {
    "sqlite": "INSERT INTO secrets (name, value) VALUES (?, ?)",
    "postgresql": "INSERT INTO secrets (name, value) VALUES ($1, $2)",
}


async def write(store: Store, name: str = "a", size: int = 1) -> None:
    async with store.writing() as connection:
        await connection.execute(insert(secrets).values(name=name, value=b"\0" * size))


async def write_many(store: Store, name: str = "a", size: int = 1) -> None:
    await store.write_many([(INSERT[store.dialect], [(name, b"\0" * size)])])


async def read(store: Store) -> int:
    async with store.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(secrets)) or 0


async def works(store: Store, name: str = "again") -> None:
    """As soon as what was in the way is gone: one failure may be needed to notice it."""
    for use in (write, write_many):
        async with asyncio.timeout(10):
            while True:
                try:
                    await use(store, f"{name} {use.__name__}")
                except StoreAway:
                    continue
                break
    async with asyncio.timeout(10):
        while True:
            try:
                assert await read(store) >= 2
            except StoreAway:
                continue
            break


# -- SQLite --------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deltaway.db"


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened_store(sqlite_url(tmp_path), busy=0.05) as store:
        yield store


@pytest.mark.parametrize("use", [write, write_many])
async def test_a_file_that_is_locked_is_waited_for_and_then_away(use: Any, opened: Store, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await read(opened) == 0
        with pytest.raises(StoreAway, match=rf"{file} is locked by another process"):
            await use(opened)
    await works(opened)


async def test_a_new_file_that_is_locked_is_away(tmp_path: Path, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreAway, match="is locked by another process"):
            await Store(sqlite_url(tmp_path), busy=0.01).open()


async def test_a_store_that_is_up_to_date_is_opened_beside_a_writer(opened: Store, tmp_path: Path, file: Path) -> None:
    await write(opened)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with opened_store(sqlite_url(tmp_path), busy=0.01) as store:
            assert await read(store) == 1


async def test_old_tables_that_another_process_keeps_locked_are_not_waited_for_for_ever(
    opened: Store, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    connect = sqlite.sqlite3.connect

    def connected(*arguments: Any, **options: Any) -> Any:
        waits.append(options["timeout"])
        return connect(*arguments, **options | {"timeout": 0.01})

    async with opened.writing() as connection:
        await connection.execute(text("DELETE FROM alembic_version"))
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(sqlite.sqlite3, "connect", connected)
        with pytest.raises(StoreAway, match=rf"{file} is locked by another process"):
            await Store(sqlite_url(tmp_path)).open()
    assert set(waits) == {15}


async def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "such"
    with pytest.raises(StoreAway, match=rf"the directory {missing} does not exist, create it"):
        await Store(sqlite_url(missing)).open()
    assert not missing.exists()


def spoil(file: Path, offset: int, data: bytes) -> None:
    file.touch()
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)


async def test_a_file_that_is_no_database_is_away(tmp_path: Path, file: Path) -> None:
    spoil(file, 0, b"prices: {currency: USD}\n" * 1000)
    with pytest.raises(StoreAway, match=rf"{file} is not a SQLite database: restore it"):
        await Store(sqlite_url(tmp_path)).open()
    with file.open("rb") as left:
        assert left.read(6) == b"prices"


async def test_a_damaged_file_is_away(tmp_path: Path, file: Path) -> None:
    async with opened_store(sqlite_url(tmp_path)) as store:
        await write(store, size=100_000)
    spoil(file, 4096, b"\xa5" * 200_000)
    with pytest.raises(StoreAway, match="is damaged: restore it from a backup"):
        async with opened_store(sqlite_url(tmp_path)) as store:
            await read(store)


async def test_another_programs_file_is_away(tmp_path: Path, file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE calls (from_whom TEXT)")
    with pytest.raises(StoreAway, match="is it another program's file"):
        await Store(sqlite_url(tmp_path)).open()
    with contextlib.closing(sqlite3.connect(file)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("calls",)]


@pytest.mark.parametrize("use", [write, write_many])
async def test_a_full_disk_is_away_and_loses_nothing_but_what_it_refused(
    use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_store(sqlite_url(tmp_path)) as store:
        await write(store, "first")
    # the one way to fill a disk that needs no disk: SQLite answers the same
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "_PRAGMAS", (*sqlite._PRAGMAS, "max_page_count = 120"))
        async with opened_store(sqlite_url(tmp_path)) as store:
            with pytest.raises(StoreAway, match="the disk is full: free some space"):
                await use(store, "large", 1_000_000)
            assert await read(store) == 1
            await use(store, "small")
            assert await read(store) == 2
    async with opened_store(sqlite_url(tmp_path)) as store:
        await use(store, "large", 1_000_000)
        assert await read(store) == 3


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_removed_under_our_feet_is_away(opened: Store, file: Path, replaced: bool) -> None:
    """What is written to a file without a name is lost when it is closed."""
    await works(opened, "before")
    move(file.parent, "deltaway.db", "aside.db")
    if replaced:
        spoil(file, 0, b"")
    for use in (write, write_many, read):
        with pytest.raises(StoreAway, match=rf"{file} (cannot be opened|is not as Deltaway left it)"):
            await use(opened)
    assert bool(list(file.parent.glob("deltaway.db"))) is replaced
    move(file.parent, "deltaway.db", "empty.db")
    move(file.parent, "aside.db", "deltaway.db")
    await works(opened, "after")
    assert await read(opened) == 4


def move(directory: Path, old: str, new: str) -> None:
    for path in directory.glob(f"{old}*"):
        path.rename(path.with_name(path.name.replace(old, new)))


READ_ONLY = """
import asyncio, os, sys
from router.settings import StoreUrl
from router.store.store import Store, StoreAway
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    store = Store(StoreUrl.parse(sys.argv[1]))
    try:
        await store.open()
        async with store.writing():
            print("wrote")
    except StoreAway as error:
        print(error)
    await store.close()
asyncio.run(main())
"""


def test_a_file_that_may_not_be_written_to_is_away() -> None:
    """Run as nobody where this is root, whom no permission stops; not in pytest's directory, which nobody may enter."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "inner"
        directory.mkdir()
        url = sqlite_url(directory)
        file = directory / "deltaway.db"

        def run() -> str:
            command = [sys.executable, "-c", READ_ONLY, url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd="/")
            assert done.returncode == 0, done.stderr
            return done.stdout

        Path(name).chmod(0o000)
        assert f"the way to {directory} is closed to us" in run()
        Path(name).chmod(0o755)
        directory.chmod(0o555)
        assert "cannot be opened: check that its directory exists and may be written to" in run()
        directory.chmod(0o755)
        asyncio.run(made(url))
        file.chmod(0o444)
        directory.chmod(0o555)
        assert "may not be written to: check the permissions" in run()
        directory.chmod(0o777)
        file.chmod(0o666)
        assert run() == "wrote\n"
        directory.chmod(0o700)


async def made(url: StoreUrl) -> None:
    async with opened_store(url):
        pass


# -- Postgres ------------------------------------------------------------------------------------------------------


def secret(host: str) -> StoreUrl:
    return StoreUrl.parse(f"postgresql://deltaway:pa55word@{host}/ledger")


def told(error: BaseException | None) -> str:
    """Everything that a log may say of an error."""
    words = []
    while error is not None:
        words.append(f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(words)


async def refuses(url: StoreUrl, **options: float) -> str:
    with pytest.raises(StoreAway) as caught:
        await Store(url, **options).open()
    assert "pa55word" not in told(caught.value)
    return str(caught.value)


async def test_a_server_that_does_not_run_is_away() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        said = await refuses(secret(f"127.0.0.1:{port}"))
    assert said.startswith(f"Postgres at 127.0.0.1:{port}, database ledger, cannot be reached: is it running")


async def test_a_host_that_does_not_exist_is_away() -> None:
    assert "Postgres at nowhere.invalid, database ledger, cannot be reached" in await refuses(secret("nowhere.invalid"))


async def test_a_server_that_does_not_answer_is_away() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        host = f"127.0.0.1:{deaf.getsockname()[1]}"
        assert "does not answer within 0.24 s" in await refuses(secret(host), patience=0.02)


async def answer(code: str, message: str) -> asyncio.Server:
    """A Postgres that answers everybody with this error."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            startup = await reader.readexactly(length - 4)
            if startup[:4] != struct.pack("!I", 80877103):
                break
            # asks for TLS
            writer.write(b"N")
        fields = b"".join(
            kind + value.encode() + b"\0" for kind, value in ((b"S", "FATAL"), (b"C", code), (b"M", message))
        )
        writer.write(b"E" + struct.pack("!I", len(fields) + 5) + fields + b"\0")
        await writer.drain()
        writer.close()

    return await asyncio.start_server(accept, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        ("28P01", 'password authentication failed for user "deltaway"', "refuses the user or the password"),
        ("53300", "sorry, too many clients already", "takes no more connections"),
        ("57P03", "the database system is starting up", "is starting, stopping"),
        ("3D000", 'database "ledger" does not exist', "has no such database: create it"),
    ],
)
async def test_a_server_that_refuses_us_is_away(code: str, message: str, said: str) -> None:
    server = await answer(code, message)
    async with server:
        told = await refuses(secret(f"127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    assert said in told
    assert message in told


async def test_a_password_with_a_slash_is_not_told() -> None:
    assert "pa55word" not in await refuses(StoreUrl("postgresql://deltaway:12/pa55word@127.0.0.1/ledger"))


async def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(StoreAway, match=r"pip install 'deltaway\[postgres\]'"):
        await Store(postgres_url("test")).open()


@pytest.mark.needs("postgres")
async def test_a_database_that_is_not_there_is_away() -> None:
    url = postgres_url("deltaway_that_nobody_made")
    with pytest.raises(StoreAway, match="database deltaway_that_nobody_made, has no such database: create it"):
        await Store(url).open()


@pytest.mark.needs("postgres")
async def test_a_connection_that_is_cut_is_away_and_the_next_one_works(tmp_path: Path) -> None:
    async with empty_store("postgres", tmp_path) as store:
        for use in (store.reading, store.writing):
            with pytest.raises(StoreAway, match=r"Postgres at .*: "):
                async with use() as connection:
                    await administer(
                        "SELECT pg_terminate_backend($1)", await connection.scalar(text("SELECT pg_backend_pid()"))
                    )
                    await connection.execute(select(secrets))
                    await connection.execute(select(secrets))
            await works(store, use.__name__)


async def cut(store: Store) -> None:
    database = store.place.split()[-1].strip(",")
    await administer("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database)


@pytest.mark.needs("postgres")
async def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    async with empty_store("postgres", tmp_path) as store:
        # as many connections as the pools have
        await asyncio.gather(*(write(store, str(number)) for number in range(5)), write_many(store, "many"))
        await asyncio.gather(*(read(store) for _ in range(5)))
        database = store.place.split()[-1].strip(",")
        await administer(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        await cut(store)
        for use in (write, write_many, read):
            with pytest.raises(StoreAway):
                await use(store)
                await use(store)
        await administer(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
        await works(store)
        assert await read(store) == 8


@pytest.mark.needs("postgres")
async def test_a_connection_that_was_closed_while_nobody_used_it_is_not_used(tmp_path: Path) -> None:
    async with empty_store("postgres", tmp_path) as store:
        connections = []
        for use in (store.reading, store.writing):
            async with use() as connection:
                connections.append((await connection.get_raw_connection()).driver_connection)
        await write_many(store)
        await cut(store)
        # until the news has arrived here
        while not all(connection.is_closed() for connection in [*connections, store._direct]):
            await asyncio.sleep(0.005)
        await write(store, "b")
        await write_many(store, "c")
        assert await read(store) == 3


@pytest.mark.needs("postgres")
async def test_a_statement_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async with postgres_database(migrated=True) as url, opened_store(url, patience=0.2) as store:
        for use in (store.reading, store.writing):
            with pytest.raises(StoreAway, match="did not answer in time"):
                async with use() as connection:
                    await connection.execute(text("SELECT pg_sleep(3600)"))
        async with store.writing() as connection:
            await connection.execute(insert(revisions).values(name="a", number=1))
            # another writer waits for the first one to end
            with pytest.raises(StoreAway, match="did not answer in time"):
                await store.write_many([("INSERT INTO revisions (name, number) VALUES ($1, $2)", [("a", 2)])])
        await works(store)
