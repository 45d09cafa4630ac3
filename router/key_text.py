"""The text of a key, `dw-` + 8 of `a-z0-9` + `-` + 43 of the URL-safe alphabet: made, told apart, hashed. Pure."""

import hmac
import re
import secrets
import string
from typing import Final

from msgspec import Struct

_ALPHABET: Final = string.ascii_lowercase + string.digits
_ID: Final = re.compile(r"dw-[a-z0-9]{8}")
_FORM: Final = re.compile(r"(dw-[a-z0-9]{8})-[A-Za-z0-9_-]{43}")
SHORTEST_PEPPER: Final = 16
"""Characters of a pepper that somebody chose."""


class Pepper:
    """The secret that keys are hashed with (HMAC-SHA256, RFC 2104), so that a copy of the store opens nothing."""

    __slots__ = ("_secret", "fingerprint")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.fingerprint: str = hmac.digest(secret, b"fingerprint of this pepper", "sha256")[:6].hex()
        """Tells peppers apart, and nothing else of them."""

    @classmethod
    def chosen(cls, text: str) -> "Pepper":
        """Of a text that somebody chose. Raises `ValueError`."""
        if len(text) < SHORTEST_PEPPER:
            raise ValueError(f"must have {SHORTEST_PEPPER} characters at least: make one with `openssl rand -hex 32`")
        return cls(text.encode("utf-8", "surrogatepass"))

    def __repr__(self) -> str:
        return f"Pepper({self.fingerprint})"

    def digest(self, text: str) -> bytes:
        return hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), "sha256")


class Minted(Struct, frozen=True):
    """A new key: its public id, its text, which is shown once, and what is kept of it."""

    id: str
    text: str
    digest: bytes

    def __repr__(self) -> str:
        return f"Minted({self.id!r}, …)"


def mint(pepper: Pepper, key_id: str | None = None) -> Minted:
    """A new key, or a new secret for a key."""
    key_id = key_id or "dw-" + "".join(secrets.choice(_ALPHABET) for _ in range(8))
    # 32 random bytes are 43 characters
    text = f"{key_id}-{secrets.token_urlsafe(32)}"
    return Minted(key_id, text, pepper.digest(text))


def public_id(text: str | None) -> str | None:
    """The public id of a key of ours; None for any other text."""
    form = _FORM.fullmatch(text) if text else None
    return form[1] if form else None


def is_public_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def same(one: bytes, other: bytes) -> bool:
    """Compares in a time that does not depend on where they differ."""
    return hmac.compare_digest(one, other)
