"""`logging`: one line for every call, when it has ended. Never a prompt, never a key, nor a vendor's text about them.

Usually the outermost layer, so that it also sees what the others refuse. It looks at no event: what it says stands in
the call's trip.
"""

import time
from asyncio import CancelledError
from typing import Any, Final

import structlog

from router.call import Call, Events, outcome_of
from router.errors import RouterError
from router.events import Usage
from router.plugin import CallNext

LONGEST: Final = 128
"""Characters shown of a word that the client chose."""
_CLASSES: Final = (
    *("input", "cache_read", "cache_write", "cache_write_1h", "input_audio"),
    *("output", "reasoning", "output_audio"),
)


class Logging:
    outside_of = ("auth", "limits", "budget", "cache", "usage")

    def __init__(self) -> None:
        self._log = structlog.get_logger("deltaway.calls")

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        error: BaseException | None = None
        try:
            async for event in call_next(call):
                yield event
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._write(call, error)

    def _write(self, call: Call, error: BaseException | None) -> None:
        trip = call.trip
        fields: dict[str, Any] = {
            "request_id": call.id,
            "outcome": outcome_of(error, trip),
            "dialect": call.dialect,
            "model": shown(call.request.model),
            "stream": call.request.stream,
            "attempts": len(trip.attempts),
            "duration_ms": _milliseconds(trip.started, time.monotonic()),
        }
        if trip.target is not None:
            fields["target"] = shown(str(trip.target))
        if trip.principal is not None:
            fields["key"] = trip.principal.key
        if trip.first_delta is not None:
            fields["first_token_ms"] = _milliseconds(trip.started, trip.first_delta)
        if trip.usage is not None:
            fields["tokens"] = _tokens(trip.usage)
        if trip.dropped:
            fields["dropped"] = [shown(path) for path in trip.dropped]
        if isinstance(error, CancelledError | GeneratorExit):
            error = trip.interruption
        level = "info"
        if isinstance(error, RouterError):
            level = error.level
            fields["error"] = {"status": error.status, "kind": error.kind, "code": error.code}
        elif error is not None:
            # a fault in our own code: which one, the log of the core says
            level = "error"
            fields["error"] = {"status": 500, "kind": "internal", "code": type(error).__name__}
        getattr(self._log, level)("call", **fields)


def shown(word: str) -> str:
    """A client's word, fit for a log: short, and without what moves a terminal's cursor."""
    word = word if len(word) <= LONGEST else word[:LONGEST] + "…"
    return word if word.isprintable() else ascii(word)


def _milliseconds(start: float, end: float) -> float:
    return round((end - start) * 1000, 1)


def _tokens(usage: Usage) -> dict[str, Any]:
    """The classes that have any, and where the figures come from."""
    counts: dict[str, Any] = {name: count for name in _CLASSES if (count := getattr(usage, name))}
    if usage.flag is not None:
        counts["flag"] = usage.flag
    return {**counts, "source": usage.source}
