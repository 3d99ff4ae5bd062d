"""Whether what series say of themselves is what their points come to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

from modelbox.runtime.ports import Key, Listed
from modelbox.runtime.space_ports import WrongSeries
from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_points, metric_series

__all__ = ("check_series",)

_SERIES = (
    select(metric_series, metric_objects.c.uid, metric_keys.c.name)
    .join(metric_objects, metric_series.c.object_id == metric_objects.c.id)
    .join(metric_keys, metric_series.c.key_id == metric_keys.c.id)
    .order_by(metric_series.c.id)
)
_TOTALS = ("count", "min", "max", "first_step", "latest_step")


def check_series(conn: Connection, limit: int, after: Key | None) -> tuple[Listed[WrongSeries], int]:
    """Recomputes the totals of some series; returns those that differ, and how many were looked at.

    Numbers are compared as they are kept, by which infinities are the greatest finite ones and NaN is nothing.
    """
    query = _SERIES.limit(limit)
    if after is not None:
        query = query.where(metric_series.c.id > after[0])
    rows = conn.execute(query).all()
    points = metric_points.c
    totals = (
        select(
            points.series_id,
            func.count().label("count"),
            func.min(points.value).label("min"),
            func.max(points.value).label("max"),
            func.min(points.step).label("first_step"),
            func.max(points.step).label("latest_step"),
        )
        .where(points.series_id.in_([row.id for row in rows]))
        .group_by(points.series_id)
    )
    by_series = {row.series_id: row for row in conn.execute(totals)} if rows else {}
    wrong = []
    for row in rows:
        said, found = _totals(row), _totals(by_series.get(row.id))
        if said != found:
            parts = [
                f"{name} is {said[place]}, of the points {found[place]}"
                for place, name in enumerate(_TOTALS)
                if said[place] != found[place]
            ]
            wrong.append(WrongSeries(object_id=row.uid, key=row.name, detail="; ".join(parts)))
    next_key = (rows[-1].id,) if len(rows) == limit else None
    return Listed(items=tuple(wrong), next_key=next_key), len(rows)


def _totals(row: Any) -> tuple[Any, ...]:
    if row is None:
        return (0, None, None, None, None)
    # `count` of a row is also a method of it.
    return tuple(row._mapping[name] for name in _TOTALS)
