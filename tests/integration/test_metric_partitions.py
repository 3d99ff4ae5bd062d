"""Points by month on PostgreSQL: tables that are made ahead, what is in none of them, and what becomes of old ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import Connection, insert, select, text

from modelbox.runtime.store.database import MainDatabase
from modelbox.runtime.store.metric_partitions import DEFAULT, hypertable_statements, keep_partitions, month_bounds
from modelbox.runtime.store.metric_postgres import copied, numbers_query
from modelbox.runtime.store.metric_reads import find_series
from modelbox.runtime.store.metric_schema import metric_points, metric_series
from modelbox.runtime.store.metric_shared import PointColumns
from modelbox.runtime.store.metrics import SqlMetricStore
from modelbox.runtime.store.migrate import METRICS, migrate
from modelbox.runtime.store.opening import open_database
from modelbox.tracking import ObjectKind, new_id
from tests.contract.metric_stores import Point, log, read_all


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(postgres_migrated_url: str, tmp_path: Path) -> AsyncIterator[MainDatabase]:
    async with open_database(postgres_migrated_url, data_dir=tmp_path) as opened:
        yield opened


def _us(year: int, month: int, day: int = 1) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp() * 1e6)


def _tables(conn: Connection) -> list[str]:
    """The parts of the table, in order."""
    query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'metric_points'::regclass ORDER BY 1"
    return list(conn.execute(text(query)).scalars())


def _spread(conn: Connection) -> dict[str, int]:
    """Points of each part that has some."""
    rows = conn.execute(text("SELECT tableoid::regclass::text, count(*) FROM metric_points GROUP BY 1 ORDER BY 1"))
    return {row[0]: row[1] for row in rows}


def _month(now: datetime, later: int) -> str:
    year, month = divmod(now.year * 12 + now.month - 1 + later, 12)
    return f"metric_points_{year:04}_{month + 1:02}"


def test_months_begin_and_end_in_utc() -> None:
    assert month_bounds(2026, 11) == (_us(2026, 11), _us(2026, 12))
    assert month_bounds(2026, 12) == (_us(2026, 12), _us(2027, 1))
    assert month_bounds(2028, 2)[1] - month_bounds(2028, 2)[0] == 29 * 86_400_000_000


async def test_a_server_makes_this_month_and_the_next_two(database: MainDatabase) -> None:
    now = datetime.now(UTC)
    tables = await database.read(_tables)
    # Between the two a month may have begun.
    assert {_month(now, 1), DEFAULT} <= set(tables)
    assert len(tables) == 4
    run = new_id(ObjectKind.RUN)
    at = int(now.timestamp() * 1e6)
    await log(SqlMetricStore(database.metrics), run, {"a": [(1, at, 1.0), (2, -5, 2.0), (3, _us(2150, 1), 3.0)]})
    assert await database.read(_spread) == {_month(now, 0): 1, DEFAULT: 2}
    made = await SqlMetricStore(database.metrics).keep_partitions()
    # Nothing is left to do, but where yet another month has begun.
    assert made == 0 or _month(datetime.now(UTC), 2) not in tables


async def test_points_that_came_before_their_table_are_moved_into_it(database: MainDatabase) -> None:
    store, run = SqlMetricStore(database.metrics), new_id(ObjectKind.RUN)
    points: list[Point] = [
        (number, at, float(number))
        for number, at in enumerate((_us(2150, 1) - 1, _us(2150, 1), _us(2150, 3) - 1, _us(2150, 3)))
    ]
    await log(store, run, {"a": points})
    assert await database.read(_spread) == {DEFAULT: 4}
    await database.metrics.write(lambda conn: keep_partitions(conn, now_us=_us(2149, 12, 20)))
    assert await database.read(_spread) == {
        "metric_points_2149_12": 1,
        "metric_points_2150_01": 1,
        "metric_points_2150_02": 1,
        DEFAULT: 1,
    }
    assert await read_all(store, run, "a") == points
    # As they were all along: known, and not stored again.
    outcome = await log(store, run, {"a": [*points, (9, _us(2150, 2), 9.0)]})
    assert (outcome.stored, outcome.repeated) == (1, 4)


async def test_old_months_go_when_they_are_empty(database: MainDatabase) -> None:
    store, kept, gone = SqlMetricStore(database.metrics), new_id(ObjectKind.RUN), new_id(ObjectKind.RUN)
    write = database.metrics.write
    before = await database.read(_tables)
    await write(lambda conn: keep_partitions(conn, now_us=_us(2149, 1)))
    await log(store, kept, {"a": [(1, _us(2149, 2), 1.0)]})
    await log(store, gone, {"a": [(1, _us(2149, 1), 1.0), (2, _us(2149, 2), 1.0), (3, _us(2149, 3), 1.0)]})
    await write(lambda conn: keep_partitions(conn, now_us=_us(2150, 1)))
    months = [f"metric_points_{month}" for month in ("2149_01", "2149_02", "2149_03", "2150_01", "2150_02", "2150_03")]
    # Those of the server's own time are old by then, too.
    assert await database.read(_tables) == [*months, DEFAULT]
    assert len(before) == 4
    await store.delete_series([gone])
    assert await write(lambda conn: keep_partitions(conn, now_us=_us(2150, 1))) == 2
    assert await database.read(_tables) == ["metric_points_2149_02", *months[3:], DEFAULT]
    assert await read_all(store, kept, "a") == [(1, _us(2149, 2), 1.0)]


async def test_one_of_two_replicas_makes_the_tables(
    database: MainDatabase, postgres_migrated_url: str, tmp_path: Path
) -> None:
    async with open_database(postgres_migrated_url, data_dir=tmp_path) as other:
        done: list[int] = []

        async def keep(replica: MainDatabase) -> None:
            done.append(await replica.metrics.write(lambda conn: keep_partitions(conn, now_us=_us(2160, 6))))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(keep, database)
                tasks.start_soon(keep, other)
        assert [count for count in done if count] == [6]
        assert await other.read(_tables) == [*(f"metric_points_2160_{month:02}" for month in (6, 7, 8)), DEFAULT]


async def test_logging_goes_on_while_tables_are_made_and_dropped(database: MainDatabase) -> None:
    store, run, at = SqlMetricStore(database.metrics), new_id(ObjectKind.RUN), _us(2170, 1)
    stored, stopping = 0, anyio.Event()

    async def write() -> None:
        nonlocal stored
        while not stopping.is_set():
            points: list[Point] = [(stored, at + stored * 86_400_000_000, 1.0)]
            await log(store, run, {"a": points})
            stored += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for month in range(1, 13):
            await database.metrics.write(partial(keep_partitions, now_us=_us(2170, month)))
        while stored < 20:
            await anyio.sleep(0.005)
        stopping.set()
    found = await read_all(store, run, "a", limit=1000)
    assert [step for step, *_ in found] == list(range(stored))


async def test_a_read_looks_only_where_points_are(database: MainDatabase) -> None:
    store, run = SqlMetricStore(database.metrics), new_id(ObjectKind.RUN)
    await database.metrics.write(lambda conn: keep_partitions(conn, now_us=_us(2149, 1)))
    await log(store, run, {"a": [(step, _us(2149, 2, 3) + step, 1.0) for step in range(5)]})

    def plan(conn: Connection) -> str:
        series = find_series(conn, run, "a")
        assert series is not None
        query = numbers_query(series.id, series.times_us, from_step=1, to_step=3, after=None, limit=10)
        return "\n".join(conn.execute(text(f"EXPLAIN {query}")).scalars())

    explained = await database.read(plan)
    assert "metric_points_2149_02" in explained
    assert explained.count("metric_points_") == explained.count("metric_points_2149_02")


async def test_points_of_an_older_schema_come_up_and_down(
    database: MainDatabase,
) -> None:
    times = [-5, _us(1999, 12, 31), _us(2024, 1) - 1, _us(2024, 1), _us(2024, 2), _us(2024, 2, 9), 2**62]
    rows = [
        {"series_id": 1, "step": step, "time_us": at, "kind": 0 if step else 1, "value": step / 3, "payload": b"x"}
        for step, at in enumerate(times)
    ]

    def points(conn: Connection) -> Sequence[Any]:
        return conn.execute(select(metric_points).order_by(metric_points.c.step)).all()

    # Through a server's own connections; what it made goes first.
    def down(conn: Connection) -> None:
        migrate(conn, METRICS, to="0001")
        conn.execute(insert(metric_points), rows)

    await database.metrics.write(down)
    before = await database.read(points)
    assert len(before) == len(times)
    await database.metrics.write(lambda conn: migrate(conn, METRICS))
    assert await database.read(points) == before
    assert await database.read(_spread) == {
        "metric_points_2023_12": 1,
        "metric_points_2024_01": 1,
        "metric_points_2024_02": 2,
        DEFAULT: 3,
    }
    await database.metrics.write(lambda conn: migrate(conn, METRICS, to="0001"))
    assert await database.read(points) == before
    names = "SELECT relname FROM pg_class WHERE relname LIKE 'metric_points%' AND relkind IN ('r', 'p')"
    assert await database.read(lambda conn: list(conn.execute(text(names)).scalars())) == ["metric_points"]


async def test_series_of_an_older_schema_are_read_and_go_on(database: MainDatabase) -> None:
    """Nobody knows between which times their points are."""
    store, run = SqlMetricStore(database.metrics), new_id(ObjectKind.RUN)
    await log(store, run, {"a": [(2, 7, 1.0)]})
    forgotten = {"low_time_us": None, "high_time_us": None}
    await database.metrics.write(lambda conn: conn.execute(metric_series.update().values(forgotten)))
    store = SqlMetricStore(database.metrics)
    await log(store, run, {"a": [(3, _us(2026, 5), 2.0)]})
    await log(store, run, {"a": [(1, _us(2020, 5), 3.0)]})
    assert [step for step, *_ in await read_all(store, run, "a")] == [1, 2, 3]
    sampled = await store.sample(run, "a", from_step=None, to_step=None, buckets=1)
    assert int.from_bytes(sampled.counts, "little") == 3


def test_hypertables() -> None:
    """Text only; docs/adr/0015-points-by-time.md says where it ran."""
    made, split, now, use, compress, policy = hypertable_statements()
    assert "PRIMARY KEY (series_id, step, time_us) INCLUDE (kind, value)" in made
    assert "PARTITION" not in made
    assert split == (
        "SELECT create_hypertable('metric_points', 'time_us', chunk_time_interval => 2592000000000::bigint,"
        " create_default_indexes => false)"
    )
    assert "RETURNS BIGINT LANGUAGE sql STABLE" in now
    assert use == "SELECT set_integer_now_func('metric_points', 'metric_points_now')"
    assert "compress_segmentby = 'series_id'" in compress
    assert "compress_orderby = 'step, time_us'" in compress
    assert policy == "SELECT add_compression_policy('metric_points', compress_after => 5184000000000::bigint)"


def test_points_in_the_form_of_copy() -> None:
    import numpy as np

    def column(*values: int) -> Any:
        return np.array(values, np.int64)

    points = PointColumns(column(1, 1), column(2, 3), column(4, 5), column(0, 3), np.array([0.5, np.nan]))
    head, tail = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
    number = (8).to_bytes(4, "big")

    def row(series: int, step: int, at: int, kind: int, value: bytes) -> bytes:
        places = b"".join(number + one.to_bytes(8, "big") for one in (series, step, at))
        return b"\0\5" + places + b"\0\0\0\2" + kind.to_bytes(2, "big") + value

    assert (
        copied(points) == head + row(1, 2, 4, 0, number + b"\x3f\xe0" + bytes(6)) + row(1, 3, 5, 3, b"\xff" * 4) + tail
    )
