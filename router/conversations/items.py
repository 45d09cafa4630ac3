"""Items as OpenAI's Conversations API has them, and back. Pure.

Source: the types of OpenAI's own Python library (`openai.types.conversations`, `openai.types.responses`). What that
format has no word for stands under its own name beside the others (`signature`, `redacted`), so that an item which is
read and added again says the same.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from router.conversation import Item
from router.errors import InvalidRequest
from router.messages import (
    Assistant,
    Audio,
    Content,
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
_LONGEST_QUOTE: Final = 40
_OURS: Final = frozenset({"id", "object", "status", "created_at", "deltaway"})
"""Fields of an item that was read here: of one that is added they say nothing."""


# -- showing -------------------------------------------------------------------------------------------------------


def shown(item: Item) -> Json:
    """The item in OpenAI's words."""
    head: Json = {"id": item.id, "status": item.status}
    match item.message:
        case ToolResult(call_id, content, name):
            fields: Json = {
                "type": "function_call_output",
                **head,
                "call_id": call_id or "",
                "output": _output(content),
            }
            return fields if name is None else {**fields, "name": name}
        case Assistant(tool_calls=(call, *_)):
            if call.kind == "custom":
                return {
                    **head,
                    "type": "custom_tool_call",
                    "call_id": call.id,
                    "name": call.name,
                    "input": call.arguments,
                }
            return {
                **head,
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
            }
        case Assistant(reasoning=(reasoning, *_)):
            return {**head, "type": "reasoning", "summary": [], **_reasoning(reasoning)}
        case Assistant() as message:
            said = list(map(_output_part, _parts(message.content)))
            if message.refusal is not None:
                said.append({"type": "refusal", "refusal": message.refusal})
            return {**head, "type": "message", "role": "assistant", "content": said, **_named(message.name)}
        case System() as message:
            parts = list(map(_input_part, _parts(message.content)))
            return {**head, "type": "message", "role": message.role, "content": parts, **_named(message.name)}
        case User() as message:
            parts = list(map(_input_part, _parts(message.content)))
            return {**head, "type": "message", "role": "user", "content": parts, **_named(message.name)}


def _named(name: str | None) -> Json:
    return {} if name is None else {"name": name}


def _parts(content: Content | None) -> tuple[Part, ...]:
    if content is None:
        return ()
    return (Text(content),) if isinstance(content, str) else content


def _output(content: Content) -> str | list[Json]:
    return content if isinstance(content, str) else list(map(_input_part, content))


def _reasoning(reasoning: Reasoning) -> Json:
    fields: Json = {"content": [{"type": "reasoning_text", "text": reasoning.text}] if reasoning.text else []}
    fields["encrypted_content"] = reasoning.encrypted
    for name in ("signature", "redacted"):
        value = getattr(reasoning, name)
        if value is not None:
            fields[name] = value
    return fields


def _output_part(part: Part) -> Json:
    if isinstance(part, Text):
        return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}
    return _input_part(part)


def _input_part(part: Part) -> Json:
    match part:
        case Text(text):
            return {"type": "input_text", "text": text}
        case Image(url, file_id, detail):
            return {"type": "input_image", "image_url": url or None, "file_id": file_id, "detail": detail or "auto"}
        case Audio(data, format):
            return {"type": "input_audio", "input_audio": {"data": data, "format": format}}
        case File(file_id, filename, data, url):
            said = {"file_id": file_id, "filename": filename, "file_data": data, "file_url": url}
            return {"type": "input_file", **{name: value for name, value in said.items() if value is not None}}
        case Refusal(text):
            return {"type": "refusal", "refusal": text}
        case Reasoning(text):
            return {"type": "reasoning_text", "text": text}
        case OtherPart(fields):
            return fields


# -- reading -------------------------------------------------------------------------------------------------------


class _At:
    """A place in the body, for errors; its fields are taken one by one, and what is left is a mistake."""

    def __init__(self, place: str, value: object) -> None:
        self.place = place
        if not isinstance(value, dict):
            raise _wrong(place, "expected an object")
        self.fields: Json = dict(value)

    def text(self, name: str, *, required: bool = True, default: str | None = None) -> str | None:
        value = self.fields.pop(name, None)
        if value is None:
            if required:
                raise InvalidRequest(
                    f"`{self.place}.{name}`: required, but missing",
                    code="missing_required_parameter",
                    param=f"{self.place}.{name}",
                )
            return default
        if not isinstance(value, str):
            raise _wrong(f"{self.place}.{name}", "expected text")
        return value

    def required(self, name: str) -> str:
        return self.text(name) or ""

    def end(self) -> None:
        """Raises `InvalidRequest` for what nobody has taken."""
        for name in self.fields:
            raise InvalidRequest(
                f"`{self.place}.{name[:_LONGEST_QUOTE]}`: unknown field",
                code="unknown_parameter",
                param=f"{self.place}.{name[:_LONGEST_QUOTE]}",
            )


def read_item(value: object, place: str) -> Message:
    """An item of a request as the message that it holds. Raises `InvalidRequest`, naming the place."""
    at = _At(place, value)
    for name in _OURS:
        at.fields.pop(name, None)
    kind = at.text("type", required="role" not in at.fields, default="message")
    read = _KINDS.get(kind or "")
    if read is None:
        raise _unknown(f"{place}.type", kind, _KINDS)
    message = read(at)
    at.end()
    return message


def _message(at: _At) -> Message:
    role = at.required("role")
    name = at.text("name", required=False)
    at.fields.pop("phase", None)
    match role:
        case "user":
            return User(_content(at, _INPUT), name)
        case "system" | "developer":
            return System(_content(at, _INPUT), role, name)
        case "assistant":
            content = _content(at, _OUTPUT)
            if isinstance(content, tuple) and len(content) == 1 and isinstance(content[0], Refusal):
                return Assistant(refusal=content[0].text, name=name)
            return Assistant(content, name=name)
    raise _unknown(f"{at.place}.role", role, ("user", "assistant", "system", "developer"))


def _content(at: _At, kinds: "Mapping[str, Callable[[_At], Part]]", field: str = "content") -> Content:
    place, value = f"{at.place}.{field}", at.fields.pop(field, None)
    if value is None:
        raise InvalidRequest(f"`{place}`: required, but missing", code="missing_required_parameter", param=place)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong(place, "expected text, or a list of parts")
    parts: list[Part] = []
    for index, each in enumerate(value):
        part = _At(f"{place}[{index}]", each)
        kind = part.required("type")
        if kind not in kinds:
            raise _unknown(f"{part.place}.type", kind, kinds)
        parts.append(kinds[kind](part))
        part.end()
    # one text is what most messages are, and then it is no matter how it was written
    return parts[0].text if len(parts) == 1 and isinstance(parts[0], Text) else tuple(parts)


def _text_part(at: _At) -> Part:
    at.fields.pop("annotations", None)
    at.fields.pop("logprobs", None)
    return Text(at.required("text"))


def _image_part(at: _At) -> Part:
    url, file_id = at.text("image_url", required=False), at.text("file_id", required=False)
    if url is None and file_id is None:
        raise _wrong(at.place, "an image needs `image_url` or `file_id`")
    detail = at.text("detail", required=False)
    return Image(url or "", file_id, None if detail == "auto" else detail)


def _audio_part(at: _At) -> Part:
    inner = _At(f"{at.place}.input_audio", at.fields.pop("input_audio", None))
    part = Audio(inner.required("data"), inner.required("format"))
    inner.end()
    return part


def _file_part(at: _At) -> Part:
    at.fields.pop("detail", None)
    said = {name: at.text(name, required=False) for name in ("file_id", "filename", "file_data", "file_url")}
    if not (said["file_id"] or said["file_data"] or said["file_url"]):
        raise _wrong(at.place, "a file needs `file_id`, `file_data` or `file_url`")
    return File(said["file_id"], said["filename"], said["file_data"], said["file_url"])


def _refusal_part(at: _At) -> Part:
    return Refusal(at.required("refusal"))


_INPUT: Final[dict[str, Callable[[_At], Part]]] = {
    "input_text": _text_part,
    "text": _text_part,
    "output_text": _text_part,
    "input_image": _image_part,
    "input_audio": _audio_part,
    "input_file": _file_part,
}
_OUTPUT: Final[dict[str, Callable[[_At], Part]]] = {**_INPUT, "refusal": _refusal_part}


def _function_call(at: _At) -> Message:
    at.fields.pop("namespace", None)
    call = ToolCall(at.required("call_id"), at.required("name"), at.text("arguments") or "")
    return Assistant(tool_calls=(call,))


def _custom_call(at: _At) -> Message:
    return Assistant(
        tool_calls=(ToolCall(at.required("call_id"), at.required("name"), at.text("input") or "", "custom"),)
    )


def _call_output(at: _At) -> Message:
    name = at.text("name", required=False)
    return ToolResult(at.required("call_id"), _content(at, _INPUT, "output"), name)


def _reasoning_item(at: _At) -> Message:
    texts: list[str] = []
    for field in ("content", "summary"):
        value = at.fields.pop(field, None) or []
        if not isinstance(value, list):
            raise _wrong(f"{at.place}.{field}", "expected a list of parts")
        for index, each in enumerate(value):
            part = _At(f"{at.place}.{field}[{index}]", each)
            part.required("type")
            texts.append(part.required("text"))
            part.end()
    seals = {name: at.text(name, required=False) for name in ("signature", "redacted", "encrypted_content")}
    reasoning = Reasoning("\n\n".join(texts), seals["signature"], seals["redacted"], seals["encrypted_content"])
    return Assistant(reasoning=(reasoning,))


_KINDS: Final[dict[str, Callable[[_At], Message]]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _call_output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _call_output,
    "reasoning": _reasoning_item,
}


def _wrong(place: str, words: str) -> InvalidRequest:
    return InvalidRequest(f"`{place}`: {words}", code="invalid_type", param=place)


def _unknown(place: str, word: str | None, known: Iterable[str]) -> InvalidRequest:
    words = tuple(known)
    shown_ = (word or "")[:_LONGEST_QUOTE]
    return InvalidRequest(
        f"`{place}` cannot be `{shown_}`{did_you_mean(shown_, words)} (known: {', '.join(words)})",
        code="invalid_value",
        param=place,
    )
