"""Two values of one type, and every key in which they differ, as old → new. Pure."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from msgspec import Struct

from router.experiment import Moment
from router.provider import Target
from router.quantities import Duration, Share, Size, size, written
from router.route import Timeouts

Path: TypeAlias = tuple[str | int, ...]
_LONGEST: Final = 80


class Change(Struct, frozen=True):
    """One thing that would change. `path` is where it stands in the file: `models.chat.targets[0].weight`."""

    path: str
    words: str


def path_of(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def differing(path: Path, old: Any, new: Any, what: str = "") -> Iterator[Change]:
    """Each key that differs, as deep as the values are alike. `what` begins the words in place of the path."""
    if old == new and type(old) is type(new):
        return
    if isinstance(old, Struct) and type(old) is type(new) and not isinstance(old, Target):
        for field in old.__struct_fields__:
            before, after = getattr(old, field), getattr(new, field)
            if isinstance(old, Timeouts) and field != "min_rate":
                before, after = Duration(before), Duration(after)
            yield from differing((*path, field), before, after, what and f"{what}: {field}")
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            told = what and f"{what}: {key}"
            yield from differing((*path, str(key)), old.get(key), new.get(key), told)
    else:
        yield Change(path_of(path), f"{what or f'`{path_of(path)}`'}: {shown(old)} → {shown(new)}")


def shown(value: Any) -> str:
    """A value as it is written in the file, on one line."""
    match value:
        case None:
            return "not set"
        case bool():
            return "true" if value else "false"
        case Duration():
            return written(value)
        case Share():
            return f"{100 * value:g}%"
        case Size():
            return size(value)
        case Moment():
            return datetime.fromtimestamp(value / 1000, UTC).isoformat().replace("+00:00", "Z")
        case float():
            return f"{value:g}"
        case Target():
            return str(value)
        case Struct():
            fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
            return _short("{" + ", ".join(f"{name}: {shown(each)}" for name, each in fields if each is not None) + "}")
        case Mapping():
            return _short("{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}")
        case tuple() | list():
            return _short("[" + ", ".join(map(shown, value)) + "]") if value else "none"
    return _short(" ".join(str(value).split())) or "empty"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
