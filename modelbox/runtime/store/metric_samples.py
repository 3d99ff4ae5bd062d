"""Samples of series for plots: what the points of each of some hundred ranges of steps have in common.

A bucket is a range of the primary key, so it is read in order and nothing is sorted or kept, however long the series
is. SQLite aggregates each range by itself, a part of all ranges at a time: nobody waits for a whole series. Databases
behind a network are asked for many ranges in a statement.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, Connection, Double, bindparam, case, func, select, text

from modelbox.runtime.store.metric_reads import find_series
from modelbox.runtime.store.metric_schema import metric_points
from modelbox.runtime.store.metric_values import MINUS_INF, NUMBER, PLUS_INF, numbers_of
from modelbox.runtime.store.prepared import Prepared
from modelbox.tracking import SampledSeries

__all__ = ("Bucket", "Extent", "find_extent", "sample_part", "sampled")

_INT64 = (-(2**63), 2**63 - 1)

Bucket = tuple[Any, ...]
"""First and last step, points, least, greatest and mean of the finite numbers, whether there are infinities above and
below, and the last point's value and kind."""

_OF_SERIES = metric_points.c.series_id == bindparam("the_id")
_WITHIN = (_OF_SERIES, metric_points.c.step >= bindparam("low"), metric_points.c.step <= bindparam("high"))
_FINITE = case((metric_points.c.kind == NUMBER, metric_points.c.value))
_FIRST = Prepared(select(metric_points.c.step).where(*_WITHIN).order_by(metric_points.c.step).limit(1))
_LAST = Prepared(
    select(metric_points.c.step, metric_points.c.value, metric_points.c.kind)
    .where(*_WITHIN)
    .order_by(metric_points.c.step.desc(), metric_points.c.time_us.desc())
    .limit(1)
)
_PLAIN = Prepared(
    select(
        func.count(),
        func.min(metric_points.c.value),
        func.max(metric_points.c.value),
        func.avg(metric_points.c.value),
        func.max(metric_points.c.kind),
    ).where(*_WITHIN)
)
"""All there is to know where all numbers are finite, in half of the time."""
_FULL = Prepared(
    select(
        func.count(),
        func.min(_FINITE),
        func.max(_FINITE),
        func.avg(_FINITE),
        func.max(case((metric_points.c.kind == PLUS_INF, 1), else_=0)),
        func.max(case((metric_points.c.kind == MINUS_INF, 1), else_=0)),
    ).where(*_WITHIN)
)
_HUGE = 1e290
_SCALE = 2.0**64
_CAREFUL = Prepared(
    select(
        func.count(),
        func.min(_FINITE),
        func.max(_FINITE),
        func.sum(case((metric_points.c.value.between(-_HUGE, _HUGE), _FINITE))),
        func.max(case((metric_points.c.kind == PLUS_INF, 1), else_=0)),
        func.max(case((metric_points.c.kind == MINUS_INF, 1), else_=0)),
        func.count(_FINITE),
    ).where(*_WITHIN)
)
"""For databases that call it an error where a sum (or PostgreSQL's mean of numbers beyond 1e154) is too great: sums
without the huge numbers."""
_HUGE_SUM = Prepared(
    select(
        func.sum(case((func.abs(_FINITE) > 1.0, metric_points.c.value / _SCALE), (_FINITE.is_not(None), 0.0))),
        func.count(_FINITE),
    ).where(*_WITHIN)
)
"""The sum, divided by `_SCALE`, where there are numbers next to which those below 1 are nothing."""
_LONGEST = 2**62
"""Steps that a database can count with."""
_PART_POINTS = 500_000
"""Points of one statement, where they are evenly spread."""
_AGGREGATES = f"""
    min(step) AS first, max(step) AS last, count(*) AS points,
    min(CASE WHEN kind = {NUMBER} THEN value END) AS least, max(CASE WHEN kind = {NUMBER} THEN value END) AS greatest,
    sum(CASE WHEN kind = {NUMBER} AND value BETWEEN -:huge AND :huge THEN value END) AS total,
    count(CASE WHEN kind = {NUMBER} THEN value END) AS finite,
    max(CASE WHEN kind = {PLUS_INF} THEN 1 ELSE 0 END) AS above,
    max(CASE WHEN kind = {MINUS_INF} THEN 1 ELSE 0 END) AS below
    FROM metric_points WHERE series_id = :id
"""
_IN_POSTGRES = text(f"""
    SELECT b.*, l.value, l.kind
    FROM generate_series(CAST(:begin AS bigint), CAST(:end AS bigint), CAST(:width AS bigint)) AS g(start)
    CROSS JOIN LATERAL (
        SELECT {_AGGREGATES} AND step >= g.start AND step <= least(g.start + :width - 1, :end)
        AND time_us BETWEEN :low AND :high
    ) AS b
    CROSS JOIN LATERAL (
        SELECT p.value, p.kind FROM metric_points AS p
        WHERE p.series_id = :id AND p.step = b.last AND p.time_us BETWEEN :low AND :high
        ORDER BY p.time_us DESC LIMIT 1
    ) AS l
    ORDER BY g.start
""").bindparams(
    *(bindparam(name, type_=BigInteger) for name in ("id", "begin", "end", "width", "low", "high")),
    bindparam("huge", type_=Double),
)
"""Each bucket is a range of the index, so nothing is sorted; where a bucket is empty, its last point is missing."""
_LAST_OF = "FROM metric_points p WHERE p.series_id = :id AND p.step = b.last ORDER BY p.time_us DESC LIMIT 1"
_IN_MYSQL = text(f"""
    SELECT b.*, (SELECT p.value {_LAST_OF}), (SELECT p.kind {_LAST_OF})
    FROM (
        SELECT {_AGGREGATES} AND step BETWEEN :begin AND :end GROUP BY (step - :begin) DIV :width
    ) AS b ORDER BY b.first
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The points of a series that are sampled: from one step to another, both of which have points.

    Attributes:
        series_id: The series.
        low: The first step.
        high: The last step.
        times_us: Between which the points are; None where that is not known or does not help.
        per_step: Points for each step, more or less.
    """

    series_id: int
    low: int
    high: int
    times_us: tuple[int, int] | None
    per_step: float


def find_extent(
    conn: Connection, object_id: str, key: str, *, from_step: int | None, to_step: int | None
) -> Extent | None:
    """What there is to sample; None where there are no points."""
    series = find_series(conn, object_id, key)
    if series is None:
        return None
    within = {
        "the_id": series.id,
        "low": _INT64[0] if from_step is None else from_step,
        "high": _INT64[1] if to_step is None else to_step,
    }
    first, last = _FIRST.first(conn, within), _LAST.first(conn, within)
    if first is None or last is None:
        return None
    per_step = series.points / (series.steps[1] - series.steps[0] + 1)
    return Extent(
        series_id=series.id, low=first[0], high=last[0], times_us=series.times_us, per_step=max(per_step, 1e-300)
    )


def sample_part(
    conn: Connection, extent: Extent, *, buckets: int, begin: int, seconds: float
) -> tuple[list[Bucket], int | None]:
    """Buckets from the step ``begin`` on, those that have points, for about so many seconds.

    Returns:
        Them, and where to go on; None at the end.
    """
    width = -(-(extent.high - extent.low + 1) // buckets)
    until = time.monotonic() + seconds
    found: list[Bucket] = []
    if conn.dialect.name != "sqlite" and extent.high - extent.low < _LONGEST:
        while begin <= extent.high:
            wide = width * max(1, int(min(_PART_POINTS / extent.per_step, _LONGEST) // width))
            end = min(begin + wide - 1, extent.high)
            found += _buckets(conn, extent, width, begin, end)
            begin = end + 1
            if time.monotonic() >= until:
                break
        return found, begin if begin <= extent.high else None
    while begin <= extent.high:
        end = min(begin + width - 1, extent.high)
        within = {"the_id": extent.series_id, "low": begin, "high": end}
        last = _LAST.first(conn, within)
        if last is not None:
            found.append(_bucket(conn, within, last))
        begin = end + 1
        if time.monotonic() >= until:
            break
    return found, begin if begin <= extent.high else None


def _bucket(conn: Connection, within: dict[str, int], last: Sequence[Any]) -> Bucket:
    first = _FIRST.first(conn, within)
    assert first is not None
    aggregate = _aggregate if conn.dialect.name == "sqlite" else _aggregate_carefully
    count, least, greatest, mean, above, below = aggregate(conn, within)
    if least is not None and max(-least, greatest) > _HUGE:
        mean = _huge_mean(conn, within)
    return first[0], last[0], count, least, greatest, mean, above, below, last[1], last[2]


def _huge_mean(conn: Connection, within: dict[str, int]) -> float:
    huge = _HUGE_SUM.first(conn, within)
    assert huge is not None
    return float(huge[0] / huge[1] * _SCALE)


def _buckets(conn: Connection, extent: Extent, width: int, begin: int, end: int) -> list[Bucket]:
    """The buckets of a part of a series that have points, in one statement."""
    low, high = extent.times_us or _INT64
    values = {
        "id": extent.series_id,
        "begin": begin,
        "end": end,
        "width": width,
        "low": low,
        "high": high,
        "huge": _HUGE,
    }
    found: list[Bucket] = []
    for row in conn.execute(_IN_POSTGRES if conn.dialect.name == "postgresql" else _IN_MYSQL, values):
        first, last, count, least, greatest, total, finite, above, below, value, kind = row
        mean = None if total is None else total / finite
        if least is not None and max(-least, greatest) > _HUGE:
            mean = _huge_mean(conn, {"the_id": extent.series_id, "low": first, "high": last})
        found.append((first, last, count, least, greatest, mean, above, below, value, kind))
    return found


def _aggregate(conn: Connection, within: dict[str, int]) -> Sequence[Any]:
    """As `_FULL`."""
    plain = _PLAIN.first(conn, within)
    assert plain is not None
    if plain[4] == NUMBER:
        return (*plain[:4], 0, 0)
    full = _FULL.first(conn, within)
    assert full is not None
    return full


def _aggregate_carefully(conn: Connection, within: dict[str, int]) -> Sequence[Any]:
    found = _CAREFUL.first(conn, within)
    assert found is not None
    count, least, greatest, total, above, below, finite = found
    return count, least, greatest, None if total is None else total / finite, above, below


def sampled(buckets: Sequence[Bucket]) -> SampledSeries:
    """Buckets as columns."""
    if not buckets:
        return SampledSeries(first_steps=b"", last_steps=b"", counts=b"", mins=b"", maxs=b"", means=b"", lasts=b"")
    firsts, lasts, counts, least, greatest, mean, plus, minus, values, kinds = zip(*buckets, strict=True)
    above, below = np.array(plus) > 0, np.array(minus) > 0
    mins, maxs, means = (np.array(column, np.float64) for column in (least, greatest, mean))
    mins[np.isnan(mins) & above] = np.inf
    maxs[np.isnan(maxs) & below] = -np.inf
    mins[below], maxs[above] = -np.inf, np.inf
    means[above], means[below], means[above & below] = np.inf, -np.inf, np.nan
    return SampledSeries(
        first_steps=np.array(firsts, "<i8").tobytes(),
        last_steps=np.array(lasts, "<i8").tobytes(),
        counts=np.array(counts, "<i8").tobytes(),
        mins=mins.astype("<f8").tobytes(),
        maxs=maxs.astype("<f8").tobytes(),
        means=means.astype("<f8").tobytes(),
        lasts=numbers_of(values, np.array(kinds, np.uint8)).astype("<f8").tobytes(),
    )
