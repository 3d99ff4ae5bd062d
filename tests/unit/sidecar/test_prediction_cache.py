"""Remembered answers: equal only for equal inputs, bounded, and never written to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelbox.loader.runner import Prediction
from modelbox.sidecar.prediction_cache import PredictionCache, input_key
from tests.unit.loader.inference import version


def prediction(**outputs: Any) -> Prediction:
    made = Prediction(outputs)
    made.version = version(1)
    return made


def text(*items: Any) -> np.ndarray[Any, Any]:
    array = np.empty(len(items), object)
    array[:] = items
    return array


ARRAYS = st.one_of(
    hnp.arrays(st.sampled_from([np.float32, np.int64, np.uint8, np.bool_]), hnp.array_shapes(max_dims=3, max_side=4)),
    st.lists(st.one_of(st.text(max_size=5), st.binary(max_size=5)), min_size=1, max_size=4).map(lambda v: text(*v)),
)

INPUTS = st.dictionaries(st.text(max_size=3), ARRAYS, max_size=3)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and (a[k].tobytes() == b[k].tobytes() if a[k].dtype != object else list(a[k].flat) == list(b[k].flat))
        for k in a
    )


@given(
    a=st.dictionaries(st.text(max_size=3), ARRAYS, max_size=3),
    b=st.dictionaries(st.text(max_size=3), ARRAYS, max_size=3),
)
def test_keys_are_equal_exactly_for_equal_inputs(a: dict[str, Any], b: dict[str, Any]) -> None:
    copy = {name: a[name].copy() for name in reversed(a)}
    assert input_key("d", a) == input_key("d", copy)
    assert (input_key("d", a) == input_key("d", b)) == same(a, b)
    assert input_key("d", a) != input_key("e", a)


def test_bytes_and_text_differ_and_neighbours_do_not_run_together() -> None:
    assert input_key("d", {"x": text("ab", "c")}) != input_key("d", {"x": text("a", "bc")})
    assert input_key("d", {"x": text("a")}) != input_key("d", {"x": text(b"a")})


def test_layout_in_memory_does_not_matter() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert input_key("d", {"x": x}) == input_key("d", {"x": np.asfortranarray(x)})


def test_what_is_no_array_has_no_key() -> None:
    assert input_key("d", {"x": [1.0]}) is None
    assert input_key("d", {"x": text(1)}) is None


def test_an_answer_is_a_copy_that_nobody_can_write_to() -> None:
    cache = PredictionCache(1 << 20)
    batch = np.arange(8, dtype=np.float32).reshape(4, 2)
    cache.put(b"k", prediction(y=batch[1:2]))
    batch[:] = -1
    kept = cache.get(b"k")
    assert kept is not None
    assert kept["y"].tolist() == [[2.0, 3.0]]
    assert kept["y"].base is None
    assert kept.version == version(1)
    with pytest.raises(ValueError, match="read-only"):
        kept["y"][0] = 1
    assert (cache.hits, cache.misses) == (1, 0)
    assert cache.get(b"other") is None
    assert (cache.hits, cache.misses) == (1, 1)


def test_it_stays_below_its_bound_and_drops_what_was_not_used_for_longest() -> None:
    cache = PredictionCache(10_000)
    for i in range(8):
        cache.put(b"%d" % i, prediction(y=np.zeros(200, np.float32)))
        assert cache.size_bytes <= 10_000
        cache.get(b"0")
    assert cache.get(b"0") is not None
    assert cache.get(b"1") is None
    assert cache.get(b"7") is not None


def test_an_entry_that_is_put_again_counts_once() -> None:
    cache = PredictionCache(10_000)
    for _ in range(10):
        cache.put(b"k", prediction(y=np.zeros(100, np.float32)))
    assert len(cache) == 1
    assert cache.size_bytes < 1000


def test_what_would_fill_it_alone_and_what_is_no_array_is_not_kept() -> None:
    cache = PredictionCache(10_000)
    cache.put(b"large", prediction(y=np.zeros(1000, np.float32)))
    cache.put(b"map", prediction(y=[{1: 2.0}]))
    assert len(cache) == 0
    assert cache.size_bytes == 0
