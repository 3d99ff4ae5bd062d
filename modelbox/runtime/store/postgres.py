"""PostgreSQL by asyncpg: what `modelbox.runtime.store.backend.Backend` asks for.

Commits are announced with NOTIFY, in the statement that takes the head's lock; PostgreSQL sends it with the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import URL, Connection, Executable, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from modelbox.runtime.store.backend import Purpose, Trouble, cause_of
from modelbox.runtime.store.schema import feed_head

__all__ = ("POSTGRES_DRIVER", "PostgresBackend")

_LOG = logging.getLogger(__name__)

POSTGRES_DRIVER = "postgresql+asyncpg"

_CHANNEL = "modelbox"
_SCHEMA_LOCK = 0x6D6F64656C626F78
"""The advisory lock of whoever changes the schema: "modelbox" in ASCII."""
_SCHEMA_WAIT_S = 300
_CONNECT_S = 5.0
_COMMAND_S: dict[Purpose, float | None] = {"write": 30.0, "read": 90.0, "search": 90.0, "schema": None}
"""After which a server that does not answer is given up, and the connection with it."""
_RECONNECT_S = 1.0

_BY_STATE = {
    "40001": Trouble.CONFLICT,  # serialization_failure
    "40P01": Trouble.CONFLICT,  # deadlock_detected
    "55P03": Trouble.BUSY,  # lock_not_available
    "53300": Trouble.BUSY,  # too_many_connections
    "53100": Trouble.FULL,  # disk_full
    "53400": Trouble.BUSY,  # configuration_limit_exceeded
    "25006": Trouble.READ_ONLY,  # read_only_sql_transaction
    "25P03": Trouble.LOST,  # idle_in_transaction_session_timeout
    "57014": Trouble.INTERRUPTED,  # query_canceled
    "57P01": Trouble.LOST,  # admin_shutdown
    "57P02": Trouble.LOST,  # crash_shutdown
    "57P03": Trouble.LOST,  # cannot_connect_now
    "57P05": Trouble.LOST,  # idle_session_timeout
    "28000": Trouble.REFUSED,  # invalid_authorization_specification
    "28P01": Trouble.REFUSED,  # invalid_password
    "3D000": Trouble.REFUSED,  # invalid_catalog_name
    "42501": Trouble.REFUSED,  # insufficient_privilege
}
_BY_CLASS = {"08": Trouble.LOST}  # connection_exception

_SETTINGS = {
    # Planning with JIT costs more than statements like ours gain by it.
    "jit": "off",
    "timezone": "UTC",
    # Of a statement whose caller was cancelled or has died, the server hears when it looks at the connection.
    "client_connection_check_interval": "1s",
}
_WRITE_SETTINGS = {
    "lock_timeout": "2s",
    # A replica that stands still in a transaction, with the head's lock, must not hold up the others.
    "idle_in_transaction_session_timeout": "5s",
}
_SCHEMA_SETTINGS = {"lock_timeout": f"{_SCHEMA_WAIT_S}s"}
_READ_SETTINGS = {"statement_timeout": "60s", "idle_in_transaction_session_timeout": "60s"}


class PostgresBackend:
    """See `modelbox.runtime.store.backend.Backend`."""

    name = "PostgreSQL"
    lock_head: Executable = (
        select(feed_head.c.rev, feed_head.c.chain, func.pg_notify(_CHANNEL, ""))
        .where(feed_head.c.id == 1)
        .with_for_update()
    )

    def engine(self, url: URL, *, purpose: Purpose, connections: int, application: str) -> AsyncEngine:
        """See the protocol."""
        writes = purpose in ("write", "schema")
        settings = {"write": _WRITE_SETTINGS, "schema": _SCHEMA_SETTINGS}.get(purpose, _READ_SETTINGS)
        return create_async_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=5.0,
            isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
            execution_options={} if writes else {"postgresql_readonly": True},
            connect_args={
                "timeout": _CONNECT_S,
                "command_timeout": _COMMAND_S[purpose],
                "prepared_statement_cache_size": 500,
                "server_settings": {
                    **_SETTINGS,
                    **settings,
                    "application_name": f"{application} {purpose}",
                },
            },
        )

    def trouble_of(self, exc: BaseException) -> Trouble:
        """See the protocol."""
        cause = cause_of(exc)
        if isinstance(cause, asyncpg.InvalidCachedStatementError):
            # A newer release has changed the schema meanwhile; the statement is prepared again.
            return Trouble.CONFLICT
        state = str(getattr(cause, "sqlstate", None) or "")
        if state:
            return _BY_STATE.get(state) or _BY_CLASS.get(state[:2]) or Trouble.OTHER
        if isinstance(cause, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | TimeoutError):
            return Trouble.LOST
        if "connection" in str(cause).lower() and getattr(exc, "connection_invalidated", False):
            return Trouble.LOST
        return Trouble.OTHER

    def limit_statements(self, conn: Connection, seconds: float) -> None:
        """See the protocol."""
        conn.execute(text(f"SET LOCAL statement_timeout = {max(1, int(seconds * 1000))}"))

    def lock_schema(self, conn: Connection) -> None:
        """See the protocol."""
        conn.execute(select(func.pg_advisory_lock(_SCHEMA_LOCK)))

    def unlock_schema(self, conn: Connection) -> None:
        """See the protocol."""
        conn.execute(select(func.pg_advisory_unlock(_SCHEMA_LOCK)))
        conn.commit()

    async def follow(self, url: URL, wake: Callable[[], None]) -> None:
        """See the protocol: LISTEN on a connection of its own."""
        while True:
            try:
                connection = await asyncpg.connect(**_arguments(url), timeout=_CONNECT_S)
                try:
                    ended = asyncio.Event()
                    connection.add_termination_listener(partial(_set, ended))
                    await connection.add_listener(_CHANNEL, lambda *_: wake())
                    # What was committed while nobody listened.
                    wake()
                    await ended.wait()
                finally:
                    with contextlib.suppress(Exception):
                        await connection.close(timeout=1.0)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as exc:
                _LOG.debug("cannot listen for changes: %s", type(exc).__name__)
            await asyncio.sleep(_RECONNECT_S)


def _set(event: asyncio.Event, _: object) -> None:
    event.set()


def _arguments(url: URL) -> dict[str, Any]:
    """What asyncpg connects with, as SQLAlchemy's dialect understands the address."""
    dialect: Any = url.get_dialect()()
    _, arguments = dialect.create_connect_args(url)
    arguments.pop("prepared_statement_cache_size", None)
    arguments.pop("prepared_statement_name_func", None)
    return {**arguments, "server_settings": {"application_name": "modelbox news"}}
