"""A vendor's usage object → disjoint token classes.

OpenAI's details are subsets of the totals (cached tokens are in the prompt's, reasoning tokens in the completion's).
Vendors put them in other places, or leave them out of the totals: each such case is named here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from router.events import Extra, Side, Usage

_PROMPT: Final = ("prompt_tokens", "input_tokens")
_COMPLETION: Final = ("completion_tokens", "output_tokens")
_MOST: Final = 10**9
"""More tokens than any call has: a count above is not believed, and taken for one that was not told."""
_COUNTS: Final = (*_PROMPT, *_COMPLETION, "total_tokens")


def counts(value: Any) -> bool:
    """Whether this is a usage object that says something: null, `{}` and timings alone do not."""
    return isinstance(value, dict) and any(_number(value.get(key)) is not None for key in _COUNTS)


Count: TypeAlias = Annotated[int, Meta(ge=0, le=_MOST)]


class PromptDetails(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    cached_tokens: Count = 0
    cache_write_tokens: Count = 0
    audio_tokens: Count = 0
    text_tokens: Count = 0
    image_tokens: Count = 0


class CompletionDetails(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    reasoning_tokens: Count = 0
    audio_tokens: Count = 0
    text_tokens: Count = 0
    accepted_prediction_tokens: Count = 0
    rejected_prediction_tokens: Count = 0


class PlainUsage(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A usage object as OpenAI's own documents have it, and nothing else in it: nearly all are."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: CompletionDetails = CompletionDetails()


def usage_of(raw: Mapping[str, Any], protocol: str) -> Usage:
    """The classes of a usage object for which `counts` holds. What does not add up is clamped and flagged, and so is a
    side that is not told: its classes are zero."""
    try:
        plain = msgspec.convert(raw, PlainUsage)
    except msgspec.ValidationError:
        return careful_usage_of(raw, protocol)
    heard, said = plain.prompt_tokens_details, plain.completion_tokens_details
    fresh = plain.prompt_tokens - heard.cached_tokens - heard.cache_write_tokens - heard.audio_tokens
    visible = plain.completion_tokens - said.reasoning_tokens - said.audio_tokens
    if plain.prompt_tokens + plain.completion_tokens != plain.total_tokens or fresh < 0 or visible < 0:
        return careful_usage_of(raw, protocol)
    return Usage(
        input=fresh,
        cache_read=heard.cached_tokens,
        cache_write=heard.cache_write_tokens,
        input_audio=heard.audio_tokens,
        output=visible,
        reasoning=said.reasoning_tokens,
        output_audio=said.audio_tokens,
        extra=Extra(protocol, answer={"usage": raw}),
    )


def careful_usage_of(raw: Mapping[str, Any], protocol: str) -> Usage:
    """The same for any vendor's object: the plain ones come out alike."""
    flags: list[str] = []
    prompt, completion, total = _first(raw, _PROMPT), _first(raw, _COMPLETION), _number(raw.get("total_tokens"))
    prompt_details = _details(raw, "prompt_tokens_details", "input_tokens_details")
    completion_details = _details(raw, "completion_tokens_details", "output_tokens_details")
    # Moonshot puts the hits beside the totals too, DeepSeek only there
    cached = _known(prompt_details, "cached_tokens") or _known(raw, "cached_tokens", "prompt_cache_hit_tokens")
    written = _known(prompt_details, "cache_write_tokens", "cache_creation_input_tokens")
    # Qwen's compatible mode may break the writing down by lifetime alone, in either place
    creation = _details(prompt_details, "cache_creation") or _details(raw, "cache_creation")
    written = written or sum(_known(creation, f"ephemeral_{time}_input_tokens") for time in ("5m", "1h"))
    written_1h = min(_known(creation, "ephemeral_1h_input_tokens"), written)
    audio_in = _known(prompt_details, "audio_tokens")
    reasoning = _known(completion_details, "reasoning_tokens") or _known(raw, "reasoning_tokens")
    audio_out = _known(completion_details, "audio_tokens")
    for part in (raw, prompt_details, completion_details, creation):
        flags += [words for key, value in part.items() if (words := _unread(key, value)) is not None]
    sides: tuple[tuple[Side, int | None, int | None], ...]
    sides = (("prompt", prompt, completion), ("completion", completion, prompt))
    untold = tuple(side for side, own, other in sides if own is None and (other is None or total is None))
    flags += [f"the tokens of the {side} are not told" for side in untold]
    if prompt is None:
        prompt = max((total or 0) - (completion or 0), 0)
    if completion is None:
        completion = max((total or 0) - prompt, 0)
    if total is not None and reasoning > 0 and total - prompt - completion == reasoning:
        # xAI counts reasoning in the total but not in the completion
        completion += reasoning
    if total is not None and total != prompt + completion:
        flags.append(f"total_tokens is {total}, not {prompt} + {completion}")
    if cached + written <= prompt:
        if audio_in > prompt:
            flags.append(f"audio_tokens is {audio_in}, more than prompt_tokens ({prompt})")
        # what was heard may have been read from the cache: it is counted there
        audio_in = min(audio_in, prompt - cached - written)
    plain = prompt - cached - written - audio_in
    if plain < 0:
        flags.append(f"the parts of the prompt ({prompt - plain}) exceed prompt_tokens ({prompt})")
    visible = completion - reasoning - audio_out
    if visible < 0:
        flags.append(f"the parts of the completion ({completion - visible}) exceed completion_tokens ({completion})")
    if any(_negative(value) for part in (raw, prompt_details, completion_details) for value in part.values()):
        flags.append("a count is negative")
    return Usage(
        input=max(plain, 0),
        cache_read=cached,
        cache_write=written - written_1h,
        cache_write_1h=written_1h,
        input_audio=audio_in,
        output=max(visible, 0),
        reasoning=reasoning,
        output_audio=audio_out,
        flag="; ".join(dict.fromkeys(flags)) or None,
        untold=untold,
        extra=Extra(protocol, answer={"usage": raw}),
    )


def _number(value: Any) -> int | None:
    """A count; some vendors write floats. Negative ones count as 0."""
    if type(value) is int and 0 <= value <= _MOST:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value <= _MOST:
        return round(value) if value > 0 else 0
    return None


def _unread(key: str, value: Any) -> str | None:
    """Why a count is not taken for what it says, in words; None where it is, or where it is no count."""
    if not key.endswith("tokens") or value is None or _number(value) is not None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{key} is not believed"
    return f"{key} is no number"


def _negative(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value < 0


def _first(raw: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        number = _number(raw.get(key))
        if number is not None:
            return number
    return None


def _known(raw: Mapping[str, Any], *keys: str) -> int:
    return _first(raw, keys) or 0


def _details(raw: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = raw.get(key)
        if isinstance(value, dict):
            return value
    return {}
