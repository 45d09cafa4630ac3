"""Steps a stream of events so that what is at hand leaves in one write, and a lone delta at once.

The rule needs no timer and no mark on the events: as long as the next event is there without waiting, it joins the
batch; the moment the stream would wait, the batch is written first, then waited.
"""

import types
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, TypeAlias

from router.call import Events
from router.events import Event

MAX_BATCH: Final = 256
"""Events that may gather before a write, so that a vendor that never pauses cannot fill memory."""

Write: TypeAlias = Callable[[bytes], Coroutine[Any, Any, None]]


@types.coroutine
def pump(
    events: Events, encode: Callable[[Event], bytes], write: Write, batch: list[bytes]
) -> Generator[Any, Any, Event | None]:
    """Encode and write the events until the stream ends; gives the last event.

    What was not written when the stream ended or raised is left in `batch`: the caller ends it with the mark of the
    end, or with the error, in the same write.
    """
    last: Event | None = None
    while True:
        step = events.__anext__().__await__()
        try:
            try:
                waiting = step.send(None)
            except StopIteration as ready:
                last = ready.value
            else:
                last = yield from _waited(step, waiting, write, batch)
        except StopAsyncIteration:
            return last
        batch.append(encode(last))
        if len(batch) >= MAX_BATCH:
            yield from write(_taken(batch))
            # a stream that never waits would not let the loop see that the client has left
            yield


@types.coroutine
def _waited(
    step: Generator[Any, Any, Event], waiting: Any, write: Write, batch: list[bytes]
) -> Generator[Any, Any, Event]:
    """The event of a step that has to wait for `waiting`; the batch leaves before the wait."""
    try:
        if batch and (data := _taken(batch)):
            try:
                yield from write(data)
            except CancelledError:
                # a task that waited for a task would have passed the cancellation on to it: so must we, or it runs on
                if waiting is None or not waiting.cancel():
                    raise
        yield waiting
    except BaseException as error:
        # the step is suspended in the layers below: they must see the cancellation, or could not be closed
        while True:
            try:
                waiting = step.throw(error)
            except StopIteration as ready:
                return ready.value  # type: ignore[no-any-return]
            try:
                yield waiting
            except BaseException as another:
                error = another
            else:
                return (yield from step)
    return (yield from step)


def _taken(batch: list[bytes]) -> bytes:
    data = b"".join(batch)
    batch.clear()
    return data
