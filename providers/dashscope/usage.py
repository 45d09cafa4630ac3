"""DashScope's token counts as disjoint classes. Pure.

Its `input_tokens` include what was read from a cache and what was written to one, its `output_tokens` include the
reasoning. Every frame of a stream repeats the counts so far: the last counts, they are never added up. Only where
`n > 1` does each frame count the output of the one choice it carries; there the choices' last counts are added
(as Alibaba's SDK does, `dashscope/utils/message_utils.py`).
"""

from typing import Any, Final

from router.events import Extra, Side, Usage

_MOST: Final = 10**9
"""More tokens than any call has: a count above is not believed, and taken for one that was not told."""

_INPUT: Final = ("input_tokens", "prompt_tokens")
_OUTPUT: Final = ("output_tokens", "completion_tokens")

_OUTPUT_DETAILS: Final = ("output_tokens_details", "completion_tokens_details")
_INPUT_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details")


class Counts:
    """The counts of one answer, as its frames report them."""

    def __init__(self) -> None:
        self._whole: dict[str, Any] | None = None
        self._by_choice: dict[int, dict[str, Any]] = {}

    def see(self, usage: dict[str, Any], choices: list[int]) -> None:
        """The counts of a frame that carries these choices."""
        if len(choices) == 1:
            self._whole = None
            self._by_choice[choices[0]] = usage
        elif choices or len(self._by_choice) != 1:
            self._whole = usage
        else:
            # counts that come after the only choice's last frame
            self._by_choice = dict.fromkeys(self._by_choice, usage)

    def total(self) -> dict[str, Any] | None:
        """The vendor's usage object for the whole answer; None when there was none that tells a count."""
        usage = self._whole
        if usage is None:
            counts = [self._by_choice[index] for index in sorted(self._by_choice)]
            usage = _added(counts) if len(counts) > 1 else counts[0] if counts else {}
        told = any(_number(usage.get(name)) is not None for name in (*_INPUT, *_OUTPUT, "total_tokens"))
        return usage if told else None


def read_usage(usage: dict[str, Any]) -> Usage:
    """The classes of a usage object. What does not add up is cut to fit, and flagged, and so is a side that is not
    told: its classes are zero."""
    flags: list[str] = []
    told_in, told_out = _told(usage, *_INPUT, flags=flags), _told(usage, *_OUTPUT, flags=flags)
    total = _told(usage, "total_tokens", flags=flags)
    sides: tuple[tuple[Side, int | None, int | None], ...]
    sides = (("prompt", told_in, told_out), ("completion", told_out, told_in))
    untold = tuple(side for side, own, other in sides if own is None and (other is None or not total))
    flags += [f"the tokens of the {side} are not told" for side in untold]
    total_in = max((total or 0) - (told_out or 0), 0) if told_in is None else told_in
    total_out = max((total or 0) - total_in, 0) if told_out is None else told_out
    inputs = [_part(usage, name) for name in _INPUT_DETAILS]
    outputs = [_part(usage, name) for name in _OUTPUT_DETAILS]

    room = total_in
    read, room = _taken("cached_tokens", _first([*inputs, usage], "cached_tokens", flags=flags), room, flags)
    hour = _first([_part(d, "cache_creation") for d in [*inputs, usage]], "ephemeral_1h_input_tokens", flags=flags)
    hour, room = _taken("ephemeral_1h_input_tokens", hour, room, flags)
    written, room = _taken("cache_creation_input_tokens", _created([*inputs, usage], hour, flags), room, flags)
    heard = _first([*inputs, usage], "audio_tokens", flags=flags)
    if heard <= total_in:
        # what was heard may have been read from the cache: it is counted there
        heard = min(heard, room)
    heard, room = _taken("audio_tokens", heard, room, flags)

    left = total_out
    thought, left = _taken("reasoning_tokens", _first(outputs, "reasoning_tokens", flags=flags), left, flags)
    spoken, left = _taken("audio_tokens", _first(outputs, "audio_tokens", flags=flags), left, flags)

    if total and total != total_in + total_out:
        flags.append(f"total_tokens is {total}, not {total_in} + {total_out}")
    return Usage(
        input=room,
        cache_read=read,
        cache_write=written,
        cache_write_1h=hour,
        input_audio=heard,
        output=left,
        reasoning=thought,
        output_audio=spoken,
        flag="; ".join(dict.fromkeys(flags)) or None,
        untold=untold,
        extra=Extra("dashscope", answer={"usage": usage}),
    )


def _created(places: list[dict[str, Any]], hour: int, flags: list[str]) -> int:
    """Tokens written to the five-minute cache: broken down by lifetime, or else the whole creation."""
    lifetimes = [_part(place, "cache_creation") for place in places]
    if any("ephemeral_5m_input_tokens" in lifetime for lifetime in lifetimes):
        return _first(lifetimes, "ephemeral_5m_input_tokens", flags=flags)
    return max(_first(places, "cache_creation_input_tokens", flags=flags) - hour, 0)


def _taken(name: str, count: int, room: int, flags: list[str]) -> tuple[int, int]:
    """A part of what is left of a total, and what is left then."""
    if count > room:
        flags.append(f"{name} is {count}, more than the {room} tokens it is a part of")
        count = room
    return count, room - count


def _first(places: list[dict[str, Any]], name: str, *, flags: list[str]) -> int:
    """The first count of that name that is not zero."""
    return next((count for place in places if (count := _count(place, name, flags=flags))), 0)


def _count(place: dict[str, Any], *names: str, flags: list[str]) -> int:
    return _told(place, *names, flags=flags) or 0


def _told(place: dict[str, Any], *names: str, flags: list[str]) -> int | None:
    """The first of these that is a count; None where there is none."""
    for name in names:
        value = place.get(name)
        number = _number(value)
        if number is not None:
            if number < 0:
                flags.append(f"{name} is {number}")
            return max(number, 0)
        if isinstance(value, int | float) and not isinstance(value, bool):
            flags.append(f"{name} is not believed")
        elif value is not None:
            flags.append(f"{name} is no number")
    return None


def _part(place: dict[str, Any], name: str) -> dict[str, Any]:
    part = place.get(name)
    return part if isinstance(part, dict) else {}


def _number(value: Any) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST:
        return int(value)
    return None


def _added(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """The last choice's usage with the output of all; the input is the same for each and counts once."""
    total = dict(counts[-1])
    for name in _OUTPUT:
        if any(name in usage for usage in counts):
            numbers = [_number(usage.get(name)) for usage in counts]
            # what one choice does not tell, the sum does not tell either
            total[name] = None if None in numbers else sum(max(number or 0, 0) for number in numbers)
    for details in _OUTPUT_DETAILS:
        parts = [_part(usage, details) for usage in counts]
        names = dict.fromkeys(name for part in parts for name, value in part.items() if _number(value) is not None)
        if names:
            total[details] = {**parts[-1], **{n: sum(_count(part, n, flags=[]) for part in parts) for n in names}}
    if "total_tokens" in total:
        into, out = (_told(total, *names, flags=[]) for names in (_INPUT, _OUTPUT))
        total["total_tokens"] = None if into is None or out is None else into + out
    return total
