"""Changing a database's schema by hand: `modelbox server migrate`, forth and back, while no server starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyio import to_thread
from sqlalchemy import Connection, create_engine, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from modelbox.errors import ConfigError
from modelbox.runtime.store.clock import database_now_us
from modelbox.runtime.store.history import create_head
from modelbox.runtime.store.migrate import MAIN, METRICS, Migrations, is_broken, migrate, stored_revision
from modelbox.runtime.store.opening import backend_of, parse_database_url
from modelbox.runtime.store.schema import replicas
from modelbox.runtime.store.shared import prepare
from modelbox.runtime.store.sqlite import lock_directory
from modelbox.runtime.store.sqlite_connection import translate

__all__ = ("SchemaChange", "change_schema")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaChange:
    """What became of one set of tables; revisions are empty where there are no tables."""

    tables: str
    before: str
    after: str


async def change_schema(
    database_url: str,
    *,
    data_dir: Path,
    to: str | None,
    metrics_to: str | None,
    force: bool,
    connect_timeout_s: float,
) -> list[SchemaChange]:
    """Brings the schema to the newest revision, or to others; nobody else changes it meanwhile.

    Args:
        database_url: As the setting.
        data_dir: As the setting.
        to: Another revision of the main tables.
        metrics_to: Another revision of the tables of metrics.
        force: Go back to an older revision: what that cannot hold is lost, and servers that run fail.
        connect_timeout_s: How long to wait for a database that is away.

    Raises:
        ConfigError: A revision is unknown, going back was not confirmed, or a server uses the directory (SQLite).
        ServerBusy: The database is away.
        StorageError: Anything else.
    """
    changes: list[SchemaChange] = []

    def change(conn: Connection, sets: list[tuple[str, Migrations, str | None]]) -> None:
        changes.clear()
        for name, migrations, target in sets:
            before = stored_revision(conn, migrations)
            if target is not None and before is not None and target < before and not force:
                raise ConfigError(
                    f"{name} go back from {before} to {target}: what that cannot hold is lost"
                    f"{_who_serves(conn)}. Make an export first, then say --force"
                )
            migrate(conn, migrations, to=target)
            after = stored_revision(conn, migrations)
            changes.append(SchemaChange(tables=name, before=before or "", after=after or ""))

    main, metrics = ("main tables", MAIN, to), ("tables of metrics", METRICS, metrics_to)

    def change_both(conn: Connection) -> None:
        change(conn, [main, metrics])
        if stored_revision(conn, MAIN) == MAIN.head:
            create_head(conn)

    if not database_url:
        found: list[SchemaChange] = []

        def change_files() -> None:
            with lock_directory(data_dir):
                for file, one in (("modelbox.db", main), ("metrics.db", metrics)):
                    _in_file(data_dir / file, partial(change, sets=[one]))
                    found.extend(changes)

        await to_thread.run_sync(change_files)
        return found
    url = parse_database_url(database_url)
    backend = backend_of(url)
    engine = backend.engine(url, purpose="schema", connections=1, application="modelbox migrate")
    try:
        await prepare(engine, backend, change_both, connect_timeout_s=connect_timeout_s)
    finally:
        await engine.dispose()
    return changes


def _who_serves(conn: Connection) -> str:
    if not inspect(conn).has_table(replicas.name) or is_broken(conn):
        return ""
    query = select(func.count()).select_from(replicas).where(replicas.c.until_us > database_now_us())
    number = conn.execute(query).scalar_one()
    return f", and {number} servers that use the database fail" if number else ""


def _in_file(path: Path, work: Callable[[Connection], None]) -> None:
    engine = create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            work(connection)
    except SQLAlchemyError as exc:
        raise translate(exc) from exc
    finally:
        engine.dispose()
        with contextlib.suppress(OSError):
            path.chmod(0o600)
