"""What was said, kept once for all conversations of an owner in which the same was said before it.

An address is made of the owner, the address of what came before, and the message. So a fork shares its past with the
conversation it comes from, and nobody's words are ever another's. Contents go when no item refers to them any more; on
Postgres both who adds an item and who removes one lock the row, in the order of addresses.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from sqlalchemy import ARRAY, ColumnElement, Text, bindparam, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert as insert_postgres
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from router.conversation import Item
from router.messages import Assistant, Content, File, Message, Refusal, System, ToolResult, User
from router.messages import Text as TextPart
from router.store.remains import note
from router.store.store import Store
from router.store.tables import contents, conversation_items
from router.store.words import searchable

Value = TypeVar("Value")
TOGETHER: Final = 400
"""Values of one statement: few builds of SQLite take less than 999."""
_LONG: Final = 50_000
"""Characters from which on words are looked for in a thread: a hundred thousand take 20 ms."""
_encode: Final = msgspec.json.Encoder(order="deterministic").encode
_decoder: Final[msgspec.json.Decoder[Message]] = msgspec.json.Decoder(Message)


class NewContent(Struct, frozen=True):
    owner: str
    parent: str
    """The address of what was said before; empty for the first."""
    protocol: str
    message: Message
    encoded: str
    """`message` as JSON."""
    address: str


def new_content(owner: str, parent: str, protocol: str, message: Message) -> NewContent:
    encoded = _encode(message)
    digest = hashlib.sha256()
    for part in (owner.encode(), parent.encode(), protocol.encode(), encoded):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return NewContent(owner, parent, protocol, message, encoded.decode(), digest.hexdigest())


def encoded(message: Message) -> str:
    return _encode(message).decode()


def decoded(message: str) -> Message:
    return _decoder.decode(message)


def said_in(message: Message) -> str:
    """What of a message is found: what was said, refused, called and returned. What a model thought is not."""
    match message:
        case System() | User() | ToolResult():
            return _said(message.content)
        case Assistant():
            called = chain.from_iterable((call.name, call.arguments) for call in message.tool_calls)
            return "\n".join(text for text in (_said(message.content), message.refusal, *called) if text)


def _said(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(_of_part(part) for part in content)


def _of_part(part: object) -> str:
    match part:
        case TextPart() | Refusal():
            return part.text
        case File():
            return part.filename or ""
        case _:
            return ""


# -- rows --------------------------------------------------------------------------------------------------------------


def content_columns() -> tuple[ColumnElement[Any], ...]:
    """What `read_item` needs beside the columns of the item."""
    return contents.c.message.label("said"), contents.c.protocol.label("said_in"), contents.c.parent


def read_item(row: Any) -> Item:
    """Of a mapping with the columns of `conversation_items` and `content_columns`, null where it has no content."""
    said = row["said"] if row["said"] is not None else row["message"]
    return Item(
        id=row["id"],
        message=_decoder.decode(said),
        protocol=row["protocol"] if row["said_in"] is None else row["said_in"],
        status=row["status"],
        created_at=row["created_at"],
        call=row["call"],
        stream=row["stream"],
        seq=row["seq"],
        content=row["content"] or "",
        parent=row["parent"] or "",
    )


# -- keeping -----------------------------------------------------------------------------------------------------------


async def keep(store: Store, connection: AsyncConnection, new: Iterable[NewContent]) -> None:
    """Add those that are not there, and see to it that the others stay until the transaction ends."""
    by_address = {each.address: each for each in new}
    if not by_address:
        return
    rows = []
    for address in sorted(by_address):
        each = by_address[address]
        text = said_in(each.message)
        found = searchable(text) if len(text) < _LONG else await asyncio.to_thread(searchable, text)
        words = " ".join(found) if store.dialect == "sqlite" else list(found)
        rows.append(
            {
                "address": address,
                "owner": each.owner,
                "parent": each.parent,
                "protocol": each.protocol,
                "message": each.encoded,
                "given": words,
            }
        )
    names = ("address", "owner", "parent", "protocol", "message")
    values: dict[str, Any] = {name: bindparam(name) for name in names}
    if store.dialect == "sqlite":
        statement: Any = insert_sqlite(contents).values(**values, words=bindparam("given"))
        statement = statement.on_conflict_do_nothing(index_elements=["address"])
    else:
        lexemes = func.array_to_tsvector(bindparam("given", type_=ARRAY(Text)))
        row = insert_postgres(contents).values(**values, words=lexemes)
        # changes nothing, and locks the row
        statement = row.on_conflict_do_update(index_elements=["address"], set_={"owner": row.excluded.owner})
    await connection.execute(statement, rows)


async def drop(store: Store, connection: AsyncConnection, addresses: Iterable[str]) -> None:
    """Delete those that no item refers to any more. The items were removed before, in this transaction."""
    for some in portions(sorted(set(addresses))):
        these = contents.c.address.in_(some)
        if store.dialect == "postgresql":
            # whoever is adding an item that refers to one of them ends first, and the next statement sees that item
            locked = select(contents.c.number).where(these).order_by(contents.c.address).with_for_update()
            await connection.execute(locked)
        used = exists().where(conversation_items.c.content == contents.c.address)
        gone = await connection.execute(delete(contents).where(these, ~used))
        if gone.rowcount:
            await note(store, connection)


async def last_address(connection: AsyncConnection, conversation: str, before: int | None = None) -> str:
    """Of what was said last in a conversation (before that position); empty: nothing was."""
    of = conversation_items.c
    query = select(of.content).where(of.conversation == conversation, of.content.is_not(None))
    if before is not None:
        query = query.where(of.position < before)
    return await connection.scalar(query.order_by(of.position.desc()).limit(1)) or ""


def portions(values: Sequence[Value], size: int = TOGETHER) -> Iterable[Sequence[Value]]:
    return (values[at : at + size] for at in range(0, len(values), size))
