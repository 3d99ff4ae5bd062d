"""The tables, for every database.

Inside, rows refer to each other by small integers; outside, objects are known by names and by opaque ``uid`` texts.
Times are microseconds since 1970 in UTC. JSON is kept as text that this program wrote and only it reads.

``alembic upgrade head`` makes the same tables; a test compares the two. Change both in one commit.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
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
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

__all__ = (
    "LongText",
    "alias_moves",
    "aliases",
    "artifact_blobs",
    "artifacts",
    "blobs",
    "downloads",
    "feed_changes",
    "feed_head",
    "holdings",
    "instances",
    "metadata",
    "models",
    "namespaces",
    "uploads",
    "version_blobs",
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
    Index(None, "namespace", "digest"),
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
    Column("compact_rev", BigInteger, nullable=False),
    Column("compact_chain", LargeBinary(32), nullable=False),
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
)
