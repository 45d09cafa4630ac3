"""Splits a thought in tags off the start of the content: hosts without a reasoning parser leave it there."""

from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["reasoning", "text"]

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


class ThinkTags:
    """Feeds on content in any cut, gives `(kind, text)` pieces. Only a tag at the very start opens a thought.

    White space around the tags belongs to neither side. Text that may yet become a tag is held back until it is
    clear; `flush` gives it up.
    """

    __slots__ = ("_held", "_state")

    def __init__(self, *, opened: bool) -> None:
        self._state: Literal["start", "opened", "entered", "thought", "after", "text"] = "opened" if opened else "start"
        self._held = ""

    def feed(self, text: str) -> list[tuple[Kind, str]]:
        text = self._held + text
        self._held = ""
        pieces: list[tuple[Kind, str]] = []
        if self._state in ("start", "opened"):
            bare = text.lstrip()
            if len(bare) < len(_OPEN) and _OPEN.startswith(bare):
                self._held = text
                return pieces
            if bare.startswith(_OPEN):
                text = bare[len(_OPEN) :]
                self._state = "entered"
            else:
                self._state = "thought" if self._state == "opened" else "text"
        if self._state == "entered":
            text = text.lstrip("\r\n")
            if text:
                self._state = "thought"
        if self._state == "thought":
            thought, close, rest = text.partition(_CLOSE)
            if not close:
                keep = _suffix(thought)
                thought, self._held = thought[: len(thought) - keep], thought[len(thought) - keep :]
            else:
                self._state = "after"
            if thought:
                pieces.append(("reasoning", thought))
            text = rest
        if self._state == "after":
            text = text.lstrip()
            if text:
                self._state = "text"
        if self._state == "text" and text:
            pieces.append(("text", text))
        return pieces

    def flush(self) -> list[tuple[Kind, str]]:
        """What was held back, at the end of the content."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [("reasoning" if self._state in ("thought", "opened") else "text", held)]


def _suffix(text: str) -> int:
    """How many characters at the end may be the start of the closing tag."""
    return next((n for n in range(min(len(_CLOSE) - 1, len(text)), 0, -1) if text.endswith(_CLOSE[:n])), 0)
