"""Statements for hot paths: compiled once for each kind of database, and run on its driver.

On SQLite, SQLAlchemy's own execution costs several times what the statement does. What it would do besides is not
needed here: columns are integers, floats, texts and bytes, which every driver takes and gives as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement

__all__ = ("Prepared", "spelling_of")


class _Form:
    """A statement in the words of one dialect."""

    __slots__ = ("_fixed", "_names", "sql")

    def __init__(self, statement: ClauseElement, dialect: Dialect, names: Sequence[str] | None) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=None if names is None else list(names))
        self.sql = str(compiled)
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}
        positions = getattr(compiled, "positiontup", None)
        self._names: tuple[str, ...] | None = None if positions is None else tuple(positions)

    def bind(self, values: Mapping[str, Any]) -> Any:
        fixed = self._fixed
        if self._names is None:
            return {**fixed, **values}
        if not fixed:
            return [values[name] for name in self._names]
        return [values[name] if name in values else fixed[name] for name in self._names]


def spelling_of(dialect: Dialect) -> str:
    """The same for dialects that write statements alike; MySQL has two ways to quote, by the mode of the session."""
    return dialect.name + dialect.identifier_preparer.initial_quote


class Prepared:
    """One statement, with a value by name for each of its parameters.

    Args:
        statement: Of SQLAlchemy Core; no lists of changing length.
        columns: Of an insert: the columns that are given.
    """

    def __init__(self, statement: Executable, columns: Sequence[str] | None = None) -> None:
        assert isinstance(statement, ClauseElement)
        self._statement = statement
        self._columns = columns
        self._forms: dict[str, _Form] = {}

    def _form(self, conn: Connection) -> _Form:
        spelling = spelling_of(conn.dialect)
        form = self._forms.get(spelling)
        if form is None:
            form = self._forms[spelling] = _Form(self._statement, conn.dialect, self._columns)
        return form

    def first(self, conn: Connection, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """The first row, a plain sequence; None if there is none."""
        form = self._form(conn)
        cursor = conn.connection.cursor()
        try:
            cursor.execute(form.sql, form.bind(values))
            row: Sequence[Any] | None = cursor.fetchone()
            return row
        finally:
            cursor.close()

    def run(self, conn: Connection, values: Mapping[str, Any]) -> int:
        """Runs it; returns the number of rows that it changed."""
        form = self._form(conn)
        cursor = conn.connection.cursor()
        try:
            cursor.execute(form.sql, form.bind(values))
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def run_many(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs it for each of ``rows``."""
        form = self._form(conn)
        cursor = conn.connection.cursor()
        try:
            if len(rows) == 1:
                cursor.execute(form.sql, form.bind(rows[0]))
            elif rows:
                cursor.executemany(form.sql, [form.bind(row) for row in rows])
        finally:
            cursor.close()

    def insert(self, conn: Connection, values: Mapping[str, Any]) -> int:
        """Runs an insert; returns the number that the database gave to the row."""
        if not getattr(conn.dialect, "postfetch_lastrowid", False):
            # A database that does not tell by its cursor; SQLAlchemy knows how to ask it.
            key = conn.execute(self._statement, dict(values)).inserted_primary_key
            assert key is not None
            return int(key[0])
        form = self._form(conn)
        cursor = conn.connection.cursor()
        try:
            cursor.execute(form.sql, form.bind(values))
            return int(cursor.lastrowid)
        finally:
            cursor.close()
