"""A sidecar that others may reach: TLS on its ports, certificates of its clients, and its own way to the server."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc

from tests.certificates import Authority, Pair, serial_of
from tests.onnx_models import add_constant
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

TOKEN = "mbx_q7_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(place: Path) -> Authority:
    return Authority(place)


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("sidecar", "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def sidecar(place: Path, authority: Authority, pair: Pair) -> Iterator[SidecarProcess]:
    """One that gets its model over TLS, with a token from a file."""
    file, token = place / "model.onnx", place / "token"
    file.write_bytes(add_constant(2.0))
    token.write_text(TOKEN)
    of_server = authority.issue("server", "localhost", "127.0.0.1")
    env = {"MODELBOX_TLS_CA": str(authority.certificate), "MODELBOX_TOKEN_FILE": str(token)}
    with ServerProcess(place / "data", tls_cert=of_server.certificate, tls_key=of_server.key) as server:
        subprocess.run(
            [sys.executable, "-m", "modelbox", "models", "publish", "acme/tiny", str(file), "--alias", "prod"],
            env={"PATH": "/usr/bin:/bin", "HOME": str(place), "MODELBOX_URL": server.url, **env},
            check=True,
            timeout=60,
        )
        with SidecarProcess(
            place,
            server.url,
            "acme/tiny@prod",
            env=env,
            tls_cert=pair.certificate,
            tls_key=pair.key,
            tls_client_ca=authority.certificate,
            tls_client_auth="required",
        ) as sidecar:
            yield sidecar
            assert "Traceback" not in sidecar.output + server.output
            assert TOKEN not in sidecar.output + server.output


@pytest.fixture
def context(authority: Authority) -> ssl.SSLContext:
    """Of a client that is let in."""
    mine = authority.issue("client", "spiffe://example.org/app")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(mine.certificate, mine.key)
    return context


def ask(address: str, context: ssl.SSLContext, request: str, body: object = None) -> tuple[int, bytes]:
    method, path = request.split()
    connection = http.client.HTTPSConnection(address, context=context, timeout=60)
    try:
        connection.request(method, path, body)  # type: ignore[arg-type]  # bytes, or an iterator of them
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_answers_over_http(sidecar: SidecarProcess, context: ssl.SSLContext) -> None:
    # As one body, which the sidecar reads itself, and in chunks, for which aiohttp takes over the connection.
    for body in (BODY, iter([BODY[:20], BODY[20:]])):
        status, answer = ask(sidecar.http_address, context, "POST /v2/models/tiny/infer", body)
        assert status == 200
        assert json.loads(answer)["outputs"][0]["data"] == [3, 4, 5, 6]


def test_a_large_answer_comes_whole(sidecar: SidecarProcess, context: ssl.SSLContext) -> None:
    rows = 50_000
    numbers = list(range(rows * 4))
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": numbers}
    status, answer = ask(
        sidecar.http_address, context, "POST /v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == [number + 2 for number in numbers]


def test_it_answers_over_grpc(sidecar: SidecarProcess, authority: Authority, place: Path) -> None:
    mine = authority.issue("triton", "spiffe://example.org/app")
    with tritonclient.grpc.InferenceServerClient(
        sidecar.grpc_address,
        ssl=True,
        root_certificates=str(authority.certificate),
        private_key=str(mine.key),
        certificate_chain=str(mine.certificate),
    ) as client:
        tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
        assert client.infer("tiny", [tensor]).as_numpy("y").tolist() == [[3, 4, 5, 6]]


def test_its_metrics_say_how_long_its_certificate_lasts(sidecar: SidecarProcess, context: ssl.SSLContext) -> None:
    status, answer = ask(sidecar.metrics_address, context, "GET /metrics")
    assert status == 200
    left = [line for line in answer.decode().splitlines() if line.startswith("modelbox_tls_certificate_days_left ")]
    assert 19 < float(left[0].split()[1]) < 21


def test_without_a_certificate_nobody_gets_an_answer(sidecar: SidecarProcess, authority: Authority) -> None:
    stranger = ssl.create_default_context(cafile=str(authority.certificate))
    for address in (sidecar.http_address, sidecar.metrics_address):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ask(address, stranger, "GET /v2/health/ready")
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    with grpc.secure_channel(sidecar.grpc_address, credentials) as channel:
        check: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        with pytest.raises(grpc.RpcError) as caught:
            check(b"", timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    host, port = sidecar.http_address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as plain:
        plain.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert not plain.recv(100).startswith(b"HTTP/")


def test_its_certificate_is_renewed(
    sidecar: SidecarProcess, authority: Authority, pair: Pair, context: ssl.SSLContext
) -> None:
    new = authority.issue("renewed", "localhost", "127.0.0.1")
    seen = len(sidecar.output)
    pair.replace_by(new)
    sidecar.wait_for("new TLS files are in use", timeout=60, after=seen)
    for address in (sidecar.http_address, sidecar.grpc_address, sidecar.metrics_address):
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            with context.wrap_socket(raw, server_hostname="localhost") as connection:
                assert serial_of(connection.getpeercert(binary_form=True) or b"") == serial_of(new.certificate)
