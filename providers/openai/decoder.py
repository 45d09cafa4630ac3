"""The bytes of a Chat Completions answer → events, for every server that calls itself OpenAI-compatible.

A streamed answer and a whole one take the same way: a whole body is one chunk that says `message` for `delta`. What a
body is, its first byte decides, since content types are often wrong. Knows no socket, no clock, no dialect.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

from providers.openai.answer import Answer
from providers.openai.errors import Failures
from providers.openai.options import Options
from providers.openai.reading import lines_of
from providers.openai.template import Template, template_of
from router.errors import ProviderError
from router.events import Event, ReasoningDelta, TextDelta, Usage
from router.messages import ChatRequest
from router.provider import HttpHead, Target
from router.sse import Frame, SseParser
from router.wire.vendor_error import extract_error
from router.wire.vendor_json import BROKEN, decoded

MAX_BODY: Final = 64 * 1024 * 1024
"""Bytes a whole answer may have."""

_MAX_PAGE: Final = 64 * 1024
_MAX_VAIN: Final = 8
"""Templates that may be made in a row without being used: some servers change something in every chunk."""

_DONE: Final = b"[DONE]"
_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = b" \t\r\n"
_LINE_STARTS: Final = b":deir"
"""How the lines of an event stream begin: comments, `data`, `event`, `id`, `retry`."""
_STATUS_COMMENT: Final = re.compile(r"HTTP_STATUS/(\d{3})")


class ChatDecoder:
    """Decodes one response. See `router.provider.Decoder`."""

    def __init__(
        self,
        request: ChatRequest,
        target: Target,
        head: HttpHead,
        options: Options,
        *,
        quota_refills: bool,
        key: str | None = None,
    ) -> None:
        self._failures = Failures(target.provider, head.headers, quota_refills=quota_refills, key=key)
        self._answer = Answer(target.model, len(request.messages), options, self._failures)
        self._content_type = head.headers.get("content-type", "").lower()
        self._kind: Literal["unknown", "stream", "json", "page"] = "unknown"
        self._parser = SseParser(salvage=True)
        self._body: list[bytes] = []
        self._size = 0
        self._over = False
        self._broken = b""
        """A payload that is not JSON yet: it may go on in the next event."""
        self._template: Template | None = None
        self._vain = 0

    @property
    def usage(self) -> Usage | None:
        return self._answer.usage

    def feed(self, data: bytes) -> Iterable[Event]:
        if self._over:
            return ()
        if self._kind != "stream":
            begun = self._sniffed(data)
            if begun is None:
                return ()
            data = begun
        return self._frames(self._parser.feed(data))

    def finish(self) -> Iterable[Event]:
        if self._over:
            return ()
        if self._kind == "json":
            return self._whole(b"".join(self._body))
        if self._kind == "page":
            self._over = True
            raise self._failures.page(extract_error(b"".join(self._body), "text/html"))
        return self._ended(self._frames(self._parser.finish()), told=False)

    # -- what the body is ------------------------------------------------------------------------------------------

    def _sniffed(self, data: bytes) -> bytes | None:
        """Find out what the body is. Returns what is for the parser of events; None if nothing is."""
        if self._kind == "unknown":
            # DeepSeek sends blank lines for minutes while a request waits; they are not kept
            data = (self._body.pop() + data if self._body else data).lstrip(_SPACE)
            bare = data.removeprefix(_BOM).lstrip(_SPACE)
            if not bare or _BOM.startswith(data):
                self._body = [data] if data else []
                return None
            self._kind = self._kind_of(bare[:1])
            if self._kind == "stream":
                return bare
            data = bare
        if self._kind == "page" and self._size >= _MAX_PAGE:
            return None
        self._size += len(data)
        if self._size > MAX_BODY:
            self._over = True
            self._body.clear()
            raise self._failures.violated(f"its answer has more than {MAX_BODY} bytes", "body_too_large")
        self._body.append(data)
        return None

    def _kind_of(self, first: bytes) -> Literal["stream", "json", "page"]:
        if first in b"{[":
            return "json"
        if first == b"<":
            return "page"
        if first not in _LINE_STARTS:
            for word, kind in (("html", "page"), ("json", "json")):
                if word in self._content_type:
                    return kind  # type: ignore[return-value]
        return "stream"

    # -- a whole body ----------------------------------------------------------------------------------------------

    def _whole(self, body: bytes) -> Iterable[Event]:
        events: list[Event] = []
        value = decoded(body)
        values = lines_of(body) if value is BROKEN else [value]
        try:
            if values is None:
                raise self._failures.violated("its answer is not complete JSON")
            for value in values:
                self._take(value, events)
            if not self._answer.begun:
                raise self._failures.violated("its answer is JSON, but no completion")
        except ProviderError as error:
            self._over = True
            return _then_raise(events, error)
        return self._ended(events, told=True)

    # -- a stream --------------------------------------------------------------------------------------------------

    def _frames(self, frames: list[Frame]) -> Iterable[Event]:
        events: list[Event] = []
        template = self._template
        for frame in frames:
            if template is not None and frame.event == "message":
                event = template.read(frame.data)
                if event is not None:
                    self._vain = 0
                    events.append(event)
                    continue
            try:
                self._frame(frame, events)
            except ProviderError as error:
                self._over = True
                return _then_raise(events, error)
            if self._over:
                break
            template = self._template
        return events

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        self._template = None
        if frame.event == "error":
            # it is one, whatever its data look like; DashScope's status is in a comment
            comments = (_STATUS_COMMENT.search(comment) for comment in frame.comments)
            status = next((int(found[1]) for found in comments if found), None)
            raise self._failures.within(extract_error(frame.data), status)
        self._payload(frame.data, events)

    def _payload(self, data: bytes, events: list[Event]) -> None:
        """One event's data: a chunk, as a rule."""
        data = data.strip()
        if not data:
            return
        if self._broken:
            value = BROKEN if data == _DONE else decoded(self._broken + data)
            if value is BROKEN:
                raise self._failures.violated("an event of its stream is not JSON")
            self._broken = b""
            self._take(value, events)
            return
        if data.startswith(b":"):
            # gateways wrap their keep-alive comments as data
            return
        if data == _DONE:
            self._over = True
            self._answer.end(events, told=True)
            return
        value = decoded(data)
        if value is not BROKEN:
            if self._take(value, events):
                self._learn(data, value, events[-1])
            return
        lines = [line.strip() for line in data.split(b"\n")]
        if len(lines) > 1 and all(not line or line == _DONE or decoded(line) is not BROKEN for line in lines):
            # several chunks without blank lines between them
            for line in lines:
                if not self._over:
                    self._payload(line, events)
            return
        self._broken = data

    def _take(self, value: Any, events: list[Event]) -> bool:
        """Read a value; whether it is one chunk that said one piece of text and did nothing else."""
        if isinstance(value, dict):
            return self._answer.take(value, events)
        if isinstance(value, list):
            for chunk in value:
                if isinstance(chunk, dict):
                    self._answer.take(chunk, events)
        # a bare string or number is some gateway's heartbeat
        return False

    def _learn(self, data: bytes, chunk: Any, event: Event) -> None:
        """Read the like of this chunk the short way from now on."""
        if self._vain >= _MAX_VAIN or not isinstance(event, TextDelta | ReasoningDelta):
            return
        delta = chunk["choices"][0].get("delta")
        if not isinstance(delta, dict):
            return
        keys = ("content",) if isinstance(event, TextDelta) else ("reasoning_content", "reasoning")
        key = next((key for key in keys if delta.get(key) == event.text), None)
        if key is not None:
            self._vain += 1
            self._template = template_of(data, chunk, key, event)

    def _ended(self, events: Iterable[Event], *, told: bool) -> Iterable[Event]:
        if self._over:
            return events
        self._over = True
        last = list(events)
        try:
            self._answer.end(last, told=told)
        except ProviderError as error:
            return _then_raise(last, error)
        return last


def _then_raise(events: list[Event], error: ProviderError) -> Iterator[Event]:
    """What came before the failure, then the failure."""
    yield from events
    raise error
