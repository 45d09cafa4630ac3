"""A client that leaves: how it is noticed, and what becomes of its call then."""

from collections.abc import Callable

from router.access import OnDisconnect
from router.call import Trip
from router.generation import Generation
from router.http.request import Receive


async def when_left(receive: Receive, left: Callable[[], None]) -> None:
    """Call `left` once the client's connection is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    left()


def on_disconnect(generation: Generation, trip: Trip, asked: OnDisconnect | None) -> OnDisconnect:
    """What the call says, else its key, else its route, else the server."""
    return said_of(generation, trip, asked) or generation.config.server.on_disconnect


def said_of(generation: Generation, trip: Trip, asked: OnDisconnect | None) -> OnDisconnect | None:
    """The same as far as it is said of this call; None: only the server has a word for all."""
    principal, route = trip.principal, generation.config.models.get(trip.asked)
    return (
        asked
        or (None if principal is None else principal.on_disconnect)
        or (None if route is None else route.on_disconnect)
    )
