"""Bytes ↔ server-sent events (WHATWG HTML, section 9.2). Pure: knows no vendor, no dialect, no I/O."""

from typing import Final

from msgspec import Struct

from router.errors import ProtocolViolated

MAX_EVENT: Final = 8 * 1024 * 1024
"""Bytes one event may have; a base64 image makes several MB legitimate."""

_MAX_COMMENTS: Final = 16
_BOM: Final = b"\xef\xbb\xbf"


class Frame(Struct, frozen=True, gc=False):
    """One dispatched event. `data` is UTF-8 as it came, its lines joined by LF."""

    data: bytes
    event: str = "message"
    id: str = ""
    """The connection's last event id: it persists from event to event."""
    comments: tuple[str, ...] = ()
    """The comment lines since the event before, without their colon (DashScope puts the HTTP status there)."""

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


class SseParser:
    """Feeds on bytes in any cut, gives the events that are complete.

    A line ends at LF, CR or CRLF and nothing else (JSON may hold U+2028). At the end of the stream the standard
    drops an event without its blank line; `salvage=True` dispatches it, for vendors that close right after the
    last line. An event over `max_event` bytes raises `ProtocolViolated`, so an endless line cannot fill memory.
    """

    def __init__(self, *, salvage: bool = False, max_event: int = MAX_EVENT) -> None:
        self._salvage = salvage
        self._max_event = max_event
        self._pieces: list[bytes] = []
        self._size = 0
        self._started = False
        self._after_cr = False
        self._data: list[bytes] = []
        self._event = ""
        self._id = ""
        self._comments: list[str] = []
        self.retry: int | None = None
        """The reconnection time in milliseconds, once the stream has set one."""

    def feed(self, data: bytes) -> list[Frame]:
        if not self._started:
            data = self._without_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._normalised(data)
        if b"\n" not in data:
            self._keep(data)
            return []
        if self._pieces:
            self._pieces.append(data)
            data = b"".join(self._pieces)
            self._pieces.clear()
        self._size = 0
        frames: list[Frame] = []
        # the blank line between two events is the LF that ends the last line and the LF of the empty one
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        plain = not (self._data or self._event or self._comments)
        for block in blocks:
            # nearly every block of a chat stream is one line of data
            if plain and block.startswith(b"data: ") and b"\n" not in block:
                frames.append(Frame(block[6:], "message", self._id))
                continue
            for line in block.split(b"\n"):
                self._line(line, frames)
            self._dispatch(frames)
            plain = not self._comments
        self._keep_rest(rest, frames)
        return frames

    def finish(self) -> list[Frame]:
        """The end of the stream: what the standard drops is dispatched if this parser salvages."""
        frames: list[Frame] = []
        if self._salvage:
            line = b"".join(self._pieces)
            if line:
                self._line(line, frames)
            self._dispatch(frames)
        self._pieces.clear()
        self._data.clear()
        return frames

    def _keep(self, data: bytes) -> None:
        if data:
            self._pieces.append(data)
            self._size += len(data)
            self._bound()

    def _keep_rest(self, rest: bytes, frames: list[Frame]) -> None:
        """Take the whole lines of an event that is not complete yet, so that they are scanned once."""
        lines = rest.split(b"\n")
        last = lines.pop()
        for line in lines:
            self._line(line, frames)
        self._size = sum(map(len, self._data)) + len(self._data)
        self._bound()
        self._keep(last)

    def _bound(self) -> None:
        if self._size > self._max_event:
            raise ProtocolViolated(
                f"the provider sent one event of more than {self._max_event} bytes; it was cut off",
                code="event_too_large",
            )

    def _without_bom(self, data: bytes) -> bytes:
        data = b"".join([*self._pieces, data])
        self._pieces.clear()
        self._size = 0
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._pieces.append(data)
            return b""
        self._started = True
        return data.removeprefix(_BOM)

    def _normalised(self, data: bytes) -> bytes:
        """The data with LF for CR and CRLF; a CR ends its line at once, an LF right after it is swallowed."""
        if not data:
            return data
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _line(self, line: bytes, frames: list[Frame]) -> None:
        if not line:
            self._dispatch(frames)
            return
        name, colon, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif not name and colon:
            self._comments.append(line[1:].decode("utf-8", "replace"))
            del self._comments[:-_MAX_COMMENTS]
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry = int(value)

    def _dispatch(self, frames: list[Frame]) -> None:
        if self._data:
            frames.append(
                Frame(b"\n".join(self._data), self._event or "message", self._id, tuple(self._comments)),
            )
            self._comments.clear()
            self._data.clear()
        self._event = ""
