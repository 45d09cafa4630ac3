"""Limits counted by the processes of one machine together."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from router.gates import GatesAway, Parallel, Passage, Rate
from router.state.bucket import first_refusal, passage, put, taken_now
from router.state.machine import Machine, MachineAway
from router.state.renewing import EXPIRY
from router.state.turnstile import Inside, Turnstile

T = TypeVar("T")

_LOOK: Final = 1.0
"""Seconds between two looks for calls that have expired."""
_SWEEP: Final = 60.0
"""Seconds between two sweeps of what is empty."""
_PUT: Final = (
    "INSERT INTO buckets VALUES (?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET taken = excluded.taken, at = excluded.at, empty_at = excluded.empty_at"
)
_names: Final = msgspec.json.Decoder(list[str]).decode


class MachineGates:
    """`clock` gives Unix seconds, the same in all processes; a call that neither leaves nor is renewed is taken to have
    left after `expiry` seconds."""

    def __init__(self, machine: Machine, clock: Callable[[], float] = time.time, expiry: float = EXPIRY) -> None:
        self._machine = machine
        self._clock = clock
        self._expiry = expiry
        self._turnstile = Turnstile(clock, expiry)
        """While this process is alone."""
        self._inside: set[str] = set()
        """The calls of this process that have entered and not left."""
        self._looked_at = 0.0
        self._swept_at = 0.0
        machine.parts.append(self)

    async def enter(self, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]) -> Passage:
        passage = await self._run(
            lambda: self._turnstile.enter(call_id, rates, parallels),
            lambda cursor: self._enter(cursor, call_id, rates, parallels),
        )
        if passage.refused_by is None:
            self._inside.add(call_id)
        return passage

    async def leave(self, call_id: str, corrections: Sequence[Rate] = ()) -> None:
        # first: what cannot leave now must not be renewed
        self._inside.discard(call_id)
        await self._run(
            lambda: self._turnstile.leave(call_id, corrections),
            lambda cursor: self._leave(cursor, call_id, corrections),
        )

    async def renew(self) -> None:
        if self._inside:
            await self._run(lambda: self._turnstile.renew(self._inside), self._renew)

    async def _run(self, alone: Callable[[], T], shared: Callable[[sqlite3.Cursor], T]) -> T:
        if self._machine.alone:
            return alone()
        try:
            return await self._machine.run(alone, shared)
        except MachineAway as error:
            raise GatesAway(str(error)) from error

    # -- from memory to file and back --------------------------------------------------------------------------------

    def write(self, cursor: sqlite3.Cursor) -> None:
        turnstile = self._turnstile
        cursor.executemany(_PUT, ((key, *bucket) for key, bucket in turnstile.buckets.items()))
        cursor.executemany("INSERT INTO places VALUES (?, ?)", turnstile.places.items())
        cursor.executemany(
            "INSERT INTO inside VALUES (?, ?, ?)",
            ((call_id, inside.until, _text(inside.places)) for call_id, inside in turnstile.inside.items()),
        )

    def read(self, cursor: sqlite3.Cursor) -> None:
        turnstile = self._turnstile
        for key, taken, at, empty_at in cursor.execute("SELECT key, taken, at, empty_at FROM buckets"):
            turnstile.buckets[key] = (taken, at, empty_at)
        turnstile.places.update(cursor.execute("SELECT key, taken FROM places WHERE taken > 0").fetchall())
        for call_id, until, places in cursor.execute("SELECT call_id, until, places FROM inside ORDER BY until"):
            turnstile.inside[call_id] = Inside(until, tuple(_names(places)))

    def clear(self) -> None:
        self._turnstile.clear()

    # -- in the file -------------------------------------------------------------------------------------------------

    def _enter(
        self, cursor: sqlite3.Cursor, call_id: str, rates: Sequence[Rate], parallels: Sequence[Parallel]
    ) -> Passage:
        now = self._clock()
        if not 0.0 <= now - self._looked_at < _LOOK:
            self._tidy(cursor, now)
        row = cursor.execute("SELECT places FROM inside WHERE call_id = ?", (call_id,)).fetchone()
        held = [] if row is None else _names(row[0])
        taken = [_taken(cursor, rate, now) for rate in rates]
        left = []
        for parallel in parallels:
            found = cursor.execute("SELECT taken FROM places WHERE key = ?", (parallel.key,)).fetchone()
            left.append(parallel.limit - (found[0] if found else 0))
        free = [1 if parallel.key in held else places for parallel, places in zip(parallels, left, strict=True)]
        refusal = first_refusal(rates, taken, parallels, free)
        if refusal[0] is None:
            for index, rate in enumerate(rates):
                bucket = put(taken[index], rate, now)
                cursor.execute(_PUT, (rate.key, *bucket))
                taken[index] = bucket[0]
            for index, parallel in enumerate(parallels):
                if parallel.key not in held:
                    cursor.execute(
                        "INSERT INTO places VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET taken = taken + 1",
                        (parallel.key,),
                    )
                    left[index] -= 1
                    held.append(parallel.key)
            cursor.execute(
                "INSERT INTO inside VALUES (?, ?, ?) "
                "ON CONFLICT (call_id) DO UPDATE SET until = excluded.until, places = excluded.places",
                (call_id, now + self._expiry, _text(held)),
            )
        return passage(refusal, rates, taken, left)

    def _leave(self, cursor: sqlite3.Cursor, call_id: str, corrections: Sequence[Rate]) -> None:
        rows = cursor.execute("DELETE FROM inside WHERE call_id = ? RETURNING places", (call_id,)).fetchall()
        if not rows:
            return
        _free(cursor, _names(rows[0][0]))
        now = self._clock()
        for rate in corrections:
            cursor.execute(_PUT, (rate.key, *put(_taken(cursor, rate, now), rate, now)))

    def _renew(self, cursor: sqlite3.Cursor) -> None:
        until = self._clock() + self._expiry
        cursor.executemany(
            "UPDATE inside SET until = ? WHERE call_id = ?", [(until, call_id) for call_id in self._inside]
        )

    def _tidy(self, cursor: sqlite3.Cursor, now: float) -> None:
        self._looked_at = now
        for (places,) in cursor.execute("DELETE FROM inside WHERE until <= ? RETURNING places", (now,)).fetchall():
            _free(cursor, _names(places))
        if not 0.0 <= now - self._swept_at < _SWEEP:
            self._swept_at = now
            cursor.execute("DELETE FROM buckets WHERE empty_at <= ?", (now,))
            cursor.execute("DELETE FROM places WHERE taken <= 0")


def _text(names: Sequence[str]) -> str:
    return msgspec.json.encode(names).decode()


def _taken(cursor: sqlite3.Cursor, rate: Rate, now: float) -> float:
    row = cursor.execute("SELECT taken, at FROM buckets WHERE key = ?", (rate.key,)).fetchone()
    return 0.0 if row is None else taken_now(row[0], row[1], rate, now)


def _free(cursor: sqlite3.Cursor, places: list[str]) -> None:
    for key in places:
        cursor.execute("UPDATE places SET taken = taken - 1 WHERE key = ?", (key,))
