"""A conversation in DashScope's words: `input.messages`. Knows the two content formats; no parameters, no HTTP."""

from collections.abc import Iterator
from typing import Any, Final, assert_never

import msgspec

from providers.dashscope.families import Path
from router.errors import InvalidRequest
from router.messages import (
    Assistant,
    Audio,
    ChatRequest,
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

_IMAGE_HINTS: Final = frozenset({"cache_control", "min_pixels", "max_pixels", "total_pixels", "enable_rotate"})
_VIDEO_HINTS: Final = _IMAGE_HINTS | {"fps", "max_frames"}
_CACHE: Final = frozenset({"cache_control"})
_CACHE_MARKS: Final = _CACHE | {"prompt_cache_breakpoint"}
_NESTED: Final = frozenset({"image_url", "input_audio", "function", "custom"})


def is_media(part: Part) -> bool:
    """Whether a part can go to a multimodal model only."""
    return isinstance(part, (Image, Audio, OtherPart))


def media_place(request: ChatRequest) -> str | None:
    """Where the first image, sound or video of a request is, as a JSON path."""
    for i, message in enumerate(request.messages):
        if isinstance(message.content, tuple):
            for j, part in enumerate(message.content):
                if is_media(part):
                    return f"$.messages[{i}].content[{j}]"
    return None


class Conversation:
    """Writes one request's messages and collects what has no equal.

    On the `text` path content is a string, or a list of texts where one of them carries a cache mark; `plain` says
    that the model refuses lists. On the `multimodal` path content is a list of objects keyed by modality.
    """

    def __init__(self, path: Path, *, plain: bool, keep_reasoning: bool) -> None:
        self._path = path
        self._plain = plain
        self._keep_reasoning = keep_reasoning
        self._call_ids: dict[str, str] = {}
        self.dropped: list[str] = []
        self.uses_oss = False
        """Whether a media address is one of Alibaba's own storage, which needs a header."""

    def write(self, request: ChatRequest) -> list[dict[str, Any]]:
        messages = [self._message(message, f"messages[{i}]") for i, message in _joined(request.messages)]
        self._check_last(request, messages)
        return messages

    def _check_last(self, request: ChatRequest, messages: list[dict[str, Any]]) -> None:
        place = f"$.messages[{len(request.messages) - 1}]" if messages else "$.messages"
        last: dict[str, Any] = messages[-1] if messages else {"role": None}
        if last["role"] in ("user", "tool") or (last["role"] == "assistant" and last.get("partial")):
            return
        if last["role"] == "assistant" and request.protocol == "anthropic" and not last.get("tool_calls"):
            # Anthropic's prefill: the model goes on from here
            last["partial"] = True
            return
        raise InvalidRequest(
            "the last message must be from the user or a tool, or from the assistant with `partial: true` "
            "to have it continued: add one",
            param=place,
        )

    def _message(self, message: Message, place: str) -> dict[str, Any]:
        if message.name is not None and not isinstance(message, ToolResult):
            self.dropped.append(f"{place}.name")
        mark = message.extra.get("cache_control")
        known: frozenset[str] = frozenset() if isinstance(message, ToolResult) else _CACHE
        match message:
            case System():
                written = {"role": "system", "content": self._content(message.content, place, mark)}
            case User():
                written = {"role": "user", "content": self._content(message.content, place, mark)}
            case Assistant():
                known |= {"partial", "reasoning_content", "function_call"}
                written = self._assistant(message, place, mark)
            case ToolResult():
                written = self._tool_result(message, place)
            case _:
                assert_never(message)
        self._drop_unknown(message.extra, known, place)
        return written

    def _assistant(self, message: Assistant, place: str, mark: Any) -> dict[str, Any]:
        parts = tuple(part for part in _parts(message.content) if not isinstance(part, Reasoning))
        if message.refusal:
            parts = (*parts, Text(message.refusal))
        # a message of tool calls alone has the empty string on both paths
        written: dict[str, Any] = {"role": "assistant", "content": self._content(parts, place, mark)}
        calls = message.tool_calls
        if deprecated := _function_call(message.extra):
            calls = (*calls, deprecated)
        if calls:
            written["tool_calls"] = [self._call(call, place, j) for j, call in enumerate(calls)]
        if message.extra.get("partial"):
            written["partial"] = True
        reasoning = reasoning_of(message)
        if reasoning and self._keep_reasoning:
            written["reasoning_content"] = reasoning
        elif reasoning:
            # it would be billed as input again
            self.dropped.append(f"{place}.reasoning_content")
        return written

    def _call(self, call: ToolCall, place: str, index: int) -> dict[str, Any]:
        call_id = call.id or f"call_{len(self._call_ids)}"
        self._call_ids[call.name] = call_id
        self._drop_unknown(call.extra, frozenset({"index"}), f"{place}.tool_calls[{index}]")
        arguments = call.arguments or "{}"
        if call.kind == "custom":
            arguments = msgspec.json.encode({"input": call.arguments}).decode()
        return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    def _tool_result(self, message: ToolResult, place: str) -> dict[str, Any]:
        if isinstance(message.content, tuple):
            self._refuse_media(message.content, place, "DashScope takes text alone as the result of a tool")
            if any(_is_marked(part) for part in message.content):
                self.dropped.append(f"{place}.cache_control")
        if message.is_error:
            self.dropped.append(f"{place}.is_error")
        # the deprecated `function` role names its call only
        call_id = message.call_id or self._call_ids.get(message.name or "") or message.name or ""
        written: dict[str, Any] = {
            "role": "tool",
            "content": self._flat(message.content, place),
            "tool_call_id": call_id,
        }
        if message.name is not None:
            written["name"] = message.name
        return written

    # -- content ---------------------------------------------------------------------------------------------------

    def _content(self, content: Content, place: str, mark: Any = None) -> str | list[dict[str, Any]]:
        if not content:
            return ""
        parts = _parts(content)
        if self._path == "multimodal":
            return self._marked([self._part(part, f"{place}.content[{j}]") for j, part in enumerate(parts)], mark)
        if isinstance(content, tuple):
            self._refuse_media(content, place, "the model takes text only")
        marks = any(_is_marked(part) for part in parts)
        if self._plain and (marks or mark is not None):
            self.dropped.append(f"{place}.cache_control")
        if self._plain or not (marks or mark is not None):
            return self._flat(content, place)
        written = [self._part(part, f"{place}.content[{j}]") for j, part in enumerate(parts)]
        return self._marked([{"type": "text", **part} for part in written], mark)

    def _marked(self, parts: list[dict[str, Any]], mark: Any) -> list[dict[str, Any]]:
        """A mark on the message itself, as some clients set it, belongs to its last part."""
        if mark is not None and parts:
            parts[-1].setdefault("cache_control", mark)
        return parts

    def _flat(self, content: Content, place: str) -> str:
        """The text of a message in one string."""
        if isinstance(content, str):
            return content
        texts = [self._part(part, f"{place}.content[{j}]") for j, part in enumerate(content)]
        return "".join(text["text"] for text in texts)

    def _part(self, part: Part, place: str) -> dict[str, Any]:
        match part:
            case Text():
                return {"text": part.text, **self._hints(part.extra, _CACHE, place)}
            case Refusal() | Reasoning():
                return {"text": part.text, **self._hints(part.extra, _CACHE, place)}
            case Image(url=""):
                raise InvalidRequest("DashScope takes an image's address or data, no file id", param=f"$.{place}")
            case Image():
                if part.detail not in (None, "auto"):
                    self.dropped.append(f"{place}.image_url.detail")
                return {"image": self._address(part.url), **self._hints(part.extra, _IMAGE_HINTS, place)}
            case Audio():
                return {"audio": self._sound(part), **self._hints(part.extra, _CACHE, place)}
            case OtherPart():
                return self._other(part.fields, place)
            case File():
                raise InvalidRequest(
                    "DashScope's chat models take no files: send the document's text, or its pages as images",
                    param=f"$.{place}",
                )
            case _:
                assert_never(part)

    def _other(self, fields: Extra, place: str) -> dict[str, Any]:
        """A video in the words of DashScope's OpenAI-compatible mode, or a part that is native already."""
        kind = fields.get("type")
        rest = {key: value for key, value in fields.items() if key not in ("type", "video", "video_url")}
        if kind == "video_url":
            video = fields.get("video_url")
            url = video.get("url") if isinstance(video, dict) else video
            if isinstance(url, str):
                return {"video": self._address(url), **self._hints(rest, _VIDEO_HINTS, place)}
        elif kind in (None, "video", "image", "audio"):
            modality = next((key for key in ("video", "image", "audio") if key in fields), None)
            if modality is not None:
                value = fields[modality]
                for url in value if isinstance(value, list) else [value]:
                    self._address(url if isinstance(url, str) else "")
                hints = {key: hint for key, hint in rest.items() if key != modality}
                return {modality: value, **self._hints(hints, _VIDEO_HINTS, place)}
        raise InvalidRequest(
            f"DashScope has no content part of type {kind!r} (known: text, image_url, input_audio, video, video_url)",
            param=f"$.{place}",
        )

    def _sound(self, part: Audio) -> str:
        if "://" in part.data[:16] or part.data.startswith("data:"):
            return self._address(part.data)
        return f"data:audio/{part.format};base64,{part.data}"

    def _address(self, url: str) -> str:
        self.uses_oss = self.uses_oss or url.startswith("oss://")
        return url

    def _hints(self, extra: Extra, known: frozenset[str], place: str) -> Extra:
        self._drop_unknown(extra, known | {"prompt_cache_breakpoint"}, place)
        hints = {key: value for key, value in extra.items() if key in known and value is not None}
        breakpoint_ = extra.get("prompt_cache_breakpoint")
        if breakpoint_ is not None:
            # OpenAI's word for the same; the lifetime is the vendor's own
            hints.setdefault("cache_control", {"type": "ephemeral"})
            if isinstance(breakpoint_, dict) and breakpoint_.get("ttl") is not None:
                self.dropped.append(f"{place}.prompt_cache_breakpoint.ttl")
        return hints

    def _refuse_media(self, parts: tuple[Part, ...], place: str, why: str) -> None:
        for j, part in enumerate(parts):
            if is_media(part):
                raise InvalidRequest(f"{why}; leave this part out", param=f"$.{place}.content[{j}]")

    def _drop_unknown(self, extra: Extra, known: frozenset[str], place: str) -> None:
        for key, value in extra.items():
            if key in known or value is None:
                continue
            # fields of an object that the neutral model flattens stand under its name
            names = [f"{key}.{inner}" for inner in value] if key in _NESTED and isinstance(value, dict) else [key]
            self.dropped.extend(f"{place}.{name}" for name in names)


def reasoning_of(message: Assistant) -> str:
    """The reasoning of an earlier turn, as readable text."""
    parts = [*message.reasoning]
    if isinstance(message.content, tuple):
        parts += [part for part in message.content if isinstance(part, Reasoning)]
    given = message.extra.get("reasoning_content")
    return "".join(part.text for part in parts) or (given if isinstance(given, str) else "")


def _joined(messages: tuple[Message, ...]) -> Iterator[tuple[int, Message]]:
    """The messages with their places. Assistants side by side are one turn in an order of its own: one message."""
    waiting: tuple[int, Message] | None = None
    for i, message in enumerate(messages):
        if waiting is not None and isinstance(waiting[1], Assistant) and isinstance(message, Assistant):
            waiting = (waiting[0], _one_turn(waiting[1], message))
            continue
        if waiting is not None:
            yield waiting
        waiting = (i, message)
    if waiting is not None:
        yield waiting


def _one_turn(first: Assistant, then: Assistant) -> Assistant:
    return Assistant(
        (*_parts(first.content), *_parts(then.content)) or None,
        first.tool_calls + then.tool_calls,
        first.reasoning + then.reasoning,
        "".join(text for text in (first.refusal, then.refusal) if text) or None,
        first.name or then.name,
        first.extra | then.extra,
    )


def _parts(content: Content | None) -> tuple[Part, ...]:
    if not content:
        return ()
    return (Text(content),) if isinstance(content, str) else content


def _is_marked(part: Part) -> bool:
    return isinstance(part, Text) and not _CACHE_MARKS.isdisjoint(part.extra)


def _function_call(extra: Extra) -> ToolCall | None:
    """The deprecated form of a tool call, which has no id."""
    call = extra.get("function_call")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments")
    return ToolCall("", call["name"], arguments if isinstance(arguments, str) else "{}")
