"""A message taken apart into items: each holds content, a refusal, one tool call or one run of reasoning. Pure."""

from msgspec import structs

from router.messages import Assistant, Message, ToolResult


def pieces(message: Message) -> tuple[Message, ...]:
    """In the order of an answer: reasoning, content, refusal, tool calls. Adapters join them again."""
    if not isinstance(message, Assistant):
        return (message,)
    found: list[Message] = [Assistant(reasoning=(each,), name=message.name) for each in message.reasoning]
    if message.content is not None:
        found.append(Assistant(message.content, name=message.name))
    if message.refusal is not None:
        found.append(Assistant(refusal=message.refusal, name=message.name))
    found += [Assistant(tool_calls=(call,), name=message.name) for call in message.tool_calls]
    if not found:
        return (message,)
    if message.extra:
        # what is beside them all stays with the first
        first = found[0]
        assert isinstance(first, Assistant)
        found[0] = structs.replace(first, extra=message.extra)
    return tuple(found)


def prefix_of(message: Message) -> str:
    """What the id of an item with that message begins with."""
    match message:
        case ToolResult():
            return "fco_"
        case Assistant(tool_calls=(call, *_)):
            return "fc_" if call.kind == "function" else "ctc_"
        case Assistant(reasoning=(_, *_)):
            return "rs_"
        case _:
            return "msg_"
