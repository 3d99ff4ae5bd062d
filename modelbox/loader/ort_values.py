"""Runs of models with bfloat16 inputs or outputs, which onnxruntime's numpy interface refuses.

numpy has no such type; arrays of it are those of ``ml_dtypes``. Such a model is run on onnxruntime's own values
(``OrtValue``) instead: inputs are lent to the runtime, outputs are arrays on the runtime's memory, which lives as long
as they do. Other models keep to the numpy interface, which is quicker.

Owns this way of running, and what the loader says of element types that no array can hold (the 8-bit floats and
smaller). Importing this module does not import onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modelbox.errors import ConfigError, LoadError
from modelbox.refs import shown
from modelbox.signature import DTYPES, Signature

__all__ = ("bfloat16", "check_element", "needs_values", "value_run")

_BFLOAT16 = 16
"""Its number in ONNX's ``TensorProto.DataType``."""


def bfloat16() -> np.dtype[Any]:
    """The dtype of bfloat16 arrays.

    Raises:
        ConfigError: ``ml_dtypes`` is not installed.
    """
    try:
        import ml_dtypes
    except ImportError as exc:
        raise ConfigError(
            "the model has bfloat16 tensors, for which numpy has no type: pip install 'modelbox[bfloat16]' (the "
            "package ml_dtypes)",
            extra="bfloat16",
        ) from exc
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def check_element(side: str, name: str, element: str) -> None:
    """Refuses tensors whose elements no array can hold.

    Args:
        side: ``input`` or ``output``.
        name: Of the tensor.
        element: As onnxruntime names it.

    Raises:
        LoadError: Says what to do instead.
    """
    if element not in DTYPES:
        raise LoadError(
            f"{side} {shown(name)} is a tensor of {shown(element)}, which neither numpy nor the protocols can carry: "
            "cast it inside of the model, to float16 or float32 for instance",
            stage="open",
        )


def needs_values(signature: Signature) -> bool:
    """Whether a model of this signature runs on values."""
    return any(spec.dtype == "bfloat16" for spec in (*signature.inputs, *signature.outputs))


def value_run(
    native: Any, values: Any, signature: Signature
) -> Callable[[Sequence[str], Mapping[str, Any], Any], list[Any]]:
    """What takes the place of the native session's ``run``.

    Args:
        native: The native session (``InferenceSession._sess``).
        values: onnxruntime's class ``OrtValue``.
        signature: Of the model.

    Raises:
        ConfigError: ``ml_dtypes`` is not installed.
        LoadError: The model takes or gives sequences or maps beside bfloat16, which this way does not carry.
    """
    half = bfloat16()
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if "(" in spec.dtype:
                raise LoadError(
                    f"{side} {shown(spec.name)} is {spec.dtype}, and other tensors of the model are bfloat16: "
                    "onnxruntime cannot be given both",
                    stage="open",
                )

    def lend(array: Any) -> Any:
        if array.dtype != half:
            return values.ortvalue_from_numpy(array)._ortvalue
        bits = np.ascontiguousarray(array).view(np.uint16)
        return values.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)._ortvalue

    def run(names: Sequence[str], feed: Mapping[str, Any], run_options: Any) -> list[Any]:
        lent = {name: lend(array) for name, array in feed.items()}
        outputs = native.run_with_ort_values(lent, names, run_options)
        return [_array(value, half) for value in outputs]

    return run


class _Borrowed:
    """Memory of the runtime, for as long as an array is on it."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, owner: Any, shape: tuple[int, ...]) -> None:
        self._owner = owner
        self.__array_interface__ = {"data": (owner.data_ptr(), False), "shape": shape, "typestr": "<u2", "version": 3}


def _array(value: Any, half: np.dtype[Any]) -> Any:
    if value.element_type() != _BFLOAT16:
        return value.numpy()
    shape = tuple(value.shape())
    if 0 in shape:
        return np.empty(shape, half)
    return np.asarray(_Borrowed(value, shape)).view(half)
