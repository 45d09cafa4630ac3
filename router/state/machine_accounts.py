"""Budgets counted by the processes of one machine together."""

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from router.accounts import Account, AccountsAway, Charge, Hold, Opening, Refusal, Standing
from router.state.book import Book, Held, Sums
from router.state.holding import EXPIRY, KEPT, MOST, lost, wanted
from router.state.machine import Machine, MachineAway
from router.state.names import account_named
from router.state.openings import Opened, Openings, Told

T = TypeVar("T")

_LOOK: Final = 1.0
"""Seconds between two looks for what has expired."""
_SWEEP: Final = 60.0
"""Seconds between two sweeps of what is needed no more."""
_amounts: Final = msgspec.json.Decoder(dict[str, int]).decode


class MachineAccounts:
    """Accounts as the process `owner` sees them. `clock` gives Unix seconds, the same in all processes."""

    def __init__(
        self,
        machine: Machine,
        opening: Opening,
        owner: str,
        clock: Callable[[], float] = time.time,
        expiry: float = EXPIRY,
    ) -> None:
        self._machine = machine
        self._openings = Openings(opening, clock)
        self._owner = owner
        self._clock = clock
        self._expiry = expiry
        self._book = Book(expiry)
        """While this process is alone."""
        self._looked_at = 0.0
        self._swept_at = 0.0
        self._reserved_in: dict[str, str] = {}
        """The generation in which each running call of ours has reserved."""
        machine.parts.append(self)

    @property
    def generation(self) -> str:
        return self._machine.generation

    async def reserve(self, call_id: str, holds: Sequence[Hold]) -> Refusal | None:
        if not holds:
            return None
        told: Told = {}
        while True:
            found = await self._run(
                lambda: self._book.reserve(call_id, self._owner, holds, told, self._clock()),
                lambda cursor: self._reserve(cursor, call_id, holds, told),
            )
            if found is None:
                self._reserved_in[call_id] = self._machine.generation
            if not isinstance(found, list):
                return found
            await self._openings.ask(found, told)

    async def settle(
        self, call_id: str, charges: Mapping[Account, int], late: Sequence[Charge] = (), at: int | None = None
    ) -> None:
        generation = self._reserved_in.get(call_id)
        await self._run(
            lambda: self._settle_alone(call_id, charges, late, generation, at),
            lambda cursor: self._settle(cursor, call_id, charges, late, generation, at),
        )
        self._reserved_in.pop(call_id, None)

    async def standings(self, accounts: Sequence[Account]) -> list[Standing]:
        told: Told = {}
        while True:
            found, missing = await self._run(
                lambda: self._book.standings(accounts, told, self._clock()),
                lambda cursor: self._standings(cursor, accounts, told),
            )
            if not missing:
                return found
            await self._openings.ask(missing, told)

    async def held_by(self, owner: str) -> list[tuple[str, tuple[Account, ...]]]:
        return await self._run(lambda: self._book.held_by(owner), lambda cursor: _held_by(cursor, owner))

    async def begin_anew(self) -> None:
        try:
            await self._machine.begin_anew()
        except MachineAway as error:
            raise AccountsAway(str(error)) from error

    async def _run(self, alone: Callable[[], T], shared: Callable[[sqlite3.Cursor], T]) -> T:
        if self._machine.alone:
            return alone()
        try:
            return await self._machine.run(alone, shared)
        except MachineAway as error:
            raise AccountsAway(str(error)) from error

    def _lost_at(self, generation: str | None, at: int | None) -> int | None:
        """When a call that holds nothing was settled, if it had reserved something that was lost or is elsewhere."""
        if generation == self._machine.generation or (generation is None and at is None):
            return None
        return int(self._clock() * 1000) if at is None else at

    def _settle_alone(
        self,
        call_id: str,
        charges: Mapping[Account, int],
        late: Sequence[Charge],
        generation: str | None,
        at: int | None,
    ) -> None:
        held = self._book.settle(call_id, charges)
        if held is None and (lost_at := self._lost_at(generation, at)) is not None:
            late = [*late, *lost(charges, lost_at)]
        if late:
            self._book.charge_late(call_id, late, held, self._clock())

    # -- from memory to file and back --------------------------------------------------------------------------------

    def write(self, cursor: sqlite3.Cursor) -> None:
        book = self._book
        cursor.executemany(
            "INSERT INTO accounts VALUES (?, ?, ?, ?, ?)",
            (
                (str(account), _kept(sums.spent), _kept(sums.reserved), sums.asked, account.until)
                for account, sums in book.accounts.items()
            ),
        )
        cursor.executemany(
            "INSERT INTO held VALUES (?, ?, ?, ?, ?)",
            (
                (call_id, held.owner, held.until, call_id in book.lapsed, _text(held.amounts))
                for call_id, held in book.all_held()
            ),
        )
        cursor.executemany("INSERT INTO late VALUES (?, ?)", book.late.items())

    def read(self, cursor: sqlite3.Cursor) -> None:
        book = self._book
        for name, spent, reserved, asked in cursor.execute("SELECT name, spent, reserved, asked FROM accounts"):
            book.accounts[account_named(name)] = Sums(int(spent), asked, int(reserved))
        rows = cursor.execute("SELECT call_id, owner, until, lapsed, amounts FROM held ORDER BY until")
        for call_id, owner, until, lapsed, amounts in rows:
            held = {account_named(name): amount for name, amount in _amounts(amounts).items()}
            (book.lapsed if lapsed else book.held)[call_id] = Held(owner, until, held)
        book.late.update(cursor.execute("SELECT call_id, until FROM late ORDER BY until").fetchall())

    def clear(self) -> None:
        self._book.clear()

    # -- transactions ----------------------------------------------------------------------------------------------

    def _reserve(
        self, cursor: sqlite3.Cursor, call_id: str, holds: Sequence[Hold], told: Mapping[Account, Opened]
    ) -> Refusal | list[Account] | None:
        """The accounts that are not open yet, if there are any."""
        now = self._clock()
        self._tidy(cursor, now)
        sums, missing = _read(cursor, [hold.account for hold in holds], told)
        if missing:
            return missing
        row = cursor.execute("SELECT amounts, lapsed FROM held WHERE call_id = ?", (call_id,)).fetchone()
        amounts = {} if row is None else _amounts(row[0])
        totals: dict[str, int] = {}
        for hold, amount in wanted(holds):
            name = str(hold.account)
            spent, reserved = sums[hold.account]
            totals[name] = amounts.get(name, 0) + amount
            if spent + reserved + amount > hold.limit or totals[name] > MOST:
                return Refusal(hold, Standing(hold.account, spent, reserved))
        for account, (_, reserved) in sums.items():
            name = str(account)
            added = totals[name] - amounts.get(name, 0)
            cursor.execute("UPDATE accounts SET reserved = ? WHERE name = ?", (_kept(reserved + added), name))
        cursor.execute(
            "INSERT INTO held VALUES (?, ?, ?, 0, ?) ON CONFLICT (call_id) "
            "DO UPDATE SET owner = excluded.owner, until = excluded.until, lapsed = 0, amounts = excluded.amounts",
            (call_id, self._owner, now + self._expiry, _text(amounts | totals)),
        )
        return None

    def _settle(
        self,
        cursor: sqlite3.Cursor,
        call_id: str,
        charges: Mapping[Account, int],
        late: Sequence[Charge],
        generation: str | None,
        at: int | None,
    ) -> None:
        now = self._clock()
        self._tidy(cursor, now)
        rows = cursor.execute("DELETE FROM held WHERE call_id = ? RETURNING amounts", (call_id,)).fetchall()
        released: dict[str, int] = {}
        if rows:
            released = _amounts(rows[0][0])
            charged = {str(account): amount for account, amount in charges.items()}
            for name in released | charged:
                _change(cursor, name, charged.get(name, 0), released.get(name, 0))
        elif (lost_at := self._lost_at(generation, at)) is not None:
            late = [*late, *lost(charges, lost_at)]
        if not late:
            return
        noted = cursor.execute("INSERT INTO late VALUES (?, ?) ON CONFLICT DO NOTHING", (call_id, now + KEPT))
        if noted.rowcount:
            for charge in late:
                name = str(charge.account)
                _change(cursor, name, charge.amount, 0, None if name in released else charge.at)

    def _standings(
        self, cursor: sqlite3.Cursor, accounts: Sequence[Account], told: Mapping[Account, Opened]
    ) -> tuple[list[Standing], list[Account]]:
        self._tidy(cursor, self._clock())
        sums, missing = _read(cursor, accounts, told)
        return [] if missing else [Standing(account, *sums[account]) for account in accounts], missing

    def _tidy(self, cursor: sqlite3.Cursor, now: float) -> None:
        if 0.0 <= now - self._looked_at < _LOOK:
            return
        self._looked_at = now
        lapsed = cursor.execute("SELECT call_id, amounts FROM held WHERE until <= ? AND NOT lapsed", (now,)).fetchall()
        for call_id, amounts in lapsed:
            released = _amounts(amounts)
            for name, amount in released.items():
                _change(cursor, name, 0, amount)
            nothing = _text(dict.fromkeys(released, 0))
            cursor.execute("UPDATE held SET lapsed = 1, amounts = ? WHERE call_id = ?", (nothing, call_id))
        if not 0.0 <= now - self._swept_at < _SWEEP:
            self._swept_at = now
            cursor.execute("DELETE FROM held WHERE until <= ?", (now - KEPT,))
            cursor.execute("DELETE FROM late WHERE until <= ?", (now,))
            cursor.execute("DELETE FROM accounts WHERE ends < ? AND reserved = 0", (int((now - KEPT) * 1000),))


def _read(
    cursor: sqlite3.Cursor, accounts: Sequence[Account], told: Mapping[Account, Opened]
) -> tuple[dict[Account, tuple[int, int]], list[Account]]:
    """What was spent and is reserved, of each account; and those that are not open and the ledger has not `told` of."""
    sums: dict[Account, tuple[int, int]] = {}
    missing = []
    for account in accounts:
        name = str(account)
        row = cursor.execute("SELECT spent, reserved FROM accounts WHERE name = ?", (name,)).fetchone()
        if row is not None:
            sums[account] = (int(row[0]), int(row[1]))
        elif (opened := told.get(account)) is not None:
            cursor.execute(
                "INSERT INTO accounts VALUES (?, ?, 0, ?, ?)",
                (name, _kept(opened.spent), opened.asked, account.until),
            )
            sums[account] = (opened.spent, 0)
        elif account not in missing:
            missing.append(account)
    return sums, missing


def _change(cursor: sqlite3.Cursor, name: str, charged: int, released: int, at: int | None = None) -> None:
    """Nothing is done to an account that is not open, or was opened after `at`: the ledger told at its opening."""
    row = cursor.execute("SELECT spent, reserved, asked FROM accounts WHERE name = ?", (name,)).fetchone()
    if row is not None and (at is None or row[2] < at):
        # below zero it would only be if the account had been removed meanwhile
        sums = (_kept(int(row[0]) + charged), _kept(max(0, int(row[1]) - released)))
        cursor.execute("UPDATE accounts SET spent = ?, reserved = ? WHERE name = ?", (*sums, name))


def _held_by(cursor: sqlite3.Cursor, owner: str) -> list[tuple[str, tuple[Account, ...]]]:
    rows = cursor.execute("SELECT call_id, amounts FROM held WHERE owner = ?", (owner,)).fetchall()
    return [(call_id, tuple(map(account_named, _amounts(amounts)))) for call_id, amounts in rows]


def _text(amounts: Mapping[Any, int]) -> str:
    return msgspec.json.encode({str(account): amount for account, amount in amounts.items()}).decode()


def _kept(amount: int) -> int | str:
    return amount if amount < 2**63 else str(amount)
