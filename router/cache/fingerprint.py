"""What makes two calls the same question. Pure.

The text that is hashed holds what may change the answer: the model or route as it was asked for, the messages, tools,
sampling and all other fields that vendors may be told, where the call may be answered, and what the configuration makes
of it. It leaves out what may not: whether the answer is streamed, who asks, and the order of a JSON object's keys.
"""

import hashlib
from typing import Any, Final

import msgspec
from msgspec.structs import asdict, replace

from router.call import Call
from router.messages import Assistant, ChatRequest, Content, Message, Text

VERSION: Final = 1
"""Another one when the text is made in another way."""
_LEFT_OUT: Final = frozenset({"stream", "user", "metadata", "messages", "extra"})
_SAY_NOTHING: Final = frozenset(
    {"store", "stream_options", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Fields of OpenAI's protocol that are about the answer's delivery, bill or record."""


def normalised(call: Call, scope: str, course: tuple[str, ...] = ()) -> bytes:
    """The text. `scope`: whose answers may be his; `course`: what else decides who answers.

    Raises `ValueError` for a request that cannot be written so.
    """
    try:
        return msgspec.json.encode(
            {
                "version": VERSION,
                "scope": scope,
                "course": course,
                "dialect": call.dialect,
                "regions": call.regions,
                "forced": call.forced,
                "request": _request(call.request),
            },
            order="deterministic",
        )
    except (OverflowError, TypeError, UnicodeError) as error:
        raise ValueError("the request cannot be written as JSON") from error


def fingerprint(text: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(text).hexdigest()


def _request(request: ChatRequest) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(request).items() if name not in _LEFT_OUT}
    fields["messages"] = [_message(message) for message in request.messages]
    fields["extra"] = {name: value for name, value in request.extra.items() if name not in _SAY_NOTHING}
    return fields


def _message(message: Message) -> Message:
    content = message.content
    if isinstance(message, Assistant) and content is None:
        return message
    plain = _content(content)  # type: ignore[arg-type]
    return message if plain is content else replace(message, content=plain)


def _content(content: Content) -> Content:
    """One part of plain text is the same as the text."""
    if not isinstance(content, str) and len(content) == 1:
        (part,) = content
        if isinstance(part, Text) and not part.extra:
            return part.text
    return content
