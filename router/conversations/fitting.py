"""Which part of a conversation is sent when all of it would be too long. Pure.

The rule. Room is what `at` leaves of the window, and no more than the window without the answer's own room. As long as
all fits, all is sent. When it does not, whole turns are left out from the oldest on: so many that what goes is a
multiple of a quarter of the room, and covers what was too much. So the cut stays in its place while the conversation
grows by that quarter, and the beginning of the prompt stays the same, which is what vendors' prompt caches go by. No
state is needed for it: the same history has the same cut.

A turn begins with what the user says (and instructions right before it), and ends before the next one: a tool call and
its results are always in one turn. Instructions at the very beginning always stay, and so do the latest `keep_turns`
turns, the one that is being asked among them, even if they alone are too long: then the vendor's own error tells.
"""

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from router.conversation import ContextRules, Item
from router.conversations.said import Said, said
from router.messages import Message, System, User

STEP: Final = 0.25
"""Of the room, that is left out at a time."""
INTRODUCED: Final = 48
"""Tokens of what is written before a summary, and around that message."""


class Fitted(Struct, frozen=True):
    """What is sent of a conversation."""

    messages: tuple[Message, ...]
    instructions: int
    """How many of them, from the first on, are the instructions at the beginning: a summary comes after these."""
    first: str | None
    """The id of the oldest item that is sent, behind the instructions where something is left out after them."""
    left_out: tuple[Item, ...]
    """Those between the instructions and `first`."""
    tokens: int
    """Of the messages."""
    room: int | None
    """Tokens that the messages may have; None: no matter."""
    for_summary: int = 0
    """Of the room, what a summary of the items that are left out may have."""


def fit(
    history: Sequence[Item],
    new: Sequence[Message],
    rules: ContextRules,
    window: int | None,
    tokens_of: Callable[[Message], int],
    reserve: int,
    beside: int = 0,
) -> Fitted:
    """`history`: the oldest first. `window`: the model's, in tokens; `rules.window` wins; None: nothing is left out.
    `reserve`: tokens for the answer. `beside`: what the prompt has beside its messages, tools above all."""
    window = rules.window or window
    messages = said(history, new)
    lengths = [tokens_of(each.message) for each in messages]
    total = sum(lengths)
    instructions = _instructions(messages)
    room = None if window is None else int(min(rules.at * window, window - reserve)) - beside
    cut = instructions
    for_summary = 0
    if room is not None and rules.strategy != "none" and total > room:
        if rules.strategy == "summarise":
            for_summary = max(0, min(rules.max_tokens + INTRODUCED, room // 4))
        step = max(1, int(STEP * room))
        too_much = total - (room - for_summary)
        cut = _cut(messages, lengths, instructions, rules.keep_turns, -(-too_much // step) * step)
    if cut == instructions:
        for_summary = 0
    kept = messages[cut:]
    first = next((each.first for each in kept if each.first is not None), None)
    left_out: tuple[Item, ...] = ()
    if cut > instructions:
        begin = 0 if not instructions else _after(messages[instructions - 1])
        left_out = tuple(history[begin:first])
    elif messages and messages[0].first is not None:
        first = messages[0].first
    return Fitted(
        tuple(each.message for each in (*messages[:instructions], *kept)),
        instructions,
        None if first is None else history[first].id,
        left_out,
        total - sum(lengths[instructions:cut]),
        room,
        for_summary,
    )


def _instructions(messages: Sequence[Said]) -> int:
    """How many instructions there are at the beginning, of the history alone."""
    for place, each in enumerate(messages):
        if each.first is None or not isinstance(each.message, System):
            return place
    return len(messages)


def _cut(messages: Sequence[Said], lengths: Sequence[int], instructions: int, keep_turns: int, goal: int) -> int:
    """From which message on the rest is sent: the first place where at least `goal` tokens are left out, else the last
    that may be cut at."""
    starts = _turns(messages, instructions)
    # nothing that came with the call is left out
    newest = next((place for place, each in enumerate(messages) if each.first is None), len(messages))
    allowed = starts[: max(0, len(starts) - keep_turns + 1)]
    cut = instructions
    gone, place = 0, instructions
    for start in allowed:
        if start > newest or gone >= goal:
            break
        gone += sum(lengths[place:start])
        cut = place = start
    return cut


def _turns(messages: Sequence[Said], begin: int) -> list[int]:
    """Where turns begin: at instructions and words of the user side by side, some of the user's among them."""
    starts: list[int] = []
    place = begin
    while place < len(messages):
        end = place
        while end < len(messages) and isinstance(messages[end].message, System | User):
            end += 1
        if any(isinstance(each.message, User) for each in messages[place:end]):
            starts.append(place)
        place = max(end, place + 1)
    return starts


def _after(each: Said) -> int:
    return 0 if each.last is None else each.last + 1
