"""The SQL of keys and their owners. Nothing here knows the text of a key.

Every change counts `revisions['keys']` up first, in its own transaction. That row's lock makes changes follow one
another, so their numbers become visible in order: whoever has seen number n has seen all that came before it.
Removing an owner leaves no row behind that could bear a number; it counts `revisions['owners']` up as well.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Row, Select, Table, Text, and_, case, delete, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from router.access import Budget, Key, Limits, Owner, OwnerKind
from router.money import Money
from router.store.store import Store
from router.store.tables import keys, owners, revisions, secrets

Insert: TypeAlias = postgresql.Insert | sqlite.Insert
BATCH: Final = 500
"""Rows that are read at a time when all that changed is read."""
_TIMES: Final = ("created_at", "expires_at", "rotated_at", "previous_until", "revoked_at")
_PUBLIC: Final[tuple[str, ...]] = Key.__struct_fields__
_IN_ORDER: Final = (keys.c.created_at, keys.c.id)


class Hashed(Struct, frozen=True):
    """What is kept of a key's secret, and the fingerprint of the pepper that hashed it."""

    digest: bytes
    pepper: str


class KeyRow(Struct, frozen=True):
    """A key with what its secrets are checked against. `previous` is good until `key.previous_until`."""

    key: Key
    hashed: Hashed
    previous: bytes | None
    revision: int


class OwnerRow(Struct, frozen=True):
    owner: Owner
    revision: int


class Numbers(Struct, frozen=True):
    """How many changes there have been, and how many times an owner was removed."""

    changes: int
    removals: int


class KeyPage(Struct, frozen=True):
    keys: list[Key]
    more: bool


class OwnerPage(Struct, frozen=True):
    owners: list[Owner]
    more: bool


class LastAdminKey(Exception):
    """Without this key nobody could administer the gateway."""


class KeyRows:
    """Raises `StoreAway` wherever the store cannot be reached. `at` is a time in Unix milliseconds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def bounds(self) -> frozenset[str]:
        """Which of `limits` and `budgets` any key that is not revoked, or any owner, has."""
        found = set()
        async with self._store.reading() as connection:
            for name, empty in (("limits", "{}"), ("budgets", "[]")):
                of_keys = select(keys.c.id).where(keys.c.revoked_at.is_(None), keys.c[name].cast(Text) != empty)
                of_owners = select(owners.c.id).where(owners.c[name].cast(Text) != empty)
                if any([await connection.scalar(query.limit(1)) is not None for query in (of_keys, of_owners)]):
                    found.add(name)
        return frozenset(found)

    # -- keys --------------------------------------------------------------------------------------------------------

    async def add(self, key: Key, hashed: Hashed, at: int) -> None:
        async with self._store.writing() as connection:
            await _add(connection, key, hashed, at)

    async def add_first_admin(self, key: Key, hashed: Hashed, at: int) -> bool:
        """Add it if there is no admin key that could be used. Of several processes that try at once one does."""
        async with self._store.writing() as connection:
            # before anything is read: the count's row is the lock
            await _count(connection)
            if await _has_admin(connection, hashed.pepper, at):
                return False
            await _add(connection, key, hashed, at)
            return True

    async def has_admin(self, pepper: str, at: int) -> bool:
        """Whether an admin key could be used: hashed with that pepper, not expired, not revoked."""
        async with self._store.reading() as connection:
            return await _has_admin(connection, pepper, at)

    async def get(self, key_id: str) -> KeyRow | None:
        async with self._store.reading() as connection:
            row = (await connection.execute(select(keys).where(keys.c.id == key_id))).one_or_none()
        return None if row is None else _key_row(row)

    async def page(self, limit: int, *, after: str | None = None, before: str | None = None) -> KeyPage | None:
        """Up to `limit` keys, the newest first: those that follow `after`, or those just before `before`.

        None: no key has the cursor's id.
        """
        cursor = after or before
        listed = select(*(keys.c[name] for name in _PUBLIC)).limit(limit + 1)
        async with self._store.reading() as connection:
            if cursor is not None:
                place = (await connection.execute(select(*_IN_ORDER).where(keys.c.id == cursor))).one_or_none()
                if place is None:
                    return None
                here, there = tuple_(*_IN_ORDER), tuple_(*place)
                listed = listed.where(here < there if after else here > there)
            backwards = cursor is not None and after is None
            columns = _IN_ORDER if backwards else [column.desc() for column in _IN_ORDER]
            rows = (await connection.execute(listed.order_by(*columns))).all()
        found = [_key(row) for row in rows[:limit]]
        return KeyPage(found[::-1] if backwards else found, len(rows) > limit)

    async def change(self, key_id: str, fields: Mapping[str, Any]) -> Key | None:
        """Give the fields of `Key` other values. None: there is no such key, or it was revoked."""
        async with self._store.writing() as connection:
            number = await _count(connection)
            return await _changed(connection, key_id, {**_columns(fields), "revision": number})

    async def rotate(self, key_id: str, hashed: Hashed, at: int, overlap: int) -> Key | None:
        """Give it a new secret; the one before stays good for `overlap` milliseconds, none before that.

        None: there is no such key, or it was revoked.
        """
        async with self._store.writing() as connection:
            number = await _count(connection)
            # what another pepper hashed could not be checked
            previous = case((keys.c.pepper == hashed.pepper, keys.c.digest), else_=None) if overlap else None
            values = {
                "digest": hashed.digest,
                "pepper": hashed.pepper,
                "previous_digest": previous,
                "previous_until": at + overlap if overlap else None,
                "rotated_at": at,
                "revision": number,
            }
            return await _changed(connection, key_id, values)

    async def revoke(self, key_id: str, at: int, *, pepper: str | None) -> Key | None:
        """Revoke it, if that was not done before. None: there is no such key.

        `pepper`: refuse to revoke the last admin key that could be used under it, with `LastAdminKey`.
        """
        async with self._store.writing() as connection:
            number = await _count(connection)
            row = (await connection.execute(select(keys).where(keys.c.id == key_id))).one_or_none()
            if row is None or row.revoked_at is not None:
                return None if row is None else _key(row)
            if row.admin and pepper is not None and not await _has_admin(connection, pepper, at, but=key_id):
                raise LastAdminKey(key_id)
            values = {"revoked_at": at, "previous_digest": None, "previous_until": None, "revision": number}
            return await _changed(connection, key_id, values)

    # -- owners ------------------------------------------------------------------------------------------------------

    async def put_owner(self, owner: Owner) -> None:
        """Add it, or put it in the place of the one of its kind and id."""
        async with self._store.writing() as connection:
            number = await _count(connection)
            values = {**_owner_columns(owner), "revision": number}
            given = {name: value for name, value in values.items() if name not in ("kind", "id")}
            put = _insert(connection, owners).values(**values)
            await connection.execute(put.on_conflict_do_update(index_elements=["kind", "id"], set_=given))

    async def get_owner(self, kind: OwnerKind, owner_id: str) -> Owner | None:
        async with self._store.reading() as connection:
            wanted = select(owners).where(owners.c.kind == kind, owners.c.id == owner_id)
            row = (await connection.execute(wanted)).one_or_none()
        return None if row is None else _owner_row(row).owner

    async def page_owners(
        self, kind: OwnerKind, limit: int, *, after: str | None = None, before: str | None = None
    ) -> OwnerPage:
        """Up to `limit` owners in the order of their ids: those that follow `after`, or those just before `before`."""
        listed = select(owners).where(owners.c.kind == kind).limit(limit + 1)
        backwards = before is not None and after is None
        if after is not None:
            listed = listed.where(owners.c.id > after)
        elif before is not None:
            listed = listed.where(owners.c.id < before)
        order = owners.c.id.desc() if backwards else owners.c.id
        async with self._store.reading() as connection:
            rows = (await connection.execute(listed.order_by(order))).all()
        found = [_owner_row(row).owner for row in rows[:limit]]
        return OwnerPage(found[::-1] if backwards else found, len(rows) > limit)

    async def remove_owner(self, kind: OwnerKind, owner_id: str) -> bool:
        """False: there was none."""
        async with self._store.writing() as connection:
            await _count(connection)
            gone = await connection.execute(delete(owners).where(owners.c.kind == kind, owners.c.id == owner_id))
            if gone.rowcount:
                await _count(connection, "owners")
            return bool(gone.rowcount)

    # -- what has changed --------------------------------------------------------------------------------------------

    async def numbers(self) -> Numbers:
        async with self._store.reading() as connection:
            rows = (await connection.execute(select(revisions.c.name, revisions.c.number))).all()
        found = {row.name: row.number for row in rows}
        return Numbers(found.get("keys", 0), found.get("owners", 0))

    async def changed_since(self, revision: int) -> list[KeyRow]:
        """The next keys that were changed after `revision`, in the order of their changes; `BATCH` at most."""
        return [_key_row(row) for row in await self._rows(_after(keys, revision))]

    async def owners_changed_since(self, revision: int) -> list[OwnerRow]:
        """The next owners that were put after `revision`, in the order of their changes; `BATCH` at most."""
        return [_owner_row(row) for row in await self._rows(_after(owners, revision))]

    # -- secrets -----------------------------------------------------------------------------------------------------

    async def secret(self, name: str, candidate: bytes) -> bytes:
        """The secret of that name; `candidate` becomes it if there is none. All processes get the same."""
        wanted = select(secrets.c.value).where(secrets.c.name == name)
        found = await self._rows(wanted)
        if not found:
            async with self._store.writing() as connection:
                added = _insert(connection, secrets).values(name=name, value=candidate)
                await connection.execute(added.on_conflict_do_nothing())
            found = await self._rows(wanted)
        value: bytes = found[0].value
        return value

    async def _rows(self, statement: Select[*tuple[Any, ...]]) -> list[Row[*tuple[Any, ...]]]:
        async with self._store.reading() as connection:
            return list((await connection.execute(statement)).all())


# -- statements --------------------------------------------------------------------------------------------------------


def _insert(connection: AsyncConnection, table: Table) -> Insert:
    """An insert that can say what happens on a conflict; the two dialects write it alike, SQLAlchemy does not."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


async def _count(connection: AsyncConnection, name: str = "keys") -> int:
    """The number of the change that this transaction makes. Waits for others that are making one."""
    first = _insert(connection, revisions).values(name=name, number=1)
    counted = first.on_conflict_do_update(index_elements=["name"], set_={"number": revisions.c.number + 1})
    number: int = (await connection.execute(counted.returning(revisions.c.number))).scalar_one()
    return number


async def _add(connection: AsyncConnection, key: Key, hashed: Hashed, at: int) -> None:
    values = {
        **_columns(msgspec.structs.asdict(key)),
        "created_at": at,
        "digest": hashed.digest,
        "pepper": hashed.pepper,
        "revision": await _count(connection),
    }
    await connection.execute(keys.insert().values(**values))


async def _changed(connection: AsyncConnection, key_id: str, values: Mapping[str, Any]) -> Key | None:
    """Change a key that was not revoked."""
    changed = update(keys).where(keys.c.id == key_id, keys.c.revoked_at.is_(None)).values(**values)
    row = (await connection.execute(changed.returning(*(keys.c[name] for name in _PUBLIC)))).one_or_none()
    return None if row is None else _key(row)


async def _has_admin(connection: AsyncConnection, pepper: str, at: int, but: str = "") -> bool:
    usable: ColumnElement[bool] = and_(
        keys.c.admin,
        keys.c.id != but,
        keys.c.pepper == pepper,
        keys.c.revoked_at.is_(None),
        or_(keys.c.expires_at.is_(None), keys.c.expires_at > at),
    )
    return (await connection.execute(select(keys.c.id).where(usable).limit(1))).first() is not None


def _after(table: Table, revision: int) -> Select[*tuple[Any, ...]]:
    return select(table).where(table.c.revision > revision).order_by(table.c.revision).limit(BATCH)


# -- rows and values ---------------------------------------------------------------------------------------------------


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Key` as its row has them: JSON, and times in milliseconds."""
    return {name: _column(name, value) for name, value in fields.items()}


def _column(name: str, value: Any) -> Any:
    if name in _TIMES:
        return None if value is None else value * 1000
    if name == "limits":
        return _limits_column(value)
    if name == "budgets":
        return _budgets_column(value)
    return list(value) if isinstance(value, tuple) else value


def _owner_columns(owner: Owner) -> dict[str, Any]:
    return {name: _column(name, value) for name, value in msgspec.structs.asdict(owner).items()}


def _limits_column(limits: Limits) -> dict[str, int]:
    return {name: value for name, value in msgspec.structs.asdict(limits).items() if value is not None}


def _budgets_column(budgets: tuple[Budget, ...]) -> list[dict[str, str]]:
    # text holds any amount exactly; a number of JSON need not
    return [{"amount": str(budget.amount), "per": budget.per} for budget in budgets]


def _budgets(column: list[dict[str, Any]]) -> tuple[Budget, ...]:
    return tuple(Budget(Money.parse(budget["amount"]), budget["per"]) for budget in column)


def _key(row: Row[*tuple[Any, ...]]) -> Key:
    fields = row._mapping
    return Key(
        id=fields["id"],
        name=fields["name"],
        admin=fields["admin"],
        models=tuple(fields["models"]),
        routes=tuple(fields["routes"]),
        tags=fields["tags"],
        user=fields["user"],
        team=fields["team"],
        limits=Limits(**fields["limits"]),
        budgets=_budgets(fields["budgets"]),
        on_disconnect=fields["on_disconnect"],
        created_at=fields["created_at"] // 1000,
        **{name: None if fields[name] is None else fields[name] // 1000 for name in _TIMES[1:]},
    )


def _key_row(row: Row[*tuple[Any, ...]]) -> KeyRow:
    return KeyRow(_key(row), Hashed(row.digest, row.pepper), row.previous_digest, row.revision)


def _owner_row(row: Row[*tuple[Any, ...]]) -> OwnerRow:
    owner = Owner(row.kind, row.id, row.name, Limits(**row.limits), _budgets(row.budgets))
    return OwnerRow(owner, row.revision)
