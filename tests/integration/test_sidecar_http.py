"""The sidecar's HTTP server on the wire: what is not a client's usual request, and peers that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import signal
import socket
import struct
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import modelbox
from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

X = np.array([[1, 2, 3, 4]], np.float32)
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
INFER = "/v2/models/tiny/infer"
MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def directory(shared_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sidecar, whose models the server has."""
    directory = tmp_path_factory.mktemp("sidecar")

    async def publish() -> None:
        async with modelbox.Client(shared_server.url) as client:
            for path, model in {"acme/tiny": add_constant(1), "acme/slow": perceptron(1024, 20)}.items():
                file = directory / "model.onnx"
                file.write_bytes(model)
                await client.publish(path, str(file), aliases=["prod"])

    anyio.run(publish)
    return directory


@pytest.fixture(scope="module")
def sidecar(shared_server: ServerProcess, directory: Path) -> Iterator[SidecarProcess]:
    """One that gives its peers as much time as they may need on a busy machine."""
    with SidecarProcess(
        directory,
        shared_server.url,
        "acme/tiny@prod",
        "acme/slow@prod",
        max_request_mb=1,
        max_connections=64,
        idle_timeout_s=300,
    ) as process:
        yield process


@pytest.fixture(scope="module")
def impatient(
    shared_server: ServerProcess, directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    """One that cuts off who keeps it waiting."""
    with SidecarProcess(
        tmp_path_factory.mktemp("impatient"), shared_server.url, "acme/tiny@prod", max_request_mb=1, idle_timeout_s=1
    ) as process:
        yield process


def _ask(
    sidecar: SidecarProcess, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[HTTPResponse, Any]:
    host, port = sidecar.http_address.rsplit(":", 1)
    if isinstance(body, dict | list):
        body = json.dumps(body)
    with closing(HTTPConnection(host, int(port), timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
    if coding := response.headers["Content-Encoding"]:
        data = gzip.decompress(data) if coding == "gzip" else zlib.decompress(data)
    if response.headers.get_content_type() == "application/json" and data:
        return response, json.loads(data)
    return response, data


def _connect(sidecar: SidecarProcess) -> socket.socket:
    host, port = sidecar.http_address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=60)


def _request(body: bytes = json.dumps(BODY).encode(), *, path: str = INFER, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def _answer(sock: socket.socket) -> tuple[int, Any]:
    """The next answer on a connection."""
    with closing(HTTPResponse(sock)) as response:
        response.begin()
        data = response.read()
    return response.status, json.loads(data) if data else None


def _works(sidecar: SidecarProcess) -> None:
    response, document = _ask(sidecar, "POST", INFER, BODY)
    assert response.status == 200
    assert document["outputs"][0]["data"] == [2, 3, 4, 5]


def test_json_in_and_out(sidecar: SidecarProcess) -> None:
    response, document = _ask(sidecar, "POST", "/v2/models/acme/tiny/versions/prod/infer", BODY | {"id": "a"})
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert document == {
        "model_name": "acme/tiny",
        "model_version": "1",
        "id": "a",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2.0, 3.0, 4.0, 5.0]}],
    }


def test_header_names_in_any_case(sidecar: SidecarProcess) -> None:
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": X.nbytes}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    for name in ("inference-header-content-length", "INFERENCE-HEADER-CONTENT-LENGTH"):
        response, data = _ask(sidecar, "POST", INFER, head + X.tobytes(), {name: str(len(head))})
        assert response.status == 200
        assert data[int(response.headers["Inference-Header-Content-Length"]) :] == (X + 1).tobytes()
        assert response.headers["Content-Type"] == "application/octet-stream"


def test_raw_shortcut(sidecar: SidecarProcess) -> None:
    response, data = _ask(sidecar, "POST", INFER, X.tobytes() * 3, {"Inference-Header-Content-Length": "0"})
    assert response.status == 200
    length = int(response.headers["Inference-Header-Content-Length"])
    assert json.loads(data[:length])["outputs"][0]["shape"] == [3, 4]
    assert data[length:] == (X + 1).tobytes() * 3


@pytest.mark.parametrize("coding", ["gzip", "deflate", "x-gzip", "GZIP"])
def test_compressed_request(sidecar: SidecarProcess, coding: str) -> None:
    compress = zlib.compress if coding == "deflate" else gzip.compress
    response, document = _ask(sidecar, "POST", INFER, compress(json.dumps(BODY).encode()), {"Content-Encoding": coding})
    assert response.status == 200, document


@pytest.mark.parametrize(
    ("accepts", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate;q=0.5", "deflate"),
        ("gzip, deflate, br", None),
        ("gzip;q=0", None),
        ("br", None),
        ("identity", None),
        ("", None),
        ("gzip;q=x", None),
    ],
)
def test_compressed_answer(sidecar: SidecarProcess, accepts: str, coding: str | None) -> None:
    response, _ = _ask(sidecar, "POST", INFER, BODY, {"Accept-Encoding": accepts})
    assert response.status == 200
    assert response.headers["Content-Encoding"] == coding


def test_large_json_is_compressed_for_who_takes_any(sidecar: SidecarProcess) -> None:
    rows = 8000
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": [0.5] * rows * 4}]}
    response, _ = _ask(sidecar, "POST", INFER, body, {"Accept-Encoding": "gzip, deflate"})
    assert response.headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v2/models/missing/infer", BODY, 404),
        ("POST", "/v2/models/tiny/versions/9/infer", BODY, 404),
        ("GET", "/v2/models/missing", None, 404),
        ("GET", "/v2/models/missing/ready", None, 404),
        ("GET", "/v2/models/missing/config", None, 404),
        ("GET", "/v2/models/missing/stats", None, 404),
        ("GET", "/v2/models/a/b/c", None, 404),
        ("GET", "/", None, 404),
        ("GET", "/v3", None, 404),
        ("GET", "/v2/nothing", None, 404),
        ("GET", INFER, None, 405),
        ("POST", "/v2/models/tiny", "", 405),
        ("DELETE", "/v2/models/tiny", None, 405),
        ("POST", INFER, "", 400),
        ("POST", INFER, "{", 400),
        ("POST", INFER, b"\xff", 400),
        ("POST", INFER, [], 400),
        ("POST", INFER, {}, 400),
        ("POST", INFER, {"inputs": []}, 400),
        ("POST", INFER, "[" * 100_000, 400),
        ("POST", INFER, BODY | {"outputs": [{"name": "z"}]}, 400),
        ("POST", "/v2/repository/index", "[]", 400),
        ("POST", "/v2/repository/index", {"ready": 1}, 400),
        ("POST", "/v2/repository/models/acme/missing/load", "", 404),
        ("POST", "/v2/repository/models/x/y/z/load", "", 404),
        ("POST", "/v2/systemsharedmemory/region/r/register", {"key": "/none", "byte_size": 1}, 400),
        ("POST", "/v2/systemsharedmemory/region/r/register", {"key": "../etc/passwd", "byte_size": 1}, 400),
        ("POST", "/v2/systemsharedmemory/region/r/register", {}, 400),
        ("GET", "/v2/systemsharedmemory/region/r/status", None, 404),
        ("GET", "/v2/systemsharedmemory/what", None, 404),
        ("GET", "/v2/cudasharedmemory/status", None, 501),
        ("GET", "/v2/trace/setting", None, 501),
        ("GET", "/v2/logging", None, 501),
    ],
)
def test_errors_have_a_status_and_a_text(
    sidecar: SidecarProcess, method: str, path: str, body: Any, status: int
) -> None:
    response, document = _ask(sidecar, method, path, body)
    assert response.status == status
    assert response.headers["Content-Type"] == "application/json"
    assert list(document) == ["error"]
    assert document["error"]
    if status == 405:
        assert response.headers["Allow"] in ("GET", "POST")


def test_health_and_lists(sidecar: SidecarProcess) -> None:
    for path, document in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/tiny/ready", {"name": "tiny", "ready": True}),
        ("/v2/models", {"models": ["acme/tiny", "acme/slow"]}),
        ("/v2/models/acme%2Ftiny/ready", {"name": "acme/tiny", "ready": True}),
        ("/v2/models/tiny/ready?x=1", {"name": "tiny", "ready": True}),
    ):
        response, found = _ask(sidecar, "GET", path)
        assert (response.status, found) == (200, document)
    assert _ask(sidecar, "POST", "/v2/systemsharedmemory/unregister")[0].status == 200
    assert _ask(sidecar, "POST", "/v2/systemsharedmemory/region/unknown/unregister")[0].status == 200


def test_other_sites_are_kept_out(sidecar: SidecarProcess) -> None:
    for headers in ({"Host": "evil.example"}, {"Host": "localhost:1", "Origin": "http://evil.example"}):
        for _ in range(2):
            assert _ask(sidecar, "POST", INFER, BODY, headers)[0].status == 403
    assert _ask(sidecar, "POST", INFER, BODY, {"Host": "localhost:1", "Origin": "http://localhost:1"})[0].status == 200


# -- requests that are not plain


def test_chunked_body(sidecar: SidecarProcess) -> None:
    text = json.dumps(BODY)
    chunks = (part.encode() for part in (text[:10], text[10:]))
    host, port = sidecar.http_address.rsplit(":", 1)
    with closing(HTTPConnection(host, int(port), timeout=60)) as connection:
        for _ in range(2):
            connection.request("POST", INFER, chunks, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            response.read()
            chunks = (part.encode() for part in (text[:3], text[3:]))


def test_expect_continue_head_and_old_http(sidecar: SidecarProcess) -> None:
    body = json.dumps(BODY).encode()
    with _connect(sidecar) as sock:
        sock.sendall(_request(body, more="Expect: 100-continue\r\n")[: -len(body)])
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert _answer(sock)[0] == 200
        assert sock.recv(1) == b""
    with _connect(sidecar) as sock:
        sock.sendall(b"HEAD /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        data = sock.recv(1000)
        assert data.startswith(b"HTTP/1.1 200 ")
        assert data.endswith(b"\r\n\r\n")
    with _connect(sidecar) as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert _answer(sock) == (200, {"live": True})
        assert sock.recv(1) == b""


def test_a_byte_at_a_time_and_several_at_once(sidecar: SidecarProcess) -> None:
    with _connect(sidecar) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in _request():
            sock.send(bytes([byte]))
        assert _answer(sock)[0] == 200
        sock.sendall(b"".join(_request(json.dumps(BODY | {"id": str(n)}).encode()) for n in range(50)))
        with sock.makefile("rb") as file:
            for n in range(50):
                assert file.readline() == b"HTTP/1.1 200 OK\r\n"
                length = 0
                while (line := file.readline()) != b"\r\n":
                    if line.startswith(b"Content-Length:"):
                        length = int(line.split(b":")[1])
                assert json.loads(file.read(length))["id"] == str(n)


def test_connection_close(sidecar: SidecarProcess) -> None:
    with _connect(sidecar) as sock:
        sock.sendall(_request(more="Connection: close\r\n"))
        assert _answer(sock)[0] == 200
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"GET /v2\r\n\r\n",
        b"GET /v2 HTTP/3.0\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 1\r\n\r\na",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length : 1\r\n\r\na",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1" + b"0" * 400 + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded: b\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_request_ends_its_connection(impatient: SidecarProcess, data: bytes) -> None:
    with _connect(impatient) as sock:
        sock.sendall(data)
        received = b""
        try:
            while chunk := sock.recv(65536):
                received += chunk
        except ConnectionError:
            pass
        assert received == b"" or received.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/0.9 4")), received[:200]
        if received:
            head, _, body = received.partition(b"\r\n\r\n")
            assert b"Content-Type: application/json" in head
            assert json.loads(body).keys() == {"error"}
    _works(impatient)


# -- too much, too slow


def test_body_that_is_too_large(sidecar: SidecarProcess) -> None:
    for announced in (MAX_BYTES + 1, 10 << 30, 10**15 - 1):
        with _connect(sidecar) as sock:
            sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced}\r\n\r\n".encode())
            status, document = _answer(sock)
            assert status == 413
            assert str(MAX_BYTES) in document["error"]
    chunks = (bytes(1 << 16) for _ in range(20))
    response, document = _ask(sidecar, "POST", INFER, chunks)
    assert response.status == 413
    response, document = _ask(sidecar, "POST", INFER, gzip.compress(bytes(100 << 20)), {"Content-Encoding": "gzip"})
    assert response.status == 413
    _works(sidecar)


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"no gzip", "gzip"),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip"),
        (gzip.compress(b"{}", mtime=0) + b"x", "gzip"),
        (b"", "gzip"),
        (b"xx", "deflate"),
        (b"{}", "br"),
    ],
)
def test_compressed_body_that_is_none(sidecar: SidecarProcess, body: bytes, coding: str) -> None:
    assert _ask(sidecar, "POST", INFER, body, {"Content-Encoding": coding})[0].status == 400


def test_binary_part_that_does_not_add_up(sidecar: SidecarProcess) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [tensor]}).encode()
    for body, length in (
        (head + bytes(15), len(head)),
        (head + bytes(17), len(head)),
        (head, len(head)),
        (head + bytes(16), len(head) - 1),
        (head + bytes(16), 10**9),
        (head + bytes(16), -1),
    ):
        response, document = _ask(sidecar, "POST", INFER, body, {"Inference-Header-Content-Length": str(length)})
        assert response.status == 400, (length, document)
    for shape in ([1 << 40, 1 << 40], [0, 4], [1, 5], [4], []):
        head = json.dumps({"inputs": [tensor | {"shape": shape}]}).encode()
        response, document = _ask(
            sidecar, "POST", INFER, head + bytes(16), {"Inference-Header-Content-Length": str(len(head))}
        )
        assert response.status == 400, (shape, document)


def test_who_stops_in_the_middle_is_cut_off(impatient: SidecarProcess) -> None:
    request = _request()
    for cut in (0, 10, len(request) - 5):
        begun = time.monotonic()
        with _connect(impatient) as sock:
            sock.sendall(request[:cut])
            received = sock.recv(1000)
            assert received == b"" or received.startswith(b"HTTP/1.1 504 "), cut
            # Not before its time was over.
            assert time.monotonic() - begun > 0.5
    with _connect(impatient) as sock:
        sock.sendall(
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"
        )
        assert sock.recv(1000)[:13] in (b"", b"HTTP/1.1 504 ")
    _works(impatient)


def test_who_does_not_read_is_cut_off(impatient: SidecarProcess) -> None:
    rows = 10_000
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": [0] * rows * 4}]}
    request = _request(json.dumps(body).encode())
    with _connect(impatient) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.5)
        with pytest.raises((TimeoutError, ConnectionError)):
            for _ in range(1000):
                sock.sendall(request)
        _works(impatient)
        deadline = time.monotonic() + 60
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                time.sleep(0.2)
                with contextlib.suppress(TimeoutError):  # its buffer is full, and it is not yet cut off
                    sock.send(b"x")
    _works(impatient)


def test_too_many_connections(sidecar: SidecarProcess) -> None:
    socks = [_connect(sidecar) for _ in range(64)]
    try:
        with _connect(sidecar) as sock:
            status, document = _answer(sock)
            assert status == 503
            assert "connections" in document["error"]
        socks[0].sendall(_request())
        assert _answer(socks[0])[0] == 200
    finally:
        for sock in socks:
            sock.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return _works(sidecar)
        except (AssertionError, OSError):
            time.sleep(0.05)
    _works(sidecar)


def test_peers_that_go_away(sidecar: SidecarProcess) -> None:
    for _ in range(20):
        with _connect(sidecar) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(_request(path="/v2/models/slow/infer"))
    _works(sidecar)


def test_drain_finishes_what_was_accepted(shared_server: ServerProcess, directory: Path, tmp_path: Path) -> None:
    with SidecarProcess(tmp_path, shared_server.url, "acme/tiny@prod", "acme/slow@prod") as process:
        x = np.zeros((64, 1024), np.float32)
        tensor = {"name": "x", "datatype": "FP32", "shape": [64, 1024], "parameters": {"binary_data_size": x.nbytes}}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        request = _request(
            head + x.tobytes(),
            path="/v2/models/slow/infer",
            more=f"Inference-Header-Content-Length: {len(head)}\r\n",
        )
        with _connect(process) as busy, _connect(process) as idle:
            idle.sendall(_request())
            assert _answer(idle)[0] == 200
            busy.sendall(request)
            while not _running(process, "acme/slow"):
                # Not begun with, or answered already.
                if select.select([busy], [], [], 0.005)[0]:
                    break
            process.send_signal(signal.SIGTERM)
            with closing(HTTPResponse(busy)) as response:
                response.begin()
                assert response.status == 200
                assert len(response.read()) > x.nbytes
            assert idle.recv(1) == b""
        assert process.wait() == 0
        assert "Traceback" not in process.output


def _running(sidecar: SidecarProcess, model: str) -> bool:
    with urllib.request.urlopen(sidecar.metrics_url, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    (count,) = [
        line.rpartition(" ")[2]
        for line in lines
        if line.startswith("modelbox_sidecar_queue_running{") and f'model="{model}"' in line
    ]
    return float(count) > 0


def test_drain_waits_for_who_is_slow_to_read(shared_server: ServerProcess, directory: Path, tmp_path: Path) -> None:
    with SidecarProcess(tmp_path, shared_server.url, "acme/tiny@prod") as process:
        # More than the buffers of both sockets hold.
        x = np.zeros((1 << 20, 4), np.float32)
        tensor = {"name": "x", "datatype": "FP32", "shape": [*x.shape], "parameters": {"binary_data_size": x.nbytes}}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        more = f"Inference-Header-Content-Length: {len(head)}\r\n"
        with _connect(process) as slow:
            slow.sendall(_request(head + x.tobytes(), more=more))
            assert slow.recv(1, socket.MSG_PEEK) == b"H"
            process.send_signal(signal.SIGTERM)
            process.wait_for("draining", timeout=60)
            with closing(HTTPResponse(slow)) as response:
                response.begin()
                assert response.status == 200
                length = int(response.headers["Inference-Header-Content-Length"])
                answer = b"".join(iter(lambda: _slowly(response, 1 << 18), b""))
        assert len(answer) == length + x.nbytes
        assert (np.frombuffer(answer[length:], np.float32) == 1.0).all()
        assert process.wait() == 0
        assert "cut off" not in process.output
        assert "Traceback" not in process.output


def _slowly(response: HTTPResponse, size: int) -> bytes:
    time.sleep(0.01)
    return response.read(size)


def test_nothing_unexpected_was_logged(sidecar: SidecarProcess, impatient: SidecarProcess) -> None:
    for process in (sidecar, impatient):
        assert "failed unexpectedly" not in process.output
        assert "Traceback" not in process.output
