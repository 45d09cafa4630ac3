"""Bytes of a DashScope response → its JSON values, streamed or whole. Pure; knows nothing of what they mean."""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.errors import ProtocolViolated, StreamCut
from router.sse import MAX_EVENT, Frame, SseParser

MAX_WHOLE: Final = 64 * 1024 * 1024
"""Bytes of an answer that is not streamed."""

_MAX_LINES: Final = 1000
"""Lines that one JSON value may be spread over."""

_NO_JSON: Final = object()
_DATA_LINE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))data:[^\r\n]*(?:\r\n|\r|\n)")
_STATUS: Final = re.compile(r"HTTP_STATUS/(\d{3})")


class Said(Struct, frozen=True):
    """One JSON value of the response, or the raw text of an error event that holds none."""

    value: Any
    failed: bool = False
    """The vendor named the event an error."""
    status: int | None = None
    """The status in the frame's comment, which is the true one."""


class Frames:
    """Feeds on a response's bytes in any cut. What is not SSE is one JSON value, whatever the content type says.

    Older gateways leave the blank lines between frames out, and every frame has one line of data. So each data line
    ends its event at once; JSON that is spread over several lines is put together again.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._format: str | None = None
        self._tail = bytearray()
        self._parser = SseParser(salvage=True)
        self._begun: Said | None = None
        self._lines = 0

    def feed(self, data: bytes) -> Iterator[Said]:
        if self._format is None:
            data = bytes(self._tail) + data
            self._tail.clear()
            start = data.lstrip(b"\xef\xbb\xbf \t\r\n")
            if not start:
                self._keep(data, MAX_EVENT)
                return
            self._format = {b"{": "whole", b"[": "whole", b"<": "html"}.get(start[:1], "frames")
        if self._format == "html":
            raise ProtocolViolated(f"`{self._source}` answered with a web page; check its `base_url`")
        if self._format == "whole":
            self._keep(data, MAX_WHOLE)
            return
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut:
            self._keep(data, MAX_EVENT)
            return
        lines = bytes(self._tail) + data[:cut]
        self._tail.clear()
        self._keep(data[cut:], MAX_EVENT)
        for frame in self._parser.feed(_DATA_LINE.sub(rb"\g<0>\n\n", lines)):
            yield from self._said(frame)

    def finish(self) -> Iterator[Said]:
        rest = bytes(self._tail)
        self._tail.clear()
        if self._format == "whole":
            try:
                yield Said(msgspec.json.decode(rest.lstrip(b"\xef\xbb\xbf \t\r\n")))
            except (msgspec.DecodeError, RecursionError):
                raise ProtocolViolated(f"`{self._source}` answered with JSON that is broken or cut short") from None
        elif self._format == "frames":
            for frame in (*self._parser.feed(rest), *self._parser.finish()):
                yield from self._said(frame)
            if self._begun is not None and self._begun.failed:
                yield Said(self._begun.value.decode("utf-8", "replace"), True, self._begun.status)
        else:
            raise StreamCut(f"`{self._source}` closed the connection without an answer")

    def _keep(self, data: bytes, most: int) -> None:
        self._tail += data
        if len(self._tail) > most:
            raise ProtocolViolated(
                f"`{self._source}` sent more than {most} bytes in one piece; it was cut off", code="event_too_large"
            )

    def _said(self, frame: Frame) -> Iterator[Said]:
        data = frame.data.strip()
        failed = frame.event.strip() == "error"
        status = None
        for comment in frame.comments:
            found = _STATUS.search(comment)
            status = int(found[1]) if found else status
        if not data or data.startswith(b":") or data == b"[DONE]":
            return
        if self._begun is not None:
            failed, status = failed or self._begun.failed, status or self._begun.status
            for joint in (b"\n", b""):
                value = _decoded(self._begun.value + joint + data)
                if value is not _NO_JSON:
                    self._begun = None
                    yield Said(value, failed, status)
                    return
        value = _decoded(data)
        if value is not _NO_JSON and self._begun is None:
            yield Said(value, failed, status)
            return
        self._begin(data, failed, status, whole=isinstance(value, dict))

    def _begin(self, data: bytes, failed: bool, status: int | None, *, whole: bool) -> None:
        """Keep a piece of JSON for the next lines to complete."""
        begun = self._begun.value + b"\n" + data if self._begun is not None else data
        self._lines = self._lines + 1 if self._begun is not None else 1
        if (
            whole
            or self._lines > _MAX_LINES
            or len(begun) > MAX_EVENT
            or not (failed or begun.startswith((b"{", b"[")))
        ):
            raise ProtocolViolated(f"`{self._source}` sent a frame that is not JSON")
        self._begun = Said(begun, failed, status)


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return _NO_JSON
