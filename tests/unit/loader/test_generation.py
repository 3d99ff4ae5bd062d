from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.onnx_models import add_constant
from tests.unit.loader.inference import generation, opened, row_mean


def test_leases_end_and_drain_exactly_once(tmp_path: Path) -> None:
    one = generation(tmp_path, add_constant(1.0))
    drained: list[int] = []
    assert one.acquire()
    assert one.acquire()
    one.retire(lambda: drained.append(1))
    assert one.retired
    assert not one.acquire()
    one.release()
    assert not drained
    one.share()
    one.release()
    one.release()
    assert drained == [1]
    assert one.leases == 0


def test_retiring_an_idle_generation_drains_at_once_and_only_once(tmp_path: Path) -> None:
    one = generation(tmp_path, add_constant(1.0))
    drained: list[int] = []
    one.retire(lambda: drained.append(1))
    assert drained == [1]
    with pytest.raises(RuntimeError, match="retired before"):
        one.retire(lambda: drained.append(2))


def test_leases_from_many_threads_are_all_counted(tmp_path: Path) -> None:
    one = generation(tmp_path, add_constant(1.0))
    drained = threading.Event()
    after: list[bool] = []

    def worker() -> None:
        while one.acquire():
            if drained.is_set():
                after.append(True)
            one.release()

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    one.retire(drained.set)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert drained.is_set()
    assert one.leases == 0
    assert not after


def test_one_stall_does_not_move_the_average_far(tmp_path: Path) -> None:
    one = generation(tmp_path, add_constant(1.0))
    assert one.average_ns > 0
    one.average_ns = 1e5  # what was measured is the machine's
    one.observe(10**9, 4e6)
    assert one.average_ns < 1e6
    for _ in range(50):
        one.observe(10**9, 4e6)
    assert one.average_ns > 1e6


def test_an_unwarmed_generation_knows_no_run_time(tmp_path: Path) -> None:
    one = generation(tmp_path, add_constant(1.0), warm=False)
    assert one.average_ns == float("inf")
    one.observe(5000, 4e6)
    assert one.average_ns == 5000


def test_batching_needs_rows_on_both_sides(tmp_path: Path) -> None:
    assert generation(tmp_path, add_constant(1.0), batching=True).batching
    assert not generation(tmp_path, add_constant(1.0)).batching
    assert not opened(tmp_path, row_mean()).warm(10.0).rows_independent
