"""The innermost layer: choose a target, encode, send, decode, commit, and give the events to the plugins.

Nothing of an attempt is seen outside until its first content event. Up to then a failed attempt may be replaced by
another: today by a second try with what the adapter learned from the error. That first event commits the call.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from msgspec import Struct

from router.audio import asks_for_audio, sends_audio
from router.call import Attempt, Call, Events, Trip, outcome_of
from router.catalog import Candidate, Catalog
from router.deadline import Deadline
from router.errors import ClientGone, PriceUnknown, ProviderError, StreamCut
from router.estimate import Estimator, filled, is_doubtful, is_owed, mended
from router.events import CONTENT, ChoiceFinished, Completed, Event, Extended, Extra, Started, TextDelta
from router.ledger.books import Books
from router.messages import Thinking
from router.pricing import Pricing
from router.provider import Decoder, HttpError, Provider, Target
from router.upstream import Upstream, VendorStream, read_error_body

_COMMITTING: Final = CONTENT | {ChoiceFinished}
_MAX_LESSONS: Final = 8
"""How often one call may be encoded anew with what its adapter has learned."""


class Adapter(Struct, frozen=True):
    """One configured provider: its protocol and its socket."""

    provider: Provider
    upstream: Upstream


class Opened(Struct):
    """An attempt that the vendor has begun to answer."""

    attempt: Attempt
    response: VendorStream
    decoder: Decoder
    early: list[Event]
    """What came up to the event that committed the call."""
    rest: Iterator[Event]
    """The remaining events of the same read."""
    at_end: bool
    """Whether `rest` is the last of the body."""


class Dispatch:
    """`estimator` None: an answer without reported usage is not counted. `unpriced`: whether unknown prices will do."""

    def __init__(
        self,
        catalog: Catalog,
        adapters: Mapping[str, Adapter],
        books: Books,
        pricing: Pricing,
        estimator: Estimator | None,
        *,
        unpriced: bool = True,
    ) -> None:
        self._catalog = catalog
        self._adapters = adapters
        self._books = books
        self._pricing = pricing
        self._estimator = estimator
        self._unpriced = unpriced

    async def stream(self, call: Call) -> Events:
        """The events of the call's answer. Raises `RouterError` where the vendor, or the way to it, fails."""
        candidates = self._catalog.resolve(call.request.model)
        candidate, trip = candidates[0], call.trip
        trip.candidates = tuple(each.target for each in candidates)
        self._check_price(candidate.target, call)
        spent = time.monotonic() - trip.started
        total_at = asyncio.get_running_loop().time() + candidate.timeouts.total - spent
        deadline = Deadline(candidate.timeouts, total_at, f"`{candidate.target}`", trip)
        try:
            opened = await self._open(call, candidate, deadline)
            attempt, decoder, response = opened.attempt, opened.decoder, opened.response
            written, previous = attempt.generated.output, time.monotonic()
            events: Iterable[Event] = chain(opened.early, opened.rest)
            last: Event | None = None
            failure: BaseException | None = None
            try:
                while True:
                    before = last
                    for last in events:
                        kind = type(last)
                        if kind is TextDelta and last.extra is None:  # type: ignore[union-attr]
                            written.append(last.text)  # type: ignore[union-attr]
                        elif kind is Completed:
                            await self._count(call, attempt, decoder)
                        else:
                            _note(attempt, last)
                        yield last
                    if last is not before:
                        deadline.progress()
                    if opened.at_end or type(last) is Completed:
                        break
                    data = await deadline.wait(response.read())
                    opened.at_end = not data
                    events = decoder.feed(data) if data else decoder.finish()
                    if data:
                        arrived = time.monotonic()
                        attempt.longest_gap = max(attempt.longest_gap, arrived - previous)
                        previous = arrived
                if type(last) is not Completed:
                    raise StreamCut(f"`{candidate.target}` ended its answer without an end")
            except BaseException as error:
                failure = error
                raise
            finally:
                complete = type(last) is Completed
                try:
                    if complete and not opened.at_end:
                        await response.release()
                    else:
                        # first of all: a vendor that is still writing bills it
                        await response.aclose()
                finally:
                    # whoever closes us after the end does not undo it
                    await self._settle(call, attempt, decoder, None if complete else failure)
        finally:
            deadline.close()

    async def _open(self, call: Call, candidate: Candidate, deadline: Deadline) -> Opened:
        """The first attempt that gets as far as a content event."""
        adapter, target, trip = self._adapters[candidate.target.provider], candidate.target, call.trip
        lessons = 0
        while True:
            sent = adapter.provider.encode(call.request, target)
            trip.dropped = sent.dropped
            attempt = Attempt(
                n=len(trip.attempts) + 1,
                target=target,
                started=time.monotonic(),
                # all attempts of a call belong to its day, in sums, prices and budgets alike
                created_at=trip.created_at,
                thinking=_is_asked_to_think(call.request.thinking),
            )
            on_record = self._books.open(call, attempt)
            trip.attempts.append(attempt)
            response: VendorStream | None = None
            decoder: Decoder | None = None
            try:
                if on_record is not None:
                    await on_record
                attempt.sent = True
                response = await deadline.wait(adapter.upstream.send(sent, candidate.timeouts))
                head = response.head
                attempt.vendor_request_id = head.headers.get("x-request-id") or head.headers.get("request-id")
                if head.status >= 300:
                    body = await deadline.wait(read_error_body(response))
                    raise adapter.provider.error(HttpError(head.status, head.headers, body), target)
                decoder = adapter.provider.decoder(call.request, target, sent, head)
                return await _commit(attempt, trip, response, decoder, deadline)
            except BaseException as error:
                try:
                    if response is not None:
                        await response.aclose()
                finally:
                    await self._settle(call, attempt, decoder, error)
                lessons += 1
                if (
                    not isinstance(error, ProviderError)
                    or lessons > _MAX_LESSONS
                    or not adapter.provider.learn(error, target, sent)
                ):
                    raise

    def _check_price(self, target: Target, call: Call) -> None:
        if self._unpriced:
            return
        request, pricing, at = call.request, self._pricing, call.trip.created_at
        hears, speaks = sends_audio(request), asks_for_audio(request)
        if not pricing.knows(target, at):
            lacking = f"`{target}`"
        elif (hears or speaks) and pricing.ceiling(target, 1, 1, at, audio_in=hears, audio_out=speaks) is None:
            lacking = f"audio at `{target}`"
        else:
            return
        raise PriceUnknown(
            f"no price is known for {lacking}, and calls at an unknown price are refused here: add it to the prices "
            "file, or set `prices.unknown: flag`"
        )

    async def _count(self, call: Call, attempt: Attempt, decoder: Decoder) -> None:
        """The answer is complete: its tokens, the vendor's own or our estimate."""
        reported = attempt.usage = decoder.usage
        if self._estimator is not None and (reported is None or reported.untold):
            counted = await self._estimator.estimate(call.request, attempt)
            attempt.usage = counted if reported is None else filled(reported, counted)
        call.trip.usage = attempt.usage

    async def _settle(
        self, call: Call, attempt: Attempt, decoder: Decoder | None, failure: BaseException | None
    ) -> None:
        """Write down how an attempt ended, and what it used."""
        trip = call.trip
        attempt.ended = time.monotonic()
        attempt.outcome = outcome_of(failure, trip, attempt)
        if isinstance(failure, ProviderError):
            attempt.error = failure
            attempt.vendor_request_id = failure.vendor_request_id or attempt.vendor_request_id
        reported = attempt.usage or (None if decoder is None else decoder.usage)
        attempt.usage = reported
        cancelled: asyncio.CancelledError | None = None
        broke_off = failure is not None
        if reported is None:
            wanted = is_owed(attempt, failure)
        else:
            wanted = bool(reported.untold) or (broke_off and is_doubtful(reported, call.request, attempt))
        if wanted and self._estimator is not None:
            counted = self._estimator.estimate_now(call.request, attempt)
            # an error may wait for a long count, and so may nobody when the client has left
            if isinstance(failure, Exception) or isinstance(trip.interruption, ClientGone):
                try:
                    counted = await self._estimator.estimate(call.request, attempt)
                except asyncio.CancelledError as raised:
                    cancelled = raised
            attempt.usage = counted if reported is None else mended(filled(reported, counted), counted)
        trip.usage = attempt.usage or trip.usage
        self._books.settle(call, attempt)
        if cancelled is not None:
            raise cancelled


async def _commit(attempt: Attempt, trip: Trip, response: VendorStream, decoder: Decoder, deadline: Deadline) -> Opened:
    """Read up to the first event that carries content."""
    early: list[Event] = []
    while True:
        data = await deadline.wait(response.read())
        events = iter(decoder.feed(data) if data else decoder.finish())
        for event in events:
            early.append(event)
            if type(event) in _COMMITTING:
                attempt.first_delta = trip.first_delta = time.monotonic()
                deadline.progress()
                return Opened(attempt, response, decoder, early, events, not data)
        if not data:
            raise StreamCut(f"`{attempt.target}` ended its answer before it began")


def _note(attempt: Attempt, event: Event) -> None:
    """Any event but the many deltas of text and the last one."""
    attempt.generated.note(event)
    kind = type(event)
    if kind is Started or kind is Extended:
        extra: Extra | None = event.extra  # type: ignore[union-attr]
        tier = None if extra is None else extra.answer.get("service_tier")
        if isinstance(tier, str) and tier:
            attempt.service_tier = tier


def _is_asked_to_think(thinking: Thinking) -> bool:
    if thinking.enabled is not None:
        return thinking.enabled
    return bool(thinking.budget) or thinking.effort not in (None, "none")
