"""The ledger, keys and limits: what the first version keeps."""

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: Final = "0001"
down_revision: Final = None
JSON: Final = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("n", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("route", sa.Text()),
        sa.Column("key", sa.Text()),
        sa.Column("user", sa.Text()),
        sa.Column("team", sa.Text()),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("experiment", sa.Text()),
        sa.Column("arm", sa.Text()),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("journal", sa.Text(), nullable=False),
        sa.Column("settled_at", sa.BigInteger()),
        sa.Column("outcome", sa.Text()),
        sa.Column("error", JSON),
        sa.Column("timing", JSON, nullable=False),
        sa.Column("vendor_request_id", sa.Text()),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("cache_read", sa.BigInteger(), nullable=False),
        sa.Column("cache_write", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_1h", sa.BigInteger(), nullable=False),
        sa.Column("input_audio", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("reasoning", sa.BigInteger(), nullable=False),
        sa.Column("output_audio", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text()),
        sa.Column("flag", sa.Text()),
        sa.Column("service_tier", sa.Text()),
        sa.Column("thinking", sa.Boolean(), nullable=False),
        sa.Column("cost", sa.BigInteger()),
        sa.Column("currency", sa.Text()),
        sa.Column("price", sa.Text()),
        sa.Column("counted_input", sa.BigInteger()),
        sa.Column("counted_output", sa.BigInteger()),
        sa.PrimaryKeyConstraint("call_id", "n"),
    )
    op.create_index("attempts_by_key", "attempts", ["key", "created_at"])
    op.create_index("attempts_by_time", "attempts", ["created_at"])
    op.create_index(
        "attempts_open",
        "attempts",
        ["journal"],
        sqlite_where=sa.text("outcome IS NULL"),
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("route", sa.Text()),
        sa.Column("key", sa.Text()),
        sa.Column("user", sa.Text()),
        sa.Column("team", sa.Text()),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("experiment", sa.Text()),
        sa.Column("arm", sa.Text()),
        sa.Column("dialect", sa.Text(), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("journal", sa.Text(), nullable=False),
        sa.Column("decision", JSON, nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("outcome", sa.Text()),
        sa.Column("target", sa.Text()),
        sa.Column("error", JSON),
        sa.Column("timing", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("calls_by_asked", "calls", ["asked", "id"])
    op.create_index("calls_by_key", "calls", ["key", "id"])
    op.create_index("calls_by_outcome", "calls", ["outcome", "id"])
    op.create_index("calls_by_team", "calls", ["team", "id"])
    op.create_index("calls_by_target", "calls", ["target", "id"])
    op.create_index("calls_by_user", "calls", ["user", "id"])
    op.create_index(
        "calls_open",
        "calls",
        ["journal"],
        sqlite_where=sa.text("outcome IS NULL"),
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.create_table(
        "gaps",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("journal", sa.Text(), nullable=False),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("costs", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "holds",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("call_id", "account"),
    )
    op.create_index("holds_by_account", "holds", ["account"])
    op.create_index("holds_by_owner", "holds", ["owner"])
    op.create_table(
        "journals",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("applied", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger()),
        sa.Column("host", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("models", JSON, nullable=False),
        sa.Column("routes", JSON, nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("user", sa.Text()),
        sa.Column("team", sa.Text()),
        sa.Column("limits", JSON, nullable=False),
        sa.Column("budgets", JSON, nullable=False),
        sa.Column("pepper", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("previous_digest", sa.LargeBinary()),
        sa.Column("previous_until", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("rotated_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("keys_by_revision", "keys", ["revision"])
    op.create_table(
        "owners",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("limits", JSON, nullable=False),
        sa.Column("budgets", JSON, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "id"),
    )
    op.create_table(
        "revisions",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
