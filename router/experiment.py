"""An experiment as the configuration says it: arms, who is in which, what is measured. Values alone.

The `…Entry` Structs are shaped like the file, the others are what a checked file becomes. Shares are in per cent.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from msgspec import Meta, Struct

from router.money import Money
from router.provider import Target
from router.quantities import Duration, Timeout

Unit: TypeAlias = Literal["user", "conversation", "key", "request"]
"""What is assigned to an arm as a whole, and stays in it."""
MetricKind: TypeAlias = Literal["binary", "number"]
Direction: TypeAlias = Literal["better", "worse"]
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
OWN_METRICS: Final = ("errors", "first_token", "duration", "tokens_per_second", "cost")
"""What the ledger knows of every call; feedback metrics have other names."""
SHADOW: Final = "shadow"
HOLDOUT: Final = "holdout"
"""Arms that nobody may name so: calls repeated in the background, and units kept out of the experiment."""


class Moment(int):
    """A point in time, in Unix milliseconds, written as ISO 8601: `2026-12-01` or `2026-12-01T09:00:00Z`."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if not isinstance(value, str):
            raise ValueError("must be a date or time such as 2026-12-01 or 2026-12-01T09:00:00Z")
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be a date or time such as 2026-12-01 or 2026-12-01T09:00:00Z") from None
        return cls((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


class ArmEntry(Struct, frozen=True, forbid_unknown_fields=True):
    share: Percent
    target: str | None = None
    parameters: dict[str, Any] = {}
    system: str | None = None


class Arm(Struct, frozen=True):
    """One way to answer. What is None is left as the call and its route have it."""

    name: str
    share: float
    """Per cent of the units in the experiment."""
    target: Target | None = None
    parameters: dict[str, Any] = {}
    """Fields of the request, in the words of the OpenAI dialect (`temperature`, `max_tokens`, `reasoning_effort`, …),
    that take the place of the client's."""
    system: str | None = None
    """A system prompt that takes the place of the client's."""


class ShadowEntry(Struct, frozen=True, forbid_unknown_fields=True):
    target: str
    share: Percent
    budget: Money
    parallel: Annotated[int, Meta(ge=1, le=1000)] = 4


class Shadow(Struct, frozen=True):
    """A share of the experiment's calls is repeated in the background; nobody sees the answers."""

    target: Target
    share: float
    """Per cent of the calls."""
    budget: Money
    """All that it may ever cost."""
    parallel: int = 4
    """Such calls at once, in one worker; what would be more is left out."""


class Metric(Struct, frozen=True, forbid_unknown_fields=True):
    """Feedback on a call. A binary one takes true and false (or 1 and 0)."""

    kind: MetricKind
    higher_is: Direction = "better"


class Ramp(Struct, frozen=True, forbid_unknown_fields=True):
    """How the experiment grows: `begin` per cent of its units at the start, all of them after `over`."""

    begin: Percent
    over: Timeout


class Guardrail(Struct, frozen=True, forbid_unknown_fields=True):
    """An arm that is worse than control by more than this for certain is stopped: its units get control."""

    metric: str
    """One of `OWN_METRICS`, or a feedback metric of the experiment."""
    worse_by: Percent
    """Per cent of control's value."""


class Adapt(Struct, frozen=True, forbid_unknown_fields=True):
    """Thompson sampling: now and then the shares follow the chance of each arm to be the best in one metric."""

    metric: str
    every: Timeout = Timeout(600)
    floor: Percent = 5
    """No arm gets less, so that it can still be measured."""


class ExperimentEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    route: str
    unit: Unit = "user"
    arms: dict[str, ArmEntry]
    control: str | None = None
    without_unit: Literal["refuse", "exclude"] = "refuse"
    salt: str | None = None
    start: Moment | None = None
    end: Moment | None = None
    ramp: Ramp | None = None
    holdout: Percent = 0
    shadow: ShadowEntry | None = None
    metrics: dict[str, Metric] = {}
    guardrails: tuple[Guardrail, ...] = ()
    guard_every: Duration = Duration(60)
    adapt: Adapt | None = None


class Experiment(Struct, frozen=True, kw_only=True):
    name: str
    route: str
    unit: Unit = "user"
    arms: tuple[Arm, ...]
    """Their shares make 100. In the order of the file."""
    control: str
    """The arm that the others are compared with: the one named so, else the first."""
    without_unit: Literal["refuse", "exclude"] = "refuse"
    """A call that does not carry the unit: an error, or not part of the experiment."""
    salt: str
    """Who is in which arm changes with it. The experiment's name, unless it is written."""
    start: int | None = None
    """Unix milliseconds; None: at once."""
    end: int | None = None
    """From then on every call goes its route's own way."""
    ramp: Ramp | None = None
    """Counts from `start`, which it needs."""
    holdout: float = 0
    """Per cent of the units that are never in the experiment, and are compared with it: arm `holdout`."""
    shadow: Shadow | None = None
    metrics: dict[str, Metric] = {}
    guardrails: tuple[Guardrail, ...] = ()
    guard_every: float = 60
    """Seconds between two looks of the guardrails."""
    adapt: Adapt | None = None

    def leads_to(self) -> tuple[Target, ...]:
        """Every target that it names, each once."""
        named = [arm.target for arm in self.arms if arm.target is not None]
        return tuple(dict.fromkeys([*named, *([] if self.shadow is None else [self.shadow.target])]))

    def arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)


class Assigned(Struct, frozen=True):
    """What an experiment has decided about one call."""

    experiment: str
    arm: str
    """An arm's name, `holdout` or `shadow`."""
    unit: str
    """A hash of the unit, 32 hexadecimal digits: the same for the same unit and experiment everywhere."""
    kind: Unit
    forced: bool = False
    """By an admin, for a test: not counted in reports."""
    shares: str = ""
    """The shares in force, as `control=50,qwen=50`: counts are compared with what was planned at the time."""
    shadow_of: str | None = None
    """The id of the call that this one repeats."""


class ExperimentState(Struct, frozen=True):
    """What became of an experiment while it runs, as all processes see it."""

    stopped: tuple[str, ...] = ()
    """Arms that a guardrail has stopped: their units get control."""
    shares: dict[str, float] | None = None
    """Adapted shares of the arms, in per cent; None: those of the configuration."""
    revision: int = 0
    """Counts the changes."""
