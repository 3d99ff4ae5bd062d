"""Points in PostgreSQL: a few are written in one round trip, many by COPY, and numbers are read by it.

The statement for few changes the rows of their series only where these are as they were remembered, and fails as a
whole where one is not. Where nothing else began a transaction it is one by itself: sent by the driver alone, with
neither BEGIN nor COMMIT around it, which would be three round trips for one.

Many go by COPY in PostgreSQL's own form, which numpy makes of whole columns, and columns of it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import asyncpg
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection
from sqlalchemy.util import await_only

from modelbox.runtime.store.metric_shared import PointColumns
from modelbox.runtime.store.metric_state import STATE, Change, StaleSeriesError
from modelbox.runtime.store.metric_values import kept_numbers

__all__ = ("PostgresPoints", "copied", "copy_numbers", "numbers_query")

_FEW = 200
"""Points for which one round trip is less than what COPY saves."""

_TYPES = dict.fromkeys(STATE, "bigint") | dict.fromkeys(("min", "max", "latest"), "double precision")
_TYPES |= dict.fromkeys(("latest_flag", "infinite"), "smallint")
_NEW = ", ".join(f"n{number}" for number in range(len(STATE)))
_CHANGED = f"""
    UPDATE metric_series AS s SET {", ".join(f'"{name}" = n.n{number}' for number, name in enumerate(STATE))}
    FROM unnest($1::bigint[], $2::bigint[],
        {", ".join(f"${number + 3}::{_TYPES[name]}[]" for number, name in enumerate(STATE))}) AS n(id, was, {_NEW})
    WHERE s.id = n.id AND s."count" = n.was
"""
_FIRST = len(STATE) + 3
_POINTS = ("bigint", "bigint", "bigint", "smallint", "double precision", "bytea")
_NAMES = ("series_id", "step", "time_us", "kind", "value", "payload")


def _few(columns: int) -> str:
    arrays = ", ".join(f"${_FIRST + number}::{kind}[]" for number, kind in enumerate(_POINTS[:columns]))
    return f"""
    WITH changed AS ({_CHANGED} RETURNING s.id),
    sound AS (SELECT 1 / (count(*) = cardinality($1::bigint[]))::int AS sound FROM changed)
    INSERT INTO metric_points ({", ".join(_NAMES[:columns])})
    SELECT p.* FROM unnest({arrays}) AS p WHERE (SELECT sound FROM sound) = 1
    """


_ADD_NUMBERS = _few(5)
_ADD_PAYLOADS = _few(6)
"""A division by zero where fewer series than were meant are as they were: nothing of the statement happens then."""

_POINT = len(STATE) + 3
_ADD_ONE = f"""
    WITH changed AS (
        UPDATE metric_series SET {", ".join(f'"{name}" = ${number + 3}' for number, name in enumerate(STATE))}
        WHERE id = $1 AND "count" = $2 RETURNING id
    )
    INSERT INTO metric_points ({", ".join(_NAMES[:5])})
    SELECT id, ${_POINT}::bigint, ${_POINT + 1}::bigint, ${_POINT + 2}::smallint, ${_POINT + 3}::double precision
    FROM changed
"""
"""The same for one point of a series: nothing is unpacked."""

_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("series_size", ">i4"),
        ("series", ">i8"),
        ("step_size", ">i4"),
        ("step", ">i8"),
        ("time_size", ">i4"),
        ("time_us", ">i8"),
        ("kind_size", ">i4"),
        ("kind", ">i2"),
        ("value_size", ">i4"),
        ("value", ">f8"),
    ]
)
_READ = np.dtype(
    [
        ("fields", ">i2"),
        ("step_size", ">i4"),
        ("step", ">i8"),
        ("time_size", ">i4"),
        ("time_us", ">i8"),
        ("kind_size", ">i4"),
        ("kind", ">i2"),
        ("value_size", ">i4"),
        ("value", ">f8"),
    ]
)
_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TAIL = b"\xff\xff"
_NULL = -1


class PostgresPoints:
    """`modelbox.runtime.store.metric_shared.PointWrites`."""

    def write_rows(self, conn: Connection, changes: Sequence[Change], rows: Sequence[Sequence[Any]]) -> None:
        """See the protocol."""
        if len(changes) == len(rows) == 1 and rows[0][0] == changes[0][0].id:
            before, after = changes[0]
            if _send(conn, _ADD_ONE, (before.id, before.count, *after.values(), *rows[0][1:])) != "INSERT 0 1":
                raise StaleSeriesError
            return
        _send(conn, _ADD_NUMBERS, (*_arguments(changes), *map(list, zip(*rows, strict=True))))

    def write_columns(self, conn: Connection, changes: Sequence[Change], points: PointColumns) -> None:
        """See the protocol."""
        if len(points) > _FEW and not points.payloads:
            _copy(conn, changes, points)
            return
        columns = [column.tolist() for column in (points.series, points.steps, points.times_us, points.kinds)]
        columns.append(kept_numbers(points.values))
        if points.payloads:
            columns.append(list(points.payloads))
        _send(conn, _ADD_PAYLOADS if points.payloads else _ADD_NUMBERS, (*_arguments(changes), *columns))


def _arguments(changes: Sequence[Change]) -> list[list[Any]]:
    if not changes:
        return [[] for _ in range(len(STATE) + 2)]
    after = [list(column) for column in zip(*[after.values() for _, after in changes], strict=True)]
    return [[before.id for before, _ in changes], [before.count for before, _ in changes], *after]


def _send(conn: Connection, sql: str, arguments: Sequence[Any]) -> str:
    """Runs a statement in the transaction if there is one, and else as one; returns what PostgreSQL says it did."""
    driver = conn.connection.driver_connection
    assert isinstance(driver, asyncpg.Connection)
    try:
        return str(await_only(driver.execute(sql, *arguments)))
    except asyncpg.DivisionByZeroError as exc:
        raise StaleSeriesError from exc


def _copy(conn: Connection, changes: Sequence[Change], points: PointColumns) -> None:
    if changes:
        # By the adapter, which begins the transaction.
        cursor = conn.connection.cursor()
        try:
            cursor.execute(_CHANGED, tuple(_arguments(changes)))
            if cursor.rowcount != len(changes):
                raise StaleSeriesError
        finally:
            cursor.close()
    driver = conn.connection.driver_connection
    assert isinstance(driver, asyncpg.Connection)
    await_only(
        driver.copy_to_table("metric_points", source=io.BytesIO(copied(points)), format="binary", columns=_NAMES[:5])
    )


def copied(points: PointColumns) -> bytes:
    """Numbers as ``COPY … (FORMAT binary)`` takes them."""
    rows = np.empty(len(points), _ROW)
    rows["fields"] = 5
    for name in ("series_size", "step_size", "time_size", "value_size"):
        rows[name] = 8
    rows["kind_size"] = 2
    rows["series"], rows["step"], rows["time_us"] = points.series, points.steps, points.times_us
    rows["kind"] = points.kinds
    missing = np.isnan(points.values)
    bound = np.finfo(np.float64).max
    rows["value"] = np.clip(points.values, -bound, bound)
    if not missing.any():
        return _HEAD + rows.tobytes() + _TAIL
    rows["value_size"][missing] = _NULL
    content = rows.view(np.uint8).reshape(len(rows), _ROW.itemsize)
    kept = np.ones(content.shape, np.bool_)
    kept[missing, _ROW.itemsize - 8 :] = False
    return _HEAD + content[kept].tobytes() + _TAIL


def numbers_query(
    series_id: int,
    times_us: tuple[int, int] | None,
    *,
    from_step: int | None,
    to_step: int | None,
    after: tuple[int, int] | None,
    limit: int,
) -> str:
    """Points of a series of numbers, by step and time; for COPY, which takes no parameters.

    Args:
        series_id: The series.
        times_us: Between which all its points are, if that is known.
        from_step: The first step, included.
        to_step: The last step, included.
        after: Step and time of the last point that was read already.
        limit: Points at most.
    """
    within = [f"series_id = {series_id:d}"]
    if times_us is not None:
        within.append("time_us BETWEEN {:d} AND {:d}".format(*times_us))
    if after is not None:
        within.append("(step, time_us) > ({:d}, {:d})".format(*after))
    elif from_step is not None:
        within.append(f"step >= {from_step:d}")
    if to_step is not None:
        within.append(f"step <= {to_step:d}")
    return (
        f"SELECT step, time_us, kind, coalesce(value, 0) FROM metric_points WHERE {' AND '.join(within)}"
        f" ORDER BY step, time_us LIMIT {limit:d}"
    )


def copy_numbers(conn: Connection, query: str) -> NDArray[Any]:
    """What a query of `numbers_query` finds, with the fields step, time_us, kind, and value (0 for NULL).

    Args:
        conn: The transaction, which has begun.
        query: The query.
    """
    parts: list[bytes] = []

    async def take(part: bytes) -> None:
        parts.append(part)

    driver = conn.connection.driver_connection
    assert isinstance(driver, asyncpg.Connection)
    await_only(driver.copy_from_query(query, output=take, format="binary"))
    content = b"".join(parts)
    return np.frombuffer(content, _READ, (len(content) - len(_HEAD) - len(_TAIL)) // _READ.itemsize, offset=len(_HEAD))
