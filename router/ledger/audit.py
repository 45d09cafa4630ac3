"""A share of the calls is counted anew by our own tokenizer: what it finds beside what the vendor reported."""

import asyncio
import random
from collections.abc import Callable
from typing import Final

import structlog

from router.audio import heard, spoken
from router.call import Attempt, Call
from router.ledger.rows import Audited
from router.tokens import BrokenVocabulary, TokenCounter, measured

_MOST: Final = 4
"""Audits that may be counting at a time; a call that comes meanwhile is not audited."""


class Audits:
    """Audits the share `share` (0 to 1) of what is drawn, and tells `done` what it has counted."""

    def __init__(self, tokens: TokenCounter, share: float, done: Callable[[Audited], None]) -> None:
        self._tokens = tokens
        self._share = share
        self._done = done
        self._running: set[asyncio.Task[None]] = set()

    def draw(self, call: Call, attempt: Attempt) -> None:
        """Audit the attempt, if the lot falls on it."""
        if not self._share or len(self._running) >= _MOST or (self._share < 1 and random.random() >= self._share):
            return
        task = asyncio.get_running_loop().create_task(self._audit(call, attempt))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Give up what is still being counted."""
        for audit in self._running:
            audit.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _audit(self, call: Call, attempt: Attempt) -> None:
        request, model, generated = call.request, attempt.target.model, attempt.generated
        texts, fixed = measured(request, recordings=False)
        fixed += heard(request, model)[0]
        said = spoken(request, model, generated.audio)
        try:
            counted_input = await asyncio.to_thread(self._tokens.count_blocking, texts, model) + fixed
            written = ["".join(generated.output), "".join(generated.reasoning)]
            counted_output = await asyncio.to_thread(self._tokens.count_blocking, written, model) + said
        except BrokenVocabulary as broken:
            structlog.get_logger("deltaway.ledger").error("no call can be audited", reason=str(broken))
            return
        self._done(Audited(call.id, attempt.n, counted_input, counted_output))
