"""JSON as vendors send it, read tolerantly. Pure; knows no protocol."""

import json
from typing import Any, Final

import msgspec

BROKEN: Final = object()
"""In place of a value: the text is not JSON."""

MAX_DEPTH: Final = 128
"""Levels of objects and lists. What vendors send has about ten; whoever walks a value may rely on this bound."""

_decode: Final = msgspec.json.Decoder().decode


def decoded(data: bytes) -> Any:
    """The JSON value of a payload, or `BROKEN`. Bad UTF-8 and half surrogate pairs become U+FFFD, as in browsers."""
    value = _value(data)
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _is_deep(value):
        return BROKEN
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _value(data: bytes) -> Any:
    try:
        return _decode(data)
    except RecursionError:
        return BROKEN
    except (msgspec.DecodeError, UnicodeDecodeError):
        if b"\\u" not in data and data.isascii():
            return BROKEN
    try:
        return _repaired(json.loads(data.decode("utf-8", "replace"), parse_float=_finite, parse_constant=_no_number))
    except (ValueError, RecursionError):
        return BROKEN


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_repaired(key): _repaired(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_repaired(item) for item in value]
    return value


def _finite(text: str) -> float:
    number = float(text)
    return _no_number(text) if number in (float("inf"), float("-inf")) else number


def _no_number(text: str) -> float:
    """Python's own words for what JSON has no number for; nothing else of ours reads them."""
    raise ValueError(f"{text} is no JSON number")
