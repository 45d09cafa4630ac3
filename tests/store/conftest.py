"""`store`: every test that takes it runs on SQLite and on Postgres. `quick_store`: the same for modules of many tests,
which have one database among them that is emptied after each."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from router.settings import StoreUrl
from router.store.store import Store
from router.store.tables import metadata
from support.stores import BACKENDS, empty_store, opened_store, sqlite_url, store_url


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with empty_store(request.param, tmp_path) as store:
        yield store


@pytest.fixture(scope="module", params=BACKENDS)
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreUrl]:
    """A store that was opened once, and is closed."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        place = store_url(request.param, tmp_path_factory.mktemp("migrated"), migrated=True)
        url = runner.run(place.__aenter__())
        stack.callback(lambda: runner.run(place.__aexit__(None, None, None)))
        runner.run(_open_once(url))
        yield url


@pytest.fixture
async def quick_store(migrated: StoreUrl, tmp_path: Path) -> AsyncIterator[Store]:
    if migrated.file is not None:
        url = sqlite_url(tmp_path)
        assert url.file is not None
        shutil.copy(migrated.file, url.file)
        async with opened_store(url) as store:
            yield store
        return
    async with opened_store(migrated) as store:
        yield store
        # a test may have closed it
        await store.open()
        async with store.writing() as connection:
            # few rows are deleted sooner than files are cut
            for table in reversed(metadata.sorted_tables):
                await connection.execute(table.delete())


async def _open_once(url: StoreUrl) -> None:
    async with opened_store(url):
        pass
