"""The connections of a replica that write metric points: several at once, one transaction for each function.

Points need no order between series, and a point that is there stays as it is; so writing them again does no harm.
That is why, unlike `modelbox.runtime.store.shared_writer`, functions here are run again even where nobody knows whether
they were committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from modelbox.errors import ModelBoxError, ServerBusy
from modelbox.runtime.store.backend import Backend, Trouble, cause_of, error_of
from modelbox.runtime.store.database import DatabaseObserver
from modelbox.runtime.store.metric_state import StaleSeriesError

__all__ = ("PointWriters",)

T = TypeVar("T")

_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_AGAIN = frozenset([Trouble.CONFLICT, Trouble.BUSY, Trouble.LOST, Trouble.READ_ONLY])
_UNSOUND = frozenset([Trouble.LOST, Trouble.READ_ONLY, Trouble.REFUSED, Trouble.INTERRUPTED])
_RACES = frozenset(["23505", 1062, "23514"])
"""What PostgreSQL and MySQL call a row that another replica added first; and PostgreSQL, a point whose month got a
table of its own while it waited for the lock of the table of all others."""


class PointWriters:
    """Runs functions that add points.

    Args:
        engine: Makes the connections.
        backend: The kind of database.
        connections: How many functions run at once.
        patience_s: How long a function is tried while the database is away or locked.
        observe: Told how long functions and commits take.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        backend: Backend,
        *,
        connections: int,
        patience_s: float,
        observe: DatabaseObserver | None,
    ) -> None:
        self._engine = engine
        self._backend = backend
        self._patience_s = patience_s
        self._observe = observe
        self._idle: list[AsyncConnection] = []
        self._free = anyio.Semaphore(connections)
        self._running = 0
        self._ended = anyio.Event()
        self._closed = False

    async def append(self, fn: Callable[[Connection], T]) -> T:
        """See `modelbox.runtime.store.database.MetricsDatabase.append`."""
        if self._closed:
            raise ServerBusy("the server is shutting down: try again", retry_after_s=1.0)
        self._running += 1
        try:
            async with self._free:
                return await self._append(fn)
        finally:
            self._running -= 1
            if self._closed and not self._running:
                self._ended.set()

    async def aclose(self) -> None:
        """Waits for what runs, and closes the connections."""
        self._closed = True
        if self._running:
            await self._ended.wait()
        while self._idle:
            await _closed(self._idle.pop())

    async def _append(self, fn: Callable[[Connection], T]) -> T:
        until = time.monotonic() + self._patience_s
        pause_s = _PAUSE_S
        while True:
            try:
                return await self._transaction(fn)
            except (ModelBoxError, StaleSeriesError):
                raise
            except Exception as exc:
                if self._trouble_of(exc) not in _AGAIN or time.monotonic() >= until:
                    error = error_of(exc, self._backend)
                    if error is exc:
                        raise
                    raise error from exc
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _transaction(self, fn: Callable[[Connection], T]) -> T:
        connection = self._idle.pop() if self._idle else await self._engine.connect()
        operation, began = "write", time.perf_counter()
        try:
            transaction = await connection.begin()
            result = await connection.run_sync(fn)
            self._seen("write", began, succeeded=True)
            operation, began = "commit", time.perf_counter()
            await transaction.commit()
        except BaseException as exc:
            self._seen(operation, began, succeeded=False)
            await self._roll_back(connection, exc)
            raise
        self._seen("commit", began, succeeded=True)
        self._idle.append(connection)
        return result

    def _trouble_of(self, exc: BaseException) -> Trouble:
        cause = cause_of(exc)
        if not _RACES.isdisjoint([getattr(cause, "sqlstate", None), *cause.args[:1]]):
            return Trouble.CONFLICT
        return self._backend.trouble_of(exc)

    async def _roll_back(self, connection: AsyncConnection, exc: BaseException) -> None:
        """Leaves the transaction; the connection goes with it where it is not sure to be well."""
        if isinstance(exc, ModelBoxError | StaleSeriesError) or (
            isinstance(exc, Exception) and self._trouble_of(exc) not in _UNSOUND
        ):
            with contextlib.suppress(Exception):
                await connection.rollback()
                self._idle.append(connection)
                return
        with contextlib.suppress(Exception):
            await connection.invalidate()
        await _closed(connection)

    def _seen(self, operation: str, began: float, *, succeeded: bool) -> None:
        if self._observe is not None:
            self._observe("commit" if operation == "commit" else "write", time.perf_counter() - began, succeeded)


async def _closed(connection: AsyncConnection) -> None:
    with contextlib.suppress(Exception):
        await connection.close()
