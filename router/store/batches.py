"""How a batch is said to each database: few statements, written once, and their parameters.

SQLite takes many rows in one statement: its thread gives the interpreter away while a statement runs, and under load
waits milliseconds to have it back, so that a statement a row would be slow for both. Postgres is a round trip away:
what comes with every batch is one statement, its rows two arrays of JSON (cheaper for both sides than arrays by column,
or than a message a row).
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from sqlalchemy import Table, Text, and_, bindparam, case, column, func, literal_column, null, or_, select, update
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from router.ledger.rows import AttemptRow, Audited, Batch, CallRow, Exposure, Gap
from router.store.statement import Statement
from router.store.tables import attempts, calls, exposures, gaps, journals

Dialect = Literal["sqlite", "postgresql"]

_encode: Final = msgspec.json.Encoder().encode
_FIXED: Final = frozenset({"id", "call_id", "n", "created_at", "asked", "dialect", "stream", "journal"})
"""What a row is from its beginning: no later word changes it."""

# the names and the order of all parameters
_LABELS: Final = ("asked", "route", "key", "user", "team", "tags", "experiment", "arm")
_CALL: Final = (
    *("id", "created_at", *_LABELS, "dialect", "stream", "journal"),
    *("decision", "ended_at", "outcome", "target", "error", "timing"),
)
_ATTEMPT: Final = (
    *("call_id", "n", "created_at", *_LABELS, "provider", "model", "journal"),
    *("settled_at", "outcome", "error", "timing", "vendor_request_id"),
    *("input", "cache_read", "cache_write", "cache_write_1h", "input_audio", "output", "reasoning", "output_audio"),
    *("source", "flag", "service_tier", "thinking", "cost", "currency", "price"),
    *("role", "why", "vendor_key", "seam"),
)
_EXPOSURE: Final = (
    *("call_id", "created_at", "experiment", "arm", "unit", "kind", "forced", "shares", "shadow_of", "journal"),
)
_AUDIT: Final = ("counted_input", "counted_output", "of_call", "of_n")
_GAP: Final = ("id", "journal", "began_at", "ended_at", "calls", "attempts", "input", "output", "costs")
_JOURNAL: Final = ("id", "applied", "seen_at", "host")


_TOGETHER: Final = (16, 8, 4, 2, 1)
"""Rows of one statement on SQLite: few sizes, so that the statements are prepared once and kept, and no more than 999
parameters, which is all that some builds take."""


class _Statements(Struct, frozen=True):
    """In the driver's own words: SQLAlchemy writes them once and is not asked for each batch."""

    usual: str
    """Postgres: calls, attempts and the journal's progress. SQLite: the progress."""
    exposures: str
    """Postgres alone: SQLite has a statement for each number of rows."""
    audit: str
    gap: str


def statements_of(batch: Batch, at: int, dialect: Dialect) -> list[Statement]:
    """What brings in the batch, to be run in one transaction. `at`: now, in Unix milliseconds."""
    said = _statements(dialect)
    progress = (batch.journal, batch.position, at, "")
    if dialect == "postgresql":
        call_rows = [dict(zip(_CALL, _call_values(row, _as_it_is), strict=True)) for row in batch.calls.values()]
        attempt_rows = [
            dict(zip(_ATTEMPT, _attempt_values(row, _as_it_is), strict=True)) for row in batch.attempts.values()
        ]
        given = (_encode(call_rows).decode(), _encode(attempt_rows).decode())
        statements: list[Statement] = [(said.usual, [(*progress, *given)])]
        if batch.exposures:
            exposed = [dict(zip(_EXPOSURE, _exposure_values(row), strict=True)) for row in batch.exposures.values()]
            statements.append((said.exposures, [(_encode(exposed).decode(),)]))
    else:
        statements = [
            *_together(calls, _CALL, [_call_values(row, _json) for row in batch.calls.values()]),
            *_together(attempts, _ATTEMPT, [_attempt_values(row, _json) for row in batch.attempts.values()]),
            *_together(exposures, _EXPOSURE, [_exposure_values(row) for row in batch.exposures.values()]),
            (said.usual, [progress]),
        ]
    if batch.audits:
        statements.append((said.audit, [_audit_values(audit) for audit in batch.audits]))
    if batch.gaps:
        statements.append((said.gap, [_gap_values(gap) for gap in batch.gaps]))
    return statements


def _together(table: Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> list[Statement]:
    """SQLite: the rows in their order, as many in a statement as there are."""
    statements: list[Statement] = []
    begun = 0
    for size in _TOGETHER:
        until = len(rows) - (len(rows) - begun) % size
        groups = [tuple(chain.from_iterable(rows[at : at + size])) for at in range(begun, until, size)]
        if groups:
            statements.append((_of_rows(table, names, size), groups))
        begun = until
    return statements


# -- statements ----------------------------------------------------------------------------------------------------


@cache
def _statements(dialect: Dialect) -> _Statements:
    usual: Any = _progress(dialect)
    parameters: tuple[str, ...] = _JOURNAL
    if dialect == "postgresql":
        usual = usual.add_cte(_of_json(calls, _CALL).cte("c"), _of_json(attempts, _ATTEMPT).cte("a"))
        parameters += (calls.name, attempts.name)
    audit = (
        update(attempts)
        .where(attempts.c.call_id == bindparam("of_call"), attempts.c.n == bindparam("of_n"))
        .values(counted_input=bindparam("counted_input"), counted_output=bindparam("counted_output"))
    )
    gap = _insert(dialect, gaps).values({name: bindparam(name) for name in _GAP})
    exposed = _compiled(dialect, _of_json(exposures, _EXPOSURE), (exposures.name,)) if dialect == "postgresql" else ""
    return _Statements(
        usual=_compiled(dialect, usual, parameters),
        exposures=exposed,
        audit=_compiled(dialect, audit, _AUDIT),
        gap=_compiled(dialect, gap.on_conflict_do_nothing(index_elements=["id"]), _GAP),
    )


def _progress(dialect: Dialect) -> Any:
    """How far the journal is in the store, and a sign of life from a process that may have been taken for dead."""
    row = _insert(dialect, journals).values({name: bindparam(name) for name in _JOURNAL})
    known, new = journals.c.applied, row.excluded.applied
    return row.on_conflict_do_update(
        index_elements=["id"],
        set_={"applied": case((new > known, new), else_=known), "seen_at": row.excluded.seen_at, "closed_at": null()},
    )


@cache
def _of_rows(table: Table, names: tuple[str, ...], size: int) -> str:
    """SQLite: `size` rows, each by its values."""
    row = insert_sqlite(table).values({name: bindparam(name) for name in names})
    before, values, after = _compiled("sqlite", _told(row, table, names), names).partition(
        f"({', '.join('?' * len(names))})"
    )
    # SQLAlchemy would take 40 ms for the largest, and the event loop waits
    return before + ", ".join([values] * size) + after


def _of_json(table: Table, names: tuple[str, ...]) -> Any:
    """Postgres: the one parameter, named like the table, is an array of rows as objects."""
    columns = [column(name, table.c[name].type) for name in names]
    rows = func.json_to_recordset(bindparam(table.name, type_=JSON())).table_valued(*columns)
    given = rows.render_derived(with_types=True)
    row = insert_postgres(table).from_select(names, select(*[given.c[name] for name in names]))
    return _told(row, table, names)


def _told(row: Any, table: Table, names: tuple[str, ...]) -> Any:
    """What becomes of a row that is there already."""
    if table is exposures:
        # said once, and for ever
        return row.on_conflict_do_nothing(index_elements=["call_id"])
    return _settling(row, table, names)


def _settling(row: Any, table: Table, names: tuple[str, ...]) -> Any:
    """Insert a row, or give the one there is its later word, unless it has had its last."""
    now, then, interrupted = row.excluded.outcome, table.c.outcome, literal_column("'interrupted'", Text)
    later = or_(then.is_(None), and_(then == interrupted, now.is_not(None), now != interrupted))
    return row.on_conflict_do_update(
        index_elements=[key.name for key in table.primary_key],
        set_={name: row.excluded[name] for name in names if name not in _FIXED},
        where=later,
    )


def _insert(dialect: Dialect, table: Table) -> Any:
    return insert_sqlite(table) if dialect == "sqlite" else insert_postgres(table)


def _compiled(dialect: Dialect, statement: Any, parameters: tuple[str, ...]) -> str:
    """`parameters`: their names, in the order in which they will be given."""
    driver = SQLiteDialect(paramstyle="qmark") if dialect == "sqlite" else PGDialect_asyncpg()  # type: ignore[no-untyped-call]
    compiled = statement.compile(dialect=driver)
    if tuple(compiled.positiontup) != parameters:
        raise AssertionError(f"the statement asks for {compiled.positiontup}, not for {parameters}")
    return str(compiled)


# -- parameters ----------------------------------------------------------------------------------------------------


def _json(value: dict[str, Any] | None) -> str | None:
    if value is None:
        return None
    return _encode(value).decode() if value else "{}"


def _as_it_is(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return value


_Write: TypeAlias = Callable[[dict[str, Any] | None], object]
"""What becomes of an object."""


def _call_values(row: CallRow, write: _Write) -> tuple[Any, ...]:
    labels = row.labels
    return (
        row.id,
        row.created_at,
        labels.model,
        labels.route,
        labels.key,
        labels.user,
        labels.team,
        write(labels.tags),
        labels.experiment,
        labels.arm,
        row.dialect,
        row.stream,
        row.journal,
        write(row.decision),
        row.ended_at,
        row.outcome,
        row.target,
        write(row.error),
        write(row.timing),
    )


def _attempt_values(row: AttemptRow, write: _Write) -> tuple[Any, ...]:
    labels = row.labels
    return (
        row.call_id,
        row.n,
        row.created_at,
        labels.model,
        labels.route,
        labels.key,
        labels.user,
        labels.team,
        write(labels.tags),
        labels.experiment,
        labels.arm,
        row.provider,
        row.model,
        row.journal,
        row.settled_at,
        row.outcome,
        write(row.error),
        write(row.timing),
        row.vendor_request_id,
        row.input,
        row.cache_read,
        row.cache_write,
        row.cache_write_1h,
        row.input_audio,
        row.output,
        row.reasoning,
        row.output_audio,
        row.source,
        row.flag,
        row.service_tier,
        row.thinking,
        row.cost,
        row.currency,
        row.price,
        row.role,
        row.why,
        row.vendor_key,
        row.seam,
    )


def _exposure_values(row: Exposure) -> tuple[Any, ...]:
    return (
        row.call_id,
        row.created_at,
        row.experiment,
        row.arm,
        row.unit,
        row.kind,
        row.forced,
        row.shares,
        row.shadow_of,
        row.journal,
    )


def _audit_values(audit: Audited) -> tuple[Any, ...]:
    return (audit.counted_input, audit.counted_output, audit.call_id, audit.n)


def _gap_values(gap: Gap) -> tuple[Any, ...]:
    return (
        gap.id,
        gap.journal,
        gap.began_at,
        gap.ended_at,
        gap.calls,
        gap.attempts,
        gap.input,
        gap.output,
        _json(gap.costs),
    )
