"""Conversations, items and drafts to put into a store."""

from typing import Any

from router.conversation import Conversation, Draft
from router.messages import Assistant, Message, User
from router.store.items import NewItem


def conversation(name: str = "a", owner: str = "key_1", **fields: Any) -> Conversation:
    return Conversation(**{"id": f"conv_{name}", "owner": owner, "created_at": 1000, "updated_at": 1000, **fields})


def said(item_id: str, text: str | Message, created_at: int = 1000, call: str | None = None) -> NewItem:
    return NewItem(item_id, User(text) if isinstance(text, str) else text, "openai", created_at, call)


def draft(item_id: str, text: str | Message, status: Any = "in_progress", seq: int = 1, **fields: Any) -> Draft:
    given = {
        "conversation": "conv_a",
        "id": item_id,
        "message": Assistant(text) if isinstance(text, str) else text,
        "protocol": "openai",
        "status": status,
        "call": "req_1",
        "stream": "strm_1",
        "seq": seq,
        "created_at": 2000,
    }
    return Draft(**{**given, **fields})
