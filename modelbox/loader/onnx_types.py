"""ONNX's element types and value descriptions, as a `modelbox.signature.Signature` names them."""

from __future__ import annotations

from modelbox.errors import InvalidError, ModelInvalid
from modelbox.loader.protobuf_wire import BYTES, VARINT, Buffer, Field, broken, fields, signed, text
from modelbox.signature import DTYPES, Dim, TensorSpec

__all__ = ("STRING", "element_bits", "message", "read_value")

STRING = 8
_MAX_TYPE_DEPTH = 16

# TensorProto.DataType: (the runtime's name, numpy's name, bits of one element; 0 where they have no fixed size).
_ELEMENTS = {
    1: ("float", "float32", 32),
    2: ("uint8", "uint8", 8),
    3: ("int8", "int8", 8),
    4: ("uint16", "uint16", 16),
    5: ("int16", "int16", 16),
    6: ("int32", "int32", 32),
    7: ("int64", "int64", 64),
    8: ("string", "string", 0),
    9: ("bool", "bool", 8),
    10: ("float16", "float16", 16),
    11: ("double", "float64", 64),
    12: ("uint32", "uint32", 32),
    13: ("uint64", "uint64", 64),
    14: ("complex64", "complex64", 64),
    15: ("complex128", "complex128", 128),
    16: ("bfloat16", "bfloat16", 16),
    17: ("float8e4m3fn", "float8e4m3fn", 8),
    18: ("float8e4m3fnuz", "float8e4m3fnuz", 8),
    19: ("float8e5m2", "float8e5m2", 8),
    20: ("float8e5m2fnuz", "float8e5m2fnuz", 8),
    21: ("uint4", "uint4", 4),
    22: ("int4", "int4", 4),
    23: ("float4e2m1", "float4e2m1", 4),
    24: ("float8e8m0", "float8e8m0", 8),
    25: ("uint2", "uint2", 2),
    26: ("int2", "int2", 2),
}


def element_bits(data_type: int) -> int | None:
    """Bits of one element; 0 for text, None for a type that this module does not know."""
    known = _ELEMENTS.get(data_type)
    return None if known is None else known[2]


def message(field: Field) -> tuple[int, int]:
    """Where a field that must be a message begins and ends.

    Raises:
        ModelInvalid: It is a number.
    """
    if field.wire != BYTES:
        raise broken(field.start, f"field {field.number} should be a message")
    return field.start, field.end


def read_value(data: Buffer, field: Field) -> tuple[str, TensorSpec | None]:
    """Name and description of a ``ValueInfoProto``; None for a type without a name here, or without any type.

    Raises:
        ModelInvalid: The bytes are not one.
    """
    name = ""
    dtype: str | None = None
    shape: tuple[Dim, ...] = ()
    for part in fields(data, *message(field)):
        if part.number == 1:
            name = text(data, part)
        elif part.number == 2:
            dtype, shape = _read_type(data, part)
    if dtype is None:
        return name, None
    try:
        return name, TensorSpec(name=name, dtype=dtype, shape=shape)
    except InvalidError:
        return name, None


def _read_type(data: Buffer, field: Field) -> tuple[str | None, tuple[Dim, ...]]:
    for part in fields(data, *message(field)):
        if part.number == 1:
            element, shape = _read_tensor_type(data, part)
            dtype = _ELEMENTS.get(element, ("", "", 0))[1]
            return (dtype if dtype in DTYPES else None), shape
        if part.number in (4, 5, 8, 9):
            return _type_text(data, field, 0), ()
    return None, ()


def _read_tensor_type(data: Buffer, field: Field) -> tuple[int, tuple[Dim, ...]]:
    element = 0
    shape: tuple[Dim, ...] = ()
    for part in fields(data, *message(field)):
        if part.number == 1 and part.wire == VARINT:
            element = part.value
        elif part.number == 2:
            shape = tuple(_read_dim(data, dim) for dim in fields(data, *message(part)) if dim.number == 1)
    return element, shape


def _read_dim(data: Buffer, field: Field) -> Dim:
    dim: Dim = -1
    for part in fields(data, *message(field)):
        if part.number == 1 and part.wire == VARINT:
            dim = max(-1, signed(part.value))
        elif part.number == 2:
            dim = text(data, part) or -1
    return dim


def _type_text(data: Buffer, field: Field, depth: int) -> str | None:
    """A type as the runtime writes it, such as ``seq(map(int64,tensor(float)))``."""
    if depth > _MAX_TYPE_DEPTH:
        raise ModelInvalid(f"a value's type is nested deeper than {_MAX_TYPE_DEPTH} levels", stage="verify")
    for part in fields(data, *message(field)):
        if part.number in (1, 8):
            element, _ = _read_tensor_type(data, part)
            known = _ELEMENTS.get(element)
            return known and f"{'tensor' if part.number == 1 else 'sparse_tensor'}({known[0]})"
        if part.number in (4, 9):
            inner = next((f for f in fields(data, *message(part)) if f.number == 1), None)
            shown = None if inner is None else _type_text(data, inner, depth + 1)
            return shown and f"{'seq' if part.number == 4 else 'optional'}({shown})"
        if part.number == 5:
            key, value = "", None
            for inner in fields(data, *message(part)):
                if inner.number == 1 and inner.wire == VARINT:
                    key = _ELEMENTS.get(inner.value, ("", "", 0))[0]
                elif inner.number == 2:
                    value = _type_text(data, inner, depth + 1)
            return f"map({key},{value})" if key and value else None
    return None
