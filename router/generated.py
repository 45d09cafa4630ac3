"""What a vendor has written in one attempt, noted as it goes by, so that its tokens can be counted if need be."""

from router.events import Event, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, ToolCallStarted


class Generated:
    """Texts by class of token. `note` is on the path of every event: it does no more than keep a reference."""

    __slots__ = ("began", "output", "reasoning")

    def __init__(self) -> None:
        self.began = False
        self.output: list[str] = []
        self.reasoning: list[str] = []

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
