"""What answers over HTTP tell of the programs that give them, whatever they answer to."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Iterator

import pytest

from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

_REQUESTS = [
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v2 HTTP/1.0\r\n\r\n",
    b"GET /api/v1/changes HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /nothing HTTP/1.1\r\nHost: rebound.example\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /\x01 HTTP/1.1\r\n\r\n",
    b"nonsense\r\n\r\n",
]


@pytest.fixture(scope="module")
def sidecar(shared_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path_factory.mktemp("sidecar"), shared_server.url) as process:
        yield process


def _head_of_answer(address: str, request: bytes) -> str:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock, sock.makefile("rb") as answer:
        sock.sendall(request)
        lines = itertools.takewhile(lambda line: line not in (b"", b"\r\n"), iter(answer.readline, None))
        return b"".join(lines).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("request_", _REQUESTS)
@pytest.mark.parametrize("port", ["http", "metrics"])
def test_the_server_tells_nobody_which_releases_run(shared_server: ServerProcess, port: str, request_: bytes) -> None:
    address = shared_server.http_address if port == "http" else shared_server.metrics_address
    head = _head_of_answer(address, request_)
    assert re.findall(r"(?mi)^server: (.*)$", head) == ["modelbox"], head
    assert "aiohttp" not in head
    assert "Python" not in head


@pytest.mark.parametrize("request_", _REQUESTS)
@pytest.mark.parametrize("port", ["http", "metrics"])
def test_nor_does_the_sidecar(sidecar: SidecarProcess, port: str, request_: bytes) -> None:
    address = sidecar.http_address if port == "http" else sidecar.metrics_address
    head = _head_of_answer(address, request_)
    assert head.startswith("HTTP/1.")
    # What it reads by itself, it answers without such a header.
    assert re.findall(r"(?mi)^server: (.*)$", head) in (["modelbox"], []), head
    assert "aiohttp" not in head
    assert "Python" not in head
