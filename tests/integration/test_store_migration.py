"""Databases that earlier releases made, with data in them, become those of this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Connection, MetaData, create_engine, insert, select

from modelbox.objects import ModelPatch, NewArtifact
from modelbox.refs import ModelRef
from modelbox.runtime.store import migrate as migrate_module
from modelbox.runtime.store import schema
from modelbox.runtime.store.artifacts import SqlArtifactStore
from modelbox.runtime.store.history import create_head
from modelbox.runtime.store.migrate import HEAD
from modelbox.runtime.store.notes import SqlNoteStore
from modelbox.runtime.store.registry import SqlRegistryStore
from modelbox.runtime.store.sqlite import SqliteDatabase
from modelbox.runtime.store.tracking import SqlTrackingStore
from modelbox.tracking import AttributeKind, NewEvent
from tests.contract.metadata_stores import AT, manifest

MANY = 1203
"""Versions of one model: more than a batch of the migration."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(migrate_module.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def write_first_release(connection: Connection, versions: int = MANY) -> None:
    """What the first release would have written: two namespaces, models, versions, artifacts of everything."""
    tables = MetaData()
    tables.reflect(connection)
    made = {name: tables.tables[name] for name in ("namespaces", "models", "versions", "artifacts")}
    assert "objects" not in tables.tables
    create_head(connection)
    connection.execute(
        insert(made["namespaces"]),
        [{"id": number, "name": f"n{number}", "created_at_us": number, "mod_rev": number} for number in (1, 2)],
    )
    connection.execute(
        insert(made["models"]),
        [
            {
                "id": number,
                "uid": f"mdl_{number:024x}",
                "namespace_id": number,
                "name": "m",
                "owner": "ann",
                "task": "",
                "description": "",
                "labels": json.dumps({"stage": "prod"} if number == 1 else {}),
                "metadata": json.dumps(
                    {"n": 3, "data": {"split": ["a", True], "deep": {"x": 1.5}}} if number == 1 else {}
                ),
                "latest_version": versions if number == 1 else 0,
                "last_version": versions if number == 1 else 0,
                "created_at_us": 10 + number,
                "mod_rev": 3,
            }
            for number in (1, 2)
        ],
    )
    connection.execute(
        insert(made["versions"]),
        [
            {
                "uid": f"ver_{number:024x}",
                "model_id": 1,
                "version": number,
                "digest": f"sha256:{number:064x}",
                "manifest": manifest(f"content {number}").to_json().decode(),
                "description": "",
                "labels": json.dumps({"l": "é" * 300}),
                "metadata": "{}",
                "metrics": json.dumps({"wer": number / 2}),
                "created_at_us": 100 + number,
                "created_by": "bob",
                "mod_rev": 4,
            }
            for number in range(1, versions + 1)
        ],
    )
    connection.execute(
        insert(made["artifacts"]),
        [
            {
                "uid": f"art_{number:024x}",
                "namespace_id": 1,
                "model_id": None if parent == "n1" else 1,
                "parent": parent,
                "name": "a",
                "files": "[]",
                "labels": json.dumps({"from": parent}),
                "metadata": "{}",
                "created_at_us": 1000,
                "created_by": "cid",
                "mod_rev": 5,
            }
            for number, parent in enumerate(("n1", "n1/m", "n1/m@7"))
        ],
    )


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a database that the first release made."""
    path = tmp_path_factory.mktemp("old") / "modelbox.db"
    engine = create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        _upgrade(connection, "0001")
        write_first_release(connection)
        connection.exec_driver_sql("COMMIT")
    engine.dispose()
    return path.read_bytes()


async def test_what_was_there_is_an_object_with_attributes(tmp_path: Path, old: bytes) -> None:
    (tmp_path / "modelbox.db").write_bytes(old)
    async with SqliteDatabase(tmp_path) as database:
        rows = await database.read(lambda conn: conn.execute(select(schema.objects)).all())
        kinds = [row.kind for row in rows]
        assert [(kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)] == [
            ("namespace", 2),
            ("model", 2),
            ("version", MANY),
            ("artifact", 3),
        ]
        by_uid = {row.uid: row for row in rows}
        names = {row.id: row.uid for row in rows}
        namespace = next(row for row in rows if row.kind == "namespace")
        model, version = by_uid[f"mdl_{1:024x}"], by_uid[f"ver_{7:024x}"]
        assert (model.parent_id, model.namespace_id, model.created_at_us, model.mod_rev) == (None, 1, 11, 3)
        assert (version.parent_id, version.created_by, version.created_at_us) == (model.id, "bob", 107)
        assert [names[by_uid[f"art_{number:024x}"].parent_id] for number in range(3)] == [
            namespace.uid,
            model.uid,
            version.uid,
        ]
        assert all(row.deleted_at_us is None for row in rows)

        store = SqlTrackingStore(database)
        found = await store.get_attributes(["n1/m", "n1/m@7", "n2/m"], [])
        assert [(one.object, one.kind.value, one.key) for one in found] == [
            (model.uid, "label", "stage"),
            (model.uid, "metadata", "data"),
            (model.uid, "metadata", "n"),
            (version.uid, "label", "l"),
        ]
        query = select(schema.attributes).where(schema.attributes.c.kind == "metric")
        metrics = await database.read(lambda conn: conn.execute(query).all())
        assert {names[row.object_id]: row.number for row in metrics} == {
            f"ver_{number:024x}": number / 2 for number in range(1, MANY + 1)
        }
        query = select(schema.attribute_leaves)
        leaves = await database.read(lambda conn: conn.execute(query).all())
        assert {(row.path, row.number, row.text) for row in leaves} == {
            ("data.split.0", None, "a"),
            ("data.split.1", None, "true"),
            ("data.deep.x", 1.5, None),
        }
        query = select(schema.attributes.c.value).where(
            schema.attributes.c.object_id == by_uid[f"art_{2:024x}"].id, schema.attributes.c.key == "from"
        )
        assert await database.read(lambda conn: conn.execute(query).scalar()) == '"n1/m@7"'


async def test_an_old_database_goes_on_as_a_new_one(tmp_path: Path, old: bytes) -> None:
    (tmp_path / "modelbox.db").write_bytes(old)
    async with SqliteDatabase(tmp_path) as database:
        registry, store = SqlRegistryStore(database), SqlTrackingStore(database)
        await registry.update_model("n1", "m", ModelPatch(labels={"stage": "old"}), actor="", at=AT)
        assert [one.value for one in await store.get_attributes(["n1/m"], [AttributeKind.LABEL])] == ["old"]
        await registry.delete_version("n1", "m", 7, actor="", at=AT)
        assert (await registry.get_version(ModelRef.parse("n1/m@8"))).version == 8
        made = await SqlArtifactStore(database).create_artifact(
            NewArtifact(parent="n2/m", name="a", files=()), actor="", at=AT
        )
        gone = [f"ver_{7:024x}", f"art_{2:024x}"]
        assert set(await store.find_objects([*gone, made.item.id])) == {made.item.id}
        await registry.delete_model("n1", "m", actor="", at=AT)
        left = await database.read(lambda conn: conn.execute(select(schema.objects.c.kind)).scalars().all())
        assert sorted(left) == ["artifact", "artifact", "model", "namespace", "namespace"]
        left = await database.read(lambda conn: conn.execute(select(schema.attributes.c.kind)).scalars().all())
        assert left == ["label"]
        assert HEAD > "0001"


async def test_events_that_are_there_are_found_by_their_metadata(tmp_path: Path) -> None:
    """Made before find knew metadata of events: more of them than a batch of the migration."""
    engine = create_engine(f"sqlite:///{tmp_path / 'modelbox.db'}", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        _upgrade(connection, "0002")
        create_head(connection)
        connection.execute(insert(schema.namespaces).values(id=1, name="ns", created_at_us=0, mod_rev=1))
        connection.execute(
            insert(schema.objects).values(
                id=1, uid="nsp_1", kind="namespace", namespace_id=1, created_at_us=0, created_by="", mod_rev=1
            )
        )
        metadata = [{"n": number, "job": {"hosts": ["a", None, True]}, "x" * 300: 1} for number in range(MANY)]
        connection.execute(
            insert(schema.events),
            [
                {
                    "uid": f"evt_{number}",
                    "namespace_id": 1,
                    "object_id": 1,
                    "name": "e",
                    "source": "",
                    "at_us": number,
                    "received_at_us": number,
                    "metadata": json.dumps(one),
                    "created_by": "",
                    "mod_rev": 1,
                }
                for number, one in enumerate(metadata)
            ],
        )
        connection.exec_driver_sql("COMMIT")
    engine.dispose()
    values = select(schema.event_values).order_by(schema.event_values.c.event_id, schema.event_values.c.path)
    async with SqliteDatabase(tmp_path) as database:
        migrated = await database.read(lambda conn: conn.execute(values).all())
        assert len(migrated) == MANY * 5
        new = NewEvent(object="ns", name="e", at=AT, metadata=metadata[3])
        await SqlNoteStore(database).log_event(new, actor="", at=AT)
        rows = await database.read(lambda conn: conn.execute(values).all())
    # What is made now has the same rows as what was there.
    assert [row[1:] for row in rows[-5:]] == [row[1:] for row in migrated[15:20]]
