"""What an attempt costs, by the prices that its call began under."""

from router.call import Attempt, Trip
from router.events import Usage
from router.ledger.bringing import MOST_NANO
from router.money import decimal_of
from router.pricing import Cost, Pricing


def price(trip: Trip, attempt: Attempt) -> None:
    """Note what the attempt cost, and tell the client."""
    if attempt.usage is None:
        return
    attempt.cost = cost_of(trip.in_force.pricing, attempt, attempt.usage)
    sums: dict[str, int] = {}
    for tried in trip.attempts:
        if tried.cost is not None:
            sums[tried.cost.currency] = sums.get(tried.cost.currency, 0) + tried.cost.nano
    if sums:
        trip.headers["x-deltaway-cost"] = ", ".join(f"{decimal_of(nano)} {code}" for code, nano in sums.items())


def cost_of(pricing: Pricing, attempt: Attempt, usage: Usage) -> Cost | None:
    thinking = attempt.thinking or usage.reasoning > 0 or bool(attempt.generated.reasoning)
    cost = pricing.cost(attempt.target, usage, attempt.created_at, service_tier=attempt.service_tier, thinking=thinking)
    # no store can hold more: such a count is a fault of the vendor's, and the row says that it has no cost
    return cost if cost is None or cost.nano <= MOST_NANO else None
