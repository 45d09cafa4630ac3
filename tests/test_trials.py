"""One call's way through its candidates: who is tried, in which order, and what the client is told in the end."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from router.adapters import Adapter, Keyed
from router.attempts import Opened, Refused
from router.call import Attempt, Call, Role
from router.catalog import Way
from router.errors import (
    ContentFiltered,
    ContextTooLong,
    InvalidRequest,
    RateLimited,
    Rejected,
    RouterError,
    VendorAuthFailed,
    VendorFailed,
    VendorOverloaded,
)
from router.messages import ChatRequest
from router.provider import Target
from router.quantities import Duration, Timeout
from router.route import Can, FallbackClass, HealthRules, Hedge, Retry, Timeouts
from router.routing.candidates import Candidate
from router.routing.health_book import HealthBook
from router.routing.retrying import RetryBudget
from router.trials import Budgets, Trials
from support.dispatching import a_call


def a_candidate(name: str, context: int | None = None, total: float = 600) -> Candidate:
    return Candidate(Target(name, "m"), Timeouts(total=total), can=Can(context=context))


class Vendors:
    """Attempts that are played: by target, what each does in turn; an error, or how long it takes to begin."""

    def __init__(self, health: HealthBook, keys: int = 1, **scripts: Sequence[RouterError | float]) -> None:
        self.scripts = {name: list(script) for name, script in scripts.items()}
        self.tried: list[tuple[str, Role]] = []
        self.keys: list[str] = []
        self.closed: list[str] = []
        self.cancelled: list[str] = []
        self._health = health
        places = [f"{n} of {keys}" if keys > 1 else "" for n in range(1, keys + 1)]
        provider: Any = None
        self._adapter = Adapter("a", [Keyed(provider, f"key{n}", place) for n, place in enumerate(places)], provider)
        self._last = time.monotonic()

    def adapter(self, candidate: Candidate) -> Adapter:
        return self._adapter

    async def open(
        self,
        call: Call,
        candidate: Candidate,
        keyed: Keyed,
        asked: ChatRequest,
        role: Role,
        why: str,
        *,
        seam: int | None = None,
    ) -> Opened:
        name = candidate.target.provider
        self.tried.append((name, role))
        self.keys.append(keyed.id)
        attempt = Attempt(n=len(self.tried), target=candidate.target, started=0.0, created_at=0, role=role, why=why)
        call.trip.attempts.append(attempt)
        step = self.scripts[name].pop(0)
        if isinstance(step, RouterError):
            if isinstance(step, VendorAuthFailed):
                self._health.rest_key("a", keyed.id, "invalid")
            raise step
        try:
            await asyncio.sleep(step)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        opened: Any = type("Begun", (), {"attempt": attempt, "candidate": candidate, "deadline": self, "name": name})
        return opened  # type: ignore[no-any-return]

    def adopt(self) -> None:
        return None

    async def close(self, call: Call, opened: Any, failure: BaseException | None) -> None:
        self.closed.append(opened.name)


def a_way(candidates: Sequence[Candidate], retry: Retry | None = None, **fields: Any) -> Way:
    return Way("chat", tuple(candidates), True, retry=retry or Retry(backoff=Duration(0)), **fields)


async def begun(
    candidates: Sequence[Candidate],
    way: Way | None = None,
    keys: int = 1,
    reserve: float = 100,
    hindered: dict[str, str] | None = None,
    **scripts: Sequence[RouterError | float],
) -> tuple[Vendors, Any, Trials]:
    """The vendors, who answered or the error that was raised, and the trials."""
    health = HealthBook(HealthRules(), time.monotonic, random.Random(1))
    vendors: Any = Vendors(health, keys, **scripts)
    way = way or a_way(candidates)
    budgets = Budgets(RetryBudget(0, reserve), None if way.hedge is None else RetryBudget(way.hedge.share, 0, 1))
    call, places = a_call(), Anywhere(way, **(hindered or {}))
    trials = Trials(call, way, candidates, call.request, places, vendors, budgets, health, random.Random(1))
    try:
        opened: Any = await trials.begin()
        outcome: Any = opened.attempt.target.provider
    except RouterError as error:
        outcome = error
    await trials.close()
    return vendors, outcome, trials


class Anywhere:
    """No target rests or is full, but for those that are said to."""

    def __init__(self, way: Way, **hindered: str) -> None:
        self._way = way
        self.hindered = hindered

    def fallback(self, call: Call, way: Way, kind: FallbackClass) -> Sequence[Candidate]:
        return self._way.fallback.get(kind, ())

    def hindrance(self, candidate: Candidate) -> str | None:
        return self.hindered.get(candidate.target.provider)


def asking(way: Way) -> tuple[Call, Way, Sequence[Candidate], ChatRequest, Anywhere]:
    call = a_call()
    return call, way, way.candidates, call.request, Anywhere(way)


A, B, C = a_candidate("a"), a_candidate("b"), a_candidate("c")


async def test_the_first_that_begins_answers_and_nobody_else_is_asked() -> None:
    vendors, who, _ = await begun([A, B], a=[0.0], b=[0.0])
    assert (who, vendors.tried) == ("a", [("a", "first")])


async def test_an_ill_target_gives_way_to_the_next_before_it_is_tried_again() -> None:
    vendors, who, _ = await begun([A, B], a=[VendorFailed("x"), 0.0], b=[VendorOverloaded("y")])
    assert who == "a"
    assert vendors.tried == [("a", "first"), ("b", "fallback"), ("a", "retry")]


async def test_no_more_attempts_are_made_than_the_route_allows() -> None:
    way = a_way([A], Retry(attempts=2, backoff=Duration(0)))
    vendors, error, _ = await begun([A], way, a=[VendorFailed("1"), VendorFailed("2"), 0.0])
    assert isinstance(error, VendorFailed)
    assert len(vendors.tried) == 2


async def test_a_wrong_request_is_tried_once() -> None:
    vendors, error, _ = await begun([A, B], a=[Rejected("no such field")], b=[0.0])
    assert isinstance(error, Rejected)
    assert vendors.tried == [("a", "first")]


async def test_a_refused_key_gives_way_to_another_and_counts_as_no_attempt() -> None:
    way = a_way([A], Retry(attempts=1))
    vendors, who, _ = await begun([A], way, keys=2, a=[VendorAuthFailed("x"), 0.0])
    assert who == "a"
    assert vendors.tried == [("a", "first"), ("a", "retry")]


async def test_when_all_keys_are_refused_the_next_target_answers() -> None:
    vendors, who, _ = await begun([A, B], keys=2, a=[VendorAuthFailed("1"), VendorAuthFailed("2")], b=[0.0])
    assert who == "b"
    assert vendors.tried == [("a", "first"), ("a", "retry"), ("b", "fallback")]


async def test_the_client_is_told_what_may_pass_rather_than_what_may_not() -> None:
    _, error, _ = await begun([A, B], a=[VendorFailed("busy")] * 3, b=[VendorAuthFailed("our key")])
    assert isinstance(error, VendorFailed)


async def test_a_vendor_that_asks_for_too_long_a_wait_is_not_waited_for() -> None:
    way = a_way([A], Retry(attempts=5, max_wait=Duration(1)))
    vendors, error, _ = await begun([A], way, a=[VendorFailed("x", retry_after=60)])
    assert error.retry_after == 60
    assert len(vendors.tried) == 1


async def test_no_wait_goes_beyond_the_total_deadline() -> None:
    short = a_candidate("a", total=0.2)
    way = a_way([short], Retry(attempts=5, backoff=Duration(0)))
    vendors, error, _ = await begun([short], way, a=[VendorFailed("x", retry_after=0.5)])
    assert isinstance(error, VendorFailed)
    assert len(vendors.tried) == 1


async def test_a_spent_budget_of_retries_ends_the_trials_and_says_so() -> None:
    vendors, error, trials = await begun([A, B], reserve=0, a=[VendorFailed("x")], b=[0.0])
    assert isinstance(error, VendorFailed)
    assert len(vendors.tried) == 1
    assert "budget of retries" in trials._call.trip.choice


async def test_a_prompt_that_is_too_long_goes_to_the_targets_for_that() -> None:
    long = a_candidate("long")
    way = a_way([A, B], fallback={"context_length": (long,)})
    vendors, who, _ = await begun([A, B], way, reserve=0, a=[ContextTooLong("x")], long=[0.0])
    assert who == "long"
    assert vendors.tried == [("a", "first"), ("long", "fallback")]


async def test_without_such_targets_the_larger_contexts_of_the_route_are_tried() -> None:
    small, same, large = a_candidate("a", 8_000), a_candidate("b", 8_000), a_candidate("c", 64_000)
    vendors, who, _ = await begun([small, same, large], a=[ContextTooLong("x")], c=[0.0])
    assert who == "c"
    assert len(vendors.tried) == 2


async def test_a_filtered_prompt_goes_nowhere_else_unless_it_is_written() -> None:
    _, error, _ = await begun([A, B], a=[ContentFiltered("x")], b=[0.0])
    assert isinstance(error, ContentFiltered)
    _, who, _ = await begun([A], a_way([A], fallback={"content_filter": (C,)}), a=[ContentFiltered("x")], c=[0.0])
    assert who == "c"


async def test_what_an_adapter_cannot_say_another_may() -> None:
    _, who, _ = await begun([A, B], a=[InvalidRequest("no tools there")], b=[0.0])
    assert who == "b"


async def test_a_fallback_that_fails_in_the_same_way_does_not_go_round_in_circles() -> None:
    way = a_way([A, B], Retry(attempts=10), fallback={"context_length": (B, C)})
    vendors, error, _ = await begun(
        [A, B], way, a=[ContextTooLong("1")], b=[ContextTooLong("2")], c=[ContextTooLong("3")]
    )
    assert isinstance(error, ContextTooLong)
    assert [name for name, _ in vendors.tried] == ["a", "b", "c"]


HEDGE = Hedge(Timeout(0.05))


async def test_a_quick_target_is_not_hedged() -> None:
    vendors, who, _ = await begun([A, B], a_way([A, B], hedge=HEDGE), a=[0.0], b=[0.0])
    assert (who, vendors.tried) == ("a", [("a", "first")])


async def test_a_slow_target_gets_a_rival_and_the_loser_is_cancelled() -> None:
    vendors, who, _ = await begun([A, B], a_way([A, B], hedge=HEDGE), a=[30.0], b=[0.0])
    assert who == "b"
    assert vendors.tried == [("a", "first"), ("b", "hedge")]
    assert vendors.cancelled == ["a"]


async def test_the_first_may_still_win() -> None:
    vendors, who, _ = await begun([A, B], a_way([A, B], hedge=HEDGE), a=[0.1], b=[30.0])
    assert who == "a"
    assert vendors.cancelled == ["b"]


async def test_a_rival_that_fails_does_not_end_the_wait_for_the_first() -> None:
    _, who, _ = await begun([A, B], a_way([A, B], hedge=HEDGE), a=[0.1], b=[VendorFailed("x")])
    assert who == "a"


async def test_a_first_that_fails_before_it_is_slow_is_followed_as_ever() -> None:
    way = a_way([A, B, C], hedge=HEDGE)
    vendors, who, _ = await begun([A, B, C], way, a=[VendorFailed("x")], b=[0.0], c=[0.0])
    assert who == "b"
    assert vendors.tried == [("a", "first"), ("b", "fallback")]


async def test_without_a_budget_nobody_is_hedged() -> None:
    health = HealthBook(HealthRules(), time.monotonic, random.Random(1))
    vendors: Any = Vendors(health, a=[0.1], b=[0.0])
    way = a_way([A, B], hedge=HEDGE)
    budgets = Budgets(RetryBudget(0, 100), RetryBudget(0, 0))
    trials = Trials(*asking(way), vendors, budgets, health, random.Random(1))
    opened: Any = await trials.begin()
    assert opened.name == "a"
    assert vendors.tried == [("a", "first")]


async def test_two_that_begin_in_the_same_moment_leave_one_answer_and_the_other_is_settled() -> None:
    begin = asyncio.Event()
    health = HealthBook(HealthRules(), time.monotonic, random.Random(1))
    vendors: Any = Vendors(health, a=[0.0], b=[0.0])
    play = vendors.open

    async def together(
        call: Call, candidate: Candidate, keyed: Keyed, asked: ChatRequest, role: Role, why: str
    ) -> Opened:
        if role == "hedge":
            begin.set()
        await begin.wait()
        opened: Opened = await play(call, candidate, keyed, asked, role, why)
        return opened

    vendors.open = together
    way = a_way([A, B], hedge=HEDGE)
    trials = Trials(*asking(way), vendors, Budgets(RetryBudget(0, 9), RetryBudget(1, 0, 1)), health, random.Random(1))
    opened: Any = await trials.begin()
    await trials.close()
    assert [opened.name, *vendors.closed, *vendors.cancelled] in (["a", "b"], ["b", "a"])


async def test_a_call_that_is_cancelled_leaves_no_attempt_running() -> None:
    health = HealthBook(HealthRules(), time.monotonic, random.Random(1))
    vendors: Any = Vendors(health, a=[30.0], b=[30.0])
    way = a_way([A, B], hedge=HEDGE)
    budgets = Budgets(RetryBudget(0, 9), RetryBudget(1, 0, 1))
    trials = Trials(*asking(way), vendors, budgets, health, random.Random(1))
    task = asyncio.create_task(trials.begin())
    async with asyncio.timeout(5):
        while len(vendors.tried) < 2:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(vendors.cancelled) == ["a", "b"]


async def test_each_key_is_tried_once_a_turn_however_soon_it_is_said_to_be_free() -> None:
    way = a_way([A], Retry(attempts=1))
    limited = [RateLimited("in a moment", retry_after=0.001) for _ in range(10)]
    vendors, error, _ = await begun([A], way, keys=3, a=limited)
    assert isinstance(error, RateLimited)
    assert sorted(vendors.keys) == ["key0", "key1", "key2"]


async def test_limited_keys_are_no_free_tries() -> None:
    way = a_way([A], Retry(attempts=1))
    vendors, error, _ = await begun([A], way, keys=3, reserve=0, a=[RateLimited("x")] * 3)
    assert isinstance(error, RateLimited)
    assert len(vendors.tried) == 1


async def test_a_target_that_rests_or_is_full_by_now_is_passed_over_and_the_trip_says_so() -> None:
    vendors, who, trials = await begun([A, B, C], hindered={"b": "full"}, a=[VendorFailed("x")], c=[0.0])
    assert who == "c"
    assert [(each.target.provider, each.why) for each in trials._call.trip.skipped] == [("b", "full")]
    way = a_way([A, B, C], hedge=HEDGE)
    vendors, who, _ = await begun([A, B, C], way, hindered={"b": "resting"}, a=[30.0], c=[0.0])
    assert vendors.tried == [("a", "first"), ("c", "hedge")]


async def test_a_target_whose_own_time_is_over_does_not_end_the_trials() -> None:
    short = a_candidate("b", total=0.0)
    _, who, _ = await begun([A, short, C], a=[VendorFailed("x")], b=[0.0], c=[0.0])
    assert who == "c"


async def test_when_the_time_is_over_neither_another_key_nor_a_fallback_is_asked() -> None:
    late = a_candidate("a", total=0.0)
    way = a_way([late], fallback={"context_length": (a_candidate("long", total=0.0),)})
    vendors, error, _ = await begun([late], way, keys=2, a=[VendorAuthFailed("x")])
    assert isinstance(error, VendorAuthFailed)
    vendors, error, _ = await begun([late], way, a=[ContextTooLong("x")], long=[0.0])
    assert isinstance(error, ContextTooLong)
    assert len(vendors.tried) == 1


async def test_what_a_slow_target_filters_its_rival_does_not_answer() -> None:
    health = HealthBook(HealthRules(), time.monotonic, random.Random(1))
    vendors: Any = Vendors(health, a=[0.0], b=[30.0])
    play, filtered = vendors.open, asyncio.Event()

    async def slowly(call: Call, candidate: Candidate, *rest: Any) -> Opened:
        if candidate is A:
            await filtered.wait()
            raise ContentFiltered("no")
        filtered.set()
        opened: Opened = await play(call, candidate, *rest)
        return opened

    vendors.open = slowly
    way = a_way([A, B], hedge=HEDGE)
    budgets = Budgets(RetryBudget(0, 9), RetryBudget(1, 0, 1))
    trials = Trials(*asking(way), vendors, budgets, health, random.Random(1))
    with pytest.raises(ContentFiltered):
        await trials.begin()
    await trials.close()
    assert vendors.cancelled == ["b"]


async def test_an_attempt_that_is_not_allowed_ends_the_trials_with_the_failure_before_it() -> None:
    health = HealthBook(HealthRules(), time.monotonic, random.Random(1))
    vendors: Any = Vendors(health, a=[VendorFailed("x")])
    play = vendors.open

    async def refusing(call: Call, candidate: Candidate, *rest: Any) -> Opened:
        if candidate is B:
            raise Refused
        opened: Opened = await play(call, candidate, *rest)
        return opened

    vendors.open = refusing
    budgets = Budgets(RetryBudget(0, 9))
    trials = Trials(*asking(a_way([A, B])), vendors, budgets, health, random.Random(1))
    with pytest.raises(VendorFailed):
        await trials.begin()


async def test_who_begins_while_everybody_gives_up_is_settled_all_the_same() -> None:
    health = HealthBook(HealthRules(), time.monotonic, random.Random(1))
    vendors: Any = Vendors(health, a=[0.05], b=[0.0])
    closing, close = asyncio.Event(), vendors.close

    async def slowly(call: Call, opened: Any, failure: BaseException | None) -> None:
        closing.set()
        await asyncio.sleep(0.05)
        await close(call, opened, failure)

    vendors.close = slowly
    way = a_way([A, B], hedge=HEDGE)
    trials = Trials(*asking(way), vendors, Budgets(RetryBudget(0, 9), RetryBudget(1, 0, 1)), health, random.Random(1))
    opened: Any = await trials.begin()
    trials._losers.append(asyncio.create_task(trials._given_up(opened)))
    ending = asyncio.create_task(trials.close())
    await closing.wait()
    ending.cancel()
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert opened.name in vendors.closed
