"""`limits`: requests a minute, tokens a minute and calls at once, by key, user and team.

A call takes from all its limits at once or is refused. What it may use is estimated before (its input, and `max_tokens`
if it says so) and corrected to what it used when it has ended, whatever ended it.
"""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Final, Literal

import structlog
from msgspec import Struct

from plugins.errands import BRIEFLY, PATIENCE, Errands, bounded
from plugins.input_tokens import input_tokens
from router.access import Limits
from router.call import Call, Events, Trip
from router.errors import LimitReached, RouterError, StoreUnavailable
from router.gates import GatesAway, Parallel, Passage, Rate
from router.ledger.rows import kept_text
from router.plugin import CallNext
from router.services import Services

MINUTE: Final = 60.0
_LONGEST: Final = 128
"""Characters of a name in a gate's key; longer ones are hashed."""
_SHOWN: Final = 64
_MOST: Final = 10**12
"""Tokens that a request may be taken to ask for: as many as a limit can be."""
_NONE: Final = Limits()


class Subject(Struct, frozen=True):
    """Somebody with limits. `key` tells it apart in the state, `name` in messages."""

    key: str
    name: str
    limits: Limits


class LimitsPlugin:
    outside_of = ("budget", "cache", "usage")
    inside_of = ("logging", "auth")
    wants_services = True

    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        key: Limits = Limits()
        """Of each key that has none of its own, field by field."""
        user: Limits = Limits()
        team: Limits = Limits()
        on_failure: Literal["open", "closed"] = "open"
        """What happens to calls while limits cannot be counted: they pass, or are refused."""
        tokenizer: bool = True
        """False: estimate tokens by length alone (a token is four bytes)."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self._settings = settings
        self._services = services
        self._gates = services.gates
        self._counter = services.tokens if settings.tokenizer else None
        self._away = False
        self._late = False
        """Whether the log has said, in this outage, that places fall free late."""
        self._errands = Errands()
        self._log = structlog.get_logger("deltaway.limits")

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self._errands.lifespan():
            yield

    def stream(self, call: Call, call_next: CallNext) -> Events:
        subjects = self._subjects(call)
        return self._limited(call, call_next, subjects) if subjects else call_next(call)

    # -- who is limited --------------------------------------------------------------------------------------------

    def _subjects(self, call: Call) -> list[Subject]:
        """Who this call counts for, of those that have limits."""
        settings, principal = self._settings, call.principal
        found: list[Subject] = []
        if principal is None:
            if settings.key != _NONE:
                # one for all: an address can be forged, and many may share one
                found.append(Subject("anonymous", "callers without a key", settings.key))
        elif principal.admin:
            # nobody is locked out of their own gateway by a default
            if principal.limits != _NONE:
                found.append(_subject("key", principal.key, principal.limits))
            return found
        else:
            limits = over(settings.key, principal.limits)
            if limits != _NONE:
                found.append(_subject("key", principal.key, limits))
        if call.user:
            owner = self._services.keys.owner("user", call.user)
            limits = settings.user if owner is None else over(settings.user, owner.limits)
            if limits != _NONE:
                found.append(_subject("user", call.user, limits))
        if principal is not None and principal.team:
            owner = self._services.keys.owner("team", principal.team)
            limits = settings.team if owner is None else over(settings.team, owner.limits)
            if limits != _NONE:
                found.append(_subject("team", principal.team, limits))
        return found

    # -- a call ----------------------------------------------------------------------------------------------------

    async def _limited(self, call: Call, call_next: CallNext, subjects: list[Subject]) -> Events:
        tokens = 0
        if any(subject.limits.tpm is not None for subject in subjects):
            tokens = await self._estimated(call)
        rates, parallels = _gates(subjects, tokens)
        passage = await self._enter(call, rates, parallels)
        if passage is not None:
            call.trip.headers.update(headers(rates, passage))
            if passage.refused_by is not None:
                raise _refusal(subjects, rates, passage)
        try:
            async for event in call_next(call):
                yield event
        finally:
            if passage is not None:
                corrections = _corrections(rates, tokens, call.trip) if tokens else ()
                await self._leave(call.id, corrections, places=bool(parallels))

    async def _estimated(self, call: Call) -> int:
        """The tokens that the call may use, as far as its request tells."""
        sampling, model = call.request.sampling, call.request.model
        try:
            model = self._services.candidates(model)[0].model
        except RouterError:
            # the layers inside tell the client; any vocabulary does to count
            pass
        output = max(0, sampling.max_tokens or 0) * (sampling.n or 1)
        return min(await input_tokens(call, self._counter, model) + output, _MOST)

    async def _enter(self, call: Call, rates: list[Rate], parallels: list[Parallel]) -> Passage | None:
        """None: the state is away, and the call may pass all the same. Raises `StoreUnavailable` if it may not."""
        # who is away is not waited for by every call
        patience = BRIEFLY if self._away else PATIENCE
        try:
            passage = await bounded(self._gates.enter(call.id, rates, parallels), patience)
        except (GatesAway, TimeoutError) as away:
            closed = self._settings.on_failure == "closed"
            if not self._away:
                self._away = True
                self._log.error(
                    "limits cannot be counted: " + ("calls are refused" if closed else "calls pass without them"),
                    reason=str(away) or "no answer in time",
                )
            if not closed:
                return None
            raise StoreUnavailable(
                "the limits of this gateway cannot be counted at the moment, so the call was not made; try again",
                retry_after=5.0,
            ) from None
        except BaseException:
            # what was sent may arrive although nobody waits for the answer
            self._errands.run(self._leave_late(call.id, (), places=bool(parallels)))
            raise
        self._late = False
        if self._away:
            self._away = False
            self._log.info("limits are counted again")
        return passage

    async def _leave(self, call_id: str, corrections: Sequence[Rate], *, places: bool) -> None:
        """`places`: whether the call had any."""
        try:
            await bounded(self._gates.leave(call_id, corrections), BRIEFLY if self._away else PATIENCE)
        except (GatesAway, TimeoutError) as away:
            if places and not self._late:
                self._late = True
                self._log.info(
                    "places of calls that end now fall free late",
                    request_id=call_id,
                    reason=str(away) or "no answer in time",
                )
        except BaseException:
            self._errands.run(self._leave_late(call_id, corrections, places=places))
            raise

    async def _leave_late(self, call_id: str, corrections: Sequence[Rate], *, places: bool) -> None:
        """For a call that was cancelled while it entered or left: now, and again when what was under way is done."""
        await self._leave(call_id, corrections, places=places)
        await self._errands.pause(1.0)
        await self._leave(call_id, (), places=places)


def over(default: Limits, own: Limits) -> Limits:
    """The default with what `own` says, field by field."""
    if own == _NONE:
        return default
    return Limits(
        default.rpm if own.rpm is None else own.rpm,
        default.tpm if own.tpm is None else own.tpm,
        default.parallel if own.parallel is None else own.parallel,
    )


def _subject(kind: str, name: str, limits: Limits) -> Subject:
    # clients choose the names of users: the state need not hold any length of them, nor any character
    known = kept_text(name) if len(name) <= _LONGEST else sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    shown = name if len(name) <= _SHOWN else name[:_SHOWN] + "…"
    return Subject(f"{kind}:{known}", f"the {kind} `{shown}`", limits)


def _gates(subjects: list[Subject], tokens: int) -> tuple[list[Rate], list[Parallel]]:
    rates: list[Rate] = []
    parallels: list[Parallel] = []
    for subject in subjects:
        limits = subject.limits
        if limits.rpm is not None:
            rates.append(Rate(f"rpm:{subject.key}", limits.rpm, MINUTE))
        if limits.tpm is not None:
            rates.append(Rate(f"tpm:{subject.key}", limits.tpm, MINUTE, tokens))
        if limits.parallel is not None:
            parallels.append(Parallel(f"parallel:{subject.key}", limits.parallel))
    return rates, parallels


def _corrections(rates: list[Rate], estimated: int, trip: Trip) -> list[Rate]:
    """What is missing between the estimate and what was used, for each limit of tokens."""
    used = 0
    unknown = False
    for attempt in trip.attempts:
        if attempt.usage is not None:
            used += attempt.usage.prompt_total + attempt.usage.completion_total
        elif attempt.first_delta is not None:
            unknown = True
    difference = max(used, estimated) - estimated if unknown else used - estimated
    if not difference:
        return []
    return [Rate(rate.key, rate.limit, rate.period, difference) for rate in rates if rate.key.startswith("tpm:")]


def _refusal(subjects: list[Subject], rates: list[Rate], passage: Passage) -> LimitReached:
    kind, _, key = (passage.refused_by or "").partition(":")
    subject = next(subject for subject in subjects if subject.key == key)
    name, limits = subject.name, subject.limits
    after = passage.retry_after
    again = f"try again in {max(1, math.ceil(after))} s"
    if kind == "rpm":
        message = f"{name} may make {_count(limits.rpm, 'request')} a minute; {again}"
    elif kind == "parallel":
        message = f"{name} may have {_count(limits.parallel, 'call')} at once; try again when one has ended"
    else:
        cost = next(rate.cost for rate in rates if rate.key == passage.refused_by)
        message = f"{name} may use {_count(limits.tpm, 'token')} a minute, and this call may take {cost}"
        if limits.tpm is not None and cost > limits.tpm:
            message += f": it passes only after a minute without calls; send less, ask for fewer tokens, or {again}"
        else:
            message += f"; {again}"
    return LimitReached(message, retry_after=after)


def _count(number: int | None, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# -- headers -------------------------------------------------------------------------------------------------------


def headers(rates: list[Rate], passage: Passage) -> dict[str, str]:
    """`x-ratelimit-*` as OpenAI names them, of the limit of requests and of tokens that is nearest to its end."""
    found: dict[str, str] = {}
    for prefix, unit in (("rpm:", "requests"), ("tpm:", "tokens")):
        nearest: int | None = None
        for index, rate in enumerate(rates):
            if not rate.key.startswith(prefix):
                continue
            if rate.key == passage.refused_by:
                nearest = index
                break
            if nearest is None or passage.remaining[index] < passage.remaining[nearest]:
                nearest = index
        if nearest is not None:
            found[f"x-ratelimit-limit-{unit}"] = str(rates[nearest].limit)
            found[f"x-ratelimit-remaining-{unit}"] = str(passage.remaining[nearest])
            found[f"x-ratelimit-reset-{unit}"] = duration(passage.reset_after[nearest])
    return found


def duration(seconds: float) -> str:
    """As OpenAI writes it, which is Go's way: `120ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s`. Rounded up to milliseconds."""
    milliseconds = math.ceil(round(seconds * 1000, 6))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{milliseconds / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown
