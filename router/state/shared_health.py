"""What the processes that share state tell each other of health: openings and closings of breakers, keys that rest.

Each goes by what it knows itself, and no call ever asks anybody: a task tells what has changed at once, and asks about
each second what others have told. While the place where it is told is away, each process goes on alone.

Of each breaker and key the last word counts, in the order in which the words came in. A rest is told as so many seconds
from now, as processes' clocks differ, and forgotten when it is over.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from router.routing.health_book import HealthBook, Told

KEPT: Final = 300.0
"""Seconds for which it is known that a breaker was closed or a key is used again."""
MOST: Final = 1000
"""Breakers and keys that are spoken of, at most."""
ASK: Final = 1.0
"""Seconds between two questions what others have told."""
_PAUSE: Final = 0.05
"""Seconds between two exchanges at least: what changes at once is told at once."""
_decoder: Final = msgspec.json.Decoder(Told)


class HealthAway(Exception):
    """Others cannot be told or asked. The message says why."""


class HealthLink(Protocol):
    async def exchange(self, told: Sequence[Told]) -> list[Told]:
        """Tell the others; gives what they have told since the last time. Raises `HealthAway`."""
        ...


class SharedHealth:
    """Keeps a book up to date with those of other processes."""

    def __init__(self, book: HealthBook, link: HealthLink) -> None:
        self.trouble: str | None = None
        """Why others are neither told nor heard; None: they are."""
        self._book = book
        self._link = link

    async def run(self) -> None:
        """For ever."""
        changed = asyncio.Event()
        self._book.on_told = changed.set
        try:
            while True:
                await self.exchange()
                await asyncio.sleep(_PAUSE)
                try:
                    async with asyncio.timeout(ASK):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()
        finally:
            self._book.on_told = None

    async def exchange(self) -> None:
        """Once."""
        told = self._book.take_told()
        try:
            heard = await self._link.exchange(told)
        except HealthAway as error:
            self._book.tell_again(told)
            self.trouble = str(error)
        except asyncio.CancelledError:
            self._book.tell_again(told)
            raise
        else:
            self.trouble = None
            self._book.hear(heard)


def kept_for(told: Told) -> float:
    """Seconds after which nobody needs to know of it."""
    return told.seconds if told.change in ("open", "rests") else KEPT


def named(told: Told) -> str:
    """What it is about, as one text."""
    return msgspec.json.encode(told.subject).decode()


def written(told: Told) -> bytes:
    return msgspec.json.encode(told)


def read(text: bytes | str, left: float) -> Told | None:
    """What was written, `left` seconds before it is over; None for the words of another version."""
    try:
        told = _decoder.decode(text)
    except msgspec.DecodeError:
        return None
    return msgspec.structs.replace(told, seconds=left)
