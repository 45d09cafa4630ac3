"""DashScope's answers → events: streamed and whole, text and multimodal, `result_format` message and text.

One reader for all of them, since a whole answer is one frame that holds everything. Knows no HTTP beyond the
response's head.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from providers.dashscope.errors import classify
from providers.dashscope.frames import Frames, Said
from providers.dashscope.increments import Increments, Reading
from providers.dashscope.tool_calls import ToolCalls
from providers.dashscope.usage import Counts, read_usage
from router.errors import ProtocolViolated, ProviderError, StreamCut, VendorFailed
from router.events import (
    ChoiceFinished,
    Completed,
    Event,
    Extended,
    Extra,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    Usage,
    UsageReported,
)
from router.slots import Slots
from router.wire.vendor_error import VendorMessage, clean, read_error

_FINISH: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
}
MAX_CHOICES: Final = 1024
_FAILED: Final = frozenset({"error", "network_error"})

# what has its place in the events, or says nothing
_IN_BODY: Final = frozenset({"output", "usage", "request_id", "status_code", "code", "message"})
_IN_OUTPUT: Final = frozenset({"choices", "text", "finish_reason", "reasoning_content"})
_IN_CHOICE: Final = frozenset({"index", "message", "delta", "finish_reason", "logprobs"})
_IN_MESSAGE: Final = frozenset({"role", "content", "reasoning_content", "tool_calls"})


class AnswerDecoder:
    """Decodes one response. `client` is the protocol the client speaks, `request_id` that of the response's head."""

    def __init__(
        self, source: str, model: str, client: str, headers: Mapping[str, str], key: str | None = None
    ) -> None:
        self._source = source
        self._key = key
        self._model = model
        self._client = client
        self._headers = headers
        self._frames = Frames(source)
        self._reading = Reading()
        self._choices: dict[int, _Choice] = {}
        self._counts = Counts()
        self._told: dict[str, Any] = {}
        self._started = False
        self._prefix = ""
        self._ended = False

    @property
    def usage(self) -> Usage | None:
        """The counts so far, which every frame repeats."""
        counted = self._counts.total()
        return None if counted is None else read_usage(counted)

    def feed(self, data: bytes) -> Iterator[Event]:
        if self._ended:
            return
        for said in self._frames.feed(data):
            yield from self._read(said)

    def finish(self) -> Iterator[Event]:
        if self._ended:
            return
        for said in self._frames.finish():
            yield from self._read(said)
        if not (self._choices and all(choice.finished for choice in self._choices.values())):
            yield from self._settle()
            raise StreamCut(f"`{self._source}` ended the stream before its answer")
        usage = self.usage
        if usage is not None:
            yield UsageReported(usage)
        self._ended = True
        yield Completed()

    def _read(self, said: Said) -> Iterator[Event]:
        value = said.value
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if said.failed or _is_error(value):
            yield from self._settle()
            raise self._error(value, said.status)
        if not isinstance(value, dict):
            return
        output, usage = value.get("output"), value.get("usage")
        if not isinstance(output, dict) and not isinstance(usage, dict):
            raise ProtocolViolated(f"`{self._source}` sent a body with neither `output` nor an error")
        output = output if isinstance(output, dict) else {}
        if not self._started:
            self._started = True
            request_id = value.get("request_id") or self._headers.get("x-request-id", "")
            self._prefix = str(request_id)[:8]
            yield Started(str(request_id), self._model, 0)
        if not (value.keys() <= _IN_BODY and output.keys() <= _IN_OUTPUT):
            yield from self._tell(_rest(value, _IN_BODY) | _rest(output, _IN_OUTPUT))
        choices = _choices(output)
        if isinstance(usage, dict) and usage:
            self._counts.see(usage, [index for index, _ in choices])
        else:
            usage = {}
        tokens = usage.get("output_tokens")
        for index, choice in choices:
            if index not in self._choices:
                if len(self._choices) >= MAX_CHOICES:
                    raise ProtocolViolated(f"`{self._source}` sent an answer of more than {MAX_CHOICES} choices")
                self._choices[index] = _Choice(index, self._reading, self._client, self._prefix, self._source)
            yield from self._choices[index].read(choice, tokens if isinstance(tokens, int) else None)

    def _settle(self) -> Iterator[Event]:
        for choice in self._choices.values():
            if not choice.finished:
                yield from choice.settle()

    def _tell(self, fields: dict[str, Any]) -> Iterator[Event]:
        """Pass on what is not modelled, once: every frame repeats it."""
        new = {key: value for key, value in fields.items() if self._told.get(key) != value}
        if new:
            self._told.update(new)
            yield Extended(Extra("dashscope", answer=new, whole=True))

    def _error(self, value: Any, status: int | None) -> ProviderError:
        """An error within a 200: the true status is in the frame's comment or, rarely, in the body."""
        said = read_error(value) or VendorMessage(message=clean(str(value)), body=value)
        if status is None and isinstance(value, dict) and isinstance(value.get("status_code"), int):
            status = value["status_code"]
        status = status or said.status
        status = status if status and status >= 400 else 200
        return classify(said, status, source=self._source, headers=self._headers, key=self._key)


class _Choice:
    """One choice of the answer."""

    def __init__(self, index: int, reading: Reading, client: str, prefix: str, source: str) -> None:
        self.finished = False
        self._index = index
        self._client = client
        self._source = source
        self._slots = Slots()
        self._text = Increments(reading)
        self._reasoning = Increments(reading)
        self._calls = ToolCalls(index, self._slots, reading, prefix, source)
        self._told: dict[str, Any] = {}

    def read(self, choice: dict[str, Any], tokens: int | None) -> Iterator[Event]:
        message = choice.get("message") or choice.get("delta")
        message = message if isinstance(message, dict) else {}
        if not (choice.keys() <= _IN_CHOICE and message.keys() <= _IN_MESSAGE):
            yield from self._tell(choice, message)
        if self.finished:
            return
        text, media = _flat(message.get("content"))
        reasoning = message.get("reasoning_content")
        reasoning = reasoning if isinstance(reasoning, str) else ""
        calls = message.get("tool_calls")
        calls = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
        logprobs = self._logprobs(choice.get("logprobs"))

        if reasoning:
            new = self._reasoning.take(reasoning, tokens=tokens, alone=not (text or calls))
            if new:
                yield self._reasoned(new)
        if (text or calls) and self._reasoning.holds:
            yield from self._settle_reasoning()
        new = self._text.take(text, tokens=tokens, alone=not (reasoning or calls))
        if new:
            yield self._said(new, logprobs)
        elif logprobs is not None:
            yield Extended(logprobs, choice=self._index)
        for part in media:
            yield Extended(self._medium(part), choice=self._index)
        if calls:
            yield from self._settle_text()
            yield from self._calls.take(calls)
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason not in ("", "null"):
            yield from self._finish(reason)

    def settle(self) -> Iterator[Event]:
        """What was held back, when the choice ends or is cut."""
        yield from self._settle_reasoning()
        yield from self._settle_text()

    def _finish(self, native: str) -> Iterator[Event]:
        yield from self.settle()
        if native in _FAILED:
            raise VendorFailed(f"`{self._source}` broke off its answer: finish reason `{native}`", vendor_code=native)
        reason = _FINISH.get(native, "stop")
        yield from self._calls.finish(cut=reason in ("length", "content_filter"))
        if self._calls and reason == "stop":
            # what the client must do next does not depend on the vendor's word
            reason = "tool_calls"
        self.finished = True
        yield ChoiceFinished(self._index, reason, native=native if native != reason else None)

    def _settle_reasoning(self) -> Iterator[Event]:
        rest = self._reasoning.settle()
        if rest:
            yield self._reasoned(rest)

    def _settle_text(self) -> Iterator[Event]:
        rest = self._text.settle()
        if rest:
            yield self._said(rest, None)

    def _reasoned(self, text: str) -> Event:
        return ReasoningDelta(self._index, self._slots.run("reasoning"), text)

    def _said(self, text: str, logprobs: Extra | None) -> Event:
        return TextDelta(self._index, self._slots.run("text"), text, extra=logprobs)

    def _logprobs(self, logprobs: Any) -> Extra | None:
        """They have OpenAI's shape, so a client that speaks it gets them."""
        if not isinstance(logprobs, dict) or not logprobs.get("content"):
            return None
        return Extra("openai" if self._client == "openai" else "dashscope", choice={"logprobs": logprobs})

    def _medium(self, part: dict[str, Any]) -> Extra:
        if self._client == "openai" and isinstance(part.get("audio"), dict):
            # speech has OpenAI's shape too
            return Extra("openai", block={"audio": part["audio"]})
        return Extra("dashscope", block={"content": [part]})

    def _tell(self, choice: dict[str, Any], message: dict[str, Any]) -> Iterator[Event]:
        beside, within = _rest(choice, _IN_CHOICE), _rest(message, _IN_MESSAGE)
        told = {"choice": beside, "message": within}
        if (beside or within) and told != self._told:
            self._told = told
            yield Extended(Extra("dashscope", choice=beside, block=within, whole=True), choice=self._index)


def _choices(output: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The choices of a frame with their indexes. `result_format: text` has one, in `output` itself."""
    listed = output.get("choices")
    if isinstance(listed, list) and listed:
        found = []
        for position, choice in enumerate(listed):
            if isinstance(choice, dict):
                index = choice.get("index")
                found.append((index if isinstance(index, int) and index >= 0 else position, choice))
        return found
    if isinstance(output.get("text"), str) or isinstance(output.get("finish_reason"), str):
        message = {"content": output.get("text"), "reasoning_content": output.get("reasoning_content")}
        return [(0, {"message": message, "finish_reason": output.get("finish_reason")})]
    return []


def _flat(content: Any) -> tuple[str, list[dict[str, Any]]]:
    """The text of a message, and its parts that are not text."""
    if isinstance(content, str):
        return content, []
    texts, media = [], []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and any(value for key, value in part.items() if key != "type"):
            media.append(part)
    return "".join(texts), media


def _rest(fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in known and value not in (None, "", [], {})}


def _is_error(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    code = value.get("code")
    if type(code) is int:
        code = str(code)
    if isinstance(code, str) and code and code.lower() not in ("0", "200", "success"):
        return True
    return bool(value.get("error")) and not value.get("output")
