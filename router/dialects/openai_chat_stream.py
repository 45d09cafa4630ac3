"""The streaming side of OpenAI's Chat Completions dialect: the events of one call → server-sent events.

Lines are `data:` and nothing else: after an `id:` line OpenAI's own SDK fails at the next heartbeat. Heartbeats are a
comment with a single newline for the same reason. `[DONE]` is sent after a real finish and never after a failure.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.dialects.openai_chat_answer import Form, error_fields, lay, of_ours, usage_fields
from router.errors import RouterError
from router.events import (
    BlockSigned,
    ChoiceFinished,
    Completed,
    Event,
    Extended,
    Extra,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)

Json = dict[str, Any]
_encode: Final = msgspec.json.Encoder().encode

_DONE: Final = b"data: [DONE]\n\n"
HEARTBEAT: Final = b": ping\n"
_OWN: Final = frozenset({"id", "object", "created", "model", "choices", "usage", "obfuscation"})
"""Fields of a chunk that a vendor's extras never set."""


class _Call(Struct):
    """One tool call: `before` and `after` are the bytes around a piece of its arguments."""

    before: bytes
    after: bytes
    empty: bool
    """A function call that has no arguments yet."""


class _Choice(Struct):
    """One choice that has begun: the bytes before a piece of each kind of text, and its calls by slot."""

    text: bytes
    reasoning: bytes
    refusal: bytes
    reasoning_at: tuple[int, int] = (-1, 0)
    """Slot and part of the reasoning sent last."""
    calls: dict[int, _Call] = {}
    numbered: int = 0
    """How many calls are in `tool_calls`."""
    deprecated: bool = False
    """Its first call took the deprecated form."""


class StreamEncoder:
    """Encodes one stream, whose events come in their legal order."""

    __slots__ = ("_choices", "_fields", "_form", "_head", "_once", "_tail")

    def __init__(self, form: Form) -> None:
        self._form = form
        usage = b',"usage":null' if form.include_usage else b""
        self._tail = b'},"logprobs":null,"finish_reason":null}]%b}\n\n' % usage
        self._head = b""
        self._fields: Json = {}
        self._once: Json = {}
        """Fields that the first chunk with a choice shall have, and no other."""
        self._choices: dict[int, _Choice] = {}

    def encode(self, event: Event) -> bytes:
        return _ENCODE[type(event)](self, event)

    def end(self) -> bytes:
        return _DONE

    # -- content ---------------------------------------------------------------------------------------------------

    def _text(self, event: TextDelta) -> bytes:
        choice = self._choices.get(event.choice)
        if choice is None or event.extra is not None:
            return self._piece(event.choice, "content", event.text, event.extra)
        return choice.text + _encode(event.text) + self._tail

    def _reasoning(self, event: ReasoningDelta) -> bytes:
        choice = self._choices.get(event.choice)
        text, place = event.text, (event.slot, event.part)
        if choice is not None and choice.reasoning_at != place:
            if choice.reasoning_at[0] == event.slot:
                # the parts of a summary are paragraphs
                text = "\n\n" + text
            choice.reasoning_at = place
        if choice is None or event.extra is not None:
            piece = self._piece(event.choice, "reasoning_content", text, event.extra)
            self._choices[event.choice].reasoning_at = place
            return piece
        return choice.reasoning + _encode(text) + self._tail

    def _refusal(self, event: RefusalDelta) -> bytes:
        choice = self._choices.get(event.choice)
        if choice is None or event.extra is not None:
            return self._piece(event.choice, "refusal", event.text, event.extra)
        return choice.refusal + _encode(event.text) + self._tail

    def _piece(self, index: int, key: str, text: str, extra: Extra | None) -> bytes:
        return self._begun(index) + self._delta(index, {key: text}, extra)

    def _tool_call_started(self, event: ToolCallStarted) -> bytes:
        delta: Json = {}
        choice = self._choices.get(event.choice)
        if choice is None:
            # OpenAI puts the role and a null content into the first call's chunk
            choice = self._open(event.choice)
            delta = {"role": "assistant", "content": None}
        if self._form.deprecated and event.kind == "function" and not choice.deprecated:
            choice.deprecated = True
            delta["function_call"] = {"name": event.name, "arguments": ""}
            where, after = b'"function_call":{"arguments":', b"}"
        else:
            index = choice.numbered
            choice.numbered += 1
            inner = {"name": event.name, ("arguments" if event.kind == "function" else "input"): ""}
            delta["tool_calls"] = [{"index": index, "id": event.id, "type": event.kind, event.kind: inner}]
            key = b'"function":{"arguments":' if event.kind == "function" else b'"custom":{"input":'
            where, after = b'"tool_calls":[{"index":%d,%b' % (index, key), b"}}]"
        choice.calls[event.slot] = _Call(
            self._before(event.choice) + where, after + self._tail, event.kind == "function"
        )
        return self._delta(event.choice, delta, event.extra)

    def _tool_call_delta(self, event: ToolCallDelta) -> bytes:
        call = self._choices[event.choice].calls[event.slot]
        if event.arguments:
            call.empty = False
        piece = call.before + _encode(event.arguments) + call.after
        return piece if event.extra is None else piece + self._only(event.choice, event.extra)

    def _block_signed(self, event: BlockSigned) -> bytes:
        return self._only(event.choice, event.extra)

    def _extended(self, event: Extended) -> bytes:
        return self._only(event.choice, event.extra)

    # -- the frame -------------------------------------------------------------------------------------------------

    def _started(self, event: Started) -> bytes:
        self._fields = {
            "id": self._form.named(event.id),
            "object": "chat.completion.chunk",
            "created": event.created or self._form.created,
            "model": event.model or self._form.model,
        }
        extra = of_ours(event.extra)
        if extra is not None:
            for key, value in extra.answer.items():
                if key not in _OWN:
                    # OpenAI repeats `service_tier` and `system_fingerprint`; objects and lists it sends once. They get
                    # no chunk of their own: many a client asks every chunk for its first choice
                    (self._once if isinstance(value, (dict, list)) else self._fields)[key] = value
        self._head = b"data: " + _encode(self._fields)[:-1]
        return b""

    def _choice_finished(self, event: ChoiceFinished) -> bytes:
        begun = self._begun(event.choice)
        choice = self._choices[event.choice]
        # clients parse the arguments, and an empty text is no JSON
        empty = b"".join([call.before + b'"{}"' + call.after for call in choice.calls.values() if call.empty])
        reason = "function_call" if choice.deprecated and event.reason == "tool_calls" else event.reason
        return begun + empty + self._delta(event.choice, {}, event.extra, reason)

    def _usage_reported(self, event: UsageReported) -> bytes:
        return self._chunk([], {}, usage_fields(event.usage)) if self._form.include_usage else b""

    def _completed(self, event: Completed) -> bytes:
        return self._only(None, event.extra)

    # -- chunks ----------------------------------------------------------------------------------------------------

    def _before(self, index: int) -> bytes:
        return b'%b,"choices":[{"index":%d,"delta":{' % (self._head, index)

    def _open(self, index: int) -> _Choice:
        before = self._before(index)
        choice = _Choice(before + b'"content":', before + b'"reasoning_content":', before + b'"refusal":')
        self._choices[index] = choice
        return choice

    def _begun(self, index: int) -> bytes:
        """The chunk with the choice's role; nothing if it has been sent."""
        if index in self._choices:
            return b""
        self._open(index)
        if self._once:
            return self._delta(index, {"role": "assistant", "content": "", "refusal": None}, None)
        return self._before(index) + b'"role":"assistant","content":"","refusal":null' + self._tail

    def _only(self, index: int | None, extra: Extra | None) -> bytes:
        """A chunk for the vendor's fields alone; nothing if they are in another protocol's words."""
        extra = of_ours(extra)
        if extra is None:
            return b""
        if index is not None and (extra.block or extra.choice):
            return self._begun(index) + self._delta(index, {}, extra)
        return self._chunk([], extra.answer) if extra.answer else b""

    def _delta(self, index: int, delta: Json, extra: Extra | None, reason: str | None = None) -> bytes:
        choice: Json = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        extra = of_ours(extra)
        if extra is None:
            return self._chunk([choice], {})
        lay({key: value for key, value in extra.block.items() if key != "role"}, delta)
        lay({key: value for key, value in extra.choice.items() if key not in choice or key == "logprobs"}, choice)
        return self._chunk([choice], extra.answer)

    def _chunk(self, choices: list[Json], extras: Json, usage: Json | None = None) -> bytes:
        fields = {**self._fields, "choices": choices}
        if self._form.include_usage:
            fields["usage"] = usage
        if self._once and choices:
            fields.update(self._once)
            self._once = {}
        fields.update({key: value for key, value in extras.items() if key not in _OWN})
        return b"data: %b\n\n" % _encode(fields)


def failure(error: RouterError, request_id: str) -> bytes:
    """The last event of a stream that was broken off."""
    return b"data: %b\n\n" % _encode({"error": {**error_fields(error), "request_id": request_id}})


_ENCODE: Final[dict[type, Callable[[StreamEncoder, Any], bytes]]] = {
    Started: StreamEncoder._started,
    TextDelta: StreamEncoder._text,
    ReasoningDelta: StreamEncoder._reasoning,
    RefusalDelta: StreamEncoder._refusal,
    ToolCallStarted: StreamEncoder._tool_call_started,
    ToolCallDelta: StreamEncoder._tool_call_delta,
    BlockSigned: StreamEncoder._block_signed,
    Extended: StreamEncoder._extended,
    ChoiceFinished: StreamEncoder._choice_finished,
    UsageReported: StreamEncoder._usage_reported,
    Completed: StreamEncoder._completed,
}
"""Looked up by type: half the time of a `match` per delta."""
