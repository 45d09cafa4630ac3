"""A hundred calls at once against a budget for ten, through one gateway, two processes and two replicas.

It is seen by what the gateways answer, by what the ledger and the shared state hold in the end, and by a last call that
costs what is left to the nano-dollar, which passes only if nothing is reserved any more.
"""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from shows.clients import Seen, ask
from shows.processes import GatewayProcess
from shows.stored import Rows

from router.accounts import Account, account
from router.settings import SharedUrl, StoreUrl
from router.state.shared import shared_state
from support.stores import opened_store, postgres_database, sqlite_url
from support.vendor import Exchange, Vendor, delta, sse, vendor

Setup = Literal["one process", "two processes on SQLite", "two replicas on Redis"]
SETUPS = [
    pytest.param("one process", id="one-process"),
    pytest.param("two processes on SQLite", id="two-processes-on-sqlite"),
    pytest.param("two replicas on Redis", id="two-replicas-on-redis", marks=pytest.mark.needs("postgres", "redis")),
]
REDIS = "redis://127.0.0.1:6379/9"
ONE = 10**6
"""Nano-dollars that a token of output costs. The prompt is free, so that a call can cost exactly what it reserved."""
PRICES = "prices: [{list: v, models: [m], currency: USD, input: 0, output: 1000}]\n"
TOKENS = 50
"""`max_tokens` of a call."""
PASS = 10
"""How many such calls the budget is for."""
BUDGET = PASS * TOKENS * ONE


# -- a vendor that keeps everybody until it is told to go on -----------------------------------------------------------


@dataclass
class Script:
    """`used`: tokens that each answer has, at most as many as were allowed."""

    used: int = TOKENS
    asked: list[str] = field(default_factory=list)
    """Markers of the calls that have come through."""
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        body = exchange.request.json()
        self.asked.append(body["messages"][-1]["content"])
        used = min(self.used, body["max_tokens"])
        usage = {"prompt_tokens": 9, "completion_tokens": used, "total_tokens": 9 + used}
        if not body.get("stream"):
            await self.go.wait()
            message = {"role": "assistant", "content": " one" * used}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            whole = {**delta(), "object": "chat.completion", "choices": choices, "usage": usage}
            await exchange.whole(200, json.dumps(whole).encode())
            return
        await exchange.head()
        await exchange.chunk(sse(*[delta(" one")] * (used // 2)))
        await self.go.wait()
        end = {**delta(), "choices": [], "usage": usage}
        await exchange.chunk(sse(*[delta(" one")] * (used - used // 2), delta(finish="stop"), end, "[DONE]"))
        await exchange.end()


# -- gateways ----------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """Gateways that spend from the same budgets."""

    gateways: list[GatewayProcess]
    store: StoreUrl
    shared: SharedUrl
    suite: str
    """The tag whose budget it is; nobody else's, as all runs of this test share one Redis."""

    async def ask(self, marker: str, place: int, tokens: int = TOKENS) -> Seen:
        gateway = self.gateways[place % len(self.gateways)]
        return await ask(gateway.port, marker, stream=place % 4 < 2, suite=self.suite, max_tokens=tokens)

    async def spent(self) -> int:
        """What the ledger says that all calls have cost, in nano-dollars."""
        rows = await Rows.read(self.store)
        return sum(row.cost or 0 for each in rows.attempts.values() for row in each)

    async def standing(self) -> tuple[int, int]:
        """What the state that the gateways share says is spent and reserved. While they run: alone, it begins anew."""
        purse = account("tag", f"suite={self.suite}", "day", "USD", int(time.time() * 1000))

        async def opening(unknown: Account) -> int:
            raise AssertionError(f"nobody has spent anything of {unknown}")

        journals = self.gateways[0].directory / "deltaway.journal"
        async with opened_store(self.store) as store:
            async with shared_state(self.shared, journals, "jrn_looks", store, opening, lambda *_: None) as state:
                [standing] = await state.accounts.standings([purse])
        return standing.spent, standing.reserved

    async def stop(self) -> None:
        for gateway in self.gateways:
            await gateway.stop()


@asynccontextmanager
async def site(setup: Setup, directory: Path, played: Vendor) -> AsyncIterator[Site]:
    suite = f"shows-{uuid.uuid4().hex}"
    async with AsyncExitStack() as stack:
        if setup == "two replicas on Redis":
            store, shared = await stack.enter_async_context(postgres_database()), SharedUrl.parse(REDIS)
            stack.push_async_callback(forget, suite)
            # each on a machine of its own, as far as they can tell
            places = [(directory / "first", "gateway"), (directory / "second", "gateway")]
        else:
            store, shared = sqlite_url(directory), SharedUrl.parse("auto")
            places = [(directory, "first"), (directory, "second")][: 1 if setup == "one process" else 2]
        config = f"""
server: {{shutdown: {{delay: 0s}}}}
store: {store}
shared: {shared}
ledger: {{checkpoint: 1s}}
prices: {{file: prices.yaml}}
providers:
  v: {{protocol: openai, base_url: "{played.url}", api_key: sk-vendor}}
plugins:
  - logging
  - auth
  - limits
  - budget: {{rules: [{{tag: "suite={suite}", amount: "{BUDGET / 10**9} USD", per: day}}]}}
  - usage
"""
        gateways = [GatewayProcess(where, name) for where, name in places]
        for gateway in gateways:
            gateway.write({"providers.yaml": config, "prices.yaml": PRICES})
            stack.push_async_callback(gateway.end)
        # all at once, as a deployment starts them: on a store without a table
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        yield Site(gateways, store, shared, suite)


async def forget(suite: str) -> None:
    """Remove what a test has left in Redis."""
    from redis.asyncio import Redis

    async with Redis.from_url(REDIS) as redis:
        async for key in redis.scan_iter(f"*{suite}*"):
            await redis.delete(key)


async def until(condition: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# -- the shows ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("setup", SETUPS)
async def test_of_a_hundred_calls_at_once_the_budget_lets_ten_pass(setup: Setup, tmp_path: Path) -> None:
    script = Script()
    async with vendor(script.play) as played, site(setup, tmp_path, played) as here:
        calls = [asyncio.create_task(here.ask(f"call-{n}", n)) for n in range(100)]
        # nobody is answered before everybody has been decided on
        await until(lambda: len(script.asked) + sum(call.done() for call in calls) == 100)
        script.go.set()
        seen = await asyncio.gather(*calls)
        later = [await here.ask(f"late-{n}", n, tokens=1) for n in range(8)]
        standing = await here.standing()
        await here.stop()
        spent = await here.spent()
    passed, refused = told(seen)
    print(f"\n{setup}: {passed} passed, {refused} refused, {spent} of {BUDGET} nano-dollars spent")
    assert (passed, refused) == (PASS, 100 - PASS)
    assert told(later) == (0, len(later)), "not a token is left"
    assert spent == BUDGET
    assert standing == (spent, 0)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("setup", SETUPS)
async def test_what_calls_do_not_use_is_free_again_and_the_budget_is_spent_to_the_last(
    setup: Setup, tmp_path: Path
) -> None:
    """Calls use less than they reserve: round after round some more pass, until not one more is allowed."""
    script = Script(used=17)
    rounds: list[tuple[int, int]] = []
    async with vendor(script.play) as played, site(setup, tmp_path, played) as here:
        script.go.set()
        while not rounds or rounds[-1][0]:
            marker = f"round-{len(rounds)}"
            rounds.append(told(await asyncio.gather(*(here.ask(f"{marker}-{n}", n) for n in range(100)))))
        passed = sum(each for each, _ in rounds)
        left = BUDGET - passed * 17 * ONE
        assert 0 <= left < TOKENS * ONE, "nobody is refused while there is enough"
        script.used = TOKENS
        assert left > ONE
        too_much = await here.ask("one-too-many", 0, tokens=left // ONE + 1)
        last = await here.ask("the-rest", 1, tokens=left // ONE)
        none = await here.ask("nothing-left", 2, tokens=1)
        standing = await here.standing()
        await here.stop()
        spent = await here.spent()
    print(f"\n{setup}: passed and refused by round {rounds}, {spent} of {BUDGET} nano-dollars spent")
    assert told([too_much]) == (0, 1)
    assert told([last]) == (1, 0), "what is left can be spent: nothing is reserved any more"
    assert told([none]) == (0, 1)
    assert spent == BUDGET
    assert standing == (spent, 0)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("setup", SETUPS[1:])
async def test_what_a_killed_gateway_had_reserved_is_free_after_its_restart(setup: Setup, tmp_path: Path) -> None:
    script = Script()
    async with vendor(script.play) as played, site(setup, tmp_path, played) as here:
        doomed, other = here.gateways
        # streams alone: half of what each will say is said, and soon written down
        calls = [
            asyncio.create_task(ask(gateway.port, f"{name}-{n}", stream=True, suite=here.suite, max_tokens=TOKENS))
            for gateway, name in ((doomed, "doomed"), (other, "other"))
            for n in range(PASS // 2)
        ]
        await until(lambda: len(script.asked) == PASS)
        async with asyncio.timeout(30):
            while sum(row.source == "estimated" for row in await attempts_of(here, "doomed")) < PASS // 2:
                await asyncio.sleep(0.1)
        await doomed.kill()
        refused = await ask(other.port, "meanwhile", stream=True, suite=here.suite, max_tokens=TOKENS)
        await doomed.start()
        reserved = (await here.standing())[1]
        script.go.set()
        seen = await asyncio.gather(*calls)
        # what the killed ones cost is known, and the rest is free
        interrupted = [row for row in await attempts_of(here, "doomed") if row.outcome == "interrupted"]
        known = sum(row.cost or 0 for row in interrupted)
        left = BUDGET - known - PASS // 2 * TOKENS * ONE
        too_much = await ask(other.port, "one-too-many", stream=True, suite=here.suite, max_tokens=left // ONE + 1)
        script.used = left // ONE
        last = await ask(doomed.port, "the-rest", stream=True, suite=here.suite, max_tokens=left // ONE)
        standing = await here.standing()
        await here.stop()
        rows = await Rows.read(here.store)
        spent = await here.spent()
    outcomes = Counter(row.outcome for each in rows.attempts.values() for row in each)
    print(f"\n{setup}: {dict(outcomes)}, interrupted at {known}, {spent} of {BUDGET} nano-dollars spent")
    assert told([refused]) == (0, 1), "what the dead one had reserved is nobody else's before it is settled"
    assert reserved == PASS // 2 * TOKENS * ONE, "what the other one's calls hold, and nothing more"
    assert told(seen) == (PASS // 2, 0)
    assert len(interrupted) == PASS // 2
    assert {row.source for row in interrupted} == {"estimated"}
    assert 0 < known <= PASS // 2 * TOKENS * ONE
    assert told([too_much]) == (0, 1)
    assert told([last]) == (1, 0), "its reservations are settled with what the ledger says"
    assert spent == BUDGET
    assert standing == (spent, 0)


async def attempts_of(here: Site, name: str) -> Sequence[Any]:
    rows = await Rows.read(here.store)
    return [row for marker, each in rows.attempts.items() if marker.startswith(name) for row in each]


def told(seen: Sequence[Seen]) -> tuple[int, int]:
    """How many were answered to the end, and how many refused for the budget."""
    assert {each.status for each in seen} <= {0, 200, 402}, Counter(each.status for each in seen)
    return sum(each.ended for each in seen), sum(each.status == 402 for each in seen)
