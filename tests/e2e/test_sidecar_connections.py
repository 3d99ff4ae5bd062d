"""Thousands of connections to one sidecar, and clients that never read: the others are still answered."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2

import modelbox
from modelbox._frames import HEADER, HEADER_BYTES, Kind, json_frame
from tests.onnx_models import OPSET, add_constant
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess
from tests.sidecar_traffic import client_of

pytestmark = pytest.mark.timeout(400)

SPARE = 1000
"""Descriptors that this process and the sidecar need for other things."""

CONNECTIONS = max(100, min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE))
"""10,000, or as many as RLIMIT_NOFILE allows."""

DEAF = 4
PATIENCE_S = 60
"""How long anything may take; it is there for what would never come."""

X = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def widen(columns: int) -> bytes:
    """float32[batch, 1] to float32[batch, columns]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "zeros"], ["y"])],
        "widen",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(np.zeros((1, columns), np.float32), "zeros")],
    )
    return bytes(helper.make_model(graph, opset_imports=[OPSET], ir_version=9).SerializeToString())


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two models: a small one, and one that makes 800 KB out of 4 bytes."""
    directory = tmp_path_factory.mktemp("registry")

    async def publish(url: str) -> None:
        async with modelbox.Client(url, cache_dir=directory / "cache") as client:
            for name, model in (("tiny", add_constant(1.0)), ("wide", widen(200_000))):
                (directory / "model.onnx").write_bytes(model)
                await client.publish(f"many/{name}", directory / "model.onnx", aliases=["prod"])

    with ServerProcess(directory / "server") as server:
        anyio.run(publish, server.url)
        yield server


@contextlib.contextmanager
def descriptor_limit(limit: int) -> Iterator[None]:
    """For us, and for the processes that we start meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(sidecar: SidecarProcess, protocol: str) -> socket.socket:
    if protocol == "socket":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(sidecar.socket_path))  # waits where one with a timeout fails: for a place in the queue
        sock.settimeout(PATIENCE_S)
        return sock
    address = sidecar.http_address if protocol == "http" else sidecar.grpc_address
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    # Its port is free again at once: others need some, too.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


async def answers(sidecar: SidecarProcess) -> dict[str, list[float]]:
    """Seconds of calls over each protocol, on new connections, the shortest first; fails when one fails."""
    took: dict[str, list[float]] = {}

    def ask_http() -> None:
        with triton_http.InferenceServerClient(sidecar.http_address, connection_timeout=PATIENCE_S) as client:
            for _ in range(50):
                began = time.perf_counter()
                given = triton_http.InferInput("x", [1, 4], "FP32").set_data_from_numpy(X)
                assert client.infer("many/tiny", [given]).as_numpy("y").tolist() == [[2.0] * 4]
                took.setdefault("http", []).append(time.perf_counter() - began)

    def ask_grpc() -> None:
        with triton_grpc.InferenceServerClient(sidecar.grpc_address) as client:
            given = triton_grpc.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(X)
            for _ in range(50):
                began = time.perf_counter()
                assert client.infer("many/tiny", [given], client_timeout=PATIENCE_S).as_numpy("y").tolist() == [
                    [2.0] * 4
                ]
                took.setdefault("grpc", []).append(time.perf_counter() - began)

    async def ask_socket() -> None:
        async with client_of(sidecar) as client:
            model = await client.load("many/tiny@prod")
            for _ in range(50):
                began = time.perf_counter()
                assert (await model.predict({"x": X}, timeout=PATIENCE_S))["y"].tolist() == [[2.0] * 4]
                took.setdefault("socket", []).append(time.perf_counter() - began)

    await anyio.to_thread.run_sync(ask_http)
    await anyio.to_thread.run_sync(ask_grpc)
    await ask_socket()
    return {name: sorted(times) for name, times in took.items()}


def descriptors(sidecar: SidecarProcess) -> int:
    return len(list(Path(f"/proc/{sidecar.pid}/fd").iterdir()))


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings
GREETING = {"http": b"", "grpc": PREFACE, "socket": json_frame(Kind.HELLO, {"protocol": 1})}
REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
PING = {
    "http": (REQUEST, b"HTTP/1.1 200"),
    "grpc": (b"\0\0\x08\6\0\0\0\0\0" + b"12345678", b"12345678"),
    "socket": (HEADER.pack(HEADER_BYTES, Kind.PING, 0, 0, 11, 0), HEADER.pack(HEADER_BYTES, Kind.PONG, 0, 0, 11, 0)),
}
"""What a connection that lives answers with what."""


def ping(sock: socket.socket, protocol: str) -> None:
    sent, wanted = PING[protocol]
    sock.sendall(sent)
    received = b""
    while wanted not in received:
        data = sock.recv(65536)
        assert data, "the connection was closed"
        received += data


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc", "socket"], ids=lambda protocol: f"{CONNECTIONS} over {protocol}")
async def test_neighbours_of_many_connections_are_answered(
    protocol: str, registry: ServerProcess, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(descriptor_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        sidecar = stack.enter_context(
            SidecarProcess(tmp_path, registry.url, "many/tiny@prod", max_connections=20_000, idle_timeout_s=300)
        )
        # What each call costs, not what else the machine does meanwhile.
        alone = {name: times[5] for name, times in (await answers(sidecar)).items()}
        before = descriptors(sidecar), sidecar.rss_bytes()
        began = time.monotonic()
        socks = []
        for _ in range(CONNECTIONS):
            sock = stack.enter_context(connect(sidecar, protocol))
            sock.sendall(GREETING[protocol])
            socks.append(sock)
        for sock in socks[:: CONNECTIONS // 50]:
            await anyio.to_thread.run_sync(ping, sock, protocol)
        took = time.monotonic() - began
        crowded = {name: times[5] for name, times in (await answers(sidecar)).items()}
        each = (sidecar.rss_bytes() - before[1]) / CONNECTIONS
        print(f"{CONNECTIONS} {protocol} connections in {took:.1f} s, {each / 1024:.1f} KiB each: {alone} -> {crowded}")
        assert descriptors(sidecar) >= CONNECTIONS
        assert each < 64 << 10
        for name, seconds in crowded.items():
            assert seconds < alone[name] * 10 + 0.02, name
        for sock in socks:
            sock.close()
        await until(lambda: descriptors(sidecar) <= before[0] + 10)
        await answers(sidecar)
        assert "Traceback" not in sidecar.output


_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.slow
async def test_neighbours_are_answered_when_descriptors_run_out(registry: ServerProcess, tmp_path: Path) -> None:
    sidecar = SidecarProcess(tmp_path, registry.url, "many/tiny@prod", idle_timeout_s=300)
    # Of its own, not by ours: what else this process has open is no matter of this test.
    sidecar.prefix = (sys.executable, "-c", _LIMITED, "256")
    with contextlib.closing(sidecar), contextlib.ExitStack() as stack:
        sidecar.start()
        async with client_of(sidecar) as client:
            model = await client.load("many/tiny@prod")
            socks = []
            for number in range(300):
                protocol = ("http", "grpc", "socket")[number % 3]
                with contextlib.suppress(OSError):
                    socks.append(stack.enter_context(connect(sidecar, protocol)))
            busy = psutil.Process(sidecar.pid)
            used, printed = busy.cpu_times(), len(sidecar.output)
            for _ in range(100):
                assert (await model.predict({"x": X}, timeout=PATIENCE_S))["y"].tolist() == [[2.0] * 4]
                await anyio.sleep(0.02)
            spent = busy.cpu_times().user + busy.cpu_times().system - used.user - used.system
            assert spent < 1.0, "it is busy with what it cannot accept"
            assert len(sidecar.output) - printed < 10_000
            for sock in socks:
                sock.close()
        await until(lambda: descriptors(sidecar) < 100)
        await answers(sidecar)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_client_that_never_reads_holds_up_itself_only(
    protocol: str, registry: ServerProcess, tmp_path: Path
) -> None:
    # Over the socket: tests/integration/test_sidecar_faults.py.
    with SidecarProcess(tmp_path, registry.url, "many/tiny@prod", "many/wide@prod", idle_timeout_s=2) as sidecar:
        await answers(sidecar)
        before = descriptors(sidecar), sidecar.rss_bytes()
        with contextlib.ExitStack() as stack:
            for _ in range(DEAF):
                sock = stack.enter_context(connect(sidecar, protocol))
                sock.settimeout(0.3)
                with contextlib.suppress(OSError):
                    for request in deaf_http() if protocol == "http" else deaf_grpc():
                        sock.sendall(request)
            times = [await answers(sidecar) for _ in range(3)]
            grown = sidecar.rss_bytes() - before[1]
            # Each is hung up on.
            await until(lambda: descriptors(sidecar) <= before[0])
        # It takes two seconds of silence until they are hung up on.
        assert max(statistics.median(seconds) for one in times for seconds in one.values()) < 1
        # All answers together would be 960 MB, twice while they are written.
        assert grown < DEAF * (96 << 20), f"{grown / 2**20:.0f} MiB for what nobody reads"
        assert "Traceback" not in sidecar.output


def deaf_http() -> Iterator[bytes]:
    """Requests of a few bytes for 240 MB of answers."""
    x = np.ones(1, np.float32).tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": len(x)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        "POST /v2/models/many/wide/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(head) + len(x)}",
        f"Inference-Header-Content-Length: {len(head)}",
    )
    for _ in range(300):
        yield "".join(f"{line}\r\n" for line in (*lines, "")).encode() + head + x


def deaf_grpc() -> Iterator[bytes]:
    """The same, with all windows wide open."""
    h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    h2.initiate_connection()
    h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    h2.increment_flow_control_window(2**31 - 1 - 65_535)
    yield h2.data_to_send()
    request = service_pb2.ModelInferRequest(model_name="many/wide")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.ones(1, np.float32).tobytes())
    message = request.SerializeToString()
    for _ in range(300):
        stream = h2.get_next_available_stream_id()
        h2.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/inference.GRPCInferenceService/ModelInfer"),
                (":authority", "test"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ],
        )
        h2.send_data(stream, struct.pack(">?I", False, len(message)) + message, end_stream=True)
        yield h2.data_to_send()


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not holds():
            await anyio.sleep(0.02)
