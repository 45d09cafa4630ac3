"""What the plugin tests share: a call, and vendors that are lists of events."""

from collections.abc import Sequence
from typing import Any

from router.call import Attempt, Call, Credentials, Events, new_trip
from router.events import ChoiceFinished, Completed, Event, Started, TextDelta, Usage, UsageReported
from router.messages import ChatRequest, User
from router.plugin import CallNext
from router.provider import Target

START = Started("id-1", "model-1", 0)
TEXT = (TextDelta(0, 0, "hello"), TextDelta(0, 0, " world"))
FINISH = ChoiceFinished(0, "stop")
USAGE = Usage(input=7, output=2)
ANSWER: tuple[Event, ...] = (START, *TEXT, FINISH, UsageReported(USAGE), Completed())
SILENT: tuple[Event, ...] = (START, *TEXT, FINISH, Completed())
"""An answer without usage."""


def a_call(
    model: str = "chat", prompt: str = "Hi", *, key: str | None = None, asked: bool = True, **fields: Any
) -> Call:
    """A call on its way; `asked`: the vendor has been asked already."""
    trip = new_trip()
    if asked:
        trip.attempts.append(
            Attempt(n=1, target=Target("openai", "gpt-5"), started=trip.started, created_at=trip.created_at)
        )
    request = ChatRequest(model=model, messages=(User(prompt),), protocol="openai", **fields)
    return Call(id="req_1", request=request, dialect="openai.chat", trip=trip, credentials=Credentials(key))


def vendor(events: Sequence[Event] = ANSWER, error: BaseException | None = None) -> CallNext:
    """The innermost layer: these events, then the error if there is one."""

    async def stream(call: Call) -> Events:
        for event in events:
            yield event
        if error is not None:
            raise error

    return stream


async def collect(events: Events) -> list[Event]:
    return [event async for event in events]
