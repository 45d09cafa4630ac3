"""The tables of a store that was just made, was made by an older Deltaway, or by a newer one."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from router.store.migrations import REVISIONS, upgrade
from router.store.receipts import receipt
from router.store.store import Store, StoreAway
from router.store.tables import metadata
from support.stores import BACKENDS, Backend, opened_store, store_url


def described(connection: Connection) -> dict[str, Any]:
    """Every table, column, key and index, as the database tells them."""
    inspector = inspect(connection)
    kept = ("name", "type", "nullable", "default")
    indexes = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        if connection.dialect.name == "sqlite"
        else "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    )
    return {
        "tables": {
            table: (
                [{name: str(column[name]) for name in kept} for column in inspector.get_columns(table)],
                inspector.get_pk_constraint(table)["constrained_columns"],
            )
            for table in inspector.get_table_names()
            if table != "alembic_version"
        },
        "indexes": {
            name: definition
            for name, definition in connection.execute(text(indexes)).all()
            if not name.startswith("alembic")
        },
    }


async def test_the_revisions_make_what_the_tables_say(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    def differences(connection: Connection) -> Any:
        # FTS5 has tables of its own for its index, and alembic does not know an index that is of Postgres alone
        not_compared = {"contents_search", *(f"contents_search_{part}" for part in ("data", "idx", "config"))}
        if connection.dialect.name == "sqlite":
            not_compared.add("contents_by_words")

        def is_ours(thing: object, name: str | None, *_: object) -> bool:
            return name not in not_compared

        context = MigrationContext.configure(connection, opts={"include_object": is_ours})
        return compare_metadata(context, metadata)

    def made_anew(connection: Connection) -> None:
        metadata.drop_all(connection)
        metadata.create_all(connection)

    async with store.writing() as connection:
        assert await connection.run_sync(differences) == []
        migrated = await connection.run_sync(described)
        await connection.run_sync(made_anew)
        # alembic does not compare what an index leaves out
        assert migrated == await connection.run_sync(described)


def test_the_revisions_are_those_that_are_known() -> None:
    from alembic.script import ScriptDirectory

    import router.store.migrations as package

    here = Path(package.__file__).parent
    script = ScriptDirectory(str(here), version_locations=[str(here / "versions")])
    assert tuple(revision.revision for revision in script.walk_revisions())[::-1] == REVISIONS


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_store_is_opened_again_as_it_was_left(backend: Backend, tmp_path: Path) -> None:
    async with store_url(backend, tmp_path) as url:
        async with opened_store(url) as store, store.writing() as connection:
            await connection.execute(text("INSERT INTO revisions (name, number) VALUES ('a', 1)"))
        async with opened_store(url) as store, store.reading() as connection:
            assert (await connection.execute(text("SELECT name, number FROM revisions"))).all() == [("a", 1)]
            assert await versions(connection) == [REVISIONS[-1]]


FIRST = {
    "calls": (
        "INSERT INTO calls (id, created_at, asked, tags, dialect, stream, journal, decision, timing) "
        "VALUES (:id, 1, 'chat', '{}', 'openai.chat', :no, 'jrn', '{}', '{}')"
    ),
    "attempts": (
        "INSERT INTO attempts (call_id, n, created_at, asked, tags, provider, model, journal, timing, input, "
        "cache_read, cache_write, cache_write_1h, input_audio, output, reasoning, output_audio, thinking) "
        "VALUES (:id, 1, 1, 'chat', '{}', 'mock', 'echo', 'jrn', '{}', 7, 0, 0, 0, 0, 9, 0, 0, :no)"
    ),
}
"""How the first version writes, with all that may not be null."""


@pytest.mark.parametrize("backend", BACKENDS)
async def test_rows_of_the_first_version_are_kept_and_it_goes_on_writing_after_a_migration(
    backend: Backend, tmp_path: Path
) -> None:
    async with store_url(backend, tmp_path) as url:
        old = Store(url)
        engine = old._engine(2, create=True)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(upgrade, "0001")
                for statement in FIRST.values():
                    await connection.execute(text(statement), {"id": "req_old", "no": False})
            async with opened_store(url) as store:
                async with engine.begin() as connection:
                    for statement in FIRST.values():
                        await connection.execute(text(statement), {"id": "req_side_by_side", "no": False})
                assert await found_attempts(store) == {"req_old": (7, 9, None), "req_side_by_side": (7, 9, None)}
        finally:
            await engine.dispose()


async def found_attempts(store: Store) -> dict[str, tuple[int, int, str | None]]:
    found = {}
    for call_id in ("req_old", "req_side_by_side"):
        whole = await receipt(store, call_id)
        assert whole is not None
        found[call_id] = (whole.attempts[0].input, whole.attempts[0].output, whole.attempts[0].role)
    return found


async def versions(connection: AsyncConnection) -> list[str]:
    return list(await connection.scalars(text("SELECT version_num FROM alembic_version")))


OPEN = """
import asyncio, sys
from router.settings import StoreUrl
from router.store.store import Store
store = Store(StoreUrl.parse(sys.argv[1]))
async def main():
    await store.open()
    async with store.writing():
        pass
    await store.close()
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


@pytest.mark.parametrize("backend", BACKENDS)
async def test_several_processes_may_open_a_new_store_at_once(backend: Backend, tmp_path: Path) -> None:
    pipe = asyncio.subprocess.PIPE
    async with store_url(backend, tmp_path) as url:
        command = (sys.executable, "-c", OPEN, url)
        processes = [
            await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
        assert [(process.returncode, err) for process, (_, err) in zip(processes, outputs, strict=True)] == [
            (0, b"")
        ] * 4
        async with opened_store(url) as store, store.reading() as connection:
            assert await versions(connection) == [REVISIONS[-1]]


async def test_a_store_of_a_newer_version_is_left_alone(store: Store) -> None:
    async with store.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    again = Store(store._url)
    with pytest.raises(StoreAway, match=r"was written by a newer Deltaway .*9999.* install that one"):
        await again.open()
    with pytest.raises(StoreAway, match="is not open"):
        async with again.reading():
            pass
