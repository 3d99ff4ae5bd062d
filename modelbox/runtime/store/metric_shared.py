"""Series and points on databases that a network is in front of: few statements, however many series.

What an `modelbox.runtime.store.metric_writes.append_points` writes there goes through `PointWrites`: on PostgreSQL
`modelbox.runtime.store.metric_postgres`, on MySQL `modelbox.runtime.store.metric_mysql`. Other replicas write at the
same time; a series' count tells whether one did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column, Connection, Insert, Table, insert, select
from sqlalchemy.dialects.postgresql import insert as insert_postgres

from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_series
from modelbox.runtime.store.metric_state import STATE, Change, Name, Series, StaleSeriesError, series_of_row

__all__ = ("PointColumns", "PointWrites", "add_series", "find_series", "writes_of")

_IN_CHUNK = 500
_SERIES = (metric_series.c.id, metric_series.c.kind, *(metric_series.c[name] for name in STATE))


class PointColumns:
    """Points that are all new, one element of each column for each; arrays, or lists where there are few.

    Attributes:
        series: Ids.
        steps: Integers.
        times_us: Integers.
        kinds: As `modelbox.runtime.store.metric_schema` has them.
        values: Numbers as they are; NaN where the column has none.
        payloads: Empty where all are numbers.
    """

    __slots__ = ("kinds", "payloads", "series", "steps", "times_us", "values")

    def __init__(
        self,
        series: NDArray[np.int64],
        steps: NDArray[np.int64],
        times_us: NDArray[np.int64],
        kinds: NDArray[np.int64],
        values: NDArray[np.float64],
        payloads: Sequence[bytes | None] = (),
    ) -> None:
        self.series = series
        self.steps = steps
        self.times_us = times_us
        self.kinds = kinds
        self.values = values
        self.payloads = payloads

    def __len__(self) -> int:
        return len(self.series)


class PointWrites(Protocol):
    """How points get into a kind of database."""

    def write_rows(self, conn: Connection, changes: Sequence[Change], rows: Sequence[Sequence[Any]]) -> None:
        """Writes a few points, as rows of (series, step, time, kind, kept number), and their series' rows.

        Raises:
            StaleSeriesError: A series is not as it was before.
        """

    def write_columns(self, conn: Connection, changes: Sequence[Change], points: PointColumns) -> None:
        """Likewise any number of points."""


def writes_of(conn: Connection) -> PointWrites | None:
    """How points get into a database; None for SQLite, which is asked for one thing at a time."""
    if conn.dialect.name == "sqlite":
        return None
    if conn.dialect.name == "postgresql":
        from modelbox.runtime.store.metric_postgres import PostgresPoints

        return PostgresPoints()
    from modelbox.runtime.store.metric_mysql import MySQLPoints

    return MySQLPoints()


def find_series(conn: Connection, names: Sequence[Name], *, lock: bool) -> dict[Name, Series]:
    """Those of some series that are there.

    Args:
        conn: The transaction.
        names: Each once.
        lock: Whether nobody else is to change them until the transaction ends.
    """
    found: dict[Name, Series] = {}
    for chunk in _chunks(names):
        query = (
            select(metric_objects.c.uid, metric_keys.c.name, *_SERIES)
            .join_from(metric_series, metric_objects, metric_objects.c.id == metric_series.c.object_id)
            .join(metric_keys, metric_keys.c.id == metric_series.c.key_id)
            .where(
                metric_objects.c.uid.in_({uid for uid, _ in chunk}), metric_keys.c.name.in_({key for _, key in chunk})
            )
            # Two writers take the locks in one order.
            .order_by(metric_series.c.id)
        )
        if lock:
            query = query.with_for_update(of=metric_series)
        for uid, key, *row in conn.execute(query):
            found[uid, key] = series_of_row(row)
    return found


def add_series(conn: Connection, new: Sequence[tuple[Name, Series]]) -> list[int]:
    """Adds series that were not there; returns their ids.

    Raises:
        StaleSeriesError: Their object is being deleted. The database refuses series that another replica added since.
    """
    uids, keys = {name[0] for name, _ in new}, {name[1] for name, _ in new}
    objects = _ids(conn, metric_objects, metric_objects.c.uid, uids, lock=True)
    key_ids = _ids(conn, metric_keys, metric_keys.c.name, keys, lock=False)
    rows = [
        {
            "object_id": objects[uid],
            "key_id": key_ids[key],
            "kind": series.kind,
            **dict(zip(STATE, series.values(), strict=True)),
        }
        for (uid, key), series in new
    ]
    ids: dict[tuple[int, int], int] = {}
    for begin in range(0, len(rows), _IN_CHUNK):
        conn.execute(insert(metric_series).values(rows[begin : begin + _IN_CHUNK]))
    for chunk in _chunks(sorted(set(objects.values()))):
        query = select(metric_series.c.object_id, metric_series.c.key_id, metric_series.c.id)
        for key_chunk in _chunks(sorted(set(key_ids.values()))):
            asked = query.where(metric_series.c.object_id.in_(chunk), metric_series.c.key_id.in_(key_chunk))
            ids.update(((row.object_id, row.key_id), row.id) for row in conn.execute(asked))
    return [ids[row["object_id"], row["key_id"]] for row in rows]


def _ids(conn: Connection, table: Table, column: Column[Any], names: Iterable[str], *, lock: bool) -> dict[str, int]:
    """The numbers of names, which are added where they are missing."""
    # In order, so that two writers wait for each other in one direction only.
    wanted = sorted(names)
    found: dict[str, int] = {}
    for chunk in _chunks(wanted):
        query = select(table.c.id, column).where(column.in_(chunk)).order_by(column)
        if lock:
            query = query.with_for_update()
        found.update((name, number) for number, name in conn.execute(query))
        missing = [name for name in chunk if name not in found]
        if missing:
            conn.execute(_added_once(conn, table).values([{column.name: name} for name in missing]))
            found.update((name, number) for number, name in conn.execute(query))
        if any(name not in found for name in chunk):
            raise StaleSeriesError
    return found


def _added_once(conn: Connection, table: Table) -> Insert:
    """An insert that leaves alone what another replica added."""
    if conn.dialect.name == "postgresql":
        return insert_postgres(table).on_conflict_do_nothing()
    return insert(table).prefix_with("IGNORE")


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), _IN_CHUNK):
        yield items[begin : begin + _IN_CHUNK]
