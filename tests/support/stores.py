"""Stores to test with: a SQLite file, or a database of its own on the Postgres of this machine."""

import asyncio
import atexit
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from router.settings import StoreUrl
from router.store.store import Store

Backend = Literal["sqlite", "postgres"]
BACKENDS = [
    pytest.param("sqlite", id="sqlite"),
    pytest.param("postgres", id="postgres", marks=pytest.mark.needs("postgres")),
]
"""To parametrise a fixture or a test with."""

SERVER = "postgresql://postgres@127.0.0.1:5432"
EMPTY = f"deltaway_empty_{os.getpid()}"
"""A migrated database, made by the first test that wants one: to copy it is faster than to migrate."""


def sqlite_url(directory: Path) -> StoreUrl:
    return StoreUrl.parse(f"sqlite:///{directory / 'deltaway.db'}")


def postgres_url(database: str) -> StoreUrl:
    return StoreUrl.parse(f"{SERVER}/{database}")


@contextlib.asynccontextmanager
async def postgres_database(*, migrated: bool = False) -> AsyncIterator[StoreUrl]:
    """The URL of a database that is nobody else's, dropped afterwards whoever is connected."""
    name = f"deltaway_test_{uuid.uuid4().hex[:16]}"
    template = "template0"
    if migrated:
        template = EMPTY
        await _make_empty()
    await administer(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield postgres_url(name)
    finally:
        await administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextlib.asynccontextmanager
async def store_url(backend: Backend, directory: Path, *, migrated: bool = False) -> AsyncIterator[StoreUrl]:
    if backend == "sqlite":
        yield sqlite_url(directory)
    else:
        async with postgres_database(migrated=migrated) as url:
            yield url


@contextlib.asynccontextmanager
async def opened_store(url: StoreUrl, **options: Any) -> AsyncIterator[Store]:
    store = Store(url, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def empty_store(backend: Backend, directory: Path) -> AsyncIterator[Store]:
    """Migrated and empty, closed and dropped afterwards."""
    async with store_url(backend, directory, migrated=True) as url, opened_store(url) as store:
        yield store


async def administer(statement: str, *arguments: object) -> list[Any]:
    """Run one statement on the server's own database."""
    import asyncpg

    connection = await asyncpg.connect(f"{SERVER}/postgres")
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


async def _make_empty() -> None:
    if await administer("SELECT 1 FROM pg_database WHERE datname = $1", EMPTY):
        return
    atexit.register(lambda: asyncio.run(administer(f'DROP DATABASE IF EXISTS "{EMPTY}" WITH (FORCE)')))
    await administer(f'CREATE DATABASE "{EMPTY}" TEMPLATE template0')
    async with opened_store(postgres_url(EMPTY)):
        pass
