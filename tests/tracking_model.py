"""What a client was told, in dictionaries: the model beside which `tests.tracking_world` runs a server."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from modelbox.objects import JsonValue
from modelbox.run import LiveRun
from modelbox.tracking import AttributeKind, MetricKind, ObjectKind

__all__ = ("GONE", "NOW", "Item", "Live", "Value", "same", "summary_of")

NOW = datetime(2026, 5, 3, 10, tzinfo=UTC)
GONE = object()
Value = float | str


@dataclass(kw_only=True)
class Item:
    """An experiment, run or checkpoint as the model knows it.

    Attributes:
        above: Ids of what takes it along into the bin: its experiment or run, and the run that it is a part of.
        root: Whose deletion took it into the bin; empty outside of it.
        born_hidden: It was made below something in the bin.
        history: Values of each key as they were set, `GONE` where it was removed.
        perhaps: Names of events whose call was not answered.
        told: Names of events that the run reports of itself when it ends.
    """

    uid: str
    kind: ObjectKind
    above: tuple[str, ...]
    about: dict[str, Any]
    root: str = ""
    born_hidden: bool = False
    values: dict[AttributeKind, dict[str, JsonValue]] = field(
        default_factory=lambda: {kind: {} for kind in AttributeKind}
    )
    history: dict[tuple[AttributeKind, str], list[Any]] = field(default_factory=dict)
    points: dict[str, dict[tuple[int, int], Value]] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)
    perhaps: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    comments: dict[str, str] = field(default_factory=dict)

    def set(self, kind: AttributeKind, key: str, value: Any) -> None:
        """Sets a value, or removes it for `GONE`; what changes nothing leaves no trace in the history."""
        before = self.values[kind].get(key, GONE)
        if same(before, value):
            return
        self.history.setdefault((kind, key), []).append(value)
        if value is GONE:
            del self.values[kind][key]
        else:
            self.values[kind][key] = value

    def takes(self, key: str, value: Value) -> bool:
        """Whether a metric may have this point: its points are of one kind."""
        known = self.points.get(key)
        return not known or isinstance(next(iter(known.values())), str) == isinstance(value, str)

    def log(self, key: str, step: int, time_us: int, value: Value) -> None:
        """Adds a point; the value that came first stays."""
        self.points.setdefault(key, {}).setdefault((step, time_us), value)


@dataclass(kw_only=True)
class Live:
    """A run that goes through the spool, and what its program remembers of it."""

    run: LiveRun
    item: Item
    params: dict[str, JsonValue] = field(default_factory=dict)
    kinds: dict[str, bool] = field(default_factory=dict)


def summary_of(points: Mapping[tuple[int, int], Value]) -> dict[str, Any]:
    """What a summary says of points, worked out from all of them."""
    last = max(points)
    numbers = [value for value in points.values() if isinstance(value, float) and not math.isnan(value)]
    latest = points[last]
    return {
        "count": len(points),
        "min": min(numbers, default=None),
        "max": max(numbers, default=None),
        "latest": None if isinstance(latest, str) else latest,
        "latest_step": last[0],
        "first_step": min(points)[0],
        "kind": MetricKind.TEXT if isinstance(latest, str) else MetricKind.NUMBER,
    }


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON, where Python says that 1 is true."""
    if one is GONE or other is GONE:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
