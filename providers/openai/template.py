"""The short way for chunks that differ from one before in their text alone, as most chunks of an answer do.

A chunk that was read the long way is split at the JSON string that holds its text. Any other chunk that is the same
bytes around another JSON string is the same document with another text, and can only mean the same event. OpenAI's
`obfuscation`, a padding of random letters, is a second such string.
"""

import re
from typing import Any, Final

import msgspec

from router.events import ReasoningDelta, TextDelta

_decode: Final = msgspec.json.Decoder().decode
_decode_text: Final = msgspec.json.Decoder(str).decode
_PADDING: Final = re.compile(rb'"obfuscation"\s*:\s*"[A-Za-z0-9]*"')
_PROBE: Final = "\u0001probe"
_PROBE_JSON: Final = b'"\\u0001probe"'


class Template:
    """The bytes around the text, and the event it becomes."""

    __slots__ = ("_after", "_before", "_end", "_event", "_start")

    def __init__(self, before: bytes, after: bytes, end: bytes, event: TextDelta | ReasoningDelta) -> None:
        self._before = before
        self._start = len(before)
        self._after = after
        self._end = end
        """What follows the padding; empty where there is none."""
        self._event = event

    def read(self, data: bytes) -> TextDelta | ReasoningDelta | None:
        """The event of a chunk; None if it has to be read the long way."""
        if not data.startswith(self._before):
            return None
        if self._end:
            stop = data.find(self._after, self._start)
            padding = stop + len(self._after)
            close = len(data) - len(self._end)
            if stop < 0 or padding > close or not data.endswith(self._end):
                return None
            if padding < close and not data[padding:close].isalnum():
                return None
        elif data.endswith(self._after):
            stop = len(data) - len(self._after)
        else:
            return None
        try:
            text = _decode_text(data[self._start : stop])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if not text:
            return None
        event = self._event
        return type(event)(event.choice, event.slot, text, extra=event.extra)


def template_of(data: bytes, chunk: dict[str, Any], key: str, event: TextDelta | ReasoningDelta) -> Template | None:
    """A template from a chunk whose only event is `event`, made of `choices[0].delta[key]`.

    None unless it is proved: the bytes with another text put in must decode to the chunk with that text.
    """
    if event.extra is not None and (
        event.extra.answer or _has_list(event.extra.choice) or _has_list(event.extra.block)
    ):
        # a list may be added to by whoever keeps it, so it cannot be shared by many events
        return None
    name = b'"%b"' % key.encode()
    if data.count(name) != 1:
        return None
    found = re.compile(rb"\s*:\s*").match(data, data.index(name) + len(name))
    if found is None:
        return None
    start = found.end()
    end = _end_of_text(data, start)
    if end < 0:
        return None
    before, after, close = data[:start], data[end:], b""
    proof = {**chunk, "choices": [{**chunk["choices"][0], "delta": {**chunk["choices"][0]["delta"], key: _PROBE}}]}
    probe = before + _PROBE_JSON + after
    if (padding := _PADDING.search(after)) is not None:
        after, close = after[: padding[0].rindex(b'"', 0, -1) + 1 + padding.start()], after[padding.end() - 1 :]
        proof["obfuscation"] = "probe"
        probe = before + _PROBE_JSON + after + b"probe" + close
    try:
        if _decode(probe) != proof:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Template(before, after, close, event)


def _end_of_text(data: bytes, start: int) -> int:
    """The place after the JSON string that begins at `start`; -1 if none does."""
    if data[start : start + 1] != b'"':
        return -1
    end = start + 1
    while (end := data.find(b'"', end)) >= 0:
        backslashes = end
        while data[backslashes - 1] == 0x5C:
            backslashes -= 1
        if (end - backslashes) % 2 == 0:
            return end + 1
        end += 1
    return -1


def _has_list(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_list, value.values()))
    return isinstance(value, list)
