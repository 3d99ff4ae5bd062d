"""Runs the migrations on the connection that `modelbox.runtime.store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from modelbox.runtime.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
