"""Conversations: who has which, whose turn it is in one, forks, and deletion that leaves nothing.

All that is said of conversations in the store is to be had from here: items, answers under way, turns and summaries
have modules of their own. `owner` is whose it must be, None: anybody's. Times are Unix milliseconds.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import delete, func, insert, literal, null, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from router.conversation import ContextRules, Conversation, ConversationPage, Item, Order
from router.store.contents import drop, portions
from router.store.drafts import Abandoned, save, settle_abandoned
from router.store.items import (
    ConversationMissing,
    ItemExists,
    ItemInProgress,
    MissingItem,
    NewItem,
    Removed,
    StaleParent,
    UnknownCursor,
    add,
    distinct,
    exported,
    history,
    item,
    items,
    later,
    put,
    remove_item,
)
from router.store.remains import clear
from router.store.search import Hits, search
from router.store.store import Store
from router.store.summaries import keep_summary, latest_summary, summary_tokens_since
from router.store.tables import conversation_items, conversations
from router.store.turns import TurnPage, record_turn, turns

__all__ = [
    "Abandoned",
    "ConversationMissing",
    "Hits",
    "ItemExists",
    "ItemInProgress",
    "MissingItem",
    "NewItem",
    "Removed",
    "StaleParent",
    "TurnPage",
    "UnknownCursor",
    "add",
    "change",
    "clear",
    "create",
    "expired",
    "exported",
    "find",
    "fork",
    "history",
    "item",
    "items",
    "keep_summary",
    "latest_summary",
    "listed",
    "record_turn",
    "release",
    "remove",
    "remove_item",
    "renew",
    "save",
    "search",
    "settle_abandoned",
    "summary_tokens_since",
    "take",
    "turns",
]

_kept: Final = conversations.c
_of: Final = conversation_items.c
_SHOWN: Final = tuple(_kept[name] for name in Conversation.__struct_fields__)
_metadata: Final = msgspec.json.Decoder(dict[str, str])
_context: Final = msgspec.json.Decoder(ContextRules)


async def create(store: Store, conversation: Conversation, new: Sequence[NewItem] = ()) -> tuple[Item, ...]:
    """Make it, with its first items. Raises `ItemExists` for two of one id, `StoreAway`."""
    async with store.writing() as connection:
        await connection.execute(insert(conversations).values(_row(conversation, len(new))))
        return await put(store, connection, conversation.id, conversation.owner, "", 0, new)


async def find(store: Store, conversation: str, *, owner: str | None) -> Conversation | None:
    """None: there is none of that id, or not of that owner. Raises `StoreAway`."""
    async with store.reading() as connection:
        return await _found(connection, conversation, owner)


async def change(
    store: Store,
    conversation: str,
    *,
    owner: str | None,
    metadata: dict[str, str] | UnsetType = UNSET,
    at: int,
    context: ContextRules | UnsetType | None = UNSET,
) -> Conversation | None:
    """Give it other metadata or rules. None: as `find`. Raises `StoreAway`."""
    values: dict[str, Any] = {"updated_at": later(_kept.updated_at, at)}
    if metadata is not UNSET:
        values["metadata"] = _json(metadata)
    if context is not UNSET:
        values["context"] = None if context is None else _json(context)
    changed = update(conversations).where(*_whose(conversation, owner)).values(values).returning(*_SHOWN)
    async with store.writing() as connection:
        row = (await connection.execute(changed)).mappings().one_or_none()
    return None if row is None else _conversation(row)


async def listed(
    store: Store,
    *,
    owner: str | None,
    after: str | None = None,
    before: str | None = None,
    limit: int = 20,
    order: Order = "desc",
) -> ConversationPage:
    """A page of them in the order they were made. Raises `UnknownCursor`, `StoreAway`."""
    backwards = before is not None and after is None
    ascending = (order == "asc") != backwards
    page = select(*_SHOWN)
    if owner is not None:
        page = page.where(_kept.owner == owner)
    async with store.reading() as connection:
        for cursor, follows in ((after, True), (before, False)):
            if cursor is not None:
                if await _found(connection, cursor, owner) is None:
                    raise UnknownCursor(cursor)
                page = page.where(_kept.id > cursor if (order == "asc") == follows else _kept.id < cursor)
        page = page.order_by(_kept.id if ascending else _kept.id.desc()).limit(limit + 1)
        rows = (await connection.execute(page)).mappings().all()
    found = [_conversation(row) for row in rows[:limit]]
    return ConversationPage(tuple(found[::-1] if backwards else found), len(rows) > limit)


async def fork(
    store: Store, conversation: str, *, owner: str | None, new: Conversation, upto: str | None = None
) -> Conversation | None:
    """Make `new`, with the same items up to the item `upto`, those in progress left out. It is its owner's whose the
    first one is, and says where it comes from. None: as `find`. Raises `MissingItem`, `StoreAway`."""
    async with store.writing() as connection:
        # no item of it is removed meanwhile, so all contents stay
        locked = select(_kept.owner).where(*_whose(conversation, owner)).with_for_update(read=True)
        whose = await connection.scalar(locked)
        if whose is None:
            return None
        copied: tuple[Any, ...] = (_of.conversation == conversation, _of.status != "in_progress")
        if upto is not None:
            there = select(_of.position).where(_of.conversation == conversation, _of.id == upto)
            last = await connection.scalar(there)
            if last is None:
                raise MissingItem(upto)
            copied = (*copied, _of.position <= last)
        made = msgspec.structs.replace(new, owner=whose, forked_from=conversation)
        position = await connection.scalar(select(func.max(_of.position)).where(*copied)) or 0
        await connection.execute(insert(conversations).values(_row(made, position)))
        # the stream is not the copy's: it would go with it
        given: dict[str, Any] = {"conversation": literal(made.id), "stream": null()}
        names = [column.name for column in conversation_items.c]
        rows = select(*[given.get(name, _of[name]) for name in names]).where(*copied)
        await connection.execute(insert(conversation_items).from_select(names, rows))
    return made


# -- deletion ----------------------------------------------------------------------------------------------------------


async def remove(store: Store, conversation: str, *, owner: str | None) -> Removed | None:
    """Delete it with its items, and what was said in it alone. None: as `find`. Raises `StoreAway`."""
    async with store.writing() as connection:
        locked = select(_kept.id, _kept.call).where(*_whose(conversation, owner)).with_for_update()
        rows = (await connection.execute(locked)).all()
        found = await _removed(store, connection, {row.id: row.call for row in rows})
    await clear(store, pieces=1)
    return found[0] if found else None


async def expired(store: Store, *, before: int, limit: int = 100) -> tuple[Removed, ...]:
    """Delete the next that were not changed since, `limit` at most, those aside in which a call is writing. Call it
    again until there are none. Raises `StoreAway`."""
    idle = or_(_kept.call.is_(None), _kept.until < before)
    locked = select(_kept.id, _kept.call).where(_kept.updated_at < before, idle).order_by(_kept.updated_at, _kept.id)
    async with store.reading() as connection:
        if (await connection.execute(locked.limit(1))).first() is None:
            return ()
    async with store.writing() as connection:
        rows = (await connection.execute(locked.limit(limit).with_for_update(skip_locked=True))).all()
        found = await _removed(store, connection, {row.id: row.call for row in rows})
    await clear(store, pieces=1)
    return found


async def _removed(store: Store, connection: AsyncConnection, calls: dict[str, str | None]) -> tuple[Removed, ...]:
    """Delete conversations whose rows are locked."""
    streams: dict[str, list[str | None]] = {name: [] for name in calls}
    addresses: set[str] = set()
    for some in portions(list(calls)):
        mine = _of.conversation.in_(some)
        rows = select(_of.conversation, _of.stream, _of.content).where(mine).order_by(_of.conversation, _of.position)
        for row in await connection.execute(rows):
            streams[row.conversation].append(row.stream)
            if row.content is not None:
                addresses.add(row.content)
        # items, turns and summaries go with it
        await connection.execute(delete(conversations).where(_kept.id.in_(some)))
    await drop(store, connection, addresses)
    return tuple(Removed(name, distinct(streams[name]), call) for name, call in calls.items())


# -- whose turn it is --------------------------------------------------------------------------------------------------


async def take(store: Store, conversation: str, *, call: str, writer: str, at: int, until: int) -> bool:
    """Let `call` of the process `writer` write in it, `until` then if it gives no sign of life. False: another one
    does, or there is no such conversation. Raises `StoreAway`."""
    free = or_(_kept.call.is_(None), _kept.call == call, _kept.until < at)
    taken = update(conversations).where(_kept.id == conversation, free).values(call=call, writer=writer, until=until)
    async with store.writing() as connection:
        return bool((await connection.execute(taken)).rowcount)


async def renew(store: Store, calls: Sequence[str], until: int) -> None:
    """These calls live. Raises `StoreAway`."""
    if not calls:
        return
    async with store.writing() as connection:
        for some in portions(sorted(calls)):
            await connection.execute(update(conversations).where(_kept.call.in_(some)).values(until=until))


async def release(store: Store, conversation: str, *, call: str) -> None:
    """`call` does not write in it any more; changes nothing if another one does. Raises `StoreAway`."""
    mine = (_kept.id == conversation, _kept.call == call)
    async with store.writing() as connection:
        await connection.execute(update(conversations).where(*mine).values(call=None, writer=None, until=None))


# -- rows and values ---------------------------------------------------------------------------------------------------


def _whose(conversation: str, owner: str | None) -> list[Any]:
    found: list[Any] = [_kept.id == conversation]
    if owner is not None:
        found.append(_kept.owner == owner)
    return found


async def _found(connection: AsyncConnection, conversation: str, owner: str | None) -> Conversation | None:
    row = (await connection.execute(select(*_SHOWN).where(*_whose(conversation, owner)))).mappings().one_or_none()
    return None if row is None else _conversation(row)


def _row(conversation: Conversation, last_position: int) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "owner": conversation.owner,
        "metadata": _json(conversation.metadata),
        "context": None if conversation.context is None else _json(conversation.context),
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
        "last_position": last_position,
        "forked_from": conversation.forked_from,
    }


def _conversation(row: Any) -> Conversation:
    return Conversation(
        id=row["id"],
        owner=row["owner"],
        metadata=_metadata.decode(row["metadata"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        forked_from=row["forked_from"],
        context=None if row["context"] is None else _context.decode(row["context"]),
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
