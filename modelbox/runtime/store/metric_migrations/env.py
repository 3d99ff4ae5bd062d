"""Runs the metrics' migrations on the connection that `modelbox.runtime.store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from modelbox.runtime.store.metric_schema import metadata
from modelbox.runtime.store.migrate import METRICS

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
    version_table=METRICS.version_table,
)
with context.begin_transaction():
    context.run_migrations()
