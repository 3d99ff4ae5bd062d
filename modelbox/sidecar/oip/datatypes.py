"""The data types of the Open Inference Protocol, beside those of numpy and of signatures.

Pure. BYTES is text or raw bytes of any length; in arrays it is an object array of str (text) or bytes. BF16 has no type
in numpy: its arrays are made with ``ml_dtypes`` where that is installed, and refused with a clear error where not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from modelbox.errors import InputError, InvalidError
from modelbox.refs import shown

__all__ = ("BYTES", "DATATYPES", "Datatype", "datatype_named", "datatype_of", "datatype_of_array")


@dataclass(frozen=True, slots=True, eq=False)
class Datatype:
    """One row of the protocol's table.

    Attributes:
        name: In the protocol: ``FP32``.
        spec: In a `modelbox.signature.TensorSpec`: ``float32``.
        itemsize: Bytes of one element; 0 for BYTES, whose elements have any length.
        dtype: Of numpy, little-endian; None for BF16.
        in_json: Whether JSON can carry it.
    """

    name: str
    spec: str
    itemsize: int
    dtype: np.dtype[Any] | None
    in_json: bool = True

    def __str__(self) -> str:
        return self.name

    def array_dtype(self) -> np.dtype[Any]:
        """The dtype of arrays of this type.

        Raises:
            InvalidError: It is BF16, and ``ml_dtypes`` is not installed.
        """
        if self.dtype is not None:
            return self.dtype
        try:
            import ml_dtypes
        except ImportError as exc:
            raise InvalidError(
                "BF16 tensors need the package ml_dtypes where the model runs: pip install ml_dtypes, or give the "
                "model FP32 or FP16 inputs"
            ) from exc
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16


def _plain(name: str, spec: str, *, in_json: bool = True) -> Datatype:
    dtype = np.dtype(spec)
    return Datatype(name, spec, dtype.itemsize, dtype, in_json)


BYTES = Datatype("BYTES", "string", 0, np.dtype(object))

_ALL = (
    _plain("BOOL", "bool"),
    _plain("UINT8", "uint8"),
    _plain("UINT16", "uint16"),
    _plain("UINT32", "uint32"),
    _plain("UINT64", "uint64"),
    _plain("INT8", "int8"),
    _plain("INT16", "int16"),
    _plain("INT32", "int32"),
    _plain("INT64", "int64"),
    _plain("FP16", "float16", in_json=False),
    Datatype("BF16", "bfloat16", 2, None, False),
    _plain("FP32", "float32"),
    _plain("FP64", "float64"),
    BYTES,
)

DATATYPES = {datatype.name: datatype for datatype in _ALL}
"""By name, in the order of the protocol's table."""

_BY_SPEC = {datatype.spec: datatype for datatype in _ALL}
_BY_DTYPE = {datatype.dtype: datatype for datatype in _ALL if datatype.dtype is not None}


def datatype_named(name: object) -> Datatype:
    """The data type called ``name``.

    Raises:
        InputError: There is none.
    """
    found = DATATYPES.get(name) if isinstance(name, str) else None
    if found is None:
        raise InputError(f"{shown(name)} is not a datatype: expected one of {', '.join(DATATYPES)}")
    return found


def datatype_of(spec: str) -> Datatype | None:
    """The data type of a signature's ``dtype``; None for what the protocol cannot carry: sequences, maps, complex."""
    return _BY_SPEC.get(spec)


def datatype_of_array(array: np.ndarray[Any, np.dtype[Any]]) -> Datatype | None:
    """The data type that carries ``array``; None when there is none."""
    found = _BY_DTYPE.get(array.dtype)
    if found is None:
        kind = array.dtype.kind
        if kind in "US":
            return BYTES
        found = _BY_SPEC.get(array.dtype.name) if kind in "biufV" else None
    return found
