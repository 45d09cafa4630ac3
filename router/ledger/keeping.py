"""Opens what is kept and closes it in order: the store, what the dead have left, the journal, the writer."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import structlog

from router.accounts import Account, Accounts, AccountsAway
from router.gates import Gates, GatesAway
from router.ids import ulid
from router.ledger.journal import SEGMENT, Journal, JournalFull
from router.ledger.ledger import Ledger
from router.ledger.recovery import interrupt, recover, rejected_path
from router.ledger.writer import Writer
from router.store.ledger import close_journal, enrol
from router.store.spending import cost_of_calls
from router.store.store import Store, StoreAway

Convert: TypeAlias = Callable[[int, str, str, int], int | None]
"""`Pricing.convert`."""
_LOOK_AGAIN: float = 60.0
"""Seconds between two looks for processes that have died."""


class CannotKeep(Exception):
    """The ledger cannot be opened: the message says why, and what to do."""


@asynccontextmanager
async def kept(
    store: Store,
    directory: Path,
    journal: Journal,
    writer: Writer,
    ledger: Ledger,
    gates: Gates,
    accounts: Accounts,
    convert: Convert,
) -> AsyncIterator[None]:
    """The ledger for as long as a worker lives. `store` and the state are open. Raises `CannotKeep`."""
    log = structlog.get_logger("deltaway.ledger")

    async def settle(owner: str, calls: list[str]) -> None:
        await settle_held(store, accounts, convert, owner)
        try:
            for call_id in calls:
                await gates.leave(call_id)
        except GatesAway as error:
            # they fall free by themselves, later
            log.warning("the places of a dead process could not be given back", journal=owner, reason=str(error))

    async def look_again() -> None:
        """A worker that died while we live is replaced by one that recovers it; another machine's has only us."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN)
            try:
                await recover(store, directory, settle)
            except (StoreAway, OSError) as error:
                log.warning("what dead processes left could not be looked at", reason=str(error))
            except Exception as error:
                log.error("what dead processes left could not be looked at", exc_info=error)

    try:
        await recover(store, directory, settle)
        journal.open()
        await enrol(store, journal.id, socket.gethostname(), _now())
    except StoreAway as error:
        raise CannotKeep(str(error)) from error
    except (OSError, JournalFull) as error:
        raise _cannot_open(directory, error) from error
    looking = asyncio.create_task(look_again())
    try:
        async with ledger.lifespan():
            yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        done = writer.backlog == 0
        if done:
            try:
                # what has not come to its end in all the time it had does so now
                if await interrupt(store, journal.id, rejected_path(directory, journal.id)):
                    log.warning("calls were still open at the end: they are settled as interrupted")
                await close_journal(store, journal.id, _now())
            except (StoreAway, OSError):
                done = False
        if not done:
            log.warning("the store could not be brought up to date: the next start does it", backlog=writer.backlog)
        journal.close(remove=done)


def check_directory(directory: Path) -> None:
    """Whether a journal could be opened there. Raises `CannotKeep`."""
    probe = Journal(directory, f"probe_{ulid()}", SEGMENT)
    try:
        probe.open()
        probe.close(remove=True)
    except (OSError, JournalFull) as error:
        raise _cannot_open(directory, error) from error


def _cannot_open(directory: Path, error: Exception) -> CannotKeep:
    if isinstance(error, JournalFull):
        return CannotKeep(f"{error}; make room, or name another directory with `ledger.journal`")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CannotKeep(
        f"the journal in `{directory}` cannot be opened: {reason}; make it a directory that can be written to, or name "
        "another with `ledger.journal`"
    )


async def settle_held(store: Store, accounts: Accounts, convert: Convert, owner: str) -> None:
    """Settle the reservations of a process that has died, with what the ledger says its calls cost."""
    log = structlog.get_logger("deltaway.ledger")
    try:
        held = await accounts.held_by(owner)
        costs = await cost_of_calls(store, [call_id for call_id, _ in held])
        for call_id, named in held:
            charges = {account: _charge(account, costs.get(call_id, []), convert) for account in named}
            await accounts.settle(call_id, charges)
    except AccountsAway as error:
        # they expire by themselves
        log.warning("the reservations of a dead process could not be settled", journal=owner, reason=str(error))


def _charge(account: Account, costs: list[tuple[int, str, int]], convert: Convert) -> int:
    """A call's cost in the account's currency. What cannot be converted was refused before the call was made."""
    return sum(convert(nano, currency, account.currency, at) or 0 for at, currency, nano in costs)


def _now() -> int:
    return int(time.time() * 1000)
