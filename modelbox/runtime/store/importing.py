"""An import's own progress, in the database that it fills: so that it can go on after it was broken off anywhere.

A table beside ours holds how many lines of which file are in; it is written in the transactions that write the rows.
The metrics' database has one of its own. While the main one exists, the database is no use to a server.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import BigInteger, Column, Connection, MetaData, String, Table, insert, inspect, select, update

from modelbox.errors import ConfigError, ConflictError

__all__ = ("begin_progress", "end_progress", "find_progress", "note_progress", "refuse_unfinished_import")

_EXPORT = ""
"""The row that says of which export."""

_TABLES = {
    database: Table(
        name,
        MetaData(),
        Column("file", String(64), primary_key=True),
        Column("lines", BigInteger, nullable=False),
        Column("export", String(64), nullable=False),
    )
    for database, name in (("main", "import_progress"), ("metrics", "metric_import_progress"))
}


def refuse_unfinished_import(conn: Connection) -> None:
    """For servers, before they begin.

    Raises:
        ConfigError: An import into this database was not finished.
    """
    if inspect(conn).has_table(_TABLES["main"].name):
        raise ConfigError(
            "an import into this database was not finished: run the same modelbox server import again, which goes on"
            " where it ended"
        )


def find_progress(conn: Connection, database: str, export: str) -> dict[str, int] | None:
    """Lines of each file that are in; None if no import began.

    Args:
        conn: Of that database.
        database: "main" or "metrics".
        export: Checksum of the export's manifest.

    Raises:
        ConflictError: It is another export that is being imported.
    """
    table = _TABLES[database]
    if not inspect(conn).has_table(table.name):
        return None
    rows = {row.file: row for row in conn.execute(select(table))}
    if _EXPORT not in rows:
        return None
    if rows[_EXPORT].export != export:
        raise ConflictError(
            "an import of another export into this database was not finished: finish that one, or begin with an empty"
            " database"
        )
    return {file: int(row.lines) for file, row in rows.items() if file != _EXPORT}


def begin_progress(conn: Connection, database: str, export: str, files: Iterable[str]) -> None:
    """Marks the database as one that is being filled. May be repeated."""
    # On MySQL the table stays, even if what follows fails.
    _TABLES[database].create(conn, checkfirst=True)
    if find_progress(conn, database, export) is None:
        rows = [{"file": file, "lines": 0, "export": export} for file in (_EXPORT, *files)]
        conn.execute(insert(_TABLES[database]), rows)


def note_progress(conn: Connection, database: str, file: str, *, before: int, after: int) -> bool:
    """Keeps how many lines of a file are in, in the transaction that writes their rows; false if they are in already.

    Raises:
        ConflictError: It is neither the one nor the other: somebody else imports into this database, too.
    """
    table = _TABLES[database]
    moved = update(table).where(table.c.file == file, table.c.lines == before).values(lines=after)
    if conn.execute(moved).rowcount == 1:
        return True
    if conn.execute(select(table.c.lines).where(table.c.file == file)).scalar() == after:
        return False
    raise ConflictError("another process imports into the same database: let one of them finish")


def end_progress(conn: Connection, database: str) -> None:
    """Makes the database one like any other."""
    _TABLES[database].drop(conn, checkfirst=True)
