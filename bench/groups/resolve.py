"""One small call to the server: what an alias points to.

The floor is a health check over a bare channel of the same gRPC library to the same server: what any call costs here,
without a database, a message of any size, or the hop into the engine's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import anyio
from grpclib.client import Channel
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest

from bench.figure import Figure, Unit
from bench.measure import Series, interleave, ratio, time_calls
from bench.run import SEED, Run
from tests.onnx_models import add_constant
from tests.server import ServerProcess

REF = "bench/tiny@prod"
RESOLVE_S = 1e-3


def measure(run: Run) -> list[Figure]:
    """The figures."""
    path = run.directory / "resolved.onnx"
    path.write_bytes(add_constant(1.0))
    with run.server() as server:
        taken = anyio.run(_measure, run, server, path)
    resolve, check = taken["resolve"], taken["check"]
    return [
        Figure(
            name="resolve.alias",
            what="resolve an alias, one call at a time",
            unit=Unit.SECONDS,
            measured=resolve,
            floor=check,
            floor_what="a gRPC health check of the same server",
            ratio=ratio(resolve, check),
            aim="≤ 1 ms",
            reached=resolve.p50 <= RESOLVE_S,
        ),
        Figure(
            name="resolve.rate",
            what="resolve an alias, 32 tasks",
            unit=Unit.PER_SECOND,
            measured=taken["rate"],
        ),
    ]


async def _measure(run: Run, server: ServerProcess, path: object) -> dict[str, Series]:
    calls = run.choose(200, 20)
    host, _, port = server.grpc_address.rpartition(":")
    async with run.client(server) as client:
        await client.publish("bench/tiny", str(path), aliases=["prod"])
        channel = Channel(host, int(port))
        health = HealthStub(channel)
        try:

            async def resolve() -> Sequence[float]:
                return await time_calls(lambda: client.resolve(REF), calls)

            async def check() -> Sequence[float]:
                return await time_calls(lambda: health.Check(HealthCheckRequest()), calls)

            async def rate() -> Sequence[float]:
                began = perf_counter()

                async def some() -> None:
                    for _ in range(max(calls // 16, 1)):
                        await client.resolve(REF)

                async with anyio.create_task_group() as group:
                    for _ in range(32):
                        group.start_soon(some)
                return [32 * max(calls // 16, 1) / (perf_counter() - began)]

            return await interleave(
                {"resolve": resolve, "check": check, "rate": rate}, rounds=run.choose(12, 2), seed=SEED
            )
        finally:
            channel.close()
