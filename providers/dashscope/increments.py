"""Tells increments from frames that repeat the whole text so far, which some DashScope models send. Pure.

The adapter always asks for increments, and nearly every stream proves with its second frame that it has them: that
frame does not begin with the first. A frame that does is ambiguous ("ha", "haha" may be either), and a wrong guess
would repeat or lose text. So only what both readings agree on is given out, and the rest is held until a later
frame, the count of tokens or the end decides.
"""

from typing import Final, Literal, TypeAlias

Mode: TypeAlias = Literal["unknown", "increments", "cumulative"]

LONG: Final = 32
"""Characters of text that an increment does not repeat by chance."""

_GROWN_TWICE: Final = 12
"""Characters a text must have for two growths in a row to be proof."""


class Reading:
    """How the texts of one answer are to be read. Shared by all of them: one proof counts for all."""

    __slots__ = ("mode",)

    def __init__(self) -> None:
        self.mode: Mode = "unknown"


class Increments:
    """One text of one choice, as it comes in frames."""

    __slots__ = ("_given", "_growths", "_head", "_last", "_length", "_pieces", "_reading", "_tokens")

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._last = ""
        """The last frame: the text so far, if frames are cumulative."""
        self._pieces: list[str] = []
        """All frames: one after the other the text so far, if they are increments. Kept until that is known."""
        self._length = 0
        """Characters in them."""
        self._head = ""
        """What they begin with, which is all that a later frame is compared with."""
        self._given = 0
        self._growths = 0
        self._tokens: int | None = None

    def take(self, text: str, *, tokens: int | None = None, alone: bool = True) -> str:
        """What is certainly new with this frame.

        `tokens` is the count of output tokens after the frame. `alone` is false when the frame brings other
        content too: a repeated text beside it is the text so far.
        """
        if not text or (self._reading.mode == "increments" and not self._length):
            return text
        if self._reading.mode == "unknown":
            self._reading.mode = self._proven(text, tokens, alone)
        self._tokens = tokens
        if self._reading.mode == "increments":
            return self._rest() + text
        if self._reading.mode == "cumulative":
            return self._grown(text)
        self._growths += bool(self._last) and len(text) > len(self._last)
        self._last = text
        if len(self._pieces) < 2 or len(self._head) < LONG:
            self._head += text
        self._pieces.append(text)
        self._length += len(text)
        agreed = max(_common(text, self._head), self._given)
        new = text[self._given : agreed]
        self._given = agreed
        return new

    @property
    def holds(self) -> bool:
        """Whether `settle` may give something."""
        return self._given < self._length

    def settle(self) -> str:
        """What was held back, when the text ends or another one goes on before anything was proven."""
        if self._reading.mode == "cumulative":
            return ""
        rest = self._rest()
        if rest:
            self._reading.mode = "increments"
        return rest

    def _proven(self, text: str, tokens: int | None, alone: bool) -> Mode:
        last = self._last
        if not text.startswith(last):
            return "increments"
        if not last:
            return "unknown"
        if len(text) > len(last):
            twice = self._growths >= 1 and len(text) >= _GROWN_TWICE
            return "cumulative" if len(last) >= LONG or twice else "unknown"
        if not alone:
            return "cumulative"
        spent = tokens - self._tokens if tokens and self._tokens else None
        if spent is not None and spent <= 0:
            # the same text for no token is no new text
            return "cumulative"
        if len(text) < LONG:
            return "unknown"
        return "cumulative" if spent is None or spent == 1 else "increments"

    def _grown(self, text: str) -> str:
        if not text.startswith(self._last):
            # not cumulative after all, or not any more
            self._reading.mode = "increments"
            return self._rest() + text
        new = text[self._given :]
        self._forget()
        self._last, self._given = text, len(text)
        return new

    def _rest(self) -> str:
        if not self._length:
            return ""
        rest = "".join(self._pieces)[self._given :]
        self._forget()
        self._last, self._given = "", 0
        return rest

    def _forget(self) -> None:
        self._pieces, self._length, self._head = [], 0, ""


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
