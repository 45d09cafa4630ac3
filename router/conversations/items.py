"""Items as OpenAI's Conversations API has them, and back. Pure.

Source: the types of OpenAI's own Python library (`openai.types.conversations`, `openai.types.responses`). What that
format has no word for stands under its own name beside the others (`signature`, `is_error`), and what our messages have
none for (`phase`, `annotations`) is in their `extra`, in the words `openai-responses`. An item in the words of another
protocol names it (`protocol`), and has its fields in `extra` at the level they were found on. So an item that is read
and added again says the same.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from msgspec import structs

from router.conversation import Item
from router.errors import InvalidRequest
from router.messages import (
    Assistant,
    Audio,
    Content,
    Extra,
    File,
    Image,
    Message,
    OtherPart,
    Part,
    Reasoning,
    Refusal,
    System,
    Text,
    ToolCall,
    ToolResult,
    User,
)
from router.nearest import did_you_mean

Json: TypeAlias = dict[str, Any]
RESPONSES: Final = "openai-responses"
"""Whose words the `extra` of an item are that was read here; no vendor is sent them in another protocol."""
_CHAT: Final = "openai"
_CUSTOM_OUTPUT: Final = "custom_tool_call_output"
_LONGEST_QUOTE: Final = 40
_PROTOCOL: Final = re.compile(r"[a-z0-9_-]{1,40}")
_OURS: Final = frozenset({"id", "object", "status", "created_by", "created_at", "deltaway"})
"""Fields of an item that was read here: of one that is added they say nothing."""


# -- showing -------------------------------------------------------------------------------------------------------


def shown(item: Item) -> Json:
    """The item in OpenAI's words."""
    show = _beside if item.protocol == RESPONSES else _inside
    message = item.message
    fields: Json = {"id": item.id, "status": item.status}
    match message:
        case ToolResult(call_id, content, name, is_error):
            output = content if isinstance(content, str) else [_input_part(part, show) for part in content]
            fields |= {"type": "function_call_output", "call_id": call_id or "", "output": output}
            fields |= _told({"name": name, "is_error": is_error or None})
            fields = show(fields, message.extra)
        case Assistant(tool_calls=(call, *_)):
            kind, arguments = ("custom_tool_call", "input") if call.kind == "custom" else ("function_call", "arguments")
            fields |= {"type": kind, "call_id": call.id, "name": call.name, arguments: call.arguments}
            fields = {**show(fields, call.extra), **_of_message(message)}
        case Assistant(reasoning=(reasoning, *_)):
            # of a summary alone the text is that, and stands in `extra` as it was divided
            alone = show is _beside and "summary" in reasoning.extra
            texts = [{"type": "reasoning_text", "text": reasoning.text}] if reasoning.text and not alone else []
            fields |= {"type": "reasoning", "summary": [], "content": texts, "encrypted_content": reasoning.encrypted}
            fields |= _told({"signature": reasoning.signature, "redacted": reasoning.redacted})
            fields = {**show(fields, reasoning.extra), **_of_message(message)}
        case Assistant():
            said = [_output_part(part, show) for part in _parts(message.content)]
            if message.refusal is not None:
                said.append({"type": "refusal", "refusal": message.refusal})
            fields |= {"type": "message", "role": "assistant", "content": said, **_told({"name": message.name})}
            fields = show(fields, message.extra)
        case System() | User():
            role = message.role if isinstance(message, System) else "user"
            parts = [_input_part(part, show) for part in _parts(message.content)]
            fields |= {"type": "message", "role": role, "content": parts, **_told({"name": message.name})}
            fields = show(fields, message.extra)
    if show is _inside and _has_extra(message):
        fields["protocol"] = item.protocol
    return fields


_Show: TypeAlias = Callable[[Json, Extra], Json]


def _beside(fields: Json, extra: Extra) -> Json:
    return {**fields, **extra}


def _inside(fields: Json, extra: Extra) -> Json:
    return {**fields, "extra": extra} if extra else fields


def _told(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _of_message(message: Assistant) -> Json:
    """What the message around a call or a reasoning has."""
    return _told({"message_name": message.name, "message_extra": message.extra or None})


def _parts(content: Content | None) -> tuple[Part, ...]:
    if content is None:
        return ()
    return (Text(content),) if isinstance(content, str) else content


def _has_extra(message: Message) -> bool:
    """Whether something in it is in the words of a protocol."""
    return any(isinstance(node, OtherPart) or node.extra for node in _nodes(message))


def _nodes(message: Message) -> Iterator[Message | Part | ToolCall]:
    yield message
    yield from _parts(message.content)
    if isinstance(message, Assistant):
        yield from message.tool_calls
        yield from message.reasoning


def _output_part(part: Part, show: _Show) -> Json:
    if isinstance(part, Text):
        return show({"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}, part.extra)
    return _input_part(part, show)


def _input_part(part: Part, show: _Show) -> Json:
    shown: Json
    match part:
        case OtherPart(fields):
            return fields
        case Text(text):
            shown = {"type": "input_text", "text": text}
        case Image(url, file_id, detail):
            shown = {"type": "input_image", "image_url": url or None, "file_id": file_id, "detail": detail or "auto"}
        case Audio(data, format):
            shown = {"type": "input_audio", "input_audio": {"data": data, "format": format}}
        case File(file_id, filename, data, url):
            said = {"file_id": file_id, "filename": filename, "file_data": data, "file_url": url}
            shown = {"type": "input_file", **_told(said)}
        case Refusal(text):
            shown = {"type": "refusal", "refusal": text}
        case Reasoning(text, signature, redacted, encrypted):
            seals = {"signature": signature, "redacted": redacted, "encrypted_content": encrypted}
            shown = {"type": "reasoning_text", "text": text, **_told(seals)}
    return show(shown, part.extra)


# -- reading -------------------------------------------------------------------------------------------------------


class _At:
    """A place in the body, for errors; its fields are taken one by one, and what is left is a mistake.

    `words`: the protocol that the item names; None: what is not ours is in OpenAI's, beside the others.
    """

    def __init__(self, place: str, value: object, words: str | None = None) -> None:
        self.place = place
        self.words = words
        if not isinstance(value, dict):
            raise _wrong(place, "expected an object")
        self.fields: Json = dict(value)

    def text(self, name: str) -> str | None:
        value = self.fields.pop(name, None)
        if value is not None and not isinstance(value, str):
            raise _wrong(f"{self.place}.{name}", "expected text")
        return value

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise _missing(f"{self.place}.{name}")
        return value

    def parts(self, name: str) -> "list[_At]":
        """A list of objects; of none, none."""
        place, value = f"{self.place}.{name}", self.fields.pop(name, None)
        if not isinstance(value, list | None):
            raise _wrong(place, "expected a list of parts")
        return [_At(f"{place}[{index}]", each, self.words) for index, each in enumerate(value or ())]

    def extra(self, *known: str) -> Extra:
        """What our messages have no word for: `known` are OpenAI's words at this place."""
        said = {name: self.fields.pop(name, None) for name in known}
        # what is shown of every item, and says nothing
        said = {name: value for name, value in said.items() if value is not None and value != []}
        if self.words is None:
            return said
        for name in said:
            raise _wrong(f"{self.place}.{name}", "not beside `protocol`: the item is in the words of that")
        return self.object("extra")

    def object(self, name: str) -> Extra:
        value = self.fields.pop(name, None)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _wrong(f"{self.place}.{name}", "expected an object")
        return value

    def end(self) -> None:
        """Raises `InvalidRequest` for what nobody has taken."""
        for name in self.fields:
            place = f"{self.place}.{name[:_LONGEST_QUOTE]}"
            raise InvalidRequest(f"`{place}`: unknown field", code="unknown_parameter", param=place)


def read_item(value: object, place: str) -> tuple[Message, str]:
    """An item of a request: the message that it holds, of one kind, and the protocol whose words its `extra` are.
    Raises `InvalidRequest`, naming the place."""
    at = _At(place, value)
    for name in _OURS:
        at.fields.pop(name, None)
    at.words = at.text("protocol")
    if at.words is not None and (at.words == RESPONSES or not _PROTOCOL.fullmatch(at.words)):
        raise _wrong(
            f"{place}.protocol", "expected the name of a protocol, such as `openai`; leave it out for this one"
        )
    kind = at.text("type")
    if kind is None:
        if "role" not in at.fields:
            raise _missing(f"{place}.type")
        kind = "message"
    read = _KINDS.get(kind)
    if read is None:
        raise _unknown(f"{place}.type", kind, _KINDS)
    message = read(at)
    at.end()
    return message, at.words or (RESPONSES if _has_extra(message) else _CHAT)


def _message(at: _At) -> Message:
    role, name = at.required("role"), at.text("name")
    match role:
        case "user":
            return User(_content(at, _INPUT), name, at.extra("phase"))
        case "system" | "developer":
            return System(_content(at, _INPUT), role, name, at.extra("phase"))
        case "assistant":
            content = _content(at, _OUTPUT)
            extra = at.extra("phase")
            if not content:
                # shown so where something else than words is all that there is, in `extra`
                return Assistant("" if content == "" else None, name=name, extra=extra)
            alone = content[0] if len(content) == 1 else None
            if isinstance(alone, Refusal) and not alone.extra:
                return Assistant(refusal=alone.text, name=name, extra=extra)
            return Assistant(content, name=name, extra=extra)
    raise _unknown(f"{at.place}.role", role, ("user", "assistant", "system", "developer"))


def _content(at: _At, kinds: "Mapping[str, Callable[[_At], Part]]", field: str = "content") -> Content:
    place, value = f"{at.place}.{field}", at.fields.get(field)
    if value is None:
        raise _missing(place)
    if isinstance(value, str):
        del at.fields[field]
        return value
    if not isinstance(value, list):
        raise _wrong(place, "expected text, or a list of parts")
    if not value and kinds is not _OUTPUT:
        raise _wrong(place, "expected a part at least")
    parts = tuple(_part(part, kinds) for part in at.parts(field))
    # one text is what most messages are, and then it is no matter how it was written
    if len(parts) == 1 and isinstance(parts[0], Text) and not parts[0].extra:
        return parts[0].text
    return parts


def _part(at: _At, kinds: "Mapping[str, Callable[[_At], Part]]") -> Part:
    verbatim = dict(at.fields)
    kind = at.required("type")
    if kind not in kinds:
        if at.words is not None:
            return OtherPart(verbatim)
        raise _unknown(f"{at.place}.type", kind, kinds)
    part = kinds[kind](at)
    at.end()
    return part


def _text_part(at: _At) -> Part:
    return Text(at.required("text"), at.extra("annotations", "logprobs", "prompt_cache_breakpoint"))


def _image_part(at: _At) -> Part:
    url, file_id, detail = at.text("image_url"), at.text("file_id"), at.text("detail")
    if not url and not file_id:
        raise _wrong(at.place, "an image needs `image_url` or `file_id`")
    return Image(url or "", file_id, None if detail == "auto" else detail, at.extra("prompt_cache_breakpoint"))


def _audio_part(at: _At) -> Part:
    inner = _At(f"{at.place}.input_audio", at.fields.pop("input_audio", None))
    part = Audio(inner.required("data"), inner.required("format"), at.extra("prompt_cache_breakpoint"))
    inner.end()
    return part


def _file_part(at: _At) -> Part:
    file = File(at.text("file_id"), at.text("filename"), at.text("file_data"), at.text("file_url"))
    if not (file.file_id or file.data or file.url):
        raise _wrong(at.place, "a file needs `file_id`, `file_data` or `file_url`")
    return structs.replace(file, extra=at.extra("detail", "prompt_cache_breakpoint"))


def _refusal_part(at: _At) -> Part:
    return Refusal(at.required("refusal"), at.extra())


def _reasoning_part(at: _At) -> Part:
    text = at.required("text")
    return Reasoning(text, at.text("signature"), at.text("redacted"), at.text("encrypted_content"), at.extra())


_INPUT: Final[dict[str, Callable[[_At], Part]]] = {
    "input_text": _text_part,
    "text": _text_part,
    "output_text": _text_part,
    "input_image": _image_part,
    "input_audio": _audio_part,
    "input_file": _file_part,
}
_OUTPUT: Final[dict[str, Callable[[_At], Part]]] = {
    **_INPUT,
    "refusal": _refusal_part,
    "reasoning_text": _reasoning_part,
}


def _function_call(at: _At) -> Message:
    call = ToolCall(at.required("call_id"), at.required("name"), at.required("arguments"))
    return _called(at, structs.replace(call, extra=at.extra("namespace", "caller", "async")))


def _custom_call(at: _At) -> Message:
    call = ToolCall(at.required("call_id"), at.required("name"), at.required("input"), "custom")
    return _called(at, structs.replace(call, extra=at.extra("namespace", "caller", "async")))


def _called(at: _At, call: ToolCall) -> Message:
    return Assistant(tool_calls=(call,), name=at.text("message_name"), extra=_message_extra(at))


def _message_extra(at: _At) -> Extra:
    return {} if at.words is None else at.object("message_extra")


def _call_output(at: _At) -> Message:
    call_id, name = at.required("call_id"), at.text("name")
    if not call_id and not name:
        # only what the deprecated `function` role returned has none
        raise _wrong(f"{at.place}.call_id", "expected the id of a call")
    is_error = at.fields.pop("is_error", None)
    if not isinstance(is_error, bool | None):
        raise _wrong(f"{at.place}.is_error", "expected true or false")
    output = _content(at, _INPUT, "output")
    return ToolResult(call_id or None, output, name, bool(is_error), at.extra("caller"))


def _custom_output(at: _At) -> Message:
    result = _call_output(at)
    # which call it is of is told by the call's id: to vendors it is no matter
    return result if at.words is not None else structs.replace(result, extra={**result.extra, "type": _CUSTOM_OUTPUT})


def _reasoning_item(at: _At) -> Message:
    said = {name: at.fields.get(name) for name in ("summary", "content")}
    texts = {name: [_reasoned(part, kind) for part in at.parts(name)] for name, kind in _REASONED.items()}
    if texts["summary"] or len(texts["content"]) > 1:
        # how it was divided has no word here
        at.fields |= said
    reasoning = Reasoning(
        "\n\n".join(texts["content"] or texts["summary"]),
        at.text("signature"),
        at.text("redacted"),
        at.text("encrypted_content"),
        at.extra("summary", "content"),
    )
    return Assistant(reasoning=(reasoning,), name=at.text("message_name"), extra=_message_extra(at))


_REASONED: Final = {"content": "reasoning_text", "summary": "summary_text"}


def _reasoned(at: _At, kind: str) -> str:
    said = at.required("type")
    if said != kind:
        raise _unknown(f"{at.place}.type", said, (kind,))
    text = at.required("text")
    at.end()
    return text


_KINDS: Final[dict[str, Callable[[_At], Message]]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _call_output,
    "custom_tool_call": _custom_call,
    _CUSTOM_OUTPUT: _custom_output,
    "reasoning": _reasoning_item,
}


def _missing(place: str) -> InvalidRequest:
    return InvalidRequest(f"`{place}`: required, but missing", code="missing_required_parameter", param=place)


def _wrong(place: str, words: str) -> InvalidRequest:
    return InvalidRequest(f"`{place}`: {words}", code="invalid_type", param=place)


def _unknown(place: str, word: str, known: Iterable[str]) -> InvalidRequest:
    words, quoted = tuple(known), word[:_LONGEST_QUOTE]
    return InvalidRequest(
        f"`{place}` cannot be `{quoted}`{did_you_mean(quoted, words)} (known: {', '.join(words)})",
        code="invalid_value",
        param=place,
    )
