"""Series of metrics as arrays, and points as the columns that travel.

Pure conversions between numbers, numpy arrays and `modelbox.tracking.MetricColumns`. Refuses what cannot be kept: steps
outside of int64, values that are neither numbers nor text nor bytes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np
import numpy.typing as npt

from modelbox.errors import InvalidError
from modelbox.refs import shown
from modelbox.tracking import MetricColumns, MetricKind, MetricSummary, SampledSeries

if TYPE_CHECKING:
    from modelbox.display import Curve

__all__ = (
    "MetricValue",
    "Point",
    "Sample",
    "Series",
    "columns_of",
    "join_series",
    "number_columns",
    "sample_of",
    "step_ranges",
)

MetricValue = SupportsFloat | str | bytes
"""What a point holds; numpy and torch scalars count as numbers."""

_NUMBER, _TEXT, _BYTES = 0, 1, 2
_KINDS = {_NUMBER: MetricKind.NUMBER, _TEXT: MetricKind.TEXT, _BYTES: MetricKind.BYTES}
_INT64 = np.dtype("<i8")
_FLOAT64 = np.dtype("<f8")
_UINT32 = np.dtype("<u4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one metric; ``time_us`` is microseconds since 1970 in UTC."""

    key: str
    step: int
    time_us: int
    value: MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The points of one metric of one object, by step and time.

    Attributes:
        steps: (points,) int64.
        times_us: (points,) int64, microseconds since 1970 in UTC.
        values: (points,) float64; NaN for text and bytes.
        payloads: Values of a series of text or bytes, one per point; empty for numbers.
    """

    object: str
    key: str
    kind: MetricKind
    steps: npt.NDArray[np.int64]
    times_us: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    payloads: tuple[str | bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def times(self) -> list[datetime]:
        """The times as aware datetimes."""
        return [datetime.fromtimestamp(int(us) / 1e6, UTC) for us in self.times_us]

    def sample(self, buckets: int = 500) -> Sample:
        """The series in at most ``buckets`` buckets of equal width over its steps, as `Client.sample_series` gives it.

        Raises:
            InvalidError: There is no bucket, or these are no numbers.
        """
        if buckets < 1 or self.kind is not MetricKind.NUMBER:
            raise InvalidError(
                f"a series of {self.kind} has no {buckets} buckets: expected numbers, in 1 bucket or more"
            )
        if not len(self):
            return _EMPTY
        first, last = int(self.steps[0]), int(self.steps[-1])
        # As unsigned numbers: the distance of two steps may not fit into a signed one.
        place = self.steps.view(np.uint64) - np.uint64(first % 2**64)
        place = place // np.uint64((last - first) // buckets + 1) if buckets > 1 else np.zeros_like(place)
        begins = np.flatnonzero(np.concatenate(([True], place[1:] != place[:-1])))
        ends = np.append(begins[1:], len(self))
        missing = np.isnan(self.values)
        numbers = np.add.reduceat(~missing, begins, dtype=np.int64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            means = np.add.reduceat(np.where(missing, 0.0, self.values), begins) / numbers
        return Sample(
            first_steps=self.steps[begins],
            last_steps=self.steps[ends - 1],
            counts=ends - begins,
            mins=np.fmin.reduceat(self.values, begins),
            maxs=np.fmax.reduceat(self.values, begins),
            means=means,
            lasts=self.values[ends - 1],
        )

    def curve(self, name: str = "") -> Curve:
        """For `modelbox.display.plot`; ``name`` is what the legend says, empty for the key."""
        remark = f"{len(self)} points" + (f", the last {float(self.values[-1]):.6g}" if len(self) else "")
        return self.sample().curve(name or self.key, remark=remark)

    def _repr_html_(self) -> str:
        import modelbox.display as display

        if self.kind is MetricKind.NUMBER:
            return display.plot(self.curve(f"{self.key} of {self.object}")).html
        newest = zip(reversed(self.steps.tolist()), reversed(self.times), reversed(self.payloads), strict=True)
        rows = ((step, at, value if isinstance(value, str) else f"{len(value)} bytes") for step, at, value in newest)
        title = f"Metric {self.key} of {self.object}: {len(self)} points, the newest first"
        return display.card(title, {}, display.table(("step", "time", "value"), rows, numbers=("step",)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A series in buckets of equal width over its steps; all arrays are (buckets,), empty buckets are left out.

    Attributes:
        first_steps: int64, the least step in the bucket; ``last_steps`` the greatest.
        counts: int64, points in the bucket.
        mins: float64, of its numbers, NaN where there is none; so are ``maxs`` and ``means``.
        lasts: float64, the value of its last point.
    """

    first_steps: npt.NDArray[np.int64]
    last_steps: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    mins: npt.NDArray[np.float64]
    maxs: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]
    lasts: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.counts)

    def curve(self, name: str = "", *, remark: str = "") -> Curve:
        """For `modelbox.display.plot`.

        Args:
            name: For the legend.
            remark: Behind it.
        """
        from modelbox.display import Curve

        steps = (self.first_steps / 2 + self.last_steps / 2).tolist()
        if len(steps) > 1:
            # The ends of the axis are the ends of the series.
            steps[0], steps[-1] = float(self.first_steps[0]), float(self.last_steps[-1])
        return Curve(
            name=name,
            steps=steps,
            lows=self.mins.tolist(),
            highs=self.maxs.tolist(),
            means=self.means.tolist(),
            remark=remark,
        )

    def _repr_html_(self) -> str:
        import modelbox.display as display

        return display.plot(self.curve(f"{self.counts.sum()} points")).html


_EMPTY = Sample(
    first_steps=np.array([], np.int64),
    last_steps=np.array([], np.int64),
    counts=np.array([], np.int64),
    mins=np.array([]),
    maxs=np.array([]),
    means=np.array([]),
    lasts=np.array([]),
)


def columns_of(object_id: str, points: Iterable[Point]) -> MetricColumns:
    """Points of any metrics of one object as columns.

    Raises:
        InvalidError: A step is outside of int64, or a value of no kind that can be kept.
    """
    keys: dict[str, int] = {}
    index: list[int] = []
    steps: list[int] = []
    times: list[int] = []
    values: list[float] = []
    kinds: list[int] = []
    payloads: list[bytes] = []
    for point in points:
        step, value = _step(point), point.value
        if isinstance(value, str):
            kind, number = _TEXT, 0.0
            payloads.append(value.encode())
        elif isinstance(value, bytes | bytearray | memoryview):
            kind, number = _BYTES, 0.0
            payloads.append(bytes(value))
        else:
            kind, number = _NUMBER, _number(point.key, value)
        index.append(keys.setdefault(point.key, len(keys)))
        steps.append(step)
        times.append(point.time_us)
        values.append(number)
        kinds.append(kind)
    return MetricColumns(
        object=object_id,
        keys=tuple(keys),
        key_index=np.array(index, _UINT32).tobytes() if len(keys) > 1 else b"",
        steps=np.array(steps, _INT64).tobytes(),
        times_us=np.array(times, _INT64).tobytes(),
        values=np.array(values, _FLOAT64).tobytes(),
        kinds=bytes(kinds) if payloads else b"",
        payloads=tuple(payloads),
    )


def number_columns(
    object_id: str, key: str, steps: Sequence[int] | npt.ArrayLike, values: npt.ArrayLike, times_us: npt.ArrayLike
) -> MetricColumns:
    """Many numbers of one metric as columns; the arguments have one length, ``times_us`` may be one number for all.

    Raises:
        InvalidError: Lengths differ, they are no numbers, or a step or time is no whole number of 64 bits.
    """
    try:
        step_column = _whole(key, "step", steps)
        value_column = np.ascontiguousarray(values, _FLOAT64)
        time_column = np.broadcast_to(_whole(key, "time", times_us), step_column.shape)
    except InvalidError:
        raise
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidError(f"steps, values and times of {shown(key)} are not numbers of one length: {exc}") from exc
    if step_column.ndim != 1 or step_column.shape != value_column.shape:
        raise InvalidError(
            f"{shown(key)} has {step_column.shape} steps and {value_column.shape} values: expected one each per point"
        )
    return MetricColumns(
        object=object_id,
        keys=(key,),
        steps=step_column.tobytes(),
        times_us=time_column.tobytes(),
        values=value_column.tobytes(),
    )


def _step(point: Point) -> int:
    try:
        step = operator.index(point.step)
    except TypeError as exc:
        raise InvalidError(
            f"the step {shown(point.step)} of {shown(point.key)} is not valid: expected a whole number"
        ) from exc
    if not -(2**63) <= step < 2**63:
        raise InvalidError(f"the step {shown(step)} of {shown(point.key)} does not fit into 64 bits")
    return step


def _whole(key: str, what: str, numbers: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Numbers as int64, where numpy alone would wrap and cut off what is none."""
    given = np.asarray(numbers)
    with np.errstate(invalid="ignore"):
        column = np.ascontiguousarray(given, _INT64)
    if given.dtype.kind != "i" and not np.array_equal(given, column):
        flat = given.ravel()
        wrong = flat[flat != column.ravel()]
        raise InvalidError(
            f"the {what} {shown(wrong[0].item())} of {shown(key)} is not valid: expected a whole number of 64 bits"
        )
    return column


def join_series(object_id: str, key: str, chunks: Sequence[MetricColumns]) -> Series:
    """The series whose points came in ``chunks``, in order."""
    kinds = b"".join(chunk.kinds or bytes(len(chunk)) for chunk in chunks)
    kind = _KINDS[kinds[0]] if kinds else MetricKind.NUMBER
    raw = [payload for chunk in chunks for payload in chunk.payloads]
    values = _joined([chunk.values for chunk in chunks], _FLOAT64)
    if kind is not MetricKind.NUMBER:
        values = np.full(len(values), np.nan)
    return Series(
        object=object_id,
        key=key,
        kind=kind,
        steps=_joined([chunk.steps for chunk in chunks], _INT64),
        times_us=_joined([chunk.times_us for chunk in chunks], _INT64),
        values=values,
        payloads=tuple(payload.decode() for payload in raw) if kind is MetricKind.TEXT else tuple(raw),
    )


def sample_of(sampled: SampledSeries) -> Sample:
    """The arrays of a sampled series."""
    return Sample(
        first_steps=_joined([sampled.first_steps], _INT64),
        last_steps=_joined([sampled.last_steps], _INT64),
        counts=_joined([sampled.counts], _INT64),
        mins=_joined([sampled.mins], _FLOAT64),
        maxs=_joined([sampled.maxs], _FLOAT64),
        means=_joined([sampled.means], _FLOAT64),
        lasts=_joined([sampled.lasts], _FLOAT64),
    )


def step_ranges(summary: MetricSummary, *, points: int = 250_000) -> Iterator[tuple[int, int]]:
    """Ranges of steps, in order, in which a whole series can be read part by part with little memory.

    Args:
        summary: Of the series.
        points: About how many in each range, where the steps are spread evenly.
    """
    width = summary.latest_step - summary.first_step + 1
    parts = min(-(-summary.count // points), width)
    for part in range(parts):
        yield summary.first_step + width * part // parts, summary.first_step + width * (part + 1) // parts - 1


def _joined(parts: Sequence[bytes], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(b"".join(parts), dtype)


def _number(key: str, value: object) -> float:
    """A number as a float, whatever library it comes from.

    Raises:
        InvalidError: It is none, or an array of more than one.
    """
    if isinstance(value, float):
        return value
    if isinstance(value, SupportsFloat):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as exc:
            raise InvalidError(f"the metric {shown(key)} cannot be kept as a number: {exc}") from exc
    raise InvalidError(
        f"the metric {shown(key)} is {shown(value)}: expected a number, text (a serialized tensor) or bytes"
    )
