"""Tokens that open one stream for a while, without a key: a browser's EventSource sends no headers.

`<expiry>.<signature>`: Unix seconds in hexadecimal digits, and HMAC-SHA256 (RFC 2104) of stream and expiry under the
pepper of the store, so that every replica knows the tokens of all.
"""

import hmac
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from typing import Final

from router.errors import AuthenticationFailed
from router.key_text import Pepper

LIFETIME: Final = 3600
"""Seconds."""
_TOKEN: Final = re.compile(r"([0-9a-f]{8,12})\.[A-Za-z0-9_-]{43}")


class StreamTokens:
    """`pepper` may raise `StoreUnavailable`. `clock` gives Unix seconds."""

    def __init__(self, pepper: Callable[[], Awaitable[Pepper]], clock: Callable[[], float] = time.time) -> None:
        self._pepper = pepper
        self._clock = clock

    async def made(self, stream: str) -> tuple[str, int]:
        """A token for that stream, and when it expires in Unix seconds."""
        expires = int(self._clock()) + LIFETIME
        return await self._signed(stream, expires), expires

    async def check(self, token: str, stream: str) -> None:
        """Raises `AuthenticationFailed` unless it opens that stream now."""
        found = _TOKEN.fullmatch(token)
        expires = 0 if found is None else int(found[1], 16)
        if found is None or not hmac.compare_digest(token, await self._signed(stream, expires)):
            raise AuthenticationFailed("the token of the address is not one for this stream", code="invalid_token")
        if expires < self._clock():
            raise AuthenticationFailed(
                "the token of the address has expired: whoever has the key may get another with "
                f"`POST /v1/streams/{stream}/token`",
                code="expired_token",
            )

    async def _signed(self, stream: str, expires: int) -> str:
        pepper = await self._pepper()
        signature = urlsafe_b64encode(pepper.digest(f"token of a stream\n{stream}\n{expires}")).rstrip(b"=").decode()
        return f"{expires:08x}.{signature}"
