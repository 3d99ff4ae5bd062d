"""Calls that arrive in the same tick of an event loop, run as one.

Owns the collecting, the stacking of rows and their way back to the callers. Refuses to decide whether a model's rows
are independent: `Generation.batching` says so.

Invariants: a batch has calls of one generation and one row shape. Rows come back in order, each caller's own. A call
that makes a batch fail fails alone: the others run again without it. A group of calls holds one lease on its generation
from its first call to its end; a cancelled call leaves its group, and the last one to leave ends the lease, or stops
the run that has begun.

Concurrency: a `Collector` belongs to one event loop; only `run_rows` happens in other threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any

import numpy as np

from modelbox._loops import Loop, Timer, Waiter
from modelbox.errors import ClientClosed, ModelBoxError, PredictError, RunTerminated
from modelbox.loader.generation import Generation
from modelbox.loader.inputs import Feed
from modelbox.loader.pool import Job, Pool
from modelbox.loader.session import new_run_options
from modelbox.loader.stall import RunStalled
from modelbox.loader.stats import Outcome

__all__ = ("Collector", "Entry", "run_rows", "without_frames")

Outputs = list[Any]

_WORTH_A_THREAD_NS = 150e3
"""Run time that pays for the way to a thread and back, a few times over."""


class Entry:
    """One call in a batch."""

    __slots__ = ("chunk", "dropped", "feed", "group", "rows", "start_ns", "waiter")

    def __init__(self, feed: Feed, rows: int, waiter: Waiter[Outputs], start_ns: int, group: _Group) -> None:
        self.feed = feed
        self.rows = rows
        self.waiter = waiter
        self.start_ns = start_ns
        self.group = group
        self.chunk: _Chunk | None = None
        self.dropped = False


class _Group:
    """Calls that may share a run, not started yet."""

    __slots__ = ("entries", "generation", "key", "rows")

    def __init__(self, generation: Generation, key: object) -> None:
        self.generation = generation
        self.key = (generation.number, key)
        self.entries: list[Entry] = []
        self.rows = 0


class _Chunk:
    """A batch in the pool."""

    __slots__ = ("entries", "generation", "job", "live", "start_ns", "stop")

    def __init__(self, generation: Generation, entries: list[Entry]) -> None:
        self.generation = generation
        self.entries = entries
        self.live = len(entries)
        self.job: Job | None = None
        self.start_ns = 0
        self.stop = new_run_options()

    def let_go(self) -> None:
        """Has its calls forget it, now that it ended: a circle would keep their inputs until somebody collects it."""
        for entry in self.entries:
            entry.chunk = None


class Collector:
    """Collects the calls of one event loop to one model.

    Args:
        loop: The event loop.
        pool: Where batches run that take longer than ``inline_below_ns``.
        max_batch: Most rows in one run; a single call may have more.
        max_delay_s: How long the first call of a batch may wait for others; 0 for the end of the loop's tick.
        inline_below_ns: Expected run time below which batches run on the loop. What takes longer is spread over the
            free threads, in parts that are worth the way there.
        ceiling_ns: See `Generation.observe`.
        stalled_ns: What a run on the loop counts as that had to be stopped; 0 where none is.
    """

    def __init__(
        self,
        loop: Loop,
        pool: Pool,
        *,
        max_batch: int,
        max_delay_s: float,
        inline_below_ns: float,
        ceiling_ns: float,
        stalled_ns: float = 0.0,
    ) -> None:
        self.loop = loop
        self._pool = pool
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._inline_below_ns = inline_below_ns
        self._threads = pool.threads
        self._ceiling_ns = ceiling_ns
        self._stalled_ns = stalled_ns
        self._groups: dict[object, _Group] = {}
        self._scheduled = False
        self._timer: Timer | None = None
        self._running = 0
        self._overdue = False

    @property
    def waiting(self) -> int:
        """Calls whose run has not been handed on yet."""
        return sum(len(group.entries) for group in self._groups.values())

    def submit(
        self,
        generation: Generation,
        feed: Feed,
        rows: int,
        key: object,
        start_ns: int,
        waiter: Waiter[Outputs] | None = None,
    ) -> Entry | None:
        """Adds a call, to be awaited at ``entry.waiter``; None when the generation is retired."""
        group_key = (generation.number, key)
        group = self._groups.get(group_key)
        if group is None:
            if not generation.acquire():
                return None
            group = self._groups[group_key] = _Group(generation, key)
        entry = Entry(feed, rows, waiter or self.loop.make_waiter(), start_ns, group)
        group.entries.append(entry)
        group.rows += rows
        if not self._scheduled:
            self._scheduled = True
            if self._max_delay_s > 0:
                self._timer = self.loop.call_later(self._max_delay_s, self._flush)
            else:
                self.loop.call_soon(self._flush)
        elif self._timer is not None and group.rows >= self._max_batch:
            self._timer.cancel()
            self._timer = None
            self.loop.call_soon(self._flush)
        return entry

    def discard(self, entry: Entry) -> None:
        """Forgets a call that nobody waits for any more."""
        if entry.dropped:
            return
        entry.dropped = True
        chunk = entry.chunk
        if chunk is None:
            group = entry.group
            if entry in group.entries:
                group.entries.remove(entry)
                group.rows -= entry.rows
                if not group.entries and self._groups.get(group.key) is group:
                    del self._groups[group.key]
                    group.generation.release()
            return
        chunk.live -= 1
        if chunk.live or chunk.job is None:
            return
        if chunk.job.cancel():
            chunk.let_go()
            self._running -= 1
            chunk.generation.release()
            if self._overdue:
                self._flush()
        else:
            chunk.stop.terminate = True

    def _flush(self) -> None:
        """Hands on what was collected, as far as there are threads for it; runs short batches here and now."""
        self._scheduled = self._overdue = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for group_key, group in list(self._groups.items()):
            generation = group.generation
            limit = self._max_batch
            inline = generation.row_ns * min(group.rows, limit) < self._inline_below_ns
            if not inline:
                limit = self._part(generation, group.rows)
            while group.entries:
                if not inline and self._running >= self._threads:
                    # What comes until a thread is free joins the next batch, delay or not.
                    self._overdue = True
                    break
                entries = _take(group, limit)
                if group.entries:
                    generation.share()
                else:
                    del self._groups[group_key]
                if inline:
                    self._run_here(generation, entries)
                else:
                    self._run_in_pool(generation, entries)

    def _part(self, generation: Generation, rows: int) -> int:
        """Rows per batch when ``rows`` of them are spread over the free threads."""
        # Not known before the first run of a model that was not warmed.
        expected_ns = generation.row_ns * rows if generation.row_ns < math.inf else 0.0
        parts = min(self._threads - self._running, int(expected_ns / _WORTH_A_THREAD_NS))
        return min(self._max_batch, -(-rows // parts)) if parts > 1 else self._max_batch

    def _run_here(self, generation: Generation, entries: list[Entry]) -> None:
        start_ns = perf_counter_ns()
        try:
            results = run_rows(generation, entries, generation.run_here if self._stalled_ns else None)
        except RunStalled:
            generation.slow_down(self._stalled_ns)
            self._run_in_pool(generation, entries)
            return
        self._observe(generation, perf_counter_ns() - start_ns, entries)
        _deliver(generation, entries, results, start_ns)
        generation.release()

    def _observe(self, generation: Generation, took_ns: int, entries: list[Entry]) -> None:
        generation.observe_rows(took_ns, _rows(entries), self._ceiling_ns)
        if len(entries) == 1:
            generation.observe(took_ns, self._ceiling_ns)

    def _run_in_pool(self, generation: Generation, entries: list[Entry]) -> None:
        chunk = _Chunk(generation, entries)
        for entry in entries:
            entry.chunk = chunk

        def run() -> None:
            chunk.start_ns = perf_counter_ns()
            cpu_ns = generation.session.clock_ns()
            results = run_rows(generation, entries, partial(_run_within, generation, chunk.stop))
            self._observe(generation, generation.session.clock_ns() - cpu_ns, entries)
            # RuntimeError: the loop has ended, and its callers with it.
            try:
                self.loop.call_soon_threadsafe(self._finish, chunk, results)
            except RuntimeError:
                chunk.let_go()
                generation.release()

        self._running += 1
        try:
            chunk.job = self._pool.submit(run, stop=generation.force)
        except ClientClosed as exc:
            chunk.let_go()
            self._running -= 1
            _deliver(generation, entries, [exc] * len(entries), perf_counter_ns())
            generation.release()

    def _finish(self, chunk: _Chunk, results: Sequence[Outputs | Exception | None]) -> None:
        chunk.let_go()
        self._running -= 1
        _deliver(chunk.generation, chunk.entries, results, chunk.start_ns)
        chunk.generation.release()
        if self._overdue:
            self._flush()


def _take(group: _Group, limit: int) -> list[Entry]:
    """The next entries of a group, at most ``limit`` rows but at least one entry."""
    entries = group.entries
    if group.rows <= limit:
        group.entries = []
        group.rows = 0
        return entries
    rows = n = 0
    for entry in entries:
        if n and rows + entry.rows > limit:
            break
        rows += entry.rows
        n += 1
    group.entries = entries[n:]
    group.rows -= rows
    return entries[:n]


def _rows(entries: Sequence[Entry]) -> int:
    return sum([entry.rows for entry in entries])


def _deliver(
    generation: Generation, entries: Sequence[Entry], results: Sequence[Outputs | Exception | None], start_ns: int
) -> None:
    end_ns = perf_counter_ns()
    took: list[int] = []
    waited: list[int] = []
    rows = 0
    for entry, result in zip(entries, results, strict=True):
        waiter = entry.waiter
        if result is None or entry.dropped or waiter.done():
            continue
        began_ns = entry.start_ns
        if type(result) is list:
            took.append(end_ns - began_ns)
            waited.append(start_ns - began_ns)
            rows += entry.rows
            waiter.set_result(result)
        elif isinstance(result, Exception):
            generation.stats.record(Outcome.ERROR, end_ns - began_ns)
            waiter.set_exception(result)
    if took:
        generation.stats.record_batch(took, waited, rows=rows, run_ns=end_ns - start_ns)


def without_frames(error: Exception) -> Exception:
    """``error`` as its caller gets it: what failed in the run is said, and no frame of the run is kept.

    Those hold the inputs, maybe memory of another process, and by the way of the results the error itself: a circle.
    The traceback of what is a bug stays.
    """
    part: BaseException | None = error if isinstance(error, ModelBoxError) else None
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


def _run_within(generation: Generation, stop: Any, feed: Feed) -> Outputs:
    return generation.run_within(feed, stop)


def run_rows(
    generation: Generation, entries: Sequence[Entry], run: Callable[[Feed], Outputs] | None = None
) -> list[Outputs | Exception | None]:
    """Runs the calls as one, and gives each its own rows or its own error; None for those that were dropped.

    Args:
        generation: What runs them.
        entries: The calls.
        run: How; as the generation does where it is not given.

    Raises nothing but the `RunStalled` of ``run``.
    """
    run = run or generation.run
    live = [entry for entry in entries if not entry.dropped]
    if len(live) > 1:
        # Any failure, of the run as of the stacking, is looked into call by call.
        try:
            parts = _run_stacked(run, live)
        except RunTerminated as exc:
            return [RunTerminated(exc.message, **exc.fields) for _ in entries]
        except RunStalled:
            raise
        except Exception:
            parts = None
        if parts is not None:
            if len(live) == len(entries):
                return list(parts)
            rows = iter(parts)
            kept = set(map(id, live))
            return [next(rows) if id(entry) in kept else None for entry in entries]
    return [None if entry.dropped else _run_alone(run, entry) for entry in entries]


def _run_stacked(run: Callable[[Feed], Outputs], entries: Sequence[Entry]) -> list[Outputs] | None:
    """One run for all; None when the outputs do not have a row for each row of the inputs."""
    first = entries[0].feed
    feed = {name: np.concatenate([entry.feed[name] for entry in entries]) for name in first}
    outputs = run(feed)
    total = _rows(entries)
    for output in outputs:
        if output.shape[0] != total:
            return None
    parts: list[Outputs] = []
    start = 0
    for entry in entries:
        end = start + entry.rows
        parts.append([output[start:end] for output in outputs])
        start = end
    return parts


def _run_alone(run: Callable[[Feed], Outputs], entry: Entry) -> Outputs | Exception:
    try:
        return run(entry.feed)
    except ModelBoxError as exc:
        return without_frames(exc)
    except RunStalled:
        raise
    except Exception as exc:
        return PredictError(f"the model failed: {type(exc).__name__}")
