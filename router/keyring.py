"""What operators do with keys and their owners: make, look at, change, rotate, revoke."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from msgspec import Struct

from router.access import ENFORCERS, Key, Owner, OwnerKind
from router.errors import InvalidRequest, NotFound, StoreUnavailable
from router.key_text import is_public_id, mint
from router.keys import StoredKeys, pepper_of
from router.store.keys import Hashed, KeyPage, KeyRows, LastAdminKey, OwnerPage
from router.store.store import Store, StoreAway

ADMIN_VARIABLE: Final = "DELTAWAY_ADMIN_KEY"
FIRST_ADMIN: Final = "admin"
"""The name of the key that the first start makes."""


class Issued(Struct, frozen=True):
    """A key with its text, which nobody can read again."""

    key: Key
    text: str

    def __repr__(self) -> str:
        return f"Issued({self.key.id!r}, …)"


class Keyring:
    """Raises `StoreUnavailable` wherever the store cannot be reached, `NotFound` for a key or owner that is not there.

    `book` is this process's memory of the keys: it sees a change before the change is answered, the other processes
    within a second. `other_admin`: whether there is an admin key outside of the store; without one the last admin key
    cannot be revoked. `clock` gives Unix seconds.
    """

    def __init__(
        self, store: Store, book: StoredKeys, *, other_admin: Callable[[], bool], clock: Callable[[], float] = time.time
    ) -> None:
        self._rows = KeyRows(store)
        self._book = book
        self._other_admin = other_admin
        self._clock = clock

    # -- keys --------------------------------------------------------------------------------------------------------

    async def create(self, key: Key) -> Issued:
        """A new key. `key` says all but its id and its times."""
        at = self._now()
        with _reached():
            pepper = await self._book.pepper()
            minted = mint(pepper)
            made = msgspec.structs.replace(key, id=minted.id, created_at=at // 1000)
            await self._rows.add(made, Hashed(minted.digest, pepper.fingerprint), at)
        return Issued(made, minted.text)

    async def get(self, key_id: str) -> Key:
        with _reached():
            row = await self._rows.get(key_id) if is_public_id(key_id) else None
        if row is None:
            raise _no_key(key_id)
        return row.key

    async def page(self, limit: int, *, after: str | None = None, before: str | None = None) -> KeyPage:
        """The newest first. Raises `InvalidRequest` for a cursor that is no key's id."""
        with _reached():
            page = await self._rows.page(limit, after=after, before=before)
        if page is None:
            raise InvalidRequest(
                "no key has this key_id, so no page begins there", param="before" if after is None else "after"
            )
        return page

    async def change(self, key_id: str, fields: Mapping[str, Any]) -> Key:
        """Give fields of `Key` other values. Raises `InvalidRequest` if it was revoked."""
        await self.get(key_id)
        with _reached():
            changed = await self._rows.change(key_id, fields)
        return await self._seen(changed or await self._no_longer(key_id))

    async def rotate(self, key_id: str, overlap: float) -> Issued:
        """A new secret; the one before stays good for `overlap` seconds. Raises `InvalidRequest` if it was revoked,
        or has expired."""
        at = self._now()
        key = await self.get(key_id)
        if key.expires_at is not None and key.expires_at * 1000 <= at and key.revoked_at is None:
            raise InvalidRequest(
                f"the key `{key_id}` has expired, with any secret: set `expires_at` first", code="key_expired"
            )
        with _reached():
            pepper = await self._book.pepper()
            minted = mint(pepper, key_id)
            hashed = Hashed(minted.digest, pepper.fingerprint)
            rotated = await self._rows.rotate(key_id, hashed, at, round(overlap * 1000))
        return Issued(await self._seen(rotated or await self._no_longer(key_id)), minted.text)

    async def revoke(self, key_id: str) -> Key:
        """For ever, and at once. Does nothing the second time. Raises `InvalidRequest` for the last admin key."""
        await self.get(key_id)
        with _reached():
            pepper = None if self._other_admin() else (await self._book.pepper()).fingerprint
            try:
                revoked = await self._rows.revoke(key_id, self._now(), pepper=pepper)
            except LastAdminKey:
                raise InvalidRequest(
                    f"`{key_id}` is the last admin key: make another one first, or set {ADMIN_VARIABLE}",
                    code="last_admin_key",
                ) from None
        if revoked is None:
            raise _no_key(key_id)
        return await self._seen(revoked)

    # -- owners ------------------------------------------------------------------------------------------------------

    async def put_owner(self, owner: Owner) -> Owner:
        with _reached():
            await self._rows.put_owner(owner)
        await self._book.refresh()
        return owner

    async def owner(self, kind: OwnerKind, owner_id: str) -> Owner:
        with _reached():
            owner = await self._rows.get_owner(kind, owner_id)
        if owner is None:
            raise _no_owner(kind, owner_id)
        return owner

    async def owners(
        self, kind: OwnerKind, limit: int, *, after: str | None = None, before: str | None = None
    ) -> OwnerPage:
        with _reached():
            return await self._rows.page_owners(kind, limit, after=after, before=before)

    async def remove_owner(self, kind: OwnerKind, owner_id: str) -> None:
        with _reached():
            removed = await self._rows.remove_owner(kind, owner_id)
        if not removed:
            raise _no_owner(kind, owner_id)
        await self._book.refresh()

    # ----------------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Unix seconds."""
        return self._clock()

    def _now(self) -> int:
        return int(self._clock() * 1000)

    async def _seen(self, key: Key) -> Key:
        await self._book.refresh()
        return key

    async def _no_longer(self, key_id: str) -> Key:
        """Why a key could not be changed."""
        await self.get(key_id)
        raise InvalidRequest(
            f"the key `{key_id}` was revoked, and that is for ever: make a new one", code="key_revoked"
        )


async def first_admin_key(
    store: Store, environ: Mapping[str, str], *, clock: Callable[[], float] = time.time
) -> str | None:
    """The text of a new admin key, to be shown once; None if one is set or there is one in the store.

    Of several processes that start at once, one makes it. Raises `StoreAway`, and `ValueError` for a
    `DELTAWAY_PEPPER` that will not do.
    """
    if environ.get(ADMIN_VARIABLE):
        return None
    rows, at = KeyRows(store), int(clock() * 1000)
    pepper = await pepper_of(rows, environ)
    if await rows.has_admin(pepper.fingerprint, at):
        return None
    minted = mint(pepper)
    key = Key(id=minted.id, name=FIRST_ADMIN, admin=True, created_at=at // 1000)
    made = await rows.add_first_admin(key, Hashed(minted.digest, pepper.fingerprint), at)
    return minted.text if made else None


async def unenforced(store: Store, plugins: Collection[str]) -> list[str]:
    """What the store says of keys that no plugin in the list holds them to, in words. Raises `StoreAway`."""
    bounds = await KeyRows(store).bounds()
    return [
        f"keys or their owners have {name}, which do not hold: put `{ENFORCERS[name]}` into the list of plugins"
        for name in sorted(bounds)
        if ENFORCERS[name] not in plugins
    ]


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except StoreAway as error:
        # operators may know where it is, and what to do
        raise StoreUnavailable(str(error), retry_after=1.0) from None


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"there is no key `{key_id[:40]}`: GET /admin/keys lists them", code="key_not_found")


def _no_owner(kind: OwnerKind, owner_id: str) -> NotFound:
    return NotFound(
        f"there is nothing on the {kind} `{owner_id[:80]}`: PUT sets limits and budgets", code=f"{kind}_not_found"
    )
