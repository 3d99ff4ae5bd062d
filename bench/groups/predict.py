"""Calls in the process against the bare runtime, on every event loop, with telemetry exported.

The floor is `onnxruntime.InferenceSession.run` on the same file under the same session options, called in a plain loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import numpy as np
from prometheus_client import CollectorRegistry

from bench.figure import Figure, Unit
from bench.measure import Series, calls_per_s, difference, interleave, ratio, time_calls
from bench.models import bare_session
from bench.run import BACKENDS, SEED, Run
from modelbox import Client, LoadOptions, otel
from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess

TASKS = 32
TINY_OVER_FLOOR_S = 5e-6
CONCURRENT_RATIO = 0.95
BATCHED_RATIO = 3.0

Inputs = dict[str, np.ndarray[Any, Any]]


def measure(run: Run) -> list[Figure]:
    """The figures for asyncio, uvloop and trio."""
    registry = CollectorRegistry()
    otel.configure_prometheus(registry=registry)
    tiny, mlp = run.directory / "tiny.onnx", run.directory / "mlp.onnx"
    tiny.write_bytes(add_constant(1.0))
    mlp.write_bytes(perceptron(512, 5, seed=SEED))  # 5.2 MB
    figures: list[Figure] = []
    with run.server() as server:
        anyio.run(_publish, run, server, tiny, mlp)
        for loop, (backend, options) in BACKENDS.items():
            run.say(f"  {loop}")
            figures += anyio.run(_on_loop, run, server, tiny, mlp, loop, backend=backend, backend_options=options)
    exported = otel.render_prometheus(registry=registry).decode()
    if "modelbox_calls_total{" not in exported:
        raise RuntimeError("telemetry was not on: the exporter knows of no calls")
    return figures


async def _publish(run: Run, server: ServerProcess, tiny: Path, mlp: Path) -> None:
    async with run.client(server) as client:
        await client.publish("bench/tiny", tiny, aliases=["prod"])
        await client.publish("bench/mlp", mlp, aliases=["single", "batched"])


async def _on_loop(run: Run, server: ServerProcess, tiny: Path, mlp: Path, loop: str) -> list[Figure]:
    async with run.client(server) as client:
        one = await _one_caller(run, client, tiny)
        many = await _many_callers(run, client, mlp)
    single, batched, bare = many["single"], many["batched"], many["bare"]
    over_s = difference(*one)
    return [
        Figure(
            name=f"predict.tiny.{loop}",
            what=f"one call of a tiny model at a time, on {loop}",
            unit=Unit.SECONDS,
            measured=one[0],
            floor=one[1],
            floor_what="session.run in a loop",
            ratio=ratio(*one),
            aim="≤ floor + 5 µs",
            reached=over_s <= TINY_OVER_FLOOR_S,
            details={"over the floor, µs": over_s * 1e6},
        ),
        Figure(
            name=f"predict.tasks.{loop}",
            what=f"{TASKS} tasks on a 5 MB model, each call a run of its own, on {loop}",
            unit=Unit.PER_SECOND,
            measured=single,
            floor=bare,
            floor_what="session.run in a loop",
            ratio=ratio(single, bare),
            aim=f"≥ {CONCURRENT_RATIO}x",
            reached=ratio(single, bare) >= CONCURRENT_RATIO,
        ),
        Figure(
            name=f"predict.batched.{loop}",
            what=f"{TASKS} tasks on a 5 MB model, calls of one tick in one run, on {loop}",
            unit=Unit.PER_SECOND,
            measured=batched,
            floor=bare,
            floor_what="session.run in a loop",
            ratio=ratio(batched, bare),
            aim=f"≥ {BATCHED_RATIO:g}x",
            reached=ratio(batched, bare) >= BATCHED_RATIO,
            # More than this takes a second core that is free.
            details={f"ratio of session.run with {TASKS} rows at once": ratio(many["rows"], bare)},
        ),
    ]


async def _one_caller(run: Run, client: Client, path: Path) -> tuple[Series, Series]:
    model = await client.load("bench/tiny@prod", options=LoadOptions(batching=False))
    inputs: Inputs = {"x": np.ones((1, 4), np.float32)}
    session = bare_session(path)
    calls = run.choose(2000, 300)

    async def ours() -> Sequence[float]:
        return await time_calls(lambda: model.predict(inputs), calls)

    async def bare() -> Sequence[float]:
        return _time_runs(session, inputs, calls)

    taken = await interleave(
        {"ours": ours, "bare": bare}, rounds=run.choose(20, 3), warm_up=run.choose(3, 1), seed=SEED
    )
    await model.aclose()
    return taken["ours"], taken["bare"]


async def _many_callers(run: Run, client: Client, path: Path) -> dict[str, Series]:
    single = await client.load("bench/mlp@single", options=LoadOptions(batching=False))
    batched = await client.load("bench/mlp@batched", options=LoadOptions(batching=True))
    inputs: Inputs = {"x": np.random.default_rng(SEED).standard_normal((1, 512), dtype=np.float32)}
    session = bare_session(path)
    seconds = 0.05 if run.quick else 0.25

    def concurrent(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[Sequence[float]]]:
        async def turn() -> Sequence[float]:
            return [await calls_per_s(call, tasks=TASKS, seconds=seconds)]

        return turn

    async def bare() -> Sequence[float]:
        return [_runs_per_s(session, inputs, seconds)]

    stacked = {"x": np.repeat(inputs["x"], TASKS, axis=0)}

    async def rows() -> Sequence[float]:
        return [TASKS * _runs_per_s(session, stacked, seconds)]

    taken = await interleave(
        {
            "single": concurrent(lambda: single.predict(inputs)),
            "batched": concurrent(lambda: batched.predict(inputs)),
            "bare": bare,
            "rows": rows,
        },
        rounds=run.choose(10, 2),
        seed=SEED,
    )
    await single.aclose()
    await batched.aclose()
    return taken


def _time_runs(session: Any, inputs: Inputs, calls: int) -> list[float]:
    clock = perf_counter
    took = []
    for _ in range(calls):
        began = clock()
        session.run(None, inputs)
        took.append(clock() - began)
    return took


def _runs_per_s(session: Any, inputs: Inputs, seconds: float) -> float:
    done = 0
    began = perf_counter()
    end = began + seconds
    while perf_counter() < end:
        session.run(None, inputs)
        done += 1
    return done / (perf_counter() - began)
