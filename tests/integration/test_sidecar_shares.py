"""What one address may have of a sidecar's connections: handshakes that never end, and requests that are unusual."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority, Pair
from tests.faults.registry import fault
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess

HELLO_OF_TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The beginning of a client's first message, which announces 512 bytes."""
SAYS = {
    "http": b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "grpc": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "metrics": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
CHUNKED = b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("sidecar", "127.0.0.1")


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def _connect(sidecar: SidecarProcess, port: str, source: str) -> socket.socket:
    address = {"http": sidecar.http_address, "grpc": sidecar.grpc_address, "metrics": sidecar.metrics_address}[port]
    host, _, number = address.rpartition(":")
    return socket.create_connection((host, int(number)), timeout=60, source_address=(source, 0))


def _metric(sidecar: SidecarProcess, name: str, trusting: ssl.SSLContext | None) -> float:
    url = sidecar.metrics_url.replace("http:", "https:") if trusting is not None else sidecar.metrics_url
    with urllib.request.urlopen(url, context=trusting, timeout=60) as answer:
        found = re.search(rf"(?m)^{name} (\S+)$", answer.read().decode())
    assert found is not None
    return float(found[1])


def _wait_for(sidecar: SidecarProcess, name: str, value: float, trusting: ssl.SSLContext | None = None) -> None:
    end = time.monotonic() + 30
    while (now := _metric(sidecar, name, trusting)) != value:
        assert time.monotonic() < end, f"{name} is {now}, and not {value}"
        time.sleep(0.02)


@fault(66)
@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
def test_a_flood_from_one_address_leaves_others_served(
    shared_server: ServerProcess,
    tmp_path: Path,
    authority: Authority,
    pair: Pair,
    opened: contextlib.ExitStack,
    tls: bool,
) -> None:
    settings: dict[str, Any] = {"tls_cert": pair.certificate, "tls_key": pair.key} if tls else {}
    with SidecarProcess(
        tmp_path, shared_server.url, max_connections=20, max_connections_per_address=4, idle_timeout_s=60, **settings
    ) as sidecar:
        for port in SAYS:
            for one in range(30):
                flooding = opened.enter_context(_connect(sidecar, port, "127.0.0.7"))
                if one % 2 and tls:
                    with contextlib.suppress(ConnectionError):
                        flooding.sendall(HELLO_OF_TLS)
            other = opened.enter_context(_connect(sidecar, port, "127.0.0.2"))
            if tls:
                trusting = ssl.create_default_context(cafile=str(authority.certificate))
                if port == "grpc":
                    trusting.set_alpn_protocols(["h2"])
                other = opened.enter_context(trusting.wrap_socket(other, server_hostname="127.0.0.1"))
            other.sendall(SAYS[port])
            assert other.recv(9)
        trusted = ssl.create_default_context(cafile=str(authority.certificate)) if tls else None
        _wait_for(sidecar, "modelbox_connections_refused", 3 * 26, trusted)
        assert "Traceback" not in sidecar.output


def test_programs_of_this_machine_have_no_share_unless_it_is_set(
    shared_server: ServerProcess, tmp_path: Path, opened: contextlib.ExitStack
) -> None:
    with SidecarProcess(tmp_path, shared_server.url, max_connections=6, idle_timeout_s=60) as sidecar:
        for port in ("http", "grpc"):
            for _ in range(6):
                opened.enter_context(_connect(sidecar, port, "127.0.0.1"))
        _wait_for(sidecar, "modelbox_http_connections", 6)
        _wait_for(sidecar, "modelbox_grpc_connections", 6)
        assert _metric(sidecar, "modelbox_connections_refused", None) == 0
        with opened.enter_context(_connect(sidecar, "http", "127.0.0.1")) as beyond:
            beyond.sendall(SAYS["http"])
            assert beyond.recv(1000).startswith(b"HTTP/1.1 503 ")
        _wait_for(sidecar, "modelbox_connections_refused", 1)


def test_an_unusual_request_gives_its_place_back(
    shared_server: ServerProcess, tmp_path: Path, opened: contextlib.ExitStack
) -> None:
    with SidecarProcess(
        tmp_path, shared_server.url, max_connections=20, max_connections_per_address=2, idle_timeout_s=60
    ) as sidecar:
        for _ in range(3):  # one more than its share
            with _connect(sidecar, "http", "127.0.0.7") as unusual:
                unusual.sendall(CHUNKED)
                while unusual.recv(1000):
                    pass
            _wait_for(sidecar, "modelbox_http_connections", 0)
        # While it is there, it has one.
        waiting = opened.enter_context(_connect(sidecar, "http", "127.0.0.7"))
        waiting.sendall(CHUNKED[:-7])
        opened.enter_context(_connect(sidecar, "http", "127.0.0.7"))
        _wait_for(sidecar, "modelbox_http_connections", 2)
        with opened.enter_context(_connect(sidecar, "http", "127.0.0.7")) as beyond:
            beyond.sendall(SAYS["http"])
            answer = beyond.recv(1000)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"no more of 127.0.0.7 are taken" in answer
        host, _, number = sidecar.http_address.rpartition(":")
        other = HTTPConnection(host, int(number), timeout=60, source_address=("127.0.0.8", 0))
        with contextlib.closing(other):
            other.request("GET", "/v2/health/live")
            assert other.getresponse().status == 200
