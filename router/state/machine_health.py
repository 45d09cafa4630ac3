"""What the processes of one machine tell each other of health. One that is alone tells nobody."""

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from router.routing.health_book import HealthBook, Told
from router.state.machine import Machine, MachineAway
from router.state.shared_health import MOST, HealthAway, kept_for, named, read, written

_PUT: Final = (
    "INSERT INTO health VALUES (?, ?, ?, ?, ?) ON CONFLICT (subject) "
    "DO UPDATE SET told_at = excluded.told_at, owner = excluded.owner, until = excluded.until, told = excluded.told"
)
_NEWS: Final = "SELECT until, told FROM health WHERE told_at > ? AND owner <> ? AND until > ? ORDER BY told_at"


class MachineHealth:
    """`owner` is this process; `clock` gives Unix seconds, the same in all processes."""

    def __init__(self, machine: Machine, book: HealthBook, owner: str, clock: Callable[[], float] = time.time) -> None:
        self._machine = machine
        self._book = book
        self._owner = owner
        self._clock = clock
        self._generation = ""
        self._heard_at = 0
        """Of the last word that was heard: microseconds, that grow with each word."""
        machine.parts.append(self)

    async def exchange(self, told: Sequence[Told]) -> list[Told]:
        if self._machine.alone:
            return []
        try:
            heard, self._heard_at, self._generation = await self._machine.run(
                lambda: ([], 0, ""), lambda cursor: self._exchange(cursor, told)
            )
        except MachineAway as error:
            raise HealthAway(str(error)) from error
        return heard

    def _exchange(self, cursor: sqlite3.Cursor, told: Sequence[Told]) -> tuple[list[Told], int, str]:
        now, since, generation = self._clock(), self._heard_at, self._machine.generation
        if generation != self._generation:
            since, told = 0, [*self._book.all_told(), *told]
        if told:
            self._put(cursor, told, now)
        last = _last(cursor)
        rows = cursor.execute(_NEWS, (since if since <= last else 0, self._owner, now)).fetchall()
        heard = (read(text, until - now) for until, text in rows)
        return [each for each in heard if each is not None], last, generation

    # -- from memory to file and back --------------------------------------------------------------------------------

    def write(self, cursor: sqlite3.Cursor) -> None:
        self._put(cursor, self._book.all_told(), self._clock())

    def read(self, cursor: sqlite3.Cursor) -> None:
        # it has heard it all
        pass

    def clear(self) -> None:
        self._generation, self._heard_at = "", 0

    # -- in the file -------------------------------------------------------------------------------------------------

    def _put(self, cursor: sqlite3.Cursor, told: Iterable[Told], now: float) -> None:
        cursor.execute("DELETE FROM health WHERE until <= ?", (now,))
        # time, so that words which nobody needs any more can be removed and numbers are not given twice
        at = max(round(now * 1e6), _last(cursor))
        rows = [
            (named(each), at + n, self._owner, now + kept_for(each), written(each)) for n, each in enumerate(told, 1)
        ]
        cursor.executemany(_PUT, rows)
        cursor.execute(
            "DELETE FROM health WHERE told_at <= (SELECT told_at FROM health ORDER BY told_at DESC LIMIT 1 OFFSET ?)",
            (MOST,),
        )


def _last(cursor: sqlite3.Cursor) -> int:
    last: int | None = cursor.execute("SELECT max(told_at) FROM health").fetchone()[0]
    return last or 0
