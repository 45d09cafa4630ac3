"""Who may call."""

import gc
from typing import Any

import msgspec
import pytest

from plugins.auth import ADMIN_VARIABLE, Auth, Key
from router.call import Call, Credentials, Events, Principal
from router.errors import AuthenticationFailed, PermissionDenied
from router.plugin import Authenticator, compose
from tests.plugins.calls import ANSWER, a_call, collect, vendor

OWN = "dw-ab12-" + "x" * 43


def auth(*keys: Key, environ: dict[str, str] | None = None, **settings: Any) -> Auth:
    return Auth(Auth.Settings(keys=keys, **settings), environ or {})


def test_it_is_asked_by_other_routes_too() -> None:
    assert isinstance(auth(Key("k", "team")), Authenticator)


def test_a_key_of_the_configuration_is_known_by_its_name() -> None:
    plugin = auth(Key("secret-1", "web"), Key("secret-2", "batch", ("openai/*",)))
    assert plugin.authenticate(Credentials("secret-1")) == Principal("web", "web")
    assert plugin.authenticate(Credentials("secret-2")) == Principal("batch", "batch", models=("openai/*",))


def test_a_key_made_by_the_gateway_is_known_by_its_public_id() -> None:
    assert auth(Key(OWN, "web")).authenticate(Credentials(OWN)).key == "dw-ab12"


@pytest.mark.parametrize(
    ("settings", "environ", "key"),
    [
        ({}, {ADMIN_VARIABLE: "from-env"}, "from-env"),
        ({"admin_key": ""}, {ADMIN_VARIABLE: "from-env"}, "from-env"),
        ({"admin_key": "from-file"}, {ADMIN_VARIABLE: "from-env"}, "from-file"),
    ],
)
def test_the_admin_key_may_do_everything(settings: Any, environ: dict[str, str], key: str) -> None:
    principal = auth(environ=environ, **settings).authenticate(Credentials(key))
    assert principal == Principal("admin", "admin", admin=True)
    assert principal.may_use("any/model")


@pytest.mark.parametrize("secret", [None, ""])
def test_no_key_is_refused_and_told_how_to_send_one(secret: str | None) -> None:
    with pytest.raises(AuthenticationFailed, match="Authorization: Bearer") as refused:
        auth(Key("k", "team")).authenticate(Credentials(secret))
    assert refused.value.code == "missing_api_key"


@pytest.mark.parametrize("secret", ["wrong", "secret-", "secret-11", "SECRET-1", "\udcff", "ключ"])
def test_a_wrong_key_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(AuthenticationFailed) as refused:
        auth(Key("secret-1", "team")).authenticate(Credentials(secret))
    assert secret not in refused.value.message
    assert refused.value.status == 401


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


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "chat", True),
        (("chat",), "chat", True),
        (("chat",), "chat-2", False),
        (("openai/*", "chat"), "openai/gpt-5", True),
        (("openai/*",), "qwen/qwen-max", False),
    ],
)
async def test_a_key_may_use_the_models_it_lists(models: tuple[str, ...], model: str, allowed: bool) -> None:
    layers = compose([auth(Key("secret-1", "web", models))], vendor())
    call = a_call(model, key="secret-1")
    if allowed:
        assert await collect(layers(call)) == list(ANSWER)
    else:
        with pytest.raises(PermissionDenied, match=r"only `.+`") as refused:
            await collect(layers(call))
        assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")
        assert call.trip.principal is not None


def test_without_any_key_it_cannot_be_built_and_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"set DELTAWAY_ADMIN_KEY, or list `keys`"):
        auth()


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
            elif isinstance(value, Auth):
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
