"""One snapshot of everything that a server keeps in its database, taken beside it while it runs.

On PostgreSQL and MySQL that is one REPEATABLE READ transaction. On SQLite it is a reader's connection to each of the
two files. Both transactions begin while nothing is committed to the main file, so what they see is one moment; if
something is, they begin again. Readers never checkpoint; the WAL grows while they are open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from anyio import to_thread
from sqlalchemy import Connection, text

from modelbox.errors import ConfigError, ModelBoxError, ServerBusy
from modelbox.runtime.store.backend import error_of
from modelbox.runtime.store.opening import backend_of, parse_database_url
from modelbox.runtime.store.sqlite_connection import close_connection, open_connection, raw_of, translate

__all__ = ("Snapshot", "open_snapshot")

T = TypeVar("T")

_TRIES = 1000


class Snapshot(Protocol):
    """What a database held at one moment."""

    kind: str
    """The database, for people: "SQLite"."""

    async def run(self, fn: Callable[[Connection, Connection], T]) -> T:
        """Runs ``fn`` with a connection to the tables of everything, and one to those of metrics; one at a time."""


def open_snapshot(database_url: str, *, data_dir: Path) -> AbstractAsyncContextManager[Snapshot]:
    """Opens a snapshot of now.

    Args:
        database_url: As the setting; SQLite in ``data_dir`` for an empty one.
        data_dir: Directory for SQLite.

    Raises:
        ConfigError: There is no database, or it refuses us.
        ServerBusy: The database does not answer, or changes too fast to be seen whole (SQLite).
        StorageError: Anything else.
    """
    return _shared_snapshot(database_url) if database_url else _sqlite_snapshot(data_dir)


# -- SQLite ----------------------------------------------------------------------------------------------------------


class _SqliteSnapshot:
    kind = "SQLite"

    def __init__(self, directory: Path) -> None:
        self._main = directory / "modelbox.db"
        self._metrics = directory / "metrics.db"
        self._connections: list[Connection] = []

    async def run(self, fn: Callable[[Connection, Connection], T]) -> T:
        """See `Snapshot.run`."""
        return await to_thread.run_sync(self._run, fn)

    def _run(self, fn: Callable[[Connection, Connection], T]) -> T:
        try:
            return fn(self._connections[0], self._connections[1])
        except Exception as exc:
            error = translate(exc)
            if error is exc:
                raise
            raise error from exc

    def open(self) -> None:
        """Begins both transactions."""
        for path in (self._main, self._metrics):
            if not path.is_file():
                raise ConfigError(f"there is no database in {path.parent.absolute()}: {path.name} is missing")
        try:
            self._connections += [_reader(self._main), _reader(self._metrics)]
            probe = _reader(self._main)
            self._connections.append(probe)
            self._begin(probe)
        except Exception as exc:
            error = translate(exc)
            if error is exc:
                raise
            raise error from exc

    def _begin(self, probe: Connection) -> None:
        main, metrics = (raw_of(connection) for connection in self._connections[:2])
        version = raw_of(probe)
        for _ in range(_TRIES):
            (before,) = version.execute("PRAGMA data_version").fetchone()
            for connection in (main, metrics):
                connection.execute("BEGIN")
                # A transaction's snapshot is that of its first read.
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (after,) = version.execute("PRAGMA data_version").fetchone()
            if before == after:
                return
            for connection in (main, metrics):
                connection.execute("ROLLBACK")
        raise ServerBusy("the database changes too fast to be seen at one moment: try again", retry_after_s=1.0)

    def close(self) -> None:
        """Ends both."""
        for connection in reversed(self._connections):
            close_connection(connection)
        self._connections.clear()


def _reader(path: Path) -> Connection:
    return open_connection(path, writer=False, attached={})


@asynccontextmanager
async def _sqlite_snapshot(directory: Path) -> AsyncIterator[Snapshot]:
    snapshot = _SqliteSnapshot(directory)
    async with AsyncExitStack() as stack:
        stack.callback(snapshot.close)
        await to_thread.run_sync(snapshot.open)
        yield snapshot


# -- PostgreSQL and MySQL --------------------------------------------------------------------------------------------


@asynccontextmanager
async def _shared_snapshot(database_url: str) -> AsyncIterator[Snapshot]:
    url = parse_database_url(database_url)
    backend = backend_of(url)
    engine = backend.engine(url, purpose="read", connections=1, application="modelbox export")

    class SharedSnapshot:
        kind = backend.name

        async def run(self, fn: Callable[[Connection, Connection], T]) -> T:
            try:
                return await connection.run_sync(lambda conn: fn(conn, conn))
            except ModelBoxError:
                raise
            except Exception as exc:
                error = error_of(exc, backend)
                if error is exc:
                    raise
                raise error from exc

    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        try:
            connection = await stack.enter_async_context(engine.connect())
            await connection.run_sync(_without_limits)
        except Exception as exc:
            error = error_of(exc, backend)
            if error is exc:
                raise
            raise error from exc
        yield SharedSnapshot()


def _without_limits(conn: Connection) -> None:
    """A reader that takes its time, between statements too."""
    if conn.dialect.name == "postgresql":
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            conn.execute(text(f"SET LOCAL {name} = 0"))
