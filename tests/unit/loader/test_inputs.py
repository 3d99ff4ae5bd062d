from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelbox.errors import InputError
from modelbox.loader.inputs import InputChecker
from modelbox.signature import Signature, TensorSpec


def _spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _checker(*specs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> InputChecker:
    return InputChecker(Signature(inputs=specs, outputs=outputs))


MATRIX = _checker(_spec("x", "float32", "batch", 4))
VOICE = _checker(_spec("input", "float32", -1, -1), _spec("sr", "int64"))


def test_right_inputs_pass_as_they_are_and_in_order() -> None:
    x = np.zeros((2, 4), np.float32)
    assert MATRIX.check({"x": x})["x"] is x
    feed = VOICE.check({"sr": np.array(16000), "input": np.zeros((1, 3), np.float32)})
    assert list(feed) == ["input", "sr"]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "input 'x' is missing: expected float32[batch, 4]"),
        ({"x": np.zeros((1, 4))}, "input 'x': expected float32[batch, 4], got float64[1, 4]"),
        ({"x": np.zeros((1, 5), np.float32)}, "got float32[1, 5]"),
        ({"x": np.zeros(4, np.float32)}, "got float32[4]"),
        ({"x": np.zeros((1, 4), ">f4")}, "got >f4[1, 4]"),
        ({"x": np.zeros((1, 4), np.float32), "y": 1}, "'y' is not an input of this model: expected 'x'"),
        ({"x": None}, "got NoneType"),
        ({"x": object()}, "got object"),
        ({"x": [["a", "b", "c", "d"]]}, "got a list of str"),
        ({"x": [[1.0], [1.0, 2.0]]}, "got a list that is no regular array"),
        ({"x": [[1.0, 2.0]]}, "got float32[1, 2]"),
        ({"x": {"a": 1}}, "got dict"),
        ([1, 2], "expected a mapping from input names to arrays, got list"),
        (None, "got NoneType"),
    ],
)
def test_wrong_inputs_say_expected_and_got(inputs: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        MATRIX.check(inputs)
    assert text in str(caught.value)
    assert caught.value.fields["problems"]


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        VOICE.check({"input": np.zeros((1, 3)), "extra": 1})
    text = str(caught.value)
    assert "'input': expected float32[?, ?], got float64[1, 3]" in text
    assert "'sr' is missing: expected int64[]" in text
    assert "'extra' is not an input" in text


def test_errors_hold_no_values() -> None:
    with pytest.raises(InputError) as caught:
        MATRIX.check({"x": ["my secret"]})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float32", 1, np.array(1, np.float32)),
        ("float32", 0.5, np.array(0.5, np.float32)),
        ("float16", 0.5, np.array(0.5, np.float16)),
        ("int64", 16000, np.array(16000)),
        ("uint8", 255, np.array(255, np.uint8)),
        ("bool", True, np.array(True)),
        ("string", "text", np.array("text")),
    ],
)
def test_python_values_take_the_dtype_of_the_signature(dtype: str, value: Any, expected: Any) -> None:
    got = _checker(_spec("x", dtype)).check({"x": value})["x"]
    assert got.dtype == expected.dtype
    assert got == expected


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("int64", 1.5, "a float of float"),
        ("uint8", 256, "outside of uint8"),
        ("uint8", -1, "outside of uint8"),
        ("bool", 1, "a int of int"),
        ("int64", True, "a bool of bool"),
        ("string", 5, "a int of int"),
        ("int64", 2**70, "a int"),
    ],
)
def test_python_values_that_would_lose_something_are_refused(dtype: str, value: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        _checker(_spec("x", dtype)).check({"x": value})
    assert text in str(caught.value)


def test_text_arrays() -> None:
    checker = _checker(_spec("x", "string", "n"))
    for good in (np.array(["a", "b"]), np.array(["a", "b"], dtype=object), ["a", "b"]):
        assert checker.check({"x": good})["x"].shape == (2,)
    for bad in (np.array([b"a"]), np.array(["a", 1], dtype=object), np.zeros(2)):
        with pytest.raises(InputError):
            checker.check({"x": bad})


def test_array_likes_keep_their_dtype() -> None:
    class Tensor:
        def __init__(self, dtype: Any) -> None:
            self.data = np.zeros((1, 4), dtype)

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            return self.data

    class Broken:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            raise RuntimeError("on another device")

    assert MATRIX.check({"x": Tensor(np.float32)})["x"].dtype == np.float32
    with pytest.raises(InputError, match=r"got float64\[1, 4\]"):
        MATRIX.check({"x": Tensor(np.float64)})
    with pytest.raises(InputError, match="Broken, which is no array"):
        MATRIX.check({"x": Broken()})


def test_rows_of_calls_that_may_share_a_run() -> None:
    out = (_spec("y", "float32", "batch"),)
    two = _checker(_spec("a", "float32", "batch", 4), _spec("b", "float32", -1, "n"), outputs=out)
    assert two.has_rows

    def feed(a: int, b: int, n: int) -> dict[str, Any]:
        return {"a": np.zeros((a, 4), np.float32), "b": np.zeros((b, n), np.float32)}

    assert two.rows(feed(2, 2, 3)) == two.rows(feed(2, 2, 3))
    assert two.rows(feed(2, 2, 3)) != two.rows(feed(2, 2, 4))
    assert two.rows(feed(2, 3, 3)) is None
    assert two.rows(feed(0, 0, 3)) is None
    fixed = _checker(_spec("a", "float32", "batch", 4), outputs=out)
    assert fixed.rows({"a": np.zeros((3, 4), np.float32)}) == (3, None)


def test_models_without_rows() -> None:
    assert not VOICE.has_rows
    row = _spec("x", "float32", "batch")
    assert not _checker(row, outputs=(_spec("y", "float32", 1),)).has_rows
    assert not _checker(row, outputs=(_spec("y", "seq(tensor(float))"),)).has_rows
    assert not _checker().has_rows
