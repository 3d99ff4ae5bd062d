"""Columns of metrics, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError
from modelbox.series import Point, Series, columns_of, join_series, number_columns
from modelbox.tracking import MetricColumns, MetricKind

RUN = "run_" + "0" * 24
INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(INT64, INT64, st.floats()), max_size=20))
def test_numbers_come_back_as_they_were(points: list[tuple[int, int, float]]) -> None:
    columns = columns_of(RUN, [Point(key="loss", step=step, time_us=us, value=value) for step, us, value in points])
    series = join_series(RUN, "loss", [columns])
    assert series.kind is MetricKind.NUMBER
    assert series.steps.tolist() == [step for step, _, _ in points]
    assert series.times_us.tolist() == [us for _, us, _ in points]
    assert np.array_equal(series.values, np.array([value for *_, value in points]), equal_nan=True)


def test_several_metrics_share_the_columns() -> None:
    points = [
        Point(key="loss", step=1, time_us=10, value=0.5),
        Point(key="note", step=1, time_us=10, value="größer"),
        Point(key="loss", step=2, time_us=20, value=np.float32(0.25)),
        Point(key="raw", step=2, time_us=20, value=b"\x00\xff"),
    ]
    columns = columns_of(RUN, points)
    assert columns.keys == ("loss", "note", "raw")
    assert np.frombuffer(columns.key_index, "<u4").tolist() == [0, 1, 0, 2]
    assert columns.kinds == bytes([0, 1, 0, 2])
    assert columns.payloads == ("größer".encode(), b"\x00\xff")
    assert np.frombuffer(columns.values, "<f8").tolist() == [0.5, 0, 0.25, 0]
    assert len(columns) == 4


def test_text_comes_back_as_text() -> None:
    chunks = [columns_of(RUN, [Point(key="t", step=step, time_us=0, value=f"v{step}")]) for step in range(3)]
    series = join_series(RUN, "t", chunks)
    assert (series.kind, series.payloads) == (MetricKind.TEXT, ("v0", "v1", "v2"))
    assert np.isnan(series.values).all()


def test_an_empty_series() -> None:
    empty = join_series(RUN, "loss", [])
    assert isinstance(empty, Series)
    assert len(empty) == 0
    assert empty.times == []


def test_many_numbers_with_one_time() -> None:
    columns = number_columns(RUN, "loss", range(3), np.arange(3, dtype=np.float32), 7)
    assert isinstance(columns, MetricColumns)
    assert join_series(RUN, "loss", [columns]).times_us.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("steps", "values", "times"),
    [([1, 2], [1.0], 0), ([1], [[1.0]], 0), ([1], ["one"], 0), ([1], [1.0], [1, 2]), ([2**63], [1.0], 0)],
    ids=["lengths", "shape", "text", "times", "step"],
)
def test_columns_that_do_not_fit_are_refused(steps: object, values: object, times: object) -> None:
    with pytest.raises(InvalidError, match="loss"):
        number_columns(RUN, "loss", steps, values, times)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize("value", [None, [1.0], np.zeros(2), object()], ids=["none", "list", "array", "object"])
def test_values_of_no_kind_are_refused(value: object) -> None:
    with pytest.raises(InvalidError, match="loss"):
        columns_of(RUN, [Point(key="loss", step=0, time_us=0, value=value)])  # type: ignore[arg-type] # wrong on purpose


def test_a_step_outside_of_int64_is_refused() -> None:
    with pytest.raises(InvalidError, match="64 bits"):
        columns_of(RUN, [Point(key="loss", step=2**63, time_us=0, value=1.0)])
