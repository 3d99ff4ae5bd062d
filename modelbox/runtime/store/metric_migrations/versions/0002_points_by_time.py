"""The times between which the points of a series are, and points by month on PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.metric_partitions import partition_points, unpartition_points
from modelbox.runtime.store.undoing import drop_columns

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the times, and splits the table of points on PostgreSQL."""
    # NULL in what is there: not known, and not used.
    op.add_column("metric_series", sa.Column("low_time_us", sa.BigInteger(), nullable=True))
    op.add_column("metric_series", sa.Column("high_time_us", sa.BigInteger(), nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        partition_points(op.get_bind())


def downgrade() -> None:
    """Takes both back."""
    if op.get_bind().dialect.name == "postgresql":
        unpartition_points(op.get_bind())
    drop_columns("metric_series", "high_time_us", "low_time_us")
