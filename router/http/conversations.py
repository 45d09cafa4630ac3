"""`/v1/conversations`: OpenAI's Conversations API, with lists, pages both ways, forks, search and export besides.

A key sees its own conversations, an admin key all; where calls need no key they are everybody's.
"""

import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias

import msgspec
import structlog
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import UNSET, Struct, UnsetType, structs

from router.call import Principal
from router.conversation import MOST_ITEMS, ContextRules, Conversation, Item, Order, Strategy, Turn, conversation_id
from router.conversations.items import read_item, shown
from router.conversations.pieces import prefix_of
from router.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from router.http.described import CURSOR, described
from router.http.json_body import json_body
from router.http.metadata import LONGEST_NAME, checked_metadata
from router.http.query import Query
from router.http.receipts import Caller, CostShown, UsageShown, up_to_date
from router.http.receipts import shown as receipt_shown
from router.ids import ulid
from router.ledger.books import Books
from router.ledger.rows import kept_text
from router.messages import Assistant
from router.store import conversations as kept
from router.store.conversations import ConversationMissing
from router.store.items import (
    ItemInProgress,
    MissingItem,
    NewItem,
    Removed,
    StaleParent,
    UnknownCursor,
    add,
    exported,
    item,
    items,
    remove_item,
)
from router.store.receipts import Receipt, receipts_of
from router.store.search import search
from router.store.store import Store, StoreAway
from router.store.turns import turns

Forget: TypeAlias = Callable[[Removed], Awaitable[None]]
"""What else is kept of what was removed is removed too, and a call that writes in it is stopped. Never raises."""
_CONVERSATION: Final = re.compile(r"conv_[0-9A-HJKMNP-TV-Z]{26}")
_ITEM: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOGETHER: Final = 100
"""Turns of an export that are read at a time."""
_IGNORED: Final = ("include", "include[]")
"""What OpenAI's library asks to be told besides; what there is of it is always told."""
_INCLUDE: Final = Parameter(
    "include",
    "query",
    description="What OpenAI's library asks to be told besides: taken, and of no effect.",
    schema=Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING)),
)
_ORDER: Final = Parameter("order", "query", schema=Schema(type=OpenAPIType.STRING, enum=["asc", "desc"]))


class NewConversation(Struct, forbid_unknown_fields=True, kw_only=True):
    items: list[dict[str, Any]] | None = None
    """Up to twenty."""
    metadata: dict[str, str] | None = None
    context: ContextRules | None = None
    """What is sent of it once it is long; null: what the route says."""


class ChangedConversation(Struct, forbid_unknown_fields=True, kw_only=True):
    metadata: dict[str, str] | UnsetType | None = UNSET
    context: ContextRules | UnsetType | None = UNSET


class NewItems(Struct, forbid_unknown_fields=True, kw_only=True):
    items: list[dict[str, Any]]
    """Up to twenty."""
    parent: str | None = None
    """The item that is believed to be the last: if it is not any more, nothing is added."""


class ForkedConversation(Struct, forbid_unknown_fields=True, kw_only=True):
    item: str | None = None
    """The last item of the past that both share; null: all of it."""
    metadata: dict[str, str] | None = None


class ConversationShown(Struct, frozen=True, kw_only=True):
    """Times are Unix seconds."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]
    updated_at: int
    forked_from: str | None
    context: ContextRules | None


class ConversationDeleted(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


class ConversationList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ConversationShown]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ItemList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Found(Struct, frozen=True, kw_only=True):
    """Where words were found, between `‹` and `›`."""

    object: Literal["conversation.search_result"] = "conversation.search_result"
    conversation: str
    item: dict[str, Any]
    snippet: str


class FoundList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Found]
    next: str | None
    """To be given as `after` for more; null: there is no more."""
    has_more: bool


class TurnShown(Struct, frozen=True, kw_only=True):
    """What became of the call that an item was written by: the same at each item of one answer."""

    outcome: str | None
    target: str | None
    usage: UsageShown | None
    cost: CostShown | list[CostShown] | None


class Beside(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What OpenAI's items have no field for."""

    created_at: int
    """Unix seconds."""
    request_id: str | None = None
    """The call that it came with, or was written by."""
    stream: str | None = None
    """Where an answer that is being written can be followed."""
    last_event_id: str | None = None
    """The item holds everything up to this event of that stream."""
    turn: TurnShown | None = None


class TurnLine(Struct, frozen=True, kw_only=True):
    """What was sent with a call, and what became of that: a line of an export."""

    object: Literal["conversation.turn"] = "conversation.turn"
    request_id: str
    created_at: int
    """Unix seconds."""
    strategy: Strategy
    first: str | None
    """The oldest item that was sent as it is."""
    left_out: int
    summary: str | None
    prompt_tokens: int | None
    turn: TurnShown | None


def conversation_routes(store: Store, books: Books, caller: Caller, forget: Forget) -> list[HTTPRouteHandler]:
    async def found(request: Request[Any, Any, Any], identity: str) -> Conversation:
        """The conversation, if whoever asks may see it. Raises `NotFound`."""
        owner = _owner(await caller(request))
        conversation = None
        if _CONVERSATION.fullmatch(identity):
            with _store():
                conversation = await kept.find(store, identity, owner=owner)
        if conversation is None:
            raise _missing()
        return conversation

    async def page_of(shown_items: Sequence[Item]) -> list[dict[str, Any]]:
        """The items with what the ledger has of their calls."""
        ids = {each.call for each in shown_items if each.call is not None and isinstance(each.message, Assistant)}
        if ids:
            await up_to_date(books)
        receipts = await receipts_of(store, ids)
        return [_with_turn(each, receipts) for each in shown_items]

    # -- conversations -------------------------------------------------------------------------------------------------

    @post(
        "/v1/conversations",
        summary="Make a conversation",
        tags=["conversations"],
        status_code=200,
        operation_class=described(NewConversation),
    )
    async def create_conversation(request: Request[Any, Any, Any]) -> ConversationShown:
        principal = await caller(request)
        body = await json_body(request, NewConversation)
        metadata, new = checked_metadata(body.metadata), _new_items(body.items or [])
        now = _now()
        conversation = Conversation(
            id=conversation_id(ulid()),
            owner="" if principal is None else principal.key,
            metadata=metadata,
            created_at=now,
            updated_at=now,
            context=body.context,
        )
        with _store():
            await kept.create(store, conversation, new)
        return _shown(conversation)

    @get(
        "/v1/conversations",
        summary="List conversations, the newest first",
        tags=["conversations"],
        operation_class=described(query=[*CURSOR, _ORDER]),
    )
    async def list_conversations(request: Request[Any, Any, Any]) -> ConversationList:
        principal = await caller(request)
        query = Query(request.scope, ("after", "before", "limit", "order"))
        after, before, limit, order = _page(query)
        with _store(), _cursors(after, before):
            page = await kept.listed(
                store, owner=_owner(principal), after=after, before=before, limit=limit, order=order
            )
        data = [_shown(each) for each in page.conversations]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return ConversationList(data=data, first_id=first, last_id=last, has_more=page.more)

    @get("/v1/conversations/{conversation:str}", summary="Retrieve a conversation", tags=["conversations"])
    async def retrieve_conversation(request: Request[Any, Any, Any], conversation: FromPath[str]) -> ConversationShown:
        return _shown(await found(request, conversation))

    @post(
        "/v1/conversations/{conversation:str}",
        summary="Change a conversation's metadata",
        tags=["conversations"],
        status_code=200,
        operation_class=described(ChangedConversation),
    )
    async def update_conversation(request: Request[Any, Any, Any], conversation: FromPath[str]) -> ConversationShown:
        known = await found(request, conversation)
        body = await json_body(request, ChangedConversation)
        metadata = UNSET if body.metadata is UNSET else checked_metadata(body.metadata)
        with _store():
            changed = await kept.change(
                store, known.id, owner=known.owner, metadata=metadata, at=_now(), context=body.context
            )
        if changed is None:
            raise _missing()
        return _shown(changed)

    @delete(
        "/v1/conversations/{conversation:str}", summary="Delete a conversation", tags=["conversations"], status_code=200
    )
    async def delete_conversation(request: Request[Any, Any, Any], conversation: FromPath[str]) -> ConversationDeleted:
        """With all that was said in it, as far as no fork has it too, and the logs of its streams."""
        known = await found(request, conversation)
        with _store():
            removed = await kept.remove(store, known.id, owner=known.owner)
        if removed is None:
            raise _missing()
        await forget(removed)
        return ConversationDeleted(id=known.id)

    @post(
        "/v1/conversations/{conversation:str}/fork",
        summary="Make a conversation with the same past",
        tags=["conversations"],
        status_code=200,
        operation_class=described(ForkedConversation),
    )
    async def fork_conversation(request: Request[Any, Any, Any], conversation: FromPath[str]) -> ConversationShown:
        known = await found(request, conversation)
        body = await json_body(request, ForkedConversation)
        if body.item is not None and not _ITEM.fullmatch(body.item):
            raise _no_item("item")
        now = _now()
        new = Conversation(
            id=conversation_id(ulid()),
            owner=known.owner,
            metadata=checked_metadata(body.metadata),
            created_at=now,
            updated_at=now,
            forked_from=known.id,
            context=known.context,
        )
        try:
            with _store():
                made = await kept.fork(store, known.id, owner=known.owner, new=new, upto=body.item)
        except MissingItem:
            raise _no_item("item") from None
        if made is None:
            raise _missing()
        return _shown(made)

    # -- items ---------------------------------------------------------------------------------------------------------

    @post(
        "/v1/conversations/{conversation:str}/items",
        summary="Add items to a conversation",
        tags=["conversations"],
        status_code=200,
        operation_class=described(NewItems, required=True),
    )
    async def create_items(request: Request[Any, Any, Any], conversation: FromPath[str]) -> ItemList:
        known = await found(request, conversation)
        Query(request.scope, _IGNORED)
        body = await json_body(request, NewItems)
        if not body.items:
            raise InvalidRequest("`items` must not be empty", param="items")
        if body.parent is not None and not _ITEM.fullmatch(body.parent):
            raise _no_item("parent")
        new = _new_items(body.items)
        try:
            with _store():
                added = await add(store, known.id, new, at=_now(), parent=body.parent)
        except ConversationMissing:
            raise _missing() from None
        except MissingItem:
            raise _no_item("parent") from None
        except StaleParent as stale:
            raise Conflict(
                f"`parent` is not the last item any more, which is `{stale.last}`: read what was said meanwhile, or "
                "fork the conversation at the item",
                code="stale_parent",
                param="parent",
            ) from None
        data = [_with_turn(each, {}) for each in added]
        return ItemList(data=data, first_id=added[0].id, last_id=added[-1].id, has_more=False)

    @get(
        "/v1/conversations/{conversation:str}/items",
        summary="List a conversation's items, the newest first",
        tags=["conversations"],
        operation_class=described(query=[*CURSOR, _ORDER, _INCLUDE]),
    )
    async def list_items(request: Request[Any, Any, Any], conversation: FromPath[str]) -> ItemList:
        known = await found(request, conversation)
        query = Query(request.scope, ("after", "before", "limit", "order", *_IGNORED))
        after, before, limit, order = _page(query)
        with _store(), _cursors(after, before):
            page = await items(store, known.id, after=after, before=before, limit=limit, order=order)
            data = await page_of(page.items)
        first, last = (page.items[0].id, page.items[-1].id) if page.items else (None, None)
        return ItemList(data=data, first_id=first, last_id=last, has_more=page.more)

    @get("/v1/conversations/{conversation:str}/items/{item_id:str}", summary="Retrieve an item", tags=["conversations"])
    async def retrieve_item(
        request: Request[Any, Any, Any], conversation: FromPath[str], item_id: FromPath[str]
    ) -> dict[str, Any]:
        known = await found(request, conversation)
        Query(request.scope, _IGNORED)
        with _store():
            one = await item(store, known.id, item_id) if _ITEM.fullmatch(item_id) else None
            if one is None:
                raise _no_item("item_id", NotFound)
            return (await page_of([one]))[0]

    @delete(
        "/v1/conversations/{conversation:str}/items/{item_id:str}",
        summary="Delete an item",
        tags=["conversations"],
        status_code=200,
    )
    async def delete_item(
        request: Request[Any, Any, Any], conversation: FromPath[str], item_id: FromPath[str]
    ) -> ConversationShown:
        """Gives the conversation, as OpenAI does. Forks that have the item keep it."""
        known = await found(request, conversation)
        try:
            with _store():
                removed = await remove_item(store, known.id, item_id) if _ITEM.fullmatch(item_id) else None
        except ItemInProgress:
            raise Conflict(
                "the item is being written: stop its stream first", code="item_in_progress", param="item_id"
            ) from None
        if removed is None:
            raise _no_item("item_id", NotFound)
        # who writes in it meanwhile goes on
        await forget(structs.replace(removed, call=None))
        return _shown(known)

    # -- all of them ---------------------------------------------------------------------------------------------------

    @get(
        "/v1/conversations/search",
        summary="Find what was said",
        tags=["conversations"],
        operation_class=described(
            query=[
                Parameter("q", "query", required=True, schema=Schema(type=OpenAPIType.STRING)),
                Parameter("conversation", "query", schema=Schema(type=OpenAPIType.STRING)),
                *CURSOR[:2],
            ]
        ),
    )
    async def search_conversations(request: Request[Any, Any, Any]) -> FoundList:
        """All words of `q` must be in an item, the newest first. Chinese and Japanese are found by their characters."""
        principal = await caller(request)
        query = Query(request.scope, ("q", "limit", "after", "conversation"))
        words, after, within = query.text("q"), query.text("after"), query.text("conversation")
        if words is None:
            raise InvalidRequest("`q` is required: the words to look for", code="missing_required_parameter", param="q")
        if within is not None:
            await found(request, within)
        with _store(), _cursors(after, None):
            page = await search(
                store,
                owner=_owner(principal),
                words=words,
                limit=query.number("limit", 20, 1, 100),
                after=None if after is None else _place(after),
                conversation=within,
            )
            data = [
                Found(conversation=hit.conversation, item=_with_turn(hit.item, {}), snippet=hit.snippet)
                for hit in page.hits
            ]
        following = f"{page.hits[-1].conversation}/{page.hits[-1].item.id}" if page.more else None
        return FoundList(data=data, next=following, has_more=page.more)

    @get("/v1/conversations/{conversation:str}/export", summary="Export a conversation", tags=["conversations"])
    async def export_conversation(request: Request[Any, Any, Any], conversation: FromPath[str]) -> Stream:
        """JSON Lines: the conversation, its items from the oldest on, then what was sent with each call."""
        known = await found(request, conversation)
        Query(request.scope, ())

        async def values() -> AsyncGenerator[Any, None]:
            yield _shown(known)
            async for each in exported(store, known.id):
                yield _with_turn(each, {})
            after: str | None = None
            while True:
                page = await turns(store, known.id, limit=_TOGETHER, after=after)
                receipts = await receipts_of(store, {turn.call for turn in page.turns})
                for turn in page.turns:
                    yield _line(turn, receipts.get(turn.call))
                if not page.more:
                    return
                after = page.turns[-1].call

        async def lines() -> AsyncGenerator[bytes, None]:
            with _store():
                async for value in values():
                    yield msgspec.json.encode(value) + b"\n"

        await up_to_date(books)
        name = f'attachment; filename="{known.id}.jsonl"'
        return Stream(lines(), media_type="application/jsonl", headers={"content-disposition": name})

    return [
        create_conversation,
        list_conversations,
        search_conversations,
        retrieve_conversation,
        update_conversation,
        delete_conversation,
        fork_conversation,
        export_conversation,
        create_items,
        list_items,
        retrieve_item,
        delete_item,
    ]


# -- reading -------------------------------------------------------------------------------------------------------


def _owner(principal: Principal | None) -> str | None:
    """Whose conversations may be seen; None: anybody's."""
    return None if principal is None or principal.admin else principal.key


def _page(query: Query) -> tuple[str | None, str | None, int, Order]:
    after, before = query.text("after"), query.text("before")
    if after is not None and before is not None:
        raise InvalidRequest("`after` and `before` say two places: give one of them", param="before")
    order: Order = "asc" if query.word("order", ("asc", "desc"), "desc") == "asc" else "desc"
    return after, before, query.number("limit", 20, 1, 100), order


def _place(cursor: str) -> tuple[str, str]:
    """The conversation and the item in a cursor of a search."""
    conversation, _, item_id = cursor.partition("/")
    return conversation, item_id


@contextmanager
def _cursors(after: str | None, before: str | None) -> Iterator[None]:
    try:
        yield
    except UnknownCursor:
        name = "after" if after is not None else "before"
        shown_ = kept_text((after if after is not None else before) or "", LONGEST_NAME)
        raise InvalidRequest(
            f"`{name}` is `{shown_}`, which is not in this list: give an id that a page of it had",
            code="unknown_cursor",
            param=name,
        ) from None


@contextmanager
def _store() -> Iterator[None]:
    """The store being away, in words for a client; the log knows more."""
    try:
        yield
    except StoreAway as error:
        structlog.get_logger("deltaway.store").error("conversations cannot be read or written", reason=str(error))
        words = "conversations cannot be read or written now; try again later"
        raise StoreUnavailable(words, retry_after=5.0) from error


def _new_items(fields: Sequence[dict[str, Any]]) -> list[NewItem]:
    if len(fields) > MOST_ITEMS:
        raise InvalidRequest(
            f"`items` may hold {MOST_ITEMS} items at most: add the others in more requests", param="items"
        )
    now = _now()
    new: list[NewItem] = []
    for index, each in enumerate(fields):
        message, protocol = read_item(each, f"items[{index}]")
        new.append(NewItem(prefix_of(message) + ulid(), message, protocol, now))
    return new


# -- showing -------------------------------------------------------------------------------------------------------


def _shown(conversation: Conversation) -> ConversationShown:
    return ConversationShown(
        id=conversation.id,
        created_at=conversation.created_at // 1000,
        metadata=conversation.metadata,
        updated_at=conversation.updated_at // 1000,
        forked_from=conversation.forked_from,
        context=conversation.context,
    )


def _with_turn(each: Item, receipts: Mapping[str, Receipt]) -> dict[str, Any]:
    """The item in OpenAI's words, with what only we know of it."""
    receipt = receipts.get(each.call) if each.call is not None and isinstance(each.message, Assistant) else None
    following = each.stream is not None and each.status == "in_progress"
    beside = Beside(
        created_at=each.created_at // 1000,
        request_id=each.call,
        stream=f"/v1/streams/{each.stream}" if following else None,
        last_event_id=f"{each.stream}-{each.seq}" if following else None,
        turn=_turn(receipt),
    )
    return {**shown(each), "deltaway": msgspec.to_builtins(beside)}


def _turn(receipt: Receipt | None) -> TurnShown | None:
    if receipt is None:
        return None
    told = receipt_shown(receipt)
    return TurnShown(outcome=told.outcome, target=told.target, usage=told.usage, cost=told.cost)


def _line(turn: Turn, receipt: Receipt | None) -> TurnLine:
    return TurnLine(
        request_id=turn.call,
        created_at=turn.created_at // 1000,
        strategy=turn.strategy,
        first=turn.first,
        left_out=turn.left_out,
        summary=turn.summary,
        prompt_tokens=turn.prompt_tokens,
        turn=_turn(receipt),
    )


def _missing() -> NotFound:
    return NotFound(
        "no conversation of that id that may be seen with this key: there is none, or it is another key's",
        code="conversation_not_found",
        param="conversation",
    )


def _no_item(param: str, kind: "type[NotFound] | type[InvalidRequest]" = InvalidRequest) -> NotFound | InvalidRequest:
    return kind(f"`{param}` is no item of this conversation", code="item_not_found", param=param)


def _now() -> int:
    return int(time.time() * 1000)
