"""Where a server's gRPC is, seen from a client that reached its HTTP."""

from __future__ import annotations

import pytest

from modelbox._transport.http import ServerInfo
from modelbox.errors import ProtocolError


def info(address: str) -> ServerInfo:
    return ServerInfo(server_id="s", version="1", grpc_address=address, http_address="")


@pytest.mark.parametrize(
    ("url", "address", "target"),
    [
        ("http://models.example:8080", "8085", ("models.example", 8085)),
        ("http://models.example:8080", ":8085", ("models.example", 8085)),
        ("http://models.example:8080", "0.0.0.0:8085", ("models.example", 8085)),
        ("http://models.example:8080", "[::]:8085", ("models.example", 8085)),
        ("http://models.example:8080", "127.0.0.1:8085", ("models.example", 8085)),
        ("http://models.example:8080", "grpc.example:443", ("grpc.example", 443)),
        ("http://models.example:8080", "[2001:db8::1]:8085", ("2001:db8::1", 8085)),
        ("http://localhost:8080", "127.0.0.1:8085", ("127.0.0.1", 8085)),
        ("http://[::1]:8080", "0.0.0.0:8085", ("::1", 8085)),
    ],
)
def test_the_address_is_seen_from_the_client(url: str, address: str, target: tuple[str, int]) -> None:
    assert info(address).grpc_target(url) == target


@pytest.mark.parametrize("address", ["", "host", "host:", "host:0", "host:70000", "host:port", "host:²"])
def test_nonsense_is_the_servers_fault(address: str) -> None:
    with pytest.raises(ProtocolError):
        info(address).grpc_target("http://models.example:8080")
