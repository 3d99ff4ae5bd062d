"""What can be wrong with a database before a server finds out: `modelbox server check`.

Looks, and changes nothing: what it writes to see whether it may is rolled back, and touches no row.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from anyio import to_thread
from sqlalchemy import URL, Connection, Executable, Table, create_engine, false, func, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from modelbox.errors import ModelBoxError
from modelbox.runtime.store import metric_schema, schema
from modelbox.runtime.store.backend import Backend, Trouble, error_of, said
from modelbox.runtime.store.clock import database_now_us
from modelbox.runtime.store.migrate import MAIN, METRICS, Migrations, is_broken, stored_revision
from modelbox.runtime.store.opening import backend_of, parse_database_url
from modelbox.runtime.store.schema import feed_head, replicas
from modelbox.runtime.store.sqlite_connection import translate

__all__ = ("Finding", "State", "check_database")

_ROUND_TRIPS = 7
_CLOCK_S = 1.0
_SLOW_S = 0.02
_OTHER_CONNECTIONS = 9
_CHANGES_OF_SCHEMA = frozenset(["ALTER", "CREATE", "DROP", "INDEX", "REFERENCES"])


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: State
    detail: str


async def check_database(database_url: str, *, data_dir: Path, connections: int) -> list[Finding]:
    """Looks at a database as a server with these settings would find it.

    Args:
        database_url: As the setting.
        data_dir: As the setting.
        connections: As the setting ``database_connections``.

    Returns:
        What was found; a database that cannot be reached is a finding, not an error.

    Raises:
        ConfigError: The address is none, or its driver is not installed.
    """
    if not database_url:
        return await to_thread.run_sync(_check_sqlite, data_dir)
    url = parse_database_url(database_url)
    backend = backend_of(url)
    engine = backend.engine(url, purpose="write", connections=1, application="modelbox check")
    try:
        return await _check_shared(engine, backend, url, connections)
    finally:
        await engine.dispose()


# -- databases that replicas share -------------------------------------------------------------------------------------


async def _check_shared(engine: AsyncEngine, backend: Backend, url: URL, connections: int) -> list[Finding]:
    where = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
    try:
        began = time.perf_counter()
        async with engine.connect() as connection:
            opened_s = time.perf_counter() - began
            found = [await connection.run_sync(_connected, where, opened_s)]
            for check in (_schema, _clock, lambda conn: _writable(conn, backend), _durability):
                found += await connection.run_sync(_guarded, check, backend)
            found += await connection.run_sync(_guarded, lambda conn: _connections(conn, connections), backend)
            return found
    except Exception as exc:
        error = error_of(exc, backend)
        if not isinstance(error, ModelBoxError):
            raise
        return [Finding(check="database", state=State.FAILED, detail=f"{where}: {error}")]


def _guarded(conn: Connection, check: Callable[[Connection], Iterator[Finding]], backend: Backend) -> list[Finding]:
    """What a check finds, also where the database refuses to tell."""
    found: list[Finding] = []
    try:
        found.extend(check(conn))
    except Exception as exc:
        if backend.trouble_of(exc) is Trouble.LOST or not isinstance(error_of(exc, backend), ModelBoxError):
            raise
        found.append(
            Finding(check="permissions", state=State.WARNING, detail=f"the database does not tell: {said(exc)}")
        )
    finally:
        conn.rollback()
    return found


def _connected(conn: Connection, where: str, opened_s: float) -> Finding:
    version = conn.execute(text("SHOW server_version" if _is_postgres(conn) else "SELECT version()")).scalar()
    times = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        conn.execute(text("SELECT 1")).all()
        times.append(time.perf_counter() - began)
    conn.rollback()
    trip_s = statistics.median(times)
    detail = f"{where}, version {version}; round trip {trip_s * 1000:.1f} ms, connected in {opened_s * 1000:.0f} ms"
    if trip_s > _SLOW_S:
        return Finding(
            check="database",
            state=State.WARNING,
            detail=f"{detail}: every change takes several of those, and all replicas wait for it; move them closer",
        )
    return Finding(check="database", state=State.OK, detail=detail)


def _schema(conn: Connection) -> Iterator[Finding]:
    yield _revision(conn, MAIN, "schema")
    yield _revision(conn, METRICS, "schema of metrics")
    if stored_revision(conn, MAIN) == MAIN.head:
        row = conn.execute(select(feed_head.c.epoch, feed_head.c.rev)).one_or_none()
        if row is None:
            yield Finding(check="feed", state=State.WARNING, detail="no history yet: a server's first start begins it")
        else:
            live = conn.execute(
                select(func.count()).select_from(replicas).where(replicas.c.until_us > database_now_us())
            ).scalar_one()
            yield Finding(check="feed", state=State.OK, detail=f"revision {row.rev}, {live} servers hold a lease")
    if not _is_postgres(conn) and conn.dialect.name == "mysql":
        yield from _tables_of_mysql(conn)
    elif _is_postgres(conn):
        encoding = conn.execute(text("SHOW server_encoding")).scalar()
        if encoding != "UTF8":
            detail = f"the database is encoded in {encoding} and cannot hold every text: make one with ENCODING 'UTF8'"
            yield Finding(check="encoding", state=State.FAILED, detail=detail)


def _revision(conn: Connection, migrations: Migrations, what: str) -> Finding:
    stored, newest = stored_revision(conn, migrations), migrations.head
    state, detail = State.OK, f"{stored}, the newest"
    if is_broken(conn, migrations):
        state, detail = State.WARNING, f"{stored}, and a migration broke off: a start or server migrate finishes it"
    elif stored is None:
        state, detail = State.WARNING, f"no tables yet: a start or server migrate makes them ({newest})"
    elif stored != newest and stored in _known(migrations):
        state, detail = State.WARNING, f"{stored}: a start or server migrate brings it to {newest}"
    elif stored != newest:
        state, detail = State.FAILED, f"{stored} is of a newer release than this one, which knows {newest}: use that"
    return Finding(check=what, state=state, detail=detail)


def _known(migrations: Migrations) -> frozenset[str]:
    return frozenset(path.name.partition("_")[0] for path in (migrations.scripts / "versions").glob("[0-9]*_*.py"))


def _tables_of_mysql(conn: Connection) -> Iterator[Finding]:
    query = text(
        "SELECT table_name, engine, table_collation FROM information_schema.tables WHERE table_schema = database()"
    )
    ours = {*schema.metadata.tables, *metric_schema.metadata.tables}
    for name, engine, collation in conn.execute(query):
        if name in ours and engine != "InnoDB":
            detail = f"table {name} is kept by {engine}, which has no transactions: ALTER TABLE {name} ENGINE=InnoDB"
            yield Finding(check="engine", state=State.FAILED, detail=detail)
        if name in ours and collation not in ("utf8mb4_nopad_bin", "utf8mb4_0900_bin"):
            detail = f"table {name} compares texts by {collation}, which takes different names for the same"
            yield Finding(check="collation", state=State.FAILED, detail=detail)


def _clock(conn: Connection) -> Iterator[Finding]:
    offset_s, within_s = 0.0, math.inf
    for _ in range(_ROUND_TRIPS):
        before = time.time()
        theirs = int(conn.execute(select(database_now_us())).scalar_one()) / 1e6
        after = time.time()
        if after - before < within_s:
            within_s, offset_s = after - before, (before + after) / 2 - theirs
    detail = (
        f"this machine is {abs(offset_s):.3f} s {'ahead' if offset_s > 0 else 'behind'}, give or take {within_s:.3f} s"
    )
    if abs(offset_s) - within_s > _CLOCK_S:
        yield Finding(
            check="clock", state=State.WARNING, detail=f"{detail}: times that servers write do not fit; set both by NTP"
        )
    else:
        yield Finding(check="clock", state=State.OK, detail=detail)


def _writable(conn: Connection, backend: Backend) -> Iterator[Finding]:
    there = set(inspect(conn).get_table_names())
    tables = [
        table
        for metadata in (schema.metadata, metric_schema.metadata)
        for table in metadata.sorted_tables
        if table.name in there
    ]
    refused: list[str] = []
    for table in tables:
        for statement in _probes(table):
            try:
                conn.execute(statement)
            except Exception as exc:
                conn.rollback()
                trouble = backend.trouble_of(exc)
                if trouble is Trouble.READ_ONLY:
                    detail = f"takes no changes ({said(exc)}): a standby? database_url must lead to the primary"
                    yield Finding(check="writes", state=State.FAILED, detail=detail)
                    return
                if trouble is Trouble.LOST:
                    raise
                refused.append(said(exc))
    conn.rollback()
    if refused:
        detail = f"{refused[0]}{f', and {len(refused) - 1} more' if len(refused) > 1 else ''}: GRANT what is missing"
        yield Finding(check="writes", state=State.FAILED, detail=detail)
    elif tables:
        yield from _head(conn, backend)
    if missing := _missing_rights(conn):
        yield Finding(
            check="schema changes",
            state=State.WARNING,
            detail=f"this user lacks {', '.join(missing)}: have another one run modelbox server migrate",
        )


def _probes(table: Table) -> Iterator[Executable]:
    column = next(iter(table.c))
    yield table.insert().from_select(list(table.c), select(*table.c).where(false()))
    yield table.update().values({column.name: column}).where(false())
    yield table.delete().where(false())


def _head(conn: Connection, backend: Backend) -> Iterator[Finding]:
    try:
        conn.execute(backend.lock_head)
    except Exception as exc:
        conn.rollback()
        if backend.trouble_of(exc) is not Trouble.BUSY:
            raise
        detail = f"somebody holds the lock of the feed's head for seconds, and all servers wait ({said(exc)})"
        yield Finding(check="writes", state=State.FAILED, detail=detail)
    else:
        conn.rollback()
        yield Finding(
            check="writes", state=State.OK, detail="every table may be changed, and the feed's head be locked"
        )


def _missing_rights(conn: Connection) -> list[str]:
    if _is_postgres(conn):
        allowed = conn.execute(text("SELECT has_schema_privilege(current_schema(), 'CREATE')")).scalar()
        return [] if allowed else ["CREATE on its schema"]
    query = text(
        """
        SELECT privilege_type FROM information_schema.user_privileges WHERE grantee = :grantee
        UNION SELECT privilege_type FROM information_schema.schema_privileges
        WHERE grantee = :grantee AND database() LIKE table_schema
        """
    )
    user, _, host = str(conn.execute(text("SELECT current_user()")).scalar()).rpartition("@")
    granted = set(conn.execute(query, {"grantee": f"'{user}'@'{host}'"}).scalars())
    return sorted(_CHANGES_OF_SCHEMA - granted)


# -- what loses acknowledged changes -----------------------------------------------------------------------------------


def _durability(conn: Connection) -> Iterator[Finding]:
    lost = list(_losing_of_postgres(conn) if _is_postgres(conn) else _losing_of_mysql(conn))
    for detail in lost:
        yield Finding(check="durability", state=State.FAILED, detail=detail)
    if not lost:
        yield Finding(check="durability", state=State.OK, detail="what was acknowledged is on disk")


def _losing_of_postgres(conn: Connection) -> Iterator[str]:
    query = text(
        "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')"
    )
    values = {str(name): str(value) for name, value in conn.execute(query)}
    if values.get("fsync") == "off":
        yield "fsync = off: a machine that loses power loses changes, and maybe the whole database"
    if values.get("full_page_writes") == "off":
        yield "full_page_writes = off: a machine that loses power may leave pages that are half written"
    if values.get("synchronous_commit") == "off":
        yield "synchronous_commit = off: a crash loses changes that were acknowledged"


def _losing_of_mysql(conn: Connection) -> Iterator[str]:
    names = ("innodb_flush_log_at_trx_commit", "innodb_doublewrite", "log_bin", "sync_binlog")
    query = text(f"SHOW GLOBAL VARIABLES WHERE variable_name IN {names}")
    values = {str(name).lower(): str(value).upper() for name, value in conn.execute(query)}
    flush = values.get("innodb_flush_log_at_trx_commit")
    if flush == "0":
        yield "innodb_flush_log_at_trx_commit = 0: a crash of the database loses up to a second of changes; set it to 1"
    elif flush not in ("1", "3", None):
        yield f"innodb_flush_log_at_trx_commit = {flush}: a loss of power loses up to a second of changes; set it to 1"
    if values.get("innodb_doublewrite") == "OFF":
        yield "innodb_doublewrite = OFF: a machine that loses power may leave pages that are half written"
    if values.get("log_bin") == "ON" and values.get("sync_binlog") != "1":
        yield f"sync_binlog = {values.get('sync_binlog')}: a crash may leave replicas without changes; set it to 1"


def _connections(conn: Connection, wanted: int) -> Iterator[Finding]:
    if _is_postgres(conn):
        limit = int(conn.execute(text("SELECT current_setting('max_connections')")).scalar_one())
        used = int(conn.execute(text("SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL")).scalar_one())
    else:
        limit = int(conn.execute(text("SELECT @@max_connections")).scalar_one())
        used = int(conn.execute(text("SHOW GLOBAL STATUS LIKE 'Threads_connected'")).one()[1])
    needed = wanted + _OTHER_CONNECTIONS
    detail = f"{used} of {limit} are in use; a server takes up to {needed}"
    if limit - used < needed:
        detail += ": raise max_connections, or lower database_connections"
        yield Finding(check="connections", state=State.WARNING, detail=detail)
    else:
        yield Finding(check="connections", state=State.OK, detail=detail)


def _is_postgres(conn: Connection) -> bool:
    return conn.dialect.name == "postgresql"


# -- SQLite ------------------------------------------------------------------------------------------------------------


def _check_sqlite(directory: Path) -> list[Finding]:
    where = f"SQLite in {directory.absolute()}"
    if not directory.exists():
        return [Finding(check="database", state=State.WARNING, detail=f"{where}: not there yet; a start makes it")]
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return [Finding(check="database", state=State.FAILED, detail=f"{where}: this user may not write there")]
    found: list[Finding] = []
    for file, migrations, what in (("modelbox.db", MAIN, "schema"), ("metrics.db", METRICS, "schema of metrics")):
        path = directory / file
        if not path.exists():
            found.append(Finding(check=what, state=State.WARNING, detail=f"no {file} yet: a start makes it"))
            continue
        engine = create_engine(f"sqlite:///file:{path.absolute()}?mode=ro&uri=true")
        try:
            with engine.connect() as connection:
                found.append(_revision(connection, migrations, what))
        except Exception as exc:
            error = translate(exc)
            if not isinstance(error, ModelBoxError):
                raise
            found.append(Finding(check=what, state=State.FAILED, detail=f"{file}: {error}"))
        finally:
            engine.dispose()
    return [Finding(check="database", state=State.OK, detail=where), *found]
