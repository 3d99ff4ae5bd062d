"""Alembic's environment; `modelbox.runtime.store.migrate` runs it."""
