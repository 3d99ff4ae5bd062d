"""What the calls of one generation add up to: counts, durations, batch sizes, time in the queue.

Owns the aggregates and nothing else: exporters read `CallStats.snapshot` when they are asked and turn it into true sums
and histograms of their own kind. Cheap enough for every call (a fraction of a microsecond), because an instrument of
OpenTelemetry costs more than a small model. Keeps no inputs, outputs or identities.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from modelbox._fork import reset_in_child

__all__ = ("DURATION_BOUNDS_S", "SIZE_BOUNDS", "CallStats", "Histogram", "Outcome", "StatsSnapshot")

DURATION_BOUNDS_S: tuple[float, ...] = (
    *(round(step * 10.0**power, 12) for power in range(-6, 2) for step in (1.0, 1.6, 2.5, 4.0, 6.3)),
    100.0,
)
"""Upper bounds of the duration buckets in seconds: five per decade, from 1 µs to 100 s."""

SIZE_BOUNDS: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""Upper bounds of the batch size buckets, in calls."""

_MAX_SIZES = 512
"""Numbers of rows that are told apart; whatever else callers send is not counted by rows."""

_BOUNDS_NS = tuple(int(bound * 1e9) for bound in DURATION_BOUNDS_S)


class Outcome(StrEnum):
    """How a call ended."""

    OK = "ok"
    INVALID = "invalid"
    """The inputs do not fit the signature."""
    ERROR = "error"
    """The model failed."""
    CANCELLED = "cancelled"
    """Whoever called stopped waiting, a timeout included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """A distribution.

    Attributes:
        bounds: Upper bounds, inclusive, ascending.
        buckets: Count per bound, and one more for what is above the last; not cumulative.
        sum: Of all values, in seconds for durations.
    """

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    count: int
    sum: float

    def quantile(self, q: float) -> float:
        """Upper bound of the bucket in which the ``q``-quantile lies (0 to 1); 0 without values."""
        rank = q * self.count
        seen = 0
        for bound, n in zip(self.bounds, self.buckets, strict=False):
            seen += n
            if seen and seen >= rank:
                return bound
        return self.bounds[-1] if self.count else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsSnapshot:
    """All aggregates at one moment.

    Attributes:
        duration_s: Per outcome, the whole call as its caller sees it.
        queue_s: From the call to the start of its run, for calls that did not run at once.
        batch_size: Calls per run, for runs of the batching path.
    """

    duration_s: Mapping[Outcome, Histogram]
    queue_s: Histogram
    batch_size: Histogram

    @property
    def calls(self) -> int:
        """Calls of every outcome."""
        return sum(histogram.count for histogram in self.duration_s.values())


class _Series:
    __slots__ = ("buckets", "count", "total")

    def __init__(self, bounds: int) -> None:
        self.count = 0
        self.total = 0
        self.buckets = [0] * (bounds + 1)

    def snapshot(self, bounds: tuple[float, ...], scale: float) -> Histogram:
        return Histogram(bounds=bounds, buckets=tuple(self.buckets), count=self.count, sum=self.total * scale)


class CallStats:
    """Aggregates of one generation; every method may be called from any thread."""

    __slots__ = ("__weakref__", "_batch", "_cancelled", "_error", "_invalid", "_joined", "_lock", "_ok", "_queue")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        n = len(_BOUNDS_NS)
        self._ok, self._invalid, self._error, self._cancelled = _Series(n), _Series(n), _Series(n), _Series(n)
        self._queue = _Series(n)
        self._batch = _Series(len(SIZE_BOUNDS))
        self._joined: dict[int, list[int]] = {}
        reset_in_child(self)

    def record_ok(self, took_ns: int) -> None:
        """Adds one call that was answered, ``took_ns`` nanoseconds long."""
        bucket = bisect_left(_BOUNDS_NS, took_ns)
        series = self._ok
        with self._lock:
            series.count += 1
            series.total += took_ns
            series.buckets[bucket] += 1

    def record(self, outcome: Outcome, took_ns: int) -> None:
        """Adds one call of any outcome."""
        self._add(getattr(self, f"_{outcome.value}"), bisect_left(_BOUNDS_NS, took_ns), took_ns)

    def record_queue(self, waited_ns: int) -> None:
        """Adds the time that one call waited for its run to start."""
        self._add(self._queue, bisect_left(_BOUNDS_NS, waited_ns), waited_ns)

    def record_batch(self, took_ns: Sequence[int], waited_ns: Sequence[int], *, rows: int = 0, run_ns: int = 0) -> None:
        """Adds one batch, all of it answered.

        Args:
            took_ns: What each of its calls took.
            waited_ns: What each of them waited for the run to start.
            rows: Of all calls together; 0 if nobody counted.
            run_ns: What the run took.
        """
        with self._lock:
            for series, values in ((self._ok, took_ns), (self._queue, waited_ns)):
                series.count += len(values)
                series.total += sum(values)
                buckets = series.buckets
                for value in values:
                    buckets[bisect_left(_BOUNDS_NS, value)] += 1
            runs = self._joined.get(rows)
            if runs is None and rows and len(self._joined) < _MAX_SIZES:
                runs = self._joined[rows] = [0, 0]
            if runs is not None:
                runs[0] += 1
                runs[1] += run_ns
            self._batch.count += 1
            self._batch.total += len(took_ns)
            self._batch.buckets[bisect_left(SIZE_BOUNDS, len(took_ns))] += 1

    def _add(self, series: _Series, bucket: int, value: int) -> None:
        with self._lock:
            series.count += 1
            series.total += value
            series.buckets[bucket] += 1

    def snapshot(self) -> StatsSnapshot:
        """All aggregates at this moment."""
        with self._lock:
            return StatsSnapshot(
                duration_s={
                    outcome: getattr(self, f"_{outcome.value}").snapshot(DURATION_BOUNDS_S, 1e-9) for outcome in Outcome
                },
                queue_s=self._queue.snapshot(DURATION_BOUNDS_S, 1e-9),
                batch_size=self._batch.snapshot(SIZE_BOUNDS, 1),
            )

    def joined_runs(self) -> dict[int, tuple[int, int]]:
        """Runs of the batching path by their number of rows: how many, and nanoseconds in all."""
        with self._lock:
            return {rows: (count, ns) for rows, (count, ns) in self._joined.items()}

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
