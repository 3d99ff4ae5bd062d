"""PostgreSQL or MySQL: a database that many replicas of the server share.

Owns the connections of one replica: one that changes things, one that writes metric points, a pool of readers, a small
pool for searches, and one that waits for news. What differs between the databases is a
`modelbox.runtime.store.backend.Backend`. See docs/adr/0012-shared-databases.md for why there is one writer at a time.

A database that goes away is not a failure of the server: what is asked meanwhile is answered with `ServerBusy`, and all
goes on by itself when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, TypeVar

import anyio
from sqlalchemy import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from modelbox.errors import ModelBoxError, ServerBusy, StorageError
from modelbox.runtime.store.backend import Backend, Purpose, Trouble, error_of
from modelbox.runtime.store.database import DatabaseObserver
from modelbox.runtime.store.history import create_head
from modelbox.runtime.store.metric_partitions import keep_partitions
from modelbox.runtime.store.migrate import MAIN, METRICS, migrate
from modelbox.runtime.store.shared_points import PointWriters
from modelbox.runtime.store.shared_writer import SharedWriter

__all__ = ("SharedDatabase", "end_task", "prepare")

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_READ_TRIES = 3
_SEARCHES = 3
_APPENDERS = 2
"""Transactions of points at once: one is made while the database works on the other."""
_CANCEL_AGAIN_S = 0.2
_SEARCH_GRACE_S = 0.5


class SharedDatabase:
    """`modelbox.runtime.store.database.MainDatabase` over PostgreSQL or MySQL.

    Use as an async context manager: entering waits for the database, and brings its schema up to date while no other
    server does.

    Args:
        url: Of the database, with the driver's name.
        backend: Its kind.
        connections: Readers at most; six to nine more are used for other things.
        connect_timeout_s: How long entering waits for a database that is away.
        patience_s: How long a change waits for a database that is away or locked.
        migrate: Whether entering brings the schema up to date; if not, it must be.
        application: How the database's administrators see this server.
        observe: Told how long functions and commits take.
        observe_metrics: The same of the metrics' writer.

    Raises:
        ConfigError: On entering: the database refuses this server, or a newer release made its schema.
        ServerBusy: On entering: the database is away.
        StorageError: On entering: anything else.
    """

    def __init__(
        self,
        url: URL,
        backend: Backend,
        *,
        connections: int = 10,
        connect_timeout_s: float = 30.0,
        patience_s: float = 10.0,
        migrate: bool = True,
        application: str = "modelbox",
        observe: DatabaseObserver | None = None,
        observe_metrics: DatabaseObserver | None = None,
    ) -> None:
        self._url = url
        self._backend = backend
        self._connections = connections
        self._connect_timeout_s = connect_timeout_s
        self._patience_s = patience_s
        self._migrate = migrate
        self._application = application
        self._observe = observe
        self._observe_metrics = observe_metrics
        self._callbacks: list[Callable[[], None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            writes = await self._engine(stack, "write", 3 + _APPENDERS)
            self._reads = await self._engine(stack, "read", self._connections)
            self._searches = await self._engine(stack, "search", _SEARCHES)
            # However many pages of lists wait, as many connections are left for short reads.
            self._scanning = anyio.CapacityLimiter(max(1, self._connections // 2))
            self._searching = anyio.CapacityLimiter(_SEARCHES)
            self._read_trouble = ""
            if self._migrate:
                async with AsyncExitStack() as for_schema:
                    engine = await self._engine(for_schema, "schema", 1)
                    timeout_s = self._connect_timeout_s
                    await prepare(engine, self._backend, _bring_up_to_date, connect_timeout_s=timeout_s)
            self._writer = self._make_writer(writes, main=True)
            points = PointWriters(
                writes,
                self._backend,
                connections=_APPENDERS,
                patience_s=self._patience_s,
                observe=self._observe_metrics,
            )
            self.metrics = SharedMetrics(self, self._make_writer(writes, main=False), points)
            self.aside = BesideFeed(self, self._make_writer(writes, main=False))
            stack.push_async_callback(self._writer.aclose)
            stack.push_async_callback(self.metrics.aclose)
            stack.push_async_callback(self.aside.aclose)
            follower = asyncio.get_running_loop().create_task(
                self._backend.follow(self._url, self._committed), name="database news"
            )
            stack.push_async_callback(end_task, follower)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def trouble(self) -> str:
        """See `MainDatabase.trouble`."""
        return self._writer.trouble or self._read_trouble

    def gauges(self) -> Mapping[str, tuple[str, Callable[[], float]]]:
        """See `MainDatabase.gauges`."""
        reads, searches = self._reads.pool, self._searches.pool
        assert isinstance(reads, QueuePool)
        assert isinstance(searches, QueuePool)
        return {
            "modelbox_database_connections_used": ("Readers' connections in use.", reads.checkedout),
            "modelbox_database_connections_limit": ("Readers' connections at most.", lambda: self._connections),
            "modelbox_database_searches_used": ("Connections in use for searches.", searches.checkedout),
            "modelbox_database_waiting": ("Changes that wait for their transaction.", lambda: self._writer.waiting),
            "modelbox_database_up": ("Whether the database answers.", lambda: 0.0 if self.trouble else 1.0),
        }

    async def wait_failed(self) -> StorageError:
        """See `MainDatabase.wait_failed`: never returns."""
        await anyio.sleep_forever()
        raise AssertionError

    # -- transactions ----------------------------------------------------------------------------------------------

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.write`."""
        return await self._writer.write(fn)

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.read`."""
        began = time.perf_counter()
        try:
            found = await self._read(self._reads, fn)
        except BaseException:
            self._seen(began, succeeded=False)
            raise
        self._seen(began, succeeded=True)
        return found

    async def scan(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.scan`."""
        async with self._scanning:
            return await self.read(fn)

    async def search(self, fn: Callable[[Connection], T], *, limit_s: float) -> T:
        """See `Database.search`."""
        try:
            async with asyncio.timeout(limit_s):
                await self._searching.acquire()
        except TimeoutError:
            raise ServerBusy("others' searches keep the database busy: try again", retry_after_s=1.0) from None
        try:
            return await self._search(fn, limit_s)
        finally:
            self._searching.release()

    async def _search(self, fn: Callable[[Connection], T], limit_s: float) -> T:
        def limited(conn: Connection) -> T:
            self._backend.limit_statements(conn, limit_s)
            return fn(conn)

        ended = TimeoutError(f"the search was ended after {limit_s:g} s")
        try:
            # The database ends a statement by itself; this is for several in a row, and for one that does not answer.
            async with asyncio.timeout(limit_s + _SEARCH_GRACE_S):
                return await self._read(self._searches, limited, interruptible=True)
        except TimeoutError:
            raise ended from None

    async def _read(self, engine: AsyncEngine, fn: Callable[[Connection], T], *, interruptible: bool = False) -> T:
        for left in reversed(range(_READ_TRIES + self._connections)):
            begun = False
            try:
                async with engine.connect() as connection:
                    begun = True
                    found = await connection.run_sync(fn)
            except ModelBoxError:
                raise
            except Exception as exc:
                trouble = self._backend.trouble_of(exc)
                if trouble is Trouble.INTERRUPTED and interruptible:
                    raise TimeoutError from exc
                if left and begun and trouble in (Trouble.LOST, Trouble.CONFLICT):
                    # Connections that were idle while the database went away are found to be dead one by one.
                    continue
                error = error_of(exc, self._backend)
                if trouble in (Trouble.LOST, Trouble.REFUSED):
                    self._read_trouble = str(error)
                if error is exc:
                    raise
                raise error from exc
            self._read_trouble = ""
            return found
        raise AssertionError

    def on_commit(self, callback: Callable[[], None]) -> None:
        """See `Database.on_commit`; told of other replicas' commits too, and not of metrics."""
        self._callbacks.append(callback)

    def _committed(self) -> None:
        for callback in self._callbacks:
            callback()

    def _seen(self, began: float, *, succeeded: bool) -> None:
        if self._observe is not None:
            self._observe("read", time.perf_counter() - began, succeeded)

    # -- opening ---------------------------------------------------------------------------------------------------

    async def _engine(self, stack: AsyncExitStack, purpose: Purpose, connections: int) -> AsyncEngine:
        engine = self._backend.engine(
            self._url, purpose=purpose, connections=connections, application=self._application
        )
        stack.push_async_callback(engine.dispose)
        return engine

    def _make_writer(self, engine: AsyncEngine, *, main: bool) -> SharedWriter:
        return SharedWriter(
            engine,
            self._backend,
            lock_head=self._backend.lock_head if main else None,
            patience_s=self._patience_s,
            observe=self._observe if main else self._observe_metrics,
            committed=self._committed if main else lambda: None,
        )


async def prepare(
    engine: AsyncEngine, backend: Backend, work: Callable[[Connection], None], *, connect_timeout_s: float
) -> None:
    """Waits for the database, and runs ``work``, which changes its schema, while no other server changes that.

    Raises:
        ConfigError: The database refuses us.
        ServerBusy: The database is away.
        StorageError: Anything else.
    """

    def locked(conn: Connection) -> None:
        backend.lock_schema(conn)
        try:
            work(conn)
            conn.commit()
        finally:
            with contextlib.suppress(Exception):
                conn.rollback()
                backend.unlock_schema(conn)

    until = time.monotonic() + connect_timeout_s
    pause_s = 0.1
    while True:
        try:
            async with engine.connect() as connection:
                await connection.run_sync(locked)
                await connection.commit()
            return
        except Exception as exc:
            error = error_of(exc, backend)
            if backend.trouble_of(exc) is Trouble.LOST:
                error = ServerBusy(f"{error}: database_url leads to {_place(engine.url)}", retry_after_s=1.0)
            if not isinstance(error, ServerBusy) or time.monotonic() + pause_s > until:
                if error is exc:
                    raise
                raise error from exc
            _LOG.warning("%s; trying again for %.0f s", error, until - time.monotonic())
        await asyncio.sleep(pause_s)
        pause_s = min(2.0, pause_s * 2)


def _place(url: URL) -> str:
    """Where a database is to be, without user and password."""
    if not url.host:
        return "a socket"
    return f"{url.host}:{url.port}" if url.port else url.host


def _bring_up_to_date(conn: Connection) -> None:
    migrate(conn, MAIN)
    migrate(conn, METRICS)
    keep_partitions(conn, now_us=time.time_ns() // 1000)
    create_head(conn)


class BesideFeed:
    """A `SharedDatabase` for what is not in the feed: the same connections for reading, and a writer of its own."""

    def __init__(self, main: SharedDatabase, writer: SharedWriter) -> None:
        self._main = main
        self._writer = writer

    async def aclose(self) -> None:
        """Carries out what waits."""
        await self._writer.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.write`; other replicas write at the same time."""
        return await self._writer.write(fn)

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.read`."""
        return await self._main.read(fn)

    async def scan(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.scan`."""
        return await self._main.scan(fn)

    async def search(self, fn: Callable[[Connection], T], *, limit_s: float) -> T:
        """See `Database.search`."""
        return await self._main.search(fn, limit_s=limit_s)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """See `Database.on_commit`: there is nothing to tell."""


class SharedMetrics(BesideFeed):
    """The metrics of a `SharedDatabase`: `modelbox.runtime.store.database.MetricsDatabase`."""

    appenders = _APPENDERS

    def __init__(self, main: SharedDatabase, writer: SharedWriter, points: PointWriters) -> None:
        super().__init__(main, writer)
        self._points = points

    async def aclose(self) -> None:
        """Carries out what waits."""
        await self._points.aclose()
        await super().aclose()

    async def append(self, fn: Callable[[Connection], T]) -> T:
        """See `MetricsDatabase.append`."""
        return await self._points.append(fn)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancels a task until it has ended.

    Drivers lose a cancellation now and then: one that comes while a connection is made may come out as its failure.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
