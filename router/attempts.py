"""One attempt: encoded, on record, sent, and read up to its first content event; and how it is settled."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from router.adapters import Adapter, Keyed
from router.call import Attempt, Call, Role, outcome_of
from router.deadline import Deadline
from router.errors import (
    STALE,
    ClientGone,
    ProviderError,
    RateLimited,
    RouterError,
    StreamCut,
    VendorAuthFailed,
    VendorQuotaExhausted,
)
from router.estimate import Estimator, filled, is_doubtful, is_owed, mended
from router.events import CONTENT, ChoiceFinished, Event, Extended, Extra, Started
from router.health import Ended, Health
from router.ledger.books import Books
from router.messages import ChatRequest, Thinking
from router.provider import Decoder, HttpError, HttpRequest
from router.routing.candidates import Candidate
from router.upstream import VendorStream, read_error_body

_COMMITTING: Final = CONTENT | {ChoiceFinished}
_MAX_LESSONS: Final = 8
"""How often one attempt may be encoded anew with what its adapter has learned."""
_KEY_PAUSE: Final = 5.0
"""Seconds that a limited key rests whose vendor does not say for how long."""


class Refused(Exception):
    """Another attempt was not allowed, for the reason that is its cause. Nobody was asked."""


class Opened(Struct):
    """An attempt that the vendor has begun to answer."""

    attempt: Attempt
    candidate: Candidate
    keyed: Keyed
    request: ChatRequest
    """What the vendor was asked."""
    sent: HttpRequest
    response: VendorStream
    decoder: Decoder
    deadline: Deadline
    early: list[Event]
    """What came up to the event that committed the attempt."""
    rest: Iterator[Event]
    """The remaining events of the same read."""
    at_end: bool
    """Whether `rest` is the last of the body."""


class Attempts:
    """Makes attempts, and writes down how they ended: in the ledger, and in what is known of health.

    `estimator` None: an answer without reported usage is not counted.
    """

    def __init__(
        self, adapters: Mapping[str, Adapter], books: Books, health: Health, estimator: Estimator | None
    ) -> None:
        self._adapters = adapters
        self._books = books
        self._health = health
        self._estimator = estimator

    def adapter(self, candidate: Candidate) -> Adapter:
        return self._adapters[candidate.target.provider]

    async def open(
        self,
        call: Call,
        candidate: Candidate,
        keyed: Keyed,
        asked: ChatRequest,
        role: Role,
        why: str,
        *,
        seam: int | None = None,
    ) -> Opened:
        """Ask the target for `asked`; again, if its adapter learns something from the refusal. `seam`: of a
        continuation.

        Raises `RouterError`, when the attempt is settled; `InvalidRequest` before anything is sent, and `Refused` where
        it would not be the call's first and is not allowed.
        """
        adapter, target = self.adapter(candidate), candidate.target
        provider = keyed.provider
        spent = time.monotonic() - call.trip.started
        total_at = asyncio.get_running_loop().time() + candidate.timeouts.total - spent
        failed: RouterError | None = None
        lessons = 0
        while True:
            sent = provider.encode(asked, target)
            try:
                await self._allowed(call, candidate)
            except Refused:
                if failed is not None:
                    raise failed from None
                raise
            deadline = Deadline(candidate.timeouts, total_at, f"`{target}`", call.trip)
            attempt = self._begun(call, candidate, role, why, keyed, seam)
            attempt.streamed = sent.streamed
            response: VendorStream | None = None
            decoder: Decoder | None = None
            try:
                on_record = self._books.open(call, attempt)
                if on_record is not None:
                    await on_record
                attempt.sent = True
                response = await deadline.wait(adapter.upstream.send(sent, candidate.timeouts))
                head = response.head
                attempt.vendor_request_id = head.headers.get("x-request-id") or head.headers.get("request-id")
                if head.status >= 300:
                    body = await deadline.wait(read_error_body(response))
                    raise provider.error(HttpError(head.status, head.headers, body), target)
                decoder = provider.decoder(asked, target, sent, head)
                early, rest, at_end = await _committed(attempt, response, decoder, deadline)
                return Opened(attempt, candidate, keyed, asked, sent, response, decoder, deadline, early, rest, at_end)
            except BaseException as error:
                deadline.close()
                try:
                    if response is not None:
                        await response.aclose()
                finally:
                    await self.settle(call, attempt, asked, decoder, error, keyed)
                lessons += 1
                if not isinstance(error, ProviderError) or lessons > _MAX_LESSONS:
                    raise
                if error.code == STALE:
                    # the vendor has not heard of it: nothing has failed but an old connection
                    role, why = "retry", error.code
                elif provider.learn(error, target, sent):
                    role, why = "lesson", error.code
                else:
                    raise
                failed = error

    async def _allowed(self, call: Call, candidate: Candidate) -> None:
        """Raises `Refused`."""
        trip = call.trip
        if trip.attempts and trip.before_more:
            for allow in trip.before_more:
                try:
                    await allow(candidate.target)
                except RouterError as error:
                    raise Refused from error

    def _begun(self, call: Call, candidate: Candidate, role: Role, why: str, keyed: Keyed, seam: int | None) -> Attempt:
        trip = call.trip
        attempt = Attempt(
            n=len(trip.attempts) + 1,
            target=candidate.target,
            started=time.monotonic(),
            # all attempts of a call belong to its day, in sums, prices and budgets alike
            created_at=trip.created_at,
            thinking=_is_asked_to_think(call.request.thinking),
            role=role,
            why=why,
            key=keyed.place,
            seam=seam,
        )
        trip.attempts.append(attempt)
        self._health.begin(candidate.target)
        return attempt

    async def close(self, call: Call, opened: Opened, failure: BaseException | None) -> None:
        """End an attempt that had begun to answer: its connection, then its record. `failure` None: it is complete."""
        opened.deadline.close()
        response = opened.response
        try:
            if failure is None and not opened.at_end:
                await response.release()
            else:
                # first of all: a vendor that is still writing bills it
                await response.aclose()
        finally:
            await self.settle(call, opened.attempt, opened.request, opened.decoder, failure, opened.keyed)

    async def count(self, opened: Opened) -> None:
        """The answer is complete: its tokens, the vendor's own or our estimate."""
        attempt = opened.attempt
        reported = attempt.usage = opened.decoder.usage
        if self._estimator is not None and (reported is None or reported.untold):
            counted = await self._estimator.estimate(opened.request, attempt)
            attempt.usage = counted if reported is None else filled(reported, counted)

    async def settle(
        self,
        call: Call,
        attempt: Attempt,
        request: ChatRequest,
        decoder: Decoder | None,
        failure: BaseException | None,
        keyed: Keyed,
    ) -> None:
        """Write down how an attempt ended, and what it used."""
        trip = call.trip
        attempt.ended = time.monotonic()
        attempt.outcome = outcome_of(failure, trip, attempt)
        if isinstance(failure, RouterError) and not isinstance(failure, ClientGone):
            attempt.error = failure
        if isinstance(failure, ProviderError):
            attempt.vendor_request_id = failure.vendor_request_id or attempt.vendor_request_id
        self._tell_health(call, attempt, failure, keyed)
        reported = attempt.usage or (None if decoder is None else decoder.usage)
        attempt.usage = reported
        cancelled: asyncio.CancelledError | None = None
        broke_off = failure is not None
        if reported is None:
            wanted = is_owed(attempt, failure)
        else:
            wanted = bool(reported.untold) or (broke_off and is_doubtful(reported, request, attempt))
        if wanted and self._estimator is not None:
            counted = self._estimator.estimate_now(request, attempt)
            # an error may wait for a long count, and so may nobody when the client has left
            if isinstance(failure, Exception) or isinstance(trip.interruption, ClientGone):
                try:
                    counted = await self._estimator.estimate(request, attempt)
                except asyncio.CancelledError as raised:
                    cancelled = raised
            attempt.usage = counted if reported is None else mended(filled(reported, counted), counted)
        if trip.answering is None or trip.answering is attempt:
            trip.usage = attempt.usage or trip.usage
        self._books.settle(call, attempt)
        if cancelled is not None:
            raise cancelled

    def _tell_health(self, call: Call, attempt: Attempt, failure: BaseException | None, keyed: Keyed) -> None:
        target, ended = attempt.target, attempt.ended or attempt.started
        assigned = call.trip.assigned
        if assigned is not None and assigned.shadow_of is not None:
            # what nobody asked for takes no target from those who ask
            self._health.end(Ended(target, None, False, None, ended - attempt.started, False))
            return
        error = failure if isinstance(failure, RouterError) and failure.code != STALE else None
        if keyed.id:
            if isinstance(error, VendorAuthFailed):
                self._health.rest_key(target.provider, keyed.id, "invalid")
            elif isinstance(error, VendorQuotaExhausted):
                self._health.rest_key(target.provider, keyed.id, "quota")
            elif isinstance(error, RateLimited) and keyed.place:
                # the others may still be good: it is this key that is limited, not the target
                self._health.rest_key(target.provider, keyed.id, None, error.retry_after or _KEY_PAUSE)
                error = None
        first, duration = None, ended - attempt.started
        if attempt.first_delta is not None:
            began = attempt.first_delta - attempt.started
            # a whole answer comes at once, however long it is
            first = began if attempt.streamed else None
            duration = began + attempt.waited
        answered, complete = attempt.first_delta is not None, failure is None or error is not None
        self._health.end(Ended(target, error, answered, first, duration, complete))


async def _committed(
    attempt: Attempt, response: VendorStream, decoder: Decoder, deadline: Deadline
) -> tuple[list[Event], Iterator[Event], bool]:
    """Read up to the first event that carries content. Gives what came until then, the rest of that read, and whether
    it was the last."""
    early: list[Event] = []
    while True:
        data = await deadline.wait(response.read())
        events = iter(decoder.feed(data) if data else decoder.finish())
        for event in events:
            early.append(event)
            if type(event) in _COMMITTING:
                attempt.first_delta = time.monotonic()
                deadline.progress()
                return early, events, not data
        if not data:
            raise StreamCut(f"`{attempt.target}` ended its answer before it began")


def note(attempt: Attempt, event: Event) -> None:
    """Any event but the many deltas of text and the last one."""
    attempt.generated.note(event)
    kind = type(event)
    if kind is Started or kind is Extended:
        extra: Extra | None = event.extra  # type: ignore[union-attr]
        tier = None if extra is None else extra.answer.get("service_tier")
        if isinstance(tier, str) and tier:
            attempt.service_tier = tier


def noted(attempt: Attempt, events: Iterable[Event]) -> Iterator[Event]:
    """The events, each noted."""
    for event in events:
        note(attempt, event)
        yield event


def _is_asked_to_think(thinking: Thinking) -> bool:
    if thinking.enabled is not None:
        return thinking.enabled
    return bool(thinking.budget) or thinking.effort not in (None, "none")
