"""How many tokens one message of a prompt is: counted, or estimated by its length."""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from router.messages import ChatRequest, Message
from router.tokens import PER_MESSAGE, TokenCounter, measured, rough_count

TokensOf: TypeAlias = Callable[[Message], int]


def rough(message: Message) -> int:
    """By length alone: cheap. Images, files and recordings count as they do everywhere (`router.tokens`)."""
    texts, fixed = _measured(message)
    return rough_count(texts) + fixed


def counted(counter: TokenCounter, model: str) -> TokensOf:
    """By the model's vocabulary. What is given back takes its time, so it is for a thread; the first call may raise
    `BrokenVocabulary`."""

    def tokens_of(message: Message) -> int:
        texts, fixed = _measured(message)
        return counter.count_blocking(texts, model) + fixed

    return tokens_of


def beside(request: ChatRequest) -> int:
    """Tokens that a prompt has beside its messages: tools, a JSON Schema, what begins the answer."""
    texts, fixed = measured(msgspec.structs.replace(request, messages=()))
    return rough_count(texts) + fixed


def _measured(message: Message) -> tuple[list[str], int]:
    texts, fixed = measured(ChatRequest(model="", messages=(message,), protocol=""))
    return texts, fixed - PER_MESSAGE
