"""Brings the tables up to date when the gateway starts. Revisions are the modules of `versions`, in their order.

A new one: add `versions/r0004_….py`, and its number to `REVISIONS`. It must leave what the version before it reads
and writes in place, because both run side by side while replicas are replaced one by one.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Text, column, inspect, select, table, text
from sqlalchemy.ext.asyncio import AsyncEngine

from router.store.away import StoreAway

REVISIONS: Final = ("0001", "0002", "0003")
"""All that this code knows, from the first to the last."""
LOOKING: Final = "deltaway_looking"
"""Execution option of a connection that reads only, and so takes no lock on SQLite."""
_LOCK: Final = 0x64656C74617761
"""Of Postgres' advisory locks, the one that is ours."""


async def migrate(engine: AsyncEngine, place: str) -> None:
    """Safe when several processes do so at once. Raises `StoreAway` for a database that is newer than the code."""
    async with engine.connect() as connection:
        # without the write lock, which another process may hold for long
        looking = await connection.execution_options(**{LOOKING: True})
        if await looking.run_sync(_is_current, place):
            return
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        # another process may have done it while this one waited
        if not await connection.run_sync(_is_current, place):
            await connection.run_sync(upgrade)


def _is_current(connection: Connection, place: str) -> bool:
    if not inspect(connection).has_table("alembic_version"):
        return False
    found = connection.scalars(select(column("version_num", Text)).select_from(table("alembic_version"))).all()
    if unknown := [revision for revision in found if revision not in REVISIONS]:
        raise StoreAway(
            f"{place} was written by a newer Deltaway (its tables are at revision {unknown[0]}, "
            f"this one knows {REVISIONS[-1]}): install that one"
        )
    return list(found) == [REVISIONS[-1]]


def upgrade(connection: Connection, to: str = REVISIONS[-1]) -> None:
    """In the connection's transaction."""
    # slow to import, and seldom needed
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    here = Path(__file__).parent
    script = ScriptDirectory(str(here), version_locations=[str(here / "versions")])
    context = MigrationContext.configure(
        connection, opts={"fn": lambda revision, _: script._upgrade_revs(to, revision)}
    )
    with Operations.context(context):
        context.run_migrations()
