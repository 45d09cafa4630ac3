"""A route as the configuration says it: targets, how one is chosen, and what happens when it fails. Values alone.

The `…Entry` Structs are shaped like the file, the others are what a checked file becomes.
"""

import re
from typing import Annotated, Literal, Self, TypeAlias

import msgspec
from msgspec import Meta, Struct

from router.access import OnDisconnect
from router.conversation import ContextRules
from router.provider import Target
from router.quantities import Duration, Share, Timeout

Balance: TypeAlias = Literal["ordered", "weighted", "latency", "cost"]
"""Which of the targets that can serve a call is tried first."""
FallbackClass: TypeAlias = Literal["context_length", "content_filter", "unsupported"]
"""Failures that another target may not have, though the request was not wrong and the vendor is not ill."""
Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=10**9)]


class Region(str):
    """Where a target answers, in a word of the operator's own."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, str):
            raise ValueError("must be text: put it in quotes")
        if not re.fullmatch(r"[^\s,]+", value):
            # calls ask for regions by names between commas, and so could never mean it
            raise ValueError("must be one word without commas, such as eu")
        return cls(value)


# -- timeouts ------------------------------------------------------------------------------------------------------


class Timeouts(Struct, frozen=True, forbid_unknown_fields=True):
    """How long one attempt may take, in seconds: `connect` to connect, `first_token` from the request to the first
    delta, `idle` between two deltas. `total` is for the whole call with all its attempts."""

    connect: float = 5
    first_token: float = 60
    idle: float = 60
    total: float = 600
    min_rate: float = 0
    """Deltas a second that must come, on the average of ten seconds; 0: no matter."""


class TimeoutsEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """Timeouts as they are written: what is left out comes from the next level (route, provider, default)."""

    connect: Timeout | None = None
    first_token: Timeout | None = None
    idle: Timeout | None = None
    total: Timeout | None = None
    min_rate: Annotated[float, Meta(ge=0, le=10_000)] | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "first_token", "idle"):
            value = getattr(self, name)
            if value is not None and self.total is not None and value > self.total:
                raise ValueError(f"`{name}` is longer than `total`, which ends the attempt before it")


def overlay(base: Timeouts, over: TimeoutsEntry | Timeouts | None) -> Timeouts:
    """`base` with what `over` says."""
    said = {} if over is None else msgspec.structs.asdict(over)
    return msgspec.structs.replace(base, **{name: float(value) for name, value in said.items() if value is not None})


# -- which targets can serve a call --------------------------------------------------------------------------------


class Can(Struct, frozen=True, forbid_unknown_fields=True):
    """What a target is able to do. None: not known, then it is tried."""

    tools: bool | None = None
    images: bool | None = None
    audio: bool | None = None
    json_schema: bool | None = None
    reasoning: bool | None = None
    context: Tokens | None = None
    """Tokens of prompt and answer together."""


class When(Struct, frozen=True, forbid_unknown_fields=True):
    """Which calls a target is for; all conditions must hold. None, or nothing: no matter."""

    tags: dict[str, str] = {}
    """Tag → a shell pattern of its value."""
    min_prompt_tokens: Tokens | None = None
    max_prompt_tokens: Tokens | None = None
    tools: bool | None = None
    """Whether the request brings tools."""
    images: bool | None = None
    audio: bool | None = None
    json_schema: bool | None = None
    reasoning: bool | None = None
    """Whether it asks the model to reason."""

    def __post_init__(self) -> None:
        low, high = self.min_prompt_tokens, self.max_prompt_tokens
        if low is not None and high is not None and low > high:
            raise ValueError("`min_prompt_tokens` is above `max_prompt_tokens`: no call can be both")


class TargetEntry(Struct, frozen=True, forbid_unknown_fields=True):
    target: str
    weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1
    region: Region | None = None
    max_parallel: Annotated[int, Meta(ge=1)] | None = None
    when: When = When()
    can: Can = Can()


class RouteTarget(Struct, frozen=True):
    """One target of a route."""

    target: Target
    weight: float = 1
    """Its part of the calls in `balance: weighted`; 0: only when the others fail."""
    region: str | None = None
    max_parallel: int | None = None
    """Calls at once of one worker; None: as many as the provider takes."""
    when: When = When()
    can: Can = Can()
    """What is written over what is known of the model."""


# -- when a target fails -------------------------------------------------------------------------------------------


class Retry(Struct, frozen=True, forbid_unknown_fields=True):
    """How often a call is tried before its first delta, and how hurriedly."""

    attempts: Annotated[int, Meta(ge=1, le=20)] = 3
    """Attempts of one call in all, at whatever target; `max(3, targets)` unless it is written."""
    backoff: Duration = Duration(0.25)
    """Before the second attempt at the same target; doubled each time, and only a random part of it is waited."""
    max_wait: Duration = Duration(10)
    """The longest that is waited before an attempt; a vendor that asks for more is not tried again."""
    budget: Share = Share(0.2)
    """Extra attempts for each call, on the average: in a brown-out not every failure is tried again."""
    reserve: Annotated[float, Meta(ge=0, le=100_000)] = 10
    """Extra attempts that are always allowed, a second."""


class RetryEntry(Struct, frozen=True, forbid_unknown_fields=True):
    attempts: Annotated[int, Meta(ge=1, le=20)] | None = None
    backoff: Duration = Duration(0.25)
    max_wait: Duration = Duration(10)
    budget: Share = Share(0.2)
    reserve: Annotated[float, Meta(ge=0, le=100_000)] = 10


class FallbackEntry(Struct, frozen=True, forbid_unknown_fields=True):
    context_length: tuple[str | TargetEntry, ...] = ()
    content_filter: tuple[str | TargetEntry, ...] = ()
    unsupported: tuple[str | TargetEntry, ...] = ()


class Hedge(Struct, frozen=True, forbid_unknown_fields=True):
    """A second target is asked when the first has sent nothing for `after`; who begins first answers."""

    after: Timeout
    share: Share = Share(0.1)
    """Of the calls that may be asked twice, on the average."""


class RouteEntry(Struct, frozen=True, forbid_unknown_fields=True):
    targets: tuple[str | TargetEntry, ...]
    balance: Balance = "ordered"
    retry: RetryEntry = RetryEntry()
    fallback: FallbackEntry = FallbackEntry()
    hedge: Hedge | None = None
    continuation: bool = False
    timeouts: TimeoutsEntry | None = None
    on_disconnect: OnDisconnect | None = None
    context: ContextRules | None = None


class Route(Struct, frozen=True, forbid_unknown_fields=True):
    """A name that clients ask for."""

    name: str
    targets: tuple[RouteTarget, ...]
    balance: Balance = "ordered"
    retry: Retry = Retry()
    fallback: dict[FallbackClass, tuple[RouteTarget, ...]] = {}
    """Where a call goes that a target cannot serve for this reason."""
    hedge: Hedge | None = None
    continuation: bool = False
    """Whether the next target continues an answer whose vendor died in the middle of it."""
    timeouts: TimeoutsEntry | None = None
    on_disconnect: OnDisconnect | None = None
    """What becomes of a call whose client leaves; None: what the server says."""
    context: ContextRules | None = None
    """What is sent of a long conversation; None: what `conversations` says."""

    def leads_to(self) -> tuple[Target, ...]:
        """Every target that a call to it may reach, in the order of the file, each once."""
        fallen = (each for targets in self.fallback.values() for each in targets)
        return tuple(dict.fromkeys(each.target for each in (*self.targets, *fallen)))


# -- health --------------------------------------------------------------------------------------------------------


class HealthRules(Struct, frozen=True, forbid_unknown_fields=True):
    """When a target is left alone for a while, and for how long."""

    consecutive: Annotated[int, Meta(ge=1)] = 5
    """Failures in a row that open a target's breaker."""
    rate: Share = Share(0.5)
    """Or this part of its attempts within `window`, if there were `minimum` of them."""
    minimum: Annotated[int, Meta(ge=1)] = 20
    window: Duration = Duration(30)
    rest: Timeout = Timeout(10)
    """How long a breaker stays open; doubled each time it opens again without having closed."""
    longest_rest: Timeout = Timeout(300)
    key_rest: Timeout = Timeout(600)
    """How long a provider's key rests that was refused, has no quota left, or is in arrears."""

    def __post_init__(self) -> None:
        if self.longest_rest < self.rest:
            raise ValueError("`longest_rest` is shorter than `rest`")
