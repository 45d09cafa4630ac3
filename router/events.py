"""What a model answers: the closed union of stream events, and the order they may come in.

Whatever the vendor, an answer is one stream of these values::

    Started  ( TextDelta | ReasoningDelta | RefusalDelta | ToolCallStarted | ToolCallDelta
             | BlockSigned | Extended | ChoiceFinished )*  UsageReported?  Completed

A stream that ends without `Completed` was cut: failure is an exception inside, never an event.
This module knows no vendor, no dialect and no I/O. Do not subclass the events: the union is closed.

Two indexes place a piece of content:

* `choice`: which of several answers (`n > 1`), from 0;
* `slot`: which block of that answer, dense from 0 in the order the blocks opened. A block is one run of text, one
  run of reasoning, one refusal, one tool call or one opaque item, and never changes its kind. Blocks may
  interleave (parallel tool calls do). Decoders get slots from `router.slots`, so adapters never count.

What is not modelled travels in an `Extra`, tagged with the protocol it came from: a client that speaks the same
protocol gets it back unchanged, everybody else ignores it.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]
ToolKind: TypeAlias = Literal["function", "custom"]
UsageSource: TypeAlias = Literal["reported", "estimated"]
Side: TypeAlias = Literal["prompt", "completion"]


class Extra(Struct, frozen=True):
    """Vendor fields that the union does not model, kept verbatim at the level they were found on."""

    protocol: str
    answer: dict[str, Any] = {}
    """Beside the choices: `service_tier`, `system_fingerprint`, …"""
    choice: dict[str, Any] = {}
    """Beside the delta or message of one choice: `logprobs`, `content_filter_results`, …"""
    block: dict[str, Any] = {}
    """Inside the delta or message: `annotations`, `audio`, `reasoning_details`, …"""
    whole: bool = False
    """The values are whole and replace earlier ones of their key; else they are pieces that add up."""


class Usage(Struct, frozen=True, kw_only=True):
    """Token counts in disjoint classes: each token of the call is in exactly one of them."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    """Written to a cache of the vendor's default lifetime (Anthropic: 5 minutes)."""
    cache_write_1h: int = 0
    input_audio: int = 0
    output: int = 0
    """Visible output: reasoning and audio are not in it."""
    reasoning: int = 0
    output_audio: int = 0
    source: UsageSource = "reported"
    flag: str | None = None
    """Why the vendor's figures do not add up; None when they do."""
    untold: tuple[Side, ...] = ()
    """Sides that the vendor left out: nothing is known of their classes, and the core counts them."""
    extra: Extra | None = None
    """The vendor's own usage object, under `extra.answer`."""

    @property
    def prompt_total(self) -> int:
        return self.input + self.cache_read + self.cache_write + self.cache_write_1h + self.input_audio

    @property
    def completion_total(self) -> int:
        return self.output + self.reasoning + self.output_audio


class Started(Struct, frozen=True, tag_field="type", tag="started"):
    """The vendor has begun to answer. `id` and `model` are the vendor's own words.

    `created` is in Unix seconds, 0 where the vendor does not say: decoders hold no clock, dialects put the call's time.
    """

    id: str
    model: str
    created: int
    extra: Extra | None = None


class TextDelta(Struct, frozen=True, gc=False, tag_field="type", tag="text_delta"):
    choice: int
    slot: int
    text: str
    extra: Extra | None = None


class ReasoningDelta(Struct, frozen=True, gc=False, tag_field="type", tag="reasoning_delta"):
    """A piece of the model's reasoning, or of the vendor's summary of it (`part` numbers the summary's parts)."""

    choice: int
    slot: int
    text: str
    kind: Literal["full", "summary"] = "full"
    part: int = 0
    extra: Extra | None = None


class RefusalDelta(Struct, frozen=True, gc=False, tag_field="type", tag="refusal_delta"):
    choice: int
    slot: int
    text: str
    extra: Extra | None = None


class ToolCallStarted(Struct, frozen=True, gc=False, tag_field="type", tag="tool_call_started"):
    """A tool call opens its slot. Id and name are whole here: decoders hold a call back until its name is known."""

    choice: int
    slot: int
    id: str
    name: str
    kind: ToolKind = "function"
    extra: Extra | None = None


class ToolCallDelta(Struct, frozen=True, gc=False, tag_field="type", tag="tool_call_delta"):
    """A piece of a call's arguments: JSON text for a function, free text for a custom tool."""

    choice: int
    slot: int
    arguments: str
    extra: Extra | None = None


class BlockSigned(Struct, frozen=True, gc=False, tag_field="type", tag="block_signed"):
    """The vendor's opaque seal on a block; it must return with the block in later turns. A later seal replaces.

    `signature` seals what was streamed, `redacted` and `encrypted` stand in for content that is not shown
    (they may be all there is in their slot).
    """

    choice: int
    slot: int
    value: str
    kind: Literal["signature", "redacted", "encrypted"] = "signature"
    extra: Extra | None = None


class Extended(Struct, frozen=True, tag_field="type", tag="extended"):
    """Something the union does not model: about the answer (`choice` None), a choice, or one block of it."""

    extra: Extra
    choice: int | None = None
    slot: int | None = None


class ChoiceFinished(Struct, frozen=True, gc=False, tag_field="type", tag="choice_finished"):
    """One choice has ended. `native` is the vendor's own word when it differs from `reason`."""

    choice: int
    reason: FinishReason
    native: str | None = None
    stop_sequence: str | None = None
    extra: Extra | None = None


class UsageReported(Struct, frozen=True, tag_field="type", tag="usage_reported"):
    """The call's final counts: at most one in a stream, after every choice has ended."""

    usage: Usage


class Completed(Struct, frozen=True, gc=False, tag_field="type", tag="completed"):
    """The vendor ended the answer properly. The only event that permits an honest end such as `[DONE]`."""

    extra: Extra | None = None


Event: TypeAlias = (
    Started
    | TextDelta
    | ReasoningDelta
    | RefusalDelta
    | ToolCallStarted
    | ToolCallDelta
    | BlockSigned
    | Extended
    | ChoiceFinished
    | UsageReported
    | Completed
)

CONTENT: Final[frozenset[type]] = frozenset(
    {TextDelta, ReasoningDelta, RefusalDelta, ToolCallStarted, ToolCallDelta, BlockSigned, Extended}
)
"""Events that carry a piece of the answer. The first of them commits the call to its target."""

_WITHIN: Final = dict.fromkeys(CONTENT | {ChoiceFinished}, "open")
ORDER: Final[dict[str, dict[type, str]]] = {
    "start": {Started: "open"},
    "open": {**_WITHIN, UsageReported: "counted", Completed: "end"},
    "counted": {Completed: "end"},
    "end": {},
}
"""The legal order: state → event type → next state."""

AFTER_FINISH: Final[frozenset[type]] = frozenset({Extended})
"""What may still come for a choice that has finished (asynchronous content filters do)."""


class IllegalOrder(AssertionError):
    """A decoder or plugin broke the order of events. A fault in code, never in what a vendor sent."""


class OrderCheck:
    """Follows a stream and raises `IllegalOrder` at the first event that may not come where it comes."""

    def __init__(self) -> None:
        self.state = "start"
        self._finished: dict[int, bool] = {}
        self._slots: dict[int, dict[int, str]] = {}

    def see(self, event: Event) -> None:
        following = ORDER[self.state].get(type(event))
        if following is None:
            raise IllegalOrder(f"{type(event).__name__} may not come in state {self.state!r}")
        choice = getattr(event, "choice", None)
        if choice is not None:
            self._see_choice(choice, event)
        if isinstance(event, Completed) and not (self._finished and all(self._finished.values())):
            raise IllegalOrder(f"Completed although not every choice has finished: {self._finished}")
        self.state = following

    def _see_choice(self, choice: int, event: Event) -> None:
        if self._finished.get(choice) and type(event) not in AFTER_FINISH:
            raise IllegalOrder(f"{type(event).__name__} after choice {choice} had finished")
        self._finished[choice] = self._finished.get(choice, False) or isinstance(event, ChoiceFinished)
        slot = getattr(event, "slot", None)
        if slot is None:
            return
        slots = self._slots.setdefault(choice, {})
        kind = _KIND.get(type(event))
        if slot not in slots:
            if slot != len(slots):
                raise IllegalOrder(f"slot {slot} opened when {len(slots)} was next")
            if isinstance(event, ToolCallDelta):
                raise IllegalOrder(f"tool call slot {slot} has a delta before its start")
            slots[slot] = kind or "opaque"
        elif kind is not None and slots[slot] == "opaque":
            if isinstance(event, ToolCallDelta):
                raise IllegalOrder(f"tool call slot {slot} has a delta before its start")
            # a seal may come before the content it seals
            slots[slot] = kind
        elif isinstance(event, ToolCallStarted):
            raise IllegalOrder(f"slot {slot}, a {slots[slot]}, cannot start a tool call")
        elif kind is not None and slots[slot] != kind:
            raise IllegalOrder(f"slot {slot} is {slots[slot]}, not {kind}")


_KIND: Final[dict[type, str]] = {
    TextDelta: "text",
    ReasoningDelta: "reasoning",
    RefusalDelta: "refusal",
    ToolCallStarted: "tool_call",
    ToolCallDelta: "tool_call",
}


def check_order(events: Iterable[Event]) -> list[Event]:
    """The events as a list, after checking that their order is legal and the stream is complete."""
    check, seen = OrderCheck(), []
    for event in events:
        check.see(event)
        seen.append(event)
    if check.state != "end":
        raise IllegalOrder(f"the stream stopped in state {check.state!r}")
    return seen
