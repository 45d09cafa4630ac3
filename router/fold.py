"""The whole answer is the fold of the stream: one path for `stream: true` and `stream: false`. Pure."""

from typing import Any, TypeAlias

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


Content: TypeAlias = TextBlock | ReasoningBlock | RefusalBlock | ToolCallBlock | OpaqueBlock


class Block(Struct):
    """One slot of one choice: its content, its seal, and what the union does not model."""

    content: Content
    signed: dict[str, str] = {}
    """The last seal of each kind: `signature`, `redacted`, `encrypted`."""
    extra: dict[str, Any] = {}


class Choice(Struct):
    index: int
    blocks: list[Block] = []
    finish_reason: FinishReason | None = None
    native_reason: str | None = None
    stop_sequence: str | None = None
    extra: dict[str, Any] = {}
    """Vendor fields at choice level."""
    message_extra: dict[str, Any] = {}
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
    protocol: str | None = None
    """Whose words the extras are."""
    extra: dict[str, Any] = {}
    complete: bool = False


class Fold:
    """Adds events up to an `Answer`, which is readable at any time: also of a stream that was cut."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._text: dict[tuple[int, int], dict[int, list[str]]] = {}
        """Choice and slot → part → pieces. Only a summary of reasoning has parts."""

    def add(self, event: Event) -> None:
        match event:
            case TextDelta():
                block = self._block(event.choice, event.slot, TextBlock)
                self._grow(event.choice, event.slot, event.text)
                self._extend(event.extra, event.choice, block)
            case ReasoningDelta():
                block = self._block(event.choice, event.slot, ReasoningBlock)
                if isinstance(block.content, ReasoningBlock):
                    block.content.kind = event.kind
                self._grow(event.choice, event.slot, event.text, event.part)
                self._extend(event.extra, event.choice, block)
            case RefusalDelta():
                block = self._block(event.choice, event.slot, RefusalBlock)
                self._grow(event.choice, event.slot, event.text)
                self._extend(event.extra, event.choice, block)
            case ToolCallStarted():
                block = self._block(event.choice, event.slot, OpaqueBlock)
                block.content = ToolCallBlock(event.id, event.name, event.kind)
                self._extend(event.extra, event.choice, block)
            case ToolCallDelta():
                block = self._block(event.choice, event.slot, OpaqueBlock)
                self._grow(event.choice, event.slot, event.arguments)
                self._extend(event.extra, event.choice, block)
            case BlockSigned():
                block = self._block(event.choice, event.slot, OpaqueBlock)
                block.signed[event.kind] = event.value
                self._extend(event.extra, event.choice, block)
            case ChoiceFinished():
                choice = self._choice(event.choice)
                choice.finish_reason = event.reason
                choice.native_reason = event.native
                choice.stop_sequence = event.stop_sequence
                self._extend(event.extra, event.choice, None)
            case Extended():
                slot = event.slot
                opaque = None if event.choice is None or slot is None else self._block(event.choice, slot, OpaqueBlock)
                self._extend(event.extra, event.choice, opaque)
            case Started():
                self.answer.id, self.answer.model, self.answer.created = event.id, event.model, event.created
                self._extend(event.extra, None, None)
            case UsageReported():
                self.answer.usage = event.usage
            case Completed():
                self.answer.complete = True
                self._extend(event.extra, None, None)

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
        self.answer.protocol = extra.protocol
        add(self.answer.extra, extra.answer)
        if choice is not None:
            one = self._choice(choice)
            add(one.extra, extra.choice)
            add(block.extra if block is not None else one.message_extra, extra.block)


_GROWING = frozenset({"data", "transcript", "text", "reasoning", "arguments", "input", "summary"})
"""Text fields of vendor objects that stream in pieces; every other text is replaced."""


def merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    """Add the vendor fields of one delta to those before it, as the official SDKs accumulate deltas.

    Objects merge key by key; lists are joined, items with the same `index` merged; pieces of text are joined;
    anything else is replaced, but never by null.
    """
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            if key == "annotations":
                # an annotation's `index` is a place in the text, not its own number
                old.extend(value)
            else:
                _merge_lists(old, value)
        elif isinstance(old, str) and isinstance(value, str) and key in _GROWING:
            into[key] = old + value
        elif isinstance(value, dict):
            into[key] = {}
            merge(into[key], value)
        elif isinstance(value, list):
            into[key] = list(value)
        elif value is not None or key not in into:
            into[key] = value


def replace(into: dict[str, Any], new: dict[str, Any]) -> None:
    """Take vendor fields that are whole: each replaces what came before under its key."""
    into.update(new)


def _merge_lists(old: list[Any], new: list[Any]) -> None:
    by_index = {item["index"]: item for item in old if isinstance(item, dict) and "index" in item}
    for item in new:
        known = by_index.get(item.get("index")) if isinstance(item, dict) else None
        if known is None:
            old.append(item)
        else:
            merge(known, item)
