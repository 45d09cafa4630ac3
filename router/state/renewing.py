"""How a call keeps its places for as long as it runs, and loses them soon after its process has died.

Each process says again and again which of its calls run, and what nobody speaks for falls free. What budgets hold needs
none of this: it is known by its owner, so all of it is settled when a dead process's journal is recovered. Recovery
knows only the calls that are open in the ledger. It cannot give back the place of a call that had no row yet or had its
last one, of any call where there is no ledger, or of one that could not leave because the state was away for a moment.
A place of those that lasted for as long as a call may (`timeouts.total`, up to a month) would lock its key out.
"""

import asyncio
from contextlib import suppress
from typing import Final, Protocol

from router.gates import Gates, GatesAway

EXPIRY: Final = 600.0
"""Seconds after which a call is taken to have left, if it neither leaves nor is renewed."""
INTERVAL: Final = 120.0
"""Seconds between two renewals: some may fail before a call that runs loses its places."""


class RenewedGates(Gates, Protocol):
    """Gates that outlive the processes that use them."""

    async def renew(self) -> None:
        """Let `EXPIRY` begin anew for every call that has entered in this process and not left. Raises `GatesAway`."""
        ...


async def renewing(gates: RenewedGates) -> None:
    """Renew for ever."""
    while True:
        await asyncio.sleep(INTERVAL)
        # the next one may succeed
        with suppress(GatesAway):
            await gates.renew()
