"""What is written of a call and its attempts: values of the trip become rows. Pure, but for the clock."""

import time
from typing import Any, Final

import msgspec

from router.call import Attempt, Call, Trip, outcome_of
from router.errors import ProviderError, RouterError
from router.events import Usage
from router.ledger.rows import LONGEST_VALUE, AttemptRow, CallRow, Exposure, Labels, kept_text

_LONGEST_MESSAGE: Final = 600
_MOST_TAGS: Final = 32
_NOTHING: Final = Usage()


def labels_of(call: Call) -> Labels:
    """The same for all rows of a call, whatever layers make of it on its way."""
    trip = call.trip
    if not isinstance(trip.labels, Labels):
        trip.labels = _labelled(call)
    return trip.labels


def _labelled(call: Call) -> Labels:
    principal, model = call.trip.principal, call.trip.asked or call.request.model
    tags, user = call.tags, call.user
    if principal is not None:
        tags, user = {**tags, **principal.tags} if principal.tags else tags, principal.user or user
    name, assigned = kept_text(model), call.trip.assigned
    return Labels(
        name,
        name if call.trip.in_force.is_route(model) else None,
        None if principal is None else principal.key,
        None if user is None else kept_text(user),
        None if principal is None else principal.team,
        _tags(tags) if tags else {},
        None if assigned is None else assigned.experiment,
        None if assigned is None else assigned.arm,
    )


def exposure_of(call: Call, journal: str) -> Exposure | None:
    """What an experiment has decided about the call, if there is one."""
    assigned = call.trip.assigned
    if assigned is None:
        return None
    return Exposure(
        call.id,
        call.trip.created_at,
        assigned.experiment,
        assigned.arm,
        assigned.unit,
        assigned.kind,
        assigned.forced,
        assigned.shares,
        assigned.shadow_of,
        journal,
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
        role=attempt.role,
        why=kept_text(attempt.why, LONGEST_VALUE) if attempt.why else None,
        vendor_key=attempt.key or None,
        seam=attempt.seam,
    )


def ended_call(row: CallRow, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> CallRow:
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
        decision=_decision(trip),
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
        attempt.role,
        kept_text(attempt.why, LONGEST_VALUE) if attempt.why else None,
        attempt.key or None,
        attempt.seam,
    )


def _call_timing(trip: Trip, layers: tuple[str, ...]) -> dict[str, Any]:
    now = time.monotonic()
    timing: dict[str, Any] = {
        "duration_ms": _millis(now - trip.started),
        "overhead_ms": _millis(max(now - trip.started - _with_vendors(trip.attempts, now), 0.0)),
    }
    if trip.attempts:
        timing["queue_ms"] = _millis(trip.attempts[0].started - trip.started)
    if trip.first_delta is not None:
        timing["first_token_ms"] = _millis(trip.first_delta - trip.started)
        timing["longest_gap_ms"] = _millis(max((attempt.longest_gap for attempt in trip.attempts), default=0.0))
    # a layer's time is from its opening to that of the next; the last mark is the core's own
    marks = trip.opened_at
    timing["plugins"] = {
        name: _millis(after - before) for name, before, after in zip(layers, marks, marks[1:], strict=False)
    }
    return timing


def _with_vendors(attempts: list[Attempt], now: float) -> float:
    """Seconds in which any attempt was under way: a hedge runs beside the attempt that it helps."""
    spent, until = 0.0, float("-inf")
    for attempt in sorted(attempts, key=lambda each: each.started):
        ended = now if attempt.ended is None else attempt.ended
        spent += max(ended - max(attempt.started, until), 0.0)
        until = max(until, ended)
    return spent


def _decision(trip: Trip) -> dict[str, Any]:
    """Why the call went where it went: the parts that there are something to say of."""
    said: dict[str, Any] = {}
    if trip.candidates or trip.skipped:
        said["why"] = kept_text(trip.choice, LONGEST_VALUE) if trip.choice else "asked for by name"
        said["candidates"] = [kept_text(str(target)) for target in trip.candidates]
    if trip.skipped:
        said["skipped"] = [
            {"target": kept_text(str(each.target)), "why": kept_text(each.why, LONGEST_VALUE)} for each in trip.skipped
        ]
    if trip.terms is not None:
        said["generation"] = trip.terms.generation
    if trip.cached:
        said["cache"] = trip.cached
    if trip.assigned is not None:
        said["experiment"] = {"unit": trip.assigned.kind, "forced": trip.assigned.forced}
        if trip.assigned.shadow_of is not None:
            said["experiment"]["shadow_of"] = trip.assigned.shadow_of
    return said


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
