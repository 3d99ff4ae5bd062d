"""The reader of large documents gives what Python's JSON reader gives, for any text."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelbox.errors import InputError, LimitError, ModelBoxError
from modelbox.sidecar.oip import large_json, tensors
from modelbox.sidecar.oip.binary import read_body
from modelbox.sidecar.oip.json_body import encode_answer, parse_json
from modelbox.sidecar.oip.large_json import MAX_REST_CHARS, read_list


@pytest.fixture(autouse=True, params=["orjson", "json"])
def readers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With and without orjson, in slices so small that every text has several."""
    with monkeypatch.context() as patch:
        patch.setattr(large_json, "_SLICE", 7)
        patch.setattr(large_json, "_TEXTS", 2)
        if request.param == "json":
            patch.setattr(large_json, "_loads", large_json._plain_loads)
            patch.setattr(tensors, "_write_json", None)
        yield


def _pause() -> None:
    pass


def _refuse(text: str) -> object:
    raise ValueError(text)


def _check(got: Any, expected: Any) -> None:
    """``got`` is ``expected``, with arrays for lists as numpy would have made them."""
    if isinstance(got, np.ndarray):
        array = np.array(expected)
        if array.dtype.kind == "O":
            # Beyond 64 bits, orjson gives the nearest float: no integer type takes either.
            assert got.dtype.kind == "f"
            array = array.astype(float)
        assert got.dtype == array.dtype
        assert got.shape == array.shape
        np.testing.assert_array_equal(got, array)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        for key, value in expected.items():
            _check(got[key], value)
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for item, value in zip(got, expected, strict=True):
            _check(item, value)
    else:
        assert (type(got), got) == (type(expected), expected)


def _same(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        with pytest.raises(InputError):
            parse_json(text.encode("utf-8", "surrogatepass"), "it", _pause)
        return
    _check(parse_json(text.encode(), "it", _pause), expected)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**70), 2**70)
NUMBERS = st.one_of(FLOATS, WHOLE, st.booleans(), st.integers(-3, 3))
TEXTS = st.text(st.sampled_from('ab,:[]{}"\\ dat1é\u2028\n'), max_size=8)
LEAVES = st.one_of(NUMBERS, TEXTS, st.none())
DATA = st.one_of(
    st.lists(NUMBERS, max_size=40),
    st.lists(FLOATS, max_size=40),
    st.lists(TEXTS, max_size=20),
    st.lists(LEAVES, max_size=20),
    st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=10),
    st.lists(st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2), max_size=5),
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4)),
)
TENSORS = st.dictionaries(st.one_of(st.just("data"), TEXTS), DATA, max_size=3)
DOCUMENTS = st.recursive(
    st.one_of(DATA, TENSORS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.just("data"), st.just('x"data'), TEXTS), inner)
    ),
    max_leaves=6,
)
LAYOUTS: list[Callable[[Any], str]] = [
    json.dumps,
    lambda document: json.dumps(document, separators=(",", ":")),
    lambda document: json.dumps(document, indent=1, ensure_ascii=False),
]


@settings(max_examples=400, deadline=None)
@given(DOCUMENTS, st.sampled_from(LAYOUTS))
def test_valid_documents(document: Any, layout: Callable[[Any], str]) -> None:
    _same(layout(document))


@settings(max_examples=600, deadline=None)
@given(DOCUMENTS, st.sampled_from(LAYOUTS), st.randoms(use_true_random=False), st.integers(1, 3))
def test_damaged_documents(document: Any, layout: Callable[[Any], str], chance: random.Random, times: int) -> None:
    text = layout({"data": document, "more": {"data": [1, 2.5, -3]}})
    for _ in range(times):
        at = chance.randrange(len(text) + 1)
        piece = chance.choice(["", ",", "[", "]", " ", "1", "-", ".", "e", "0", '"', "NaN", "Infinity", "{", "}", "\\"])
        text = text[:at] + piece + text[at + chance.randrange(3) :]
    _same(text)


@settings(max_examples=600, deadline=None)
@given(st.text(st.sampled_from("[]0123.,-+eE \ntrufalsn"), max_size=30))
def test_anything_that_looks_like_numbers(content: str) -> None:
    _same(f'{{"data": {content}, "x": 1}}')
    _same(f'{{"data":[{content}]}}')


@pytest.mark.parametrize(
    "text",
    [
        "[1[2,3]]",
        "[[1]2]",
        "[[1],2]",
        "[[1],[2,3]]",
        "[1]]",
        "[[1]",
        "[1,2,]",
        "[,1]",
        "[01]",
        "[1 2]",
        "[[],[]]",
        "[[1,2],]",
        "[+1]",
        "[.5]",
        "[1.]",
        "[0x10]",
        "[1_000]",
        "[null]",
        "[１]",
        "[]",
        "[1e]",
        "[[1,2],[3,4],[5,6],[7,8,9]]",
        "[" * 40 + "1" + "]" * 40,
    ],
)
def test_lists_that_are_left_to_the_whole_reader(text: str) -> None:
    assert read_list(text, _pause) is None
    _same(f'{{"data":{text}}}')


@pytest.mark.parametrize(
    "value",
    [
        list(range(100)),
        [i / 3 for i in range(100)],
        [True, False] * 20,
        [[1, 2.5, 3]] * 9,
        [[[i, -i], [0, 1]] for i in range(20)],
        [[7]] * 11,
        [2**63 + i for i in range(9)],
        [1, 2**63, 3, 2**64 - 1],
        [1, 2, 3, 4, 5, 6, 0.5],
        [True, 2, 2.5, False, 1e300],
    ],
    ids=lambda value: str(value)[:20],
)
def test_numpy_would_make_the_same_of_the_list(value: list[Any]) -> None:
    for layout in LAYOUTS:
        got = read_list(layout(value), _pause)
        # Where numpy would take whole numbers for floats, they stay whole.
        whole = all(type(item) is int for item in value) and max(value) >= 2**63
        expected = np.array(value, np.uint64) if whole else np.array(value)
        assert got is not None
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["BOOL", "UINT8", "INT32", "INT64", "UINT64", "FP32", "FP64", "BYTES"]),
    st.one_of(
        st.lists(st.one_of(FLOATS, st.booleans(), st.integers(-(2**63), 2**64 - 1)), max_size=12),
        st.lists(WHOLE, max_size=8),
        st.lists(TEXTS, max_size=6),
        st.lists(st.one_of(FLOATS, TEXTS, st.none()), max_size=4),
    ),
)
def test_a_request_means_the_same(datatype: str, data: list[Any]) -> None:
    tensor = {"name": "x", "shape": [len(data)], "datatype": datatype, "data": data}
    body = json.dumps({"id": "7", "inputs": [tensor]}).encode()
    try:
        expected = read_body(body).inputs["x"]
    except ModelBoxError:
        with pytest.raises(InputError):
            read_body(body, pause=_pause)
        return
    got = read_body(body, pause=_pause)
    assert got.id == "7"
    assert got.inputs["x"].dtype == expected.dtype
    np.testing.assert_array_equal(got.inputs["x"], expected)


@pytest.mark.parametrize(
    "text", ['{"data": [1,2], "x": NaN}', '{"x": NaN, "data": [1, 2]}', '{"data": [1], "x": -Infinity}']
)
def test_what_stands_for_a_list_cannot_be_written_by_a_client(text: str) -> None:
    with pytest.raises(InputError, match="is not JSON"):
        parse_json(text.encode(), "it", _pause)


def test_a_document_that_is_large_without_its_lists_is_refused() -> None:
    text = json.dumps({"inputs": [{}] * MAX_REST_CHARS})
    with pytest.raises(LimitError, match="beside its lists"):
        parse_json(text.encode(), "it", _pause)
    one = json.dumps({"inputs": [{"data": ["x" * 2 * MAX_REST_CHARS]}]})
    _check(parse_json(one.encode(), "it", _pause), json.loads(one))


def test_text_for_numbers_does_not_take_the_room_of_the_longest() -> None:
    data = ["x" * 1_000_000] + ["y"] * 100_000
    body = json.dumps({"inputs": [{"name": "x", "shape": [len(data)], "datatype": "FP32", "data": data}]}).encode()
    for pause in (None, _pause):
        with pytest.raises(InputError, match="data of another kind"):
            read_body(body, pause=pause)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([np.bool_, np.uint8, np.int32, np.uint64, np.int64, np.float32, np.float64, np.dtype(">f4")]),
    st.integers(0, 200),
    st.integers(0, 2**32),
)
def test_answers_of_any_length_read_back(dtype: Any, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = (
        rng.integers(0, 256, (size, 8), np.uint8).view(np.dtype(dtype))
        if dtype is not np.bool_
        else rng.random((size, 8)) < 0.5
    )
    array = np.nan_to_num(array) if array.dtype.kind == "f" else array
    text = encode_answer(model="m", version="1", id="", outputs={"y": array[::-1]}, pause=_pause).head
    got = json.loads(text)["outputs"][0]
    assert got["shape"] == list(array.shape)
    np.testing.assert_array_equal(np.array(got["data"], array.dtype).reshape(array.shape), array[::-1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 100, 20_000])
def test_what_json_cannot_carry_is_found_in_any_slice(value: float, size: int) -> None:
    array = np.zeros(size, np.float32)
    array[-1] = value
    with pytest.raises(InputError, match="NaN or infinity"):
        tensors.encode_json(array, "y")


def test_no_step_between_two_pauses_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "_SLICE", 1000)
    read = large_json._loads
    steps: list[int] = []

    def counted(data: bytes) -> Any:
        steps.append(len(data))
        return read(data)

    monkeypatch.setattr(large_json, "_loads", counted)
    text = json.dumps({"inputs": [{"data": list(range(20_000))}, {"data": [[0.5, i] for i in range(9_000)]}]})
    parse_json(text.encode(), "it", lambda: steps.append(0))
    assert max(steps) < 1100
    assert sum(steps) > 0.9 * len(text) - 4 * 9_000
    assert all(0 in pair for pair in itertools.pairwise(steps))


@pytest.mark.parametrize("text", ["[0, 1, 18446744073709551615]", "[18446744073709551615, 0]", "[9223372036854775808]"])
def test_whole_numbers_of_64_bits_stay_whole(text: str) -> None:
    got = read_list(text, _pause)
    assert got is not None
    assert got.dtype == np.uint64
    assert got.tolist() == json.loads(text)


def test_negative_ones_beside_them_are_left_to_whoever_knows_the_type() -> None:
    assert read_list("[-1, 18446744073709551615]", _pause) is None
