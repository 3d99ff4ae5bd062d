"""MySQL and MariaDB by asyncmy: what `modelbox.runtime.store.backend.Backend` asks for.

Nothing announces a commit there, so news of other replicas is looked for: the head's revision, ten times a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import asyncmy.errors
from sqlalchemy import URL, Connection, Executable, event, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from modelbox.errors import ServerBusy
from modelbox.runtime.store.backend import Purpose, Trouble, cause_of
from modelbox.runtime.store.schema import feed_head

__all__ = ("MYSQL_DRIVER", "MySQLBackend")

_LOG = logging.getLogger(__name__)

MYSQL_DRIVER = "mysql+asyncmy"

_SCHEMA_LOCK = "CONCAT('modelbox ', SHA1(DATABASE()))"
"""Locks have names for the whole server, and those at most 64 characters."""
_SCHEMA_WAIT_S = 300
_CONNECT_S = 5
_COMMAND_S: dict[Purpose, float | None] = {"write": 30.0, "read": 90.0, "search": 90.0, "schema": None}
"""How long an answer may take; then the server counts as gone."""
_LOOK_S = 0.1
_SQL_MODE = "'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'"
_RECONNECT_S = 1.0

_BY_NUMBER = {
    1213: Trouble.CONFLICT,  # ER_LOCK_DEADLOCK
    1020: Trouble.CONFLICT,  # ER_CHECKREAD, MariaDB's snapshot conflict
    1205: Trouble.BUSY,  # ER_LOCK_WAIT_TIMEOUT
    1040: Trouble.BUSY,  # ER_CON_COUNT_ERROR
    1203: Trouble.BUSY,  # ER_TOO_MANY_USER_CONNECTIONS
    1021: Trouble.FULL,  # ER_DISK_FULL
    1114: Trouble.FULL,  # ER_RECORD_FILE_FULL
    1290: Trouble.READ_ONLY,  # ER_OPTION_PREVENTS_STATEMENT
    1792: Trouble.READ_ONLY,  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
    1836: Trouble.READ_ONLY,  # ER_READ_ONLY_MODE
    1317: Trouble.INTERRUPTED,  # ER_QUERY_INTERRUPTED
    1969: Trouble.INTERRUPTED,  # ER_STATEMENT_TIMEOUT (MariaDB)
    3024: Trouble.INTERRUPTED,  # ER_QUERY_TIMEOUT (MySQL)
    1927: Trouble.LOST,  # ER_CONNECTION_KILLED
    1053: Trouble.LOST,  # ER_SERVER_SHUTDOWN
    1152: Trouble.LOST,  # ER_ABORTING_CONNECTION
    1153: Trouble.OTHER,  # ER_NET_PACKET_TOO_LARGE
    1044: Trouble.REFUSED,  # ER_DBACCESS_DENIED_ERROR
    1045: Trouble.REFUSED,  # ER_ACCESS_DENIED_ERROR
    1049: Trouble.REFUSED,  # ER_BAD_DB_ERROR
    1142: Trouble.REFUSED,  # ER_TABLEACCESS_DENIED_ERROR
    1698: Trouble.REFUSED,  # ER_ACCESS_DENIED_NO_PASSWORD_ERROR
}
_CLIENT_NUMBERS = range(2000, 2100)
"""What the client's side says about its connection."""


class MySQLBackend:
    """See `modelbox.runtime.store.backend.Backend`."""

    name = "MySQL"
    lock_head: Executable = select(feed_head.c.rev, feed_head.c.chain).where(feed_head.c.id == 1).with_for_update()

    def engine(self, url: URL, *, purpose: Purpose, connections: int, application: str) -> AsyncEngine:
        """See the protocol."""
        writes = purpose in ("write", "schema")
        engine = create_async_engine(
            url.update_query_dict({"charset": "utf8mb4"}),
            pool_size=connections,
            max_overflow=0,
            pool_timeout=5.0,
            # Servers close connections that were idle for hours.
            pool_recycle=1800,
            isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
            # From the first statement on: SQLAlchemy learns from it how names are quoted.
            connect_args={
                "connect_timeout": _CONNECT_S,
                "read_timeout": _COMMAND_S[purpose],
                "sql_mode": _SQL_MODE,
            },
        )

        @event.listens_for(engine.sync_engine, "connect")
        def prepare(connection: Any, _: object) -> None:
            cursor = connection.cursor()
            cursor.execute("SET NAMES utf8mb4 COLLATE utf8mb4_bin")
            cursor.execute("SET SESSION time_zone = '+00:00', SESSION innodb_lock_wait_timeout = 2")
            cursor.execute("SHOW VARIABLES LIKE 'idle_write_transaction_timeout'")
            if purpose == "write" and cursor.fetchone() is not None:
                # MariaDB's: a replica that stands still with the head's lock must not hold up the others.
                cursor.execute("SET SESSION idle_write_transaction_timeout = 5")
            if not writes:
                cursor.execute("SET SESSION TRANSACTION READ ONLY")
            cursor.close()

        return engine

    def trouble_of(self, exc: BaseException) -> Trouble:
        """See the protocol."""
        cause = cause_of(exc)
        if isinstance(cause, asyncmy.errors.MySQLError):
            number = cause.args[0] if cause.args else None
            if not isinstance(number, int):
                return Trouble.LOST if isinstance(cause, asyncmy.errors.InterfaceError) else Trouble.OTHER
            if number in _CLIENT_NUMBERS:
                return Trouble.LOST
            return _BY_NUMBER.get(number, Trouble.OTHER)
        if isinstance(cause, OSError | TimeoutError | EOFError):
            return Trouble.LOST
        if isinstance(exc, DBAPIError) and exc.connection_invalidated:
            return Trouble.LOST
        return Trouble.OTHER

    def limit_statements(self, conn: Connection, seconds: float) -> None:
        """See the protocol."""
        if getattr(conn.dialect, "is_mariadb", False):
            conn.execute(text(f"SET SESSION max_statement_time = {seconds:.3f}"))
        else:
            conn.execute(text(f"SET SESSION max_execution_time = {max(1, int(seconds * 1000))}"))

    def lock_schema(self, conn: Connection) -> None:
        """See the protocol."""
        # For tables that others read; and not for ever.
        conn.execute(text(f"SET SESSION lock_wait_timeout = {_SCHEMA_WAIT_S}"))
        taken = conn.execute(text(f"SELECT GET_LOCK({_SCHEMA_LOCK}, :wait)"), {"wait": _SCHEMA_WAIT_S}).scalar()
        if taken != 1:
            raise ServerBusy(f"another server has changed the schema for {_SCHEMA_WAIT_S} s: look what it does")

    def unlock_schema(self, conn: Connection) -> None:
        """See the protocol."""
        conn.execute(text(f"SELECT RELEASE_LOCK({_SCHEMA_LOCK})"))
        conn.commit()

    async def follow(self, url: URL, wake: Callable[[], None]) -> None:
        """See the protocol: looks at the head."""
        engine = self.engine(url, purpose="read", connections=1, application="modelbox")
        seen = -1
        try:
            while True:
                try:
                    async with engine.connect() as connection:
                        rev = (await connection.execute(select(feed_head.c.rev).where(feed_head.c.id == 1))).scalar()
                except Exception as exc:
                    _LOG.debug("cannot look for changes: %s", type(exc).__name__)
                    await asyncio.sleep(_RECONNECT_S)
                    continue
                if rev != seen:
                    seen = -1 if rev is None else rev
                    wake()
                await asyncio.sleep(_LOOK_S)
        finally:
            await engine.dispose()
