"""Hypothesis strategies for legal streams of events, written from the rules and not from the code that checks them."""

from typing import Any

from hypothesis import strategies as st

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
    Usage,
    UsageReported,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
COUNT = st.integers(0, 10_000)
KINDS = ("text", "reasoning", "refusal", "function", "custom", "opaque")
TEXTS = ("text", "reasoning", "refusal")


def token(word: str) -> dict[str, Any]:
    return {"token": word, "logprob": -0.5, "bytes": list(word.encode()), "top_logprobs": []}


LOGPROBS = TEXT.map(lambda word: {"logprobs": {"content": [token(word)], "refusal": None}})
BLOCK_FIELDS = st.one_of(
    st.just({"annotations": [{"type": "url_citation", "index": 0}]}),
    TEXT.map(lambda text: {"audio": {"id": "audio_1", "data": text}}),
    TEXT.map(lambda text: {"reasoning_details": [{"index": 0, "text": text}]}),
)
OPENAI_EXTRAS = st.one_of(
    LOGPROBS.map(lambda fields: Extra("openai", choice=fields)),
    BLOCK_FIELDS.map(lambda fields: Extra("openai", block=fields)),
)
ANSWER_EXTRA = Extra("openai", answer={"service_tier": "default", "system_fingerprint": "fp_1"})
USAGES = st.builds(
    Usage,
    input=COUNT,
    cache_read=COUNT,
    cache_write=COUNT,
    cache_write_1h=COUNT,
    input_audio=COUNT,
    output=COUNT,
    reasoning=COUNT,
    output_audio=COUNT,
    source=st.sampled_from(["reported", "estimated"]),
)


@st.composite
def _choice(
    draw: st.DrawFn, index: int, kinds: tuple[str, ...], extras: st.SearchStrategy[Extra | None], in_order: bool
) -> list[Event]:
    """The events of one choice: its blocks opened one after another, their pieces interleaved at will."""
    events: list[Event] = []
    opened: list[str] = []
    parts: dict[int, int] = {}
    for _ in range(draw(st.integers(0, 8))):
        latest = {kind: at for at, kind in enumerate(opened)}
        open_still = [at for at, kind in enumerate(opened) if not in_order or kind not in TEXTS or latest[kind] == at]
        slot = draw(st.sampled_from([*open_still, len(opened)]))
        fresh = slot == len(opened)
        if fresh:
            opened.append(draw(st.sampled_from(kinds)))
        kind, extra = opened[slot], draw(extras)
        if in_order and extra is not None and extra.block and slot != len(opened) - 1:
            extra = None
        if kind == "text":
            events.append(TextDelta(index, slot, draw(TEXT), extra))
        elif kind == "reasoning":
            parts[slot] = parts.get(slot, 0) + draw(st.integers(0, 1))
            events.append(ReasoningDelta(index, slot, draw(TEXT), "summary", parts[slot], extra))
        elif kind == "refusal":
            events.append(RefusalDelta(index, slot, draw(TEXT), extra))
        elif kind == "opaque":
            events.append(
                draw(
                    st.sampled_from(
                        [BlockSigned(index, slot, "seal", "redacted", extra), Extended(Extra("other"), index, slot)]
                    )
                )
            )
        elif fresh:
            name = draw(st.sampled_from(["look", "find"]))
            events.append(
                ToolCallStarted(index, slot, f"call_{slot}", name, "custom" if kind == "custom" else "function", extra)
            )
        else:
            events.append(ToolCallDelta(index, slot, draw(TEXT), extra))
        if draw(st.integers(0, 9)) == 0:
            events.append(BlockSigned(index, slot, draw(TEXT)))
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    events.append(ChoiceFinished(index, reason, extra=draw(extras)))
    return events


@st.composite
def legal_streams(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS,
    extras: st.SearchStrategy[Extra | None] | None = None,
    usage: bool | None = None,
    in_order: bool = False,
) -> list[Event]:
    """Complete streams of one to three choices, whose events interleave.

    `in_order`: a run of text is not gone back to once another of its kind has begun, as formats that have one text
    to an answer need; fields of the message come with the block that was opened last.
    """
    some = st.none() if extras is None else st.none() | extras
    queues = [draw(_choice(index, kinds, some, in_order)) for index in range(draw(st.integers(1, 3)))]
    # every choice is heard of before another may end the answer: any interleaving of the queues is legal
    events: list[Event] = [
        Started(
            draw(st.sampled_from(["", "chatcmpl-9"])),
            draw(st.sampled_from(["", "model-9"])),
            draw(st.sampled_from([0, 1_700_000_000])),
            ANSWER_EXTRA if extras is not None and draw(st.booleans()) else None,
        )
    ]
    while queues:
        queue = draw(st.sampled_from(queues))
        events.append(queue.pop(0))
        queues = [rest for rest in queues if rest]
    if draw(st.booleans()) if usage is None else usage:
        events.append(UsageReported(draw(USAGES)))
    events.append(Completed())
    return events
