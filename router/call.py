"""One client request on its trip: what was asked, by whom, and what has happened to it so far.

A `Call` is a value: plugins that change the request pass a new one on (`call.with_request`). All values of one
call share its `Trip`, the record that grows as the call goes on.
"""

import time
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from router.access import Budget, Limits, OnDisconnect
from router.errors import BudgetSpent, ClientGone, Gone, ProviderError, RouterError, Stopped, TimedOut
from router.events import Event, Usage
from router.experiment import Assigned
from router.generated import Generated
from router.messages import ChatRequest
from router.pricing import Cost, Pricing
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


Role: TypeAlias = Literal["first", "lesson", "retry", "fallback", "hedge", "continuation"]
"""Why an attempt was made. `lesson`: the same target again, with what its adapter learned from the error; `retry`:
again at a target that was tried, or with another key; `fallback`: at the next target; `hedge`: beside one that was
slow; `continuation`: to go on with an answer whose vendor died."""


class Terms(Struct, frozen=True):
    """What a call keeps of the configuration it began under, whatever is loaded while it runs."""

    generation: str
    pricing: Pricing
    is_route: Callable[[str], bool]
    keyed: bool
    """Whether calls need a key."""


class Skipped(Struct, frozen=True):
    """A target that was not tried, and why."""

    target: Target
    why: str


class Principal(Struct, frozen=True):
    """Who calls: the key's public id, and what it may do."""

    key: str
    name: str = ""
    admin: bool = False
    models: tuple[str, ...] = ()
    """The models it may ask for, as shell patterns (`openai/*`); empty: all."""
    routes: tuple[str, ...] = ()
    """Routes it may ask for, as shell patterns, when not empty; then anything else only by `models`."""
    tags: dict[str, str] = {}
    """Tags that all its calls bear."""
    user: str | None = None
    team: str | None = None
    limits: Limits = Limits()
    budgets: tuple[Budget, ...] = ()
    on_disconnect: OnDisconnect | None = None
    """What becomes of its calls whose client leaves; None: what the route or the server says."""

    def may_use(self, model: str, *, route: bool) -> bool:
        """Whether it may ask for the name `model`, which is a route's or not."""
        if not self.models and not self.routes:
            return True
        patterns = (*self.models, *self.routes) if route else self.models
        return any(fnmatchcase(model, pattern) for pattern in patterns)


class Credentials:
    """The key a client presented. Its text never shows in a log or a traceback."""

    __slots__ = ("secret",)

    def __init__(self, secret: str | None) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return "Credentials(…)" if self.secret else "Credentials(None)"


class Attempt(Struct, kw_only=True):
    """One try at one target. Times are `time.monotonic()` seconds."""

    n: int
    target: Target
    started: float
    created_at: int
    """Unix milliseconds: the call's, by which it is summed and priced."""
    thinking: bool = False
    """Whether the model was asked to reason, which some vendors price otherwise."""
    generated: Generated = msgspec.field(default_factory=Generated)
    """What the vendor has written so far."""
    sent: bool = False
    """Whether the vendor may have heard of it."""
    streamed: bool = False
    """Whether the vendor was asked to stream."""
    waited: float = 0.0
    """Seconds that were waited for the vendor once it had begun to answer."""
    longest_gap: float = 0.0
    """The longest wait between two reads that brought something, in seconds."""
    service_tier: str | None = None
    """The vendor's word for how the call was served, where it prices by it."""
    first_delta: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    error: RouterError | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    """Once it has ended, if there is a price."""
    vendor_request_id: str | None = None
    role: Role = "first"
    why: str = ""
    """In words: the error before it, the wait, the key."""
    key: str = ""
    """Which of the provider's keys, where it has several: `2 of 3`."""
    seam: int | None = None
    """Of a continuation: characters of text that had come before it."""


class Trip(Struct):
    """What has happened to one call so far; shared by all values of it."""

    started: float
    """`time.monotonic()` seconds."""
    created_at: int
    """Unix milliseconds."""
    asked: str = ""
    """The model's name as the client wrote it."""
    terms: Terms | None = None
    """Set before any layer sees the call."""
    labels: object = None
    """What the ledger files the call under, once it has."""
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
    opened_at: list[float] = []
    """When each layer was opened, outermost first (`time.monotonic()`)."""
    candidates: tuple[Target, ...] = ()
    """Where the call could have gone, best first."""
    skipped: tuple[Skipped, ...] = ()
    """Targets of its route that were left out."""
    choice: str = ""
    """How the candidates were put in order, in words."""
    assigned: Assigned | None = None
    """What an experiment has decided about it."""
    before_more: list[Callable[[Target], Awaitable[None]]] = []
    """Asked before any attempt after the first one: they may refuse it by raising a `RouterError`."""
    answering: Attempt | None = None
    """Whose answer the client gets; None until one has begun."""
    recorded: bool = False
    """Whether the ledger has an open row of this call."""
    closed: bool = False
    """Whether the ledger has been told its end."""
    cached: dict[str, Any] = {}
    """Of an answer that was had without a vendor: where it is from, for the receipt."""
    counted: list[tuple[ChatRequest, str, int]] = []
    """Requests whose tokens a layer has counted: for which model, and how many."""
    holders: int = 0
    """Others than its client who wait for this answer."""
    deserted: Callable[[], None] | None = None
    """Set once its client has left while others held it; called when the last of them lets go."""

    @property
    def in_force(self) -> Terms:
        """The terms of a call that has begun."""
        assert self.terms is not None, "a call has its terms before any layer sees it"
        return self.terms

    @property
    def target(self) -> Target | None:
        if self.answering is not None:
            return self.answering.target
        return self.attempts[-1].target if self.attempts else None

    def hold(self) -> None:
        """Somebody else needs the answer: its client may leave without ending it. Each `hold` needs its `let_go`."""
        self.holders += 1

    def let_go(self) -> None:
        self.holders -= 1
        if not self.holders and self.deserted is not None:
            deserted, self.deserted = self.deserted, None
            deserted()

    async def close(self, outermost: Events | None = None) -> None:
        """Close what the layers opened, the innermost first. Does nothing the second time.

        With `outermost` only that stream and those inside of it: for a layer that ends an answer early and then needs
        to know what it cost. A layer that fails to close does not keep the others from it; the first failure is
        raised at the end.
        """
        failure: BaseException | None = None
        generators = self.generators
        if outermost is not None and not any(events is outermost for events in generators):
            return
        while generators:
            events = generators.pop()
            try:
                await events.aclose()
            except BaseException as error:
                failure = failure or error
            if events is outermost:
                break
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
    conversation: str | None = None
    """The id that the client gave it: `x-deltaway-conversation`."""
    regions: tuple[str, ...] = ()
    """Where it may be answered, when not empty: `x-deltaway-region`, or the tag `region` of a header or of the key."""
    forced: dict[str, str] = {}
    """Experiment → the arm that an admin wants for a test: `x-deltaway-experiment`."""
    origin: str = ""
    """The client's address, for logs."""
    cache_control: str | None = None
    """The request header of that name: what the client wants of the gateway's own cache."""

    def with_request(self, request: ChatRequest) -> "Call":
        return msgspec.structs.replace(self, request=request)

    def with_principal(self, principal: Principal) -> "Call":
        """The call with its caller known, which the trip notes too. The key's own user and tags win over its words."""
        self.trip.principal = principal
        user, tags, regions = principal.user or self.user, self.tags, self.regions
        if principal.tags:
            tags = {**tags, **principal.tags}
            if "region" in principal.tags:
                regions = regions_in(principal.tags["region"]) or regions
        return msgspec.structs.replace(self, principal=principal, user=user, tags=tags, regions=regions)


def regions_in(text: str) -> tuple[str, ...]:
    """The names in a list with commas, each once."""
    return tuple(dict.fromkeys(name for each in text.split(",") if (name := each.strip())))


def new_trip() -> Trip:
    return Trip(started=time.monotonic(), created_at=int(time.time() * 1000))


def outcome_of(error: BaseException | None, trip: Trip, attempt: Attempt | None = None) -> Outcome:
    """The outcome of a call, or of one attempt of it, whose stream ended with `error` (None: it ended by itself)."""
    if error is None:
        # a layer that answers by itself, without a vendor, is a cache of some kind
        return "finished" if trip.attempts else "cached"
    if isinstance(error, CancelledError | GeneratorExit):
        # from outside: the core noted why
        if trip.interruption is None:
            # an outer layer had enough, or the server gives its tasks up
            return "stopped" if isinstance(error, GeneratorExit) or attempt is not None else "interrupted"
        error = trip.interruption
    if isinstance(error, ClientGone):
        return "client_gone"
    if isinstance(error, Stopped | Gone):
        return "stopped"
    if isinstance(error, TimedOut):
        return "timeout"
    if isinstance(error, BudgetSpent) and trip.attempts:
        return "budget"
    if isinstance(error, ProviderError) or trip.attempts:
        began = trip.first_delta if attempt is None else attempt.first_delta
        return "failed" if began is None else "cut"
    return "refused"
