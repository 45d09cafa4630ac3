"""Conversations, items and drafts to put into a store."""

import sqlite3
from typing import Any

from router.conversation import Conversation, Draft
from router.messages import Assistant, Message, User
from router.store.items import NewItem
from router.store.store import Store


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


def on_disk(store: Store) -> bytes:
    """The file and its log, after all of the log was brought into the file."""
    file = store._url.file
    assert file is not None
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0] == 0
    connection.close()
    contents = b""
    for end in ("", "-wal"):
        with open(file + end, "rb") as opened:
            contents += opened.read()
    return contents
