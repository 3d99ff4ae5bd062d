"""Points by time on PostgreSQL: a table for each month, or what TimescaleDB makes of it.

Owns the form of ``metric_points`` there. Each month has a table of its own (UTC, by the points' own times), made before
the month begins; what is of no such month, as times that clients made up, is in ``metric_points_default``. Rows of a
month that are there already when its table is made are moved. A month that holds nothing any more is dropped.

Where the extension ``timescaledb`` is installed in the database when the table is made, it is a hypertable instead, and
old chunks are compressed; everything else is the same. See docs/adr/0015-points-by-time.md.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from sqlalchemy import Connection, text

__all__ = (
    "DEFAULT",
    "hypertable_statements",
    "keep_partitions",
    "month_bounds",
    "partition_points",
    "unpartition_points",
)

DEFAULT = "metric_points_default"
"""The table of points of no month that has one."""

_AHEAD = 2
"""Months after this one."""
_LOCK_MS = 1000
"""How long a change of the partitions waits, and has others wait, for a lock; it is tried again in an hour."""
_LOCK = 0x6D6F64656C626F79
_NAME = re.compile(r"metric_points_(\d{4})_(\d{2})")
_DAY_US = 86_400_000_000
_CHUNK_US = 30 * _DAY_US
_COMPRESS_AFTER_US = 60 * _DAY_US

_COLUMNS = """
    series_id BIGINT NOT NULL, step BIGINT NOT NULL, time_us BIGINT NOT NULL, kind SMALLINT NOT NULL,
    value DOUBLE PRECISION, payload BYTEA"""
_KEY = "CONSTRAINT pk_metric_points PRIMARY KEY (series_id, step, time_us)"
_COVERING = f"{_KEY} INCLUDE (kind, value)"


def partition_points(conn: Connection) -> None:
    """Makes of the plain table one by time, with all its points."""
    conn.execute(text("ALTER TABLE metric_points RENAME TO metric_points_old"))
    conn.execute(text("ALTER TABLE metric_points_old RENAME CONSTRAINT pk_metric_points TO pk_metric_points_old"))
    if conn.execute(text("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")).first() is not None:
        for statement in hypertable_statements():
            conn.execute(text(statement))
    else:
        conn.execute(text(f"CREATE TABLE metric_points ({_COLUMNS}, {_COVERING}) PARTITION BY RANGE (time_us)"))
        conn.execute(text(f"CREATE TABLE {DEFAULT} PARTITION OF metric_points DEFAULT"))
        _make_months(conn, _months_of(conn, "metric_points_old"))
    _move_all(conn, "metric_points_old", "metric_points")


def unpartition_points(conn: Connection) -> None:
    """Makes the plain table of it again, with all its points."""
    conn.execute(text("ALTER TABLE metric_points RENAME TO metric_points_new"))
    conn.execute(text("ALTER TABLE metric_points_new RENAME CONSTRAINT pk_metric_points TO pk_metric_points_new"))
    conn.execute(text(f"CREATE TABLE metric_points ({_COLUMNS}, {_KEY})"))
    _move_all(conn, "metric_points_new", "metric_points")
    conn.execute(text("DROP FUNCTION IF EXISTS metric_points_now()"))


def hypertable_statements() -> tuple[str, ...]:
    """What makes ``metric_points`` where TimescaleDB is."""
    return (
        f"CREATE TABLE metric_points ({_COLUMNS}, {_COVERING})",
        f"SELECT create_hypertable('metric_points', 'time_us', chunk_time_interval => {_CHUNK_US}::bigint,"
        " create_default_indexes => false)",
        "CREATE OR REPLACE FUNCTION metric_points_now() RETURNS BIGINT LANGUAGE sql STABLE AS"
        " $$ SELECT (extract(epoch FROM now()) * 1000000)::bigint $$",
        "SELECT set_integer_now_func('metric_points', 'metric_points_now')",
        "ALTER TABLE metric_points SET (timescaledb.compress, timescaledb.compress_segmentby = 'series_id',"
        " timescaledb.compress_orderby = 'step, time_us')",
        f"SELECT add_compression_policy('metric_points', compress_after => {_COMPRESS_AFTER_US}::bigint)",
    )


def keep_partitions(conn: Connection, *, now_us: int) -> int:
    """Makes the tables of this month and the next ones, and drops those of old months that are empty.

    Another replica may do the same; one of them does. Does nothing on other databases.

    Args:
        conn: The transaction.
        now_us: The time by this server's clock.

    Returns:
        How many tables were made or dropped.
    """
    if conn.dialect.name != "postgresql" or not _is_partitioned(conn):
        return 0
    year, month = _month_of(now_us)
    current = year * 12 + month - 1
    wanted = [divmod(number, 12) for number in range(current, current + _AHEAD + 1)]
    there = _months(conn)
    missing = [(one, zero + 1) for one, zero in wanted if (one, zero + 1) not in there]
    # Last month is kept for those who are late.
    old = [(one, two) for one, two in there if one * 12 + two - 1 < current - 1]
    empty = [of for of in old if not _has_points(conn, _name(*of))]
    if not missing and not empty:
        return 0
    if not conn.execute(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})")).scalar():
        return 0
    there = _months(conn)
    conn.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MS}"))
    missing = [of for of in missing if of not in there]
    _make_months(conn, missing)
    dropped = 0
    for of in empty:
        if of in there:
            conn.execute(text(f"LOCK TABLE {_name(*of)} IN ACCESS EXCLUSIVE MODE"))
            if not _has_points(conn, _name(*of)):
                conn.execute(text(f"DROP TABLE {_name(*of)}"))
                dropped += 1
    return len(missing) + dropped


def month_bounds(year: int, month: int) -> tuple[int, int]:
    """The first microsecond of a month (UTC), and that of the next."""
    after = (year + 1, 1) if month == 12 else (year, month + 1)
    low, high = (int(datetime(*of, 1, tzinfo=UTC).timestamp()) * 1_000_000 for of in ((year, month), after))
    return low, high


def _make_months(conn: Connection, months: list[tuple[int, int]]) -> None:
    for of in months:
        name, (low, high) = _name(*of), month_bounds(*of)
        # Made aside: a table that is made as a part of the other has everybody wait.
        conn.execute(text(f"CREATE TABLE {name} (LIKE metric_points INCLUDING ALL EXCLUDING INDEXES)"))
        # Nobody is told of a key in the way: points of one place are in one of the two tables.
        conn.execute(text(f"LOCK TABLE {DEFAULT} IN ACCESS EXCLUSIVE MODE"))
        conn.execute(
            text(
                f"WITH moved AS (DELETE FROM {DEFAULT} WHERE time_us >= {low} AND time_us < {high} RETURNING *)"
                f" INSERT INTO {name} SELECT * FROM moved"
            )
        )
        conn.execute(text(f"ALTER TABLE metric_points ATTACH PARTITION {name} FOR VALUES FROM ({low}) TO ({high})"))
        # The reads use the index alone where a vacuum has been; for new points, soon after they came.
        conn.execute(text(f"ALTER TABLE {name} SET (autovacuum_vacuum_insert_scale_factor = 0.05)"))


def _move_all(conn: Connection, source: str, target: str) -> None:
    conn.execute(text(f"INSERT INTO {target} SELECT * FROM {source}"))
    conn.execute(text(f"DROP TABLE {source}"))


def _is_partitioned(conn: Connection) -> bool:
    return conn.execute(text("SELECT to_regclass(:name)"), {"name": DEFAULT}).scalar() is not None


def _has_points(conn: Connection, table: str) -> bool:
    return conn.execute(text(f"SELECT 1 FROM {table} LIMIT 1")).first() is not None


def _months(conn: Connection) -> list[tuple[int, int]]:
    query = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'metric_points'::regclass")
    found = [_NAME.fullmatch(name.rpartition(".")[2]) for name in conn.execute(query).scalars()]
    return sorted((int(one[1]), int(one[2])) for one in found if one is not None)


def _months_of(conn: Connection, table: str) -> list[tuple[int, int]]:
    """The months of what is in a table, as far as there can be points of them."""
    low, high = month_bounds(2000, 1)[0], month_bounds(2100, 1)[0]
    query = text(
        "SELECT DISTINCT extract(year FROM at)::int, extract(month FROM at)::int FROM (SELECT"
        " to_timestamp(time_us / 1000000) AT TIME ZONE 'UTC' AS at"
        f" FROM {table} WHERE time_us >= {low} AND time_us < {high}) AS times ORDER BY 1, 2 LIMIT 600"
    )
    return [(row[0], row[1]) for row in conn.execute(query)]


def _month_of(time_us: int) -> tuple[int, int]:
    at = datetime.fromtimestamp(time_us / 1e6, UTC)
    return at.year, at.month


def _name(year: int, month: int) -> str:
    return f"metric_points_{year:04}_{month:02}"
