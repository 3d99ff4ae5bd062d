"""Connections to one file of SQLite: how they are opened, and what SQLite's errors mean.

Exactly one connection of a file writes and checkpoints. The others are ``query_only``, never checkpoint, and see files
that are attached for reading only.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from modelbox.errors import LimitError, ModelBoxError, ServerBusy, StorageError

__all__ = (
    "close_connection",
    "describe",
    "is_fatal",
    "open_connection",
    "raw_of",
    "scan_engine",
    "translate",
    "was_interrupted",
)

_BUSY_TIMEOUT_S = 5.0


def open_connection(path: Path, *, writer: bool, attached: Mapping[str, Path]) -> Connection:
    """A connection that any one thread at a time may use; end it with `close_connection`.

    Args:
        path: The file.
        writer: Whether it is the one that writes.
        attached: Other files that readers see.
    """
    # Transactions are begun and ended by hand, below SQLAlchemy: it has no BEGIN IMMEDIATE, and its own would cost more
    # than the statements.
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_S, "cached_statements": 256, "uri": True},
    )
    connection = engine.connect()
    raw = raw_of(connection)
    try:
        if writer:
            os.chmod(path, 0o600)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "journal_size_limit=67108864"):
                raw.execute(f"PRAGMA {pragma}")
        else:
            for pragma in ("query_only=ON", "wal_autocheckpoint=0"):
                raw.execute(f"PRAGMA {pragma}")
            for name, other in attached.items():
                raw.execute(_attach(name), [_read_only(other)])
        for pragma in ("foreign_keys=ON", "temp_store=MEMORY"):
            raw.execute(f"PRAGMA {pragma}")
    except BaseException:
        close_connection(connection)
        raise
    return connection


def close_connection(connection: Connection) -> None:
    """Closes it, whatever it is in the middle of."""
    raw = raw_of(connection)
    connection.detach()
    connection.close()
    raw.close()


def _attach(name: str) -> str:
    return f'ATTACH DATABASE ? AS "{name}"'


def _read_only(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def scan_engine(path: Path, attached: Mapping[str, Path]) -> AsyncEngine:
    """An engine with one reader's connection, for any task of one loop."""
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


def raw_of(connection: Connection) -> sqlite3.Connection:
    """The driver's connection."""
    return cast(sqlite3.Connection, connection.connection.dbapi_connection)


# -- errors --------------------------------------------------------------------------------------------------------

_FATAL = frozenset([sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB])
_WAITING = frozenset([sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED])


def _cause(exc: BaseException) -> BaseException:
    return exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc


def _primary_code(exc: BaseException) -> int | None:
    code = getattr(_cause(exc), "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def describe(exc: BaseException) -> str:
    """What SQLite said."""
    cause = _cause(exc)
    return f"{getattr(cause, 'sqlite_errorname', type(cause).__name__)} ({cause})"


def is_fatal(exc: BaseException) -> bool:
    """Whether the disk or the file is broken."""
    return _primary_code(exc) in _FATAL


def was_interrupted(exc: BaseException) -> bool:
    """Whether the statement was ended from outside."""
    return _primary_code(exc) == sqlite3.SQLITE_INTERRUPT


def translate(exc: BaseException) -> BaseException:
    """Our error for what a function or SQLite raised; bugs (other exceptions) stay what they are."""
    if isinstance(exc, ModelBoxError):
        return exc
    code = _primary_code(exc)
    if code == sqlite3.SQLITE_FULL:
        error: ModelBoxError = LimitError("the disk of the database is full: make room, then try again", what="disk")
    elif code in _WAITING:
        error = ServerBusy("another program holds the database's lock: try again", retry_after_s=1.0)
    elif isinstance(exc, SQLAlchemyError | sqlite3.Error):
        error = StorageError(f"the database failed with {describe(exc)}")
    else:
        return exc
    error.__cause__ = exc
    return error
