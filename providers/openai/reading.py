"""Tolerant reading of chunks and whole bodies: where servers put things, and the words they use. Pure functions.

Each accepts what has been seen in the field for the place it reads; nothing here keeps state or makes events.
"""

from typing import Any, Final, Literal, TypeAlias

from providers.openai.usage import counts
from router.errors import ProviderError, VendorFailed, VendorOverloaded
from router.events import FinishReason
from router.wire.vendor_error import VendorMessage, read_error
from router.wire.vendor_json import BROKEN, decoded

Json: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["text", "reasoning", "refusal"]
Piece: TypeAlias = tuple[Kind, str]

REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "complete": "stop",
    "length": "length",
    "model_length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "prohibited_content": "content_filter",
    "blocklist": "content_filter",
}
"""Vendors' words, in lower case. An unknown word counts as `stop` and is kept as the native one."""

FAILURES: Final[dict[str, type[ProviderError]]] = {
    "error": VendorFailed,
    "network_error": VendorFailed,
    "abort": VendorFailed,
    "insufficient_system_resource": VendorOverloaded,
}
"""Words in the finish reason that are no end but a failure (Mistral, OpenRouter; Zhipu; vLLM; DeepSeek)."""


# -- JSON ----------------------------------------------------------------------------------------------------------


def lines_of(body: bytes) -> list[Any] | None:
    """The values of a body that has one JSON value a line; None if it has not."""
    values = [decoded(line) for line in body.split(b"\n") if line.strip()]
    return None if len(values) < 2 or any(value is BROKEN for value in values) else values


# -- places --------------------------------------------------------------------------------------------------------


def failure_of(chunk: Json) -> VendorMessage | None:
    """The error a chunk or body tells of, in any of the known places."""
    error = chunk.get("error")
    choices = chunk.get("choices")
    if error and (not isinstance(error, dict) or any(error.values())):
        return read_error(chunk) or VendorMessage(message="(no message)")
    if isinstance(choices, list) and choices:
        errors = [choice["error"] for choice in choices if isinstance(choice, dict) and choice.get("error")]
        return (read_error({"error": errors[0]}) or VendorMessage(message="(no message)")) if errors else None
    base = chunk.get("base_resp")
    if (
        chunk.get("object") == "error"
        or (chunk.get("code") and chunk.get("message"))
        or (isinstance(base, dict) and base.get("status_code"))
    ):
        return read_error(chunk)
    return None


def usage_in(chunk: Json, choices: list[Any]) -> Json | None:
    """The usage of a chunk: at the top, in the first choice (Moonshot), or under `x_groq`."""
    usage = chunk.get("usage")
    if usage is None and "x_groq" not in chunk:
        if not choices or not isinstance(choices[0], dict):
            return None
        usage = choices[0].get("usage")
        return usage if counts(usage) else None
    first = choices[0] if choices and isinstance(choices[0], dict) else {}
    groq = chunk.get("x_groq")
    places = (usage, first.get("usage"), groq.get("usage") if isinstance(groq, dict) else None)
    return next((place for place in places if counts(place)), None)


def content_of(fields: Json, *, by_delta: bool) -> tuple[Json, bool]:
    """What a choice says, and whether it came as a delta. A `message` after deltas (`by_delta`) is a summary."""
    delta = fields.get("delta")
    if isinstance(delta, dict) and delta:
        return delta, True
    message = fields.get("message")
    if isinstance(message, dict) and not by_delta:
        return message, False
    text = fields.get("text")
    return ({"content": text} if isinstance(text, str) else {}), by_delta


def calls_of(delta: Json) -> list[tuple[Json, int | str | None]]:
    """The fragments of a delta's tool calls, each with the place that stands in for a missing index."""
    items = delta.get("tool_calls")
    if isinstance(items, dict):
        items = [items]
    calls: list[tuple[Json, int | str | None]] = []
    if isinstance(items, list):
        several = len(items) > 1
        calls = [(item, place if several else None) for place, item in enumerate(items) if isinstance(item, dict)]
    old = delta.get("function_call")
    if isinstance(old, dict):
        calls.append((old, "function_call"))
    return calls


def finish_of(fields: Json) -> str | None:
    """The finish reason; None for the many ways to say that there is none yet."""
    reason = fields.get("finish_reason")
    if isinstance(reason, dict):
        # sglang's own API
        reason = reason.get("type")
    return reason if isinstance(reason, str) and reason not in ("", "null") else None


def flatten(part: Any, pieces: list[tuple[Kind, str]]) -> bool:
    """Take one part of a content list; False if its kind is not known."""
    if isinstance(part, str):
        pieces.append(("text", part))
        return True
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    if kind == "thinking":
        thinking = part.get("thinking")
        for piece in thinking if isinstance(thinking, list) else [thinking]:
            text = piece.get("text") if isinstance(piece, dict) else piece
            if isinstance(text, str) and text:
                pieces.append(("reasoning", text))
        return True
    for name, said in (("text", "text"), ("refusal", "refusal")):
        text = part.get(name)
        if kind in (name, None) and isinstance(text, str):
            if text:
                pieces.append((said, text))  # type: ignore[arg-type]
            return True
    return False
