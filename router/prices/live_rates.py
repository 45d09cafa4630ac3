"""The exchange rates of the configuration in force, for what outlives each: budgets, and what the dead left."""

from router.pricing import Pricing


class LiveRates:
    """`pricing` is swapped when a configuration comes into force. A call has the prices it began under instead."""

    __slots__ = ("pricing",)

    def __init__(self) -> None:
        self.pricing: Pricing | None = None

    def convert(self, nano: int, currency: str, to: str, at: int) -> int | None:
        """As `Pricing.convert`."""
        if self.pricing is None:
            return nano if currency == to else None
        return self.pricing.convert(nano, currency, to, at)
