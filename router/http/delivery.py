"""A stream's blocks on their way to one reader, with the ids that it can come back with."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final

import msgspec

from router.errors import Gone, InvalidRequest, RouterError
from router.http.leaving import when_left
from router.http.reply import StreamedReply
from router.http.request import Receive
from router.streams.log import LogAway, Stretch
from router.streams.streams import StreamUnknown

_EVENT_ID: Final = re.compile(r"(strm_[0-9A-HJKMNP-TV-Z]{26})-(end-)?(0|[1-9][0-9]{0,15})")
"""The last event of an interrupted stream has `end-`: the number alone may be that of a block which its reader has seen
and the log has not, because its writer died before it was written down."""


class Refused(Exception):
    """The call failed before its answer began, and nothing has been written to the reader."""

    def __init__(self, error: RouterError) -> None:
        super().__init__(error.message)
        self.error = error


def last_seen(event_id: str, stream: str) -> tuple[int, bool]:
    """The number in an event's id, `<stream>-<number>`, and whether it was the end of an interrupted stream. Raises
    `InvalidRequest`."""
    found = _EVENT_ID.fullmatch(event_id)
    if found is None:
        raise InvalidRequest(
            "the last event id is none of ours: send the `id` of the last event that was read, or none to read from "
            "the beginning",
            code="invalid_event_id",
            param="last-event-id",
        )
    if found[1] != stream:
        raise InvalidRequest(
            "the last event id is of another stream: send the `id` of the last event that was read of this one, or "
            "none to read from the beginning",
            code="foreign_event_id",
            param="last-event-id",
        )
    return int(found[3]), found[2] is not None


def rendered(stretch: Stretch, after: int, *, ids: bool) -> bytes:
    """The blocks as they are written. What is missing after block `after` is said in an event of its own."""
    if not ids:
        return b"".join(stretch.blocks)
    stream = stretch.head.id.encode()
    written = [b"id: %b-%d\n%b" % (stream, number, block) for number, block in enumerate(stretch.blocks, stretch.first)]
    if stretch.ended == "interrupted" and written and stretch.first + len(written) - 1 == stretch.last:
        written[-1] = b"id: %b-end-%d\n%b" % (stream, stretch.last, stretch.blocks[-1])
    if stretch.first > after + 1:
        gap = {"object": "stream.gap", "first": after + 1, "last": stretch.first - 1, "reason": "evicted"}
        written.insert(
            0, b"id: %b-%d\nevent: gap\ndata: %b\n\n" % (stream, stretch.first - 1, msgspec.json.encode(gap))
        )
    return b"".join(written)


@asynccontextmanager
async def until_left(receive: Receive) -> AsyncIterator[Callable[[], object]]:
    """The body ends when the client leaves, silently. Gives what stops the watching: it has had its answer."""
    task, gone = asyncio.current_task(), False
    assert task is not None

    def left() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    watch = asyncio.get_running_loop().create_task(when_left(receive, left))
    try:
        yield watch.cancel
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
    finally:
        watch.cancel()


async def deliver(
    reply: StreamedReply,
    stretches: AsyncGenerator[Stretch, None],
    receive: Receive,
    *,
    after: int = 0,
    ids: bool,
    retry: float = 0.0,
    broken: Callable[[Exception], bytes],
    refused: Callable[[], RouterError | None] = lambda: None,
) -> None:
    """Write a stream until it ends, or its reader leaves. Raises `Refused`, and what reading the stream raises as long
    as nothing was written; after that `broken` puts it into words.

    `retry`: seconds after which a browser is to come back when the connection breaks; 0: as it likes.
    """
    try:
        async with until_left(receive) as unwatch, aclosing(stretches):
            async for stretch in stretches:
                if not reply.started and (error := refused()) is not None:
                    await reply.stop()
                    # a heartbeat may have gone out meanwhile
                    if not reply.started:
                        raise Refused(error)
                if not ids and stretch.first > after + 1:
                    # without ids nothing could be said of the gap, and what follows it would look whole
                    raise Gone(
                        "some of this answer was evicted before it was read (`streams.limit`): the rest is left out",
                        code="stream_evicted",
                    )
                if stretch.expired:
                    raise Gone("the time is over for which this answer could be read", code="stream_expired")
                data = rendered(stretch, after, ids=ids)
                if retry and data:
                    # within an event: a block of its own would be an empty event to some clients
                    data, retry = b"retry: %d\n%b" % (retry * 1000, data), 0.0
                after = max(after, stretch.first + len(stretch.blocks) - 1)
                if stretch.ended is not None and after >= stretch.last:
                    unwatch()
                    await reply.end(data)
                    return
                await reply.write(data)
    except (StreamUnknown, LogAway, Gone) as error:
        if not reply.started:
            raise
        # without an id: who comes back goes on where it was
        await reply.end(broken(error))
    finally:
        reply.silence()


async def gather(stretches: AsyncGenerator[Stretch, None], receive: Receive) -> Stretch | None:
    """The last stretch of a stream; None: the client has left."""
    last: Stretch | None = None
    stayed = False
    async with until_left(receive), aclosing(stretches):
        async for stretch in stretches:
            last = stretch
        stayed = True
    return last if stayed else None
