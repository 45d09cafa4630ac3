"""A turn of a kept conversation: what was said before is sent too, and both sides are saved while the answer comes.

One call at a time writes to a conversation; it holds a lease that its process renews, so that one whose process dies
keeps nobody waiting for long. Answers under way are written to the store twice a second, those of all calls of this
process in one transaction: what had come half a second before a crash is there after it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
from msgspec import Struct, structs

from router.call import Call
from router.conversation import Conversation, Draft, Item, ItemStatus, Turn
from router.conversations.answer import answer_messages
from router.conversations.pieces import pieces, prefix_of
from router.conversations.prompt import Prompts, rules_for
from router.conversations.summary import Ask
from router.errors import ClientGone, Conflict, Gone, InvalidRequest, NotFound, RouterError, Stopped, StoreUnavailable
from router.events import Event
from router.fold import Fold
from router.generation import Generation
from router.messages import Message, System
from router.settings import Conversations
from router.store import conversations as kept
from router.store.drafts import save, settle_abandoned
from router.store.items import ConversationMissing, MissingItem, NewItem, StaleParent, add, history, remove_item
from router.store.store import Store, StoreAway
from router.store.turns import record_turn
from router.streams.live import LiveStream

SAVED_EVERY: Final = 0.5
"""Seconds between two looks at the answers under way."""
LEASE: Final = 10.0
"""Seconds for which a call has its conversation without a sign of life."""
_RENEWED: Final = 3.0
_AGAIN: Final = 0.1
"""Seconds between two tries to have a conversation that is busy."""
_PATIENCE: Final = 5.0
"""Seconds that the end of an answer waits for the store; then it is saved beside."""
_NAME: Final = "x-deltaway-conversation"


class Turning(Struct, frozen=True):
    """A call that has its conversation, before its answer has a stream."""

    call: Call
    """With the history in its request."""
    conversation: str
    asked: tuple[str, ...]
    """The ids of the items that came with it."""
    turn: Turn
    """What is sent of it, to be recorded once there is an answer."""


class _Queue:
    """The calls of this process on one conversation."""

    __slots__ = ("holder", "lock", "wanted")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0
        self.holder = ""
        """The call whose turn it is."""


class Answer:
    """An answer that is saved while it comes; a `router.http.production.Saving`."""

    def __init__(self, turning: Turning, live: LiveStream, turns: "Turns") -> None:
        self.call = turning.call
        self.conversation = turning.conversation
        self.asked = turning.asked
        self.turn: Turn | None = turning.turn
        """None: it is on record."""
        self.live = live
        self.status: ItemStatus = "in_progress"
        self.saved = asyncio.Event()
        """Set once its end is in the store, or never will be."""
        self.dirty = False
        self.refused = False
        self._fold = Fold()
        self._seq = 0
        self._turns = turns

    def add(self, event: Event, last: int) -> None:
        self._fold.add(event)
        self._seq = last
        self.dirty = True

    async def close(self, error: RouterError | None) -> None:
        self.status = "completed" if error is None else "incomplete"
        # a question that nobody has begun to answer is asked again; one whose asker left is kept
        asked_anew = self.live.refused is not None and not isinstance(error, ClientGone | Stopped)
        self.refused = asked_anew and not self.drafts()
        self.dirty = True
        self._turns.hurry()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.saved.wait()
        except TimeoutError:
            structlog.get_logger("deltaway.conversations").error(
                "an answer is not in the store yet: it is saved beside", request_id=self.call.id
            )

    def drafts(self) -> list[Draft]:
        """The items of the answer as they stand."""
        number = self.call.id.removeprefix("req_")
        return [
            Draft(
                conversation=self.conversation,
                id=f"{prefix}{number}{slot:02x}",
                message=message,
                protocol=self.call.request.protocol,
                status=self.status,
                call=self.call.id,
                # the stream of a whole answer has it only when it has ended, and goes with it then
                stream=None if self.live.head.whole and self.status == "in_progress" else self.live.head.id,
                seq=self._seq,
                created_at=self.call.trip.created_at,
            )
            for slot, prefix, message in answer_messages(self._fold.result(), self.call.request.protocol)
        ]


class Turns:
    """`writer`: this process, by the name of its journal."""

    def __init__(self, store: Store, writer: str, prompts: Prompts) -> None:
        self._store = store
        self._writer = writer
        self._prompts = prompts
        self._answers: dict[str, Answer] = {}
        """By the id of the call."""
        self._waiting: set[str] = set()
        """Calls that have their conversation and no stream yet."""
        self._queues: dict[str, _Queue] = {}
        self._places: dict[str, _Queue] = {}
        """Call → where it stands."""
        self._wake = asyncio.Event()
        self._away = False
        self._log = structlog.get_logger("deltaway.conversations")

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Saves what comes; at the end what is left."""
        saving = asyncio.create_task(self._run())
        try:
            yield
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            if self._answers:
                try:
                    async with asyncio.timeout(_PATIENCE):
                        await self._save()
                except (StoreAway, TimeoutError) as error:
                    self._log.error("answers could not be saved to their end", reason=str(error))

    def hurry(self) -> None:
        """An answer has ended, and somebody waits for it to be saved."""
        self._wake.set()

    # -- the beginning ---------------------------------------------------------------------------------------------

    async def begin(
        self, generation: Generation, call: Call, owner: str, *, admin: bool, parent: str | None, ask: Ask | None
    ) -> Turning:
        """Wait for the conversation, read it, and put down what came with the call. `end` must follow, or `answer`.
        Raises `NotFound`, `Conflict`, `InvalidRequest`, `StoreUnavailable`."""
        identity = call.conversation
        assert identity is not None
        if (call.request.sampling.n or 1) > 1:
            raise InvalidRequest("a conversation goes on with one answer: leave `n` out", param="n")
        settings = generation.config.conversations
        for name, text in (("conversation", identity), ("conversation.parent", parent or "")):
            if not text.isprintable():
                # no id is, and a database may refuse to look for it
                raise InvalidRequest(f"`{name}` is no id: it holds characters that cannot be printed", param=name)
        try:
            conversation = await kept.find(self._store, identity, owner=None if admin else owner)
            if conversation is None:
                raise _missing()
            await self._taken(call, identity, settings)
            self._waiting.add(call.id)
            try:
                return await self._begun(generation, call, conversation, parent, ask)
            except BaseException:
                await self._let_go(call.id, identity)
                raise
        except StoreAway as error:
            raise StoreUnavailable(
                "the conversation cannot be read or written now; try again later", retry_after=5.0
            ) from error

    def answer(self, turning: Turning, live: LiveStream) -> Answer:
        """Its answer will come on that stream."""
        answer = self._answers[turning.call.id] = Answer(turning, live, self)
        self._waiting.discard(turning.call.id)
        return answer

    def deleted(self, call: str) -> None:
        """The conversation in which that call writes is gone; does nothing if the call is none of this process."""
        answer = self._answers.get(call)
        if answer is not None and answer.live.stopping is not None:
            answer.live.stopping(_deleted())

    async def end(self, turning: Turning) -> None:
        """The call will have no answer: what came with it is not said, and others may have the conversation."""
        try:
            for item in turning.asked:
                await kept.remove_item(self._store, turning.conversation, item)
        except StoreAway as error:
            self._log.warning("what was not answered stays in its conversation", reason=str(error))
        await self._let_go(turning.call.id, turning.conversation)

    async def _let_go(self, call: str, conversation: str) -> None:
        self._answers.pop(call, None)
        self._waiting.discard(call)
        try:
            await kept.release(self._store, conversation, call=call)
        except StoreAway as error:
            self._log.warning("a conversation stays taken until its lease is over", reason=str(error))
        finally:
            self._leave(call, conversation)

    async def _taken(self, call: Call, identity: str, settings: Conversations) -> None:
        """Wait for the call's turn: those of this process in the order they came, then those of others."""
        patience = float(settings.wait) if settings.busy == "wait" else 0.0
        until = time.monotonic() + patience
        queue = self._queues.setdefault(identity, _Queue())
        queue.wanted += 1
        self._places[call.id] = queue
        try:
            if queue.lock.locked() and not patience:
                raise _busy()
            try:
                async with asyncio.timeout(patience or None):
                    await queue.lock.acquire()
            except TimeoutError:
                raise _busy() from None
            queue.holder = call.id
            while True:
                now = _now()
                lease = now + int(LEASE * 1000)
                if await kept.take(self._store, identity, call=call.id, writer=self._writer, at=now, until=lease):
                    return
                if time.monotonic() >= until:
                    raise _busy()
                await asyncio.sleep(_AGAIN)
        except BaseException:
            self._leave(call.id, identity)
            raise

    def _leave(self, call: str, identity: str) -> None:
        """Let the next of this process have the conversation."""
        queue = self._places.pop(call, None)
        if queue is None:
            return
        queue.wanted -= 1
        if queue.holder == call:
            queue.holder = ""
            queue.lock.release()
        if not queue.wanted and self._queues.get(identity) is queue:
            del self._queues[identity]

    async def _begun(
        self, generation: Generation, call: Call, conversation: Conversation, parent: str | None, ask: Ask | None
    ) -> Turning:
        # what a call that died in it had written is a part of it
        await settle_abandoned(self._store, at=_now())
        items = await history(self._store, conversation.id)
        new = _unsaid(call.request.messages, items)
        call = call.with_request(structs.replace(call.request, messages=new))
        route = generation.config.models.get(call.request.model)
        rules = rules_for(conversation, route, generation.config.conversations)
        window = generation.catalog.window(call.request.model) if rules.strategy != "none" else None
        prompt = await self._prompts.prompt_for(call, conversation, items, rules, window, ask)
        now, number = _now(), call.id.removeprefix("req_")
        said = [
            # beside the items of the answer, whose ids end in their slot
            NewItem(f"{prefix_of(piece)}{number}q{place:02x}", piece, call.request.protocol, now, call.id)
            for place, piece in enumerate(piece for message in new for piece in pieces(message))
        ]
        try:
            added = await add(self._store, conversation.id, said, at=now, parent=parent)
        except ConversationMissing:
            raise _missing() from None
        except MissingItem:
            raise InvalidRequest(
                "`conversation.parent` is no item of this conversation",
                code="item_not_found",
                param="conversation.parent",
            ) from None
        except StaleParent as stale:
            raise Conflict(
                f"`conversation.parent` is not the last item any more, which is `{stale.last}`: read what was said "
                "meanwhile, or fork the conversation at the item",
                code="stale_parent",
                param="conversation.parent",
            ) from None
        call.trip.headers.update(prompt.headers)
        request = structs.replace(call.request, messages=prompt.messages)
        return Turning(call.with_request(request), conversation.id, tuple(item.id for item in added), prompt.turn)

    # -- while answers come ----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        renewed = 0.0
        while True:
            try:
                async with asyncio.timeout(SAVED_EVERY):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                if time.monotonic() - renewed > _RENEWED and (self._answers or self._waiting):
                    renewed = time.monotonic()
                    calls = [*self._answers, *self._waiting]
                    await kept.renew(self._store, calls, _now() + int(LEASE * 1000))
                await self._save()
                self._away = False
            except StoreAway as error:
                if not self._away:
                    self._away = True
                    self._log.error("answers cannot be saved while the store is away", reason=str(error))
                await asyncio.sleep(1.0)
                self._wake.set()
            except Exception as error:
                self._log.error("answers could not be saved by a fault of ours", exc_info=error)
                await self._save_each()

    async def _save_each(self) -> None:
        """One by one, so that an answer that cannot be saved keeps no other from it."""
        for answer in [answer for answer in self._answers.values() if answer.dirty]:
            try:
                await self._written([answer])
            except StoreAway:
                return
            except Exception as error:
                self._log.error("an answer cannot be saved", request_id=answer.call.id, exc_info=error)
                answer.dirty = False
                if answer.status != "in_progress":
                    await self._let_go(answer.call.id, answer.conversation)
                    answer.saved.set()

    async def _save(self) -> None:
        """Write down how the answers stand that have changed, in one transaction."""
        changed = [answer for answer in self._answers.values() if answer.dirty]
        if changed:
            await self._written(changed)

    async def _written(self, changed: Sequence[Answer]) -> None:
        drafts: list[Draft] = []
        for answer in changed:
            answer.dirty = False
            drafts += answer.drafts()
        ended = [answer for answer in changed if answer.status != "in_progress"]
        try:
            for answer in changed:
                # of a call that is refused nothing is kept
                if answer.turn is not None and not answer.refused:
                    await record_turn(self._store, answer.turn)
                    answer.turn = None
            gone = await save(self._store, drafts) if drafts else frozenset()
            for answer in ended:
                if answer.refused:
                    for item in answer.asked:
                        await remove_item(self._store, answer.conversation, item)
                await kept.release(self._store, answer.conversation, call=answer.call.id)
        except BaseException:
            for answer in changed:
                answer.dirty = True
            raise
        for answer in ended:
            self._answers.pop(answer.call.id, None)
            self._leave(answer.call.id, answer.conversation)
            answer.saved.set()
        for answer in changed:
            if answer.conversation in gone and answer.live.stopping is not None:
                answer.live.stopping(_deleted())


def _unsaid(messages: Sequence[Message], items: Sequence[Item]) -> tuple[Message, ...]:
    """The messages of a call without the instructions at their beginning that the conversation has already: clients
    send those with every call."""
    said = [item.message for item in items if isinstance(item.message, System)]
    begin = 0
    while begin < len(messages) and isinstance(messages[begin], System) and messages[begin] in said:
        begin += 1
    return tuple(messages[begin:])


def _busy() -> Conflict:
    return Conflict(
        "another call is writing its answer in this conversation: wait until it has ended, stop it, or fork the "
        "conversation",
        code="conversation_busy",
        param=_NAME,
        retry_after=1.0,
    )


def _missing() -> NotFound:
    return NotFound(
        "no conversation of that id that this key may use: make one with `POST /v1/conversations`",
        code="conversation_not_found",
        param=_NAME,
    )


def _deleted() -> Gone:
    return Gone("the conversation was deleted while its answer was written", code="conversation_deleted")


def _now() -> int:
    return int(time.time() * 1000)
