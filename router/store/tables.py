"""The tables. Times are Unix milliseconds, amounts nano-units, ids sort by time. `migrations/` creates them."""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

metadata: Final = MetaData()
_JSON: Final = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_OPEN: Final = text("outcome IS NULL")
"""Few rows are open at a time: what a dead process left is found without reading the others."""
_SHADOW: Final = text("shadow_of IS NOT NULL")
"""Few calls are repeated, and only those are looked for by the call that they repeat."""
_DRAFT: Final = text("status = 'in_progress'")
"""Few items are being written at a time: those that a dead process left are found without reading the others."""
_TAKEN: Final = text("call IS NOT NULL")
_NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")
"""Of SQLite the number of the row itself."""
_WORDS: Final = Text().with_variant(TSVECTOR(), "postgresql")


def _labels() -> list[Column[object]]:
    """`router.ledger.rows.Labels`, by the same names."""
    return [
        Column("asked", Text, nullable=False),
        Column("route", Text),
        Column("key", Text),
        Column("user", Text),
        Column("team", Text),
        Column("tags", _JSON, nullable=False),
        Column("experiment", Text),
        Column("arm", Text),
    ]


calls: Final = Table(
    "calls",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    *_labels(),
    Column("dialect", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("journal", Text, nullable=False),
    Column("decision", _JSON, nullable=False),
    Column("ended_at", BigInteger),
    Column("outcome", Text),
    Column("target", Text),
    Column("error", _JSON),
    Column("timing", _JSON, nullable=False),
    # ids are made of the time: an index that ends in the id pages through its rows from the newest on
    Index("calls_by_key", "key", "id"),
    Index("calls_by_user", "user", "id"),
    Index("calls_by_team", "team", "id"),
    Index("calls_by_asked", "asked", "id"),
    Index("calls_by_outcome", "outcome", "id"),
    Index("calls_by_target", "target", "id"),
    Index("calls_open", "journal", sqlite_where=_OPEN, postgresql_where=_OPEN),
)

attempts: Final = Table(
    "attempts",
    metadata,
    Column("call_id", Text, primary_key=True),
    Column("n", SmallInteger, primary_key=True, autoincrement=False),
    Column("created_at", BigInteger, nullable=False),
    *_labels(),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("journal", Text, nullable=False),
    Column("settled_at", BigInteger),
    Column("outcome", Text),
    Column("error", _JSON),
    Column("timing", _JSON, nullable=False),
    Column("vendor_request_id", Text),
    Column("input", BigInteger, nullable=False),
    Column("cache_read", BigInteger, nullable=False),
    Column("cache_write", BigInteger, nullable=False),
    Column("cache_write_1h", BigInteger, nullable=False),
    Column("input_audio", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("output_audio", BigInteger, nullable=False),
    Column("source", Text),
    Column("flag", Text),
    Column("service_tier", Text),
    Column("thinking", Boolean, nullable=False),
    Column("cost", BigInteger),
    Column("currency", Text),
    Column("price", Text),
    Column("counted_input", BigInteger),
    Column("counted_output", BigInteger),
    Column("role", Text),
    Column("why", Text),
    Column("vendor_key", Text),
    Column("seam", BigInteger),
    Index("attempts_by_time", "created_at"),
    Index("attempts_by_key", "key", "created_at"),
    Index("attempts_open", "journal", sqlite_where=_OPEN, postgresql_where=_OPEN),
)
journals: Final = Table(
    "journals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("applied", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    Column("host", Text, nullable=False),
)
"""How far each process's journal has been brought in: `applied` is the number of its last record here."""

gaps: Final = Table(
    "gaps",
    metadata,
    Column("id", Text, primary_key=True),
    Column("journal", Text, nullable=False),
    Column("began_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("costs", _JSON, nullable=False),
)

keys: Final = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("models", _JSON, nullable=False),
    Column("routes", _JSON, nullable=False),
    Column("tags", _JSON, nullable=False),
    Column("user", Text),
    Column("team", Text),
    Column("limits", _JSON, nullable=False),
    Column("budgets", _JSON, nullable=False),
    Column("pepper", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("previous_digest", LargeBinary),
    Column("previous_until", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("rotated_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("revision", BigInteger, nullable=False),
    Column("on_disconnect", Text),
    Index("keys_by_revision", "revision"),
)

owners: Final = Table(
    "owners",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("limits", _JSON, nullable=False),
    Column("budgets", _JSON, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

revisions: Final = Table(
    "revisions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
)
"""Counts every change to keys and owners, and to the states of experiments, so that all processes see one by asking for
a number."""

secrets: Final = Table(
    "secrets", metadata, Column("name", Text, primary_key=True), Column("value", LargeBinary, nullable=False)
)

holds: Final = Table(
    "holds",
    metadata,
    Column("call_id", Text, primary_key=True),
    Column("account", Text, primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("owner", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("holds_by_account", "account"),
    Index("holds_by_owner", "owner"),
)
"""What running calls have reserved, while the shared state is away."""

exposures: Final = Table(
    "exposures",
    metadata,
    Column("call_id", Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("experiment", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("shares", Text, nullable=False),
    Column("shadow_of", Text),
    Column("journal", Text, nullable=False),
    Index("exposures_by_experiment", "experiment", "created_at"),
    Index("exposures_by_original", "shadow_of", sqlite_where=_SHADOW, postgresql_where=_SHADOW),
)
"""What experiments have decided about calls: `router.experiment.Assigned`, a row a call."""

feedback: Final = Table(
    "feedback",
    metadata,
    Column("call_id", Text, primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("comment", Text),
    Column("key", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)
"""What clients say of answers; `key` said it. The value of a binary metric is 0 or 1."""

experiment_states: Final = Table(
    "experiment_states",
    metadata,
    Column("name", Text, primary_key=True),
    Column("stopped", _JSON, nullable=False),
    Column("shares", _JSON),
    Column("why", _JSON, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)
"""What became of experiments while they run: arms that a guardrail has stopped, and shares that were adapted."""

instances: Final = Table(
    "instances",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("generation", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("wanted", BigInteger, nullable=False),
    Column("error", Text),
    Column("seen_at", BigInteger, nullable=False),
)
"""The processes that serve, and which configuration each of them has in force."""

conversations: Final = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("context", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("last_position", BigInteger, nullable=False),
    Column("forked_from", Text),
    Column("call", Text),
    Column("writer", Text),
    Column("until", BigInteger),
    Index("conversations_by_owner", "owner", "id"),
    Index("conversations_by_age", "updated_at"),
    Index("conversations_taken", "call", sqlite_where=_TAKEN, postgresql_where=_TAKEN),
)
"""`last_position`: of the item that was added last, even if it was removed. `call`, `writer`, `until`: the call that
writes in it, its process, and how long that is believed without a sign of life."""


def _of_conversation() -> Column[object]:
    return Column("conversation", Text, ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True)


conversation_items: Final = Table(
    "conversation_items",
    metadata,
    _of_conversation(),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("content", Text),
    Column("message", Text),
    Column("protocol", Text),
    Column("status", Text, nullable=False),
    Column("call", Text),
    Column("stream", Text),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("conversation_items_by_id", "conversation", "id", unique=True),
    Index("conversation_items_by_content", "content"),
    Index("conversation_items_drafts", "conversation", sqlite_where=_DRAFT, postgresql_where=_DRAFT),
)
"""Which contents a conversation has, in their order. `message` and `protocol` are here while the item is being written,
and then in `contents`, where `content` is their address."""

contents: Final = Table(
    "contents",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("address", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("parent", Text, nullable=False),
    Column("protocol", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("words", _WORDS, nullable=False),
    Index("contents_by_address", "address", unique=True),
    Index("contents_by_words", "words", postgresql_using="gin").ddl_if(dialect="postgresql"),
)
"""What was said, once for all conversations of an owner that have the same past. `words` is what it is found by: in
SQLite words with spaces between, which triggers bring into the FTS5 table `contents_search`; in Postgres a `tsvector`
with the GIN index `contents_by_words`."""

turns: Final = Table(
    "turns",
    metadata,
    _of_conversation(),
    Column("call", Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("first", Text),
    Column("left_out", BigInteger, nullable=False),
    Column("summary", Text),
    Column("prompt_tokens", BigInteger),
)
"""What was sent of a conversation: `router.conversation.Turn`."""

summaries: Final = Table(
    "summaries",
    metadata,
    _of_conversation(),
    Column("call", Text, primary_key=True),
    Column("covers", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
"""What was written to be sent in place of a conversation's beginning, up to the item `covers`."""

completions: Final = Table(
    "completions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("call", Text),
    Index("completions_by_owner", "owner", "created_at", "id"),
    Index("completions_by_age", "created_at", "id"),
)
"""Single answers that clients wanted to be kept, each with its request. `metadata` is JSON of strings alone."""
