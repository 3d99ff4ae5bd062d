"""``ModelStreamInfer`` when peers or the sidecar end in the middle, and what one connection's streams may hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import h2.events as events
import numpy as np
import pytest
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

import modelbox
from modelbox._serving.grpc import GrpcServer
from modelbox._serving.guard import Limits
from modelbox.refs import ModelRef
from modelbox.sidecar.oip import calls
from modelbox.sidecar.oip import grpc as adapter
from modelbox.sidecar.oip.calls import Allowance
from modelbox.sidecar.oip.grpc import make_server
from modelbox.sidecar.oip.messages import ModelInferRequest, ModelStreamInferResponse
from modelbox.sidecar.served import ServedModel
from modelbox.sidecar.service import InferenceService
from tests.h2_peer import H2Peer
from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
UNARY = "/inference.GRPCInferenceService/ModelInfer"
GRACE_S = 60.0


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
async def service(
    shared_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[InferenceService]:
    directory = tmp_path_factory.mktemp("streams")
    async with modelbox.Client(shared_server.url, cache_dir=directory / "cache") as client:
        models = {
            "streams/tiny": add_constant(1),
            "streams/slow": perceptron(512, 24),
            "streams/wide": add_constant(1, columns=500_000),
        }
        for path, model in models.items():
            (directory / "model.onnx").write_bytes(model)
            await client.publish(path, directory / "model.onnx", aliases=["prod"])
        async with InferenceService(client, [ModelRef.parse(f"{path}@prod") for path in models]) as service:
            with anyio.fail_after(60):
                while not service.ready():
                    await anyio.sleep(0.01)
            yield service


class Serving:
    def __init__(self, server: GrpcServer, address: str) -> None:
        self.server = server
        self.address = address
        self.cut_off: int | None = None

    async def stop(self) -> None:
        self.cut_off = await self.server.aclose(grace_s=GRACE_S)


@asynccontextmanager
async def served(service: InferenceService, **limits: Any) -> AsyncIterator[Serving]:
    sock = socket.create_server(("127.0.0.1", 0))
    server = make_server(service, Limits(max_message_bytes=8 << 20, **limits), None)
    await server.listen(sock)
    serving = Serving(server, f"127.0.0.1:{sock.getsockname()[1]}")
    try:
        yield serving
    finally:
        if serving.cut_off is None:
            await server.aclose(grace_s=0)


def ask(model: str, x: Any, call_id: str = "") -> bytes:
    message = ModelInferRequest(model_name=f"streams/{model}", id=call_id)
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    message.raw_input_contents.append(x.tobytes())
    return bytes(message.SerializeToString())


X = np.ones((1, 4), np.float32)
SLOW = np.ones((128, 512), np.float32)


class Heard:
    """What a peer was told on its streams."""

    def __init__(self) -> None:
        self.data: dict[int, bytes] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.over = False

    def add(self, event: events.Event) -> None:
        if isinstance(event, events.DataReceived):
            self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
        elif isinstance(event, events.TrailersReceived | events.ResponseReceived):
            self.trailers.setdefault(event.stream_id, {}).update({str(k): str(v) for k, v in event.headers})
        elif isinstance(event, events.ConnectionTerminated):
            self.over = True

    def ids(self, stream_id: int) -> list[str]:
        found, data = [], self.data.get(stream_id, b"")
        while len(data) >= 5 and len(data) >= 5 + (size := int.from_bytes(data[1:5], "big")):
            answer = ModelStreamInferResponse.FromString(data[5 : 5 + size])
            assert not answer.error_message
            found.append(answer.infer_response.id)
            data = data[5 + size :]
        return found

    def status(self, stream_id: int) -> str | None:
        return self.trailers.get(stream_id, {}).get("grpc-status")


async def _events(peer: H2Peer) -> list[events.Event] | None:
    try:
        return await peer.events()
    except ProtocolError:
        # Said goodbye itself, and was told something nevertheless.
        return None


async def listen(peer: H2Peer, heard: Heard, *, give_back: bool = True) -> None:
    while (found := await _events(peer)) is not None:
        for event in found:
            heard.add(event)
            if give_back and isinstance(event, events.DataReceived) and event.flow_controlled_length:
                with contextlib.suppress(Exception):
                    peer.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        await peer.flush()
    heard.over = True


async def send(peer: H2Peer, stream: int, message: bytes, *, end_stream: bool = False) -> None:
    """A whole message, as fast as the windows allow; somebody has to `listen`."""
    data = b"\0" + len(message).to_bytes(4, "big") + message
    while data:
        room = min(peer.h2.local_flow_control_window(stream), peer.h2.max_outbound_frame_size)
        if room > 0:
            peer.h2.send_data(stream, data[:room], end_stream=end_stream and len(data) <= room)
            data = data[room:]
        await peer.flush()
        await anyio.lowlevel.checkpoint()


async def until(check: Any) -> None:
    with anyio.fail_after(GRACE_S):
        while not check():
            await anyio.sleep(0.005)


async def test_a_stop_answers_what_came_and_refuses_the_rest(service: InferenceService) -> None:
    async with served(service) as serving, H2Peer(serving.address) as peer:
        heard = Heard()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, peer, heard)
            busy, idle, half = peer.call(STREAM), peer.call(STREAM), peer.call(STREAM)
            for number in range(5):
                await send(peer, busy, ask("slow", SLOW, str(number)))
            peer.message(idle, ask("tiny", X, "first"), end_stream=False)
            whole = ask("tiny", X, "half")
            peer.message(half, whole[:20], length=len(whole), end_stream=False)
            await peer.flush()
            await until(lambda: heard.ids(idle) == ["first"] and heard.ids(busy))
            tasks.start_soon(serving.stop)
            await until(lambda: heard.status(idle) == "14")
            # The other half comes after the stop began.
            assert heard.status(half) is None
            peer.h2.send_data(half, whole[20:])
            late, late_unary = peer.call(STREAM), peer.call(UNARY)
            await peer.flush()
            await until(lambda: serving.cut_off is not None and heard.over)
        assert heard.ids(busy) == ["0", "1", "2", "3", "4"]
        assert heard.ids(half) == ["half"]
        assert [heard.status(stream) for stream in (busy, half, late, late_unary)] == ["14"] * 4
        assert "stopping" in heard.trailers[busy]["grpc-message"]
        assert "stopping" in heard.trailers[late_unary]["grpc-message"]
        assert serving.cut_off == 0


async def test_a_stream_that_its_peer_has_ended_ends_well_in_a_stop(service: InferenceService) -> None:
    async with served(service) as serving, H2Peer(serving.address) as peer:
        heard = Heard()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, peer, heard)
            stream = peer.call(STREAM)
            for number in range(3):
                await send(peer, stream, ask("slow", SLOW, str(number)), end_stream=number == 2)
            await until(lambda: heard.ids(stream))
            await serving.stop()
            await until(lambda: heard.over)
        assert heard.ids(stream) == ["0", "1", "2"]
        assert heard.status(stream) == "0"


async def test_a_hello_is_heard_though_the_loop_stood_still(service: InferenceService) -> None:
    async with served(service, hello_timeout_s=0.8) as serving:
        host, _, port = serving.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await until(lambda: serving.server.connections == 1)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        # The hello is there, and among many connections this one's turn has not come when the timers' has.
        (protocol,) = serving.server._table.all()
        assert protocol._transport is not None
        protocol._transport.pause_reading()
        time.sleep(1)  # noqa: ASYNC251
        await anyio.sleep(0.05)
        protocol._transport.resume_reading()
        await anyio.sleep(1)
        assert serving.server.connections == 1
        assert await reader.read(9)
        writer.transport.abort()


@pytest.mark.parametrize("path", [STREAM, UNARY])
async def test_a_stop_waits_for_who_is_slow_to_read(service: InferenceService, path: str) -> None:
    x = np.arange(1_500_000, dtype=np.float32).reshape(3, 500_000)
    async with served(service) as serving, H2Peer(serving.address) as peer:
        heard = Heard()
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 5 << 20})
        peer.h2.increment_flow_control_window(5 << 20)
        stream = peer.call(path)
        async with anyio.create_task_group() as sending:
            # Nothing of the answer is acknowledged: it fills its window, the sockets, and the sidecar's own buffer.
            sending.start_soon(partial(listen, peer, heard, give_back=False))
            await send(peer, stream, ask("wide", x), end_stream=True)
            await until(lambda: heard.data)
            sending.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serving.stop)
            # Longer than a goodbye, and than the grace of a connection that closes.
            await anyio.sleep(2)
            assert serving.cut_off is None
            tasks.start_soon(listen, peer, heard)
            await until(lambda: serving.cut_off is not None and heard.over)
        assert serving.cut_off == 0
        assert heard.status(stream) == "0"
        assert len(heard.data[stream]) > x.nbytes


async def test_lost_connections_are_not_logged_as_failures(
    service: InferenceService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with served(service) as serving:
        for how in range(12):
            async with H2Peer(serving.address) as peer, anyio.create_task_group() as tasks:
                tasks.start_soon(listen, peer, Heard())
                streams = [peer.call(STREAM) for _ in range(4)]
                for number, stream in enumerate(streams * 4):
                    await send(peer, stream, ask(("tiny", "slow")[number % 2], (X, SLOW[:8])[number % 2]))
                if how % 3 == 1:
                    for stream in streams:
                        peer.h2.reset_stream(stream, 8)
                    await peer.flush()
                elif how % 3 == 2:
                    peer.message(streams[0], b"abc", length=100, end_stream=False)
                    peer.h2.close_connection()
                    await peer.flush()
                await anyio.sleep(0.003 * how)
                tasks.cancel_scope.cancel()
        await until(lambda: not serving.server.connections and not serving.server.running)
        await until(lambda: not service.find("streams/slow").gate.running)
    bad = [record for record in caplog.records if record.exc_info or record.levelno > logging.INFO]
    assert not bad, [record.getMessage() for record in bad]


async def test_the_streams_of_a_connection_hold_no_more_than_they_may(
    service: InferenceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_CONNECTION_CALLS", 6)
    most = 0
    take = Allowance.take

    async def counted(self: Allowance, size: int) -> None:
        nonlocal most
        await take(self, size)
        most = max(most, self.messages)

    monkeypatch.setattr(calls.Allowance, "take", counted)
    # Nobody but the test says how many calls may be inside, and at first none may.
    monkeypatch.setattr(ServedModel, "tune", lambda self: None)
    gate = service.find("streams/slow").gate
    width, gate.width = gate.width, 0
    async with served(service) as serving, H2Peer(serving.address) as peer, H2Peer(serving.address) as neighbour:
        heard, other = Heard(), Heard()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, peer, heard)
            tasks.start_soon(listen, neighbour, other)
            streams = [peer.call(STREAM) for _ in range(10)]
            for number in range(3):
                for stream in streams:
                    await send(peer, stream, ask("slow", SLOW[:4], str(number)), end_stream=number == 2)
            single = neighbour.call(STREAM)
            neighbour.message(single, ask("tiny", X, "n"))
            await neighbour.flush()
            await until(lambda: other.status(single) == "0")
            await until(lambda: gate.waiting == 6)
            gate.width = width
            gate.admit()
            await until(lambda: all(heard.status(stream) == "0" for stream in streams))
            tasks.cancel_scope.cancel()
        assert most == 6
        assert [heard.ids(stream) for stream in streams] == [["0", "1", "2"]] * 10
        assert other.ids(single) == ["n"]


# -- the allowance


async def test_an_allowance_admits_in_order_and_gives_back_what_is_cancelled() -> None:
    allowance = Allowance(max_messages=3, max_bytes=100)
    await allowance.take(1000)  # one alone may be larger
    order: list[int] = []

    async def take(size: int) -> None:
        await allowance.take(size)
        order.append(size)

    async with anyio.create_task_group() as tasks:
        cancelled = anyio.CancelScope()

        async def give_up() -> None:
            with cancelled:
                await take(90)

        tasks.start_soon(give_up)
        await anyio.wait_all_tasks_blocked()
        for size in (60, 50, 1):
            tasks.start_soon(take, size)
        await anyio.wait_all_tasks_blocked()
        assert order == []
        cancelled.cancel()
        await anyio.wait_all_tasks_blocked()
        allowance.give(1000)
        await anyio.wait_all_tasks_blocked()
        assert order == [60]  # 50 is next, and 1 does not overtake it
        allowance.change(60, 40)
        await anyio.wait_all_tasks_blocked()
        assert order == [60, 50, 1]
        assert (allowance.messages, allowance.size) == (3, 91)
        for size in (40, 50, 1):
            allowance.give(size)
    assert (allowance.messages, allowance.size) == (0, 0)


async def test_a_turn_that_comes_with_the_cancellation_is_given_back() -> None:
    allowance = Allowance(max_messages=1, max_bytes=10)
    await allowance.take(1)
    task = asyncio.create_task(allowance.take(5))
    await anyio.wait_all_tasks_blocked()
    allowance.give(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (allowance.messages, allowance.size) == (0, 0)
