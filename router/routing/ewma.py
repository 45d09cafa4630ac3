"""Peak-EWMA: an average of durations that believes bad news at once and good news with time. Pure.

As Finagle's `PeakEwma` load metric (https://github.com/twitter/finagle, `loadbalancer/PeakEwma.scala`, Apache-2.0; the
idea, not the code): a value above the average replaces it, one below it is weighed by the time since the last one, and
what is not used decays, so that it is tried again. Here a failure is a value too: a target that fails fast is not fast.
"""

import math
from typing import Final

TAU: Final = 30.0
"""Seconds in which what was known loses all but 1/e of its weight."""
_WORSE: Final = 2.0
"""How many times the average a failure counts as."""
_UNKNOWN: Final = 5.0
"""Seconds that a failure counts as at least, where nothing is known."""
_MOST: Final = 30.0
"""Seconds that failure upon failure leads to, unless they took longer themselves."""


class PeakEwma:
    """Times are in seconds, `now` of any clock that goes forward."""

    __slots__ = ("_at", "_tau", "level")

    def __init__(self, tau: float = TAU) -> None:
        self.level: float | None = None
        """As of the last value; None: there was none."""
        self._at = 0.0
        self._tau = tau

    def value(self, now: float) -> float | None:
        """The average, decayed for as long as nothing was added; None: nothing is known."""
        level, since = self.level, now - self._at
        return level if level is None or since <= 0.0 else level * math.exp(-since / self._tau)

    def add(self, seconds: float, now: float) -> None:
        level = self.level
        if level is None or seconds >= level:
            self.level = seconds
        else:
            weight = math.exp(-max(now - self._at, 0.0) / self._tau)
            self.level = level * weight + seconds * (1.0 - weight)
        self._at = now

    def punish(self, waited: float, now: float) -> None:
        """A failure after so many seconds."""
        usual = self.value(now)
        worse = _UNKNOWN if usual is None else max(min(usual * _WORSE, _MOST), usual)
        self.level = max(waited, worse)
        self._at = now

    def forget(self) -> None:
        self.level = None
