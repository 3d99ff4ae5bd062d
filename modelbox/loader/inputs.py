"""Checks the inputs of a call against the model's signature before the model sees them.

Owns the comparison and its error text; decides nothing about models. An array is taken as it is or refused: its dtype
is never changed in silence. Python numbers, strings and lists of them have no dtype of their own and get the one that
the signature names, as long as that loses nothing.

Invariants: what `InputChecker.check` returns has exactly the inputs of the signature. Error texts hold names, dtypes
and shapes, never values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelbox.errors import InputError
from modelbox.refs import shown
from modelbox.signature import Signature, TensorSpec

__all__ = ("Array", "Feed", "InputChecker")

Array = np.ndarray[Any, np.dtype[Any]]
Feed = dict[str, Any]
"""Checked inputs by name, as the runtime takes them."""

_MAX_PROBLEMS = 16


class _Input:
    __slots__ = ("dtype", "fixed", "name", "rank", "spec")

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.name = spec.name
        # None: compared by name, or (for text and for values that are no tensors) not here.
        self.dtype = None if spec.dtype == "string" or "(" in spec.dtype else _dtype(spec.dtype)
        self.rank = len(spec.shape)
        self.fixed = tuple((axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, int) and dim >= 0)


def _dtype(name: str) -> np.dtype[Any] | None:
    if name != "bfloat16":
        return np.dtype(name)
    # Whoever checks inputs for another process need not have the package.
    try:
        import ml_dtypes
    except ImportError:
        return None
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


class InputChecker:
    """The inputs of one signature, prepared for being checked often.

    Concurrency: stateless; any thread.

    Attributes:
        has_rows: Every input and output is a tensor with a free first dimension, so that calls may share a run.
    """

    __slots__ = ("_count", "_inputs", "_one_shape", "_quick", "has_rows")

    def __init__(self, signature: Signature) -> None:
        self._inputs = tuple(_Input(spec) for spec in signature.inputs)
        self._quick = tuple((item.name, item.dtype, item.rank, item.fixed) for item in self._inputs)
        self._count = len(self._inputs)
        self.has_rows = bool(signature.inputs) and all(
            spec.shape and (isinstance(spec.shape[0], str) or spec.shape[0] == -1)
            for spec in (*signature.inputs, *signature.outputs)
        )
        self._one_shape = all(len(item.fixed) == item.rank - 1 for item in self._inputs)

    def check(self, inputs: Mapping[str, Any]) -> Feed:
        """The inputs as the runtime takes them, in the order of the signature.

        Raises:
            InputError: Names are missing or unknown, or a dtype, rank or fixed dimension differs; says all of it.
        """
        feed: Feed = {}
        try:
            for name, dtype, rank, fixed in self._quick:
                value = inputs[name]
                shape = value.shape
                if value.dtype is not dtype or len(shape) != rank or type(value) is not np.ndarray:
                    return self._check_slowly(inputs)
                for axis, length in fixed:
                    if shape[axis] != length:
                        return self._check_slowly(inputs)
                feed[name] = value
            if len(inputs) == self._count:
                return feed
        except (KeyError, AttributeError, TypeError):
            pass
        return self._check_slowly(inputs)

    def rows(self, feed: Feed) -> tuple[int, object] | None:
        """Rows of a checked call, and a key that is equal for calls whose rows may be stacked.

        None when the inputs disagree about the number of rows, or there are none: such a call runs alone.
        """
        values = iter(feed.values())
        rows: int = next(values).shape[0]
        for value in values:
            if value.shape[0] != rows:
                return None
        if not rows:
            return None
        return rows, None if self._one_shape else tuple([value.shape[1:] for value in feed.values()])

    def _check_slowly(self, inputs: Mapping[str, Any]) -> Feed:
        if not isinstance(inputs, Mapping):
            raise InputError(
                f"expected a mapping from input names to arrays, got {type(inputs).__name__}; "
                f"the inputs are {_listed(self._inputs)}",
                problems=["inputs: not a mapping"],
            )
        feed: Feed = {}
        problems: list[str] = []
        for item in self._inputs:
            if item.name not in inputs:
                problems.append(f"input {shown(item.name)} is missing: expected {_text(item.spec)}")
                continue
            value, problem = _converted(item, inputs[item.name])
            if problem is None:
                feed[item.name] = value
            else:
                problems.append(f"input {shown(item.name)}: expected {_text(item.spec)}, got {problem}")
        known = {item.name for item in self._inputs}
        problems += [
            f"{shown(name)} is not an input of this model: expected {_listed(self._inputs)}"
            for name in inputs
            if name not in known
        ]
        if problems:
            text = "; ".join(problems[:_MAX_PROBLEMS])
            more = len(problems) - _MAX_PROBLEMS
            raise InputError(text + (f"; and {more} more" if more > 0 else ""), problems=problems[:_MAX_PROBLEMS])
        return feed


def _converted(item: _Input, value: Any) -> tuple[Any, str | None]:
    """The value for the runtime, or what is wrong with it."""
    if "(" in item.spec.dtype:
        # A sequence, map or optional: the runtime checks those itself.
        return value, None
    if isinstance(value, bool | int | float | complex | str | list | tuple):
        array, problem = _from_python(item, value)
    else:
        array, problem = _from_array(item, value)
    if problem is not None:
        return None, problem
    if array.ndim != item.rank or any(array.shape[axis] != length for axis, length in item.fixed):
        return None, _array_text(array)
    return array, None


def _from_array(item: _Input, value: Any) -> tuple[Any, str | None]:
    """An array, or anything that numpy sees as one; its dtype has to be the right one already."""
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        # Third-party types run code of their own here.
        try:
            array = np.asarray(value)
        except Exception as exc:
            return None, f"{type(value).__name__}, which is no array ({type(exc).__name__})"
    else:
        return None, type(value).__name__
    if item.spec.dtype == "string":
        text = array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(v, str) for v in array.flat))
        return array, None if text else _array_text(array)
    fits = array.dtype == item.dtype if item.dtype is not None else array.dtype.name == item.spec.dtype
    return array, None if fits else _array_text(array)


def _from_python(item: _Input, value: Any) -> tuple[Any, str | None]:
    """Python values, which take the dtype of the signature where that loses nothing."""
    problem = f"a {type(value).__name__}"
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError):
        return None, f"{problem} that is no regular array"
    if array.size == 0 and array.dtype.kind == "f":
        kind = ""  # an empty list has no type at all
    else:
        kind = array.dtype.kind
    if item.spec.dtype == "string":
        return array, None if kind in "U" else f"{problem} of {_kind(kind)}"
    if item.dtype is None:
        return None, f"{problem}; pass an array"
    # ml_dtypes' type is of numpy's kind for bytes of any meaning.
    if kind not in _FITS.get("f" if item.spec.dtype == "bfloat16" else item.dtype.kind, ""):
        return None, f"{problem} of {_kind(kind)}"
    try:
        return np.array(value, dtype=item.dtype), None
    except (ValueError, TypeError, OverflowError):
        return None, f"{problem} with values outside of {item.spec.dtype}"


# Kinds of numpy ("iufcbU") that a Python value may have for a dtype of the kind on the left.
_FITS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "c": "iufc"}
_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float", "c": "complex", "U": "str", "": "nothing"}


def _kind(kind: str) -> str:
    return _KINDS.get(kind, "mixed values")


def _array_text(array: Array) -> str:
    dtype = array.dtype.name if array.dtype.isnative else array.dtype.str
    return f"{'string' if array.dtype.kind == 'U' else dtype}[{', '.join(map(str, array.shape))}]"


def _text(spec: TensorSpec) -> str:
    return str(spec).removeprefix(f"{spec.name}: ")


def _listed(inputs: tuple[_Input, ...]) -> str:
    return ", ".join(shown(item.name) for item in inputs) or "none"
