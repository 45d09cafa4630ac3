"""What the core lends to `limits` and `budget` in their tests, and a vendor whose attempts are settled as it does.

A token is a letter, so that every amount can be worked out by hand.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from router.access import Owner, OwnerKind
from router.accounts import Account, Accounts, Standing
from router.call import Attempt, Call, Credentials, Events, Principal, new_trip, outcome_of
from router.errors import RouterError, StoreUnavailable, UnknownModel
from router.events import ChoiceFinished, Completed, Event, Started, TextDelta, Usage
from router.gates import Gates
from router.messages import ChatRequest, Sampling, Thinking, User
from router.pricing import Cost
from router.provider import Target
from router.services import Services
from router.state.memory_accounts import MemoryAccounts
from router.state.memory_gates import MemoryGates
from router.tokens import TokenCounter

NOVEMBER = 1_795_348_800_000
"""2026-11-22T12:00:00Z in Unix milliseconds."""
GPT = Target("openai", "gpt-5")
QWEN = Target("qwen", "qwen-plus")
NEW = Target("openai", "brand-new")


class Letters(TokenCounter):
    """A token is a letter. `asked`: the texts that were counted."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def count_now(self, texts: Sequence[str], model: str) -> int:
        self.asked += texts
        return sum(map(len, texts))

    count_blocking = count_now


class PriceList:
    """Nano-units for a token of input and of output, by target; what other service tiers multiply them by."""

    def __init__(self) -> None:
        self.prices: dict[Target, tuple[int, int, str]] = {GPT: (1, 10, "USD"), QWEN: (2, 20, "CNY")}
        self.tiers: dict[Target, dict[str, int]] = {}
        self.rates = {("USD", "CNY"): 7, ("CNY", "USD"): 1}
        """`CNY` is worth a dollar here when it is bought, so that no figure needs rounding."""

    def cost(
        self, target: Target, usage: Usage, at: int, *, service_tier: str | None = None, thinking: bool = False
    ) -> Cost | None:
        return self.ceiling(target, usage.prompt_total, usage.completion_total, at, service_tier=service_tier)

    def knows(self, target: Target, at: int) -> bool:
        return target in self.prices

    def ceiling(
        self,
        target: Target,
        input_tokens: int,
        output_tokens: int,
        at: int,
        *,
        service_tier: str | None = None,
        audio_in: bool = False,
        audio_out: bool = False,
    ) -> Cost | None:
        standard = service_tier in (None, "default", "auto")
        times = 1 if standard else self.tiers.get(target, {}).get(str(service_tier))
        if target not in self.prices or times is None:
            return None
        per_input, per_output, currency = self.prices[target]
        nano = times * (per_input * input_tokens + per_output * output_tokens)
        return Cost(nano, currency, f"{target}@2026-01-01{'' if standard else f'#{service_tier}'}")

    def convert(self, nano: int, currency: str, to: str, at: int) -> int | None:
        if currency == to:
            return nano
        rate = self.rates.get((currency, to))
        return None if rate is None else nano * rate


class Owners:
    """The owners of a key book. Of keys it knows what `present` is by now."""

    def __init__(self, *owners: Owner) -> None:
        self._owners = {(owner.kind, owner.id): owner for owner in owners}
        self.present: Principal | RouterError | None = None
        self.away = False

    def put(self, owner: Owner) -> None:
        self._owners[owner.kind, owner.id] = owner

    def known(self, credentials: Credentials) -> Principal | None:
        if isinstance(self.present, RouterError):
            raise self.present
        return self.present

    async def find(self, credentials: Credentials) -> Principal | None:
        return None

    def owner(self, kind: OwnerKind, name: str) -> Owner | None:
        if self.away:
            raise StoreUnavailable("keys cannot be looked up now")
        return self._owners.get((kind, name))


MODELS = {"chat": (GPT,), "qwen": (QWEN,), "either": (GPT, QWEN), "new": (NEW,), "old-or-new": (GPT, NEW)}


def candidates(model: str) -> tuple[Target, ...]:
    try:
        return MODELS[model]
    except KeyError:
        raise UnknownModel(f"unknown model `{model}`") from None


async def nothing_spent(account: Account) -> int:
    return 0


def lend(
    *owners: Owner,
    gates: Gates | None = None,
    accounts: Accounts | None = None,
    tokens: TokenCounter | None = None,
    spent: Callable[[Account], Awaitable[int]] = nothing_spent,
) -> Services:
    return Services(
        environ={},
        keys=Owners(*owners),
        tokens=tokens or Letters(),
        pricing=PriceList(),
        gates=gates or MemoryGates(),
        accounts=accounts or MemoryAccounts(spent, "process-1"),
        candidates=candidates,
        is_route=MODELS.__contains__,
    )


def a_call(
    model: str = "chat",
    prompt: str = "Hi",
    *,
    number: int = 1,
    principal: Principal | None = None,
    user: str | None = None,
    tags: dict[str, str] | None = None,
    at: int = NOVEMBER,
    stream: bool = True,
    service_tier: str | None = None,
    thinking: int | None = None,
    thinks: bool | None = None,
    effort: str | None = None,
    **sampling: Any,
) -> Call:
    """Its request counts as 6 tokens and its prompt."""
    trip = new_trip()
    trip.created_at = at
    request = ChatRequest(
        model=model,
        messages=(User(prompt),),
        protocol="openai",
        stream=stream,
        sampling=Sampling(**sampling),
        thinking=Thinking(budget=thinking, enabled=thinks, effort=effort),
        extra={} if service_tier is None else {"service_tier": service_tier},
    )
    call = Call(
        id=f"req_{number}",
        request=request,
        dialect="openai.chat",
        trip=trip,
        credentials=Credentials(None),
        user=user,
        tags=tags or {},
    )
    return call if principal is None else call.with_principal(principal)


def text(*pieces: str) -> tuple[Event, ...]:
    """A whole answer of these pieces."""
    return (
        Started("id-1", "m", 0),
        *(TextDelta(0, 0, piece) for piece in pieces),
        ChoiceFinished(0, "stop"),
        Completed(),
    )


class Vendor:
    """The innermost layer: plays events, `failing` attempts before them, and settles each attempt as the core does.

    Before each event it waits for a turn of the loop, or for `gate` if there is one.
    """

    def __init__(
        self,
        services: Services,
        events: Sequence[Event] = (),
        *,
        target: Target = GPT,
        error: RouterError | None = None,
        failing: int = 0,
        gate: asyncio.Event | None = None,
        waits: bool = True,
        input_tokens: int | None = None,
        tier: str | None = None,
    ) -> None:
        self._services = services
        self._events = events or text("hello", " world")
        self._target = target
        self._error = error
        self._failing = failing
        self._gate = gate
        self._waits = waits
        self._input = input_tokens
        self._tier = tier
        self.calls: list[Call] = []
        self.closed = 0
        self.running = 0
        self.most_running = 0

    async def __call__(self, call: Call) -> Events:
        self.calls.append(call)
        trip = call.trip
        for _ in range(self._failing):
            attempt = self._attempt(call)
            attempt.generated.note(TextDelta(0, 0, "lost"))
            self._settle(call, attempt, None)
        attempt = self._attempt(call)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        failure: BaseException | None = None
        try:
            for event in self._events:
                if self._gate is not None:
                    await self._gate.wait()
                if self._waits:
                    await asyncio.sleep(0)
                if isinstance(event, TextDelta) and trip.first_delta is None:
                    attempt.first_delta = trip.first_delta = 1.0
                attempt.generated.note(event)
                yield event
            if self._error is not None:
                raise self._error
        except BaseException as error:
            failure = error
            raise
        finally:
            # a socket takes a moment to close
            await asyncio.sleep(0)
            self._settle(call, attempt, failure)
            self.closed += 1
            self.running -= 1

    def _attempt(self, call: Call) -> Attempt:
        trip = call.trip
        attempt = Attempt(n=len(trip.attempts) + 1, target=self._target, started=0.0, created_at=trip.created_at)
        trip.attempts.append(attempt)
        return attempt

    def _settle(self, call: Call, attempt: Attempt, failure: BaseException | None) -> None:
        attempt.ended = time.monotonic()
        attempt.outcome = outcome_of(failure, call.trip)
        if failure is not None and isinstance(failure, RouterError) and not attempt.generated.output:
            return
        tokens = len("".join(attempt.generated.output + attempt.generated.reasoning))
        content = call.request.messages[0].content
        sent = 6 + len(content) if self._input is None else self._input
        attempt.usage = Usage(input=sent, output=tokens, source="reported")
        attempt.service_tier = self._tier
        attempt.cost = self._services.pricing.cost(
            self._target, attempt.usage, call.trip.created_at, service_tier=self._tier
        )


async def standing(services: Services, account: Account) -> tuple[int, int]:
    """What is spent and what is reserved."""
    (found,) = await services.accounts.standings([account])
    assert isinstance(found, Standing)
    return found.spent, found.reserved


def cost_of(call: Call) -> int:
    return sum(attempt.cost.nano for attempt in call.trip.attempts if attempt.cost is not None)
