"""The store itself: one behaviour over two databases."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from router.settings import StoreUrl
from router.store.store import Store, StoreAway
from router.store.tables import gaps, revisions, secrets
from support.stores import opened_store, postgres_database, sqlite_url

GAP = {
    "id": "gap_1",
    "journal": "j",
    "began_at": 1,
    "ended_at": 2**62,
    "calls": 3,
    "attempts": 4,
    "input": 5,
    "output": 6,
}


async def count(store: Store) -> int | None:
    async with store.reading() as connection:
        number: int | None = await connection.scalar(select(func.count()).select_from(revisions))
        return number


async def test_what_is_written_is_read_as_it_was(store: Store) -> None:
    async with store.writing() as connection:
        await connection.execute(insert(gaps).values(**GAP, costs={"CNY": 2**60, "€": -1, "deep": {"list": [1, None]}}))
        await connection.execute(insert(secrets).values(name="pepper", value=b"\x00\xff"))
    async with store.reading() as connection:
        found = (await connection.execute(select(gaps))).mappings().one()
        assert dict(found) == {**GAP, "costs": {"CNY": 2**60, "€": -1, "deep": {"list": [1, None]}}}
        assert await connection.scalar(select(secrets.c.value)) == b"\x00\xff"


async def test_an_error_in_a_transaction_undoes_all_of_it(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        async with store.writing() as connection:
            await connection.execute(insert(revisions).values(name="a", number=1))
            raise ZeroDivisionError
    with pytest.raises(IntegrityError):
        async with store.writing() as connection:
            await connection.execute(insert(revisions).values(name="a", number=1))
            await connection.execute(insert(revisions).values(name="a", number=2))
    assert await count(store) == 0


async def test_a_snapshot_is_of_one_moment_and_the_next_reading_is_not(store: Store) -> None:
    async with store.reading(snapshot=True) as connection:
        first = await connection.scalar(select(func.count()).select_from(revisions))
        async with store.writing() as other:
            await other.execute(insert(revisions).values(name="a", number=1))
        assert await connection.scalar(select(func.count()).select_from(revisions)) == first == 0
    assert await count(store) == 1


async def test_a_connection_to_read_with_cannot_write(store: Store) -> None:
    async with store.writing() as connection:
        await connection.execute(insert(revisions).values(name="a", number=1))
    with pytest.raises(StoreAway):
        async with store.reading() as connection:
            await connection.execute(delete(revisions))
    assert await count(store) == 1


async def test_a_read_is_not_held_up_by_a_transaction(store: Store) -> None:
    async with store.writing() as connection:
        await connection.execute(insert(revisions).values(name="a", number=1))
        assert await count(store) == 0
    assert await count(store) == 1


async def test_many_statements_are_one_transaction(store: Store) -> None:
    marks = "?, ?" if store.dialect == "sqlite" else "$1, $2"
    sql = f"INSERT INTO revisions (name, number) VALUES ({marks})"
    await store.write_many([(sql, [("a", 1), ("b", 2)]), (sql, []), (sql, [("c", 3)])])
    assert await count(store) == 3
    with pytest.raises(Exception, match=r"(?i)unique") as caught:
        await store.write_many([(sql, [("d", 1)]), (sql, [("a", 1)])])
    assert not isinstance(caught.value, StoreAway)
    assert await count(store) == 3
    await store.write_many([(sql, [("d", 4)])])
    assert await count(store) == 4


async def test_what_sqlite_reads_in_a_transaction_stays_true_until_its_end(tmp_path: Path) -> None:
    """Two stores are two processes: a deferred transaction would lose all updates but one, and say nothing."""
    async with opened_store(sqlite_url(tmp_path)) as one, opened_store(sqlite_url(tmp_path)) as other:
        async with one.writing() as connection:
            await connection.execute(insert(revisions).values(name="a", number=0))

        async def add(store: Store) -> None:
            async with store.writing() as connection:
                number = await connection.scalar(select(revisions.c.number))
                await asyncio.sleep(0.001)
                await connection.execute(update(revisions).values(number=number + 1))

        await asyncio.gather(*(add(store) for store in [one, other] * 5))
        async with one.reading() as connection:
            assert await connection.scalar(select(revisions.c.number)) == 10


async def test_a_transaction_that_does_not_end_holds_others_up_no_longer_than_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.store.store._QUEUE", 0.01)
    async with opened_store(sqlite_url(tmp_path), busy=0.01) as store:
        async with store.writing():
            for write in (store.writing().__aenter__(), store.write_many([])):
                with pytest.raises(StoreAway, match="another transaction of this process does not end"):
                    await write
        await store.write_many([])


@pytest.mark.needs("postgres")
@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
async def test_both_names_of_postgres_are_understood(scheme: str) -> None:
    async with postgres_database() as url:
        named = StoreUrl.parse(f"{scheme}:{url.partition(':')[2]}?application_name=mine&sslmode=prefer")
        async with opened_store(named) as store, store.reading() as connection:
            assert store.dialect == "postgresql"
            assert await connection.scalar(text("SELECT count(*) FROM calls")) == 0


async def test_a_closed_sqlite_store_is_one_file(tmp_path: Path) -> None:
    async with opened_store(sqlite_url(tmp_path)) as store:
        await store.write_many([("INSERT INTO revisions (name, number) VALUES (?, ?)", [("a", 1)])])
        async with store.writing() as connection:
            await connection.execute(insert(revisions).values(name="b", number=1))
        assert await count(store) == 2
        assert "deltaway.db-wal" in os.listdir(tmp_path)
    assert os.listdir(tmp_path) == ["deltaway.db"]


async def test_a_store_that_is_not_open_is_away(store: Store) -> None:
    await store.close()
    await store.close()
    for use in (store.reading, store.writing):
        with pytest.raises(StoreAway, match="not open"):
            async with use():
                pass
    with pytest.raises(StoreAway, match="not open"):
        await store.write_many([])


# -- cancelled -----------------------------------------------------------------------------------------------------

SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(3600)",
}
"""Neither ends by itself."""


async def in_transactions(store: Store) -> int:
    """Connections of this database, other than this one, that have a transaction open."""
    async with store.reading() as connection:
        found: int = await connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND state LIKE '%in transaction%'"
            )
        )
        return found


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
async def test_a_task_that_is_cancelled_anywhere_leaves_nothing_open(store: Store, steps: int) -> None:
    marks = "?, ?" if store.dialect == "sqlite" else "$1, $2"

    async def write(name: str) -> None:
        async with store.writing() as connection:
            await connection.execute(insert(revisions).values(name=name, number=1))
            await connection.execute(insert(revisions).values(name=name + "'", number=2))

    async def write_many(name: str) -> None:
        sql = f"INSERT INTO revisions (name, number) VALUES ({marks})"
        await store.write_many([(sql, [(name, 1)]), (sql, [(name + "'", 2)])])

    async def read(name: str) -> None:
        await count(store)

    # who cancels may be impatient, and do it again while the first time is being dealt with
    for again, name in enumerate("abc"):
        tasks = [asyncio.create_task(do(f"{name}{do.__name__}")) for do in (write, write_many, read)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(again + 1):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError)

    # every connection of every pool can be had again, and nobody holds a lock
    async with asyncio.timeout(20):
        await asyncio.gather(*(write(f"after{number}") for number in range(6)), write_many("after"))
        await asyncio.gather(*(read("") for _ in range(6)))
    async with store.reading() as connection:
        names = set(await connection.scalars(select(revisions.c.name)))
    assert {name for name in names if not name.endswith("'")} == {name[:-1] for name in names if name.endswith("'")}
    if store.dialect == "postgresql":
        assert await in_transactions(store) == 0


async def test_a_statement_whose_task_is_cancelled_ends(store: Store) -> None:
    for use in (store.reading, store.writing):
        started = asyncio.Event()

        async def run(use: Any = use, started: asyncio.Event = started) -> None:
            async with use() as connection:
                started.set()
                await connection.execute(text(SLOW[store.dialect]))

        # as many as there are connections: one that goes on would be missed
        tasks = [asyncio.create_task(run()) for _ in range(5 if use == store.reading else 1)]
        await started.wait()
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(count(store) for _ in range(5)))
    async with asyncio.timeout(5), store.writing() as connection:
        await connection.execute(insert(revisions).values(name="a", number=1))


# -- processes -----------------------------------------------------------------------------------------------------


def test_a_process_ends_while_its_store_is_in_use(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from router.settings import StoreUrl\n"
        "from router.store.store import Store\n"
        "async def main():\n"
        "    store = Store(StoreUrl.parse(sys.argv[1]))\n"
        "    await store.open()\n"
        "    async with store.writing(), store.reading():\n"
        "        pass\n"
        "    print('alembic' in sys.modules)\n"
        "asyncio.run(main())\n"
    )
    for migrated in ("True", "False"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, sqlite_url(tmp_path)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        # alembic takes long to import: it is, when there is something to migrate
        assert (done.stdout.strip(), done.stderr, done.returncode) == (migrated, "", 0)


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 1)])
async def test_a_durable_store_waits_for_the_disk_at_each_commit(tmp_path: Path, durable: bool, level: int) -> None:
    async with opened_store(sqlite_url(tmp_path), durable=durable) as store:
        async with store.writing() as connection:
            assert await connection.scalar(text("PRAGMA synchronous")) == level
