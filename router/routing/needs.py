"""What a request needs, and why a target cannot or may not serve it. Pure.

What is not known excludes nobody: a target that is tried in vain costs one attempt, one that is never tried is lost.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from router.audio import asks_for_audio
from router.messages import Assistant, Audio, ChatRequest, File, Image, JsonSchema, OtherPart, Thinking
from router.nearest import alternatives
from router.route import Balance, When
from router.routing.candidates import Candidate, Needs
from router.tokens import measured

_TOLERANCE: Final = 0.8
"""The part of our count that a prompt has at least: vendors have vocabularies of their own, and what is counted by its
length alone is a fifth less in plain English."""
_BYTES: Final = 4
"""Of a character in UTF-8, at most; a token is a byte at least."""
_AROUND: Final = 100
"""Tokens of what stands around a message, its name among them, and more."""
_ALWAYS: Final = When()
_ABILITIES: Final = ("tools", "images", "audio", "json_schema", "reasoning")
_ASKED: Final = {
    "tools": ("brings no tools", "brings tools"),
    "images": ("brings no images", "brings images"),
    "audio": ("has nothing to do with audio", "brings or wants audio"),
    "json_schema": ("names no JSON Schema", "names a JSON Schema"),
    "reasoning": ("does not ask for reasoning", "asks for reasoning"),
}
"""What is said of a call that does not need it, and of one that does."""


def needs_of(request: ChatRequest, tags: Mapping[str, str], regions: tuple[str, ...], prompt_tokens: int) -> Needs:
    """What the request needs. `prompt_tokens`: counted or estimated, images, files and recordings included; 0 where
    nothing wants to know (`wants_tokens`)."""
    images = audio = others = False
    for message in request.messages:
        if message.content is None or isinstance(message.content, str):
            continue
        for part in message.content:
            images = images or isinstance(part, Image)
            audio = audio or isinstance(part, Audio)
            others = others or isinstance(part, File | OtherPart)
    return Needs(
        tools=bool(request.tools),
        images=images,
        audio=audio or asks_for_audio(request),
        json_schema=isinstance(request.response_format, JsonSchema),
        reasoning=asks_to_reason(request.thinking),
        prompt_tokens=prompt_tokens,
        guessed_tokens=measured(request)[1] if prompt_tokens and (images or audio or others) else 0,
        max_tokens=request.sampling.max_tokens,
        tags=tags,
        regions=regions,
    )


def asks_to_reason(thinking: Thinking) -> bool:
    """Whether a request asks the model to reason. Without a word of it, a model does as it likes."""
    if thinking.enabled is not None:
        return thinking.enabled
    return bool(thinking.budget) or thinking.effort not in (None, "none")


def lacks(candidate: Candidate, needs: Needs) -> str | None:
    """Why the target cannot or may not serve the call, in words; None: nothing speaks against it."""
    if needs.regions and candidate.region not in needs.regions:
        return f"not in the region {alternatives(needs.regions)}"
    if candidate.when != _ALWAYS and (unmet := _unmet(candidate.when, needs)) is not None:
        return unmet
    can = candidate.can
    if needs.tools and can.tools is False:
        return "no tools"
    if needs.images and can.images is False:
        return "no images"
    if needs.audio and can.audio is False:
        return "no audio"
    if needs.json_schema and can.json_schema is False:
        return "no answers by a JSON Schema"
    if needs.reasoning and can.reasoning is False:
        return "no reasoning"
    if can.context is not None:
        least = _TOLERANCE * max(needs.prompt_tokens - needs.guessed_tokens, 0)
        if least + (needs.max_tokens or 0) > can.context:
            asked = f" and an answer of {needs.max_tokens}" if needs.max_tokens else ""
            return f"its context of {can.context} tokens is too short for {needs.prompt_tokens}{asked}"
    return None


def wants_tokens(candidates: Sequence[Candidate], balance: Balance, request: ChatRequest) -> bool:
    """Whether the prompt's tokens must be known to choose. Cheap: most prompts are plainly shorter than any context."""
    if balance == "cost" and len(candidates) > 1:
        return True
    shortest = 0
    for each in candidates:
        if each.when.min_prompt_tokens is not None or each.when.max_prompt_tokens is not None:
            return True
        if each.can.context is not None and (not shortest or each.can.context < shortest):
            shortest = each.can.context
    return bool(shortest) and _is_above(request, shortest - (request.sampling.max_tokens or 0))


def _unmet(when: When, needs: Needs) -> str | None:
    """The first condition that does not hold."""
    for tag, pattern in when.tags.items():
        value = needs.tags.get(tag)
        if value is None:
            return f"`when.tags.{tag}` is `{pattern}`, and the call has no tag `{tag}`"
        if not fnmatchcase(value, pattern):
            return f"`when.tags.{tag}` is not `{pattern}`"
    if when.min_prompt_tokens is not None and needs.prompt_tokens < when.min_prompt_tokens:
        return f"`when.min_prompt_tokens` is {when.min_prompt_tokens}, the prompt has {needs.prompt_tokens}"
    if when.max_prompt_tokens is not None and needs.prompt_tokens > when.max_prompt_tokens:
        return f"`when.max_prompt_tokens` is {when.max_prompt_tokens}, the prompt has {needs.prompt_tokens}"
    for ability in _ABILITIES:
        wanted = getattr(when, ability)
        if wanted is not None and wanted != getattr(needs, ability):
            return f"`when.{ability}` is {'true' if wanted else 'false'}, and the call {_ASKED[ability][not wanted]}"
    return None


def _is_above(request: ChatRequest, bound: int) -> bool:
    """Whether the request may have more tokens than `bound`."""
    most = 0
    if not request.tools and not isinstance(request.response_format, JsonSchema):
        for message in request.messages:
            content = message.content
            if not isinstance(content, str) or isinstance(message, Assistant):
                break
            most += _AROUND + (len(content) if content.isascii() else len(content) * _BYTES)
        else:
            # as most requests are: a few texts
            return most > bound
    texts, fixed = measured(request)
    return fixed + sum(len(text) if text.isascii() else len(text) * _BYTES for text in texts) > bound
