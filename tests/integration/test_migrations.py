"""Migrations on every database: up to what is declared, down again step by step, and through interruptions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, MetaData, create_engine, event, func, inspect, select, text
from sqlalchemy.dialects.mysql import TINYBLOB
from sqlalchemy.ext.asyncio import create_async_engine

from modelbox.errors import ConfigError
from modelbox.feed import Action, Kind, next_chain
from modelbox.runtime.caller import NO_ORIGIN, Origin
from modelbox.runtime.store import metric_schema, schema
from modelbox.runtime.store import migrate as migrate_module
from modelbox.runtime.store.history import NewChange, append, create_head, next_rev, verify_chain
from modelbox.runtime.store.metric_partitions import DEFAULT as PARTITION
from modelbox.runtime.store.migrate import MAIN, METRICS, Migrations, migrate, stored_revision
from modelbox.runtime.store.opening import parse_database_url
from tests.integration.test_store_migration import write_first_release

T = TypeVar("T")

_OF_MIGRATIONS = ("alembic_version", "metric_alembic_version", "schema_steps")


class Place:
    """A database of one of three kinds, with nothing in it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.kind = url.partition(":")[0].partition("+")[0]

    def run(self, fn: Callable[[Connection], T]) -> T:
        """Runs ``fn`` on a connection of its own, and commits what it did."""
        if self.kind == "sqlite":
            engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
            try:
                with engine.connect() as connection:
                    return fn(connection)
            finally:
                engine.dispose()
        return asyncio.run(self._run(fn))

    async def _run(self, fn: Callable[[Connection], T]) -> T:
        engine = create_async_engine(parse_database_url(self._url))
        try:
            async with engine.connect() as connection:
                result = await connection.run_sync(fn)
                await connection.commit()
                return result
        finally:
            await engine.dispose()


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(f"sqlite:///{tmp_path / 'some.db'}")
    return Place(request.getfixturevalue(f"{request.param}_url"))


def _revisions(migrations: Migrations) -> list[str]:
    from alembic.script import ScriptDirectory

    return [step.revision for step in ScriptDirectory(str(migrations.scripts)).walk_revisions()][::-1]


# -- what a schema is ----------------------------------------------------------------------------------------------

_POSTGRES = {
    "columns": """
        SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default, is_identity,
          collation_name FROM information_schema.columns WHERE table_schema = 'public'""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype <> 'n'""",
}
_MYSQL = {
    "columns": """
        SELECT table_name, column_name, column_type, is_nullable, column_default, extra, collation_name
        FROM information_schema.columns WHERE table_schema = database()""",
    "indexes": """
        SELECT table_name, index_name, seq_in_index, column_name, sub_part, non_unique
        FROM information_schema.statistics WHERE table_schema = database()""",
    "references": """
        SELECT k.table_name, k.constraint_name, k.column_name, k.referenced_table_name, k.referenced_column_name,
          r.delete_rule FROM information_schema.key_column_usage k
        JOIN information_schema.referential_constraints r USING (constraint_schema, constraint_name)
        WHERE k.table_schema = database()""",
    "tables": """
        SELECT table_name, engine, row_format, table_collation FROM information_schema.tables
        WHERE table_schema = database()""",
}


def _described(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All that the database itself says of its tables, but those of Alembic."""
    if connection.dialect.name == "sqlite":
        found: dict[str, list[tuple[Any, ...]]] = {}
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            pragmas = ("table_xinfo", "foreign_key_list")
            rows = [tuple(row)[1:] for one in pragmas for row in connection.exec_driver_sql(f"PRAGMA {one}({table})")]
            for index in connection.exec_driver_sql(f"PRAGMA index_list({table})").all():
                columns = connection.exec_driver_sql(f"PRAGMA index_info('{index[1]}')").all()
                # Indexes of constraints have numbers for names.
                name = "" if index[1].startswith("sqlite_") else index[1]
                rows.append((name, *index[2:], *(column[2] for column in columns)))
            options = connection.exec_driver_sql(
                f"SELECT sql LIKE '%WITHOUT ROWID%', sql LIKE '%AUTOINCREMENT%' FROM sqlite_master WHERE name='{table}'"
            ).one()
            found[table] = sorted([*rows, tuple(options)], key=repr)
        return {name: rows for name, rows in found.items() if name not in _OF_MIGRATIONS}
    queries = _POSTGRES if connection.dialect.name == "postgresql" else _MYSQL
    return {
        name: sorted((tuple(row) for row in connection.execute(text(query)) if row[0] not in _OF_MIGRATIONS), key=repr)
        for name, query in queries.items()
    }


def _declare(connection: Connection) -> None:
    schema.metadata.create_all(connection)
    metric_schema.metadata.create_all(connection)
    if connection.dialect.name == "postgresql":
        migrate_module.compare_by_bytes(connection)


def _up(connection: Connection) -> None:
    migrate(connection, MAIN)
    migrate(connection, METRICS)


# -- up ------------------------------------------------------------------------------------------------------------


def test_what_migrations_make_is_what_is_declared(place: Place, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    both = MetaData()
    for metadata in (schema.metadata, metric_schema.metadata):
        for table in metadata.tables.values():
            table.to_metadata(both)

    def compared(connection: Connection) -> list[Any]:
        options = {
            # MySQL makes a TINYBLOB of BLOB(32), and Alembic does not know; the descriptions below are its own.
            "compare_type": lambda _, __, ___, found, ____: False if isinstance(found, TINYBLOB) else None,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "table" or name not in (*_OF_MIGRATIONS, PARTITION),
        }
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), both)
        return found

    place.run(_up)
    assert place.run(compared) == []
    migrated = place.run(_described)

    def begin_again(connection: Connection) -> None:
        tables = MetaData()
        # It goes with the table that it is a part of.
        tables.reflect(connection, only=lambda name, _: name != PARTITION)
        tables.drop_all(connection)

    place.run(begin_again)
    place.run(_declare)
    declared = place.run(_described)
    assert migrated.keys() == declared.keys()
    for part, rows in declared.items():
        assert migrated[part] == rows
    texts = [row[-1] for row in declared.get("columns", []) if row[-1] is not None]
    assert set(texts) == {"sqlite": set(), "postgresql": {"C"}, "mysql": {"utf8mb4_nopad_bin"}}[place.kind]
    assert {row[1:] for row in declared.get("tables", [])} <= {("InnoDB", "Dynamic", "utf8mb4_nopad_bin")}


@pytest.mark.parametrize("migrations", [MAIN, METRICS], ids=["main", "metrics"])
def test_each_step_is_taken_back(place: Place, migrations: Migrations) -> None:
    seen = []
    for revision in _revisions(migrations):
        assert place.run(partial(migrate, migrations=migrations, to=revision))
        seen.append((revision, place.run(_described)))
    assert not place.run(lambda conn: migrate(conn, migrations))
    for revision, described in seen[::-1]:
        place.run(partial(migrate, migrations=migrations, to=revision))
        assert place.run(lambda conn: stored_revision(conn, migrations)) == revision
        assert place.run(_described) == described
    assert place.run(lambda conn: migrate(conn, migrations, to=""))
    assert not any(place.run(_described).values())
    assert place.run(lambda conn: migrate(conn, migrations))
    assert place.run(_described) == seen[-1][1]


def test_data_of_the_first_release_comes_up_and_down(place: Place) -> None:
    def count(connection: Connection) -> dict[str, int]:
        tables = MetaData()
        tables.reflect(connection)
        found = {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in tables.tables.items()
            if name not in _OF_MIGRATIONS
        }
        return {name: number for name, number in found.items() if number}

    place.run(lambda conn: migrate(conn, to="0001"))
    place.run(lambda conn: write_first_release(conn, versions=9))
    first = place.run(count)
    place.run(migrate)
    newest = place.run(count)
    assert newest["objects"] == 2 + 2 + 9 + 3
    assert {name: newest[name] for name in first} == first
    place.run(lambda conn: migrate(conn, to="0001"))
    assert place.run(count) == first
    place.run(migrate)
    assert place.run(count) == newest


def test_going_back_forgets_the_changes_that_name_callers(place: Place) -> None:
    """Older releases could not verify them."""
    changes, head = schema.feed_changes, schema.feed_head

    def write(connection: Connection) -> None:
        create_head(connection)
        for rev in range(1, 6):
            place_ = next_rev(connection)
            origin = Origin(address="::1") if rev == 3 else NO_ORIGIN
            change = NewChange(
                namespace="ns", object="ns/m", kind=Kind.MODEL, action=Action.UPDATED, state={"rev": rev}, origin=origin
            )
            append(connection, place_, [change], actor="ann", at=datetime(2026, 5, 3, tzinfo=UTC))

    def stored(connection: Connection) -> tuple[list[int], int, bool]:
        revs = list(connection.execute(select(changes.c.rev).order_by(changes.c.rev)).scalars())
        row = connection.execute(select(head.c.compact_rev, head.c.compact_chain)).one()
        chain = bytes(row.compact_chain)
        following = connection.execute(select(changes.c.chain, changes.c.state).where(changes.c.rev == 4)).one()
        body = ["idx", "namespace", "object", "kind", "action", "actor", "at_us", "state"]
        parts = connection.execute(select(*(changes.c[name] for name in body)).where(changes.c.rev == 4)).one()
        text_ = json.dumps(list(parts), ensure_ascii=False, separators=(",", ":")).encode()
        return revs, row.compact_rev, next_chain(chain, 4, [text_]) == bytes(following.chain)

    place.run(migrate)
    place.run(write)
    assert place.run(verify_chain) == 5
    place.run(lambda conn: migrate(conn, to="0006"))
    # What is left fits, by the rules of that release.
    assert place.run(stored) == ([4, 5], 3, True)
    place.run(migrate)
    assert place.run(verify_chain) == 2


def test_a_schema_of_a_newer_release_is_left_alone(place: Place) -> None:
    place.run(migrate)
    place.run(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    before = place.run(_described)
    for to in (None, "0001"):
        with pytest.raises(ConfigError, match="'9999', which this release does not know"):
            place.run(partial(migrate, to=to))
    assert place.run(_described) == before


def test_only_schemas_that_there_are_can_be_asked_for(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"no schema '12': expected one of 0001, 0002"):
        place.run(lambda conn: migrate(conn, to="12"))
    assert place.run(stored_revision) is None


# -- interruptions -------------------------------------------------------------------------------------------------


class _Interrupted(Exception):
    pass


def _interrupted(connection: Connection, *, after: int, to: str | None) -> bool:
    """Migrates until so many statements have changed the schema; whether it was interrupted."""
    left = after

    def before(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal left
        if statement.lstrip().upper().startswith(("CREATE", "ALTER", "DROP")):
            if not left:
                raise _Interrupted
            left -= 1

    event.listen(connection, "before_cursor_execute", before)
    try:
        migrate(connection, to=to)
    except _Interrupted:
        if connection.in_transaction():
            connection.rollback()
        return True
    finally:
        event.remove(connection, "before_cursor_execute", before)
    return False


@pytest.fixture
def newest(place: Place) -> dict[str, Any]:
    place.run(migrate)
    return place.run(_described)


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
def test_an_interrupted_migration_is_finished_by_the_next_one(place: Place, newest: dict[str, Any], down: bool) -> None:
    # MySQL keeps what was done: there it is every statement of the newest one, and some of those before.
    for oldest, every in (("0006", 1), ("0003", 7)) if place.kind == "mysql" else (("0003", 4),):
        begin, to = (None, oldest) if down else (oldest, None)
        after, interrupted = 0, True
        while interrupted:
            place.run(partial(migrate, to=begin))
            interrupted = place.run(partial(_interrupted, after=after, to=to))
            place.run(migrate)
            assert place.run(stored_revision) == MAIN.head
            assert place.run(_described) == newest
            after += every
        assert after > 4
