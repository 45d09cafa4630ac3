"""What a call may cost is reserved of all its budgets before a vendor is asked, and settled at its true cost."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from plugins.budget import BudgetPlugin
from plugins.budget_rules import Amount, Rule
from router.access import Budget, Limits, Owner, Period, SubjectKind
from router.accounts import Account, Accounts, AccountsAway, Charge, Hold, Refusal, account
from router.call import Call, Principal
from router.config import ConfigError, parse
from router.errors import BudgetSpent, PriceUnknown, RateLimited, RouterError, StoreUnavailable, UnknownModel
from router.events import ReasoningDelta, Started
from router.money import Money
from router.plugin import compose
from router.services import Services
from router.state.machine import Machine
from router.state.machine_accounts import MachineAccounts
from router.state.memory_accounts import MemoryAccounts
from tests.plugins.calls import collect
from tests.plugins.lending import GPT, NEW, NOVEMBER, QWEN, Vendor, a_call, cost_of, lend, nothing_spent, standing, text

KEY = Principal("dw-ab12", "search")
STEP = 8 + 10 * 4096
"""The most that a call costs that asks `Hi` and sets no `max_tokens`."""
COST = 8 + 10 * 11
"""What it costs when `hello world` is the answer."""


def usd(nano: int) -> Amount:
    return Amount(Money(nano, "USD"))


def an_account(
    kind: SubjectKind = "key", subject: str = "dw-ab12", per: Period = "month", currency: str = "USD"
) -> Account:
    return account(kind, subject, per, currency, NOVEMBER)


def budget(services: Services, *rules: Rule, **settings: Any) -> BudgetPlugin:
    return BudgetPlugin(BudgetPlugin.Settings(rules=rules, **settings), services)


async def answered(plugin: BudgetPlugin, services: Services, call: Call, **vendor: Any) -> Call:
    await collect(compose([plugin], Vendor(services, **vendor))(call))
    return call


def test_a_call_without_a_budget_passes_by() -> None:
    events = object()
    plugin = budget(lend(), Rule(usd(1), key="dw-other"), Rule(usd(1), tag="feature=*"))
    assert plugin.stream(a_call(principal=KEY, user="u1"), lambda call: events) is events  # type: ignore[arg-type,return-value]


async def test_what_a_call_costs_is_booked_and_the_rest_is_free_again() -> None:
    services = lend()
    call = await answered(budget(services, Rule(usd(STEP), key="*")), services, a_call(principal=KEY))
    assert cost_of(call) == COST
    assert await standing(services, an_account()) == (COST, 0)


async def test_the_most_that_a_call_may_cost_is_reserved_while_it_runs() -> None:
    services = lend()
    layers = compose([budget(services, Rule(usd(10**9), key="*"))], Vendor(services))
    for number, (sampling, output) in enumerate(
        [
            ({}, 4096),
            ({"max_tokens": 50}, 50),
            ({"max_tokens": 50, "n": 4}, 200),
            # reasoning that may not count as output
            ({"max_tokens": 50, "thinking": 1000}, 1050),
            ({"max_tokens": 50, "thinking": 1000, "n": 2, "stream": False}, 2100),
            ({"max_tokens": 50, "thinks": True}, 50 + 4096),
            ({"max_tokens": 50, "thinks": True, "thinking": 7}, 57),
            # it does, or there is none
            ({"max_tokens": 50, "effort": "high"}, 50),
            ({"max_tokens": 50, "thinking": 1000, "thinks": False}, 50),
            ({"max_tokens": 50, "thinking": 1000, "effort": "none"}, 50),
            ({"max_tokens": 50, "thinking": -1}, 50),
            ({"max_tokens": 50, "thinking": 10**30}, 50 + 10**7),
        ]
    ):
        call = a_call(principal=Principal(f"dw-{number}"), **sampling)  # type: ignore[arg-type]
        await anext(layers(call))
        assert await standing(services, an_account(subject=f"dw-{number}")) == (0, 8 + 10 * output)
        await call.trip.close()


async def test_a_call_that_may_cost_more_than_is_left_is_refused_before_a_vendor_is_asked() -> None:
    services = lend()
    plugin, vendor = budget(services, Rule(usd(STEP + COST - 1), key="*")), Vendor(services)
    await collect(compose([plugin], vendor)(a_call(principal=KEY)))
    call = a_call(principal=KEY)
    with pytest.raises(BudgetSpent) as caught:
        await collect(compose([plugin], vendor)(call))
    assert len(vendor.calls) == 1
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (402, "budget_exceeded", False)
    assert caught.value.message == (
        "the budget of the key `dw-ab12`, 0.000041085 USD a month, has 0.000040967 USD left, and this call may cost "
        "0.000040968 USD: a smaller `max_tokens` needs less; the next month begins on 2026-12-01 (UTC)"
    )
    assert caught.value.retry_after is not None
    assert await standing(services, an_account()) == (COST, 0)
    await collect(compose([plugin], vendor)(a_call(principal=KEY, max_tokens=1000)))


async def test_a_refused_call_that_thinks_may_do_so_less() -> None:
    services = lend()
    with pytest.raises(BudgetSpent, match="a smaller `max_tokens` or `thinking_budget` needs less"):
        await answered(
            budget(services, Rule(usd(1000), key="*")),
            services,
            a_call(principal=KEY, max_tokens=10, thinking=30_000, stream=False),
        )


async def test_calls_that_think_do_not_pass_a_budget_together() -> None:
    """Thirty at once that think longer than they write, where there is money for two."""
    services, gate = lend(), asyncio.Event()
    most = 8 + 10 * (10 + 3000)
    plugin = budget(services, Rule(usd(2 * most), "total", key="*"))
    events = [Started("id-1", "m", 0), ReasoningDelta(0, 0, "x" * 3000), *text("x" * 10)[1:]]
    layers = compose([plugin], Vendor(services, events, gate=gate, waits=False))
    calls = [
        a_call(principal=KEY, number=number, stream=False, max_tokens=10, thinks=True, thinking=3000)
        for number in range(30)
    ]
    tasks = [asyncio.create_task(collect(layers(call))) for call in calls]
    while sum(task.done() for task in tasks) < 28:
        await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, list) for result in results) == 2
    assert await standing(services, an_account(per="total")) == (2 * most, 0)


async def test_a_budget_without_an_end_says_nothing_of_a_better_time() -> None:
    services = lend()
    plugin = budget(services, Rule(usd(1), "total", team="research"))
    with pytest.raises(BudgetSpent) as caught:
        await answered(plugin, services, a_call(principal=Principal("k", team="research")))
    assert caught.value.retry_after is None
    assert caught.value.message.startswith("the budget of the team `research`, 0.000000001 USD in total, has ")


async def test_the_next_day_has_money_again() -> None:
    services = lend()
    plugin = budget(services, Rule(usd(STEP), "day", key="*"))
    await answered(plugin, services, a_call(principal=KEY))
    with pytest.raises(BudgetSpent, match="the next day begins on 2026-11-23"):
        await answered(plugin, services, a_call(principal=KEY))
    await answered(plugin, services, a_call(principal=KEY, at=NOVEMBER + 12 * 3_600_000))


async def test_what_was_spent_before_this_process_counts() -> None:
    asked = []

    async def spent(asked_for: Account) -> int:
        asked.append(asked_for)
        return 5

    services = lend(spent=spent)
    with pytest.raises(BudgetSpent, match=r"has 0\.000040967 USD left"):
        await answered(budget(services, Rule(usd(STEP + 4), key="*")), services, a_call(principal=KEY))
    assert asked == [an_account()]


# -- many at once --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "machine"])
async def accounts(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Accounts]:
    if request.param == "memory":
        yield MemoryAccounts(nothing_spent, "process-1")
    else:
        machine = Machine(tmp_path / "shared")
        await machine.open()
        yield MachineAccounts(machine, nothing_spent, "process-1")
        await machine.close()


async def test_of_a_hundred_calls_at_once_ten_pass_a_budget_for_ten(accounts: Accounts) -> None:
    services = lend(accounts=accounts)
    plugin, gate = budget(services, Rule(usd(10 * STEP), key="*")), asyncio.Event()
    vendor = Vendor(services, gate=gate)
    layers = compose([plugin], vendor)
    calls = [a_call(principal=KEY, number=number) for number in range(100)]
    tasks = [asyncio.create_task(collect(layers(call))) for call in calls]
    while sum(task.done() for task in tasks) < 90:
        await asyncio.sleep(0)
    assert await standing(services, an_account()) == (0, 10 * STEP)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, list) for result in results) == 10
    assert {type(result) for result in results} == {list, BudgetSpent}
    assert "is reserved by calls that are running" in str(next(r for r in results if isinstance(r, BudgetSpent)))
    assert await standing(services, an_account()) == (sum(map(cost_of, calls)), 0)
    # never stuck: what was not used can be used
    await collect(layers(a_call(principal=KEY, max_tokens=1024)))


ends = st.sampled_from(["finish", "fail", "leave", "cancel"])


@given(
    st.lists(st.tuples(ends, st.integers(1, 60), st.integers(0, 8), st.sampled_from([None, 20, 100])), max_size=25),
    st.integers(0, 5000),
)
def test_a_budget_is_never_passed_and_nothing_stays_reserved(
    plans: list[tuple[str, int, int, int | None]], limit: int
) -> None:
    """The vendor keeps to `max_tokens`; without it the answer is stopped in time, deltas of one letter being small."""

    async def run() -> None:
        services = lend()
        plugin = budget(services, Rule(usd(limit), "total", key="*"), output=32)
        calls: list[Call] = []

        async def one(number: int, end: str, length: int, turns: int, max_tokens: int | None) -> None:
            error = RateLimited("slow down") if end == "fail" else None
            pieces = "x" * min(length, max_tokens or length)
            call = a_call(principal=KEY, number=number, **({} if max_tokens is None else {"max_tokens": max_tokens}))
            calls.append(call)
            events = compose([plugin], Vendor(services, text(*pieces), error=error))(call)
            try:
                if end == "leave":
                    for _ in range(turns):
                        await anext(events)
                elif end == "cancel":
                    task = asyncio.ensure_future(collect(events))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    await task
                else:
                    await collect(events)
            except (RouterError, StopAsyncIteration):
                pass
            except asyncio.CancelledError:
                pass
            finally:
                await call.trip.close()

        async def watch() -> None:
            while True:
                spent, reserved = await standing(services, an_account(per="total"))
                assert spent + reserved <= limit
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        async with plugin.lifespan():
            await asyncio.gather(*(one(number, *plan) for number, plan in enumerate(plans)))
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert await standing(services, an_account(per="total")) == (sum(map(cost_of, calls)), 0)
        assert sum(map(cost_of, calls)) <= limit

    asyncio.run(run())


# -- who has which budget ------------------------------------------------------------------------------------------


class Recorded(MemoryAccounts):
    """The first holds of every call."""

    def __init__(self) -> None:
        super().__init__(nothing_spent, "process-1")
        self.holds: list[Hold] = []

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        self.holds += holds
        return await super().reserve(call_id, holds)


def money(nano: int, per: Period = "month", currency: str = "USD") -> Budget:
    return Budget(Money(nano, currency), per)


RULES = (
    Rule(usd(100_000), key="*"),
    Rule(usd(200_000), key="dw-vip"),
    Rule(usd(300_000), user="*"),
    Rule(usd(310_000), "day", user="*"),
    Rule(usd(400_000), team="research"),
    Rule(usd(500_000), tag="feature=*"),
    Rule(usd(600_000), tag="feature=search"),
)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (a_call(principal=KEY), {"key:dw-ab12/month:2026-11/USD": 100_000}),
        (a_call(principal=Principal("dw-vip")), {"key:dw-vip/month:2026-11/USD": 200_000}),
        (
            a_call(principal=Principal("dw-own", budgets=(money(900_000), money(950_000, "total")))),
            {"key:dw-own/month:2026-11/USD": 900_000, "key:dw-own/total:/USD": 950_000},
        ),
        (
            a_call(principal=Principal("dw-own", budgets=(money(800_000), money(700_000)))),
            {"key:dw-own/month:2026-11/USD": 700_000},
        ),
        (
            a_call(principal=Principal("admin", admin=True), user="u2"),
            {"user:u2/month:2026-11/USD": 300_000, "user:u2/day:2026-11-22/USD": 310_000},
        ),
        (a_call(user="u1"), {"user:u1/month:2026-11/USD": 350_000, "user:u1/day:2026-11-22/USD": 310_000}),
        (
            a_call(principal=Principal("dw-vip", team="research", tags={"feature": "search", "stage": "test"})),
            {
                "key:dw-vip/month:2026-11/USD": 200_000,
                "team:research/month:2026-11/USD": 400_000,
                "tag:feature=search/month:2026-11/USD": 600_000,
            },
        ),
        (a_call(tags={"feature": "mail"}), {"tag:feature=mail/month:2026-11/USD": 500_000}),
    ],
    ids=["each", "named", "own", "own-twice", "admin", "owner", "team-and-tag", "each-value"],
)
async def test_a_call_counts_for_its_key_its_user_its_team_and_its_tags(call: Call, wanted: dict[str, int]) -> None:
    services = lend(Owner("user", "u1", budgets=(money(350_000),)), accounts=(accounts := Recorded()))
    await answered(budget(services, *RULES), services, call)
    assert {str(hold.account): hold.limit for hold in accounts.holds} == wanted


async def test_a_call_that_one_of_its_budgets_refuses_reserves_nothing_of_the_others() -> None:
    services = lend()
    plugin = budget(services, Rule(usd(10**9), key="*"), Rule(usd(1), "day", tag="feature=search"))
    with pytest.raises(BudgetSpent, match=r"the budget of the tag `feature=search`, 0\.000000001 USD a day,"):
        await answered(plugin, services, a_call(principal=KEY, tags={"feature": "search"}))
    assert await standing(services, an_account()) == (0, 0)


async def test_a_user_is_known_by_the_words_that_the_ledger_keeps() -> None:
    services = lend(accounts=(accounts := Recorded()))
    plugin = budget(services, Rule(usd(10**9), user="*"))
    await answered(plugin, services, a_call(user="x" * 300 + "1"))
    await answered(plugin, services, a_call(user="a\0b"))
    assert [hold.account.subject for hold in accounts.holds] == ["x" * 255 + "…", "a\ufffdb"]


# -- prices and currencies -----------------------------------------------------------------------------------------


async def test_budgets_in_two_currencies_are_kept_side_by_side() -> None:
    services = lend()
    principal = Principal("dw-ab12", budgets=(money(10**6), money(10**6, currency="CNY")))
    plugin = budget(services)
    call = await answered(plugin, services, a_call(principal=principal))
    assert await standing(services, an_account()) == (COST, 0)
    assert await standing(services, an_account(currency="CNY")) == (7 * COST, 0)
    await answered(plugin, services, a_call("qwen", principal=principal), target=QWEN)
    assert await standing(services, an_account()) == (COST + 2 * COST, 0)
    assert await standing(services, an_account(currency="CNY")) == (7 * COST + 2 * COST, 0)
    assert cost_of(call) == COST


async def test_the_dearest_target_of_a_route_is_reserved_for() -> None:
    services = lend(accounts=(accounts := Recorded()))
    await answered(budget(services, Rule(usd(10**9), key="*")), services, a_call("either", principal=KEY))
    assert [hold.amount for hold in accounts.holds] == [2 * STEP]


@pytest.mark.parametrize(
    ("tier", "times"),
    # `scale` is nowhere in the prices: it is not what the vendor of this target sells
    [(None, 1), ("default", 1), ("priority", 3), ("auto", 3), ("flex", 1), ("scale", 1)],
)
async def test_the_service_tier_that_is_asked_for_is_reserved_for(tier: str | None, times: int) -> None:
    services = lend()
    services.pricing.tiers[GPT] = {"priority": 3, "flex": 0}  # type: ignore[attr-defined]
    plugin = budget(services, Rule(usd(10**9), key="*"))
    call = a_call(principal=KEY, service_tier=tier, max_tokens=50)
    events = compose([plugin], Vendor(services, tier=None if tier in ("auto", "scale") else tier))(call)
    await anext(events)
    assert await standing(services, an_account()) == (0, times * (8 + 10 * 50))
    assert [event async for event in events]
    assert await standing(services, an_account()) == (cost_of(call), 0)


async def test_a_call_in_a_dearer_service_tier_does_not_pass_a_budget_for_the_standard_one() -> None:
    services = lend()
    services.pricing.tiers[GPT] = {"priority": 2}  # type: ignore[attr-defined]
    plugin, vendor = budget(services, Rule(usd(STEP), key="*")), Vendor(services, tier="priority")
    with pytest.raises(BudgetSpent):
        await collect(compose([plugin], vendor)(a_call(principal=KEY, service_tier="priority")))
    assert vendor.calls == []


async def test_a_budget_whose_currency_cannot_be_bought_refuses() -> None:
    services = lend()
    vendor = Vendor(services)
    with pytest.raises(PriceUnknown) as caught:
        await collect(compose([budget(services, Rule(Amount("10 EUR"), key="*"))], vendor)(a_call(principal=KEY)))
    assert caught.value.code == "rate_unknown"
    assert caught.value.message == (
        "the budget of the key `dw-ab12` is in EUR, and no exchange rate is known for USD, in which `openai/gpt-5` is "
        "paid: write one under `prices.rates`"
    )
    assert not vendor.calls


@pytest.mark.parametrize("model", ["new", "old-or-new"])
async def test_a_call_without_a_price_is_refused(model: str) -> None:
    services = lend()
    vendor = Vendor(services)
    with pytest.raises(
        PriceUnknown, match=r"`openai/brand-new` is not known.*`prices\.file`.*`unpriced: allow`"
    ) as caught:
        await collect(compose([budget(services, Rule(usd(10**9), key="*"))], vendor)(a_call(model, principal=KEY)))
    assert caught.value.code == "price_unknown"
    assert not vendor.calls
    await answered(budget(services), services, a_call(model, principal=KEY))


async def test_a_call_without_a_price_is_made_if_so_wished() -> None:
    services = lend()
    plugin = budget(services, Rule(usd(STEP), key="*"), unpriced="allow")
    await answered(plugin, services, a_call("new", principal=KEY), target=NEW)
    assert await standing(services, an_account()) == (0, 0)
    await answered(plugin, services, a_call("old-or-new", principal=KEY), target=NEW)
    assert await standing(services, an_account()) == (0, 0)


async def test_what_was_used_at_a_price_that_went_away_costs_what_was_reserved() -> None:
    services = lend()
    plugin = budget(services, Rule(usd(10**9), key="*"))
    await answered(plugin, services, a_call(principal=KEY), target=NEW)
    assert await standing(services, an_account()) == (STEP, 0)


async def test_what_costs_nothing_is_not_refused_when_all_is_spent() -> None:
    services = lend()
    services.pricing.prices[GPT] = (0, 0, "USD")  # type: ignore[attr-defined]
    await answered(budget(services, Rule(usd(0), key="*")), services, a_call(principal=KEY))


async def test_an_unknown_model_is_the_clients_mistake_not_the_budgets() -> None:
    services = lend()
    with pytest.raises(UnknownModel):
        await answered(budget(services, Rule(usd(1), key="*")), services, a_call("nope", principal=KEY))


async def test_no_number_of_tokens_is_too_large_to_be_priced() -> None:
    services = lend()
    with pytest.raises(BudgetSpent):
        await answered(
            budget(services, Rule(Amount("1 USD"), key="*")), services, a_call(principal=KEY, max_tokens=10**30)
        )


async def test_a_request_is_counted_once_for_all_layers() -> None:
    from plugins.limits import LimitsPlugin

    services = lend()
    plugins = [
        LimitsPlugin(LimitsPlugin.Settings(key=Limits(tpm=10**6)), services),
        budget(services, Rule(usd(10**9), key="*")),
    ]
    await collect(compose(plugins, Vendor(services))(a_call(principal=KEY, prompt="once")))
    assert services.tokens.asked == ["once"]  # type: ignore[attr-defined]


# -- the state away ------------------------------------------------------------------------------------------------


class Away(Recorded):
    def __init__(self) -> None:
        super().__init__()
        self.away = True
        self.tries = 0

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        if self.away:
            raise AccountsAway("connection refused by redis://10.0.0.1")
        return await super().reserve(call_id, holds)

    async def settle(self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()) -> None:
        self.tries += 1
        if self.away:
            raise AccountsAway("connection refused by redis://10.0.0.1")
        await super().settle(call_id, charges, late)


async def test_calls_with_a_budget_are_refused_while_no_budget_can_be_asked() -> None:
    services = lend(accounts=(accounts := Away()))
    plugin, vendor = budget(services, Rule(usd(10**9), key="dw-ab12")), Vendor(services)
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(StoreUnavailable) as caught:
                await collect(compose([plugin], vendor)(a_call(principal=KEY)))
        await collect(compose([plugin], vendor)(a_call(principal=Principal("dw-free"))))
        accounts.away = False
        await collect(compose([plugin], vendor)(a_call(principal=KEY)))
    assert caught.value.retry_after
    assert "redis" not in caught.value.message
    assert len(vendor.calls) == 2
    assert [line["event"] for line in logs] == [
        "budgets cannot be asked: calls with one are refused",
        "budgets can be asked again",
    ]


async def test_calls_with_a_budget_pass_while_no_budget_can_be_asked_if_so_wished() -> None:
    services = lend(accounts=(accounts := Away()))
    plugin = budget(services, Rule(usd(1), key="*"), on_failure="open")
    async with plugin.lifespan():
        call = await answered(plugin, services, a_call(principal=KEY))
        assert cost_of(call) == COST
        accounts.away = False


async def test_what_could_not_be_settled_is_settled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.budget._RETRIES", (0.01,) * 50)
    services = lend(accounts=(accounts := Away()))
    accounts.away = False
    plugin = budget(services, Rule(usd(10**9), key="*"))
    call = a_call(principal=KEY)
    async with plugin.lifespan():
        events = compose([plugin], Vendor(services))(call)
        await anext(events)
        accounts.away = True
        assert len(await collect(events)) == 4
        while accounts.tries < 4:
            await asyncio.sleep(0.01)
        accounts.away = False
        while await accounts.held_by("process-1"):
            await asyncio.sleep(0.01)
    assert await standing(services, an_account()) == (COST, 0)


async def test_a_server_that_stops_has_one_more_try_and_says_what_it_could_not_book() -> None:
    services = lend(accounts=(accounts := Away()))
    accounts.away = False
    plugin = budget(services, Rule(usd(10**9), key="*"))
    call = a_call(principal=KEY)
    with capture_logs() as logs:
        async with plugin.lifespan():
            events = compose([plugin], Vendor(services))(call)
            await anext(events)
            accounts.away = True
            await collect(events)
    assert accounts.tries == 2
    assert logs[-1]["log_level"] == "error"
    assert logs[-1]["request_id"] == "req_1"
    assert logs[-1]["reason"] == "connection refused by redis://10.0.0.1"


class Mute(Recorded):
    """Takes what it is told and never answers."""

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        await super().reserve(call_id, holds)
        await asyncio.Event().wait()
        return None


async def test_a_state_that_does_not_answer_counts_as_away_and_is_told_that_nothing_came_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("plugins.budget.PATIENCE", 0.01)
    services = lend(accounts=Mute())
    plugin = budget(services, Rule(usd(10**9), key="*"))
    async with plugin.lifespan():
        with pytest.raises(StoreUnavailable):
            await answered(plugin, services, a_call(principal=KEY))
        assert await standing(services, an_account()) == (0, STEP)
    assert await standing(services, an_account()) == (0, 0)


# -- settings ------------------------------------------------------------------------------------------------------


def read(settings: str) -> Any:
    loaded = parse(f"plugins:\n  - budget: {settings}\n", "p.yaml", {})
    return loaded.document.convert(loaded.config.plugins[0].path, BudgetPlugin.Settings)


def test_the_settings_are_read() -> None:
    settings = read(
        '{rules: [{key: "*", amount: 10 USD}, {tag: feature=search, amount: 2.50CNY, per: day}], '
        "unpriced: allow, output: 256}"
    )
    assert [(rule.kind, rule.subject, rule.budget) for rule in settings.rules] == [
        ("key", "*", Budget(Money(10 * 10**9, "USD"), "month")),
        ("tag", "feature=search", Budget(Money(2_500_000_000, "CNY"), "day")),
    ]
    assert (settings.unpriced, settings.output, settings.on_failure) == ("allow", 256, "closed")


ROW = "`plugins[0].budget.rules[0]"
NO_AMOUNT = "must be an amount of zero or more with its currency, such as 10 USD or 2.50 CNY"
WRONG = {
    "{rules: [{key: a, amount: -1 USD}]}": f"2:39: {ROW}.amount` {NO_AMOUNT}",
    "{rules: [{key: a, amount: 10}]}": f"2:39: {ROW}.amount` {NO_AMOUNT}",
    "{rules: [{key: a, amount: 10 XYZ}]}": (
        f"2:39: {ROW}.amount` has a wrong currency: `XYZ` is no currency that is known here: "
        "write an ISO 4217 code such as USD or CNY"
    ),
    "{rules: [{key: a, amount: 10000000000 USD}]}": f"2:39: {ROW}.amount` must be at most 1000000000 USD",
    "{rules: [{amount: 1 USD}]}": (
        f"2:22: {ROW}`: a budget is for one of `key`, `user`, `team` or `tag`; this one has none of them"
    ),
    "{rules: [{key: a, user: b, amount: 1 USD}]}": (
        f"2:22: {ROW}`: a budget is for one of `key`, `user`, `team` or `tag`; this one has `key` and `user`"
    ),
    '{rules: [{key: "", amount: 1 USD}]}': f'2:22: {ROW}`: `key` is empty: name one, or write "*" for each one',
    "{rules: [{tag: search, amount: 1 USD}]}": (
        f"2:22: {ROW}`: `tag` must look like feature=search, or feature=* for each value"
    ),
    "{rules: [{key: a}]}": f"2:22: {ROW}` needs the key `amount`",
    "{rules: [{key: a, amount: 1 USD, per: week}]}": f"2:51: {ROW}.per` must be one of day, month, total",
    "{rules: [{kee: a, amount: 1 USD}]}": (
        f"2:23: unknown key `kee` in {ROW}`: did you mean `key`? (known: amount, key, per, tag, team, user)"
    ),
    "{rules: [{key: a, amount: 1 USD}, {key: a, amount: 2 USD}]}": (
        "2:13: `plugins[0].budget`: two rules for the key `a` a month in USD: keep one"
    ),
    "{output: 0}": "2:22: `plugins[0].budget.output` must be at least 1",
    "{unpriced: flag}": "2:24: `plugins[0].budget.unpriced` must be one of refuse, allow",
}


@pytest.mark.parametrize("settings", WRONG)
def test_a_wrong_setting_is_named_with_its_place(settings: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(settings)
    assert f"p.yaml:{WRONG[settings]}" in str(caught.value).splitlines()
