"""Calls of the Open Inference Protocol through a sidecar: HTTP with JSON, HTTP with binary data, and gRPC.

Callers are those of `bench.load`. Beside every way of asking stands a server of the library that is usual for it
(aiohttp, grpclib) which sends the same body back and runs nothing, and the model itself in a loop. Models: a tiny one,
a 5 MB perceptron, silero's speech detector with its state passed from each answer into the next request, and one that
takes and gives 640 KB. Callers: 1, 8 and 32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import anyio
import numpy as np

from bench.figure import Figure, Unit
from bench.load import Connection, Exchange, HttpConnection, keep_calling
from bench.measure import Round, Series, interleave, ratio
from bench.models import bare_session, silero_vad
from bench.oip import Model, Way, check, ways
from bench.run import SEED, Run
from bench.web_echo import WebEcho, web_echo
from tests.onnx_models import add_constant, perceptron
from tests.sidecar import SidecarProcess

CALLERS = (1, 8, 32)
ALONE_S = 200e-6
TOGETHER_PER_S = 10_000.0
_WHAT = {"json": "HTTP with JSON", "binary": "HTTP with binary data", "grpc": "gRPC"}
_ECHO = {"json": "aiohttp", "binary": "aiohttp", "grpc": "grpclib"}


def measure(run: Run) -> list[Figure]:
    """The figures."""
    found = models(run.directory)
    with run.server() as server, tempfile.TemporaryDirectory() as name:

        async def publish() -> None:
            async with run.client(server) as client:
                for model, path in found:
                    await client.publish(f"bench/{model.name}", path, aliases=["prod"])

        anyio.run(publish)
        refs = [f"bench/{model.name}@prod" for model, _ in found]
        with SidecarProcess(Path(name), server.url, *refs, log_level="warning") as sidecar, web_echo() as echo:
            figures = anyio.run(_of_generator, run, echo, backend_options={"use_uvloop": True})
            for model, _ in found:
                run.say(f"  {model.name}")
                figures += anyio.run(_of_one, run, model, sidecar, echo, backend_options={"use_uvloop": True})
    return figures


def models(directory: Path, names: Sequence[str] = ("tiny", "mlp", "silero", "large")) -> list[tuple[Model, Path]]:
    """The models that are measured and their files, which are written to ``directory``."""
    rng = np.random.default_rng(SEED)
    made: list[tuple[Model, Path]] = []
    for name in names:
        path, state = directory / f"oip-{name}.onnx", ""
        if name == "tiny":
            path.write_bytes(add_constant(1.0))
            inputs = {"x": np.ones((1, 4), np.float32)}
        elif name == "mlp":
            path.write_bytes(perceptron(512, 5, seed=SEED))
            inputs = {"x": rng.standard_normal((1, 512), dtype=np.float32)}
        elif name == "large":
            path.write_bytes(add_constant(1.0, columns=160_000))
            inputs = {"x": rng.standard_normal((1, 160_000), dtype=np.float32)}
        else:
            path, state = silero_vad(directory), "state"
            inputs = {
                "input": rng.standard_normal((1, 576), dtype=np.float32) * np.float32(0.1),
                "sr": np.array(16_000, np.int64),
                "state": np.zeros((2, 1, 128), np.float32),
            }
        made.append((Model(name=name, session=bare_session(path), inputs=inputs, state=state), path))
    return made


async def _of_generator(run: Run, echo: WebEcho) -> list[Figure]:
    connections = [await HttpConnection.open(echo.constant, "/") for _ in range(CALLERS[-1])]
    turn = Turn(connections, Exchange(b"{}"), seconds=0.05 if run.quick else 0.2)
    taken = await interleave({"callers": turn.rate}, rounds=run.choose(8, 2), seed=SEED)
    _close(connections)
    return [
        Figure(
            name="oip.callers",
            what=f"the load generator's own limit: {CALLERS[-1]} callers of a process that answers with a constant",
            unit=Unit.PER_SECOND,
            measured=taken["callers"],
            details={"share of a core": median(turn.busy)},
        )
    ]


async def _of_one(run: Run, model: Model, sidecar: SidecarProcess, echo: WebEcho) -> list[Figure]:
    figures: list[Figure] = []
    seconds = 0.05 if run.quick else 0.12
    asked = ways(model)
    opened: dict[str, Sequence[Connection]] = {}
    for way in asked:
        of_grpc = way.name == "grpc"
        address = sidecar.grpc_address if of_grpc else sidecar.http_address
        opened[way.name] = await way.open(address, f"/v2/models/{model.name}/infer", CALLERS[-1])
        await check(opened[way.name][0], way, model)
        opened[f"{way.name}.echo"] = await way.open(echo.grpc if of_grpc else echo.http, "/", CALLERS[-1])
    for callers in CALLERS:
        turns = {
            name: Turn(connections[:callers], _said(way, name), seconds=seconds)
            for way in asked
            for name, connections in opened.items()
            if name.partition(".")[0] == way.name
        }
        rounds: dict[str, Round] = {name: turn.latencies if callers == 1 else turn.rate for name, turn in turns.items()}
        if callers == 1:
            rounds["bare"] = _bare(model, seconds)
        taken = await interleave(rounds, rounds=run.choose(8, 2), seed=SEED)
        figures += [_figure(model, way, callers, taken, turns) for way in asked]
    for connections in opened.values():
        _close(connections)
    return figures


class Turn:
    """One subject's turns: the same callers of the same connections, again and again.

    Attributes:
        busy: The share of a core that the callers took, by turn.
    """

    def __init__(self, connections: Sequence[Connection], exchange: Exchange, *, seconds: float) -> None:
        self.busy: list[float] = []
        self._connections = connections
        self._exchange = exchange
        self._seconds = seconds

    async def latencies(self) -> Sequence[float]:
        """Seconds of each call."""
        taken = await keep_calling(self._connections, self._exchange, seconds=self._seconds)
        self.busy.append(taken.busy)
        return taken.latencies

    async def rate(self) -> Sequence[float]:
        """Calls per second."""
        taken = await keep_calling(self._connections, self._exchange, seconds=self._seconds)
        self.busy.append(taken.busy)
        return [taken.per_s]


def _said(way: Way, subject: str) -> Exchange:
    # An echo has no state to give back.
    return way.exchange if subject == way.name else Exchange(way.exchange.first)


def _bare(model: Model, seconds: float) -> Round:
    async def turn() -> Sequence[float]:
        took = []
        end = perf_counter() + seconds
        while (began := perf_counter()) < end:
            model.session.run(None, model.inputs)
            took.append(perf_counter() - began)
        return took

    return turn


def _figure(model: Model, way: Way, callers: int, taken: Mapping[str, Series], turns: Mapping[str, Turn]) -> Figure:
    ours, floor = taken[way.name], taken[f"{way.name}.echo"]
    details: dict[str, float | str] = {"callers' share of a core": median(turns[way.name].busy)}
    aim, reached = "", None
    if callers == 1:
        details = {"model alone, µs": taken["bare"].p50 * 1e6, **details}
    if model.name == "tiny" and way.name != "grpc" and callers == 1:
        aim, reached = f"≤ {ALONE_S * 1e6:.0f} µs", ours.p50 <= ALONE_S
    if model.name == "tiny" and way.name != "grpc" and callers == CALLERS[-1]:
        aim, reached = f"≥ {TOGETHER_PER_S:,.0f}/s", ours.p50 >= TOGETHER_PER_S
    return Figure(
        name=f"oip.{way.name}.{model.name}.{callers}",
        what=f"{callers} caller{'s' if callers > 1 else ''} of {model.name} over {_WHAT[way.name]}",
        unit=Unit.SECONDS if callers == 1 else Unit.PER_SECOND,
        measured=ours,
        floor=floor,
        floor_what=f"{_ECHO[way.name]} sends the body back",
        ratio=ratio(ours, floor),
        aim=aim,
        reached=reached,
        details=details,
    )


def _close(connections: Sequence[Connection]) -> None:
    for connection in set(connections):
        connection.close()
