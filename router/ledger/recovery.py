"""What dead processes left: their journals are brought into the store, what they had open is settled as interrupted.

May be repeated, and done by several processes at once: a journal is taken by its lock, and rows that are settled stay
as they are.
"""

import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from router.ledger.bringing import bring, set_aside
from router.ledger.journal import Left, left_behind, lock_path
from router.ledger.rows import AttemptRow, Batch, CallRow, decode_record
from router.store.ledger import abandoned_journals, applied, close_journal, enrol, open_rows
from router.store.store import Store, StoreAway

_MOST: Final = 2000
LOST_AFTER: Final = 3600.0
"""Seconds without a sign of life after which a process whose journal is not here is taken for dead."""
_ERROR: Final[dict[str, Any]] = {
    "status": 503,
    "kind": "internal",
    "code": "interrupted",
    "message": "the gateway's process ended in the middle of this call",
}

Settle = Callable[[str, list[str]], Awaitable[None]]
"""Told each journal that has been recovered, and the calls that were interrupted: what they reserved is to be settled,
and the places they took are to be given back."""


async def recover(store: Store, directory: Path, settle: Settle) -> int:
    """Recover every journal whose process is dead; gives the number of calls that were interrupted."""
    log = structlog.get_logger("deltaway.ledger")
    interrupted = 0
    for left in left_behind(directory):
        try:
            calls = await _recovered(store, left, directory)
            await settle(left.id, calls)
            left.remove()
        except (StoreAway, OSError):
            raise
        except Exception as error:
            # one journal that cannot be read keeps nobody from starting: its files stay for another try
            log.error("a journal could not be recovered", journal=left.id, exc_info=error)
            continue
        log.info("recovered the journal of a process that had died", journal=left.id, interrupted=len(calls))
        interrupted += len(calls)
    for journal in await abandoned_journals(store, _now() - int(LOST_AFTER * 1000)):
        # whose lock is here is alive, whatever the clocks say; the others' files are on a machine that is gone
        if not lock_path(directory, journal).exists():
            calls = await interrupt(store, journal, rejected_path(directory, journal))
            interrupted += len(calls)
            await settle(journal, calls)
            await close_journal(store, journal, _now())
    return interrupted


async def _recovered(store: Store, left: Left, directory: Path) -> list[str]:
    rejected = rejected_path(directory, left.id)
    done = await applied(store, left.id)
    if done is None:
        await enrol(store, left.id, socket.gethostname(), _now())
    for batch in _batches(left, done or 0, rejected):
        await bring(store, batch, rejected)
    calls = await interrupt(store, left.id, rejected)
    await close_journal(store, left.id, _now())
    return calls


def _batches(left: Left, after: int, rejected: Path) -> Iterator[Batch]:
    batch = Batch(left.id)
    count = 0
    for stored in left.records(after):
        try:
            batch.add(stored.position, decode_record(stored.payload))
        except msgspec.MsgspecError:
            # written by another version
            set_aside(rejected, stored.payload.hex().encode())
            continue
        count += 1
        if count == _MOST:
            yield batch
            batch, count = Batch(left.id), 0
    if count:
        yield batch


async def interrupt(store: Store, journal: str, rejected: Path) -> list[str]:
    """Settle what is open of a journal, with the tokens that are known; gives the calls. Raises `StoreAway`."""
    calls, attempts = await open_rows(store, journal)
    batch = Batch(journal)
    for row in attempts:
        batch.attempts[row.call_id, row.n] = _interrupted_attempt(row)
    for call in calls:
        batch.calls[call.id] = _interrupted_call(call)
    if batch.attempts or batch.calls:
        await bring(store, batch, rejected)
    return list(dict.fromkeys([*(call.id for call in calls), *(row.call_id for row in attempts)]))


def rejected_path(directory: Path, journal: str) -> Path:
    """The file for what the store will not have of a journal."""
    return directory / f"{journal}.rejected"


def _interrupted_attempt(row: AttemptRow) -> AttemptRow:
    flag = row.flag if row.source is not None else "the process ended before any token was counted"
    return msgspec.structs.replace(row, settled_at=_now(), outcome="interrupted", error=_ERROR, flag=flag)


def _interrupted_call(row: CallRow) -> CallRow:
    return msgspec.structs.replace(row, ended_at=_now(), outcome="interrupted", error=_ERROR)


def _now() -> int:
    return int(time.time() * 1000)
