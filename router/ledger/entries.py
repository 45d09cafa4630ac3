"""What is written of a call and its attempts: values of the trip become rows. Pure, but for the clock."""

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from router.call import Attempt, Call, Trip, outcome_of
from router.errors import ProviderError, RouterError
from router.events import Usage
from router.ledger.rows import LONGEST_VALUE, AttemptRow, CallRow, Labels, kept_text

_LONGEST_MESSAGE: Final = 600
_MOST_TAGS: Final = 32
_NOTHING: Final = Usage()


def labels_of(call: Call, is_route: Callable[[str], bool]) -> Labels:
    """The same for all rows of a call, whatever layers make of it on its way."""
    trip = call.trip
    if not isinstance(trip.labels, Labels):
        trip.labels = _labelled(call, is_route)
    return trip.labels


def _labelled(call: Call, is_route: Callable[[str], bool]) -> Labels:
    principal, model = call.trip.principal, call.trip.asked or call.request.model
    tags, user = call.tags, call.user
    if principal is not None:
        tags, user = {**tags, **principal.tags} if principal.tags else tags, principal.user or user
    name = kept_text(model)
    return Labels(
        name,
        name if is_route(model) else None,
        None if principal is None else principal.key,
        None if user is None else kept_text(user),
        None if principal is None else principal.team,
        _tags(tags) if tags else {},
    )


def begun_call(call: Call, labels: Labels, journal: str) -> CallRow:
    """A call under way, in the journal of that id."""
    return CallRow(call.id, call.trip.created_at, labels, call.dialect, call.request.stream, journal)


def begun_attempt(call_id: str, attempt: Attempt, labels: Labels, journal: str) -> AttemptRow:
    """An attempt that is about to be made."""
    return AttemptRow(
        call_id,
        attempt.n,
        attempt.created_at,
        labels,
        attempt.target.provider,
        kept_text(attempt.target.model),
        journal,
        thinking=attempt.thinking,
    )


def ended_call(
    row: CallRow,
    call: Call,
    error: BaseException | None,
    layers: tuple[str, ...],
    is_route: Callable[[str], bool],
) -> CallRow:
    """The row of a call that has ended, with `error` or by itself. `layers`: the names of its plugins, in order."""
    trip = call.trip
    if error is not None and trip.interruption is not None and not isinstance(error, RouterError):
        error = trip.interruption
    return msgspec.structs.replace(
        row,
        ended_at=trip.created_at + _ms(time.monotonic() - trip.started),
        outcome=outcome_of(error, trip),
        target=None if trip.target is None else kept_text(str(trip.target)),
        error=_error(error),
        timing=_call_timing(trip, layers),
        decision=_decision(call, is_route),
    )


def settled_attempt(row: AttemptRow, attempt: Attempt, trip: Trip) -> AttemptRow:
    """The row of an attempt that has ended, with its tokens and its cost."""
    usage, cost = attempt.usage or _NOTHING, attempt.cost
    ended = attempt.ended if attempt.ended is not None else time.monotonic()
    timing: dict[str, Any] = {"duration_ms": _millis(ended - attempt.started)}
    if attempt.first_delta is not None:
        timing["first_token_ms"] = _millis(attempt.first_delta - attempt.started)
        timing["longest_gap_ms"] = _millis(attempt.longest_gap)
    return AttemptRow(
        row.call_id,
        row.n,
        row.created_at,
        row.labels,
        row.provider,
        row.model,
        row.journal,
        trip.created_at + _ms(ended - trip.started),
        attempt.outcome,
        _error(attempt.error),
        timing,
        None if attempt.vendor_request_id is None else kept_text(str(attempt.vendor_request_id)),
        usage.input,
        usage.cache_read,
        usage.cache_write,
        usage.cache_write_1h,
        usage.input_audio,
        usage.output,
        usage.reasoning,
        usage.output_audio,
        None if attempt.usage is None else usage.source,
        None if usage.flag is None else kept_text(usage.flag, LONGEST_VALUE),
        None if attempt.service_tier is None else kept_text(attempt.service_tier),
        attempt.thinking or usage.reasoning > 0 or bool(attempt.generated.reasoning),
        None if cost is None else cost.nano,
        None if cost is None else cost.currency,
        None if cost is None else cost.price,
    )


def _call_timing(trip: Trip, layers: tuple[str, ...]) -> dict[str, Any]:
    now = time.monotonic()
    vendors = sum((attempt.ended or now) - attempt.started for attempt in trip.attempts)
    timing: dict[str, Any] = {
        "duration_ms": _millis(now - trip.started),
        "overhead_ms": _millis(now - trip.started - vendors),
    }
    if trip.attempts:
        timing["queue_ms"] = _millis(trip.attempts[0].started - trip.started)
    if trip.first_delta is not None:
        timing["first_token_ms"] = _millis(trip.first_delta - trip.started)
        timing["longest_gap_ms"] = _millis(max(attempt.longest_gap for attempt in trip.attempts))
    # a layer's time is from its opening to that of the next; the last mark is the core's own
    marks = trip.opened_at
    timing["plugins"] = {
        name: _millis(after - before) for name, before, after in zip(layers, marks, marks[1:], strict=False)
    }
    return timing


def _decision(call: Call, is_route: Callable[[str], bool]) -> dict[str, Any]:
    candidates = [kept_text(str(target)) for target in call.trip.candidates]
    if not candidates:
        return {}
    if not is_route(call.request.model):
        return {"why": "asked for by name", "candidates": candidates}
    return {"why": "the first target of the route that is available", "candidates": candidates}


def _error(error: BaseException | None) -> dict[str, Any] | None:
    if error is None:
        return None
    if not isinstance(error, RouterError):
        return {"status": 500, "kind": "internal", "code": "internal_error", "message": "internal error"}
    said: dict[str, Any] = {
        "status": error.status,
        "kind": error.kind,
        "code": kept_text(error.code),
        "message": kept_text(error.message, _LONGEST_MESSAGE),
    }
    if isinstance(error, ProviderError):
        vendor: dict[str, Any] = {"status": error.vendor_status}
        for name, value in (("code", error.vendor_code), ("request_id", error.vendor_request_id)):
            vendor[name] = None if value is None else kept_text(str(value))
        said["vendor"] = {name: value for name, value in vendor.items() if value is not None}
    return said


def _tags(tags: dict[str, str]) -> dict[str, str]:
    return {kept_text(name): kept_text(value, LONGEST_VALUE) for name, value in list(tags.items())[:_MOST_TAGS]}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _millis(seconds: float) -> float:
    """With two places; `round` takes twice as long, and a row has a dozen."""
    return int(seconds * 100_000 + 0.5) / 100


def _now() -> int:
    return int(time.time() * 1000)
