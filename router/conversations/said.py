"""Items as the messages of one request: joined where they are pieces of one message, and nothing that vendors refuse.

What vendors refuse of a history: a tool call without its result, a result without its call, and an answer with nothing
in it. A call whose arguments were broken off counts as none.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from router.conversation import Item
from router.messages import Assistant, Content, Message, OtherPart, Part, Text, ToolCall, ToolResult

_LEGACY: Final = "function_call"
"""The deprecated call without an id, in an assistant's `extra`."""


class Said(Struct, frozen=True):
    """One message, and which items of the history it is made of: none for what came with the call."""

    message: Message
    first: int | None = None
    """Place in the history of the first of its items."""
    last: int | None = None


def said(history: Sequence[Item], new: Sequence[Message]) -> list[Said]:
    """What can be sent of the history, then `new` as it is."""
    return [each for each in _paired([*_joined(history), *map(Said, new)]) if not _is_empty(each)]


def in_words_of(message: Message, words: str, protocol: str) -> Message:
    """The message for a request in the words of `protocol`: without what is in those of another, `words`."""
    if words == protocol:
        return message
    content = message.content
    if isinstance(content, tuple):
        # whoever has only parts of that kind has said nothing that could be told here
        content = tuple(_bare(part) for part in content if not isinstance(part, OtherPart)) or ""
    if not isinstance(message, Assistant):
        return msgspec.structs.replace(message, content=content, extra={})
    return msgspec.structs.replace(
        message,
        content=content,
        tool_calls=tuple(msgspec.structs.replace(call, extra={}) for call in message.tool_calls),
        reasoning=tuple(msgspec.structs.replace(part, extra={}) for part in message.reasoning),
        extra={},
    )


def _bare(part: Part) -> Part:
    return part if isinstance(part, OtherPart) or not part.extra else msgspec.structs.replace(part, extra={})


# -- pieces of one message ---------------------------------------------------------------------------------------------


def _joined(history: Sequence[Item]) -> list[Said]:
    """An answer is stored in pieces, one a call or a run of text: vendors want it as one message."""
    joined: list[Said] = []
    for place, item in enumerate(history):
        message, before = item.message, joined[-1] if joined else None
        if isinstance(message, Assistant):
            if item.status != "completed":
                message = _without_calls(message)
            last = None if before is None or before.last != place - 1 else before.message
            if before is not None and isinstance(last, Assistant) and _is_one(last, message, history[place - 1], item):
                joined[-1] = Said(_one(last, message), before.first, place)
                continue
        joined.append(Said(message, place, place))
    return joined


def _is_one(before: Assistant, message: Assistant, item: Item, then: Item) -> bool:
    """Whether both are pieces of one answer. What was not written by a call says nothing of it: then a second text, or
    anything behind a legacy call, begins another."""
    if item.call != then.call or _LEGACY in before.extra:
        return False
    return then.call is not None or not (message.content and (before.content or before.tool_calls))


def _one(one: Assistant, two: Assistant) -> Assistant:
    return Assistant(
        _together(one.content, two.content),
        one.tool_calls + two.tool_calls,
        one.reasoning + two.reasoning,
        "".join(text for text in (one.refusal, two.refusal) if text) or None,
        one.name or two.name,
        {**one.extra, **two.extra},
    )


def _together(one: Content | None, two: Content | None) -> Content | None:
    if not one or not two:
        return one or two
    return (*_parts(one), *_parts(two))


def _parts(content: Content) -> tuple[Part, ...]:
    return (Text(content),) if isinstance(content, str) else content


# -- calls and their results -------------------------------------------------------------------------------------------


def _paired(messages: Sequence[Said]) -> list[Said]:
    """Calls that have their results right behind them, and these. What came with the call is left as it is."""
    paired: list[Said] = []
    place = 0
    while place < len(messages):
        one, end = messages[place], place + 1
        while end < len(messages) and isinstance(messages[end].message, ToolResult):
            end += 1
        if isinstance(one.message, ToolResult):
            # results at the very beginning, behind no message at all
            end, results = max(end, place + 1), messages[place:end]
            paired += [each for each in results if each.first is None]
        else:
            paired += _round(one, messages[place + 1 : end])
        place = end
    return paired


def _round(one: Said, results: Sequence[Said]) -> list[Said]:
    """One message and the results behind it."""
    message = one.message
    if not isinstance(message, Assistant):
        return [one, *(each for each in results if each.first is None)]
    wanted = {call.id for call in message.tool_calls}
    legacy = _LEGACY in message.extra
    kept: list[Said] = []
    # of two results of one call the later counts, and most of all what came with this request
    for each in reversed(results):
        result = each.message
        assert isinstance(result, ToolResult)
        if result.call_id is None:
            fits, legacy = legacy, False
        else:
            fits = result.call_id in wanted
            wanted.discard(result.call_id)
        if fits or each.first is None:
            kept.append(each)
    if one.first is not None:
        if wanted:
            message = _with_calls(message, tuple(call for call in message.tool_calls if call.id not in wanted))
        if legacy:
            message = _without_legacy(message)
    return [Said(message, one.first, one.last), *reversed(kept)]


def _without_calls(message: Assistant) -> Assistant:
    return _without_legacy(_with_calls(message, ()))


def _with_calls(message: Assistant, calls: tuple[ToolCall, ...]) -> Assistant:
    return msgspec.structs.replace(message, tool_calls=calls) if calls != message.tool_calls else message


def _without_legacy(message: Assistant) -> Assistant:
    if _LEGACY not in message.extra:
        return message
    return msgspec.structs.replace(message, extra={name: x for name, x in message.extra.items() if name != _LEGACY})


def _is_empty(each: Said) -> bool:
    """An answer of the history in which nothing is left but, maybe, its reasoning, which belongs to what is gone."""
    message = each.message
    if each.first is None or not isinstance(message, Assistant):
        return False
    return not (message.content or message.refusal or message.tool_calls or message.extra)
