"""What a call is expected to cost at a target, to compare targets by. Pure; a guess, and no price of anything."""

from typing import Final

from router.events import Usage
from router.pricing import Pricing
from router.provider import Target
from router.routing.candidates import Needs

ANSWER: Final = 512
"""Tokens that an answer is taken to have: or `max_tokens`, where the request allows fewer."""


def expected_cost(pricing: Pricing, target: Target, needs: Needs, at: int, currency: str) -> int | None:
    """Nano-units of `currency` for the prompt, nothing of it cached, and an answer of `ANSWER` tokens, on `at` (Unix
    milliseconds). None where no price is known, or no rate."""
    answer = ANSWER if needs.max_tokens is None else min(needs.max_tokens, ANSWER)
    usage = Usage(input=needs.prompt_tokens, output=answer)
    cost = pricing.cost(target, usage, at, thinking=needs.reasoning)
    return None if cost is None else pricing.convert(cost.nano, cost.currency, currency, at)
