"""The tables of metrics, for every database: in a file of their own on SQLite, beside the others elsewhere.

Points refer to their series by a small integer, and a series to its object and key likewise: text in every point's key
is several times slower. No table refers to one of the other file, and no point is checked against its series by the
database: who deletes series deletes their points.

A number is kept so that ``ORDER BY`` and ``<`` work on every database: NaN is NULL, and infinities are the greatest
finite numbers; `modelbox.runtime.store.metric_values` turns them back by the kind.

``metric_migrations`` makes the same tables; a test compares the two. Change both in one commit.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.event import listens_for
from sqlalchemy.types import TypeDecorator, TypeEngine

from modelbox.runtime.store.schema import metadata as _main

__all__ = ("LongBytes", "metadata", "metric_keys", "metric_objects", "metric_points", "metric_series")


class LongBytes(TypeDecorator[bytes]):
    """Bytes of any length; MySQL's BLOB ends at 64 KiB."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[bytes]:
        """The type on ``dialect``; MySQL's own types are imported only there."""
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects.mysql import LONGBLOB

            return dialect.type_descriptor(LONGBLOB())
        return dialect.type_descriptor(LargeBinary())


metadata = MetaData(naming_convention=_main.naming_convention)

_Id = BigInteger().with_variant(Integer(), "sqlite")

metric_objects = Table(
    "metric_objects",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("uid", String(40), nullable=False),
    UniqueConstraint("uid"),
)

metric_keys = Table(
    "metric_keys",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("name", String(250), nullable=False),
    UniqueConstraint("name"),
)

metric_series = Table(
    "metric_series",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("object_id", _Id, nullable=False),
    Column("key_id", _Id, nullable=False),
    # 0 numbers, 1 text, 2 bytes.
    Column("kind", SmallInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("min", Double, nullable=True),
    Column("max", Double, nullable=True),
    Column("latest", Double, nullable=True),
    # The kind of the latest point, as in metric_points.
    Column("latest_flag", SmallInteger, nullable=False),
    # 1: min is infinite, 2: max is.
    Column("infinite", SmallInteger, nullable=False),
    Column("latest_step", BigInteger, nullable=False),
    Column("latest_time_us", BigInteger, nullable=False),
    Column("first_step", BigInteger, nullable=False),
    # Of all its points, so that a database that keeps points by time looks only where they are; NULL: not known.
    Column("low_time_us", BigInteger, nullable=True),
    Column("high_time_us", BigInteger, nullable=True),
    UniqueConstraint("object_id", "key_id"),
    Index(None, "key_id", "latest", "object_id"),
)

metric_points = Table(
    "metric_points",
    metadata,
    Column("series_id", _Id, autoincrement=False),
    Column("step", BigInteger, autoincrement=False),
    Column("time_us", BigInteger, autoincrement=False),
    # 0 number, 1 text, 2 bytes, 3 NaN, 4 +Inf, 5 -Inf.
    Column("kind", SmallInteger, nullable=False),
    Column("value", Double, nullable=True),
    Column("payload", LongBytes, nullable=True),
    # PostgreSQL keeps points in the order in which they came, so reading a series would go all over the table.
    PrimaryKeyConstraint("series_id", "step", "time_us", postgresql_include=["kind", "value"]),
    postgresql_partition_by="RANGE (time_us)",
    sqlite_with_rowid=False,
)


@listens_for(metric_points, "after_create")
def _make_default(_: Table, connection: Connection, **__: Any) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("CREATE TABLE metric_points_default PARTITION OF metric_points DEFAULT"))
