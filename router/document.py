"""A YAML document whose every node knows its place, and the problems found in it. Pure: text in, nodes out.

Stricter than plain YAML where YAML surprises people: a key written twice is a problem, `yes` and `1:30` are text
(the core schema of YAML 1.2, https://yaml.org/spec/1.2.2/#103-core-schema), an alias cannot blow a small file up.
`${VAR}` and `${VAR:-default}` are replaced inside scalars, after parsing: a variable's text is never read as YAML.
This module must not know what a configuration contains.
"""

import re
from collections.abc import Iterator
from collections.abc import Mapping as Environment
from typing import Any, Final, NamedTuple, TypeAlias

import yaml
from msgspec import Struct

from router.nearest import did_you_mean

MAX_SIZE: Final = 1024 * 1024
"""Bytes of a document."""
TOO_LARGE: Final = "the file is larger than 1 MiB, which no configuration needs: is it the right one?"
MAX_NODES: Final = 100_000
"""Nodes of a document, with every alias counted as what it stands for."""
MAX_DEPTH: Final = 64

Value: TypeAlias = str | int | float | bool | None


class Place(NamedTuple):
    """Both from 1; columns count characters."""

    line: int
    column: int


class Problem(Struct, frozen=True, order=True):
    """One thing wrong with a document. `line` is 0 when the problem has no place in the text."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}" if self.line else f"{self.file}: {self.message}"


class ConfigError(Exception):
    """Everything that is wrong with a configuration, in the order of the text. Never holds a variable's value."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Scalar(Struct):
    """`value` is None for a node that holds an unset variable; `names` are the variables it was made from."""

    place: Place
    text: str
    value: Value
    names: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing was written here, not even `null`."""
        return self.value is None and not self.text and not self.names


class Entry(Struct):
    """One key of a mapping: where it stands, and its value."""

    place: Place
    node: "Node"


class Mapping(Struct):
    place: Place
    entries: dict[str, Entry]


class Sequence(Struct):
    place: Place
    items: list["Node"]


Node: TypeAlias = Scalar | Mapping | Sequence


def kind(node: Node) -> str:
    """What the node is, in words."""
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    return {bool: "true or false", int: "a number", float: "a number", str: "text"}.get(type(node.value), "null")


def unset(node: Node) -> dict[str, Place]:
    """The unset variables in `node` and below it, each with its first place."""
    if isinstance(node, Scalar):
        return dict.fromkeys(node.unset, node.place)
    below = (entry.node for entry in node.entries.values()) if isinstance(node, Mapping) else node.items
    found: dict[str, Place] = {}
    for child in below:
        found = {**unset(child), **found}
    return found


class _Stop(Exception):
    """The text cannot be read any further."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place
        self.message = message


def compose(text: str, name: str, environ: Environment[str, str]) -> tuple[Node | None, list[Problem]]:
    """The document's root (None when it cannot be read) and the problems met on the way."""
    composer = _Composer(environ)
    root: Node | None = None
    try:
        _check_text(text)
        root = composer.document(text.removeprefix("\ufeff"))
    except _Stop as stop:
        composer.problems.append((stop.place, stop.message))
    return root, [Problem(name, *place, message) for place, message in composer.problems]


def decode(data: bytes, name: str) -> str:
    """The bytes of a file as text. Raises `ConfigError`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        place = _place_in(before, len(before))
        raise ConfigError((Problem(name, *place, "this byte is not UTF-8: save the file as UTF-8"),)) from None


class _Composer:
    """Builds nodes from PyYAML's events; composing them itself is what lets it see duplicates and count aliases."""

    def __init__(self, environ: Environment[str, str]) -> None:
        self.environ = environ
        self.problems: list[tuple[Place, str]] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._open: set[str] = set()
        self._count = 0

    def document(self, text: str) -> Node | None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        events = yaml.parse(text, Loader=loader)
        root: Node | None = None
        try:
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if root is not None:
                        raise _Stop(_place(event), "a second document begins here: keep one per file")
                    root = self._node(next(events), events, 0)
        except yaml.MarkedYAMLError as error:
            raise _syntax(error, text) from None
        except yaml.reader.ReaderError as error:
            raise _Stop(_place_in(text, error.position), f"not valid YAML: {error.reason}") from None
        if root is None:
            raise _Stop(Place(1, 1), "the file is empty: write `providers:` and at least one provider, or remove it")
        return root

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        place, start = _place(event), self._count
        if depth > MAX_DEPTH:
            raise _Stop(place, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor or "", place)
        anchor = event.anchor
        self._grow(1, place)
        if anchor is not None:
            self._open.add(anchor)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, place)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._tag(event, place, "seq")
            node = Sequence(place, [])
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                node.items.append(self._node(event, events, depth + 1))
        else:
            self._tag(event, place, "map")
            node = self._mapping(events, place, depth)
        if anchor is not None:
            self._open.discard(anchor)
            self._anchors[anchor] = (node, self._count - start)
        return node

    def _alias(self, anchor: str, place: Place) -> Node:
        if anchor in self._open:
            raise _Stop(place, f"the alias `*{anchor}` stands inside what it names")
        if anchor not in self._anchors:
            known = did_you_mean(anchor, self._anchors) or f": write `&{anchor}` before the value it should name"
            self.problems.append((place, f"no anchor `&{anchor}` comes before this alias{known}"))
            return Scalar(place, f"*{anchor}", f"*{anchor}")
        node, count = self._anchors[anchor]
        self._grow(count, place)
        return node

    def _grow(self, count: int, place: Place) -> None:
        self._count += count
        if self._count > MAX_NODES:
            raise _Stop(place, f"the document has more than {MAX_NODES} values, aliases included")

    def _mapping(self, events: Iterator[Any], place: Place, depth: int) -> Mapping:
        entries: dict[str, Entry] = {}
        merged: list[Node] = []
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            at = _place(event)
            key = self._node(event, events, depth + 1)
            node = self._node(next(events), events, depth + 1)
            if isinstance(node, Scalar) and node.empty:
                node.place = at
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
                merged += node.items if isinstance(node, Sequence) else [node]
            elif not isinstance(event, yaml.ScalarEvent):
                self.problems.append((at, _not_a_key(key)))
            elif "${" in event.value:
                self.problems.append((at, "variables are replaced in values, not in keys: write the key out"))
            elif event.value in entries:
                first = entries[event.value].place.line
                self.problems.append((at, f"`{event.value}` is here for the second time, first in line {first}"))
            else:
                entries[event.value] = Entry(at, node)
        for node in merged:
            if isinstance(node, Mapping):
                entries = {**node.entries, **entries}
            else:
                self.problems.append((node.place, f"`<<` merges a mapping, or a list of them, not {kind(node)}"))
        return Mapping(place, entries)

    def _scalar(self, event: Any, place: Place) -> Scalar:
        text: str = event.value
        names: dict[str, None] = {}
        absent: dict[str, None] = {}

        def replaced(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            if match["name"] is None:
                wrong = "`${` begins a variable: write `${NAME}` or `${NAME:-default}`, or `$${` for the characters"
                self.problems.append((place, wrong))
                return match[0]
            names[match["name"]] = None
            value = self.environ.get(match["name"]) or match["default"]
            if value is None:
                absent[match["name"]] = None
                return match[0]
            return value

        if "${" in text:
            text = _VARIABLE.sub(replaced, text)
        tag = self._tag(event, place, "str", "int", "float", "bool", "null")
        if absent:
            return Scalar(place, text, None, tuple(names), tuple(absent))
        plain = event.implicit[0] and event.tag is None
        value = _resolve(text) if plain or tag in ("int", "float", "bool", "null") else text
        if tag is not None and tag != "str" and type(value).__name__.replace("NoneType", "null") != tag:
            self.problems.append((place, f"this is not what its tag `!!{tag}` says"))
        return Scalar(place, text, value, tuple(names))

    def _tag(self, event: Any, place: Place, *known: str) -> str | None:
        """The short name of the node's tag, None when it has none of its own."""
        if event.tag is None or event.tag == "!":
            return None
        short = str(event.tag).removeprefix("tag:yaml.org,2002:")
        if short not in known:
            self.problems.append((place, "this YAML tag means nothing here: remove it"))
            return None
        return short


_VARIABLE: Final = re.compile(
    r"""\$\$\{ | \$\{ (?P<name>[A-Za-z_][A-Za-z0-9_]*) (?: :- (?P<default>[^{}]*) )? \} | \$\{""", re.VERBOSE
)
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]{1,40}|[0-9]{1,40}(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,3})?")
_NOT_ZERO: Final = re.compile(r"[-+0.]*[1-9]")


def _resolve(text: str) -> Value:
    """A plain scalar by the core schema; what is too long or too small to be a number stays text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[1:2] in ("o", "x") else int(text)
    if not _FLOAT.fullmatch(text):
        return text
    value = float(text)
    # nobody who writes 1e-400 means zero
    return value if value or not _NOT_ZERO.match(text) else text


def _not_a_key(node: Node) -> str:
    if isinstance(node, Mapping):
        return "a mapping cannot be a key: put quotes around text that begins with `{`"
    return "a list cannot be a key" if isinstance(node, Sequence) else "an alias cannot be a key: write the key out"


# -- errors of the text itself -------------------------------------------------------------------------------------

_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""https://yaml.org/spec/1.2.2/#51-character-set"""


def _check_text(text: str) -> None:
    # a string is at least as long in UTF-8 as it has characters: the cheap test first
    if len(text) > MAX_SIZE or len(text.encode("utf-8", "surrogatepass")) > MAX_SIZE:
        raise _Stop(Place(1, 1), TOO_LARGE)
    wrong = _UNPRINTABLE.search(text)
    if wrong:
        raise _Stop(_place_in(text, wrong.start()), f"the character U+{ord(wrong[0]):04X} may not stand in YAML")


def _place(event: Any) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _place_in(text: str, index: int) -> Place:
    return Place(text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1)


def _syntax(error: yaml.MarkedYAMLError, text: str) -> _Stop:
    """PyYAML's complaint in the shape of ours, with what to do for the mistakes that people make."""
    mark = error.problem_mark or error.context_mark
    place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
    lines = text.split("\n")
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    problem, context = error.problem or "", error.context or ""
    opened = error.context_mark
    where = f"line {opened.line + 1}, column {opened.column + 1}" if opened else ""
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent:
        return _Stop(Place(place.line, indent.index("\t") + 1), "a tab cannot indent YAML: use spaces")
    if "flow" in context:
        bracket = "]" if "sequence" in context else "}"
        if opened and opened.line == place.line - 1 and "${" in line[: place.column]:
            return _Stop(place, f'a variable inside brackets needs quotes: write "${{NAME}}" before the `{bracket}`')
        return _Stop(place, f"the bracket opened at {where} is not closed: a comma or `{bracket}` is missing")
    if "mapping values are not allowed" in problem:
        return _Stop(place, "a `:` may not stand here: put the text in quotes, or mend the indentation")
    if "cannot start any token" in problem:
        wrong = line[place.column - 1 : place.column]
        return _Stop(place, f"text cannot begin with `{wrong}`: put it in quotes")
    if "expected key" in problem or "'-' indicator" in problem:
        return _Stop(place, f"this line does not fit the block that began at {where}: mend the indentation")
    if "could not find expected ':'" in problem:
        return _Stop(Place(opened.line + 1, opened.column + 1) if opened else place, "this key has no `:` after it")
    if "quoted scalar" in context and "end of stream" in problem:
        return _Stop(place, f"the quote opened at {where} is not closed")
    if "unknown escape" in problem:
        return _Stop(place, "unknown escape in double quotes: write `\\\\` for a backslash, or use single quotes")
    return _Stop(place, f"not valid YAML: {problem or 'it cannot be read'}{f' ({context})' if context else ''}")
