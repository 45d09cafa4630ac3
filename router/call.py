"""One client request on its trip: what was asked, by whom, and what has happened to it so far.

A `Call` is a value: plugins that change the request pass a new one on (`call.with_request`). All values of one
call share its `Trip`, the record that grows as the call goes on.
"""

import time
from asyncio import CancelledError
from collections.abc import AsyncGenerator
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from router.errors import ClientGone, ProviderError, RouterError, TimedOut
from router.events import Event, Usage
from router.messages import ChatRequest
from router.provider import Target

Events: TypeAlias = AsyncGenerator[Event, None]
Outcome: TypeAlias = Literal[
    "finished",
    "client_gone",
    "stopped",
    "failed",
    "cut",
    "timeout",
    "budget",
    "refused",
    "cached",
    "interrupted",
]
"""How a call or an attempt ended. `failed` is before the first delta, `cut` after it."""


class Principal(Struct, frozen=True):
    """Who calls: the key's public id, and what it may do."""

    key: str
    name: str = ""
    admin: bool = False
    models: tuple[str, ...] = ()
    """The models it may ask for, as shell patterns (`openai/*`); empty: all."""

    def may_use(self, model: str) -> bool:
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


class Credentials:
    """The key a client presented. Its text never shows in a log or a traceback."""

    __slots__ = ("secret",)

    def __init__(self, secret: str | None) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return "Credentials(…)" if self.secret else "Credentials(None)"


class Attempt(Struct):
    """One try at one target. Times are `time.monotonic()` seconds."""

    n: int
    target: Target
    started: float
    first_delta: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    error: RouterError | None = None
    usage: Usage | None = None
    vendor_request_id: str | None = None


class Trip(Struct):
    """What has happened to one call so far; shared by all values of it."""

    started: float
    """`time.monotonic()` seconds."""
    created_at: int
    """Unix seconds."""
    attempts: list[Attempt] = []
    headers: dict[str, str] = {}
    """Response headers that plugins and dispatch add before the first byte leaves."""
    dropped: tuple[str, ...] = ()
    usage: Usage | None = None
    first_delta: float | None = None
    principal: Principal | None = None
    """Who calls, once a layer has found out: for the layers outside of it."""
    interruption: RouterError | None = None
    """Why the core cancelled the call: the client left, the server stops, …"""
    writing: bool = False
    """Whether the client is being written to: it may be slow to read."""
    written_at: float = 0.0
    """When the last such write was done, in the event loop's time. Heartbeats do not count."""
    generators: list[Events] = []
    """Every stream that a layer opened, outermost first."""

    @property
    def target(self) -> Target | None:
        return self.attempts[-1].target if self.attempts else None

    async def close(self) -> None:
        """Close what the layers opened, the innermost first. Does nothing the second time.

        A layer that fails to close does not keep the others from it; the first failure is raised at the end.
        """
        failure: BaseException | None = None
        while self.generators:
            try:
                await self.generators.pop().aclose()
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure


class Call(Struct, frozen=True, kw_only=True):
    """One request on its trip, as the layers see it."""

    id: str
    request: ChatRequest
    dialect: str
    trip: Trip
    credentials: Credentials
    principal: Principal | None = None
    user: str | None = None
    tags: dict[str, str] = {}
    origin: str = ""
    """The client's address, for logs."""

    def with_request(self, request: ChatRequest) -> "Call":
        return msgspec.structs.replace(self, request=request)

    def with_principal(self, principal: Principal) -> "Call":
        """The call with its caller known, which the trip notes too."""
        self.trip.principal = principal
        return msgspec.structs.replace(self, principal=principal)


def new_trip() -> Trip:
    return Trip(started=time.monotonic(), created_at=int(time.time()))


def outcome_of(error: BaseException | None, trip: Trip) -> Outcome:
    """The outcome of a call whose stream ended with `error` (None: it ended by itself)."""
    if error is None:
        return "finished"
    if isinstance(error, CancelledError | GeneratorExit):
        # from outside: the core noted why
        if trip.interruption is None:
            # an outer layer had enough, or the server gives its tasks up
            return "stopped" if isinstance(error, GeneratorExit) else "interrupted"
        error = trip.interruption
    if isinstance(error, ClientGone):
        return "client_gone"
    if isinstance(error, TimedOut):
        return "timeout"
    if isinstance(error, ProviderError) or trip.attempts:
        return "failed" if trip.first_delta is None else "cut"
    return "refused"
