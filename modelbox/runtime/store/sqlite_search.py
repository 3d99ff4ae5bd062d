"""Hard queries on SQLite: threads of their own, and an end to each that takes too long or that nobody waits for.

Whoever searches may ask for anything, so a search must not hold up what others read, and must be stoppable inside of a
statement. Invariants:

* An interrupt hits its own search only. SQLite's interrupt is for a connection; so a search holds its connection under
  a lock while it runs, and whoever interrupts does it under that lock, or finds the search over.
* An interrupt between two statements is lost (SQLite forgets it when the next one begins), so it is repeated until the
  search has ended.
* A connection that cannot be brought back to rest is replaced, and one that cannot be opened fails one search, not the
  thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection

from modelbox.errors import ServerBusy
from modelbox.runtime.store.jobs import Job, Outcome, deliver
from modelbox.runtime.store.sqlite_connection import close_connection, raw_of, translate, was_interrupted

__all__ = ("Searches",)

T = TypeVar("T")

_AGAIN_S = 0.02
"""Between interrupts of one search."""


class _Search(Job[T]):
    """A job that can be ended while it runs.

    States: waiting, running (it has a connection), over. Who takes it out of waiting decides whether it runs at all.
    """

    __slots__ = ("_connection", "_lock", "_over", "began", "limit_s", "timer")

    def __init__(self, fn: Callable[[Connection], T], loop: asyncio.AbstractEventLoop, *, limit_s: float) -> None:
        super().__init__(fn, loop)
        self.limit_s = limit_s
        self.began: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._over = False

    def begin(self, connection: Connection) -> bool:
        """In the thread: takes the connection; False if it is not to run any more."""
        with self._lock:
            if self._over:
                return False
            self._connection = connection
            self.began = time.monotonic()
            return True

    def end(self) -> None:
        """In the thread: nothing interrupts the connection from here on."""
        with self._lock:
            self._connection = None
            self._over = True

    def interrupt(self) -> bool:
        """Ends the statement that runs, and keeps a search that waits from running; returns whether to do it again."""
        with self._lock:
            if self._connection is None:
                self._over = True
                return False
            raw_of(self._connection).interrupt()
            return True

    def give_up_waiting(self) -> bool:
        """Keeps a search that waits from running; False if it runs, or has run."""
        with self._lock:
            if self._over or self._connection is not None:
                return False
            self._over = True
            return True


class Searches:
    """Runs searches, a few at a time.

    Args:
        connect: Opens a reader's connection; called in the threads, when the first search comes.
        threads: How many searches run at once.
        seen: Told of each function's run: seconds by `time.perf_counter` when it began, and whether it succeeded.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        threads: int,
        seen: Callable[[Literal["read"], float, bool], None],
    ) -> None:
        self._connect = connect
        self._seen = seen
        self._jobs: queue.SimpleQueue[_Search[Any] | None] = queue.SimpleQueue()
        self._count = threads
        self._threads: list[threading.Thread] = []
        self._running: set[_Search[Any]] = set()
        self._running_lock = threading.Lock()

    def start(self) -> None:
        """Starts the threads."""
        self._threads = [
            threading.Thread(target=self._search_for_ever, name=f"sqlite search {number}", daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends what runs, and the threads; their connections are closed then. Takes milliseconds, and blocks."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            while thread.is_alive():
                with self._running_lock:
                    running = tuple(self._running)
                for job in running:
                    job.interrupt()
                thread.join(_AGAIN_S)
        self._threads = []

    async def run(self, fn: Callable[[Connection], T], *, limit_s: float) -> T:
        """See `modelbox.runtime.store.database.Database.search`."""
        loop = asyncio.get_running_loop()
        job = _Search(fn, loop, limit_s=limit_s)
        job.timer = loop.call_later(limit_s, _overdue, job)
        self._jobs.put(job)
        try:
            return await job.future
        finally:
            job.timer.cancel()
            # After an answer there is nothing left to interrupt; after a cancellation there may be.
            _interrupt(job)

    # -- in a thread -----------------------------------------------------------------------------------------------

    def _search_for_ever(self) -> None:
        connection: Connection | None = None
        while (job := self._jobs.get()) is not None:
            began = time.perf_counter()
            try:
                connection = connection or self._connect()
            except Exception as exc:
                deliver([(job, None, translate(exc))], ())
                continue
            if not job.begin(connection):
                continue
            with self._running_lock:
                self._running.add(job)
            outcome = _run(job, connection)
            with self._running_lock:
                self._running.discard(job)
            connection = _at_rest(connection)
            self._seen("read", began, outcome[2] is None)
            deliver([outcome], ())
            # Its function may hold much, and the next search may be long in coming.
            del job, outcome
        if connection is not None:
            close_connection(connection)


def _run(job: _Search[Any], connection: Connection) -> Outcome:
    try:
        raw_of(connection).execute("BEGIN")
        return job, job.fn(connection), None
    except Exception as exc:
        if was_interrupted(exc):
            return job, None, TimeoutError(f"the search was ended after {job.limit_s:g} s")
        return job, None, translate(exc)
    finally:
        job.end()


def _at_rest(connection: Connection) -> Connection | None:
    """The connection outside of a transaction; None, and closed, if it does not let go of one.

    Where a function kept a cursor open, an interrupt hits the ROLLBACK as well.
    """
    raw = raw_of(connection)
    try:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
    except Exception:
        # Closes it without the rollback that does not work.
        connection.invalidate()
        connection.close()
        return None
    return connection


# -- on the loop -----------------------------------------------------------------------------------------------------


def _overdue(job: _Search[Any]) -> None:
    """Ends a search that has run for its time; the time that it waited for a thread does not count."""
    if job.give_up_waiting():
        if not job.future.done():
            busy = ServerBusy("others' searches keep the database busy: try again", retry_after_s=1.0)
            job.future.set_exception(busy)
        return
    left = 0.0 if job.began is None else job.began + job.limit_s - time.monotonic()
    if left > 0:
        job.timer = job.loop.call_later(left, _overdue, job)
    else:
        _interrupt(job)


def _interrupt(job: _Search[Any]) -> None:
    if job.interrupt():
        job.loop.call_later(_AGAIN_S, _interrupt, job)
