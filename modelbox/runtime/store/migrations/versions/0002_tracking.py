"""What training records: experiments, runs, checkpoints, attributes, datasets, events, comments, lineage.

Everything that others attach to gets a row in ``objects``: namespaces, models, versions and artifacts that are there
already get theirs here, and the labels, metadata and metrics of models and versions are projected into ``attributes``,
so that they are found like those of new ones. The history of attributes begins with this upgrade.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.schema import LongText
from modelbox.runtime.store.undoing import drop_tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MAX_LEAVES = 1000
_BATCH = 1000


def upgrade() -> None:
    """Makes the tables, then the rows for what is there."""
    _make_tables()
    connection = op.get_bind()
    tables = sa.MetaData()
    names = ("objects", "namespaces", "models", "versions", "artifacts", "attributes", "attribute_leaves")
    tables.reflect(connection, only=names)
    _add_objects(connection, *(tables.tables[name] for name in names[:5]))
    for name in ("models", "versions", "artifacts"):
        _project(connection, tables.tables, tables.tables[name])


def downgrade() -> None:
    """Drops what training recorded, artifacts of runs and the like too. What lies in the bin is out of it again."""
    connection = op.get_bind()
    artifacts = sa.table("artifacts", sa.column("id"), sa.column("parent"), sa.column("model_id"))
    files = sa.table("artifact_blobs", sa.column("artifact_id"))
    of_namespaces = sa.select(sa.table("namespaces", sa.column("name")).c.name)
    query = sa.select(artifacts.c.id).where(artifacts.c.model_id.is_(None), artifacts.c.parent.not_in(of_namespaces))
    for number in connection.execute(query).scalars().all():
        connection.execute(files.delete().where(files.c.artifact_id == number))
        connection.execute(artifacts.delete().where(artifacts.c.id == number))
    drop_tables(
        "runs",
        "dataset_versions",
        "readmes",
        "lineage_edges",
        "experiments",
        "events",
        "datasets",
        "comments",
        "checkpoints",
        "attributes",
        "attribute_leaves",
        "attribute_history",
        "objects",
        "spools",
    )


def _make_tables() -> None:
    op.create_table(
        "spools",
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_spools")),
    )
    op.create_table(
        "objects",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("namespace_id", _Id, nullable=False),
        sa.Column("parent_id", _Id, nullable=True),
        sa.Column("deleted_at_us", sa.BigInteger(), nullable=True),
        sa.Column("deleted_root", sa.BigInteger(), nullable=True),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["namespace_id"], ["namespaces.id"], name=op.f("fk_objects_namespace_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["objects.id"], name=op.f("fk_objects_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_objects")),
        sa.UniqueConstraint("uid", name=op.f("uq_objects_uid")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_objects_deleted_at_us"), "objects", ["deleted_at_us"], unique=False)
    op.create_index(
        op.f("ix_objects_namespace_id_kind_deleted_at_us_id"),
        "objects",
        ["namespace_id", "kind", "deleted_at_us", "id"],
        unique=False,
    )
    op.create_index(op.f("ix_objects_parent_id"), "objects", ["parent_id"], unique=False)
    op.create_table(
        "attribute_history",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("object_id", _Id, nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("key", sa.String(length=250), nullable=False),
        sa.Column("value", LongText(), nullable=True),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_attribute_history_object_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attribute_history")),
    )
    op.create_index(
        op.f("ix_attribute_history_object_id_kind_key_id"),
        "attribute_history",
        ["object_id", "kind", "key", "id"],
        unique=False,
    )
    op.create_table(
        "attribute_leaves",
        sa.Column("object_id", _Id, nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("key", sa.String(length=250), nullable=False),
        sa.Column("path", sa.String(length=250), nullable=False),
        sa.Column("value", LongText(), nullable=False),
        sa.Column("number", sa.Double(), nullable=True),
        sa.Column("text", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_attribute_leaves_object_id")),
        sa.PrimaryKeyConstraint("object_id", "kind", "key", "path", name=op.f("pk_attribute_leaves")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_attribute_leaves_kind_path_number_object_id"),
        "attribute_leaves",
        ["kind", "path", "number", "object_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_attribute_leaves_kind_path_text_object_id"),
        "attribute_leaves",
        ["kind", "path", "text", "object_id"],
        unique=False,
    )
    op.create_table(
        "attributes",
        sa.Column("object_id", _Id, nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("key", sa.String(length=250), nullable=False),
        sa.Column("value", LongText(), nullable=False),
        sa.Column("number", sa.Double(), nullable=True),
        sa.Column("text", sa.String(length=255), nullable=True),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_attributes_object_id")),
        sa.PrimaryKeyConstraint("object_id", "kind", "key", name=op.f("pk_attributes")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_attributes_kind_key_number_object_id"),
        "attributes",
        ["kind", "key", "number", "object_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_attributes_kind_key_text_object_id"), "attributes", ["kind", "key", "text", "object_id"], unique=False
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", _Id, autoincrement=False, nullable=False),
        sa.Column("parent_id", _Id, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("metrics", LongText(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["objects.id"], name=op.f("fk_checkpoints_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["objects.id"], name=op.f("fk_checkpoints_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("parent_id", "epoch", name=op.f("uq_checkpoints_parent_id_epoch")),
    )
    op.create_table(
        "comments",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("object_id", _Id, nullable=False),
        sa.Column("text", LongText(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("edited_at_us", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at_us", sa.BigInteger(), nullable=True),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_comments_object_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comments")),
        sa.UniqueConstraint("uid", name=op.f("uq_comments_uid")),
    )
    op.create_index(op.f("ix_comments_object_id_id"), "comments", ["object_id", "id"], unique=False)
    op.create_table(
        "datasets",
        sa.Column("id", _Id, autoincrement=False, nullable=False),
        sa.Column("namespace_id", _Id, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("description", LongText(), nullable=False),
        sa.Column("latest_version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["objects.id"], name=op.f("fk_datasets_id")),
        sa.ForeignKeyConstraint(["namespace_id"], ["namespaces.id"], name=op.f("fk_datasets_namespace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("namespace_id", "name", name=op.f("uq_datasets_namespace_id_name")),
    )
    op.create_table(
        "events",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("namespace_id", _Id, nullable=False),
        sa.Column("object_id", _Id, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("received_at_us", sa.BigInteger(), nullable=False),
        sa.Column("metadata", LongText(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["namespace_id"], ["namespaces.id"], name=op.f("fk_events_namespace_id")),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_events_object_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("uid", name=op.f("uq_events_uid")),
    )
    op.create_index(op.f("ix_events_namespace_id_at_us"), "events", ["namespace_id", "at_us"], unique=False)
    op.create_index(op.f("ix_events_object_id_at_us"), "events", ["object_id", "at_us"], unique=False)
    op.create_table(
        "experiments",
        sa.Column("id", _Id, autoincrement=False, nullable=False),
        sa.Column("namespace_id", _Id, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("framework", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("description", LongText(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["objects.id"], name=op.f("fk_experiments_id")),
        sa.ForeignKeyConstraint(["namespace_id"], ["namespaces.id"], name=op.f("fk_experiments_namespace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
        sa.UniqueConstraint("namespace_id", "name", name=op.f("uq_experiments_namespace_id_name")),
    )
    op.create_table(
        "lineage_edges",
        sa.Column("source_id", _Id, nullable=False),
        sa.Column("target_id", _Id, nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["source_id"], ["objects.id"], name=op.f("fk_lineage_edges_source_id")),
        sa.ForeignKeyConstraint(["target_id"], ["objects.id"], name=op.f("fk_lineage_edges_target_id")),
        sa.PrimaryKeyConstraint("source_id", "target_id", "type", name=op.f("pk_lineage_edges")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_lineage_edges_target_id"), "lineage_edges", ["target_id"], unique=False)
    op.create_table(
        "readmes",
        sa.Column("object_id", _Id, autoincrement=False, nullable=False),
        sa.Column("text", LongText(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_readmes_object_id")),
        sa.PrimaryKeyConstraint("object_id", name=op.f("pk_readmes")),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("id", _Id, autoincrement=False, nullable=False),
        sa.Column("dataset_id", _Id, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("components", LongText(), nullable=False),
        sa.Column("description", LongText(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_dataset_versions_dataset_id")),
        sa.ForeignKeyConstraint(["id"], ["objects.id"], name=op.f("fk_dataset_versions_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset_versions")),
        sa.UniqueConstraint("dataset_id", "version", name=op.f("uq_dataset_versions_dataset_id_version")),
    )
    op.create_index(
        op.f("ix_dataset_versions_dataset_id_digest"), "dataset_versions", ["dataset_id", "digest"], unique=False
    )
    op.create_table(
        "runs",
        sa.Column("id", _Id, autoincrement=False, nullable=False),
        sa.Column("experiment_id", _Id, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("started_at_us", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_us", sa.BigInteger(), nullable=True),
        sa.Column("parent_run_id", _Id, nullable=True),
        sa.Column("cloned_from", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_runs_experiment_id")),
        sa.ForeignKeyConstraint(["id"], ["objects.id"], name=op.f("fk_runs_id")),
        sa.ForeignKeyConstraint(["parent_run_id"], ["runs.id"], name=op.f("fk_runs_parent_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_experiment_id_id"), "runs", ["experiment_id", "id"], unique=False)
    op.create_index(op.f("ix_runs_parent_run_id"), "runs", ["parent_run_id"], unique=False)


def _add_objects(
    connection: sa.Connection,
    objects: sa.Table,
    namespaces: sa.Table,
    models: sa.Table,
    versions: sa.Table,
    artifacts: sa.Table,
) -> None:
    columns = ("uid", "kind", "namespace_id", "parent_id", "created_at_us", "created_by", "mod_rev")
    rows = connection.execute(sa.select(namespaces).order_by(namespaces.c.id)).all()
    _insert(
        connection,
        objects,
        (
            dict(
                zip(
                    columns,
                    (f"nsp_{secrets.token_hex(12)}", "namespace", row.id, None, row.created_at_us, "", row.mod_rev),
                    strict=True,
                )
            )
            for row in rows
        ),
    )
    one = sa.select(
        models.c.uid,
        sa.literal("model"),
        models.c.namespace_id,
        sa.null(),
        models.c.created_at_us,
        sa.literal(""),
        models.c.mod_rev,
    ).order_by(models.c.id)
    connection.execute(objects.insert().from_select(columns, one))
    one = (
        sa.select(
            versions.c.uid,
            sa.literal("version"),
            models.c.namespace_id,
            objects.c.id,
            versions.c.created_at_us,
            versions.c.created_by,
            versions.c.mod_rev,
        )
        .join_from(versions, models, versions.c.model_id == models.c.id)
        .join(objects, objects.c.uid == models.c.uid)
        .order_by(versions.c.id)
    )
    connection.execute(objects.insert().from_select(columns, one))

    # An artifact belongs to a namespace, a model or a version, which it names by its path.
    namespace_ids: dict[int, int] = {
        row.namespace_id: row.id for row in connection.execute(sa.select(objects).where(objects.c.kind == "namespace"))
    }
    of_model = (
        sa.select(objects.c.id).join(models, objects.c.uid == models.c.uid).where(models.c.id == sa.bindparam("model"))
    )
    of_version = (
        sa.select(objects.c.id)
        .join(versions, objects.c.uid == versions.c.uid)
        .where(versions.c.model_id == sa.bindparam("model"), versions.c.version == sa.bindparam("number"))
    )

    def parent_of(row: Any) -> int | None:
        _, _, number = row.parent.partition("@")
        if row.model_id is None:
            return namespace_ids[row.namespace_id]
        if not number:
            return connection.execute(of_model, {"model": row.model_id}).scalar()
        return connection.execute(of_version, {"model": row.model_id, "number": int(number)}).scalar()

    wanted = sa.select(
        artifacts.c.uid,
        artifacts.c.namespace_id,
        artifacts.c.model_id,
        artifacts.c.parent,
        artifacts.c.created_at_us,
        artifacts.c.created_by,
        artifacts.c.mod_rev,
    ).order_by(artifacts.c.id)
    _insert(
        connection,
        objects,
        (
            {
                "uid": row.uid,
                "kind": "artifact",
                "namespace_id": row.namespace_id,
                "parent_id": parent_of(row),
                "created_at_us": row.created_at_us,
                "created_by": row.created_by,
                "mod_rev": row.mod_rev,
            }
            for row in connection.execute(wanted).all()
        ),
    )


def _project(connection: sa.Connection, tables: Any, table: sa.Table) -> None:
    objects = tables["objects"]
    values: list[dict[str, Any]] = []
    leaves: list[dict[str, Any]] = []
    query = sa.select(table, objects.c.id.label("object_id")).join(objects, objects.c.uid == table.c.uid)
    last = 0
    while rows := connection.execute(query.where(table.c.id > last).order_by(table.c.id).limit(_BATCH)).all():
        last = rows[-1].id
        for row in rows:
            by = getattr(row, "created_by", "")
            for kind, column in (("label", "labels"), ("metadata", "metadata"), ("metric", "metrics")):
                for key, value in json.loads(getattr(row, column, "{}")).items():
                    place = {"object_id": row.object_id, "kind": kind, "key": key}
                    values.append({**place, **_columns(value), "updated_at_us": row.created_at_us, "updated_by": by})
                    if isinstance(value, dict | list):
                        found = {path: leaf for path, leaf in _leaves(key, value) if len(path) <= 250}
                        some = list(found.items())[:_MAX_LEAVES]
                        leaves.extend({**place, "path": path, **_columns(leaf)} for path, leaf in some)
        _insert(connection, tables["attributes"], iter(values))
        _insert(connection, tables["attribute_leaves"], iter(leaves))
        values.clear()
        leaves.clear()


def _columns(value: Any) -> dict[str, Any]:
    """The JSON text, and what find compares."""
    number = text = None
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int | float):
        number = float(value)
    elif isinstance(value, str):
        text = value[:255]
    return {
        "value": json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True),
        "number": number,
        "text": text,
    }


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(f"{path}.{place}", inner)
    else:
        yield path, value


def _insert(connection: sa.Connection, table: sa.Table, rows: Iterator[dict[str, Any]]) -> None:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            connection.execute(table.insert(), batch)
            batch = []
    if batch:
        connection.execute(table.insert(), batch)
