"""What a vendor has written in one attempt, noted as it goes by, so that its tokens can be counted if need be."""

from router.audio import sound_in
from router.events import Event, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, ToolCallStarted, UsageReported


class Generated:
    """Texts by class of token, and the length of the speech.

    `note` is on the path of every event: it does no more than keep a reference. Speech is not kept, it is long.
    """

    __slots__ = ("audio", "began", "output", "reasoning")

    def __init__(self) -> None:
        self.began = False
        self.output: list[str] = []
        """What is spoken is in it as words too: vendors count both."""
        self.reasoning: list[str] = []
        self.audio = 0
        """Characters of base64."""

    def note(self, event: Event) -> None:
        self.began = True
        kind = type(event)
        if kind is TextDelta or kind is RefusalDelta:
            self.output.append(event.text)  # type: ignore[union-attr]
        elif kind is ReasoningDelta:
            self.reasoning.append(event.text)  # type: ignore[union-attr]
        elif kind is ToolCallDelta:
            self.output.append(event.arguments)  # type: ignore[union-attr]
        elif kind is ToolCallStarted:
            self.output.append(event.name)  # type: ignore[union-attr]
        elif kind is UsageReported:
            return
        extra = event.extra  # type: ignore[union-attr]
        if extra is not None and extra.block:
            length, words = sound_in(extra.block)
            self.audio += length
            if words:
                self.output.append(words)
