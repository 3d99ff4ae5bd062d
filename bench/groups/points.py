"""Points of metrics on PostgreSQL, through the server and beside asyncpg alone with the same columns.

Everything is on disk when it is answered. Callers are those of `bench.load`. The floors are asyncpg on as many
connections as there are callers, each row or batch a commit: INSERT of one row, COPY of a thousand, and SELECT into
rows; the table is one, without months, and nothing is looked up or counted.

On a busy machine rates tell what the others left over. The details say what a point costs: processor time of the server
process and of its connections' processes in PostgreSQL, and of those of the floor.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

import anyio
import asyncpg
import numpy as np

from bench.databases import Kind, NoDatabase
from bench.figure import Figure, Unit
from bench.groups.tracking import (
    BATCH,
    CONNECTIONS,
    EIGHT_PER_S,
    ONE_PER_S,
    POINTS_PER_S,
    READ_POINTS,
    READ_S,
    TIME_US,
    logged_points,
)
from bench.load import GrpcConnection, call, keep_calling
from bench.measure import Series, interleave, ratio, time_calls
from bench.run import SEED, Run
from modelbox.tracking import ObjectKind, new_id

_LOG = "/modelbox.v1.MetricService/LogMetrics"
_BATCHERS = 4
_SAMPLED_BATCH = 50_000
_BUCKETS = 500
_TABLE = """
    CREATE TABLE points (
        series_id BIGINT NOT NULL, step BIGINT NOT NULL, time_us BIGINT NOT NULL, kind SMALLINT NOT NULL,
        value DOUBLE PRECISION, payload BYTEA, PRIMARY KEY (series_id, step, time_us)
    )
"""
_COLUMNS = ("series_id", "step", "time_us", "kind", "value")
_INSERT = f"INSERT INTO points ({', '.join(_COLUMNS)}) VALUES ($1, $2, $3, 0, $4)"
_SELECT = "SELECT step, time_us, kind, value FROM points WHERE series_id = $1 ORDER BY step, time_us LIMIT $2"
_GROUP = "SELECT step / $2, count(*), min(value), max(value), avg(value) FROM points WHERE series_id = $1 GROUP BY 1"
_READ, _LONG = -1, -2
"""Series of the floor's table that are read."""


def measure(run: Run) -> list[Figure]:
    """The figures."""
    try:
        url, floor_url = run.databases.new_url(Kind.POSTGRESQL), run.databases.new_url(Kind.POSTGRESQL)
    except NoDatabase as exc:
        run.say(f"nothing is measured: {exc}")
        return []
    return anyio.run(_measure, run, url, floor_url)


async def _measure(run: Run, url: str, floor_url: str) -> list[Figure]:
    seconds = 0.2 if run.quick else 1.0
    long = run.choose(1_000_000, 100_000)
    runs = [new_id(ObjectKind.RUN) for _ in range(CONNECTIONS)]
    async with AsyncExitStack() as stack:
        server = stack.enter_context(run.server(database_url=url))
        client = await stack.enter_async_context(run.client(server))
        for one in runs:
            await client.create_run("bench/training", id=one)
        bare = [await asyncpg.connect(floor_url) for _ in range(CONNECTIONS)]
        for connection in bare:
            stack.push_async_callback(connection.close)
        await bare[0].execute(_TABLE)
        logging = [await GrpcConnection.open(server.grpc_address, _LOG) for _ in range(CONNECTIONS)]
        for caller in logging:
            stack.callback(caller.close)
        values = np.random.default_rng(SEED).random(READ_POINTS)
        await client.log_series(runs[0], "read", np.arange(READ_POINTS), values)
        await _fill(bare[0], _READ, READ_POINTS)
        await _log_long(logging[0], runs[0], long)
        await _fill(bare[0], _LONG, long)
        # Makes every connection that will be used.
        await keep_calling(logging, logged_points(runs, "warm", 1, itertools.count()), seconds=seconds)
        await client.read_series(runs[0], "read")
        # Months that are over were vacuumed.
        for place in (url, floor_url):
            connection = await asyncpg.connect(place)
            await connection.execute("VACUUM (ANALYZE)", timeout=120)
            await connection.close()
        steps = {key: itertools.count() for key in ("one", "eight", "batch")}
        places = itertools.count(1)
        costs = _Costs(server.pid, await _backends(bare[0]))

        def rate(name: str, callers: Sequence[GrpcConnection], points: int = 1) -> _Turn:
            exchange = logged_points(runs, name, points, steps[name])

            async def turn() -> Sequence[float]:
                before = costs.look()
                did = await keep_calling(callers, exchange, seconds=seconds)
                costs.add(name, before, points * did.per_s * seconds)
                return [points * did.per_s]

            return turn

        def floor(name: str, connections: Sequence[asyncpg.Connection], rows: int) -> _Turn:
            async def turn() -> Sequence[float]:
                before = costs.look()
                per_s = await _rows_per_s(connections, places, rows, seconds)
                costs.add(name, before, per_s * seconds)
                return [per_s]

            return turn

        def times(work: Callable[[], Awaitable[object]], count: int) -> _Turn:
            async def turn() -> Sequence[float]:
                return await time_calls(work, count)

            return turn

        taken = await interleave(
            {
                "one": rate("one", logging[:1]),
                "one.floor": floor("one.floor", bare[:1], 1),
                "eight": rate("eight", logging),
                "eight.floor": floor("eight.floor", bare, 1),
                "batch": rate("batch", logging[:_BATCHERS], BATCH),
                "batch.floor": floor("batch.floor", bare[:_BATCHERS], BATCH),
                "read": times(lambda: client.read_series(runs[0], "read"), run.choose(20, 3)),
                "read.floor": times(lambda: bare[0].fetch(_SELECT, _READ, READ_POINTS), run.choose(20, 3)),
                "sample": times(lambda: client.sample_series(runs[0], "long", buckets=_BUCKETS), 1),
                "sample.floor": times(lambda: bare[0].fetch(_GROUP, _LONG, long // _BUCKETS), 1),
            },
            rounds=run.choose(6, 2),
            seed=SEED,
        )
        for key, made in steps.items():
            stored = sum(one.count for one in await client.metric_summaries(*runs, keys=[key]))
            assert stored >= 0.9 * next(made) * (BATCH if key == "batch" else 1), (key, stored)
        return [*_rates(taken, costs), *_reads(taken, long)]


_Turn = Callable[[], Awaitable[Sequence[float]]]


class _Costs:
    """Processor time of what was done."""

    def __init__(self, server: int, backends: Sequence[int]) -> None:
        self._server = server
        self._backends = backends
        self._seen: dict[str, list[tuple[float, float]]] = {}

    def look(self) -> tuple[float, float]:
        """Seconds of the server and of PostgreSQL's processes until now."""
        return _processor_s(self._server), sum(_processor_s(pid) for pid in self._backends)

    def add(self, name: str, before: tuple[float, float], points: float) -> None:
        """Notes a turn."""
        server, database = (1e6 * (now - then) / points for now, then in zip(self.look(), before, strict=True))
        self._seen.setdefault(name, []).append((server, database))

    def of(self, name: str) -> dict[str, float]:
        """The medians, as details of a figure."""
        server, database = (median(column) for column in zip(*self._seen[name], strict=True))
        floor = median([database for _, database in self._seen[f"{name}.floor"]])
        return {"server, µs": server, "PostgreSQL, µs": database, "PostgreSQL of the floor, µs": floor}


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _backends(connection: asyncpg.Connection) -> list[int]:
    """The processes of all connections there are."""
    rows = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
    return [row["pid"] for row in rows]


def _rates(taken: dict[str, Series], costs: _Costs) -> list[Figure]:
    return [
        Figure(
            name=f"points.{name}",
            what=what,
            unit=Unit.PER_SECOND,
            measured=taken[name],
            floor=taken[f"{name}.floor"],
            floor_what=f"asyncpg alone, {floor_what}",
            ratio=ratio(taken[name], taken[f"{name}.floor"]),
            aim=f"≥ {aim:,.0f}/s",
            reached=taken[name].p50 >= aim,
            details=costs.of(name),
        )
        for name, what, floor_what, aim in (
            ("one", "points logged one by one on PostgreSQL, one connection", "one row a commit", ONE_PER_S),
            ("eight", "the same, eight connections", "eight connections", EIGHT_PER_S),
            (
                "batch",
                "points in batches of 1000, four connections",
                "COPY of 1000 rows, four connections",
                POINTS_PER_S,
            ),
        )
    ]


def _reads(taken: dict[str, Series], long: int) -> list[Figure]:
    return [
        Figure(
            name="points.read",
            what=f"a series of {READ_POINTS} points on PostgreSQL, to columns in the client",
            unit=Unit.SECONDS,
            measured=taken["read"],
            floor=taken["read.floor"],
            floor_what="asyncpg alone, the same select into rows",
            ratio=ratio(taken["read"], taken["read.floor"]),
            aim="≤ 15 ms",
            reached=taken["read"].p50 <= READ_S,
        ),
        Figure(
            name="points.sample",
            what=f"a series of {long:,} points on PostgreSQL in {_BUCKETS} buckets",
            unit=Unit.SECONDS,
            measured=taken["sample"],
            floor=taken["sample.floor"],
            floor_what="asyncpg alone, count, minimum, maximum and mean by bucket",
            ratio=ratio(taken["sample"], taken["sample.floor"]),
        ),
    ]


async def _log_long(caller: GrpcConnection, one: str, count: int) -> None:
    exchange = logged_points([one], "long", _SAMPLED_BATCH, itertools.count())
    body = exchange.first
    assert exchange.follow is not None
    for _ in range(count // _SAMPLED_BATCH):
        body = exchange.follow(await call(caller, body))


async def _fill(connection: asyncpg.Connection, series: int, count: int) -> None:
    rows = [(series, step, TIME_US + step, 0, step / 3) for step in range(count)]
    await connection.copy_records_to_table("points", records=rows, columns=_COLUMNS, timeout=120)


async def _rows_per_s(
    connections: Sequence[asyncpg.Connection], places: itertools.count[int], rows: int, seconds: float
) -> float:
    done = 0
    began = perf_counter()
    until = began + seconds

    async def keep_adding(connection: asyncpg.Connection, series: int) -> None:
        nonlocal done
        step = 0
        while perf_counter() < until:
            if rows == 1:
                await connection.execute(_INSERT, series, step, TIME_US + step, 0.5)
            else:
                records = [(series, step + at, TIME_US + step + at, 0, 0.5) for at in range(rows)]
                await connection.copy_records_to_table("points", records=records, columns=_COLUMNS)
            step += rows
            done += rows

    async with anyio.create_task_group() as tasks:
        for connection in connections:
            tasks.start_soon(keep_adding, connection, next(places))
    return done / (perf_counter() - began)
