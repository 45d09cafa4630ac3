"""Sums of the ledger: by model, key, day or whatever is asked for.

Tokens and costs are sums over attempts, requests are counted from calls: another try is no other request. Days and
months are those of UTC. Costs are summed in the currency they are in; what they come to in one currency is reckoned
with the rate of each day.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol, TypeAlias

import msgspec
from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, Select, Table, and_, case, func, literal_column, null, or_, select

from router.events import Usage
from router.focus import Charges
from router.ledger.rows import TOKEN_CLASSES, AttemptRow, Gap, usage_of
from router.money import NANO
from router.prices.pricing import Breakdown
from router.pricing import Cost, Pricing
from router.provider import Target
from router.store.ledger import attempt_row
from router.store.selection import RUNNING, Dialect, Selection, of_attempts, of_calls, provider_of_call, tag
from router.store.store import Store
from router.store.tables import attempts, calls, gaps

Bucket: TypeAlias = Literal["hour", "day", "month"]
DIMENSIONS: Final = (
    "model",
    "target",
    "provider",
    "key",
    "user",
    "team",
    "route",
    "experiment",
    "arm",
    "outcome",
    "price",
    "currency",
)
"""What can be summed by, and besides `tag:` with the name of a tag."""
OF_ATTEMPTS: Final = frozenset({"price", "currency"})
"""What a call has none of: sums by these know no requests."""
TAG: Final = "tag:"

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_STEP: Final = 500
"""Attempts read at a time when each is looked at: the event loop does other work between two steps."""
_PROMPT: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "input_audio")
_COMPLETION: Final = ("output", "reasoning", "output_audio")

Group: TypeAlias = tuple[Any, ...]
"""The bucket's start (if there are buckets), then one value for each thing summed by."""


class Audit(Struct):
    """Attempts whose reported tokens were counted anew: both sums."""

    attempts: int = 0
    reported_input: int = 0
    counted_input: int = 0
    reported_output: int = 0
    counted_output: int = 0


class Spent(Struct):
    """Nano-units by currency, and what they come to in one currency. `unconverted`: no rate is known for these."""

    amounts: dict[str, int] = {}
    converted: int = 0
    unconverted: dict[str, int] = {}
    unpriced: int = 0
    """Attempts that used tokens at a price that is not known."""

    @property
    def unknown(self) -> bool:
        """Whether nothing is in `converted` although something was used: that is not zero."""
        known = any(code not in self.unconverted for code in self.amounts)
        return not known and bool(self.unpriced or self.unconverted)


class Sums(Struct):
    requests: int = 0
    outcomes: dict[str, int] = {}
    """Of the requests."""
    attempts: int = 0
    metered: int = 0
    """Attempts whose tokens are known, reported or estimated."""
    tokens: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(TOKEN_CLASSES, 0))
    estimated: int = 0
    """Attempts whose tokens nobody reported."""
    estimated_input: int = 0
    estimated_output: int = 0
    flagged: int = 0
    """Attempts whose figures do not add up."""
    cost: Spent = msgspec.field(default_factory=Spent)
    audit: Audit = msgspec.field(default_factory=Audit)
    rerated: Spent | None = None
    """At today's prices, where that was asked for."""

    def add(self, other: "Sums") -> None:
        _add(self, other)


class Report(Struct):
    groups: dict[Group, Sums]
    """In the order of the groups, absent values last."""
    gaps: list[Gap]
    """Times in which calls were served that are in no sum."""

    @property
    def total(self) -> Sums:
        total = Sums()
        for sums in self.groups.values():
            total.add(sums)
        return total


class Prices(Pricing, Protocol):
    """The price book, for calls that are over: `as_priced` is the id of the price that they were charged at."""

    def cost(
        self,
        target: Target,
        usage: Usage,
        at: int,
        *,
        service_tier: str | None = None,
        thinking: bool = False,
        as_priced: str | None = None,
    ) -> Cost | None: ...

    def breakdown(
        self,
        target: Target,
        usage: Usage,
        at: int,
        *,
        service_tier: str | None = None,
        thinking: bool = False,
        as_priced: str | None = None,
    ) -> Breakdown | None: ...


class TooManyGroups(Exception):
    """More groups than `limit`: the caller should narrow."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} groups")
        self.limit = limit


async def usage(
    store: Store,
    pricing: Prices,
    selection: Selection,
    by: Sequence[str],
    bucket: Bucket | None,
    currency: str,
    *,
    rerate: bool = False,
    most: int = 10_000,
) -> Report:
    """The sums of what is selected, by each of `by` (`DIMENSIONS`, `tag:NAME`). `rerate` prices every attempt anew,
    beside what was charged. Writes nothing. Raises `TooManyGroups`, `StoreAway`."""
    query = _Query(store.dialect, selection, tuple(by), bucket)
    groups: dict[Group, Sums] = {}

    def of(group: Group) -> Sums:
        found = groups.get(group)
        if found is None:
            if len(groups) >= most:
                raise TooManyGroups(most)
            found = groups[group] = Sums()
        return found

    foreign = False
    async with store.reading(snapshot=True) as connection:
        # a group may come once for each currency
        async with connection.stream(query.attempts()) as rows:
            async for row in rows:
                _add_attempts(of(query.group(row)), row._mapping, currency)
                foreign = foreign or row._mapping["currency"] not in (None, currency)
        if OF_ATTEMPTS.isdisjoint(by):
            async with connection.stream(query.calls()) as rows:
                async for row in rows:
                    sums = of(query.group(row))
                    sums.requests += row._mapping["requests"]
                    outcome = row._mapping["ended_as"] or RUNNING
                    sums.outcomes[outcome] = sums.outcomes.get(outcome, 0) + row._mapping["requests"]
        if foreign:
            async with connection.stream(query.foreign(currency)) as rows:
                async for row in rows:
                    values = row._mapping
                    _convert(
                        of(query.group(row)).cost,
                        _nano(values),
                        values["currency"],
                        currency,
                        values["day"],
                        pricing,
                    )
        found = await connection.execute(_gaps(selection))
        missing = [Gap(**row) for row in found.mappings()]
    if rerate:
        await _rerate(store, pricing, selection, query, of, currency)
    ordered = sorted(groups, key=lambda group: [(value is None, "" if value is None else value) for value in group])
    return Report({group: groups[group] for group in ordered}, missing)


async def charges(store: Store, pricing: Prices, selection: Selection, *, most: int = 50_000) -> Charges:
    """What is selected as charges of FOCUS, of which there may be so many. Raises `TooMany`, `StoreAway`."""
    found = Charges(most)
    async for row in each_attempt(store, selection):
        counted, parts = usage_of(row), None
        if counted is not None and row.cost is not None:
            made = pricing.breakdown(
                Target(row.provider, row.model),
                counted,
                row.created_at,
                service_tier=row.service_tier,
                thinking=row.thinking,
                as_priced=row.price,
            )
            # in another currency it would be another price
            parts = made.parts if made is not None and made.cost.currency == row.currency else None
        found.add(row, parts)
    return found


async def each_attempt(store: Store, selection: Selection) -> AsyncIterator[AttemptRow]:
    """Every attempt that is selected, the oldest first. Holds no connection between two steps. Raises `StoreAway`."""
    table, at = attempts.c, None
    conditions = of_attempts(selection, store.dialect)
    while True:
        query = select(attempts).where(*conditions).order_by(table.created_at, table.call_id, table.n).limit(_STEP)
        if at is not None:
            created_at, call_id, n = at
            query = query.where(
                table.created_at >= created_at,
                or_(
                    table.created_at > created_at,
                    table.call_id > call_id,
                    and_(table.call_id == call_id, table.n > n),
                ),
            )
        async with store.reading() as connection:
            rows = [attempt_row(row) for row in (await connection.execute(query)).mappings()]
        for row in rows:
            yield row
        if len(rows) < _STEP:
            return
        at = (rows[-1].created_at, rows[-1].call_id, rows[-1].n)
        await asyncio.sleep(0)


def unpriced(row: AttemptRow) -> bool:
    """Whether the attempt used tokens at a price that is not known."""
    return row.cost is None and row.source is not None and any(getattr(row, name) for name in TOKEN_CLASSES)


class _Query:
    """The queries of one report. A group's values are their first columns, `g0`, `g1`, …"""

    def __init__(self, dialect: Dialect, selection: Selection, by: tuple[str, ...], bucket: Bucket | None) -> None:
        self._dialect = dialect
        self._selection = selection
        self._by = by
        self._bucket = bucket
        self._width = len(by) + (bucket is not None)

    def attempts(self) -> Select[Any]:
        columns = attempts.c
        prompt, completion = _sum_of(attempts, _PROMPT), _sum_of(attempts, _COMPLETION)
        estimated, audited = columns.source == "estimated", columns.counted_input.is_not(None)
        return self._grouped(
            attempts,
            [columns.currency.label("currency")],
            func.count().label("attempts"),
            func.count(columns.source).label("metered"),
            *(func.sum(columns[name]).label(name) for name in TOKEN_CLASSES),
            _count(estimated, "estimated"),
            _sum(estimated, prompt, "estimated_input"),
            _sum(estimated, completion, "estimated_output"),
            func.count(columns.flag).label("flagged"),
            _count(and_(columns.cost.is_(None), columns.source.is_not(None), prompt + completion > 0), "unpriced"),
            *_cost(columns.cost),
            func.count(columns.counted_input).label("audited"),
            _sum(audited, prompt, "reported_input"),
            func.sum(columns.counted_input).label("counted_input"),
            _sum(audited, completion, "reported_output"),
            func.sum(columns.counted_output).label("counted_output"),
        )

    def calls(self) -> Select[Any]:
        return self._grouped(calls, [calls.c.outcome.label("ended_as")], func.count().label("requests"))

    def foreign(self, currency: str) -> Select[Any]:
        """Costs in other currencies, by their days."""
        day = (attempts.c.created_at // literal_column(str(_DAY_MS), BigInteger)).label("day")
        other = and_(attempts.c.currency != currency, attempts.c.cost.is_not(None))
        columns = [attempts.c.currency.label("currency"), day]
        return self._grouped(attempts, columns, *_cost(attempts.c.cost)).where(other)

    def group(self, row: Any) -> Group:
        """The group that a row of these queries belongs to."""
        values: list[Any] = [_text(value) for value in row[: self._width]]
        if self._bucket is not None:
            values[0] = self._started(row[0])
        return tuple(values)

    def group_of(self, row: AttemptRow) -> Group:
        """The same for an attempt itself."""
        labels = row.labels
        known = {
            "model": labels.model,
            "target": f"{row.provider}/{row.model}",
            "provider": row.provider,
            "key": labels.key,
            "user": labels.user,
            "team": labels.team,
            "route": labels.route,
            "experiment": labels.experiment,
            "arm": labels.arm,
            "outcome": row.outcome or RUNNING,
            "price": row.price,
            "currency": row.currency,
        }
        values = [labels.tags.get(name.removeprefix(TAG)) if name.startswith(TAG) else known[name] for name in self._by]
        if self._bucket is None:
            return tuple(values)
        size = _HOUR_MS if self._bucket == "hour" else _DAY_MS
        start = row.created_at // size * size
        if self._bucket == "month":
            start = _month_of(start)
        return (start, *values)

    def _grouped(self, table: Table, more: Sequence[ColumnElement[Any]], *sums: ColumnElement[Any]) -> Select[Any]:
        named = [expression.label(f"g{index}") for index, expression in enumerate(self._expressions(table))]
        # by label: the same expression twice would be two expressions to Postgres, its parameters apart
        labels: list[ColumnElement[Any]] = [*(literal_column(column.name) for column in named), *more]
        conditions = of_calls if table is calls else of_attempts
        query = select(*named, *more, *sums).where(*conditions(self._selection, self._dialect))
        return query.group_by(*labels) if labels else query

    def _expressions(self, table: Table) -> list[ColumnElement[Any]]:
        found = [_bucket(table, self._bucket, self._dialect)] if self._bucket is not None else []
        return found + [self._expression(table, name) for name in self._by]

    def _expression(self, table: Table, name: str) -> ColumnElement[Any]:
        columns = table.c
        if name.startswith(TAG):
            return tag(table, name.removeprefix(TAG), self._dialect)
        if name == "target":
            return columns.target if table is calls else columns.provider + "/" + columns.model
        if name == "provider":
            return provider_of_call(self._dialect) if table is calls else columns.provider
        if name == "outcome":
            return func.coalesce(columns.outcome, literal_column(f"'{RUNNING}'"))
        if name in OF_ATTEMPTS and table is calls:
            return null()
        return columns["asked" if name == "model" else name]

    def _started(self, value: Any) -> int:
        """When the bucket begins, in Unix milliseconds."""
        if self._bucket == "month":
            return int(datetime.strptime(value, "%Y-%m").replace(tzinfo=UTC).timestamp()) * 1000
        return int(value) * (_HOUR_MS if self._bucket == "hour" else _DAY_MS)


def _bucket(table: Table, bucket: Bucket, dialect: Dialect) -> ColumnElement[Any]:
    at = table.c.created_at
    if bucket == "month":
        if dialect == "postgresql":
            utc = func.timezone("UTC", func.to_timestamp(at / literal_column("1000.0")))
            return func.to_char(utc, literal_column("'YYYY-MM'"))
        return func.strftime(
            literal_column("'%Y-%m'"), at // literal_column("1000", BigInteger), literal_column("'unixepoch'")
        )
    return at // literal_column(str(_HOUR_MS if bucket == "hour" else _DAY_MS), BigInteger)


def _sum_of(table: Table, names: Sequence[str]) -> ColumnElement[Any]:
    total: ColumnElement[Any] = table.c[names[0]]
    for name in names[1:]:
        total = total + table.c[name]
    return total


def _count(condition: ColumnElement[bool], name: str) -> ColumnElement[Any]:
    return func.sum(case((condition, 1), else_=0)).label(name)


def _sum(condition: ColumnElement[bool], value: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    return func.sum(case((condition, value), else_=0)).label(name)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _month_of(at: int) -> int:
    day = datetime.fromtimestamp(at / 1000, UTC)
    return int(day.replace(day=1).timestamp()) * 1000


def _gaps(selection: Selection) -> Select[Any]:
    query = select(gaps).order_by(gaps.c.began_at, gaps.c.id).limit(1000)
    if selection.since is not None:
        query = query.where(gaps.c.ended_at >= selection.since)
    if selection.until is not None:
        query = query.where(gaps.c.began_at < selection.until)
    return query


# -- adding up -------------------------------------------------------------------------------------------------------


def _add_attempts(sums: Sums, row: Any, currency: str) -> None:
    """A row of `_Query.attempts`. Without any attempt, sums are NULL."""

    def value(name: str) -> int:
        # sums of whole numbers come back from Postgres as decimals
        return int(row[name] or 0)

    sums.attempts += value("attempts")
    sums.metered += value("metered")
    for name in TOKEN_CLASSES:
        sums.tokens[name] += value(name)
    sums.estimated += value("estimated")
    sums.estimated_input += value("estimated_input")
    sums.estimated_output += value("estimated_output")
    sums.flagged += value("flagged")
    sums.cost.unpriced += value("unpriced")
    audit = sums.audit
    audit.attempts += value("audited")
    audit.reported_input += value("reported_input")
    audit.counted_input += value("counted_input")
    audit.reported_output += value("reported_output")
    audit.counted_output += value("counted_output")
    if row["units"] is not None and row["currency"] is not None:
        _put(sums.cost.amounts, row["currency"], _nano(row))
        if row["currency"] == currency:
            sums.cost.converted += _nano(row)


def _convert(money: Spent, nano: int, code: str, currency: str, day: int, pricing: Prices) -> None:
    """Add what the costs of one day come to in `currency`."""
    converted = nano if code == currency else pricing.convert(nano, code, currency, day * _DAY_MS)
    if converted is None:
        _put(money.unconverted, code, nano)
    else:
        money.converted += converted


def _cost(column: Any) -> tuple[Any, Any]:
    """The sum of a cost, in units and billionths: many small coins are more than 64 bits of billionths."""
    return func.sum(column // NANO).label("units"), func.sum(column % NANO).label("billionths")


def _nano(row: Any) -> int:
    return int(row["units"]) * NANO + int(row["billionths"])


def _put(amounts: dict[str, int], code: str, nano: int) -> None:
    amounts[code] = amounts.get(code, 0) + nano


def _add(into: Any, other: Any) -> None:
    """Add every number of one struct to another's, in dictionaries and structs inside of it too."""
    for field in msgspec.structs.fields(into):
        mine, theirs = getattr(into, field.name), getattr(other, field.name)
        if theirs is None:
            continue
        if isinstance(theirs, int):
            setattr(into, field.name, mine + theirs)
        elif isinstance(theirs, dict):
            for name, number in theirs.items():
                _put(mine, name, number)
        else:
            if mine is None:
                mine = type(theirs)()
                setattr(into, field.name, mine)
            _add(mine, theirs)


async def _rerate(
    store: Store,
    pricing: Prices,
    selection: Selection,
    query: _Query,
    of: Callable[[Group], Sums],
    currency: str,
) -> None:
    """Price every attempt anew, at its own date by today's book."""
    days: dict[tuple[Group, int, str], int] = {}
    async for row in each_attempt(store, selection):
        group = query.group_of(row)
        sums = of(group)
        if sums.rerated is None:
            sums.rerated = Spent()
        counted = usage_of(row)
        if counted is None:
            continue
        cost = pricing.cost(
            Target(row.provider, row.model),
            counted,
            row.created_at,
            service_tier=row.service_tier,
            thinking=row.thinking,
            as_priced=row.price,
        )
        if cost is None:
            sums.rerated.unpriced += any(getattr(row, name) for name in TOKEN_CLASSES)
            continue
        _put(sums.rerated.amounts, cost.currency, cost.nano)
        spent = group, row.created_at // _DAY_MS, cost.currency
        days[spent] = days.get(spent, 0) + cost.nano
    for (group, day, code), nano in days.items():
        rerated = of(group).rerated
        assert rerated is not None
        _convert(rerated, nano, code, currency, day, pricing)
