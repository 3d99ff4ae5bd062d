"""Objects, keys, series and points of metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.metric_schema import LongBytes
from modelbox.runtime.store.undoing import drop_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables of metrics."""
    op.create_table(
        "metric_objects",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metric_objects")),
        sa.UniqueConstraint("uid", name=op.f("uq_metric_objects_uid")),
    )
    op.create_table(
        "metric_keys",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=250), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metric_keys")),
        sa.UniqueConstraint("name", name=op.f("uq_metric_keys_name")),
    )
    op.create_table(
        "metric_series",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("object_id", _Id, nullable=False),
        sa.Column("key_id", _Id, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("min", sa.Double(), nullable=True),
        sa.Column("max", sa.Double(), nullable=True),
        sa.Column("latest", sa.Double(), nullable=True),
        sa.Column("latest_flag", sa.SmallInteger(), nullable=False),
        sa.Column("infinite", sa.SmallInteger(), nullable=False),
        sa.Column("latest_step", sa.BigInteger(), nullable=False),
        sa.Column("latest_time_us", sa.BigInteger(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metric_series")),
        sa.UniqueConstraint("object_id", "key_id", name=op.f("uq_metric_series_object_id_key_id")),
    )
    op.create_index(
        op.f("ix_metric_series_key_id_latest_object_id"), "metric_series", ["key_id", "latest", "object_id"]
    )
    op.create_table(
        "metric_points",
        sa.Column("series_id", _Id, autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("time_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("payload", LongBytes(), nullable=True),
        sa.PrimaryKeyConstraint("series_id", "step", "time_us", name=op.f("pk_metric_points")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drops everything."""
    drop_tables("metric_points", "metric_series", "metric_keys", "metric_objects")
