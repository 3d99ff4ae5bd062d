"""Reads safetensors files: a JSON header with the places of tensors, then their bytes. Nothing in them is ever run.

Strict where the format leaves room: every byte behind the header belongs to exactly one tensor, no name comes twice,
and all is checked before an array is made. A file is mapped into memory, not read: arrays are views of it, read-only.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from modelbox.errors import ConfigError, LoadError, ModelInvalid
from modelbox.refs import shown

__all__ = ("StoredTensor", "open_safetensors", "read_header")

_MAX_HEADER_BYTES = 64 << 20
_MAX_TENSORS = 200_000
_MAX_DIMS = 32

_NUMPY: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
# Types that numpy does not have; `ml_dtypes` has them.
_EXTRA: Mapping[str, tuple[str, int]] = {
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
        name: Its name.
        dtype: As the format names it, such as ``F32``.
        shape: Row-major.
        begin: Its first byte, counted from the beginning of the file.
        end: Behind its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(data: bytes | memoryview, size_bytes: int) -> tuple[tuple[StoredTensor, ...], dict[str, str]]:
    """What a file says of itself.

    Args:
        data: Its beginning: the header at least, or all of it.
        size_bytes: Length of the whole file.

    Returns:
        Its tensors, in the order of their bytes, and its metadata (texts by name).

    Raises:
        ModelInvalid: It is no safetensors file, or a broken one.
    """
    if size_bytes < 8 or len(data) < 8:
        raise ModelInvalid(f"no safetensors file: it has {size_bytes} bytes, less than its header's length takes")
    length = int.from_bytes(bytes(data[:8]), "little")
    if length > min(_MAX_HEADER_BYTES, size_bytes - 8) or len(data) < 8 + length:
        raise ModelInvalid(f"no safetensors file: a header of {length} bytes does not fit into it")
    text = bytes(data[8 : 8 + length])
    if not text.startswith(b"{"):
        raise ModelInvalid("no safetensors file: its header is no JSON object")
    try:
        raw = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise ModelInvalid("no safetensors file: its header is no JSON, or names something twice") from exc
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelInvalid("the metadata of the safetensors file are not texts")
    if len(raw) > _MAX_TENSORS:
        raise ModelInvalid(f"the safetensors file has {len(raw)} tensors, more than the {_MAX_TENSORS} allowed")
    start = 8 + length
    tensors = sorted((_tensor(name, value, start) for name, value in raw.items()), key=lambda t: (t.begin, t.end))
    at = start
    for tensor in tensors:
        if tensor.begin != at:
            raise ModelInvalid(f"tensor {shown(tensor.name)} does not begin where the one before it ends")
        at = tensor.end
    if at != size_bytes:
        raise ModelInvalid(f"the tensors of the safetensors file end at byte {at}, the file at {size_bytes}")
    return tuple(tensors), metadata


def open_safetensors(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    """The tensors of a file as read-only arrays over its mapped bytes.

    The arrays keep the mapping, so that they stay good for as long as somebody holds one.

    Raises:
        ModelInvalid: It is no safetensors file, or a broken one.
        ConfigError: It has tensors of a type that numpy lacks, and ``ml_dtypes`` is not installed.
        LoadError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            if file.tell() < 8:
                raise ModelInvalid("no safetensors file: it is shorter than the length of a header", path=str(path))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as exc:
        raise LoadError(f"{path} cannot be read: {exc.strerror}", path=str(path)) from exc
    tensors, _ = read_header(memoryview(mapped), len(mapped))
    arrays: dict[str, npt.NDArray[Any]] = {}
    for tensor in tensors:
        dtype = _dtype(tensor)
        count = (tensor.end - tensor.begin) // dtype.itemsize
        flat = np.frombuffer(mapped, dtype=dtype, count=count, offset=tensor.begin) if count else np.empty(0, dtype)
        array = flat.reshape(tensor.shape)
        array.flags.writeable = False
        arrays[tensor.name] = array
    return MappingProxyType(arrays)


def _tensor(name: str, value: object, start: int) -> StoredTensor:
    def refuse(why: str) -> ModelInvalid:
        return ModelInvalid(f"tensor {shown(name)} of the safetensors file {why}")

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise refuse("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in _NUMPY and dtype not in _EXTRA):
        raise refuse(f"has the type {shown(str(dtype))}: expected {', '.join((*_NUMPY, *_EXTRA))}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(_is_length(dim) for dim in shape):
        raise refuse("has no shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_length(offset) for offset in offsets):
        raise refuse("has no place")
    begin, end = offsets
    if end - begin != math.prod(shape) * _size_of(dtype):
        raise refuse(f"has {end - begin} bytes, its shape and type take {math.prod(shape) * _size_of(dtype)}")
    return StoredTensor(name=name, dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _size_of(dtype: str) -> int:
    return _EXTRA[dtype][1] if dtype in _EXTRA else np.dtype(_NUMPY[dtype]).itemsize


def _dtype(tensor: StoredTensor) -> np.dtype[Any]:
    if tensor.dtype in _NUMPY:
        return np.dtype(_NUMPY[tensor.dtype]).newbyteorder("<")
    try:
        import ml_dtypes
    except ImportError as exc:
        raise ConfigError(
            f"tensor {shown(tensor.name)} is one of {tensor.dtype}, for which numpy has no type: pip install "
            "'modelbox[bfloat16]' (the package ml_dtypes)",
            extra="bfloat16",
        ) from exc
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _EXTRA[tensor.dtype][0]))
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)
