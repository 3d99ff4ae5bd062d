"""What was refused of a spool's last delivery, to be told again to a client that lost the answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.schema import LongText
from modelbox.runtime.store.undoing import drop_columns

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column."""
    op.add_column("spools", sa.Column("rejections", LongText(), nullable=True))


def downgrade() -> None:
    """Drops the column."""
    drop_columns("spools", "rejections")
