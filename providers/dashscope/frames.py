"""Bytes of a DashScope response → its JSON values, streamed or whole. Pure; knows nothing of what they mean."""

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from router.errors import ProtocolViolated, StreamCut
from router.sse import MAX_EVENT
from router.wire.vendor_json import BROKEN, decoded

MAX_WHOLE: Final = 64 * 1024 * 1024
"""Bytes of an answer that is not streamed."""

_MAX_LINES: Final = 1000
"""Lines that one JSON value may be spread over."""

_MAX_TRIED: Final = 4 * MAX_EVENT
"""Bytes that may be read again and again to see whether such a value is complete."""

_BLANK: Final = b"\xef\xbb\xbf \t\r\n"
"""A byte order mark and white space, which may come before the answer."""
_STATUS: Final = re.compile(rb":?\s*(?:HTTP_STATUS/|status:)\s*(\d{3})")


class Said(Struct, frozen=True, gc=False):
    """One JSON value of the response, or the raw text of an error event that holds none."""

    value: Any
    failed: bool = False
    """The vendor named the event an error."""
    status: int | None = None
    """The status in the frame's comment, which is the true one."""


class Frames:
    """Feeds on a response's bytes in any cut. What is not SSE is one JSON value, whatever the content type says.

    Not the standard's reading of SSE: older gateways leave the blank lines between frames out, while every frame has
    one line of data, its last. So each data line ends its event at once. JSON that is spread over several lines is
    put together again.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._format: str | None = None
        self._tail = bytearray()
        self._event = b""
        self._status: int | None = None
        self._begun: Said | None = None
        self._lines = 0
        self._tried = 0

    def feed(self, data: bytes) -> Iterator[Said]:
        if self._format is None:
            data = bytes(self._tail) + data
            self._tail.clear()
            start = data.lstrip(_BLANK)
            if not start:
                self._keep(data, MAX_EVENT)
                return
            data = start
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
        lines = data[:cut]
        if self._tail:
            lines = bytes(self._tail) + lines
            self._tail.clear()
        if cut < len(data):
            self._keep(data[cut:], MAX_EVENT)
        # unlike text, bytes end their lines at CR and LF alone
        for line in lines.splitlines():
            if line.startswith(b"data:"):
                said = self._data(line[5:])
                if said is not None:
                    yield said
            else:
                self._field(line)

    def finish(self) -> Iterator[Said]:
        rest = bytes(self._tail)
        self._tail.clear()
        if self._format == "whole":
            value = decoded(rest)
            if value is BROKEN:
                raise ProtocolViolated(f"`{self._source}` answered with JSON that is broken or cut short")
            yield Said(value)
        elif self._format == "frames":
            said = self._data(rest[5:]) if rest.startswith(b"data:") else None
            if said is not None:
                yield said
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

    def _field(self, line: bytes) -> None:
        """A line beside the data: the event's name, or the status in a comment."""
        if line == b":HTTP_STATUS/200":
            self._status = 200
        elif line.startswith(b"event:"):
            self._event = line[6:].strip()
        elif not line:
            self._event = b""
        elif found := _STATUS.match(line):
            self._status = int(found[1])

    def _data(self, data: bytes) -> Said | None:
        failed, status = self._event == b"error", self._status
        self._event, self._status = b"", None
        data = data.strip()
        if not data or data.startswith(b":") or data == b"[DONE]":
            return None
        if self._begun is not None:
            failed, status = failed or self._begun.failed, status or self._begun.status
            # a piece that does not close the value is not tried: each try reads all pieces
            for joint in (b"\n", b"") if data.endswith((b"}", b"]")) else ():
                self._tried += len(self._begun.value)
                value = decoded(self._begun.value + joint + data)
                if value is not BROKEN:
                    self._begun = None
                    return Said(value, failed, status)
        value = decoded(data)
        if value is not BROKEN and self._begun is None:
            return Said(value, failed, status)
        self._begin(data, failed, status, whole=isinstance(value, dict))
        return None

    def _begin(self, data: bytes, failed: bool, status: int | None, *, whole: bool) -> None:
        """Keep a piece of JSON for the next lines to complete."""
        begun = self._begun.value + b"\n" + data if self._begun is not None else data
        self._lines = self._lines + 1 if self._begun is not None else 1
        self._tried = self._tried if self._begun is not None else 0
        if (
            whole
            or self._lines > _MAX_LINES
            or self._tried > _MAX_TRIED
            or len(begun) > MAX_EVENT
            or not (failed or begun.startswith((b"{", b"[")))
        ):
            raise ProtocolViolated(f"`{self._source}` sent a frame that is not JSON")
        self._begun = Said(begun, failed, status)
