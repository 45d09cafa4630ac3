"""Reads nodes of a document as msgspec Structs and finds every problem on the way, not only the first.

`msgspec.convert` stops at the first error and does not say which key of a dictionary it was in, so Structs,
dictionaries and lists are walked here; what is left, the scalars and rare types, is msgspec's. A Struct's
`__post_init__` may raise `ValueError` with a public message. Pure; must not know what a configuration contains.
"""

import re
import types
import typing
from collections.abc import Iterable
from collections.abc import Mapping as AbstractMapping
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from router.document import Entry, Mapping, Node, Place, Problem, Scalar, Sequence, kind
from router.nearest import did_you_mean
from router.quantities import Parsed, decode, parses

T = TypeVar("T")
Path: TypeAlias = tuple[str | int, ...]
"""Keys and list indexes from the document's root to a node."""


class Unreadable(Exception):
    """The node cannot be read; why is among the reader's problems."""


class Reader:
    """`lenient` says what an unset variable does: leave its key out as if it were not written, or be a problem.

    A key that must be there cannot be left out; as text it then keeps the reference itself, `${NAME}`.
    """

    def __init__(self, file: str, *, lenient: bool = False) -> None:
        self.file = file
        self.lenient = lenient
        # ordered, and each once: what an alias names is read for every place it is used at
        self._problems: dict[Problem, None] = {}

    @property
    def problems(self) -> list[Problem]:
        return list(self._problems)

    def report(self, place: Place, message: str) -> None:
        self._problems[Problem(self.file, *place, message)] = None

    def wrong(self, place: Place, message: str) -> Unreadable:
        self.report(place, message)
        return Unreadable()

    def read(self, node: Node, type_: type[T], path: Path = ()) -> T:
        """The node as a `type_`. Raises `Unreadable` after noting every problem in it."""
        before = len(self._problems)
        value = self._read(node, type_, path)
        if len(self._problems) > before:
            raise Unreadable
        return typing.cast(T, value)

    def keys(self, node: Mapping, known: Iterable[str], path: Path) -> None:
        """Note the keys that are not `known`."""
        words = sorted(known)
        for key, entry in node.entries.items():
            if key not in words:
                place = f" in {written(path)}" if path else ""
                listed = ", ".join(words) or "none"
                self.report(
                    entry.place, f"unknown key `{short(key)}`{place}{did_you_mean(key, words)} (known: {listed})"
                )

    def mapping(self, node: Node, path: Path) -> Mapping:
        if isinstance(node, Mapping):
            return node
        raise self._mismatch(node, "a mapping of keys to values", path)

    # -- by type ---------------------------------------------------------------------------------------------------

    def _read(self, node: Node, type_: Any, path: Path) -> Any:
        if get_origin(type_) is Annotated:
            self._read(node, get_args(type_)[0], path)
            return self._convert(node, type_, path)
        if isinstance(node, Scalar) and node.unset and not (self.lenient and type_ is str):
            name = node.unset[0]
            raise self.wrong(node.place, f"`${{{name}}}` is not set: set {name}, or write `${{{name}:-default}}`")
        if get_origin(type_) in (Union, types.UnionType):
            return self._union(node, type_, path)
        if isinstance(node, Scalar) and node.empty and type_ is not Any:
            raise self.wrong(node.place, f"{written(path)} has no value: write one, or remove the key")
        if (
            isinstance(type_, type)
            and issubclass(type_, Struct)
            and type_.__struct_config__.tag is None
            and not parses(type_)
        ):
            return self._struct(self.mapping(node, path), type_, path)
        origin, args = get_origin(type_) or type_, get_args(type_)
        if origin in (dict, AbstractMapping) and args and _is_word(args[0]):
            return self._dict(self.mapping(node, path), args[0], args[1], path)
        if origin in (list, set, frozenset) and args:
            return origin(self._items(node, args[0], path))
        if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
            return tuple(self._items(node, args[0], path))
        return self._convert(node, type_, path)

    def _union(self, node: Node, type_: Any, path: Path) -> Any:
        arms = get_args(type_)
        if isinstance(node, Scalar) and node.empty:
            raise self.wrong(node.place, f"{written(path)} has no value: write one, or remove the key")
        if isinstance(node, Scalar) and node.value is None and not node.unset and type(None) in arms:
            return None
        some = [arm for arm in arms if arm is not type(None)]
        fitting = [arm for arm in some if _takes(arm, node)]
        if len(fitting) == 1 or len(some) == 1:
            return self._read(node, (fitting or some)[0], path)
        if isinstance(node, Scalar) and all(arm is bool or get_origin(arm) is Literal for arm in fitting):
            words = [word for arm in fitting for word in ((True, False) if arm is bool else get_args(arm))]
            return self._word(node, words, path)
        return self._convert(node, type_, path)

    def _struct(self, node: Mapping, type_: type[Struct], path: Path) -> Struct:
        fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
        self.keys(node, fields, path)
        values: dict[str, Any] = {}
        complete = True
        for key, field in fields.items():
            entry = node.entries.get(key)
            if entry is None:
                if field.required:
                    owner = written(path) if path else "the file"
                    self.report(node.place, f"{owner} needs the key `{key}`")
                    complete = False
                continue
            if self.lenient and _is_unset(entry) and not field.required:
                continue
            try:
                values[field.name] = self._read(entry.node, field.type, (*path, key))
            except Unreadable:
                complete = False
        if not complete:
            raise Unreadable
        try:
            return type_(**values)
        except ValueError as error:
            raise self.wrong(node.place, f"{written(path)}: {error}") from None

    def _dict(self, node: Mapping, key_type: Any, value_type: Any, path: Path) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        complete = True
        for key, entry in node.entries.items():
            if self.lenient and _is_unset(entry):
                continue
            try:
                word: Any = key
                if key_type is not str:
                    word = self._parsed(key_type, key, entry.place, f"the key `{short(key)}`")
                values[word] = self._read(entry.node, value_type, (*path, key))
            except Unreadable:
                complete = False
        if not complete:
            raise Unreadable
        return values

    def _items(self, node: Node, type_: Any, path: Path) -> list[Any]:
        if not isinstance(node, Sequence):
            raise self._mismatch(node, "a list", path)
        items: list[Any] = []
        complete = True
        for index, item in enumerate(node.items):
            if self.lenient and isinstance(item, Scalar) and item.unset:
                continue
            try:
                items.append(self._read(item, type_, (*path, index)))
            except Unreadable:
                complete = False
        if not complete:
            raise Unreadable
        return items

    # -- what has no parts -----------------------------------------------------------------------------------------

    def _convert(self, node: Node, type_: Any, path: Path) -> Any:
        """What msgspec reads, and what is read by its own `parse`."""
        if parses(type_):
            # a variable's value is text, whatever it looks like
            value = node.text if isinstance(node, Scalar) and node.names else self.plain(node, path)
            return self._parsed(type_, value, node.place, written(path))
        if isinstance(node, Scalar):
            if get_origin(type_) is Literal:
                return self._word(node, get_args(type_), path)
            if type_ is str and node.names:
                # a key made of digits alone is text all the same
                return node.text
        try:
            return msgspec.convert(self.plain(node, path), type_, dec_hook=decode)
        except msgspec.ValidationError as error:
            message, _, inside = str(error).partition(" - at `$")
            at, below = _descend(node, inside.rstrip("`"))
            raise self.wrong(at.place, _explain(message, at, (*path, *below))) from None

    def _word(self, node: Scalar, words: Iterable[Any], path: Path) -> Any:
        """One of a closed set of `words`. Compared with their types: 1 is not true."""
        for word in words:
            if node.value == word and type(node.value) is type(word):
                return word
        shown = [str(word).lower() if isinstance(word, bool) else str(word) for word in words]
        near = did_you_mean(node.text, shown) if not node.names else ""
        raise self.wrong(node.place, f"{written(path)} must be one of {', '.join(shown)}{near}")

    def _parsed(self, type_: type[Parsed], value: object, place: Place, owner: str) -> Any:
        try:
            return type_.parse(value)
        except ValueError as error:
            raise self.wrong(place, f"{owner} {error}") from None

    def plain(self, node: Node, path: Path = ()) -> Any:
        """The node as dictionaries, lists and scalars, for settings whose shape is not known yet."""
        if isinstance(node, Mapping):
            return {
                key: self.plain(entry.node, (*path, key))
                for key, entry in node.entries.items()
                if not (self.lenient and _is_unset(entry))
            }
        if isinstance(node, Sequence):
            return [
                self.plain(item, (*path, index))
                for index, item in enumerate(node.items)
                if not (self.lenient and isinstance(item, Scalar) and item.unset)
            ]
        if node.unset:
            self._read(node, Any, path)
        return node.value

    def _mismatch(self, node: Node, expected: str, path: Path) -> Unreadable:
        if isinstance(node, Scalar) and node.empty:
            return self.wrong(node.place, f"{written(path)} has no value: write one, or remove the key")
        owner = written(path) if path else "the file"
        return self.wrong(node.place, f"{owner} must be {expected}, not {kind(node)}")


def find(root: Node | None, path: Path) -> tuple[Node | None, Place | None]:
    """The node at `path` and its place; None and the place of the nearest node above it when there is none."""
    node, place = root, root.place if root is not None else None
    for step in path:
        if isinstance(node, Mapping) and isinstance(step, str) and step in node.entries:
            node = node.entries[step].node
        elif isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        else:
            return None, place
        place = node.place
    return node, place


def written(path: Path) -> str:
    """The path as people write it, in backticks: `models.chat.targets[0]`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{short(step)}" for step in path)
    return f"`{text.removeprefix('.')}`" if path else "the file"


def short(text: str) -> str:
    """A word of the file for a message: one line, at most 80 characters."""
    word = " ".join(text.split())
    return word if len(word) <= 80 else f"{word[:79]}…"


def _is_unset(entry: Entry) -> bool:
    return isinstance(entry.node, Scalar) and bool(entry.node.unset)


def _is_word(type_: Any) -> bool:
    """Whether a key of this type can be read: text, or a kind of text with a `parse` of its own."""
    return type_ is str or (parses(type_) and issubclass(type_, str))


def _takes(type_: Any, node: Node) -> bool:
    origin = get_origin(type_) or type_
    if isinstance(node, Mapping):
        return origin in (dict, AbstractMapping) or (isinstance(origin, type) and issubclass(origin, Struct))
    if isinstance(node, Sequence):
        return origin in (list, tuple, set, frozenset)
    return not (_takes(type_, Mapping(node.place, {})) or _takes(type_, Sequence(node.place, [])))


_STEP: Final = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+)\]")


def _descend(node: Node, inside: str) -> tuple[Node, Path]:
    """Follow msgspec's path (`.a[0].b`) as far as it can be followed."""
    path: Path = ()
    for match in _STEP.finditer(inside):
        step: str | int = match["key"] if match["index"] is None else int(match["index"])
        following, _ = find(node, (step,))
        if following is None:
            break
        node, path = following, (*path, step)
    return node, path


_TYPES: Final[dict[str, str]] = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping of keys to values",
    "null": "null",
}
_BOUND: Final = re.compile(r"Expected `(?:int|float)` (>=|<=|>|<) (\S+)")
_BOUNDS: Final[dict[str, str]] = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_EXPECTED: Final = re.compile(r"Expected `([^`]+)`, got `[^`]+`")


def _explain(message: str, node: Node, path: Path) -> str:
    """msgspec's words in those of somebody who edits a file. Quotes no value: it may be a key."""
    bound = _BOUND.fullmatch(message)
    if bound:
        return f"{written(path)} must be {_BOUNDS[bound[1]]} {bound[2]}"
    expected = _EXPECTED.fullmatch(message)
    if expected:
        names = [_TYPES.get(name, name) for name in expected[1].split(" | ")]
        advice = ""
        if isinstance(node, Scalar) and not node.names:
            if names[0] == "text" and node.value is not None:
                advice = ": put it in quotes"
            elif "true or false" in names and node.text.casefold() in ("yes", "on", "no", "off", "y", "n"):
                advice = f": write {'true' if node.text.casefold() in ('yes', 'on', 'y') else 'false'}"
            elif isinstance(node.value, str) and re.fullmatch(r"[-+]?[0-9.]+", node.text):
                advice = ": remove the quotes"
        return f"{written(path)} must be {' or '.join(names)}, not {kind(node)}{advice}"
    if isinstance(node, Scalar) and node.names:
        return f"{written(path)} is set by a variable to a value it cannot have"
    return f"{written(path)}: {message[:1].lower()}{message[1:]}"
