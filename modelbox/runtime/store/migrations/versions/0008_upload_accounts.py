"""Who sent the bytes of an upload, where they may not see all of its namespace."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.undoing import drop_columns

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; uploads of before belong to nobody."""
    op.add_column("uploads", sa.Column("account", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Drops the column."""
    drop_columns("uploads", "account")
