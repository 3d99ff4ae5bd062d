"""How connections with TLS begin: counted from their acceptance on, whatever becomes of their handshake."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

import anyio
import pytest

from modelbox._serving import listening
from modelbox._serving.listening import Listener, listen
from modelbox._serving.peers import peer_of
from modelbox._serving.shares import ConnectionShares
from tests.certificates import Authority


@pytest.fixture(
    params=[("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and a client's."""
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    pair = authority.issue("server", "127.0.0.1")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(pair.certificate, pair.key)
    return ours, ssl.create_default_context(cafile=str(authority.certificate))


class Echo(asyncio.Protocol):
    """Counts itself, and sends back what comes."""

    made = 0

    def __init__(self, shares: ConnectionShares) -> None:
        type(self).made += 1
        self._shares = shares
        self._admitted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._address = peer_of(transport).address
        self._admitted = self._shares.admit(self._address)
        if not self._admitted:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._admitted:
            self._shares.leave(self._address)


class Server:
    """Listens; a client's side connects."""

    def __init__(self, shares: ConnectionShares, listener: Listener, port: int, client: ssl.SSLContext) -> None:
        self.shares = shares
        self.listener = listener
        self._port = port
        self._client = client
        self._open = contextlib.ExitStack()

    def raw(self, address: str = "127.0.0.1") -> socket.socket:
        """Connects, and says nothing."""
        made = self._open.enter_context(socket.create_connection(("127.0.0.1", self._port), 30, (address, 0)))
        made.setblocking(False)
        return made

    async def closed(self, sock: socket.socket) -> None:
        """Waits until the server has closed a connection."""
        with anyio.fail_after(30), contextlib.suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(sock, 1000):
                pass

    async def echo(self, address: str = "127.0.0.1") -> asyncio.StreamWriter:
        """Connects, by a handshake, and is answered."""
        with anyio.fail_after(30):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self._port, local_addr=(address, 0), ssl=self._client
            )
            self._open.callback(writer.close)
            self._open.callback(writer.transport.abort)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        return writer

    async def counts(self, open_: int) -> None:
        """Waits until so many connections are counted."""
        with anyio.fail_after(30):
            while len(self.shares) != open_:
                await anyio.sleep(0.005)

    def close(self) -> None:
        self._open.close()
        self.listener.close()


Serve = Callable[..., Any]


@pytest.fixture
async def serve(contexts: tuple[ssl.SSLContext, ssl.SSLContext], anyio_backend: Any) -> Any:
    """Starts servers."""
    with contextlib.ExitStack() as stack:

        async def start(
            shares: ConnectionShares, *, timeout_s: float = 30, kind: type[socket.socket] = socket.socket
        ) -> Server:
            sock = kind()
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            tls, client = contexts
            listener = await listen(lambda: Echo(shares), sock, tls=tls, handshake_timeout_s=timeout_s, shares=shares)
            server = Server(shares, listener, port, client)
            stack.callback(server.close)
            return server

        yield start


async def test_a_handshake_is_counted_and_the_connection_once(serve: Serve) -> None:
    server = await serve(ConnectionShares(10, 1))
    silent = server.raw("127.0.0.2")
    await server.counts(1)
    await server.closed(server.raw("127.0.0.2"))
    writer = await server.echo("127.0.0.3")
    assert (len(server.shares), server.shares.refused) == (2, 1)
    silent.close()
    await server.counts(1)
    writer.transport.abort()
    await server.counts(0)
    writer = await server.echo("127.0.0.2")
    assert len(server.shares) == 1


async def test_all_that_are_under_way_are_bounded_together(serve: Serve) -> None:
    server = await serve(ConnectionShares(3))
    for number in range(3):
        server.raw(f"127.0.0.{number + 2}")
    await server.counts(3)
    await server.closed(server.raw("127.0.0.9"))
    assert (len(server.shares), server.shares.refused) == (3, 1)


@pytest.mark.parametrize("says", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 40_000])
async def test_what_is_no_handshake_is_counted_out_and_nothing_is_made_for_it(serve: Serve, says: bytes) -> None:
    server = await serve(ConnectionShares(10))
    made = Echo.made
    for _ in range(5):
        sock = server.raw()
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(sock, says)
        await server.closed(sock)
    await server.counts(0)
    assert Echo.made == made


async def test_a_handshake_that_does_not_end_is_ended(serve: Serve) -> None:
    server = await serve(ConnectionShares(10), timeout_s=0.05)
    await server.closed(server.raw())
    await server.counts(0)


async def test_a_stop_breaks_handshakes_off_and_leaves_connections(serve: Serve) -> None:
    server = await serve(ConnectionShares(10))
    writer = await server.echo()
    silent = server.raw()
    await server.counts(2)
    late = server.raw()
    server.listener.close()
    server.listener.close()
    await server.closed(silent)
    await server.closed(late)
    await server.counts(1)
    with pytest.raises(ConnectionRefusedError):
        server.raw()
    assert not writer.transport.is_closing()


class _Full(socket.socket):
    """A socket of a process that has no room for another one, for a while."""

    tries = 0

    def accept(self) -> Any:
        type(self).tries += 1
        if self.tries <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_a_process_without_room_accepts_later(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "_PAUSE_S", 0.01)
    monkeypatch.setattr(_Full, "tries", 0)
    server = await serve(ConnectionShares(10), kind=_Full)
    await server.echo()
    assert caplog.text.count("no connection can be accepted for now: Too many open files") == 3
