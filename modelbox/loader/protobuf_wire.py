"""Reads protobuf's wire format field by field, without a schema and without copying.

For looking into untrusted files before anything else does. Refuses what a strict reader refuses: truncated fields,
over-long varints, field number 0, groups. Invariant: work and memory are bounded by the bytes that are looked at; the
content of a length-delimited field costs nothing until somebody asks for it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

from modelbox.errors import ModelInvalid

__all__ = ("Buffer", "Field", "broken", "fields", "signed", "text", "varints")

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


_MAX_FIELDS = 10_000_000


class Buffer:
    """Bytes, or a file mapped into memory, and how many more fields may be read of it.

    The limit bounds time and memory: two bytes of a hostile file are enough for a field.
    """

    __slots__ = ("bytes", "left")

    def __init__(self, data: bytes | mmap.mmap, max_fields: int = _MAX_FIELDS) -> None:
        self.bytes = data
        self.left = max_fields


class Field(NamedTuple):
    """One field: its number, wire type, and value (a varint's number, or where its bytes begin and end)."""

    number: int
    wire: int
    value: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """Length of the content in bytes."""
        return self.end - self.start


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between ``start`` and ``end``.

    Raises:
        ModelInvalid: The bytes are not a protobuf message.
    """
    raw = data.bytes
    position = start
    while position < end:
        data.left -= 1
        if data.left < 0:
            raise broken(position, "more fields than any model has")
        # Nearly all tags and lengths have one byte: no call for those.
        tag = raw[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise broken(position, f"field number {number}")
        if wire == VARINT:
            value, stop = varint(data, position, end)
            yield Field(number, wire, value, position, stop)
        elif wire == BYTES:
            size = raw[position] if position < end else 0x80
            if size < 0x80:
                position += 1
            else:
                size, position = varint(data, position, end)
            stop = position + size
            if stop > end:
                raise broken(position, f"{size} bytes announced, {end - position} left")
            yield Field(number, wire, 0, position, stop)
        elif wire in (FIXED64, FIXED32):
            stop = position + (8 if wire == FIXED64 else 4)
            if stop > end:
                raise broken(position, "it ends inside a number")
            yield Field(number, wire, 0, position, stop)
        else:
            raise broken(position, f"wire type {wire}")
        position = stop


def varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """The varint at ``position`` and where it ends.

    Raises:
        ModelInvalid: It is longer than ten bytes, or cut off.
    """
    value = shift = 0
    raw = data.bytes
    while position < end and shift < 70:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
        shift += 7
    raise broken(position, "a number without an end")


def varints(data: Buffer, field: Field, limit: int) -> list[int]:
    """The signed 64-bit numbers of a repeated field, packed or single; at most ``limit`` of them.

    Raises:
        ModelInvalid: There are more, or the bytes are no numbers.
    """
    if field.wire == VARINT:
        return [signed(field.value)]
    found: list[int] = []
    position = field.start
    while position < field.end:
        value, position = varint(data, position, field.end)
        found.append(signed(value))
        if len(found) > limit:
            raise broken(position, f"more than {limit} numbers")
    return found


def signed(value: int) -> int:
    """A varint's 64 bits as a two's complement number."""
    return value - (1 << 64) if value >= 1 << 63 else value


def text(data: Buffer, field: Field, limit: int = 1 << 16) -> str:
    """The UTF-8 text of a field.

    Raises:
        ModelInvalid: It is not UTF-8, or longer than ``limit`` bytes.
    """
    if field.size > limit:
        raise broken(field.start, f"a name of {field.size} bytes")
    try:
        return data.bytes[field.start : field.end].decode()
    except UnicodeDecodeError as exc:
        raise broken(field.start, "text that is not UTF-8") from exc


def broken(position: int, why: str) -> ModelInvalid:
    """The error for bytes that are not what they should be."""
    return ModelInvalid(
        f"this is not an ONNX model: broken at byte {position} ({why})", stage="verify", offset=position
    )
