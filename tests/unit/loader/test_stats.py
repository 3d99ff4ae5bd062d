from __future__ import annotations

import threading

import pytest

from modelbox.loader.stats import DURATION_BOUNDS_S, CallStats, Outcome


def test_bounds_are_ascending_and_cover_what_calls_take() -> None:
    assert list(DURATION_BOUNDS_S) == sorted(set(DURATION_BOUNDS_S))
    assert DURATION_BOUNDS_S[0] == 1e-6
    assert DURATION_BOUNDS_S[-1] == 100.0


def test_every_outcome_has_its_own_histogram() -> None:
    stats = CallStats()
    stats.record_ok(2_000)
    stats.record(Outcome.OK, 3_000)
    stats.record(Outcome.ERROR, 10**9)
    stats.record(Outcome.INVALID, 500)
    stats.record(Outcome.CANCELLED, 10**12)
    snapshot = stats.snapshot()
    assert {outcome: h.count for outcome, h in snapshot.duration_s.items()} == {
        Outcome.OK: 2,
        Outcome.INVALID: 1,
        Outcome.ERROR: 1,
        Outcome.CANCELLED: 1,
    }
    assert snapshot.calls == 5
    assert snapshot.duration_s[Outcome.OK].sum == pytest.approx(5e-6)
    assert snapshot.duration_s[Outcome.CANCELLED].buckets[-1] == 1
    assert all(sum(h.buckets) == h.count for h in snapshot.duration_s.values())


def test_bounds_are_inclusive() -> None:
    stats = CallStats()
    for bound in DURATION_BOUNDS_S:
        stats.record_ok(round(bound * 1e9))
    assert stats.snapshot().duration_s[Outcome.OK].buckets == (1,) * len(DURATION_BOUNDS_S) + (0,)


def test_batches_count_calls_queue_and_size() -> None:
    stats = CallStats()
    stats.record_batch([1000, 2000, 3000], [10, 20, 30])
    stats.record_queue(2_000_000)
    snapshot = stats.snapshot()
    assert snapshot.batch_size.count == 1
    assert snapshot.batch_size.sum == 3
    assert snapshot.duration_s[Outcome.OK].count == 3
    assert snapshot.queue_s.count == 4
    assert snapshot.queue_s.sum == pytest.approx(2e-3 + 60e-9)


def test_quantiles_are_bucket_bounds() -> None:
    stats = CallStats()
    assert stats.snapshot().duration_s[Outcome.OK].quantile(0.5) == 0.0
    for _ in range(98):
        stats.record_ok(1_500)
    stats.record_ok(900_000)
    stats.record_ok(900_000)
    ok = stats.snapshot().duration_s[Outcome.OK]
    assert ok.quantile(0.5) == 1.6e-6
    assert ok.quantile(0.99) == 1e-3
    assert ok.quantile(1.0) == 1e-3


def test_no_record_is_lost_between_threads() -> None:
    stats = CallStats()

    def work() -> None:
        for i in range(5000):
            stats.record_ok(i)
            stats.record_batch([i], [i])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = stats.snapshot()
    assert snapshot.duration_s[Outcome.OK].count == 40_000
    assert snapshot.batch_size.count == 20_000
