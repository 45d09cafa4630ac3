"""Bytes to server-sent events (WHATWG HTML, section 9.2). Pure: knows no vendor, no dialect, no I/O."""

from typing import Final

from msgspec import Struct

from router.errors import ProtocolViolated

MAX_EVENT: Final = 8 * 1024 * 1024
"""Bytes one event may have; a base64 image makes several MB legitimate."""

_MAX_COMMENTS: Final = 16
_MAX_COMMENT: Final = 1024
_MAX_RETRY_DIGITS: Final = 18
_BOM: Final = b"\xef\xbb\xbf"


class Frame(Struct, frozen=True, gc=False):
    """One dispatched event. `data` is UTF-8 as it came, its lines joined by LF."""

    data: bytes
    event: str = "message"
    id: str = ""
    """The connection's last event id: it persists from event to event."""
    comments: tuple[str, ...] = ()
    """The last comment lines since the event before, without their colon (DashScope puts the HTTP status there)."""

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


class SseParser:
    """Feeds on bytes in any cut, gives the events that are complete.

    A line ends at LF, CR or CRLF and nothing else (JSON may hold U+2028). At the end of the stream the standard
    drops an event without its blank line; `salvage=True` dispatches it, for vendors that close right after the
    last line.

    A line, or the data lines of one event, of more than `max_event` bytes raise `ProtocolViolated`, so neither can
    fill memory. The events before it are given first: the error then comes out of the next `feed` or `finish`.
    """

    def __init__(self, *, salvage: bool = False, max_event: int = MAX_EVENT) -> None:
        self._salvage = salvage
        self._max_event = max_event
        # a bytearray, since a list of tiny reads would take many times its bytes
        self._tail = bytearray()
        self._started = False
        self._after_cr = False
        self._data: list[bytes] = []
        self._size = 0
        self._event = ""
        self._id = ""
        self._comments: list[str] = []
        self._violation: ProtocolViolated | None = None
        self.retry: int | None = None
        """The reconnection time in milliseconds, once the stream has set one."""

    def feed(self, data: bytes) -> list[Frame]:
        if self._violation is not None:
            raise self._violation
        if not self._started:
            data = self._without_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._normalised(data)
        frames: list[Frame] = []
        try:
            self._take(data, frames)
        except ProtocolViolated as violation:
            self._violation = violation
            if not frames:
                raise
        return frames

    def finish(self) -> list[Frame]:
        """The end of the stream: what the standard drops is dispatched if this parser salvages."""
        if self._violation is not None:
            raise self._violation
        frames: list[Frame] = []
        if self._salvage:
            if self._tail:
                self._line(bytes(self._tail), frames)
            self._dispatch(frames)
        self._tail.clear()
        self._data.clear()
        return frames

    def _take(self, data: bytes, frames: list[Frame]) -> None:
        """Take the whole lines of what has come, each scanned and copied once however it was cut; keep the rest."""
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(data)
            return
        if self._tail:
            end += len(self._tail)
            self._tail += data
            data = bytes(self._tail)
            self._tail.clear()
        start = self._plain(data, frames)
        if start <= end:
            for line in data[start:end].split(b"\n"):
                self._line(line, frames)
        if end + 1 < len(data):
            self._keep(data[end + 1 :])

    def _plain(self, data: bytes, frames: list[Frame]) -> int:
        """Take the events at the start if all that are complete are one line of data each, as in a chat stream.

        Returns the place that follows them: 0 if none was taken.
        """
        if not data.startswith(b"data: ") or self._data or self._event or self._comments:
            return 0
        end = data.rfind(b"\n\n")
        if end < 0 or len(data) > self._max_event:
            return 0
        payloads = data[6:end].split(b"\n\ndata: ")
        # an LF beside those of the separators would be another line, or another kind of line
        if data.count(b"\n", 0, end) != 2 * (len(payloads) - 1):
            return 0
        last_id = self._id
        frames += [Frame(payload, "message", last_id) for payload in payloads]
        return end + 2

    def _keep(self, rest: bytes) -> None:
        self._bound(len(self._tail) + len(rest))
        self._tail += rest

    def _bound(self, more: int) -> None:
        if self._size + more > self._max_event:
            raise ProtocolViolated(
                f"the provider sent one event of more than {self._max_event} bytes; it was cut off",
                code="event_too_large",
            )

    def _without_bom(self, data: bytes) -> bytes:
        data = bytes(self._tail) + data
        self._tail.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._tail += data
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
        self._bound(len(line))
        name, colon, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            # the field's name counts too, so that endless empty data lines come to an end
            self._size += len(line)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif not name and colon:
            self._comments.append(line[1 : 1 + _MAX_COMMENT].decode("utf-8", "replace"))
            del self._comments[:-_MAX_COMMENTS]
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self.retry = int(value)

    def _dispatch(self, frames: list[Frame]) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            frames.append(Frame(data, self._event or "message", self._id, tuple(self._comments)))
            self._comments.clear()
            self._data.clear()
            self._size = 0
        self._event = ""
