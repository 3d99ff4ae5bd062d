"""Bringing a database's schema up to date.

Alembic is slow to import, so it is left alone where the stored revision is the newest one.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from modelbox.errors import ConfigError

__all__ = ("HEAD", "migrate")

HEAD = "0002"
"""The newest revision in ``migrations/versions``; a test holds the two together."""

_SCRIPTS = Path(__file__).parent / "migrations"


def migrate(connection: Connection) -> bool:
    """Brings the schema of a database that nobody else uses up to date; returns whether there was anything to do.

    On SQLite all steps are one transaction.

    Raises:
        ConfigError: The database was made by a newer release.
    """
    if _stored(connection) == HEAD:
        return False
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
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
                f"the database has the schema {_stored(connection)!r}, which this release does not know: "
                "use the release that made it, or a newer one"
            ) from exc
        raise
    if by_hand:
        connection.exec_driver_sql("COMMIT")
    return True


def _stored(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
