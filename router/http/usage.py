"""`GET /v1/usage`: sums of the ledger as JSON, as CSV, or as charges in the FOCUS format."""

import csv
import io
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.response import Stream
from msgspec import Struct, structs

from router.errors import InvalidRequest
from router.focus import COLUMNS, VERSION, Charges, TooMany
from router.http.described import described
from router.http.query import FILTERS, Query, described_parameters, own, unknown_word
from router.http.receipts import Caller, readable, up_to_date
from router.ledger.books import Books
from router.ledger.rows import TOKEN_CLASSES, Gap
from router.money import decimal_of
from router.store.selection import Selection
from router.store.store import Store
from router.store.usage import (
    DIMENSIONS,
    OF_ATTEMPTS,
    TAG,
    Audit,
    Group,
    Prices,
    Report,
    Spent,
    Sums,
    TooManyGroups,
    charges,
    usage,
)

BUCKETS: Final = ("hour", "day", "month")
FORMATS: Final = ("json", "csv", "focus")
_GROUPED: Final = {
    "by": "What to sum by, with commas: model, target, provider, key, user, team, route, experiment, arm, outcome, "
    "price, currency, or `tag:NAME`.",
    "bucket": "Sums for every `hour`, `day` or `month`, in UTC.",
    "rerate": "`true`: prices every attempt anew with today's price book, beside what was charged.",
}
_PARAMETERS: Final = {
    **_GROUPED,
    "format": "`json`, `csv`, or `focus`: CSV in the FOCUS format of the FinOps Foundation.",
    **FILTERS,
}
_MOST_GROUPS: Final = 10_000
_MOST_CHARGES: Final = 50_000
_MOST_BY: Final = 8
_SPAN_MS: Final = 30 * 86_400_000
"""What is summed when no beginning is named: the last thirty days."""
_ROWS: Final = 500
"""Lines of CSV that leave together."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


class AmountShown(Struct, frozen=True):
    amount: str
    """A decimal number with nine places."""
    currency: str


class SpentShown(Struct, frozen=True, kw_only=True):
    amounts: list[AmountShown]
    """In the currencies they were charged in."""
    converted: AmountShown | None
    """The same in one currency, each day at its own rate; null when nothing of it is known."""
    unconverted: list[AmountShown]
    """Amounts that are not in `converted`: no rate is known."""
    unpriced: int
    """Attempts that used tokens at a price that is not known. They are in no amount."""


class EstimatedShown(Struct, frozen=True, kw_only=True):
    """Attempts whose tokens nobody reported. They are in `tokens` too."""

    attempts: int
    input: int
    output: int


class AuditShown(Struct, frozen=True, kw_only=True):
    """Attempts whose tokens were counted anew, as reported and as counted. Drift: by how much more was reported, as
    a share of what was counted."""

    attempts: int
    reported_input: int
    counted_input: int
    input_drift: float | None
    reported_output: int
    counted_output: int
    output_drift: float | None


class SumsShown(Struct, frozen=True, kw_only=True):
    start: str | None
    """When the bucket begins."""
    group: dict[str, str | None]
    requests: int | None
    """Null where sums are by price or currency: a request has none, its attempts do."""
    outcomes: dict[str, int]
    """Of the requests."""
    attempts: int
    metered: int
    """Attempts whose tokens are known."""
    tokens: dict[str, int]
    estimated: EstimatedShown
    flagged: int
    """Attempts whose figures do not add up."""
    cost: SpentShown
    rerated: SpentShown | None
    audit: AuditShown | None


class GapShown(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Calls were served that are in no sum. What is known of them is for admin keys."""

    began: str
    ended: str
    calls: int | None = None
    attempts: int | None = None
    input: int | None = None
    output: int | None = None
    amounts: list[AmountShown] | None = None


class UsageReport(Struct, frozen=True, kw_only=True):
    object: Literal["usage"] = "usage"
    since: str = msgspec.field(name="from")
    until: str | None = msgspec.field(name="to")
    """Excluded; null: now."""
    by: list[str]
    bucket: Literal["hour", "day", "month"] | None
    currency: str
    data: list[SumsShown]
    total: SumsShown
    gaps: list[GapShown]


def usage_routes(
    store: Store, books: Books, in_force: Callable[[], tuple[Prices, str]], caller: Caller
) -> list[HTTPRouteHandler]:
    """The handlers. A key sees its own calls, an admin key and a caller of None see all. `in_force` gives the prices
    and the currency of sums, of which one answer is made throughout."""

    @get(
        "/v1/usage",
        summary="Sum the ledger up",
        tags=["ledger"],
        operation_class=described(query=described_parameters(_PARAMETERS)),
        responses={200: ResponseSpec(UsageReport, generate_examples=False, description="With `format=json`.")},
    )
    async def sum_usage(request: Request[Any, Any, Any]) -> Response[UsageReport] | Stream:
        principal = await caller(request)
        pricing, currency = in_force()
        query = Query(request.scope, _PARAMETERS)
        shape = query.word("format", FORMATS, "json")
        selection = own(principal, query.selection())
        if selection.since is None:
            end = _now() if selection.until is None else selection.until
            selection = structs.replace(selection, since=max(end - _SPAN_MS, 0))
        await up_to_date(books)
        if shape == "focus":
            for name in _GROUPED:
                if name in query:
                    raise InvalidRequest(f"`{name}` has no meaning with `format=focus`: leave it out", param=name)
            return await _focus(store, pricing, selection)
        by, bucket, rerate = _by(query), _bucket(query), query.flag("rerate")
        try:
            with readable():
                report = await usage(store, pricing, selection, by, bucket, currency, rerate=rerate, most=_MOST_GROUPS)
        except TooManyGroups as error:
            raise _too_many(f"more than {error.limit} groups") from None
        everything = principal is None or principal.admin
        if shape == "csv":
            headers = {"x-deltaway-gaps": str(len(report.gaps))}
            return _csv(_lines(report, by, bucket, currency), "deltaway-usage.csv", headers)
        return Response(_shown(report, selection, by, bucket, currency, everything))

    return [sum_usage]


def _by(query: Query) -> tuple[str, ...]:
    by = query.words("by")
    for name in by:
        if name not in DIMENSIONS and (not name.startswith(TAG) or name == TAG):
            raise unknown_word("by", name, (*DIMENSIONS, "tag:NAME"))
    if len(by) > _MOST_BY:
        raise InvalidRequest(f"`by` names more than {_MOST_BY} things", param="by")
    return by


def _bucket(query: Query) -> Any:
    return query.word("bucket", BUCKETS, "") or None


def _too_many(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"the answer would have {what}: ask for less time (`from`, `to`), a larger `bucket`, fewer things in `by`, "
        "or narrow it with a filter",
        param="from",
    )


# -- JSON ------------------------------------------------------------------------------------------------------------


def _shown(
    report: Report, selection: Selection, by: tuple[str, ...], bucket: Any, currency: str, everything: bool
) -> UsageReport:
    return UsageReport(
        since=_instant(selection.since or 0),
        until=None if selection.until is None else _instant(selection.until),
        by=list(by),
        bucket=bucket,
        currency=currency,
        data=[_sums_shown(group, sums, by, bucket, currency) for group, sums in report.groups.items()],
        total=_sums_shown((), report.total, (), None, currency, requests=OF_ATTEMPTS.isdisjoint(by)),
        gaps=[_gap_shown(gap, everything) for gap in report.gaps],
    )


def _sums_shown(
    group: Group, sums: Sums, by: tuple[str, ...], bucket: str | None, currency: str, *, requests: bool = True
) -> SumsShown:
    start = _instant(group[0]) if bucket is not None else None
    counted = requests and OF_ATTEMPTS.isdisjoint(by)
    return SumsShown(
        start=start,
        group=dict(zip(by, group[len(group) - len(by) :], strict=True)),
        requests=sums.requests if counted else None,
        outcomes=sums.outcomes,
        attempts=sums.attempts,
        metered=sums.metered,
        tokens=sums.tokens,
        estimated=EstimatedShown(attempts=sums.estimated, input=sums.estimated_input, output=sums.estimated_output),
        flagged=sums.flagged,
        cost=_spent_shown(sums.cost, currency),
        rerated=None if sums.rerated is None else _spent_shown(sums.rerated, currency),
        audit=_audit_shown(sums.audit),
    )


def _spent_shown(spent: Spent, currency: str) -> SpentShown:
    return SpentShown(
        amounts=_amounts(spent.amounts),
        converted=None if spent.unknown else AmountShown(decimal_of(spent.converted), currency),
        unconverted=_amounts(spent.unconverted),
        unpriced=spent.unpriced,
    )


def _amounts(amounts: dict[str, int]) -> list[AmountShown]:
    return [AmountShown(decimal_of(nano), currency) for currency, nano in sorted(amounts.items())]


def _audit_shown(audit: Audit) -> AuditShown | None:
    if not audit.attempts:
        return None
    return AuditShown(
        attempts=audit.attempts,
        reported_input=audit.reported_input,
        counted_input=audit.counted_input,
        input_drift=_drift(audit.reported_input, audit.counted_input),
        reported_output=audit.reported_output,
        counted_output=audit.counted_output,
        output_drift=_drift(audit.reported_output, audit.counted_output),
    )


def _drift(reported: int, counted: int) -> float | None:
    return round((reported - counted) / counted, 6) if counted else None


def _gap_shown(gap: Gap, everything: bool) -> GapShown:
    shown = GapShown(began=_instant(gap.began_at), ended=_instant(gap.ended_at))
    if not everything:
        return shown
    return structs.replace(
        shown,
        calls=gap.calls,
        attempts=gap.attempts,
        input=gap.input,
        output=gap.output,
        amounts=_amounts(gap.costs),
    )


# -- CSV -------------------------------------------------------------------------------------------------------------


async def _focus(store: Store, pricing: Prices, selection: Selection) -> Stream:
    try:
        with readable():
            found = await charges(store, pricing, selection, most=_MOST_CHARGES)
    except TooMany:
        raise _too_many(f"more than {_MOST_CHARGES} charges") from None
    headers = {"x-deltaway-focus": VERSION, "x-deltaway-unpriced": str(found.unpriced)}
    return _csv(_focus_lines(found), "deltaway-focus.csv", headers)


def _focus_lines(found: Charges) -> Iterator[list[Any]]:
    yield list(COLUMNS)
    for row in found.rows():
        yield [_cell(row[name]) for name in COLUMNS]


def _lines(report: Report, by: tuple[str, ...], bucket: str | None, currency: str) -> Iterator[list[Any]]:
    """A heading, and a line for each group. There is a column for every outcome and currency that occurs."""
    outcomes = sorted({outcome for sums in report.groups.values() for outcome in sums.outcomes})
    currencies = sorted({code for sums in report.groups.values() for code in _codes(sums)})
    rerated = any(sums.rerated is not None for sums in report.groups.values())
    requests = OF_ATTEMPTS.isdisjoint(by)
    yield [
        *(["start"] if bucket is not None else []),
        *map(_cell, by),
        *(["requests", *(f"requests_{outcome}" for outcome in outcomes)] if requests else []),
        *("attempts", "metered", *TOKEN_CLASSES, "estimated_attempts", "estimated_input", "estimated_output"),
        *("flagged", "unpriced", *(f"cost_{code}" for code in currencies), f"cost_in_{currency}", "unconverted"),
        *(
            [*(f"rerated_{code}" for code in currencies), f"rerated_in_{currency}", "rerated_unpriced"]
            if rerated
            else []
        ),
        *("audited", "reported_input", "counted_input", "reported_output", "counted_output"),
    ]
    for group, sums in report.groups.items():
        values = group[len(group) - len(by) :]
        again = sums.rerated or Spent()
        yield [
            *([_instant(group[0])] if bucket is not None else []),
            *(_cell(value or "") for value in values),
            *([sums.requests, *(sums.outcomes.get(outcome, 0) for outcome in outcomes)] if requests else []),
            *(sums.attempts, sums.metered, *sums.tokens.values()),
            *(sums.estimated, sums.estimated_input, sums.estimated_output, sums.flagged, sums.cost.unpriced),
            *(_amount(sums.cost.amounts, code) for code in currencies),
            "" if sums.cost.unknown else decimal_of(sums.cost.converted),
            "; ".join(f"{decimal_of(nano)} {code}" for code, nano in sorted(sums.cost.unconverted.items())),
            *(
                [
                    *(_amount(again.amounts, code) for code in currencies),
                    "" if again.unknown else decimal_of(again.converted),
                    again.unpriced,
                ]
                if rerated
                else []
            ),
            *structs.astuple(sums.audit),
        ]


def _codes(sums: Sums) -> Iterable[str]:
    return sums.cost.amounts.keys() | (sums.rerated.amounts.keys() if sums.rerated is not None else set())


def _amount(amounts: dict[str, int], code: str) -> str:
    return decimal_of(amounts[code]) if code in amounts else ""


def _cell(text: str) -> str:
    """A client's words as a spreadsheet may open them: what it would take for a formula becomes text."""
    return f"'{text}" if text[:1] in _FORMULA and not _NUMBER.fullmatch(text) else text


def _csv(lines: Iterator[list[Any]], name: str, headers: dict[str, str]) -> Stream:
    return Stream(
        _pieces(lines),
        media_type="text/csv",
        headers={**headers, "content-disposition": f'attachment; filename="{name}"'},
    )


async def _pieces(lines: Iterator[list[Any]]) -> AsyncIterator[bytes]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for number, line in enumerate(lines, 1):
        writer.writerow(line)
        if number % _ROWS == 0:
            yield _taken(buffer)
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text.encode("utf-8")


def _instant(at: int) -> str:
    moment = datetime.fromtimestamp(at / 1000, UTC)
    return moment.isoformat(timespec="milliseconds" if at % 1000 else "seconds").replace("+00:00", "Z")


def _now() -> int:
    return int(time.time() * 1000)
