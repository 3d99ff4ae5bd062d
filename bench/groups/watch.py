"""A change on its way to a thousand watchers: an alias is moved, and every watcher's stream has to bring it.

The watchers are gRPC streams of one child process over ten connections. On a machine with few cores that process, which
takes in a thousand messages per change, shares the processor with the server it measures.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import anyio
from anyio import to_thread

from bench.figure import Figure, Unit
from bench.measure import Series
from bench.run import Run
from tests.onnx_models import add_constant
from tests.server import ServerProcess

CONNECTIONS = 10
ARRIVES_S = 1.0
FLAT_BYTES = 10e6


def measure(run: Run) -> list[Figure]:
    """The figures."""
    watchers, changes = run.choose(1000, 50), run.choose(25, 4)
    with run.server() as server:
        arrivals, promotions, memory = anyio.run(_measure, run, server, watchers, changes)
    settled = memory[2 + len(memory) // 4 :]
    part = max(len(settled) // 4, 1)
    growth = median(settled[-part:]) - median(settled[:part])
    worst = [max(taken) for taken in arrivals.rounds]
    return [
        Figure(
            name="watch.arrival",
            what=f"moving an alias to its arrival at each of {watchers} watchers",
            unit=Unit.SECONDS,
            measured=arrivals,
            aim=f"p99 ≤ {ARRIVES_S:g} s",
            reached=arrivals.p99 <= ARRIVES_S,
            details={
                "changes": changes,
                "promote alone, ms": median(promotions) * 1e3,
                "last watcher, p50 ms": median(worst) * 1e3,
            },
        ),
        Figure(
            name="watch.memory",
            what=f"growth of the server over {changes} changes with {watchers} watchers",
            unit=Unit.BYTES,
            measured=Series.of([growth]),
            aim="± 10 MB",
            reached=abs(growth) <= FLAT_BYTES,
            details={
                "without watchers, MB": memory[0] / 1e6,
                "with watchers, MB": memory[1] / 1e6,
                "last, MB": memory[-1] / 1e6,
                "KB per watcher": (memory[1] - memory[0]) / watchers / 1e3,
            },
        ),
    ]


async def _measure(
    run: Run, server: ServerProcess, watchers: int, changes: int
) -> tuple[Series, list[float], list[int]]:
    arrivals: list[tuple[float, ...]] = []
    promotions: list[float] = []
    async with run.client(server) as client:
        for number in (1, 2):
            path = run.directory / f"watched-{number}.onnx"
            path.write_bytes(add_constant(float(number)))
            await client.publish("bench/watched", {"model.onnx": path})
        memory = [server.rss_bytes()]
        with watching(server, watchers, "bench/watched") as lines:
            memory.append(server.rss_bytes())
            for change in range(changes + 2):
                began = time.monotonic()
                alias = await client.promote("bench/watched@prod", change % 2 + 1)
                promotions.append(time.monotonic() - began)
                with anyio.fail_after(60):
                    while True:
                        arrived = json.loads(await to_thread.run_sync(next, lines, abandon_on_cancel=True))
                        if arrived["rev"] == alias.mod_rev:
                            break
                if change >= 2:  # two to warm up
                    arrivals.append(tuple(at - began for at in arrived["at"]))
                memory.append(server.rss_bytes())
                await anyio.sleep(0.05)
    return Series(rounds=tuple(arrivals)), promotions[2:], memory


@contextlib.contextmanager
def watching(server: ServerProcess, watchers: int, wanted: str) -> Iterator[Iterator[str]]:
    """A process with so many watchers of an object; gives its lines once all of them watch."""
    host, _, port = server.grpc_address.rpartition(":")
    command = [
        *(sys.executable, "-m", "bench.watchers", host, port, str(CONNECTIONS), str(watchers)),
        wanted,
    ]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if line != "ready\n":
                raise RuntimeError(f"the watchers did not start: {line!r}")
            yield iter(process.stdout)
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
