"""What events carry as metadata, by path, so that they are found by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.undoing import drop_tables

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MAX_VALUES = 1000
_BATCH = 1000


def upgrade() -> None:
    """Makes the table, then the rows of the events that are there."""
    op.create_table(
        "event_values",
        sa.Column("event_id", _Id, nullable=False),
        sa.Column("path", sa.String(length=250), nullable=False),
        sa.Column("number", sa.Double(), nullable=True),
        sa.Column("text", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_event_values_event_id")),
        sa.PrimaryKeyConstraint("event_id", "path", name=op.f("pk_event_values")),
        sqlite_with_rowid=False,
    )
    for column in ("number", "text"):
        name = op.f(f"ix_event_values_path_{column}_event_id")
        op.create_index(name, "event_values", ["path", column, "event_id"], unique=False)
    connection = op.get_bind()
    tables = sa.MetaData()
    tables.reflect(connection, only=("events", "event_values"))
    events, values = tables.tables["events"], tables.tables["event_values"]
    last = 0
    query = sa.select(events.c.id, events.c.metadata).order_by(events.c.id).limit(_BATCH)
    while rows := connection.execute(query.where(events.c.id > last)).all():
        last = rows[-1].id
        made = [{"event_id": row.id, **one} for row in rows for one in _values(json.loads(row.metadata))]
        if made:
            connection.execute(sa.insert(values), made)


def downgrade() -> None:
    """Drops the table: the events still carry their metadata."""
    drop_tables("event_values")


def _values(metadata: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    for path, value in _walk("", metadata):
        if len(found) == _MAX_VALUES:
            break
        if len(path) <= 250:
            found.setdefault(path, value)
    for path, value in found.items():
        number = text = None
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, int | float):
            number = float(value)
        elif isinstance(value, str):
            text = value[:255]
        yield {"path": path, "number": number, "text": text}


def _walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if path and value is not None:
        yield path, value
    if isinstance(value, list):
        value = {str(place): inner for place, inner in enumerate(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(f"{path}.{key}" if path else key, inner)
