"""Series as a store remembers them, and as their rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelbox.runtime.store.metric_values import kept_number, number_of

__all__ = ("STATE", "Change", "Name", "Series", "StaleSeriesError", "series_of_row")

STATE = (
    "count",
    "min",
    "max",
    "latest",
    "latest_flag",
    "infinite",
    "latest_step",
    "latest_time_us",
    "first_step",
    "low_time_us",
    "high_time_us",
)
"""Columns that change with each point, in the order of `Series.values`."""

Name = tuple[str, str]
"""Of a series: its object's id and its key."""

_INFINITE = (float("inf"), float("-inf"))


class StaleSeriesError(Exception):
    """A series is not as it was remembered: somebody else wrote it. To be tried again without memory."""


@dataclass(slots=True, kw_only=True)
class Series:
    """The row of a series, with numbers as they are. Never changed: not frozen, since that takes longer than SQLite.

    Attributes:
        id: 0 for one that is yet to be made.
        kind: 0 numbers, 1 texts, 2 bytes.
        low_time_us: No point's time is less; None where that is not known, as in series of an older release.
        high_time_us: No point's time is greater; likewise.
    """

    id: int
    kind: int
    count: int = 0
    min: float | None = None
    max: float | None = None
    latest: float | None = None
    latest_flag: int = 0
    latest_step: int = 0
    latest_time_us: int = 0
    first_step: int = 0
    low_time_us: int | None = None
    high_time_us: int | None = None

    def values(self) -> tuple[Any, ...]:
        """Of the columns `STATE`."""
        least, greatest = self.min, self.max
        return (
            self.count,
            kept_number(least),
            kept_number(greatest),
            kept_number(self.latest),
            self.latest_flag,
            (least in _INFINITE) + 2 * (greatest in _INFINITE),
            self.latest_step,
            self.latest_time_us,
            self.first_step,
            self.low_time_us,
            self.high_time_us,
        )


Change = tuple[Series, Series]
"""A series before and after; both have its id."""


def series_of_row(row: Sequence[Any]) -> Series:
    """A series of the columns id, kind, and `STATE`."""
    series_id, kind, count, least, greatest, latest, latest_flag, infinite, *rest = row
    latest_step, latest_time_us, first_step, low_time_us, high_time_us = rest
    return Series(
        id=series_id,
        kind=kind,
        count=count,
        min=_bound(least, infinite & 1),
        max=_bound(greatest, infinite & 2),
        latest=number_of(latest, latest_flag),
        latest_flag=latest_flag,
        latest_step=latest_step,
        latest_time_us=latest_time_us,
        first_step=first_step,
        low_time_us=low_time_us,
        high_time_us=high_time_us,
    )


def _bound(kept: float | None, infinite: int) -> float | None:
    return kept if kept is None or not infinite else _INFINITE[kept < 0]
