"""What other currencies are worth in one, for sums that compare: as floats, since statistics are no bill."""

from router.money import CURRENCIES, NANO
from router.pricing import Pricing


def rates(pricing: Pricing, currency: str, at: int) -> dict[str, float]:
    """Currency → units of `currency` for one unit of it, on `at` (Unix milliseconds); those without a rate are left
    out."""
    found = {currency: 1.0}
    for code in CURRENCIES:
        nano = pricing.convert(NANO, code, currency, at)
        if nano is not None:
            found[code] = nano / NANO
    return found
