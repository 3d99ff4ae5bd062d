"""Percentiles and the rows of the table."""

from __future__ import annotations

import math
import random

import pytest

from examples.demo.latency import figures, percentile
from examples.demo.load import Answer
from examples.demo.report import table


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5.0], 0.5, 5.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 102)], 0.99, 100.0),
        ([1.0, 2.0, 3.0], 1.0, 3.0),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float) -> None:
    random.Random(1).shuffle(values)
    assert percentile(values, share) == expected


def test_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 0.5))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, 99.0])
def test_a_share_is_not_a_percentage(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], share)


def answer(version: int, latency_s: float, *, error: str | None = None) -> Answer:
    return Answer(client=0, due_s=100.0, done_s=100.0 + latency_s, version=version, error=error)


def test_figures_count_by_version_and_keep_failures_out_of_the_latency() -> None:
    row = figures("during", [answer(2, 0.020), answer(1, 0.010), answer(2, 0.030), answer(0, 9.0, error="HTTP 500")])
    assert (row.calls, row.failed, row.by_version) == (4, 1, {1: 1, 2: 2})
    assert (row.p50_ms, row.p99_ms, row.max_ms) == pytest.approx((20.0, 30.0, 30.0))


def test_table_has_a_column_for_each_version_and_a_dash_where_nothing_was_answered() -> None:
    rows = [
        figures("before", [answer(1, 0.010)]),
        figures("during", [answer(1, 0.010), answer(2, 0.0204)]),
        figures("nothing", []),
    ]
    assert table(rows).splitlines() == [
        "phase    calls  by v1  by v2  failed  p50 ms  p99 ms  max ms",
        "-------  -----  -----  -----  ------  ------  ------  ------",
        "before       1      1      0       0    10.0    10.0    10.0",
        "during       2      1      1       0    10.0    20.4    20.4",
        "nothing      0      0      0       0       -       -       -",
    ]
