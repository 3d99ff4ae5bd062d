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
they never keep a short read waiting. See docs/adr/0006-reads-on-sqlite.md.

Whoever opens a `SqliteFile` has the lock of its directory; `modelbox.runtime.store.sqlite` does.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, cast
from urllib.parse import quote

import anyio
from anyio import to_thread
from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from modelbox.errors import ConfigError, LimitError, ModelBoxError, ServerBusy, StorageError

__all__ = ("DatabaseObserver", "SqliteFile")

T = TypeVar("T")

DatabaseObserver = Callable[[Literal["read", "write", "commit"], float, bool], None]
"""Told, in a database thread, of each function's run ("read", "write") or commit: seconds, and whether it succeeded."""

_BUSY_TIMEOUT_S = 5.0
_MAX_GROUP = 256
_MAX_GROUP_S = 0.05


class _Job(Generic[T]):
    """A function on its way to a thread, and where its result goes."""

    __slots__ = ("fn", "future", "loop")

    def __init__(self, fn: Callable[[Connection], T], loop: asyncio.AbstractEventLoop) -> None:
        self.fn = fn
        self.loop = loop
        self.future: asyncio.Future[T] = loop.create_future()


_Queue = queue.SimpleQueue["_Job[Any] | None"]
_Outcome = tuple[_Job[Any], Any, BaseException | None]


class SqliteFile:
    """`modelbox.runtime.store.database.Database` in one file.

    Use as an async context manager.

    Args:
        path: The file; made with mode 0600 if need be, in a directory that is there.
        prepare: Brings the schema up to date, on the writer's connection; begins and ends its own transactions.
        attached: Other files that readers see, by the name under which they are attached. They are there already, and
            their own `SqliteFile` closes after this one.
        readers: Threads for short reads.
        observe: Told how long functions and commits take.

    Raises:
        ConfigError: On entering: the file cannot be used, or a newer release made it.
        StorageError: On entering: the file is damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        prepare: Callable[[Connection], None],
        attached: Mapping[str, Path] | None = None,
        readers: int = 4,
        observe: DatabaseObserver | None = None,
    ) -> None:
        self._path = path
        self._prepare = prepare
        self._attached = dict(attached or {})
        self._reader_count = readers
        self._observe = observe
        self._writes: _Queue = queue.SimpleQueue()
        self._reads: _Queue = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers: list[threading.Thread] = []
        self._connections: list[Connection] = []
        self._callbacks: list[Callable[[], None]] = []
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
            self._scans = _scan_engine(self.path, self._attached)
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
            raise _translate(exc) from exc
        finally:
            self._seen("read", began, succeeded)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """See `Database.on_commit`."""
        self._callbacks.append(callback)

    async def _run(self, target: _Queue, fn: Callable[[Connection], T]) -> T:
        if not self._open:
            raise ServerBusy("the database is closed", retry_after_s=1.0)
        job = _Job(fn, asyncio.get_running_loop())
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
            raise _translate(exc) from exc
        self._writer = threading.Thread(target=self._write_for_ever, args=(writer,), name="sqlite writer", daemon=True)
        self._readers = [
            threading.Thread(target=self._read_for_ever, args=(reader,), name=f"sqlite reader {number}", daemon=True)
            for number, reader in enumerate(readers)
        ]
        for thread in (self._writer, *self._readers):
            thread.start()
        self._open = True

    def _stop(self) -> None:
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
            raw = _raw(connection)
            connection.detach()
            connection.close()
            raw.close()
        self._connections.clear()

    def _connect(self, *, writer: bool) -> Connection:
        # Transactions are begun and ended by hand, below SQLAlchemy: it has no BEGIN IMMEDIATE, and its own would cost
        # more than the statements.
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={
                "check_same_thread": False,
                "timeout": _BUSY_TIMEOUT_S,
                "cached_statements": 256,
                "uri": True,
            },
        )
        connection = engine.connect()
        self._connections.append(connection)
        raw = _raw(connection)
        if writer:
            os.chmod(self.path, 0o600)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "journal_size_limit=67108864"):
                raw.execute(f"PRAGMA {pragma}")
        else:
            for pragma in ("query_only=ON", "wal_autocheckpoint=0"):
                raw.execute(f"PRAGMA {pragma}")
            for name, path in self._attached.items():
                raw.execute(_attach(name), [_read_only(path)])
        for pragma in ("foreign_keys=ON", "temp_store=MEMORY"):
            raw.execute(f"PRAGMA {pragma}")
        return connection

    # -- the reader threads ----------------------------------------------------------------------------------------

    def _read_for_ever(self, connection: Connection) -> None:
        raw = _raw(connection)
        while (job := self._reads.get()) is not None:
            if job.future.cancelled():
                continue
            began = time.perf_counter()
            outcome: _Outcome
            try:
                raw.execute("BEGIN")
                outcome = (job, job.fn(connection), None)
            except Exception as exc:
                outcome = (job, None, _translate(exc))
            finally:
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
            self._seen("read", began, outcome[2] is None)
            _deliver([outcome], ())

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

    def _commit(self, connection: Connection, group: Sequence[_Job[Any]]) -> list[_Job[Any]]:
        """Runs jobs in one transaction and tells them; returns those that were left for the next one."""
        raw = _raw(connection)
        done: list[_Outcome] = []
        left: list[_Job[Any]] = []
        try:
            if self._failure is not None:
                raise self._failure
            raw.execute("BEGIN IMMEDIATE")
            until = time.monotonic() + _MAX_GROUP_S
            for number, job in enumerate(group):
                if number and time.monotonic() > until:
                    left = list(group[number:])
                    break
                if not job.future.cancelled():
                    done.append(self._savepoint(connection, raw, job))
                if not raw.in_transaction:
                    # SQLite gave up the whole transaction: a full disk, an I/O error.
                    left = list(group[number + 1 :])
                    raise done[-1][2] or StorageError("the transaction was lost")
            began = time.perf_counter()
            raw.execute("COMMIT")
            self._seen("commit", began, True)
        except Exception as exc:
            error = self._failed_with(exc)
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            failed = [job for job in group if job not in left]
            _deliver([(job, None, _copy(error)) for job in failed], ())
        else:
            _deliver(done, self._callbacks)
        return left

    def _savepoint(self, connection: Connection, raw: sqlite3.Connection, job: _Job[Any]) -> _Outcome:
        began = time.perf_counter()
        raw.execute("SAVEPOINT job")
        try:
            result = job.fn(connection)
        except Exception as exc:
            self._seen("write", began, False)
            if raw.in_transaction:
                raw.execute("ROLLBACK TO job")
                raw.execute("RELEASE job")
            return job, None, self._failed_with(exc)
        raw.execute("RELEASE job")
        self._seen("write", began, True)
        return job, result, None

    def _failed_with(self, exc: Exception) -> BaseException:
        """The error to tell, and the end of all writing if the disk or the file is broken."""
        error = _translate(exc)
        if self._failure is None and _primary_code(exc) in _FATAL:
            self._failure = StorageError(
                f"the database stopped after {_describe(exc)}: check the disk, then start the server again"
            )
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._failed.set)
            return self._failure
        return error

    def _seen(self, operation: Literal["read", "write", "commit"], began: float, succeeded: bool) -> None:
        if self._observe is not None:
            self._observe(operation, time.perf_counter() - began, succeeded)


def _attach(name: str) -> str:
    return f'ATTACH DATABASE ? AS "{name}"'


def _read_only(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _scan_engine(path: Path, attached: Mapping[str, Path]) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)), poolclass=StaticPool, connect_args={"uri": True}
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        for pragma in ("query_only=ON", "wal_autocheckpoint=0", f"busy_timeout={int(_BUSY_TIMEOUT_S * 1000)}"):
            connection.execute(f"PRAGMA {pragma}")
        for name, other in attached.items():
            connection.execute(_attach(name), (_read_only(other),))

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # The driver begins nothing for a SELECT; without a transaction, each statement would see another snapshot.
        connection.exec_driver_sql("BEGIN")

    return engine


def _raw(connection: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, connection.connection.dbapi_connection)


def _deliver(outcomes: Sequence[_Outcome], callbacks: Sequence[Callable[[], None]]) -> None:
    """Hands results to their loops, all of one loop in one wake-up."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, some in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, some, tuple(callbacks))
        except RuntimeError:
            # The loop was closed with its callers still waiting; there is nobody to tell.
            continue


def _resolve(outcomes: Sequence[_Outcome], callbacks: Sequence[Callable[[], None]]) -> None:
    for job, result, error in outcomes:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)
    for callback in callbacks:
        callback()


def _copy(error: BaseException) -> BaseException:
    """An error of the caller's own: one that several tasks raise would gather all their tracebacks."""
    if not isinstance(error, ModelBoxError):
        return error
    copied = type(error)(error.message, **error.fields)
    copied.__cause__ = error.__cause__
    return copied


# -- errors --------------------------------------------------------------------------------------------------------

_FATAL = frozenset([sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB])
_WAITING = frozenset([sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED])


def _cause(exc: BaseException) -> BaseException:
    return exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc


def _primary_code(exc: BaseException) -> int | None:
    code = getattr(_cause(exc), "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _describe(exc: BaseException) -> str:
    cause = _cause(exc)
    return f"{getattr(cause, 'sqlite_errorname', type(cause).__name__)} ({cause})"


def _translate(exc: BaseException) -> BaseException:
    """Our error for what a function or SQLite raised; bugs (other exceptions) stay what they are."""
    if isinstance(exc, ModelBoxError):
        return exc
    code = _primary_code(exc)
    if code == sqlite3.SQLITE_FULL:
        error: ModelBoxError = LimitError("the disk of the database is full: make room, then try again")
    elif code in _WAITING:
        error = ServerBusy("another program holds the database's lock: try again", retry_after_s=1.0)
    elif isinstance(exc, SQLAlchemyError | sqlite3.Error):
        error = StorageError(f"the database failed with {_describe(exc)}")
    else:
        return exc
    error.__cause__ = exc
    return error
