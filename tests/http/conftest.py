"""Leaves no connection of a test open."""

from collections.abc import AsyncIterator

import pytest

from support import raw


@pytest.fixture(autouse=True)
async def connections_are_closed() -> AsyncIterator[None]:
    yield
    while raw.opened:
        raw.opened.pop().leave()
