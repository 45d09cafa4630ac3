"""One answer on its way that several identical calls wait for: the first of them leads, the others follow."""

import asyncio
import copy
from typing import Final

from router.cache.entry import Entry
from router.call import Events, Trip
from router.errors import (
    InternalError,
    InvalidRequest,
    Overloaded,
    ProviderError,
    ProviderUnavailable,
    RouterError,
    ShuttingDown,
    StreamCut,
    UnknownModel,
)
from router.events import Completed, Event, TextDelta

_EVERYBODYS: Final = (ProviderError, Overloaded, ProviderUnavailable, ShuttingDown, InvalidRequest, UnknownModel)
"""Errors that any of the calls would have had. The others are the leader's own: its budget, its limits, its leaving."""
_BESIDE: Final = 96
"""Bytes that an event takes beside its text when it is kept, about."""


_SLOW: Final = 1.0
"""Seconds."""


class Flight:
    """`leader`: the trip of the call whose answer it is."""

    def __init__(self, leader: Trip) -> None:
        self.leader = leader
        self.events: list[Event] = []
        self.size = 0
        """Bytes that they take when they are kept, about."""
        self.entry: Entry | None = None
        """Once the leader has found an answer that was kept."""
        self.over = False
        self._error: RouterError | None = None
        self._changed = asyncio.Event()

    @property
    def is_whole(self) -> bool:
        return bool(self.events) and type(self.events[-1]) is Completed

    # -- the leader's side -------------------------------------------------------------------------------------------

    @property
    def is_stuck(self) -> bool:
        """Whether its leader waits for a client that is slow to read."""
        now = asyncio.get_running_loop().time()
        return not self.over and self.leader.writing and now - self.leader.written_at > _SLOW

    def add(self, event: Event) -> None:
        self.events.append(event)
        kind = type(event)
        self.size += _BESIDE + (len(event.text) if kind is TextDelta else 0)  # type: ignore[union-attr]
        if kind is Completed:
            self.over = True
        if self.leader.holders:
            self._tell()

    def land(self, entry: Entry | None = None) -> None:
        """It has ended well: with an answer that was kept, or as it came."""
        self.entry, self.over = entry, True
        self._tell()

    def fail(self, error: BaseException) -> None:
        """The leader's call has ended with this. Changes nothing once the answer is whole."""
        if self.over:
            return
        self.over = True
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            error = self.leader.interruption or error
        if isinstance(error, _EVERYBODYS):
            self._error = error
        elif isinstance(error, Exception) and not isinstance(error, RouterError):
            self._error = InternalError("the call that wrote this answer failed by a fault of the gateway's")
        self._tell()

    def abandon(self) -> None:
        """It has become too long to be kept, and nobody follows."""
        self.events = []

    def _tell(self) -> None:
        # whoever waits is woken, and waits for the next time
        self._changed.set()
        self._changed.clear()

    # -- a follower's side -------------------------------------------------------------------------------------------

    async def followed(self) -> Events:
        """The leader's events, those that have come first. Without any if it has ended for a reason of its own before
        the first; raises what it has failed with."""
        self.leader.hold()
        seen = 0
        try:
            while True:
                while seen < len(self.events):
                    event = self.events[seen]
                    seen += 1
                    yield event
                if self.over:
                    break
                await self._changed.wait()
        finally:
            if self.is_whole:
                # there is nothing left to end: its call may settle in peace
                self.leader.deserted = None
            self.leader.let_go()
        if self._error is not None:
            # each call's own, with the way that it has taken
            raise copy.copy(self._error)
        if seen and not self.is_whole:
            raise StreamCut("the call that wrote this answer was ended; send the request again")
