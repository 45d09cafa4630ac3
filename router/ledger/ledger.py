"""The books of one process: what the request path tells it becomes rows, at once in the journal and soon in the store.

`open` before a vendor is called, `settle` when that attempt has ended, `close` when the call has: each is an append to
the journal. What the caller then waits for is `ledger.durability`: nothing more (`process`), the journal's group fsync
(`disk`) or the store's commit (`store`). Deltas never wait.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import msgspec
import structlog
from msgspec import Struct

from router.call import Attempt, Call, Trip, outcome_of
from router.errors import ProviderError, RouterError, StoreUnavailable
from router.estimate import Estimator
from router.events import Usage
from router.ids import ulid
from router.ledger.bringing import MOST_NANO, reduced, set_aside
from router.ledger.journal import Journal, JournalFull
from router.ledger.rows import (
    LONGEST_VALUE,
    TOKEN_CLASSES,
    AttemptRow,
    Audited,
    CallRow,
    Closed,
    Gap,
    Labels,
    Opened,
    Progress,
    Record,
    Settled,
    encode_record,
    kept_text,
)
from router.ledger.writer import Writer
from router.money import decimal_of
from router.pricing import Cost, Pricing
from router.settings import Durability
from router.settings import Ledger as Settings
from router.tokens import BrokenVocabulary, TokenCounter, measured

_PROMISE: Final = 8192
"""Bytes kept free in the journal for settling an attempt and closing its call, besides what its rows repeat."""
_TICK: Final = 1.0
_TURN: Final = 0.005
"""Seconds of counting between two turns of the event loop."""
_AUDITS: Final = 4
"""Audits that may be counting at a time; a call that comes meanwhile is not audited."""
_LONGEST_MESSAGE: Final = 600
_MOST_TAGS: Final = 32
_NOTHING: Final = Usage()


class Books(Protocol):
    """What the request path tells. Each returned awaitable is what durability asks to wait for; None: nothing."""

    @property
    def away(self) -> str | None:
        """Why the store cannot be written to; None while it can."""
        ...

    @property
    def backlog(self) -> int:
        """Records that are not in the store yet."""
        ...

    def open(self, call: Call, attempt: Attempt) -> Awaitable[None] | None:
        """The attempt is about to be made. Raises `StoreUnavailable` when it cannot be put on record."""
        ...

    def settle(self, call: Call, attempt: Attempt) -> None:
        """The attempt has ended: `ended`, `outcome` and `usage` are set. Sets its cost. Never raises."""
        ...

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> Awaitable[None] | None:
        """The call has ended, all its layers closed. Never raises."""
        ...


class NoLedger:
    """`ledger: {enabled: false}`: nothing is recorded. Costs are still told to the plugins."""

    away = None
    backlog = 0

    def __init__(self, pricing: Pricing) -> None:
        self._pricing = pricing

    def open(self, call: Call, attempt: Attempt) -> None:
        return None

    def settle(self, call: Call, attempt: Attempt) -> None:
        price(self._pricing, call.trip, attempt)

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> None:
        call.trip.closed = True


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
    """Tokens of the prompt, once a checkpoint has counted them."""
    output: int = 0
    reasoning: int = 0
    noted: tuple[int, int] = (0, 0)
    """Pieces of output and of reasoning that are in these counts."""


class _Waiting:
    """What durability asks to wait for. Nobody has to: a client that has left does not."""

    __slots__ = ("_position", "_secured")

    def __init__(self, secured: Callable[[int], Coroutine[Any, Any, None]], position: int) -> None:
        self._secured = secured
        self._position = position

    def __await__(self) -> Generator[Any, Any, None]:
        return self._secured(self._position).__await__()


class Ledger:
    """`keyed`: a call without a known key leaves no row, so that nobody can fill the disk unknown."""

    def __init__(
        self,
        settings: Settings,
        durability: Durability,
        journal: Journal,
        writer: Writer,
        pricing: Pricing,
        tokens: TokenCounter,
        is_route: Callable[[str], bool],
        rejected: Path,
        *,
        keyed: bool,
    ) -> None:
        self._settings = settings
        self._durability = durability
        self._journal = journal
        self._writer = writer
        self._pricing = pricing
        self._tokens = tokens
        self._estimator = Estimator(tokens if settings.tokenizer else None)
        self._is_route = is_route
        self._rejected = rejected
        self._keyed = keyed
        self._open: dict[tuple[str, int], _Open] = {}
        self._settled: list[_Written] = []
        """Settlements that go to the journal with the next record: their call is not closed yet."""
        self._owed = 0
        """Bytes promised to settlements that wait for a record to go with."""
        self._audits: set[asyncio.Task[None]] = set()
        self._gap: Gap | None = None
        self._without: set[str] = set()
        """Calls that run without a record."""
        self._log = structlog.get_logger("deltaway.ledger")

    # -- the request path ------------------------------------------------------------------------------------------

    def open(self, call: Call, attempt: Attempt) -> Awaitable[None] | None:
        trip = call.trip
        labels = self._labels(call)
        row = AttemptRow(
            call.id,
            attempt.n,
            attempt.created_at,
            labels,
            attempt.target.provider,
            kept_text(attempt.target.model),
            self._journal.id,
            thinking=attempt.thinking,
        )
        opened = _written(Opened(row, None if trip.recorded else self._call_row(call, labels)))
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
        price(self._pricing, call.trip, attempt)
        opened = self._open.pop((call.id, attempt.n), None)
        if opened is None:
            self._count_gap(call, attempt)
            return
        # given back with the record that takes it
        self._owed += opened.promise
        row = _settled(opened.row, attempt, call.trip)
        self._settled.append(_written(Settled(row)))
        audit = self._settings.audit if self._settings.tokenizer else 0
        if audit and row.source == "reported" and (audit >= 1 or random.random() < audit):
            self._audit(call, attempt)

    def close(self, call: Call, error: BaseException | None, layers: tuple[str, ...]) -> Awaitable[None] | None:
        trip = call.trip
        if trip.closed:
            return None
        trip.closed = True
        self._without.discard(call.id)
        unknown = self._keyed and trip.principal is None
        if not trip.recorded and (trip.attempts or unknown or isinstance(error, StoreUnavailable)):
            return None
        row = self._call_row(call, self._labels(call))
        if error is not None and trip.interruption is not None and not isinstance(error, RouterError):
            error = trip.interruption
        row = msgspec.structs.replace(
            row,
            ended_at=trip.created_at + _ms(time.monotonic() - trip.started),
            outcome=outcome_of(error, trip),
            target=None if trip.target is None else kept_text(str(trip.target)),
            error=_error(error),
            timing=_call_timing(trip, layers),
            decision=_decision(call, self._is_route),
        )
        try:
            position = self._append([*self._taken(), _written(Closed(row))], promised=trip.recorded)
        except (JournalFull, OSError):
            # said already; the row is in memory and goes to the store from there
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
        """Into the journal, and on to the writer. Without room for a new `promise` nothing is written; anything else
        that the journal cannot take is kept in memory, until the store has it."""
        try:
            position = self._journal.append([data for _, data in records], promise=promise, promised=promised)
        except (JournalFull, OSError) as error:
            if promise:
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
        now = _now()
        gap = self._gap or Gap(f"gap_{ulid()}", self._journal.id, attempt.created_at, now, 0, 0, 0, 0)
        usage, costs = attempt.usage or Usage(), dict(gap.costs)
        if attempt.cost is not None:
            costs[attempt.cost.currency] = costs.get(attempt.cost.currency, 0) + attempt.cost.nano
        self._gap = msgspec.structs.replace(
            gap,
            ended_at=now,
            calls=gap.calls + (attempt.n == 1),
            attempts=gap.attempts + 1,
            input=gap.input + usage.prompt_total,
            output=gap.output + usage.completion_total,
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
            for audit in self._audits:
                audit.cancel()
            await asyncio.gather(ticking, *self._audits, return_exceptions=True)
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
            self._log.error("calls were served without a row each", **msgspec.structs.asdict(self._gap))
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
            noted = (len(generated.output), len(generated.reasoning))
            if opened.input is not None and noted == opened.noted:
                return False
            if opened.input is None:
                texts, fixed = measured(opened.call.request)
                opened.input = self._estimator.count_now(texts, model) + fixed
            # only what is new: an answer may be long, and have many checkpoints
            written, thought = generated.output[opened.noted[0] :], generated.reasoning[opened.noted[1] :]
            opened.output += self._estimator.count_now(["".join(written)], model)
            opened.reasoning += self._estimator.count_now(["".join(thought)], model)
            opened.noted = noted
            usage = Usage(input=opened.input, output=opened.output, reasoning=opened.reasoning, source="estimated")
        cost = cost_of(self._pricing, attempt, usage)
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

    def _audit(self, call: Call, attempt: Attempt) -> None:
        if len(self._audits) >= _AUDITS:
            return
        task = asyncio.get_running_loop().create_task(self._audited(call, attempt))
        self._audits.add(task)
        task.add_done_callback(self._audits.discard)

    async def _audited(self, call: Call, attempt: Attempt) -> None:
        """Count what the vendor has counted."""
        model, (texts, fixed), generated = attempt.target.model, measured(call.request), attempt.generated
        try:
            counted_input = await asyncio.to_thread(self._tokens.count_blocking, texts, model) + fixed
            written = ["".join(generated.output), "".join(generated.reasoning)]
            counted_output = await asyncio.to_thread(self._tokens.count_blocking, written, model)
        except BrokenVocabulary as broken:
            self._log.error("no call can be audited", reason=str(broken))
            return
        # after the settlement it belongs to
        self._settled.append(_written(Audited(call.id, attempt.n, counted_input, counted_output)))

    # -- rows ------------------------------------------------------------------------------------------------------

    def _labels(self, call: Call) -> Labels:
        """The same for all rows of a call, whatever layers make of it on its way."""
        trip = call.trip
        if not isinstance(trip.labels, Labels):
            trip.labels = self._labelled(call)
        return trip.labels

    def _labelled(self, call: Call) -> Labels:
        principal, model = call.trip.principal, call.trip.asked or call.request.model
        tags, user = call.tags, call.user
        if principal is not None:
            tags, user = {**tags, **principal.tags} if principal.tags else tags, principal.user or user
        name = kept_text(model)
        return Labels(
            name,
            name if self._is_route(model) else None,
            None if principal is None else principal.key,
            None if user is None else kept_text(user),
            None if principal is None else principal.team,
            _tags(tags) if tags else {},
        )

    def _call_row(self, call: Call, labels: Labels) -> CallRow:
        return CallRow(call.id, call.trip.created_at, labels, call.dialect, call.request.stream, self._journal.id)


def _written(record: Record) -> _Written:
    """The record with its bytes, made one by one: one that cannot be written keeps no other from it."""
    try:
        return record, encode_record(record)
    except (OverflowError, TypeError, ValueError) as error:
        structlog.get_logger("deltaway.ledger").error("a row cannot be written as it is", exc_info=error)
        match record:
            case Opened(attempt, call):
                record = Opened(reduced(attempt), None if call is None else reduced(call))
            case Settled(attempt):
                record = Settled(reduced(attempt))
            case Progress(attempt):
                record = Progress(reduced(attempt))
            case Closed(call):
                record = Closed(reduced(call))
            case _:
                raise
        return record, encode_record(record)


def price(pricing: Pricing, trip: Trip, attempt: Attempt) -> None:
    """Note what the attempt cost, and tell the client."""
    if attempt.usage is None:
        return
    attempt.cost = cost_of(pricing, attempt, attempt.usage)
    sums: dict[str, int] = {}
    for tried in trip.attempts:
        if tried.cost is not None:
            sums[tried.cost.currency] = sums.get(tried.cost.currency, 0) + tried.cost.nano
    if sums:
        trip.headers["x-deltaway-cost"] = ", ".join(f"{decimal_of(nano)} {code}" for code, nano in sums.items())


def cost_of(pricing: Pricing, attempt: Attempt, usage: Usage) -> Cost | None:
    thinking = attempt.thinking or usage.reasoning > 0 or bool(attempt.generated.reasoning)
    cost = pricing.cost(attempt.target, usage, attempt.created_at, service_tier=attempt.service_tier, thinking=thinking)
    # no store can hold more: such a count is a fault of the vendor's, and the row says that it has no cost
    return cost if cost is None or cost.nano <= MOST_NANO else None


def _settled(row: AttemptRow, attempt: Attempt, trip: Trip) -> AttemptRow:
    usage, cost = attempt.usage or _NOTHING, attempt.cost
    ended = attempt.ended if attempt.ended is not None else time.monotonic()
    timing: dict[str, Any] = {"duration_ms": _tenths(ended - attempt.started)}
    if attempt.first_delta is not None:
        timing["first_token_ms"] = _tenths(attempt.first_delta - attempt.started)
        timing["longest_gap_ms"] = _tenths(attempt.longest_gap)
    return AttemptRow(
        row.call_id,
        row.n,
        row.created_at,
        row.labels,
        row.provider,
        row.model,
        row.journal,
        trip.created_at + _ms(ended - trip.started),
        attempt.outcome,
        _error(attempt.error),
        timing,
        None if attempt.vendor_request_id is None else kept_text(str(attempt.vendor_request_id)),
        usage.input,
        usage.cache_read,
        usage.cache_write,
        usage.cache_write_1h,
        usage.input_audio,
        usage.output,
        usage.reasoning,
        usage.output_audio,
        None if attempt.usage is None else usage.source,
        None if usage.flag is None else kept_text(usage.flag, LONGEST_VALUE),
        None if attempt.service_tier is None else kept_text(attempt.service_tier),
        attempt.thinking or usage.reasoning > 0 or bool(attempt.generated.reasoning),
        None if cost is None else cost.nano,
        None if cost is None else cost.currency,
        None if cost is None else cost.price,
    )


def _call_timing(trip: Trip, layers: tuple[str, ...]) -> dict[str, Any]:
    now = time.monotonic()
    vendors = sum((attempt.ended or now) - attempt.started for attempt in trip.attempts)
    timing: dict[str, Any] = {
        "duration_ms": _tenths(now - trip.started),
        "overhead_ms": _tenths(now - trip.started - vendors),
    }
    if trip.attempts:
        timing["queue_ms"] = _tenths(trip.attempts[0].started - trip.started)
    if trip.first_delta is not None:
        timing["first_token_ms"] = _tenths(trip.first_delta - trip.started)
        timing["longest_gap_ms"] = _tenths(max(attempt.longest_gap for attempt in trip.attempts))
    # a layer's time is from its opening to that of the next; the last mark is the core's own
    marks = trip.opened_at
    timing["plugins"] = {
        name: _tenths(after - before) for name, before, after in zip(layers, marks, marks[1:], strict=False)
    }
    return timing


def _decision(call: Call, is_route: Callable[[str], bool]) -> dict[str, Any]:
    candidates = [kept_text(str(target)) for target in call.trip.candidates]
    if not candidates:
        return {}
    if not is_route(call.request.model):
        return {"why": "asked for by name", "candidates": candidates}
    return {"why": "the first target of the route that is available", "candidates": candidates}


def _error(error: BaseException | None) -> dict[str, Any] | None:
    if error is None:
        return None
    if not isinstance(error, RouterError):
        return {"status": 500, "kind": "internal", "code": "internal_error", "message": "internal error"}
    said: dict[str, Any] = {
        "status": error.status,
        "kind": error.kind,
        "code": kept_text(error.code),
        "message": kept_text(error.message, _LONGEST_MESSAGE),
    }
    if isinstance(error, ProviderError):
        vendor: dict[str, Any] = {"status": error.vendor_status}
        for name, value in (("code", error.vendor_code), ("request_id", error.vendor_request_id)):
            vendor[name] = None if value is None else kept_text(str(value))
        said["vendor"] = {name: value for name, value in vendor.items() if value is not None}
    return said


def _tags(tags: dict[str, str]) -> dict[str, str]:
    return {kept_text(name): kept_text(value, LONGEST_VALUE) for name, value in list(tags.items())[:_MOST_TAGS]}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _tenths(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _now() -> int:
    return int(time.time() * 1000)
