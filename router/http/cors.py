"""Lets web pages of other origins in: CORS around the whole application, errors before routing included.

What the Fetch standard asks (https://fetch.spec.whatwg.org/#http-cors-protocol). Litestar's own takes every OPTIONS
of a page for a preflight, and leaves `Vary` out where it matters: on what a page of another origin, or nobody in
particular, was given, which a cache would keep for a page that is let in.
"""

import re
from typing import Any, Final

from router.http.reply import Headers, Send
from router.http.request import Receive, Scope
from router.ids import request_id
from router.settings import Cors

EXPOSED: Final = (
    *(b"x-request-id", b"location", b"preference-applied", b"idempotent-replayed", b"age", b"allow"),
    *(b"retry-after", b"x-should-retry", b"www-authenticate", b"content-disposition"),
    *(b"x-deltaway-target", b"x-deltaway-attempts", b"x-deltaway-dropped", b"x-deltaway-experiment"),
    *(b"x-deltaway-cost", b"x-deltaway-cache", b"x-deltaway-context"),
    *(b"x-deltaway-stream", b"x-deltaway-conversation"),
    *(b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    *(b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
)
"""What pages may read of every answer. Other `x-` headers that an answer bears, such as a plugin's, are added to it."""
_METHODS: Final = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
_NAMES: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
"""Tokens of RFC 9110, section 5.6.2, with commas between them."""
_VARY: Final[Headers] = [(b"vary", b"Origin")]
_PREFLIGHT: Final = (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")


class CorsLayer:
    """`app` for pages of the origins that `settings` lists."""

    def __init__(self, app: Any, settings: Cors) -> None:
        self._app = app
        self._any = "*" in settings.allow_origins
        self._origins = frozenset(origin.encode() for origin in settings.allow_origins)
        self._credentials: Headers = (
            [(b"access-control-allow-credentials", b"true")] if settings.allow_credentials else []
        )
        self._max_age = b"%d" % int(settings.max_age)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if origin is None:
            await self._app(scope, receive, _adding(send, _VARY))
            return
        allowed = self._allowed(origin)
        if scope["method"] == "OPTIONS":
            asked = {name: value for name, value in scope["headers"] if name.startswith(b"access-control-request-")}
            if b"access-control-request-method" in asked:
                await self._preflight(send, allowed, asked)
                return
        await self._app(scope, receive, _adding(send, allowed + _VARY, expose=bool(allowed)))

    def _allowed(self, origin: bytes) -> Headers:
        """What is said to a page of that origin; nothing if it is not let in."""
        if self._any:
            return [(b"access-control-allow-origin", b"*")]
        if origin in self._origins:
            return [(b"access-control-allow-origin", origin), *self._credentials]
        return []

    async def _preflight(self, send: Send, allowed: Headers, asked: dict[bytes, bytes]) -> None:
        """May a page send what it wants to? Whoever is not let in is told nothing, which a browser takes for no."""
        headers: Headers = [(b"x-request-id", request_id().encode())]
        if allowed:
            headers += [
                *allowed,
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-max-age", self._max_age),
            ]
            wanted = asked.get(b"access-control-request-headers", b"").strip()
            # `*` would not stand for `authorization`, nor for anything where there are credentials; the key guards the
            # door, not this list
            if _NAMES.fullmatch(wanted):
                headers.append((b"access-control-allow-headers", wanted))
            # a page of the Internet at a gateway of the house: https://wicg.github.io/private-network-access/
            if asked.get(b"access-control-request-private-network") == b"true":
                headers.append((b"access-control-allow-private-network", b"true"))
        headers.append(_PREFLIGHT)
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _adding(send: Send, more: Headers, *, expose: bool = False) -> Send:
    """Sends with `more` headers. No coroutine of its own: every block of a stream comes by here."""

    def sent(message: Any) -> Any:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *more]
            if expose:
                headers.append((b"access-control-expose-headers", _exposed(headers)))
            message = {**message, "headers": headers}
        return send(message)

    return sent


def _exposed(headers: Headers) -> bytes:
    others = {name for name, _ in headers if name.startswith(b"x-") and name not in EXPOSED}
    return b", ".join([*EXPOSED, *sorted(others)])
