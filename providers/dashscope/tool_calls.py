"""The tool calls of one choice, put together from DashScope's frames. Pure; knows only events.

Frames carry pieces of the arguments (the id comes once and is "" later), or the whole call again and again. `index`
may be missing, and arguments may be an object.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from providers.dashscope.increments import Reading
from router.errors import ProtocolViolated
from router.events import Event, ToolCallDelta, ToolCallStarted
from router.slots import Slots

MAX_CALLS: Final = 1024
"""Tool calls of one choice."""
MAX_ARGUMENTS: Final = 8 * 1024 * 1024
"""Characters of one call's arguments, which are kept to know them again in a frame that repeats them."""


class _Call:
    __slots__ = ("_pieces", "id", "index", "length", "name", "object", "slot", "unsaid")

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self._pieces: list[str] = []
        self.length = 0
        """Characters of the arguments so far."""
        self.unsaid: list[str] = []
        """Pieces that were not given out."""
        self.object: str | None = None
        """Arguments that came as an object. It may still grow, so it is given out at the end."""
        self.slot: int | None = None

    def take(self, arguments: Any, *, again: bool) -> None:
        """Add a piece of the arguments. `again` says that the frame names the call anew, as cumulative ones do."""
        if isinstance(arguments, dict):
            self.object = msgspec.json.encode(arguments).decode()
        elif isinstance(arguments, str) and arguments:
            # only a piece as long as all before it can repeat them, so most pieces are not compared
            if self.length and len(arguments) >= self.length:
                whole = "".join(self._pieces)
                if arguments.startswith(whole) and (again or _is_object(whole)):
                    arguments = arguments[self.length :]
            self.add(arguments)

    def add(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self.unsaid.append(piece)
            self.length += len(piece)


class ToolCalls:
    def __init__(self, choice: int, slots: Slots, reading: Reading, prefix: str, source: str) -> None:
        self._choice = choice
        self._slots = slots
        self._reading = reading
        self._prefix = prefix
        self._source = source
        self._calls: list[_Call] = []
        self._given = 0
        """How many of them have been given out."""

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, items: list[dict[str, Any]]) -> Iterator[Event]:
        for position, item in enumerate(items):
            function = item.get("function")
            function = function if isinstance(function, dict) else {}
            call_id, name = _word(item.get("id")), _word(function.get("name"))
            call = self._find(item.get("index"), call_id, name, position, len(items))
            call.id = call.id or call_id
            if call.slot is None and not call.name.endswith(name):
                # a name in pieces, as Alibaba's SDK joins them; one that grows comes whole
                call.name = name if name.startswith(call.name) else call.name + name
            again = bool(call_id or name) or self._reading.mode == "cumulative"
            call.take(function.get("arguments"), again=again)
            if len(self._calls) > MAX_CALLS:
                raise ProtocolViolated(f"`{self._source}` sent an answer of more than {MAX_CALLS} tool calls")
            if call.length > MAX_ARGUMENTS:
                raise ProtocolViolated(f"`{self._source}` sent a tool call of more than {MAX_ARGUMENTS} characters")
            if len(self._calls) > self._given + (call.slot is None):
                yield from self._settle(but=call)
            if call.length:
                yield from self._give(call)

    def _settle(self, but: _Call) -> Iterator[Event]:
        """Give out the calls whose names can grow no more, since another one goes on."""
        for call in self._calls:
            if call is not but and call.slot is None:
                yield from self._give(call)

    def finish(self, *, cut: bool) -> Iterator[Event]:
        """What was held back. A call without arguments has an empty object, unless it was `cut` off."""
        for call in self._calls:
            if not call.name:
                if call.id or call.length or call.object:
                    raise ProtocolViolated(f"`{self._source}` called a tool without naming it")
                continue
            if not call.length and call.object is not None:
                call.add(call.object)
            if not call.length and not cut:
                call.add("{}")
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
            self._given += 1
            # the same for every cut of the stream, and no other answer's
            call.id = call.id or f"call_{self._prefix}_{self._choice}_{call.slot}"
            yield ToolCallStarted(self._choice, call.slot, call.id, call.name)
        new = "".join(call.unsaid)
        if new:
            call.unsaid.clear()
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
