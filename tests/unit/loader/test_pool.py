from __future__ import annotations

import threading

import pytest

from modelbox.errors import ClientClosed
from modelbox.loader.pool import Pool, available_cores


def test_jobs_run_once_each_on_threads_that_start_when_needed() -> None:
    pool = Pool(2)
    assert not pool._workers
    done: list[int] = []
    ended = threading.Semaphore(0)

    def job(i: int) -> None:
        done.append(i)
        ended.release()

    for i in range(50):
        pool.submit(lambda i=i: job(i))  # type: ignore[misc]
    for _ in range(50):
        assert ended.acquire(timeout=60)
    assert sorted(done) == list(range(50))
    workers = list(pool._workers)
    assert 1 <= len(workers) <= 2
    pool.close(60)
    assert not any(worker.is_alive() for worker in workers)


def test_a_waiting_job_can_be_cancelled_a_running_one_not() -> None:
    pool = Pool(1)
    started, go = threading.Event(), threading.Event()
    ran: list[str] = []

    def first() -> None:
        started.set()
        go.wait(60)
        ran.append("first")

    running = pool.submit(first)
    assert started.wait(60)
    waiting = pool.submit(lambda: ran.append("second"))
    last = pool.submit(lambda: ran.append("third"))
    assert pool.waiting == 2
    assert waiting.cancel()
    assert not waiting.cancel()
    assert not running.cancel()
    assert pool.waiting == 1
    go.set()
    pool.close(60)
    assert ran == ["first", "third"]
    assert not last.cancel()


def test_a_job_that_raises_does_not_end_its_thread(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(1)
    done = threading.Event()
    pool.submit(lambda: 1 // 0)  # type: ignore[arg-type]
    pool.submit(done.set)
    assert done.wait(60)
    assert "ZeroDivisionError" in caplog.text
    pool.close(60)


def test_closed_pool_takes_no_jobs() -> None:
    pool = Pool(1)
    pool.close()
    pool.close()
    with pytest.raises(ClientClosed):
        pool.submit(lambda: None)


def test_at_exit_running_jobs_are_stopped_and_waiting_ones_dropped() -> None:
    pool = Pool(1)
    started, stop = threading.Event(), threading.Event()
    ran: list[int] = []

    def endless() -> None:
        started.set()
        stop.wait(100)

    pool.submit(endless, stop=stop.set)
    assert started.wait(60)
    pool.submit(lambda: ran.append(1))
    pool._close_at_exit()
    assert stop.is_set()
    pool._workers[0].join(60)
    assert not ran
    assert not pool._workers[0].is_alive()


def test_available_cores_is_positive() -> None:
    assert available_cores() >= 1
    assert 2 <= Pool().threads <= 8
