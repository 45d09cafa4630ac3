"""The calls that are running now: interrupts them, and tells when none is left."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from router.call import Trip
from router.errors import RouterError


class Running:
    """`draining` is True from the moment the server was asked to stop."""

    def __init__(self) -> None:
        self.draining = False
        self.stopping: RouterError | None = None
        """What a call that begins now ends with, once all have been interrupted."""
        self._calls: dict[asyncio.Task[object], Trip] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def trips(self) -> Collection[Trip]:
        return self._calls.values()

    @contextmanager
    def tracked(self, trip: Trip) -> Iterator[None]:
        """The current task runs the call of `trip`."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("calls run in tasks")
        self._calls[task] = trip
        try:
            yield
        finally:
            del self._calls[task]

    def interrupt_all(self, error: RouterError) -> None:
        """End every running call with `error`, and whatever begins from now on: streams get it as their last event."""
        self.stopping = error
        for task, trip in self._calls.items():
            interrupt(task, trip, error)


def interrupt(task: "asyncio.Task[object]", trip: Trip, error: RouterError) -> None:
    """Cancel a call, noting why. The first reason stays, and what has ended cannot be interrupted any more."""
    if trip.interruption is None and not trip.closed:
        trip.interruption = error
        task.cancel()
