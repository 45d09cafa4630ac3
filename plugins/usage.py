"""`usage`: every answer ends with token counts, the vendor's own or, where there are none, an estimate marked as such.

The core counts what a vendor does not report (`router/estimate.py`, with tiktoken) before it lets the last event go.
This layer tells the client: the estimate becomes an event before `Completed`.
"""

from router.call import Call, Events
from router.events import Completed, UsageReported
from router.plugin import CallNext


class UsagePlugin:
    inside_of = ("logging", "auth", "limits", "budget", "cache")

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        trip, told = call.trip, False
        async for event in call_next(call):
            kind = type(event)
            if kind is UsageReported:
                told = True
            elif kind is Completed and not told and trip.usage is not None:
                yield UsageReported(trip.usage)
            yield event
