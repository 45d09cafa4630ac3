"""The onion: order, closing, and what happens when a layer misbehaves."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from router.call import Call, Credentials, Events, Principal, Trip, new_trip, outcome_of
from router.errors import BudgetSpent, ClientGone, PermissionDenied, ShuttingDown, StreamCut, TimedOut, VendorFailed
from router.events import ChoiceFinished, Completed, Event, Started, TextDelta
from router.messages import ChatRequest, User
from router.plugin import CallNext, Plugin, check_order, compose

ANSWER: tuple[Event, ...] = (
    Started("id", "model", 0),
    TextDelta(0, 0, "a"),
    TextDelta(0, 0, "b"),
    ChoiceFinished(0, "stop"),
    Completed(),
)


class Layer:
    """Writes down when it is entered and left."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        self.log.append(f"{self.name} in")
        try:
            async for event in call_next(call):
                yield event
        finally:
            self.log.append(f"{self.name} out")


class Forgetful(Layer):
    """Leaves the stream of the next layer after one event, and never closes it."""

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        async for event in call_next(call):
            yield event
            break
        yield ANSWER[-2]
        yield ANSWER[-1]


class FailsToClose(Layer):
    async def stream(self, call: Call, call_next: CallNext) -> Events:
        try:
            async for event in call_next(call):
                yield event
        finally:
            self.log.append(f"{self.name} out")
            raise RuntimeError(f"{self.name} cannot close")


class PassesOn:
    """A layer that is a plain function."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def stream(self, call: Call, call_next: CallNext) -> Events:
        if self.error is not None:
            raise self.error
        return call_next(call)


def a_call() -> Call:
    request = ChatRequest(model="m", messages=(User("Hi"),), protocol="openai")
    return Call(id="c1", request=request, dialect="openai.chat", trip=new_trip(), credentials=Credentials(None))


def source(log: list[str], error: BaseException | None = None, wait: bool = False) -> CallNext:
    async def stream(call: Call) -> Events:
        log.append("vendor in")
        try:
            for event in ANSWER:
                yield event
                if wait:
                    await asyncio.sleep(3600)
                if error is not None:
                    raise error
        finally:
            log.append("vendor out")

    return stream


def onion(log: list[str], layers: Sequence[Plugin] | None = None, **how: Any) -> CallNext:
    return compose([Layer("outer", log), Layer("inner", log)] if layers is None else layers, source(log, **how))


CLOSED = ["vendor out", "inner out", "outer out"]


async def test_the_first_plugin_is_the_outermost() -> None:
    log: list[str] = []
    assert [event async for event in onion(log)(a_call())] == list(ANSWER)
    assert log == ["outer in", "inner in", "vendor in", *CLOSED]


async def test_no_plugins_is_the_source_alone() -> None:
    assert [event async for event in onion([], [])(a_call())] == list(ANSWER)


async def test_an_error_leaves_every_layer_innermost_first() -> None:
    log: list[str] = []
    with pytest.raises(StreamCut):
        async for _ in onion(log, error=StreamCut("cut"))(a_call()):
            pass
    assert log[3:] == CLOSED


async def test_closing_the_trip_leaves_every_layer_innermost_first() -> None:
    log: list[str] = []
    call = a_call()
    assert await anext(onion(log)(call)) == ANSWER[0]
    await call.trip.close()
    assert log[3:] == CLOSED
    await call.trip.close()
    assert log[3:] == CLOSED


async def test_cancellation_leaves_every_layer_innermost_first() -> None:
    log: list[str] = []

    async def consume() -> None:
        async for _ in onion(log, wait=True)(a_call()):
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    assert log == ["outer in", "inner in", "vendor in"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log[3:] == CLOSED


async def test_a_plugin_that_leaves_the_stream_leaks_nothing() -> None:
    log: list[str] = []
    call = a_call()
    events = [event async for event in onion(log, [Forgetful("f", log), Layer("inner", log)])(call)]
    assert events == [ANSWER[0], *ANSWER[-2:]]
    assert "vendor out" not in log
    await call.trip.close()
    assert log == ["inner in", "vendor in", "vendor out", "inner out"]
    assert call.trip.generators == []


async def test_a_layer_that_fails_to_close_does_not_keep_the_others_open() -> None:
    log: list[str] = []
    call = a_call()
    layers = [Layer("outer", log), FailsToClose("first", log), FailsToClose("second", log)]
    assert await anext(onion(log, layers)(call))
    with pytest.raises(RuntimeError, match="second cannot close"):
        await call.trip.close()
    assert log[-4:] == ["vendor out", "second out", "first out", "outer out"]
    assert call.trip.generators == []


async def test_a_layer_that_is_a_function_costs_no_generator() -> None:
    call = a_call()
    log: list[str] = []
    events = onion(log, [PassesOn(), Layer("inner", log), PassesOn()])(call)
    assert [event async for event in events] == list(ANSWER)
    assert len(call.trip.generators) == 2


async def test_what_a_function_layer_raises_comes_with_the_first_event() -> None:
    log: list[str] = []
    events = onion(log, [Layer("outer", log), PassesOn(PermissionDenied("no")), Layer("inner", log)])(a_call())
    assert log == []
    with pytest.raises(PermissionDenied):
        await anext(events)
    assert log == ["outer in", "outer out"]


async def test_the_outermost_layer_may_be_a_function_that_raises() -> None:
    events = onion([], [PassesOn(PermissionDenied("no"))])(a_call())
    with pytest.raises(PermissionDenied):
        await anext(events)


async def test_calls_of_one_onion_do_not_share_their_streams() -> None:
    layers = onion([])
    first, second = a_call(), a_call()
    one, two = layers(first), layers(second)
    await anext(one)
    await anext(two)
    await first.trip.close()
    assert [event async for event in two] == list(ANSWER[1:])


# -- the order of the list -------------------------------------------------------------------------------------------


def kind(**constraints: tuple[str, ...]) -> type:
    return type("Kind", (), constraints)


LOGGING, AUTH, USAGE = kind(outside_of=("auth", "usage")), kind(outside_of=("usage",)), kind(inside_of=("auth",))


@pytest.mark.parametrize(
    "names", [["logging", "auth", "usage"], ["auth", "usage"], ["usage"], [], ["logging", "usage"]]
)
def test_a_list_in_order_has_no_problem(names: list[str]) -> None:
    kinds = {"logging": LOGGING, "auth": AUTH, "usage": USAGE}
    assert check_order({name: kinds[name] for name in names}) == []


def test_a_list_out_of_order_says_what_to_move_where() -> None:
    assert check_order({"auth": AUTH, "logging": LOGGING}) == [
        ("logging", "`logging` must be outside of `auth`: list it before `auth`")
    ]


def test_a_constraint_may_be_declared_by_the_inner_plugin() -> None:
    assert check_order({"usage": USAGE, "auth": kind()}) == [
        ("auth", "`auth` must be outside of `usage`: list it before `usage`")
    ]


def test_a_constraint_that_both_declare_is_told_once() -> None:
    assert len(check_order({"usage": USAGE, "auth": AUTH})) == 1


def test_every_broken_constraint_is_told() -> None:
    assert [name for name, _ in check_order({"usage": USAGE, "auth": AUTH, "logging": LOGGING})] == [
        "auth",
        "logging",
        "logging",
    ]


# -- how a call ended ------------------------------------------------------------------------------------------------


def began(trip: Trip) -> None:
    trip.first_delta = trip.started + 1


def asked(trip: Trip) -> None:
    trip.attempts.append(None)  # type: ignore[arg-type]


def stopping(trip: Trip) -> None:
    trip.interruption = ShuttingDown("stop")


def left(trip: Trip) -> None:
    trip.interruption = ClientGone("left")


@pytest.mark.parametrize(
    ("error", "outcome", "happened"),
    [
        (None, "finished", [asked]),
        (None, "cached", []),
        (BudgetSpent("spent"), "refused", []),
        (BudgetSpent("spent"), "budget", [asked, began]),
        (PermissionDenied("no"), "refused", []),
        (ClientGone("left"), "client_gone", [asked, began]),
        (asyncio.CancelledError(), "client_gone", [asked, left]),
        (asyncio.CancelledError(), "interrupted", [asked]),
        (GeneratorExit(), "client_gone", [left]),
        (GeneratorExit(), "stopped", [asked, began]),
        (asyncio.CancelledError(), "cut", [asked, began, stopping]),
        (TimedOut("late"), "timeout", [asked, began]),
        (VendorFailed("5xx"), "failed", [asked]),
        (StreamCut("cut"), "cut", [asked, began]),
        (KeyError("a fault of ours"), "failed", [asked]),
        (KeyError("a fault of ours"), "cut", [asked, began]),
        (KeyError("a fault of ours"), "refused", []),
    ],
)
def test_outcome(error: BaseException | None, outcome: str, happened: list[Callable[[Trip], None]]) -> None:
    trip = new_trip()
    for step in happened:
        step(trip)
    assert outcome_of(error, trip) == outcome


def test_a_principal_is_known_to_the_layers_outside_too() -> None:
    call = a_call()
    inner = call.with_principal(Principal("dw-1"))
    assert call.principal is None
    assert inner.principal == call.trip.principal == Principal("dw-1")
