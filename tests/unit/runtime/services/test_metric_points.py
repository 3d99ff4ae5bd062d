"""Columns of metrics that do not fit together are told by name, and never get further."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.errors import InvalidError, LimitError
from modelbox.runtime.services.metric_points import MAX_PAYLOAD_BYTES, MAX_POINTS, check_columns
from modelbox.tracking import MetricColumns
from tests.faults.registry import fault

RUN = "run_" + "0" * 24


def _steps(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def _floats(*values: float) -> bytes:
    return np.array(values, "<f8").tobytes()


def _index(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


GOOD = MetricColumns(
    object="any",
    keys=("a", "b"),
    key_index=_index(0, 1, 0),
    steps=_steps(1, 1, 2),
    times_us=_steps(5, 5, 6),
    values=_floats(0.5, 0.0, 1.5),
    kinds=bytes([0, 1, 0]),
    payloads=("ä".encode(),),
)


def test_good_columns() -> None:
    points = check_columns(GOOD, RUN)
    assert points is not None
    assert (points.object, points.keys, points.kinds) == (RUN, ("a", "b"), (0, 1))
    assert points.key_index.tolist() == [0, 1, 0]
    assert points.steps.tolist() == [1, 1, 2]
    assert points.times_us.tolist() == [5, 5, 6]
    assert points.values.tolist() == [0.5, 0.0, 1.5]
    assert list(points.payloads) == [None, "ä".encode(), None]


def test_keys_without_points_are_left_out_and_equal_ones_are_one() -> None:
    columns = replace(GOOD, keys=("x", "a", "y", "a"), key_index=_index(3, 1, 1), kinds=b"", payloads=())
    points = check_columns(columns, RUN)
    assert points is not None
    assert points.keys == ("a",)
    assert points.key_index.tolist() == [0, 0, 0]
    assert points.kinds == (0,)


def test_no_points() -> None:
    none = MetricColumns(object="any", keys=("a",), steps=b"", times_us=b"", values=b"")
    assert check_columns(none, RUN) is None
    with pytest.raises(InvalidError, match="payloads"):
        check_columns(replace(none, payloads=(b"",)), RUN)


@fault(61)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": b"123"}, "steps has 3 bytes"),
        ({"steps": _steps(1, 2)}, "times_us has 3 values where steps has 2"),
        ({"times_us": _steps(5)}, "times_us has 1 values where steps has 3"),
        ({"values": b""}, "values has 0 values"),
        ({"key_index": _index(0, 1)}, "key_index has 2 values"),
        ({"key_index": _index(0, 1, 2)}, "key_index 2 is beyond the 2 keys"),
        ({"key_index": b""}, "2 keys without key_index"),
        ({"keys": ()}, "beyond the 0 keys"),
        ({"keys": ("a", "")}, "not a valid key"),
        ({"keys": ("a", "b\n")}, "not a valid key"),
        ({"keys": ("a", "\ud800")}, "valid"),
        ({"kinds": bytes([0, 1])}, "kinds has 2 values"),
        ({"kinds": bytes([0, 3, 0])}, "3 is no kind"),
        ({"kinds": bytes([0, 0, 0])}, "1 payloads for 0 points"),
        ({"kinds": bytes([0, 1, 2]), "payloads": (b"", b"")}, "'a' has points of several kinds"),
        ({"kinds": b""}, "payloads without kinds"),
        ({"payloads": ()}, "0 payloads for 1 points"),
        ({"payloads": (b"\xff",)}, "not UTF-8"),
        ({"times_us": _steps(5, 5, 2**63 - 1)}, "years 1 to 9999"),
        ({"times_us": _steps(5, 5, -(2**63))}, "years 1 to 9999"),
    ],
)
def test_columns_that_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        check_columns(replace(GOOD, **change), RUN)  # type: ignore[arg-type]  # Columns of the right types by name.


@fault(62)
def test_limits() -> None:
    count = MAX_POINTS + 1
    many = MetricColumns(object="x", keys=("a",), steps=bytes(8 * count), times_us=bytes(8 * count), values=bytes(8))
    with pytest.raises(LimitError, match="100001 points"):
        check_columns(many, RUN)
    with pytest.raises(LimitError, match="key of a metric has 251"):
        check_columns(replace(GOOD, keys=("a", "b" * 251)), RUN)
    assert check_columns(replace(GOOD, payloads=(b"x" * MAX_PAYLOAD_BYTES,)), RUN) is not None
    with pytest.raises(LimitError, match="artifact"):
        check_columns(replace(GOOD, payloads=(b"x" * (MAX_PAYLOAD_BYTES + 1),)), RUN)


_COLUMN = st.one_of(st.binary(max_size=40), st.integers(0, 5).map(lambda count: bytes(8 * count)))


@given(
    st.builds(
        MetricColumns,
        object=st.just("x"),
        keys=st.lists(st.text(max_size=4), max_size=3).map(tuple),
        key_index=_COLUMN,
        steps=_COLUMN,
        times_us=_COLUMN,
        values=_COLUMN,
        kinds=st.binary(max_size=5),
        payloads=st.lists(st.binary(max_size=4), max_size=3).map(tuple),
    )
)
def test_any_bytes_are_taken_or_refused(columns: MetricColumns) -> None:
    try:
        points = check_columns(columns, RUN)
    except (InvalidError, LimitError):
        return
    assert (0 if points is None else len(points)) == len(columns)
