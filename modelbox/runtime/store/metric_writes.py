"""Adding points to series: many batches in one transaction.

The work is done on columns over all batches at once, and the row of each series is written once. A series is remembered
as the last transaction left it, and changed only if it still is so (its count tells); so one that is known is never
read. Whether a point is there already is looked up only where that is possible: points behind the last one of their
series cannot be.

How rows get into the database is up to `modelbox.runtime.store.metric_shared.PointWrites`, except on SQLite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, bindparam, insert, select, tuple_, update

from modelbox.errors import InvalidError, ModelBoxError
from modelbox.refs import shown
from modelbox.runtime.metric_ports import LoggedPoints, MetricPoints
from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_points, metric_series
from modelbox.runtime.store.metric_shared import PointColumns, PointWrites, add_series, find_series, writes_of
from modelbox.runtime.store.metric_state import STATE, Change, Name, Series, StaleSeriesError, series_of_row
from modelbox.runtime.store.metric_values import NUMBER, kept_number, kept_numbers, kind_of, kinds_of
from modelbox.runtime.store.prepared import Prepared
from modelbox.runtime.store.prepared_rows import PreparedRows

__all__ = ("Appended", "append_points")

_KIND_NAMES = ("numbers", "texts", "bytes")
_IN_CHUNK = 500
_FEW = 16
"""Points that take less time one by one than an array of them does, or one statement of SQLAlchemy."""
_COLUMNS = ("series_id", "step", "time_us", "kind", "value")
_NEW_STATE = tuple(f"new_{name}" for name in STATE)

_FIND_OBJECT = Prepared(
    select(metric_objects.c.id).where(metric_objects.c.uid == bindparam("the_uid")).with_for_update()
)
_FIND_KEY = Prepared(select(metric_keys.c.id).where(metric_keys.c.name == bindparam("the_name")))
_ADD_OBJECT = Prepared(insert(metric_objects), ("uid",))
_ADD_KEY = Prepared(insert(metric_keys), ("name",))
_ADD_SERIES = Prepared(insert(metric_series), ("object_id", "key_id", "kind", *STATE))
_FIND_SERIES = Prepared(
    select(metric_series.c.id, metric_series.c.kind, *(metric_series.c[name] for name in STATE))
    .join(metric_objects, metric_objects.c.id == metric_series.c.object_id)
    .join(metric_keys, metric_keys.c.id == metric_series.c.key_id)
    .where(metric_objects.c.uid == bindparam("the_uid"), metric_keys.c.name == bindparam("the_name"))
    .with_for_update(of=metric_series)
)
_FIND_POINT = Prepared(
    select(metric_points.c.kind).where(
        metric_points.c.series_id == bindparam("the_id"),
        metric_points.c.step == bindparam("the_step"),
        metric_points.c.time_us == bindparam("the_time"),
    )
)
_UPDATE_SERIES = Prepared(
    update(metric_series)
    .where(metric_series.c.id == bindparam("the_id"), metric_series.c.count == bindparam("old_count"))
    .values({name: bindparam(new) for name, new in zip(STATE, _NEW_STATE, strict=True)})
)
_ADD_POINTS = PreparedRows(metric_points, _COLUMNS)
_ADD_PAYLOADS = PreparedRows(metric_points, (*_COLUMNS, "payload"))


_Taken = tuple[int, MetricPoints, list[int]]
"""The number of a batch, points of it, and the place of the series of each of their keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What came of each batch, and how the series are once the transaction is committed."""

    outcomes: list[LoggedPoints | ModelBoxError]
    series: dict[Name, Series]


def append_points(
    conn: Connection, batches: Sequence[Sequence[MetricPoints]], known: Mapping[Name, Series]
) -> Appended:
    """Adds points; see `modelbox.runtime.metric_ports.MetricStore.append`.

    Args:
        conn: The transaction.
        batches: What to add.
        known: Series as they were; none makes sure that nothing is stale.

    Raises:
        StaleSeriesError: A series is not as in ``known``.
    """
    outcomes: list[LoggedPoints | ModelBoxError] = []
    names: list[Name] = []
    series: list[Series] = []
    places: dict[Name, int] = {}
    taken: list[_Taken] = []
    writes = writes_of(conn)
    look: Callable[[Name], Series | None] = partial(_find, conn)
    if writes is not None:
        unknown = {(points.object, key): None for batch in batches for points in batch for key in points.keys}
        missing = [name for name in unknown if name not in known]
        # Whoever has no memory of anything has failed before, and is not to fail again.
        look = (find_series(conn, missing, lock=not known) if missing else {}).get
    for number, batch in enumerate(batches):
        try:
            wanted = _series_of(batch, known, look, places, series)
        except ModelBoxError as exc:
            outcomes.append(exc)
            continue
        outcomes.append(LoggedPoints(stored=0, repeated=0))
        for name, one in wanted.items():
            places[name] = len(series)
            series.append(one)
            names.append(name)
        for points in batch:
            taken.append((number, points, [places[points.object, key] for key in points.keys]))
    if not taken:
        return Appended(outcomes=outcomes, series={})
    offered = [sum([len(points) for points in batch]) for batch in batches]
    if sum(offered) <= _FEW and not any([points.payloads for _, points, _ in taken]):
        stored = _append_few(conn, taken, names, series, len(batches), writes)
    else:
        columns = _Columns.of(taken, series)
        fresh = _fresh(conn, columns, series)
        stored = np.bincount(columns.batch[fresh], minlength=len(batches)).tolist()
        if not fresh.all():
            columns = columns.only(fresh)
        if len(columns.series):
            _write(conn, columns, names, series, writes)
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, LoggedPoints):
            outcomes[number] = LoggedPoints(stored=stored[number], repeated=offered[number] - stored[number])
    return Appended(outcomes=outcomes, series=dict(zip(names, series, strict=True)))


def _series_of(
    batch: Sequence[MetricPoints],
    known: Mapping[Name, Series],
    look: Callable[[Name], Series | None],
    places: Mapping[Name, int],
    series: Sequence[Series],
) -> dict[Name, Series]:
    """Series of a batch that are not in ``series`` yet.

    Raises:
        InvalidError: Points of another kind than their series.
    """
    wanted: dict[Name, Series] = {}
    for points in batch:
        for key, kind in zip(points.keys, points.kinds, strict=True):
            name = (points.object, key)
            place = places.get(name)
            found = series[place] if place is not None else wanted.get(name)
            if found is None:
                found = wanted[name] = known.get(name) or look(name) or Series(id=0, kind=kind)
            if found.kind != kind:
                raise InvalidError(
                    f"the metric {shown(key)} of {points.object} holds {_KIND_NAMES[found.kind]}, not "
                    f"{_KIND_NAMES[kind]}: use another key",
                    what="kinds",
                    key=key,
                )
    return wanted


def _find(conn: Connection, name: Name) -> Series | None:
    row = _FIND_SERIES.first(conn, {"the_uid": name[0], "the_name": name[1]})
    return None if row is None else series_of_row(row)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Columns:
    """Points of all batches by series, step and time; of equal ones, the one that came first is first."""

    batch: NDArray[np.intp]
    series: NDArray[np.intp]
    steps: NDArray[np.int64]
    times_us: NDArray[np.int64]
    values: NDArray[np.float64]
    kinds: NDArray[np.int64]
    payloads: list[bytes | None]

    @classmethod
    def of(cls, taken: Sequence[_Taken], series: Sequence[Series]) -> _Columns:
        place = _joined([np.array(index, np.intp)[points.key_index] for _, points, index in taken])
        steps = _joined([points.steps for _, points, _ in taken])
        times_us = _joined([points.times_us for _, points, _ in taken])
        values = _joined([points.values for _, points, _ in taken])
        batch = np.repeat(
            np.array([number for number, _, _ in taken], np.intp), [len(points) for _, points, _ in taken]
        )
        payloads: list[bytes | None] = []
        if any(points.payloads for _, points, _ in taken):
            for _, points, _ in taken:
                payloads.extend(points.payloads or [None] * len(points))
            of_series = np.array([one.kind for one in series], np.int64)[place]
            values = np.where(of_series == NUMBER, values, np.nan)
            kinds = np.where(of_series == NUMBER, kinds_of(values), of_series)
        else:
            kinds = kinds_of(values)
        columns = cls(
            batch=batch, series=place, steps=steps, times_us=times_us, values=values, kinds=kinds, payloads=payloads
        )
        if len(steps) == 1:
            return columns
        return columns.only(np.lexsort((times_us, steps, place)))

    def only(self, chosen: NDArray[Any]) -> _Columns:
        """Those points, by a mask or by their places."""
        payloads = self.payloads
        if payloads:
            payloads = [payloads[place] for place in np.arange(len(payloads))[chosen].tolist()]
        return _Columns(
            batch=self.batch[chosen],
            series=self.series[chosen],
            steps=self.steps[chosen],
            times_us=self.times_us[chosen],
            values=self.values[chosen],
            kinds=self.kinds[chosen],
            payloads=payloads,
        )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _fresh(conn: Connection, columns: _Columns, series: Sequence[Series]) -> NDArray[np.bool_]:
    """Which points are not there yet; of several with one identity, the first."""
    place, steps, times_us = columns.series, columns.steps, columns.times_us
    fresh = np.ones(len(place), np.bool_)
    if len(place) > 1:
        fresh[1:] = (place[1:] != place[:-1]) | (steps[1:] != steps[:-1]) | (times_us[1:] != times_us[:-1])
    last_step = np.array([one.latest_step for one in series], np.int64)[place]
    last_us = np.array([one.latest_time_us for one in series], np.int64)[place]
    begun = np.array([one.count > 0 for one in series], np.bool_)[place]
    behind = fresh & begun & ((steps < last_step) | ((steps == last_step) & (times_us <= last_us)))
    if behind.any():
        for number in np.unique(place[behind]).tolist():
            where = np.flatnonzero(behind & (place == number))
            points = list(zip(steps[where].tolist(), times_us[where].tolist(), strict=True))
            there = _there(conn, series[number].id, points)
            fresh[where] = [point not in there for point in points]
    return fresh


def _there(conn: Connection, series_id: int, points: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Points of a series that are there; all of ``points`` among them, by step and time."""
    if len(points) <= _FEW:
        asked_for = [(point, {"the_id": series_id, "the_step": point[0], "the_time": point[1]}) for point in points]
        return {point for point, values in asked_for if _FIND_POINT.first(conn, values) is not None}
    low, high = points[0][0], points[-1][0]
    limit = 4 * len(points) + 1000
    some = select(metric_points.c.step, metric_points.c.time_us).where(metric_points.c.series_id == series_id)
    if high - low < limit:
        found = conn.execute(some.where(metric_points.c.step.between(low, high)).limit(limit + 1)).all()
        if len(found) <= limit:
            return {(row.step, row.time_us) for row in found}
    there: set[tuple[int, int]] = set()
    for start in range(0, len(points), _IN_CHUNK):
        chunk = points[start : start + _IN_CHUNK]
        asked = some.where(tuple_(metric_points.c.step, metric_points.c.time_us).in_(chunk))
        there.update((row.step, row.time_us) for row in conn.execute(asked))
    return there


def _write(
    conn: Connection, columns: _Columns, names: Sequence[Name], series: list[Series], writes: PointWrites | None
) -> None:
    """Writes points that are all new, and the rows of their series, which `series` holds afterwards."""
    starts = np.flatnonzero(np.concatenate(([True], columns.series[1:] != columns.series[:-1])))
    ends = np.append(starts[1:], len(columns.series)) - 1
    leasts = np.fmin.reduceat(columns.values, starts).tolist()
    greatests = np.fmax.reduceat(columns.values, starts).tolist()
    lows = np.minimum.reduceat(columns.times_us, starts).tolist()
    highs = np.maximum.reduceat(columns.times_us, starts).tolist()
    ids = np.zeros(len(series), np.int64)
    changed: list[tuple[int, Series]] = []
    steps, times_us, kinds, values = columns.steps, columns.times_us, columns.kinds, columns.values
    for place, start, end, least, greatest, low, high in zip(
        columns.series[starts].tolist(), starts.tolist(), ends.tolist(), leasts, greatests, lows, highs, strict=True
    ):
        last = (int(steps[end]), int(times_us[end]), int(kinds[end]), float(values[end]))
        after = _with(series[place], end - start + 1, int(steps[start]), last, (least, greatest), (low, high))
        changed.append((place, after))
    changes = _write_series(conn, changed, names, series, writes)
    for place, _ in changed:
        ids[place] = series[place].id
    if writes is not None:
        points = PointColumns(ids[columns.series], steps, times_us, kinds, values, columns.payloads)
        writes.write_columns(conn, changes, points)
        return
    rows = [ids[columns.series].tolist(), steps.tolist(), times_us.tolist(), kinds.tolist(), kept_numbers(values)]
    if columns.payloads:
        _ADD_PAYLOADS.insert(conn, list(chain.from_iterable(zip(*rows, columns.payloads, strict=True))))
    else:
        _ADD_POINTS.insert(conn, list(chain.from_iterable(zip(*rows, strict=True))))


def _append_few(
    conn: Connection,
    taken: Sequence[_Taken],
    names: Sequence[Name],
    series: list[Series],
    batches: int,
    writes: PointWrites | None,
) -> list[int]:
    """The same as arrays do for many, for a few numbers; returns how many points of each batch were new."""
    offered: list[tuple[int, int, int, int, float, int]] = []
    for number, points, index in taken:
        columns = (points.key_index.tolist(), points.steps.tolist(), points.times_us.tolist(), points.values.tolist())
        for key, step, time_us, value in zip(*columns, strict=True):
            # The order in which they came decides between equal ones, before a NaN could.
            offered.append((index[key], step, time_us, len(offered), value, number))
    offered.sort()
    stored = [0] * batches
    new: dict[int, list[tuple[int, int, int, float]]] = {}
    seen: tuple[int, int, int] | None = None
    for place, step, time_us, _, value, number in offered:
        if (place, step, time_us) == seen:
            continue
        seen = (place, step, time_us)
        one = series[place]
        behind = one.count and (step, time_us) <= (one.latest_step, one.latest_time_us)
        identity = {"the_id": one.id, "the_step": step, "the_time": time_us}
        if behind and _FIND_POINT.first(conn, identity) is not None:
            continue
        stored[number] += 1
        new.setdefault(place, []).append((step, time_us, kind_of(value), value))
    changed: list[tuple[int, Series]] = []
    for place, some in new.items():
        known = [value for _, _, _, value in some if value == value]
        bounds = (min(known), max(known)) if known else (nan, nan)
        times_us = [time_us for _, time_us, _, _ in some]
        times = (min(times_us), max(times_us))
        changed.append((place, _with(series[place], len(some), some[0][0], some[-1], bounds, times)))
    changes = _write_series(conn, changed, names, series, writes)
    rows = [
        (series[place].id, step, time_us, kind, kept_number(value))
        for place, some in new.items()
        for step, time_us, kind, value in some
    ]
    if writes is None:
        _ADD_POINTS.insert(conn, list(chain.from_iterable(rows)))
    elif rows:
        writes.write_rows(conn, changes, rows)
    return stored


def _write_series(
    conn: Connection,
    changed: Sequence[tuple[int, Series]],
    names: Sequence[Name],
    series: list[Series],
    writes: PointWrites | None,
) -> list[Change]:
    """Writes the rows of series that have changed, which ``series`` holds afterwards.

    Returns:
        Those that are left to ``writes``, so that their points are in the same statement.
    """
    changes: list[Change] = []
    new: list[int] = []
    # By id, so that two writers take the rows' locks in one order.
    for place, after in sorted(changed, key=lambda item: item[1].id):
        before, series[place] = series[place], after
        if not before.id:
            new.append(place)
        elif writes is not None:
            changes.append((before, after))
        elif not _UPDATE_SERIES.run(
            conn, {"the_id": before.id, "old_count": before.count, **dict(zip(_NEW_STATE, after.values(), strict=True))}
        ):
            raise StaleSeriesError
    if writes is None:
        ids = [_add(conn, names[place], series[place]) for place in new]
    else:
        ids = add_series(conn, [(names[place], series[place]) for place in new]) if new else []
    for place, series_id in zip(new, ids, strict=True):
        series[place] = replace(series[place], id=series_id)
    return changes


def _with(
    before: Series,
    added: int,
    first: int,
    last: tuple[int, int, int, float],
    bounds: tuple[float, float],
    times_us: tuple[int, int],
) -> Series:
    """A series after so many points from the step ``first`` to the point ``last``; NaN as bounds stands for none."""
    (step, time_us, kind, value), (least, greatest), (low, high) = last, bounds, times_us
    latest: float | None = value if before.kind == NUMBER else None
    if before.count and (before.latest_step, before.latest_time_us) > (step, time_us):
        step, time_us, kind, latest = before.latest_step, before.latest_time_us, before.latest_flag, before.latest
    timed = not before.count or (before.low_time_us is not None and before.high_time_us is not None)
    return Series(
        id=before.id,
        kind=before.kind,
        count=before.count + added,
        min=before.min if least != least else least if before.min is None else min(before.min, least),
        max=before.max if greatest != greatest else greatest if before.max is None else max(before.max, greatest),
        latest=latest,
        latest_flag=kind,
        latest_step=step,
        latest_time_us=time_us,
        first_step=min(before.first_step, first) if before.count else first,
        low_time_us=(low if before.low_time_us is None else min(before.low_time_us, low)) if timed else None,
        high_time_us=(high if before.high_time_us is None else max(before.high_time_us, high)) if timed else None,
    )


def _add(conn: Connection, name: Name, series: Series) -> int:
    uid, key = name
    row = _FIND_OBJECT.first(conn, {"the_uid": uid})
    object_id = row[0] if row is not None else _ADD_OBJECT.insert(conn, {"uid": uid})
    row = _FIND_KEY.first(conn, {"the_name": key})
    key_id = row[0] if row is not None else _ADD_KEY.insert(conn, {"name": key})
    return _ADD_SERIES.insert(
        conn,
        {
            "object_id": object_id,
            "key_id": key_id,
            "kind": series.kind,
            **dict(zip(STATE, series.values(), strict=True)),
        },
    )
