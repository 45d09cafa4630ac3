"""The whole answer is the fold of the stream: one path for `stream: true` and `stream: false`. Pure."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from msgspec import Struct

from router.events import (
    BlockSigned,
    ChoiceFinished,
    Completed,
    Event,
    Extended,
    Extra,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    ToolKind,
    Usage,
    UsageReported,
)


class TextBlock(Struct, tag="text"):
    text: str = ""


class ReasoningBlock(Struct, tag="reasoning"):
    """`parts` are the parts of a vendor's summary; full reasoning has one."""

    text: str = ""
    kind: str = "full"
    parts: list[str] = []


class RefusalBlock(Struct, tag="refusal"):
    text: str = ""


class ToolCallBlock(Struct, tag="tool_call"):
    id: str
    name: str
    kind: ToolKind = "function"
    arguments: str = ""


class OpaqueBlock(Struct, tag="opaque"):
    """A block of which only the extras or the seal are known."""


Extras: TypeAlias = dict[str, dict[str, Any]]
"""Protocol → the fields in its words. One vendor's answer may speak in two: DashScope's `logprobs` are OpenAI's."""

Content: TypeAlias = TextBlock | ReasoningBlock | RefusalBlock | ToolCallBlock | OpaqueBlock


class Block(Struct):
    """One slot of one choice: its content, its seal, and what the union does not model."""

    content: Content
    signed: dict[str, str] = {}
    """The last seal of each kind: `signature`, `redacted`, `encrypted`."""
    extra: Extras = {}


class Choice(Struct):
    index: int
    blocks: list[Block] = []
    finish_reason: FinishReason | None = None
    native_reason: str | None = None
    stop_sequence: str | None = None
    extra: Extras = {}
    """Vendor fields at choice level."""
    message_extra: Extras = {}
    """Vendor fields at message level that belong to no block."""

    def text(self) -> str:
        return "".join(b.content.text for b in self.blocks if isinstance(b.content, TextBlock))

    def reasoning(self) -> str:
        return "".join(b.content.text for b in self.blocks if isinstance(b.content, ReasoningBlock))

    def refusal(self) -> str:
        return "".join(b.content.text for b in self.blocks if isinstance(b.content, RefusalBlock))

    def tool_calls(self) -> list[ToolCallBlock]:
        return [b.content for b in self.blocks if isinstance(b.content, ToolCallBlock)]


class Answer(Struct):
    id: str = ""
    model: str = ""
    created: int = 0
    choices: list[Choice] = []
    usage: Usage | None = None
    extra: Extras = {}
    complete: bool = False


class Fold:
    """Adds events up to an `Answer`, which is readable at any time: also of a stream that was cut."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._text: dict[tuple[int, int], dict[int, list[str]]] = {}
        """Choice and slot → part → pieces. Only a summary of reasoning has parts."""

    def add(self, event: Event) -> None:
        _ADD[type(event)](self, event)

    def result(self) -> Answer:
        """The answer so far, its texts joined."""
        for (choice, slot), parts in self._text.items():
            content = self._choice(choice).blocks[slot].content
            texts = ["".join(pieces) for pieces in parts.values()]
            text = "\n\n".join(texts)
            if isinstance(content, ReasoningBlock):
                content.text, content.parts = text, texts
            elif isinstance(content, ToolCallBlock):
                content.arguments = text
            elif not isinstance(content, OpaqueBlock):
                content.text = text
        return self.answer

    def _text_delta(self, event: TextDelta) -> None:
        parts = self._text.get((event.choice, event.slot))
        if parts is not None and event.extra is None:
            parts[0].append(event.text)
            return
        block = self._block(event.choice, event.slot, TextBlock)
        self._grow(event.choice, event.slot, event.text)
        self._extend(event.extra, event.choice, block)

    def _reasoning_delta(self, event: ReasoningDelta) -> None:
        block = self._block(event.choice, event.slot, ReasoningBlock)
        if isinstance(block.content, ReasoningBlock):
            block.content.kind = event.kind
        self._grow(event.choice, event.slot, event.text, event.part)
        self._extend(event.extra, event.choice, block)

    def _refusal_delta(self, event: RefusalDelta) -> None:
        block = self._block(event.choice, event.slot, RefusalBlock)
        self._grow(event.choice, event.slot, event.text)
        self._extend(event.extra, event.choice, block)

    def _tool_call_started(self, event: ToolCallStarted) -> None:
        block = self._block(event.choice, event.slot, OpaqueBlock)
        block.content = ToolCallBlock(event.id, event.name, event.kind)
        self._extend(event.extra, event.choice, block)

    def _tool_call_delta(self, event: ToolCallDelta) -> None:
        block = self._block(event.choice, event.slot, OpaqueBlock)
        self._grow(event.choice, event.slot, event.arguments)
        self._extend(event.extra, event.choice, block)

    def _block_signed(self, event: BlockSigned) -> None:
        block = self._block(event.choice, event.slot, OpaqueBlock)
        block.signed[event.kind] = event.value
        self._extend(event.extra, event.choice, block)

    def _extended(self, event: Extended) -> None:
        slot = event.slot
        opaque = None if event.choice is None or slot is None else self._block(event.choice, slot, OpaqueBlock)
        self._extend(event.extra, event.choice, opaque)

    def _choice_finished(self, event: ChoiceFinished) -> None:
        choice = self._choice(event.choice)
        choice.finish_reason = event.reason
        choice.native_reason = event.native
        choice.stop_sequence = event.stop_sequence
        self._extend(event.extra, event.choice, None)

    def _started(self, event: Started) -> None:
        self.answer.id, self.answer.model, self.answer.created = event.id, event.model, event.created
        self._extend(event.extra, None, None)

    def _usage_reported(self, event: UsageReported) -> None:
        self.answer.usage = event.usage

    def _completed(self, event: Completed) -> None:
        self.answer.complete = True
        self._extend(event.extra, None, None)

    def _choice(self, index: int) -> Choice:
        for choice in self.answer.choices:
            if choice.index == index:
                return choice
        choice = Choice(index)
        self.answer.choices.append(choice)
        self.answer.choices.sort(key=lambda c: c.index)
        return choice

    def _block(
        self, choice: int, slot: int, kind: type[TextBlock | ReasoningBlock | RefusalBlock | OpaqueBlock]
    ) -> Block:
        blocks = self._choice(choice).blocks
        while len(blocks) <= slot:
            blocks.append(Block(kind()))
        block = blocks[slot]
        if isinstance(block.content, OpaqueBlock) and kind is not OpaqueBlock:
            block.content = kind()
        return block

    def _grow(self, choice: int, slot: int, text: str, part: int = 0) -> None:
        self._text.setdefault((choice, slot), {}).setdefault(part, []).append(text)

    def _extend(self, extra: Extra | None, choice: int | None, block: Block | None) -> None:
        if extra is None:
            return
        add = replace if extra.whole else merge
        if extra.answer:
            add(self.answer.extra.setdefault(extra.protocol, {}), extra.answer)
        if choice is None:
            return
        one = self._choice(choice)
        if extra.choice:
            add(one.extra.setdefault(extra.protocol, {}), extra.choice)
        if extra.block:
            add((one.message_extra if block is None else block.extra).setdefault(extra.protocol, {}), extra.block)


_ADD: Final[dict[type, Callable[[Fold, Any], None]]] = {
    TextDelta: Fold._text_delta,
    ReasoningDelta: Fold._reasoning_delta,
    RefusalDelta: Fold._refusal_delta,
    ToolCallStarted: Fold._tool_call_started,
    ToolCallDelta: Fold._tool_call_delta,
    BlockSigned: Fold._block_signed,
    Extended: Fold._extended,
    ChoiceFinished: Fold._choice_finished,
    Started: Fold._started,
    UsageReported: Fold._usage_reported,
    Completed: Fold._completed,
}

_GROWING: Final = frozenset({"data", "transcript", "text", "reasoning", "arguments", "input", "summary"})
"""Text fields of vendor objects that stream in pieces; every other text is replaced."""


def merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    """Add the vendor fields of one delta to those before it, as the official SDKs accumulate deltas.

    Objects merge key by key; lists are joined, items with the same `index` merged; pieces of text are joined;
    anything else is replaced, but never by null. `new` is copied, never shared: it belongs to its event.
    """
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merge(old, value)
        elif isinstance(value, list):
            if not isinstance(old, list):
                old = into[key] = []
            if key == "annotations":
                # an annotation's `index` is a place in the text, not its own number
                old.extend(_copy(value))
            else:
                _merge_lists(old, value)
        elif isinstance(old, str) and isinstance(value, str) and key in _GROWING:
            into[key] = old + value
        elif value is not None or key not in into:
            into[key] = _copy(value)


def replace(into: dict[str, Any], new: dict[str, Any]) -> None:
    """Take vendor fields that are whole: each replaces what came before under its key."""
    into.update(_copy(new))


def _merge_lists(old: list[Any], new: list[Any]) -> None:
    numbered = {number: item for item in old if (number := _number(item)) is not None}
    for item in new:
        number = _number(item)
        known = None if number is None else numbered.get(number)
        if known is not None:
            merge(known, item)
            continue
        item = _copy(item)
        old.append(item)
        if number is not None:
            numbered[number] = item


def _number(item: Any) -> int | None:
    """The place of a list's item that arrives in pieces."""
    index = item.get("index") if isinstance(item, dict) else None
    return index if type(index) is int else None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copy(inner) for inner in value]
    return value
