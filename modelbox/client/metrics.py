"""Metrics, as methods of the client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy.typing as npt

from modelbox.client.connection import ClientConnection
from modelbox.series import MetricValue, Point, Sample, Series, columns_of, join_series, number_columns, sample_of
from modelbox.tracking import MetricColumns, MetricSummary

if TYPE_CHECKING:
    from modelbox._transport.source import RemoteSource

__all__ = ("MetricCalls",)

_POINTS_PER_CALL = 50_000


class MetricCalls(ClientConnection):
    """The part of `Client` about metrics.

    A point is known by object, key, step and time: logged again, it changes nothing, and the value that came first
    stays. `Run.log_metric` does the same without waiting for the server.
    """

    async def log_metrics(
        self, object: str, values: Mapping[str, MetricValue], *, step: int = 0, at: datetime | None = None
    ) -> None:
        """Appends one point to each of some metrics, and waits until they are on the server's disk.

        Args:
            object: Id of what is measured, a namespace, ``namespace/model`` or ``namespace/model@7``.
            values: Numbers (NaN and infinities are kept), text or bytes by key.
            step: int64.
            at: Aware time; None for now.

        Raises:
            NotFoundError: There is no such object.
            InvalidError: A key, step or value cannot be kept.
        """
        time_us = time.time_ns() // 1000 if at is None else round(at.timestamp() * 1e6)
        points = [Point(key=key, step=step, time_us=time_us, value=value) for key, value in values.items()]
        columns = columns_of(object, points)
        await self._call(lambda source: source.tracking.log_metrics([columns]))

    async def log_series(
        self,
        object: str,
        key: str,
        steps: Sequence[int] | npt.ArrayLike,
        values: npt.ArrayLike,
        *,
        times_us: npt.ArrayLike | None = None,
    ) -> None:
        """Appends many numbers to one metric.

        Args:
            object: As in `log_metrics`.
            key: The metric.
            steps: (points,) int64.
            values: (points,) float64.
            times_us: (points,) int64 or one number, microseconds since 1970 in UTC; None for now.

        Raises:
            NotFoundError: There is no such object.
            InvalidError: Lengths differ, or they are no numbers.

        Cancellation: some points may be there; the same call again adds the rest if ``times_us`` is given.
        """
        whole = number_columns(object, key, steps, values, time.time_ns() // 1000 if times_us is None else times_us)
        for begin in range(0, len(whole), _POINTS_PER_CALL):
            part = slice(begin * 8, (begin + _POINTS_PER_CALL) * 8)
            columns = MetricColumns(
                object=object,
                keys=(key,),
                steps=whole.steps[part],
                times_us=whole.times_us[part],
                values=whole.values[part],
            )

            async def send(source: RemoteSource, columns: MetricColumns = columns) -> None:
                await source.tracking.log_metrics([columns])

            await self._call(send)

    async def metric_summaries(self, *objects: str, keys: Sequence[str] = ()) -> tuple[MetricSummary, ...]:
        """Latest value, minimum, maximum and count of the metrics of objects, without reading the series."""
        return await self._call(lambda source: source.tracking.get_metric_summaries(objects, keys))

    async def read_series(
        self, object: str, key: str, *, from_step: int | None = None, to_step: int | None = None
    ) -> Series:
        """One series by step and time, or its part with ``from_step`` <= step <= ``to_step``.

        Raises:
            NotFoundError: There is no such object, or it has no such metric; says which there are.
        """

        async def read(source: RemoteSource) -> list[MetricColumns]:
            chunks = source.tracking.read_series(object, key, from_step=from_step, to_step=to_step)
            return [chunk async for chunk in chunks]

        return join_series(object, key, await self._call(read))

    async def sample_series(
        self, object: str, key: str, *, buckets: int = 500, from_step: int | None = None, to_step: int | None = None
    ) -> Sample:
        """One series in at most ``buckets`` buckets of equal width (1 to 10,000), made where the points are: for plots.

        Raises:
            NotFoundError: There is no such object, or it has no such metric; says which there are.
        """
        sampled = await self._call(
            lambda source: source.tracking.sample_series(
                object, key, buckets=buckets, from_step=from_step, to_step=to_step
            )
        )
        return sample_of(sampled)
