"""Items that have all words that are looked for, the newest first: by the FTS5 index of SQLite, by the GIN index of
Postgres. Neither takes words apart by itself (`router.store.words`), so both find the same."""

from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Select, cast, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.ext.asyncio import AsyncConnection

from router.conversation import Hit
from router.store.contents import content_columns, read_item, said_in
from router.store.items import UnknownCursor
from router.store.selection import Dialect
from router.store.store import Store
from router.store.tables import contents, conversation_items, conversations
from router.store.words import Wanted, has, snippet, wanted

_of: Final = conversation_items.c
_IN_ORDER: Final = (_of.created_at, _of.conversation, _of.position)


class Hits(Struct, frozen=True):
    hits: tuple[Hit, ...]
    more: bool


async def search(
    store: Store,
    *,
    owner: str | None,
    words: str,
    limit: int = 20,
    after: tuple[str, str] | None = None,
    conversation: str | None = None,
) -> Hits:
    """What was said with all of these words in it, whatever their order; nothing in `words` is an operator, and
    nothing is found where there is no word in it. `after`: the conversation and the item that the page before ended
    with. An item that forks have too is found in each. Raises `UnknownCursor`, `StoreAway`."""
    looked_for = wanted(words)
    async with store.reading() as connection:
        place = None if after is None else await _place(connection, after, owner)
        if not looked_for.words:
            return Hits((), False)
        query = _query(looked_for, store.dialect, owner, conversation).limit(limit + 1)
        hits: list[Hit] = []
        while True:
            page = query if place is None else query.where(tuple_(*_IN_ORDER) < tuple_(*place))
            rows = (await connection.execute(page)).mappings().all()
            for row in rows:
                item = read_item(row)
                said = said_in(item.message)
                if has(said, looked_for):
                    if len(hits) == limit:
                        return Hits(tuple(hits), True)
                    hits.append(Hit(row["conversation"], item, snippet(said, looked_for)))
            if len(rows) <= limit:
                return Hits(tuple(hits), False)
            place = tuple(rows[-1][column.name] for column in _IN_ORDER)


def _query(looked_for: Wanted, dialect: Dialect, owner: str | None, conversation: str | None) -> Select[Any]:
    query = (
        select(conversation_items, *content_columns())
        .join(contents, contents.c.address == _of.content)
        .join(conversations, conversations.c.id == _of.conversation)
        .order_by(*(column.desc() for column in _IN_ORDER))
    )
    # neither a quote nor a space is in any of them
    if dialect == "sqlite":
        said = " AND ".join(f'"{word}"' for word in looked_for.words)
        numbers = text("SELECT rowid FROM contents_search WHERE contents_search MATCH :said").bindparams(said=said)
        query = query.where(contents.c.number.in_(numbers.columns(contents.c.number).scalar_subquery()))
    else:
        said = " & ".join(f"'{word}'" for word in looked_for.words)
        query = query.where(contents.c.words.bool_op("@@")(cast(literal(said), TSQUERY)))
    if owner is not None:
        query = query.where(contents.c.owner == owner, conversations.c.owner == owner)
    if conversation is not None:
        query = query.where(_of.conversation == conversation)
    return query


async def _place(connection: AsyncConnection, after: tuple[str, str], owner: str | None) -> tuple[Any, ...]:
    query = select(*_IN_ORDER).join(conversations, conversations.c.id == _of.conversation)
    query = query.where(_of.conversation == after[0], _of.id == after[1])
    if owner is not None:
        query = query.where(conversations.c.owner == owner)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise UnknownCursor(after[1])
    return tuple(row)
