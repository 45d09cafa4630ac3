"""`store`: every test that takes it runs on SQLite and on Postgres."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router.store.store import Store
from support.stores import BACKENDS, empty_store


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with empty_store(request.param, tmp_path) as store:
        yield store
