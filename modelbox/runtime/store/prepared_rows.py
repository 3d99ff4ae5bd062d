"""Inserts of many rows in one statement, on the driver.

A driver lets go of Python's lock for each statement, and getting it back in a busy process costs up to a switch
interval: a thousand statements of one row can take seconds, four of 256 cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, bindparam, insert
from sqlalchemy.engine import Dialect

from modelbox.runtime.store.prepared import spelling_of

__all__ = ("PreparedRows",)

_BLOCKS = (512, 64, 8, 7, 6, 5, 4, 3, 2, 1)
"""As many rows at once as are left below eight: what a call adds is rarely more, and each statement is a round trip on
some databases."""


class PreparedRows:
    """An insert into ``table`` of values for ``columns``; the others keep their defaults."""

    def __init__(self, table: Table, columns: Sequence[str]) -> None:
        self._table = table
        self._columns = tuple(columns)
        self._forms: dict[tuple[str, int], tuple[str, tuple[str, ...] | None]] = {}

    def insert(self, conn: Connection, values: Sequence[Any]) -> None:
        """Inserts rows; ``values`` are those of all rows, one row after the other."""
        width = len(self._columns)
        cursor = conn.connection.cursor()
        try:
            begin = 0
            for rows in _BLOCKS:
                while len(values) - begin >= rows * width:
                    part = values[begin : begin + rows * width]
                    sql, names = self._form(conn.dialect, rows)
                    cursor.execute(sql, part if names is None else dict(zip(names, part, strict=True)))
                    begin += rows * width
        finally:
            cursor.close()

    def _form(self, dialect: Dialect, rows: int) -> tuple[str, tuple[str, ...] | None]:
        spelling = spelling_of(dialect)
        form = self._forms.get((spelling, rows))
        if form is None:
            # In the order of the statement, which is the table's.
            marked: list[dict[str, Any]] = [
                {name: bindparam(f"{name}_{row}") for name in self._columns} for row in range(rows)
            ]
            compiled = insert(self._table).values(marked).compile(dialect=dialect)
            names = tuple(f"{name}_{row}" for row in range(rows) for name in self._columns)
            positions = getattr(compiled, "positiontup", None)
            assert positions is None or tuple(positions) == names
            form = self._forms[spelling, rows] = (str(compiled), names if positions is None else None)
        return form
