"""Plugins of others that do what they must not: the client is told, nothing is left open, nothing secret is logged."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog

from router.call import Call, Events
from router.events import ChoiceFinished, Completed, Started, TextDelta
from router.plugin import CallNext, compose
from router.telemetry import configure
from support.serving import asking, client, config_for, create_app, gateway, served
from support.vendor import Vendor, plays_hello, vendor

SECRETS = ("dw-SECRET-KEY", "SECRET-PROMPT", "sk-vendor-key")


def cancelled() -> "asyncio.Future[None]":
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


def leak(call: Call) -> Exception:
    return ValueError(f"{call.request.messages} {call.credentials.secret}")


class Raises:
    """At the moment `at`."""

    def __init__(self, at: str) -> None:
        self.at = at

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        if self.at == "before":
            raise leak(call)
        async for event in call_next(call):
            yield event
            if self.at == "during" and isinstance(event, TextDelta):
                raise leak(call)
            if self.at == "cancelled child" and isinstance(event, TextDelta):
                await cancelled()
        if self.at == "after":
            raise leak(call)


class RaisesOnCall:
    def stream(self, call: Call, call_next: CallNext) -> Events:
        raise leak(call)


class Mute:
    """Never tells the end."""

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        async for event in call_next(call):
            if not isinstance(event, Completed):
                yield event


class Empty:
    async def stream(self, call: Call, call_next: CallNext) -> Events:
        for event in ():
            yield event


class NoStream:
    def stream(self, call: Call, call_next: CallNext) -> Any:
        return None


class Disordered:
    async def stream(self, call: Call, call_next: CallNext) -> Events:
        yield ChoiceFinished(7, "stop")
        yield TextDelta(3, 9, "?")
        yield Started("", "", 0)
        raise leak(call)


class BadHeader:
    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def stream(self, call: Call, call_next: CallNext) -> Events:
        call.trip.headers[self.name] = self.value
        return call_next(call)


FAULTY: dict[str, Callable[[], Any]] = {
    "raises before": lambda: Raises("before"),
    "raises during": lambda: Raises("during"),
    "raises after": lambda: Raises("after"),
    "waits for what was cancelled": lambda: Raises("cancelled child"),
    "raises when called": RaisesOnCall,
    "never ends": Mute,
    "yields nothing": Empty,
    "gives no stream": NoStream,
    "wrong order": Disordered,
    "header with a line break": lambda: BadHeader("x-a\r\nx-b", "1"),
    "header that is no text": lambda: BadHeader("x-a", 1),
}


class Served:
    def __init__(self, gate: Any, http: httpx.AsyncClient, played: Vendor, log: io.StringIO) -> None:
        self.gate, self.http, self.played, self.log = gate, http, played, log

    async def settled(self) -> None:
        async with asyncio.timeout(3):
            while len(self.gate.running) or self.gate.current.adapters["v"].upstream.open:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def served_with(plugin: Any, heartbeat: str = "50ms", outer: Sequence[Any] = ()) -> AsyncIterator[Served]:
    log = io.StringIO()
    async with vendor(plays_hello) as played:
        gate = gateway(config_for(played.url, server=f"{{heartbeat: {heartbeat}}}"))
        structlog.reset_defaults()
        configure(log, pretty=False)
        generation = gate.current
        generation.layers = compose([*outer, *generation.plugins, plugin], generation.layers)
        try:
            async with served(create_app(gate)) as url, client(url, key=SECRETS[0]) as http:
                yield Served(gate, http, played, log)
        finally:
            structlog.reset_defaults()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("fault", FAULTY)
async def test_a_fault_is_told_in_the_dialects_shape_and_the_server_goes_on(fault: str, stream: bool) -> None:
    async with served_with(FAULTY[fault]()) as at:
        for _ in range(2):
            answer = await at.http.post("/v1/chat/completions", json=asking(stream=stream, text=SECRETS[1]))
            assert "x-request-id" in answer.headers
            last = [line for line in answer.text.splitlines() if line][-1].removeprefix("data: ")
            error = json.loads(last)["error"]
            assert error["code"] == "internal_error"
            assert b"[DONE]" not in answer.content
            await at.settled()
        # a heartbeat of a stream that has ended would be an error in the log
        await asyncio.sleep(0.12)
        told = at.log.getvalue()
        assert "Exception in ASGI application" not in told
        assert "Task exception was never retrieved" not in told
        assert not [secret for secret in SECRETS if secret in told + answer.text]


class Stops:
    """Ends the answer itself after one delta, and leaves the vendor's stream open."""

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        async for event in call_next(call):
            yield event
            if isinstance(event, TextDelta):
                break
        yield ChoiceFinished(0, "length")
        yield Completed()


class ReturnsAtTheEnd:
    async def stream(self, call: Call, call_next: CallNext) -> Events:
        async for event in call_next(call):
            yield event
            if isinstance(event, Completed):
                return


@pytest.mark.parametrize(("plugin", "outcome"), [(Stops, "stopped"), (ReturnsAtTheEnd, "finished")])
async def test_an_attempt_ends_as_the_layers_had_it_end(plugin: Any, outcome: str) -> None:
    seen: list[Any] = []

    class Watches:
        async def stream(self, call: Call, call_next: CallNext) -> Events:
            seen.append(call.trip)
            async for event in call_next(call):
                yield event

    async with served_with(plugin(), outer=[Watches()]) as at:
        answer = await at.http.post("/v1/chat/completions", json=asking())
        assert answer.text.endswith("data: [DONE]\n\n")
        assert [attempt.outcome for attempt in seen[0].attempts] == [outcome]
        await at.settled()


class ClosesBadly:
    """Waits in its `finally` for what was cancelled."""

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        try:
            async for event in call_next(call):
                yield event
                raise ValueError("no more")
        finally:
            await cancelled()


class TakesTime:
    """Works on after the last event, beyond a heartbeat."""

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        async for event in call_next(call):
            yield event
        await asyncio.sleep(0.2)


async def test_a_layer_that_fails_as_it_closes_does_not_keep_the_client_waiting() -> None:
    async with served_with(ClosesBadly()) as at:
        answer = await asyncio.wait_for(at.http.post("/v1/chat/completions", json=asking()), 3)
        assert "internal_error" in answer.text
        await at.settled()


async def test_a_layer_that_works_on_after_the_end_delays_done_and_heartbeats_go_on() -> None:
    async with served_with(TakesTime()) as at:
        answer = await at.http.post("/v1/chat/completions", json=asking())
        assert answer.text.endswith("data: [DONE]\n\n")
        assert ": ping" in answer.text
        await at.settled()
