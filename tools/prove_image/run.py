"""Runs the images as the manifests say, in a network of their own, and holds them to what is promised.

Server, sidecar and example service share one network, as the containers of one pod do; only the example listens on
another port than in the cluster, because there it does not share one with the server.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import http.client
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio

import modelbox
from examples.demo.models import silero_vad, write_optimised
from tools.prove_image.build import ROOT, USER
from tools.prove_image.engine import Engine, ProofError, Report
from tools.prove_image.manifest import container_of, pod_of, podman_arguments, probe_of

SERVER_URL = "http://127.0.0.1:8080"
PATH, REF = "langtech/silero-vad", "langtech/silero-vad@prod"
INFER = f"/v2/models/{PATH.split('/')[1]}/infer"
EXAMPLE_PORT = 8090
WAV = (ROOT / "examples" / "inference_service" / "audio" / "speech.wav").read_bytes()
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def run(engine: Engine, report: Report) -> None:
    """All steps, in order; containers are removed at the end, whatever happened."""
    _raise_loopback()
    server_pod, speech_pod = pod_of("server.yaml", "StatefulSet"), pod_of("speech.yaml", "Deployment")
    volumes = {name: _volume(engine.work / "volumes" / name) for name in ("data", "socket", "models")}
    server = _Container(engine, report, server_pod, container_of(server_pod, "modelbox-server"), volumes)
    sidecar = _Container(engine, report, speech_pod, container_of(speech_pod, "modelbox-sidecar"), volumes)
    example = _Container(engine, report, speech_pod, container_of(speech_pod, "speech"), volumes)
    example.port_override = EXAMPLE_PORT
    with contextlib.ExitStack() as stack:
        for container in (server, sidecar, example):
            stack.callback(container.remove)
        _start_without_server(report, sidecar)
        _start_server(report, server, sidecar, engine.work)
        _answer(report, sidecar, example)
        _confinement(report, (server, sidecar, example))
        _swap(report, sidecar, example, engine.work)
        _server_down(report, server, sidecar, example)
        _stop(report, sidecar, example)


class _Container:
    """One container of a manifest, started and asked as Kubernetes would."""

    def __init__(
        self,
        engine: Engine,
        report: Report,
        pod: Mapping[str, Any],
        spec: dict[str, Any],
        volumes: Mapping[str, Path],
    ) -> None:
        self.engine, self.report = engine, report
        self.name = f"proof-{spec['name']}"
        self.spec = spec
        self.port_override = 0
        self._arguments = podman_arguments(pod, spec, volumes)

    def start(self) -> None:
        arguments = list(self.spec.get("args", ()))
        if self.port_override:
            arguments = ["--host", "127.0.0.1", "--port", str(self.port_override)]
        self.engine.podman(
            *("run", "--detach", "--name", self.name, "--add-host", "modelbox-server:127.0.0.1", *self._arguments),
            *(f"localhost/{self.spec['image']}", *arguments),
        )

    def probe(self, probe: str) -> int:
        """The status that the probe gets; 0 without an answer."""
        port, path = probe_of(self.spec, probe)
        with contextlib.suppress(OSError, http.client.HTTPException):
            return _ask("GET", self.port_override or port, path)[0]
        return 0

    def wait(self, probe: str, *, timeout_s: float = 60) -> bool:
        return _within(timeout_s, lambda: self.probe(probe) == 200)

    def health(self) -> int:
        """The exit code of the image's own HEALTHCHECK."""
        return self.engine.podman("healthcheck", "run", self.name, check=False).returncode

    def shell(self, script: str) -> str:
        done = self.engine.podman("exec", self.name, "/bin/sh", "-c", script, check=False)
        return (done.stdout + done.stderr).strip()

    def state(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.engine.podman("inspect", self.name).stdout)
        state: dict[str, Any] = found[0]["State"]
        return state

    def stop(self, *, grace_s: int = 45) -> tuple[int, float]:
        """SIGTERM; the exit code, and how long it took."""
        began = time.monotonic()
        self.engine.podman("stop", "--time", str(grace_s), self.name)
        return int(self.state()["ExitCode"]), time.monotonic() - began

    def remove(self) -> None:
        log = self.engine.logs(self.name)
        if log:
            with (self.engine.work / f"{self.name}.log").open("a") as file:
                file.write(log)
        self.engine.podman("rm", "--force", "--time", "0", self.name, check=False)


def _start_without_server(report: Report, sidecar: _Container) -> None:
    report.section("The sidecar starts before the server")
    sidecar.start()
    if not report.check("answers that it is alive", sidecar.wait("livenessProbe")):
        raise ProofError(f"the sidecar does not start:\n{sidecar.engine.logs(sidecar.name)[-4000:]}")
    report.check("says that it is not ready", sidecar.probe("readinessProbe") not in (0, 200))
    report.same("fails its HEALTHCHECK", sidecar.health(), 1)


def _start_server(report: Report, server: _Container, sidecar: _Container, work: Path) -> None:
    report.section("The server starts, and a model is published")
    server.start()
    report.check("the server gets ready", server.wait("readinessProbe"), f"status {server.probe('readinessProbe')}")
    report.same("the server passes its HEALTHCHECK", server.health(), 0)
    model = silero_vad(work)
    anyio.run(_publish, model)
    report.check("the sidecar gets ready by itself", sidecar.wait("startupProbe"))
    report.same("the sidecar passes its HEALTHCHECK", sidecar.health(), 0)


async def _publish(path: Path) -> None:
    async with modelbox.Client(SERVER_URL) as box:
        await box.publish(PATH, path, aliases=["prod"])


def _answer(report: Report, sidecar: _Container, example: _Container) -> None:
    report.section("They answer")
    status, answer = _infer()
    report.same("Open Inference Protocol, HTTP", (status, answer.get("model_version")), (200, "1"))
    example.start()
    ready = example.wait("startupProbe")
    report.check("the example gets ready through the socket, without onnxruntime", ready, _tail(example, ready))
    status, answer = _speech()
    found = (status, answer.get("model_version"), len(answer.get("segments", ())))
    report.same("the example finds two stretches of speech", found, (200, 1, 2))
    text = _ask("GET", 8002, "/metrics")[1].decode()
    report.check(
        "the sidecar counts its calls", re.search(r"^modelbox_calls_total\{.*\} [1-9]", text, re.M) is not None
    )
    text = _ask("GET", 2112, "/metrics")[1].decode()
    report.check("the server counts its calls", "modelbox_api_duration_seconds_count{" in text)


def _confinement(report: Report, containers: tuple[_Container, ...]) -> None:
    report.section("They may do nothing else")
    for container in containers:
        name = container.name.removeprefix("proof-")
        report.same(f"{name}: user", container.shell("id -u; id -g").split(), [str(USER)] * 2)
        status = container.shell("cat /proc/1/status")
        capabilities = re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\s*(\w+)$", status, re.M)
        report.same(f"{name}: no capabilities", {int(mask, 16) for mask in capabilities}, {0})
        report.same(f"{name}: no new privileges", re.findall(r"^NoNewPrivs:\s*(\d)", status, re.M), ["1"])
        report.same(f"{name}: system calls are filtered", re.findall(r"^Seccomp:\s*(\d)", status, re.M), ["2"])
        refused = container.shell("touch /opt/modelbox/x /etc/x /x /tmp/x; true")
        report.same(f"{name}: read-only root", refused.count("Read-only file system"), 4)
    socket_mode = containers[1].shell("stat -c '%a %u' /run/modelbox/sidecar.sock")
    report.same("the socket is its user's alone", socket_mode, f"600 {USER}")
    limit = containers[1].shell("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null")
    report.same("the sidecar has the manifest's limit of memory", limit, str(1 << 30))


def _swap(report: Report, sidecar: _Container, example: _Container, work: Path) -> None:
    report.section("Another version is promoted, under load")
    second = work / "second"
    second.mkdir(exist_ok=True)
    path = second / "optimised.onnx"
    write_optimised(silero_vad(second), path)
    with _load() as load:
        anyio.run(_publish, path)
        swapped = _within(60, lambda: _infer()[1].get("model_version") == "2")
        time.sleep(1)
    report.check("the new version answers", swapped)
    report.same("calls that failed", (load.failed[:3], len(load.failed)), ([], 0))
    report.check("calls that were answered meanwhile", load.answered > 0, load.answered)
    report.same("the example answers with it", _speech()[1].get("model_version"), 2)
    report.check("both are still ready", sidecar.probe("readinessProbe") == example.probe("readinessProbe") == 200)


def _server_down(report: Report, server: _Container, sidecar: _Container, example: _Container) -> None:
    report.section("The server goes away, and the sidecar is killed and starts again from its cache")
    code, seconds = server.stop()
    report.check("the server ends on SIGTERM", code == 0 and seconds < 40, f"exit code {code} after {seconds:.1f} s")
    report.same("the sidecar answers", _infer()[0], 200)
    sidecar.engine.podman("kill", "--signal", "KILL", sidecar.name)
    sidecar.remove()
    results: list[tuple[int, dict[str, Any]]] = []
    waiting = threading.Thread(target=lambda: results.append(_speech()))
    waiting.start()
    sidecar.start()
    report.check("the sidecar gets ready without the server", sidecar.wait("startupProbe"))
    waiting.join(60)
    found = [(status, answer.get("model_version")) for status, answer in results]
    report.same("a request to the example waited for it", found, [(200, 2)])


def _stop(report: Report, sidecar: _Container, example: _Container) -> None:
    report.section("They end on SIGTERM, the example first, as Kubernetes does")
    for container in (example, sidecar):
        with _load() if container is sidecar else contextlib.nullcontext(None) as load:
            code, seconds = container.stop()
        found = f"exit code {code} after {seconds:.1f} s"
        report.check(f"{container.name.removeprefix('proof-')}", code == 0 and seconds < 40, found)
        if load is not None:
            broken = [text for text in load.failed if "refused" not in text.lower()]
            report.same("calls that were accepted and then dropped", broken, [])


class _Load:
    """Calls one after the other, each on a connection of its own, until it is told to stop."""

    def __init__(self) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()

    def _call(self) -> None:
        while not self._enough.wait(0.005):
            try:
                status, answer = _infer()
            except (OSError, http.client.HTTPException) as exc:
                self.failed.append(repr(exc))
                self._enough.wait(0.1)
                continue
            if status == 200:
                self.answered += 1
            else:
                self.failed.append(f"{status} {answer}")


@contextlib.contextmanager
def _load() -> Iterator[_Load]:
    load = _Load()
    try:
        yield load
    finally:
        load.stop()


def _infer() -> tuple[int, dict[str, Any]]:
    """One window of silence through the Open Inference Protocol."""
    inputs = [
        {"name": "input", "shape": [1, 576], "datatype": "FP32", "data": [0.0] * 576},
        {"name": "state", "shape": [2, 1, 128], "datatype": "FP32", "data": [0.0] * 256},
        {"name": "sr", "shape": [], "datatype": "INT64", "data": [16000]},
    ]
    status, body = _ask("POST", 8000, INFER, json.dumps({"inputs": inputs}).encode(), "application/json")
    return status, json.loads(body)


def _speech() -> tuple[int, dict[str, Any]]:
    status, body = _ask("POST", EXAMPLE_PORT, "/v1/speech", WAV, "audio/wav")
    return status, json.loads(body)


def _ask(method: str, port: int, path: str, body: bytes | None = None, content: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": content} if content else {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def _tail(container: _Container, fine: bool) -> str:
    return "" if fine else container.engine.logs(container.name)[-1500:]


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it holds in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


def _volume(path: Path) -> Path:
    """A directory as the kubelet makes it for an emptyDir of a pod with fsGroup: root's, writable to the group."""
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, 0, USER)
    path.chmod(0o2777)
    return path


def _raise_loopback() -> None:
    """A new network has a loopback interface, but it is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = array.array("B", struct.pack("16sH14x", b"lo", 0))
        fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
