"""One answer of several vendors: what the client has of it, and how another vendor's stream goes on from there. Pure.

When a vendor dies in the middle of an answer, a route with `continuation` has the next target go on with it. A `Splice`
follows what the client is given, says whether the answer can be gone on with at all, and turns the events of the next
vendor into the continuation of the first one's stream. It knows no vendor and does no I/O.

Only text is spliced. Of a tool call, half of the arguments is nothing that another model could finish; nor is half of
a JSON document that one vendor's grammar has shaped.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from router.audio import asks_for_audio
from router.events import (
    BlockSigned,
    ChoiceFinished,
    Completed,
    Event,
    Extended,
    ReasoningDelta,
    RefusalDelta,
    Side,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    UsageReported,
)
from router.messages import Assistant, ChatRequest, Content, PlainText, Text, User
from router.provider import Continues, Provider, Target
from router.tokens import rough_count

LONGEST_OVERLAP: Final = 200
"""Characters of its end that a vendor may repeat of a text before it goes on."""
SHORTEST_OVERLAP: Final = 12
"""Characters that are taken for a repetition. Fewer may be the same by chance: `, and the `, a bracket, an indent."""
_DISTINCT: Final = 5
"""Different characters in a repetition: a ruler of dashes or an indent may well go on with more of the same."""

INSTRUCTION: Final = (
    "Your answer above was interrupted. Continue it at exactly the character where it stops, even in the middle of a "
    "word or a line. Do not repeat any of it, do not begin anew, and write nothing before the continuation: no "
    "greeting, no remark, no quotation mark, no code fence that is open already."
)
"""What a vendor is told that cannot be given the beginning of its own answer."""


class Splice:
    """The answer to one request, as far as the client has it.

    `see` every event that the client is given, also those that `join` yields. When a vendor has died, `leave` it; then
    `join` the events of the next one, in as many calls as there are reads.
    """

    __slots__ = (
        "_calls",
        "_deciding",
        "_early",
        "_held",
        "_held_slot",
        "_in_words",
        "_left",
        "_names",
        "_next",
        "_open",
        "_pieces",
        "_places",
        "_request",
        "_so_far",
        "_why",
        "joining",
        "taken",
    )

    def __init__(self, request: ChatRequest) -> None:
        self.joining = False
        """Whether a vendor was left, so that what comes is a continuation."""
        self.taken = 0
        """Events that `join` has taken, also those of which nothing is shown: the vendor's progress."""
        self._request = request
        self._pieces: list[str] = []
        self._why: str | None = None
        self._next = 0
        """The slot that would be opened next."""
        self._open: int | None = None
        """The slot that was opened last, if it is text."""
        self._left: list[Usage | None] = []
        self._names: list[str] = []
        self._in_words = True
        """Whether the vendor that goes on was only told to: then it may repeat a piece."""
        self._begin()

    def _begin(self) -> None:
        """What is known of the vendor that goes on: nothing yet."""
        self._places: dict[int, int] = {}
        """Its slots → the client's."""
        self._calls: set[int] = set()
        """Its slots that are tool calls."""
        self._early: dict[int, list[BlockSigned | Extended]] = {}
        """What it has sent of slots whose kind is not known."""
        self._so_far = self.text
        self._deciding = len(self._so_far) >= SHORTEST_OVERLAP
        """Whether its text may still turn out to be a repetition; it is held back so long."""
        self._held = ""
        self._held_slot: int | None = None

    # -- what the client has ---------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """The text that the client has been given. Empty when there was only reasoning: another may begin anew."""
        if len(self._pieces) > 1:
            self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def see(self, event: Event) -> None:
        """The client is given this event."""
        kind = type(event)
        if kind is TextDelta:
            # nearly all of a stream
            slot: int = event.slot  # type: ignore[union-attr, assignment]
            self._pieces.append(event.text)  # type: ignore[union-attr]
            if slot >= self._next:
                self._next, self._open = slot + 1, slot
            if event.choice:  # type: ignore[union-attr]
                self._why = "several choices have begun"
            return
        if kind is ToolCallStarted:
            self._why = "a tool call has begun"
        elif kind is RefusalDelta:
            self._why = "the model has refused"
        elif kind is ChoiceFinished:
            self._why = "the answer has its finish reason"
        if getattr(event, "choice", None):
            self._why = "several choices have begun"
        opened = getattr(event, "slot", None)
        if opened is not None and opened >= self._next:
            self._next, self._open = opened + 1, None

    def refusal(self) -> str | None:
        """Why no other vendor can go on with this answer; None when one can."""
        if self._why is not None:
            return self._why
        sampling = self._request.sampling
        if sampling.n is not None and sampling.n > 1:
            return "several choices are asked for"
        if sampling.logprobs:
            return "logprobs are asked for, which two models cannot tell of one text"
        if self._request.response_format is not None and not isinstance(self._request.response_format, PlainText):
            return "the answer has to be in a form (`response_format`) that half of it does not have"
        if asks_for_audio(self._request):
            return "the answer is spoken"
        return None

    # -- how another goes on ---------------------------------------------------------------------------------------

    def leave(self, usage: Usage | None) -> None:
        """The vendor has died; `usage` is what its attempt used, reported or estimated, as far as is known."""
        self._left.append(usage)
        self.joining = True
        self._begin()

    def asked(self, provider: Provider, target: Target) -> ChatRequest:
        """The request by which `target` goes on, to be made after `leave`; of several such, the last is joined."""
        text = self.text
        request = continuation_of(provider, self._request, target, text)
        last = request.messages[-1] if request.messages else None
        self._in_words = isinstance(last, User) and last.content == INSTRUCTION
        return request

    def total(self, usage: Usage | None) -> Usage | None:
        """The whole answer's usage, where the vendor that ended it has used `usage`.

        The prompt counts once, as it was for the first, and of the answer what all have written. The later prompts,
        which hold a part of the answer, are in the usage of their attempts alone.
        """
        if not self._left:
            return usage
        parts = [*self._left, usage]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        first = self._left[0]
        untold: list[Side] = [] if first is not None and "prompt" not in first.untold else ["prompt"]
        if any(part is None or "completion" in part.untold for part in parts):
            untold.append("completion")
        prompt = first or Usage()
        flags = [f"continued by {' and '.join(self._names) or 'another model'}", *(part.flag for part in known)]
        return Usage(
            input=prompt.input,
            cache_read=prompt.cache_read,
            cache_write=prompt.cache_write,
            cache_write_1h=prompt.cache_write_1h,
            input_audio=prompt.input_audio,
            output=sum(part.output for part in known),
            reasoning=sum(part.reasoning for part in known),
            output_audio=sum(part.output_audio for part in known),
            source="estimated",
            flag="; ".join(dict.fromkeys(filter(None, flags))),
            untold=tuple(untold),
        )

    def join(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events of the next vendor as the continuation of the stream.

        Left out are its `Started` (the client keeps the first id and model), its reasoning (it is billed, but comes
        before a text that the client has the beginning of), and what it says beside its text, such as citations, whose
        places count from its own beginning. Where it gives the text so far back, that is cut off, and so is a piece of
        its end, if the vendor was told in words to go on: one that has the beginning as its own repeats a line because
        the answer does.
        """
        for event in events:
            self.taken += 1
            match event:
                case TextDelta(choice=0):
                    yield from self._text(event)
                case Started():
                    self._names.append(event.model or "another model")
                case ToolCallStarted(choice=0):
                    yield from self._given()
                    self._calls.add(event.slot)
                    yield msgspec.structs.replace(event, slot=self._place(event.slot))
                    for early in self._early.pop(event.slot, ()):
                        yield msgspec.structs.replace(early, slot=self._places[event.slot])
                case ToolCallDelta(choice=0):
                    yield msgspec.structs.replace(event, slot=self._places[event.slot])
                case BlockSigned(choice=0, slot=int(slot)) | Extended(choice=0, slot=int(slot)):
                    if slot in self._calls:
                        yield msgspec.structs.replace(event, slot=self._places[slot])
                    elif slot not in self._places:
                        self._early.setdefault(slot, []).append(event)
                case RefusalDelta(choice=0):
                    yield from self._given()
                    yield RefusalDelta(0, self._place(event.slot), event.text)
                case ChoiceFinished(choice=0):
                    yield from self._given()
                    yield ChoiceFinished(0, event.reason, event.native, event.stop_sequence)
                case UsageReported():
                    total = self.total(event.usage)
                    if total is not None:
                        yield UsageReported(total)
                case Completed():
                    yield Completed()
                case ReasoningDelta() | _:
                    pass

    def _text(self, event: TextDelta) -> Iterator[Event]:
        if self._deciding and self._held_slot in (None, event.slot):
            self._held_slot = event.slot
            self._held += event.text
            if not self._may_repeat():
                yield from self._given()
            return
        yield from self._given()
        yield TextDelta(0, self._place(event.slot, text=True), event.text)

    def _given(self) -> Iterator[Event]:
        """What was held back, without a repetition. From here on nothing is."""
        if not self._deciding:
            return
        self._deciding = False
        overlap = _overlap(self._so_far, self._held, of_the_end=self._in_words)
        slot, rest = self._held_slot, self._held[overlap:]
        self._held = ""
        if slot is not None and rest:
            yield TextDelta(0, self._place(slot, text=True), rest)

    def _may_repeat(self) -> bool:
        """Whether what has come may be the beginning of a longer repetition: of the end of the text, or of all of it,
        which vendors send that give a prefix back."""
        held, text = self._held, self._so_far
        if len(held) < len(text) and text.startswith(held):
            return True
        return self._in_words and held in text[-LONGEST_OVERLAP:-1]

    def _place(self, slot: int, *, text: bool = False) -> int:
        """The client's slot for one of the vendor's. Its text runs on in the text that is open."""
        place = self._places.get(slot)
        if place is None:
            if text and self._open is not None:
                place = self._open
            else:
                place = self._next
                self._next, self._open = place + 1, place if text else None
            self._places[slot] = place
            if not text:
                self._open = None
        return place


def _overlap(text: str, following: str, *, of_the_end: bool) -> int:
    """How many characters `following` repeats of all of `text`, or `of_the_end`, before it goes on."""
    if following.startswith(text) and _is_repetition(text):
        return len(text)
    if not of_the_end:
        return 0
    for length in range(min(len(text), len(following), LONGEST_OVERLAP), SHORTEST_OVERLAP - 1, -1):
        if text.endswith(following[:length]):
            return length if _is_repetition(following[:length]) else 0
    return 0


def _is_repetition(text: str) -> bool:
    return len(text) >= SHORTEST_OVERLAP and len(set(text)) >= _DISTINCT


# -- what the next vendor is asked ---------------------------------------------------------------------------------


def continuation_of(provider: Provider, request: ChatRequest, target: Target, text: str) -> ChatRequest:
    """The request by which `target` goes on with an answer that begins with `text`.

    In the vendor's own form, where its adapter has one (`router.provider.Continues`), or else by an instruction. What
    was written already no longer counts towards `max_tokens`.
    """
    if not text:
        return request
    limit = request.sampling.max_tokens
    if limit is not None:
        left = max(limit - rough_count([text]), 1)
        request = msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, max_tokens=left))
    earlier, begun = list(request.messages), Assistant(text)
    if earlier and isinstance(earlier[-1], Assistant) and not earlier[-1].tool_calls:
        # the client itself had given the beginning of the answer
        begun = _lengthened(earlier[-1], text)
        earlier.pop()
    if isinstance(provider, Continues):
        asked = provider.continued(msgspec.structs.replace(request, messages=(*earlier, begun)), target)
        if asked is not None:
            return asked
    messages = (*earlier, msgspec.structs.replace(begun, extra={}), User(INSTRUCTION))
    return msgspec.structs.replace(request, messages=messages)


def _lengthened(message: Assistant, text: str) -> Assistant:
    content: Content | None = message.content
    content = (*content, Text(text)) if isinstance(content, tuple) else (content or "") + text
    return msgspec.structs.replace(message, content=content)
