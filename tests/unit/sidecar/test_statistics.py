"""What the protocol's statistics are made of."""

from __future__ import annotations

import numpy as np
import pytest

from modelbox.loader.stats import CallStats
from modelbox.sidecar.statistics import VersionTally, rows_of


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [([(3, 4)], 3), ([(3, 4), (3,)], 3), ([(3, 4), (2, 4)], 1), ([()], 1), ([(0, 4)], 1), ([], 1)],
)
def test_rows_are_what_all_inputs_share(shapes: list[tuple[int, ...]], rows: int) -> None:
    assert rows_of({str(i): np.zeros(shape) for i, shape in enumerate(shapes)}) == rows


def test_rows_runs_and_calls_are_counted_apart() -> None:
    run = CallStats()
    tally = VersionTally(7, run)
    # Two calls that shared a run, one that had its own, one from the cache, one that failed.
    run.record_batch([1000, 1000], [100, 200], rows=5, run_ns=700)
    run.record_ok(400)
    tally.add(1000, 2, alone=False)
    tally.add(1000, 3, alone=False)
    tally.add(400, 4, alone=True)
    tally.add_hit(10)
    tally.add_failed(50)
    tally.queue_ns = 30
    entry = tally.to_json("acme/m")
    assert (entry["name"], entry["version"]) == ("acme/m", "7")
    assert entry["inference_count"] == 9
    assert entry["execution_count"] == 2
    stats = entry["inference_stats"]
    assert stats["success"] == {"count": 4, "ns": 2410}
    assert stats["fail"] == {"count": 1, "ns": 50}
    assert stats["cache_hit"] == {"count": 1, "ns": 10}
    assert stats["queue"] == {"count": 4, "ns": 330}
    assert stats["compute_infer"] == {"count": 3, "ns": 2400 - 330}
    assert [(b["batch_size"], b["compute_infer"]) for b in entry["batch_stats"]] == [
        (4, {"count": 1, "ns": 400}),
        (5, {"count": 1, "ns": 700}),
    ]
    assert entry["last_inference"] > 1_700_000_000_000


def test_a_version_without_calls_has_zeros() -> None:
    entry = VersionTally(1, CallStats()).to_json("acme/m")
    assert entry["inference_count"] == entry["execution_count"] == entry["last_inference"] == 0
    assert entry["batch_stats"] == []


def test_sizes_that_callers_make_up_do_not_fill_the_memory() -> None:
    run = CallStats()
    tally = VersionTally(1, run)
    for rows in range(1, 3000):
        tally.add(1, rows, alone=True)
        run.record_batch([1], [1], rows=rows, run_ns=1)
    assert len(tally.to_json("m")["batch_stats"]) <= 1024
