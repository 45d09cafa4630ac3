"""Chunks of one answer → events. Knows what a chunk says and what it does to the answer, not how it came in bytes.

The end is proper when every choice has a finish reason. Finishes are held back until then, since some servers repeat
them, send content after them, or correct themselves. A tool call is held back until its name is known to be whole.
"""

from hashlib import sha256
from typing import Final

from providers.openai.errors import Failures
from providers.openai.options import Options
from providers.openai.reading import (
    FAILURES,
    REASONS,
    Json,
    Kind,
    Piece,
    calls_of,
    content_of,
    failure_of,
    finish_of,
    flatten,
    usage_in,
)
from providers.openai.think_tags import ThinkTags
from providers.openai.tool_calls import Call, Fragment, ToolCalls
from providers.openai.usage import usage_of
from router.events import (
    ChoiceFinished,
    Completed,
    Event,
    Extended,
    Extra,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from router.slots import Slots

PROTOCOL: Final = "openai"

_ANSWER_FIELDS: Final = frozenset({"id", "object", "created", "model", "choices", "usage", "obfuscation", "error"})
_CHOICE_FIELDS: Final = frozenset({"index", "delta", "message", "text", "finish_reason", "usage", "error"})
_DELTA_FIELDS: Final = frozenset(
    {"role", "content", "refusal", "reasoning_content", "reasoning", "tool_calls", "function_call"}
)


MAX_CHOICES: Final = 1024
MAX_CALLS: Final = 1024
"""Tool calls of one choice."""
MAX_HELD: Final = 8 * 1024 * 1024
"""Characters of a tool call that may wait for its name."""


class _Choice:
    """What is known of one choice so far."""

    __slots__ = ("by_delta", "calls", "finish", "finish_extra", "given", "index", "said", "slots", "stop", "tags")

    def __init__(self, index: int, tags: ThinkTags | None) -> None:
        self.index = index
        self.slots = Slots()
        self.calls = ToolCalls()
        self.given = 0
        """How many of the calls have been given out."""
        self.tags = tags
        self.finish: str | None = None
        self.finish_extra: Extra | None = None
        self.stop: str | None = None
        """The stop sequence that ended it."""
        self.said = False
        """Whether there was any content."""
        self.by_delta = False
        """Whether it has come in deltas."""


class Answer:
    """One answer as its chunks come. `turn` tells apart the turns of a conversation."""

    def __init__(self, model: str, turn: int, options: Options, failures: Failures) -> None:
        self._model = model
        self._turn = turn
        self._options = options
        self._failures = failures
        self._started: Started | None = None
        self._choices: dict[int, _Choice] = {}
        self._usage: Json | None = None
        self._counted: tuple[Json, Usage] | None = None
        self._extras: Json = {}
        """Fields beside the choices, as last told."""
        self._news: Json = {}
        """Those of the current chunk that are new and have not been given out."""

    @property
    def usage(self) -> Usage | None:
        if self._usage is None:
            return None
        if self._counted is None or self._counted[0] is not self._usage:
            # asked for at the end of every call, after the event that told it
            self._counted = (self._usage, usage_of(self._usage, PROTOCOL))
        return self._counted[1]

    @property
    def begun(self) -> bool:
        return bool(self._choices)

    # -- one chunk -------------------------------------------------------------------------------------------------

    def take(self, chunk: Json, events: list[Event]) -> bool:
        """Read a chunk, or a whole body. Raises `ProviderError` if it tells of a failure.

        Returns whether the same chunk with another text would have had the same effect but for the text.
        """
        before = len(events)
        failure = failure_of(chunk)
        if failure is not None:
            raise self._failures.within(failure)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            choices = []
        usage = usage_in(chunk, choices)
        if usage is not None:
            self._usage = usage
        for key, value in chunk.items():
            if key not in _ANSWER_FIELDS and value is not None and self._extras.get(key) != value:
                self._extras[key] = self._news[key] = value
        if self._started is None:
            if not choices and not chunk.get("id"):
                # Azure begins with a chunk of filter results alone, its id and model empty
                return False
            self._start(chunk, events)
        more = usage is not None
        for position, choice in enumerate(choices):
            if isinstance(choice, dict):
                more = self._one(choice, position, events) or more
        if self._news:
            news, self._news = self._news, {}
            events.append(Extended(Extra(PROTOCOL, answer=news, whole=True)))
            return False
        return not more and len(events) == before + 1 and len(choices) == 1

    def _start(self, chunk: Json, events: list[Event]) -> None:
        identity, model, created = chunk.get("id"), chunk.get("model"), chunk.get("created")
        self._started = Started(
            "" if identity is None else str(identity),
            model if isinstance(model, str) and model else self._model,
            int(created) if isinstance(created, int | float) else 0,
            Extra(PROTOCOL, answer=self._news) if self._news else None,
        )
        self._news = {}
        events.append(self._started)

    def _one(self, fields: Json, position: int, events: list[Event]) -> bool:
        """Read one choice of a chunk; whether it did more than say pieces of text."""
        index = fields.get("index")
        if type(index) is not int:
            index = position
        choice = self._choices.get(index)
        if choice is None:
            if len(self._choices) >= MAX_CHOICES:
                raise self._failures.violated(f"its answer has more than {MAX_CHOICES} choices")
            options = self._options
            tags = ThinkTags(opened=options.think_opened) if options.think_tags else None
            choice = self._choices[index] = _Choice(index, tags)
        delta, choice.by_delta = content_of(fields, by_delta=choice.by_delta)
        beside = _extras(fields, _CHOICE_FIELDS)
        inside = _extras(delta, _DELTA_FIELDS)
        content = delta.get("content")
        if len(delta) == 1 and content and type(content) is str and choice.tags is None:
            pieces: list[Piece] = [("text", content)]
        else:
            pieces = _pieces(delta, choice, inside)
        if inside:
            choice.said = True
        if pieces:
            choice.said = True
            if len(choice.calls.all) > choice.given:
                self._settle(choice, events)
            for kind, text in pieces:
                extra = self._extra(beside, inside)
                beside, inside = {}, {}
                events.append(_text_event(kind, index, choice.slots.run(kind), text, extra))
        calls = calls_of(delta) if "tool_calls" in delta or "function_call" in delta else None
        if calls:
            self._call(choice, calls, events)
        held = self._extra(beside, inside) if beside or inside else None
        finish = finish_of(fields)
        if finish is not None:
            self._finished(choice, finish, fields, held, events)
            return True
        if held is not None:
            events.append(Extended(held, index))
        return bool(calls) or choice.tags is not None

    def _extra(self, beside: Json, inside: Json) -> Extra | None:
        """The vendor's fields for the next event. News about the answer go with an event that has no other."""
        if beside or inside:
            return Extra(PROTOCOL, choice=beside, block=inside)
        if self._news:
            news, self._news = self._news, {}
            return Extra(PROTOCOL, answer=news, whole=True)
        return None

    def _finished(self, choice: _Choice, finish: str, fields: Json, extra: Extra | None, events: list[Event]) -> None:
        """Keep a finish reason; the last one counts."""
        failure = FAILURES.get(finish.lower())
        if failure is not None:
            raise self._failures.broken_off(failure, finish)
        choice.finish = finish
        stop = fields.get("stop_reason", fields.get("matched_stop"))
        if isinstance(stop, str):
            choice.stop = stop
        extra = extra or self._extra({}, {})
        if extra is not None:
            if choice.finish_extra is not None:
                events.append(Extended(choice.finish_extra, choice.index))
            choice.finish_extra = extra

    # -- tool calls ------------------------------------------------------------------------------------------------

    def _call(self, choice: _Choice, items: list[tuple[Json, int | str | None]], events: list[Event]) -> None:
        self._flush(choice, events)
        for fields, position in items:
            fragment = Fragment(fields)
            call = choice.calls.place(fragment, position)
            if len(choice.calls.all) > MAX_CALLS:
                raise self._failures.violated(f"its answer has more than {MAX_CALLS} tool calls")
            if len(choice.calls.all) > choice.given + (call.slot is None):
                self._settle(choice, events, but=call)
            choice.said = True
            # arguments as an object are the whole: said again, they add nothing
            arguments = "" if fragment.whole and call.begun else fragment.arguments
            call.take(arguments)
            if call.slot is not None:
                extra = _call_extra(call, fragment.extras)
                if arguments:
                    events.append(ToolCallDelta(choice.index, call.slot, arguments, extra))
                elif extra is not None:
                    events.append(Extended(extra, choice.index, call.slot))
                continue
            call.extras.update(fragment.extras)
            call.held += len(arguments) + len(fragment.name)
            if call.held > MAX_HELD:
                raise self._failures.violated(f"a tool call has no name after {MAX_HELD} characters")
            if arguments:
                call.arguments.append(arguments)
            if call.name and call.begun:
                self._give(choice, call, events)

    def _give(self, choice: _Choice, call: Call, events: list[Event]) -> None:
        """Give a call out, with what has come of its arguments."""
        call.slot = choice.slots.open()
        call.number = choice.given
        choice.given += 1
        if not call.id and self._started is not None:
            # the same at every reading of an answer, and another in every turn of a conversation
            started = self._started
            seed = f"{started.id}/{started.created}/{self._turn}/{choice.index}/{call.slot}"
            call.id = f"call_{sha256(seed.encode()).hexdigest()[:24]}"
        extra = _call_extra(call, call.extras)
        events.append(ToolCallStarted(choice.index, call.slot, call.id, call.name, call.kind, extra))
        if call.arguments:
            events.append(ToolCallDelta(choice.index, call.slot, "".join(call.arguments)))
            call.arguments.clear()

    def _settle(self, choice: _Choice, events: list[Event], but: Call | None = None) -> None:
        """Give out the calls that waited for more of their name."""
        for call in choice.calls.all:
            if call.slot is None and call.name and call is not but:
                self._give(choice, call, events)

    def _flush(self, choice: _Choice, events: list[Event]) -> None:
        """Give out the text that might have become a tag."""
        if choice.tags is not None:
            for kind, text in choice.tags.flush():
                events.append(_text_event(kind, choice.index, choice.slots.run(kind), text, None))

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, events: list[Event], *, told: bool) -> None:
        """The answer's end, `told` by `[DONE]` or by a whole body; else the connection was closed."""
        unfinished = False
        for choice in self._choices.values():
            self._flush(choice, events)
            self._settle(choice, events)
            if choice.finish is None and not self._excused(choice, told):
                unfinished = True
            else:
                self._finish(choice, events)
        if unfinished or not self.begun:
            raise self._failures.cut(self._how_cut(told))
        usage = self.usage
        if usage is not None:
            events.append(UsageReported(usage))
        events.append(Completed())

    def _how_cut(self, told: bool) -> str:
        if not any(choice.said for choice in self._choices.values()):
            return "ended its answer before it began"
        if told:
            return "ended its answer without a finish reason (the option `no_finish: length` accepts that)"
        return "closed the connection in the middle of its answer"

    def _excused(self, choice: _Choice, told: bool) -> bool:
        """Whether a choice may end without a finish reason: if the row says so, and the answer's end is known."""
        return self._options.no_finish == "length" and choice.said and (told or self._usage is not None)

    def _finish(self, choice: _Choice, events: list[Event]) -> None:
        calls = choice.calls.all
        if any(call.slot is None and call.begun for call in calls):
            raise self._failures.violated("a tool call of its answer has no name")
        native = choice.finish
        if native is None:
            reason: FinishReason = "tool_calls" if calls and all(call.complete for call in calls) else "length"
        else:
            reason = REASONS.get(native.lower(), "stop")
            if reason == "stop" and choice.given:
                # Ollama's word, and OpenAI's when a tool was forced
                reason = "tool_calls"
        if reason == "tool_calls":
            # clients parse the arguments, and an empty text is no JSON
            bare = [call.slot for call in calls if call.slot is not None and call.kind == "function" and not call.begun]
            events += [ToolCallDelta(choice.index, slot, "{}") for slot in bare]
        word = None if native == reason else native
        events.append(ChoiceFinished(choice.index, reason, word, choice.stop, choice.finish_extra))


def _extras(fields: Json, known: frozenset[str]) -> Json:
    """The vendor's fields of an object; null says nothing."""
    if fields.keys() <= known:
        return {}
    return {key: value for key, value in fields.items() if value is not None and key not in known}


def _pieces(delta: Json, choice: _Choice, inside: Json) -> list[Piece]:
    """The text of a delta, reasoning first; what is of no known kind goes `inside`."""
    pieces: list[Piece] = []
    # some servers send both, with the same text
    for key in ("reasoning_content", "reasoning"):
        reasoning = delta.get(key)
        if isinstance(reasoning, str):
            if reasoning:
                pieces.append(("reasoning", reasoning))
                break
        elif reasoning is not None:
            inside[key] = reasoning
    content = delta.get("content")
    if isinstance(content, str):
        if content:
            pieces += choice.tags.feed(content) if choice.tags is not None else (("text", content),)
    elif isinstance(content, list):
        others = [part for part in content if not flatten(part, pieces)]
        if others:
            inside["content_parts"] = others
    refusal = delta.get("refusal")
    if isinstance(refusal, str) and refusal:
        pieces.append(("refusal", refusal))
    return pieces


def _call_extra(call: Call, extras: Json) -> Extra | None:
    """Vendor fields inside a tool call, as a piece of the delta's `tool_calls`."""
    return Extra(PROTOCOL, block={"tool_calls": [{"index": call.number, **extras}]}) if extras else None


def _text_event(kind: Kind, choice: int, slot: int, text: str, extra: Extra | None) -> Event:
    if kind == "text":
        return TextDelta(choice, slot, text, extra)
    if kind == "reasoning":
        return ReasoningDelta(choice, slot, text, extra=extra)
    return RefusalDelta(choice, slot, text, extra)
