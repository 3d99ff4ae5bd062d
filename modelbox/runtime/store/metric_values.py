"""How a number is kept, and back: NaN is NULL, infinities are the greatest finite numbers; a kind beside tells.

So ``ORDER BY`` and ``<`` mean the same on every database: MySQL has neither, SQLite has no NaN. The sign of a zero is
not kept: SQLite drops it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = (
    "BYTES",
    "MINUS_INF",
    "NAN",
    "NUMBER",
    "PLUS_INF",
    "TEXT",
    "kept_number",
    "kept_numbers",
    "kind_of",
    "kinds_of",
    "number_of",
    "numbers_of",
    "restored",
)

NUMBER, TEXT, BYTES, NAN, PLUS_INF, MINUS_INF = range(6)
"""Kinds of points, as the database keeps them."""

_MAX = sys.float_info.max


def kinds_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The kind of each number."""
    kinds = np.zeros(len(values), np.int64)
    if not np.isfinite(values).all():
        kinds[np.isnan(values)] = NAN
        kinds[values == np.inf] = PLUS_INF
        kinds[values == -np.inf] = MINUS_INF
    return kinds


def kind_of(value: float) -> int:
    """The kind of one number."""
    if -_MAX <= value <= _MAX:
        return NUMBER
    return NAN if math.isnan(value) else PLUS_INF if value > 0 else MINUS_INF


def kept_numbers(values: NDArray[np.float64]) -> list[float | None]:
    """What a column holds for each number."""
    kept: list[float | None]
    if np.isfinite(values).all():
        kept = values.tolist()
        return kept
    kept = np.clip(values, -_MAX, _MAX).tolist()
    for place in np.flatnonzero(np.isnan(values)).tolist():
        kept[place] = None
    return kept


def kept_number(value: float | None) -> float | None:
    """What a column holds for one number, or for none."""
    if value is None or -_MAX <= value <= _MAX:
        return value
    return None if math.isnan(value) else math.copysign(_MAX, value)


def number_of(kept: float | None, kind: int) -> float | None:
    """The number of a column and a kind; None for text and bytes."""
    if kind == NUMBER:
        return kept
    return {NAN: math.nan, PLUS_INF: math.inf, MINUS_INF: -math.inf}.get(kind)


def numbers_of(kept: Sequence[float | None], kinds: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The numbers of columns; NaN for text and bytes."""
    if not kinds.any():
        return np.array(kept, np.float64)
    return restored(np.array([math.nan if value is None else value for value in kept], np.float64), kinds)


def restored(values: NDArray[np.float64], kinds: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers of columns, whatever stands where there is none, as they were; changes ``values``."""
    values[kinds == NAN] = np.nan
    values[kinds == PLUS_INF] = np.inf
    values[kinds == MINUS_INF] = -np.inf
    return values
