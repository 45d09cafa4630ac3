"""`GET /v1/requests` and `/v1/requests/{id}`: all that is known of calls, in pages or one at a time."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias, TypeVar

import structlog
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import UNSET, Struct, UnsetType, structs

from router.call import Principal
from router.errors import InvalidRequest, NotFound, StoreUnavailable
from router.http.described import CURSOR, described
from router.http.query import FILTERS, Query, described_parameters, own
from router.ids import made_at
from router.ledger.books import Books
from router.ledger.rows import TOKEN_CLASSES, AttemptRow
from router.money import decimal_of
from router.store.receipts import Counted, Receipt, receipt, receipts
from router.store.store import Store, StoreAway
from router.store.usage import unpriced

Caller: TypeAlias = Callable[[Request[Any, Any, Any]], Awaitable[Principal | None]]
"""Who asks; None where nobody needs a key. Raises `AuthenticationFailed`."""
Found = TypeVar("Found")
_PARAMETERS: Final = (*FILTERS, "after", "before", "limit")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATIENCE: Final = 1.0
"""Seconds to wait for rows of this process that are not in the store yet."""
_AGAIN: Final = 0.05
_YOUNG: Final = 1000
"""Age in milliseconds up to which a call that is not found may be one whose rows are on their way."""
_PLACE: Final = re.compile(r"req_[0-9A-HJKMNP-TV-Z]{26}")
"""Any id of a request says a place in the list, whether or not there is a receipt of that id."""


class TimingShown(Struct, frozen=True, kw_only=True):
    """Milliseconds; null: it did not come to that, or nobody measured."""

    queue_ms: float | None = None
    """Until the first attempt began."""
    first_token_ms: float | None = None
    duration_ms: float | None = None
    overhead_ms: float | None = None
    """The gateway's own part."""
    longest_gap_ms: float | None = None
    """The longest wait for the next piece."""
    plugins: dict[str, float] = {}


class AttemptTimingShown(Struct, frozen=True, kw_only=True):
    """Milliseconds from the attempt's own beginning."""

    first_token_ms: float | None = None
    duration_ms: float | None = None
    longest_gap_ms: float | None = None


class UsageShown(Struct, frozen=True, kw_only=True):
    """Tokens in classes that have none in common."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    input_audio: int = 0
    output: int = 0
    reasoning: int = 0
    output_audio: int = 0
    source: Literal["reported", "estimated"]
    """By the vendor, or by us. Of a call: `estimated` if that is so of any attempt."""
    flag: str | None = None
    """Why the vendor's figures do not add up."""


class CostShown(Struct, frozen=True, kw_only=True):
    amount: str
    """A decimal number with nine places."""
    currency: str
    price: str | None
    """Id of the price; null where there were several."""


class CountedShown(Struct, frozen=True):
    """What our tokenizer counted, to compare with what was reported."""

    input: int
    output: int


class AttemptShown(Struct, frozen=True, kw_only=True):
    n: int
    target: str
    role: str | None
    """Why it was made: `first`, `lesson`, `retry`, `fallback`, `hedge` or `continuation`; null: nobody noted."""
    why: str | None
    """The same in words: what had failed before it, say."""
    key: str | None
    """Which of the provider's keys, where it has several: `2 of 3`."""
    seam: int | None
    """Of a continuation: characters of text that had come before it."""
    created_at: int
    outcome: str | None
    error: dict[str, Any] | None
    vendor_request_id: str | None
    service_tier: str | None
    thinking: bool
    timing: AttemptTimingShown
    usage: UsageShown | None
    cost: CostShown | None
    unpriced: bool
    """Tokens were used at a price that is not known."""
    audit: CountedShown | None


class ExperimentShown(Struct, frozen=True, kw_only=True):
    name: str
    arm: str | None
    """One of the experiment's, `holdout`, or `shadow`."""
    unit: str | None = None
    """What is assigned to an arm as a whole: `user`, `conversation`, `key` or `request`. Null while the call runs."""
    forced: bool = False
    """By an admin, for a test: not counted in reports."""
    shadow_of: str | None = None
    """The id of the call that this one repeats."""


class ReceiptShown(Struct, frozen=True, kw_only=True):
    """Times are Unix seconds. Usage and cost are sums over the attempts."""

    id: str
    object: Literal["request"] = "request"
    created_at: int
    outcome: str | None
    """Null while it runs."""
    dialect: str
    model: str
    """The name that was asked for."""
    route: str | None
    target: str | None
    """Of the last attempt."""
    stream: bool
    key: str | None
    user: str | None
    team: str | None
    tags: dict[str, str]
    experiment: ExperimentShown | None
    error: dict[str, Any] | None
    decision: dict[str, Any]
    """Why it went where it went, what was left out and why, and the configuration in force."""
    timing: TimingShown
    usage: UsageShown | None
    cost: CostShown | list[CostShown] | None
    """One for each currency, if there are several."""
    unpriced: bool
    attempts: list[AttemptShown]
    feedback: dict[str, bool | float] | UnsetType = UNSET
    """Metric → what was said of the answer. In a list of receipts there is none."""
    shadows: list[str] | UnsetType = UNSET
    """Calls that repeat this one in the background, for whoever may see them. In a list of receipts there are none."""


class ReceiptList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ReceiptShown]
    """The newest first."""
    first_id: str | None
    last_id: str | None
    has_more: bool


def receipt_routes(store: Store, books: Books, caller: Caller) -> list[HTTPRouteHandler]:
    """The handlers. A key sees its own calls, an admin key and a caller of None see all."""

    @get(
        "/v1/requests",
        summary="List receipts of calls, the newest first",
        tags=["ledger"],
        operation_class=described(query=[*described_parameters(FILTERS), *CURSOR]),
    )
    async def list_receipts(request: Request[Any, Any, Any]) -> ReceiptList:
        principal = await caller(request)
        query = Query(request.scope, _PARAMETERS)
        after, before = query.text("after"), query.text("before")
        if after is not None and before is not None:
            raise InvalidRequest("`after` and `before` say two places: give one of them", param="before")
        for name, cursor in (("after", after), ("before", before)):
            if cursor is not None and not _PLACE.fullmatch(cursor):
                raise InvalidRequest(f"`{name}` is no id of a request: it looks like `req_…`", param=name)
        selection, limit = own(principal, query.selection()), query.number("limit", 20, 1, 100)
        await up_to_date(books)
        with readable():
            page = await receipts(store, selection, after=after, before=before, limit=limit)
        data = [shown(found) for found in page.receipts]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return ReceiptList(data=data, first_id=first, last_id=last, has_more=page.more)

    @get("/v1/requests/{request_id:str}", summary="Retrieve the receipt of a call", tags=["ledger"])
    async def retrieve_receipt(request: Request[Any, Any, Any], request_id: FromPath[str]) -> ReceiptShown:
        principal = await caller(request)
        Query(request.scope, ())
        key = None if principal is None or principal.admin else principal.key
        found = None
        if is_id(request_id):
            await up_to_date(books)
            with readable():
                found = await found_soon(request_id, lambda: receipt(store, request_id, key=key))
        if found is None:
            raise NotFound("no request of that id that may be looked at with this key", param="id")
        alone = structs.replace(shown(found), feedback=found.feedback)
        return alone if key is not None else structs.replace(alone, shadows=list(found.shadows))

    return [list_receipts, retrieve_receipt]


async def up_to_date(books: Books) -> None:
    """Who asks sees what they did before: the rows of this process are waited for, for a moment."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await books.flushed()
    except TimeoutError:
        return


def is_id(text: str) -> bool:
    """Whether a request may have such an id."""
    return bool(_ID.fullmatch(text))


async def found_soon(request_id: str, look: Callable[[], Awaitable[Found | None]]) -> Found | None:
    """What `look` finds of a call; if nothing, and the call may have been made just now, it looks again."""
    found = await look()
    while found is None and _is_young(request_id):
        # another process served it, whose rows gather for a moment
        await asyncio.sleep(_AGAIN)
        found = await look()
    return found


def _is_young(request_id: str) -> bool:
    return bool(_PLACE.fullmatch(request_id)) and abs(time.time() * 1000 - made_at(request_id)) < _YOUNG


@contextmanager
def readable() -> Iterator[None]:
    """The store being away, in words for a client; the log knows more."""
    try:
        yield
    except StoreAway as error:
        structlog.get_logger("deltaway.store").error("the ledger could not be read", reason=str(error))
        raise StoreUnavailable("the ledger cannot be read now; try again later", retry_after=5.0) from error


def shown(found: Receipt) -> ReceiptShown:
    call, labels = found.call, found.call.labels
    experiment = None
    if labels.experiment is not None:
        known = _known(ExperimentShown, {**call.decision.get("experiment", {}), "name": labels.experiment})
        experiment = ExperimentShown(**{**known, "arm": labels.arm})
    return ReceiptShown(
        id=call.id,
        created_at=call.created_at // 1000,
        outcome=call.outcome,
        dialect=call.dialect,
        model=labels.model,
        route=labels.route,
        target=call.target,
        stream=call.stream,
        key=labels.key,
        user=labels.user,
        team=labels.team,
        tags=labels.tags,
        experiment=experiment,
        error=call.error,
        decision={name: part for name, part in call.decision.items() if name != "experiment"},
        timing=TimingShown(**_known(TimingShown, call.timing)),
        usage=_usage(found.attempts),
        cost=_cost(found.attempts),
        unpriced=any(unpriced(row) for row in found.attempts),
        attempts=[_attempt(row, found.audits.get(row.n)) for row in found.attempts],
    )


def _attempt(row: AttemptRow, counted: Counted | None) -> AttemptShown:
    cost = _cost([row])
    assert not isinstance(cost, list)
    return AttemptShown(
        n=row.n,
        target=f"{row.provider}/{row.model}",
        role=row.role,
        why=row.why,
        key=row.vendor_key,
        seam=row.seam,
        created_at=row.created_at // 1000,
        outcome=row.outcome,
        error=row.error,
        vendor_request_id=row.vendor_request_id,
        service_tier=row.service_tier,
        thinking=row.thinking,
        timing=AttemptTimingShown(**_known(AttemptTimingShown, row.timing)),
        usage=_usage([row]),
        cost=cost,
        unpriced=unpriced(row),
        audit=None if counted is None else CountedShown(counted.input, counted.output),
    )


def _usage(rows: Iterable[AttemptRow]) -> UsageShown | None:
    counted = [row for row in rows if row.source is not None]
    if not counted:
        return None
    sums = {name: sum(getattr(row, name) for row in counted) for name in TOKEN_CLASSES}
    estimated = any(row.source == "estimated" for row in counted)
    flag = next((row.flag for row in counted if row.flag is not None), None)
    return UsageShown(**sums, source="estimated" if estimated else "reported", flag=flag)


def _cost(rows: Iterable[AttemptRow]) -> CostShown | list[CostShown] | None:
    amounts: dict[str, int] = {}
    prices: dict[str, set[str | None]] = {}
    for row in rows:
        if row.cost is not None and row.currency is not None:
            amounts[row.currency] = amounts.get(row.currency, 0) + row.cost
            prices.setdefault(row.currency, set()).add(row.price)
    costs = [
        CostShown(
            amount=decimal_of(nano),
            currency=currency,
            price=next(iter(prices[currency])) if len(prices[currency]) == 1 else None,
        )
        for currency, nano in amounts.items()
    ]
    return costs if len(costs) > 1 else costs[0] if costs else None


def _known(type_: type[Struct], values: dict[str, Any]) -> dict[str, Any]:
    """Rows of another version may know more."""
    return {name: values[name] for name in type_.__struct_fields__ if name in values}
