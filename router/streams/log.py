"""The contract of a stream log: where the blocks of answers are kept, so that they can be read again.

A **block** is one server-sent event as its dialect writes it, the blank line at its end included and no `id:` line in
it. Blocks are numbered from 1 without a gap. A log is bounded: the oldest blocks of a stream go first, and what is gone
is told (`Stretch.begins`). One process writes a stream, its `writer`; whoever shares the log may read it and ask that
it be stopped.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from router.call import Outcome

DEAD: Final = 10.0
"""Seconds without a sign of life after which a writer is taken for dead."""
_DAY: Final = 86400.0
_ID: Final = re.compile(r"strm_[0-9A-HJKMNP-TV-Z]{26}")


class LogAway(Exception):
    """The log cannot be reached, or does not take what it was given. The message says why."""


class StreamHead(Struct, frozen=True, kw_only=True):
    """What is known of a stream from its beginning."""

    id: str
    """`strm_` and the ULID of its call."""
    owner: str
    """The public id of the key that made the call; empty where calls need none."""
    writer: str
    """The process that writes it."""
    request_id: str
    dialect: str
    """As in receipts."""
    model: str
    """The name that was asked for."""
    created_at: int
    """Unix milliseconds."""
    whole: bool = False
    """Whether the client wanted one JSON answer: the stream is then one block with it."""
    headers: dict[str, str] = {}
    """Of the call's answer, those of ours that whoever comes back shall see too."""
    conversation: str | None = None
    """The id of the conversation that it is an answer in."""


class Appended(Struct, frozen=True):
    """Blocks that a writer adds to one of its streams."""

    id: str
    first: int
    """The number of the first of them, or of the next block where there is none. Beyond the next number that the log
    awaits where blocks were lost while it was away: those in between are taken as evicted."""
    blocks: tuple[bytes, ...]
    ended: Outcome | None = None
    """Set once: these are the last."""


class Told(Struct, frozen=True):
    """What a writer is told of its streams when it appends."""

    stopped: frozenset[str] = frozenset()
    """Those that somebody asked to be stopped. Told again until they have ended."""
    read_at: Mapping[str, int] = msgspec.field(default_factory=dict)
    """When others last read them (Unix milliseconds), as far as they have."""
    lost: frozenset[str] = frozenset()
    """Those that the log does not know any more, or that were ended by somebody else: nothing was added to them."""


class Stretch(Struct, frozen=True):
    """Consecutive blocks of a stream."""

    head: StreamHead
    first: int
    """The number of the first block in it, or of the next one to come."""
    blocks: tuple[bytes, ...]
    begins: int
    """The number of the oldest block that is kept, or of the next one to come: those before it were evicted."""
    last: int
    """The number of the newest block of the stream; 0: there is none yet."""
    ended: Outcome | None
    """How the stream ended; None: it has not."""
    expired: bool = False
    """Its blocks are gone, their time is over."""


class Claim(Struct, frozen=True):
    """What an idempotency key stands for."""

    stream: str
    """The id of the stream that was first claimed with it."""
    fingerprint: str
    """Of the request it was claimed with."""
    fresh: bool
    """Claimed just now."""


class StreamLog(Protocol):
    """One log. Every method may raise `LogAway`; none blocks the event loop.

    `keep`: seconds that a stream is kept after its end; the same again, but a day at least, it is known that there was
    one (`Stretch.expired`). A stream whose writer has died counts from its last sign of life. `limit`: bytes of one
    stream that are kept.
    """

    keep: float
    limit: int

    def lifespan(self) -> AbstractAsyncContextManager[None]: ...

    async def begin(self, head: StreamHead) -> None:
        """Make a stream without blocks. A second time with the same id changes nothing."""
        ...

    async def append(self, writer: str, batch: Sequence[Appended]) -> Told:
        """Add to streams of `writer`, in one go. An empty batch asks what there is to be told. It is also the sign of
        life of the writer, so it is called every second or so while it has streams. What was added before is passed
        over, the end too, so that a batch may be tried again."""
        ...

    async def read(self, stream: str, after: int, limit: int = 256 * 1024) -> Stretch | None:
        """The blocks after number `after` that are kept, up to `limit` bytes of them but one at least. None: no such
        stream is known. Notes that it was read."""
        ...

    async def living(self, writer: str) -> bool:
        """Whether that process gives signs of life. One that is gone will never end its streams."""
        ...

    async def seal(self, stream: str, block: bytes, ended: Outcome) -> None:
        """End a stream whose writer is gone, with a last block. Changes nothing if it has ended, or is not there. Two
        who do so at once add one block."""
        ...

    async def stop(self, stream: str) -> None:
        """Ask its writer to stop it."""
        ...

    async def claim(self, owner: str, key: str, stream: str, fingerprint: str) -> Claim:
        """What `key` of `owner` stands for: what it was claimed for first, else `stream` from now on. A claim goes
        with the blocks of its stream, and one whose stream never began goes after `keep`."""
        ...

    async def release(self, owner: str, key: str, stream: str) -> None:
        """Take back a claim, if it is this stream's: the call was refused, and may be tried again."""
        ...

    async def remove(self, stream: str) -> None:
        """Delete it with its blocks, and that it ever was there."""
        ...


def known_for(keep: float) -> float:
    """Seconds after its end that it is known that there was a stream."""
    return keep + max(keep, _DAY)


def stream_id(request_id: str) -> str:
    """The id of the stream of a call."""
    return "strm_" + request_id.removeprefix("req_")


def stream_request(stream: str) -> str:
    """The id of the request that a stream answers."""
    return "req_" + stream.removeprefix("strm_")


def is_stream_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def split_blocks(data: bytes) -> tuple[bytes, ...]:
    """Encoded events, each with its blank line: dialects write no blank line within one."""
    if not data:
        return ()
    pieces = data.split(b"\n\n")
    assert not pieces[-1], "a dialect's events end with a blank line"
    return tuple([piece + b"\n\n" for piece in pieces[:-1]])
