"""Single answers that are kept with their requests (`store: true`), once they are whole."""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
from msgspec import Raw, Struct

from router.call import Call
from router.errors import RouterError
from router.events import Event
from router.fold import Answer, Fold
from router.store.completions import Completion, keep
from router.store.store import Store, StoreAway

_PATIENCE: Final = 5.0
"""Seconds that the end of an answer waits for the store; then it is kept beside."""


class _Named(Struct):
    id: str


_named: Final = msgspec.json.Decoder(_Named)


class KeptCompletions:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("deltaway.completions")

    def saving(self, call: Call, owner: str, body: bytes, whole: Callable[[Answer], bytes]) -> "KeptCompletion":
        """`body`: the client's; `whole`: how an answer is written for it."""
        return KeptCompletion(self, call, owner, body, whole)

    async def keep(self, call: str, completion: Callable[[], Completion]) -> None:
        """Returns when it is kept, or will not be, or it takes too long. Never raises."""
        task = asyncio.get_running_loop().create_task(self._kept(call, completion), name=f"keep the answer of {call}")
        # the loop alone would let it be collected
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=_PATIENCE)
        if not task.done():
            self._log.error("a completion is not in the store yet: it is kept beside", request_id=call)

    async def _kept(self, call: str, completion: Callable[[], Completion]) -> None:
        try:
            await keep(self._store, completion())
        except StoreAway as error:
            self._log.error("a completion cannot be kept while the store is away", request_id=call, reason=str(error))
        except Exception as error:
            self._log.error("a completion could not be kept by a fault of ours", request_id=call, exc_info=error)


class KeptCompletion:
    """One answer, gathered while it comes; a `router.http.production.Saving`."""

    def __init__(
        self, completions: KeptCompletions, call: Call, owner: str, body: bytes, whole: Callable[[Answer], bytes]
    ) -> None:
        self._completions = completions
        self._call = call
        self._owner = owner
        self._body = body
        self._whole = whole
        self._fold = Fold()

    def add(self, event: Event, last: int) -> None:
        self._fold.add(event)

    async def close(self, error: RouterError | None) -> None:
        if error is None:
            await self._completions.keep(self._call.id, self._completion)

    def _completion(self) -> Completion:
        call, answer = self._call, self._whole(self._fold.result())
        return Completion(
            id=_named.decode(answer).id,
            owner=self._owner,
            created_at=call.trip.created_at,
            model=call.trip.asked,
            request=Raw(self._body),
            answer=Raw(answer),
            metadata=call.request.metadata,
            call=call.id,
        )
