"""One line of the result: what was measured, the floor beside it, and whether the aim of the design is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bench.measure import Series

__all__ = ("Figure", "Unit", "shown")


class Unit(StrEnum):
    """What a figure counts."""

    SECONDS = "s"
    BYTES = "bytes"
    PER_SECOND = "1/s"
    BYTES_PER_SECOND = "bytes/s"
    COUNT = "count"

    @property
    def more_is_better(self) -> bool:
        """Rates; of them the bad end is the low one."""
        return self in (Unit.PER_SECOND, Unit.BYTES_PER_SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured figure.

    Attributes:
        name: ``group.what``, stable: what two JSON files are compared by.
        what: For people.
        measured: Its samples.
        floor: The floor's samples, from the same run.
        floor_what: What the floor does.
        ratio: Measured to floor, by rounds; None where rounds do not pair.
        aim: The design's, in words; empty where it has none.
        reached: Whether this run reached it.
        details: Further numbers that explain the figure.
    """

    name: str
    what: str
    unit: Unit
    measured: Series
    floor: Series | None = None
    floor_what: str = ""
    ratio: float | None = None
    aim: str = ""
    reached: bool | None = None
    details: Mapping[str, float | str] = field(default_factory=dict)

    def bad_end(self, series: Series) -> float:
        """The 99th percentile of a cost, the first of a rate."""
        return series.p1 if self.unit.more_is_better else series.p99

    def to_json(self) -> dict[str, object]:
        """As it goes into the JSON file; values in seconds, bytes, or per second."""

        def numbers(series: Series) -> dict[str, object]:
            return {"p50": series.p50, "p99": self.bad_end(series), "samples": len(series.values)}

        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit.value,
            "measured": numbers(self.measured),
            "floor": None if self.floor is None else {"what": self.floor_what, **numbers(self.floor)},
            "ratio": self.ratio,
            "aim": self.aim,
            "reached": self.reached,
            "details": dict(self.details),
        }


def shown(value: float, unit: Unit) -> str:
    """A value with its unit, three digits long."""
    if unit is Unit.SECONDS:
        for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= scale:
                return f"{_digits(value / scale)} {name}"
        return f"{_digits(value / 1e-9)} ns"
    if unit in (Unit.BYTES, Unit.BYTES_PER_SECOND):
        return f"{_digits(value / 1e6)} MB{'/s' if unit is Unit.BYTES_PER_SECOND else ''}"
    if unit is Unit.PER_SECOND:
        return f"{value:,.0f}/s"
    return f"{value:g}"


def _digits(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 100 or value == 0 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
