"""`auth`: who calls, by the key they present, and whether that key may ask for that.

Keys come from the configuration, the admin key also from `DELTAWAY_ADMIN_KEY`; all others are those of the store. The
configured ones are kept as HMACs (RFC 2104) under a secret of this process; their text is dropped once it is read.
"""

import hmac
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from router.access import OnDisconnect
from router.call import Call, Credentials, Events, Principal
from router.errors import AuthenticationFailed, PermissionDenied
from router.plugin import CallNext
from router.services import Services

ADMIN_VARIABLE: Final = "DELTAWAY_ADMIN_KEY"
ADMIN: Final = "admin"
"""The admin key's id and name."""
_HOW: Final = "send one as `Authorization: Bearer …` or `x-api-key: …`"
_OWN_FORM: Final = re.compile(r"(dw-[A-Za-z0-9]+)-[A-Za-z0-9_-]{43}")
"""A key that this gateway has made: its public id and the secret part."""
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """One client. `name` is what logs and receipts say, `models` what it may ask for (`openai/*`); none: all."""

    key: str
    name: str
    models: tuple[str, ...] = ()
    on_disconnect: OnDisconnect | None = None
    """What becomes of its calls whose client leaves; None: what the route or the server says."""

    def __repr__(self) -> str:
        return f"Key(name={self.name!r}, models={self.models!r}, …)"


class Auth:
    outside_of = ("limits", "budget", "cache", "usage")
    wants_services = True

    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        keys: tuple[Key, ...] = ()
        admin_key: str | None = None
        """In place of `DELTAWAY_ADMIN_KEY`."""

        def __repr__(self) -> str:
            return f"Settings(keys={self.keys!r}, …)"

    def __init__(self, settings: Settings, services: Services) -> None:
        self._keys = services.keys
        self._is_route = services.is_route
        self._pepper = secrets.token_bytes(32)
        self._principals: dict[bytes, Principal] = {}
        names: set[str] = set()
        for secret, principal in _configured(settings, services.environ):
            digest = self._digest(secret)
            if digest in self._principals:
                other = self._principals[digest].name
                raise ValueError(f"the keys `{other}` and `{principal.name}` are the same: give each client its own")
            if principal.name in names:
                raise ValueError(f"two keys are named `{principal.name}`: give each a name of its own")
            names.add(principal.name)
            self._principals[digest] = principal

    @property
    def has_admin_key(self) -> bool:
        """Whether the configuration or the environment sets one."""
        return any(principal.admin for principal in self._principals.values())

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Raises `AuthenticationFailed`, and `StoreUnavailable` for a key that only the store could know."""
        return self._known(credentials) or await self._found(credentials)

    def stream(self, call: Call, call_next: CallNext) -> Events:
        principal = self._known(call.credentials)
        if principal is None:
            return self._stream_of_found(call, call_next)
        return call_next(self._admitted(call, principal))

    async def _stream_of_found(self, call: Call, call_next: CallNext) -> Events:
        principal = await self._found(call.credentials)
        async for event in call_next(self._admitted(call, principal)):
            yield event

    def _known(self, credentials: Credentials) -> Principal | None:
        """Who that is, if it can be said without waiting."""
        if not credentials.secret:
            raise AuthenticationFailed(f"no API key was given: {_HOW}", code="missing_api_key")
        # what the look-up's time tells is about a digest that nobody outside can compute
        configured = self._principals.get(self._digest(credentials.secret)) if self._principals else None
        return configured or self._keys.known(credentials)

    async def _found(self, credentials: Credentials) -> Principal:
        principal = await self._keys.find(credentials)
        if principal is None:
            raise AuthenticationFailed(f"this gateway does not know that API key: {_HOW} that it knows")
        return principal

    def _admitted(self, call: Call, principal: Principal) -> Call:
        """The call with its caller known. Raises `PermissionDenied`; the trip knows the caller then too."""
        known = call.with_principal(principal)
        model = call.request.model
        if not principal.may_use(model, route=self._is_route(model)):
            raise PermissionDenied(
                f"the key `{principal.name}` may not use this model, only {_allowed(principal)}",
                code="model_not_allowed",
                param="model",
            )
        for name, value in principal.tags.items():
            if call.tags.get(name, value) != value:
                raise PermissionDenied(
                    f"all calls of the key `{principal.name}` bear the tag `{name}={value}`: leave `{name}` out, or "
                    "give it that value",
                    code="tag_not_allowed",
                    param=f"tags.{name}",
                )
        return known

    def _digest(self, secret: str) -> bytes:
        return hmac.digest(self._pepper, secret.encode("utf-8", "surrogatepass"), "sha256")


def _allowed(principal: Principal) -> str:
    allowed = [f"`{pattern}`" for pattern in principal.models]
    allowed += [f"the route `{pattern}`" for pattern in principal.routes]
    return ", ".join(allowed)


def _configured(settings: Auth.Settings, environ: Mapping[str, str]) -> Iterator[tuple[str, Principal]]:
    admin = settings.admin_key or environ.get(ADMIN_VARIABLE)
    if admin:
        yield _checked(admin, "the admin key"), Principal(ADMIN, ADMIN, admin=True)
    for row in settings.keys:
        if not row.name:
            raise ValueError("a key has no `name`: give it one, the logs show it in place of the key")
        secret = _checked(row.key, f"the key `{row.name}`")
        own = _OWN_FORM.fullmatch(secret)
        identity = own[1] if own else row.name
        yield secret, Principal(identity, row.name, models=row.models, on_disconnect=row.on_disconnect)


def _checked(secret: str, what: str) -> str:
    if not secret:
        raise ValueError(f"{what} is empty: write a key, or remove the row")
    if not _SENDABLE.fullmatch(secret):
        raise ValueError(f"{what} cannot be sent in a header: use printable ASCII without white space")
    return secret
