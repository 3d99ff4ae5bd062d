"""The metrics of a run: the calls that a training loop makes at every step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from modelbox.errors import InvalidError, UsageError
from modelbox.refs import shown
from modelbox.run.recording import Recording
from modelbox.series import MetricValue
from modelbox.spool.checks import check_key, int64, metric_value, micros
from modelbox.spool.log import SpoolLog

__all__ = ("RunMetrics",)

_NUMBER, _TEXT, _BYTES = 0, 1, 2
_KIND_NAMES = ("numbers", "text", "bytes")
_INT64 = 2**63
_time_ns = time.time_ns


class RunMetrics(Recording):
    """The part of `modelbox.run.LiveRun` that logs metrics."""

    _kinds: dict[str, int]
    """What each key holds: numbers, text or bytes."""
    _steps: dict[str, int]
    """The last step of each key."""

    def log_metric(self, key: str, value: MetricValue, step: int | None = None, *, at: datetime | None = None) -> None:
        """Appends a point to a metric.

        Args:
            key: Of the metric: at most 250 printable characters. Its values are all numbers, all text, or all bytes.
            value: A number of any library (NaN and infinities are kept), text such as a serialized tensor, or bytes;
                the latter up to 1 MiB.
            step: int64; None counts on from this metric's last one here.
            at: Aware; None for now.
        """
        try:
            kind = self._kinds.get(key)
            if type(value) is not float or kind != _NUMBER:
                value = self._checked(key, value, kind)
            if step is None:
                with self._lock:
                    self._steps[key] = step = self._steps.get(key, -1) + 1
            else:
                if type(step) is not int or not -_INT64 <= step < _INT64:
                    step = int64(step)
                self._steps[key] = step
            time_us = _time_ns() // 1000 if at is None else micros(at)
            log = self._log or self._spool()
            if type(value) is float:
                kept = log.append_point(self._id, key, step, time_us, value)
            else:
                kept = _append_payload(log, self._id, key, step, time_us, value)
            if not kept:
                self._dropped += 1
        except UsageError:
            raise
        except Exception as exc:
            self._bad(key, exc)

    def log_metrics(
        self, values: Mapping[str, MetricValue], step: int | None = None, *, at: datetime | None = None
    ) -> None:
        """Appends one point to each of several metrics, all at one step; see `log_metric`.

        Args:
            values: By key.
            step: int64; None counts on from the greatest of these metrics' last ones here.
            at: Aware; None for now.
        """
        numbers: dict[str, float] = {}
        others: dict[str, MetricValue] = {}
        for key, value in values.items():
            try:
                kind = self._kinds.get(key)
                if type(value) is not float or kind != _NUMBER:
                    value = self._checked(key, value, kind)
            except Exception as exc:
                self._bad(key, exc)
                continue
            if type(value) is float:
                numbers[key] = value
            else:
                others[key] = value
        try:
            with self._lock:
                steps = self._steps
                step = max((steps.get(key, -1) for key in values), default=-1) + 1 if step is None else int64(step)
                steps.update(dict.fromkeys(numbers, step))
                steps.update(dict.fromkeys(others, step))
            time_us = _time_ns() // 1000 if at is None else micros(at)
            log = self._log or self._spool()
            if numbers and not log.append_points(self._id, step, time_us, numbers):
                self._dropped += len(numbers)
            for key, value in others.items():
                if not _append_payload(log, self._id, key, step, time_us, value):
                    self._dropped += 1
        except UsageError:
            raise
        except Exception as exc:
            self._bad(next(iter(values), ""), exc, count=len(numbers) + len(others))

    def _checked(self, key: str, value: Any, kind: int | None) -> MetricValue:
        """A value as it is kept; knows of each key what it holds."""
        kept: MetricValue = value if type(value) is float else metric_value(key, value)
        of_value = _NUMBER if type(kept) is float else _TEXT if isinstance(kept, str) else _BYTES
        if kind is None:
            check_key(key)
            self._kinds[key] = of_value
        elif kind != of_value:
            raise InvalidError(
                f"the metric {shown(key)} holds {_KIND_NAMES[kind]}: expected them, got {_KIND_NAMES[of_value]}"
            )
        return kept


def _append_payload(log: SpoolLog, object_id: str, key: str, step: int, time_us: int, value: MetricValue) -> bool:
    kind, payload = (_TEXT, value.encode()) if isinstance(value, str) else (_BYTES, value)
    assert isinstance(payload, bytes)
    return log.append_payload(object_id, key, int64(step), time_us, kind, payload)
