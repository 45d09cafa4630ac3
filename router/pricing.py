"""What a call costs: the contract between whoever counts tokens and the price book."""

from typing import Protocol

from msgspec import Struct

from router.events import Usage
from router.provider import Target


class Cost(Struct, frozen=True):
    """An exact amount in the vendor's own currency, and the price that made it."""

    nano: int
    """Billionths of the currency's unit."""
    currency: str
    price: str
    """Id of the price: `openai/gpt-5-mini@2026-08-07`, with its mode or tier behind it where it has several."""


class Pricing(Protocol):
    """The price book as seen from one configuration: its providers are known by their names. Pure; holds no clock."""

    def cost(
        self, target: Target, usage: Usage, at: int, *, service_tier: str | None = None, thinking: bool = False
    ) -> Cost | None:
        """The cost of one attempt that began `at` (Unix milliseconds). None: no price is known, which is never zero."""
        ...

    def knows(self, target: Target, at: int) -> bool:
        """Whether there is a price for it."""
        ...

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
        """The most that so many tokens can cost: the dearest class and mode that may apply, for reservations.

        In the service tier that is named, else in the standard one. Classes of audio apply where the call sends some
        (`audio_in`) or asks for some. None: no price is known for it, or for a class that may apply.
        """
        ...

    def convert(self, nano: int, currency: str, to: str, at: int) -> int | None:
        """An amount in another currency at the rate of that day; None where no rate is known."""
        ...
