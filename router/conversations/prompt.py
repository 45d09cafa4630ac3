"""What is sent to the model of a conversation: its history as far as the rules let it, and what came with the call."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from msgspec import Struct

from router.call import Call
from router.conversation import ContextRules, Conversation, Item, Turn
from router.fold import Answer
from router.messages import Message
from router.route import Route
from router.settings import Conversations
from router.tokens import TokenCounter

Ask: TypeAlias = Callable[[Call], Awaitable[Answer]]
"""Sends a call through all layers, files its end with the ledger, and gives the whole answer. Raises `RouterError`."""


class Prompt(Struct, frozen=True):
    messages: tuple[Message, ...]
    """What the call's request has in place of its own: the history first, then what came with the call."""
    turn: Turn
    """To be recorded."""
    headers: dict[str, str] = {}
    """Of the response."""


class Prompts:
    """`counter` None: tokens are estimated by length alone."""

    def __init__(self, counter: TokenCounter | None) -> None:
        self._counter = counter

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
        return Prompt(
            (*(item.message for item in items), *call.request.messages),
            Turn(
                call=call.id,
                conversation=conversation.id,
                created_at=call.trip.created_at,
                first=items[0].id if items else None,
            ),
        )


def rules_for(conversation: Conversation, route: Route | None, defaults: Conversations) -> ContextRules:
    """The rules of the conversation, else of the route that is asked for, else of all."""
    if conversation.context is not None:
        return conversation.context
    return route.context if route is not None and route.context is not None else defaults.context
