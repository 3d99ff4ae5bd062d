"""The time by the database's clock, which is one for all replicas, whatever their own clocks say.

Leases are measured by it. It is read when a statement runs, not when its transaction began: a transaction may have
waited for its turn.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

__all__ = ("database_now_us",)


class database_now_us(FunctionElement[int]):
    """Microseconds since 1970 in UTC, as an expression."""

    type = BigInteger()
    inherit_cache = True
    name = "database_now_us"


@compiles(database_now_us, "sqlite")
def _sqlite(element: Any, compiler: Any, **options: Any) -> str:
    # Fractions of a day; good for milliseconds.
    return "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"


@compiles(database_now_us, "postgresql")
def _postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(database_now_us, "mysql")
@compiles(database_now_us, "mariadb")
def _mysql(element: Any, compiler: Any, **options: Any) -> str:
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
