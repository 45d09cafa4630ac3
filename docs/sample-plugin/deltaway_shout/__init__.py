"""Answers in capital letters: a plugin that somebody else wrote, whole."""

import msgspec
from msgspec import Struct

from router.call import Call, Events
from router.events import TextDelta
from router.plugin import CallNext


class Shout:
    """Puts the text of every answer in capitals, and a mark at the end of each delta that ends a sentence."""

    # the counts of `usage` are of what the vendor wrote
    outside_of = ("usage",)

    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        mark: str = "!"

    def __init__(self, settings: Settings) -> None:
        self._mark = settings.mark

    async def stream(self, call: Call, call_next: CallNext) -> Events:
        async for event in call_next(call):
            if isinstance(event, TextDelta):
                text = event.text.upper()
                if text.endswith("."):
                    text = text[:-1] + self._mark
                event = msgspec.structs.replace(event, text=text)
            yield event
