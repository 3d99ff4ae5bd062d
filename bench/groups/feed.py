"""Commits per second through the server: aliases moved by one writer, and by eight at once, each on its own alias.

Every move is one revision of the change feed and is on disk when it is answered. The floors are commits of as many
small statements to SQLite with the same durability: one row a commit, and eight rows a commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import anyio
from anyio import to_thread

from bench.figure import Figure, Unit
from bench.measure import Series, interleave, ratio
from bench.run import SEED, Run
from modelbox import Client
from tests.onnx_models import add_constant
from tests.server import ServerProcess

WRITERS = 8


def measure(run: Run) -> list[Figure]:
    """The figures."""
    with run.server() as server:
        taken = anyio.run(_measure, run, server)
    return [
        Figure(
            name=f"feed.{name}",
            what=f"aliases moved per second by {what}",
            unit=Unit.PER_SECOND,
            measured=taken[name],
            floor=taken[floor],
            floor_what=f"SQLite alone, synchronous=FULL, {rows} a commit",
            ratio=ratio(taken[name], taken[floor]),
        )
        for name, what, floor, rows in (
            ("one", "one writer", "single", "one change"),
            ("eight", f"{WRITERS} writers", "group", f"{WRITERS} changes"),
        )
    ]


async def _measure(run: Run, server: ServerProcess) -> dict[str, Series]:
    seconds = 0.1 if run.quick else 0.7
    database = run.directory / "floor.db"
    async with run.client(server) as client:
        for number in (1, 2):
            path = run.directory / f"fed-{number}.onnx"
            path.write_bytes(add_constant(float(number)))
            await client.publish("bench/fed", {"model.onnx": path})

        def ours(writers: int) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                return [await _moves_per_s(client, writers, seconds)]

            return turn

        def bare(rows: int) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                return [await to_thread.run_sync(_changes_per_s, database, rows, seconds)]

            return turn

        return await interleave(
            {"one": ours(1), "eight": ours(WRITERS), "single": bare(1), "group": bare(WRITERS)},
            rounds=run.choose(6, 2),
            seed=SEED,
        )


async def _moves_per_s(client: Client, writers: int, seconds: float) -> float:
    done = 0
    began = perf_counter()
    end = began + seconds

    async def write(number: int) -> None:
        nonlocal done
        version = 1
        while perf_counter() < end:
            await client.promote(f"bench/fed@writer-{number}", version)
            version = 3 - version
            done += 1

    async with anyio.create_task_group() as group:
        for number in range(writers):
            group.start_soon(write, number)
    return done / (perf_counter() - began)


def _changes_per_s(path: Path, rows: int, seconds: float) -> float:
    """Moves a pointer, writes its history and an event, ``rows`` times a commit."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            """
            PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
            CREATE TABLE IF NOT EXISTS alias (id INTEGER PRIMARY KEY, version INTEGER, rev INTEGER);
            CREATE TABLE IF NOT EXISTS move (rev INTEGER PRIMARY KEY, alias INTEGER, version INTEGER, why TEXT);
            CREATE TABLE IF NOT EXISTS event (rev INTEGER PRIMARY KEY, state TEXT);
            """
        )
        rev = connection.execute("SELECT coalesce(max(rev), 0) FROM event").fetchone()[0]
        done = 0
        began = perf_counter()
        end = began + seconds
        while perf_counter() < end:
            connection.execute("BEGIN IMMEDIATE")
            for alias in range(rows):
                rev += 1
                connection.execute("INSERT OR REPLACE INTO alias VALUES (?, ?, ?)", (alias, rev % 2, rev))
                connection.execute("INSERT INTO move VALUES (?, ?, ?, '')", (rev, alias, rev % 2))
                connection.execute("INSERT INTO event VALUES (?, ?)", (rev, "x" * 300))
            connection.execute("COMMIT")
            done += rows
        return done / (perf_counter() - began)
