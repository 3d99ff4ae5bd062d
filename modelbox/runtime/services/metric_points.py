"""Columns of metrics as callers send them, checked and turned into arrays. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from modelbox.errors import InvalidError, LimitError
from modelbox.refs import shown
from modelbox.runtime.limits import check_key
from modelbox.runtime.metric_ports import MetricPoints
from modelbox.tracking import MetricColumns

__all__ = ("MAX_PAYLOAD_BYTES", "MAX_POINTS", "check_columns")

MAX_POINTS = 100_000
"""Of one call."""
MAX_PAYLOAD_BYTES = 1 << 20
"""Of one point that is text or bytes."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# With a margin of a day for time zones.
_FIRST_US = (datetime(1, 1, 2, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST_US = (datetime(9999, 12, 30, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_NUMBER, _TEXT, _BYTES = 0, 1, 2
_INT64: np.dtype[np.int64] = np.dtype("<i8")
_FLOAT64: np.dtype[np.float64] = np.dtype("<f8")
_UINT32: np.dtype[np.uint32] = np.dtype("<u4")
_UINT8: np.dtype[np.uint8] = np.dtype("u1")

_NO_TIME = "a time of a metric is outside the years 1 to 9999: expected microseconds since 1970"
_FIRST_KEY: NDArray[np.intp] = np.zeros(1, np.intp)
_FIRST_KEY.flags.writeable = False

S = TypeVar("S", bound=np.generic)


def check_columns(columns: MetricColumns, object_id: str) -> MetricPoints | None:
    """The points of ``columns`` for the object that they are of; None where there are none.

    Raises:
        InvalidError: Columns of different lengths, an index or kind out of range, a key that is no valid text, one key
            with points of several kinds, a time outside the years 1 to 9999, text that is not UTF-8.
        LimitError: More than 100,000 points, a longer key than 250 characters, a larger payload than 1 MiB.
    """
    if _is_lone(columns):
        return _lone(columns, object_id)
    steps = _numbers(columns.steps, _INT64, "steps")
    count = len(steps)
    if count > MAX_POINTS:
        raise LimitError(f"{count} points at once, more than the {MAX_POINTS} allowed: send them in parts")
    times_us = _numbers(columns.times_us, _INT64, "times_us", count)
    values = _numbers(columns.values, _FLOAT64, "values", count)
    if not count:
        for name in ("key_index", "kinds", "payloads"):
            if getattr(columns, name):
                raise InvalidError(f"columns of metrics with {name} but without steps", what=name)
        return None
    if times_us.min() < _FIRST_US or times_us.max() > _LAST_US:
        raise InvalidError(_NO_TIME)
    keys, key_index = _keys(columns, count)
    kinds, payloads = _payloads(columns, keys, key_index, count)
    return MetricPoints(
        object=object_id,
        keys=keys,
        kinds=kinds,
        key_index=key_index,
        steps=steps,
        times_us=times_us,
        values=values,
        payloads=payloads,
    )


def _is_lone(columns: MetricColumns) -> bool:
    """Whether they hold one number, as they mostly do."""
    return (
        len(columns.steps) == len(columns.times_us) == len(columns.values) == _INT64.itemsize
        and len(columns.keys) == 1
        and not (columns.key_index or columns.kinds or columns.payloads)
    )


def _lone(columns: MetricColumns, object_id: str) -> MetricPoints:
    if not _FIRST_US <= int.from_bytes(columns.times_us, "little", signed=True) <= _LAST_US:
        raise InvalidError(_NO_TIME)
    check_key(columns.keys[0], "metric")
    return MetricPoints(
        object=object_id,
        keys=columns.keys,
        kinds=(_NUMBER,),
        key_index=_FIRST_KEY,
        steps=np.frombuffer(columns.steps, _INT64),
        times_us=np.frombuffer(columns.times_us, _INT64),
        values=np.frombuffer(columns.values, _FLOAT64),
    )


def _numbers(column: bytes, dtype: np.dtype[S], name: str, count: int | None = None) -> NDArray[S]:
    if len(column) % dtype.itemsize:
        raise InvalidError(
            f"the column {name} has {len(column)} bytes: expected a multiple of {dtype.itemsize}", what=name
        )
    array = np.frombuffer(column, dtype)
    if count is not None and len(array) != count:
        raise InvalidError(f"the column {name} has {len(array)} values where steps has {count}", what=name)
    return array


def _keys(columns: MetricColumns, count: int) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """The keys that occur, each once, and each point's place among them."""
    for key in columns.keys:
        check_key(key, "metric")
    if not columns.key_index:
        if len(columns.keys) != 1:
            raise InvalidError(
                f"{len(columns.keys)} keys without key_index: expected one key, or an index per point", what="key_index"
            )
        return columns.keys, np.zeros(count, np.intp)
    index = _numbers(columns.key_index, _UINT32, "key_index", count).astype(np.intp)
    if int(index.max()) >= len(columns.keys):
        raise InvalidError(f"key_index {int(index.max())} is beyond the {len(columns.keys)} keys", what="key_index")
    used = np.bincount(index, minlength=len(columns.keys)) > 0
    if used.all() and len(set(columns.keys)) == len(columns.keys):
        return columns.keys, index
    places: dict[str, int] = {}
    moved = np.zeros(len(columns.keys), np.intp)
    for place in np.flatnonzero(used).tolist():
        moved[place] = places.setdefault(columns.keys[place], len(places))
    return tuple(places), moved[index]


def _payloads(
    columns: MetricColumns, keys: tuple[str, ...], key_index: NDArray[np.intp], count: int
) -> tuple[tuple[int, ...], list[bytes | None]]:
    """The kind of each key, and each point's payload."""
    if not columns.kinds:
        if columns.payloads:
            raise InvalidError(f"{len(columns.payloads)} payloads without kinds", what="payloads")
        return (_NUMBER,) * len(keys), []
    kinds = _numbers(columns.kinds, _UINT8, "kinds", count).astype(np.intp)
    if int(kinds.max()) > _BYTES:
        raise InvalidError(
            f"{int(kinds.max())} is no kind of a point: expected 0 number, 1 text, 2 bytes", what="kinds"
        )
    of_keys = np.zeros(len(keys), np.intp)
    of_keys[key_index] = kinds
    mixed = np.flatnonzero(of_keys[key_index] != kinds)
    if len(mixed):
        place = int(key_index[mixed[0]])
        raise InvalidError(
            f"the metric {shown(keys[place])} has points of several kinds: expected all to be numbers, or text, or "
            "bytes",
            what="kinds",
            key=keys[place],
        )
    places = np.flatnonzero(kinds).tolist()
    if len(places) != len(columns.payloads):
        raise InvalidError(
            f"{len(columns.payloads)} payloads for {len(places)} points that are no numbers", what="payloads"
        )
    if not places:
        return (_NUMBER,) * len(keys), []
    payloads: list[bytes | None] = [None] * count
    for place, payload in zip(places, columns.payloads, strict=True):
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise LimitError(
                f"a point of the metric {shown(keys[int(key_index[place])])} has {len(payload)} bytes, more than the "
                f"{MAX_PAYLOAD_BYTES} allowed: upload it as an artifact"
            )
        if int(kinds[place]) == _TEXT:
            _check_utf8(payload, keys[int(key_index[place])])
        payloads[place] = payload
    return tuple(of_keys.tolist()), payloads


def _check_utf8(payload: bytes, key: str) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError as exc:
        raise InvalidError(
            f"a text of the metric {shown(key)} is not UTF-8: send it as bytes", what="payloads"
        ) from exc
