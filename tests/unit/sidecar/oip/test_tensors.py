"""Tensors of the Open Inference Protocol: what goes out comes back the same, and what does not add up is refused."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelbox.errors import InputError, InvalidError
from modelbox.sidecar.oip.datatypes import BYTES, DATATYPES, datatype_named, datatype_of, datatype_of_array
from modelbox.sidecar.oip.tensors import decode_raw, decode_shape, decode_values, encode_json, encode_raw, raw_size
from modelbox.signature import DTYPES

_FIXED = [datatype for datatype in DATATYPES.values() if datatype.dtype is not None and datatype is not BYTES]
_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def _fixed_arrays(**elements: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(_FIXED).flatmap(
        lambda kind: hnp.arrays(kind.array_dtype(), _SHAPES, elements=hnp.from_dtype(kind.array_dtype(), **elements))
    )


def test_datatypes_every_signature_type() -> None:
    carried = {spec for spec in DTYPES if datatype_of(spec) is not None}
    assert carried == DTYPES - {"complex64", "complex128"}
    assert all(datatype_named(datatype.name) is datatype for datatype in DATATYPES.values())


@given(_fixed_arrays())
def test_raw_round_trip(array: Any) -> None:
    datatype = datatype_of_array(array)
    assert datatype is not None
    raw = bytes(encode_raw(array))
    assert len(raw) == raw_size(datatype, array.shape, "x")
    back = decode_raw(datatype, array.shape, raw, "x")
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(object, _SHAPES, elements=_TEXT))
def test_text_round_trip(array: Any) -> None:
    back = decode_raw(BYTES, array.shape, bytes(encode_raw(array)), "x")
    assert back.dtype == object
    assert back.tolist() == array.tolist()
    from_json = decode_values(BYTES, array.shape, json.loads(encode_json(array, "x")), "x")
    assert from_json.tolist() == array.tolist()


@given(_fixed_arrays(allow_nan=False, allow_infinity=False).filter(lambda a: a.dtype != np.float16))
def test_json_round_trip_flat_and_nested(array: Any) -> None:
    datatype = datatype_of_array(array)
    assert datatype is not None
    for data in (json.loads(encode_json(array, "x")), array.tolist()):
        back = decode_values(datatype, array.shape, data, "x")
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()


def test_raw_bf16() -> None:
    array = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    assert datatype_of_array(array) is DATATYPES["BF16"]
    back = decode_raw(DATATYPES["BF16"], (1, 2), encode_raw(array), "x")
    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()


def test_raw_bf16_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InputError, match="pip install ml_dtypes"):
        decode_raw(DATATYPES["BF16"], (1,), b"\0\0", "x")


def test_raw_shares_and_aligns() -> None:
    data = b"." + np.arange(4, dtype=np.float64).tobytes()
    array = decode_raw(DATATYPES["FP64"], (4,), memoryview(data)[1:], "x")
    assert array.tolist() == [0, 1, 2, 3]
    assert array.flags.aligned
    large = np.zeros((512, 64), np.float32)
    assert np.shares_memory(np.frombuffer(encode_raw(large), np.float32), large)


def test_raw_other_byte_order_and_layout() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    back = decode_raw(DATATYPES["FP32"], (3, 2), encode_raw(array), "x")
    assert back.tolist() == array.tolist()


def test_raw_bytes_that_are_no_text_stay_bytes() -> None:
    raw = b"\x04\0\0\0\x89PNG\x01\0\0\0a"
    assert decode_raw(BYTES, (2,), raw, "x").tolist() == [b"\x89PNG", b"a"]


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (b"", 1),
        (b"\x01\0\0", 1),
        (b"\x02\0\0\0a", 1),
        (b"\xff\xff\xff\xffabcd", 1),
        (b"\x01\0\0\0ab", 1),
        (b"\x01\0\0\0a", 2),
        (b"\0\0\0\0" * 3, 1 << 40),
        (b"\x05\0\0\0abcde\0", 2),
    ],
)
def test_raw_bytes_that_do_not_add_up(raw: bytes, count: int) -> None:
    with pytest.raises(InputError):
        decode_raw(BYTES, (count,), raw, "x")


@given(st.sampled_from(list(DATATYPES.values())), st.lists(st.integers(0, 6), max_size=3), st.binary(max_size=64))
def test_raw_garbage_is_an_array_or_an_error(datatype: Any, shape: list[int], data: bytes) -> None:
    try:
        array = decode_raw(datatype, tuple(shape), data, "x")
    except InputError:
        return
    assert array.shape == tuple(shape)
    assert bytes(encode_raw(array)) == data


def test_raw_wrong_size_names_both() -> None:
    with pytest.raises(InputError, match=r"'x'.*got 7 bytes, expecting 8 for FP32\[2\]"):
        decode_raw(DATATYPES["FP32"], (2,), b"1234567", "x")


def test_raw_bool_of_other_values() -> None:
    with pytest.raises(InputError, match="neither 0 nor 1"):
        decode_raw(DATATYPES["BOOL"], (2,), b"\x01\x02", "x")


@pytest.mark.parametrize(
    "shape",
    [None, 4, "4", {}, [1.0], [True], [-1], ["1"], [None], [[1]], [1] * 33],
)
def test_shape_that_is_none(shape: object) -> None:
    with pytest.raises(InputError, match="'x'"):
        decode_shape(shape, "x")


@pytest.mark.parametrize("shape", [(1 << 62,), (1 << 32, 1 << 32), (0, 1 << 63), (10**30,), (1 << 31, 0, 1 << 31)])
@pytest.mark.parametrize("kind", ["FP64", "BYTES", "BOOL"])
def test_shape_that_overflows(shape: tuple[int, ...], kind: str) -> None:
    assert decode_shape(list(shape), "x") == shape
    with pytest.raises(InputError):
        decode_raw(DATATYPES[kind], shape, b"", "x")
    if kind != "BYTES":
        with pytest.raises(InputError):
            decode_values(DATATYPES[kind], shape, [], "x")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("INT32", [1.0, 2.0]),
        ("INT32", [1, 1 << 31]),
        ("INT32", [True, "1"]),
        ("UINT8", [-1, 0]),
        ("UINT64", [-1, 0]),
        ("UINT64", [0, 1 << 64]),
        ("INT64", [0, 1 << 63]),
        ("INT64", [0, 1.5]),
        ("BOOL", [0, 2]),
        ("BOOL", [0.0, 1.0]),
        ("FP32", ["1", "2"]),
        ("FP32", [1.0, 1e39]),
        ("FP64", [1.0, math.inf]),
        ("FP32", [1, None]),
        ("FP32", [[1.0], [2.0, 3.0]]),
        ("FP32", [[1.0], [2.0]]),
        ("FP32", [1.0]),
        ("FP32", 1.0),
        ("FP32", {"a": 1}),
        ("FP32", None),
        ("FP32", [[[1.0, 2.0]]]),
        ("BYTES", [1, 2]),
        ("BYTES", ["a", None]),
        ("BYTES", ["a", ["b"]]),
        ("BYTES", ["a", "\ud800"]),
        ("BYTES", "ab"),
        ("FP16", [1.0, 2.0]),
        ("BF16", [1.0, 2.0]),
    ],
)
def test_values_that_do_not_fit(kind: str, data: object) -> None:
    with pytest.raises(InputError, match="'x'"):
        decode_values(DATATYPES[kind], (2,), data, "x")


def test_values_at_the_edges() -> None:
    edges = {"UINT64": [0, (1 << 64) - 1], "INT64": [-(1 << 63), (1 << 63) - 1], "INT8": [-128, 127], "UINT8": [0, 255]}
    for kind, data in edges.items():
        assert decode_values(DATATYPES[kind], (2,), data, "x").tolist() == data
    assert decode_values(DATATYPES["BOOL"], (3,), [True, 0, 1], "x").tolist() == [True, False, True]
    assert decode_values(DATATYPES["FP32"], (), 2.5, "x").tolist() == 2.5
    assert decode_values(DATATYPES["FP32"], (2,), [1, 2], "x").tolist() == [1.0, 2.0]
    assert decode_values(DATATYPES["INT64"], (0, 3), [], "x").shape == (0, 3)
    assert decode_values(BYTES, (2,), [b"\xff", "a"], "x").tolist() == [b"\xff", "a"]


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.0, np.nan], np.float32),
        np.array([-np.inf]),
        np.ones(1, np.float16),
        np.ones(1, ml_dtypes.bfloat16),
        np.array([b"\xff"], object),
    ],
)
def test_json_cannot_carry(array: Any) -> None:
    with pytest.raises(InputError, match="binary_data"):
        encode_json(array, "y")


def test_no_datatype_for_complex() -> None:
    for encode in (encode_raw, lambda array: encode_json(array, "y")):
        with pytest.raises(InvalidError, match="complex64"):
            encode(np.ones(1, np.complex64))
