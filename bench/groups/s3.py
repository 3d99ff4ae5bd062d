"""Upload and download of one large file with the bytes in an S3 store: through the server, and past it.

The store is a Ceph gateway on this machine with its data in memory, which takes part of the same two cores. Beside the
figures stands what the store alone does for the same parts, at the same time as many, without hashing and without a
file: sent with our own client of it, and read into nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from time import perf_counter

import anyio
from anyio import to_thread

from bench.figure import Figure, Unit
from bench.files import make_file, renew
from bench.machine import PeakMemory
from bench.measure import Series, interleave, ratio
from bench.run import SEED, Run
from modelbox import Client
from modelbox.runtime.blobs.s3_client import S3Address, S3Client, md5_of
from tests.server import ServerProcess
from tests.servers.s3 import RadosGateway, S3Bucket

_FLAT_BYTES = 100e6
_PART_BYTES = 8 << 20
_AT_A_TIME = 3
_WAYS = {"through": False, "past": True}


def measure(run: Run) -> list[Figure]:
    """The figures."""
    size_bytes = run.choose(1 << 30, 32 << 20)
    path = make_file(run.directory / "artifact.bin", size_bytes, seed=SEED)
    growth: dict[str, list[int]] = {}
    with ExitStack() as stack:
        store = stack.enter_context(RadosGateway(memory_bytes=run.choose(12 << 30, 2 << 30)))
        bucket = store.new_bucket()
        servers = {
            way: stack.enter_context(
                ServerProcess(
                    Path(tempfile.mkdtemp(dir=run.directory)) / "server",
                    env=bucket.env,
                    blobs_url=f"{bucket.url}/{way}",
                    s3_endpoint=bucket.endpoint,
                    s3_path_style=True,
                    s3_presign=presign,
                    log_level="warning",
                )
            )
            for way, presign in _WAYS.items()
        }
        taken = anyio.run(_measure, run, servers, bucket, path, growth)
    path.unlink()
    return [_figure(size_bytes, taken, way, name) for way in _WAYS for name in ("up", "down")] + [
        Figure(
            name=f"s3.memory.{name}",
            what=f"growth of the server while a file goes {name.replace('.', ' the server, ')}",
            unit=Unit.BYTES,
            measured=Series.of(samples),
            aim=f"≤ {_FLAT_BYTES / 1e6:.0f} MB",
            reached=max(samples) <= _FLAT_BYTES,
        )
        for name, samples in growth.items()
    ]


def _figure(size_bytes: int, taken: dict[str, Series], way: str, name: str) -> Figure:
    floor = taken[f"floor.{name}"]
    return Figure(
        name=f"s3.{way}.{name}",
        what=f"{name}load of {size_bytes >> 20} MiB, {way} the server",
        unit=Unit.BYTES_PER_SECOND,
        measured=taken[f"{way}.{name}"],
        floor=floor,
        floor_what="the store alone",
        ratio=ratio(taken[f"{way}.{name}"], floor),
    )


async def _measure(
    run: Run, servers: dict[str, ServerProcess], bucket: S3Bucket, path: Path, growth: dict[str, list[int]]
) -> dict[str, Series]:
    size_bytes = path.stat().st_size
    number = 0
    uploaded: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        clients = {way: await stack.enter_async_context(run.client(server)) for way, server in servers.items()}

        def up(way: str, client: Client) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                nonlocal number
                number += 1
                renew(path, number)
                server = PeakMemory(servers[way].pid)
                began = perf_counter()
                created = await client.upload_artifact("bench", f"file-{number}", path)
                took = perf_counter() - began
                growth.setdefault(f"{way}.up", []).append(server.growth_bytes())
                uploaded[way] = created.item.id
                return [size_bytes / took]

            return turn

        def down(way: str, client: Client) -> Callable[[], Awaitable[Sequence[float]]]:
            async def turn() -> Sequence[float]:
                if way not in uploaded:
                    await up(way, client)()
                with run.scratch() as scratch:
                    server = PeakMemory(servers[way].pid)
                    began = perf_counter()
                    # A client goes past the server once for the same bytes: another client each time.
                    async with run.client(servers[way]) as reader:
                        await reader.download_artifact(uploaded[way], Path(scratch) / "here")
                    took = perf_counter() - began
                    growth.setdefault(f"{way}.down", []).append(server.growth_bytes())
                    await to_thread.run_sync(shutil.rmtree, Path(scratch) / "here")
                return [size_bytes / took]

            return turn

        plain = await stack.enter_async_context(_Plain(bucket, size_bytes))
        turns = {
            f"{way}.{name}": turn(way, clients[way]) for way in servers for name, turn in (("up", up), ("down", down))
        }
        return await interleave(
            {**turns, "floor.up": plain.up, "floor.down": plain.down},
            rounds=run.choose(2, 1),
            warm_up=0,
            seed=SEED,
        )


class _Plain:
    """The store with nothing around it."""

    def __init__(self, bucket: S3Bucket, size_bytes: int) -> None:
        self._address = S3Address(bucket=bucket.bucket, endpoint=bucket.endpoint, path_style=True, prefix="floor/")
        self._credentials = bucket.env
        self._size_bytes = size_bytes
        self._stored = False

    async def __aenter__(self) -> _Plain:
        os.environ.update(self._credentials)
        self._client = await S3Client(self._address).__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.__aexit__(None, None, None)

    async def up(self) -> Sequence[float]:
        data = bytes(_PART_BYTES)
        md5 = md5_of(data)
        began = perf_counter()
        multipart = await self._client.create_multipart("data")
        numbers = iter(range(1, self._size_bytes // _PART_BYTES + 1))
        etags: dict[int, str] = {}

        async def work() -> None:
            for number in numbers:
                etags[number] = await self._client.put_part(multipart, number, data, md5=md5)

        async with anyio.create_task_group() as tasks:
            for _ in range(_AT_A_TIME):
                tasks.start_soon(work)
        await self._client.complete(multipart, [etags[number] for number in sorted(etags)])
        self._stored = True
        return [self._size_bytes / (perf_counter() - began)]

    async def down(self) -> Sequence[float]:
        if not self._stored:
            await self.up()
        began = perf_counter()
        async with self._client.get("data", 0, None) as body:
            while await body.read(1 << 20):
                pass
        return [self._size_bytes / (perf_counter() - began)]
