"""What a caller gets while the server is impaired: a typed error, in time, and work that goes on afterwards."""

from __future__ import annotations

import signal
import socket

import anyio
import pytest
from aiohttp import web
from grpclib.protocol import H2Protocol

from modelbox._transport import grpc
from modelbox.client import Client
from modelbox.errors import DeadlineExceeded, ProtocolError, Unavailable
from tests.faults.registry import fault
from tests.server import ServerProcess


@pytest.fixture
def server(shared_server: ServerProcess) -> ServerProcess:
    """One for all of these tests, which runs again after they killed it."""
    if not shared_server.running:
        shared_server.restart()
    return shared_server


@fault(3)
async def test_nobody_there_is_said_quickly() -> None:
    async with Client("http://127.0.0.1:1") as client:
        # And not that the time of a request is over.
        with anyio.fail_after(60), pytest.raises(Unavailable, match="cannot be reached: Connection refused"):
            await client.get_model("a/b")


@fault(4)
async def test_a_server_that_answers_nothing_ends_at_the_deadline(server: ServerProcess) -> None:
    async with Client(server.url, request_timeout_s=1) as client, Client(server.url) as patient:
        await patient.create_model("a/b")
        server.send_signal(signal.SIGSTOP)
        try:
            # While the server is still stopped.
            with anyio.fail_after(60), pytest.raises(DeadlineExceeded, match="within 1 s"):
                await client.get_model("a/b")
            with anyio.move_on_after(0.2) as scope:
                await patient.get_model("a/b")
            assert scope.cancelled_caught
        finally:
            server.send_signal(signal.SIGCONT)
        assert (await patient.get_model("a/b")).path == "a/b"


async def test_calls_go_on_after_the_server_was_killed(server: ServerProcess) -> None:
    async with Client(server.url) as client:
        await client.create_model("a/b")
        for _ in range(2):
            await anyio.to_thread.run_sync(server.kill)
            with pytest.raises(Unavailable):
                await client.get_model("a/b")
            await anyio.to_thread.run_sync(server.restart)
            assert (await client.get_model("a/b")).path == "a/b"


async def test_a_connection_that_is_lost_as_soon_as_it_is_made_is_made_again(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, lost = grpc._Channel._create_connection, 0

    async def lose(channel: grpc._Channel) -> H2Protocol:
        nonlocal lost
        protocol = await connect(channel)
        if not lost:
            lost += 1
            protocol.connection_lost(None)
        return protocol

    monkeypatch.setattr(grpc._Channel, "_create_connection", lose)
    async with Client(server.url) as client:
        assert (await client.create_model("a/b")).item.path == "a/b"
    assert lost == 1


async def test_something_else_at_the_address_is_said() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="<html>a router's start page</html>")

    listener = socket.create_server(("127.0.0.1", 0))
    server = _Elsewhere(answer, listener)
    async with Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
        await client.engine.call(server.start)
        with pytest.raises(ProtocolError, match="no ModelBox server"):
            await client.get_model("a/b")
        await client.engine.call(server.stop)


class _Elsewhere:
    """A web server that is no ModelBox; it runs on the engine's loop."""

    def __init__(self, answer: web.RequestHandler | object, listener: socket.socket) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)  # type: ignore[arg-type]  # aiohttp's own handler type is not exported
        self._runner = web.AppRunner(app)
        self._listener = listener

    async def start(self) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()

    async def stop(self) -> None:
        await self._runner.cleanup()
