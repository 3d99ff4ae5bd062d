"""The sidecar as a process: start, readiness, metrics, signals, settings that cannot work."""

from __future__ import annotations

import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc

from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

Publish = Callable[..., int]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    def publish(server: ServerProcess, path: str, model: bytes, *aliases: str) -> int:
        file = tmp_path / "model.onnx"
        file.write_bytes(model)
        run = subprocess.run(
            [sys.executable, "-m", "modelbox", "models", "publish", path, str(file), "--url", server.url]
            + [part for alias in aliases for part in ("--alias", alias)],
            check=True,
            capture_output=True,
            text=True,
        )
        return int(re.findall(r"@?(\d+)", run.stdout)[0])

    return publish


def metrics_of(sidecar: SidecarProcess) -> str:
    with urllib.request.urlopen(sidecar.metrics_url, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def metric(text: str, name: str, **labels: str) -> float:
    for line in text.splitlines():
        if line.startswith(name) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no {name} with {labels} in:\n{text}")


def infer(sidecar: SidecarProcess, model: str, value: Any, **kwargs: Any) -> Any:
    with tritonclient.grpc.InferenceServerClient(sidecar.grpc_address) as client:
        array = np.asarray(value, np.float32)
        tensor = tritonclient.grpc.InferInput("x", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        return client.infer(model, [tensor], **kwargs).as_numpy("y")


def test_it_says_where_it_listens_answers_and_stops_with_zero(
    server: ServerProcess, tmp_path: Path, publish: Publish
) -> None:
    publish(server, "acme/tiny", add_constant(2.0), "prod")
    with SidecarProcess(tmp_path, server.url, "acme/tiny@prod") as sidecar:
        assert infer(sidecar, "acme/tiny", [[1, 2, 3, 4]]).tolist() == [[3, 4, 5, 6]]
        assert infer(sidecar, "tiny", [[1, 2, 3, 4]], model_version="prod").tolist() == [[3, 4, 5, 6]]
        assert stat.S_IMODE(sidecar.socket_path.stat().st_mode) == 0o600
        text = metrics_of(sidecar)
        assert metric(text, "modelbox_sidecar_ready") == 1
        assert metric(text, "modelbox_sidecar_model_ready", model="acme/tiny", alias="prod") == 1
        assert metric(text, "modelbox_calls_total", model="acme/tiny", version="1", outcome="ok") == 2
        assert metric(text, "modelbox_sidecar_queue_running", model="acme/tiny") == 0
        assert metric(text, "process_resident_memory_bytes") > 1e6
        assert sidecar.terminate() == 0
        assert not sidecar.socket_path.exists()
        assert "Traceback" not in sidecar.output


def test_it_listens_before_it_is_ready_and_becomes_ready_by_itself(
    server: ServerProcess, tmp_path: Path, publish: Publish
) -> None:
    sidecar = SidecarProcess(tmp_path, server.url, "acme/later@latest")
    try:
        sidecar.listen()
        sidecar.wait_for("acme/later@latest cannot be served", timeout=60)
        with tritonclient.grpc.InferenceServerClient(sidecar.grpc_address) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            publish(server, "acme/later", add_constant(1.0))
            sidecar.wait_for("modelbox sidecar ready", timeout=60)
            assert client.is_server_ready()
            assert client.is_model_ready("acme/later")
    finally:
        sidecar.close()


def test_without_the_server_it_serves_what_it_served_last(
    server: ServerProcess, tmp_path: Path, publish: Publish
) -> None:
    publish(server, "acme/tiny", add_constant(2.0), "prod")
    with SidecarProcess(tmp_path, server.url, "acme/tiny@prod") as sidecar:
        wait_until(lambda: any((tmp_path / "cache" / "refs").rglob("*.json")))
        sidecar.kill()
        server.kill()
        sidecar.restart()
        assert infer(sidecar, "tiny", [[0, 0, 0, 0]]).tolist() == [[2, 2, 2, 2]]
        wait_until(lambda: metric(metrics_of(sidecar), "modelbox_stale", model="acme/tiny") == 1)


def test_sigterm_finishes_what_was_accepted_and_readiness_goes_first(
    server: ServerProcess, tmp_path: Path, publish: Publish
) -> None:
    publish(server, "acme/slow", perceptron(512, 8))
    with SidecarProcess(tmp_path, server.url, "acme/slow", drain_delay_s=3) as sidecar:
        answers: list[Any] = []

        def call() -> None:
            answers.append(infer(sidecar, "slow", np.zeros((8000, 512))).shape)

        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()

        def accepted() -> float:
            text = metrics_of(sidecar)
            return sum(
                metric(text, f"modelbox_sidecar_queue_{name}", model="acme/slow") for name in ("running", "waiting")
            )

        wait_until(lambda: len(answers) + accepted() >= 2)
        sidecar.send_signal(signal.SIGTERM)
        sidecar.wait_for("draining", timeout=60)
        with tritonclient.grpc.InferenceServerClient(sidecar.grpc_address) as client:
            assert not client.is_server_ready()
            assert client.is_server_live()
        assert sidecar.wait() == 0
        for caller in callers:
            caller.join()
        assert answers == [(8000, 512)] * 2


def test_a_watch_of_the_health_does_not_hold_up_the_stop(
    server: ServerProcess, tmp_path: Path, publish: Publish
) -> None:
    publish(server, "acme/tiny", add_constant(1.0))
    with SidecarProcess(tmp_path, server.url, "acme/tiny", drain_timeout_s=600) as sidecar:
        with grpc.insecure_channel(sidecar.grpc_address) as channel:
            watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch", lambda message: message)(b"")
            assert next(watch) == b"\x08\x01"  # SERVING
            assert sidecar.terminate(timeout=60) == 0
            with pytest.raises(grpc.RpcError):
                for _ in watch:
                    pass


def test_an_idle_inference_stream_does_not_hold_up_the_stop(
    server: ServerProcess, tmp_path: Path, publish: Publish
) -> None:
    publish(server, "acme/tiny", add_constant(1.0))
    answers: SimpleQueue[Any] = SimpleQueue()
    with SidecarProcess(tmp_path, server.url, "acme/tiny", drain_timeout_s=600) as sidecar:
        client = tritonclient.grpc.InferenceServerClient(sidecar.grpc_address)
        client.start_stream(lambda result, error: answers.put((result, error)))
        tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
        client.async_stream_infer("tiny", [tensor])
        result, error = answers.get(timeout=60)
        assert error is None
        assert result.as_numpy("y").tolist() == [[1, 1, 1, 1]]
        assert sidecar.terminate(timeout=60) == 0
        client.close()


def test_every_metric_is_documented(server: ServerProcess, tmp_path: Path, publish: Publish) -> None:
    publish(server, "acme/tiny", add_constant(1.0))
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    with SidecarProcess(tmp_path, server.url, "acme/tiny", prediction_cache_mb=1) as sidecar:
        infer(sidecar, "tiny", [[0, 0, 0, 0]])
        infer(sidecar, "tiny", [[0, 0, 0, 0]])
        text = metrics_of(sidecar)
    assert metric(text, "modelbox_sidecar_prediction_cache_requests_total", outcome="hit") == 1
    own = set(re.findall(r"^(modelbox_(?:sidecar_\w+|http_\w+|grpc_\w+|socket_\w+))", text, re.MULTILINE))
    assert len(own) > 8
    assert [name for name in sorted(own) if f"`{name}`" not in page] == []


def test_a_second_signal_ends_it_at_once(server: ServerProcess, tmp_path: Path, publish: Publish) -> None:
    publish(server, "acme/tiny", add_constant(1.0))
    with SidecarProcess(tmp_path, server.url, "acme/tiny", drain_delay_s=600) as sidecar:
        sidecar.send_signal(signal.SIGTERM)
        sidecar.wait_for("draining", timeout=60)
        sidecar.send_signal(signal.SIGTERM)
        assert sidecar.wait(timeout=60) == 128 + signal.SIGTERM


def test_protocols_can_be_switched_off(server: ServerProcess, tmp_path: Path, publish: Publish) -> None:
    publish(server, "acme/tiny", add_constant(1.0))
    with SidecarProcess(tmp_path, server.url, "acme/tiny", http=False, socket="") as sidecar:
        assert sidecar.http_address == "-"
        assert str(sidecar.socket_path) == "-"
        assert infer(sidecar, "tiny", [[0, 0, 0, 0]]).tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"providers": "CUDA"}, "the installed onnxruntime has no CUDAExecutionProvider, only "),
        ({"host": "0.0.0.0"}, "insecure_plaintext"),
        ({"socket": "/nowhere/at/all.sock"}, "/nowhere/at/all.sock"),
        ({"server": "ftp://x"}, "server"),
    ],
    ids=["provider", "host", "socket", "server"],
)
def test_settings_that_cannot_work_end_it_with_a_word(tmp_path: Path, settings: dict[str, Any], text: str) -> None:
    sidecar = SidecarProcess(tmp_path, "http://127.0.0.1:9", **settings)
    sidecar.spawn()
    assert sidecar.wait() == 2
    assert text in sidecar.output
    assert "Traceback" not in sidecar.output


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sidecar = SidecarProcess(tmp_path, "http://127.0.0.1:9", http_port=taken.getsockname()[1])
        sidecar.spawn()
        assert sidecar.wait() == 2
        assert "http_port" in sidecar.output


def test_what_tells_applications_of_a_sidecar_does_not_confuse_it(
    server: ServerProcess, tmp_path: Path, publish: Publish
) -> None:
    publish(server, "acme/tiny", add_constant(1.0))
    env = {"MODELBOX_SIDECAR": f"unix://{tmp_path}/sidecar.sock"}
    with SidecarProcess(tmp_path, server.url, "acme/tiny", env=env) as sidecar:
        assert infer(sidecar, "tiny", [[0, 0, 0, 0]]).tolist() == [[1, 1, 1, 1]]


def wait_until(check: Callable[[], bool], *, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
