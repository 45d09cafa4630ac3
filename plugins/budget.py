"""`budget`: what may be spent in a day, a month or in total, by key, user, team and tag.

Before a call its most is reserved: the counted input and the output it may have, at the dearest price that may apply.
Afterwards its true cost is booked and the rest is free again, whatever ended it. A client that sets no `max_tokens`
gets its output reserved in steps while it runs, and the answer is stopped where the next step is refused. An answer
that is not streamed comes at once, with nothing to stop: the vendor is told to write no more than is reserved.

Budgets may be set while a call runs, and for a moment there may be nobody to ask. So what it cost is booked in the end
on all the budgets that there are by then, whether or not it has reserved something of them.
"""

import sys
import time
from asyncio import CancelledError, get_running_loop
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Final, NoReturn, TypeAlias

import structlog
from msgspec.structs import replace

from plugins.budget_rules import EVERY, WORDS, Budgets, BudgetSettings
from plugins.errands import BRIEFLY, PATIENCE, Errands, bounded
from plugins.input_tokens import input_tokens
from plugins.tab import Line, Tab, late_charges, thinking_budget
from router.access import Budget, OwnerKind, SubjectKind
from router.accounts import Account, AccountsAway, Charge, Refusal, account
from router.audio import sound_in, spoken
from router.call import Call, Events
from router.errors import AuthenticationFailed, BudgetSpent, RouterError, StoreUnavailable
from router.events import (
    Event,
    Extra,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from router.ledger.rows import LONGEST_VALUE, kept_text
from router.money import short_decimal
from router.plugin import CallNext
from router.provider import Target
from router.services import Services
from router.tokens import BrokenVocabulary, rough_count, vocabulary_of

_RETRIES: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between tries to settle while the state is away: 49 in all, then the ledger alone knows."""


class BudgetPlugin:
    outside_of = ("usage",)
    inside_of = ("logging", "auth", "limits")
    wants_services = True
    needs_ledger = True
    """After a restart the ledger alone knows what was spent."""
    Settings: TypeAlias = BudgetSettings

    def __init__(self, settings: BudgetSettings, services: Services) -> None:
        self._settings = settings
        self._services = services
        self._accounts = services.accounts
        self._counter = services.tokens if settings.tokenizer else None
        self._rules: dict[SubjectKind, dict[str, Budgets]] = {"key": {}, "user": {}, "team": {}}
        self._tags: dict[str, dict[str, Budgets]] = {}
        for rule in settings.rules:
            if rule.kind == "tag":
                name, _, value = rule.subject.partition("=")
                _add(self._tags.setdefault(name, {}), value, rule.budget)
            else:
                _add(self._rules[rule.kind], rule.subject, rule.budget)
        self._away = False
        self._errands = Errands()
        self._log = structlog.get_logger("deltaway.budget")

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self._errands.lifespan():
            yield

    def stream(self, call: Call, call_next: CallNext) -> Events:
        principal = call.principal
        lines = self._lines(call, () if principal is None else principal.budgets)
        if lines:
            return self._within(call, call_next, lines)
        if principal is not None or call.user:
            # they may be given a budget while it runs
            call.trip.generators.append(_AtClose(partial(self._settle_beside, call)))
        return call_next(call)

    # -- which budgets a call counts for ---------------------------------------------------------------------------

    def _lines(self, call: Call, own: Budgets) -> list[Line]:
        """`own`: the budgets of the key itself."""
        principal = call.principal
        lines: dict[Account, Line] = {}
        if principal is not None:
            by_key = self._rules["key"]
            # nobody is locked out of their own gateway by a rule for each key
            general = () if principal.admin else by_key.get(EVERY, ())
            budgets = _over(own, by_key.get(principal.key, ()), general)
            _enter(lines, call, "key", principal.key, budgets)
            if principal.team:
                _enter(lines, call, "team", principal.team, self._of_owner("team", principal.team))
        if call.user:
            _enter(lines, call, "user", kept_text(call.user), self._of_owner("user", call.user))
        if self._tags:
            for name, value in call.tags.items():
                if (rules := self._tags.get(name)) is not None:
                    budgets = _over((), rules.get(value, ()), rules.get(EVERY, ()))
                    _enter(lines, call, "tag", f"{kept_text(name)}={kept_text(value, LONGEST_VALUE)}", budgets)
        return list(lines.values())

    def _of_owner(self, kind: OwnerKind, name: str) -> Budgets:
        rules, owner = self._rules[kind], self._services.keys.owner(kind, name)
        return _over(() if owner is None else owner.budgets, rules.get(name, ()), rules.get(EVERY, ()))

    # -- a call ----------------------------------------------------------------------------------------------------

    async def _within(self, call: Call, call_next: CallNext, lines: list[Line]) -> Events:
        trip = call.trip
        targets = self._services.candidates(call.request.model)
        capped = self._capped(call)
        tab = Tab(capped or call, lines, targets, self._services, self._settings)
        tab.prompt = tab.input = await self._input(call, targets)
        events: Events | None = None
        try:
            refused = await self._reserve(tab, tab.allowed)
            if refused is not None:
                raise refused
            if capped is not None and tab.holding:
                trip.headers["x-deltaway-max-tokens"] = str(capped.request.sampling.max_tokens)
                # its tokens are the same: nobody need count them again
                counted = [
                    (capped.request, name, tokens) for known, name, tokens in trip.counted if known is call.request
                ]
                trip.counted += counted
                call = capped
            trip.before_more.append(partial(self._allow, tab))
            # a token is a byte at least: as long as there are few bytes, nothing need be counted
            pieces: list[str] = []
            bound = mark = sound = 0
            events = call_next(call)
            async for event in events:
                kind = type(event)
                if kind is TextDelta or kind is ReasoningDelta or kind is RefusalDelta:
                    text = event.text  # type: ignore[union-attr]
                elif kind is ToolCallDelta:
                    text = event.arguments  # type: ignore[union-attr]
                elif kind is ToolCallStarted:
                    text = event.name  # type: ignore[union-attr]
                else:
                    text = ""
                extra: Extra | None = None if kind is UsageReported else event.extra  # type: ignore[union-attr]
                if extra is not None and extra.block:
                    length, words = sound_in(extra.block)
                    text += words
                    sound += length
                    bound += length
                elif not text:
                    yield event
                    continue
                pieces.append(text)
                bound += len(text) if text.isascii() else 4 * len(text)
                if bound >= mark or (tab.began and tab.is_another(trip)):
                    bound, mark = await self._look(tab, pieces, bound, sound)
                yield event
        finally:
            try:
                if events is not None:
                    # what it cost is known when the layers inside have closed
                    await trip.close(events)
                    await events.aclose()
            finally:
                await self._settle(tab)

    def _capped(self, call: Call) -> Call | None:
        """The call with a `max_tokens`, for each of its choices, if nothing else bounds what a vendor may write."""
        request = call.request
        sampling = request.sampling
        # some servers take a `max_tokens` that is not positive for none
        if request.stream or (sampling.max_tokens or 0) > 0:
            return None
        # an answer has room beside the reasoning that was asked for
        most = self._settings.output + thinking_budget(request)
        return call.with_request(replace(request, sampling=replace(sampling, max_tokens=most)))

    async def _look(self, tab: Tab, pieces: list[str], bound: int, sound: int) -> tuple[int, int]:
        """How many tokens there are at most, and at how many to look again. Reserves more when the end is near.

        `pieces` is the text since the last count, `sound` the characters of all speech.

        What is reserved last is used up by the event at hand; when another one comes, raises `BudgetSpent`.
        """
        trip = tab.call.trip
        if tab.spent is None and (not tab.began or tab.is_another(trip)):
            if not trip.attempts:
                # no vendor answers this, so it costs nothing
                return 0, sys.maxsize
            if tab.begin() and (refused := await self._reserve(tab, tab.allowed)) is not None:
                self._stop(tab, refused)
            elif bound < tab.near_end:
                return bound, tab.near_end
        if tab.spent is not None:
            if not tab.call.request.stream and not tab.read_on:
                # it has come whole, and will be billed: there is nothing left to save
                return 0, 0
            if trip.interruption is None:
                # for the layers inside, which see no more than that they are closed
                trip.interruption = tab.spent
            raise tab.spent
        model = tab.targets[0].model
        tab.written += await self._count(pieces, model)
        tab.counted = tab.written + spoken(tab.call.request, model, sound)
        pieces.clear()
        if tab.counted < tab.near_end:
            return tab.counted, tab.near_end
        refused = None
        for step in (tab.step, tab.step // 4):
            # where a whole step is too much, a part of it may use up what is left
            wanted = max(tab.allowed, tab.counted) + max(1, step)
            refused = await self._reserve(tab, wanted)
            if refused is None:
                tab.allowed = wanted
                return tab.counted, tab.near_end
        if tab.counted < tab.end:
            return tab.counted, tab.end
        if refused is not None:
            self._stop(tab, refused)
        return tab.counted, 0

    async def _allow(self, tab: Tab, target: Target) -> None:
        """Reserve for one attempt more, at `target`. Raises `BudgetSpent` where that may not be."""
        before = tab.targets, tab.input, tab.answering
        if tab.began:
            # who answered so far has ended: what that cost counts beside
            tab.targets, tab.input, tab.answering = (target,), tab.prompt + tab.counted, None
        elif target not in tab.targets:
            tab.targets = (*tab.targets, target)
        try:
            refused = await self._reserve(tab, tab.allowed)
            if refused is not None:
                raise refused
        except BaseException:
            tab.targets, tab.input, tab.answering = before
            raise

    def _stop(self, tab: Tab, refused: RouterError) -> None:
        """No more of the answer is paid for than has been read."""
        tab.spent = refused
        # events that were read together follow each other without a turn of the loop
        get_running_loop().call_soon(tab.reads_on)

    async def _input(self, call: Call, targets: tuple[Target, ...]) -> int:
        if len(targets) == 1:
            return await input_tokens(call, self._counter, targets[0].model)
        # vocabularies differ by some tokens: the one that counts most is the safe one
        models = {vocabulary_of(target.model).name: target.model for target in targets}
        return max([await input_tokens(call, self._counter, model) for model in models.values()])

    async def _count(self, pieces: list[str], model: str) -> int:
        if self._counter is not None:
            try:
                return await self._counter.count(["".join(pieces)], model)
            except BrokenVocabulary:
                # the log has it: the request was counted before
                pass
        return rough_count(pieces)

    # -- reserve and settle ----------------------------------------------------------------------------------------

    async def _reserve(self, tab: Tab, output: int) -> RouterError | None:
        """Reserve what is missing for so many tokens of output; gives the error if that may not be."""
        amounts = tab.amounts(output)
        holds = tab.holds(amounts)
        if not holds:
            return None
        closed = self._settings.on_failure == "closed"
        try:
            # who is away is not waited for by every call
            refusal = await bounded(self._accounts.reserve(tab.call.id, holds), BRIEFLY if self._away else PATIENCE)
        except (AccountsAway, TimeoutError) as away:
            tab.unsure = tab.unsure or isinstance(away, TimeoutError)
            if not self._away:
                self._away = True
                self._log.error(
                    "budgets cannot be asked: " + ("calls with one are refused" if closed else "calls pass without"),
                    reason=str(away) or "no answer in time",
                )
            if not closed:
                return None
            return StoreUnavailable(
                "the answer was stopped: its budget cannot be asked at the moment"
                if tab.began
                else "the budget of this call cannot be asked at the moment, so the call was not made; try again",
                retry_after=5.0,
            )
        except BaseException:
            tab.unsure = True
            raise
        if self._away:
            self._away = False
            self._log.info("budgets can be asked again")
        if refusal is not None:
            return _refused(tab, refusal)
        tab.keep(amounts)
        return None

    async def _settle(self, tab: Tab) -> None:
        await self._book(tab.call.id, tab.charges(), self._late(tab.call, tab.lines), unsure=tab.unsure)

    async def _settle_beside(self, call: Call) -> None:
        """A call that had no budget when it began."""
        await self._book(call.id, {}, self._late(call, ()), unsure=False)

    def _late(self, call: Call, lines: Sequence[Line]) -> list[Charge]:
        """What the call has cost for the budgets of which it holds nothing: of those that it began with (`lines`), and
        of those that there are now."""
        trip = call.trip
        if not any(attempt.cost is not None and attempt.cost.nano for attempt in trip.attempts):
            return []
        try:
            present = self._lines(call, self._own_now(call))
        except StoreUnavailable:
            present = []
        accounts = {line.account: line.held for line in (*present, *lines)}
        return late_charges([each for each, held in accounts.items() if not held], trip, self._services.pricing)

    def _own_now(self, call: Call) -> Budgets:
        """The budgets that the call's key has by now."""
        principal = call.principal
        if principal is None:
            return ()
        try:
            present = self._services.keys.known(call.credentials)
        except AuthenticationFailed:
            # it may not call any more, and has the budgets that it had
            present = None
        return principal.budgets if present is None or present.key != principal.key else present.budgets

    async def _book(
        self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge], *, unsure: bool
    ) -> None:
        wanted = bool(charges or late)
        if wanted:
            try:
                await bounded(self._accounts.settle(call_id, charges, late), BRIEFLY if self._away else PATIENCE)
                wanted, charges, late = False, {}, ()
            except (AccountsAway, TimeoutError):
                pass
            except CancelledError:
                self._errands.run(self._settle_late(call_id, charges, late, unsure=True))
                raise
        if wanted or unsure:
            self._errands.run(self._settle_late(call_id, charges, late, unsure=unsure))

    async def _settle_late(
        self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge], *, unsure: bool
    ) -> None:
        """Until it is done, or for a minute. To settle twice is to settle once."""
        reason = ""
        for seconds in _RETRIES:
            await self._errands.pause(seconds)
            last = self._errands.closing
            try:
                await bounded(self._accounts.settle(call_id, charges, late), PATIENCE)
            except (AccountsAway, TimeoutError) as away:
                reason = str(away) or "no answer in time"
            else:
                if unsure:
                    # a reservation that was under way may come after the settlement
                    await self._errands.pause(1.0)
                    await self._settle_late(call_id, {}, (), unsure=False)
                return
            if last:
                break
        self._log.error(
            "a call's cost could not be booked: until its reservation lapses, its budget stands as reserved"
            if charges or not late
            else "a call's cost could not be booked: its budget does not know of it until the next start",
            request_id=call_id,
            reason=reason,
        )


class _AtClose(AsyncGenerator[Event, None]):
    """A stream without events among those that a call opens, for what is to be done when they are closed. Nothing goes
    through it."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        self._close = close

    async def asend(self, value: None) -> NoReturn:
        raise StopAsyncIteration

    async def athrow(self, *_: object) -> NoReturn:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._close()


def _add(rules: dict[str, Budgets], subject: str, budget: Budget) -> None:
    rules[subject] = (*rules.get(subject, ()), budget)


def _over(own: Budgets, named: Budgets, general: Budgets) -> Budgets:
    """Budgets for each period: somebody's own before those of a rule that names them, before those for each one."""
    found = own
    for rules in (named, general):
        if rules:
            taken = {budget.per for budget in found}
            found = (*found, *(budget for budget in rules if budget.per not in taken))
    return found


def _enter(lines: dict[Account, Line], call: Call, kind: SubjectKind, subject: str, budgets: Budgets) -> None:
    for budget in budgets:
        opened = account(kind, subject, budget.per, budget.amount.currency, call.trip.created_at)
        limit = budget.amount.nano
        if opened in lines:
            limit = min(limit, lines[opened].limit)
        lines[opened] = Line(opened, limit)


def _refused(tab: Tab, refusal: Refusal) -> BudgetSpent:
    hold, standing = refusal.hold, refusal.standing
    held, limit = hold.account, hold.limit
    currency, until = held.currency, held.until
    line = next(line for line in tab.lines if line.account == held)
    whole = f"{line.words}, {short_decimal(limit)} {currency} {WORDS[held.per]},"
    left = max(0, limit - standing.spent - standing.reserved)
    others = standing.reserved - line.held
    kept = f" ({short_decimal(others)} {currency} is reserved by calls that are running)" if others > 0 else ""
    if tab.began:
        message = f"the answer was stopped: {whole} is spent{kept}"
    else:
        message = (
            f"{whole} has {short_decimal(left)} {currency} left{kept}, and this call may cost "
            f"{short_decimal(hold.amount)} {currency}: a smaller `max_tokens`"
            f"{' or `thinking_budget`' if tab.thinks else ''} needs less"
        )
    if until is None:
        return BudgetSpent(message)
    begins = datetime.fromtimestamp(until / 1000, UTC).date().isoformat()
    return BudgetSpent(
        f"{message}; the next {held.per} begins on {begins} (UTC)", retry_after=max(1.0, until / 1000 - time.time())
    )
