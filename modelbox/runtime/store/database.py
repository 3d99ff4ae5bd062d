"""The seam between the stores and a database: transactions as functions.

A transaction is a plain synchronous function over a SQLAlchemy `Connection`. It neither begins nor commits, awaits
nothing and uses portable Core only; so one set of functions serves every database, whether it runs in a writer's own
thread (SQLite) or under `AsyncConnection.run_sync`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, TypeVar

from sqlalchemy import Connection

from modelbox.errors import StorageError

__all__ = ("Database", "DatabaseObserver", "MainDatabase", "MetricsDatabase")

T = TypeVar("T")

DatabaseObserver = Callable[[Literal["read", "write", "commit"], float, bool], None]
"""Told of each function's run ("read", "write") or commit: seconds, and whether it succeeded.

SQLite tells in a database thread, others on the event loop."""


class Database(AbstractAsyncContextManager[Any, None], Protocol):
    """A database whose tables are those of `modelbox.runtime.store.schema`.

    Concurrency: all methods may be called by many tasks of one event loop at once.
    Errors: `LimitError` when the disk is full, `ServerBusy` when a lock is not to be had in time, `StorageError` for
    everything else; what the function raises on purpose (`ModelBoxError`) passes through and rolls its changes back.
    """

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Runs ``fn`` in a transaction that may change things, and commits it durably before it returns.

        ``fn`` may run more than once (another writer's conflict) and may share its commit with other functions, but
        never its failure.

        Cancellation: a function that has not begun does not run; one that has is carried out and committed, unseen.
        """

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Runs ``fn``, which only reads, in a transaction of its own that sees one snapshot.

        The snapshot holds every `write` that returned before.
        """

    async def scan(self, fn: Callable[[Connection], T]) -> T:
        """`read` for pages of lists, which may take long: however many of them wait, no `read` waits for them."""

    async def search(self, fn: Callable[[Connection], T], *, limit_s: float) -> T:
        """`read` for questions that come from outside and may be as hard as they like.

        However many searches run or wait, no `read` and no `scan` waits for them. A search that has run for ``limit_s``
        seconds is ended inside of its statement, and so is one whose caller is cancelled; what it occupied is free for
        the next one then. (SQLite: an interrupt. PostgreSQL: ``statement_timeout`` and a cancel request, MySQL:
        ``max_execution_time`` and ``KILL QUERY``; and for both a pool apart from that of `read`.)

        Raises:
            TimeoutError: It has run for ``limit_s``.
            ServerBusy: Others' searches kept it waiting for as long as that.
        """

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Has ``callback`` called on the event loop after commits: a hint that there is something new to read."""


class MetricsDatabase(Database, Protocol):
    """The database of metrics."""

    @property
    def appenders(self) -> int:
        """How many functions of `append` run at the same time; more wait."""

    async def append(self, fn: Callable[[Connection], T]) -> T:
        """`write` for a function that adds points, with no other function in its transaction.

        It may be run again even where it was committed. A statement of it may be a transaction by itself, if it is the
        first one that changes anything, and the last.

        Raises:
            StaleSeriesError: What the function raises is passed on, and not tried again.
        """


class MainDatabase(Database, Protocol):
    """What a server opens: the database of everything, and beside it that of the metrics."""

    @property
    def metrics(self) -> MetricsDatabase:
        """Where metrics are: apart on SQLite, elsewhere in the same database by a writer of its own."""

    @property
    def aside(self) -> Database:
        """The same tables for what is not in the feed: where the database has many writers, one that holds up no other.

        Rows that replicas write at once are theirs to guard; a function whose row another one has made meanwhile runs
        again.
        """

    @property
    def trouble(self) -> str:
        """Why it cannot be used at the moment, for people; empty while all is well."""

    def gauges(self) -> Mapping[str, tuple[str, Callable[[], float]]]:
        """What to show of its connections: by name of the metric, its help text and where its value is."""

    async def wait_failed(self) -> StorageError:
        """Returns once it has failed for good: time to exit, non-zero. One that others run comes back by itself."""
