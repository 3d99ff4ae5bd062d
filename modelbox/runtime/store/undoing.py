"""What downgrades are made of.

MySQL keeps what a step has done when the step breaks off, so the step is undone before it runs again: a downgrade must
work on any part of what its upgrade does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ("drop_columns", "drop_indexes", "drop_tables")


def drop_tables(*names: str) -> None:
    """Drops tables, in this order, as far as they are there."""
    for name in names:
        op.drop_table(name, if_exists=True)


def drop_indexes(table: str, *names: str) -> None:
    """Drops indexes of a table, as far as they are there."""
    inspector = sa.inspect(op.get_bind())
    there = {str(index["name"]): index["column_names"] for index in inspector.get_indexes(table)}
    for name in names:
        if name not in there:
            continue
        if op.get_bind().dialect.name == "mysql":
            # A foreign key needs an index, and has one of its own name where there is no other.
            for key in inspector.get_foreign_keys(table):
                if key["constrained_columns"] == there[name] and key["name"] and key["name"] not in there:
                    op.create_index(op.f(key["name"]), table, key["constrained_columns"])
        op.drop_index(op.f(name), table)


def drop_columns(table: str, *names: str) -> None:
    """Drops columns of a table, as far as they are there."""
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
    for name in names:
        if name in there:
            op.drop_column(table, name)
