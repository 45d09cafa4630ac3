"""Brings a batch into the store whatever is in it: a row that the store refuses does not keep the others from it.

What is refused for what it says, which should not happen, goes in once more with its words left out; and if even that
is refused, into a file beside the journals. Nothing is dropped in silence.
"""

import time
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog

from router.ledger.rows import TOKEN_CLASSES, AttemptRow, Batch, CallRow, kept_text
from router.store.away import is_refusal
from router.store.ledger import bring_in
from router.store.store import Store

MOST_NANO: Final = 2**63 - 1
"""What an integer of either store can hold."""
_LONGEST_FLAG: Final = 200
Row = TypeVar("Row", CallRow, AttemptRow)


async def bring(store: Store, batch: Batch, rejected: Path) -> None:
    """All of it. `rejected`: the file for what the store will not have. Raises `StoreAway`, `OSError` where that file
    cannot be written, and whatever else fails: all of it may pass."""
    try:
        await bring_in(store, batch, _now())
    except Exception as error:
        if not is_refusal(error):
            raise
        _log().error("the store refuses a batch: its rows are brought in one by one", exc_info=error)
        await _one_by_one(store, batch, rejected)


async def _one_by_one(store: Store, batch: Batch, rejected: Path) -> None:
    journal = batch.journal
    for call in batch.calls.values():
        await _single(store, [Batch(journal, calls={call.id: each}) for each in (call, reduced(call))], rejected)
    for number, attempt in batch.attempts.items():
        singles = [Batch(journal, attempts={number: each}) for each in (attempt, reduced(attempt))]
        await _single(store, singles, rejected)
    for call_id, exposure in batch.exposures.items():
        await _single(store, [Batch(journal, exposures={call_id: exposure})], rejected)
    for audit in batch.audits:
        await _single(store, [Batch(journal, audits=[audit])], rejected)
    for gap in batch.gaps:
        await _single(store, [Batch(journal, gaps=[gap])], rejected)
    await bring_in(store, Batch(journal, batch.position), _now())


async def _single(store: Store, forms: list[Batch], rejected: Path) -> None:
    """The first form that the store takes."""
    for form in forms:
        try:
            await bring_in(store, form, _now())
        except Exception as error:
            if not is_refusal(error):
                raise
            _log().error("the store refuses a row", exc_info=error)
        else:
            return
    first = forms[0]
    rows = [*first.calls.values(), *first.attempts.values(), *first.exposures.values(), *first.audits, *first.gaps]
    set_aside(rejected, msgspec.json.encode(rows))


def set_aside(rejected: Path, line: bytes) -> None:
    """Keep what the store will not have in a file, for people to look at. Raises `OSError`."""
    with rejected.open("ab") as file:
        file.write(line + b"\n")
    _log().error("a row was set aside: look at the file", file=str(rejected))


def reduced(row: Row) -> Row:
    """The row with its ids, times, tokens and outcome, and none of the words that may be the trouble."""
    labels = msgspec.structs.replace(row.labels, model=_plain(row.labels.model), user=None, tags={})
    if isinstance(row, CallRow):
        return msgspec.structs.replace(row, labels=labels, error=None, decision={}, timing={}, target=None)
    flag = _plain(f"{row.flag}; words left out" if row.flag else "words left out: the store refused them")
    unpriced = row.cost is None or not 0 <= row.cost <= MOST_NANO
    return msgspec.structs.replace(
        row,
        labels=labels,
        error=None,
        timing={},
        vendor_request_id=None,
        service_tier=None,
        flag=flag,
        **{name: min(max(getattr(row, name), 0), MOST_NANO) for name in TOKEN_CLASSES},
        cost=None if unpriced else row.cost,
        currency=None if unpriced else row.currency,
        price=None if unpriced else row.price,
    )


def _plain(text: str) -> str:
    return kept_text(text, _LONGEST_FLAG).encode("ascii", "replace").decode()


def _log() -> structlog.stdlib.BoundLogger:
    log: structlog.stdlib.BoundLogger = structlog.get_logger("deltaway.ledger")
    return log


def _now() -> int:
    return int(time.time() * 1000)
