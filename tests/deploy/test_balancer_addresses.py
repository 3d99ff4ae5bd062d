"""Whose calls come through the balancer: what it tells the servers, with the real program."""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

import modelbox
from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.runtime.config import load_server_config
from modelbox.sync import Client as SyncClient
from tests.deploy.test_balancer import CONFIG, balancing, haproxy
from tests.integration.test_trusted_proxies import Peer
from tests.server import ServerProcess
from tests.servers.debian import Packages
from tests.servers.files import free_port

__all__ = ("haproxy",)

COMPOSE: dict[str, Any] = yaml.safe_load(CONFIG.parents[1].joinpath("compose.yaml").read_text())


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def balanced(tmp_path: Path, haproxy: Packages) -> Iterator[tuple[ServerProcess, str, str]]:
    """A server that trusts its balancer, and the balancer's addresses of HTTP and of gRPC."""
    grpc = f"127.0.0.1:{free_port()}"
    with (
        ServerProcess(tmp_path / "data", access="on", trusted_proxies="127.0.0.1", advertise_grpc=grpc) as server,
        balancing(haproxy, CONFIG, server, server, grpc_port=int(grpc.rpartition(":")[2])) as http_port,
    ):
        yield server, f"127.0.0.1:{http_port}", grpc


async def test_the_audit_log_has_the_callers_addresses(balanced: tuple[ServerProcess, str, str]) -> None:
    server, http_address, grpc_address = balanced
    token = (server.data_dir / "admin-token").read_text().strip()
    said = "1.2.3.4"

    def over_http() -> int:
        host, _, port = http_address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60, source_address=("127.0.0.5", 0))
        with closing(connection):
            body = json.dumps({"namespace": "balanced", "name": "speech"})
            headers = {"Authorization": f"Bearer {token}", "X-Request-Id": "over-http", "X-Forwarded-For": said}
            connection.request("POST", "/api/v1/experiments", body, headers)
            return connection.getresponse().status

    assert await anyio.to_thread.run_sync(over_http) in (200, 201)
    with anyio.fail_after(60):
        async with Peer(grpc_address, "127.0.0.6") as peer:
            headers = [("authorization", f"Bearer {token}"), (wire.REQUEST_KEY, "over-grpc"), ("x-forwarded-for", said)]
            message = bytes(pb.CreateModelRequest(namespace="balanced", name="speech"))
            assert await peer.ask("/modelbox.v1.RegistryService/CreateModel", message, *headers) == "0"

    def addresses(call: str) -> set[str]:
        with SyncClient(server.url, token=token) as client:
            return {entry.address for entry in client.iter_audit(request_id=call)}

    assert await anyio.to_thread.run_sync(addresses, "over-http") == {"127.0.0.5"}
    assert await anyio.to_thread.run_sync(addresses, "over-grpc") == {"127.0.0.6"}


async def test_a_client_has_connections_of_its_own_and_few(balanced: tuple[ServerProcess, str, str]) -> None:
    server, http_address, _ = balanced
    token = (server.data_dir / "admin-token").read_text().strip()

    def connections() -> int:
        with urllib.request.urlopen(server.metrics_url, timeout=60) as answer:
            found = re.search(r"(?m)^modelbox_grpc_connections (\d+)", answer.read().decode())
        assert found is not None
        return int(found[1])

    async with (
        modelbox.Client(f"http://{http_address}", token=token) as one,
        modelbox.Client(f"http://{http_address}", token=token) as other,
    ):
        for client in (one, other):
            await client.create_model(f"balanced/m{client is one:d}")
        both = await anyio.to_thread.run_sync(connections)
        for _ in range(50):
            await one.get_model("balanced/m1")
        # One to each of the two servers, which are the same here.
        assert 2 <= both <= 4
        assert await anyio.to_thread.run_sync(connections) <= 4


def test_compose_trusts_the_balancer_and_nobody_else() -> None:
    services = COMPOSE["services"]
    address = services["balancer"]["networks"]["default"]["ipv4_address"]
    for name in ("server-1", "server-2"):
        env = {key: value for key, value in services[name]["environment"].items() if "TRUSTED" in key}
        assert load_server_config(flags={}, env=env).trusted_proxies == (f"{address}/32",)
    (network,) = COMPOSE["networks"]["default"]["ipam"]["config"]
    assert ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network["subnet"])
    # No other container gets that address.
    assert ipaddress.IPv4Address(address) not in ipaddress.IPv4Network(network["ip_range"])
    assert ipaddress.IPv4Network(network["ip_range"]).subnet_of(ipaddress.IPv4Network(network["subnet"]))
    assert not [name for name in services if name != "balancer" and "networks" in services[name]]
