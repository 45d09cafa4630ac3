"""The tool calls of one choice, put together from DashScope's frames. Pure; knows only events.

Frames carry pieces of the arguments (the id comes once and is "" later), or the whole call again and again. `index`
may be missing, and arguments may be an object.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from providers.dashscope.increments import Reading
from router.errors import ProtocolViolated
from router.events import Event, ToolCallDelta, ToolCallStarted
from router.slots import Slots


class _Call:
    __slots__ = ("arguments", "given", "id", "index", "name", "object", "slot")

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.arguments = ""
        self.given = 0
        """Characters of the arguments that were given out."""
        self.object: str | None = None
        """Arguments that came as an object. It may still grow, so it is given out at the end."""
        self.slot: int | None = None

    def take(self, arguments: Any, *, again: bool) -> None:
        """Add a piece of the arguments. `again` says that the frame names the call anew, as cumulative ones do."""
        if isinstance(arguments, dict):
            self.object = msgspec.json.encode(arguments).decode()
        elif isinstance(arguments, str) and arguments:
            repeats = again or _is_object(self.arguments)
            if self.arguments and repeats and arguments.startswith(self.arguments):
                self.arguments = arguments
            else:
                self.arguments += arguments


class ToolCalls:
    def __init__(self, choice: int, slots: Slots, reading: Reading, prefix: str, source: str) -> None:
        self._choice = choice
        self._slots = slots
        self._reading = reading
        self._prefix = prefix
        self._source = source
        self._calls: list[_Call] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, items: list[dict[str, Any]]) -> Iterator[Event]:
        for position, item in enumerate(items):
            function = item.get("function")
            function = function if isinstance(function, dict) else {}
            call_id, name = _word(item.get("id")), _word(function.get("name"))
            call = self._find(item.get("index"), call_id, name, position, len(items))
            call.id = call.id or call_id
            call.name = call.name or name
            again = bool(call_id or name) or self._reading.mode == "cumulative"
            call.take(function.get("arguments"), again=again)
            yield from self._give(call)

    def finish(self, *, cut: bool) -> Iterator[Event]:
        """What was held back. A call without arguments has an empty object, unless it was `cut` off."""
        for call in self._calls:
            if not call.name:
                if call.id or call.arguments or call.object:
                    raise ProtocolViolated(f"`{self._source}` called a tool without naming it")
                continue
            if not call.arguments and call.object is not None:
                call.arguments = call.object
            if not call.arguments and not cut:
                call.arguments = "{}"
            yield from self._give(call)

    def _find(self, index: Any, call_id: str, name: str, position: int, count: int) -> _Call:
        """The call that an item goes on with, or a new one."""
        found: _Call | None
        if isinstance(index, int):
            found = next((call for call in reversed(self._calls) if call.index == index), None)
            # an id that changes from piece to piece is the same call; a new name with it is not
            if found is not None and name and call_id and found.id and call_id != found.id:
                found = next((call for call in self._calls if call.id == call_id), None)
        else:
            index = None
            found = next((call for call in self._calls if call_id and call.id == call_id), None)
            if found is None and count == 1 and not call_id:
                found = self._calls[-1] if self._calls else None
            elif found is None and position < len(self._calls):
                at = self._calls[position]
                found = at if not call_id or not at.id else None
        if found is None:
            found = _Call(index)
            self._calls.append(found)
        return found

    def _give(self, call: _Call) -> Iterator[Event]:
        if not call.name:
            return
        if call.slot is None:
            call.slot = self._slots.open()
            # the same for every cut of the stream, and no other answer's
            call.id = call.id or f"call_{self._prefix}_{self._choice}_{call.slot}"
            yield ToolCallStarted(self._choice, call.slot, call.id, call.name)
        new = call.arguments[call.given :]
        if new:
            call.given = len(call.arguments)
            yield ToolCallDelta(self._choice, call.slot, new)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_object(text: str) -> bool:
    if not text.endswith("}"):
        return False
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False
