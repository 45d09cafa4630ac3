"""What a call costs is booked on budgets of which it holds nothing: set while it ran, or when nobody could be asked.

An account that was opened before the call's end has not seen its cost; of one that is opened later the ledger tells.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from plugins.budget import BudgetPlugin
from plugins.budget_rules import Amount, Rule
from router.access import Budget, Owner, Period
from router.accounts import Account, AccountsAway, Charge, Hold, Refusal, account
from router.call import Call, Events, Principal
from router.errors import AuthenticationFailed, BudgetSpent
from router.money import Money
from router.plugin import CallNext, compose
from router.services import Services
from router.state.memory_accounts import MemoryAccounts
from tests.plugins.calls import collect
from tests.plugins.lending import NOVEMBER, Owners, Vendor, a_call, cost_of, lend, standing, text

KEY = Principal("dw-ab12", "search")
COST = 8 + 10 * 11
"""What a call costs that asks `Hi` and is answered `hello world`."""
MUCH = 10**9


class Bank(MemoryAccounts):
    """Counts what it is told, and may be away."""

    def __init__(self) -> None:
        super().__init__(self.told, "process-1")
        self.calls: list[Call] = []
        """What the ledger knows."""
        self.away = False
        self.tries = 0
        self.late: list[Charge] = []

    async def told(self, asked_for: Account) -> int:
        return sum(map(cost_of, self.calls))

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        if self.away:
            raise AccountsAway("no route to host")
        return await super().reserve(call_id, holds)

    async def settle(self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()) -> None:
        self.tries += 1
        self.late += late
        if self.away:
            raise AccountsAway("no route to host")
        await super().settle(call_id, charges, late)


def money(nano: int, per: Period = "month", currency: str = "USD") -> Budget:
    return Budget(Money(nano, currency), per)


def of(kind: Any, subject: str, per: Period = "month", currency: str = "USD") -> Account:
    return account(kind, subject, per, currency, NOVEMBER)


def owners(services: Services) -> Owners:
    assert isinstance(services.keys, Owners)
    return services.keys


def budget(services: Services, *rules: Rule, **settings: Any) -> BudgetPlugin:
    return BudgetPlugin(BudgetPlugin.Settings(rules=rules, **settings), services)


async def finish(call: Call, events: Events) -> None:
    """To the end, and closed as the core does."""
    await collect(events)
    await call.trip.close()


async def test_a_budget_that_a_key_is_given_while_calls_run_learns_what_they_cost() -> None:
    services = lend()
    plugin = budget(services)
    layers = compose([plugin], Vendor(services))
    had = Principal("dw-ab12", budgets=(money(MUCH),))
    running = [a_call(principal=had, number=number) for number in range(5)]
    streams = [layers(call) for call in running]
    for events in streams:
        await anext(events)
    has = owners(services).present = Principal("dw-ab12", budgets=(money(3 * COST, "total"),))
    another = a_call(principal=has, number=5, max_tokens=11)
    await finish(another, layers(another))
    for call, events in zip(running, streams, strict=True):
        await finish(call, events)
    assert await standing(services, of("key", "dw-ab12", "total")) == (6 * COST, 0)
    # and the one that they began with is settled as ever
    assert await standing(services, of("key", "dw-ab12")) == (5 * COST, 0)
    with pytest.raises(BudgetSpent):
        await collect(layers(a_call(principal=has, number=6, max_tokens=1)))


@pytest.mark.parametrize("kind", ["user", "team"])
async def test_a_budget_that_an_owner_is_given_learns_what_calls_cost_that_had_none(kind: Any) -> None:
    services = lend()
    layers = compose([budget(services)], Vendor(services))
    principal = Principal("dw-ab12", user="ada", team="ada")
    running = [a_call(principal=principal, number=number) for number in range(20)]
    streams = [layers(call) for call in running]
    for events in streams:
        await anext(events)
    owners(services).put(Owner(kind, "ada", budgets=(money(3 * COST),)))
    another = a_call(principal=principal, number=20, max_tokens=11)
    await finish(another, layers(another))
    for call, events in zip(running, streams, strict=True):
        await finish(call, events)
    assert await standing(services, of(kind, "ada")) == (21 * COST, 0)
    with pytest.raises(BudgetSpent):
        await collect(layers(a_call(principal=principal, number=21, max_tokens=1)))


async def test_a_user_whom_the_client_names_may_be_given_one_too() -> None:
    services = lend()
    call = a_call(user="ada")
    events = compose([budget(services)], Vendor(services))(call)
    await anext(events)
    owners(services).put(Owner("user", "ada", budgets=(money(MUCH),)))
    await services.accounts.standings([of("user", "ada")])
    await finish(call, events)
    assert await standing(services, of("user", "ada")) == (COST, 0)


async def test_what_the_ledger_told_at_an_accounts_opening_is_not_counted_again() -> None:
    services = lend(accounts=(bank := Bank()))
    call = a_call(principal=KEY)
    await finish(call, compose([budget(services)], Vendor(services))(call))
    bank.calls.append(call)
    assert await standing(services, of("key", "dw-ab12")) == (COST, 0)


async def test_of_several_tries_those_before_an_accounts_opening_are_not_counted_again() -> None:
    services, gate = lend(accounts=(bank := Bank())), asyncio.Event()
    call = a_call(principal=KEY)
    bank.calls.append(call)
    vendor = Vendor(services, failing=2, gate=gate)
    task = asyncio.create_task(finish(call, compose([budget(services)], vendor)(call)))
    while not vendor.running:
        await asyncio.sleep(0.002)
    # some milliseconds, in which such times are told apart
    await asyncio.sleep(0.01)
    lost = 2 * (8 + 10 * 4)
    owners(services).present = Principal("dw-ab12", budgets=(money(MUCH),))
    assert await standing(services, of("key", "dw-ab12")) == (lost, 0)
    gate.set()
    await task
    assert await standing(services, of("key", "dw-ab12")) == (lost + COST, 0)


async def test_it_is_booked_in_the_currency_of_the_budget_and_only_where_there_is_a_rate() -> None:
    services = lend()
    call = a_call(principal=KEY)
    events = compose([budget(services)], Vendor(services))(call)
    await anext(events)
    present = Principal("dw-ab12", budgets=(money(MUCH, currency="CNY"), money(MUCH, currency="EUR")))
    owners(services).present = present
    both = [of("key", "dw-ab12", currency=currency) for currency in ("CNY", "EUR")]
    await services.accounts.standings(both)
    await finish(call, events)
    assert [await standing(services, each) for each in both] == [(7 * COST, 0), (0, 0)]


async def test_what_is_held_is_not_charged_twice_when_the_budget_is_changed() -> None:
    services = lend(accounts=(bank := Bank()))
    had = Principal("dw-ab12", budgets=(money(MUCH),))
    call = a_call(principal=had)
    events = compose([budget(services)], Vendor(services))(call)
    await anext(events)
    owners(services).present = Principal("dw-ab12", budgets=(money(MUCH // 2),))
    await finish(call, events)
    assert bank.late == []
    assert await standing(services, of("key", "dw-ab12")) == (COST, 0)


@pytest.mark.parametrize(
    "present",
    [None, Principal("dw-other", budgets=(money(MUCH, "day"),)), AuthenticationFailed("this API key was revoked")],
    ids=["not-of-the-store", "another", "revoked"],
)
async def test_a_key_that_is_not_known_any_more_has_the_budgets_that_it_had(present: Any) -> None:
    services = lend(accounts=(bank := Bank()))
    had = Principal("dw-ab12", budgets=(money(MUCH),))
    call = a_call(principal=had)
    events = compose([budget(services)], Vendor(services))(call)
    await anext(events)
    owners(services).present = present
    await finish(call, events)
    assert bank.late == []
    assert await standing(services, of("key", "dw-ab12")) == (COST, 0)


async def test_owners_that_cannot_be_read_do_not_keep_a_cost_from_being_booked() -> None:
    services = lend()
    call = a_call(principal=Principal("dw-ab12", user="ada", budgets=(money(MUCH),)))
    events = compose([budget(services)], Vendor(services))(call)
    await anext(events)
    owners(services).away = True
    await finish(call, events)
    assert await standing(services, of("key", "dw-ab12")) == (COST, 0)


async def test_a_call_without_a_budget_asks_nobody_at_its_end() -> None:
    services = lend(accounts=(bank := Bank()))
    for call in (a_call(principal=KEY, user="ada"), a_call()):
        await finish(call, compose([budget(services)], Vendor(services))(call))
    assert bank.tries == 0


async def test_the_layers_inside_have_closed_when_it_is_booked() -> None:
    order: list[str] = []

    class Inner:
        async def stream(self, call: Call, call_next: CallNext) -> Events:
            try:
                async for event in call_next(call):
                    yield event
            finally:
                order.append("inner")

    class Late(Bank):
        async def settle(self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()) -> None:
            order.append("booked")
            await super().settle(call_id, charges, late)

    services = lend(accounts=Late())
    call = a_call(user="ada")
    events = compose([budget(services), Inner()], Vendor(services, text(*"x" * 50)))(call)
    await anext(events)
    await anext(events)
    owners(services).put(Owner("user", "ada", budgets=(money(MUCH),)))
    await services.accounts.standings([of("user", "ada")])
    # the client leaves
    await call.trip.close()
    assert order == ["inner", "booked"]
    assert cost_of(call) > 0
    assert await standing(services, of("user", "ada")) == (cost_of(call), 0)


# -- nobody to ask -------------------------------------------------------------------------------------------------


def a_rule(nano: int = MUCH) -> Rule:
    return Rule(Amount(Money(nano, "USD")), key="*")


async def test_what_passes_while_budgets_cannot_be_asked_is_booked_when_it_ends() -> None:
    services = lend(accounts=(bank := Bank()))
    layers = compose([budget(services, a_rule(8 * COST), on_failure="open")], Vendor(services))
    first = a_call(principal=KEY, max_tokens=11)
    await finish(first, layers(first))
    for number in range(2, 10):
        call = a_call(principal=KEY, number=number, max_tokens=11)
        events = layers(call)
        bank.away = True
        await anext(events)
        bank.away = False
        await finish(call, events)
    assert await standing(services, of("key", "dw-ab12")) == (9 * COST, 0)
    with pytest.raises(BudgetSpent):
        await collect(layers(a_call(principal=KEY, number=10, max_tokens=1)))


async def test_it_is_tried_again_where_they_cannot_be_told_at_its_end_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.budget._RETRIES", (0.01,) * 50)
    services = lend(accounts=(bank := Bank()))
    await services.accounts.standings([of("key", "dw-ab12")])
    plugin = budget(services, a_rule(), on_failure="open")
    async with plugin.lifespan():
        bank.away = True
        call = a_call(principal=KEY)
        await finish(call, compose([plugin], Vendor(services))(call))
        while bank.tries < 4:
            await asyncio.sleep(0.01)
        bank.away = False
        while (await standing(services, of("key", "dw-ab12")))[0] == 0:
            await asyncio.sleep(0.01)
    assert await standing(services, of("key", "dw-ab12")) == (COST, 0)


async def test_what_could_not_be_booked_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.budget._RETRIES", (0.001,))
    services = lend(accounts=(bank := Bank()))
    plugin = budget(services, a_rule(), on_failure="open")
    bank.away = True
    call = a_call(principal=KEY)
    with capture_logs() as logs:
        async with plugin.lifespan():
            await finish(call, compose([plugin], Vendor(services))(call))
    assert logs[-1]["event"] == "a call's cost could not be booked: its budget does not know of it until the next start"
    assert logs[-1]["request_id"] == "req_1"


async def test_what_only_began_without_an_answer_is_charged_once_whether_or_not_it_was_reserved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("plugins.budget.PATIENCE", 0.01)

    class Mute(Bank):
        async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
            await super().reserve(call_id, holds)
            await asyncio.Event().wait()
            return None

    services = lend(accounts=Mute())
    plugin = budget(services, a_rule(), on_failure="open")
    async with plugin.lifespan():
        call = a_call(principal=KEY, max_tokens=11)
        await finish(call, compose([plugin], Vendor(services))(call))
    assert await standing(services, of("key", "dw-ab12")) == (COST, 0)
