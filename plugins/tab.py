"""What one call may cost: the budgets it counts for, what it has reserved of them, and how far its answer may go."""

import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from msgspec import Struct

from plugins.budget_rules import BudgetSettings
from router.accounts import Account, Charge, Hold
from router.audio import asks_for_audio, sends_audio
from router.call import Attempt, Call, Trip
from router.errors import PriceUnknown, RouterError
from router.messages import ChatRequest
from router.pricing import Cost, Pricing
from router.provider import Target
from router.services import Services

_SHOWN: Final = 64
_MOST_OUTPUT: Final = 10**9
"""Tokens that a request may be taken to ask for."""
_MOST_THINKING: Final = 10**7
"""Tokens of reasoning that a request may be taken to ask for."""
_DEARER: Final = "priority"
"""The service tier that costs more than the standard one."""


def thinking_budget(request: ChatRequest) -> int:
    """Tokens of reasoning that the request allows each choice in so many words; 0: it does not say."""
    thinking = request.thinking
    if thinking.enabled is False or (thinking.enabled is None and thinking.effort == "none"):
        return 0
    return min(max(0, thinking.budget or 0), _MOST_THINKING)


def late_charges(accounts: Iterable[Account], trip: Trip, pricing: Pricing) -> list[Charge]:
    """What each attempt has cost, in each of the accounts, and when it ended."""
    now, clock = time.time(), time.monotonic()
    charges = []
    for attempt in trip.attempts:
        cost = attempt.cost
        if cost is not None and cost.nano:
            # rounded up: the ledger was asked before, if it was in the same millisecond
            at = math.ceil((now - clock + (clock if attempt.ended is None else attempt.ended)) * 1000)
            for account in accounts:
                nano = _converted(pricing, cost.nano, cost.currency, account.currency, trip.created_at)
                if nano:
                    charges.append(Charge(account, nano, at))
    return charges


class Line(Struct):
    """One budget that a call counts for."""

    account: Account
    limit: int
    held: int = 0
    """What the call has reserved of it so far."""

    @property
    def words(self) -> str:
        subject = self.account.subject
        shown = subject if len(subject) <= _SHOWN else subject[:_SHOWN] + "…"
        return f"the budget of the {self.account.kind} `{shown}`"


class Tab:
    """What one call may cost and has reserved, line by line, and how far its answer may go."""

    def __init__(
        self,
        call: Call,
        lines: Sequence[Line],
        targets: tuple[Target, ...],
        services: Services,
        settings: BudgetSettings,
    ) -> None:
        self.call = call
        self.lines = lines
        self.targets = targets
        """Where the answer may come from; once it has begun, where it comes from."""
        self.prompt = 0
        """Tokens of the request."""
        self.input = 0
        """Those that the vendor gets: where an answer is gone on with, what had come of it too."""
        self.answering: Attempt | None = None
        """Whose answer it is; None until one has begun."""
        self.counted = 0
        """Tokens of the answer, as far as they have been counted."""
        self.written = 0
        """Those of them that are text."""
        self.unsure = False
        """Whether something may be reserved that nobody waited to hear of."""
        self.began = False
        self.spent: RouterError | None = None
        """Why the answer may not go on."""
        self.read_on = False
        """Whether more of it has been waited for since."""
        request, step = call.request, settings.output
        self.step = step
        sampling, most = request.sampling, max(0, request.sampling.max_tokens or 0)
        self.thinks = thinking_budget(request) or (step if request.thinking.enabled else 0)
        """Tokens of reasoning that each choice may have beside its `max_tokens`: whoever takes these words of a request
        may count so. A vendor that is told an effort alone counts reasoning as output."""
        asked = min((most + self.thinks) * (sampling.n or 1), _MOST_OUTPUT) if most else 0
        self.allowed = asked or step
        """Tokens of output that are reserved."""
        # our count is not the vendor's: one that keeps to `max_tokens` is not stopped for the difference, and one that
        # may write on is stopped a little before its reservation ends
        self.margin, self.slack = (0, -(asked // 8 + 16)) if asked else (step // 4, min(32, step // 8))
        tier = call.request.extra.get("service_tier")
        # `auto` leaves it to the settings of the vendor's account
        self._tier = _DEARER if tier == "auto" else tier if isinstance(tier, str) else None
        self._pricing = services.pricing
        self._unpriced = settings.unpriced == "allow"
        self._at = call.trip.created_at

    def reads_on(self) -> None:
        self.read_on = True

    @property
    def near_end(self) -> int:
        """Tokens of output at which more is reserved."""
        return self.allowed - self.margin

    @property
    def end(self) -> int:
        """Tokens of output at which the answer is stopped if nothing more can be reserved."""
        return self.allowed - self.slack

    def begin(self) -> bool:
        """Somebody else answers than before: its target is known. Whether the others have cost something, or may."""
        trip = self.call.trip
        if self.began:
            # it is asked for the rest, with what has come in its prompt
            self.input = self.prompt + self.counted
        self.began = True
        self.answering = trip.answering or trip.attempts[-1]
        self.targets = (self.answering.target,)
        return bool(self._beside())

    def is_another(self, trip: Trip) -> bool:
        """Whether somebody else answers by now."""
        return trip.answering is not None and trip.answering is not self.answering

    def _beside(self) -> dict[str, int]:
        """Currency → what the attempts that do not answer have cost, or may: a prompt at least, while they run."""
        found: dict[str, int] = {}
        for attempt in self.call.trip.attempts:
            if attempt is self.answering:
                continue
            cost = attempt.cost
            if cost is None and attempt.ended is None:
                cost = self._most(attempt.target, 0)
            if cost is not None and cost.nano:
                found[cost.currency] = found.get(cost.currency, 0) + cost.nano
        return found

    def amounts(self, output: int) -> list[int]:
        """The most that the call can cost with so many tokens of output, for each line in its currency.

        Raises `PriceUnknown`.
        """
        amounts: dict[str, int] = {}
        for target in self.targets:
            most = self._most(target, output)
            if most is None:
                if self._unpriced:
                    continue
                raise PriceUnknown(
                    f"the price of `{target}` is not known, and this call counts for a budget: its price belongs into "
                    "the file of `prices.file`; or set `unpriced: allow` in the settings of `budget`",
                    param="model",
                )
            for line in self.lines:
                currency = line.account.currency
                nano = self._converted(most.nano, most.currency, currency)
                if nano is None:
                    raise PriceUnknown(
                        f"{line.words} is in {currency}, and no exchange rate is known for {most.currency}, in which "
                        f"`{target}` is paid: write one under `prices.rates`",
                        code="rate_unknown",
                        param="model",
                    )
                amounts[currency] = max(amounts.get(currency, 0), nano)
        beside = self._beside()
        for currency in amounts:
            for paid_in, nano in beside.items():
                amounts[currency] += self._converted(nano, paid_in, currency) or 0
        return [amounts.get(line.account.currency, 0) for line in self.lines]

    def _most(self, target: Target, output: int) -> Cost | None:
        """The dearer of the standard tier and the one that is asked for, which not every vendor sells or grants.

        Of audio only if the request sends some or asks for some, which costs many times what text does.
        """
        request = self.call.request
        ceiling = partial(
            self._pricing.ceiling,
            target,
            self.input,
            output,
            self._at,
            audio_in=sends_audio(request),
            audio_out=asks_for_audio(request),
        )
        most = ceiling()
        if self._tier is not None:
            asked = ceiling(service_tier=self._tier)
            if most is None or (asked is not None and asked.nano > most.nano):
                most = asked
        return most

    def holds(self, amounts: Sequence[int]) -> list[Hold]:
        """What is missing to have reserved so much."""
        return [
            Hold(line.account, line.limit, amount - line.held)
            for line, amount in zip(self.lines, amounts, strict=True)
            if amount > line.held
        ]

    @property
    def holding(self) -> bool:
        """Whether anything is reserved."""
        return any(line.held for line in self.lines)

    def keep(self, amounts: Sequence[int]) -> None:
        """So much is reserved now."""
        for line, amount in zip(self.lines, amounts, strict=True):
            line.held = max(line.held, amount)

    def charges(self) -> dict[Account, int]:
        """What the call has cost, for the accounts of which it holds something."""
        found: dict[Account, int] = {}
        for line in self.lines:
            if line.held:
                costs = [self._cost(attempt, line.account.currency) for attempt in self.call.trip.attempts]
                known = sum(nano for nano in costs if nano is not None)
                # what was used at a price that is not known is never nothing: then what was reserved is paid
                found[line.account] = max(known, line.held) if None in costs else known
        return found

    def _cost(self, attempt: Attempt, currency: str) -> int | None:
        cost = attempt.cost
        if cost is not None:
            return self._converted(cost.nano, cost.currency, currency)
        return 0 if attempt.usage is None or self._unpriced else None

    def _converted(self, nano: int, currency: str, to: str) -> int | None:
        return _converted(self._pricing, nano, currency, to, self._at)


def _converted(pricing: Pricing, nano: int, currency: str, to: str, at: int) -> int | None:
    return nano if currency == to else pricing.convert(nano, currency, to, at)
