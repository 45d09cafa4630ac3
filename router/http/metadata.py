"""Metadata as OpenAI's objects have it: up to sixteen pairs of text."""

from collections.abc import Mapping
from typing import Final

from router.errors import InvalidRequest

MOST_PAIRS: Final = 16
LONGEST_NAME: Final = 64
LONGEST_VALUE: Final = 512


def checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """None is none. Raises `InvalidRequest`."""
    if metadata is None:
        return {}
    if len(metadata) > MOST_PAIRS:
        raise InvalidRequest(f"`metadata` may have {MOST_PAIRS} pairs at most", param="metadata")
    for name, value in metadata.items():
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            words = f"`metadata`: a name must be 1 to {LONGEST_NAME} printable characters"
            raise InvalidRequest(words, param="metadata")
        if len(value) > LONGEST_VALUE or "\0" in value:
            words = f"`metadata.{name}` may have {LONGEST_VALUE} characters at most, and none of them may be NUL"
            raise InvalidRequest(words, param=f"metadata.{name}")
    return dict(metadata)
