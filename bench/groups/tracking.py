"""What training records, through the server: points of metrics one by one and in batches, runs, and reading them back.

Everything is on disk when it is answered. Callers are those of `bench.load`, which cost next to nothing; the floors are
SQLite alone with the same durability and the same table: one row a commit, one row of each of eight connections a
commit, a thousand rows a commit, and a select. ``MLflow`` in the details is what MLflow 3.17, tuned, did with SQLite on
the machine that the design was made on.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import anyio
import numpy as np
from anyio import to_thread

from bench.figure import Figure, Unit
from bench.load import Exchange, GrpcConnection, call, keep_calling
from bench.machine import PeakMemory, rss_bytes
from bench.measure import Series, interleave, ratio, time_calls
from bench.run import SEED, Run
from modelbox import Client
from modelbox._proto.modelbox import v1 as pb
from modelbox.tracking import ObjectKind, new_id
from tests.server import ServerProcess

CONNECTIONS = 8
BATCH = 1000
READ_POINTS = 5000
LONG_BATCH = 50_000
FLAT_BYTES = 64_000_000
ONE_PER_S, EIGHT_PER_S, POINTS_PER_S, RUNS_PER_S, READ_S = 3000.0, 10_000.0, 150_000.0, 1500.0, 15e-3

_LOG = "/modelbox.v1.MetricService/LogMetrics"
_CREATE_RUN = "/modelbox.v1.TrackingService/CreateRun"
TIME_US = 1_777_000_000_000_000
_TABLE = """
    PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
    CREATE TABLE IF NOT EXISTS points (
        series_id INTEGER NOT NULL, step BIGINT NOT NULL, time_us BIGINT NOT NULL, kind SMALLINT NOT NULL,
        value DOUBLE, payload BLOB, PRIMARY KEY (series_id, step, time_us)
    ) WITHOUT ROWID;
"""
_INSERT = "INSERT INTO points VALUES (?, ?, ?, 0, ?, NULL)"


def measure(run: Run) -> list[Figure]:
    """The figures."""
    with run.server() as server:
        taken = anyio.run(_measure, run, server)
        long = anyio.run(_measure_long, run, server)
    rates = [
        Figure(
            name=f"tracking.{name}",
            what=what,
            unit=Unit.PER_SECOND,
            measured=taken[name],
            floor=taken[floor],
            floor_what=f"SQLite alone, synchronous=FULL, {floor_what}",
            ratio=ratio(taken[name], taken[floor]),
            aim=f"≥ {aim:,.0f}/s",
            reached=taken[name].p50 >= aim,
            details={"MLflow, 1/s": mlflow},
        )
        for name, what, floor, floor_what, aim, mlflow in (
            ("log.one", "points logged one by one, one connection", "single", "one row a commit", ONE_PER_S, 151),
            ("log.eight", "the same, eight connections", "group", "eight rows a commit", EIGHT_PER_S, 151),
            ("log.batch", "points in batches of 1000", "batch", "1000 rows a commit", POINTS_PER_S, 7300),
            ("runs", "runs created, eight connections", "group", "eight rows a commit", RUNS_PER_S, 109),
        )
    ]
    return [
        *rates,
        Figure(
            name="tracking.read",
            what=f"a series of {READ_POINTS} points, to columns in the client",
            unit=Unit.SECONDS,
            measured=taken["read"],
            floor=taken["select"],
            floor_what="SQLite alone, the same select",
            ratio=ratio(taken["read"], taken["select"]),
            aim="≤ 15 ms",
            reached=taken["read"].p50 <= READ_S,
        ),
        *long,
    ]


# -- through the server --------------------------------------------------------------------------------------------


async def _measure(run: Run, server: ServerProcess) -> dict[str, Series]:
    seconds = 0.2 if run.quick else 1.0
    database = run.directory / "points.db"
    runs = [new_id(ObjectKind.RUN) for _ in range(CONNECTIONS)]
    async with run.client(server) as client:
        for one in runs:
            await client.create_run("bench/training", id=one)
        await client.log_series(
            runs[0], "read", np.arange(READ_POINTS), np.random.default_rng(SEED).random(READ_POINTS)
        )
        logging = [await GrpcConnection.open(server.grpc_address, _LOG) for _ in range(CONNECTIONS)]
        creating = [await GrpcConnection.open(server.grpc_address, _CREATE_RUN) for _ in range(CONNECTIONS)]
        steps = {key: itertools.count() for key in ("one", "eight", "batch")}

        def rate(
            connections: Sequence[GrpcConnection], exchange: Exchange, points: int = 1
        ) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                return [points * (await keep_calling(connections, exchange, seconds=seconds)).per_s]

            return turn

        def bare(rows: int) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                return [await to_thread.run_sync(_rows_per_s, database, rows, seconds)]

            return turn

        async def read() -> Sequence[float]:
            return await time_calls(lambda: client.read_series(runs[0], "read"), run.choose(20, 3))

        async def select() -> Sequence[float]:
            return await to_thread.run_sync(_select_s, database, run.choose(20, 3))

        try:
            taken = await interleave(
                {
                    "log.one": rate(logging[:1], logged_points(runs, "one", 1, steps["one"])),
                    "log.eight": rate(logging, logged_points(runs, "eight", 1, steps["eight"])),
                    "log.batch": rate(logging[:4], logged_points(runs, "batch", BATCH, steps["batch"]), BATCH),
                    "runs": rate(creating, _runs()),
                    "single": bare(1),
                    "group": bare(CONNECTIONS),
                    "batch": bare(BATCH),
                    "read": read,
                    "select": select,
                },
                rounds=run.choose(6, 2),
                seed=SEED,
            )
            for key, made in steps.items():
                stored = sum(one.count for one in await client.metric_summaries(*runs, keys=[key]))
                # All but the few whose callers stopped before they sent them: rates of repeats would mean nothing.
                assert stored >= 0.9 * next(made) * (BATCH if key == "batch" else 1), (key, stored)
            return taken
        finally:
            for connection in (*logging, *creating):
                connection.close()


def logged_points(runs: Sequence[str], key: str, count: int, steps: itertools.count[int]) -> Exchange:
    """Calls that each append ``count`` points to the series ``key`` of the next run."""
    values = np.random.default_rng(SEED).random(count).tobytes()
    offsets = np.arange(count, dtype="<i8")
    # Encoding would take longer than all the rest of a caller, so messages are made once, and filled in.
    steps_here, times_here = b"\x01" * 8 * count, b"\x02" * 8 * count
    forms: list[tuple[bytes, bytes, bytes]] = []
    for one in runs:
        columns = pb.MetricColumns(object=one, keys=[key], steps=steps_here, times_us=times_here, values=values)
        head, _, rest = bytes(pb.LogMetricsRequest(columns=[columns])).partition(steps_here)
        between, _, tail = rest.partition(times_here)
        forms.append((head, between, tail))

    def column(begin: int) -> bytes:
        return begin.to_bytes(8, "little") if count == 1 else (offsets + begin).tobytes()

    def body(at: int) -> bytes:
        head, between, tail = forms[at % len(forms)]
        return b"".join((head, column(at * count), between, column(TIME_US + at * count), tail))

    return Exchange(body(next(steps)), lambda _: body(next(steps)))


def _runs() -> Exchange:
    """Calls that each create another run."""

    example = new_id(ObjectKind.RUN)
    request = pb.CreateRunRequest(
        id=example,
        experiment="bench/training",
        started_at_us=TIME_US,
        params_json=b'{"lr": 0.001, "batch": 32, "optimizer": "adam"}',
        tags_json=b'{"team": "speech"}',
    )
    head, _, tail = bytes(request).partition(example.encode())

    def body() -> bytes:
        return b"".join((head, new_id(ObjectKind.RUN).encode(), tail))

    return Exchange(body(), lambda _: body())


# -- ten million points --------------------------------------------------------------------------------------------


async def _measure_long(run: Run, server: ServerProcess) -> list[Figure]:
    count = run.choose(10_000_000, 200_000)
    one = new_id(ObjectKind.RUN)
    async with run.client(server) as client:
        await client.create_run("bench/long", id=one)
        before = rss_bytes(server.pid)
        memory = PeakMemory(server.pid)
        connection = await GrpcConnection.open(server.grpc_address, _LOG)
        exchange = logged_points([one], "loss", LONG_BATCH, itertools.count())
        began = perf_counter()
        body = exchange.first
        assert exchange.follow is not None
        for _ in range(count // LONG_BATCH):
            body = exchange.follow(await call(connection, body))
        logged_s = perf_counter() - began
        connection.close()
        written = memory.growth_bytes()
        began = perf_counter()
        found = await _count(client, one)
        read_s = perf_counter() - began
        assert found == count, (found, count)
        began = perf_counter()
        await client.sample_series(one, "loss", buckets=500)
        sampled_s = perf_counter() - began
        growth = max(memory.growth_bytes(), written)
    return [
        Figure(
            name="tracking.long.memory",
            what=f"growth of the server's memory while {count:,} points of one series are logged, read and sampled",
            unit=Unit.BYTES,
            measured=Series.of([float(growth)]),
            aim="≤ 64 MB",
            reached=growth <= FLAT_BYTES,
            details={"before, MB": before / 1e6, "after logging, MB": (before + written) / 1e6},
        ),
        Figure(
            name="tracking.long.read",
            what="points per second of that series, read whole",
            unit=Unit.PER_SECOND,
            measured=Series.of([count / read_s]),
            details={"logged, points/s": count / logged_s, "sampled in 500 buckets, s": sampled_s},
        ),
    ]


async def _count(client: Client, one: str) -> int:
    """Reads a series in slices, so that the client's memory is flat, too."""
    found, step, width = 0, 0, 1_000_000
    while True:
        part = await client.read_series(one, "loss", from_step=step, to_step=step + width - 1)
        found += len(part.steps)
        if len(part.steps) < width:
            return found
        step += width


# -- SQLite alone --------------------------------------------------------------------------------------------------


def _rows_per_s(path: Path, rows: int, seconds: float) -> float:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(_TABLE)
        begin = connection.execute("SELECT coalesce(max(step), 0) + 1 FROM points").fetchone()[0]
        done = 0
        began = perf_counter()
        end = began + seconds
        while perf_counter() < end:
            connection.execute("BEGIN IMMEDIATE")
            steps = range(begin + done, begin + done + rows)
            connection.executemany(_INSERT, [(rows, step, TIME_US + step, 0.5) for step in steps])
            connection.execute("COMMIT")
            done += rows
        return done / (perf_counter() - began)


def _select_s(path: Path, times: int) -> list[float]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(_TABLE)
        rows = [(0, step, TIME_US + step, step / 3) for step in range(READ_POINTS)]
        connection.executemany(_INSERT.replace("INSERT", "INSERT OR IGNORE"), rows)
        took = []
        for _ in range(times):
            began = perf_counter()
            connection.execute(
                "SELECT step, time_us, kind, value, payload FROM points WHERE series_id = 0 ORDER BY step, time_us"
            ).fetchall()
            took.append(perf_counter() - began)
        return took
