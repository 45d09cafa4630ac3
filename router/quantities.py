"""Amounts with a unit, as people write them in a file: durations and sizes. Pure; knows no file format.

Any class with a classmethod `parse(value)`, which raises `ValueError` with a public message, can annotate a field
of a Struct that the configuration is read into; these are the common ones.
"""

import re
from typing import Any, Final, Protocol, Self, TypeGuard, runtime_checkable

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)[ ]?(ms|s|m|h)")
_SECONDS: Final[dict[str, float]] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_LONGEST: Final = 720 * 3600
"""Thirty days, in seconds."""
_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%")
_SIZE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)[ ]?(B|KB|MB|GB|KiB|MiB|GiB)?")
_BYTES: Final[dict[str, int]] = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}


@runtime_checkable
class Parsed(Protocol):
    """A type that reads itself from what stands in the file: text, a number, true or false."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Raises `ValueError`; its message goes on after the key's name: "must be …"."""
        ...


class Duration(float):
    """A time in seconds, written with its unit: `500ms`, `15s`, `2m`, `1h`."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"must be a duration with a unit: write {value}s, or {value}ms, …")
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError("must be a duration of zero or more, such as 500ms, 15s, 2m or 1h")
        seconds = round(float(match[1]) * _SECONDS[match[2]], 6)
        if seconds > _LONGEST:
            raise ValueError("must be at most 720h")
        return cls(seconds)


class Timeout(Duration):
    """A duration above zero."""

    @classmethod
    def parse(cls, value: object) -> Self:
        seconds = super().parse(value)
        if seconds <= 0:
            raise ValueError("must be more than 0s: an answer needs some time")
        return seconds


class Share(float):
    """A part of a whole, from 0 to 1, written as a percentage: `20%`."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"must be a percentage: write {value}%")
        match = _SHARE.fullmatch(value) if isinstance(value, str) else None
        if match is None or float(match[1]) > 100:
            raise ValueError("must be a percentage from 0% to 100%, such as 20%")
        return cls(float(match[1]) / 100)


class Size(int):
    """A number of bytes: `32MiB`, `10MB`, `512KB`, or a bare number of bytes."""

    @classmethod
    def parse(cls, value: object) -> Self:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError("must be a size of zero or more, such as 32MiB, 10MB or 512KB, or a whole number of bytes")
        return cls(float(match[1]) * _BYTES[match[2] or "B"])


def parses(type_: Any) -> TypeGuard[type[Parsed]]:
    return isinstance(type_, type) and isinstance(type_, Parsed)


def decode(type_: type, value: Any) -> Any:
    """The `dec_hook` for msgspec that reads every `Parsed` type."""
    if parses(type_):
        return type_.parse(value)
    raise TypeError(f"{type_.__name__} has no `parse`")


def written(seconds: float) -> str:
    """A duration as it is written in a file: `15s`, `500ms`, `2m`, `1h`."""
    for unit in ("h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:g}ms"


def size(count: int) -> str:
    """A number of bytes as it is written in a file: `32MiB`, `1000B`."""
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % _BYTES[unit] == 0:
            return f"{count // _BYTES[unit]}{unit}"
    return f"{count}B"
