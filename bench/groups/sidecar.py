"""Calls through a sidecar's Unix socket, beside an echo over a Unix socket and the bare runtime.

The floor of a single call is the echo plus what the model itself takes. Models: a tiny one, a 5 MB perceptron, silero's
speech detector, and one that takes and gives 640 KB. Callers: 1, 8 and 32 tasks of one event loop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import numpy as np

from bench.echo import EchoClient, echo
from bench.figure import Figure, Unit
from bench.measure import Series, calls_per_s, difference, interleave, time_calls
from bench.models import bare_session, silero_vad
from bench.run import SEED, Run
from modelbox import Client, LiveModel
from tests.onnx_models import add_constant, perceptron
from tests.sidecar import SidecarProcess

OVER_ECHO_S = 30e-6
MODEL_FACTOR = 1.5
LARGE_S = 150e-6
MESSAGE = bytes(64)

Inputs = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model and what is asked of it.

    Attributes:
        per_s: Calls per second of 32 callers that the design asks for; None for no aim.
        within_s: Seconds of one call that it asks for; None for the echo, the model and 30 µs.
    """

    name: str
    what: str
    path: Path
    inputs: Inputs
    per_s: float | None = None
    within_s: float | None = None


def measure(run: Run) -> list[Figure]:
    """The figures, from an application on uvloop."""
    rng = np.random.default_rng(SEED)
    tiny, mlp, wide = (run.directory / f"{name}.onnx" for name in ("sidecar-tiny", "sidecar-mlp", "sidecar-wide"))
    tiny.write_bytes(add_constant(1.0))
    mlp.write_bytes(perceptron(512, 5, seed=SEED))
    wide.write_bytes(add_constant(1.0, columns=160_000))
    subjects = [
        Subject(name="tiny", what="a tiny model", path=tiny, inputs={"x": np.ones((1, 4), np.float32)}, per_s=60_000),
        Subject(
            name="mlp",
            what="a 5 MB model",
            path=mlp,
            inputs={"x": rng.standard_normal((1, 512), dtype=np.float32)},
            per_s=25_000,
        ),
        Subject(
            name="silero",
            what="silero's speech detector",
            path=silero_vad(run.directory),
            inputs={
                "input": rng.standard_normal((1, 576), dtype=np.float32) * np.float32(0.1),
                "state": np.zeros((2, 1, 128), np.float32),
                "sr": np.array(16_000, np.int64),
            },
        ),
        Subject(
            name="large",
            what="640 KB in and out",
            path=wide,
            inputs={"x": rng.standard_normal((1, 160_000), dtype=np.float32)},
            within_s=LARGE_S,
        ),
    ]
    figures: list[Figure] = []
    with run.server() as server, tempfile.TemporaryDirectory() as name:

        async def publish() -> None:
            async with run.client(server) as client:
                for subject in subjects:
                    await client.publish(f"bench/{subject.name}", subject.path, aliases=["prod"])

        anyio.run(publish)
        refs = [f"bench/{subject.name}@prod" for subject in subjects]
        with (
            SidecarProcess(Path(name), server.url, *refs, http="false", grpc="false", log_level="warning") as sidecar,
            echo(Path(name) / "echo.sock") as echo_path,
        ):
            for subject in subjects:
                run.say(f"  {subject.name}")
                figures += anyio.run(
                    _of_one, run, subject, sidecar.socket_url, echo_path, backend_options={"use_uvloop": True}
                )
    return figures


async def _of_one(run: Run, subject: Subject, socket_url: str, echo_path: Path) -> list[Figure]:
    session = bare_session(subject.path)
    client_of_echo = EchoClient(echo_path)
    async with Client("http://127.0.0.1:9", sidecar=socket_url, cache_dir=run.directory / "no-cache") as client:
        model = await client.load(f"bench/{subject.name}@prod")
        taken = await _alone(run, subject, model, client_of_echo, session)
        figures = [_alone_figure(subject, taken)]
        for tasks in (8, 32):
            figures.append(await _together(run, subject, model, tasks))
    client_of_echo.close()
    return figures


async def _alone(
    run: Run, subject: Subject, model: LiveModel, client_of_echo: EchoClient, session: Any
) -> dict[str, Series]:
    calls = run.choose(400, 50)

    async def ours() -> Sequence[float]:
        return await time_calls(lambda: model.predict(subject.inputs), calls)

    async def floor() -> Sequence[float]:
        return await time_calls(lambda: client_of_echo.call(MESSAGE), calls)

    async def bare() -> Sequence[float]:
        took = []
        for _ in range(calls):
            began = perf_counter()
            session.run(None, subject.inputs)
            took.append(perf_counter() - began)
        return took

    return await interleave(
        {"ours": ours, "echo": floor, "bare": bare}, rounds=run.choose(20, 2), warm_up=run.choose(3, 1), seed=SEED
    )


def _alone_figure(subject: Subject, taken: dict[str, Series]) -> Figure:
    ours, floor, bare = taken["ours"], taken["echo"], taken["bare"]
    # Over the echo, by rounds; then what is left of it beside the model.
    over_s = difference(ours, floor) - MODEL_FACTOR * bare.p50
    if subject.within_s is not None:
        aim, reached = f"≤ {subject.within_s * 1e6:.0f} µs", ours.p50 <= subject.within_s
    else:
        aim, reached = "≤ echo + 1.5 × model + 30 µs", over_s <= OVER_ECHO_S
    return Figure(
        name=f"sidecar.{subject.name}.1",
        what=f"one call of {subject.what} at a time through the sidecar's socket",
        unit=Unit.SECONDS,
        measured=ours,
        floor=floor,
        floor_what="echo over a Unix socket",
        aim=aim,
        reached=reached,
        details={"model alone, µs": bare.p50 * 1e6, "over echo + 1.5 × model, µs": over_s * 1e6},
    )


async def _together(run: Run, subject: Subject, model: LiveModel, tasks: int) -> Figure:
    seconds = 0.1 if run.quick else 0.5

    def turn(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[Sequence[float]]]:
        async def measured() -> Sequence[float]:
            return [await calls_per_s(call, tasks=tasks, seconds=seconds)]

        return measured

    taken = await interleave({"ours": turn(lambda: model.predict(subject.inputs))}, rounds=run.choose(8, 2), seed=SEED)
    aim = subject.per_s if tasks == 32 else None
    return Figure(
        name=f"sidecar.{subject.name}.{tasks}",
        what=f"{tasks} callers of {subject.what} through the sidecar's socket",
        unit=Unit.PER_SECOND,
        measured=taken["ours"],
        aim=f"≥ {aim:,.0f}/s" if aim is not None else "",
        reached=taken["ours"].p50 >= aim if aim is not None else None,
    )
