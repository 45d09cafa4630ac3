"""What the ledger knows of an experiment, as sums over its units: all that its report is reckoned from.

The store adds up by unit and then over the units, so that a report reads a row an arm, however many calls there were.
Times are Unix milliseconds. Calls that an admin forced into an arm are in none of it.

What one call is counted as:

- `errors`: 1 if it failed, was cut or timed out, 0 if it finished. Any other end says nothing of the arm.
- `first_token`: milliseconds to the first piece of the answer, if there was one.
- `duration`: milliseconds, if it finished.
- `tokens_per_second`: tokens of output and reasoning by the seconds after the first piece, if it finished, and took
  `LEAST_SPAN` after that: what comes all at once has no speed.
- `cost`: of all its attempts in one currency, once it is over and if anything was tried. A call with an attempt whose
  price is not known, or with a currency without a rate, is left out and counted.
- feedback: what was said of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    Double,
    FromClause,
    Select,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
)

from router.experiment import OWN_METRICS, SHADOW, MetricKind
from router.experiments.statistics import Sums
from router.ledger.rows import TOKEN_CLASSES
from router.money import NANO
from router.store.store import Store
from router.store.tables import attempts, calls, exposures, feedback

LEAST_SPAN: Final = 10
"""Milliseconds."""
_ERRORS: Final = ("failed", "cut", "timeout")
_ANSWERED: Final = ("finished", "cut")
"""Outcomes of the attempts whose words are in a finished answer: where there are several, they continue one another."""
_SUMS: Final[tuple[str, ...]] = Sums.__struct_fields__


class ArmSums(Struct, frozen=True):
    """One arm; `holdout` and `shadow` are arms too."""

    exposures: int
    """Calls."""
    units: int
    metrics: dict[str, Sums]
    """Every metric there is, those without an observation too."""
    unpriced: int
    """Calls left out of `cost`: a price or a rate is not known."""


class Stratum(Struct, frozen=True):
    """Units that came into the experiment under the same shares."""

    shares: str
    """As `router.experiment.Assigned` has them."""
    units: dict[str, int]
    """By the arm of their first call. Calls in the background are no part of it."""
    first_at: int = 0
    """When the first of these calls was made."""


class ExperimentSums(Struct, frozen=True):
    arms: dict[str, ArmSums]
    """Those that calls were in."""
    strata: list[Stratum]
    """In the order of time."""
    first_at: int | None
    """Of the calls, when the first and the last were made; None: there were none."""
    last_at: int | None


class Difference(Struct, frozen=True):
    """Pairs of a call and its repetition in which both values are known: repetition less original."""

    n: int = 0
    sum: float = 0
    squares: float = 0
    original: float = 0
    """The sum of the originals' values."""

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.n + other.n, self.sum + other.sum, self.squares + other.squares, self.original + other.original
        )


COMPARED: Final = ("cost", "first_token", "duration", "output_tokens")
"""As above; tokens of output and reasoning, if the call finished."""


class ShadowPairs(Struct, frozen=True):
    """Calls of one arm and their repetitions."""

    pairs: int
    outcomes: dict[tuple[str | None, str | None], int]
    """Outcomes of the original and of its repetition → how many pairs; None: it still runs."""
    differences: dict[str, Difference]
    """By each of `COMPARED`."""

    @property
    def same_outcome(self) -> int:
        return sum(count for (original, repeated), count in self.outcomes.items() if original == repeated)

    @property
    def original_errors(self) -> int:
        return sum(count for (original, _), count in self.outcomes.items() if original in _ERRORS)

    @property
    def repeated_errors(self) -> int:
        return sum(count for (_, repeated), count in self.outcomes.items() if repeated in _ERRORS)


async def experiment_sums(
    store: Store,
    experiment: str,
    metrics: Mapping[str, MetricKind],
    rates: Mapping[str, float],
    *,
    since: int | None = None,
    until: int | None = None,
) -> ExperimentSums:
    """Of the calls made from `since` on and before `until`. `metrics`: those of feedback, by name; what was said when a
    metric was of another kind is left out. `rates`: units of the report's currency for one unit of each, itself too.
    Raises `StoreAway`."""
    exposed = and_(*_exposed(experiment, since, until))
    arms: dict[str, ArmSums] = {}
    empty = {name: Sums() for name in (*OWN_METRICS, *metrics)}
    first_at: int | None = None
    last_at: int | None = None
    async with store.reading(snapshot=True) as connection:
        for row in (await connection.execute(_by_arm(exposed, rates))).mappings():
            own = {name: _sums(row, f"{name}_") for name in OWN_METRICS}
            arms[row["arm"]] = ArmSums(row["exposures"], row["units"], {**empty, **own}, int(row["unpriced"]))
            first_at = row["first_at"] if first_at is None else min(first_at, row["first_at"])
            last_at = row["last_at"] if last_at is None else max(last_at, row["last_at"])
        if metrics:
            for row in (await connection.execute(_feedback_by_arm(exposed, metrics))).mappings():
                arms[row["arm"]].metrics[row["metric"]] = _sums(row, "")
        strata: dict[str, Stratum] = {}
        for shares, arm, units, began in await connection.execute(_strata(exposed)):
            known = strata.get(shares)
            if known is None:
                strata[shares] = Stratum(shares, {arm: units}, began)
            else:
                strata[shares] = Stratum(shares, {**known.units, arm: units}, min(known.first_at, began))
    in_time = sorted(strata.values(), key=lambda stratum: stratum.first_at)
    return ExperimentSums(arms, in_time, first_at, last_at)


async def shadow_pairs(
    store: Store, experiment: str, rates: Mapping[str, float], *, since: int | None = None, until: int | None = None
) -> dict[str, ShadowPairs]:
    """Calls that were repeated in the background beside their repetitions, by the arm of the original. Times are the
    repetitions'. `rates` as above. Raises `StoreAway`."""
    found: dict[str, ShadowPairs] = {}
    async with store.reading() as connection:
        for row in (await connection.execute(_pairs(experiment, since, until, rates))).mappings():
            differences = {name: _difference(row, name) for name in COMPARED}
            of_arm = found.get(row["arm"]) or ShadowPairs(0, {}, dict.fromkeys(COMPARED, Difference()))
            found[row["arm"]] = ShadowPairs(
                of_arm.pairs + row["pairs"],
                {**of_arm.outcomes, (row["original_outcome"], row["repeated_outcome"]): row["pairs"]},
                {name: of_arm.differences[name] + differences[name] for name in COMPARED},
            )
    return found


# -- statements --------------------------------------------------------------------------------------------------------


def _exposed(experiment: str, since: int | None, until: int | None) -> list[ColumnElement[bool]]:
    table = exposures.c
    conditions = [table.experiment == experiment, table.forced == false()]
    if since is not None:
        conditions.append(table.created_at >= since)
    if until is not None:
        conditions.append(table.created_at < until)
    return conditions


def _calls(
    kept: Sequence[ColumnElement[Any]], tables: FromClause, call_id: ColumnElement[Any], rates: Mapping[str, float]
) -> Select[Any]:
    """A row for each exposure: what is `kept` of it, and the call `call_id` with the sums of its attempts.

    It joins tables by their primary keys alone. Joins of what has been added up are a guess to Postgres, whose worst
    takes the square of the time.
    """
    table = attempts.c
    used: ColumnElement[Any] = sum((table[name] for name in TOKEN_CLASSES[1:]), start=table[TOKEN_CLASSES[0]])
    no_price = and_(table.cost.is_(None), table.source.is_not(None), used > 0)
    no_rate = and_(table.cost.is_not(None), or_(table.currency.is_(None), table.currency.not_in(list(rates))))
    converted = [(table.currency == code, cast(table.cost, Double) * (rate / NANO)) for code, rate in rates.items()]
    cost = case(*converted, else_=0.0) if converted else literal(0.0)
    answered = and_(table.outcome.in_(_ANSWERED), table.source.is_not(None))
    return (
        select(
            *kept,
            # the same in all rows of a call
            func.max(calls.c.outcome).label("outcome"),
            func.max(calls.c.timing["first_token_ms"].as_float()).label("first_token"),
            func.max(calls.c.timing["duration_ms"].as_float()).label("duration"),
            func.count(table.n).label("tries"),
            func.sum(func.coalesce(cost, 0.0)).label("cost"),
            func.sum(case((or_(no_price, no_rate), 1), else_=0)).label("unpriced"),
            # NULL where none are known
            func.sum(case((answered, cast(table.output + table.reasoning, Double)), else_=null())).label("tokens"),
        )
        .select_from(tables.join(calls, calls.c.id == call_id).outerjoin(attempts, table.call_id == call_id))
        .group_by(exposures.c.call_id, *kept)
    )


def _counted_as(call: FromClause) -> dict[str, ColumnElement[Any]]:
    """What a row of `_calls` is counted as in each metric; NULL: in none of its observations."""
    row = call.c
    ended, finished = and_(row.outcome.is_not(None), row.tries > 0), row.outcome == "finished"
    # before it is divided by: neither database says in which order conditions are looked at
    span = case((row.duration - row.first_token >= LEAST_SPAN, row.duration - row.first_token), else_=null())
    values = {
        "errors": case((row.outcome.in_(_ERRORS), 1.0), (finished, 0.0), else_=null()),
        "first_token": row.first_token,
        "duration": case((finished, row.duration), else_=null()),
        "tokens_per_second": case((finished, row.tokens * 1000 / span), else_=null()),
        "cost": case((and_(ended, row.unpriced == 0), row.cost), else_=null()),
        "output_tokens": case((finished, row.tokens), else_=null()),
    }
    return {
        **{name: cast(value, Double).label(name) for name, value in values.items()},
        "unpriced": case((and_(ended, row.unpriced > 0), 1), else_=0).label("unpriced"),
    }


def _by_arm(exposed: ColumnElement[bool], rates: Mapping[str, float]) -> Select[Any]:
    kept = (exposures.c.arm, exposures.c.unit, exposures.c.created_at)
    each = _calls(kept, exposures, exposures.c.call_id, rates).where(exposed).subquery()
    measured = select(each.c.arm, each.c.unit, each.c.created_at, *_counted_as(each).values()).subquery()
    by_unit = (
        select(
            measured.c.arm,
            measured.c.unit,
            func.count().label("exposures"),
            func.min(measured.c.created_at).label("first_at"),
            func.max(measured.c.created_at).label("last_at"),
            func.sum(measured.c.unpriced).label("unpriced"),
            *(column for name in OWN_METRICS for column in _of_unit(measured.c[name], f"{name}_")),
        )
        .group_by(measured.c.arm, measured.c.unit)
        .subquery()
    )
    return select(
        by_unit.c.arm,
        func.sum(by_unit.c.exposures).label("exposures"),
        func.count().label("units"),
        func.min(by_unit.c.first_at).label("first_at"),
        func.max(by_unit.c.last_at).label("last_at"),
        func.sum(by_unit.c.unpriced).label("unpriced"),
        *(column for name in OWN_METRICS for column in _over_units(by_unit, f"{name}_")),
    ).group_by(by_unit.c.arm)


def _feedback_by_arm(exposed: ColumnElement[bool], metrics: Mapping[str, MetricKind]) -> Select[Any]:
    arm, unit, metric = exposures.c.arm, exposures.c.unit, feedback.c.metric
    known = or_(*(and_(metric == name, feedback.c.kind == kind) for name, kind in metrics.items()))
    by_unit = (
        select(arm, unit, metric, *_of_unit(feedback.c.value, ""))
        .select_from(exposures.join(feedback, feedback.c.call_id == exposures.c.call_id))
        .where(exposed, known)
        .group_by(arm, unit, metric)
        .subquery()
    )
    return select(by_unit.c.arm, by_unit.c.metric, *_over_units(by_unit, "")).group_by(by_unit.c.arm, by_unit.c.metric)


def _of_unit(value: ColumnElement[Any], prefix: str) -> Sequence[ColumnElement[Any]]:
    """Of one unit: observations, their sum, and the sum of their squares."""
    return (
        cast(func.count(value), Double).label(f"{prefix}n"),
        func.coalesce(func.sum(value), 0.0).label(f"{prefix}y"),
        func.coalesce(func.sum(value * value), 0.0).label(f"{prefix}s"),
    )


def _over_units(units: FromClause, prefix: str) -> Sequence[ColumnElement[Any]]:
    """The fields of `Sums`."""
    n, y, squares = (units.c[f"{prefix}{name}"] for name in ("n", "y", "s"))
    sums = {
        "units": func.sum(case((n > 0, 1), else_=0)),
        "n": func.sum(n),
        "y": func.sum(y),
        "yy": func.sum(y * y),
        "yn": func.sum(y * n),
        "nn": func.sum(n * n),
        "squares": func.sum(squares),
    }
    return tuple(sums[name].label(f"{prefix}{name}") for name in _SUMS)


def _strata(exposed: ColumnElement[bool]) -> Select[Any]:
    table = exposures.c
    place = func.row_number().over(partition_by=table.unit, order_by=(table.created_at, table.call_id))
    first = (
        select(table.shares, table.arm, table.created_at, place.label("place"))
        .where(exposed, table.arm != SHADOW)
        .subquery()
    )
    return (
        select(first.c.shares, first.c.arm, func.count(), func.min(first.c.created_at))
        .where(first.c.place == 1)
        .group_by(first.c.shares, first.c.arm)
        .order_by(first.c.shares, first.c.arm)
    )


def _pairs(experiment: str, since: int | None, until: int | None, rates: Mapping[str, float]) -> Select[Any]:
    original = exposures.alias("original")
    kept = (original.c.arm, exposures.c.call_id.label("pair"))
    tables = exposures.join(original, original.c.call_id == exposures.c.shadow_of)
    exposed = [*_exposed(experiment, since, until), original.c.forced == false()]
    sides = []
    for side, call_id in (("original", exposures.c.shadow_of), ("repeated", exposures.c.call_id)):
        each = _calls(kept, tables, call_id, rates).where(*exposed).subquery()
        sides.append(
            select(literal(side, Text).label("side"), each.c.arm, each.c.pair, each.c.outcome, *_compared(each))
        )
    both = union_all(*sides).subquery()

    def of_side(side: str, name: str) -> ColumnElement[Any]:
        value = func.max(case((both.c.side == side, both.c[name]), else_=null()))
        return value.label(f"{side}_{name}")

    pair = (
        select(
            both.c.arm,
            *(of_side(side, name) for side in ("original", "repeated") for name in ("outcome", *COMPARED)),
        )
        .group_by(both.c.arm, both.c.pair)
        .having(func.count() == 2)
        .subquery()
    )
    parts: list[ColumnElement[Any]] = []
    for name in COMPARED:
        before, after = pair.c[f"original_{name}"], pair.c[f"repeated_{name}"]
        # NULL where either is
        difference = after - before
        known = case((difference.is_not(None), before), else_=null())
        parts += [
            func.count(difference).label(f"{name}_n"),
            func.coalesce(func.sum(difference), 0.0).label(f"{name}_sum"),
            func.coalesce(func.sum(difference * difference), 0.0).label(f"{name}_squares"),
            func.coalesce(func.sum(known), 0.0).label(f"{name}_original"),
        ]
    outcomes = (pair.c.original_outcome, pair.c.repeated_outcome)
    return select(pair.c.arm, *outcomes, func.count().label("pairs"), *parts).group_by(pair.c.arm, *outcomes)


def _compared(call: FromClause) -> Sequence[ColumnElement[Any]]:
    values = _counted_as(call)
    return [values[name] for name in COMPARED]


# -- rows --------------------------------------------------------------------------------------------------------------


def _sums(row: Mapping[Any, Any], prefix: str) -> Sums:
    values = {name: _number(row[f"{prefix}{name}"]) for name in _SUMS}
    return Sums(int(values.pop("units")), **values)


def _number(value: Any) -> float:
    """Postgres adds whole numbers up to decimals."""
    return 0.0 if value is None else float(value)


def _difference(row: Mapping[Any, Any], name: str) -> Difference:
    total, squares, original = (_number(row[f"{name}_{part}"]) for part in ("sum", "squares", "original"))
    return Difference(row[f"{name}_n"], total, squares, original)
