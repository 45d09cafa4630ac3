"""`usage`: every call ends with token counts, the vendor's own or, where there are none, an estimate marked as such.

What a vendor reports passes through and nothing is counted. Else the estimate is an event before `Completed`; of an
answer that was cut, failed or left, it stands in the trip alone. Per event this layer does no more than note the text.
"""

from asyncio import CancelledError

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
from router.tokens import TokenCounter, measured, rough_count


class UsagePlugin:
    inside_of = ("logging", "auth", "limits", "budget", "cache")

    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        tokenizer: bool = True
        """False: estimate by length alone (a token is four bytes); no vocabulary is loaded."""

    def __init__(self, settings: Settings, counter: TokenCounter | None = None) -> None:
        self._counter = (counter or TokenCounter()) if settings.tokenizer else None

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
            raise
        finally:
            if trip.usage is None and (generated.began or _vendor_worked(trip, error)):
                _record(trip, self._estimate_now(call, generated))

    async def _estimate(self, call: Call, generated: "Generated") -> Usage:
        if self._counter is None:
            return self._estimate_now(call, generated)
        model, (texts, fixed) = _model(call), measured(call.request)
        return Usage(
            input=await self._counter.count(texts, model) + fixed,
            output=await self._counter.count(["".join(generated.output)], model),
            reasoning=await self._counter.count(["".join(generated.reasoning)], model),
            source="estimated",
        )

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


def _vendor_worked(trip: Trip, error: BaseException | None) -> bool:
    """Whether an answer of which nothing came may be billed: the vendor was asked, and has not refused."""
    waiting = isinstance(error, CancelledError | GeneratorExit | TimedOut | StreamCut)
    return bool(trip.attempts) and (waiting or not isinstance(error, RouterError))


def _model(call: Call) -> str:
    """The vendor's name of the model: a route's name would not tell which vocabulary to use."""
    target = call.trip.target
    return call.request.model if target is None else target.model
