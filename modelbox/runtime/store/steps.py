"""Walking along a set of migrations, forth and back, with Alembic; imported only where there is something to do.

PostgreSQL and SQLite take a step or leave it. MySQL commits at every statement that changes the schema, so a step that
breaks off there stays half done. Before each step a row in ``schema_steps`` says which one begins; whoever comes next
and finds the row undoes what is there of that step, and takes it again. So an interrupted migration needs nobody's
hands, on any database.
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Boolean, Column, Connection, MetaData, String, Table, delete, insert, inspect, select

from modelbox.errors import ConfigError

__all__ = ("find_broken", "walk")

_STEPS = Table(
    "schema_steps",
    MetaData(),
    Column("version_table", String(64), primary_key=True),
    Column("revision", String(32), nullable=False),
    Column("undoing", Boolean, nullable=False),
)


def walk(connection: Connection, config: Config, *, version_table: str, stored: str | None, target: str | None) -> None:
    """Goes from the revision that is stored to another.

    Args:
        connection: Of a database whose schema nobody else changes.
        config: Alembic's.
        version_table: Where the revision is stored.
        stored: The revision; None for none.
        target: Where to go; None for an empty database.

    Raises:
        ConfigError: One of them is unknown to this release.
    """
    script = ScriptDirectory.from_config(config)
    order: list[str | None] = [None, *reversed([step.revision for step in script.walk_revisions()])]
    for revision in (stored, target):
        if revision not in order:
            raise ConfigError(
                f"the database has the schema {stored!r}, which this release does not know: use the release that made "
                "it, or a newer one"
                if revision == stored
                else f"there is no schema {revision!r}: expected one of {', '.join(str(one) for one in order[1:])}"
            )
    if connection.dialect.name != "mysql":
        if order.index(target) >= order.index(stored):
            command.upgrade(config, target or "base")
        else:
            command.downgrade(config, target or "base")
        return
    steps = _Steps(connection, config, version_table)
    place = order.index(stored)
    broken = find_broken(connection, version_table)
    if broken is not None:
        place = order.index(broken[0])
        steps.undo(broken[0], order[place - 1], begun=broken[1])
        place -= 1
    goal = order.index(target)
    while place < goal:
        place += 1
        steps.take(str(order[place]))
    while place > goal:
        steps.undo(str(order[place]), order[place - 1], begun=False)
        place -= 1


def find_broken(connection: Connection, version_table: str) -> tuple[str, bool] | None:
    """The step that broke off, and whether that was while it was undone; None if there is none."""
    if connection.dialect.name != "mysql" or not inspect(connection).has_table(_STEPS.name):
        return None
    query = select(_STEPS.c.revision, _STEPS.c.undoing).where(_STEPS.c.version_table == version_table)
    row = connection.execute(query).one_or_none()
    return None if row is None else (row.revision, row.undoing)


class _Steps:
    """Steps on a database that cannot roll them back."""

    def __init__(self, connection: Connection, config: Config, version_table: str) -> None:
        self._connection = connection
        self._config = config
        self._version_table = version_table
        _STEPS.create(connection, checkfirst=True)
        connection.commit()

    def take(self, revision: str) -> None:
        self._begin(revision, undoing=False)
        command.upgrade(self._config, revision)
        self._end()

    def undo(self, revision: str, before: str | None, *, begun: bool) -> None:
        """Takes a step back, from any point in the middle of it."""
        if not begun:
            self._begin(revision, undoing=True, commit=False)
            # In the same commit: from here on it counts as taken, and is on its way back.
            command.stamp(self._config, revision)
            self._connection.commit()
        command.downgrade(self._config, before or "base")
        self._end()

    def _begin(self, revision: str, *, undoing: bool, commit: bool = True) -> None:
        self._forget()
        values = {"version_table": self._version_table, "revision": revision, "undoing": undoing}
        self._connection.execute(insert(_STEPS).values(values))
        if commit:
            self._connection.commit()
            # Alembic leaves a transaction alone that is not its own.
            self._connection.execute(select(_STEPS.c.revision)).all()

    def _end(self) -> None:
        self._forget()
        self._connection.commit()

    def _forget(self) -> None:
        self._connection.execute(delete(_STEPS).where(_STEPS.c.version_table == self._version_table))
