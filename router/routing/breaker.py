"""The breaker of one target: left alone after too many failures, then probed by one attempt at a time. Pure.

closed → open when so many attempts failed in a row, or such a part of those within the window. open → half open when
its rest is over, which is nobody's doing but time's. half open → closed when a probe is answered, → open again, for
twice as long, when it fails. (M. Nygard, "Release It!", 2007, chapter 5.3.)

It holds no clock: `now` is seconds of any clock that goes forward. An attempt is known by when it began, so that what
began before the breaker opened neither closes it nor counts against it a second time.
"""

import random
from typing import Final

from router.health import BreakerState
from router.route import HealthRules

_SLOTS: Final = 10
"""Parts of the window: what is too old falls out of it a tenth at a time."""
PROBE_PATIENCE: Final = 30.0
"""Seconds after which another probe may go though the last one has not ended."""
_SPREAD: Final = 0.2
"""The part of a rest that is left to chance, so that processes do not probe all at once."""
_DOUBLINGS: Final = 40
"""More would only be a larger number than any `longest_rest`."""


class Window:
    """How many attempts ended within the last seconds, and how many of them failed."""

    __slots__ = ("_attempts", "_failures", "_slot", "_width", "attempts", "failures")

    def __init__(self) -> None:
        self.attempts = 0
        self.failures = 0
        self._width = 0.0
        self._slot = 0
        self._attempts = [0] * _SLOTS
        self._failures = [0] * _SLOTS

    def add(self, failed: bool, now: float, seconds: float) -> None:
        self.slide(now, seconds)
        place = self._slot % _SLOTS
        self._attempts[place] += 1
        self.attempts += 1
        if failed:
            self._failures[place] += 1
            self.failures += 1

    def slide(self, now: float, seconds: float) -> None:
        """Let go of what is older than `seconds`. Begins anew when it is another length than before."""
        width = max(seconds, 0.001) / _SLOTS
        if width != self._width:
            self.clear()
            self._width = width
            self._slot = int(now / width)
            return
        slot = int(now / width)
        if slot - self._slot >= _SLOTS:
            self.clear()
            self._slot = slot
        while self._slot < slot:
            self._slot += 1
            place = self._slot % _SLOTS
            self.attempts -= self._attempts[place]
            self.failures -= self._failures[place]
            self._attempts[place] = self._failures[place] = 0

    def clear(self) -> None:
        self.attempts = self.failures = 0
        self._attempts = [0] * _SLOTS
        self._failures = [0] * _SLOTS


class Breaker:
    __slots__ = (
        *("_trials", "_tried_at", "heard", "is_absent", "opened_at", "openings", "streak", "until", "why", "window"),
    )

    def __init__(self) -> None:
        self.opened_at: float | None = None
        """None: it is closed."""
        self.until = 0.0
        """When its rest is over."""
        self.openings = 0
        """How often it has opened since it was last closed."""
        self.why = ""
        """Why it opened last, in words."""
        self.is_absent = False
        """Whether it opened because there is no such model. Every process finds that out by one attempt."""
        self.heard = False
        """Whether another process opened it."""
        self.streak = 0
        """Failures in a row."""
        self.window = Window()
        self._trials = 0
        """Attempts under way that began since it opened."""
        self._tried_at = 0.0

    @property
    def is_ill(self) -> bool:
        return self.opened_at is not None and not self.is_absent

    def is_answering(self, now: float, rules: HealthRules) -> bool:
        """Whether it is closed, and an attempt was answered within the window."""
        self.window.slide(now, rules.window)
        return self.opened_at is None and self.window.attempts > self.window.failures

    def state(self, now: float) -> BreakerState:
        if self.opened_at is None:
            return "closed"
        return "open" if now < self.until else "half_open"

    def free_at(self, now: float) -> float | None:
        """When an attempt may go; None: now."""
        if self.opened_at is None:
            return None
        if now < self.until:
            return self.until
        if self._trials and (patient := self._tried_at + PROBE_PATIENCE) > now:
            return patient
        return None

    def begin(self, now: float) -> None:
        """An attempt goes, as the probe if the breaker is half open."""
        if self.opened_at is not None:
            self._trials += 1
            self._tried_at = now

    # -- how an attempt that began at `began` has ended. True: the breaker has opened or closed --------------------

    def spared(self, began: float) -> None:
        """Neither way: it was cancelled, or failed for a reason that is not the target's."""
        if self.opened_at is not None and began >= self.opened_at:
            self._trials = max(0, self._trials - 1)

    def lived(self, began: float, now: float, rules: HealthRules, draw: random.Random) -> bool:
        """It was answered, be it by a refusal."""
        if self.opened_at is not None:
            if began < self.opened_at:
                return False
            self.close()
            return True
        self.streak = 0
        self.window.add(False, now, rules.window)
        # the last of `minimum` attempts may be a good one
        return self._judge(now, rules, draw)

    def failed(self, began: float, now: float, rules: HealthRules, draw: random.Random) -> bool:
        if self.opened_at is None:
            self.streak += 1
            self.window.add(True, now, rules.window)
            return self._judge(now, rules, draw)
        if began < self.opened_at:
            return False
        self.spared(began)
        self.streak += 1
        if now < self.until:
            # one that was made though the breaker was open: nobody had anything better
            return False
        self._rest(f"failed again when it was probed, {_times(self.streak)} in a row", now, rules, draw)
        return True

    def absent(self, began: float, now: float, rules: HealthRules, draw: random.Random) -> bool:
        """The vendor says that there is no such model: it rests for the longest time at once, unless it has just been
        there, which makes this a failure as any other."""
        if self.is_answering(now, rules):
            return self.failed(began, now, rules, draw)
        if self.opened_at is not None and (began < self.opened_at or now < self.until):
            self.spared(began)
            return False
        self.streak += 1
        self._rest("the vendor does not know the model", now, rules, draw, rules.longest_rest)
        self.is_absent = True
        return True

    # -- from outside ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Forget that it ever failed."""
        self.opened_at, self.until, self.openings, self.why, self.streak, self._trials = None, 0.0, 0, "", 0, 0
        self.is_absent = self.heard = False
        self.window.clear()

    def open_until(self, until: float, why: str, now: float) -> bool:
        """Another process has opened its own. One that is open is left as it is, so that it probes by itself and those
        who cannot reach the vendor do not keep it open. Whether that changed anything."""
        if until <= now or self.opened_at is not None:
            return False
        self.opened_at, self.until, self.openings, self.why, self._trials = now, until, 1, why, 0
        self.is_absent, self.heard = False, True
        return True

    # -- inside ----------------------------------------------------------------------------------------------------

    def _judge(self, now: float, rules: HealthRules, draw: random.Random) -> bool:
        window = self.window
        if self.streak >= rules.consecutive:
            self._rest(f"{_times(self.streak)} in a row", now, rules, draw)
        elif window.failures and window.attempts >= rules.minimum and window.failures >= rules.rate * window.attempts:
            share = f"{window.failures} of {window.attempts} attempts"
            self._rest(f"{share} failed within {rules.window:g} s", now, rules, draw)
        else:
            return False
        return True

    def _rest(
        self, why: str, now: float, rules: HealthRules, draw: random.Random, seconds: float | None = None
    ) -> None:
        if seconds is None:
            seconds = min(rules.rest * 2 ** min(self.openings, _DOUBLINGS), rules.longest_rest)
        self.openings += 1
        self.opened_at, self.why, self._trials = now, why, 0
        self.is_absent = self.heard = False
        self.until = now + seconds * (1 - _SPREAD * draw.random())


def _times(failures: int) -> str:
    return f"{failures} failure{'s' if failures > 1 else ''}"
