"""Ledgers to report on: random ones, and a price book small enough to reckon with by hand."""

import random
from collections.abc import Iterable
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final

from msgspec import Struct

from router.events import Usage
from router.ledger.rows import TOKEN_CLASSES, AttemptRow, Audited, Batch, CallRow, Gap, Labels
from router.money import rounded
from router.prices.card import Part
from router.prices.pricing import Breakdown
from router.pricing import Cost
from router.provider import Target
from router.store.ledger import bring_in
from router.store.selection import first_id
from router.store.store import Store

DAY: Final = 86_400_000
START: Final = int(datetime(2026, 9, 1, tzinfo=UTC).timestamp()) * 1000
OUTCOMES: Final = ("finished", "client_gone", "failed", "cut", "timeout", None)
TARGETS: Final = (("openai", "gpt-5-mini"), ("qwen", "qwen-plus"), ("eurovend", "gros/modele"), ("new", "unpriced"))
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Ledger(Struct):
    calls: list[CallRow] = []
    attempts: list[AttemptRow] = []
    audits: list[Audited] = []
    gaps: list[Gap] = []

    async def into(self, store: Store) -> None:
        batch = Batch(
            "jrn",
            1,
            {call.id: call for call in self.calls},
            {(row.call_id, row.n): row for row in self.attempts},
            self.audits,
            self.gaps,
        )
        await bring_in(store, batch, START)


class Book:
    """A price book of three currencies. `dearer` is what prices are multiplied with from a day on."""

    UNITS: Final = {
        "openai": ("USD", 250_000_001, 2_000_000_007),
        "qwen": ("CNY", 800_000_000, 2_001_000_003),
        "eurovend": ("EUR", 333_333_333, 777_777_777),
    }
    """Nano-units for a million tokens of input and of output: few costs are whole without rounding."""
    RATES: Final = {"CNY": Fraction(10, 71), "EUR": Fraction(11, 10)}
    """US dollars for one, on the first day; they rise by a hundredth a day. The yen has none."""

    def __init__(self, dearer: int = 1) -> None:
        self.dearer = dearer

    def cost(
        self,
        target: Target,
        usage: Usage,
        at: int,
        *,
        service_tier: str | None = None,
        thinking: bool = False,
        as_priced: str | None = None,
    ) -> Cost | None:
        made = self.breakdown(target, usage, at, service_tier=service_tier, thinking=thinking)
        return None if made is None else made.cost

    def breakdown(
        self,
        target: Target,
        usage: Usage,
        at: int,
        *,
        service_tier: str | None = None,
        thinking: bool = False,
        as_priced: str | None = None,
    ) -> Breakdown | None:
        unit = self.UNITS.get(target.provider)
        if unit is None:
            return None
        currency, *rates = unit
        factor = self.dearer * (2 if service_tier == "priority" else 1) * (3 if thinking else 1)
        parts = []
        for name in TOKEN_CLASSES:
            rate = rates[name in ("output", "reasoning", "output_audio")] * factor
            if tokens := getattr(usage, name):
                parts.append(Part(name, tokens, rate, Fraction(tokens * rate, 10**6)))
        nano = rounded(sum((part.nano for part in parts), Fraction(0)))
        mode = f"{'#priority' if service_tier else ''}{'#thinking' if thinking else ''}"
        return Breakdown(Cost(nano, currency, f"{target}@2026-08-07{mode}"), tuple(parts))

    def knows(self, target: Target, at: int) -> bool:
        return target.provider in self.UNITS

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
        return self.cost(target, Usage(input=input_tokens, output=output_tokens), at, service_tier=service_tier)

    def convert(self, nano: int, currency: str, to: str, at: int) -> int | None:
        if currency == to:
            return nano
        if currency not in self.RATES or to != "USD":
            return None
        rate = self.RATES[currency] * Fraction(100 + (at - START) // DAY, 100)
        return rounded(nano * rate)


def call_id(at: int, number: int) -> str:
    """An id as a call made `at` gets it; the number stands in for what is random."""
    characters = [_ALPHABET[number >> (5 * place) & 31] for place in range(16)]
    return first_id(at) + "".join(reversed(characters))


def random_ledger(seed: int, size: int, *, days: int = 40) -> Ledger:
    """Calls with none to three attempts, labels of which some are absent, many at the same millisecond."""
    rng, ledger, book = random.Random(seed), Ledger([], [], [], []), Book()
    for number in range(size):
        at = START + rng.randrange(days) * DAY + rng.choice((0, 1, rng.randrange(DAY), DAY - 1))
        labels = Labels(
            rng.choice(("chat", "openai/gpt-5-mini", "fast")),
            rng.choice((None, "chat", "fast")),
            rng.choice(("dw-one", "dw-two", None)),
            rng.choice(("u1", "u2", "=cmd|' /C calc'!A0", None)),
            rng.choice(("a", "b", None)),
            rng.choice(({}, {"team": "a"}, {"team": "b", 'we "quote" — ünï': "x,y"}, {"team": "a", "feature": "s"})),
            *rng.choice(((None, None), ("trial", "control"), ("trial", "new"))),
        )
        made = [
            _attempt(rng, book, call_id(at, number), n + 1, at, labels) for n in range(rng.choice((0, 1, 1, 1, 2, 3)))
        ]
        ledger.attempts += made
        outcome: Any = rng.choice(OUTCOMES) if made else "refused"
        ledger.calls.append(
            CallRow(
                call_id(at, number),
                at,
                labels,
                "openai.chat",
                rng.random() < 0.5,
                "jrn",
                {"why": "asked for by name"} if made else {},
                None if outcome is None else at + 5000,
                outcome,
                f"{made[-1].provider}/{made[-1].model}" if made else None,
                None if outcome == "finished" else {"status": 502, "kind": "upstream", "code": "x", "message": "broke"},
                {
                    "duration_ms": 2100.0,
                    "overhead_ms": 0.9,
                    "queue_ms": 0.2,
                    "first_token_ms": 310.2,
                    "plugins": {"auth": 0.1},
                },
            )
        )
        ledger.audits += [
            Audited(row.call_id, row.n, rng.randrange(3000), rng.randrange(900))
            for row in made
            if row.source == "reported" and rng.random() < 0.2
        ]
    return ledger


def _attempt(rng: random.Random, book: Book, called: str, n: int, at: int, labels: Labels) -> AttemptRow:
    provider, model = rng.choice(TARGETS)
    source: Any = rng.choice(("reported", "reported", "estimated", None))
    tokens = dict.fromkeys(TOKEN_CLASSES, 0)
    if source is not None:
        tokens |= {name: rng.choice((0, rng.randrange(2000))) for name in TOKEN_CLASSES}
    usage = Usage(**tokens)
    tier, thinking = rng.choice((None, "priority")), rng.random() < 0.3
    cost = book.cost(Target(provider, model), usage, at, service_tier=tier, thinking=thinking) if source else None
    return AttemptRow(
        called,
        n,
        at + n,
        labels,
        provider,
        model,
        "jrn",
        at + 4000,
        rng.choice(OUTCOMES),
        None,
        {"duration_ms": 2000.0, "first_token_ms": 300.0, "longest_gap_ms": 12.5},
        "chatcmpl-1",
        **tokens,
        source=source,
        flag="sums differ" if source and rng.random() < 0.1 else None,
        service_tier=tier,
        thinking=thinking,
        cost=None if cost is None else cost.nano,
        currency=None if cost is None else cost.currency,
        price=None if cost is None else cost.price,
    )


def tokens_of(rows: Iterable[AttemptRow]) -> dict[str, int]:
    kept = list(rows)
    return {name: sum(getattr(row, name) for row in kept) for name in TOKEN_CLASSES}
