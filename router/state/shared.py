"""The state of limits and budgets, and what is known of health, kept where the configuration wants it."""

import asyncio
import random
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from router.accounts import Account, Accounts, AccountsAway, Opening
from router.gates import Gates
from router.route import HealthRules
from router.routing.health_book import HealthBook
from router.settings import SharedUrl
from router.state.fallback_accounts import FallbackAccounts
from router.state.ledger_accounts import LedgerAccounts
from router.state.machine import Machine, MachineAway
from router.state.machine_accounts import MachineAccounts
from router.state.machine_gates import MachineGates
from router.state.machine_health import MachineHealth
from router.state.memory_accounts import MemoryAccounts
from router.state.memory_gates import MemoryGates
from router.state.redis import Redis, RedisAway
from router.state.redis_accounts import RedisAccounts
from router.state.redis_gates import RedisGates
from router.state.redis_health import RedisHealth
from router.state.renewing import renewing
from router.state.shared_health import HealthLink, SharedHealth
from router.store.spending import Convert
from router.store.store import Store, StoreAway

FILE: Final = "shared.db"
"""What the processes of one machine share, in the directory of the journals."""
_AGAIN: Final = 1.0
"""Seconds between two looks whether what was away is back."""


class StateUnavailable(Exception):
    """The state cannot be used as it is configured. The message says why, and what to do."""


class State:
    """Limits and budgets, counted while it is entered: `async with state:`. Raises `StateUnavailable` there.

    `health` may be asked at any time; what other processes know of it comes in while the state is entered. `telling`
    is how; None: there are no others.
    """

    def __init__(
        self,
        gates: Gates,
        accounts: Accounts,
        health: HealthBook,
        link: Machine | Redis | None = None,
        telling: HealthLink | None = None,
    ) -> None:
        self.gates = gates
        self.accounts = accounts
        self.health = health
        self.shared_health = None if telling is None else SharedHealth(health, telling)
        """None: each process knows only what it has seen itself."""
        self.link = link
        """What is shared by: opened and closed here. None: nothing is shared."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def trouble(self) -> str | None:
        """Why limits and budgets are not counted where they should be; None: they are."""
        if isinstance(self.link, Redis) and self.link.away is not None:
            return self.link.away
        return self.accounts.away if isinstance(self.accounts, FallbackAccounts) else None

    async def __aenter__(self) -> Self:
        if self.link is not None:
            try:
                await self.link.open()
            except (MachineAway, RedisAway) as error:
                raise StateUnavailable(str(error)) from error
        loop = asyncio.get_running_loop()
        if isinstance(self.accounts, FallbackAccounts):
            self._tasks.append(loop.create_task(_look(self.accounts)))
        if isinstance(self.gates, MachineGates | RedisGates):
            self._tasks.append(loop.create_task(renewing(self.gates)))
        if self.shared_health is not None:
            self._tasks.append(loop.create_task(self.shared_health.run()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        if isinstance(self.accounts, FallbackAccounts):
            await self.accounts.try_again()
        if self.link is not None:
            await self.link.close()


def shared_state(
    shared: SharedUrl, directory: Path, owner: str, store: Store, opening: Opening, convert: Convert
) -> State:
    """The state that `shared` names, as the process `owner` sees it; not entered yet.

    `directory` is that of the journals. `opening` says what the ledger knows of an account, `convert` (as of `Pricing`)
    adds up currencies when the ledger stands in for state that is away. `opening` may raise `StoreAway`.
    """

    async def told(account: Account) -> int:
        try:
            return await opening(account)
        except StoreAway as error:
            raise AccountsAway(str(error)) from error

    # rules are the configuration's, and may change while it runs
    health = HealthBook(HealthRules(), time.monotonic, random.Random())
    if shared == "memory":
        return State(MemoryGates(), MemoryAccounts(told, owner), health)
    ledger = LedgerAccounts(store, convert, owner)
    if shared == "auto":
        machine = Machine(directory / FILE)
        machine_accounts = FallbackAccounts(MachineAccounts(machine, told, owner), ledger)
        telling = MachineHealth(machine, health, owner)
        return State(MachineGates(machine), machine_accounts, health, machine, telling)
    redis = Redis(shared)
    accounts = FallbackAccounts(RedisAccounts(redis, told, owner), ledger)
    return State(RedisGates(redis), accounts, health, redis, RedisHealth(redis, health, owner))


async def _look(accounts: FallbackAccounts) -> None:
    while True:
        await asyncio.sleep(_AGAIN)
        await accounts.try_again()
