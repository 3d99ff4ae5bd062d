"""Points of metrics as CSV."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from modelbox.client import Client
    from modelbox.series import Series

__all__ = ("COLUMNS", "export_points")

COLUMNS = ("run", "key", "step", "time", "value")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Writable(Protocol):
    """What a `csv.writer` needs."""

    def write(self, row: str, /) -> int:
        """One row with its end."""


async def export_points(client: Client, runs: Sequence[str], keys: Sequence[str], target: Writable) -> int:
    """Writes a line of names and a line for each point, by run, key, step and time; returns how many points.

    Times are ISO 8601 in UTC, numbers as Python writes them (``nan``, ``inf``), bytes base64. A long series is read by
    ranges of its steps, so that memory stays small where steps are spread evenly.

    Args:
        client: Where from.
        runs: Ids.
        keys: Only these metrics; empty for all.
        target: Where to.

    Raises:
        NotFoundError: A run does not exist.
    """
    from modelbox.series import step_ranges

    writer = csv.writer(target)
    writer.writerow(COLUMNS)
    count = 0
    for run in runs:
        for summary in await client.metric_summaries(run, keys=keys):
            for first, last in step_ranges(summary):
                series = await client.read_series(run, summary.key, from_step=first, to_step=last)
                writer.writerows(_rows(run, series))
                count += len(series)
    return count


def _rows(run: str, series: Series) -> Iterator[tuple[str, str, int, str, object]]:
    values: Sequence[object] = series.payloads or series.values.tolist()
    for step, time_us, value in zip(series.steps.tolist(), series.times_us.tolist(), values, strict=True):
        at = (_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")
        yield run, series.key, step, at, base64.b64encode(value).decode() if isinstance(value, bytes) else value
