"""Which tables a copy has, and what is true of them in a database: rows, their sum, and the last number given.

Every table of the schemas is copied, but for those that belong to running servers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Table, func, inspect, select, text

from modelbox.runtime.moving.lines import write_rows
from modelbox.runtime.store import metric_schema, schema
from modelbox.runtime.store.migrate import MAIN, METRICS, Migrations
from modelbox.runtime.store.pages import iter_pages

__all__ = (
    "NOT_COPIED",
    "CopiedTable",
    "RowsSum",
    "copied_tables",
    "iter_table_lines",
    "known_schema",
    "last_id",
    "set_last_id",
    "shown_schema",
    "stored_schema",
)

NOT_COPIED = frozenset(["blob_removals", "leases", "replicas"])
"""They tell of servers that run, and of bytes that one store is about to lose: nothing that another has."""

_PAGE_ROWS = 10_000
_PAGE_BYTES = 4 << 20
"""Of format 1: pages of points are lines, and must be the same wherever they are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedTable:
    """A table, and whether it is one of the metrics' database."""

    table: Table
    database: str


def copied_tables() -> list[CopiedTable]:
    """All of them, such that each comes behind those that it refers to."""
    return [
        CopiedTable(table=table, database=database)
        for metadata, database in ((schema.metadata, "main"), (metric_schema.metadata, "metrics"))
        for table in metadata.sorted_tables
        if table.name not in NOT_COPIED
    ]


def known_schema() -> dict[str, str]:
    """The revisions of the schema that this release reads and writes."""
    return {"main": MAIN.head, "metrics": METRICS.head}


def stored_schema(main: Connection, metrics: Connection) -> dict[str, str]:
    """Those of a database; empty where there are no tables of ours."""
    return {"main": _revision(main, MAIN), "metrics": _revision(metrics, METRICS)}


def _revision(conn: Connection, migrations: Migrations) -> str:
    if not inspect(conn).has_table(migrations.version_table):
        return ""
    return str(conn.execute(text(f"SELECT version_num FROM {migrations.version_table}")).scalar() or "")


def shown_schema(revisions: Mapping[str, str]) -> str:
    """Revisions for people."""
    return " and ".join(f"{revision or 'none'} ({name})" for name, revision in revisions.items())


def iter_table_lines(conn: Connection, table: Table) -> Iterator[tuple[int, bytes]]:
    """All lines of a table, each with the number of rows in it. Memory is bounded by a page."""
    for page in iter_pages(conn, table, rows=_PAGE_ROWS, max_bytes=_PAGE_BYTES):
        yield from write_rows(table, page)


class RowsSum:
    """Adds up lines, in whatever order they come."""

    def __init__(self) -> None:
        self.rows = 0
        self.lines = 0
        self._sum = 0

    def add(self, rows: int, line: bytes) -> None:
        """Adds one line with so many rows."""
        self.rows += rows
        self.lines += 1
        self._sum += int.from_bytes(hashlib.sha256(line).digest()[:16], "big")

    @property
    def hexdigest(self) -> str:
        """The sum, modulo 2**128."""
        return f"{self._sum & (1 << 128) - 1:032x}"


# -- numbers that databases give -------------------------------------------------------------------------------------


def _gives_numbers(table: Table) -> bool:
    return table.autoincrement_column is not None and "id" in table.c


def last_id(conn: Connection, table: Table) -> int | None:
    """The greatest number that the database gave to a row of the table, as far as it remembers; None if it gives none.

    What is remembered is no part of a snapshot, so it may be later than that, never earlier.
    """
    if not _gives_numbers(table):
        return None
    there = int(conn.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one())
    remembered: object = None
    if conn.dialect.name == "sqlite":
        if table.dialect_options["sqlite"]["autoincrement"]:
            query = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
            remembered = conn.execute(query, {"name": table.name}).scalar()
    elif conn.dialect.name == "postgresql":
        query = text("SELECT pg_sequence_last_value(pg_get_serial_sequence(:name, 'id')::regclass)")
        remembered = conn.execute(query, {"name": table.name}).scalar()
    else:
        if not getattr(conn.dialect, "is_mariadb", False):
            # What MySQL answers is a day old otherwise.
            conn.execute(text("SET SESSION information_schema_stats_expiry = 0"))
        query = text(
            "SELECT auto_increment - 1 FROM information_schema.tables"
            " WHERE table_schema = database() AND table_name = :name"
        )
        remembered = conn.execute(query, {"name": table.name}).scalar()
    return max(there, int(str(remembered or 0)))


def set_last_id(conn: Connection, table: Table, number: int) -> None:
    """Has the database give numbers behind ``number``. On MySQL, that commits."""
    if conn.dialect.name == "sqlite":
        if table.dialect_options["sqlite"]["autoincrement"]:
            conn.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
            conn.execute(
                text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"),
                {"name": table.name, "seq": number},
            )
    elif conn.dialect.name == "postgresql":
        if number:
            query = text("SELECT setval(pg_get_serial_sequence(:name, 'id')::regclass, :number)")
            conn.execute(query, {"name": table.name, "number": number})
    else:
        # No parameters in such statements.
        conn.exec_driver_sql(f"ALTER TABLE {table.name} AUTO_INCREMENT = {int(number) + 1}")
