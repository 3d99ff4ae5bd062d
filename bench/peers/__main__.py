"""``python -m bench.peers [PEER …] [--quick] [--json FILE]``: other model servers beside our sidecar.

Each is installed from PyPI into an environment of its own, serves the same two models with the same onnxruntime and one
thread for a run, and is asked by the same callers, in turns with the others. What cannot be installed, started or asked
is named with the reason. Exits 0 when the sidecar and at least one peer could be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import anyio

from bench.databases import Databases
from bench.figure import Figure, Unit
from bench.groups.oip import CALLERS, Turn, models
from bench.load import Connection
from bench.machine import describe
from bench.measure import Round, interleave
from bench.oip import Model, check, ways
from bench.peers.environments import NotInstalled, install
from bench.peers.peer import PEERS, NotStarted, serving
from bench.report import print_table, write_json
from bench.run import SEED, Run
from tests.sidecar import SidecarProcess

_OURS = "modelbox"
_MODELS = ("tiny", "mlp")

Addresses = Mapping[str, tuple[str, str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Measures other model servers.")
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(names)}; all without")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.peers if name not in names]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")

    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="modelbox-peers-") as name:
        directory = Path(name)
        about = describe(directory) | {"quick": options.quick}
        began = time.monotonic()
        with Databases() as databases:
            run = Run(directory=directory, databases=databases, quick=options.quick, say=_say)
            figures = _measure(run, options.peers or names, failed)
        about |= {"took_s": round(time.monotonic() - began, 1)}
    print_table(figures, about)
    if options.json is not None:
        write_json(options.json, figures, about, failed)
    for subject, reason in failed.items():
        _say(f"not measured: {subject}: {reason}")
    measured = {figure.name.split(".")[1] for figure in figures}
    return 0 if _OURS in measured and len(measured) > 1 else 1


def _measure(run: Run, wanted: Sequence[str], failed: dict[str, str]) -> list[Figure]:
    found = models(run.directory, _MODELS)
    with contextlib.ExitStack() as stack:
        addresses: dict[str, tuple[str, str]] = {_OURS: stack.enter_context(_sidecar(run, found))}
        for peer in PEERS:
            if peer.name not in wanted:
                continue
            try:
                run.say(f"{peer.name}: {', '.join(peer.packages)}")
                environment = install(peer.name, peer.packages)
                directory = run.directory / peer.name
                addresses[peer.name] = stack.enter_context(serving(peer, environment, directory, found))
            except (NotInstalled, NotStarted, OSError) as exc:
                failed[peer.name] = f"{type(exc).__name__}: {exc}"
        figures: list[Figure] = []
        for model, _ in found:
            run.say(f"  {model.name}")
            figures += anyio.run(_of_one, run, model, addresses, failed, backend_options={"use_uvloop": True})
    return figures


@contextlib.contextmanager
def _sidecar(run: Run, found: Sequence[tuple[Model, Path]]) -> Iterator[tuple[str, str]]:
    with run.server() as server:

        async def publish() -> None:
            async with run.client(server) as client:
                for model, path in found:
                    await client.publish(f"bench/{model.name}", path, aliases=["prod"])

        anyio.run(publish)
        refs = [f"bench/{model.name}@prod" for model, _ in found]
        with run.scratch() as name, SidecarProcess(Path(name), server.url, *refs, log_level="warning") as sidecar:
            yield sidecar.http_address, sidecar.grpc_address


async def _of_one(run: Run, model: Model, addresses: Addresses, failed: dict[str, str]) -> list[Figure]:
    figures: list[Figure] = []
    seconds = 0.05 if run.quick else 0.25
    for way in ways(model):
        opened: dict[str, Sequence[Connection]] = {}
        for name, (http, grpc) in addresses.items():
            address = grpc if way.name == "grpc" else http
            connections = await way.open(address, f"/v2/models/{model.name}/infer", CALLERS[-1])
            try:
                with anyio.fail_after(10):
                    await check(connections[0], way, model)
            except Exception as exc:
                failed[f"{name}.{way.name}.{model.name}"] = f"{type(exc).__name__}: {exc}"[:400]
                _close(connections)
            else:
                opened[name] = connections
        for callers in CALLERS:
            rounds: dict[str, Round] = {}
            for name, connections in opened.items():
                turn = Turn(connections[:callers], way.exchange, seconds=seconds)
                rounds[name] = turn.latencies if callers == 1 else turn.rate
            taken = await interleave(rounds, rounds=run.choose(6, 2), seed=SEED)
            figures += [
                Figure(
                    name=f"peers.{name}.{way.name}.{model.name}.{callers}",
                    what=f"{callers} caller{'s' if callers > 1 else ''} of {model.name} as {way.name}",
                    unit=Unit.SECONDS if callers == 1 else Unit.PER_SECOND,
                    measured=series,
                )
                for name, series in taken.items()
            ]
        for connections in opened.values():
            _close(connections)
    return figures


def _close(connections: Sequence[Connection]) -> None:
    for connection in set(connections):
        connection.close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
