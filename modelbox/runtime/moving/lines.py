"""The lines of an export's files: a row as a JSON array, or a page of a series as its columns.

The last element of each is the CRC-32 of what is before it, so that damage has a line. Invariant: equal rows make equal
lines, whichever database they were read from.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Boolean, Double, Integer, LargeBinary, Table

from modelbox.runtime.store.metric_schema import LongBytes, metric_points

__all__ = ("DamagedLine", "count_rows", "kinds_of_columns", "read_rows", "write_rows")

Row = Sequence[Any]

_MOST_POINTS = 1 << 20
"""In one line; pages of an export have far fewer."""
_SEAL_BYTES = len(b',"00000000"]\n')
_POINTS = tuple(column.name for column in metric_points.c)


class DamagedLine(ValueError):
    """A line is not what was written."""


def kinds_of_columns(table: Table) -> dict[str, str]:
    """The kind of value in each column of a table: integer, boolean, float, bytes or text."""
    return {column.name: _kind(column.type) for column in table.c}


def _kind(declared: object) -> str:
    if isinstance(declared, LargeBinary | LongBytes):
        return "bytes"
    for kind, name in ((Boolean, "boolean"), (Integer, "integer"), (Double, "float")):
        if isinstance(declared, kind):
            return name
    return "text"


# -- sealed lines ----------------------------------------------------------------------------------------------------


def _seal(values: Sequence[Any]) -> bytes:
    body = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return b'%b,"%08x"]\n' % (body, zlib.crc32(body))


def _opened(line: bytes) -> bytes:
    body, seal = line[:-_SEAL_BYTES], line[-_SEAL_BYTES:]
    if seal != b',"%08x"]\n' % zlib.crc32(body):
        raise DamagedLine("its checksum is another" if line.endswith(b'"]\n') else "it is cut off")
    return body


def _unseal(line: bytes) -> list[Any]:
    body = _opened(line)
    try:
        values = json.loads(body + b"]")
    except (ValueError, RecursionError) as exc:
        raise DamagedLine("it is no JSON") from exc
    if not isinstance(values, list):
        raise DamagedLine("it is no JSON array")
    return values


# -- rows ------------------------------------------------------------------------------------------------------------


def write_rows(table: Table, rows: Sequence[Row]) -> Iterator[tuple[int, bytes]]:
    """The lines of a page of a table, each with the number of rows in it."""
    if table.name == metric_points.name:
        for series, points in groupby(rows, key=lambda row: row[0]):
            found = list(points)
            yield len(found), _seal(_columns(series, found))
        return
    kinds = list(kinds_of_columns(table).values())
    special = [(number, _ENCODERS[kind]) for number, kind in enumerate(kinds) if kind in _ENCODERS]
    for row in rows:
        values = list(row)
        for number, encode in special:
            if values[number] is not None:
                values[number] = encode(values[number])
        yield 1, _seal(values)


def count_rows(name: str, line: bytes) -> int:
    """How many rows are in a line of the table of that name.

    Raises:
        DamagedLine: Its checksum is another.
    """
    if name == metric_points.name:
        return _count_of(_unseal(line))
    _opened(line)
    return 1


def read_rows(table: Table, columns: Mapping[str, str], line: bytes) -> list[dict[str, Any]]:
    """The rows of a line, by column.

    Args:
        table: Whose line it is.
        columns: Kind by name, in the order of the values.
        line: As `write_rows` made it.

    Raises:
        DamagedLine: It is not such a line.
    """
    values = _unseal(line)
    try:
        if table.name == metric_points.name:
            return _points(values)
        if len(values) != len(columns):
            raise DamagedLine(f"it has {len(values)} values for {len(columns)} columns")
        return [
            {
                name: value if value is None or kind not in _DECODERS else _DECODERS[kind](value)
                for value, (name, kind) in zip(values, columns.items(), strict=True)
            }
        ]
    except DamagedLine:
        raise
    except (ArithmeticError, IndexError, LookupError, TypeError, ValueError, zlib.error) as exc:
        raise DamagedLine(f"its values cannot be read ({exc})") from exc


def _float(value: float) -> float | str:
    # SQLite does not keep the sign of a zero, so no line has it.
    return float(value) + 0.0 if math.isfinite(value) else repr(float(value))


def _bytes(value: bytes) -> str:
    return base64.b64encode(bytes(value)).decode()


_ENCODERS: dict[str, Callable[[Any], Any]] = {"bytes": _bytes, "float": _float, "boolean": bool}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda value: base64.b64decode(value, validate=True),
    "float": float,
}


# -- points as columns -----------------------------------------------------------------------------------------------


def _columns(series: int, points: Sequence[Row]) -> list[Any]:
    """A page of a series: NaN is for no value, and payloads are there where any point has one."""
    _, steps, times, kinds, values, payloads = zip(*points, strict=True)
    return [
        series,
        len(points),
        _packed(np.diff(np.array(steps, "<i8"), prepend=0)),
        _packed(np.diff(np.array(times, "<i8"), prepend=0)),
        _packed(np.array(kinds, "u1")),
        _packed(np.array([math.nan if value is None else value for value in values], "<f8") + 0.0),
        None
        if all(payload is None for payload in payloads)
        else [None if payload is None else _bytes(payload) for payload in payloads],
    ]


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()


def _unpacked(text: str, dtype: str, count: int) -> NDArray[Any]:
    size = count * np.dtype(dtype).itemsize
    # One byte more than expected is enough to see that it is too long: a few bytes may stand for gigabytes.
    data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    if len(data) != size:
        raise DamagedLine(f"a column has other than {count} values for {count} points")
    return np.frombuffer(data, dtype)


def _count_of(values: Sequence[Any]) -> int:
    count = values[1] if len(values) > 1 else None
    if type(count) is not int or not 0 < count <= _MOST_POINTS:
        raise DamagedLine("it does not say how many points it has")
    return count


def _points(values: Sequence[Any]) -> list[dict[str, Any]]:
    series, _, steps, times, kinds, numbers, payloads = values
    count = _count_of(values)
    columns = (
        [series] * count,
        np.cumsum(_unpacked(steps, "<i8", count), dtype=np.int64).tolist(),
        np.cumsum(_unpacked(times, "<i8", count), dtype=np.int64).tolist(),
        _unpacked(kinds, "u1", count).tolist(),
        [None if value != value else value for value in _unpacked(numbers, "<f8", count).tolist()],
        [None] * count
        if payloads is None
        else [None if payload is None else base64.b64decode(payload, validate=True) for payload in payloads],
    )
    return [dict(zip(_POINTS, point, strict=True)) for point in zip(*columns, strict=True)]
