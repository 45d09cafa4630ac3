"""The whole-answer side of OpenAI's Chat Completions dialect: folded answers, usage and errors → JSON.

Vendor fields come back at the level they were found on, if they are this protocol's; they never replace a field that
we write ourselves.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.errors import Kind, RouterError
from router.events import Extra, Usage
from router.fold import Answer, Block, Choice, RefusalBlock, TextBlock, ToolCallBlock, merge
from router.wire.openai_chat import PROTOCOL

Json = dict[str, Any]

_encode: Final = msgspec.json.Encoder().encode

_UNTOLD: Final = frozenset({"obfuscation"})
"""Padding against traffic analysis: it belonged to the vendor's bytes, not to the answer."""


# -- vendor fields -------------------------------------------------------------------------------------------------


def lay(extras: Mapping[str, Any], over: Json) -> None:
    """Add vendor fields to an object of ours: objects and lists are merged, nothing else of ours is replaced."""
    for key, value in extras.items():
        ours = over.get(key)
        if ours is None:
            if key not in _UNTOLD:
                merge(over, {key: value})
        elif isinstance(ours, (dict, list)):
            merge(over, {key: value} if type(value) is type(ours) else {})


def of_ours(extra: Extra | None) -> Extra | None:
    """The extra if it is in this protocol's words."""
    return extra if extra is not None and extra.protocol == PROTOCOL else None


# -- usage ---------------------------------------------------------------------------------------------------------


def usage_fields(usage: Usage) -> Json:
    """OpenAI's usage object: the totals are ours, the details subsets of them in the vendor's own figures if any.

    A vendor's figures may overlap, as cached tokens that are audio do, where the classes must not.
    """
    prompt, completion = usage.prompt_total, usage.completion_total
    prompt_details = {"cached_tokens": usage.cache_read, "audio_tokens": usage.input_audio}
    if written := usage.cache_write + usage.cache_write_1h:
        prompt_details["cache_write_tokens"] = written
    fields: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": usage.output_audio},
    }
    extra = of_ours(usage.extra)
    raw = extra.answer.get("usage") if extra is not None else None
    if isinstance(raw, dict):
        _complete(fields, raw)
    return fields


def _complete(ours: Json, vendors: Json) -> None:
    for key, value in vendors.items():
        mine = ours.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            mine.update({name: count for name, count in value.items() if count is not None or name not in mine})
        elif key not in ours:
            ours[key] = value


# -- the answer ----------------------------------------------------------------------------------------------------


class Form(Struct, frozen=True):
    """What the call gives to its answer's form. The first three stand in where the vendor says nothing."""

    id: str
    model: str
    created: int
    """Unix seconds."""
    include_usage: bool = False
    deprecated: bool = False
    """Whether a choice's first call takes the old `function_call` form."""
    own_id: bool = False
    """Whether `id` stands whatever the vendor says: it is kept under it, and two vendors may say the same."""

    def named(self, vendors: str) -> str:
        """The id of the answer."""
        return self.id if self.own_id else vendors or self.id


def whole(answer: Answer, form: Form) -> bytes:
    """A `chat.completion` object."""
    fields: Json = {
        "id": form.named(answer.id),
        "object": "chat.completion",
        "created": answer.created or form.created,
        "model": answer.model or form.model,
        "choices": [_choice(choice, form.deprecated) for choice in answer.choices],
    }
    if answer.usage is not None:
        fields["usage"] = usage_fields(answer.usage)
    if extras := answer.extra.get(PROTOCOL):
        lay({key: value for key, value in extras.items() if key not in ("choices", "usage")}, fields)
    return _encode(fields)


def _choice(choice: Choice, deprecated: bool) -> Json:
    message, called = _message(choice, deprecated)
    reason: str | None = choice.finish_reason
    if called and reason == "tool_calls":
        reason = "function_call"
    fields: Json = {"index": choice.index, "message": message, "logprobs": None, "finish_reason": reason}
    if extras := choice.extra.get(PROTOCOL):
        lay({key: value for key, value in extras.items() if key != "message"}, fields)
    return fields


def _message(choice: Choice, deprecated: bool) -> tuple[Json, bool]:
    """The message, and whether its first call took the deprecated form."""
    calls: list[Json] = []
    extras: Json = {}
    reasoned = spoken = refused = False
    function_call: Json | None = None
    for block in choice.blocks:
        content = block.content
        if isinstance(content, ToolCallBlock):
            if deprecated and function_call is None and content.kind == "function":
                function_call = {"name": content.name, "arguments": content.arguments or "{}"}
            else:
                calls.append(_call(content, len(calls)))
        elif isinstance(content, TextBlock):
            spoken = True
        elif isinstance(content, RefusalBlock):
            refused = True
        else:
            reasoned = reasoned or _has_reasoning(block)
        if PROTOCOL in block.extra:
            merge(extras, block.extra[PROTOCOL])
    if PROTOCOL in choice.message_extra:
        merge(extras, choice.message_extra[PROTOCOL])
    # OpenAI: null where the answer is something else than text
    silent = not spoken and (calls or function_call or refused or "audio" in extras)
    message: Json = {
        "role": "assistant",
        "content": None if silent else choice.text(),
        "refusal": choice.refusal() if refused else None,
    }
    if reasoned:
        message["reasoning_content"] = choice.reasoning()
    if calls:
        message["tool_calls"] = calls
    if function_call is not None:
        message["function_call"] = function_call
    if extras:
        lay({key: value for key, value in extras.items() if key != "role"}, message)
    for call in calls:
        # it only placed the vendor's fields
        call.pop("index", None)
    return message, function_call is not None


def _has_reasoning(block: Block) -> bool:
    return getattr(block.content, "text", None) is not None


def _call(call: ToolCallBlock, index: int) -> Json:
    if call.kind == "custom":
        return {"index": index, "id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    # OpenAI sends no arguments for a call without parameters, which clients fail to parse
    function = {"name": call.name, "arguments": call.arguments or "{}"}
    return {"index": index, "id": call.id, "type": "function", "function": function}


# -- errors --------------------------------------------------------------------------------------------------------

_TYPE: Final[dict[Kind, str]] = {
    "invalid_request": "invalid_request_error",
    "authentication": "invalid_request_error",
    "not_found": "invalid_request_error",
    "conflict": "invalid_request_error",
    "too_large": "invalid_request_error",
    "permission": "permission_error",
    "rate_limit": "rate_limit_error",
    "budget": "insufficient_quota",
    "unavailable": "service_unavailable_error",
    "overloaded": "service_unavailable_error",
    "timeout": "server_error",
    "upstream": "server_error",
    "internal": "server_error",
    "stopped": "server_error",
    "client_gone": "server_error",
}
"""OpenAI's words. It calls a wrong key an invalid request, with the code `invalid_api_key`."""


def error_fields(error: RouterError) -> Json:
    """All four keys, always: clients validate them."""
    param = error.param
    return {
        "message": error.message,
        "type": _TYPE[error.kind],
        "param": None if param is None else param.removeprefix("$").removeprefix(".") or None,
        "code": error.code,
    }


def error_body(error: RouterError) -> bytes:
    return _encode({"error": error_fields(error)})
