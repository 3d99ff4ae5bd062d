"""How long the server takes from its start to its ready line, on an empty data directory, and what it then holds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from time import perf_counter

import anyio

from bench.figure import Figure, Unit
from bench.measure import Series, interleave, ratio
from bench.run import SEED, Run

START_S = 1.5
IDLE_BYTES = 120e6
_IMPORTS = "import aiohttp.web, grpclib.server, sqlalchemy, betterproto2, prometheus_client"


def measure(run: Run) -> list[Figure]:
    """The figures."""
    idle: list[int] = []
    taken = anyio.run(_measure, run, idle)
    return [
        Figure(
            name="start.ready",
            what="start of the server process to its ready line, with a new database",
            unit=Unit.SECONDS,
            measured=taken["server"],
            floor=taken["python"],
            floor_what="a Python process that imports the server's main dependencies and ends",
            ratio=ratio(taken["server"], taken["python"]),
            aim=f"≤ {START_S} s",
            reached=taken["server"].p50 <= START_S,
        ),
        Figure(
            name="start.memory",
            what="its resident memory two seconds later",
            unit=Unit.BYTES,
            measured=Series.of(idle),
            aim="≤ 120 MB",
            reached=Series.of(idle).p50 <= IDLE_BYTES,
        ),
    ]


async def _measure(run: Run, idle: list[int]) -> dict[str, Series]:
    def start() -> Sequence[float]:
        server = run.server()
        began = perf_counter()
        with server:
            took = perf_counter() - began
            time.sleep(0.5 if run.quick else 2.0)
            idle.append(server.rss_bytes())
        return [took]

    def python() -> Sequence[float]:
        began = perf_counter()
        subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
        return [perf_counter() - began]

    # Nothing else runs in this process: blocking is no harm.
    async def server_turn() -> Sequence[float]:
        return start()

    async def python_turn() -> Sequence[float]:
        return python()

    return await interleave(
        {"server": server_turn, "python": python_turn}, rounds=run.choose(5, 1), warm_up=run.choose(1, 0), seed=SEED
    )
