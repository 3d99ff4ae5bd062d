"""Tensors of the Open Inference Protocol to arrays and back, as raw bytes and as JSON values.

Sans-I/O, for HTTP and gRPC alike. Refuses whatever does not match its own declaration: a size that is not shape times
type, values of another kind, numbers out of range, booleans that are neither 0 nor 1. Values are never rounded into an
integer type, cut off or parsed from text.

Invariants: decoding allocates no more than the bytes or values that came with it call for, whatever a shape claims. A
decoded array may share memory with the bytes it came from and is read-only then. Errors are `InputError` and name the
tensor, never its values.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from modelbox.errors import InputError, InvalidError
from modelbox.refs import shown
from modelbox.sidecar.oip.datatypes import BYTES, Datatype, datatype_of_array
from modelbox.sidecar.oip.large_json import Pause

__all__ = (
    "LARGE_TEXTS_BYTES",
    "Array",
    "Buffer",
    "decode_raw",
    "decode_shape",
    "decode_values",
    "elements_of",
    "encode_json",
    "encode_raw",
    "raw_size",
)

Array = np.ndarray[Any, np.dtype[Any]]
Buffer = bytes | bytearray | memoryview

_MAX_RANK = 32
_MAX_BYTES = 1 << 62
_LENGTH = struct.Struct("<I")
_COPY_BELOW = 1 << 16
LARGE_TEXTS_BYTES = 64 << 10
"""Of elements of BYTES together: more than this is not read on an event loop, because they are read one by one."""
_SLICE = 8192
"""Elements that are written or taken at once, so that others may run in between."""

_write_json: Callable[[Array], bytes] | None
try:
    import orjson
except ImportError:
    _write_json = None
else:
    _write_json = partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_shape(value: object, name: str) -> tuple[int, ...]:
    """A shape as the protocol gives it, checked.

    Args:
        value: A list of lengths.
        name: Of the tensor, for errors.

    Raises:
        InputError: It is no list of lengths, or no memory could hold such a tensor.
    """
    if not isinstance(value, list | tuple):
        raise InputError(f"tensor {shown(name)} has the shape {shown(value)}: expected a list of lengths")
    if len(value) > _MAX_RANK:
        raise InputError(f"tensor {shown(name)} has {len(value)} dimensions, more than {_MAX_RANK}")
    for dim in value:
        if type(dim) is not int or dim < 0:
            raise InputError(f"tensor {shown(name)} has the dimension {shown(dim)}: expected a whole number from 0 on")
    return tuple(value)


def elements_of(shape: Sequence[int], name: str) -> int:
    """How many elements a tensor of ``shape`` has.

    Raises:
        InputError: More than can be addressed, even if one dimension is 0.
    """
    elements = 1
    bound = 1
    for dim in shape:
        elements *= dim
        bound *= dim or 1
        if bound > _MAX_BYTES >> 3:
            raise InputError(f"tensor {shown(name)} has a shape that no memory could hold")
    return elements


def raw_size(datatype: Datatype, shape: Sequence[int], name: str) -> int | None:
    """Bytes of such a tensor; None for BYTES, where the shape does not say.

    Raises:
        InputError: The shape is too large.
    """
    elements = elements_of(shape, name)
    return elements * datatype.itemsize if datatype is not BYTES else None


# -- raw bytes


def decode_raw(datatype: Datatype, shape: tuple[int, ...], data: Buffer, name: str) -> Array:
    """The tensor in ``data``: little-endian, row-major, without padding.

    BYTES elements come as str where all of them are UTF-8, as bytes otherwise.

    Args:
        datatype: Of its elements.
        shape: Its dimensions, from `decode_shape`.
        data: Exactly its bytes; the array keeps them alive and shares them.
        name: Of the tensor, for errors.

    Raises:
        InputError: The size is not shape times type, a boolean is neither 0 nor 1, or a length runs past the end.
    """
    elements = elements_of(shape, name)
    if datatype is BYTES:
        return _decode_bytes(elements, shape, data, name)
    expected = elements * datatype.itemsize
    if len(data) != expected:
        raise InputError(
            f"unexpected size for tensor {shown(name)}: got {len(data)} bytes, expecting {expected} for "
            f"{datatype.name}{list(shape)}"
        )
    array = np.frombuffer(data, _array_dtype(datatype)).reshape(shape)
    if not array.flags.aligned:
        array = array.copy()
    if datatype.name == "BOOL" and elements and array.view(np.uint8).max() > 1:
        raise InputError(f"tensor {shown(name)} has a BOOL that is neither 0 nor 1")
    return array


def _array_dtype(datatype: Datatype) -> np.dtype[Any]:
    try:
        return datatype.array_dtype()
    except InvalidError as exc:
        raise InputError(exc.message, **exc.fields) from exc


def _decode_bytes(elements: int, shape: tuple[int, ...], data: Buffer, name: str) -> Array:
    size = len(data)
    if elements * 4 > size:
        raise InputError(
            f"unexpected size for tensor {shown(name)}: {elements} elements of BYTES need at least {elements * 4} "
            f"bytes, got {size}"
        )
    raw = bytes(data)
    items: list[bytes] = []
    at = 0
    for _ in range(elements):
        start = at + 4
        if start > size:
            raise InputError(f"tensor {shown(name)} ends in the middle of a length")
        at = start + _LENGTH.unpack_from(raw, at)[0]
        if at > size:
            raise InputError(f"tensor {shown(name)} has an element that is longer than what came")
        items.append(raw[start:at])
    if at != size:
        raise InputError(f"tensor {shown(name)} has {size - at} bytes after its last element")
    array = np.empty(elements, object)
    try:
        array[:] = [item.decode() for item in items]
    except UnicodeDecodeError:
        array[:] = items
    return array.reshape(shape)


def encode_raw(array: Array) -> Buffer:
    """The raw bytes of a tensor; large ones share the array's memory.

    Raises:
        InvalidError: No data type of the protocol carries it.
    """
    datatype = _datatype_for(array)
    if datatype is BYTES:
        parts: list[bytes] = []
        for item in array.flat:
            raw = _to_bytes(item)
            parts += (_LENGTH.pack(len(raw)), raw)
        return b"".join(parts)
    if datatype.dtype is not None and array.dtype != datatype.dtype:
        array = array.astype(datatype.dtype)
    if array.nbytes < _COPY_BELOW:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _to_bytes(item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    return (item if isinstance(item, str) else str(item)).encode()


def _datatype_for(array: Array) -> Datatype:
    datatype = datatype_of_array(array)
    if datatype is None:
        raise InvalidError(f"the protocol has no datatype for {shown(array.dtype.name)} tensors")
    return datatype


# -- JSON values

# Kinds of numpy that parsed values may have, by the kind of the datatype.
_FITS = {"b": "biu", "i": "iu", "u": "iu", "f": "iuf"}
_LARGEST = {"FP32": float(np.finfo(np.float32).max), "FP64": float(np.finfo(np.float64).max)}
_NUMBERS = frozenset([float, int])
_SMALL = 64
_KIND_NAMES = {"b": "booleans", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def decode_values(datatype: Datatype, shape: tuple[int, ...], data: object, name: str) -> Array:
    """The tensor in parsed JSON (or protobuf) values.

    Args:
        datatype: Of its elements.
        shape: Its dimensions, from `decode_shape`.
        data: A flat list of its values in row-major order, or lists nested as the shape; a single value for ``[]``.
            An array stands for the list that numpy made it of.
        name: Of the tensor, for errors.

    Raises:
        InputError: The number of values is not that of the shape, or one is of another kind or out of range.
    """
    if not datatype.in_json:
        raise InputError(f"tensor {shown(name)}: {datatype.name} cannot be given as JSON, only as raw bytes")
    elements = elements_of(shape, name)
    if datatype is BYTES:
        return _decode_text(elements, shape, data, name)
    target = _array_dtype(datatype)
    if type(data) is list and len(data) == elements and 0 < elements <= _SMALL and _are_floats(data, datatype):
        return np.array(data, target).reshape(shape)
    if _has_text(data):
        # numpy would give every element the room of the longest.
        raise _wrong_kind(target.kind, datatype, name)
    try:
        array = data if isinstance(data, np.ndarray) else np.array(data)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InputError(f"tensor {shown(name)}: its data are no regular list of values") from None
    # Lists cannot show the dimensions behind one that is 0.
    if array.size != elements or (elements and array.ndim != 1 and array.shape != shape):
        raise _miscounted(array, elements, shape, name)
    if not elements:
        return np.empty(shape, target)
    return _cast(array, target, data, datatype, name).reshape(shape)


def _has_text(data: object) -> bool:
    pending = [data]
    while pending:
        item = pending.pop()
        if type(item) is list:
            kinds = set(map(type, item))
            if str in kinds:
                return True
            if list in kinds:
                pending += item
        elif type(item) is str:
            return True
    return False


def _are_floats(data: list[Any], datatype: Datatype) -> bool:
    """Whether these few values are finite numbers of a float type: numpy needs twice the time to say so."""
    if datatype.name not in _LARGEST or not _NUMBERS.issuperset(map(type, data)):
        return False
    largest = _LARGEST[datatype.name]
    return bool(max(data) <= largest and min(data) >= -largest)


def _cast(array: Array, target: np.dtype[Any], data: object, datatype: Datatype, name: str) -> Array:
    """``array`` as ``target``, which must lose nothing but precision of floats."""
    kind = array.dtype.kind
    wanted = target.kind
    if wanted == "f":
        if kind == "O" and _all_whole(data):
            # Whole numbers of more than 64 bits.
            try:
                array = np.array(data, np.float64)
            except OverflowError:
                raise _out_of_range(datatype, name) from None
        elif kind not in "iuf":
            raise _wrong_kind(wanted, datatype, name)
        if array.dtype is not target:
            with np.errstate(over="ignore"):
                array = array.astype(target)
        if not np.isfinite(array).all():
            raise InputError(f"tensor {shown(name)} has a number that is too large for {datatype.name}")
        return array
    if kind == "f" and target.itemsize == 8 and _all_whole(data):
        # Whole numbers on both sides of what 64 bits with a sign can hold: numpy takes them for floats.
        try:
            return np.array(data, target)
        except OverflowError:
            raise _out_of_range(datatype, name) from None
    if kind not in _FITS[wanted]:
        raise _out_of_range(datatype, name) if kind == "O" and _all_whole(data) else _wrong_kind(wanted, datatype, name)
    if array.dtype is target:
        return array
    low, high = (0, 1) if wanted == "b" else (int(np.iinfo(target).min), int(np.iinfo(target).max))
    if int(array.min()) < low or int(array.max()) > high:
        raise _out_of_range(datatype, name)
    return array.astype(target)


def _all_whole(data: object) -> bool:
    pending = [data]
    while pending:
        item = pending.pop()
        if isinstance(item, list | tuple):
            pending += item
        elif type(item) is not int:
            return False
    return True


def _decode_text(elements: int, shape: tuple[int, ...], data: object, name: str) -> Array:
    if type(data) is list and len(data) == elements and (not elements or type(data[0]) is not list):
        items = data
    else:
        # Of ragged lists numpy makes elements that are lists, which are no text.
        try:
            found = np.array(data, object)
        except (ValueError, RecursionError):
            raise InputError(f"tensor {shown(name)}: its data are no regular list of values") from None
        if found.size != elements or (elements and found.ndim != 1 and found.shape != shape):
            raise _miscounted(found, elements, shape, name)
        items = found.reshape(-1).tolist()
    if not all([isinstance(item, str | bytes) for item in items]):
        raise InputError(f"tensor {shown(name)} has data that are no text: expected strings for BYTES")
    if any([isinstance(item, bytes) for item in items]):
        # From a message of gRPC; JSON has text only.
        with contextlib.suppress(UnicodeDecodeError):
            items = [_to_bytes(item).decode() for item in items]
    elif not all([item.isascii() for item in items]):
        try:
            "".join(items).encode()
        except UnicodeEncodeError:
            raise InputError(f"tensor {shown(name)} has a string that is no valid Unicode") from None
    array = np.empty(elements, object)
    for at in range(0, elements, _SLICE):
        array[at : at + _SLICE] = items[at : at + _SLICE]
    return array.reshape(shape)


def _miscounted(array: Array, elements: int, shape: tuple[int, ...], name: str) -> InputError:
    return InputError(
        f"tensor {shown(name)} has {array.size} values (as {list(array.shape)}), expecting {elements} for the shape "
        f"{list(shape)}"
    )


def _wrong_kind(kind: str, datatype: Datatype, name: str) -> InputError:
    return InputError(
        f"tensor {shown(name)} has data of another kind: expected {_KIND_NAMES[kind]} for {datatype.name}"
    )


def _out_of_range(datatype: Datatype, name: str) -> InputError:
    return InputError(f"tensor {shown(name)} has a value outside of {datatype.name}")


def encode_json(array: Array, name: str, pause: Pause | None = None) -> str:
    """The values of a tensor as the text of a flat JSON list.

    Args:
        array: The tensor.
        name: Its name, for errors.
        pause: Called between slices of a large one.

    Raises:
        InputError: JSON cannot carry them: FP16, BF16, NaN, infinities, and bytes that are no text. Says what to ask
            for instead.
        InvalidError: No data type of the protocol carries it.
    """
    datatype = _datatype_for(array)
    if not datatype.in_json:
        raise _ask_for_binary(name, datatype.name)
    if array.size <= _SLICE:
        return f"[{_items_json(array, datatype, name)}]"
    flat = array.reshape(-1)
    parts: list[str] = []
    for at in range(0, flat.size, _SLICE):
        parts.append(_items_json(flat[at : at + _SLICE], datatype, name))
        if pause is not None:
            pause()
    return f"[{','.join(parts)}]"


def _items_json(array: Array, datatype: Datatype, name: str) -> str:
    """The same without brackets."""
    if datatype is BYTES:
        try:
            items = [item.decode() if isinstance(item, bytes) else str(item) for item in array.flat]
        except UnicodeDecodeError as exc:
            raise _ask_for_binary(name, "bytes that are no text") from exc
        return json.dumps(items)[1:-1]
    if _write_json is not None and array.size > _SMALL:
        if datatype.dtype is not None and array.dtype != datatype.dtype:
            array = array.astype(datatype.dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _ask_for_binary(name, "NaN or infinity")
        return _write_json(np.ascontiguousarray(array).reshape(-1)).decode()[1:-1]
    values = array.ravel().tolist()
    if datatype.name == "FP32" and values:
        # Nine digits give back every 32-bit float, and take a third of the time of the 17 of a Python float.
        text = "%.9g," * len(values) % tuple(values)
        if "-0," in text:  # which a reader would take for a whole number, that has no sign
            text = text.replace("-0,", "-0.0,")
        text = text[:-1]
    else:
        text = str(values)[1:-1]
    if array.dtype.kind == "b":
        return text.lower()
    if "n" in text:  # of nan and inf
        raise _ask_for_binary(name, "NaN or infinity")
    return text


def _ask_for_binary(name: str, what: str) -> InputError:
    return InputError(
        f'output {shown(name)} holds {what}, which JSON cannot carry: ask for it with the parameter "binary_data": true'
    )
