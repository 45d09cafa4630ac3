import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from router.accounts import Account, Accounts, AccountsAway, Hold, Standing, account
from router.call import Attempt, Call, Credentials, Principal, Terms, Trip, new_trip
from router.errors import RouterError, VendorFailed
from router.events import Completed, Event, TextDelta, Usage
from router.experiment import HOLDOUT, SHADOW, Arm, Assigned, Experiment, Shadow
from router.experiments.shadows import OUTPUT, Shadows
from router.messages import ChatRequest, Sampling, User
from router.money import NANO, Money
from router.pricing import Cost
from router.provider import Target
from router.running import Running
from router.state.memory_accounts import MemoryAccounts
from support.dispatching import Free, Told

MAX = Target("qwen", "qwen-max")
UNIT = "0" * 32
CONTROL = Assigned("trial", "control", UNIT, "user")


def an_experiment(share: float = 100, budget: str = "1 USD", parallel: int = 4) -> Experiment:
    return Experiment(
        name="trial",
        route="chat",
        arms=(Arm("control", 100),),
        control="control",
        salt="trial",
        shadow=Shadow(MAX, share, Money.parse(budget), parallel),
    )


class Priced(Free):
    """A token is a thousandth of a unit, whichever it is."""

    currency = "USD"

    def ceiling(self, target: Target, input_tokens: int, output_tokens: int, at: int, **_: Any) -> Cost | None:
        assert target == MAX
        return Cost((input_tokens + output_tokens) * NANO // 1000, self.currency, "a price")

    def convert(self, nano: int, currency: str, to: str, at: int) -> int | None:
        return nano if currency == to else None


class Unpriced(Priced):
    def ceiling(self, *_: Any, **__: Any) -> Cost | None:
        return None


def a_call(number: int = 1, pricing: Free | None = None, assigned: Assigned | None = CONTROL, **fields: Any) -> Call:
    trip = new_trip()
    trip.terms = Terms("g1", pricing or Priced(), lambda name: name == "chat", True)
    trip.assigned = assigned
    request = ChatRequest(
        model="chat", messages=(User("Hi"),), protocol="openai", sampling=Sampling(max_tokens=100), **fields
    )
    return Call(
        id=f"req_{number}",
        request=request,
        dialect="openai.chat",
        trip=trip,
        credentials=Credentials("secret"),
        principal=Principal("dw-ab12cd34"),
        user="ann",
        tags={"team": "a"},
    )


class Vendor:
    """A dispatch that knows one target: it plays events, each at a cost, then fails or stalls if it is told to."""

    def __init__(
        self,
        events: Sequence[Event] = (TextDelta(0, 0, "Hi"), Completed()),
        error: Exception | None = None,
        *,
        stalls: bool = False,
        costs: int | None = NANO // 10,
    ) -> None:
        self.events = events
        self.error = error
        self.stalls = stalls
        self.costs = costs
        self.calls: list[Call] = []
        self.began = asyncio.Event()
        self.running = self.most = self.closed = 0

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        self.calls.append(call)
        self.running += 1
        self.most = max(self.most, self.running)
        attempt = Attempt(n=1, target=MAX, started=0.0, created_at=call.trip.created_at)
        call.trip.attempts = [attempt]
        try:
            self.began.set()
            for event in self.events:
                yield event
            if self.stalls:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
        finally:
            self.running -= 1
            self.closed += 1
            attempt.usage = Usage(output=1)
            attempt.cost = None if self.costs is None else Cost(self.costs, "USD", "a price")


class Closing(Told):
    def __init__(self) -> None:
        super().__init__()
        self.closed: list[tuple[Call, BaseException | None]] = []

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> None:
        self.closed.append((call, error))

    async def flushed(self) -> None:
        return None


class Away:
    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> None:
        raise AccountsAway("gone")

    async def settle(self, *_: Any) -> None:
        return None


async def nothing(_: Account) -> int:
    return 0


class Bench:
    """Shadows with a vendor, and all that they touch."""

    def __init__(self, vendor: Vendor, *, accounts: Any = None, most_running: int = 10) -> None:
        self.vendor = vendor
        self.books = Closing()
        self.running = Running()
        self.accounts: Accounts = accounts or MemoryAccounts(nothing, "jrn_1")
        self.shadows = Shadows(self.accounts, self.books, None, self.running, most_running=most_running)
        self.in_flight = 0

    @contextmanager
    def tracked(self) -> Any:
        self.in_flight += 1
        yield
        self.in_flight -= 1

    def offer(
        self, experiment: Experiment | None = None, crowded: Callable[[str], bool] = lambda provider: False
    ) -> Callable[[Call], None]:
        offer = self.shadows.offering(
            [experiment or an_experiment()], self.vendor.stream, tracked=self.tracked, crowded=crowded
        )
        assert offer is not None
        return offer

    @property
    def tally(self) -> tuple[int, int, dict[str, int]]:
        tally = self.shadows.tallies["trial"]
        return tally.offered, tally.made, {str(why): count for why, count in tally.left_out.items()}

    async def standing(self, currency: str = "USD") -> Standing:
        (found,) = await self.accounts.standings([account("experiment", "trial", "total", currency, 0)])
        return found


# -- which calls -----------------------------------------------------------------------------------------------------


def test_a_configuration_without_a_shadow_has_nothing_to_tell() -> None:
    bench = Bench(Vendor())
    without = replace(an_experiment(), shadow=None)
    assert (
        bench.shadows.offering([without], bench.vendor.stream, tracked=bench.tracked, crowded=lambda _: False) is None
    )


async def test_a_shadow_is_the_clients_question_to_another_target_in_nobodys_name() -> None:
    bench, call = Bench(Vendor()), a_call(extra={"store": True, "own": 1})
    bench.offer()(call)
    await bench.shadows.settled()
    (made,) = bench.vendor.calls
    assert made.id != call.id
    assert made.request == replace(call.request, model="qwen/qwen-max", stream=True, extra={"own": 1})
    assert (made.principal, made.user, made.tags, made.credentials.secret) == (None, None, {}, None)
    trip = made.trip
    assert trip.assigned == Assigned("trial", SHADOW, UNIT, "user", shadow_of=call.id)
    assert trip.terms is call.trip.terms
    assert trip is not call.trip
    assert bench.books.closed == [(made, None)]
    assert bench.tally == (1, 1, {})
    assert bench.shadows.tallies["trial"].outcomes == {"finished": 1}
    assert bench.in_flight == 0


@pytest.mark.parametrize(
    "assigned",
    [
        None,
        replace(CONTROL, experiment="other"),
        replace(CONTROL, arm=HOLDOUT),
        replace(CONTROL, arm=SHADOW, shadow_of="req_0"),
        replace(CONTROL, forced=True),
    ],
    ids=["in none", "of another", "held out", "a shadow", "forced"],
)
async def test_only_calls_that_are_in_an_arm_are_repeated(assigned: Assigned | None) -> None:
    bench = Bench(Vendor())
    bench.offer()(a_call(assigned=assigned))
    await bench.shadows.settled()
    assert bench.vendor.calls == []
    assert bench.shadows.tallies == {}


async def test_the_lot_falls_on_the_share() -> None:
    bench = Bench(Vendor())
    offer = bench.offer(an_experiment(10, "1000000 USD", 1000))
    for number in range(1000):
        offer(a_call(number))
    await bench.shadows.settled()
    # four standard deviations
    assert 62 <= bench.tally[0] <= 138
    assert bench.tally[1] == bench.tally[0]


async def test_a_call_without_a_bound_gets_one() -> None:
    bench = Bench(Vendor())
    call = a_call()
    bench.offer(an_experiment(budget="100 USD"))(call.with_request(replace(call.request, sampling=Sampling())))
    await bench.shadows.settled()
    assert bench.vendor.calls[0].request.sampling == Sampling(max_tokens=OUTPUT)


# -- the client is not slowed -----------------------------------------------------------------------------------------


async def test_offering_waits_for_nothing_and_a_vendor_that_stalls_holds_up_nobody() -> None:
    bench = Bench(Vendor(stalls=True))
    offer = bench.offer(an_experiment(parallel=1))
    offer(a_call(1))
    # nothing has run yet: what an offer does is done at once
    assert bench.vendor.calls == []
    await bench.vendor.began.wait()
    offer(a_call(2))
    assert bench.tally == (2, 1, {"parallel": 1})
    await bench.shadows.close()
    assert bench.vendor.closed == 1


@pytest.mark.parametrize("error", [VendorFailed("down"), RuntimeError("a fault")], ids=["vendor", "fault"])
async def test_a_failure_is_recorded_and_goes_nowhere(error: Exception) -> None:
    bench = Bench(Vendor((), error))
    bench.offer()(a_call())
    await bench.shadows.settled()
    ((_, ended),) = bench.books.closed
    assert isinstance(ended, RouterError)
    assert bench.shadows.tallies["trial"].outcomes == {"failed": 1}
    assert bench.in_flight == 0


async def test_an_offer_never_raises() -> None:
    bench = Bench(Vendor())

    def broken(provider: str) -> bool:
        raise RuntimeError("a fault")

    bench.offer(crowded=broken)(a_call())
    assert bench.vendor.calls == []
    assert bench.in_flight == 0


async def test_a_flood_is_stopped_and_nothing_of_it_kept() -> None:
    bench = Bench(Vendor([TextDelta(0, 0, "x" * 1000)] * 1000))
    bench.offer()(a_call())
    await bench.shadows.settled()
    assert bench.shadows.tallies["trial"].outcomes == {"stopped": 1}
    ((_, ended),) = bench.books.closed
    assert isinstance(ended, GeneratorExit)
    assert bench.vendor.closed == 1


async def test_never_more_at_once_than_parallel_says() -> None:
    bench = Bench(Vendor(stalls=True))
    offer = bench.offer(an_experiment(parallel=3))
    for number in range(10):
        offer(a_call(number))
    await bench.vendor.began.wait()
    assert bench.tally[2] == {"parallel": 7}
    await bench.shadows.close()
    assert bench.vendor.most <= 3


async def test_places_fall_free() -> None:
    bench = Bench(Vendor())
    offer = bench.offer(an_experiment(parallel=1))
    for number in range(3):
        offer(a_call(number))
        await bench.shadows.settled()
    assert bench.tally == (3, 3, {})


@pytest.mark.parametrize("why", ["load", "stopping", "provider", "region", "audio"])
async def test_what_hinders_a_shadow_is_counted(why: str) -> None:
    bench, call = Bench(Vendor(), most_running=0), a_call()
    crowded = why == "provider"
    bench.running.draining = why == "stopping"
    if why == "region":
        call = replace(call, regions=("eu",))
    if why == "audio":
        call = call.with_request(replace(call.request, extra={"modalities": ["text", "audio"]}))
    if why == "load":
        with bench.running.tracked(Trip(0.0, 0)):
            bench.offer()(call)
    else:
        bench.offer(crowded=lambda provider: crowded)(call)
    await bench.shadows.settled()
    assert bench.tally == (1, 0, {why: 1})
    assert bench.vendor.calls == []


# -- the budget --------------------------------------------------------------------------------------------------------


async def test_what_it_may_cost_is_reserved_and_what_it_has_cost_is_booked() -> None:
    bench = Bench(Vendor(stalls=True))
    bench.offer()(a_call())
    await bench.vendor.began.wait()
    standing = await bench.standing()
    assert standing.spent == 0
    # 100 tokens of an answer, and more for the prompt than the few that it has
    assert 164 * NANO // 1000 <= standing.reserved <= 200 * NANO // 1000
    await bench.shadows.close()
    assert await bench.standing() == Standing(standing.account, NANO // 10, 0)


async def test_the_budget_is_never_passed_however_many_are_offered() -> None:
    bench = Bench(Vendor())
    offer = bench.offer(an_experiment(budget="0.9 USD", parallel=1000))
    for number in range(100):
        offer(a_call(number))
    await bench.shadows.settled()
    standing = await bench.standing()
    assert 0 < standing.spent <= 900_000_000
    assert standing.reserved == 0
    offered, made, left_out = bench.tally
    assert (offered, left_out) == (100, {"budget": 100 - made})
    assert standing.spent == made * NANO // 10


async def test_what_was_spent_before_a_restart_counts() -> None:
    async def told(asked: Account) -> int:
        assert (asked.kind, asked.subject, asked.per) == ("experiment", "trial", "total")
        return 950_000_000

    bench = Bench(Vendor(), accounts=MemoryAccounts(told, "jrn_2"))
    bench.offer()(a_call())
    await bench.shadows.settled()
    assert bench.tally == (1, 0, {"budget": 1})


@pytest.mark.parametrize(
    ("pricing", "budget", "why"), [(Unpriced(), "1 USD", "price"), (Priced(), "1 CNY", "rate")], ids=["price", "rate"]
)
async def test_at_an_unknown_price_none_is_made(pricing: Free, budget: str, why: str) -> None:
    bench = Bench(Vendor())
    bench.offer(an_experiment(budget=budget))(a_call(pricing=pricing))
    await bench.shadows.settled()
    assert bench.tally == (1, 0, {why: 1})


async def test_while_the_budget_cannot_be_asked_none_is_made() -> None:
    bench = Bench(Vendor(), accounts=Away())
    bench.offer()(a_call())
    await bench.shadows.settled()
    assert bench.tally == (1, 0, {"accounts": 1})
    assert bench.books.closed == []


async def test_what_was_used_at_a_price_that_is_not_known_is_not_free() -> None:
    bench = Bench(Vendor(costs=None))
    bench.offer()(a_call())
    await bench.shadows.settled()
    assert (await bench.standing()).spent >= 164 * NANO // 1000


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_at_shutdown_what_is_under_way_is_stopped_settled_and_recorded() -> None:
    bench = Bench(Vendor(stalls=True))
    offer = bench.offer()
    offer(a_call(1))
    await bench.vendor.began.wait()
    offer(a_call(2))
    await bench.shadows.close()
    ((_, ended), *_others) = bench.books.closed
    assert isinstance(ended, GeneratorExit)
    assert (await bench.standing()).reserved == 0
    assert bench.in_flight == 0
    offer(a_call(3))
    assert bench.tally[2] == {"stopping": 1}
