"""What the functions of this package speak of: candidates, what a request needs, the choice that was made. Values."""

from collections.abc import Mapping

from msgspec import Struct

from router.call import Skipped
from router.provider import Target
from router.route import Can, Timeouts, When


class Candidate(Struct, frozen=True):
    """One target a call may go to, and how long an attempt at it may take."""

    target: Target
    timeouts: Timeouts
    weight: float = 1
    region: str | None = None
    max_parallel: int | None = None
    when: When = When()
    can: Can = Can()
    """What is known of the model, the route's own words first."""


class Needs(Struct, frozen=True):
    """What a request asks of a target."""

    tools: bool = False
    images: bool = False
    audio: bool = False
    json_schema: bool = False
    reasoning: bool = False
    prompt_tokens: int = 0
    """Counted or estimated."""
    guessed_tokens: int = 0
    """Of these, what images, files and recordings are guessed to be: too rough to exclude a target by."""
    max_tokens: int | None = None
    """Of the answer, if the request says."""
    tags: Mapping[str, str] = {}
    regions: tuple[str, ...] = ()
    """Where it may be answered, the best first; empty: anywhere."""


class Choice(Struct, frozen=True):
    """The candidates in the order in which to try them, and those that were left out."""

    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...]
    why: str
    """How they were put in order, in words."""
    full: bool = False
    """Whether nothing but room is wanting: there are no candidates now, and may be some soon."""
