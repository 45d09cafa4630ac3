"""The books of one process: what the request path tells it becomes rows, at once in the journal and soon in the store.

`open` before a vendor is called, `settle` when that attempt has ended, `close` when the call has: each is an append to
the journal. What the caller then waits for is `ledger.durability`: nothing more (`process`), the journal's group fsync
(`disk`) or the store's commit (`store`). Deltas never wait.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import structlog
from msgspec import Struct

from router.call import Attempt, Call
from router.errors import StoreUnavailable
from router.estimate import Estimator, told
from router.events import Usage
from router.ids import ulid
from router.ledger.audit import Audits
from router.ledger.bringing import reduced, set_aside
from router.ledger.charge import cost_of, price
from router.ledger.entries import begun_attempt, begun_call, ended_call, exposure_of, labels_of, settled_attempt
from router.ledger.journal import Journal, JournalFull
from router.ledger.rows import (
    TOKEN_CLASSES,
    AttemptRow,
    Audited,
    Closed,
    Gap,
    Opened,
    Progress,
    Record,
    Settled,
    encode_record,
)
from router.ledger.writer import Writer
from router.pricing import Cost
from router.settings import Durability
from router.settings import Ledger as Settings
from router.tokens import TokenCounter, measured

_PROMISE: Final = 8192
"""Bytes kept free in the journal for settling an attempt and closing its call, besides what its rows repeat."""
_TICK: Final = 1.0
_TURN: Final = 0.005
"""Seconds of counting between two turns of the event loop."""


_Written: TypeAlias = tuple[Record, bytes]
"""A record, and how it stands in the journal."""


class _Open(Struct):
    """An attempt under way."""

    call: Call
    attempt: Attempt
    row: AttemptRow
    promise: int
    checkpoint_at: float
    input: int | None = None
    """Tokens of the prompt's text, once a checkpoint has counted them."""
    output: int = 0
    reasoning: int = 0
    noted: tuple[int, int, int] = (0, 0, 0)
    """Pieces of output and of reasoning that are in these counts, and characters of speech that have been."""


class _Waiting:
    """What durability asks to wait for. Nobody has to: a client that has left does not."""

    __slots__ = ("_position", "_secured")

    def __init__(self, secured: Callable[[int], Coroutine[Any, Any, None]], position: int) -> None:
        self._secured = secured
        self._position = position

    def __await__(self) -> Generator[Any, Any, None]:
        return self._secured(self._position).__await__()


class Ledger:
    """Outlives every configuration: prices and routes are those that a call began under (`Trip.terms`).

    Where calls need a key, one without a known key leaves no row, so that nobody can fill the disk unknown.
    """

    def __init__(
        self,
        settings: Settings,
        durability: Durability,
        journal: Journal,
        writer: Writer,
        tokens: TokenCounter,
        rejected: Path,
    ) -> None:
        self._settings = settings
        self._durability = durability
        self._journal = journal
        self._writer = writer
        self._tokens = tokens
        self._estimator = Estimator(tokens if settings.tokenizer else None)
        self._rejected = rejected
        self._open: dict[tuple[str, int], _Open] = {}
        self._settled: list[_Written] = []
        """Settlements that go to the journal with the next record: their call is not closed yet."""
        self._owed = 0
        """Bytes promised to settlements that wait for a record to go with."""
        self._audits = Audits(tokens, settings.audit if settings.tokenizer else 0.0, self._audited)
        self._gap: Gap | None = None
        self._without: set[str] = set()
        """Calls that run without a record."""
        self._log = structlog.get_logger("deltaway.ledger")

    # -- the request path ------------------------------------------------------------------------------------------

    def open(self, call: Call, attempt: Attempt) -> Awaitable[None] | None:
        trip = call.trip
        labels = labels_of(call)
        row = begun_attempt(call.id, attempt, labels, self._journal.id)
        if trip.recorded:
            record = Opened(row)
        else:
            record = Opened(row, begun_call(call, labels, self._journal.id), exposure_of(call, self._journal.id))
        opened = _written(record)
        promise = 2 * len(opened[1]) + _PROMISE
        try:
            position = self._append([*self._taken(), opened], promise=promise)
        except (JournalFull, OSError) as error:
            self._go_without(call, error)
            return None
        trip.recorded = True
        due = time.monotonic() + min(self._settings.checkpoint, _TICK)
        self._open[call.id, attempt.n] = _Open(call, attempt, row, promise, due)
        return self._wait(position)

    def settle(self, call: Call, attempt: Attempt) -> None:
        price(call.trip, attempt)
        opened = self._open.pop((call.id, attempt.n), None)
        if opened is None:
            self._count_gap(call, attempt)
            return
        # given back with the record that takes it
        self._owed += opened.promise
        row = settled_attempt(opened.row, attempt, call.trip)
        self._settled.append(_written(Settled(row)))
        if row.source == "reported":
            self._audits.draw(call, attempt)

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> Awaitable[None] | None:
        trip = call.trip
        if trip.closed:
            return None
        trip.closed = True
        self._without.discard(call.id)
        # a shadow has nobody to call it, and is ours
        shadow = trip.assigned is not None and trip.assigned.shadow_of is not None
        unknown = trip.in_force.keyed and trip.principal is None and not shadow
        if not trip.recorded and (trip.attempts or unknown or isinstance(error, StoreUnavailable)):
            return None
        begun = begun_call(call, labels_of(call), self._journal.id)
        row = ended_call(begun, call, error, layers)
        closed = _written(Closed(row, None if trip.recorded else exposure_of(call, self._journal.id)))
        try:
            if trip.recorded:
                position = self._append([*self._taken(), closed], promised=True)
            else:
                # refused: no room was kept for it, and it takes none from the settlements that wait
                position = self._append([closed])
        except (JournalFull, OSError):
            # said already; a row that was promised is in memory and goes to the store from there
            if not trip.recorded:
                self._widen_gap(trip.created_at, calls=1)
            return None
        return self._wait(position)

    # -- what waits, and what does not ------------------------------------------------------------------------------

    def _wait(self, position: int) -> Awaitable[None] | None:
        return None if self._durability == "process" else _Waiting(self._secured, position)

    async def flushed(self) -> None:
        """Wait until the store has what has happened so far, or is known to be away."""
        self._flush()
        await self._writer.committed(self._writer.taken)

    async def _secured(self, position: int) -> None:
        if self._durability == "store" and await self._writer.committed(position):
            return
        try:
            # with the store away, what the journal has on the disk is the record
            await self._journal.synced(position)
        except OSError as error:
            self._log.error("the journal could not be synced", reason=str(error))
            raise StoreUnavailable("the call could not be put on record: the disk failed", retry_after=5.0) from error

    def _append(self, records: list[_Written], *, promise: int = 0, promised: bool = False) -> int:
        """Into the journal, and on to the writer. What was `promised` and cannot be taken by the journal is kept in
        memory, until the store has it. Of anything else nothing is written then: the last record is the caller's own,
        those before it wait for the next."""
        try:
            position = self._journal.append([data for _, data in records], promise=promise, promised=promised)
        except (JournalFull, OSError) as error:
            if not promised:
                self._settled.extend(records[:-1])
                raise
            self._log.error("the journal failed: rows are kept in memory alone", reason=str(error))
            for record, _ in records:
                self._writer.put_loose(record)
            self._give_back()
            raise
        self._give_back()
        first = position - len(records) + 1
        for number, (record, _) in enumerate(records, first):
            self._writer.put(number, record)
        return position

    def _give_back(self) -> None:
        """The room of attempts whose settlement has been written."""
        if self._owed and not self._settled:
            self._journal.release(self._owed)
            self._owed = 0

    def _taken(self) -> list[_Written]:
        """The settlements that wait for a record to go with."""
        taken = self._settled
        self._settled = []
        return taken

    def _go_without(self, call: Call, error: Exception) -> None:
        if self._settings.on_store_failure == "refuse":
            self._log.error("a call was refused: it cannot be put on record", request_id=call.id, reason=str(error))
            raise StoreUnavailable(
                "the gateway cannot put this call on record, so it was not made; try again later",
                code="ledger_full",
                retry_after=5.0,
            )
        if not self._without:
            self._log.error("calls are served that cannot be recorded one by one: they are counted", reason=str(error))
        self._without.add(call.id)

    def _count_gap(self, call: Call, attempt: Attempt) -> None:
        if call.id not in self._without:
            return
        usage, cost = attempt.usage or Usage(), attempt.cost
        self._widen_gap(
            attempt.created_at,
            calls=int(attempt.n == 1),
            attempts=1,
            prompt=usage.prompt_total,
            completion=usage.completion_total,
            cost=cost,
        )

    def _widen_gap(
        self,
        began: int,
        *,
        calls: int,
        attempts: int = 0,
        prompt: int = 0,
        completion: int = 0,
        cost: Cost | None = None,
    ) -> None:
        now = _now()
        gap = self._gap or Gap(f"gap_{ulid()}", self._journal.id, began, now, 0, 0, 0, 0)
        costs = dict(gap.costs)
        if cost is not None:
            costs[cost.currency] = costs.get(cost.currency, 0) + cost.nano
        self._gap = msgspec.structs.replace(
            gap,
            ended_at=now,
            calls=gap.calls + calls,
            attempts=gap.attempts + attempts,
            input=gap.input + prompt,
            output=gap.output + completion,
            costs=costs,
        )

    # -- beside the request path -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Runs the writer and the ticker; at the end brings in what is left, for some seconds at most."""
        writing = asyncio.create_task(self._writer.run())
        ticking = asyncio.create_task(self._ticks())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, self._audits.close(), return_exceptions=True)
            self._flush(last=True)
            await self._writer.close()
            done, _ = await asyncio.wait({writing}, timeout=10.0)
            if not done:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
            self._save_loose()

    def _save_loose(self) -> None:
        """What only memory has, when the store is away at the end: the journal, or a file beside it."""
        for record in self._writer.loose():
            try:
                self._journal.append([encode_record(record)], promised=True)
            except (JournalFull, OSError):
                set_aside(self._rejected, msgspec.json.encode(record))

    @property
    def away(self) -> str | None:
        return self._writer.away

    @property
    def backlog(self) -> int:
        return self._writer.backlog

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            try:
                self._flush()
                if self._settings.checkpoint:
                    await self._checkpoint()
                if self._journal.prepare():
                    self._journal.allocate()
            except (JournalFull, OSError):
                # the next call that wants a record is told
                continue
            except Exception as error:
                self._log.error("the ledger's clock failed by a fault of ours", exc_info=error)

    def _flush(self, *, last: bool = False) -> None:
        """Write what waits for a record to go with. `last`: there will be none, whatever the store's state."""
        records = self._taken()
        if self._gap is not None and (last or self._writer.away is None):
            self._log.error("calls have no row each", **msgspec.structs.asdict(self._gap))
            records.append(_written(self._gap))
            self._gap = None
        if records:
            try:
                self._append(records, promised=True)
            except (JournalFull, OSError):
                return

    async def _checkpoint(self) -> None:
        """Write down how far the long answers have come."""
        now = time.monotonic()
        due = deque(opened for opened in self._open.values() if now >= opened.checkpoint_at)
        while due:
            until = time.monotonic() + _TURN
            records: list[_Written] = []
            while due and time.monotonic() < until:
                opened = due.popleft()
                opened.checkpoint_at = now + self._settings.checkpoint
                # some may have ended while others were counted
                if (opened.call.id, opened.attempt.n) in self._open and self._counted(opened):
                    records.append(_written(Progress(opened.row)))
            if records:
                # a journal without room to spare goes without: the settlements need it more
                position = self._journal.append([data for _, data in records])
                for number, (record, _) in enumerate(records, position - len(records) + 1):
                    self._writer.put(number, record)
            await asyncio.sleep(0)

    def _counted(self, opened: _Open) -> bool:
        """Bring the row's tokens up to date; whether there is something new to say."""
        attempt, generated = opened.attempt, opened.attempt.generated
        usage, model = attempt.usage, attempt.target.model
        if usage is None:
            noted = (len(generated.output), len(generated.reasoning), generated.audio)
            if opened.input is not None and noted == opened.noted:
                return False
            if opened.input is None:
                texts, fixed = measured(opened.call.request, recordings=False)
                opened.input = self._estimator.count_now(texts, model) + fixed
            # only what is new: an answer may be long, and have many checkpoints
            written, thought = generated.output[opened.noted[0] :], generated.reasoning[opened.noted[1] :]
            opened.output += self._estimator.count_now(["".join(written)], model)
            opened.reasoning += self._estimator.count_now(["".join(thought)], model)
            opened.noted = noted
            usage = told(opened.call.request, attempt, opened.input, opened.output, opened.reasoning)
        cost = cost_of(opened.call.trip.in_force.pricing, attempt, usage)
        opened.row = msgspec.structs.replace(
            opened.row,
            **{name: getattr(usage, name) for name in TOKEN_CLASSES},
            source=usage.source,
            flag=usage.flag,
            cost=None if cost is None else cost.nano,
            currency=None if cost is None else cost.currency,
            price=None if cost is None else cost.price,
        )
        return True

    def _audited(self, audited: Audited) -> None:
        # after the settlement it belongs to
        self._settled.append(_written(audited))


def _written(record: Record) -> _Written:
    """The record with its bytes, made one by one: one that cannot be written keeps no other from it."""
    try:
        return record, encode_record(record)
    except (OverflowError, TypeError, ValueError) as error:
        structlog.get_logger("deltaway.ledger").error("a row cannot be written as it is", exc_info=error)
        match record:
            case Opened(attempt, call, exposure):
                record = Opened(reduced(attempt), None if call is None else reduced(call), exposure)
            case Settled(attempt):
                record = Settled(reduced(attempt))
            case Progress(attempt):
                record = Progress(reduced(attempt))
            case Closed(call, exposure):
                record = Closed(reduced(call), exposure)
            case _:
                raise
        return record, encode_record(record)


def _now() -> int:
    return int(time.time() * 1000)
