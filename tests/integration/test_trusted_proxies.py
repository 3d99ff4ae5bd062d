"""Where calls come from that come through a balancer: in the audit log, and where bad credentials count."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import socket
from collections.abc import Iterator, Sequence

import anyio
import pytest
from h2.events import ResponseReceived, TrailersReceived

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.client import Client
from modelbox.sync import Client as SyncClient
from modelbox.tokens import Token
from tests.faults.registry import fault
from tests.h2_peer import H2Peer
from tests.server import ServerProcess

PROXY, OTHER_PROXY, STRANGER = "127.0.0.9", "127.0.7.3", "127.0.0.2"
CALLER = "198.51.100.7"

_numbers = itertools.count()

SAID = [
    (PROXY, [CALLER], CALLER),
    (PROXY, [f"1.2.3.4, {CALLER}"], CALLER),
    (PROXY, ["1.2.3.4", CALLER], CALLER),
    (PROXY, [f"1.2.3.4, {CALLER}, {OTHER_PROXY}"], CALLER),
    (PROXY, ["[2001:db8::7]:4711"], "2001:db8::7"),
    (PROXY, [], PROXY),
    (PROXY, ["nonsense"], PROXY),
    (STRANGER, [CALLER], STRANGER),
    (STRANGER, [CALLER, PROXY], STRANGER),
]
"""Who connects, what the call says, and what address the server is to know it by."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("proxied") / "data",
        access="on",
        trusted_proxies=f"{PROXY}, 127.0.7.0/24",
        max_connections_per_address=3,
    ) as process:
        yield process


@pytest.fixture(scope="module")
def root(server: ServerProcess) -> str:
    return (server.data_dir / "admin-token").read_text().strip()


def ask(
    server: ServerProcess,
    source: str,
    said: Sequence[str],
    *,
    token: str,
    method: str = "GET",
    path: str = "/api/v1/whoami",
    body: object = None,
    request_id: str = "any",
) -> int:
    """One request from ``source``; its status."""
    host, _, port = server.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60, source_address=(source, 0))
    with contextlib.closing(connection):
        connection.putrequest(method, path)
        for value in said:
            connection.putheader("X-Forwarded-For", value)
        data = b"" if body is None else json.dumps(body).encode()
        connection.putheader("Authorization", f"Bearer {token}")
        connection.putheader("X-Request-Id", request_id)
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        return connection.getresponse().status


@fault(68)
@pytest.mark.parametrize(("source", "said", "address"), SAID)
def test_the_audit_log_names_the_caller_over_http(
    server: ServerProcess, root: str, source: str, said: list[str], address: str
) -> None:
    number = next(_numbers)
    new = {"namespace": "proxied", "name": f"over-http-{number}"}
    status = ask(
        server,
        source,
        said,
        token=root,
        method="POST",
        path="/api/v1/experiments",
        body=new,
        request_id=f"over-http-{number}",
    )
    assert status in (200, 201)
    with SyncClient(server.url, token=root) as client:
        found = {entry.address for entry in client.iter_audit(request_id=f"over-http-{number}")}
    assert found == {address}


class Peer(H2Peer):
    """One that connects from an address."""

    def __init__(self, address: str, source: str) -> None:
        super().__init__(address)
        self._source = source

    async def __aenter__(self) -> Peer:
        self.reader, self.writer = await asyncio.open_connection(self._host, self._port, local_addr=(self._source, 0))
        self.h2.initiate_connection()
        await self.flush()
        return self

    async def ask(self, path: str, message: bytes, *headers: tuple[str, str]) -> str:
        """One call; its status."""
        stream = self.h2.get_next_available_stream_id()
        fixed = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
        self.h2.send_headers(stream, [*fixed, ("te", "trailers"), ("content-type", "application/grpc"), *headers])
        self.message(stream, message)
        await self.flush()
        while True:
            events = await self.events()
            assert events is not None
            for event in events:
                if isinstance(event, ResponseReceived | TrailersReceived) and event.stream_id == stream:
                    found = {str(name): str(value) for name, value in event.headers}
                    if "grpc-status" in found:
                        return found["grpc-status"]


@fault(68)
@pytest.mark.parametrize(("source", "said", "address"), SAID)
async def test_the_audit_log_names_the_caller_over_grpc(
    server: ServerProcess, root: str, source: str, said: list[str], address: str
) -> None:
    asked = [f"over-grpc-{next(_numbers)}" for _ in range(2)]
    with anyio.fail_after(60):
        # One after the other on a connection: what one says must not be taken for what the next one does.
        async with Peer(server.grpc_address, source) as peer:
            other = ("x-forwarded-for", "203.0.113.5")
            whoami = "/modelbox.v1.AccessService/WhoAmI"
            assert await peer.ask(whoami, b"", ("authorization", f"Bearer {root}"), other) == "0"
            for name in asked:
                headers = [("authorization", f"Bearer {root}"), (wire.REQUEST_KEY, name)]
                headers += [("x-forwarded-for", value) for value in said]
                message = bytes(pb.CreateModelRequest(namespace="proxied", name=name))
                assert await peer.ask("/modelbox.v1.RegistryService/CreateModel", message, *headers) == "0"
        async with Client(server.url, token=root) as client:
            for name in asked:
                assert {entry.address async for entry in client.iter_audit(request_id=name)} == {address}


@fault(68)
def test_bad_credentials_count_where_they_come_from_and_are_refused_in_its_name(
    server: ServerProcess, root: str
) -> None:
    bad = Token.new().reveal()

    def until_told_to_wait(said: Sequence[str], source: str) -> None:
        for one in itertools.islice(itertools.cycle(said), 1000):
            if ask(server, source, [one], token=bad) == 503:
                return
        raise AssertionError(f"{source} may try as often as it likes")

    assert ask(server, PROXY, ["203.0.113.66"], token=bad) == 401
    until_told_to_wait(["203.0.113.66"], PROXY)
    # Another one behind the same proxy makes its own mistakes; a good token passes from anywhere.
    assert ask(server, PROXY, ["203.0.113.67"], token=bad) == 401
    assert ask(server, PROXY, ["203.0.113.66"], token=root) == 200
    # Who is no proxy cannot put the blame on others, nor get another limit by saying so.
    until_told_to_wait([f"203.0.113.{number}" for number in range(100, 140)], STRANGER)
    assert ask(server, PROXY, ["203.0.113.100"], token=bad) == 401
    # A server that stops writes what it has counted.
    server.restart()
    with SyncClient(server.url, token=root) as client:
        refused = {
            entry.address
            for entry in client.iter_audit(denials=True)
            if isinstance(entry.after, dict) and entry.after["permission"] == "authentication"
        }
    assert {"203.0.113.66", "203.0.113.67", "203.0.113.100", STRANGER} <= refused
    assert not refused & {f"203.0.113.{number}" for number in range(101, 140)}


def test_a_proxy_has_no_share_of_connections(server: ServerProcess) -> None:
    def taken(source: str, port: str) -> int:
        host, _, number = {"http": server.http_address, "metrics": server.metrics_address}[port].rpartition(":")
        with contextlib.ExitStack() as stack:
            opened = [
                stack.enter_context(socket.create_connection((host, int(number)), 60, (source, 0))) for _ in range(8)
            ]
            answered = 0
            for one in opened:
                with contextlib.suppress(ConnectionError):
                    one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    answered += bool(one.recv(10))
            return answered

    assert [taken(PROXY, port) for port in ("http", "metrics")] == [8, 8]
    assert [taken(STRANGER, port) for port in ("http", "metrics")] == [3, 3]
