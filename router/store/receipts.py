"""Reads calls with their attempts: one, or a page of them from the newest on.

A page is two queries however long it is, and none of them counts. It begins after the id it is told, by an index that
ends in the id, so the ten-thousandth costs what the first one does.
"""

from collections.abc import Collection
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from router.ledger.rows import AttemptRow, CallRow
from router.store.ledger import attempt_row, call_row
from router.store.selection import Dialect, Selection, of_calls
from router.store.store import Store
from router.store.tables import attempts, calls, exposures, feedback


class Counted(Struct, frozen=True):
    """What our own tokenizer counted for an attempt."""

    input: int
    output: int


class Receipt(Struct, frozen=True):
    call: CallRow
    attempts: list[AttemptRow]
    """In the order they were made."""
    audits: dict[int, Counted]
    """By the number of the attempt; few are audited."""
    feedback: dict[str, bool | float] = {}
    """Metric → what was said of the answer. Of a receipt that is read alone, as are its `shadows`."""
    shadows: tuple[str, ...] = ()
    """Calls that repeat this one in the background."""


class ReceiptPage(Struct, frozen=True):
    receipts: list[Receipt]
    """The newest first."""
    more: bool
    """Whether there are more, in the direction that was read."""


async def receipts(
    store: Store, selection: Selection, *, after: str | None = None, before: str | None = None, limit: int = 20
) -> ReceiptPage:
    """The page that follows the id `after`, or with `before` the one that comes ahead of that id; the newest without
    either. Raises `StoreAway`."""
    backwards = before is not None
    async with store.reading() as connection:
        found = await connection.execute(page(selection, store.dialect, after=after, before=before, limit=limit))
        rows = found.mappings().all()
        more, rows = len(rows) > limit, rows[:limit]
        return ReceiptPage(await _with_attempts(connection, rows[::-1] if backwards else rows), more)


async def receipt(store: Store, call_id: str, *, key: str | None = None) -> Receipt | None:
    """One call; None where there is none of that id, or none that `key` made. Raises `StoreAway`."""
    query = select(calls).where(calls.c.id == call_id)
    if key is not None:
        query = query.where(calls.c.key == key)
    said = select(feedback.c.metric, feedback.c.kind, feedback.c.value).where(feedback.c.call_id == call_id)
    repeated = select(exposures.c.call_id).where(exposures.c.shadow_of == call_id).order_by(exposures.c.call_id)
    async with store.reading() as connection:
        found = await _with_attempts(connection, (await connection.execute(query)).mappings().all())
        if not found:
            return None
        words = (await connection.execute(said.order_by(feedback.c.metric))).all()
        # nobody but an admin may look at them: they are nobody's calls
        shadows = () if key is not None else tuple(await connection.scalars(repeated))
    return msgspec.structs.replace(
        found[0], feedback={metric: said_value(kind, value) for metric, kind, value in words}, shadows=shadows
    )


async def receipts_of(store: Store, ids: Collection[str]) -> dict[str, Receipt]:
    """The calls of these ids, as far as there are any, whoever made them. Raises `StoreAway`."""
    if not ids:
        return {}
    async with store.reading() as connection:
        rows = (await connection.execute(select(calls).where(calls.c.id.in_(ids)))).mappings().all()
        return {receipt.call.id: receipt for receipt in await _with_attempts(connection, rows)}


def said_value(kind: str, value: float) -> bool | float:
    """A value of feedback as the client said it."""
    return bool(value) if kind == "binary" else value


def page(
    selection: Selection, dialect: Dialect, *, after: str | None = None, before: str | None = None, limit: int = 20
) -> Select[Any]:
    """The query for a page of calls, and one call more if there is one."""
    query = select(calls).where(*of_calls(selection, dialect)).limit(limit + 1)
    if after is not None:
        query = query.where(calls.c.id < after)
    if before is not None:
        return query.where(calls.c.id > before).order_by(calls.c.id)
    return query.order_by(calls.c.id.desc())


async def _with_attempts(connection: AsyncConnection, rows: Any) -> list[Receipt]:
    found = [Receipt(call_row(row), [], {}) for row in rows]
    by_id = {receipt.call.id: receipt for receipt in found}
    if by_id:
        query = select(attempts).where(attempts.c.call_id.in_(by_id)).order_by(attempts.c.call_id, attempts.c.n)
        for row in (await connection.execute(query)).mappings():
            attempt = attempt_row(row)
            receipt = by_id[attempt.call_id]
            receipt.attempts.append(attempt)
            if row["counted_input"] is not None:
                receipt.audits[attempt.n] = Counted(row["counted_input"], row["counted_output"])
    return found
