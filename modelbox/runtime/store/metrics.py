"""Metrics in SQL. Calls at the same time share transactions; neither points nor series are in the change feed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import Connection, Select, delete, select, tuple_

from modelbox.errors import DeadlineExceeded, ModelBoxError, ServerBusy
from modelbox.runtime.metric_ports import LoggedPoints, MetricPoints
from modelbox.runtime.store import metric_reads, metric_samples
from modelbox.runtime.store.database import MetricsDatabase
from modelbox.runtime.store.metric_partitions import keep_partitions
from modelbox.runtime.store.metric_schema import metric_objects, metric_points, metric_series
from modelbox.runtime.store.metric_state import Name, Series, StaleSeriesError
from modelbox.runtime.store.metric_writes import Appended, append_points
from modelbox.tracking import MetricColumns, MetricSummary, SampledSeries

__all__ = ("SqlMetricStore",)

_LOG = logging.getLogger(__name__)

_MAX_KNOWN = 200_000
_MAX_GROUP_POINTS = 50_000
"""Of one transaction, so that nobody waits for long; a single call may have more."""
_DELETE_POINTS = 20_000
_SAMPLE_PART_S = 0.05
"""After which another sample has its turn."""
_SAMPLE_LIMIT_S = 20.0
_IN_CHUNK = 500
_STALE_TRIES = 5

Outcome = LoggedPoints | ModelBoxError
Batch = Sequence[MetricPoints]
Done = Callable[[Sequence[Outcome] | Exception], None]


class _Waiting:
    """Batches of one call on their way into a transaction."""

    __slots__ = ("batches", "done", "objects", "points")

    def __init__(self, batches: Sequence[Batch], done: Done) -> None:
        self.batches = batches
        self.points = sum([len(points) for batch in batches for points in batch])
        self.done = done
        self.objects = {points.object for batch in batches for points in batch}

    def tell(self, outcome: Sequence[Outcome] | Exception) -> None:
        """Has the call go on."""
        try:
            self.done(_copy_of(outcome) if isinstance(outcome, Exception) else outcome)
        except Exception:
            # The others of its group are to be told, too.
            _LOG.exception("a call whose points were written failed unexpectedly")


class SqlMetricStore:
    """`modelbox.runtime.metric_ports.MetricStore` over a database; see there for each method.

    While calls wait, tasks write, as many as the database has connections for it: all that wait together in one
    transaction, then those that came meanwhile. Calls for one object keep their order: while one is being written, the
    next ones wait.
    """

    def __init__(self, database: MetricsDatabase) -> None:
        self._db = database
        self._waiting: deque[_Waiting] = deque()
        self._writing: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()
        self._known: dict[Name, Series] = {}

    async def append(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """See the port."""
        answer: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()

        def done(outcome: Sequence[Outcome] | Exception) -> None:
            if answer.done():
                return
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        waiting = self._enqueue(batches, done)
        try:
            return await answer
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    def append_soon(self, batches: Sequence[Batch], done: Done) -> None:
        """See the port."""
        self._enqueue(batches, done)

    def _enqueue(self, batches: Sequence[Batch], done: Done) -> _Waiting:
        waiting = _Waiting(batches, done)
        self._waiting.append(waiting)
        if len(self._writing) < self._db.appenders and self._busy.isdisjoint(waiting.objects):
            task = asyncio.get_running_loop().create_task(self._write_waiting(), name="write metrics")
            self._writing.add(task)
        return waiting

    async def _write_waiting(self) -> None:
        """Writes until nothing waits; cancelled only when the event loop ends."""
        group: list[_Waiting] = []
        try:
            # Whoever is passed over is of an object that another task writes, and which that one looks for again.
            while group := self._take_group():
                objects = {uid for waiting in group for uid in waiting.objects}
                self._busy |= objects
                try:
                    await self._write_group(group)
                finally:
                    self._busy -= objects
        except BaseException:
            for waiting in (*group, *self._waiting):
                waiting.tell(ServerBusy("the server stops: try again", retry_after_s=1.0))
            self._waiting.clear()
            raise
        finally:
            # Before anybody else runs, who would take it for one that still looks.
            task = asyncio.current_task()
            assert task is not None
            self._writing.discard(task)

    def _take_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        points = 0
        if self._busy:
            passed, left = set(self._busy), deque[_Waiting]()
            for waiting in self._waiting:
                full = group and points + waiting.points > _MAX_GROUP_POINTS
                if full or not passed.isdisjoint(waiting.objects):
                    passed |= waiting.objects
                    left.append(waiting)
                else:
                    points += waiting.points
                    group.append(waiting)
            self._waiting = left
            return group
        while self._waiting and (not group or points + self._waiting[0].points <= _MAX_GROUP_POINTS):
            points += self._waiting[0].points
            group.append(self._waiting.popleft())
        return group

    async def _write_group(self, group: Sequence[_Waiting]) -> None:
        try:
            appended = await self._append([batch for waiting in group for batch in waiting.batches])
        except Exception as exc:
            for waiting in group:
                waiting.tell(exc)
            return
        begin = 0
        for waiting in group:
            end = begin + len(waiting.batches)
            waiting.tell(appended.outcomes[begin:end])
            begin = end

    async def _append(self, batches: Sequence[Batch]) -> Appended:
        known = self._known
        try:
            appended = await self._db.append(lambda conn: append_points(conn, batches, known))
        except StaleSeriesError:
            for name in {(points.object, key) for batch in batches for points in batch for key in points.keys}:
                known.pop(name, None)
            appended = await self._append_afresh(batches)
        if len(known) + len(appended.series) > _MAX_KNOWN:
            known.clear()
        known.update(appended.series)
        return appended

    async def _append_afresh(self, batches: Sequence[Batch]) -> Appended:
        """Appends without memory; others may delete what was just found, so not only once."""
        for left in reversed(range(_STALE_TRIES)):
            try:
                return await self._db.append(lambda conn: append_points(conn, batches, {}))
            except StaleSeriesError:
                if not left:
                    raise ServerBusy("others change the same series: try again", retry_after_s=0.1) from None
        raise AssertionError

    async def summaries(self, objects: Sequence[str], keys: Sequence[str]) -> tuple[MetricSummary, ...]:
        """See the port."""
        return await self._db.read(lambda conn: metric_reads.summaries(conn, objects, keys))

    async def find_summary(self, object: str, key: str) -> MetricSummary | None:
        """See the port."""
        return await self._db.read(lambda conn: metric_reads.find_summary(conn, object, key))

    async def key_names(self, object: str, *, limit: int) -> tuple[str, ...]:
        """See the port."""
        return await self._db.read(lambda conn: metric_reads.key_names(conn, object, limit))

    async def read_chunk(
        self,
        object: str,
        key: str,
        *,
        from_step: int | None,
        to_step: int | None,
        after: tuple[int, int] | None,
        limit: int,
    ) -> MetricColumns:
        """See the port."""
        return await self._db.read(
            lambda conn: metric_reads.read_chunk(
                conn, object, key, from_step=from_step, to_step=to_step, after=after, limit=limit
            )
        )

    async def sample(
        self, object: str, key: str, *, from_step: int | None, to_step: int | None, buckets: int
    ) -> SampledSeries:
        """See the port."""
        extent = await self._db.read(
            lambda conn: metric_samples.find_extent(conn, object, key, from_step=from_step, to_step=to_step)
        )
        found: list[metric_samples.Bucket] = []
        begin = None if extent is None else extent.low
        while extent is not None and begin is not None:
            part = partial(
                metric_samples.sample_part, extent=extent, buckets=buckets, begin=begin, seconds=_SAMPLE_PART_S
            )
            try:
                some, begin = await self._db.search(part, limit_s=_SAMPLE_LIMIT_S)
            except TimeoutError as exc:
                raise DeadlineExceeded(
                    f"a bucket of {key} on {object} took more than {_SAMPLE_LIMIT_S:g} s to read: ask for fewer steps"
                ) from exc
            found += some
        return metric_samples.sampled(found)

    async def objects_after(self, after: int, *, limit: int) -> Sequence[tuple[int, str]]:
        """See the port."""
        return await self._db.read(lambda conn: _objects_after(conn, after, limit))

    async def keep_partitions(self) -> int:
        """See the port."""
        return await self._db.write(lambda conn: keep_partitions(conn, now_us=time.time_ns() // 1000))

    async def delete_series(self, objects: Sequence[str]) -> int:
        """See the port."""
        gone = 0
        for start in range(0, len(objects), _IN_CHUNK):
            some = list(objects[start : start + _IN_CHUNK])
            for name in [name for name in self._known if name[0] in some]:
                del self._known[name]
            for series_id in await self._db.read(partial(_series_ids, uids=some)):
                while count := await self._db.write(partial(_delete_points, series_id=series_id)):
                    gone += count
            await self._db.write(partial(_delete_objects, uids=some))
        return gone


def _objects_after(conn: Connection, after: int, limit: int) -> Sequence[tuple[int, str]]:
    query = select(metric_objects.c.id, metric_objects.c.uid).where(metric_objects.c.id > after)
    return [(row.id, row.uid) for row in conn.execute(query.order_by(metric_objects.c.id).limit(limit))]


def _of_objects(uids: Sequence[str]) -> Select[tuple[int]]:
    return (
        select(metric_series.c.id)
        .join(metric_objects, metric_objects.c.id == metric_series.c.object_id)
        .where(metric_objects.c.uid.in_(uids))
    )


def _series_ids(conn: Connection, uids: Sequence[str]) -> list[int]:
    return [row.id for row in conn.execute(_of_objects(uids))]


def _delete_points(conn: Connection, series_id: int) -> int:
    """Deletes some of the first points; returns how many."""
    columns = metric_points.c
    behind = (
        select(columns.step, columns.time_us)
        .where(columns.series_id == series_id)
        .order_by(columns.step, columns.time_us)
        .offset(_DELETE_POINTS)
        .limit(1)
    )
    first_left = conn.execute(behind).first()
    gone = delete(metric_points).where(columns.series_id == series_id)
    if first_left is not None:
        gone = gone.where(tuple_(columns.step, columns.time_us) < tuple_(first_left.step, first_left.time_us))
    return int(conn.execute(gone).rowcount)


def _delete_objects(conn: Connection, uids: Sequence[str]) -> None:
    """Deletes series, with what points came meanwhile, and their objects."""
    for series_id in _series_ids(conn, uids):
        conn.execute(delete(metric_points).where(metric_points.c.series_id == series_id))
        conn.execute(delete(metric_series).where(metric_series.c.id == series_id))
    conn.execute(delete(metric_objects).where(metric_objects.c.uid.in_(uids)))


def _copy_of(error: Exception) -> Exception:
    """An error of the caller's own: one that several tasks raise would gather all their tracebacks."""
    if not isinstance(error, ModelBoxError):
        return error
    copied = type(error)(error.message, **error.fields)
    copied.__cause__ = error.__cause__
    return copied
