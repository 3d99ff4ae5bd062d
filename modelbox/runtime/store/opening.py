"""Which database a server uses: `database_url` decides, and without one it is SQLite in the data directory."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from modelbox.errors import ConfigError
from modelbox.runtime.store.backend import Backend
from modelbox.runtime.store.database import DatabaseObserver, MainDatabase
from modelbox.runtime.store.shared import SharedDatabase
from modelbox.runtime.store.sqlite import SqliteDatabase

__all__ = ("backend_of", "open_database", "parse_database_url")

_KINDS = {
    "postgresql": ("postgres", "asyncpg"),
    "postgres": ("postgres", "asyncpg"),
    "mysql": ("mysql", "asyncmy"),
    "mariadb": ("mysql", "asyncmy"),
}
_POSTGRES_QUERY = frozenset(
    ["host", "passfile", "port", "prepared_statement_cache_size", "ssl", "target_session_attrs"]
)
_MYSQL_QUERY = frozenset(
    ["charset", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_check_hostname", "ssl_cipher", "ssl_key", "unix_socket"]
)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_EXPECTED = "expected postgresql://user:password@host:5432/database or mysql://user:password@host:3306/database"


def parse_database_url(text: str) -> URL:
    """The address of a database, with the name of its driver.

    Raises:
        ConfigError: It is none, or not of a kind that is known. The message does not repeat the address, which may hold
            a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as exc:
        raise ConfigError(f"database_url is not an address: {_EXPECTED}") from exc
    kind = url.drivername.partition("+")[0]
    if kind not in _KINDS:
        raise ConfigError(f"database_url begins with {kind!r}: {_EXPECTED}")
    if not url.database:
        raise ConfigError(f"database_url names no database: {_EXPECTED}")
    if "@" in (url.host or ""):
        # The rest of the password is in the host, which is not hidden anywhere.
        raise ConfigError("database_url has more than one @: in user and password, write %40 for @ and %2F for /")
    if _KINDS[kind][0] == "postgres":
        return _with_ssl(url.set(drivername="postgresql+asyncpg"))
    _check_query(url, _MYSQL_QUERY)
    return url.set(drivername="mysql+asyncmy")


def _with_ssl(url: URL) -> URL:
    """An address for asyncpg, which calls ``ssl`` what libpq and everybody's addresses call ``sslmode``."""
    mode = url.query.get("sslmode")
    if mode is not None:
        if mode not in _SSL_MODES:
            raise ConfigError(f"database_url has an unknown sslmode: expected {', '.join(_SSL_MODES)}")
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    _check_query(url, _POSTGRES_QUERY, also=("sslmode",))
    return url


def _check_query(url: URL, known: frozenset[str], *, also: tuple[str, ...] = ()) -> None:
    unknown = sorted(set(url.query) - known)
    if unknown:
        names = ", ".join(sorted({*known, *also}))
        raise ConfigError(f"database_url has unknown options after its ?: {', '.join(unknown)}; known: {names}")


def backend_of(url: URL) -> Backend:
    """What is particular about the database of an address of `parse_database_url`.

    Raises:
        ConfigError: Its driver is not installed.
    """
    kind = url.drivername.partition("+")[0]
    extra, package = _KINDS[kind]
    try:
        if extra == "postgres":
            from modelbox.runtime.store.postgres import PostgresBackend

            return PostgresBackend()
        from modelbox.runtime.store.mysql import MySQLBackend

        return MySQLBackend()
    except ModuleNotFoundError as exc:
        if exc.name != package:
            raise
        raise ConfigError(f"{kind} needs the package {package}: pip install 'modelbox[{extra}]'") from exc


def open_database(
    database_url: str,
    *,
    data_dir: Path,
    connections: int = 10,
    connect_timeout_s: float = 30.0,
    migrate: bool = True,
    application: str = "modelbox",
    observe: DatabaseObserver | None = None,
    observe_metrics: DatabaseObserver | None = None,
) -> MainDatabase:
    """The database of a server; enter it.

    Args:
        database_url: Address; SQLite in ``data_dir`` for an empty one.
        data_dir: Directory for SQLite.
        connections: Readers at most, where there are connections.
        connect_timeout_s: How long entering waits for a database that is away.
        migrate: Whether entering brings the schema up to date; always done on SQLite.
        application: How the database's administrators see this server.
        observe: Told how long functions and commits take.
        observe_metrics: The same of the metrics' writer.

    Raises:
        ConfigError: The address is none, or the driver is not installed.
    """
    if not database_url:
        return SqliteDatabase(data_dir, observe=observe, observe_metrics=observe_metrics)
    url = parse_database_url(database_url)
    return SharedDatabase(
        url,
        backend_of(url),
        connections=connections,
        connect_timeout_s=connect_timeout_s,
        migrate=migrate,
        application=application,
        observe=observe,
        observe_metrics=observe_metrics,
    )
