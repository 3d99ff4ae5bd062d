"""From a promotion to the first answer of the new version, and what callers see of the change.

Callers keep calling all the while. Every version is new to the cache, so each change downloads, verifies, opens and
warms. The floor is the same file over a loopback socket, hashed and written, and opened with the runtime, in a thread
of the same process beside the same callers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import numpy as np
from anyio import to_thread

from bench.callers import calling
from bench.figure import Figure, Unit
from bench.loopback import Loopback, loopback
from bench.measure import Series, difference, ratio
from bench.models import bare_session
from bench.run import SEED, Run
from modelbox import LoadOptions, SessionFreed
from tests.onnx_models import perceptron
from tests.server import ServerProcess

REF = "bench/moving@prod"
CALLERS, PAUSE_S = 8, 0.005
OVER_FLOOR_S = 0.1
P99_RATIO = 3.0
_STEADY_S = 0.5


def measure(run: Run) -> list[Figure]:
    """The figures."""
    count = run.choose(16, 3) + 1
    files = []
    for number in range(1, count + 1):
        path = run.directory / f"moving-{number}.onnx"
        path.write_bytes(perceptron(512, 5, seed=SEED + number))
        files.append(path)
    with run.server() as server, loopback() as floor:
        taken = anyio.run(_measure, run, server, floor, files)
    swap, bare = taken["swap"], taken["floor"]
    steady, during = taken["steady"], taken["during"]
    broken = int(sum(taken["broken"].values))
    return [
        Figure(
            name="swap.answers",
            what=f"promote to the first answer of the new version (5 MB), {CALLERS} callers",
            unit=Unit.SECONDS,
            measured=swap,
            floor=bare,
            floor_what="loopback sendfile + sha256 + write + fsync, InferenceSession(path)",
            ratio=ratio(swap, bare),
            aim="≤ floor + 100 ms",
            reached=difference(swap, bare) <= OVER_FLOOR_S,
            details={"over the floor, ms": difference(swap, bare) * 1e3, "promote alone, ms": taken["call"].p50 * 1e3},
        ),
        Figure(
            name="swap.latency",
            what="calls from the promotion until the old session is freed",
            unit=Unit.SECONDS,
            measured=during,
            floor=steady,
            floor_what="the same callers in the half second before",
            ratio=during.p99 / steady.p99,
            aim=f"p99 ≤ {P99_RATIO:g}x",
            reached=during.p99 <= P99_RATIO * steady.p99,
            details={"ratio of p99": during.p99 / steady.p99, "calls": len(during.values)},
        ),
        Figure(
            name="swap.failed",
            what=f"failed or mixed calls over {len(swap.values)} swaps",
            unit=Unit.COUNT,
            measured=taken["broken"],
            aim="0",
            reached=broken == 0,
            details={"calls": sum(taken["calls"].values)},
        ),
    ]


async def _measure(run: Run, server: ServerProcess, floor: Loopback, files: Sequence[Path]) -> dict[str, Series]:
    x = np.random.default_rng(SEED).standard_normal((1, 512), dtype=np.float32)
    expected = {n: bare_session(path).run(None, {"x": x})[0] for n, path in enumerate(files, start=1)}
    swaps: list[float] = []
    floors: list[float] = []
    promotions: list[float] = []
    steady: list[float] = []
    during: list[float] = []

    def bare(path: Path) -> float:
        with run.scratch() as scratch:
            began = perf_counter()
            floor.store([path], Path(scratch), durable=True)
            session: Any = bare_session(Path(scratch) / path.name)
            took = perf_counter() - began
            del session
            return took

    async with run.client(server) as client:
        for path in files:
            await client.publish("bench/moving", {"model.onnx": path})
        await client.promote(REF, 1)
        model = await client.load(REF, options=LoadOptions(batching=False))
        freed = anyio.Event()

        async def watch_freed() -> None:
            nonlocal freed
            async for event in model.events():
                if isinstance(event, SessionFreed):
                    freed.set()
                    freed = anyio.Event()

        async with calling(model, {"x": x}, expected, callers=CALLERS, pause_s=PAUSE_S) as seen:
            async with anyio.create_task_group() as group:
                group.start_soon(watch_freed)
                await anyio.sleep(_STEADY_S)
                for version, path in enumerate(files[1:], start=2):
                    floors.append(await to_thread.run_sync(bare, path))
                    await anyio.sleep(_STEADY_S / 2)
                    calm = perf_counter()
                    await anyio.sleep(_STEADY_S)
                    began = perf_counter()
                    steady += seen.between(calm, began)
                    old_freed = freed
                    with anyio.fail_after(30):
                        async with anyio.create_task_group() as both:
                            answered: list[float] = []
                            both.start_soon(_note_first_answer, seen, version, answered)
                            await client.promote(REF, version)
                            promotions.append(perf_counter() - began)
                        swaps.append(answered[0] - began)
                        await old_freed.wait()
                    during += seen.between(began, perf_counter())
                group.cancel_scope.cancel()
        broken = len(seen.errors) + seen.mixed
        if seen.errors:
            run.say(f"  failed calls: {sorted(set(seen.errors))[:3]}")
        await model.aclose()
    # The first swap warms the connections and the cache's directories.
    return {
        "swap": _by_round(swaps[1:]),
        "floor": _by_round(floors[1:]),
        "call": _by_round(promotions[1:]),
        "steady": Series.of(steady),
        "during": Series.of(during),
        "broken": Series.of([broken]),
        "calls": Series.of([len(seen.calls)]),
    }


async def _note_first_answer(seen: Any, version: int, into: list[float]) -> None:
    into.append(await seen.first_answer(version))


def _by_round(values: Sequence[float]) -> Series:
    return Series(rounds=tuple((value,) for value in values))
