"""What is known of every target and key, from the attempts of this process and from what other processes tell.

Implements `router.health.Health`. Nothing here waits, asks or has a timer: what time changes is found when it is looked
at. What others should know is collected in `told` until `router.state.shared_health` takes it.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias, get_args

from msgspec import Struct

from router.errors import (
    ProtocolViolated,
    RateLimited,
    Rejected,
    RouterError,
    StreamCut,
    TimedOut,
    Unreachable,
    VendorFailed,
    VendorModelForbidden,
    VendorModelUnknown,
    VendorOverloaded,
)
from router.health import BreakerState, Ended, KeyTrouble, Standing
from router.provider import Target
from router.route import HealthRules
from router.routing.breaker import Breaker
from router.routing.ewma import PeakEwma

MOST_TARGETS: Final = 1000
"""Targets that are remembered: their names come from clients."""
_LIMITED: Final = 2.0
"""Seconds that a target is left alone whose vendor limits the rate and does not say for how long."""
_PATIENT: Final = 1.0
"""Seconds of silence that are the target's fault, when the time that ran out was the whole call's."""
_WORTH_TELLING: Final = 5.0
"""Seconds of a key's limit that others should know of too."""
_BELIEVED: Final = 2
"""How often others may be wrong about a target, before their word on it is not taken for a while."""
_DOUBT: Final = 30.0
"""For how many times `rest` it is not: so that a process which cannot reach a vendor costs the others a thirtieth."""
_ILL: Final = (VendorFailed, VendorOverloaded, Unreachable, TimedOut, ProtocolViolated, StreamCut)
_UNKNOWN: Final = Standing()

Change: TypeAlias = Literal["open", "closed", "rests", "free"]
"""Of a target's breaker: `open`, `closed`. Of a key: `rests`, `free`."""


Subject: TypeAlias = tuple[bool, str, str]
"""What a change is about: whether that is a key, whose, which."""


class Told(Struct, frozen=True):
    """A change that processes tell each other. Times are relative, as clocks differ."""

    change: Change
    provider: str
    name: str
    """The model, or `key_id` of the key."""
    seconds: float = 0.0
    """How long it rests from now on."""
    why: str = ""
    """Of a breaker: why it opened, in words. Of a key: its trouble, or nothing when it is only limited."""

    @property
    def subject(self) -> Subject:
        return self.change in ("rests", "free"), self.provider, self.name


class KeyRest(Struct, frozen=True):
    """A key that is not used. Times are the book's clock's."""

    trouble: KeyTrouble | None
    """None: it is only limited."""
    since: float
    until: float
    heard: bool = False
    """Whether another process found out."""


class LastError(Struct, frozen=True):
    code: str
    message: str
    """Public."""
    at: float


class TargetShown(Struct, frozen=True):
    """What is known of one target, for people. Times are the book's clock's, durations seconds."""

    target: Target
    state: BreakerState
    free_at: float | None
    why: str
    """Why it rests, in words; empty when it does not."""
    streak: int
    attempts: int
    """Within the window."""
    failures: int
    first_token: float | None
    duration: float | None
    running: int
    error: LastError | None


class _Known:
    __slots__ = (
        *("breaker", "doubted_until", "error", "first_token", "heard_at", "limited_at", "limited_until", "misled"),
        *("running", "whole"),
    )

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.first_token = PeakEwma()
        self.whole = PeakEwma()
        self.running = 0
        self.limited_at = 0.0
        self.limited_until = 0.0
        self.error: LastError | None = None
        self.heard_at: float | None = None
        """When others told that it is ill, which nothing here has borne out or belied yet."""
        self.misled = 0
        """How often that was belied by an answer, since this process has last found it ill itself."""
        self.doubted_until = 0.0
        """Until when others are not believed that it is ill."""

    @property
    def is_own(self) -> bool:
        """Whether it is ill by what this process has seen."""
        return self.breaker.is_ill and not self.breaker.heard

    def belie(self, began: float, now: float, rest: float) -> None:
        """It has answered an attempt that began at `began`."""
        if self.heard_at is None or began < self.heard_at:
            return
        self.heard_at = None
        self.misled += 1
        if self.misled >= _BELIEVED:
            self.doubted_until = now + _DOUBT * rest

    def bear_out(self) -> None:
        """This process has found it ill itself."""
        self.heard_at, self.misled, self.doubted_until = None, 0, 0.0

    def free_at(self, now: float) -> float | None:
        free = self.breaker.free_at(now)
        if self.limited_until > now and (free is None or free < self.limited_until):
            return self.limited_until
        return free


class HealthBook:
    """`clock` in seconds that go forward; `draw` for what is left to chance."""

    def __init__(self, rules: HealthRules, clock: Callable[[], float], draw: random.Random) -> None:
        self.clock = clock
        self.on_told: Callable[[], None] | None = None
        """Called when there is something to tell; may not raise. None: nobody listens."""
        self._told: dict[Subject, None] = {}
        """What others should be told of, each once, the first first."""
        self._rules = rules
        self._draw = draw
        # ordered, as the oldest of a plain one is slow to find where many were removed
        self._targets: OrderedDict[Target, _Known] = OrderedDict()
        """The one that was tried the longest ago is the first."""
        self._keys: dict[tuple[str, str], KeyRest] = {}

    def apply(self, rules: HealthRules) -> None:
        """Of a new configuration. What rests goes on resting for as long as it was said."""
        self._rules = rules

    @property
    def rules(self) -> HealthRules:
        return self._rules

    # -- `Health` ----------------------------------------------------------------------------------------------------

    def standing(self, target: Target) -> Standing:
        known = self._targets.get(target)
        if known is None:
            return _UNKNOWN
        now = self.clock()
        return Standing(
            known.breaker.state(now),
            known.free_at(now),
            known.first_token.value(now),
            known.whole.value(now),
            known.running,
        )

    def begin(self, target: Target) -> None:
        known = self._targets.get(target)
        if known is None:
            known = self._new(target)
        else:
            self._targets.move_to_end(target)
        known.running += 1
        known.breaker.begin(self.clock())

    def end(self, ended: Ended) -> None:
        known = self._targets.get(ended.target)
        if known is None:
            # one that was begun is never forgotten before it has ended
            raise ValueError(f"an attempt at `{ended.target}` has ended that was not begun")
        known.running = max(0, known.running - 1)
        now, error, breaker = self.clock(), ended.error, known.breaker
        began = now - ended.duration
        if error is not None:
            known.error = LastError(error.code, error.message, now)
        if isinstance(error, VendorModelForbidden) and breaker.is_answering(now, self._rules):
            # another key may use it, or it was this request that was forbidden
            changed = False
            breaker.spared(began)
        elif isinstance(error, VendorModelUnknown):
            changed = breaker.absent(began, now, self._rules, self._draw)
        elif _is_ill(ended):
            changed = breaker.failed(began, now, self._rules, self._draw)
            known.first_token.punish(ended.duration if ended.first_token is None else ended.first_token, now)
            known.whole.punish(ended.duration, now)
        elif isinstance(error, RateLimited):
            changed = False
            breaker.spared(began)
            known.limited_at, known.limited_until = now, max(known.limited_until, now + self._limit(error))
        elif (ended.answered and ended.complete) or isinstance(error, Rejected):
            known.belie(began, now, self._rules.rest)
            changed = breaker.lived(began, now, self._rules, self._draw)
            if changed and breaker.opened_at is None:
                # it is not the target any more that failed
                known.first_token.forget()
                known.whole.forget()
            if began >= known.limited_at:
                known.limited_until = 0.0
            if ended.first_token is not None:
                known.first_token.add(ended.first_token, now)
            if ended.answered and error is None:
                known.whole.add(ended.duration, now)
        else:
            changed = False
            breaker.spared(began)
            usual = known.first_token.value(now)
            if ended.answered:
                # somebody left before the end: what came after the first delta says nothing
                if ended.first_token is not None:
                    known.first_token.add(ended.first_token, now)
            elif error is None and ended.duration > max(usual or 0.0, 0.0 if usual else _PATIENT):
                # whoever cancelled it waited in vain for so long: it is that slow at least
                known.first_token.add(ended.duration, now)
        if changed and known.is_own:
            known.bear_out()
        if changed and not breaker.is_absent:
            self._tell((False, ended.target.provider, ended.target.model))

    def rest_key(self, provider: str, key: str, trouble: KeyTrouble | None, seconds: float | None = None) -> None:
        now = self.clock()
        if seconds is None:
            seconds = float(self._rules.key_rest) if trouble is not None else _LIMITED
        if trouble is None:
            seconds = min(seconds, float(self._rules.longest_rest))
        rest, before = KeyRest(trouble, now, now + max(seconds, 0.0)), self._rest_of(provider, key, now)
        if before is not None and before.trouble is not None and trouble is None:
            # it is worse than limited
            return
        if before is not None and before.trouble == trouble:
            rest = KeyRest(trouble, before.since, max(rest.until, before.until))
        self._keys[provider, key] = rest
        if trouble is not None or seconds >= _WORTH_TELLING:
            self._tell((True, provider, key))

    def key_free_at(self, provider: str, key: str) -> float | None:
        if not self._keys:
            return None
        rest = self._rest_of(provider, key, self.clock())
        return None if rest is None else rest.until

    def tells(self, provider: str, key: str) -> KeyTrouble | None:
        rest = self._rest_of(provider, key, self.clock())
        return None if rest is None else rest.trouble

    # -- for people ----------------------------------------------------------------------------------------------------

    def shown(self, target: Target) -> TargetShown | None:
        """None: it was not tried yet, or long ago."""
        known = self._targets.get(target)
        if known is None:
            return None
        now, breaker = self.clock(), known.breaker
        breaker.window.slide(now, self._rules.window)
        why = breaker.why
        if not why and known.limited_until > now:
            why = "the vendor limits the rate"
        return TargetShown(
            target,
            breaker.state(now),
            known.free_at(now),
            why,
            breaker.streak,
            breaker.window.attempts,
            breaker.window.failures,
            known.first_token.level,
            known.whole.level,
            known.running,
            known.error,
        )

    def known(self) -> list[Target]:
        """Every target that is remembered."""
        return list(self._targets)

    def key_rest(self, provider: str, key: str) -> KeyRest | None:
        """None: it is used."""
        return self._rest_of(provider, key, self.clock())

    def reset(self, provider: str, model: str | None = None) -> int:
        """Close the breaker of one target; or, of a provider, those of all its targets and let its keys be used. How
        many there were. Others are told."""
        count = 0
        for target, known in self._targets.items():
            if target.provider == provider and model in (None, target.model):
                count += known.breaker.opened_at is not None or known.limited_until > self.clock()
                known.breaker.close()
                known.heard_at = None
                known.limited_until = 0.0
                self._tell((False, provider, target.model))
        if model is None:
            for owner, key in [each for each in self._keys if each[0] == provider]:
                count += self._rest_of(owner, key, self.clock()) is not None
                self._keys.pop((owner, key), None)
                self._tell((True, owner, key))
        return count

    # -- between processes ---------------------------------------------------------------------------------------------

    def take_told(self) -> list[Told]:
        """What others should be told, as it is now; it is not told again."""
        told, self._told = self._told, {}
        return [self._as_it_is(subject) for subject in told]

    def tell_again(self, told: Iterable[Told]) -> None:
        """They could not be told."""
        self._told = {**{each.subject: None for each in told}, **self._told}

    def all_told(self) -> list[Told]:
        """All that this process has found to rest: for where nothing is known any more."""
        found = [(False, target.provider, target.model) for target, known in self._targets.items() if known.is_own]
        found += [(True, *key) for key, rest in self._keys.items() if not rest.heard]
        return [each for each in map(self._as_it_is, found) if each.seconds > 0]

    def hear(self, told: Iterable[Told]) -> None:
        """What other processes tell. What is still to be told from here is newer."""
        now = self.clock()
        for each in told:
            if each.subject in self._told:
                continue
            target = Target(each.provider, each.name)
            if each.change == "open":
                known = self._targets.get(target) or self._new(target)
                if known.doubted_until > now:
                    continue
                # each process probes at a moment of its own, and soon: the vendor may be ill for the other alone
                seconds = min(each.seconds, float(self._rules.rest)) * (1 + 0.1 * self._draw.random())
                if known.breaker.open_until(now + seconds, each.why, now):
                    known.heard_at = now
            elif each.change == "closed":
                if target in self._targets:
                    self._targets[target].breaker.close()
            elif each.change == "rests":
                trouble: KeyTrouble | None = each.why if each.why in get_args(KeyTrouble) else None  # type: ignore[assignment]
                longest = max(float(self._rules.key_rest), float(self._rules.longest_rest))
                before = self._rest_of(each.provider, each.name, now)
                since = now if before is None else before.since
                until = now + min(each.seconds, longest)
                self._keys[each.provider, each.name] = KeyRest(trouble, since, until, heard=True)
            else:
                self._keys.pop((each.provider, each.name), None)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _limit(self, error: RouterError) -> float:
        seconds = _LIMITED if error.retry_after is None else error.retry_after
        return min(max(seconds, 0.0), float(self._rules.longest_rest))

    def _rest_of(self, provider: str, key: str, now: float) -> KeyRest | None:
        rest = self._keys.get((provider, key))
        if rest is not None and rest.until <= now:
            del self._keys[provider, key]
            return None
        return rest

    def _new(self, target: Target) -> _Known:
        self._make_room()
        known = self._targets[target] = _Known()
        return known

    def _make_room(self) -> None:
        """Forget the target that was tried the longest ago, of those that are not ill: a flood of invented names must
        not make ill ones well. One with attempts under way is never forgotten."""
        if len(self._targets) < MOST_TARGETS:
            return
        ill: Target | None = None
        for target, known in self._targets.items():
            if known.running:
                continue
            if not known.breaker.is_ill:
                del self._targets[target]
                return
            ill = ill or target
        if ill is not None:
            del self._targets[ill]

    def _tell(self, subject: Subject) -> None:
        if self.on_told is not None:
            self._told[subject] = None
            self.on_told()

    def _as_it_is(self, subject: Subject) -> Told:
        is_key, provider, name = subject
        now = self.clock()
        if is_key:
            rest = self._rest_of(provider, name, now)
            if rest is None:
                return Told("free", provider, name)
            return Told("rests", provider, name, rest.until - now, rest.trouble or "")
        known = self._targets.get(Target(provider, name))
        if known is None or known.breaker.opened_at is None:
            return Told("closed", provider, name)
        breaker = known.breaker
        return Told("open", provider, name, max(breaker.until - now, 0.0), breaker.why)


def _is_ill(ended: Ended) -> bool:
    """Whether the failure tells of an ill target."""
    error = ended.error
    if isinstance(error, TimedOut) and error.code == "total_timeout":
        # the call's own time is over: a long answer, or attempts before this one
        return not ended.answered and ended.duration >= _PATIENT
    return isinstance(error, _ILL)
