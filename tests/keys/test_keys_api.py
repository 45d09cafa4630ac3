"""`/admin/keys`, `/admin/users` and `/admin/teams` over HTTP."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar
from litestar.exceptions import HTTPException

from plugins.auth import Auth, Key
from plugins.budget_rules import Amount
from router.call import Credentials, Principal
from router.dialects.openai_chat import OpenAIChat
from router.door import Door
from router.errors import AuthenticationFailed, RouterError
from router.http.errors import ErrorResponses
from router.http.keys import key_routes
from router.http.openapi import openapi_config
from router.keyring import Keyring, first_admin_key
from router.keys import StoredKeys
from router.services import Services
from router.store.store import Store
from support.stores import empty_store

NOW = 1_790_000_000.0
ROOT_KEY = "the-key-of-the-environment"
DAY = 86400
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "keys.md").read_text("utf-8")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def services(keys: StoredKeys, environ: dict[str, str]) -> Services:
    lacking: Any = None
    return Services(environ, keys, *[lacking] * 5, lambda name: name == "chat")


class Gateway:
    """The routes with the store behind them, and a client that holds a key."""

    def __init__(
        self, store: Store, clock: Clock, environ: dict[str, str], plugins: tuple[str, ...] = ("limits", "budget")
    ) -> None:
        self.clock = clock
        self.book = StoredKeys(store, environ, clock=clock)
        self.auth = Auth(Auth.Settings((Key("configured", "configured"),)), services(self.book, environ))
        ring = Keyring(store, self.book, other_admin=lambda: self.auth.has_admin_key, clock=clock)
        errors = ErrorResponses(OpenAIChat())
        self.app = Litestar(
            route_handlers=key_routes(ring, Door(self.auth), plugins=lambda: frozenset(plugins)),
            exception_handlers={
                RouterError: errors.router_error,
                HTTPException: errors.http_exception,
                Exception: errors.unexpected,
            },
            after_request=errors.numbered,
            openapi_config=openapi_config("1", {}),
            logging_config=None,
        )
        self.key: str | None = ROOT_KEY

    async def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
            if isinstance(body, bytes):
                return await client.request(method, path, content=body)
            return await client.request(method, path, json=body)

    async def done(self, method: str, path: str, body: Any = None) -> Any:
        response = await self.call(method, path, body)
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str | None]:
        """The status and the field that the error names."""
        response = await self.call(method, path, body)
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return response.status_code, error["param"]

    async def who(self, text: str) -> Principal:
        return await self.auth.authenticate(Credentials(text))


@asynccontextmanager
async def opened(store: Store, environ: dict[str, str], **options: Any) -> AsyncIterator[Gateway]:
    gateway = Gateway(store, Clock(), environ, **options)
    async with gateway.book.lifespan():
        yield gateway


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[Gateway]:
    async with opened(store, {"DELTAWAY_ADMIN_KEY": ROOT_KEY}) as gateway:
        yield gateway


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[Gateway]:
    """For what is refused before any store is asked."""
    async with empty_store("sqlite", tmp_path) as store, opened(store, {"DELTAWAY_ADMIN_KEY": ROOT_KEY}) as gateway:
        yield gateway


# -- keys ------------------------------------------------------------------------------------------------------------

FULL = {
    "name": "search",
    "models": ["openai/*", "chat"],
    "routes": ["chat*"],
    "tags": {"team": "a"},
    "user": "u1",
    "team": "t1",
    "limits": {"rpm": 60, "tpm": 1000, "parallel": 2},
    "budgets": [{"amount": "10 USD", "per": "day"}, {"amount": "0.5 CNY"}],
    "on_disconnect": "finish",
}


async def test_a_key_is_made_with_all_that_it_may_do_and_shown_once(gateway: Gateway) -> None:
    response = await gateway.call("POST", "/admin/keys", {**FULL, "expires_in": "30d"})
    made = response.json()
    assert response.headers["cache-control"] == "no-store"
    text, key_id = made.pop("key"), made["id"]
    assert text.startswith(f"{key_id}-")
    assert made == {
        **FULL,
        "object": "key",
        "id": key_id,
        "status": "active",
        "admin": False,
        "budgets": [{"amount": "10.00 USD", "per": "day"}, {"amount": "0.50 CNY", "per": "month"}],
        "created_at": int(NOW),
        "expires_at": int(NOW) + 30 * DAY,
        "rotated_at": None,
        "previous_until": None,
        "revoked_at": None,
        "warnings": [],
    }
    assert await gateway.done("GET", f"/admin/keys/{key_id}") == made
    assert (await gateway.done("GET", "/admin/keys"))["data"] == [made]
    principal = await gateway.who(text)
    assert (principal.key, principal.name, principal.limits.rpm) == (key_id, "search", 60)
    assert principal.on_disconnect == "finish"


async def test_the_example_of_the_documentation_is_what_is_answered(on_sqlite: Gateway) -> None:
    (asked,) = re.findall(r"-d '(\{\"name\": \"search\".*?\})'", DOCUMENT, re.S)
    (shown,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.S)
    answered = await on_sqlite.done("POST", "/admin/keys", json.loads(asked))
    expected = json.loads(shown)
    assert expected["key"].startswith(expected["id"])
    assert answered == {**expected, "id": answered["id"], "key": answered["key"]}


async def test_a_key_is_changed_field_by_field(gateway: Gateway) -> None:
    made = await gateway.done("POST", "/admin/keys", {**FULL, "expires_in": "30d"})
    text = made.pop("key")
    path = f"/admin/keys/{made['id']}"
    changed = await gateway.done("POST", path, {"name": "new", "user": None, "expires_at": None, "limits": {"rpm": 1}})
    assert changed == {
        **made,
        "name": "new",
        "user": None,
        "expires_at": None,
        "limits": {"rpm": 1, "tpm": None, "parallel": None},
    }
    # this process sees it at once
    assert (await gateway.who(text)).name == "new"
    assert await gateway.done("POST", path, {}) == changed


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (int(NOW) + 5, 5),
        ("2026-09-21T14:30:05Z", 1005),
        ("2026-09-21T16:30:05+02:00", 1005),
        ("2026-09-22", 35200),
    ],
)
async def test_an_expiry_is_seconds_or_a_date(gateway: Gateway, written: Any, seconds: int) -> None:
    made = await gateway.done("POST", "/admin/keys", {"name": "x", "expires_at": written})
    assert made["expires_at"] == int(NOW) + seconds
    gateway.clock.now = NOW + seconds
    assert (await gateway.done("GET", f"/admin/keys/{made['id']}"))["status"] == "expired"
    with pytest.raises(AuthenticationFailed, match="expired"):
        await gateway.who(made["key"])
    assert await gateway.refused("POST", f"/admin/keys/{made['id']}/rotate") == (400, None)


async def test_a_rotated_key_has_two_secrets_for_a_while(gateway: Gateway) -> None:
    made = await gateway.done("POST", "/admin/keys", {"name": "x"})
    path = f"/admin/keys/{made['id']}"
    rotated = await gateway.done("POST", f"{path}/rotate", {"overlap": "1h"})
    assert rotated["key"] != made["key"]
    assert (rotated["rotated_at"], rotated["previous_until"]) == (int(NOW), int(NOW) + 3600)
    assert (await gateway.who(made["key"])).key == (await gateway.who(rotated["key"])).key == made["id"]
    gateway.clock.now += 3600
    assert (await gateway.done("GET", path))["previous_until"] is None
    with pytest.raises(AuthenticationFailed):
        await gateway.who(made["key"])
    # a day is the default, and nothing at all can be said
    assert (await gateway.done("POST", f"{path}/rotate"))["previous_until"] == int(gateway.clock.now) + DAY
    assert (await gateway.done("POST", f"{path}/rotate", {"overlap": "0s"}))["previous_until"] is None


async def test_a_revoked_key_is_refused_and_stays_in_the_list(gateway: Gateway) -> None:
    made = await gateway.done("POST", "/admin/keys", {"name": "x"})
    path = f"/admin/keys/{made['id']}"
    await gateway.who(made["key"])
    revoked = await gateway.done("DELETE", path)
    assert (revoked["status"], revoked["revoked_at"]) == ("revoked", int(NOW))
    gateway.clock.now += 60
    assert await gateway.done("DELETE", path) == revoked
    with pytest.raises(AuthenticationFailed, match="revoked"):
        await gateway.who(made["key"])
    assert (await gateway.done("GET", "/admin/keys"))["data"] == [revoked]
    assert await gateway.refused("POST", path, {"name": "y"}) == (400, None)
    assert await gateway.refused("POST", f"{path}/rotate") == (400, None)


async def test_the_list_is_paged_both_ways(gateway: Gateway) -> None:
    ids = []
    for number in range(5):
        gateway.clock.now += 1
        ids.insert(0, (await gateway.done("POST", "/admin/keys", {"name": str(number)}))["id"])
    page = await gateway.done("GET", "/admin/keys?limit=2")
    assert page["object"] == "list"
    assert [key["id"] for key in page["data"]] == ids[:2] == [page["first_id"], page["last_id"]]
    assert page["has_more"] is True
    page = await gateway.done("GET", f"/admin/keys?limit=3&after={ids[1]}")
    assert ([key["id"] for key in page["data"]], page["has_more"]) == (ids[2:], False)
    page = await gateway.done("GET", f"/admin/keys?limit=2&before={ids[3]}")
    assert ([key["id"] for key in page["data"]], page["has_more"]) == (ids[1:3], True)


async def test_an_empty_list_is_a_list(gateway: Gateway) -> None:
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    for path in ("/admin/keys", "/admin/users", "/admin/teams"):
        assert await gateway.done("GET", path) == empty


# -- owners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["user", "team"])
@pytest.mark.parametrize("owner_id", ["u1", "ann@example.com", "a/b c", "Zoë"])
async def test_owners_are_set_changed_and_removed(gateway: Gateway, kind: Any, owner_id: str) -> None:
    path = f"/admin/{kind}s/{owner_id}"
    body = {"name": "Ann", "limits": {"rpm": 5}, "budgets": [{"amount": "1 EUR", "per": "total"}]}
    put = await gateway.done("PUT", path, body)
    assert put == {
        "id": owner_id,
        "object": kind,
        "name": "Ann",
        "limits": {"rpm": 5, "tpm": None, "parallel": None},
        "budgets": [{"amount": "1.00 EUR", "per": "total"}],
        "warnings": [],
    }
    assert await gateway.done("GET", path) == put
    assert (await gateway.done("GET", f"/admin/{kind}s"))["data"] == [put]
    owner = gateway.book.owner(kind, owner_id)
    assert owner is not None
    assert owner.limits.rpm == 5
    # a body that was forgotten removes nothing
    response = await gateway.call("PUT", path, b"")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "missing_required_parameter")
    assert "`{}`" in response.json()["error"]["message"]
    assert await gateway.done("GET", path) == put
    # put replaces the whole
    assert (await gateway.done("PUT", path, {"limits": {"tpm": 9}}))["budgets"] == []
    assert await gateway.done("DELETE", path) == {"id": owner_id, "object": f"{kind}.deleted", "deleted": True}
    assert gateway.book.owner(kind, owner_id) is None
    assert await gateway.refused("GET", path) == (404, None)
    assert await gateway.refused("DELETE", path) == (404, None)


# -- who may ---------------------------------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/admin/keys"),
    ("GET", "/admin/keys"),
    ("GET", "/admin/keys/dw-00000000"),
    ("POST", "/admin/keys/dw-00000000"),
    ("POST", "/admin/keys/dw-00000000/rotate"),
    ("DELETE", "/admin/keys/dw-00000000"),
    *((method, f"/admin/{kind}/x") for kind in ("users", "teams") for method in ("GET", "PUT", "DELETE")),
    ("GET", "/admin/users"),
    ("GET", "/admin/teams"),
]


async def test_every_route_is_for_admin_keys_alone(gateway: Gateway) -> None:
    plain = (await gateway.done("POST", "/admin/keys", {"name": "plain"}))["key"]
    paths = {(method, route.path) for route in gateway.app.routes for method in getattr(route, "methods", ())}
    served = {pair for pair in paths if pair[1].startswith("/admin") and pair[0] != "OPTIONS"}
    assert len(served) == len(ROUTES)
    for method, path in ROUTES:
        # a body that is wrong is not even looked at
        for key, status in ((None, 401), ("wrong", 401), (plain, 403), ("configured", 403)):
            gateway.key = key
            assert await gateway.refused(method, path, b"{{{") == (status, None)


async def test_an_admin_key_of_the_store_opens_the_routes(gateway: Gateway) -> None:
    made = await gateway.done("POST", "/admin/keys", {"name": "second", "admin": True})
    gateway.key = made["key"]
    assert len((await gateway.done("GET", "/admin/keys"))["data"]) == 1


async def test_the_last_admin_key_cannot_be_revoked_unless_the_environment_has_one(store: Store) -> None:
    async with opened(store, {}) as gateway:
        gateway.key = await first_admin_key(store, {}, clock=gateway.clock)
        (first,) = (await gateway.done("GET", "/admin/keys"))["data"]
        assert (first["name"], first["admin"]) == ("admin", True)
        assert await gateway.refused("DELETE", f"/admin/keys/{first['id']}") == (400, None)
        second = await gateway.done("POST", "/admin/keys", {"name": "second", "admin": True})
        assert (await gateway.done("DELETE", f"/admin/keys/{first['id']}"))["status"] == "revoked"
        assert (await gateway.call("GET", "/admin/keys")).status_code == 401
    async with opened(store, {"DELTAWAY_ADMIN_KEY": ROOT_KEY}) as gateway:
        assert (await gateway.done("DELETE", f"/admin/keys/{second['id']}"))["status"] == "revoked"


async def test_the_door_asks_each_authenticator_in_turn() -> None:
    class Knows:
        def __init__(self, **keys: Principal) -> None:
            self.keys = keys

        async def authenticate(self, credentials: Credentials) -> Principal:
            if credentials.secret not in self.keys:
                raise AuthenticationFailed(f"not one of {len(self.keys)}")
            return self.keys[credentials.secret]

    own, admins = Knows(a=Principal("a"), b=Principal("b")), Knows(root=Principal("root", admin=True))
    door = Door(own, admins)
    assert (await door.caller(Credentials("b"))).key == "b"
    assert (await door.admin(Credentials("root"))).key == "root"
    with pytest.raises(AuthenticationFailed, match="not one of 2"):
        await door.caller(Credentials("c"))


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"nmae": "x"}, "nmae"),
        ({"admin": "yes"}, "admin"),
        ({"models": "openai/*"}, "models"),
        ({"models": ["ok", ""]}, "models[1]"),
        ({"models": ["a b"]}, "models[0]"),
        ({"routes": ["chat["]}, "routes[0]"),
        ({"routes": ["[]"]}, "routes[0]"),
        ({"models": ["m"] * 101}, "models"),
        ({"tags": {"a,b": "c"}}, "tags"),
        ({"tags": {"a": 1}}, "tags[...]"),
        ({"tags": {str(n): "x" for n in range(17)}}, "tags"),
        ({"user": ""}, "user"),
        ({"team": "t\0"}, "team"),
        ({"on_disconnect": "stay"}, "on_disconnect"),
        ({"limits": {"rpm": -1}}, "limits.rpm"),
        ({"limits": {"rpm": 0}}, "limits.rpm"),
        ({"limits": {"tpm": 1.5}}, "limits.tpm"),
        ({"limits": {"parallel": 10**13}}, "limits.parallel"),
        ({"limits": {"rpn": 1}}, "limits.rpn"),
        ({"budgets": [{"amount": "10 USD"}, {"amount": "10 XYZ"}]}, "budgets[1].amount"),
        ({"budgets": [{"amount": "-1 USD"}]}, "budgets[0].amount"),
        ({"budgets": [{"amount": 10}]}, "budgets[0].amount"),
        ({"budgets": [{"per": "day"}]}, "budgets[0].amount"),
        ({"budgets": [{"amount": "1 USD", "per": "week"}]}, "budgets[0].per"),
        ({"budgets": [{"amount": "1 USD"}, {"amount": "2 USD"}]}, "budgets[1]"),
        ({"expires_in": "30"}, "expires_in"),
        ({"expires_in": "1.5d"}, "expires_in"),
        ({"expires_in": "0d"}, "expires_in"),
        ({"expires_in": "4000d"}, "expires_in"),
        ({"expires_in": 30}, "expires_in"),
        ({"expires_in": "1d", "expires_at": int(NOW) + 5}, "expires_in"),
        ({"expires_at": "2030-02-30"}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": int(NOW)}, "expires_at"),
        ({"expires_at": "2001-01-01"}, "expires_at"),
        ({"expires_at": 10**15}, "expires_at"),
        ({"expires_at": True}, "expires_at"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_wrong_field_is_named(on_sqlite: Gateway, change: Any, param: str) -> None:
    assert await on_sqlite.refused("POST", "/admin/keys", {"name": "x", **change}) == (400, param)
    if "admin" not in change:
        made = await on_sqlite.done("POST", "/admin/keys", {"name": "x"})
        assert await on_sqlite.refused("POST", f"/admin/keys/{made['id']}", change) == (400, param)
    assert len((await on_sqlite.done("GET", "/admin/keys"))["data"]) == ("admin" not in change)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000, b'{"name": "\\ud800"}'])
async def test_a_body_that_is_no_key_is_refused(on_sqlite: Gateway, body: bytes) -> None:
    status, _ = await on_sqlite.refused("POST", "/admin/keys", body)
    assert status == 400


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "/rotate", {"overlap": "1"}, "overlap"),
        ("POST", "/rotate", {"overlap": "-1h"}, "overlap"),
        ("POST", "/rotate", {"overlap": "100d"}, "overlap"),
        ("POST", "/rotate", {"overlpa": "1h"}, "overlpa"),
        ("POST", "", {"admin": True}, "admin"),
    ],
)
async def test_a_wrong_change_is_named(on_sqlite: Gateway, method: str, path: str, body: Any, param: str) -> None:
    made = await on_sqlite.done("POST", "/admin/keys", {"name": "x"})
    assert await on_sqlite.refused(method, f"/admin/keys/{made['id']}{path}", body) == (400, param)
    made.pop("key")
    assert await on_sqlite.done("GET", f"/admin/keys/{made['id']}") == made


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limt=5", "limt"),
        ("after=dw-00000000", "after"),
        ("before=dw-00000000", "before"),
        ("after=", "after"),
        ("after=%00", "after"),
        ("after=a&before=b", "before"),
    ],
)
async def test_a_page_that_is_none_is_named(on_sqlite: Gateway, query: str, param: str) -> None:
    assert await on_sqlite.refused("GET", f"/admin/keys?{query}") == (400, param)


@pytest.mark.parametrize("key_id", ["dw-00000000", "x", "%00", "dw-0000000%C0", "x" * 5000])
async def test_a_key_that_is_not_there_is_404(on_sqlite: Gateway, key_id: str) -> None:
    path = f"/admin/keys/{key_id}"
    for method, suffix in (("GET", ""), ("POST", ""), ("DELETE", ""), ("POST", "/rotate")):
        assert await on_sqlite.refused(method, path + suffix, {} if method == "POST" else None) == (404, None)


@pytest.mark.parametrize("owner_id", ["%00", "%20", "x" * 201, "a%0Ab"])
async def test_an_owner_that_cannot_be_is_refused(on_sqlite: Gateway, owner_id: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert await on_sqlite.refused(method, f"/admin/users/{owner_id}", {}) == (400, "id")


async def test_bad_limits_of_an_owner_are_named(on_sqlite: Gateway) -> None:
    assert await on_sqlite.refused("PUT", "/admin/users/u", {"limits": {"rpm": -5}}) == (400, "limits.rpm")
    assert await on_sqlite.refused("PUT", "/admin/users/u", {"budget": []}) == (400, "budget")
    assert await on_sqlite.refused("PUT", "/admin/teams/t", {"budgets": [{"amount": "9 BTC"}]}) == (
        400,
        "budgets[0].amount",
    )


# -- the store away, and the description -----------------------------------------------------------------------------


async def test_without_the_store_the_answer_is_503_and_says_what_to_do(gateway: Gateway, store: Store) -> None:
    await store.close()
    for method, path in ROUTES:
        body = {"name": "x"} if path == "/admin/keys" and method == "POST" else {}
        status, _ = await gateway.refused(method, path, body if method in ("POST", "PUT") else None)
        assert status == 503


async def test_the_bodies_and_parameters_are_described(gateway: Gateway) -> None:
    schema = await gateway.done("GET", "/schema/openapi.json")
    create = schema["paths"]["/admin/keys"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert create["required"] == ["name"]
    assert {"models", "limits", "budgets", "expires_in", "admin"} <= set(create["properties"])
    for kind in ("users", "teams"):
        assert schema["paths"][f"/admin/{kind}/{{owner_id}}"]["put"]["requestBody"]["required"] is True
    assert {"rpm", "tpm", "parallel"} == set(create["properties"]["limits"]["properties"])
    listed = schema["paths"]["/admin/keys"]["get"]["parameters"]
    assert {parameter["name"] for parameter in listed} == {"limit", "after", "before"}
    operations = [
        operation["operationId"]
        for path, operations_of in schema["paths"].items()
        for operation in operations_of.values()
        if isinstance(operation, dict) and "operationId" in operation and path.startswith("/admin/")
    ]
    assert len(operations) == len(set(operations)) == len(ROUTES)
    assert "key" in str(schema["components"]["schemas"])


# -- what is not enforced ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugins", "fields"),
    [((), ["`limits`", "`budgets`"]), (("auth", "limits"), ["`budgets`"]), (("budget",), ["`limits`"])],
)
async def test_what_no_plugin_enforces_is_said(tmp_path: Path, plugins: tuple[str, ...], fields: list[str]) -> None:
    environ = {"DELTAWAY_ADMIN_KEY": ROOT_KEY}
    bounds = {"limits": {"rpm": 1}, "budgets": [{"amount": "1 USD"}]}
    async with empty_store("sqlite", tmp_path) as store, opened(store, environ, plugins=plugins) as gateway:
        plain = await gateway.done("POST", "/admin/keys", {"name": "x"})
        assert plain["warnings"] == []
        answers = [
            await gateway.done("POST", "/admin/keys", {"name": "y", **bounds}),
            await gateway.done("POST", f"/admin/keys/{plain['id']}", bounds),
            await gateway.done("PUT", "/admin/users/u", bounds),
            await gateway.done("PUT", "/admin/teams/t", bounds),
        ]
    for answer in answers:
        assert [warning.split()[0] for warning in answer["warnings"]] == fields
        assert all("is kept, but not enforced: put `" in warning for warning in answer["warnings"])


async def test_a_budget_is_bounded_as_the_rules_are(on_sqlite: Gateway) -> None:
    most = {"budgets": [{"amount": "1000000000 IDR"}]}
    more = {"budgets": [{"amount": "1000000000.000000001 IDR"}]}
    assert Amount.parse("1000000000 IDR")
    with pytest.raises(ValueError, match="must be at most 1000000000 IDR"):
        Amount.parse("1000000000.000000001 IDR")
    for method, path, body in (("POST", "/admin/keys", {"name": "x"}), ("PUT", "/admin/users/u", {})):
        await on_sqlite.done(method, path, body | most)
        assert await on_sqlite.refused(method, path, body | more) == (400, "budgets[0].amount")


async def test_a_word_that_is_not_known_is_answered_with_those_that_are(on_sqlite: Gateway) -> None:
    body = {"budgets": [{"amount": "1 USD", "per": "week"}]}
    for method, path in (("PUT", "/admin/users/ann"), ("PUT", "/admin/teams/t"), ("POST", "/admin/keys")):
        error = (await on_sqlite.call(method, path, {**body, "name": "x"})).json()["error"]
        assert error["param"] == "budgets[0].per"
        assert "'week' is not a known value (known: day, month, total)" in error["message"]
