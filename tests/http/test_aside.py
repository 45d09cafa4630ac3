"""Calls that the gateway makes for itself: through all layers, on record once, ended by an interruption."""

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from router.call import Call, Credentials, Events, new_trip
from router.errors import ProviderUnavailable, RouterError, Stopped, StreamCut
from router.events import ChoiceFinished, Completed, Started, TextDelta
from router.http.aside import Aside
from router.http.ending import Ending
from router.ledger.books import NoLedger
from router.messages import ChatRequest, User
from router.running import Running, interrupt


class Told(NoLedger):
    """Notes how calls ended, the first time each."""

    def __init__(self) -> None:
        self.ends: list[BaseException | None] = []

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> None:
        if not call.trip.closed:
            self.ends.append(error)
        call.trip.closed = True


def a_call() -> Call:
    request = ChatRequest(model="chat", messages=(User("Hi"),), protocol="openai")
    return Call(id="req_1", request=request, dialect="openai.chat", trip=new_trip(), credentials=Credentials(None))


class Bench:
    def __init__(self, layers: Any) -> None:
        self.books, self.running = Told(), Running()
        self.aside = Aside(self.running, Ending(self.books))
        self.generation: Any = SimpleNamespace(layers=layers, terms=None, layer_names=(), tracked=lambda: nullcontext())

    async def answer(self, call: Call) -> Any:
        return await self.aside.answer(self.generation, call)


async def test_the_answer_is_whole_and_on_record() -> None:
    async def layers(call: Call) -> Events:
        yield Started("id", "model", 0)
        yield TextDelta(0, 0, "a sum")
        yield TextDelta(0, 0, "mary")
        yield ChoiceFinished(0, "stop")
        yield Completed()

    bench = Bench(layers)
    answer = await asyncio.create_task(bench.answer(a_call()))
    assert answer.choices[0].text() == "a summary"
    assert bench.books.ends == [None]
    assert len(bench.running) == 0


async def test_what_fails_is_on_record_and_raised() -> None:
    async def layers(call: Call) -> Events:
        yield Started("id", "model", 0)
        raise StreamCut("gone")

    bench = Bench(layers)
    with pytest.raises(StreamCut):
        await asyncio.create_task(bench.answer(a_call()))
    assert [type(end) for end in bench.books.ends] == [StreamCut]


async def test_a_refusal_before_the_first_event_is_raised() -> None:
    def layers(call: Call) -> Events:
        raise ProviderUnavailable("no key")

    bench = Bench(layers)
    with pytest.raises(ProviderUnavailable):
        await asyncio.create_task(bench.answer(a_call()))
    assert [type(end) for end in bench.books.ends] == [ProviderUnavailable]


async def test_a_stream_without_an_end_is_a_fault() -> None:
    async def layers(call: Call) -> Events:
        yield Started("id", "model", 0)

    with pytest.raises(RouterError, match="without its end"):
        await asyncio.create_task(Bench(layers).answer(a_call()))


async def test_an_interruption_ends_it_and_says_why() -> None:
    began = asyncio.Event()

    async def layers(call: Call) -> Events:
        yield Started("id", "model", 0)
        began.set()
        await asyncio.Event().wait()

    bench, call = Bench(layers), a_call()
    task = asyncio.create_task(bench.answer(call))
    await began.wait()
    interrupt(task, call.trip, Stopped("nobody waits"))
    with pytest.raises(Stopped):
        await task
    assert [type(end) for end in bench.books.ends] == [Stopped]
