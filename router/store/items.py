"""The items of conversations: pages of them, what was said so far, adding and removing.

A page begins at a position, which the primary key ends in: the last page of ten thousand items costs what the first
one does. Whoever adds or removes has the conversation's row locked first, and then contents.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import ColumnElement, RowMapping, Select, and_, case, delete, exists, insert, null, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from router.conversation import Item, ItemPage, Order
from router.messages import Message
from router.store.contents import (
    NewContent,
    content_columns,
    drop,
    keep,
    last_address,
    new_content,
    portions,
    read_item,
)
from router.store.store import Store
from router.store.tables import contents, conversation_items, conversations, summaries, turns

_PAGE: Final = 500
"""Items that are read at a time when all are."""
_of: Final = conversation_items.c


class ConversationMissing(Exception):
    """There is no such conversation, or not any more."""


class MissingItem(Exception):
    """The conversation has no item of that id."""


class UnknownCursor(Exception):
    """What was said to be listed after, or before, is not in that list."""


class ItemExists(Exception):
    """The conversation has an item of that id."""


class ItemInProgress(Exception):
    """The item is still being written: its call has to be stopped first."""


class StaleParent(Exception):
    """What should be answered is in the conversation, but is not its last item any more."""

    def __init__(self, last: str) -> None:
        super().__init__(last)
        self.last = last
        """The id of the item that is."""


class NewItem(Struct, frozen=True):
    id: str
    message: Message
    protocol: str
    created_at: int
    call: str | None = None


class Removed(Struct, frozen=True):
    """What was deleted, or had an item deleted."""

    conversation: str
    streams: tuple[str, ...]
    """The streams that its items were written on: their logs have the same words."""
    call: str | None = None
    """The call that was writing in it."""


# -- reading -----------------------------------------------------------------------------------------------------------


async def items(
    store: Store, conversation: str, *, after: str | None = None, before: str | None = None, limit: int, order: Order
) -> ItemPage:
    """Up to `limit` items in that order: those that follow the item `after`, or those just before the item `before`,
    or of what is between both the first. Raises `UnknownCursor`, `StoreAway`."""
    backwards = before is not None and after is None
    ascending = (order == "asc") != backwards
    page = select(conversation_items).where(_of.conversation == conversation)
    async with store.reading() as connection:
        for cursor, follows in ((after, True), (before, False)):
            if cursor is not None:
                place = await _position(connection, conversation, cursor)
                if place is None:
                    raise UnknownCursor(cursor)
                page = page.where(_of.position > place if (order == "asc") == follows else _of.position < place)
        page = page.order_by(_of.position if ascending else _of.position.desc()).limit(limit + 1)
        rows = await _read(connection, page, ascending=ascending)
    found = rows[:limit]
    return ItemPage(tuple(found[::-1] if backwards else found), len(rows) > limit)


async def item(store: Store, conversation: str, item_id: str) -> Item | None:
    """Raises `StoreAway`."""
    wanted = select(conversation_items).where(_of.conversation == conversation, _of.id == item_id)
    async with store.reading() as connection:
        found = await _read(connection, wanted)
    return found[0] if found else None


async def history(store: Store, conversation: str, *, limit_bytes: int | None = None) -> tuple[Item, ...]:
    """What was said, the oldest first, broken-off answers too and those that are being written not. `limit_bytes`: of
    the newest, so many bytes of messages as JSON, and one item at least. Raises `StoreAway`."""
    found: list[Item] = []
    room = limit_bytes
    # two statements of one page each see one conversation, whatever is added or removed between them
    async with store.reading(snapshot=True) as connection:
        place: int | None = None
        while True:
            page = select(conversation_items).where(_of.conversation == conversation, _of.content.is_not(None))
            if place is not None:
                page = page.where(_of.position < place)
            rows = await _rows(connection, page.order_by(_of.position.desc()).limit(_PAGE), ascending=False)
            for row in rows:
                if room is not None:
                    room -= len(row["said"].encode())
                    if room < 0 and found:
                        return tuple(found[::-1])
                found.append(read_item(row))
            if len(rows) < _PAGE:
                return tuple(found[::-1])
            place = rows[-1]["position"]


async def exported(store: Store, conversation: str) -> AsyncIterator[Item]:
    """All items, the oldest first, read a page at a time: what is added meanwhile comes too. Raises `StoreAway`."""
    place = 0
    while True:
        page = select(conversation_items).where(_of.conversation == conversation, _of.position > place)
        async with store.reading() as connection:
            rows = await _rows(connection, page.order_by(_of.position).limit(_PAGE))
        for row in rows:
            yield read_item(row)
        if len(rows) < _PAGE:
            return
        place = rows[-1]["position"]


async def _position(connection: AsyncConnection, conversation: str, item_id: str) -> int | None:
    return await connection.scalar(select(_of.position).where(_of.conversation == conversation, _of.id == item_id))


async def _read(connection: AsyncConnection, page: Select[Any], *, ascending: bool = True) -> list[Item]:
    return [read_item(row) for row in await _rows(connection, page, ascending=ascending)]


async def _rows(connection: AsyncConnection, page: Select[Any], *, ascending: bool = True) -> Sequence[RowMapping]:
    found = await connection.execute(page_with_contents(page, ascending=ascending))
    rows: Sequence[RowMapping] = found.mappings().all()
    return rows


def page_with_contents(page: Select[Any], *, ascending: bool) -> Select[Any]:
    """The rows of the page, which is found by itself first, and what was said in them."""
    of = page.subquery("page").c
    query = select(*of, *content_columns()).outerjoin(contents, contents.c.address == of.content)
    return query.order_by(of.position if ascending else of.position.desc())


# -- writing -----------------------------------------------------------------------------------------------------------


async def add(
    store: Store, conversation: str, new: Sequence[NewItem], *, at: int, parent: str | None = None
) -> tuple[Item, ...]:
    """Add to its end. `parent`: the item that is believed to be its last. Raises `ConversationMissing`, `MissingItem`
    for a parent that is not in it, `StaleParent` for one that is not its last item, `ItemExists`, `StoreAway`; nothing
    was added then."""
    kept = conversations.c
    async with store.writing() as connection:
        # its row is locked from here on
        took = (
            update(conversations)
            .where(kept.id == conversation)
            .values(last_position=kept.last_position + len(new), updated_at=later(kept.updated_at, at))
        )
        row = (await connection.execute(took.returning(kept.owner, kept.last_position))).one_or_none()
        if row is None:
            raise ConversationMissing(conversation)
        if parent is not None:
            await _must_be_last(connection, conversation, parent)
        if new:
            there = select(_of.id).where(_of.conversation == conversation)
            for some in portions([each.id for each in new]):
                if (known := await connection.scalar(there.where(_of.id.in_(some)).limit(1))) is not None:
                    raise ItemExists(known)
        address = await last_address(connection, conversation)
        return await put(store, connection, conversation, row.owner, address, row.last_position - len(new), new)


async def put(
    store: Store,
    connection: AsyncConnection,
    conversation: str,
    owner: str,
    address: str,
    position: int,
    new: Sequence[NewItem],
) -> tuple[Item, ...]:
    """Add items after that position, where `address` is of what was said last. They have no id twice."""
    if len({each.id for each in new}) < len(new):
        raise ItemExists(next(each.id for at, each in enumerate(new) if each.id in {one.id for one in new[:at]}))
    said: list[NewContent] = []
    for each in new:
        said.append(new_content(owner, address, each.protocol, each.message))
        address = said[-1].address
    if not new:
        return ()
    await keep(store, connection, said)
    added = tuple(
        Item(
            id=each.id,
            message=each.message,
            protocol=each.protocol,
            created_at=each.created_at,
            call=each.call,
            content=content.address,
            parent=content.parent,
        )
        for each, content in zip(new, said, strict=True)
    )
    rows = [
        {
            "conversation": conversation,
            "position": position + place,
            "id": each.id,
            "content": each.content,
            "status": each.status,
            "call": each.call,
            "seq": 0,
            "created_at": each.created_at,
        }
        for place, each in enumerate(added, 1)
    ]
    await connection.execute(insert(conversation_items), rows)
    return added


async def remove_item(store: Store, conversation: str, item_id: str) -> Removed | None:
    """Delete it, with every summary that is of it too. None: there is no such item. What it was is in other
    conversations that have it still. Raises `ItemInProgress`, `StoreAway`."""
    kept = conversations.c
    async with store.writing() as connection:
        locked = select(kept.id, kept.call).where(kept.id == conversation).with_for_update()
        head = (await connection.execute(locked)).one_or_none()
        wanted = select(_of.position, _of.content, _of.status, _of.stream)
        wanted = wanted.where(_of.conversation == conversation, _of.id == item_id)
        row = (await connection.execute(wanted)).one_or_none()
        if head is None or row is None:
            return None
        if row.status == "in_progress":
            raise ItemInProgress(item_id)
        await _forget_summaries(connection, conversation, row.position)
        await connection.execute(
            delete(conversation_items).where(_of.conversation == conversation, _of.position == row.position)
        )
        await drop(store, connection, [row.content])
    return Removed(conversation, () if row.stream is None else (row.stream,), head.call)


async def _forget_summaries(connection: AsyncConnection, conversation: str, position: int) -> None:
    """Those that may be of that item: they go further than it, or it cannot be told how far."""
    before = select(_of.id).where(_of.conversation == conversation, _of.position < position)
    until = select(_of.id).where(_of.conversation == conversation, _of.position <= position)
    mine = summaries.c.conversation == conversation
    await connection.execute(delete(summaries).where(mine, summaries.c.covers.not_in(before)))
    told = and_(turns.c.conversation == conversation, turns.c.summary.is_not(None))
    further = or_(turns.c.first.is_(None), turns.c.first.not_in(until))
    await connection.execute(update(turns).where(told, further).values(summary=null()))


async def _must_be_last(connection: AsyncConnection, conversation: str, parent: str) -> None:
    mine = _of.conversation == conversation
    last = await connection.scalar(select(_of.id).where(mine).order_by(_of.position.desc()).limit(1))
    if last == parent:
        return
    if last is None or not await connection.scalar(select(exists().where(mine, _of.id == parent))):
        raise MissingItem(parent)
    raise StaleParent(last)


def later(column: ColumnElement[int], at: int | ColumnElement[int]) -> ColumnElement[int]:
    """The later of both, as both databases know it."""
    return case((column > at, column), else_=at)


def distinct(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value is not None))
