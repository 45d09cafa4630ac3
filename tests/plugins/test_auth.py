"""Who may call."""

import asyncio
import gc
from typing import Any

import msgspec
import pytest

from plugins.auth import ADMIN_VARIABLE, Auth, Key
from router.call import Call, Credentials, Events, Principal
from router.errors import AuthenticationFailed, PermissionDenied, StoreUnavailable
from router.plugin import Authenticator, compose
from router.services import Services
from tests.plugins.calls import ANSWER, a_call, collect, vendor

OWN = "dw-ab12-" + "x" * 43
ROUTES = ("chat", "chat-2")


class Book:
    """The keys of the store: `remembered` ones are known without waiting, the others are found."""

    def __init__(self, remembered: dict[str, Principal] | None = None, kept: dict[str, Any] | None = None) -> None:
        self.remembered, self.kept = remembered or {}, kept or {}
        self.asked: list[Credentials] = []

    def known(self, credentials: Credentials) -> Principal | None:
        return self.remembered.get(credentials.secret or "")

    async def find(self, credentials: Credentials) -> Principal | None:
        self.asked.append(credentials)
        await asyncio.sleep(0)
        found: Principal | Exception | None = self.kept.get(credentials.secret or "")
        if isinstance(found, Exception):
            raise found
        return found


def auth(*keys: Key, environ: dict[str, str] | None = None, book: Book | None = None, **settings: Any) -> Auth:
    lacking: Any = None
    lent: Any = book or Book()
    services = Services(environ or {}, lent, *[lacking] * 5, lambda name: name in ROUTES)
    return Auth(Auth.Settings(keys=keys, **settings), services)


def test_it_is_asked_by_other_routes_too() -> None:
    assert isinstance(auth(Key("k", "team")), Authenticator)


async def test_a_key_of_the_configuration_is_known_by_its_name() -> None:
    plugin = auth(Key("secret-1", "web"), Key("secret-2", "batch", ("openai/*",)))
    assert await plugin.authenticate(Credentials("secret-1")) == Principal("web", "web")
    assert await plugin.authenticate(Credentials("secret-2")) == Principal("batch", "batch", models=("openai/*",))


async def test_a_key_of_the_configuration_says_what_becomes_of_calls_whose_client_leaves() -> None:
    plugin = auth(Key("secret-1", "web", on_disconnect="finish"))
    assert (await plugin.authenticate(Credentials("secret-1"))).on_disconnect == "finish"


async def test_a_key_made_by_the_gateway_is_known_by_its_public_id() -> None:
    assert (await auth(Key(OWN, "web")).authenticate(Credentials(OWN))).key == "dw-ab12"


@pytest.mark.parametrize(
    ("settings", "environ", "key"),
    [
        ({}, {ADMIN_VARIABLE: "from-env"}, "from-env"),
        ({"admin_key": ""}, {ADMIN_VARIABLE: "from-env"}, "from-env"),
        ({"admin_key": "from-file"}, {ADMIN_VARIABLE: "from-env"}, "from-file"),
    ],
)
async def test_the_admin_key_may_do_everything(settings: Any, environ: dict[str, str], key: str) -> None:
    plugin = auth(environ=environ, **settings)
    principal = await plugin.authenticate(Credentials(key))
    assert principal == Principal("admin", "admin", admin=True)
    assert principal.may_use("any/model", route=False)
    assert plugin.has_admin_key


async def test_a_key_of_the_store_is_known_beside_the_configured_ones() -> None:
    remembered, kept = Principal("dw-00000001", "one"), Principal("dw-00000002", "two")
    book = Book({"remembered": remembered}, {"kept": kept})
    plugin = auth(Key("secret-1", "web"), book=book)
    assert await plugin.authenticate(Credentials("remembered")) is remembered
    assert await plugin.authenticate(Credentials("secret-1")) == Principal("web", "web")
    assert not book.asked
    assert await plugin.authenticate(Credentials("kept")) is kept
    assert not plugin.has_admin_key


@pytest.mark.parametrize("secret", [None, ""])
async def test_no_key_is_refused_and_told_how_to_send_one(secret: str | None) -> None:
    with pytest.raises(AuthenticationFailed, match="Authorization: Bearer") as refused:
        await auth(Key("k", "team")).authenticate(Credentials(secret))
    assert refused.value.code == "missing_api_key"


@pytest.mark.parametrize("secret", ["wrong", "secret-", "secret-11", "SECRET-1", "\udcff", "ключ"])
async def test_a_wrong_key_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        await auth(Key("secret-1", "team")).authenticate(Credentials(secret))
    assert secret not in refused.value.message
    assert refused.value.status == 401


async def test_where_no_key_is_configured_those_of_the_store_work() -> None:
    plugin = auth(book=Book({}, {"kept": Principal("dw-00000002", "two")}))
    assert (await plugin.authenticate(Credentials("kept"))).name == "two"
    with pytest.raises(AuthenticationFailed):
        await plugin.authenticate(Credentials("other"))


async def test_the_call_goes_on_with_its_caller() -> None:
    seen: list[Call] = []

    async def inner(call: Call) -> Events:
        seen.append(call)
        for event in ANSWER:
            yield event

    call = a_call(key="secret-1")
    assert await collect(compose([auth(Key("secret-1", "web"))], inner)(call)) == list(ANSWER)
    assert seen[0].principal == call.trip.principal == Principal("web", "web")


async def test_a_refused_call_reaches_no_vendor() -> None:
    called = False

    def inner(call: Call) -> Events:
        nonlocal called
        called = True
        return vendor()(call)

    with pytest.raises(AuthenticationFailed):
        await collect(compose([auth(Key("secret-1", "web"))], inner)(a_call(key="wrong")))
    assert not called


async def test_a_call_whose_key_must_be_looked_up_goes_the_same_way() -> None:
    principal = Principal("dw-00000002", "two", tags={"team": "a"}, user="u1")
    book = Book({}, {"kept": principal, "expired": AuthenticationFailed("expired"), "away": StoreUnavailable("away")})
    seen: list[Call] = []

    async def inner(call: Call) -> Events:
        seen.append(call)
        for event in ANSWER:
            yield event

    layers = compose([auth(book=book)], inner)
    assert await collect(layers(a_call(key="kept"))) == list(ANSWER)
    assert (seen[0].principal, seen[0].tags, seen[0].user) == (principal, {"team": "a"}, "u1")
    for key, error in (("expired", AuthenticationFailed), ("away", StoreUnavailable), ("other", AuthenticationFailed)):
        with pytest.raises(error):
            await collect(layers(a_call(key=key)))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("models", "routes", "model", "allowed"),
    [
        ((), (), "chat", True),
        ((), (), "openai/gpt-5", True),
        (("chat",), (), "chat", True),
        (("chat",), (), "chat-2", False),
        (("openai/*", "chat"), (), "openai/gpt-5", True),
        (("openai/*",), (), "qwen/qwen-max", False),
        ((), ("chat*",), "chat-2", True),
        ((), ("chat*",), "chat/x", False),
        (("openai/*",), ("chat",), "chat", True),
        (("openai/*",), ("chat",), "openai/gpt-5", True),
        (("openai/*",), ("chat",), "chat-2", False),
    ],
)
@pytest.mark.parametrize("waiting", [False, True])
async def test_a_key_may_use_the_models_and_routes_it_lists(
    models: tuple[str, ...], routes: tuple[str, ...], model: str, allowed: bool, waiting: bool
) -> None:
    principal = Principal("dw-00000001", "web", models=models, routes=routes)
    book = Book({}, {"k": principal}) if waiting else Book({"k": principal})
    layers = compose([auth(book=book)], vendor())
    call = a_call(model, key="k")
    if allowed:
        assert await collect(layers(call)) == list(ANSWER)
    else:
        with pytest.raises(PermissionDenied) as refused:
            await collect(layers(call))
        assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")
        assert all(f"`{pattern}`" in refused.value.message for pattern in (*models, *routes))
        assert call.trip.principal is principal


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(
    ("given", "allowed"),
    [({}, True), ({"team": "a"}, True), ({"feature": "x"}, True), ({"team": "b"}, False), ({"team": ""}, False)],
)
async def test_a_tag_of_the_key_cannot_be_given_another_value(
    given: dict[str, str], allowed: bool, waiting: bool
) -> None:
    principal = Principal("dw-00000001", "web", tags={"team": "a"})
    book = Book({}, {"k": principal}) if waiting else Book({"k": principal})
    seen: list[Call] = []

    def inner(call: Call) -> Events:
        seen.append(call)
        return vendor()(call)

    call = msgspec.structs.replace(a_call(key="k"), tags=given)
    layers = compose([auth(book=book)], inner)
    if allowed:
        await collect(layers(call))
        assert seen[0].tags == {**given, "team": "a"}
    else:
        with pytest.raises(PermissionDenied, match="`team=a`") as refused:
            await collect(layers(call))
        assert (refused.value.status, refused.value.param) == (403, "tags.team")
        assert not seen


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([Key("", "web")], "`web` is empty"),
        ([Key("a b", "web")], "`web` cannot be sent"),
        ([Key("schlüssel", "web")], "`web` cannot be sent"),
        ([Key("k", "")], "no `name`"),
        ([Key("same", "web"), Key("same", "batch")], "`web` and `batch` are the same"),
        ([Key("k1", "web"), Key("k2", "web")], "two keys are named `web`"),
        ([Key("k1", "admin")], "two keys are named `admin`"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused_without_showing_them(keys: list[Key], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        auth(*keys, environ={ADMIN_VARIABLE: "root"})
    assert not any(key.key in str(refused.value).split("`")[::2] for key in keys if key.key)


def test_the_text_of_a_key_is_not_kept() -> None:
    def reachable(root: object) -> list[object]:
        found, queue = [], [root]
        while queue:
            value = queue.pop()
            found.append(value)
            if isinstance(value, dict):
                queue += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple):
                queue += value
            elif isinstance(value, Auth | Book):
                queue += vars(value).values()
            elif isinstance(value, msgspec.Struct):
                queue += msgspec.structs.asdict(value).values()
        return found

    gc.collect()
    values = reachable(auth(Key("secret-1", "web"), environ={ADMIN_VARIABLE: "secret-2"}))
    assert Principal("web", "web") in values
    assert not [value for value in values if "secret" in str(value)]


def test_settings_do_not_show_keys() -> None:
    settings = Auth.Settings(keys=(Key("secret-1", "web"),), admin_key="secret-2")
    assert "secret" not in repr(settings)
    assert "web" in repr(settings)


def test_two_processes_have_other_digests() -> None:
    one, two = auth(Key("k", "web")), auth(Key("k", "web"))
    assert one._principals.keys().isdisjoint(two._principals)
