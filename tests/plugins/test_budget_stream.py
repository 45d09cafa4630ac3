"""A running answer stays within what is reserved for it: more is reserved in steps, or else it is stopped."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from plugins.budget import BudgetPlugin
from plugins.budget_rules import Amount, Rule
from router.accounts import Account, AccountsAway, Charge, Hold, Refusal, account
from router.call import Call, Events, Principal
from router.errors import BudgetSpent, ClientGone, StoreUnavailable
from router.events import (
    ChoiceFinished,
    Completed,
    Event,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from router.money import Money
from router.plugin import CallNext, compose
from router.services import Services
from router.state.memory_accounts import MemoryAccounts
from tests.plugins.calls import collect
from tests.plugins.lending import GPT, NOVEMBER, QWEN, Vendor, a_call, cost_of, lend, nothing_spent, standing, text

KEY = Principal("dw-ab12", "search")
INPUT = 8
ACCOUNT = account("key", "dw-ab12", "month", "USD", NOVEMBER)


class Steps(MemoryAccounts):
    """What was asked for, and whether it was given."""

    def __init__(self) -> None:
        super().__init__(nothing_spent, "process-1")
        self.asked: list[tuple[int, bool]] = []
        self.away = False

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        if self.away:
            raise AccountsAway("no route to host")
        refusal = await super().reserve(call_id, holds)
        self.asked.append((holds[0].amount, refusal is None))
        return refusal


def budget(services: Services, limit: int, **settings: Any) -> BudgetPlugin:
    rules = (Rule(Amount(Money(limit, "USD")), key="*"),)
    return BudgetPlugin(BudgetPlugin.Settings(rules=rules, **settings), services)


def letters(count: int) -> tuple[Event, ...]:
    return text(*"x" * count)


async def until_stopped(events: Events) -> tuple[str, BudgetSpent]:
    """The text up to the stop."""
    written = ""
    with pytest.raises(BudgetSpent) as caught:
        async for event in events:
            if isinstance(event, TextDelta):
                written += event.text
    return written, caught.value


async def test_a_long_answer_reserves_step_by_step() -> None:
    services = lend(accounts=(steps := Steps()))
    call = a_call(principal=KEY)
    await collect(compose([budget(services, 10**6, output=100)], Vendor(services, letters(500)))(call))
    first, *more = [amount for amount, given in steps.asked if given]
    assert first == INPUT + 1000
    assert more == [1000] * 5
    assert await standing(services, ACCOUNT) == (cost_of(call), 0) == (INPUT + 5000, 0)


async def test_an_answer_that_spends_what_is_reserved_is_stopped_and_settled_at_its_true_cost() -> None:
    services = lend(accounts=(steps := Steps()))
    vendor = Vendor(services, letters(500))
    call = a_call(principal=KEY)
    limit = INPUT + 10 * 250
    written, error = await until_stopped(compose([budget(services, limit, output=100)], vendor)(call))
    assert vendor.closed == 1
    assert [attempt.outcome for attempt in call.trip.attempts] == ["budget"]
    assert call.trip.interruption is error
    assert (error.status, error.code) == (402, "budget_exceeded")
    assert error.message == (
        "the answer was stopped: the budget of the key `dw-ab12`, 0.000002508 USD a month, is spent; the next month "
        "begins on 2026-12-01 (UTC)"
    )
    # up to the twelve letters that are kept back for what is under way, and one more that came meanwhile
    assert len(written) == 250 - 12
    assert cost_of(call) == INPUT + 10 * (len(written) + 1)
    assert await standing(services, ACCOUNT) == (cost_of(call), 0)
    assert cost_of(call) <= limit
    # 100 and 100, of the third step two quarters; where that is near its end nothing, and at the end nothing
    given = [amount for amount, given in steps.asked if given]
    assert given == [INPUT + 1000, 1000, 250, 250]
    assert [given for _, given in steps.asked[-4:]] == [False] * 4


async def test_money_that_falls_free_meanwhile_lets_the_answer_go_on() -> None:
    services = lend()
    plugin = budget(services, INPUT + 10 * 300, output=100)
    await services.accounts.reserve("other", [Hold(ACCOUNT, 10**6, 10 * 200)])
    seen = 0
    async for event in compose([plugin], Vendor(services, letters(200)))(a_call(principal=KEY)):
        seen += isinstance(event, TextDelta)
        if seen == 80:
            await services.accounts.settle("other", {})
    assert seen == 200


@pytest.mark.parametrize(
    "events",
    [
        [ReasoningDelta(0, 0, "x" * 10)] * 50,
        [RefusalDelta(0, 0, "x" * 10)] * 50,
        [ToolCallStarted(0, 0, "1", "x" * 10), *[ToolCallDelta(0, 0, "x" * 10)] * 50],
        [ToolCallStarted(0, slot, "1", "x" * 10) for slot in range(50)],
    ],
    ids=["reasoning", "refusal", "arguments", "names"],
)
async def test_whatever_a_vendor_writes_counts(events: list[Event]) -> None:
    services = lend()
    vendor = Vendor(services, [Started("id-1", "m", 0), *events, ChoiceFinished(0, "stop"), Completed()])
    call = a_call(principal=KEY)
    await until_stopped(compose([budget(services, INPUT + 1000, output=100)], vendor)(call))
    assert 70 <= sum(attempt.usage.completion_total for attempt in call.trip.attempts if attempt.usage) <= 110


async def test_letters_of_many_bytes_are_not_underrated() -> None:
    services = lend()
    call = a_call(principal=KEY)
    written, _ = await until_stopped(
        compose([budget(services, INPUT + 1000, output=100)], Vendor(services, text(*"河" * 500)))(call)
    )
    assert len(written) == 88


async def test_a_short_answer_is_not_counted_at_all() -> None:
    services = lend()
    await collect(
        compose([budget(services, 10**6, output=1024)], Vendor(services, letters(700)))(a_call(principal=KEY))
    )
    assert services.tokens.asked == ["Hi"]  # type: ignore[attr-defined]


async def test_an_answer_in_one_piece_is_delivered_although_it_is_too_long() -> None:
    """It has been written and will be billed: there is nothing left to save."""
    services = lend()
    call = a_call(principal=KEY)
    vendor = Vendor(services, text("x" * 500))
    assert len(await collect(compose([budget(services, INPUT + 1000, output=100)], vendor)(call))) == 4
    assert await standing(services, ACCOUNT) == (INPUT + 5000, 0)


@pytest.mark.parametrize(
    ("asked", "cap", "reserved"),
    [
        ({}, 100, 100),
        ({"n": 3}, 100, 300),
        ({"max_tokens": 0}, 100, 100),
        ({"max_tokens": -1, "n": 2}, 100, 200),
        # reasoning may come out of what the vendor is told, or beside it
        ({"thinking": 50}, 150, 200),
        ({"thinking": 50, "n": 2}, 150, 400),
        ({"thinking": 50, "thinks": False}, 100, 100),
        ({"thinks": True}, 100, 200),
    ],
)
async def test_an_answer_that_is_not_streamed_is_asked_for_no_longer_than_is_reserved(
    asked: dict[str, int], cap: int, reserved: int
) -> None:
    services = lend(accounts=(steps := Steps()))
    call = a_call(principal=KEY, stream=False, **asked)  # type: ignore[arg-type]
    vendor = Vendor(services, text("x" * (reserved - 1)))
    await collect(compose([budget(services, INPUT + 10 * reserved, output=100)], vendor)(call))
    assert steps.asked == [(INPUT + 10 * reserved, True)]
    (sent,) = vendor.calls
    assert sent.request.sampling == replace(call.request.sampling, max_tokens=cap)
    assert call.trip.headers == {"x-deltaway-max-tokens": str(cap)}
    assert services.tokens.asked == ["Hi"]  # type: ignore[attr-defined]
    assert [tokens for request, _, tokens in call.trip.counted if request is sent.request] == [INPUT]


@pytest.mark.parametrize("asked", [{"stream": True}, {"stream": False, "max_tokens": 7}])
async def test_a_stream_and_a_client_that_says_max_tokens_are_sent_as_they_are(asked: dict[str, Any]) -> None:
    services = lend()
    call = a_call(principal=KEY, **asked)
    vendor = Vendor(services)
    await collect(compose([budget(services, 10**9)], vendor)(call))
    assert vendor.calls[0].request is call.request
    assert call.trip.headers == {}


async def test_an_answer_that_no_budget_pays_for_has_no_cap() -> None:
    services = lend()
    services.pricing.prices[GPT] = (0, 0, "USD")  # type: ignore[attr-defined]
    call = a_call(principal=KEY, stream=False)
    vendor = Vendor(services)
    await collect(compose([budget(services, 0)], vendor)(call))
    assert vendor.calls[0].request is call.request
    assert call.trip.headers == {}


async def test_an_answer_that_has_come_whole_is_delivered_whatever_it_cost() -> None:
    """Its text follows reasoning that was longer than anybody could know: both have been paid for."""
    services = lend()
    call = a_call(principal=KEY, stream=False, max_tokens=10)
    events = [Started("id-1", "m", 0), ReasoningDelta(0, 0, "x" * 500), TextDelta(0, 0, "y" * 5), TextDelta(0, 0, "z")]
    vendor = Vendor(services, [*events, ChoiceFinished(0, "stop"), Completed()], waits=False)
    assert await collect(compose([budget(services, INPUT + 100)], vendor)(call)) == [
        *events,
        ChoiceFinished(0, "stop"),
        Completed(),
    ]
    assert call.trip.attempts[0].outcome == "finished"
    # what was reserved does not bound what is booked
    assert await standing(services, ACCOUNT) == (INPUT + 5060, 0)
    with pytest.raises(BudgetSpent):
        await collect(compose([budget(services, INPUT + 100)], vendor)(a_call(principal=KEY, number=2)))


async def test_an_answer_that_has_come_whole_is_delivered_although_the_tries_before_it_spent_the_budget() -> None:
    services = lend()
    call = a_call(principal=KEY, stream=False, max_tokens=10)
    vendor = Vendor(services, letters(3), failing=2, waits=False)
    await collect(compose([budget(services, INPUT + 100)], vendor)(call))
    assert await standing(services, ACCOUNT) == (3 * INPUT + 80 + 30, 0)


async def test_an_answer_that_is_still_being_written_is_stopped_for_a_client_that_does_not_stream_too() -> None:
    services = lend()
    call = a_call(principal=KEY, stream=False, max_tokens=100)
    vendor = Vendor(services, letters(1000))
    written, _ = await until_stopped(compose([budget(services, INPUT + 1000)], vendor)(call))
    assert len(written) == 100 + 100 // 8 + 16


# -- max_tokens ----------------------------------------------------------------------------------------------------


async def test_an_answer_within_max_tokens_is_not_stopped_for_our_counting_a_little_more() -> None:
    services = lend()
    call = a_call(principal=KEY, max_tokens=100)
    vendor = Vendor(services, letters(100 + 100 // 8))
    await collect(compose([budget(services, INPUT + 1000)], vendor)(call))


async def test_a_vendor_that_ignores_max_tokens_is_stopped_where_the_budget_ends() -> None:
    services = lend()
    call = a_call(principal=KEY, max_tokens=100)
    written, _ = await until_stopped(compose([budget(services, INPUT + 1000)], Vendor(services, letters(1000)))(call))
    assert len(written) == 100 + 100 // 8 + 16


async def test_a_vendor_that_ignores_max_tokens_may_go_on_while_there_is_money() -> None:
    services = lend(accounts=(steps := Steps()))
    call = a_call(principal=KEY, max_tokens=100)
    await collect(compose([budget(services, 10**9, output=200)], Vendor(services, letters(1000)))(call))
    assert steps.asked[:2] == [(INPUT + 1000, True), (2000, True)]
    assert await standing(services, ACCOUNT) == (INPUT + 10_000, 0)


# -- what the layers inside do -------------------------------------------------------------------------------------


async def test_what_earlier_tries_have_cost_is_reserved_when_the_answer_begins() -> None:
    services = lend(accounts=(steps := Steps()))
    call = a_call(principal=KEY)
    lost = INPUT + 10 * 4
    await collect(compose([budget(services, 10**9, output=100)], Vendor(services, letters(3), failing=2))(call))
    assert steps.asked == [(INPUT + 1000, True), (2 * lost, True)]
    assert await standing(services, ACCOUNT) == (2 * lost + INPUT + 30, 0)


async def test_an_answer_does_not_begin_when_earlier_tries_have_spent_the_budget() -> None:
    services = lend()
    call = a_call(principal=KEY)
    vendor = Vendor(services, letters(3), failing=2)
    written, _ = await until_stopped(compose([budget(services, INPUT + 1000, output=100)], vendor)(call))
    assert written == ""
    assert [attempt.outcome for attempt in call.trip.attempts] == ["finished", "finished", "budget"]
    assert await standing(services, ACCOUNT) == (cost_of(call), 0)


async def test_a_cheaper_target_than_the_dearest_goes_further_on_what_is_reserved() -> None:
    services = lend(accounts=(steps := Steps()))
    call = a_call("either", principal=KEY)
    # QWEN is reserved for, GPT answers at half its price
    await collect(compose([budget(services, 10**9, output=100)], Vendor(services, letters(150)))(call))
    assert steps.asked == [(2 * (INPUT + 1000), True)]


async def test_an_answer_that_costs_nothing_is_not_stopped() -> None:
    services = lend()

    async def cache(call: Call) -> Events:
        for event in letters(500):
            yield event

    await collect(compose([budget(services, INPUT + 1000, output=100)], cache)(a_call(principal=KEY)))
    assert await standing(services, ACCOUNT) == (0, 0)


async def test_the_layers_inside_are_closed_the_innermost_first_before_the_cost_is_read() -> None:
    closed: list[str] = []

    class Inner:
        def __init__(self, name: str) -> None:
            self.name = name

        async def stream(self, call: Call, call_next: CallNext) -> Events:
            try:
                async for event in call_next(call):
                    yield event
            finally:
                closed.append(f"{self.name} after {vendor.closed}")

    class Outer(Inner):
        pass

    services = lend()
    vendor = Vendor(services, letters(500))
    call = a_call(principal=KEY)
    plugins = [Outer("outer"), budget(services, INPUT + 1000, output=100), Inner("first"), Inner("second")]
    await until_stopped(compose(plugins, vendor)(call))
    assert closed == ["second after 1", "first after 1", "outer after 1"]
    await call.trip.close()
    assert await standing(services, ACCOUNT) == (cost_of(call), 0)
    assert cost_of(call) > INPUT


async def test_an_inner_layer_that_fails_to_close_does_not_keep_the_cost_from_being_booked() -> None:
    class Faulty:
        async def stream(self, call: Call, call_next: CallNext) -> Events:
            try:
                async for event in call_next(call):
                    yield event
            finally:
                raise LookupError("a fault")

    services = lend()
    call = a_call(principal=KEY)
    events = compose([budget(services, INPUT + 1000, output=100), Faulty()], Vendor(services, letters(500)))(call)
    with pytest.raises(LookupError):
        await collect(events)
    assert await standing(services, ACCOUNT) == (cost_of(call), 0)
    assert cost_of(call) > INPUT


# -- the state away ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_failure", ["open", "closed"])
async def test_an_answer_whose_budget_cannot_be_asked_any_more_goes_on_or_is_stopped(on_failure: str) -> None:
    services = lend(accounts=(steps := Steps()))
    call = a_call(principal=KEY)
    events = compose([budget(services, 10**9, output=100, on_failure=on_failure)], Vendor(services, letters(500)))(call)
    seen, error = 0, None
    try:
        async for event in events:
            seen += isinstance(event, TextDelta)
            steps.away = True
    except StoreUnavailable as caught:
        error = caught
    steps.away = False
    assert seen == (500 if on_failure == "open" else 88)
    assert (error is None) == (on_failure == "open")
    assert call.trip.attempts[0].outcome == ("finished" if on_failure == "open" else "cut")
    assert await standing(services, ACCOUNT) == (cost_of(call), 0)


# -- leaving and cancelling ----------------------------------------------------------------------------------------


class Slow(Steps):
    """Accounts at some distance: what is asked takes effect on the way, whoever still waits for the answer."""

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        await asyncio.sleep(0)
        answer: Refusal | None = await _arrives(super().reserve(call_id, holds))
        return answer

    async def settle(self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = ()) -> None:
        await asyncio.sleep(0)
        await _arrives(super().settle(call_id, charges, late))


async def _arrives(work: Any) -> Any:
    async def arrive() -> Any:
        await asyncio.sleep(0)
        return await work

    result = await asyncio.shield(asyncio.create_task(arrive()))
    await asyncio.sleep(0)
    return result


@pytest.mark.parametrize("state", [Steps, Slow])
@pytest.mark.parametrize("limit", [10**9, INPUT + 10 * 25], ids=["long", "stopped"])
@pytest.mark.parametrize("turns", range(0, 90, 3))
async def test_a_call_is_settled_wherever_it_is_cancelled(state: type[Steps], limit: int, turns: int) -> None:
    services = lend(accounts=(accounts := state()))
    plugin = budget(services, limit, output=16)
    call = a_call(principal=KEY)
    vendor = Vendor(services, letters(40))

    async def served() -> None:
        try:
            await collect(compose([plugin], vendor)(call))
        except asyncio.CancelledError:
            call.trip.interruption = ClientGone("the client left")
            raise
        finally:
            await call.trip.close()

    async with plugin.lifespan():
        task = asyncio.create_task(served())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert vendor.running == 0
    assert await accounts.held_by("process-1") == []
    assert await standing(services, ACCOUNT) == (cost_of(call), 0)
    assert cost_of(call) <= limit


@pytest.mark.parametrize("seen", range(0, 44, 3))
async def test_a_call_is_settled_wherever_the_client_leaves(seen: int) -> None:
    services = lend()
    call = a_call(principal=KEY)
    events = compose([budget(services, 10**9, output=16)], Vendor(services, letters(40)))(call)
    for _ in range(seen):
        await anext(events, None)
    await call.trip.close()
    assert await standing(services, ACCOUNT) == (cost_of(call), 0)
    assert cost_of(call) == (INPUT + 10 * min(max(0, seen - 1), 40) if seen else 0)


async def test_a_call_that_nobody_reads_reserves_nothing() -> None:
    services = lend()
    call = a_call(principal=KEY)
    compose([budget(services, 10**9)], Vendor(services))(call)
    await call.trip.close()
    assert await standing(services, ACCOUNT) == (0, 0)


async def test_answers_in_another_currency_are_stopped_at_the_same_worth() -> None:
    services = lend()
    call = a_call("qwen", principal=KEY)
    vendor = Vendor(services, letters(500), target=QWEN)
    written, _ = await until_stopped(compose([budget(services, 2 * INPUT + 2000, output=50)], vendor)(call))
    spent, reserved = await standing(services, ACCOUNT)
    assert (spent, reserved) == (2 * INPUT + 20 * (len(written) + 1), 0)
    assert spent <= 2 * INPUT + 2000
