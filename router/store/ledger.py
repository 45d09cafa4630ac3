"""What the ledger brings into the store, and what recovery reads of it. Times are Unix milliseconds.

A row is settled once: with an outcome it stays as it is, whoever brings in what. Only `interrupted` gives way, to the
real end of an attempt whose process was taken for dead and was not. So a batch may be brought in twice.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from router.ledger.rows import AttemptRow, Batch, CallRow, Labels
from router.store.batches import statements_of
from router.store.store import Store
from router.store.tables import attempts, calls, journals

# -- writing -------------------------------------------------------------------------------------------------------


async def enrol(store: Store, journal: str, host: str, at: int) -> None:
    """Say that there is such a journal, on the machine `host`. Raises `StoreAway`."""
    insert = insert_sqlite if store.dialect == "sqlite" else insert_postgres
    row = insert(journals).values(id=journal, applied=0, seen_at=at, host=host)
    seen = {"host": host, "seen_at": at, "closed_at": None}
    async with store.writing() as connection:
        await connection.execute(row.on_conflict_do_update(index_elements=["id"], set_=seen))


async def bring_in(store: Store, batch: Batch, at: int) -> None:
    """All of it or nothing. Raises `StoreAway`, and the driver's error for what the store refuses for what it says."""
    await store.write_many(statements_of(batch, at, store.dialect))


async def heartbeat(store: Store, journal: str, at: int) -> None:
    """Say that the journal's process lives. Raises `StoreAway`."""
    seen = update(journals).where(journals.c.id == journal).values(seen_at=at, closed_at=None)
    async with store.writing() as connection:
        await connection.execute(seen)


async def close_journal(store: Store, journal: str, at: int) -> None:
    """Say that all of the journal is in the store, and that nothing more will come. Raises `StoreAway`."""
    closed = update(journals).where(journals.c.id == journal).values(closed_at=at)
    async with store.writing() as connection:
        await connection.execute(closed)


# -- reading -------------------------------------------------------------------------------------------------------


async def applied(store: Store, journal: str) -> int | None:
    """Number of the last record that was brought in; None: the journal is not known. Raises `StoreAway`."""
    async with store.reading() as connection:
        found: int | None = await connection.scalar(select(journals.c.applied).where(journals.c.id == journal))
        return found


async def open_rows(store: Store, journal: str) -> tuple[list[CallRow], list[AttemptRow]]:
    """The journal's rows without an outcome, the oldest first. Raises `StoreAway`."""
    open_calls = select(calls).where(calls.c.journal == journal, calls.c.outcome.is_(None)).order_by(calls.c.id)
    open_attempts = (
        select(attempts)
        .where(attempts.c.journal == journal, attempts.c.outcome.is_(None))
        .order_by(attempts.c.call_id, attempts.c.n)
    )
    async with store.reading() as connection:
        found_calls = [call_row(row) for row in (await connection.execute(open_calls)).mappings()]
        found_attempts = [attempt_row(row) for row in (await connection.execute(open_attempts)).mappings()]
    return found_calls, found_attempts


async def abandoned_journals(store: Store, before: int) -> list[str]:
    """Journals that were not closed and gave their last sign of life earlier than `before`. Raises `StoreAway`."""
    quiet = select(journals.c.id).where(journals.c.closed_at.is_(None), journals.c.seen_at < before)
    async with store.reading() as connection:
        return list(await connection.scalars(quiet.order_by(journals.c.id)))


def call_row(row: Mapping[Any, Any]) -> CallRow:
    """A row of `calls`, by the names of its columns."""
    return CallRow(
        row["id"],
        row["created_at"],
        _labels(row),
        row["dialect"],
        row["stream"],
        row["journal"],
        row["decision"],
        row["ended_at"],
        row["outcome"],
        row["target"],
        row["error"],
        row["timing"],
    )


def attempt_row(row: Mapping[Any, Any]) -> AttemptRow:
    """A row of `attempts`, by the names of its columns."""
    return AttemptRow(
        row["call_id"],
        row["n"],
        row["created_at"],
        _labels(row),
        row["provider"],
        row["model"],
        row["journal"],
        row["settled_at"],
        row["outcome"],
        row["error"],
        row["timing"],
        row["vendor_request_id"],
        row["input"],
        row["cache_read"],
        row["cache_write"],
        row["cache_write_1h"],
        row["input_audio"],
        row["output"],
        row["reasoning"],
        row["output_audio"],
        row["source"],
        row["flag"],
        row["service_tier"],
        row["thinking"],
        row["cost"],
        row["currency"],
        row["price"],
        row["role"],
        row["why"],
        row["vendor_key"],
        row["seam"],
    )


def _labels(row: Mapping[Any, Any]) -> Labels:
    return Labels(
        row["asked"],
        row["route"],
        row["key"],
        row["user"],
        row["team"],
        row["tags"],
        row["experiment"],
        row["arm"],
    )
