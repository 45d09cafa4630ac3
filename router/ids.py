"""Ids: of requests `req_` and a ULID (48 bits of time in milliseconds, 80 random bits, Crockford base 32)."""

import os
import time
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple(a + b for a in _ALPHABET for b in _ALPHABET)


def request_id() -> str:
    """A new id. Ids sort by the time they were made."""
    return "req_" + ulid()


def made_at(request_id: str) -> int:
    """When an id of a request was made, in Unix milliseconds."""
    at = 0
    for character in request_id.removeprefix("req_")[:10]:
        at = at * 32 + _ALPHABET.index(character)
    return at


def ulid() -> str:
    """26 characters that sort by the time they were made."""
    number = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    pairs = []
    for _ in range(13):
        pairs.append(_PAIRS[number & 1023])
        number >>= 10
    return "".join(reversed(pairs))
