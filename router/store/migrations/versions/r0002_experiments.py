"""Experiments, feedback on answers, why attempts were made, and which process has which configuration.

Nothing that the first version writes is changed, and what is added to its tables may be null.
"""

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: Final = "0002"
down_revision: Final = "0001"
JSON: Final = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("attempts", sa.Column("role", sa.Text()))
    op.add_column("attempts", sa.Column("why", sa.Text()))
    op.add_column("attempts", sa.Column("vendor_key", sa.Text()))
    op.add_column("attempts", sa.Column("seam", sa.BigInteger()))
    op.create_table(
        "exposures",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("shares", sa.Text(), nullable=False),
        sa.Column("shadow_of", sa.Text()),
        sa.Column("journal", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("call_id"),
    )
    op.create_index("exposures_by_experiment", "exposures", ["experiment", "created_at"])
    op.create_index(
        "exposures_by_original",
        "exposures",
        ["shadow_of"],
        sqlite_where=sa.text("shadow_of IS NOT NULL"),
        postgresql_where=sa.text("shadow_of IS NOT NULL"),
    )
    op.create_table(
        "feedback",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("comment", sa.Text()),
        sa.Column("key", sa.Text()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("call_id", "metric"),
    )
    op.create_table(
        "experiment_states",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("stopped", JSON, nullable=False),
        sa.Column("shares", JSON),
        sa.Column("why", JSON, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("wanted", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
