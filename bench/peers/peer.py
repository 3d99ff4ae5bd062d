"""Each peer: what it is installed from, and how its process is started on the models that are measured."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.oip import Model
from bench.peers.environments import Environment

__all__ = ("PEERS", "NotStarted", "Peer", "serving")

_SERVERS = Path(__file__).parent / "servers"
_START_S = 90.0
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}

Models = Sequence[tuple[Model, Path]]


class NotStarted(Exception):
    """A peer's process did not come up; says what it printed last."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process.

    Attributes:
        arguments: The program and its arguments.
        environment: Variables beside the inherited ones.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """A model server.

    Attributes:
        name: As in the figures.
        packages: From PyPI.
        command: What to start, given its environment, a directory of its own, the models, and the ports of HTTP and
            gRPC.
    """

    name: str
    packages: tuple[str, ...]
    command: Callable[[Environment, Path, Models, int, int], Command]


def _mlserver(environment: Environment, directory: Path, models: Models, http_port: int, grpc_port: int) -> Command:
    settings = {
        "host": "127.0.0.1",
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": free_port(),
        # In the server's own process: workers cost a queue between processes for each call.
        "parallel_workers": 0,
        "debug": False,
    }
    (directory / "settings.json").write_text(json.dumps(settings))
    for model, path in models:
        folder = directory / model.name
        folder.mkdir()
        (folder / "model-settings.json").write_text(
            json.dumps(
                {
                    "name": model.name,
                    "implementation": "mlserver_onnx.OnnxModel",
                    "parameters": {"uri": str(path)},
                }
            )
        )
    return Command([str(environment.programs / "mlserver"), "start", str(directory)], {"PYTHONPATH": str(_SERVERS)})


def _kserve(environment: Environment, directory: Path, models: Models, http_port: int, grpc_port: int) -> Command:
    program = [str(environment.programs / "python"), str(_SERVERS / "kserve_onnx.py")]
    return Command([*program, str(http_port), str(grpc_port), *(f"{model.name}={path}" for model, path in models)])


def _triton(environment: Environment, directory: Path, models: Models, http_port: int, grpc_port: int) -> Command:
    triton = environment.packages / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / f"3.{sys.version_info[1]}" / "triton_python_backend_stub"
    shutil.copytree(triton / "backends" / "python", directory / "backends" / "python")
    shutil.copy(stub, directory / "backends" / "python")
    for model, path in models:
        version = directory / "models" / model.name / "1"
        version.mkdir(parents=True)
        shutil.copy(path, version / "model.onnx")
        shutil.copy(_SERVERS / "triton_onnx.py", version / "model.py")
        (version.parent / "config.pbtxt").write_text(_triton_config(model))
    arguments = {
        "model-repository": directory / "models",
        "backend-directory": directory / "backends",
        "http-address": "127.0.0.1",
        "grpc-address": "127.0.0.1",
        "http-port": http_port,
        "grpc-port": grpc_port,
        "allow-metrics": "false",
        "log-info": "false",
    }
    return Command(
        [str(triton / "bin" / "tritonserver"), *(f"--{key}={value}" for key, value in arguments.items())],
        {
            "LD_LIBRARY_PATH": str(environment.packages / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(environment.packages),
        },
    )


def _triton_config(model: Model) -> str:
    tensors = [
        *(("input", name, array.dtype.name, array.shape) for name, array in model.inputs.items()),
        *(("output", output.name, "float32", output.shape) for output in model.session.get_outputs()),
    ]
    lines = [f'name: "{model.name}"', 'backend: "python"', "max_batch_size: 0", "instance_group [{kind: KIND_CPU}]"]
    for kind, name, dtype, shape in tensors:
        dims = ", ".join(["-1", *(str(dim) for dim in shape[1:])])
        lines.append(f'{kind} [{{name: "{name}" data_type: {_TYPES[dtype]} dims: [{dims}]}}]')
    return "\n".join(lines) + "\n"


PEERS = (
    Peer("mlserver", ("mlserver==1.7.1",), _mlserver),
    Peer("kserve", ("kserve==0.21.0",), _kserve),
    # The only package of PyPI with the server's binary (2.51.0); its one backend is the Python backend.
    Peer("triton", ("nvidia-pytriton==0.7.0",), _triton),
)


@contextlib.contextmanager
def serving(peer: Peer, environment: Environment, directory: Path, models: Models) -> Iterator[tuple[str, str]]:
    """A peer's process with all models; gives its addresses of HTTP and gRPC.

    Raises:
        NotStarted: It ended, or did not get ready in time.
    """
    directory.mkdir()
    http_port, grpc_port = free_port(), free_port()
    command = peer.command(environment, directory, models, http_port, grpc_port)
    log = directory / "log.txt"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MODELBOX_", "PYTHON"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command.arguments, env={**inherited, **command.environment}, cwd=directory, stdout=output, stderr=output
        )
        try:
            for model, _ in models:
                _wait(process, f"http://127.0.0.1:{http_port}/v2/models/{model.name}/ready", log)
            yield f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise NotStarted(" ".join(log.read_text(errors="replace").split())[-400:])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
