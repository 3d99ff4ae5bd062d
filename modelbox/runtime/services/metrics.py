"""Metrics: series of numbers, texts or bytes by key, on any object.

Owns the checks of what callers send and the sizes of reads. A point is known by (object, key, step, time): the value
that came first stays, so that sending something again changes nothing, and two writers of one key never disagree with
what was acknowledged. A series holds points of one kind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import anyio

from modelbox.errors import InvalidError, LimitError, ModelBoxError, NotFoundError
from modelbox.refs import shown
from modelbox.runtime.limits import check_key, check_text
from modelbox.runtime.metric_ports import LoggedPoints, MetricPoints, MetricStore
from modelbox.runtime.services.metric_points import MAX_POINTS, check_columns
from modelbox.runtime.tracking_ports import ObjectLookup
from modelbox.tracking import MetricColumns, MetricKind, MetricSummary, SampledSeries

__all__ = ("CHUNK_POINTS", "MetricService")

CHUNK_POINTS = 65_536
"""Points of one part of a series that is read."""
_CHUNK_PAYLOADS = 16
"""Points of a part of a series of texts or bytes, of up to 1 MiB each."""
_MAX_OBJECTS = 100
_MAX_KEYS = 1000
_MAX_BUCKETS = 10_000
_DEFAULT_BUCKETS = 500
_MAX_KNOWN = 100_000
_MAX_NAME_CHARS = 255
_SHOWN = 10
_SWEPT_AT_ONCE = 500
_SWEEP_PAUSE_S = 0.01

Logged = Callable[[tuple[int, int] | Exception], None]
"""Told how many points were new and how many were there already, or why none was kept."""


class MetricService:
    """Takes and gives metrics.

    Args:
        store: Where points are kept.
        lookup: Knows the objects.

    Concurrency: all methods may be called by many tasks at once; points that come at the same time share their commit.
    """

    def __init__(self, store: MetricStore, lookup: ObjectLookup) -> None:
        self._store = store
        self._lookup = lookup
        # Ids that were found: an id never comes to mean something else, so only a purge takes one out.
        self._known: OrderedDict[str, str] = OrderedDict()
        # Objects whose series a sweep may remove now, and what tells that these are fewer.
        self._sweeping: frozenset[str] = frozenset()
        self._swept = anyio.Event()

    async def log(self, columns: Sequence[MetricColumns]) -> tuple[int, int]:
        """Keeps points, all or none of them.

        Returns:
            How many were new, and how many were there already.

        Raises:
            NotFoundError: An object is not there.
            InvalidError: Columns that do not fit together, a key or time that is not valid, a point of another kind
                than its series.
            LimitError: More than 100,000 points, a key over 250 characters, a payload over 1 MiB; or the disk is full.

        Cancellation: everything is kept or nothing is, unseen.
        """
        total = sum(map(len, columns))
        if total > MAX_POINTS:
            raise LimitError(f"{total} points at once, more than the {MAX_POINTS} allowed: send them in parts")
        ids = await self._ids([part.object for part in columns])
        await self._until_swept(ids)
        batch = [points for part in columns if (points := check_columns(part, _known(ids, part.object))) is not None]
        if not batch:
            return 0, 0
        (outcome,) = await self._store.append([batch])
        if isinstance(outcome, ModelBoxError):
            raise outcome
        return outcome.stored, outcome.repeated

    def log_soon(self, columns: Sequence[MetricColumns], done: Logged) -> bool:
        """`log` for callers that are no tasks, where nothing has to be looked up first.

        Args:
            columns: What to keep.
            done: Called once, later and on the event loop, with what `log` would return or raise.

        Returns:
            False if something has to be, and nothing was begun: call `log`.

        Raises:
            InvalidError: As `log`; nothing was begun.
            LimitError: The same.
        """
        known = self._known
        batch: list[MetricPoints] = []
        for part in columns:
            object_id = known.get(part.object)
            if object_id is None or object_id in self._sweeping:
                return False
            if (points := check_columns(part, object_id)) is not None:
                batch.append(points)
        if not batch or sum(map(len, batch)) > MAX_POINTS:
            return False

        def appended(outcomes: Sequence[LoggedPoints | ModelBoxError] | Exception) -> None:
            outcome = outcomes if isinstance(outcomes, Exception) else outcomes[0]
            done(outcome if isinstance(outcome, Exception) else (outcome.stored, outcome.repeated))

        self._store.append_soon([batch], appended)
        return True

    async def log_each(self, columns: Sequence[MetricColumns]) -> list[LoggedPoints | ModelBoxError]:
        """Keeps points as `log`, but each of ``columns`` by itself: one that is refused takes no other along.

        Returns:
            What came of each, in order; errors that may pass (a full disk) are raised, not returned.
        """
        ids = await self._ids([part.object for part in columns])
        await self._until_swept(ids)
        outcomes: list[LoggedPoints | ModelBoxError] = [LoggedPoints(stored=0, repeated=0)] * len(columns)
        places: list[int] = []
        batches: list[list[MetricPoints]] = []
        for place, part in enumerate(columns):
            try:
                points = check_columns(part, _known(ids, part.object))
            except ModelBoxError as exc:
                outcomes[place] = exc
                continue
            if points is not None:
                places.append(place)
                batches.append([points])
        if batches:
            for place, outcome in zip(places, await self._store.append(batches), strict=True):
                outcomes[place] = outcome
        return outcomes

    async def summaries(self, objects: Sequence[str], keys: Sequence[str] = ()) -> tuple[MetricSummary, ...]:
        """What is known of series without reading them, by object in the order that was asked in, then by key.

        Args:
            objects: At most 100 ids or paths.
            keys: At most 1000 names; none for all.

        Raises:
            NotFoundError: An object is not there.
        """
        if len(objects) > _MAX_OBJECTS:
            raise LimitError(f"{len(objects)} objects at once, more than the {_MAX_OBJECTS} allowed", what="objects")
        if len(keys) > _MAX_KEYS:
            raise LimitError(f"{len(keys)} keys at once, more than the {_MAX_KEYS} allowed", what="keys")
        for key in keys:
            check_key(key, "metric")
        ids = await self._ids(objects)
        wanted = list(dict.fromkeys(_known(ids, name) for name in objects))
        return await self._store.summaries(wanted, list(dict.fromkeys(keys))) if wanted else ()

    async def read_series(
        self, object: str, key: str, *, from_step: int | None = None, to_step: int | None = None
    ) -> AsyncIterator[MetricColumns]:
        """One series by step and time, in parts of at most 65,536 points, each read by itself.

        A point that is added while this goes on is in it or not, depending on its place.

        Args:
            object: An id or path.
            key: Name of the series.
            from_step: The first step, included; None for the beginning.
            to_step: The last step, included; None for the end.

        Raises:
            NotFoundError: There is no such object or series; ``exists`` lists keys of the object.
        """
        summary = await self._summary(object, key, from_step, to_step)
        limit = CHUNK_POINTS if summary.kind is MetricKind.NUMBER else _CHUNK_PAYLOADS
        after: tuple[int, int] | None = None
        while True:
            part = await self._store.read_chunk(
                summary.object, key, from_step=from_step, to_step=to_step, after=after, limit=limit
            )
            if len(part):
                yield part
            if len(part) < limit:
                return
            after = _last(part.steps), _last(part.times_us)

    async def sample_series(
        self, object: str, key: str, *, from_step: int | None = None, to_step: int | None = None, buckets: int = 0
    ) -> SampledSeries:
        """A series of numbers in at most so many buckets of equal width over the steps, for a plot.

        Args:
            object: An id or path.
            key: Name of the series.
            from_step: The first step, included; None for the beginning.
            to_step: The last step, included; None for the end.
            buckets: 1 to 10,000; 0 for 500.

        Raises:
            NotFoundError: There is no such object or series; ``exists`` lists keys of the object.
            InvalidError: The series holds texts or bytes.
        """
        if isinstance(buckets, bool) or not isinstance(buckets, int) or not 0 <= buckets <= _MAX_BUCKETS:
            raise InvalidError(f"{shown(buckets)} buckets: expected 1 to {_MAX_BUCKETS}", what="buckets")
        summary = await self._summary(object, key, from_step, to_step)
        if summary.kind is not MetricKind.NUMBER:
            raise InvalidError(f"the metric {shown(key)} holds {summary.kind.value}, which has no mean", what="key")
        return await self._store.sample(
            summary.object, key, from_step=from_step, to_step=to_step, buckets=buckets or _DEFAULT_BUCKETS
        )

    async def delete_series(self, objects: Sequence[str]) -> None:
        """Removes all series of objects that are no more, by their ids."""
        for one in objects:
            self._known.pop(one, None)
        await self._store.delete_series(objects)

    async def sweep(self) -> int:
        """Removes the series of objects that are no more, which a server leaves behind that is killed while it deletes.

        Looks at all objects that have metrics, some hundred at a time. An id may be given again to a new object, so
        points of an object that is being looked at wait until that is done.

        Returns:
            How many objects that were.
        """
        gone, after = 0, 0
        while some := await self._store.objects_after(after, limit=_SWEPT_AT_ONCE):
            after = some[-1][0]
            objects = [uid for _, uid in some]
            for uid in objects:
                # It may have been purged at another replica; who logs to it meanwhile finds it again, and that counts.
                self._known.pop(uid, None)
            gone += await self._remove_missing(objects)
            await anyio.sleep(_SWEEP_PAUSE_S)
        return gone

    async def keep_partitions(self) -> int:
        """Makes room for points of the next months where the store needs it; returns how much there was to do."""
        return await self._store.keep_partitions()

    async def _remove_missing(self, unsure: Sequence[str]) -> int:
        if not unsure:
            return 0
        self._sweep_only(unsure)
        try:
            there = await self._lookup.find_objects(unsure)
            missing = [uid for uid in unsure if uid not in there and uid not in self._known]
            self._sweep_only(missing)
            if missing:
                await self._store.delete_series(missing)
            return len(missing)
        finally:
            self._sweep_only(())

    def _sweep_only(self, objects: Sequence[str]) -> None:
        self._sweeping = frozenset(objects)
        self._swept.set()
        self._swept = anyio.Event()

    async def _until_swept(self, ids: Mapping[str, str]) -> None:
        while self._sweeping and not self._sweeping.isdisjoint(ids.values()):
            await self._swept.wait()

    async def _summary(self, object: str, key: str, from_step: int | None, to_step: int | None) -> MetricSummary:
        check_key(key, "metric")
        for step, what in ((from_step, "from_step"), (to_step, "to_step")):
            if step is not None and not -(2**63) <= step < 2**63:
                raise InvalidError(f"{what} {step} is no 64-bit integer", what=what)
        object_id = _known(await self._ids([object]), object)
        summary = await self._store.find_summary(object_id, key)
        if summary is not None:
            return summary
        exists = await self._store.key_names(object_id, limit=_SHOWN)
        instead = f"keys there are: {', '.join(exists)}" if exists else "it has no metrics yet"
        raise NotFoundError(
            f"no metric {shown(key)} on {object}: {instead}", what="metric", name=key, exists=list(exists)
        )

    async def _ids(self, names: Sequence[str]) -> dict[str, str]:
        """The id of each object that is there, by its name."""
        found: dict[str, str] = {}
        missing: dict[str, None] = {}
        for name in names:
            known = self._known.get(name)
            if known is None:
                missing[check_text(name, "object", max_chars=_MAX_NAME_CHARS)] = None
            else:
                found[name] = known
        if missing:
            fresh = await self._lookup.find_objects(list(missing))
            found.update(fresh)
            for name, known in fresh.items():
                if name == known:
                    self._known[name] = known
            while len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return found


def _known(ids: dict[str, str], name: str) -> str:
    known = ids.get(name)
    if known is None:
        raise NotFoundError(
            f"no object {shown(name)}: was it made on this server, or purged?", what="object", name=name
        )
    return known


def _last(column: bytes) -> int:
    return int.from_bytes(column[-8:], "little", signed=True)
