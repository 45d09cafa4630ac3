"""What is sent to the model of a conversation: its history as far as the rules let it, and what came with the call."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from router.call import Call
from router.conversation import ContextRules, Conversation, Item, Strategy, Turn
from router.conversations.fitting import Fitted, fit
from router.conversations.lengths import TokensOf, beside, counted, rough
from router.conversations.said import in_words_of
from router.conversations.summary import Ask, Summariser, as_message, is_of
from router.messages import ChatRequest, Message
from router.route import Route
from router.settings import Conversations
from router.tokens import BrokenVocabulary, TokenCounter

HEADER: Final = "x-deltaway-context"
ANSWER: Final = 4096
"""Tokens kept free for an answer if the request does not say, a quarter of the window at most."""
_AT_ONCE: Final = 200
"""Messages that are fitted on the event loop at most: a millisecond or two."""
_DOUBT: Final = 2
"""What is so many times shorter than the room by its length alone need not be counted."""


class Prompt(Struct, frozen=True):
    messages: tuple[Message, ...]
    """What the call's request has in place of its own: the history first, then what came with the call."""
    turn: Turn
    """To be recorded."""
    headers: dict[str, str] = {}
    """Of the response."""


class Prompts:
    """`counter` None: tokens are estimated by length alone. `summariser` None: older turns are left out without one."""

    def __init__(self, counter: TokenCounter | None, summariser: Summariser | None = None) -> None:
        self._counter = counter
        self._summariser = summariser
        self._log = structlog.get_logger("deltaway.conversations")

    async def prompt_for(
        self,
        call: Call,
        conversation: Conversation,
        items: Sequence[Item],
        rules: ContextRules,
        window: int | None,
        ask: Ask | None = None,
    ) -> Prompt:
        """`call` as the client made it: its request has the new messages alone. `items`: all that was said before, the
        oldest first. `rules`: of `rules_for`. `window`: of `Catalog.window`. `ask`: sends a summary's call; None:
        older turns are left out without one. Never raises for a summary that fails."""
        fitted, is_counted = await self._fitted(call.request, _in_words(items, call.request), rules, window)
        messages, tokens = fitted.messages, fitted.tokens + beside(call.request)
        strategy: Strategy = "none"
        text: str | None = None
        headers: dict[str, str] = {}
        if fitted.left_out:
            strategy, told = "truncate", f"truncated; left_out={len(fitted.left_out)}"
            if rules.strategy == "summarise" and self._summariser is not None and ask is not None:
                summary = await self._summariser.summary_of(
                    call, conversation.id, fitted.left_out, rules, fitted.for_summary, ask
                )
                if summary is not None:
                    # an older one is better than none, and the header says that it is not of all
                    text, place = summary.text, fitted.instructions
                    message = as_message(summary, messages[:place])
                    messages = (*messages[:place], message, *messages[place:])
                    tokens += rough(message)
                    if is_of(summary, fitted.left_out):
                        strategy, told = "summarise", f"summarised; left_out={len(fitted.left_out)}"
            headers[HEADER] = told
        turn = Turn(
            call=call.id,
            conversation=conversation.id,
            created_at=call.trip.created_at,
            strategy=strategy,
            first=fitted.first,
            left_out=len(fitted.left_out),
            summary=text,
            prompt_tokens=tokens if is_counted else None,
        )
        return Prompt(messages, turn, headers)

    async def _fitted(
        self, request: ChatRequest, items: Sequence[Item], rules: ContextRules, window: int | None
    ) -> tuple[Fitted, bool]:
        """What fits, and whether its tokens were counted: not where there is no need to know."""
        limit = rules.window or window
        reserve = 0 if limit is None else request.sampling.max_tokens or min(ANSWER, limit // 4)

        async def tried(tokens_of: TokensOf, *, thread: bool) -> Fitted:
            said = (items, request.messages, rules, window, tokens_of, reserve, beside(request))
            return await asyncio.to_thread(fit, *said) if thread else fit(*said)

        many = len(items) > _AT_ONCE
        if limit is None or rules.strategy == "none":
            return await tried(lambda _: 0, thread=many), False
        fitted = await tried(rough, thread=many)
        if fitted.room is not None and not fitted.left_out and fitted.tokens * _DOUBT <= fitted.room:
            return fitted, False
        if self._counter is not None:
            try:
                return await tried(counted(self._counter, request.model), thread=True), True
            except BrokenVocabulary as broken:
                self._log.error("tokens are estimated by length", reason=str(broken))
        return fitted, True


def rules_for(conversation: Conversation, route: Route | None, defaults: Conversations) -> ContextRules:
    """The rules of the conversation, else of the route that is asked for, else of all."""
    if conversation.context is not None:
        return conversation.context
    return route.context if route is not None and route.context is not None else defaults.context


def _in_words(items: Sequence[Item], request: ChatRequest) -> Sequence[Item]:
    """The items without what only another protocol knows."""
    protocol = request.protocol
    if all(item.protocol == protocol for item in items):
        return items
    return [
        item
        if item.protocol == protocol
        else msgspec.structs.replace(item, message=in_words_of(item.message, item.protocol, protocol))
        for item in items
    ]
