"""What differs between PostgreSQL and MySQL, as one protocol, and what goes wrong with them, as one list.

`modelbox.runtime.store.shared` is written against this; `modelbox.runtime.store.postgres` and
`modelbox.runtime.store.mysql` implement it. Drivers are imported there only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from sqlalchemy import URL, Connection, Executable
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from modelbox.errors import ConfigError, LimitError, ModelBoxError, ServerBusy, StorageError

__all__ = ("Backend", "Purpose", "Trouble", "cause_of", "error_of")

Purpose = Literal["write", "read", "search", "schema"]
"""What an engine's connections are for."""


class Trouble(enum.Enum):
    """What an error of a database means for whoever asked."""

    CONFLICT = enum.auto()
    """Another transaction was in the way, and this one is rolled back: to be run again."""
    BUSY = enum.auto()
    """A lock or a connection was not to be had in time."""
    LOST = enum.auto()
    """The connection is gone, or there is no server (yet, or any more)."""
    READ_ONLY = enum.auto()
    """The server takes no changes, as a standby after a failover."""
    FULL = enum.auto()
    """The disk of the database is full."""
    REFUSED = enum.auto()
    """Wrong password, no such database, no permission: somebody has to change the settings."""
    INTERRUPTED = enum.auto()
    """A statement was ended from outside, or by its time limit."""
    OTHER = enum.auto()


class Backend(Protocol):
    """A kind of database."""

    name: str
    """For people: "PostgreSQL"."""
    lock_head: Executable
    """The first statement of each transaction that changes something. Takes the lock of the feed's head, so that all
    writers of all replicas run one after the other, and gives its revision and chain; where the database can, it also
    announces the commit."""

    def engine(self, url: URL, *, purpose: Purpose, connections: int, application: str) -> AsyncEngine:
        """An engine whose connections are set up for a purpose.

        Writers see what was committed before each statement (READ COMMITTED), readers one snapshot for a transaction,
        and can change nothing. Locks, idle transactions and statements have time limits; statements that change
        the schema, which may have much to do, have none.

        Args:
            url: Of the database, with the driver's name.
            purpose: What its connections are for.
            connections: At most so many.
            application: How the server's administrators see its connections.
        """

    def trouble_of(self, exc: BaseException) -> Trouble:
        """What an error means."""

    def limit_statements(self, conn: Connection, seconds: float) -> None:
        """Ends each statement of this transaction after so many seconds (INTERRUPTED)."""

    def lock_schema(self, conn: Connection) -> None:
        """Waits until no other server changes the schema, and keeps others from it until `unlock_schema`.

        Raises:
            ServerBusy: Another server has taken minutes.
        """

    def unlock_schema(self, conn: Connection) -> None:
        """Lets others change the schema."""

    async def follow(self, url: URL, wake: Callable[[], None]) -> None:
        """Calls ``wake`` after commits of any replica, as soon as they are told or seen; until it is cancelled.

        A hint only: it may be early, late or missing, and the connection may break; it is made again.
        """


@dataclass(frozen=True, slots=True)
class _Words:
    database: str
    what: str


def cause_of(exc: BaseException) -> BaseException:
    """The driver's own error."""
    cause: BaseException | None = exc.orig if isinstance(exc, DBAPIError) else None
    if cause is None:
        cause = exc
    # SQLAlchemy's adapters of asynchronous drivers wrap once more.
    if type(cause).__module__.startswith("sqlalchemy.") and cause.__cause__ is not None:
        return cause.__cause__
    return cause


def error_of(exc: BaseException, backend: Backend) -> BaseException:
    """Our error for what a function or a database raised; bugs (other exceptions) stay what they are."""
    if isinstance(exc, ModelBoxError):
        return exc
    if isinstance(exc, PoolTimeoutError):
        error: ModelBoxError = ServerBusy("all connections to the database are in use: try again", retry_after_s=1.0)
        error.__cause__ = exc
        return error
    error = _ERRORS[backend.trouble_of(exc)](_Words(backend.name, said(exc)))
    if type(error) is StorageError and not _is_of_database(exc):
        return exc
    error.__cause__ = exc
    return error


def _is_of_database(exc: BaseException) -> bool:
    # What a statement raises that does not go through SQLAlchemy's own execution is an error of the adapter's.
    adapted = type(exc).__module__.startswith("sqlalchemy.")
    return adapted or isinstance(exc, SQLAlchemyError | OSError | TimeoutError)


def said(exc: BaseException) -> str:
    """What the database said: its own words, without the statement and its values."""
    cause = cause_of(exc)
    text = str(cause.args[-1] if cause.args else cause).strip() or type(cause).__name__
    return f"{type(cause).__name__}: {text.splitlines()[0]}"


_ERRORS: dict[Trouble, Callable[[_Words], ModelBoxError]] = {
    Trouble.CONFLICT: lambda words: ServerBusy("others change the same rows: try again", retry_after_s=0.1),
    Trouble.BUSY: lambda words: ServerBusy(
        f"{words.database} has no lock or connection to give ({words.what}): try again", retry_after_s=1.0
    ),
    Trouble.LOST: lambda words: ServerBusy(f"{words.database} does not answer ({words.what})", retry_after_s=1.0),
    Trouble.READ_ONLY: lambda words: ServerBusy(
        f"{words.database} takes no changes ({words.what}), as a standby: database_url must lead to the primary",
        retry_after_s=2.0,
    ),
    Trouble.FULL: lambda words: LimitError("the disk of the database is full: make room, then try again", what="disk"),
    Trouble.REFUSED: lambda words: ConfigError(
        f"{words.database} refuses this server ({words.what}): check user, password and database in database_url"
    ),
    Trouble.INTERRUPTED: lambda words: ServerBusy(
        f"{words.database} ended a statement that took too long: try again", retry_after_s=1.0
    ),
    Trouble.OTHER: lambda words: StorageError(f"{words.database} failed with {words.what}"),
}
