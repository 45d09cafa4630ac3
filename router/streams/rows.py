"""Blocks as shared logs keep them: some together, as one row."""

from collections.abc import Sequence
from typing import Final, NamedTuple

ROW: Final = 64 * 1024
"""Bytes of a row of several blocks, at most."""
_PART: Final = 8
"""A row of several blocks is no more than that part of all that is kept, as rows go as a whole."""


class Row(NamedTuple):
    first: int
    last: int
    data: bytes
    """The blocks from number `first` to `last`, joined."""


def rows_of(first: int, blocks: Sequence[bytes], limit: int) -> list[Row]:
    """`blocks`, the first of which has number `first`, less those at the front that `limit` bytes would not hold."""
    most, sizes = min(ROW, limit // _PART), [len(block) for block in blocks]
    begin, size = 0, sum(sizes)
    while size > limit and begin < len(blocks) - 1:
        size -= sizes[begin]
        begin += 1
    rows = []
    while begin < len(blocks):
        end, size = begin + 1, sizes[begin]
        while end < len(blocks) and size + sizes[end] <= most:
            size += sizes[end]
            end += 1
        rows.append(Row(first + begin, first + end - 1, b"".join(blocks[begin:end])))
        begin = end
    return rows
