"""Conversations, what was said in them, what it is found by, and completions that are kept.

Nothing that the versions before it write is changed, and what is added to their tables may be null.
"""

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision: Final = "0003"
down_revision: Final = "0002"
NUMBER: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WORDS: Final = sa.Text().with_variant(TSVECTOR(), "postgresql")
SEARCH: Final = (
    # words come as `router.store.words` made them: a space ends one, whatever else is in it. No place of a word in its
    # text is kept, and no length
    """CREATE VIRTUAL TABLE contents_search USING fts5(
    words, content='contents', content_rowid='number', tokenize='ascii', detail=none, columnsize=0)""",
    """CREATE TRIGGER contents_added AFTER INSERT ON contents BEGIN
    INSERT INTO contents_search(rowid, words) VALUES (new.number, new.words); END""",
    """CREATE TRIGGER contents_removed AFTER DELETE ON contents BEGIN
    INSERT INTO contents_search(contents_search, rowid, words) VALUES ('delete', old.number, old.words); END""",
)


def upgrade() -> None:
    op.add_column("keys", sa.Column("on_disconnect", sa.Text()))
    op.create_table(
        "conversations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("context", sa.Text()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.Column("forked_from", sa.Text()),
        sa.Column("call", sa.Text()),
        sa.Column("writer", sa.Text()),
        sa.Column("until", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("conversations_by_owner", "conversations", ["owner", "id"])
    op.create_index("conversations_by_age", "conversations", ["updated_at"])
    op.create_index(
        "conversations_taken",
        "conversations",
        ["call"],
        sqlite_where=sa.text("call IS NOT NULL"),
        postgresql_where=sa.text("call IS NOT NULL"),
    )
    op.create_table(
        "conversation_items",
        sa.Column("conversation", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("content", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("protocol", sa.Text()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("call", sa.Text()),
        sa.Column("stream", sa.Text()),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("conversation", "position"),
        sa.ForeignKeyConstraint(["conversation"], ["conversations.id"], ondelete="CASCADE"),
    )
    op.create_index("conversation_items_by_id", "conversation_items", ["conversation", "id"], unique=True)
    op.create_index("conversation_items_by_content", "conversation_items", ["content"])
    op.create_index(
        "conversation_items_drafts",
        "conversation_items",
        ["conversation"],
        sqlite_where=sa.text("status = 'in_progress'"),
        postgresql_where=sa.text("status = 'in_progress'"),
    )
    op.create_table(
        "contents",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=False),
        sa.Column("protocol", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("words", WORDS, nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index("contents_by_address", "contents", ["address"], unique=True)
    if op.get_bind().dialect.name == "sqlite":
        for statement in SEARCH:
            op.execute(statement)
    else:
        op.create_index("contents_by_words", "contents", ["words"], postgresql_using="gin")
    op.create_table(
        "turns",
        sa.Column("conversation", sa.Text(), nullable=False),
        sa.Column("call", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("first", sa.Text()),
        sa.Column("left_out", sa.BigInteger(), nullable=False),
        sa.Column("summary", sa.Text()),
        sa.Column("prompt_tokens", sa.BigInteger()),
        sa.PrimaryKeyConstraint("conversation", "call"),
        sa.ForeignKeyConstraint(["conversation"], ["conversations.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "summaries",
        sa.Column("conversation", sa.Text(), nullable=False),
        sa.Column("call", sa.Text(), nullable=False),
        sa.Column("covers", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("conversation", "call"),
        sa.ForeignKeyConstraint(["conversation"], ["conversations.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "completions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("call", sa.Text()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("completions_by_owner", "completions", ["owner", "created_at", "id"])
    op.create_index("completions_by_age", "completions", ["created_at", "id"])
