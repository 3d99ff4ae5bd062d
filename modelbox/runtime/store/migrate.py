"""Bringing a database's schema up to date.

Alembic is slow to import, so it is left alone where the stored revision is the newest one. The tables of metrics have
migrations of their own, since they may be in a file of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, bindparam, inspect, text

from modelbox.errors import ConfigError
from modelbox.runtime.store import metric_schema, schema

__all__ = ("HEAD", "MAIN", "METRICS", "Migrations", "migrate")

HEAD = "0006"
"""The newest revision in ``migrations/versions``; a test holds the two together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrations:
    """A set of tables that grows by itself.

    Attributes:
        head: The newest revision; a test holds it and the scripts together.
        scripts: Where the migrations are.
        version_table: Where a database keeps how far it is.
    """

    head: str
    scripts: Path
    version_table: str


MAIN = Migrations(head=HEAD, scripts=Path(__file__).parent / "migrations", version_table="alembic_version")
METRICS = Migrations(
    head="0001", scripts=Path(__file__).parent / "metric_migrations", version_table="metric_alembic_version"
)


def migrate(connection: Connection, migrations: Migrations = MAIN) -> bool:
    """Brings the schema of a database that nobody else uses up to date; returns whether there was anything to do.

    On SQLite all steps are one transaction.

    Raises:
        ConfigError: The database was made by a newer release.
    """
    if _stored(connection, migrations) == migrations.head:
        return False
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations.scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    by_hand = connection.dialect.name == "sqlite"
    if by_hand:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        command.upgrade(config, "head")
    except BaseException as exc:
        if by_hand:
            connection.exec_driver_sql("ROLLBACK")
        if isinstance(exc, CommandError):
            raise ConfigError(
                f"the database has the schema {_stored(connection, migrations)!r}, which this release does not know: "
                "use the release that made it, or a newer one"
            ) from exc
        raise
    if by_hand:
        connection.exec_driver_sql("COMMIT")
    if connection.dialect.name == "postgresql":
        _compare_by_bytes(connection)
    return True


_COLLATED = text(
    """
    SELECT t.relname AS "table", quote_ident(a.attname) AS name, format_type(a.atttypid, a.atttypmod) AS type
    FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid JOIN pg_collation c ON c.oid = a.attcollation
    WHERE t.relnamespace = current_schema()::regnamespace AND t.relname IN :tables
      AND a.attnum > 0 AND NOT a.attisdropped AND c.collname <> 'C'
    ORDER BY t.relname, a.attnum
    """
).bindparams(bindparam("tables", expanding=True))


def _compare_by_bytes(connection: Connection) -> None:
    """Has PostgreSQL compare our texts byte by byte, in whatever language its administrator sorts.

    Names are in the same order on every database then, and pages of lists that are ordered by them fit together.
    """
    tables = [*schema.metadata.tables, *metric_schema.metadata.tables]
    columns: dict[str, list[str]] = {}
    for row in connection.execute(_COLLATED, {"tables": tables}):
        columns.setdefault(row.table, []).append(f'ALTER COLUMN {row.name} TYPE {row.type} COLLATE "C"')
    for table, changes in columns.items():
        connection.execute(text(f"ALTER TABLE {table} {', '.join(changes)}"))


def _stored(connection: Connection, migrations: Migrations) -> str | None:
    if not inspect(connection).has_table(migrations.version_table):
        return None
    return connection.execute(text(f"SELECT version_num FROM {migrations.version_table}")).scalar()
