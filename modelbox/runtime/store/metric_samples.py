"""Samples of series for plots: what the points of each of some hundred ranges of steps have in common.

A bucket is a range of the primary key, so it is read in order and nothing is sorted or kept, however long the series
is. Databases aggregate each range by itself, a part of all ranges at a time: nobody waits for a whole series.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, bindparam, case, func, select

from modelbox.runtime.store.metric_reads import series_id_of
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The points of a series that are sampled: from one step to another, both of which have points."""

    series_id: int
    low: int
    high: int


def find_extent(
    conn: Connection, object_id: str, key: str, *, from_step: int | None, to_step: int | None
) -> Extent | None:
    """What there is to sample; None where there are no points."""
    series_id = series_id_of(conn, object_id, key)
    if series_id is None:
        return None
    within = {
        "the_id": series_id,
        "low": _INT64[0] if from_step is None else from_step,
        "high": _INT64[1] if to_step is None else to_step,
    }
    first, last = _FIRST.first(conn, within), _LAST.first(conn, within)
    return None if first is None or last is None else Extent(series_id=series_id, low=first[0], high=last[0])


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
        huge = _HUGE_SUM.first(conn, within)
        assert huge is not None
        mean = huge[0] / huge[1] * _SCALE
    return first[0], last[0], count, least, greatest, mean, above, below, last[1], last[2]


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
