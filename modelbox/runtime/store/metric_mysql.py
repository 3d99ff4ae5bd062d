"""Writing points to MySQL and MariaDB: many rows in a statement, with the numbers in its text.

The driver writes values into the statement's text in any case, one call for each; numbers are in it in half of the
time when the text is made of all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from modelbox.runtime.store.metric_schema import metric_points
from modelbox.runtime.store.metric_shared import PointColumns
from modelbox.runtime.store.metric_state import STATE, Change, StaleSeriesError
from modelbox.runtime.store.metric_values import kept_numbers
from modelbox.runtime.store.prepared_rows import PreparedRows

__all__ = ("MySQLPoints",)

_COLUMNS = ("series_id", "step", "time_us", "kind", "value")
_ROWS = 5000
"""Of one statement: 400 KB, less than any server's max_allowed_packet."""
_SERIES = 500
_ADD_PAYLOADS = PreparedRows(metric_points, (*_COLUMNS, "payload"))
_ADD = f"INSERT INTO metric_points ({', '.join(_COLUMNS)}) VALUES "
_NEW = [f"n{number}" for number in range(len(STATE))]
_SET = ", ".join(f"s.`{name}` = n.{new}" for name, new in zip(STATE, _NEW, strict=True))


class MySQLPoints:
    """`modelbox.runtime.store.metric_shared.PointWrites`."""

    def write_rows(self, conn: Connection, changes: Sequence[Change], rows: Sequence[Sequence[Any]]) -> None:
        """See the protocol."""
        _change(conn, changes)
        _add(conn, rows)

    def write_columns(self, conn: Connection, changes: Sequence[Change], points: PointColumns) -> None:
        """See the protocol."""
        _change(conn, changes)
        columns = [column.tolist() for column in (points.series, points.steps, points.times_us, points.kinds)]
        columns.append(kept_numbers(points.values))
        if points.payloads:
            _ADD_PAYLOADS.insert(conn, list(chain.from_iterable(zip(*columns, points.payloads, strict=True))))
        else:
            _add(conn, list(zip(*columns, strict=True)))


def _change(conn: Connection, changes: Sequence[Change]) -> None:
    for begin in range(0, len(changes), _SERIES):
        some = changes[begin : begin + _SERIES]
        wanted = [(before.id, before.count, *after.values()) for before, after in some]
        names = ("id", "was", *_NEW)
        first = ", ".join(f"{_number(value)} AS {name}" for name, value in zip(names, wanted[0], strict=True))
        rest = "".join([f" UNION ALL SELECT {', '.join(map(_number, values))}" for values in wanted[1:]])
        changed = _run(
            conn,
            f"UPDATE metric_series s JOIN (SELECT {first}{rest}) n ON s.id = n.id AND s.`count` = n.was SET {_SET}",
        )
        if changed != len(some):
            raise StaleSeriesError


def _add(conn: Connection, rows: Sequence[Sequence[Any]]) -> None:
    for begin in range(0, len(rows), _ROWS):
        some = rows[begin : begin + _ROWS]
        _run(conn, _ADD + ",".join([f"({a},{b},{c},{d},{_number(value)})" for a, b, c, d, value in some]))


def _run(conn: Connection, sql: str) -> int:
    cursor = conn.connection.cursor()
    try:
        cursor.execute(sql)
        return int(cursor.rowcount)
    finally:
        cursor.close()


def _number(value: float | None) -> str:
    """A number as SQL, every bit of it: MySQL takes one with an exponent for what it is, not for a decimal."""
    if value is None:
        return "NULL"
    text = repr(value)
    return text if isinstance(value, int) or "e" in text else f"{text}e0"
