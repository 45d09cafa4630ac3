"""Gives out the slots of an answer's blocks, so that decoders never count. Pure; knows no vendor."""

from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["text", "reasoning", "refusal"]


class Slots:
    """The blocks of one choice, numbered in the order they open.

    Text, reasoning and refusal run on in the block that is open until another kind, a tool call or an opaque
    item interrupts; then a new block begins. Tool calls keep the slot they were given.
    """

    __slots__ = ("_count", "_kind", "_slot")

    def __init__(self) -> None:
        self._count = 0
        self._kind: Kind | None = None
        self._slot = -1

    def run(self, kind: Kind) -> int:
        """The slot of the running block of `kind`, opened if another block came in between."""
        if kind is not self._kind:
            self._slot = self.open()
            self._kind = kind
        return self._slot

    def open(self) -> int:
        """A new slot of its own, for a tool call, an opaque item, or a block whose bounds the protocol tells.

        Ends the running block. Side by side, a vendor's own blocks stay apart: citations and signatures belong to one.
        """
        self._kind = None
        slot = self._count
        self._count += 1
        return slot
