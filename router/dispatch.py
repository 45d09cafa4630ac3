"""The innermost layer: choose a target, encode, send, decode, commit, and give the events to the plugins.

Nothing of an attempt is seen outside until its first content event. Up to then a failed attempt may be replaced by
another: today by a second try with what the adapter learned from the error. That first event commits the call.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from router.call import Attempt, Call, Events, Trip, outcome_of
from router.catalog import Candidate, Catalog
from router.deadline import Deadline
from router.errors import ProviderError, StreamCut
from router.events import CONTENT, ChoiceFinished, Completed, Event
from router.provider import Decoder, HttpError, Provider
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
    def __init__(self, catalog: Catalog, adapters: Mapping[str, Adapter]) -> None:
        self._catalog = catalog
        self._adapters = adapters

    async def stream(self, call: Call) -> Events:
        """The events of the call's answer. Raises `RouterError` where the vendor, or the way to it, fails."""
        candidate = self._catalog.resolve(call.request.model)[0]
        trip = call.trip
        spent = time.monotonic() - trip.started
        total_at = asyncio.get_running_loop().time() + candidate.timeouts.total - spent
        deadline = Deadline(candidate.timeouts, total_at, f"`{candidate.target}`", trip)
        try:
            opened = await self._open(call, candidate, deadline)
            decoder, response = opened.decoder, opened.response
            last: Event | None = None
            failure: BaseException | None = None
            try:
                for last in opened.early:
                    yield last
                for last in opened.rest:
                    yield last
                while not opened.at_end and type(last) is not Completed:
                    data = await deadline.wait(response.read())
                    opened.at_end = not data
                    before = last
                    for last in decoder.feed(data) if data else decoder.finish():
                        yield last
                    if last is not before:
                        deadline.progress()
                if type(last) is not Completed:
                    raise StreamCut(f"`{candidate.target}` ended its answer without an end")
            except BaseException as error:
                failure = error
                raise
            finally:
                opened.attempt.usage = decoder.usage
                complete = type(last) is Completed
                # whoever closes us after the end does not undo it
                settle(opened.attempt, trip, None if complete else failure)
                if complete and not opened.at_end:
                    await response.release()
                else:
                    await response.aclose()
        finally:
            deadline.close()

    async def _open(self, call: Call, candidate: Candidate, deadline: Deadline) -> Opened:
        """The first attempt that gets as far as a content event."""
        adapter, target, trip = self._adapters[candidate.target.provider], candidate.target, call.trip
        lessons = 0
        while True:
            sent = adapter.provider.encode(call.request, target)
            trip.dropped = sent.dropped
            attempt = Attempt(len(trip.attempts) + 1, target, time.monotonic())
            trip.attempts.append(attempt)
            response: VendorStream | None = None
            decoder: Decoder | None = None
            try:
                response = await deadline.wait(adapter.upstream.send(sent, candidate.timeouts))
                head = response.head
                if head.status >= 300:
                    body = await deadline.wait(read_error_body(response))
                    raise adapter.provider.error(HttpError(head.status, head.headers, body), target)
                decoder = adapter.provider.decoder(call.request, target, sent, head)
                return await _commit(attempt, trip, response, decoder, deadline)
            except BaseException as error:
                if decoder is not None:
                    attempt.usage = decoder.usage
                settle(attempt, trip, error)
                if response is not None:
                    await response.aclose()
                lessons += 1
                if (
                    not isinstance(error, ProviderError)
                    or lessons > _MAX_LESSONS
                    or not adapter.provider.learn(error, target, sent)
                ):
                    raise


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


def settle(attempt: Attempt, trip: Trip, failure: BaseException | None) -> None:
    """Write down how an attempt ended."""
    attempt.ended = time.monotonic()
    attempt.outcome = outcome_of(failure, trip)
    if isinstance(failure, ProviderError):
        attempt.error = failure
