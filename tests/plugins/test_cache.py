"""The same question is paid for once; nobody gets an answer that is not theirs, or less than a whole one."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from plugins.budget import BudgetPlugin
from plugins.budget_rules import Amount, Rule
from plugins.cache import CachePlugin, Wishes, wishes_in
from plugins.limits import LimitsPlugin
from router.access import Limits
from router.accounts import account
from router.cache.entry import CacheStore, Entry
from router.cache.memory_cache import MemoryCache
from router.cache.shelf import ShelfAway
from router.cache.steady import SteadyCache
from router.call import Attempt, Call, Events, Principal, Terms, outcome_of
from router.errors import (
    BudgetSpent,
    ClientGone,
    InternalError,
    LimitReached,
    NotCached,
    RouterError,
    ShuttingDown,
    Stopped,
    StreamCut,
    VendorFailed,
)
from router.events import ChoiceFinished, Completed, Event, Started, TextDelta, UsageReported
from router.messages import FunctionTool
from router.money import Money
from router.plugin import check_order, compose
from router.provider import Target
from router.quantities import Size, Timeout
from router.services import Services
from tests.plugins.calls import ANSWER, START, collect
from tests.plugins.lending import GPT, NOVEMBER, Vendor, a_call, lend, standing, text

ALICE = Principal("dw-alice", "alice")
BOB = Principal("dw-bob", "bob")
HEADER = "x-deltaway-cache"


class Clock:
    def __init__(self) -> None:
        self.now = NOVEMBER / 1000

    def __call__(self) -> float:
        return self.now


class Innermost:
    """Plays events, one at each `step` if it is told to wait. `calls`: those that came in here."""

    def __init__(
        self, events: Sequence[Event] = ANSWER, error: BaseException | None = None, waits: bool = False
    ) -> None:
        self.events = events
        self.error = error
        self.calls: list[Call] = []
        self.closed: list[Call] = []
        self._waits = waits
        self._steps = asyncio.Semaphore(0)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self._steps.release()

    async def __call__(self, call: Call) -> Events:
        self.calls.append(call)
        trip = call.trip
        trip.attempts.append(Attempt(n=1, target=GPT, started=0.0, created_at=trip.created_at))
        trip.answering = trip.attempts[0]
        trip.headers["x-deltaway-cost"] = "0.000100000 USD"
        trip.dropped = ("seed",)
        try:
            for event in self.events:
                if self._waits:
                    await self._steps.acquire()
                yield event
            if self.error is not None:
                if self._waits:
                    await self._steps.acquire()
                raise self.error
        finally:
            self.closed.append(call)


class House:
    """The plugin around an innermost layer, and calls to it."""

    def __init__(self, inner: Innermost | None = None, store: CacheStore | None = None, **settings: Any) -> None:
        self.clock = Clock()
        self.inner = inner or Innermost()
        self.store = store or SteadyCache(MemoryCache(self.clock))
        self.course: dict[str, tuple[str, ...]] = {}
        self.services: Services = replace(lend(), cache=self.store, course=lambda call: self.course.get(call.id, ()))
        self.plugin = CachePlugin(CachePlugin.Settings(**settings), self.services, self.clock)
        self.layers = compose([self.plugin], self.inner)
        self.made = 0

    def call(
        self,
        prompt: str = "Hi",
        *,
        principal: Principal | None = ALICE,
        control: str | None = None,
        generation: str = "g1",
        **fields: Any,
    ) -> Call:
        self.made += 1
        call = a_call(prompt=prompt, number=self.made, principal=principal, at=int(self.clock.now * 1000), **fields)
        call.trip.terms = Terms(generation, self.services.pricing, lambda name: True, True)
        return replace(call, cache_control=control)

    async def ask(self, prompt: str = "Hi", **fields: Any) -> tuple[Call, list[Event]]:
        call = self.call(prompt, **fields)
        events = await collect(self.layers(call))
        await call.trip.close()
        return call, events

    def begin(self, call: Call) -> "asyncio.Task[list[Event]]":
        return asyncio.ensure_future(self._answered(call))

    async def _answered(self, call: Call) -> list[Event]:
        """As the edge does it: layers are closed whatever comes."""
        try:
            return await collect(self.layers(call))
        except BaseException as error:
            if isinstance(error, RouterError) and call.trip.interruption is None:
                call.trip.interruption = error
            raise
        finally:
            await call.trip.close()


async def turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def leaves(call: Call, task: "asyncio.Task[Any]") -> None:
    """As the edge does it when a client goes."""

    def ended() -> None:
        call.trip.interruption = ClientGone("the client left")
        task.cancel()

    if call.trip.holders:
        call.trip.deserted = ended
    else:
        ended()


# -- a hit -------------------------------------------------------------------------------------------------------------


async def test_the_second_answer_is_the_first_and_nobody_is_asked() -> None:
    house = House()
    first, answer = await house.ask()
    house.clock.now += 12.7
    second, again = await house.ask()
    assert again == [replace(START, created=NOVEMBER // 1000), *answer[1:]]
    assert len(house.inner.calls) == 1
    assert first.trip.headers[HEADER] == "miss"
    assert second.trip.headers == {
        HEADER: "hit",
        "age": "12",
        "x-deltaway-target": "openai/gpt-5",
        "x-deltaway-cost": "0.000000000 USD",
    }
    assert second.trip.dropped == ("seed",)
    assert second.trip.attempts == []
    assert outcome_of(None, second.trip) == "cached"
    assert second.trip.cached == {
        "how": "hit",
        "age": 12,
        "target": "openai/gpt-5",
        "cost": "0.000100000 USD",
        "of": first.id,
    }


async def test_every_showing_of_an_answer_without_a_time_bears_the_first_ones() -> None:
    house = House()
    await house.ask()
    house.clock.now += 60
    _, events = await house.ask()
    assert events[0] == Started("id-1", "model-1", NOVEMBER // 1000)
    _, others = await house.ask()
    assert others == events


async def test_a_streamed_answer_serves_a_whole_one_and_the_other_way() -> None:
    house = House()
    for prompt, streams in (("a", (True, False)), ("b", (False, True))):
        found = [(await house.ask(prompt, stream=stream))[0].trip.headers[HEADER] for stream in streams]
        assert found == ["miss", "hit"]


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "Ho"},
        {"model": "qwen"},
        {"temperature": 0.1},
        {"principal": BOB},
        {"principal": None},
        {"generation": "g2"},
    ],
    ids=str,
)
async def test_another_question_or_another_caller_is_a_miss(other: dict[str, Any]) -> None:
    house = House()
    await house.ask()
    call, _ = await house.ask(**other)
    assert call.trip.headers[HEADER] == "miss"
    assert len(house.inner.calls) == 2


async def test_arms_of_an_experiment_do_not_answer_for_each_other() -> None:
    house = House()
    house.course = {"req_1": ("test=a",), "req_2": ("test=b",), "req_3": ("test=a",)}
    found = [(await house.ask())[0].trip.headers[HEADER] for _ in range(3)]
    assert found == ["miss", "miss", "hit"]


async def test_keys_share_their_answers_where_that_is_configured_and_not_whose_they_were() -> None:
    house = House(scope="shared")
    await house.ask(principal=ALICE)
    call, _ = await house.ask(principal=BOB)
    assert call.trip.headers[HEADER] == "hit"
    assert "of" not in call.trip.cached
    # and both settings in one store are apart
    other = House(store=house.store)
    call, _ = await other.ask(principal=ALICE)
    assert call.trip.headers[HEADER] == "miss"


async def test_a_key_named_like_the_shared_scope_is_a_key() -> None:
    house = House(scope="shared")
    await house.ask(principal=BOB)
    other = House(store=house.store)
    call, _ = await other.ask(principal=Principal("shared", "shared"))
    assert call.trip.headers[HEADER] == "miss"


async def test_an_answer_is_forgotten_after_its_time() -> None:
    house = House(ttl=Timeout(10))
    await house.ask()
    house.clock.now += 9.9
    assert (await house.ask())[0].trip.headers[HEADER] == "hit"
    house.clock.now += 0.2
    assert (await house.ask())[0].trip.headers[HEADER] == "miss"


async def test_a_shorter_time_holds_for_answers_that_were_there_before() -> None:
    house = House(ttl=Timeout(1000))
    await house.ask()
    house.clock.now += 20
    shorter = House(store=house.store, ttl=Timeout(10))
    shorter.clock.now = house.clock.now
    assert (await shorter.ask())[0].trip.headers[HEADER] == "miss"


async def test_a_cache_that_is_away_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = MemoryCache()
    house = House(store=SteadyCache(shelf))
    await house.ask()

    async def away(*_: object) -> Any:
        raise ShelfAway("gone")

    monkeypatch.setattr(shelf, "get", away)
    monkeypatch.setattr(shelf, "put", away)
    call, events = await house.ask()
    assert call.trip.headers[HEADER] == "miss"
    assert events == list(ANSWER)


# -- what is not kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "events",
    [
        ANSWER[:-1],
        (*text("x")[:-2], ChoiceFinished(0, "content_filter"), Completed()),
        (*text("x")[:-2], ChoiceFinished(0, "length"), Completed()),
        (*text("x")[:-2], ChoiceFinished(0, "stop"), ChoiceFinished(1, "content_filter"), Completed()),
    ],
    ids=["no-end", "filtered", "cut-at-a-length-that-nobody-asked-for", "one-choice-filtered"],
)
async def test_less_than_a_whole_answer_is_not_kept(events: tuple[Event, ...]) -> None:
    house = House(Innermost(events))
    for _ in range(2):
        call, seen = await house.ask()
        assert call.trip.headers[HEADER] == "miss"
        assert seen == list(events)


async def test_a_length_that_was_asked_for_is_whole() -> None:
    house = House(Innermost((*text("x")[:-2], ChoiceFinished(0, "length"), Completed())))
    await house.ask(max_tokens=1)
    assert (await house.ask(max_tokens=1))[0].trip.headers[HEADER] == "hit"


async def test_a_failed_answer_is_not_kept() -> None:
    house = House(Innermost(ANSWER[:2], VendorFailed("it broke")))
    for _ in range(2):
        with pytest.raises(VendorFailed):
            await house.ask()
    assert len(house.inner.calls) == 2


async def test_an_answer_that_is_too_long_is_not_kept_and_comes_whole() -> None:
    events = text(*["0123456789"] * 200)
    house = House(Innermost(events), max_entry=Size(2000))
    for _ in range(2):
        call, seen = await house.ask()
        assert seen == list(events)
        assert call.trip.headers[HEADER] == "miss"


async def test_calls_with_tools_pass_by_unless_that_is_configured() -> None:
    house = House()
    for wanted, settings in (("bypass", {}), ("miss", {"tools": True}), ("hit", {"tools": True})):
        other = House(house.inner, house.store, **settings)
        call = other.call()
        call = call.with_request(replace(call.request, tools=(FunctionTool("look"),)))
        await collect(other.layers(call))
        assert call.trip.headers[HEADER] == wanted


async def test_a_large_request_is_a_question_like_any_other() -> None:
    house = House()
    found = [(await house.ask("x" * 600_000 + end))[0].trip.headers[HEADER] for end in ("a", "b", "a")]
    assert found == ["miss", "miss", "hit"]


async def test_what_cannot_be_printed_passes_by() -> None:
    house = House()
    call = house.call()
    call = call.with_request(replace(call.request, extra={"a": "\ud800"}))
    assert await collect(house.layers(call)) == list(ANSWER)
    assert call.trip.headers[HEADER] == "bypass"
    only = replace(house.call(control="only-if-cached"), request=call.request)
    with pytest.raises(NotCached):
        await collect(house.layers(only))


# -- cache-control -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "wishes"),
    [
        ("", Wishes()),
        ("no-cache", Wishes(read=False)),
        (" No-Cache ,", Wishes(read=False)),
        ("no-store", Wishes(read=False, store=False)),
        ("max-age=60", Wishes(max_age=60)),
        ('max-age="60"', Wishes(max_age=60)),
        ("max-age=0", Wishes(read=False, max_age=0)),
        ("max-age=-1", Wishes(read=False, max_age=0)),
        ("max-age", Wishes(read=False, max_age=0)),
        ("max-age=soon", Wishes(read=False, max_age=0)),
        ("max-age=\u0661", Wishes(read=False, max_age=0)),
        ("max-age=" + "9" * 40, Wishes(max_age=2**31)),
        ("only-if-cached, max-age=5", Wishes(max_age=5, only=True)),
        ("no-transform, min-fresh=3, private", Wishes()),
    ],
)
def test_the_header_is_read_as_the_standard_says(header: str, wishes: Wishes) -> None:
    assert wishes_in(header) == wishes


async def test_no_cache_asks_anew_and_keeps_what_comes() -> None:
    house = House()
    await house.ask()
    house.inner.events = text("newer")
    call, events = await house.ask(control="no-cache")
    assert call.trip.headers[HEADER] == "bypass"
    assert events == list(text("newer"))
    call, events = await house.ask()
    assert call.trip.headers[HEADER] == "hit"
    assert TextDelta(0, 0, "newer") in events


async def test_no_store_neither_reads_nor_keeps() -> None:
    house = House()
    for control in ("no-store", "no-store"):
        call, _ = await house.ask(control=control)
        assert call.trip.headers[HEADER] == "bypass"
    assert (await house.ask())[0].trip.headers[HEADER] == "miss"
    assert len(house.inner.calls) == 3


async def test_max_age_wants_an_answer_no_older() -> None:
    house = House()
    await house.ask()
    house.clock.now += 30
    assert (await house.ask(control="max-age=30"))[0].trip.headers[HEADER] == "hit"
    assert (await house.ask(control="max-age=29"))[0].trip.headers[HEADER] == "miss"
    # the newer one is kept
    assert (await house.ask(control="max-age=1"))[0].trip.headers[HEADER] == "hit"


@pytest.mark.parametrize("more", ["", ", no-cache", ", no-store"])
async def test_only_if_cached_asks_nobody(more: str) -> None:
    house = House()
    with pytest.raises(NotCached, match="no answer to this request in the cache") as raised:
        await house.ask(control="only-if-cached" + more)
    assert raised.value.status == 504
    await house.ask()
    assert len(house.inner.calls) == 1
    if more:
        with pytest.raises(NotCached):
            await house.ask(control="only-if-cached" + more)
    else:
        assert (await house.ask(control="only-if-cached"))[0].trip.headers[HEADER] == "hit"


# -- one flight --------------------------------------------------------------------------------------------------------


async def test_identical_calls_at_once_are_one() -> None:
    house = House(Innermost(waits=True))
    calls = [house.call() for _ in range(50)]
    tasks = [house.begin(call) for call in calls]
    await turns()
    house.inner.step(len(ANSWER))
    answers = await asyncio.gather(*tasks)
    assert all(answer == list(ANSWER) for answer in answers)
    assert len(house.inner.calls) == 1
    found = [call.trip.headers[HEADER] for call in calls]
    assert sorted(found) == ["miss"] + ["shared"] * 49
    for call in calls[1:]:
        assert outcome_of(None, call.trip) == "cached"
        assert call.trip.cached == {"how": "shared", "target": "openai/gpt-5"}
        assert call.trip.headers["x-deltaway-target"] == "openai/gpt-5"
        assert "x-deltaway-cost" not in call.trip.headers
        assert call.trip.dropped == ("seed",)
    assert calls[0].trip.holders == 0
    assert house.plugin._flights == {}


async def test_who_comes_later_gets_what_has_come_and_reads_along() -> None:
    house = House(Innermost(waits=True))
    leading = house.begin(house.call())
    house.inner.step(2)
    await turns()
    events = house.layers(house.call())
    assert [await anext(events), await anext(events)] == list(ANSWER[:2])
    waiting = asyncio.ensure_future(anext(events))
    await turns()
    assert not waiting.done()
    house.inner.step()
    assert await waiting == ANSWER[2]
    house.inner.step(len(ANSWER))
    assert [event async for event in events] == list(ANSWER[3:])
    assert await leading == list(ANSWER)


@pytest.mark.parametrize(
    "other", [{"principal": BOB}, {"stream": False}, {"control": "no-cache"}, {"control": "no-store"}], ids=str
)
async def test_who_may_not_share_asks_for_himself(other: dict[str, Any]) -> None:
    house = House(Innermost(waits=True))
    tasks = [house.begin(house.call()), house.begin(house.call(**other))]
    await turns()
    assert len(house.inner.calls) == 2
    house.inner.step(2 * len(ANSWER))
    await asyncio.gather(*tasks)


async def test_only_if_cached_does_not_wait_for_another() -> None:
    house = House(Innermost(waits=True))
    leading = house.begin(house.call())
    await turns()
    with pytest.raises(NotCached):
        await house.ask(control="only-if-cached")
    house.inner.step(len(ANSWER))
    await leading


async def test_calls_that_meet_while_the_cache_is_asked_ask_it_once() -> None:
    class Slow(MemoryCache):
        asked = 0

        async def get(self, key: str) -> bytes | None:
            self.asked += 1
            await turns(3)
            return await super().get(key)

    shelf = Slow()
    house = House(store=SteadyCache(shelf))
    await house.ask()
    shelf.asked = 0
    calls = [house.call() for _ in range(10)]
    await asyncio.gather(*[house.begin(call) for call in calls])
    assert shelf.asked == 1
    assert {call.trip.headers[HEADER] for call in calls} == {"hit"}
    assert len(house.inner.calls) == 1


async def test_a_follower_who_wants_a_younger_one_asks_for_himself() -> None:
    class Slow(MemoryCache):
        async def get(self, key: str) -> bytes | None:
            await turns(3)
            return await super().get(key)

    house = House(store=SteadyCache(Slow()))
    await house.ask()
    house.clock.now += 100
    calls = [house.call(), house.call(control="max-age=5")]
    async with asyncio.timeout(5):
        await asyncio.gather(*[house.begin(call) for call in calls])
    assert [call.trip.headers[HEADER] for call in calls] == ["hit", "miss"]


async def test_the_vendors_call_goes_on_for_those_who_stay_and_ends_with_the_last() -> None:
    house = House(Innermost(waits=True))
    calls = [house.call() for _ in range(3)]
    tasks = [house.begin(call) for call in calls]
    house.inner.step(2)
    await turns()
    leaves(calls[0], tasks[0])
    await turns()
    assert house.inner.closed == []
    leaves(calls[1], tasks[1])
    house.inner.step()
    await turns()
    assert tasks[1].cancelled()
    assert house.inner.closed == []
    leaves(calls[2], tasks[2])
    await turns()
    # nobody is left
    assert house.inner.closed == [house.inner.calls[0]]
    assert all(task.cancelled() for task in tasks)
    assert house.plugin._flights == {}
    assert calls[0].trip.holders == 0


async def test_the_last_one_gets_the_whole_answer_though_its_leader_has_left() -> None:
    house = House(Innermost(waits=True))
    calls = [house.call(), house.call()]
    tasks = [house.begin(call) for call in calls]
    house.inner.step(2)
    await turns()
    leaves(calls[0], tasks[0])
    house.inner.step(len(ANSWER))
    assert await tasks[1] == list(ANSWER)
    # the leader's call ended by itself, and its answer is kept
    assert await tasks[0] == list(ANSWER)
    assert (await house.ask())[0].trip.headers[HEADER] == "hit"


async def test_a_follower_that_is_closed_lets_go_at_once() -> None:
    house = House(Innermost(waits=True))
    leader, follower = house.call(), house.call()
    leading = house.begin(leader)
    house.inner.step(2)
    await turns()
    events = house.layers(follower)
    await anext(events)
    assert leader.trip.holders == 1
    await follower.trip.close()
    assert leader.trip.holders == 0
    house.inner.step(len(ANSWER))
    await leading


@pytest.mark.parametrize("seen", [0, 2], ids=["before-the-first", "in-the-middle"])
async def test_a_vendors_failure_is_everybodys(seen: int) -> None:
    error = VendorFailed("it broke", vendor_status=500, vendor_code="x")
    house = House(Innermost(ANSWER[:seen], error, waits=True))
    calls = [house.call() for _ in range(3)]
    tasks = [house.begin(call) for call in calls]
    await turns()
    house.inner.step(seen + 1)
    raised = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in raised] == [VendorFailed] * 3
    assert len({id(each) for each in raised}) == 3
    assert {each.vendor_status for each in raised if isinstance(each, VendorFailed)} == {500}
    assert len(house.inner.calls) == 1
    outcomes = {outcome_of(each, call.trip) for each, call in zip(raised[1:], calls[1:], strict=True)}  # type: ignore[arg-type]
    assert outcomes == {"cut" if seen else "failed"}


@pytest.mark.parametrize("error", [BudgetSpent("spent"), LimitReached("too many"), Stopped("stopped")], ids=repr)
async def test_a_leaders_own_refusal_is_nobody_elses(error: RouterError) -> None:
    house = House(Innermost((), error))
    leader, others = house.call(), [house.call() for _ in range(3)]

    async def refused(call: Call) -> Events:
        house.inner.calls.append(call)
        await turns(3)
        for event in ANSWER if call is not leader else ():
            yield event
        if call is leader:
            raise error

    house.layers = compose([house.plugin], refused)
    found = await asyncio.gather(*[house.begin(call) for call in (leader, *others)], return_exceptions=True)
    assert found == [error, *[list(ANSWER)] * 3]
    # one of the others leads them
    assert house.inner.calls == [leader, others[0]]
    assert [call.trip.headers[HEADER] for call in others] == ["miss", "shared", "shared"]


async def test_those_in_the_middle_are_told_when_their_leader_is_ended() -> None:
    house = House(Innermost(waits=True))
    leader, follower = house.call(), house.call()
    tasks = [house.begin(leader), house.begin(follower)]
    house.inner.step(2)
    await turns()
    leader.trip.interruption = Stopped("somebody stopped it")
    tasks[0].cancel()
    with pytest.raises(StreamCut, match="send the request again"):
        await tasks[1]
    assert follower.trip.first_delta is not None


async def test_a_fault_inside_is_no_vendors_failure_for_followers() -> None:
    house = House(Innermost((), ZeroDivisionError(), waits=True))
    inner = house.inner
    inner.events = ANSWER[:1]
    tasks = [house.begin(house.call()) for _ in range(2)]
    await turns()
    inner.step(2)
    raised = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in raised] == [ZeroDivisionError, InternalError]


async def test_a_server_that_stops_stops_them_all() -> None:
    house = House(Innermost(waits=True))
    leader = house.call()
    tasks = [house.begin(leader), house.begin(house.call())]
    await turns()
    leader.trip.interruption = ShuttingDown("it stops")
    tasks[0].cancel()
    with pytest.raises(ShuttingDown):
        await tasks[1]


async def test_an_end_that_a_layer_inside_dropped_leaves_nobody_waiting() -> None:
    house = House(Innermost(ANSWER[:-1], waits=True))
    tasks = [house.begin(house.call()) for _ in range(2)]
    await turns()
    house.inner.step(len(ANSWER))
    async with asyncio.timeout(5):
        assert await tasks[0] == list(ANSWER[:-1])
        with pytest.raises(StreamCut):
            await tasks[1]


async def test_a_leader_whose_client_is_slow_gets_no_more_followers() -> None:
    house = House(Innermost(waits=True))
    leader = house.call()
    leading = house.begin(leader)
    await turns()
    leader.trip.writing = True
    leader.trip.written_at = asyncio.get_running_loop().time() - 10
    other = house.begin(house.call())
    await turns()
    assert len(house.inner.calls) == 2
    house.inner.step(2 * len(ANSWER))
    await asyncio.gather(leading, other)


async def test_an_answer_too_long_to_keep_is_shared_with_those_who_wait_and_no_others() -> None:
    events = text(*["0123456789"] * 40)
    house = House(Innermost(events, waits=True), max_entry=Size(1000))
    leading = house.begin(house.call())
    await turns()
    following = house.begin(house.call())
    house.inner.step(30)
    await turns(100)
    late = house.begin(house.call())
    house.inner.step(len(events))
    assert await leading == list(events)
    assert await following == list(events)
    assert await late == list(events)
    assert len(house.inner.calls) == 1

    alone = house.begin(house.call())
    house.inner.step(30)
    await turns(100)
    assert house.plugin._flights == {}
    house.inner.step(len(events))
    assert await alone == list(events)


# -- beside other layers -----------------------------------------------------------------------------------------------


def test_the_list_may_have_the_budget_on_either_side_and_the_others_in_their_places() -> None:
    kinds = {"limits": LimitsPlugin, "budget": BudgetPlugin, "cache": CachePlugin}
    assert check_order(kinds) == []
    assert check_order({"limits": LimitsPlugin, "cache": CachePlugin, "budget": BudgetPlugin}) == []
    ((moved, message),) = check_order({"cache": CachePlugin, "limits": LimitsPlugin})
    assert moved == "limits"
    assert "must be outside of `cache`" in message


@pytest.mark.parametrize("outside", [True, False], ids=["budget-outside", "budget-inside"])
async def test_a_hit_costs_a_budget_nothing(outside: bool) -> None:
    clock = Clock()
    services: Services = replace(lend(), cache=SteadyCache(MemoryCache(clock)))
    rule = Rule(Amount(Money(10_000_000, "USD")), key="dw-alice")
    budget = BudgetPlugin(BudgetPlugin.Settings(rules=(rule,)), services)
    cache = CachePlugin(CachePlugin.Settings(), services, clock)
    vendor = Vendor(services)
    layers = compose([budget, cache] if outside else [cache, budget], vendor)
    spent = []
    for number in (1, 2):
        call = a_call(number=number, principal=ALICE)
        call.trip.terms = Terms("g1", services.pricing, lambda name: True, True)
        await collect(layers(call))
        await call.trip.close()
        spent.append(await standing(services, account("key", "dw-alice", "month", "USD", NOVEMBER)))
    assert spent[0][0] > 0
    assert spent[1] == spent[0]
    assert spent[1][1] == 0
    assert len(vendor.calls) == 1


async def test_a_spent_budget_inside_does_not_keep_from_what_is_kept() -> None:
    clock = Clock()
    services: Services = replace(lend(), cache=SteadyCache(MemoryCache(clock)))
    cache = CachePlugin(CachePlugin.Settings(), services, clock)
    vendor = Vendor(services)

    def asking() -> Call:
        call = a_call(principal=ALICE)
        call.trip.terms = Terms("g1", services.pricing, lambda name: True, True)
        return call

    first = await collect(compose([cache], vendor)(asking()))
    budget = BudgetPlugin(BudgetPlugin.Settings(rules=(Rule(Amount(Money(1, "USD")), key="dw-alice"),)), services)
    with pytest.raises(BudgetSpent):
        await collect(compose([budget, cache], vendor)(asking()))
    second = await collect(compose([cache, budget], vendor)(asking()))
    assert second[1:] == first[1:]


async def test_a_hit_counts_as_a_request_and_not_as_tokens() -> None:
    clock = Clock()
    services: Services = replace(lend(), cache=SteadyCache(MemoryCache(clock)))
    limits = LimitsPlugin(LimitsPlugin.Settings(key=Limits(rpm=3, tpm=100)), services)
    layers = compose([limits, CachePlugin(CachePlugin.Settings(), services, clock)], Vendor(services))
    left = []
    for number in range(4):
        call = a_call(number=number, principal=ALICE)
        call.trip.terms = Terms("g1", services.pricing, lambda name: True, True)
        if number == 3:
            with pytest.raises(LimitReached):
                await collect(layers(call))
            break
        await collect(layers(call))
        await call.trip.close()
        left.append(
            (call.trip.headers["x-ratelimit-remaining-requests"], call.trip.headers["x-ratelimit-remaining-tokens"])
        )
    assert [requests for requests, _ in left] == ["2", "1", "0"]
    # what each was estimated at was given back
    assert left[1][1] == left[2][1]


# -- settings ----------------------------------------------------------------------------------------------------------


def test_an_entry_must_have_room() -> None:
    with pytest.raises(ValueError, match="more than `max_size`"):
        CachePlugin(CachePlugin.Settings(max_entry=Size(10), max_size=Size(9)), lend())


async def test_what_is_kept_is_plain_json() -> None:
    house = House()
    kept: list[Entry] = []

    async def put(key: str, entry: Entry, ttl: float, *, most: int, room: int) -> None:
        kept.append(entry)
        assert (ttl, most, room) == (3600, 1024**2, 256 * 1024**2)

    house.store.put = put  # type: ignore[method-assign]
    call, _ = await house.ask()
    (entry,) = kept
    assert msgspec.json.decode(msgspec.json.encode(entry), type=Entry) == entry
    assert (entry.owner, entry.call, entry.target) == ("dw-alice", call.id, str(Target("openai", "gpt-5")))
    assert any(type(event) is UsageReported for event in entry.events)
