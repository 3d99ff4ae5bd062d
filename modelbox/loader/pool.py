"""A few threads for runs that are too long for an event loop.

Owns the threads and the queue before them. Refuses to know loops: a job says itself how its end is told. Fewer parts
than an executor, because each run passes here.

Invariants: a job either runs once or was cancelled, never both. Threads start with the first job and are daemons, so
that a run without end cannot keep a process alive; at interpreter exit runs are stopped, because a thread that comes
back from native code into an interpreter that is gone brings the process down.

Cancellation: a job that still waits leaves the queue at once; one that runs goes on until whoever submitted it stops
it.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from modelbox._fork import reset_in_child
from modelbox.errors import ClientClosed

__all__ = ("Job", "Pool", "available_cores")

_log = logging.getLogger(__name__)

_EXIT_GRACE_S = 1.0


def available_cores() -> int:
    """Processors that this process may use: its affinity, and the quota of its control group, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()[:2]
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(cores, 1)


class Job:
    """Work in a `Pool`."""

    __slots__ = ("_fn", "_queue", "stop")

    def __init__(self, fn: Callable[[], None], queue: deque[Job], stop: Callable[[], None] | None) -> None:
        self._fn: Callable[[], None] | None = fn
        self.stop = stop
        self._queue = queue

    def cancel(self) -> bool:
        """Takes the job out of the queue; False when it runs, or ran, already."""
        # Either this or a worker's popleft gets the job.
        try:
            self._queue.remove(self)
        except ValueError:
            return False
        self._fn = None
        return True

    def run(self) -> None:
        """Runs the job in this thread."""
        fn, self._fn = self._fn, None
        if fn is not None:
            fn()


class Pool:
    """Threads that run jobs in the order in which they came.

    Args:
        threads: How many; 0 for one per available core, but at least 2 and at most 8.
        name: Of the threads.
    """

    def __init__(self, threads: int = 0, *, name: str = "modelbox-run") -> None:
        self.threads = threads if threads > 0 else min(max(available_cores(), 2), 8)
        self._name = name
        self._fresh()
        reset_in_child(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        # One token per job that was queued, cancelled or not; None ends one thread.
        self._tokens: SimpleQueue[bool | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._running: set[Job] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return len(self._jobs)

    def submit(self, fn: Callable[[], None], *, stop: Callable[[], None] | None = None) -> Job:
        """Queues ``fn``, which must not raise.

        Args:
            fn: What to run.
            stop: Makes a running ``fn`` end early; called at interpreter exit only.

        Raises:
            ClientClosed: The pool is closed.
        """
        if self._closed:
            raise ClientClosed("the model is closed")
        if len(self._workers) < self.threads:
            self._start_worker()
        job = Job(fn, self._jobs, stop)
        self._jobs.append(job)
        self._tokens.put(True)
        return job

    def close(self, grace_s: float = 0.0) -> None:
        """Takes no more jobs, runs those that wait, and waits ``grace_s`` seconds for the threads; idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._workers:
                    self._tokens.put(None)
            workers = list(self._workers)
        for worker in workers:
            if grace_s and worker is not threading.current_thread():
                worker.join(grace_s)

    def _close_at_exit(self) -> None:
        self._jobs.clear()
        for job in list(self._running):
            if job.stop is not None:
                job.stop()
        self.close(_EXIT_GRACE_S)

    def _start_worker(self) -> None:
        with self._lock:
            if len(self._workers) >= self.threads or self._closed:
                return
            worker = threading.Thread(
                target=_work,
                args=(self._jobs, self._tokens, self._running),
                name=f"{self._name}-{len(self._workers)}",
                daemon=True,
            )
            worker.start()
            self._workers.append(worker)

    def _after_fork_in_child(self) -> None:
        closed = self._closed
        self._fresh()
        self._closed = closed


def _work(jobs: deque[Job], tokens: SimpleQueue[bool | None], running: set[Job]) -> None:
    # Holds no reference to the pool, so that a forgotten one can be collected.
    while tokens.get() is not None:
        try:
            job = jobs.popleft()
        except IndexError:  # cancelled
            continue
        running.add(job)
        try:
            job.run()
        except BaseException:
            _log.exception("a job of the pool failed")
        finally:
            running.discard(job)
            del job


def _close_at_exit(ref: weakref.ref[Pool]) -> None:
    pool = ref()
    if pool is not None:
        pool._close_at_exit()
