"""Two hundred clients leave at random moments: nothing of them is left, neither here nor at the vendor."""

import asyncio
import gc
import random
from collections import Counter
from types import AsyncGeneratorType
from typing import Any

import psutil
import pytest

from support.raw import Raw
from support.serving import asking, config_for, create_app, gateway, served
from support.vendor import Exchange, delta, sse, usage_chunk, vendor

CLIENTS = 200


async def dawdles(exchange: Exchange) -> None:
    """A vendor that takes its time before the headers, before the first delta, and between deltas."""
    pace = random.Random(exchange.request.body)
    await asyncio.sleep(pace.random() * 0.3)
    if not exchange.request.json().get("stream"):
        await asyncio.sleep(0.5)
        await exchange.whole(200, b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}')
        return
    await exchange.head()
    await asyncio.sleep(pace.random() * 0.2)
    for _ in range(30):
        await exchange.chunk(sse(delta("some words of an answer ")))
        await asyncio.sleep(pace.random() * 0.04)
    await exchange.chunk(sse(delta(finish="stop"), usage_chunk(), "[DONE]"))
    await exchange.end()


async def leaves(url: str, number: int) -> None:
    """Asks, reads for a while, and goes without a word."""
    chance = random.Random(number)
    await asyncio.sleep(chance.random() * 0.2)
    raw = await Raw.post(url, asking(stream=number % 4 != 0, text=f"number {number}"))

    async def reading() -> None:
        await raw.head()
        if number % 4:
            await raw.chunks()

    try:
        await asyncio.wait_for(reading(), chance.random() * 0.7)
    except (TimeoutError, asyncio.IncompleteReadError):
        pass
    raw.leave()


def ours(kind: type[Any]) -> list[Any]:
    """Async generators of the request path that are still alive."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) is kind]
    return [thing for thing in found if any(place in thing.ag_code.co_filename for place in ("/router/", "/plugins/"))]


def tasks() -> Counter[str]:
    return Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks() if not task.done())  # type: ignore[union-attr]


@pytest.mark.parametrize("transport", ["native", "aiohttp", "httpx"])
async def test_200_clients_that_leave_at_random_moments_leave_nothing_behind(transport: str) -> None:
    config = config_for("URL", more=f", transport: {transport}")
    async with vendor(dawdles) as played:
        gate = gateway(config.replace("URL", played.url))
        upstream = gate.current.adapters["v"].upstream
        async with served(create_app(gate)) as url:
            await asyncio.gather(*(leaves(url, number) for number in range(20)))
            await asyncio.sleep(1.3)
            before_tasks, before_memory = tasks(), psutil.Process().memory_info().rss
            servers_own = ours(AsyncGeneratorType)
            for round_ in range(2):
                await asyncio.gather(*(leaves(url, 1000 * round_ + number) for number in range(CLIENTS)))
                await played.settled(1.5)
            assert len(played.requests) > CLIENTS, "most clients were still there when the vendor was asked"
            assert played.abandoned > CLIENTS // 4, "many left while the vendor was at work"
            # an answer that was complete is read to its end aside, for a second at most
            await asyncio.sleep(1.3)
            assert len(gate.running) == 0
            assert upstream.open == upstream.draining == 0  # type: ignore[attr-defined]
            async with asyncio.timeout(5):
                # the server looks into its store every now and then, for a moment
                while [left for left in ours(AsyncGeneratorType) if left not in servers_own]:
                    await asyncio.sleep(0.05)
            left = tasks() - before_tasks
            assert not {name for name in left if not name.startswith(("_connected", "Vendor"))}, left
            assert psutil.Process().memory_info().rss - before_memory < 20 * 1024 * 1024
