"""`/admin/keys`, `/admin/users` and `/admin/teams`: keys and their owners, for whoever holds an admin key."""

from collections.abc import Callable, Set
from typing import Any, Final, TypeAlias

from litestar import Request, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from router.access import ENFORCERS, Key, OwnerKind
from router.door import Door
from router.http.access_bodies import (
    KeyBody,
    NewKeyBody,
    OwnerBody,
    RotationBody,
    checked_id,
    key_fields,
    new_key,
    overlap_of,
    owner_of,
)
from router.http.access_views import (
    KeyIssued,
    KeyList,
    KeyShown,
    OwnerList,
    OwnerRemoved,
    OwnerShown,
    key_issued,
    key_shown,
    owner_shown,
)
from router.http.cursor import read_cursor
from router.http.described import CURSOR, described
from router.http.json_body import json_body
from router.http.request import read_head
from router.keyring import Keyring

Plugins: TypeAlias = Callable[[], Set[str]]
_SECRET: Final = {"cache-control": "no-store"}


def _all_enforcers() -> Set[str]:
    return frozenset(ENFORCERS.values())


def key_routes(keyring: Keyring, door: Door, *, plugins: Plugins = _all_enforcers) -> list[HTTPRouteHandler]:
    """The handlers. They need an admin key, whatever the list of plugins says. `plugins` are the names of those that
    run at the time: an answer warns of what none of them enforces."""

    def shown(key: Key) -> KeyShown:
        return key_shown(key, keyring.now(), plugins())

    @post(
        "/admin/keys",
        summary="Make a key",
        tags=["keys"],
        status_code=200,
        operation_class=described(NewKeyBody),
        response_headers=_SECRET,
    )
    async def create_key(request: Request[Any, Any, Any]) -> KeyIssued:
        """The only answer that holds the key itself, in `key`."""
        await _admit(door, request)
        issued = await keyring.create(new_key(await json_body(request, NewKeyBody), keyring.now()))
        return key_issued(issued.key, issued.text, keyring.now(), plugins())

    @get("/admin/keys", summary="List keys, the newest first", tags=["keys"], operation_class=described(query=CURSOR))
    async def list_keys(request: Request[Any, Any, Any]) -> KeyList:
        await _admit(door, request)
        cursor = read_cursor(request)
        page = await keyring.page(cursor.limit, after=cursor.after, before=cursor.before)
        data = [shown(key) for key in page.keys]
        return KeyList(data=data, first_id=_first(data), last_id=_last(data), has_more=page.more)

    @get("/admin/keys/{key_id:str}", summary="Retrieve a key", tags=["keys"])
    async def retrieve_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> KeyShown:
        await _admit(door, request)
        return shown(await keyring.get(key_id))

    @post(
        "/admin/keys/{key_id:str}",
        summary="Change a key: what is left out stays as it is",
        tags=["keys"],
        status_code=200,
        operation_class=described(KeyBody),
    )
    async def change_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> KeyShown:
        await _admit(door, request)
        fields = key_fields(await json_body(request, KeyBody), keyring.now())
        return shown(await keyring.change(key_id, fields))

    @post(
        "/admin/keys/{key_id:str}/rotate",
        summary="Give a key a new secret",
        tags=["keys"],
        status_code=200,
        operation_class=described(RotationBody),
        response_headers=_SECRET,
    )
    async def rotate_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> KeyIssued:
        """The secret before stays good for `overlap`."""
        await _admit(door, request)
        issued = await keyring.rotate(key_id, overlap_of(await json_body(request, RotationBody)))
        return key_issued(issued.key, issued.text, keyring.now(), plugins())

    @delete("/admin/keys/{key_id:str}", summary="Revoke a key", tags=["keys"], status_code=200)
    async def revoke_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> KeyShown:
        """For ever. It stays in the list, so that its calls keep their name."""
        await _admit(door, request)
        return shown(await keyring.revoke(key_id))

    return [
        create_key,
        list_keys,
        retrieve_key,
        change_key,
        rotate_key,
        revoke_key,
        *_owner_routes(keyring, door, plugins, "user"),
        *_owner_routes(keyring, door, plugins, "team"),
    ]


def _owner_routes(keyring: Keyring, door: Door, plugins: Plugins, kind: OwnerKind) -> list[HTTPRouteHandler]:
    """What all keys of one user or team may do together."""
    root, tags = f"/admin/{kind}s", [f"{kind}s"]
    one = root + "/{owner_id:path}"

    @get(
        root,
        name=f"list_{kind}s",
        operation_id=f"List{kind.title()}s",
        summary=f"List {kind}s, by their ids",
        tags=tags,
        operation_class=described(query=CURSOR),
    )
    async def list_owners(request: Request[Any, Any, Any]) -> OwnerList:
        await _admit(door, request)
        cursor = read_cursor(request)
        page = await keyring.owners(kind, cursor.limit, after=cursor.after, before=cursor.before)
        data = [owner_shown(owner, plugins()) for owner in page.owners]
        return OwnerList(data=data, first_id=_first(data), last_id=_last(data), has_more=page.more)

    @get(one, operation_id=f"Retrieve{kind.title()}", summary=f"Retrieve a {kind}", tags=tags)
    async def retrieve_owner(request: Request[Any, Any, Any], owner_id: FromPath[str]) -> OwnerShown:
        await _admit(door, request)
        return owner_shown(await keyring.owner(kind, checked_id(owner_id.removeprefix("/"))), plugins())

    @put(
        one,
        operation_id=f"Put{kind.title()}",
        summary=f"Set the limits and budgets of a {kind}",
        tags=tags,
        operation_class=described(OwnerBody, required=True),
    )
    async def put_owner(request: Request[Any, Any, Any], owner_id: FromPath[str]) -> OwnerShown:
        await _admit(door, request)
        owner = owner_of(kind, owner_id.removeprefix("/"), await json_body(request, OwnerBody, required=True))
        return owner_shown(await keyring.put_owner(owner), plugins())

    @delete(
        one,
        operation_id=f"Remove{kind.title()}",
        summary=f"Remove the limits and budgets of a {kind}",
        tags=tags,
        status_code=200,
    )
    async def remove_owner(request: Request[Any, Any, Any], owner_id: FromPath[str]) -> OwnerRemoved:
        await _admit(door, request)
        name = checked_id(owner_id.removeprefix("/"))
        await keyring.remove_owner(kind, name)
        return OwnerRemoved(name, "user.deleted" if kind == "user" else "team.deleted")

    return [list_owners, retrieve_owner, put_owner, remove_owner]


async def _admit(door: Door, request: Request[Any, Any, Any]) -> None:
    """Before anything else of the request is read."""
    await door.admin(read_head(request.scope).credentials)


def _first(data: list[KeyShown] | list[OwnerShown]) -> str | None:
    return data[0].id if data else None


def _last(data: list[KeyShown] | list[OwnerShown]) -> str | None:
    return data[-1].id if data else None
