"""Answers while they are written: items that are brought up to date twice a second, those of many conversations in one
transaction of few statements, however many they are.

An item's message is in its own row while it is being written. When it is complete, or broken off, it becomes a content
like all others. What is complete stays as it is; otherwise the draft with the higher number wins, so that one that was
held up changes nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from router.conversation import Draft, ItemStatus
from router.store.contents import TOGETHER, NewContent, decoded, drop, encoded, keep, new_content, portions
from router.store.items import later
from router.store.store import Store
from router.store.tables import conversation_items, conversations

_SETTLED: Final = 200
"""Conversations whose items are settled in one transaction."""
_WRITTEN: Final = ("content", "message", "protocol", "status", "call", "stream", "seq")
_of: Final = conversation_items.c
_kept: Final = conversations.c


class Abandoned(Struct, frozen=True):
    """An item whose process has died."""

    conversation: str
    item: str
    stream: str | None


class _Head(Struct):
    owner: str
    last: int
    created_at: int = 0
    """Of the newest item that came."""
    changed: bool = False


class _There(Struct, frozen=True):
    """What an item is now."""

    position: int
    status: ItemStatus
    seq: int
    content: str | None = None


_Key: TypeAlias = tuple[str, str]
"""Conversation and item."""


async def save(store: Store, drafts: Sequence[Draft], *, renew_until: int | None = None) -> frozenset[str]:
    """Write them. `renew_until`: also renew the leases of their calls until then (Unix milliseconds). Gives the
    conversations that are gone, of which nothing was written. Raises `StoreAway`; nothing was written then."""
    if not drafts:
        return frozenset()
    async with store.writing() as connection:
        gone = await _save(store, connection, drafts)
        if renew_until is not None:
            renewed = (
                update(conversations)
                .where(_kept.id == bindparam("of_id"), _kept.call == bindparam("of_call"))
                .values(until=renew_until)
            )
            pairs = sorted({(draft.conversation, draft.call) for draft in drafts if draft.conversation not in gone})
            if pairs:
                await connection.execute(renewed, [{"of_id": one, "of_call": call} for one, call in pairs])
    return gone


async def settle_abandoned(store: Store, *, at: int) -> tuple[Abandoned, ...]:
    """Items in progress that no call writes any more become incomplete: their call has not got the conversation, or
    gave no sign of life for as long as its lease was. Raises `StoreAway`."""
    nobodys = or_(_kept.call.is_(None), _of.call.is_distinct_from(_kept.call), _kept.until < at)
    mine = _kept.id == _of.conversation
    any_of = select(_of.conversation).join(conversations, mine).where(_of.status == "in_progress", nobodys)
    settled: list[Abandoned] = []
    while True:
        async with store.reading() as connection:
            found = await connection.scalars(any_of.distinct().order_by(_of.conversation).limit(_SETTLED))
            names = found.all()
        if not names:
            return tuple(settled)
        async with store.writing() as connection:
            # whoever is renewing a lease ends first, and is seen by the next statement
            await connection.execute(select(_kept.id).where(_kept.id.in_(names)).order_by(_kept.id).with_for_update())
            wanted = select(conversation_items).join(conversations, mine).where(_of.status == "in_progress", nobodys)
            wanted = wanted.where(_kept.id.in_(names)).order_by(_of.conversation, _of.position)
            rows = (await connection.execute(wanted)).mappings().all()
            drafts = [
                Draft(
                    conversation=row["conversation"],
                    id=row["id"],
                    message=decoded(row["message"]),
                    protocol=row["protocol"],
                    status="incomplete",
                    call=row["call"],
                    stream=row["stream"],
                    seq=row["seq"],
                    created_at=row["created_at"],
                )
                for row in rows
            ]
            await _save(store, connection, drafts)
        settled += [Abandoned(draft.conversation, draft.id, draft.stream) for draft in drafts]


async def _save(store: Store, connection: AsyncConnection, drafts: Sequence[Draft]) -> frozenset[str]:
    heads = await _heads(connection, {draft.conversation for draft in drafts})
    newest: dict[_Key, Draft] = {}
    for draft in drafts:
        key = (draft.conversation, draft.id)
        if draft.conversation in heads and (key not in newest or _wins(draft, newest[key].status, newest[key].seq)):
            newest[key] = draft
    there = await _there(store, connection, list(newest))
    added: list[dict[str, Any]] = []
    changed: dict[_Key, Draft] = {}
    for key, draft in newest.items():
        head = heads[draft.conversation]
        now = there.get(key)
        if now is None:
            head.last += 1
            there[key] = _There(head.last, draft.status, draft.seq)
            added.append(_new_row(draft, head.last))
        elif not _wins(draft, now.status, now.seq):
            continue
        if now is None or draft.status != "in_progress":
            head.changed, head.created_at = True, max(head.created_at, draft.created_at)
        if now is not None or draft.status != "in_progress":
            changed[key] = draft
    if added:
        await connection.execute(insert(conversation_items), added)
    if changed:
        await _write(store, connection, changed, there, heads)
    touched = [
        {"of_id": name, "last": head.last, "at": head.created_at}
        for name, head in sorted(heads.items())
        if head.changed
    ]
    if touched:
        moved = update(conversations).where(_kept.id == bindparam("of_id"))
        moved = moved.values(
            last_position=bindparam("last"), updated_at=later(_kept.updated_at, bindparam("at", type_=BigInteger()))
        )
        await connection.execute(moved, touched)
    return frozenset(draft.conversation for draft in drafts) - heads.keys()


def _wins(draft: Draft, status: ItemStatus, seq: int) -> bool:
    """Over what has that status and number."""
    if status == "completed" or draft.seq < seq:
        return False
    return status == "in_progress" or draft.status == "completed" or draft.seq > seq


def _new_row(draft: Draft, position: int) -> dict[str, Any]:
    """A complete one has its message taken away at once."""
    return {
        "conversation": draft.conversation,
        "position": position,
        "id": draft.id,
        "message": encoded(draft.message) if draft.status == "in_progress" else None,
        "protocol": draft.protocol,
        "status": draft.status,
        "call": draft.call,
        "stream": draft.stream,
        "seq": draft.seq,
        "created_at": draft.created_at,
    }


async def _heads(connection: AsyncConnection, wanted: Iterable[str]) -> dict[str, _Head]:
    """The conversations that are there, from here on locked."""
    heads = {}
    for some in portions(sorted(wanted)):
        query = select(_kept.id, _kept.owner, _kept.last_position).where(_kept.id.in_(some))
        for row in await connection.execute(query.order_by(_kept.id).with_for_update()):
            heads[row.id] = _Head(row.owner, row.last_position)
    return heads


async def _there(store: Store, connection: AsyncConnection, keys: Sequence[_Key]) -> dict[_Key, _There]:
    found = {}
    for some in portions(keys, TOGETHER // 2):
        query = select(_of.conversation, _of.id, _of.position, _of.status, _of.seq, _of.content)
        for row in await connection.execute(query.where(_one_of(store, _of.conversation, _of.id, some))):
            found[row.conversation, row.id] = _There(row.position, row.status, row.seq, row.content)
    return found


async def _write(
    store: Store,
    connection: AsyncConnection,
    changed: dict[_Key, Draft],
    there: dict[_Key, _There],
    heads: dict[str, _Head],
) -> None:
    """Bring rows that are there up to date."""
    final = sorted(
        (key for key, draft in changed.items() if draft.status != "in_progress"),
        key=lambda key: (key[0], there[key].position),
    )
    said_before = await _said_before(store, connection, final)
    contents: list[NewContent] = []
    addresses: dict[_Key, str] = {}
    ended: dict[str, tuple[int, str]] = {}
    """Conversation → position and address of what ended last in this transaction."""
    nothing = (0, "")
    for key in final:
        draft = changed[key]
        _, parent = max(ended.get(draft.conversation, nothing), said_before.get(key, nothing))
        content = new_content(heads[draft.conversation].owner, parent, draft.protocol, draft.message)
        contents.append(content)
        addresses[key] = content.address
        ended[draft.conversation] = (there[key].position, content.address)
    await keep(store, connection, contents)
    written = (
        update(conversation_items)
        .where(_of.conversation == bindparam("of_conversation"), _of.position == bindparam("of_position"))
        .values({name: bindparam(f"new_{name}") for name in _WRITTEN})
    )
    rows = []
    for key, draft in changed.items():
        address = addresses.get(key)
        rows.append(
            {
                "of_conversation": draft.conversation,
                "of_position": there[key].position,
                "new_content": address,
                "new_message": encoded(draft.message) if address is None else None,
                "new_protocol": draft.protocol if address is None else None,
                "new_status": draft.status,
                "new_call": draft.call,
                "new_stream": draft.stream,
                "new_seq": draft.seq,
            }
        )
    await connection.execute(written, rows)
    replaced = [now.content for key in changed if (now := there[key]).content is not None]
    if replaced:
        await drop(store, connection, replaced)


async def _said_before(store: Store, connection: AsyncConnection, keys: Sequence[_Key]) -> dict[_Key, tuple[int, str]]:
    """Position and address of what was said last before each item, as far as there is something."""
    one, earlier, said = (conversation_items.alias(name) for name in ("one", "earlier", "said"))
    place = (
        select(func.max(said.c.position))
        .where(said.c.conversation == one.c.conversation, said.c.position < one.c.position)
        .where(said.c.content.is_not(None))
        .correlate(one)
        .scalar_subquery()
    )
    found = {}
    for some in portions(keys, TOGETHER // 2):
        query = select(one.c.conversation, one.c.id, earlier.c.position, earlier.c.content)
        query = query.select_from(one).join(
            earlier, and_(earlier.c.conversation == one.c.conversation, earlier.c.position == place)
        )
        for row in await connection.execute(query.where(_one_of(store, one.c.conversation, one.c.id, some))):
            found[row.conversation, row.id] = (row.position, row.content)
    return found


def _one_of(
    store: Store, conversation: ColumnElement[str], item: ColumnElement[str], keys: Sequence[_Key]
) -> ColumnElement[bool]:
    these = tuple_(conversation, item)
    if store.dialect == "postgresql":
        return these.in_(keys)
    # SQLite reads all of the table to look for pairs that are written into the statement, but not for a query's
    pair = func.json_each(msgspec.json.encode(keys).decode()).table_valued("value").c.value
    return these.in_(select(func.json_extract(pair, "$[0]"), func.json_extract(pair, "$[1]")))
