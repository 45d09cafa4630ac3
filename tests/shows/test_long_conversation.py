"""OpenAI's client library pages a conversation of 10,000 items in both directions, and its last page costs what its
first one does.

`pytest -s` shows the cost of the first, a middle and the last page.
"""

import time
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from router.conversation import Conversation
from router.messages import Assistant, User
from router.store import conversations as kept
from router.store.items import NewItem
from router.store.store import Store
from support.reading import analyzed, counted, rows_read
from support.serving import config_for, create_app, gateway, served
from support.stores import BACKENDS, Backend, store_url

ITEMS = 10_000
PAGE = 100
CONVERSATION = "conv_01M82V4AKSHHVQGQTBC4SRCZVA"
OTHERS = ("conv_01M82V4AKSHHVQGQTBC4SRCZV0", "conv_01M82V4AKSHHVQGQTBC4SRCZVZ")
"""Before it and behind it, so that a table that is read from its beginning would show."""
AT = 1_790_000_000_000
LENGTH = " and so on" * 150
"""As long as answers are: databases read a table of few bytes from its beginning, and rightly."""


async def fill(store: Store, conversation: str, items: int) -> None:
    """A question and its answer in turns."""
    await kept.create(store, Conversation(id=conversation, owner="", created_at=AT, updated_at=AT))
    for begin in range(0, items, 1000):
        new = [
            NewItem(f"msg_{n:05}", Assistant(f"{n}{LENGTH}") if n % 2 else User(f"{n}{LENGTH}"), "openai", AT + n)
            for n in range(begin, min(begin + 1000, items))
        ]
        await kept.add(store, conversation, new, at=AT)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_library_pages_ten_thousand_items_in_both_directions(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with store_url(backend, tmp_path, migrated=True) as url:
        made = gateway(config_for("http://127.0.0.1:9") + f"store: {url}\n")
        store = made.backing.store
        async with (
            served(create_app(made)) as address,
            AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as client,
        ):
            await fill(store, CONVERSATION, ITEMS)
            for other in OTHERS:
                await fill(store, other, 1000)
            await analyzed(store)
            statements = counted(store)
            costs: dict[str, list[tuple[int, int, float]]] = {}
            for order in ("asc", "desc"):
                read, pages = [], []
                statements.clear()
                began = time.perf_counter()
                page: Any = await client.conversations.items.list(CONVERSATION, order=order, limit=PAGE)
                while True:
                    pages.append((list(statements), time.perf_counter() - began))
                    read += [item.id for item in page.data]
                    if not page.has_next_page():
                        break
                    statements.clear()
                    began = time.perf_counter()
                    page = await page.get_next_page()
                wanted = [f"msg_{n:05}" for n in range(ITEMS)]
                assert read == (wanted if order == "asc" else wanted[::-1]), "all once, and in order"
                assert len(pages) == ITEMS // PAGE
                costs[order] = [await cost(store, pages[place]) for place in (0, len(pages) // 2, -1)]
            automatic = [item.id async for item in client.conversations.items.list(CONVERSATION, limit=PAGE)]
            assert len(automatic) == len(set(automatic)) == ITEMS
    unit = "steps of SQLite's machine" if backend == "sqlite" else "rows in the plans"
    print()
    for order, of in costs.items():
        for name, (count, rows, seconds) in zip(("first", "middle", "last"), of, strict=True):
            print(f"{backend}, {order}: {name} page: {count} statements, {rows} {unit}, {seconds * 1000:.1f} ms")
    for of in costs.values():
        first, middle, last = (rows for _, rows, _ in of)
        # the first has no cursor to find, the last no item more; read from its beginning it would be a hundred times
        assert max(first, middle, last) < 2 * min(first, middle, last), costs


async def cost(store: Store, page: tuple[list[tuple[str, Any]], float]) -> tuple[int, int, float]:
    """Statements of one request, what they look at, and the seconds that the request took."""
    statements, seconds = page
    of_items = [each for each in statements if "conversation_items" in each[0]]
    return len(of_items), await rows_read(store, of_items), seconds
