"""What a client's HTTP request says, read from the ASGI scope: body, key, labels."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from msgspec import Struct

from router.call import Credentials
from router.errors import BodyTooLarge, ClientGone, InvalidRequest

Scope: TypeAlias = Any
Receive: TypeAlias = Callable[[], Awaitable[Any]]

_WANTED: Final = frozenset({b"authorization", b"x-api-key", b"content-length", b"x-deltaway-user", b"x-deltaway-tags"})
_MAX_TAGS: Final = 16


class Head(Struct, frozen=True):
    """The headers that matter to us."""

    credentials: Credentials
    content_length: int | None = None
    user: str | None = None
    tags: dict[str, str] = {}


def read_head(scope: Scope) -> Head:
    """Raises `InvalidRequest` for a malformed header of ours."""
    found: dict[bytes, bytes] = {name: value for name, value in scope["headers"] if name in _WANTED}
    length = found.get(b"content-length", b"")
    user = found.get(b"x-deltaway-user")
    tags = found.get(b"x-deltaway-tags")
    return Head(
        credentials(found.get(b"x-api-key"), found.get(b"authorization")),
        int(length) if length.isdigit() else None,
        user.decode("utf-8", "replace") if user else None,
        _tags(tags.decode("utf-8", "replace")) if tags else {},
    )


def credentials(api_key: bytes | None, authorization: bytes | None) -> Credentials:
    """The key of `x-api-key`, or of `Authorization: Bearer`."""
    if api_key:
        return Credentials(api_key.decode("latin-1").strip())
    if authorization:
        scheme, _, key = authorization.decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            return Credentials(key.strip())
    return Credentials(None)


async def read_body(receive: Receive, head: Head, limit: int) -> bytes:
    """The whole body. Raises `BodyTooLarge` over `limit` bytes, `ClientGone` when the client leaves meanwhile."""
    if head.content_length is not None and head.content_length > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone("the client left while it sent its request")
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    pieces, size = [body], len(body)
    while message.get("more_body", False):
        if size > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left while it sent its request")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
    if size > limit:
        raise _too_large(limit)
    return b"".join(pieces)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than {limit} bytes, the limit set by `server.body_limit`")


def _tags(text: str) -> dict[str, str]:
    tags: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InvalidRequest(
                "the header `x-deltaway-tags` must look like `team=a,feature=b`", param="x-deltaway-tags"
            )
        tags[name.strip()] = value.strip()
    if len(tags) > _MAX_TAGS:
        raise InvalidRequest(f"the header `x-deltaway-tags` holds more than {_MAX_TAGS} tags", param="x-deltaway-tags")
    return tags
