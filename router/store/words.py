"""What a text is found by: its words, and of scripts without spaces between words every character and pair of them.

Both databases are given the words as they are made here and take nothing apart by themselves, so that both find the
same. A search for `東京大学` looks by the index for the pairs `東京`, `京大` and `大学`; a text that has them apart
from each other is passed over when it is read. Case, and the width and composition of characters (NFKC), do not matter;
accents do. Pure.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct

LONGEST_TEXT: Final = 1_000_000
"""Characters of a text that it is found by."""
_MOST: Final = 400_000
"""Bytes of different words that a text is found by: Postgres takes a MiB of them."""
_LONGEST_WORD: Final = 100
"""Characters of a word that count; those of Postgres have 2 KiB at most."""
_MOST_WANTED: Final = 32
"""Different words of one search."""
_BEFORE: Final = 60
_AROUND: Final = 200
"""Characters of a snippet before the first place, and of all of it."""
LEFT: Final = "\u2039"
RIGHT: Final = "\u203a"

_UNSPACED: Final = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u0edc-\u0edf\u1000-\u103f\u1050-\u109f\u1780-\u17d3"  # Thai to Khmer
    "\u1100-\u11ff\u3005-\u3007\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u3131-\u318e"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb\uf900-\ufaff"
    "\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_MARKS: Final = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u0900-\u0963\u0966-\u0dff\u0f18-\u0fbc\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
)
"""What belongs to a word and is no letter or digit."""
_PIECE: Final = re.compile(f"([{_UNSPACED}]+)|(?:(?![{_UNSPACED}])(?:[^\\W_]|[{_MARKS}]))+")


class Wanted(Struct, frozen=True):
    """What is looked for."""

    words: tuple[str, ...]
    """All of these must be in a text."""
    runs: tuple[str, ...]
    """And these as a whole, of scripts without spaces."""


def searchable(text: str) -> tuple[str, ...]:
    """The different words of a text, in the order they come in. None has a space or a quote in it."""
    found: dict[str, None] = {}
    room = _MOST
    for word in _words(text[:LONGEST_TEXT]):
        if word not in found:
            room -= len(word.encode()) + 1
            if room < 0:
                break
            found[word] = None
    return tuple(found)


def wanted(said: str) -> Wanted:
    """What a person wants who said that: every word of it, in whatever order. Nothing in it is an operator."""
    words: dict[str, None] = {}
    runs: dict[str, None] = {}
    for piece, unspaced in _pieces(_plain(said[:10_000])):
        if not unspaced:
            words[piece[:_LONGEST_WORD]] = None
            continue
        runs[piece] = None
        # a pair is found by itself, its characters need not be looked for
        for at in range(max(1, len(piece) - 1)):
            words[piece[at : at + 2]] = None
    return Wanted(tuple(words)[:_MOST_WANTED], tuple(runs)[:_MOST_WANTED])


def has(text: str, looked_for: Wanted) -> bool:
    """Whether a text that has all words has the runs as well."""
    long = [run for run in looked_for.runs if len(run) > 2]
    if not long:
        return True
    there = [piece for piece, unspaced in _pieces(_plain(text[:LONGEST_TEXT])) if unspaced]
    return all(any(run in piece for piece in there) for run in long)


def snippet(text: str, looked_for: Wanted) -> str:
    """The text around the first place that was looked for, in one line."""
    places = _places(text, looked_for)
    first = next(places, None)
    begin = 0 if first is None else max(0, first[0] - _BEFORE)
    until = begin + _AROUND
    shown, at = [], begin
    while first is not None and first[0] < until:
        start, end = first[0], min(first[1], first[0] + _AROUND)
        shown.append(f"{_told(text[at:start])}{LEFT}{_told(text[start:end])}{RIGHT}")
        at = end
        first = next(places, None)
    shown.append(_told(text[at:until]))
    end = max(at, until)
    line = " ".join("".join(shown).split())
    return f"{'…' if begin else ''}{line}{'…' if end < len(text) else ''}"


def _words(text: str) -> Iterator[str]:
    for piece, unspaced in _pieces(_plain(text)):
        if not unspaced:
            yield piece[:_LONGEST_WORD]
            continue
        for at, character in enumerate(piece):
            yield character
            if at:
                yield piece[at - 1 : at + 1]


def _pieces(plain: str) -> Iterator[tuple[str, bool]]:
    """Words, and runs of characters that have no spaces between words (True)."""
    for found in _PIECE.finditer(plain):
        yield found[0], found[1] is not None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _places(text: str, looked_for: Wanted) -> Iterator[tuple[int, int]]:
    """Where in the text as it is written something is that was looked for."""
    words: Sequence[str] = looked_for.words
    for found in _PIECE.finditer(text):
        plain = _plain(found[0])
        if plain[:_LONGEST_WORD] in words and plain not in looked_for.runs and found[1] is None:
            yield found.span()
        elif found[1] is not None:
            yield from _runs(found.start(), found[0], plain, looked_for.runs)


def _runs(start: int, written: str, plain: str, runs: Sequence[str]) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(plain):
        run = max((run for run in runs if plain.startswith(run, at)), key=len, default="")
        if run and len(plain) != len(written):
            # half-width characters that are joined: it cannot be told which they are
            yield start, start + len(written)
            return
        if run:
            yield start + at, start + at + len(run)
        at += len(run) or 1


def _told(text: str) -> str:
    return text.translate({ord(LEFT): "<", ord(RIGHT): ">"})
