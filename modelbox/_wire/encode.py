"""Messages that a program sends often, straight as bytes.

A training program delivers its spool beside its own work. The codec takes 50 µs of that work for an operation, this 5:
what is frequent (points of metrics, values by key) is written here field by field, the rest goes through the codec.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelbox._wire.tracking import pack_operation
from modelbox._wire.values import pack_object
from modelbox.errors import InvalidError
from modelbox.refs import shown
from modelbox.tracking import AttributesEdit, MetricColumns, Operation

__all__ = ("encode_delivery", "encode_log_metrics")

_LENGTH = 2
"""The wire type of what has a length: text, bytes, messages."""


def encode_log_metrics(columns: Sequence[MetricColumns]) -> bytes:
    """A ``LogMetricsRequest``."""
    parts: list[bytes] = []
    for one in columns:
        _add(parts, 1, _columns(one))
    return b"".join(parts)


def encode_delivery(spool: str, operations: Sequence[Operation]) -> bytes:
    """A ``DeliverRequest``."""
    parts: list[bytes] = []
    _add(parts, 1, _text(spool))
    for one in operations:
        _add(parts, 2, _operation(one))
    return b"".join(parts)


def _operation(value: Operation) -> bytes:
    parts = [b"\x08", _varint(value.seq)]
    match value.payload:
        case MetricColumns() as columns:
            _add(parts, 8, _columns(columns))
        case AttributesEdit() as edit:
            _add(parts, 6, _attributes(edit))
        case _:
            return bytes(pack_operation(value))
    return b"".join(parts)


def _columns(value: MetricColumns) -> bytes:
    parts: list[bytes] = []
    _add(parts, 1, _text(value.object))
    _add_all(parts, 2, map(_text, value.keys))
    for number, column in ((3, value.key_index), (4, value.steps), (5, value.times_us), (6, value.values)):
        if column:
            _add(parts, number, column)
    if value.kinds:
        _add(parts, 7, value.kinds)
    _add_all(parts, 8, value.payloads)
    return b"".join(parts)


def _attributes(value: AttributesEdit) -> bytes:
    parts: list[bytes] = []
    _add(parts, 1, _text(value.object))
    _add(parts, 2, value.kind.value.encode())
    _add(parts, 3, pack_object(value.values, f"the values of kind {value.kind}"))
    _add_all(parts, 4, map(_text, value.remove))
    if value.overwrite:
        parts.append(b"\x28\x01")
    return b"".join(parts)


def _text(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidError(f"{shown(value)} holds half of a character") from exc


def _add_all(parts: list[bytes], number: int, values: Iterable[bytes]) -> None:
    for value in values:
        _add(parts, number, value)


def _add(parts: list[bytes], number: int, data: bytes) -> None:
    """One field with a length."""
    parts.append(bytes((number << 3 | _LENGTH,)))
    parts.append(_varint(len(data)))
    parts.append(data)


def _varint(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes((value,))
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
