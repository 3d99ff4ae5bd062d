"""What the metric service needs of a store, as a protocol; the rules of `modelbox.runtime.ports` hold here too.

Metrics are not in the change feed, and may be kept in another database than everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modelbox.errors import ModelBoxError
from modelbox.tracking import MetricColumns, MetricSummary, SampledSeries

__all__ = ("Appended", "LoggedPoints", "MetricPoints", "MetricStore")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MetricPoints:
    """Points of one object that the service has checked; arrays have one element per point.

    Attributes:
        object: Id of the object.
        keys: Names; each occurs once, and has points.
        kinds: Per key: 0 if its points are numbers, 1 text, 2 bytes.
        key_index: intp: place in ``keys``.
        steps: int64.
        times_us: int64.
        values: float64; of no meaning for payloads.
        payloads: Per point, None for numbers; empty where all are numbers.
    """

    object: str
    keys: tuple[str, ...]
    kinds: tuple[int, ...]
    key_index: NDArray[np.intp]
    steps: NDArray[np.int64]
    times_us: NDArray[np.int64]
    values: NDArray[np.float64]
    payloads: Sequence[bytes | None] = ()

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedPoints:
    """How many points were new, and how many were there already."""

    stored: int
    repeated: int


Appended = Callable[[Sequence[LoggedPoints | ModelBoxError] | Exception], None]
"""Told what came of batches, or why none was stored."""


class MetricStore(Protocol):
    """Series of points.

    A point is known by (series, step, time): the one that came first stays. A series holds numbers, or texts, or bytes;
    points of another kind are refused.
    """

    async def append(self, batches: Sequence[Sequence[MetricPoints]]) -> Sequence[LoggedPoints | ModelBoxError]:
        """Adds points; what came of each batch, in order, once all is on disk.

        A batch is stored whole or refused whole (`InvalidError`: points of another kind than the series); the others
        go on. Calls at the same time share their transactions.

        Cancellation: the batches are stored or not, each whole, unseen.
        """

    def append_soon(self, batches: Sequence[Sequence[MetricPoints]], done: Appended) -> None:
        """`append` for callers that are no tasks: a task for each costs as much as storing a point.

        Args:
            batches: What to add.
            done: Called once, later and on the event loop, with what came of each batch, or with the error of all. What
                it raises is logged.
        """

    async def summaries(self, objects: Sequence[str], keys: Sequence[str]) -> tuple[MetricSummary, ...]:
        """What is known of the series of objects, by object in the order that was asked in, then by key.

        Args:
            objects: Ids, each once.
            keys: Names; none for all.
        """

    async def find_summary(self, object: str, key: str) -> MetricSummary | None:
        """What is known of one series."""

    async def key_names(self, object: str, *, limit: int) -> tuple[str, ...]:
        """Names of series of an object, in order, at most so many."""

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
        """Points of a series by step and time, at most ``limit``; none where there is no such series.

        Args:
            object: Id of the object.
            key: Name of the series.
            from_step: The first step, included.
            to_step: The last step, included.
            after: Step and time of the last point that was read already.
            limit: Points at most.
        """

    async def sample(
        self, object: str, key: str, *, from_step: int | None, to_step: int | None, buckets: int
    ) -> SampledSeries:
        """A series of numbers in at most ``buckets`` buckets; empty where there is no such series."""

    async def objects_after(self, after: int, *, limit: int) -> Sequence[tuple[int, str]]:
        """Numbers and ids of objects that have had points, in the order of the numbers, from behind ``after``."""

    async def keep_partitions(self) -> int:
        """Makes room for points of the next months, where the store keeps them by month, and gives up what is empty.

        To be called every hour or so; returns how much there was to do.
        """

    async def delete_series(self, objects: Sequence[str]) -> int:
        """Removes all series of objects, in small transactions, so that others go on; returns how many points."""
