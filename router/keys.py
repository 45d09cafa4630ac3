"""The keys of the store as calls see them: remembered, and true within half a second of any change.

Whoever changes a key or an owner counts a number up in the same transaction. Every process asks for that number twice
a second and reads what has changed since, so that a call hardly ever waits for the store. While the store is away,
the keys that were used before go on working.
"""

import asyncio
import math
import secrets
import time
from asyncio import Future, Task
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from msgspec import Struct

from router.access import Key, Limits, Owner, OwnerKind
from router.call import Credentials, Principal
from router.errors import AuthenticationFailed, StoreUnavailable
from router.key_text import Pepper, public_id, same
from router.store.keys import BATCH, KeyRow, KeyRows, Numbers
from router.store.store import Store, StoreAway

PEPPER_VARIABLE: Final = "DELTAWAY_PEPPER"
POLL: Final = 0.5
"""Seconds between two looks at what has changed."""
LONGEST_LOOK: Final = 5.0
"""Seconds that a call waits for a look at a store that hangs."""
MOST_KEYS: Final = 100_000
"""Keys that one process remembers; of more, those that were used last."""
MOST_UNKNOWN: Final = 10_000
UNKNOWN_FOR: Final = 5.0
"""Seconds for which it is remembered that the store has no such key."""
LOOKUPS: Final = 8
"""How many ids the store is asked for at once: guesses may not take all its connections."""


class _Kept(Struct):
    """What is remembered of one key. Times are Unix seconds."""

    id: str
    revision: int
    principal: Principal
    pepper: str
    digest: bytes
    previous: bytes | None
    previous_until: float
    expires_at: float
    revoked: bool


async def pepper_of(rows: KeyRows, environ: Mapping[str, str]) -> Pepper:
    """That of the environment, else the one that the store keeps, made by whoever asks first.

    Raises `StoreAway`, and `ValueError` for a `DELTAWAY_PEPPER` that will not do.
    """
    return pepper_in(environ) or Pepper(await rows.secret("pepper", secrets.token_bytes(32)))


def pepper_in(environ: Mapping[str, str]) -> Pepper | None:
    """That of the environment. Raises `ValueError`."""
    text = environ.get(PEPPER_VARIABLE)
    if not text:
        return None
    try:
        return Pepper.chosen(text)
    except ValueError as error:
        raise ValueError(f"{PEPPER_VARIABLE} {error}") from None


class StoredKeys:
    """The `KeyBook` of one process. `clock` gives Unix seconds.

    All owners that have limits or budgets are kept in memory, and of the keys those that are used.
    """

    def __init__(
        self,
        store: Store,
        environ: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.time,
        poll: float = POLL,
        most: int = MOST_KEYS,
    ) -> None:
        """Raises `ValueError` for a `DELTAWAY_PEPPER` that will not do."""
        self._rows = KeyRows(store)
        self._environ = environ
        self._pepper = pepper_in(environ)
        self._clock = clock
        self._poll_interval = poll
        self._most = most
        self._keys: OrderedDict[str, _Kept] = OrderedDict()
        self._owners: dict[tuple[str, str], Owner] = {}
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._asking: dict[str, Task[_Kept | None]] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._looking = asyncio.Lock()
        self._seen: Numbers | None = None
        self._wanted = asyncio.Event()
        self._next: Future[bool] | None = None
        """The look at the store that begins after now; True when it could be taken."""
        self._away = False
        self._told: set[str] = set()
        self._log = structlog.get_logger("deltaway.keys")

    # -- the contract ------------------------------------------------------------------------------------------------

    def known(self, credentials: Credentials) -> Principal | None:
        text = credentials.secret
        key_id = public_id(text)
        kept = self._keys.get(key_id) if key_id is not None else None
        if kept is None or text is None:
            return None
        self._keys.move_to_end(kept.id)
        return self._checked(kept, text)

    async def find(self, credentials: Credentials) -> Principal | None:
        text = credentials.secret
        key_id = public_id(text)
        if key_id is None or text is None:
            return None
        kept = self._keys.get(key_id) or await self._ask(key_id)
        principal = None if kept is None else self._checked(kept, text)
        if kept is None or principal is not None:
            return principal
        # its secret may have been changed a moment ago; to wait costs the store nothing, whoever guesses
        await self._look(soon=False)
        kept = self._keys.get(key_id)
        return None if kept is None else self._checked(kept, text)

    def owner(self, kind: OwnerKind, name: str) -> Owner | None:
        """Raises `StoreUnavailable` as long as the owners could not be read since the start."""
        if self._seen is None:
            raise _unavailable()
        return self._owners.get((kind, name))

    # -- the life of it ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Reads the owners, and looks at what has changed until the end. Waits for no store that is away."""
        loop = asyncio.get_running_loop()
        self._next = loop.create_future()
        await self._pass()
        poll = loop.create_task(self._poll(), name="keys")
        try:
            yield
        finally:
            poll.cancel()
            with suppress(asyncio.CancelledError):
                await poll
            waiting, self._next = self._next, None
            waiting.set_result(False)

    async def refresh(self) -> None:
        """See now what has just been changed. Says nothing when the store is away."""
        with suppress(StoreUnavailable):
            await self._look(soon=True)

    async def pepper(self) -> Pepper:
        """Raises `StoreAway`."""
        if self._pepper is None:
            self._pepper = await pepper_of(self._rows, self._environ)
        return self._pepper

    # -- checking ----------------------------------------------------------------------------------------------------

    def _checked(self, kept: _Kept, text: str) -> Principal | None:
        """Whose key it is; None: its secret is another. Raises `AuthenticationFailed`."""
        pepper = self._pepper
        if pepper is None or pepper.fingerprint != kept.pepper:
            self._tell_of_pepper(kept)
            return None
        digest = pepper.digest(text)
        if not same(digest, kept.digest):
            previous = kept.previous
            if previous is None or not same(digest, previous) or self._clock() >= kept.previous_until:
                return None
        if kept.revoked:
            raise AuthenticationFailed("this API key was revoked: ask for a new one", code="api_key_revoked")
        if self._clock() >= kept.expires_at:
            raise AuthenticationFailed("this API key has expired: ask for a new one", code="api_key_expired")
        return kept.principal

    def _tell_of_pepper(self, kept: _Kept) -> None:
        if kept.id not in self._told and len(self._told) < 100:
            self._told.add(kept.id)
            self._log.error(
                "a key was made under another pepper and cannot be checked: set DELTAWAY_PEPPER to what it was then, "
                "or rotate the key",
                key=kept.id,
            )

    # -- asking the store --------------------------------------------------------------------------------------------

    async def _ask(self, key_id: str) -> _Kept | None:
        """The key, read from the store once however many wait for it. Raises `StoreUnavailable`."""
        loop = asyncio.get_running_loop()
        if self._unknown.get(key_id, -math.inf) > loop.time():
            return None
        asking = self._asking.get(key_id)
        if asking is None:
            asking = self._asking[key_id] = loop.create_task(self._read(key_id))
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        # who leaves does not take the answer away from the others
        return await asyncio.shield(asking)

    async def _read(self, key_id: str) -> _Kept | None:
        try:
            async with self._lookups:
                await self.pepper()
                if self._seen is None:
                    # what is read before the first look could change unseen
                    await self._catch_up()
                row = await self._rows.get(key_id)
            if row is None:
                self._unknown[key_id] = asyncio.get_running_loop().time() + UNKNOWN_FOR
                self._unknown.move_to_end(key_id)
                if len(self._unknown) > MOST_UNKNOWN:
                    self._unknown.popitem(last=False)
                return None
            return self._keep(row)
        except StoreAway as error:
            self._tell_of_store(error)
            raise _unavailable() from None
        finally:
            del self._asking[key_id]

    def _keep(self, row: KeyRow) -> _Kept:
        """Remember the key, unless something newer is remembered."""
        key_id = row.key.id
        kept = self._keys.get(key_id)
        if kept is None or kept.revision < row.revision:
            kept = self._keys[key_id] = _kept(row)
        self._keys.move_to_end(key_id)
        while len(self._keys) > self._most:
            self._keys.popitem(last=False)
        return kept

    # -- what has changed --------------------------------------------------------------------------------------------

    async def _look(self, *, soon: bool) -> None:
        """Wait for a look at the store that begins after now. Raises `StoreUnavailable`."""
        looked = False
        if self._next is None:
            looked = await self._pass()
        else:
            if soon:
                self._wanted.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_LOOK):
                    looked = await asyncio.shield(self._next)
        if not looked:
            raise _unavailable()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_interval):
                    await self._wanted.wait()
            self._wanted.clear()
            waiting, self._next = self._next, loop.create_future()
            looked = False
            try:
                looked = await self._pass()
            finally:
                if waiting is not None:
                    waiting.set_result(looked)

    async def _pass(self) -> bool:
        """One look. False: the store is away, and what is remembered holds."""
        try:
            await self.pepper()
            await self._catch_up()
        except StoreAway as error:
            self._tell_of_store(error)
            return False
        except Exception as error:
            self._log.error("keys could not be read by a fault of ours", exc_info=error)
            return False
        if self._away:
            self._away = False
            self._log.info("the store is back: keys are looked up again")
        return True

    async def _catch_up(self) -> None:
        async with self._looking:
            seen, numbers = self._seen, await self._rows.numbers()
            if seen != numbers:
                await self._read_changes(seen, numbers)
                self._seen = numbers

    async def _read_changes(self, seen: Numbers | None, numbers: Numbers) -> None:
        if seen is None or seen.removals != numbers.removals:
            # what was removed left nothing to read: read all
            self._owners = _bounded(await self._owners_since(0))
        elif seen.changes != numbers.changes:
            self._owners = _bounded({**self._owners, **await self._owners_since(seen.changes)})
        if seen is not None:
            await self._keys_since(seen.changes)

    async def _owners_since(self, revision: int) -> dict[tuple[str, str], Owner]:
        found: dict[tuple[str, str], Owner] = {}
        while True:
            rows = await self._rows.owners_changed_since(revision)
            found.update({(row.owner.kind, row.owner.id): row.owner for row in rows})
            if len(rows) < BATCH:
                return found
            revision = rows[-1].revision

    async def _keys_since(self, revision: int) -> None:
        while True:
            rows = await self._rows.changed_since(revision)
            for row in rows:
                self._unknown.pop(row.key.id, None)
                # one that is being read has been read before this change, for all we know
                if row.key.id in self._keys or row.key.id in self._asking:
                    self._keep(row)
            if len(rows) < BATCH:
                return
            revision = rows[-1].revision

    def _tell_of_store(self, error: StoreAway) -> None:
        if not self._away:
            self._away = True
            self._log.error("keys cannot be looked up, only those in memory work", reason=str(error))


def _bounded(owners: dict[tuple[str, str], Owner]) -> dict[tuple[str, str], Owner]:
    """Those that have limits or budgets: the others bind nobody."""
    return {place: owner for place, owner in owners.items() if owner.limits != Limits() or owner.budgets}


def _kept(row: KeyRow) -> _Kept:
    key = row.key
    return _Kept(
        key.id,
        row.revision,
        principal_of(key),
        row.hashed.pepper,
        row.hashed.digest,
        row.previous,
        key.previous_until or 0,
        math.inf if key.expires_at is None else key.expires_at,
        key.revoked_at is not None,
    )


def principal_of(key: Key) -> Principal:
    """Who calls with it."""
    return Principal(
        key=key.id,
        name=key.name,
        admin=key.admin,
        models=key.models,
        routes=key.routes,
        tags=key.tags,
        user=key.user,
        team=key.team,
        limits=key.limits,
        budgets=key.budgets,
        on_disconnect=key.on_disconnect,
    )


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("keys cannot be looked up now: send the request again in a moment", retry_after=1.0)
