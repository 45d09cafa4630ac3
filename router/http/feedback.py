"""`POST /v1/feedback`: what clients say of answers, by the request's id, in metrics that experiments define."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal

import structlog
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from router.errors import InvalidRequest, NotFound, StoreUnavailable
from router.experiment import Experiment, MetricKind
from router.http.described import described
from router.http.json_body import json_body
from router.http.receipts import Caller, found_soon, is_id, up_to_date
from router.ledger.books import Books
from router.ledger.rows import LONGEST_NAME, kept_text
from router.nearest import did_you_mean
from router.store.feedback import Feedback, Subject, give, subject
from router.store.receipts import said_value
from router.store.store import Store, StoreAway

LONGEST_COMMENT: Final = 2000
_LARGEST: Final = 1e12
_SMALLEST: Final = 1e-12
"""Squares of what is in between can be summed by any store."""
_LONGEST_QUOTE: Final = 80
_TAKES: Final[dict[MetricKind, str]] = {
    "binary": "is binary: it takes true or false (or 1 or 0)",
    "number": "is a number: it takes any finite one",
}


class FeedbackBody(Struct, forbid_unknown_fields=True, kw_only=True):
    request_id: str
    """As `x-request-id` of the answer says it."""
    metric: str
    """The name of one that an experiment defines; of the request's own, if it was in one."""
    value: Any
    """For a binary metric true, false, 1 or 0; for a number any finite one."""
    comment: Annotated[str, Meta(max_length=LONGEST_COMMENT)] | None = None


class FeedbackShown(Struct, frozen=True, kw_only=True):
    """Times are Unix seconds."""

    object: Literal["feedback"] = "feedback"
    request_id: str
    metric: str
    value: bool | float
    comment: str | None
    created_at: int
    updated_at: int
    created: bool
    """Nothing had been said before."""
    replaced: bool
    """Another value, or another comment, had. The same again is neither created nor replaced."""


def feedback_routes(
    store: Store, books: Books, caller: Caller, experiments: Callable[[], Mapping[str, Experiment]], *, recorded: bool
) -> list[HTTPRouteHandler]:
    """The handler. A key gives feedback on its own requests, an admin key and a caller of None on any. `experiments`:
    those of the configuration in force, by name. `recorded`: whether there is a ledger."""

    @post(
        "/v1/feedback",
        summary="Say how good an answer was",
        tags=["experiments"],
        status_code=200,
        operation_class=described(FeedbackBody, required=True),
    )
    async def give_feedback(request: Request[Any, Any, Any]) -> FeedbackShown:
        """At any time, as long as the request is in the ledger. Said twice it counts once; what is said later of the
        same request and metric takes the place of what was said before."""
        principal = await caller(request)
        body = await json_body(request, FeedbackBody)
        if not recorded:
            words = (
                "this gateway keeps no record of requests (`ledger.enabled` is false), so it takes no feedback on them"
            )
            raise InvalidRequest(words, code="ledger_disabled")
        own = None if principal is None or principal.admin else principal.key
        with _writable():
            found = None
            if is_id(body.request_id):
                await up_to_date(books)
                found = await found_soon(body.request_id, lambda: subject(store, body.request_id, key=own))
            if found is None:
                raise _unknown(body.request_id, own)
            kind, value = _measured(body, _kinds(body.metric, found, experiments()))
            now = int(time.time() * 1000)
            given = await give(
                store,
                Feedback(
                    call_id=found.id,
                    metric=body.metric,
                    kind=kind,
                    value=value,
                    comment=None if body.comment is None else kept_text(body.comment, LONGEST_COMMENT),
                    key=None if principal is None else principal.key,
                    created_at=now,
                    updated_at=now,
                ),
            )
        kept = given.feedback
        return FeedbackShown(
            request_id=kept.call_id,
            metric=kept.metric,
            value=said_value(kept.kind, kept.value),
            comment=kept.comment,
            created_at=kept.created_at // 1000,
            updated_at=kept.updated_at // 1000,
            created=given.created,
            replaced=given.replaced,
        )

    return [give_feedback]


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except StoreAway as error:
        structlog.get_logger("deltaway.store").error("feedback could not be kept", reason=str(error))
        words = "the feedback cannot be kept now; send it again later: it counts once, however often it is sent"
        raise StoreUnavailable(words, retry_after=5.0) from error


def _unknown(request_id: str, key: str | None) -> NotFound:
    named = f"no request `{_quoted(request_id)}`"
    if key is not None:
        # which of both it is tells nothing of others' requests
        named += " that this key has made: there is none of that id, or it is another key's"
    return NotFound(named, param="request_id")


def _kinds(metric: str, found: Subject, experiments: Mapping[str, Experiment]) -> set[MetricKind]:
    """What the metric takes: of the request's experiment, else of any. Raises `InvalidRequest`."""
    if found.experiment is not None and found.experiment not in experiments:
        raise InvalidRequest(
            f"`{_quoted(metric)}` is not known: the experiment `{found.experiment}` that the request was in is not "
            "configured any more, and with it its metrics",
            code="unknown_metric",
            param="metric",
        )
    asked = [experiments[found.experiment]] if found.experiment is not None else list(experiments.values())
    kinds = {each.metrics[metric].kind for each in asked if metric in each.metrics}
    if not kinds:
        known = sorted({name for each in asked for name in each.metrics})
        whose = "no experiment" if found.experiment is None else f"the experiment `{found.experiment}`"
        whose += " defines" if found.experiment is None else " of this request does not define"
        listed = f" (known: {', '.join(known)})" if known else ": metrics are named under `metrics` of an experiment"
        words = f"{whose} the metric `{_quoted(metric)}`{did_you_mean(metric, known)}{listed}"
        raise InvalidRequest(words, code="unknown_metric", param="metric")
    return kinds


def _measured(body: FeedbackBody, kinds: set[MetricKind]) -> tuple[MetricKind, float]:
    """The value as it is kept, and of which kind it is. Raises `InvalidRequest`."""
    value = body.value
    if "binary" in kinds and isinstance(value, bool | int | float) and value in (0, 1):
        return "binary", float(value)
    if "number" in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        size = abs(value)
        if size == 0 or _SMALLEST <= size <= _LARGEST:
            return "number", float(value)
        raise InvalidRequest(
            f"`value` is {_described(value)}, and the metric `{body.metric}` takes 0 and numbers from {_SMALLEST:g} to "
            f"{_LARGEST:g} in size: measure in another unit",
            code="invalid_value",
            param="value",
        )
    takes = " or ".join(_TAKES[kind] for kind in sorted(kinds))
    words = f"`value` is {_described(value)}, and the metric `{body.metric}` {takes}"
    raise InvalidRequest(words, code="invalid_value", param="value")


def _described(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() if abs(value) > _LARGEST:
            return "a very large number"
        case int() | float():
            return f"{value:.12g}"
        case str():
            return f"the text {_quoted(value)!r}"
        case list():
            return "a list"
    return "an object"


def _quoted(text: str) -> str:
    return kept_text(text, min(_LONGEST_QUOTE, LONGEST_NAME))
