"""One file of SQLite: a writer thread with group commit and a few reader threads.

Owns the connections to one file, and what SQLite's errors mean. Invariants:

* Exactly one connection writes and checkpoints (SQLite before 3.51.3 can corrupt a WAL otherwise). Readers are
  ``query_only`` and never checkpoint; the files that they have attached are opened for reading only.
* ``synchronous=FULL``: a `write` that returned is on disk.
* Everything that waits when the writer is free becomes one transaction, each function in a savepoint of its own; nobody
  hears of success before the commit. After an I/O error the writer stops for good: what an fsync that failed has lost
  cannot be known, so nothing is acknowledged any more.

Short reads run whole in one of a few threads: one hop for a transaction, where aiosqlite hops for every statement (five
times the latency). Scans, for which that does not matter, have a connection of their own through aiosqlite, so that
they never keep a short read waiting. Searches, whose questions come from outside, have threads of their own and can be
stopped: `modelbox.runtime.store.sqlite_search`. See docs/adr/0006-reads-on-sqlite.md.

Whoever opens a `SqliteFile` has the lock of its directory; `modelbox.runtime.store.sqlite` does.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio
from anyio import to_thread
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from modelbox.errors import ConfigError, ServerBusy, StorageError
from modelbox.runtime.store.database import DatabaseObserver
from modelbox.runtime.store.history import close_group, mark_group, open_group, return_to_mark, run_as
from modelbox.runtime.store.jobs import Job, Outcome, copy_of, deliver
from modelbox.runtime.store.sqlite_connection import (
    close_connection,
    describe,
    is_fatal,
    open_connection,
    raw_of,
    scan_engine,
    translate,
)
from modelbox.runtime.store.sqlite_search import Searches

__all__ = ("SqliteFile",)

T = TypeVar("T")

_MAX_GROUP = 256
_MAX_GROUP_S = 0.05


_Queue = queue.SimpleQueue[Job[Any] | None]


class SqliteFile:
    """`modelbox.runtime.store.database.Database` in one file.

    Use as an async context manager.

    Args:
        path: The file; made with mode 0600 if need be, in a directory that is there.
        prepare: Brings the schema up to date, on the writer's connection; begins and ends its own transactions.
        attached: Other files that readers see, by the name under which they are attached. They are there already, and
            their own `SqliteFile` closes after this one.
        has_feed: Whether the change feed is in this file.
        readers: Threads for short reads.
        searchers: Threads for searches.
        observe: Told how long functions and commits take.

    Raises:
        ConfigError: On entering: the file cannot be used, or a newer release made it.
        StorageError: On entering: the file is damaged.
    """

    appenders = 1
    """See `MetricsDatabase.appenders`."""

    def __init__(
        self,
        path: Path,
        *,
        prepare: Callable[[Connection], None],
        attached: Mapping[str, Path] | None = None,
        has_feed: bool = True,
        readers: int = 4,
        searchers: int = 2,
        observe: DatabaseObserver | None = None,
    ) -> None:
        self._path = path
        self._prepare = prepare
        self._attached = dict(attached or {})
        self._has_feed = has_feed
        self._reader_count = readers
        self._observe = observe
        self._writes: _Queue = queue.SimpleQueue()
        self._reads: _Queue = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers: list[threading.Thread] = []
        self._connections: list[Connection] = []
        self._callbacks: list[Callable[[], None]] = []
        self._searches = Searches(self._connect_searcher, threads=searchers, seen=self._seen)
        self._scans: AsyncEngine | None = None
        self._scanning = anyio.CapacityLimiter(1)
        self._open = False
        self._failure: StorageError | None = None
        self._failed = anyio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    @property
    def failure(self) -> StorageError | None:
        """Why the writer stopped for good, None while it works."""
        return self._failure

    async def wait_failed(self) -> StorageError:
        """Returns once the writer has stopped for good: time to exit, non-zero."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            await to_thread.run_sync(self._start)
            self._scans = scan_engine(self.path, self._attached)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._stop)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # On the loop, so that no job is queued behind the end.
        self._open = False
        # The threads end by themselves after what is queued, so this is bounded by the work that callers began.
        with anyio.CancelScope(shield=True):
            if self._scans is not None:
                async with self._scanning:
                    await self._scans.dispose()
            await to_thread.run_sync(self._stop)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.write`."""
        return await self._run(self._writes, fn)

    async def append(self, fn: Callable[[Connection], T]) -> T:
        """See `MetricsDatabase.append`: as any other function."""
        return await self.write(fn)

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.read`."""
        return await self._run(self._reads, fn)

    async def scan(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.scan`."""
        if not self._open or self._scans is None:
            raise ServerBusy("the database is closed", retry_after_s=1.0)
        began = time.perf_counter()
        succeeded = False
        try:
            async with self._scanning, self._scans.connect() as connection:
                result = await connection.run_sync(fn)
            succeeded = True
            return result
        except (SQLAlchemyError, sqlite3.Error) as exc:
            raise translate(exc) from exc
        finally:
            self._seen("read", began, succeeded)

    async def search(self, fn: Callable[[Connection], T], *, limit_s: float) -> T:
        """See `Database.search`."""
        if not self._open:
            raise ServerBusy("the database is closed", retry_after_s=1.0)
        return await self._searches.run(fn, limit_s=limit_s)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """See `Database.on_commit`."""
        self._callbacks.append(callback)

    async def _run(self, target: _Queue, fn: Callable[[Connection], T]) -> T:
        if not self._open:
            raise ServerBusy("the database is closed", retry_after_s=1.0)
        job = Job(fn, asyncio.get_running_loop())
        target.put(job)
        return await job.future

    # -- in a thread: start and stop -------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            writer = self._connect(writer=True)
            self._prepare(writer)
            readers = [self._connect(writer=False) for _ in range(self._reader_count)]
        except OSError as exc:
            raise ConfigError(f"cannot use {self._path} for data: {exc.strerror}") from exc
        except (SQLAlchemyError, sqlite3.Error) as exc:
            raise translate(exc) from exc
        self._writer = threading.Thread(target=self._write_for_ever, args=(writer,), name="sqlite writer", daemon=True)
        self._readers = [
            threading.Thread(target=self._read_for_ever, args=(reader,), name=f"sqlite reader {number}", daemon=True)
            for number, reader in enumerate(readers)
        ]
        for thread in (self._writer, *self._readers):
            thread.start()
        self._searches.start()
        self._open = True

    def _stop(self) -> None:
        self._searches.stop()
        for _ in self._readers:
            self._reads.put(None)
        if self._writer is not None:
            self._writes.put(None)
        for thread in (*self._readers, self._writer):
            if thread is not None:
                thread.join()
        self._readers, self._writer = [], None
        # The writer's is the first and closes last: the last connection checkpoints, and only the writer may.
        for connection in reversed(self._connections):
            close_connection(connection)
        self._connections.clear()

    def _connect(self, *, writer: bool) -> Connection:
        connection = open_connection(self.path, writer=writer, attached=self._attached)
        self._connections.append(connection)
        return connection

    def _connect_searcher(self) -> Connection:
        return open_connection(self.path, writer=False, attached=self._attached)

    # -- the reader threads ----------------------------------------------------------------------------------------

    def _read_for_ever(self, connection: Connection) -> None:
        raw = raw_of(connection)
        while (job := self._reads.get()) is not None:
            if job.future.cancelled():
                continue
            began = time.perf_counter()
            outcome: Outcome
            try:
                raw.execute("BEGIN")
                outcome = (job, job.fn(connection), None)
            except Exception as exc:
                outcome = (job, None, translate(exc))
            finally:
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
            self._seen("read", began, outcome[2] is None)
            deliver([outcome], ())

    # -- the writer thread -----------------------------------------------------------------------------------------

    def _write_for_ever(self, connection: Connection) -> None:
        more = True
        while more:
            job = self._writes.get()
            if job is None:
                return
            group = [job]
            while len(group) < _MAX_GROUP:
                try:
                    job = self._writes.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    more = False
                    break
                group.append(job)
            while group:
                group = self._commit(connection, group)

    def _commit(self, connection: Connection, group: Sequence[Job[Any]]) -> list[Job[Any]]:
        """Runs jobs in one transaction and tells them; returns those that were left for the next one."""
        raw = raw_of(connection)
        done: list[Outcome] = []
        left: list[Job[Any]] = []
        try:
            if self._failure is not None:
                raise self._failure
            raw.execute("BEGIN IMMEDIATE")
            if self._has_feed:
                open_group(connection)
            until = time.monotonic() + _MAX_GROUP_S
            for number, job in enumerate(group):
                if number and time.monotonic() > until:
                    left = list(group[number:])
                    break
                if not job.future.cancelled():
                    # One that has the transaction to itself needs no savepoint in it.
                    run = self._savepoint if len(group) > 1 else self._run_job
                    done.append(run(connection, raw, job))
                if not raw.in_transaction and len(group) > 1:
                    # SQLite gave up the whole transaction: a full disk, an I/O error.
                    left = list(group[number + 1 :])
                    raise done[-1][2] or StorageError("the transaction was lost")
            began = time.perf_counter()
            if raw.in_transaction:
                close_group(connection)
                raw.execute("COMMIT")
                self._seen("commit", began, True)
        except Exception as exc:
            error = self._failed_with(exc)
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            failed = [job for job in group if job not in left]
            deliver([(job, None, copy_of(error)) for job in failed], ())
        else:
            deliver(done, self._callbacks)
        return left

    def _run_job(self, connection: Connection, raw: sqlite3.Connection, job: Job[Any]) -> Outcome:
        began = time.perf_counter()
        try:
            result = run_as(connection, job.origin, job.fn)
            if not raw.in_transaction:
                raise StorageError("the transaction was lost")
        except Exception as exc:
            self._seen("write", began, False)
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            return job, None, self._failed_with(exc)
        self._seen("write", began, True)
        return job, result, None

    def _savepoint(self, connection: Connection, raw: sqlite3.Connection, job: Job[Any]) -> Outcome:
        began = time.perf_counter()
        mark = mark_group(connection)
        raw.execute("SAVEPOINT job")
        try:
            result = run_as(connection, job.origin, job.fn)
        except Exception as exc:
            self._seen("write", began, False)
            if raw.in_transaction:
                raw.execute("ROLLBACK TO job")
                raw.execute("RELEASE job")
                return_to_mark(connection, mark)
            return job, None, self._failed_with(exc)
        raw.execute("RELEASE job")
        self._seen("write", began, True)
        return job, result, None

    def _failed_with(self, exc: Exception) -> BaseException:
        """The error to tell, and the end of all writing if the disk or the file is broken."""
        error = translate(exc)
        if self._failure is None and is_fatal(exc):
            self._failure = StorageError(
                f"the database stopped after {describe(exc)}: check the disk, then start the server again"
            )
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._failed.set)
            return self._failure
        return error

    def _seen(self, operation: Literal["read", "write", "commit"], began: float, succeeded: bool) -> None:
        if self._observe is not None:
            self._observe(operation, time.perf_counter() - began, succeeded)
