from __future__ import annotations

import threading
import time

import pytest

from modelbox.errors import ClientClosed
from modelbox.loader.pool import Pool, available_cores


def test_jobs_run_once_each_on_threads_that_start_when_needed() -> None:
    pool = Pool(2)
    before = threading.active_count()
    assert not pool._workers
    done: list[int] = []
    ended = threading.Semaphore(0)

    def job(i: int) -> None:
        done.append(i)
        ended.release()

    for i in range(50):
        pool.submit(lambda i=i: job(i))  # type: ignore[misc]
    for _ in range(50):
        assert ended.acquire(timeout=5)
    assert sorted(done) == list(range(50))
    assert threading.active_count() <= before + 2
    pool.close(5)
    assert threading.active_count() <= before


def test_a_waiting_job_can_be_cancelled_a_running_one_not() -> None:
    pool = Pool(1)
    started, go = threading.Event(), threading.Event()
    ran: list[str] = []

    def first() -> None:
        started.set()
        go.wait(5)
        ran.append("first")

    running = pool.submit(first)
    assert started.wait(30)
    waiting = pool.submit(lambda: ran.append("second"))
    last = pool.submit(lambda: ran.append("third"))
    assert pool.waiting == 2
    assert waiting.cancel()
    assert not waiting.cancel()
    assert not running.cancel()
    assert pool.waiting == 1
    go.set()
    pool.close(5)
    assert ran == ["first", "third"]
    assert not last.cancel()


def test_a_job_that_raises_does_not_end_its_thread(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(1)
    done = threading.Event()
    pool.submit(lambda: 1 // 0)  # type: ignore[arg-type]
    pool.submit(done.set)
    assert done.wait(5)
    assert "ZeroDivisionError" in caplog.text
    pool.close(5)


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
    assert started.wait(30)
    pool.submit(lambda: ran.append(1))
    begin = time.monotonic()
    pool._close_at_exit()
    assert time.monotonic() - begin < 60
    assert not ran
    assert not pool._workers[0].is_alive()


def test_available_cores_is_positive() -> None:
    assert available_cores() >= 1
    assert 2 <= Pool().threads <= 8
