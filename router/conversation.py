"""Conversations as values: items, the rules for what is sent of them, pages. The store keeps them, HTTP shows them."""

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from router.messages import Message

ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
"""`incomplete`: the answer was broken off, what is there is what had come."""
Order: TypeAlias = Literal["asc", "desc"]
Strategy: TypeAlias = Literal["none", "truncate", "summarise"]
MOST_ITEMS: Final = 20
"""Items that may be added in one request, as OpenAI has it."""


class ContextRules(Struct, frozen=True, forbid_unknown_fields=True):
    """What is sent of a conversation that has become long. All of it stays stored."""

    strategy: Strategy = "none"
    at: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """The part of the model's window from which on older turns are left out."""
    window: Annotated[int, Meta(ge=256)] | None = None
    """Tokens of prompt and answer together; None: what is known of the model."""
    keep_turns: Annotated[int, Meta(ge=1)] = 2
    """The latest turns that are always sent."""
    model: str | None = None
    """Of `summarise`: who writes the summary; None: the model that is asked."""
    max_tokens: Annotated[int, Meta(ge=16)] = 512
    """Of `summarise`: the longest that a summary may become."""
    budget: Annotated[int, Meta(ge=256)] = 20_000
    """Of `summarise`: tokens of one conversation that summaries may cost in an hour, input and output."""


class Conversation(Struct, frozen=True, kw_only=True):
    """Times are Unix milliseconds."""

    id: str
    """`conv_` and a ULID."""
    owner: str
    """The public id of the key that made it; empty where calls need none."""
    metadata: dict[str, str] = {}
    created_at: int
    updated_at: int
    forked_from: str | None = None
    context: ContextRules | None = None
    """None: what the route says."""


class Item(Struct, frozen=True, kw_only=True):
    """One thing that was said: one message, one tool call, one run of reasoning.

    A `message` of an `Assistant` holds either content or a refusal, or one tool call, or one run of reasoning.
    """

    id: str
    """Unique in its conversation; forks have the items of their past under the same ids."""
    message: Message
    protocol: str
    """Whose words the message's `extra` dictionaries are."""
    status: ItemStatus = "completed"
    created_at: int
    """Unix milliseconds."""
    call: str | None = None
    """The id of the request that it was written by, or came with."""
    stream: str | None = None
    """Of an answer: the stream that it can be followed on."""
    seq: int = 0
    """Of an answer that is being written: the number of the stream's last block that is in it."""
    content: str = ""
    """The address of its content: SHA-256 over owner, parent's address and message; empty while it is being written."""
    parent: str = ""
    """The address of the item before it when it was added; empty for the first."""


class ItemPage(Struct, frozen=True):
    items: tuple[Item, ...]
    more: bool


class ConversationPage(Struct, frozen=True):
    conversations: tuple[Conversation, ...]
    more: bool


class Draft(Struct, frozen=True, kw_only=True):
    """An item of an answer as it stands now."""

    conversation: str
    id: str
    message: Message
    protocol: str
    status: ItemStatus
    call: str
    stream: str | None
    seq: int
    created_at: int


class Turn(Struct, frozen=True, kw_only=True):
    """What was sent of a conversation with one call."""

    call: str
    conversation: str
    created_at: int
    strategy: Strategy = "none"
    first: str | None = None
    """The oldest item that was sent as it is; None: only what came with the call."""
    left_out: int = 0
    """Items before it that were not."""
    summary: str | None = None
    """What was sent in their place."""
    prompt_tokens: int | None = None
    """Estimated, where it mattered."""


class Hit(Struct, frozen=True):
    """An item that a search found."""

    conversation: str
    item: Item
    snippet: str
    """Text around the first place, the words that were looked for between U+2039 and U+203A."""


def conversation_id(ulid: str) -> str:
    return "conv_" + ulid
