"""Which tool call a fragment belongs to, for vendors that all number them in their own way. Pure; makes no events.

OpenAI gives each call an `index`, and its id and name once. In the field: no index at all (Gemini, Mistral), index 0
for parallel calls (Ollama, lmdeploy), gaps, an id in every fragment (sglang) or a new one (early vLLM harmony), no id
(Ollama), a name that comes after arguments (SGLang) or in pieces, arguments as an object (TGI, llama.cpp).
"""

import re
from typing import Any, Final

import msgspec

from router.events import ToolKind

_STRUCTURE: Final = re.compile(r'\\.|["{}\[\]]', re.S)
_OUTER: Final = frozenset({"index", "id", "type", "function", "custom", "name", "arguments", "input"})
_INNER: Final = frozenset({"name", "arguments", "input"})


class Call:
    """One call: what is known of it, and what has not been given out yet."""

    __slots__ = (
        "_depth",
        "_escaped",
        "_in_text",
        "arguments",
        "begun",
        "complete",
        "extras",
        "held",
        "id",
        "kind",
        "name",
        "number",
        "slot",
    )

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.kind: ToolKind = "function"
        self.slot: int | None = None
        """None until the call is given out."""
        self.number = -1
        """Its place among the calls of the choice, once given out."""
        self.arguments: list[str] = []
        """Pieces that wait for the call to be given out."""
        self.held = 0
        """Characters that have come of it while it waits."""
        self.extras: dict[str, Any] = {}
        """Vendor fields that wait likewise."""
        self.begun = False
        """Whether any argument has come."""
        self.complete = False
        """Whether the arguments so far are one JSON object or array."""
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def take(self, arguments: str) -> None:
        """Follow the brackets of JSON arguments. Each piece is scanned once, so many pieces cost no more than one."""
        if not arguments:
            return
        self.begun = self.begun or not arguments.isspace()
        if self._escaped:
            arguments = "\\" + arguments
        end = 0
        for found in _STRUCTURE.finditer(arguments):
            mark, end = found[0], found.end()
            if mark[0] == "\\":
                continue
            if mark == '"':
                self._in_text = not self._in_text
            elif not self._in_text:
                self._depth += 1 if mark in "{[" else -1
        self._escaped = arguments.endswith("\\") and end < len(arguments)
        if end:
            self.complete = self._depth <= 0 and not self._in_text


class Fragment:
    """One item of `tool_calls`, read tolerantly."""

    __slots__ = ("arguments", "extras", "id", "index", "kind", "name", "whole")

    def __init__(self, fields: dict[str, Any]) -> None:
        index = fields.get("index")
        self.index = index if isinstance(index, int) and not isinstance(index, bool) else None
        identity = fields.get("id")
        self.id = identity if isinstance(identity, str) else "" if identity is None else str(identity)
        custom = fields.get("custom")
        inner = custom if isinstance(custom, dict) else fields.get("function")
        if not isinstance(inner, dict):
            inner = fields
        self.kind: ToolKind = "custom" if isinstance(custom, dict) or fields.get("type") == "custom" else "function"
        name = inner.get("name")
        self.name = name if isinstance(name, str) else ""
        arguments = inner.get("arguments", inner.get("input"))
        self.whole = isinstance(arguments, dict | list)
        if self.whole:
            arguments = msgspec.json.encode(arguments).decode()
        self.arguments = arguments if isinstance(arguments, str) else ""
        self.extras = {key: value for key, value in fields.items() if key not in _OUTER and value is not None}
        if inner is not fields:
            inside = {key: value for key, value in inner.items() if key not in _INNER and value is not None}
            if inside:
                self.extras[self.kind] = inside


class ToolCalls:
    """The calls of one choice, in the order they began."""

    __slots__ = ("_by_id", "_by_index", "_last", "all")

    def __init__(self) -> None:
        self.all: list[Call] = []
        self._by_index: dict[int | str, Call] = {}
        self._by_id: dict[str, Call] = {}
        self._last: Call | None = None

    def place(self, fragment: Fragment, position: int | str | None) -> Call:
        """The call a fragment belongs to, with the fragment's id and name taken over.

        `position` stands in for an index that is missing, where several fragments came together.
        """
        key = fragment.index if fragment.index is not None else position
        call = self._last if key is None else self._by_index.get(key)
        known = self._by_id.get(fragment.id) if fragment.id else None
        if known is not None and (key is None or key in self._by_index or not fragment.name):
            call = known
        elif call is not None and self._is_another(call, fragment):
            call = None
        if call is None:
            call = Call()
            self.all.append(call)
        self._last = call
        if key is not None:
            self._by_index[key] = call
        if fragment.id:
            self._by_id[fragment.id] = call
            call.id = call.id or fragment.id
        if fragment.name and call.slot is None and not call.name.endswith(fragment.name):
            # a name in pieces; one that grows comes whole
            call.name = fragment.name if fragment.name.startswith(call.name) else call.name + fragment.name
        if fragment.kind == "custom" and call.slot is None:
            call.kind = "custom"
        return call

    def _is_another(self, call: Call, fragment: Fragment) -> bool:
        """Whether a fragment with an unknown id, or none, begins another call at the place of `call`."""
        if not fragment.name:
            return bool(fragment.id and call.id) and call.complete and bool(fragment.arguments)
        if fragment.id and call.id:
            # the same name in the middle of the arguments: an early vLLM gives each fragment an id of its own
            return fragment.name != call.name or call.complete or not call.begun
        return bool(call.name) and (call.complete or (call.begun and fragment.name != call.name))
