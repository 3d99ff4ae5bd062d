"""The tables, for every database.

Inside, rows refer to each other by small integers; outside, objects are known by names and by opaque ``uid`` texts.
Times are microseconds since 1970 in UTC. JSON is kept as text that this program wrote and only it reads.

``alembic upgrade head`` makes the same tables; a test compares the two. Change both in one commit.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeDecorator, TypeEngine

__all__ = (
    "LongText",
    "access_grants",
    "access_tokens",
    "accounts",
    "alias_moves",
    "alias_protections",
    "alias_requests",
    "aliases",
    "artifact_blobs",
    "artifacts",
    "attribute_history",
    "attribute_leaves",
    "attributes",
    "blob_removals",
    "blobs",
    "checkpoints",
    "comments",
    "dataset_versions",
    "datasets",
    "downloads",
    "event_values",
    "events",
    "experiments",
    "feed_changes",
    "feed_head",
    "holdings",
    "instances",
    "leases",
    "lineage_edges",
    "metadata",
    "models",
    "namespaces",
    "objects",
    "quotas",
    "readmes",
    "replicas",
    "retention_policies",
    "rules",
    "runs",
    "spools",
    "uploads",
    "version_blobs",
    "version_locks",
    "versions",
)


class LongText(TypeDecorator[str]):
    """Text of any length; MySQL's TEXT ends at 64 KiB."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """The type on ``dialect``; MySQL's own types are imported only there."""
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects.mysql import LONGTEXT

            return dialect.type_descriptor(LONGTEXT())
        return dialect.type_descriptor(Text())


@compiles(CreateTable, "mysql")
def _create_table_of_mysql(element: CreateTable, compiler: Any, **kwargs: Any) -> str:
    """Whatever a database's defaults are: transactions, and texts that are the same only byte by byte.

    What is sorted, compared or unique there is so by code points, with case, accents and spaces at the end. MySQL and
    MariaDB have no name in common for this.
    """
    collation = "utf8mb4_nopad_bin" if compiler.dialect.is_mariadb else "utf8mb4_0900_bin"
    statement: str = compiler.visit_create_table(element, **kwargs)
    return f"{statement.rstrip()} ENGINE=InnoDB ROW_FORMAT=DYNAMIC CHARACTER SET utf8mb4 COLLATE {collation}"


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in columns of exactly the type INTEGER, which has 64 bits there.
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _id() -> Column[int]:
    return Column("id", _Id, primary_key=True, autoincrement=True)


def _ref(name: str, target: str) -> Column[int]:
    return Column(name, _Id, ForeignKey(f"{target}.id"), nullable=False)


namespaces = Table(
    "namespaces",
    metadata,
    _id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at_us", BigInteger, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
)

models = Table(
    "models",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    _ref("namespace_id", "namespaces"),
    Column("name", String(64), nullable=False),
    Column("owner", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("description", LongText, nullable=False),
    Column("labels", LongText, nullable=False),
    Column("metadata", LongText, nullable=False),
    # The newest version there is, and the newest there ever was: numbers are never given again.
    Column("latest_version", BigInteger, nullable=False),
    Column("last_version", BigInteger, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    UniqueConstraint("namespace_id", "name"),
)

versions = Table(
    "versions",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    _ref("model_id", "models"),
    Column("version", BigInteger, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("manifest", LongText, nullable=False),
    Column("description", LongText, nullable=False),
    Column("labels", LongText, nullable=False),
    Column("metadata", LongText, nullable=False),
    Column("metrics", LongText, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    Column("bundle", LongText),
    UniqueConstraint("model_id", "version"),
    Index(None, "model_id", "digest"),
)

aliases = Table(
    "aliases",
    metadata,
    _id(),
    _ref("model_id", "models"),
    Column("name", String(64), nullable=False),
    _ref("version_id", "versions"),
    Column("moved_at_us", BigInteger, nullable=False),
    Column("moved_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    UniqueConstraint("model_id", "name"),
    Index(None, "version_id"),
)

# Holds version numbers, not rows: history outlives what it tells of.
alias_moves = Table(
    "alias_moves",
    metadata,
    _id(),
    _ref("model_id", "models"),
    Column("name", String(64), nullable=False),
    Column("from_version", BigInteger),
    Column("to_version", BigInteger),
    Column("moved_at_us", BigInteger, nullable=False),
    Column("moved_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("rev", BigInteger, nullable=False),
    Index(None, "model_id", "name"),
)

blobs = Table(
    "blobs",
    metadata,
    _id(),
    Column("digest", String(71), nullable=False, unique=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
)

# Which namespace has sent which bytes. By name, since an upload does not make a namespace.
holdings = Table(
    "holdings",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("blob_id", _Id, ForeignKey("blobs.id"), primary_key=True),
    Column("created_at_us", BigInteger, nullable=False),
    # By the clock of the database: last sent, asked for, or let go of by a version or artifact. Unset before that.
    Column("used_at_us", BigInteger),
    Index(None, "blob_id"),
)

uploads = Table(
    "uploads",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    Column("namespace", String(64), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("done", Boolean, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    # Whose it is alone: somebody's who sees only some models of the namespace. Unset: of all who see all of it.
    Column("account", String(64)),
    Index(None, "namespace", "digest"),
    Index(None, "digest"),
)

version_blobs = Table(
    "version_blobs",
    metadata,
    Column("version_id", _Id, ForeignKey("versions.id"), primary_key=True),
    Column("blob_id", _Id, ForeignKey("blobs.id"), primary_key=True),
    Index(None, "blob_id"),
)

artifacts = Table(
    "artifacts",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    _ref("namespace_id", "namespaces"),
    Column("model_id", _Id, ForeignKey("models.id")),
    # ns, ns/model or ns/model@7.
    Column("parent", String(160), nullable=False),
    Column("name", String(64), nullable=False),
    Column("files", LongText, nullable=False),
    Column("labels", LongText, nullable=False),
    Column("metadata", LongText, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    UniqueConstraint("parent", "name"),
    Index(None, "namespace_id"),
    Index(None, "model_id"),
)

artifact_blobs = Table(
    "artifact_blobs",
    metadata,
    Column("artifact_id", _Id, ForeignKey("artifacts.id"), primary_key=True),
    Column("blob_id", _Id, ForeignKey("blobs.id"), primary_key=True),
    Index(None, "blob_id"),
)

# Kept as long as the revision that tells of them.
downloads = Table(
    "downloads",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    Column("namespace", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    Index(None, "mod_rev"),
)

instances = Table(
    "instances",
    metadata,
    _id(),
    Column("instance_id", String(128), nullable=False),
    Column("ref", String(255), nullable=False),
    Column("namespace", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("report", LongText, nullable=False),
    Column("first_seen_us", BigInteger, nullable=False),
    Column("last_seen_us", BigInteger, nullable=False),
    UniqueConstraint("instance_id", "ref"),
    Index(None, "namespace", "model"),
    Index(None, "last_seen_us"),
)

# One row, id 1: whoever changes anything takes its lock, as the last lock of the transaction.
feed_head = Table(
    "feed_head",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("server_id", String(40), nullable=False),
    Column("epoch", String(40), nullable=False),
    Column("rev", BigInteger, nullable=False),
    Column("chain", LargeBinary(32), nullable=False),
    # Readers of the feed begin behind this one; the rows stay for the audit log.
    Column("compact_rev", BigInteger, nullable=False),
    Column("compact_chain", LargeBinary(32), nullable=False),
    # The last revision whose rows are gone, and the chain there: none where it is that of `compact_rev`.
    Column("audit_rev", BigInteger),
    Column("audit_chain", LargeBinary(32)),
)

feed_changes = Table(
    "feed_changes",
    metadata,
    Column("rev", BigInteger, primary_key=True, autoincrement=False),
    Column("idx", Integer, primary_key=True, autoincrement=False),
    Column("namespace", String(64), nullable=False),
    Column("object", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("action", String(16), nullable=False),
    Column("actor", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("state", LongText, nullable=False),
    # After the whole revision.
    Column("chain", LargeBinary(32), nullable=False),
    # Where the call came from, by which token, and its name in logs; empty for what the server did by itself.
    Column("token_id", String(64), nullable=False, server_default=text("''")),
    Column("address", String(64), nullable=False, server_default=text("''")),
    Column("request_id", String(64), nullable=False, server_default=text("''")),
    # To an object's change before.
    Index(None, "object", "kind", "rev"),
)

# -- tracking --------------------------------------------------------------------------------------------------------

# One row for everything that others attach to. Rows of experiments, runs, checkpoints, datasets and dataset versions
# have the id of their object; namespaces, models, versions and artifacts are older and are joined by uid (a namespace
# by its id and kind). `parent_id` is what it belongs to. What is in the bin has `deleted_at_us`, and in `deleted_root`
# the object whose deletion took it along. Numbers are never given again, not even after a purge.
objects = Table(
    "objects",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    _ref("namespace_id", "namespaces"),
    Column("parent_id", _Id, ForeignKey("objects.id")),
    Column("deleted_at_us", BigInteger),
    Column("deleted_root", BigInteger),
    Column("created_at_us", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    Index(None, "parent_id"),
    Index(None, "namespace_id", "kind", "deleted_at_us", "id"),
    Index(None, "deleted_at_us"),
    sqlite_autoincrement=True,
)


def _object_id() -> Column[int]:
    return Column("id", _Id, ForeignKey("objects.id"), primary_key=True, autoincrement=False)


experiments = Table(
    "experiments",
    metadata,
    _object_id(),
    _ref("namespace_id", "namespaces"),
    Column("name", String(64), nullable=False),
    Column("owner", Text, nullable=False),
    Column("framework", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("external_id", Text, nullable=False),
    Column("description", LongText, nullable=False),
    UniqueConstraint("namespace_id", "name"),
)

# `cloned_from` is an id as people know it: it outlives the run that it tells of.
runs = Table(
    "runs",
    metadata,
    _object_id(),
    _ref("experiment_id", "experiments"),
    Column("name", String(255), nullable=False),
    Column("status", String(16), nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("ended_at_us", BigInteger),
    Column("parent_run_id", _Id, ForeignKey("runs.id")),
    Column("cloned_from", String(40), nullable=False),
    Column("reason", Text, nullable=False),
    Index(None, "experiment_id", "id"),
    Index(None, "parent_run_id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _object_id(),
    _ref("parent_id", "objects"),
    Column("epoch", BigInteger, nullable=False),
    Column("step", BigInteger),
    Column("path", Text, nullable=False),
    Column("metrics", LongText, nullable=False),
    UniqueConstraint("parent_id", "epoch"),
)

# `number` and `text` are what find compares: numbers of JSON numbers, the first 255 characters of JSON texts, "true"
# and "false". Labels and metadata of models and versions, and metrics of versions and checkpoints (kind "metric"), are
# projections of those rows' own columns.
attributes = Table(
    "attributes",
    metadata,
    Column("object_id", _Id, ForeignKey("objects.id"), primary_key=True),
    Column("kind", String(8), primary_key=True),
    Column("key", String(250), primary_key=True),
    Column("value", LongText, nullable=False),
    Column("number", Double),
    Column("text", String(255)),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
    Index(None, "kind", "key", "number", "object_id"),
    Index(None, "kind", "key", "text", "object_id"),
    sqlite_with_rowid=False,
)

# The scalars inside values that are JSON objects or lists; `path` begins with the key: "data.splits.0.name".
attribute_leaves = Table(
    "attribute_leaves",
    metadata,
    Column("object_id", _Id, ForeignKey("objects.id"), primary_key=True),
    Column("kind", String(8), primary_key=True),
    Column("key", String(250), primary_key=True),
    Column("path", String(250), primary_key=True),
    Column("value", LongText, nullable=False),
    Column("number", Double),
    Column("text", String(255)),
    Index(None, "kind", "path", "number", "object_id"),
    Index(None, "kind", "path", "text", "object_id"),
    sqlite_with_rowid=False,
)

# Every set, and every removal (without a value).
attribute_history = Table(
    "attribute_history",
    metadata,
    _id(),
    _ref("object_id", "objects"),
    Column("kind", String(8), nullable=False),
    Column("key", String(250), nullable=False),
    Column("value", LongText),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("rev", BigInteger, nullable=False),
    Index(None, "object_id", "kind", "key", "id"),
)

# How far each spool of a client was taken over.
spools = Table(
    "spools",
    metadata,
    Column("uid", String(64), primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    # JSON: [[seq, code, message], …] of the last delivery.
    Column("rejections", LongText, nullable=True),
)

events = Table(
    "events",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    _ref("namespace_id", "namespaces"),
    _ref("object_id", "objects"),
    Column("name", String(255), nullable=False),
    Column("source", String(255), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("received_at_us", BigInteger, nullable=False),
    Column("metadata", LongText, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    Index(None, "object_id", "at_us"),
    Index(None, "namespace_id", "at_us"),
)

# What is in the metadata of events, by path ("splits.0.name"), for find; `number` and `text` are as in attributes.
event_values = Table(
    "event_values",
    metadata,
    Column("event_id", _Id, ForeignKey("events.id"), primary_key=True),
    Column("path", String(250), primary_key=True),
    Column("number", Double),
    Column("text", String(255)),
    Index(None, "path", "number", "event_id"),
    Index(None, "path", "text", "event_id"),
    sqlite_with_rowid=False,
)

comments = Table(
    "comments",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    _ref("object_id", "objects"),
    Column("text", LongText, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("edited_at_us", BigInteger),
    Column("deleted_at_us", BigInteger),
    Column("mod_rev", BigInteger, nullable=False),
    Index(None, "object_id", "id"),
)

readmes = Table(
    "readmes",
    metadata,
    Column("object_id", _Id, ForeignKey("objects.id"), primary_key=True, autoincrement=False),
    Column("text", LongText, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    _object_id(),
    _ref("namespace_id", "namespaces"),
    Column("name", String(64), nullable=False),
    Column("owner", Text, nullable=False),
    Column("description", LongText, nullable=False),
    Column("latest_version", BigInteger, nullable=False),
    UniqueConstraint("namespace_id", "name"),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    _object_id(),
    _ref("dataset_id", "datasets"),
    Column("version", BigInteger, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("components", LongText, nullable=False),
    Column("description", LongText, nullable=False),
    UniqueConstraint("dataset_id", "version"),
    Index(None, "dataset_id", "digest"),
)

lineage_edges = Table(
    "lineage_edges",
    metadata,
    Column("source_id", _Id, ForeignKey("objects.id"), primary_key=True),
    Column("target_id", _Id, ForeignKey("objects.id"), primary_key=True),
    Column("type", String(64), primary_key=True),
    Column("created_at_us", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    Index(None, "target_id"),
    sqlite_with_rowid=False,
)

# -- replicas --------------------------------------------------------------------------------------------------------

# The servers of this database. Times but for `started_at_us` are by the database's clock; `clock_ahead_us` says by how
# much the server's own clock was ahead of that. `rev` is the newest revision that it had seen.
replicas = Table(
    "replicas",
    metadata,
    Column("uid", String(40), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("grpc_address", String(255), nullable=False),
    Column("http_address", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("seen_at_us", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),
    Column("clock_ahead_us", BigInteger, nullable=False),
    Column("rev", BigInteger, nullable=False),
)

# Which replica does what only one may do. `token` grows with each new holder; a row stays for good.
leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(40), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("renewed_at_us", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),
)

# -- space -----------------------------------------------------------------------------------------------------------

# What `modelbox.retention` goes by. `scope` is ns or ns/model; `keep_best` is JSON.
retention_policies = Table(
    "retention_policies",
    metadata,
    Column("scope", String(160), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("keep_all", Boolean, nullable=False),
    Column("keep_last", BigInteger),
    Column("keep_younger_s", Double),
    Column("keep_best", LongText, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
)

# Versions that nobody deletes, neither by hand nor by a policy.
version_locks = Table(
    "version_locks",
    metadata,
    Column("version_id", _Id, ForeignKey("versions.id"), primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    Column("locked_at_us", BigInteger, nullable=False),
    Column("locked_by", Text, nullable=False),
)

# By name, as holdings. `used_bytes` is the sum of the namespace's holdings, kept along with them.
quotas = Table(
    "quotas",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("limit_bytes", BigInteger, nullable=False),
    Column("used_bytes", BigInteger, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
)

# Blobs whose rows are gone and whose bytes are about to be; see `modelbox.runtime.store.removal`.
blob_removals = Table(
    "blob_removals",
    metadata,
    Column("digest", String(71), primary_key=True),
    Column("batch", String(40), nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
)

# -- access ----------------------------------------------------------------------------------------------------------

# People and programs. `certificate_names` is a JSON list; a name is one account's only.
accounts = Table(
    "accounts",
    metadata,
    _id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("description", Text, nullable=False),
    Column("certificate_names", LongText, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
)

# By names, since a role may be given before there is anything to have it in: empty for everywhere, and for all models.
access_grants = Table(
    "access_grants",
    metadata,
    Column("account_id", _Id, ForeignKey("accounts.id"), primary_key=True, autoincrement=False),
    Column("namespace", String(64), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("granted_at_us", BigInteger, nullable=False),
    Column("granted_by", Text, nullable=False),
    Column("mod_rev", BigInteger, nullable=False),
    Index(None, "namespace"),
)

# Of a token only `kid` and the SHA-256 of its secret are kept. `role` and `namespaces` (JSON list) narrow what the
# account may do; empty ones do not. `used_at_us` is beside the feed, at most an hour old.
access_tokens = Table(
    "access_tokens",
    metadata,
    _id(),
    Column("kid", String(16), nullable=False, unique=True),
    Column("secret_hash", LargeBinary(32), nullable=False),
    _ref("account_id", "accounts"),
    Column("description", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("namespaces", LongText, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Column("revoked_at_us", BigInteger),
    Column("revoked_by", Text, nullable=False),
    Column("used_at_us", BigInteger),
    Column("mod_rev", BigInteger, nullable=False),
    Index(None, "account_id"),
)

# -- rules -----------------------------------------------------------------------------------------------------------

# What `modelbox.rules` goes by. `scope` is ns or ns/model, `alias` a pattern, or empty for every publication; `labels`
# and `metadata` are JSON lists of keys.
rules = Table(
    "rules",
    metadata,
    Column("scope", String(160), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("labels", LongText, nullable=False),
    Column("metadata", LongText, nullable=False),
    Column("owner", Boolean, nullable=False),
    Column("description", Boolean, nullable=False),
    Column("dataset", Boolean, nullable=False),
    Column("signed", Boolean, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
)

alias_protections = Table(
    "alias_protections",
    metadata,
    Column("scope", String(160), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("approval", Boolean, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("updated_by", Text, nullable=False),
)

# Holds version numbers, not rows, as `alias_moves`. `from_mod_rev` is the alias's when it was asked for, 0 for none.
alias_requests = Table(
    "alias_requests",
    metadata,
    _id(),
    Column("uid", String(40), nullable=False, unique=True),
    _ref("model_id", "models"),
    Column("alias", String(64), nullable=False),
    Column("from_version", BigInteger),
    Column("to_version", BigInteger),
    Column("from_mod_rev", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("requested_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("decided_at_us", BigInteger),
    Column("comment", Text, nullable=False),
    Index(None, "model_id", "alias"),
)
