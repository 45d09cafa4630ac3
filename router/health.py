"""The contract of health: what is known of targets and keys from the attempts made, and shared between processes.

All times are seconds of the clock that is given; nothing here waits or asks anybody.
"""

import hashlib
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from router.errors import RouterError
from router.provider import Target

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]
KeyTrouble: TypeAlias = Literal["invalid", "quota"]
"""Why a key rests: refused, or without quota or in arrears."""


class Standing(Struct, frozen=True):
    """How one target stands now."""

    state: BreakerState = "closed"
    free_at: float | None = None
    """When an open breaker lets a probe through, or a vendor's `retry-after` is over; None: it may be tried now."""
    first_token: float | None = None
    """Peak-EWMA of the time to the first delta, in seconds; None: not known."""
    duration: float | None = None
    """Peak-EWMA of a whole attempt, in seconds."""
    running: int = 0
    """Attempts under way in this process."""


class Ended(Struct, frozen=True):
    """How an attempt ended, as health sees it."""

    target: Target
    error: RouterError | None
    """None: it was answered, or cancelled by us."""
    answered: bool
    """Whether a delta came."""
    first_token: float | None
    """Seconds; None also where the vendor was not asked to stream."""
    duration: float
    """Seconds that were waited for the vendor: what a slow client took is not in it."""
    complete: bool = True
    """Whether it ended by itself, and not because the client left or we gave it up."""


class Health(Protocol):
    """One for the process; it outlives reloads of the configuration."""

    def standing(self, target: Target) -> Standing: ...

    def begin(self, target: Target) -> None:
        """An attempt is about to be made; takes the place of a probe if the breaker is half open."""
        ...

    def end(self, ended: Ended) -> None:
        """The attempt has ended, once for every `begin`."""
        ...

    def rest_key(self, provider: str, key: str, trouble: KeyTrouble | None, seconds: float | None = None) -> None:
        """A key (as `key_id`) was refused (`trouble`), or is limited for so many seconds (None)."""
        ...

    def key_free_at(self, provider: str, key: str) -> float | None:
        """When the key may be used again; None: now."""
        ...

    def tells(self, provider: str, key: str) -> KeyTrouble | None:
        """Why it rests, when it is not just limited."""
        ...


def key_id(provider: str, key: str) -> str:
    """A key as health, logs and other processes know it: 12 hexadecimal digits that do not tell it."""
    return hashlib.sha256(f"{provider}\0{key}".encode()).hexdigest()[:12]
