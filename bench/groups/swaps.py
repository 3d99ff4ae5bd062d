"""Memory of a serving process over many swaps, between two versions that the cache holds, under light load."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import anyio
import numpy as np

from bench.callers import calling
from bench.figure import Figure, Unit
from bench.machine import rss_bytes
from bench.measure import Series
from bench.models import bare_session
from bench.run import SEED, Run
from modelbox import LoadOptions, SessionFreed
from tests.onnx_models import perceptron
from tests.server import ServerProcess

REF = "bench/swapped@prod"
FLAT_BYTES = 10e6
_SETTLED_SHARE = 0.2


def measure(run: Run) -> list[Figure]:
    """The figures."""
    swaps = run.choose(200, 10)
    files = []
    for number in (1, 2):
        path = run.directory / f"swapped-{number}.onnx"
        path.write_bytes(perceptron(512, 5, seed=SEED + number))
        files.append(path)
    with run.server() as server:
        memory, took, broken = anyio.run(_measure, run, server, files, swaps)
    settled = memory[int(swaps * _SETTLED_SHARE) :]
    part = max(len(settled) // 8, 1)
    growth = median(settled[-part:]) - median(settled[:part])
    return [
        Figure(
            name="swaps.memory",
            what=f"growth of resident memory over {swaps} swaps of a 5 MB model, the first fifth not counted",
            unit=Unit.BYTES,
            measured=Series.of([growth]),
            aim="± 10 MB",
            reached=abs(growth) <= FLAT_BYTES,
            details={
                "first, MB": memory[0] / 1e6,
                "last, MB": memory[-1] / 1e6,
                "lowest, MB": min(settled) / 1e6,
                "highest, MB": max(settled) / 1e6,
                "failed or mixed calls": broken,
            },
        ),
        Figure(
            name="swaps.answers",
            what="promote to the first answer, the version being in the cache",
            unit=Unit.SECONDS,
            measured=Series.of(took),
        ),
    ]


async def _measure(
    run: Run, server: ServerProcess, files: Sequence[Path], swaps: int
) -> tuple[list[int], list[float], int]:
    x = np.random.default_rng(SEED).standard_normal((1, 512), dtype=np.float32)
    expected = {n: bare_session(path).run(None, {"x": x})[0] for n, path in enumerate(files, start=1)}
    memory: list[int] = []
    took: list[float] = []
    async with run.client(server) as client:
        for path in files:
            await client.publish("bench/swapped", {"model.onnx": path})
        await client.promote(REF, 2)
        model = await client.load(REF, options=LoadOptions(batching=False))
        freed = 0

        async def count_freed() -> None:
            nonlocal freed
            async for event in model.events():
                freed += isinstance(event, SessionFreed)

        async with calling(model, {"x": x}, expected, callers=4, pause_s=0.01) as seen:
            async with anyio.create_task_group() as group:
                group.start_soon(count_freed)
                await anyio.sleep(0.1)
                for swap in range(swaps):
                    version = swap % 2 + 1
                    began = perf_counter()
                    with anyio.fail_after(30):
                        await client.promote(REF, version)
                        while model.version != version:
                            await anyio.sleep(0.001)
                        took.append(perf_counter() - began)
                        while freed <= swap:
                            await anyio.sleep(0.001)
                    seen.calls.clear()
                    gc.collect()
                    memory.append(rss_bytes())
                group.cancel_scope.cancel()
        broken = len(seen.errors) + seen.mixed
        await model.aclose()
    return memory, took, broken
