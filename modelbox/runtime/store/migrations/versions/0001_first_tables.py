"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.schema import LongText
from modelbox.runtime.store.undoing import drop_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes all tables of the first release."""
    op.create_table(
        "blobs",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blobs")),
        sa.UniqueConstraint("digest", name=op.f("uq_blobs_digest")),
    )
    op.create_table(
        "downloads",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("namespace", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("started_at_us", sa.BigInteger(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_downloads")),
        sa.UniqueConstraint("uid", name=op.f("uq_downloads_uid")),
    )
    op.create_index(op.f("ix_downloads_mod_rev"), "downloads", ["mod_rev"], unique=False)
    op.create_table(
        "feed_changes",
        sa.Column("rev", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("idx", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("namespace", sa.String(length=64), nullable=False),
        sa.Column("object", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("state", LongText(), nullable=False),
        sa.Column("chain", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("rev", "idx", name=op.f("pk_feed_changes")),
    )
    op.create_table(
        "feed_head",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("server_id", sa.String(length=40), nullable=False),
        sa.Column("epoch", sa.String(length=40), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.Column("chain", sa.LargeBinary(length=32), nullable=False),
        sa.Column("compact_rev", sa.BigInteger(), nullable=False),
        sa.Column("compact_chain", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed_head")),
    )
    op.create_table(
        "instances",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("instance_id", sa.String(length=128), nullable=False),
        sa.Column("ref", sa.String(length=255), nullable=False),
        sa.Column("namespace", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("report", LongText(), nullable=False),
        sa.Column("first_seen_us", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sa.UniqueConstraint("instance_id", "ref", name=op.f("uq_instances_instance_id_ref")),
    )
    op.create_index(op.f("ix_instances_last_seen_us"), "instances", ["last_seen_us"], unique=False)
    op.create_index(op.f("ix_instances_namespace_model"), "instances", ["namespace", "model"], unique=False)
    op.create_table(
        "namespaces",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_namespaces")),
        sa.UniqueConstraint("name", name=op.f("uq_namespaces_name")),
    )
    op.create_table(
        "uploads",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("namespace", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
        sa.UniqueConstraint("uid", name=op.f("uq_uploads_uid")),
    )
    op.create_index(op.f("ix_uploads_namespace_digest"), "uploads", ["namespace", "digest"], unique=False)
    op.create_table(
        "holdings",
        sa.Column("namespace", sa.String(length=64), nullable=False),
        sa.Column("blob_id", _Id, nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name=op.f("fk_holdings_blob_id")),
        sa.PrimaryKeyConstraint("namespace", "blob_id", name=op.f("pk_holdings")),
    )
    op.create_table(
        "models",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("namespace_id", _Id, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("description", LongText(), nullable=False),
        sa.Column("labels", LongText(), nullable=False),
        sa.Column("metadata", LongText(), nullable=False),
        sa.Column("latest_version", sa.BigInteger(), nullable=False),
        sa.Column("last_version", sa.BigInteger(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["namespace_id"], ["namespaces.id"], name=op.f("fk_models_namespace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("namespace_id", "name", name=op.f("uq_models_namespace_id_name")),
        sa.UniqueConstraint("uid", name=op.f("uq_models_uid")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("model_id", _Id, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("from_version", sa.BigInteger(), nullable=True),
        sa.Column("to_version", sa.BigInteger(), nullable=True),
        sa.Column("moved_at_us", sa.BigInteger(), nullable=False),
        sa.Column("moved_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_alias_moves_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_moves")),
    )
    op.create_index(op.f("ix_alias_moves_model_id_name"), "alias_moves", ["model_id", "name"], unique=False)
    op.create_table(
        "artifacts",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("namespace_id", _Id, nullable=False),
        sa.Column("model_id", _Id, nullable=True),
        sa.Column("parent", sa.String(length=160), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("files", LongText(), nullable=False),
        sa.Column("labels", LongText(), nullable=False),
        sa.Column("metadata", LongText(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_artifacts_model_id")),
        sa.ForeignKeyConstraint(["namespace_id"], ["namespaces.id"], name=op.f("fk_artifacts_namespace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("parent", "name", name=op.f("uq_artifacts_parent_name")),
        sa.UniqueConstraint("uid", name=op.f("uq_artifacts_uid")),
    )
    op.create_index(op.f("ix_artifacts_model_id"), "artifacts", ["model_id"], unique=False)
    op.create_index(op.f("ix_artifacts_namespace_id"), "artifacts", ["namespace_id"], unique=False)
    op.create_table(
        "versions",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("model_id", _Id, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("manifest", LongText(), nullable=False),
        sa.Column("description", LongText(), nullable=False),
        sa.Column("labels", LongText(), nullable=False),
        sa.Column("metadata", LongText(), nullable=False),
        sa.Column("metrics", LongText(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_versions_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("model_id", "version", name=op.f("uq_versions_model_id_version")),
        sa.UniqueConstraint("uid", name=op.f("uq_versions_uid")),
    )
    op.create_index(op.f("ix_versions_model_id_digest"), "versions", ["model_id", "digest"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("model_id", _Id, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version_id", _Id, nullable=False),
        sa.Column("moved_at_us", sa.BigInteger(), nullable=False),
        sa.Column("moved_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_aliases_model_id")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_aliases_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_aliases")),
        sa.UniqueConstraint("model_id", "name", name=op.f("uq_aliases_model_id_name")),
    )
    op.create_index(op.f("ix_aliases_version_id"), "aliases", ["version_id"], unique=False)
    op.create_table(
        "artifact_blobs",
        sa.Column("artifact_id", _Id, nullable=False),
        sa.Column("blob_id", _Id, nullable=False),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name=op.f("fk_artifact_blobs_artifact_id")),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name=op.f("fk_artifact_blobs_blob_id")),
        sa.PrimaryKeyConstraint("artifact_id", "blob_id", name=op.f("pk_artifact_blobs")),
    )
    op.create_index(op.f("ix_artifact_blobs_blob_id"), "artifact_blobs", ["blob_id"], unique=False)
    op.create_table(
        "version_blobs",
        sa.Column("version_id", _Id, nullable=False),
        sa.Column("blob_id", _Id, nullable=False),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.id"], name=op.f("fk_version_blobs_blob_id")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_version_blobs_version_id")),
        sa.PrimaryKeyConstraint("version_id", "blob_id", name=op.f("pk_version_blobs")),
    )
    op.create_index(op.f("ix_version_blobs_blob_id"), "version_blobs", ["blob_id"], unique=False)


def downgrade() -> None:
    """Drops everything."""
    drop_tables(
        "version_blobs",
        "artifact_blobs",
        "aliases",
        "versions",
        "artifacts",
        "alias_moves",
        "models",
        "holdings",
        "uploads",
        "namespaces",
        "instances",
        "feed_head",
        "feed_changes",
        "downloads",
        "blobs",
    )
