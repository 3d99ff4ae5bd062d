"""What is kept and for how long, who may use how much space, and which bytes are being removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.schema import LongText
from modelbox.runtime.store.undoing import drop_columns, drop_indexes, drop_tables

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables, and the column that says when a namespace last used bytes that it holds."""
    op.add_column("holdings", sa.Column("used_at_us", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_holdings_blob_id"), "holdings", ["blob_id"])
    # Of MySQL's own accord it goes with that, but not where a downgrade made it.
    drop_indexes("holdings", "fk_holdings_blob_id")
    op.create_index(op.f("ix_uploads_digest"), "uploads", ["digest"])
    op.create_table(
        "retention_policies",
        sa.Column("scope", sa.String(length=160), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("keep_all", sa.Boolean(), nullable=False),
        sa.Column("keep_last", sa.BigInteger(), nullable=True),
        sa.Column("keep_younger_s", sa.Double(), nullable=True),
        sa.Column("keep_best", LongText(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "kind", name=op.f("pk_retention_policies")),
    )
    op.create_table(
        "version_locks",
        sa.Column("version_id", _Id, autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("locked_at_us", sa.BigInteger(), nullable=False),
        sa.Column("locked_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_version_locks_version_id")),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_version_locks")),
    )
    op.create_table(
        "quotas",
        sa.Column("namespace", sa.String(length=64), nullable=False),
        sa.Column("limit_bytes", sa.BigInteger(), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", name=op.f("pk_quotas")),
    )
    op.create_table(
        "blob_removals",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("batch", sa.String(length=40), nullable=False),
        sa.Column("started_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blob_removals")),
    )


def downgrade() -> None:
    """Removes them: nothing is kept or locked any more, and nobody has a quota."""
    drop_tables("blob_removals", "quotas", "version_locks", "retention_policies")
    drop_indexes("uploads", "ix_uploads_digest")
    drop_indexes("holdings", "ix_holdings_blob_id")
    drop_columns("holdings", "used_at_us")
