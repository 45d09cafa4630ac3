"""Speech is counted while it comes, and reserved at its price where a call may have audio, and only there."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from plugins.budget import BudgetPlugin
from plugins.budget_rules import Amount, BudgetSettings, Rule
from router.accounts import Hold, Refusal
from router.audio import spoken
from router.call import Attempt, Call, Principal
from router.errors import BudgetSpent, PriceUnknown
from router.events import ChoiceFinished, Completed, Event, Extended, Extra, Started, Usage
from router.messages import Audio, User
from router.money import Money
from router.plugin import compose
from router.pricing import Cost
from router.provider import Target
from router.services import Services
from router.state.memory_accounts import MemoryAccounts
from tests.plugins.calls import collect
from tests.plugins.lending import GPT, PriceList, Vendor, a_call, lend, nothing_spent

KEY = Principal("dw-ab12", "search")
INPUT = 8
SPEECH: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}
HALF_SECOND = Extended(Extra("openai", block={"audio": {"data": "A" * 32_000}}), choice=0)
"""Ten tokens."""


class Audible(PriceList):
    """A token of audio costs ten times what one of text does; at `new` it has no price."""

    def ceiling(
        self,
        target: Target,
        input_tokens: int,
        output_tokens: int,
        at: int,
        *,
        service_tier: str | None = None,
        audio_in: bool = False,
        audio_out: bool = False,
    ) -> Cost | None:
        if target != GPT and (audio_in or audio_out):
            return None
        per_input, per_output = (10 if audio_in else 1), (100 if audio_out else 10)
        return Cost(per_input * input_tokens + per_output * output_tokens, "USD", str(target))


class Speaker(Vendor):
    """Is paid for what it has said."""

    def _settle(self, call: Call, attempt: Attempt, failure: BaseException | None) -> None:
        super()._settle(call, attempt, failure)
        generated = attempt.generated
        said = spoken(call.request, GPT.model, generated.audio)
        attempt.usage = Usage(input=INPUT, output=len("".join(generated.output)), output_audio=said)
        attempt.cost = Cost(INPUT + 10 * attempt.usage.output + 100 * said, "USD", "gpt")


class Amounts(MemoryAccounts):
    """What was reserved."""

    def __init__(self) -> None:
        super().__init__(nothing_spent, "process-1")
        self.given: list[int] = []

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        refusal = await super().reserve(call_id, holds)
        if refusal is None:
            self.given.append(holds[0].amount)
        return refusal


def speech(*pieces: Event) -> tuple[Event, ...]:
    return (Started("id-1", "m", 0), *pieces, ChoiceFinished(0, "stop"), Completed())


def asking(model: str = "chat", **extra: Any) -> Call:
    call = a_call(model, principal=KEY)
    return call.with_request(replace(call.request, extra=extra))


def limited(services: Services, limit: int) -> BudgetPlugin:
    rules = (Rule(Amount(Money(limit, "USD")), key="*"),)
    return BudgetPlugin(BudgetSettings(rules=rules, output=100), services)


def lent(accounts: Amounts) -> Services:
    return replace(lend(accounts=accounts), pricing=Audible())


async def test_a_long_speech_reserves_step_by_step() -> None:
    services = lent(accounts := Amounts())
    vendor = Speaker(services, speech(*[HALF_SECOND] * 30))
    await collect(compose([limited(services, 10**9)], vendor)(asking(**SPEECH)))
    assert accounts.given == [INPUT + 100 * 100, *[100 * 100] * 3]


async def test_a_speech_that_spends_what_is_reserved_is_stopped() -> None:
    services = lent(Amounts())
    vendor = Speaker(services, speech(*[HALF_SECOND] * 1000))
    call, limit, heard = asking(**SPEECH), INPUT + 100 * 250, 0
    with pytest.raises(BudgetSpent):
        async for event in compose([limited(services, limit)], vendor)(call):
            heard += event is HALF_SECOND
    # a piece is ten tokens, of 250 that can be paid
    assert 20 <= heard <= 25
    (attempt,) = call.trip.attempts
    assert attempt.cost is not None
    assert attempt.cost.nano <= limit
    assert vendor.closed == 1


async def test_the_words_of_a_speech_count_as_text() -> None:
    services = lent(accounts := Amounts())
    words = Extended(Extra("openai", block={"audio": {"transcript": "x" * 90}}), choice=0)
    await collect(compose([limited(services, 10**9)], Speaker(services, speech(words)))(asking(**SPEECH)))
    assert accounts.given == [INPUT + 100 * 100, 100 * 100]


@pytest.mark.parametrize(
    ("extra", "most"),
    [
        ({}, INPUT + 10 * 100),
        ({"modalities": ["text"], "audio": SPEECH["audio"]}, INPUT + 10 * 100),
        (SPEECH, INPUT + 100 * 100),
    ],
)
async def test_the_price_of_speech_is_reserved_where_it_is_asked_for(extra: dict[str, Any], most: int) -> None:
    services = lent(accounts := Amounts())
    await collect(compose([limited(services, 10**9)], Vendor(services))(asking(**extra)))
    assert accounts.given == [most]


async def test_the_price_of_a_recording_is_reserved_where_one_is_sent() -> None:
    services = lent(accounts := Amounts())
    call = asking()
    call = call.with_request(replace(call.request, messages=(User((Audio("UklGRg==", "wav"),)),)))
    await collect(compose([limited(services, 10**9)], Vendor(services, input_tokens=1))(call))
    assert accounts.given == [10 * (6 + 1000) + 10 * 100]


async def test_a_call_with_audio_that_has_no_price_is_refused_where_prices_must_be_known() -> None:
    services = lent(Amounts())
    with pytest.raises(PriceUnknown):
        await collect(compose([limited(services, 10**9)], vendor := Vendor(services))(asking("new", **SPEECH)))
    assert vendor.calls == []
    await collect(compose([limited(services, 10**9)], vendor)(asking("new")))
    assert len(vendor.calls) == 1
