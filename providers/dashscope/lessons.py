"""What a running gateway has learned of DashScope's models from their errors. Bounded; knows no HTTP."""

from collections import OrderedDict
from typing import Final

from msgspec import Struct

from providers.dashscope.families import Path

MAX_MODELS: Final = 1024


class Lesson(Struct, frozen=True):
    """What is known of one model beyond its family."""

    path: Path | None = None
    refused: frozenset[Path] = frozenset()
    """Paths that answered "url error": the model is bound to another."""
    stream_only: bool = False
    plain_content: bool = False
    """Takes no list as a message's content on the text path, so no cache marks either."""


class Lessons:
    """Lessons by model; the least recently learned is forgotten first."""

    def __init__(self, max_models: int = MAX_MODELS) -> None:
        self._max_models = max_models
        self._lessons: OrderedDict[str, Lesson] = OrderedDict()

    def of(self, model: str) -> Lesson:
        return self._lessons.get(model, _NOTHING)

    def learn(self, model: str, lesson: Lesson) -> None:
        self._lessons[model] = lesson
        self._lessons.move_to_end(model)
        while len(self._lessons) > self._max_models:
            self._lessons.popitem(last=False)


_NOTHING: Final = Lesson()
