"""Bringing a database's schema up to date.

Alembic is slow to import, so it is left alone where the stored revision is the newest one. The tables of metrics have
migrations of their own, since they may be in a file of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, bindparam, inspect, text

from modelbox.runtime.store import metric_schema, schema

__all__ = ("HEAD", "MAIN", "METRICS", "Migrations", "is_broken", "migrate", "stored_revision")

HEAD = "0008"
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
    head="0002", scripts=Path(__file__).parent / "metric_migrations", version_table="metric_alembic_version"
)


def migrate(connection: Connection, migrations: Migrations = MAIN, *, to: str | None = None) -> bool:
    """Brings the schema of a database that nobody else uses up to date; returns whether there was anything to do.

    On SQLite and PostgreSQL all steps are one transaction; on MySQL, a step that broke off is undone first.

    Args:
        connection: To the database; on SQLite not in a transaction.
        migrations: Whose tables.
        to: Another revision than the newest one, also an older one, which may lose data; empty for no tables at all.

    Raises:
        ConfigError: The database was made by a newer release, or there is no such revision.
    """
    target = migrations.head if to is None else (to or None)
    stored = stored_revision(connection, migrations)
    if stored == target and not is_broken(connection, migrations):
        return False
    from alembic.config import Config

    from modelbox.runtime.store.steps import walk

    config = Config()
    config.set_main_option("script_location", str(migrations.scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    by_hand = connection.dialect.name == "sqlite"
    if by_hand:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        walk(connection, config, version_table=migrations.version_table, stored=stored, target=target)
    except BaseException:
        if by_hand:
            connection.exec_driver_sql("ROLLBACK")
        raise
    if by_hand:
        connection.exec_driver_sql("COMMIT")
    if connection.dialect.name == "postgresql":
        compare_by_bytes(connection)
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


def compare_by_bytes(connection: Connection) -> None:
    """Has PostgreSQL compare our texts byte by byte, in whatever language its administrator sorts.

    Names are in the same order on every database then, and pages of lists that are ordered by them fit together.
    """
    tables = [*schema.metadata.tables, *metric_schema.metadata.tables]
    columns: dict[str, list[str]] = {}
    for row in connection.execute(_COLLATED, {"tables": tables}):
        columns.setdefault(row.table, []).append(f'ALTER COLUMN {row.name} TYPE {row.type} COLLATE "C"')
    for table, changes in columns.items():
        connection.execute(text(f"ALTER TABLE {table} {', '.join(changes)}"))


def stored_revision(connection: Connection, migrations: Migrations = MAIN) -> str | None:
    """How far a database is; None for one without our tables."""
    if not inspect(connection).has_table(migrations.version_table):
        return None
    return connection.execute(text(f"SELECT version_num FROM {migrations.version_table}")).scalar()


def is_broken(connection: Connection, migrations: Migrations = MAIN) -> bool:
    """Whether a migration of MySQL's broke off, so that the stored revision does not tell all."""
    if connection.dialect.name != "mysql" or not inspect(connection).has_table("schema_steps"):
        return False
    query = text("SELECT count(*) FROM schema_steps WHERE version_table = :name")
    return bool(connection.execute(query, {"name": migrations.version_table}).scalar())
