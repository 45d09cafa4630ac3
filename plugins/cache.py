"""`cache`: the same question is paid for once. Its answer is kept, and later calls get it without a vendor.

Calls that ask the same at the same time share one call to the vendor: the first leads, the others follow it
(`plugins.flight`). Whose answers a call may get is its scope: those of its own key, unless the setting says otherwise.

Only whole answers are kept: with their end, and not filtered. One that was cut at a length which its request did not
set is not: some layer inside may have set it for this call alone.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from plugins.flight import Flight
from router.cache.entry import Entry
from router.cache.fingerprint import fingerprint, normalised
from router.call import Call, Events
from router.errors import NotCached, RouterError
from router.events import ChoiceFinished, Completed, Event, Started
from router.money import decimal_of
from router.plugin import CallNext
from router.quantities import Size, Timeout
from router.services import Services

HEADER: Final = "x-deltaway-cache"
_LARGE: Final = 256 * 1024
"""Bytes from which on a request is hashed in a thread."""


class CachePlugin:
    inside_of = ("logging", "auth", "limits")
    outside_of = ("usage",)
    wants_services = True

    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        ttl: Timeout = Timeout(3600)
        """How long an answer is kept."""
        scope: Literal["key", "shared"] = "key"
        """Whose answers a call may get: those of its own key, or of all that set this."""
        max_entry: Size = Size(1024**2)
        """The largest answer that is kept."""
        max_size: Size = Size(256 * 1024**2)
        """What all answers together may take."""
        tools: bool = False
        """Whether calls with tools are answered from the cache."""

    def __init__(self, settings: Settings, services: Services, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds."""
        if settings.max_entry > settings.max_size:
            raise ValueError("`max_entry` is more than `max_size`: no answer of that size has room")
        self._settings = settings
        self._store = services.cache
        self._course = services.course
        self._clock = clock
        self._flights: dict[tuple[str, bool], Flight] = {}
        """By fingerprint, and whether the answer is streamed: who wants to read along does not wait for the whole."""

    def stream(self, call: Call, call_next: CallNext) -> Events:
        wishes = Wishes() if call.cache_control is None else wishes_in(call.cache_control)
        if (call.request.tools and not self._settings.tools) or not wishes.store or (wishes.only and not wishes.read):
            if wishes.only:
                raise _none_kept()
            return self._past(call, call_next)
        return self._answered(call, call_next, wishes)

    def _past(self, call: Call, call_next: CallNext) -> Events:
        call.trip.headers[HEADER] = "bypass"
        return call_next(call)

    async def _answered(self, call: Call, call_next: CallNext, wishes: "Wishes") -> Events:
        trip = call.trip
        key = await self._key(call)
        if key is None:
            if wishes.only:
                raise _none_kept()
            async for event in self._past(call, call_next):
                yield event
            return
        place = (key, call.request.stream)
        joins = wishes.read and not wishes.only
        while True:
            flight = self._flights.get(place) if joins else None
            if flight is None or flight.is_stuck:
                break
            async with aclosing(self._shared(call, flight)) as events:
                async for event in events:
                    yield event
            if flight.is_whole:
                return
            if flight.entry is not None and self._is_fresh(flight.entry, wishes):
                for event in self._replayed(call, flight.entry):
                    yield event
                return
            # it has ended for a reason that is not ours: we ask for ourselves
        flight, recording = Flight(trip), True
        if joins:
            self._flights[place] = flight
        try:
            if wishes.read:
                entry = await self._store.get(key)
                if entry is not None and self._is_fresh(entry, wishes):
                    self._leave(place, flight)
                    flight.land(entry)
                    for event in self._replayed(call, entry):
                        yield event
                    return
                if wishes.only:
                    raise _none_kept()
            trip.headers[HEADER] = "miss" if wishes.read else "bypass"
            async for event in call_next(call):
                if recording:
                    flight.add(event)
                    if flight.size > self._settings.max_entry and not trip.holders and not flight.over:
                        recording = False
                        self._leave(place, flight)
                        flight.abandon()
                yield event
            if self._may_be_kept(call, flight.events):
                await self._keep(call, key, flight.events)
        except BaseException as error:
            flight.fail(error)
            raise
        finally:
            self._leave(place, flight)
            # whatever has ended it: nobody waits any longer
            flight.fail(GeneratorExit())

    async def _shared(self, call: Call, flight: Flight) -> Events:
        """What the flight's leader gets."""
        trip, leader = call.trip, flight.leader
        trip.headers[HEADER] = "shared"
        began: float | None = None
        try:
            async with aclosing(flight.followed()) as events:
                async for event in events:
                    if began is None:
                        began = time.monotonic()
                        target = str(leader.target or "")
                        trip.cached, trip.dropped = {"how": "shared", "target": target}, leader.dropped
                        trip.headers["x-deltaway-target"] = target
                    yield event
        except RouterError:
            # it says whether the answer was cut, or never began
            trip.first_delta = began
            raise

    def _leave(self, place: tuple[str, bool], flight: Flight) -> None:
        """No other call joins it any more."""
        if self._flights.get(place) is flight:
            del self._flights[place]

    # -- which question, and whose -------------------------------------------------------------------------------------

    async def _key(self, call: Call) -> str | None:
        """None: it cannot be said what the call asks."""
        terms, principal = call.trip.in_force, call.principal
        scope = "shared" if self._settings.scope == "shared" else f"key:{'' if principal is None else principal.key}"
        # what another configuration made of the same request is another answer
        course = (terms.generation, *self._course(call))
        try:
            text = normalised(call, scope, course)
        except ValueError:
            return None
        return fingerprint(text) if len(text) < _LARGE else await asyncio.to_thread(fingerprint, text)

    # -- what is kept --------------------------------------------------------------------------------------------------

    def _may_be_kept(self, call: Call, events: list[Event]) -> bool:
        if not events or type(events[-1]) is not Completed:
            return False
        whole = {"stop", "tool_calls"}
        if (call.request.sampling.max_tokens or 0) > 0:
            whole.add("length")
        return all(event.reason in whole for event in events if type(event) is ChoiceFinished)

    async def _keep(self, call: Call, key: str, events: list[Event]) -> None:
        trip, settings = call.trip, self._settings
        first = events[0]
        if type(first) is Started and not first.created:
            # every time it is shown it bears the time of its making
            events = [replace(first, created=trip.created_at // 1000), *events[1:]]
        entry = Entry(
            events=tuple(events),
            created_at=trip.created_at,
            owner="" if call.principal is None else call.principal.key,
            call=call.id,
            target=str(trip.target or ""),
            cost=trip.headers.get("x-deltaway-cost", ""),
            dropped=trip.dropped,
        )
        await self._store.put(key, entry, settings.ttl, most=settings.max_entry, room=settings.max_size)

    # -- a hit ---------------------------------------------------------------------------------------------------------

    def _age(self, entry: Entry) -> int:
        """In seconds. Clocks of two machines may differ."""
        return max(0, int(self._clock() - entry.created_at / 1000))

    def _is_fresh(self, entry: Entry, wishes: "Wishes") -> bool:
        age = self._age(entry)
        # the setting may have become shorter since
        return age < self._settings.ttl and (wishes.max_age is None or age <= wishes.max_age)

    def _replayed(self, call: Call, entry: Entry) -> tuple[Event, ...]:
        trip, age = call.trip, self._age(entry)
        trip.headers[HEADER] = "hit"
        trip.headers["age"] = str(age)
        trip.dropped = entry.dropped
        trip.headers["x-deltaway-target"] = entry.target
        if entry.cost and "," not in entry.cost:
            trip.headers["x-deltaway-cost"] = f"{decimal_of(0)} {entry.cost.rpartition(' ')[2]}"
        said: dict[str, Any] = {"how": "hit", "age": age, "target": entry.target, "cost": entry.cost}
        if entry.owner == ("" if call.principal is None else call.principal.key):
            # whose call it was is nobody else's business
            said["of"] = entry.call
        trip.cached = {name: value for name, value in said.items() if value != ""}
        return entry.events


class Wishes(Struct, frozen=True):
    """What a request's `cache-control` says."""

    read: bool = True
    store: bool = True
    max_age: int | None = None
    """Seconds."""
    only: bool = False


def wishes_in(header: str) -> Wishes:
    """RFC 9111, section 5.2.1. Directives that mean nothing here are passed over."""
    read, store, only, max_age = True, True, False, None
    for directive in header.split(","):
        name, _, value = directive.strip().partition("=")
        match name.strip().lower():
            case "no-cache":
                read = False
            case "no-store":
                store = False
            case "only-if-cached":
                only = True
            case "max-age":
                digits = value.strip().strip('"')
                # what cannot be read asks for the newest (section 4.2.1)
                max_age = min(int(digits[:12]), 2**31) if digits.isascii() and digits.isdigit() else 0
                read = read and max_age > 0
    return Wishes(read and store, store, max_age, only)


def _none_kept() -> NotCached:
    return NotCached(
        "there is no answer to this request in the cache, and `cache-control: only-if-cached` allows no other: leave "
        "it out to ask the model"
    )
