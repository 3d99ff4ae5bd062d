"""Tensors as bytes: the layout that says what they are, and the data that follows it.

Owns the layout's format and the way from arrays to bytes and back; sans-I/O, for both ends of the sidecar's socket. A
layout is::

    u16 count, and for each tensor
        u8 dtype      place in `CODES`
        u8 rank
        u16 length    of the name in bytes
        the name      UTF-8
        u64 × rank    dimensions

filled up with zeros to a multiple of 8 bytes. The data of each tensor begins at a multiple of 8 bytes: elements in
C order, little-endian. Text (`string`) and values that are no tensors (`value`) begin with a u64, the number of bytes
that follow: for text, each element as u32 length and UTF-8; for a value, JSON (`_value_json`).

The same few layouts come again and again, so both ends remember what they made of one: `Packer` by shapes, `parse`'s
callers by the layout's bytes.

Invariants: a parsed layout has dimensions whose product is a number of bytes that could exist; reading checks the
buffer's length before it makes an array.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelbox.errors import InputError, LimitError, ProtocolError
from modelbox.refs import shown
from modelbox.signature import TensorSpec

__all__ = ("CODES", "MAX_LAYOUT_BYTES", "Layout", "Packer", "TensorBuffer", "pack_any", "parse_layout", "parts_of")

CODES: tuple[str, ...] = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "string",
    "value",
)
"""Element types by code."""

Array = np.ndarray[Any, np.dtype[Any]]
TensorBuffer = Any
"""bytes, a bytearray, an mmap: whatever numpy reads from."""

_STRING, _VALUE = CODES.index("string"), CODES.index("value")
_HEAD = struct.Struct("<BBH")
_COUNT = struct.Struct("<H")
_LENGTH = struct.Struct("<Q")
_SHORT = struct.Struct("<I")
_MAX_BYTES = 1 << 48
_MAX_RANK = 32
MAX_LAYOUT_BYTES = 0xFFFF * 8
"""A frame cannot say more."""
_REMEMBERED = 256
_PAD = tuple(bytes(n) for n in range(8))


class Layout:
    """What a layout says.

    Attributes:
        raw: Its bytes.
        items: Name, dtype (None for text and values), shape, offset of the data and its bytes, for each tensor.
        size: Bytes of all data; with text or values, the least that it can have.
        plain: There is neither text nor a value, so that all offsets are known.
    """

    __slots__ = ("codes", "items", "plain", "raw", "size")

    def __init__(
        self,
        raw: bytes,
        codes: tuple[int, ...],
        items: tuple[tuple[str, np.dtype[Any] | None, tuple[int, ...], int, int], ...],
        size: int,
    ) -> None:
        self.raw = raw
        self.codes = codes
        self.items = items
        self.size = size
        self.plain = all(item[1] is not None for item in items)

    def read(self, buffer: TensorBuffer, base: int = 0) -> dict[str, Any]:
        """The tensors in ``buffer`` from ``base`` on, as arrays on that memory.

        Raises:
            ProtocolError: The buffer ends before the data does.
        """
        if self.size > len(buffer) - base:
            raise ProtocolError(f"tensors of {self.size} bytes came with {max(len(buffer) - base, 0)} bytes of data")
        if self.plain:
            return {
                name: np.ndarray(shape, dtype, buffer, base + offset) for name, dtype, shape, offset, _ in self.items
            }
        return self._read_any(buffer, base)

    def write(self, arrays: Sequence[Array], buffer: TensorBuffer) -> None:
        """Copies arrays of this (plain) layout to the beginning of ``buffer``."""
        for (_, dtype, shape, offset, _), array in zip(self.items, arrays, strict=True):
            np.copyto(np.ndarray(shape, dtype, buffer, offset), array)

    def _read_any(self, buffer: TensorBuffer, base: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        at, end = base, len(buffer)
        for code, (name, dtype, shape, _, size) in zip(self.codes, self.items, strict=True):
            if dtype is None:
                if end - at < 8:
                    raise ProtocolError(f"the data of {shown(name)} is missing")
                (size,) = _LENGTH.unpack_from(buffer, at)
                at += 8
            if size > end - at:
                raise ProtocolError(f"the data of {shown(name)} has {size} bytes, {end - at} are there")
            if dtype is not None:
                found[name] = np.ndarray(shape, dtype, buffer, at)
            else:
                data = bytes(memoryview(buffer)[at : at + size])
                found[name] = _read_text(name, shape, data) if code == _STRING else _read_value(name, data)
            at += size + -size % 8
        return found


class Packer:
    """Makes layouts for tensors of known names and dtypes, one for each set of shapes.

    Args:
        specs: In the order in which arrays will come.

    Concurrency: any thread; at worst a layout is made twice.
    """

    __slots__ = ("_codes", "_known", "_names", "plain")

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._names = tuple(spec.name for spec in specs)
        codes = tuple(CODES.index(spec.dtype) if spec.dtype in CODES else _VALUE for spec in specs)
        self.plain = all(code < _STRING for code in codes)
        self._codes = codes
        self._known: dict[Any, Layout] = {}

    def layout(self, arrays: Sequence[Array]) -> Layout:
        """The layout of ``arrays``, whose dtypes must be those of the specs; only where `plain`."""
        key = arrays[0].shape if len(arrays) == 1 else tuple([array.shape for array in arrays])
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            shapes = [array.shape for array in arrays]
            found = self._known[key] = _make(self._names, self._codes, shapes)
        return found

    def pack(self, arrays: Sequence[Any]) -> tuple[bytes, list[bytes]]:
        """Layout and data of any values, also text and what is no tensor; the parts are to be joined.

        Raises:
            LimitError: The layout is larger than a frame can say.
        """
        if self.plain and all(type(array) is np.ndarray for array in arrays):
            layout = self.layout(arrays)
            return layout.raw, parts_of(layout, arrays)
        return pack_any(dict(zip(self._names, arrays, strict=True)))


def parts_of(layout: Layout, arrays: Sequence[Array]) -> list[bytes]:
    """The data of ``arrays`` under a plain layout, to be joined."""
    parts = []
    for (_, _, _, _, size), array in zip(layout.items, arrays, strict=True):
        parts.append(array.tobytes())
        if size & 7:
            parts.append(_PAD[-size % 8])
    return parts


def parse_layout(raw: bytes) -> Layout:
    """What ``raw`` says.

    Raises:
        ProtocolError: It is no layout.
        InputError: It has elements that this machine has no type for.
    """
    try:
        (count,) = _COUNT.unpack_from(raw, 0)
        at, offset = _COUNT.size, 0
        items: list[tuple[str, np.dtype[Any] | None, tuple[int, ...], int, int]] = []
        codes: list[int] = []
        names: set[str] = set()
        for _ in range(count):
            code, rank, length = _HEAD.unpack_from(raw, at)
            at += _HEAD.size
            if at + length > len(raw):
                raise ProtocolError("a layout ends inside of a name")
            name = raw[at : at + length].decode()
            at += length
            shape: tuple[int, ...] = struct.unpack_from(f"<{rank}Q", raw, at)
            at += 8 * rank
            if code >= len(CODES) or rank > _MAX_RANK or name in names:
                raise ProtocolError(
                    f"a layout has a tensor {shown(name)} of type {code} and rank {rank}, or has it twice"
                )
            names.add(name)
            dtype = _dtype(CODES[code])
            # In Python's integers, which do not overflow.
            elements = filled = 1
            for dim in shape:
                elements *= dim
                filled *= dim or 1
            size = elements * dtype.itemsize if dtype is not None else 8
            if filled * (dtype.itemsize if dtype is not None else 1) > _MAX_BYTES:
                raise ProtocolError(f"a layout has a tensor {shown(name)} of {elements} elements")
            items.append((name, dtype, shape, offset, size if dtype is not None else 0))
            codes.append(code)
            offset += size + -size % 8
        if raw[at:].strip(b"\0") or len(raw) - at >= 8:
            raise ProtocolError("a layout has something behind its last tensor")
    except (struct.error, UnicodeDecodeError) as exc:
        raise ProtocolError("a layout that ends too early, or a name that is not UTF-8") from exc
    return Layout(bytes(raw), tuple(codes), tuple(items), offset)


def pack_any(values: Mapping[str, Any]) -> tuple[bytes, list[bytes]]:
    """Layout and data of values by name: arrays of every dtype, text, lists and maps; the parts are to be joined.

    Raises:
        InputError: A value can not be told to the other side.
    """
    names: list[str] = []
    codes: list[int] = []
    shapes: list[tuple[int, ...]] = []
    parts: list[bytes] = []
    for name, value in values.items():
        array = value if isinstance(value, np.ndarray) else None
        if array is not None and array.dtype.kind in "UOS":
            code, data = _STRING, _text_bytes(name, array)
        elif array is not None and array.dtype.name in CODES:
            code, data = CODES.index(array.dtype.name), array.tobytes()
        else:
            code, data = _VALUE, _value_bytes(name, value)
        names.append(name)
        codes.append(code)
        shapes.append(array.shape if array is not None and code != _VALUE else ())
        if code >= _STRING:
            parts.append(_LENGTH.pack(len(data)))
        parts += [data, _PAD[-len(data) % 8]]
    return _make(names, codes, shapes).raw, parts


def _make(names: Sequence[str], codes: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> Layout:
    parts = [_COUNT.pack(len(names))]
    for name, code, shape in zip(names, codes, shapes, strict=True):
        text = name.encode()
        parts += [_HEAD.pack(code, len(shape), len(text)), text, struct.pack(f"<{len(shape)}Q", *shape)]
    raw = b"".join(parts)
    if len(raw) > MAX_LAYOUT_BYTES:
        raise LimitError(f"names and shapes of {len(names)} tensors have {len(raw)} bytes, at most {MAX_LAYOUT_BYTES}")
    return parse_layout(raw + _PAD[-len(raw) % 8])


def _dtype(name: str) -> np.dtype[Any] | None:
    if name in ("string", "value"):
        return None
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as exc:
            raise InputError(
                "bfloat16 needs the package ml_dtypes on both sides, because numpy has no such type"
            ) from exc
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def _text_bytes(name: str, array: Array) -> bytes:
    parts = []
    for item in array.flat:
        if isinstance(item, str):
            text = item.encode("utf-8", "surrogatepass")
        elif isinstance(item, bytes):
            text = item
        else:
            raise InputError(f"{shown(name)} has an element of type {type(item).__name__}: expected text")
        parts += [_SHORT.pack(len(text)), text]
    return b"".join(parts)


def _read_text(name: str, shape: tuple[int, ...], data: bytes) -> Array:
    elements = 1
    for dim in shape:
        elements *= dim
    if elements * 4 > len(data):
        raise ProtocolError(f"{shown(name)} has {elements} texts in {len(data)} bytes")
    found = np.empty(elements, object)
    at = 0
    try:
        for index in range(elements):
            (length,) = _SHORT.unpack_from(data, at)
            at += 4
            if at + length > len(data):
                raise ProtocolError(f"{shown(name)} has a text of {length} bytes, {len(data) - at} are there")
            found[index] = data[at : at + length].decode("utf-8", "surrogatepass")
            at += length
    except (struct.error, UnicodeDecodeError) as exc:
        raise ProtocolError(f"{shown(name)} has a text that is not UTF-8, or ends too early") from exc
    if at != len(data):
        raise ProtocolError(f"{shown(name)} has {len(data) - at} bytes behind its last text")
    return found.reshape(shape)


# -- what ONNX gives beside tensors: sequences, maps, nothing


def _value_bytes(name: str, value: Any) -> bytes:
    try:
        return json.dumps(_value_json(value), separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(
            f"{shown(name)} is a {type(value).__name__}, which the sidecar's socket does not carry"
        ) from exc


def _value_json(value: Any) -> Any:
    """JSON that keeps the difference between a list, a map with any keys, and an array."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "UO":
            return {"text": value.tolist(), "shape": list(value.shape)}
        data = base64.b64encode(value.tobytes()).decode()
        return {"array": data, "dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return {"map": [[_value_json(key), _value_json(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_value_json(item) for item in value]
    raise TypeError(type(value).__name__)


def _read_value(name: str, data: bytes) -> Any:
    try:
        return _from_value_json(json.loads(data))
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise ProtocolError(f"the value of {shown(name)} is not in the protocol's form") from exc


def _from_value_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_value_json(item) for item in value]
    if isinstance(value, dict):
        if "map" in value:
            return {_from_value_json(key): _from_value_json(item) for key, item in value["map"]}
        if "text" in value:
            return np.array(value["text"], object).reshape(value["shape"])
        dtype = _dtype(value["dtype"])
        return np.frombuffer(base64.b64decode(value["array"]), dtype).reshape(value["shape"]).copy()
    return value
