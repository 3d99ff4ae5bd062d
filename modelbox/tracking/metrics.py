"""Series of measured values on any object."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

__all__ = (
    "MetricColumns",
    "MetricKind",
    "MetricSummary",
    "SampledSeries",
)


class MetricKind(StrEnum):
    """What the points of a series hold."""

    NUMBER = "number"
    TEXT = "text"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricColumns:
    """Points of metrics of one object, as columns of raw little-endian bytes.

    A point is known by (object, key, step, time): repeated, it changes nothing, and the value that came first stays.

    Attributes:
        object: Id of the object.
        keys: The names that occur.
        key_index: uint32 per point: its place in ``keys``. Empty where there is one key.
        steps: int64 per point.
        times_us: int64 per point: microseconds since 1970 in UTC, by the caller's clock.
        values: float64 per point; NaN and infinities are kept. Of no meaning for points with a payload.
        kinds: uint8 per point: 0 number, 1 text, 2 bytes. Empty where all are numbers.
        payloads: Of the points that are no numbers, in order; text as UTF-8.
    """

    object: str
    keys: tuple[str, ...]
    key_index: bytes = b""
    steps: bytes
    times_us: bytes
    values: bytes
    kinds: bytes = b""
    payloads: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.steps) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSummary:
    """What is known of a series without reading it.

    Attributes:
        count: Points.
        min: Least number; None where there is none. NaN does not count.
        max: Greatest number.
        latest: Value of the point with the greatest step, and of those the latest; None for text and bytes.
        latest_step: Its step.
        latest_at: Its time.
        first_step: The least step.
    """

    object: str
    key: str
    kind: MetricKind
    count: int
    min: float | None
    max: float | None
    latest: float | None
    latest_step: int
    latest_at: datetime
    first_step: int

    def _repr_html_(self) -> str:
        import modelbox.display as display

        return display.card(
            f"Metric {self.key}",
            {
                "object": self.object,
                "kind": self.kind,
                "latest": self.latest,
                "at step": self.latest_step,
                "min": self.min,
                "max": self.max,
                "points": self.count,
                "time": self.latest_at,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSeries:
    """A series in at most so many buckets of equal width over its steps; empty buckets are left out.

    Columns of raw little-endian bytes, one value per bucket: int64 ``first_steps``, ``last_steps`` and ``counts``;
    float64 ``mins``, ``maxs`` and ``means`` of the numbers (NaN where there is none) and ``lasts``, the value of the
    bucket's last point.
    """

    first_steps: bytes
    last_steps: bytes
    counts: bytes
    mins: bytes
    maxs: bytes
    means: bytes
    lasts: bytes
