"""`usage`: every call ends with token counts, the vendor's own or, where there are none, an estimate marked as such.

What a vendor reports passes through and nothing is counted. Else the estimate is an event before `Completed`; of an
answer that was cut, failed or left, it stands in the trip alone. Per event this layer does no more than note the text.
"""

from asyncio import CancelledError

import structlog
from msgspec import Struct

from router.call import Call, Events, Trip
from router.errors import RouterError, StreamCut, TimedOut
from router.events import (
    Completed,
    Event,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from router.plugin import CallNext
from router.tokens import BrokenVocabulary, TokenCounter, measured, rough_count


class UsagePlugin:
    inside_of = ("logging", "auth", "limits", "budget", "cache")

    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        tokenizer: bool = True
        """False: estimate by length alone (a token is four bytes); no vocabulary is loaded."""

    def __init__(self, settings: Settings, counter: TokenCounter | None = None) -> None:
        self._counter = (counter or TokenCounter()) if settings.tokenizer else None
        self._log = structlog.get_logger("deltaway.usage")

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        trip, generated = call.trip, Generated()
        note = generated.note
        error: BaseException | None = None
        try:
            async for event in call_next(call):
                kind = type(event)
                if kind is TextDelta:
                    generated.output.append(event.text)  # type: ignore[union-attr]
                elif kind is UsageReported:
                    _record(trip, event.usage)  # type: ignore[union-attr]
                elif kind is Completed and trip.usage is None:
                    usage = await self._estimate(call, generated)
                    _record(trip, usage)
                    yield UsageReported(usage)
                else:
                    note(event)
                yield event
        except BaseException as raised:
            error = raised
            _adopt(trip)
            if isinstance(error, Exception) and _is_owed(trip, generated, error):
                # an error may wait for the count, a cancellation may not
                _record(trip, await self._estimate(call, generated))
            raise
        finally:
            _adopt(trip)
            if _is_owed(trip, generated, error):
                _record(trip, self._estimate_now(call, generated))

    async def _estimate(self, call: Call, generated: "Generated") -> Usage:
        if self._counter is None:
            return self._estimate_now(call, generated)
        model, (texts, fixed) = _model(call), measured(call.request)
        try:
            return Usage(
                input=await self._counter.count(texts, model) + fixed,
                output=await self._counter.count(["".join(generated.output)], model),
                reasoning=await self._counter.count(["".join(generated.reasoning)], model),
                source="estimated",
            )
        except BrokenVocabulary as broken:
            # no reason to fail an answer that is complete
            self._log.error("tokens are estimated by length", request_id=call.id, reason=str(broken))
            return self._estimate_now(call, generated)

    def _estimate_now(self, call: Call, generated: "Generated") -> Usage:
        """The same at once, for a stream that is being closed: long texts are estimated by their length."""
        model, (texts, fixed) = _model(call), measured(call.request)
        return Usage(
            input=self._count_now(texts, model) + fixed,
            output=self._count_now(["".join(generated.output)], model),
            reasoning=self._count_now(["".join(generated.reasoning)], model),
            source="estimated",
        )

    def _count_now(self, texts: list[str], model: str) -> int:
        counted = self._counter.count_now(texts, model) if self._counter is not None else None
        return rough_count(texts) if counted is None else counted


class Generated:
    """What the vendor has written so far, by class of token."""

    __slots__ = ("began", "output", "reasoning")

    def __init__(self) -> None:
        self.began = False
        self.output: list[str] = []
        self.reasoning: list[str] = []

    def note(self, event: Event) -> None:
        """Any event but text, which the stream notes itself."""
        self.began = True
        match event:
            case ReasoningDelta():
                self.reasoning.append(event.text)
            case ToolCallDelta():
                self.output.append(event.arguments)
            case ToolCallStarted():
                self.output.append(event.name)
            case RefusalDelta():
                self.output.append(event.text)


def _record(trip: Trip, usage: Usage) -> None:
    trip.usage = usage
    if trip.attempts:
        trip.attempts[-1].usage = usage


def _adopt(trip: Trip) -> None:
    """Of an answer that did not end, take what the vendor had told by then: some count in every frame."""
    if trip.usage is None and trip.attempts:
        trip.usage = trip.attempts[-1].usage


def _is_owed(trip: Trip, generated: Generated, error: BaseException | None) -> bool:
    """Whether an estimate is missing: for an answer that has begun, or one that a vendor was asked for and did not
    refuse, which may bill the prompt although nothing came."""
    if trip.usage is not None:
        return False
    waiting = isinstance(error, CancelledError | GeneratorExit | TimedOut | StreamCut)
    return generated.began or (bool(trip.attempts) and (waiting or not isinstance(error, RouterError)))


def _model(call: Call) -> str:
    """The vendor's name of the model: a route's name would not tell which vocabulary to use."""
    target = call.trip.target
    return call.request.model if target is None else target.model
