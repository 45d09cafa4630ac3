"""What a client's HTTP request says, read from the ASGI scope: body, key, labels."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from msgspec import Struct

from router.access import OnDisconnect
from router.call import Credentials, regions_in
from router.errors import BodyTooLarge, ClientGone, InvalidRequest

Scope: TypeAlias = Any
Receive: TypeAlias = Callable[[], Awaitable[Any]]

_USER: Final = b"x-deltaway-user"
_TAGS: Final = b"x-deltaway-tags"
_CONVERSATION: Final = b"x-deltaway-conversation"
_REGION: Final = b"x-deltaway-region"
_EXPERIMENT: Final = b"x-deltaway-experiment"
_ON_DISCONNECT: Final = b"x-deltaway-on-disconnect"
_RESUMABLE: Final = b"x-deltaway-resumable"
_IDEMPOTENCY: Final = b"idempotency-key"
_PREFER: Final = b"prefer"
_CACHE_CONTROL: Final = b"cache-control"
_WANTED: Final = frozenset(
    {
        *(b"authorization", b"x-api-key", b"content-length", _USER, _TAGS, _CONVERSATION, _REGION, _EXPERIMENT),
        *(_ON_DISCONNECT, _RESUMABLE, _IDEMPOTENCY, _PREFER, _CACHE_CONTROL),
    }
)
_MAX_TAGS: Final = 16
_LONGEST_KEY: Final = 255


class Head(Struct, frozen=True):
    """The headers that matter to us."""

    credentials: Credentials
    content_length: int | None = None
    user: str | None = None
    tags: dict[str, str] = {}
    conversation: str | None = None
    regions: tuple[str, ...] = ()
    """Where the call may be answered, when not empty."""
    forced: dict[str, str] = {}
    """Experiment → arm."""
    on_disconnect: OnDisconnect | None = None
    """What becomes of the call when its client leaves."""
    resumable: bool = False
    """Whether its stream shall have ids to come back to."""
    idempotency_key: str | None = None
    respond_async: bool = False
    """Whether the answer is only to be begun, and read elsewhere (RFC 7240, section 4.1)."""
    cache_control: str | None = None
    """What it says of the gateway's own cache, as it is written."""


def read_head(scope: Scope) -> Head:
    """Raises `InvalidRequest` for a malformed header of ours."""
    found: dict[bytes, bytes] = {name: value for name, value in scope["headers"] if name in _WANTED}
    length = found.get(b"content-length", b"")
    user, tags, conversation = found.get(_USER), found.get(_TAGS), found.get(_CONVERSATION)
    forced = found.get(_EXPERIMENT)
    labels = _tags(tags.decode("utf-8", "replace")) if tags else {}
    return Head(
        credentials(found.get(b"x-api-key"), found.get(b"authorization")),
        int(length) if length.isdigit() else None,
        user.decode("utf-8", "replace") if user else None,
        labels,
        conversation.decode("utf-8", "replace") if conversation else None,
        _regions(found.get(_REGION), labels),
        _forced(forced.decode("utf-8", "replace")) if forced else {},
        _on_disconnect(found.get(_ON_DISCONNECT)),
        _flag(found.get(_RESUMABLE), _RESUMABLE),
        _idempotency_key(found.get(_IDEMPOTENCY)),
        _prefers(found.get(_PREFER), b"respond-async"),
        found[_CACHE_CONTROL].decode("latin-1") if _CACHE_CONTROL in found else None,
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
    tags = _pairs(text, _TAGS.decode(), "team=a,feature=b")
    if len(tags) > _MAX_TAGS:
        raise InvalidRequest(f"the header `x-deltaway-tags` holds more than {_MAX_TAGS} tags", param="x-deltaway-tags")
    return tags


def _regions(header: bytes | None, tags: Mapping[str, str]) -> tuple[str, ...]:
    """Of the header, else of the tag `region`. Metadata of the body binds nobody: it is the application's own."""
    if header is not None:
        text, where, name = header.decode("utf-8", "replace"), "the header", _REGION.decode()
    elif "region" in tags:
        text, where, name = tags["region"], "the tag `region` of the header", _TAGS.decode()
    else:
        return ()
    named = regions_in(text)
    if not named:
        # whoever sends it means to be held to something
        raise InvalidRequest(f"{where} `{name}` names no region: write one, or several with commas", param=name)
    return named


def _on_disconnect(header: bytes | None) -> OnDisconnect | None:
    match header:
        case None:
            return None
        case b"cancel":
            return "cancel"
        case b"finish":
            return "finish"
    name = _ON_DISCONNECT.decode()
    raise InvalidRequest(f"the header `{name}` takes `cancel` or `finish`", param=name)


def _prefers(header: bytes | None, preference: bytes) -> bool:
    """RFC 7240: preferences with commas between them, each with parameters of its own."""
    if header is None:
        return False
    return any(each.partition(b";")[0].strip().lower() == preference for each in header.split(b","))


def _flag(header: bytes | None, name: bytes) -> bool:
    if header is None or header.lower() == b"false":
        return False
    if header.lower() == b"true":
        return True
    raise InvalidRequest(f"the header `{name.decode()}` takes `true` or `false`", param=name.decode())


def _idempotency_key(header: bytes | None) -> str | None:
    if header is None:
        return None
    text = header.decode("latin-1")
    if not 0 < len(text) <= _LONGEST_KEY or not text.isprintable():
        name = _IDEMPOTENCY.decode()
        raise InvalidRequest(f"the header `{name}` takes 1 to {_LONGEST_KEY} printable characters", param=name)
    return text


def _forced(text: str) -> dict[str, str]:
    header = _EXPERIMENT.decode()
    arms = _pairs(text, header, "name=arm")
    if "" in arms.values():
        raise InvalidRequest(f"the header `{header}` must look like `name=arm`", param=header)
    return arms


def _pairs(text: str, header: str, example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise InvalidRequest(f"the header `{header}` must look like `{example}`", param=header)
        pairs[name.strip()] = value.strip()
    return pairs
