"""What stands in a call's trip, however its attempt ended."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from router.app import Gateway
from router.call import Call, Credentials, new_trip
from router.errors import ClientGone, PriceUnknown, ProviderError, RouterError
from router.events import Event
from router.messages import Audio, ChatRequest, Content, Part, User
from support.serving import config_for, gateway
from support.vendor import Exchange, Script, delta, plays_hello, sse, usage_chunk, vendor


def a_call(gate: Gateway, model: str = "v/m") -> Call:
    request = ChatRequest(model=model, messages=(User("Hi"),), stream=True, protocol="openai")
    trip = new_trip()
    trip.terms = gate.current.terms
    return Call(id="req_1", request=request, dialect="openai.chat", trip=trip, credentials=Credentials(None))


async def tried(script: Script, more: str = "") -> tuple[Call, RouterError | None]:
    """One call at a vendor that plays `script`."""
    async with vendor(script) as played:
        gate = gateway(config_for(played.url, plugins="[]", more=more) + "ledger: {enabled: false}\n")
        call, error = a_call(gate), None
        events: list[Event] = []
        try:
            events += [event async for event in gate.current.layers(call)]
        except RouterError as raised:
            error = raised
        await call.trip.close()
        upstream = gate.current.adapters["v"].upstream
        assert upstream.open == 0  # type: ignore[attr-defined]
        await upstream.aclose()
        return call, error


async def tells_usage_and_stalls(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(sse(usage_chunk()))
    await exchange.stall()


async def tells_usage_and_cuts(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.chunk(sse(delta("a"), usage_chunk()))
    await asyncio.sleep(0.02)
    exchange.cut()


@pytest.mark.parametrize(
    ("script", "outcome"),
    [(tells_usage_and_stalls, "timeout"), (tells_usage_and_cuts, "cut"), (plays_hello, "finished")],
)
async def test_what_the_vendor_reported_stands_in_the_attempt_however_it_ended(script: Script, outcome: str) -> None:
    call, error = await tried(script, more=", timeouts: {first_token: 200ms}")
    (attempt,) = call.trip.attempts
    assert attempt.outcome == outcome
    assert (error is None) == (outcome == "finished")
    assert attempt.error is error
    assert attempt.usage is not None
    assert (attempt.usage.input, attempt.usage.source) == (9, "reported")
    assert attempt.ended is not None


async def refuses(exchange: Exchange) -> None:
    await exchange.whole(500, b'{"error": {"message": "boom"}}')


async def test_a_refusal_is_settled_once_as_failed() -> None:
    call, error = await tried(refuses)
    assert isinstance(error, ProviderError)
    assert [(a.outcome, a.first_delta, a.usage) for a in call.trip.attempts] == [("failed", None, None)]


async def test_a_client_that_leaves_settles_the_attempt_as_its_going() -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.chunk(sse(delta("a")))
        await exchange.stall()

    async with vendor(stalls) as played:
        gate = gateway(config_for(played.url, plugins="[]") + "ledger: {enabled: false}\n")
        call = a_call(gate)
        events = gate.current.layers(call)
        await anext(events)
        call.trip.interruption = ClientGone("the client left")
        await call.trip.close()
        await played.settled(1)
        assert [a.outcome for a in call.trip.attempts] == ["client_gone"]
        assert gate.current.adapters["v"].upstream.open == 0  # type: ignore[attr-defined]


PRICES = """
prices:
  - {list: v, models: [m], currency: USD, input: 1, output: 2}
  - {list: v, models: [heard], currency: USD, input: 1, input_audio: 10, output: 2}
  - {list: v, models: [spoken], currency: USD, input: 1, input_audio: 10, output: 2, output_audio: 20}
"""
RECORDING: tuple[Part, ...] = (Audio("UklGRg==", "wav"),)
SPEECH = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}


@pytest.mark.parametrize(
    ("model", "content", "extra", "lacking"),
    [
        ("m", "Hi", {}, None),
        ("m", RECORDING, {}, "audio at `v/m`"),
        ("m", "Hi", SPEECH, "audio at `v/m`"),
        ("heard", RECORDING, {}, None),
        ("heard", RECORDING, SPEECH, "audio at `v/heard`"),
        ("spoken", RECORDING, SPEECH, None),
        ("new", "Hi", SPEECH, "`v/new`"),
    ],
)
async def test_where_prices_must_be_known_that_of_audio_must_be_if_there_may_be_any(
    tmp_path: Path, model: str, content: Content, extra: dict[str, Any], lacking: str | None
) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    async with vendor(plays_hello) as played:
        config = config_for(played.url, plugins="[]") + "ledger: {enabled: false}\n"
        gate = gateway(f"{config}prices: {{unknown: refuse, file: {tmp_path / 'prices.yaml'}}}\n")
        call = a_call(gate, f"v/{model}")
        call = call.with_request(replace(call.request, messages=(User(content),), extra=extra))
        try:
            if lacking is None:
                assert [event async for event in gate.current.layers(call)]
            else:
                with pytest.raises(PriceUnknown, match=f"for {lacking}, "):
                    await anext(gate.current.layers(call))
                assert not call.trip.attempts
        finally:
            await gate.current.adapters["v"].upstream.aclose()
