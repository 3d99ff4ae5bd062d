"""`load` with an empty cache, against receiving, hashing and writing the same bytes.

The version is a small model beside four large files, which is what a model with its tokeniser, vocabulary and shards
looks like to the loader. The floor writes to the same disk and, as the loader does, has every file on it in the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import anyio
from anyio import to_thread

from bench.figure import Figure, Unit
from bench.files import make_file
from bench.loopback import Loopback, loopback
from bench.machine import PeakMemory
from bench.measure import Series, interleave, ratio
from bench.run import SEED, Run
from tests.onnx_models import add_constant
from tests.server import ServerProcess

REF = "bench/large@prod"
COLD_RATIO = 1.3
FILES = 4


def measure(run: Run) -> list[Figure]:
    """The figures."""
    directory = run.directory / "large"
    directory.mkdir()
    size_bytes = run.choose(1 << 30, 32 << 20)
    files = [make_file(directory / f"shard-{n}.bin", size_bytes // FILES, seed=SEED + n) for n in range(FILES)]
    (directory / "model.onnx").write_bytes(add_constant(1.0))
    growth: list[int] = []
    with run.server() as server, loopback() as floor:
        taken = anyio.run(_measure, run, server, floor, directory, files, growth)
    shutil.rmtree(directory)
    return [
        Figure(
            name="cold.load",
            what=f"load of {size_bytes >> 20} MiB in {FILES} files into an empty cache",
            unit=Unit.SECONDS,
            measured=taken["load"],
            floor=taken["floor"],
            floor_what="loopback sendfile + sha256 + write + fsync, file by file",
            ratio=ratio(taken["load"], taken["floor"]),
            aim=f"≤ {COLD_RATIO}x",
            reached=ratio(taken["load"], taken["floor"]) <= COLD_RATIO,
            details={
                "floor without fsync, s": taken["unsynced"].p50,
                "MB/s": size_bytes / 1e6 / taken["load"].p50,
            },
        ),
        Figure(
            name="cold.memory",
            what="growth of the loading process meanwhile",
            unit=Unit.BYTES,
            measured=Series.of(growth),
            aim="≤ 50 MB",
            reached=max(growth) <= 50e6,
        ),
    ]


async def _measure(
    run: Run, server: ServerProcess, floor: Loopback, directory: Path, files: Sequence[Path], growth: list[int]
) -> dict[str, Series]:
    async with run.client(server) as publisher:
        await publisher.publish("bench/large", directory, entrypoint="model.onnx", aliases=["prod"])

    async def load() -> Sequence[float]:
        async with run.client(server) as client:
            await client.resolve(REF)
            memory = PeakMemory()
            began = perf_counter()
            model = await client.load(REF)
            took = perf_counter() - began
            growth.append(memory.growth_bytes())
            await model.aclose()
            cache = client.config.cache_dir
        await to_thread.run_sync(shutil.rmtree, cache)
        return [took]

    def receive(durable: bool) -> Sequence[float]:
        with run.scratch() as scratch:
            began = perf_counter()
            floor.store(files, Path(scratch), durable=durable)
            return [perf_counter() - began]

    async def synced() -> Sequence[float]:
        return await to_thread.run_sync(receive, True)

    async def unsynced() -> Sequence[float]:
        return await to_thread.run_sync(receive, False)

    return await interleave(
        {"load": load, "floor": synced, "unsynced": unsynced}, rounds=run.choose(3, 1), warm_up=1, seed=SEED
    )
