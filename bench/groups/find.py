"""Finding runs through the server, among a thousand, ten thousand and a hundred thousand of them.

Every run has 10 metrics, 10 parameters and 5 tags. Their rows are written into the server's files while it is down:
making them by calls would take longer than everything else here, and finds the same. The floors are SQLite alone with
the statement that a person would write for this one question, and nothing made of its rows. ``MLflow`` in the details
is what MLflow 3.17, tuned, took with SQLite on the machine that the design was made on.
"""

from __future__ import annotations

import json
import random
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import anyio
from anyio import to_thread
from sqlalchemy import Table, insert, text
from sqlalchemy.ext.asyncio import create_async_engine

from bench.figure import Figure, Unit
from bench.measure import Series, interleave, ratio, time_calls
from bench.run import SEED, Run
from modelbox import Client
from modelbox.runtime.store.metric_schema import metric_keys, metric_objects, metric_series
from modelbox.runtime.store.opening import parse_database_url
from modelbox.runtime.store.schema import attributes, experiments, namespaces, objects, runs
from modelbox.tracking import ObjectKind, new_id
from tests.server import ServerProcess

METRICS, PARAMS, TAGS = 10, 10, 5
AIMED_AT = 10_000
FIRST_S, FILTER_S, PAGE_S = 20e-3, 20e-3, 80e-3
MLFLOW_S = 3.8

_WHERE = "metrics.m0 > 0.5 and params.p0 < 0.5 and tags.t0 = a"
_ATTACHED = "ATTACH DATABASE '{}' AS metrics"
_OF_KEY = (
    "SELECT o.uid, s.latest FROM metric_series s JOIN metric_objects w ON w.id = s.object_id "
    "JOIN objects o ON o.uid = w.uid WHERE s.key_id = 1 AND o.deleted_at_us IS NULL"
)
_FLOORS = {
    "first": (f"{_OF_KEY} ORDER BY s.latest DESC LIMIT 100",),
    "filter": (
        f"{_OF_KEY} AND s.latest > 0.5 AND EXISTS (SELECT 1 FROM attributes a WHERE a.object_id = o.id "
        "AND a.kind = 'param' AND a.key = 'p0' AND a.number < 0.5) AND EXISTS (SELECT 1 FROM attributes a "
        "WHERE a.object_id = o.id AND a.kind = 'tag' AND a.key = 't0' AND a.text = 'a') LIMIT 100",
    ),
    "page": (
        "SELECT r.*, o.* FROM runs r JOIN objects o ON o.id = r.id ORDER BY r.id DESC LIMIT 1000",
        "SELECT a.object_id, a.kind, a.key, a.value FROM attributes a WHERE a.object_id IN "
        "(SELECT id FROM runs ORDER BY id DESC LIMIT 1000)",
        "SELECT o.id, s.key_id, s.latest FROM objects o JOIN metric_objects w ON w.uid = o.uid JOIN metric_series s "
        "ON s.object_id = w.id WHERE o.id IN (SELECT id FROM runs ORDER BY id DESC LIMIT 1000)",
    ),
}


def measure(run: Run) -> list[Figure]:
    """The figures."""
    figures: list[Figure] = []
    for count in (1000, 10_000, 100_000)[: run.choose(3, 1)]:
        run.say(f"find: {count:,} runs")
        directory = run.directory / f"find-{count}"
        with ServerProcess(directory, log_level="warning"):
            pass
        _fill(directory, count)
        server = ServerProcess(directory, log_level="warning")
        url = run.databases.new_url(run.database)
        if url:
            with run.server(database_url=url):
                pass
            anyio.run(_fill_shared, url, count)
            server = run.server(database_url=url)
        with server:
            figures += _figures(anyio.run(_measure, run, server, directory), count)
    return figures


def _figures(taken: dict[str, Series], count: int) -> list[Figure]:
    return [
        Figure(
            name=f"find.{name}.{count // 1000}k",
            what=f"{what}, of {count:,} runs",
            unit=Unit.SECONDS,
            measured=taken[name],
            floor=taken[f"bare {name}"],
            floor_what="SQLite alone, the same question by hand",
            ratio=ratio(taken[name], taken[f"bare {name}"]),
            aim=f"≤ {aim * 1e3:.0f} ms" if count == AIMED_AT else "",
            reached=taken[name].p50 <= aim if count == AIMED_AT else None,
            details={"MLflow, s": MLFLOW_S} if name == "first" and count == AIMED_AT else {},
        )
        for name, what, aim in (
            ("first", "the first 100 by a metric", FIRST_S),
            ("filter", "100 filtered by metric, param and tag", FILTER_S),
            ("page", "a page of 1000 with all columns", PAGE_S),
        )
    ]


async def _measure(run: Run, server: ServerProcess, directory: Path) -> dict[str, Series]:
    calls = run.choose(10, 3)
    async with run.client(server) as client:

        def found(call: Callable[[Client], Awaitable[object]]) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                return await time_calls(lambda: call(client), calls)

            return turn

        def bare(name: str) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                return await to_thread.run_sync(_select_s, directory, _FLOORS[name], calls)

            return turn

        few = ["name", "metrics.m0"]
        best = await client.find("runs", order_by="metrics.m0 desc", limit=2, columns=["metrics.m0"])
        assert best.columns["metrics.m0"][0] >= best.columns["metrics.m0"][1]
        return await interleave(
            {
                "first": found(lambda one: one.find("runs", order_by="metrics.m0 desc", columns=few)),
                "filter": found(lambda one: one.find("runs", _WHERE, columns=few)),
                "page": found(lambda one: one.find("runs", limit=1000)),
                **{f"bare {name}": bare(name) for name in _FLOORS},
            },
            rounds=run.choose(8, 2),
            seed=SEED,
        )


def _select_s(directory: Path, statements: Sequence[str], times: int) -> list[float]:
    took = []
    with closing(sqlite3.connect(f"file:{directory / 'modelbox.db'}?mode=ro", uri=True)) as connection:
        connection.execute(_ATTACHED.format(directory / "metrics.db"))
        for _ in range(times):
            began = perf_counter()
            for statement in statements:
                connection.execute(statement).fetchall()
            took.append(perf_counter() - began)
    return took


# -- the runs ----------------------------------------------------------------------------------------------------------


def _fill(directory: Path, count: int) -> None:
    """Writes the rows of runs into files of SQLite; nobody else has them open."""
    with (
        closing(sqlite3.connect(directory / "modelbox.db")) as main,
        closing(sqlite3.connect(directory / "metrics.db")) as points,
    ):
        for table, rows in _rows(count):
            names = ", ".join(f'"{column.name}"' for column in table.c)
            marks = ", ".join("?" * len(table.c))
            into = points if table.metadata is metric_series.metadata else main
            into.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", rows)
        main.commit()
        points.commit()


async def _fill_shared(url: str, count: int) -> None:
    """Writes them into another database; nobody writes there."""
    engine = create_async_engine(parse_database_url(url))
    async with engine.begin() as connection:
        for table, rows in _rows(count):
            names = [column.name for column in table.c]
            await connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])
    async with engine.connect() as connection:
        analyze = "ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE TABLE objects, runs, attributes"
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text(analyze))
    await engine.dispose()


def _rows(count: int) -> Iterator[tuple[Table, Sequence[Sequence[object]]]]:
    """The rows of ``count`` runs, by table."""
    chance = random.Random(SEED)
    yield namespaces, [(1, "bench", 0, 1)]
    yield objects, [(1, new_id(ObjectKind.NAMESPACE), "namespace", 1, None, None, None, 0, "bench", 1)]
    yield objects, [(2, new_id(ObjectKind.EXPERIMENT), "experiment", 1, 1, None, None, 0, "bench", 1)]
    yield experiments, [(2, 1, "training", "", "", "", "", "")]
    yield metric_keys, [(number + 1, f"m{number}") for number in range(METRICS)]
    for begin in range(0, count, 1000):
        some = range(begin, min(begin + 1000, count))
        uids = [f"run_{secrets.token_hex(12)}" for _ in some]
        yield objects, [(n + 3, uid, "run", 1, 2, None, None, n, "bench", 1) for n, uid in zip(some, uids, strict=True)]
        yield runs, [(n + 3, 2, f"run-{n}", "finished", n, n + 10**6, None, "", "") for n in some]
        yield attributes, [row for n in some for row in _values(n + 3, chance)]
        yield metric_objects, list(zip((n + 1 for n in some), uids, strict=True))
        yield (
            metric_series,
            [
                (n * METRICS + key + 1, n + 1, key + 1, 0, 10, 0.0, 1.0, chance.random(), 0, 0, 9, 9, 0, 0, 9)
                for n in some
                for key in range(METRICS)
            ],
        )


def _values(object_id: int, chance: random.Random) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for number in range(PARAMS):
        value = chance.random() if number < PARAMS // 2 else chance.choice(["adam", "sgd", "lion", "adafactor"])
        is_text = isinstance(value, str)
        pair = (None, value) if is_text else (value, None)
        rows.append((object_id, "param", f"p{number}", json.dumps(value), *pair, 0, "bench"))
    for number in range(TAGS):
        tag = chance.choice("abcd")
        rows.append((object_id, "tag", f"t{number}", json.dumps(tag), None, tag, 0, "bench"))
    return rows
