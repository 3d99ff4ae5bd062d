"""Reading series: what is known of them, and their points in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, bindparam, select, tuple_

from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_points, metric_series
from modelbox.runtime.store.metric_values import MINUS_INF, NUMBER, PLUS_INF, number_of, numbers_of, restored
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.rows import from_us
from modelbox.tracking import MetricColumns, MetricKind, MetricSummary

__all__ = ("FoundSeries", "find_series", "find_summary", "key_names", "read_chunk", "summaries")

_KINDS = (MetricKind.NUMBER, MetricKind.TEXT, MetricKind.BYTES)

_SUMMARIES = (
    select(metric_series, metric_objects.c.uid.label("object"), metric_keys.c.name.label("key"))
    .join(metric_objects, metric_objects.c.id == metric_series.c.object_id)
    .join(metric_keys, metric_keys.c.id == metric_series.c.key_id)
)
_SERIES = Prepared(
    select(
        metric_series.c.id,
        metric_series.c.kind,
        metric_series.c.low_time_us,
        metric_series.c.high_time_us,
        metric_series.c.count,
        metric_series.c.first_step,
        metric_series.c.latest_step,
    )
    .join(metric_objects, metric_objects.c.id == metric_series.c.object_id)
    .join(metric_keys, metric_keys.c.id == metric_series.c.key_id)
    .where(metric_objects.c.uid == bindparam("the_uid"), metric_keys.c.name == bindparam("the_name"))
)
_POINTS = select(
    metric_points.c.step, metric_points.c.time_us, metric_points.c.kind, metric_points.c.value, metric_points.c.payload
).order_by(metric_points.c.step, metric_points.c.time_us)


def _summary(row: Any) -> MetricSummary:
    infinite = row.infinite
    return MetricSummary(
        object=row.object,
        key=row.key,
        kind=_KINDS[row.kind],
        count=row.count,
        min=_bound(row.min, infinite & 1),
        max=_bound(row.max, infinite & 2),
        latest=number_of(row.latest, row.latest_flag),
        latest_step=row.latest_step,
        latest_at=from_us(row.latest_time_us),
        first_step=row.first_step,
    )


def _bound(kept: float | None, infinite: int) -> float | None:
    if kept is None or not infinite:
        return kept
    return number_of(kept, MINUS_INF if kept < 0 else PLUS_INF)


def summaries(conn: Connection, objects: Sequence[str], keys: Sequence[str]) -> tuple[MetricSummary, ...]:
    """See `modelbox.runtime.metric_ports.MetricStore.summaries`."""
    query = _SUMMARIES.where(metric_objects.c.uid.in_(objects))
    if keys:
        query = query.where(metric_keys.c.name.in_(keys))
    order = {uid: place for place, uid in enumerate(objects)}
    found = [_summary(row) for row in conn.execute(query)]
    found.sort(key=lambda one: (order[one.object], one.key))
    return tuple(found)


def find_summary(conn: Connection, object_id: str, key: str) -> MetricSummary | None:
    """See the port."""
    row = conn.execute(_SUMMARIES.where(metric_objects.c.uid == object_id, metric_keys.c.name == key)).first()
    return None if row is None else _summary(row)


def key_names(conn: Connection, object_id: str, limit: int) -> tuple[str, ...]:
    """See the port."""
    query = _SUMMARIES.where(metric_objects.c.uid == object_id).order_by(metric_keys.c.name).limit(limit)
    return tuple(row.key for row in conn.execute(query))


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSeries:
    """Where the points of a series are.

    Attributes:
        id: Its number.
        kind: 0 numbers, 1 texts, 2 bytes.
        times_us: Between which all its points are; None where that is not known or does not help.
        points: How many it has.
        steps: The first and the last one.
    """

    id: int
    kind: int
    times_us: tuple[int, int] | None
    points: int
    steps: tuple[int, int]


def find_series(conn: Connection, object_id: str, key: str) -> FoundSeries | None:
    """A series; None where there is none."""
    row = _SERIES.first(conn, {"the_uid": object_id, "the_name": key})
    if row is None:
        return None
    series_id, kind, low, high, points, first, last = row
    # Only there points are kept by time.
    timed = conn.dialect.name == "postgresql" and low is not None and high is not None
    return FoundSeries(
        id=series_id, kind=kind, times_us=(low, high) if timed else None, points=points, steps=(first, last)
    )


def _within(query: Select[Any], series: FoundSeries, from_step: int | None, to_step: int | None) -> Select[Any]:
    query = query.where(metric_points.c.series_id == series.id)
    if series.times_us is not None:
        query = query.where(metric_points.c.time_us.between(*series.times_us))
    if from_step is not None:
        query = query.where(metric_points.c.step >= from_step)
    if to_step is not None:
        query = query.where(metric_points.c.step <= to_step)
    return query


def read_chunk(
    conn: Connection,
    object_id: str,
    key: str,
    *,
    from_step: int | None,
    to_step: int | None,
    after: tuple[int, int] | None,
    limit: int,
) -> MetricColumns:
    """See the port."""
    series = find_series(conn, object_id, key)
    rows: Sequence[Any] = ()
    if series is not None and series.kind == NUMBER and conn.dialect.name == "postgresql":
        from modelbox.runtime.store.metric_postgres import copy_numbers, numbers_query

        times_us = series.times_us
        asked = numbers_query(series.id, times_us, from_step=from_step, to_step=to_step, after=after, limit=limit)
        found = copy_numbers(conn, asked)
        return MetricColumns(
            object=object_id,
            keys=(key,),
            steps=found["step"].astype("<i8").tobytes(),
            times_us=found["time_us"].astype("<i8").tobytes(),
            values=restored(found["value"].astype("<f8"), found["kind"]).tobytes(),
        )
    if series is not None:
        query = _within(_POINTS, series, from_step if after is None else None, to_step).limit(limit)
        if after is not None:
            query = query.where(tuple_(metric_points.c.step, metric_points.c.time_us) > tuple_(*after))
        rows = conn.execute(query).cursor.fetchall()
    if not rows:
        return MetricColumns(object=object_id, keys=(key,), steps=b"", times_us=b"", values=b"")
    steps, times_us, kinds, values, payloads = zip(*rows, strict=True)
    kept_kinds = np.array(kinds, np.uint8)
    column = numbers_of(values, kept_kinds)
    plain = np.where(kept_kinds > 2, 0, kept_kinds).astype(np.uint8)
    return MetricColumns(
        object=object_id,
        keys=(key,),
        steps=np.array(steps, "<i8").tobytes(),
        times_us=np.array(times_us, "<i8").tobytes(),
        values=column.astype("<f8").tobytes(),
        kinds=plain.tobytes() if plain.any() else b"",
        payloads=tuple(bytes(payload) for payload in payloads if payload is not None),
    )
