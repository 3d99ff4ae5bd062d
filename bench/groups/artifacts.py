"""Upload and download of one large file through a real server, and what both processes' memory does meanwhile.

Each upload is of a content that the server has not seen. A time is the whole call: hashing before an upload, hashing,
writing and syncing on the receiving side. Beside them stands what the server sends to a reader that drops the bytes,
which tells whether the network or the receiving disk is the limit.
"""

from __future__ import annotations

import http.client
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import anyio
from anyio import to_thread

from bench.figure import Figure, Unit
from bench.files import make_file, renew
from bench.loopback import Loopback, loopback
from bench.machine import PeakMemory
from bench.measure import Series, interleave, ratio
from bench.run import SEED, Run
from tests.server import ServerProcess

UP_BYTES_PER_S = 450e6
DOWN_BYTES_PER_S = 1000e6
FLAT_BYTES = 50e6


def measure(run: Run) -> list[Figure]:
    """The figures."""
    size_bytes = run.choose(1 << 30, 32 << 20)
    path = make_file(run.directory / "artifact.bin", size_bytes, seed=SEED)
    growth: dict[str, list[int]] = {}
    with run.server() as server, loopback() as floor:
        taken = anyio.run(_measure, run, server, floor, path, growth)
    path.unlink()
    floor_what = "loopback sendfile into nothing"
    figures = [
        Figure(
            name=f"artifacts.{name}",
            what=f"{name}load of {size_bytes >> 20} MiB",
            unit=Unit.BYTES_PER_SECOND,
            measured=taken[name],
            floor=taken["floor"],
            floor_what=floor_what,
            ratio=ratio(taken[name], taken["floor"]),
            aim=f"≥ {aim / 1e6:.0f} MB/s",
            reached=taken[name].p50 >= aim,
            details={
                "floor with sha256, write and fsync, MB/s": taken["stored"].p50 / 1e6,
                "ratio to that": ratio(taken[name], taken["stored"]),
            },
        )
        for name, aim in (("up", UP_BYTES_PER_S), ("down", DOWN_BYTES_PER_S))
    ]
    figures.append(
        Figure(
            name="artifacts.sent",
            what="the same file from the server to a reader that drops it",
            unit=Unit.BYTES_PER_SECOND,
            measured=taken["sent"],
            floor=taken["floor"],
            floor_what=floor_what,
            ratio=ratio(taken["sent"], taken["floor"]),
        )
    )
    figures += [
        Figure(
            name=f"artifacts.memory.{name}",
            what=f"growth of the {name.replace('.', ' during an ')}load".replace("an down", "a down"),
            unit=Unit.BYTES,
            measured=Series.of(samples),
            aim="≤ 50 MB",
            reached=max(samples) <= FLAT_BYTES,
        )
        for name, samples in growth.items()
    ]
    return figures


async def _measure(
    run: Run, server: ServerProcess, floor: Loopback, path: Path, growth: dict[str, list[int]]
) -> dict[str, Series]:
    size_bytes = path.stat().st_size
    number = 0
    uploaded = ""

    async with run.client(server) as client:

        async def up() -> Sequence[float]:
            nonlocal number, uploaded
            number += 1
            renew(path, number)
            ours, theirs = PeakMemory(), PeakMemory(server.pid)
            began = perf_counter()
            created = await client.upload_artifact("bench", f"file-{number}", path)
            took = perf_counter() - began
            growth.setdefault("client.up", []).append(ours.growth_bytes())
            growth.setdefault("server.up", []).append(theirs.growth_bytes())
            uploaded = created.item.id
            return [size_bytes / took]

        async def down() -> Sequence[float]:
            if not uploaded:
                await up()
            with run.scratch() as scratch:
                ours, theirs = PeakMemory(), PeakMemory(server.pid)
                began = perf_counter()
                await client.download_artifact(uploaded, Path(scratch) / "here")
                took = perf_counter() - began
                growth.setdefault("client.down", []).append(ours.growth_bytes())
                growth.setdefault("server.down", []).append(theirs.growth_bytes())
                await to_thread.run_sync(shutil.rmtree, Path(scratch) / "here")
            return [size_bytes / took]

        def drop() -> Sequence[float]:
            buffer = bytearray(1 << 20)
            left = size_bytes
            with closing(http.client.HTTPConnection(server.http_address)) as peer:
                began = perf_counter()
                peer.request("GET", f"/api/v1/artifacts/{uploaded}/files/{path.name}")
                response = peer.getresponse()
                while received := response.readinto(buffer):
                    left -= received
                took = perf_counter() - began
            if left:
                raise ConnectionError(f"HTTP status {response.status}, {left} bytes are missing")
            return [size_bytes / took]

        def discard() -> Sequence[float]:
            began = perf_counter()
            floor.discard([path])
            return [size_bytes / (perf_counter() - began)]

        def store() -> Sequence[float]:
            with run.scratch() as scratch:
                began = perf_counter()
                floor.store([path], Path(scratch), durable=True)
                return [size_bytes / (perf_counter() - began)]

        async def sent() -> Sequence[float]:
            if not uploaded:
                await up()
            return await to_thread.run_sync(drop)

        async def bare() -> Sequence[float]:
            return await to_thread.run_sync(discard)

        async def stored() -> Sequence[float]:
            return await to_thread.run_sync(store)

        return await interleave(
            {"up": up, "down": down, "sent": sent, "floor": bare, "stored": stored},
            rounds=run.choose(3, 1),
            warm_up=1,
            seed=SEED,
        )
