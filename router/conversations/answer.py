"""A folded answer as the messages that a conversation keeps: one for each block, in the order of their slots. Pure."""

from typing import Any

from router.fold import (
    Answer,
    Block,
    OpaqueBlock,
    ReasoningBlock,
    RefusalBlock,
    TextBlock,
    ToolCallBlock,
)
from router.messages import Assistant, Extra, Message, Reasoning, ToolCall


def answer_messages(answer: Answer, protocol: str) -> list[tuple[int, str, Message]]:
    """Of the first choice, also of an answer that is not complete: (slot, what the item's id begins with, message).

    `protocol`: whose words the messages' `extra` are; what other protocols say beside a block is left out.
    """
    first = next((choice for choice in answer.choices if choice.index == 0), None)
    if first is None:
        return []
    found: list[tuple[int, str, Message]] = []
    for slot, block in enumerate(first.blocks):
        extra = _extra(block.extra.get(protocol, {}))
        match block.content:
            case TextBlock(text):
                # an empty block has been opened, and nothing has come in it
                if text or extra:
                    found.append((slot, "msg_", Assistant(text, extra=extra)))
            case RefusalBlock(text):
                found.append((slot, "msg_", Assistant(refusal=text, extra=extra)))
            case ToolCallBlock(identity, name, kind, arguments):
                prefix = "fc_" if kind == "function" else "ctc_"
                found.append(
                    (slot, prefix, Assistant(tool_calls=(ToolCall(identity, name, arguments, kind),), extra=extra))
                )
            case ReasoningBlock() | OpaqueBlock():
                reasoning = _reasoning(block)
                if reasoning is not None:
                    found.append((slot, "rs_", Assistant(reasoning=(reasoning,), extra=extra)))
    if first.message_extra.get(protocol) and found:
        slot, prefix, message = found[0]
        assert isinstance(message, Assistant)
        merged = {**_extra(first.message_extra[protocol]), **message.extra}
        found[0] = (
            slot,
            prefix,
            Assistant(message.content, message.tool_calls, message.reasoning, message.refusal, extra=merged),
        )
    return found


def _reasoning(block: Block) -> Reasoning | None:
    text = block.content.text if isinstance(block.content, ReasoningBlock) else ""
    if not text and not block.signed:
        return None
    return Reasoning(text, block.signed.get("signature"), block.signed.get("redacted"), block.signed.get("encrypted"))


def _extra(fields: dict[str, Any]) -> Extra:
    """What vendors take back: of spoken words the id alone."""
    audio = fields.get("audio")
    if not isinstance(audio, dict):
        return fields
    rest = {key: value for key, value in fields.items() if key != "audio"}
    return {**rest, "audio": {"id": audio["id"]}} if "id" in audio else rest
