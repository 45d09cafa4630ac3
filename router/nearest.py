"""The nearest right word for a wrong one. Pure; knows neither the configuration nor HTTP."""

from collections.abc import Iterable
from difflib import SequenceMatcher

LONGEST = 128
"""Characters compared: the cost of one comparison grows with the product of both lengths."""


def nearest(word: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Up to `limit` of the `known` words that look like `word`, the nearest first."""
    asked = word.casefold()[:LONGEST]
    matcher = SequenceMatcher(a="", b=asked, autojunk=False)
    scored: list[tuple[float, str]] = []
    for candidate in dict.fromkeys(known):
        matcher.set_seq1(candidate.casefold()[:LONGEST])
        if matcher.real_quick_ratio() >= 0.6 and matcher.quick_ratio() >= 0.6:
            ratio = matcher.ratio()
            if ratio >= 0.6:
                scored.append((-ratio, candidate))
    return [candidate for _, candidate in sorted(scored)[:limit]]


def alternatives(words: Iterable[str]) -> str:
    """The words in backticks: `a`, `b` or `c`."""
    quoted = [f"`{word}`" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def did_you_mean(word: str, known: Iterable[str], limit: int = 1) -> str:
    """`: did you mean …?`, or an empty string when nothing looks like `word`."""
    near = nearest(word, known, limit)
    return f": did you mean {alternatives(near)}?" if near else ""
