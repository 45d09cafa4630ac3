"""The contract of limits: gates that a call passes all together or not at all, wherever their state is kept.

Rates are GCRA (ITU-T I.371; a leaky bucket that keeps one time per key): `limit` units in `period` seconds at an even
pace, and a burst of up to `limit` after silence.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class Rate(Struct, frozen=True):
    """`cost` units wanted of `limit` in `period` seconds. A cost over the limit passes only a bucket that is full."""

    key: str
    """`rpm:key:dw-ab12cd34`"""
    limit: int
    period: float
    cost: int = 1


class Parallel(Struct, frozen=True):
    """One place wanted of `limit`. `key`: `parallel:team:research`."""

    key: str
    limit: int


class Passage(Struct, frozen=True):
    """How a call fared. In the order of the rates, then the parallels, that were asked for."""

    refused_by: str | None
    """The key of the gate that did not let it pass; then nothing was taken anywhere."""
    retry_after: float
    """Seconds until the same could pass; for a place in parallel a guess. 0 when it passed."""
    remaining: tuple[int, ...]
    """Units or places left now, never below zero."""
    reset_after: tuple[float, ...]
    """Seconds until each rate is whole again; 0 for places."""


class GatesAway(Exception):
    """The state cannot be reached: `on_failure` of the limits decides."""


class Gates(Protocol):
    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        """Pass all gates at once. Raises `GatesAway`."""
        ...

    async def leave(self, call_id: str, corrections: Sequence[Rate] = ()) -> None:
        """Give the places back, and spend what was used beyond what was asked for (a negative cost gives back).

        Never waits for a limit. Raises `GatesAway`; places then fall free by themselves after a while.
        """
        ...
