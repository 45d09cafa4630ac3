"""`/v1/chat/completions`, as far as it is about what is kept: OpenAI's stored completions.

A key sees its own, an admin key all; where calls need no key they are everybody's. The list shares its path with the
calls themselves, which go past Litestar: it is a handler of its own (`CompletionList`).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlencode

import msgspec
import structlog
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath
from msgspec import Raw, Struct

from router.call import Principal
from router.conversation import Order
from router.errors import InvalidRequest, NotFound, StoreUnavailable
from router.http.described import CURSOR, described
from router.http.json_body import json_body
from router.http.metadata import LONGEST_NAME, checked_metadata
from router.http.query import Query
from router.http.receipts import Caller
from router.http.reply import Send, send_json
from router.http.request import Receive, Scope
from router.ids import request_id
from router.ledger.rows import kept_text
from router.store.completions import (
    Answered,
    Completion,
    change_metadata,
    completion,
    completions,
    remove,
)
from router.store.items import UnknownCursor
from router.store.store import Store, StoreAway

METHODS: Final = "GET, POST"
"""What the path of the list takes."""
_ID: Final = re.compile(r"chatcmpl-[0-9A-HJKMNP-TV-Z]{26}")
_MESSAGE: Final = re.compile(r"(chatcmpl-[0-9A-HJKMNP-TV-Z]{26})-(0|[1-9][0-9]{0,8})")
_METADATA: Final = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_PAGE: Final = ("after", "limit", "order")
_TOLD: Final = (
    *("tools", "tool_choice", "response_format", "seed", "temperature", "top_p"),
    *("presence_penalty", "frequency_penalty"),
)
"""What a completion says of its request, as OpenAI has it."""
_PARAMETERS: Final = (
    *CURSOR[:2],
    Parameter("order", "query", schema=Schema(type=OpenAPIType.STRING, enum=["asc", "desc"], default="asc")),
)
_fields: Final = msgspec.json.Decoder(dict[str, Raw])


class ChangedCompletion(Struct, forbid_unknown_fields=True, kw_only=True):
    metadata: dict[str, str] | None
    """In place of all that there is; null: none."""


class CompletionDeleted(Struct, frozen=True, kw_only=True):
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    id: str
    deleted: bool = True


class KeptList(Struct, frozen=True, kw_only=True):
    """Of completions, or of the messages that one was asked with."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CompletionList:
    """`GET /v1/chat/completions`: those that are kept, the oldest first."""

    def __init__(self, store: Store, caller: Caller) -> None:
        self._store = store
        self._caller = caller

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what refuses the request."""
        principal = await self._caller(Request(scope, receive, send))
        rest, metadata = _metadata_of(scope)
        query = Query(rest, (*_PAGE, "model"))
        after, limit, order = _page(query)
        with _store(), _cursor(after):
            page = await completions(
                self._store,
                owner=_owner(principal),
                model=query.text("model"),
                metadata=metadata,
                after=after,
                limit=limit,
                order=order,
            )
        data = [_listed_as(each) for each in page.completions]
        ids = [each.id for each in page.completions]
        body = msgspec.json.encode(_listed(data, ids, more=page.more))
        await send_json(send, 200, body, [(b"x-request-id", request_id().encode())])


def completion_routes(store: Store, caller: Caller) -> list[HTTPRouteHandler]:
    async def found(request: Request[Any, Any, Any], identity: str) -> Completion:
        """The completion, if whoever asks may see it. Raises `NotFound`."""
        owner = _owner(await caller(request))
        kept = None
        if _ID.fullmatch(identity):
            with _store():
                kept = await completion(store, identity, owner=owner)
        if kept is None:
            raise _missing()
        return kept

    @get("/v1/chat/completions/{completion:str}", summary="Retrieve a kept completion", tags=["chat"])
    async def retrieve_completion(request: Request[Any, Any, Any], completion: FromPath[str]) -> dict[str, Any]:
        return _shown(await found(request, completion))

    @post(
        "/v1/chat/completions/{completion:str}",
        summary="Change a kept completion's metadata",
        tags=["chat"],
        status_code=200,
        operation_class=described(ChangedCompletion, required=True),
    )
    async def update_completion(request: Request[Any, Any, Any], completion: FromPath[str]) -> dict[str, Any]:
        known = await found(request, completion)
        metadata = checked_metadata((await json_body(request, ChangedCompletion)).metadata)
        with _store():
            changed = await change_metadata(store, known.id, owner=known.owner, metadata=metadata)
        if changed is None:
            raise _missing()
        return _shown(changed)

    @delete(
        "/v1/chat/completions/{completion:str}",
        summary="Delete a kept completion",
        tags=["chat"],
        status_code=200,
    )
    async def delete_completion(request: Request[Any, Any, Any], completion: FromPath[str]) -> CompletionDeleted:
        """With its request. The call's receipt stays."""
        known = await found(request, completion)
        with _store():
            if not await remove(store, known.id, owner=known.owner):
                raise _missing()
        return CompletionDeleted(id=known.id)

    @get(
        "/v1/chat/completions/{completion:str}/messages",
        summary="List the messages that a kept completion was asked with",
        tags=["chat"],
        operation_class=described(query=_PARAMETERS),
    )
    async def list_messages(request: Request[Any, Any, Any], completion: FromPath[str]) -> KeptList:
        known = await found(request, completion)
        after, limit, order = _page(Query(request.scope, _PAGE))
        messages = _messages(known)
        if order == "desc":
            messages.reverse()
        begin = 0
        if after is not None:
            with _cursor(after):
                begin = 1 + _place(after, known.id, len(messages), order)
        data = messages[begin : begin + limit]
        ids = [each["id"] for each in data]
        return _listed(data, ids, more=begin + limit < len(messages))

    return [retrieve_completion, update_completion, delete_completion, list_messages]


# -- reading -------------------------------------------------------------------------------------------------------


def _owner(principal: Principal | None) -> str | None:
    """Whose completions may be seen; None: anybody's."""
    return None if principal is None or principal.admin else principal.key


def _page(query: Query) -> tuple[str | None, int, Order]:
    order: Order = "desc" if query.word("order", ("asc", "desc"), "asc") == "desc" else "asc"
    return query.text("after"), query.number("limit", 20, 1, 100), order


def _metadata_of(scope: Scope) -> tuple[Scope, dict[str, str]]:
    """The pairs that `metadata[name]=value` name, and the scope without them: their names are the client's own."""
    metadata: dict[str, str] = {}
    rest: list[tuple[str, str]] = []
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100
        )
    except (UnicodeDecodeError, ValueError):
        # `Query` says it in words
        return scope, metadata
    for name, value in pairs:
        found = _METADATA.fullmatch(name)
        if found is None:
            rest.append((name, value))
        elif found[1] in metadata:
            raise InvalidRequest("`metadata` names a pair twice", param="metadata")
        else:
            metadata[found[1]] = value
    return {"query_string": urlencode(rest).encode()}, checked_metadata(metadata)


def _place(cursor: str, identity: str, count: int, order: Order) -> int:
    """The index of the message in its list. Raises `UnknownCursor`."""
    found = _MESSAGE.fullmatch(cursor)
    if found is None or found[1] != identity or int(found[2]) >= count:
        raise UnknownCursor(cursor)
    return int(found[2]) if order == "asc" else count - 1 - int(found[2])


@contextmanager
def _cursor(after: str | None) -> Iterator[None]:
    try:
        yield
    except UnknownCursor:
        raise InvalidRequest(
            f"`after` is `{kept_text(after or '', LONGEST_NAME)}`, which is not in this list: give an id that a page "
            "of it had",
            code="unknown_cursor",
            param="after",
        ) from None


@contextmanager
def _store() -> Iterator[None]:
    """The store being away, in words for a client; the log knows more."""
    try:
        yield
    except StoreAway as error:
        structlog.get_logger("deltaway.store").error("completions cannot be read or written", reason=str(error))
        words = "kept completions cannot be read or written now; try again later"
        raise StoreUnavailable(words, retry_after=5.0) from error


# -- showing -------------------------------------------------------------------------------------------------------


def _shown(kept: Completion) -> dict[str, Any]:
    """The answer with parameters of its request."""
    asked = _fields.decode(kept.request)
    return {**_listed_as(kept), **{name: asked.get(name) for name in _TOLD}, "input_user": asked.get("user")}


def _listed_as(kept: Answered) -> dict[str, Any]:
    """The answer as it was given, and what is known of it besides."""
    return {**_fields.decode(kept.answer), "request_id": kept.call, "metadata": kept.metadata}


def _messages(kept: Completion) -> list[dict[str, Any]]:
    """Parts of a message stand in `content_parts`, as OpenAI has it."""
    shown = []
    for index, each in enumerate(msgspec.json.decode(kept.request)["messages"]):
        content = each.get("content")
        parts = content if isinstance(content, list) else None
        told = {**each, "content": content if parts is None else None, "content_parts": parts}
        shown.append({"name": None, **told, "id": f"{kept.id}-{index}"})
    return shown


def _listed(data: list[dict[str, Any]], ids: list[str], *, more: bool) -> KeptList:
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return KeptList(data=data, first_id=first, last_id=last, has_more=more)


def _missing() -> NotFound:
    return NotFound(
        "no kept completion of that id that may be seen with this key: there is none (it was not asked for with "
        "`store: true`, or is deleted), or it is another key's",
        code="completion_not_found",
        param="completion_id",
    )
