"""What a rude or broken peer can do to the real server: not much."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
from pathlib import Path

import aiohttp
import anyio
import psutil
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.events import ConnectionTerminated, ResponseReceived, StreamReset, TrailersReceived

from modelbox import _wire as wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.errors import LimitError
from tests.certificates import Authority
from tests.faults.registry import fault
from tests.h2_peer import H2Peer
from tests.server import ServerProcess
from tests.stubs import Stubs, connect

WATCH = "/modelbox.v1.WatchService/Watch"
UPLOAD = "/modelbox.v1.ArtifactService/Upload"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INFO = "/modelbox.v1.ServerService/GetServerInfo"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def _answers(server: ServerProcess) -> None:
    """One call of a well-behaved second client, connection included."""
    with anyio.fail_after(60):
        async with connect(server.grpc_address) as stubs:
            await stubs.server.get_server_info(pb.GetServerInfoRequest())


def _cpu_s(server: ServerProcess) -> float:
    """What the server has worked, however much else the machine has to do."""
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


async def _fill(stubs: Stubs, count: int, description: str) -> None:
    """Makes as many changes."""

    async def make(start: int) -> None:
        for number in range(start, count, 20):
            request = pb.CreateModelRequest(namespace="slow", name=f"m{number}", description=description)
            await stubs.registry.create_model(request)

    async with anyio.create_task_group() as tasks:
        for start in range(20):
            tasks.start_soon(make, start)


async def _scraped(server: ServerProcess, text: str, *, trusting: Path | None = None) -> None:
    """Waits until the metrics hold ``text``."""
    context = ssl.create_default_context(cafile=str(trusting)) if trusting is not None else True
    async with aiohttp.ClientSession() as http:
        with anyio.fail_after(60):
            while True:
                async with http.get(server.metrics_url, ssl=context) as response:
                    if text in await response.text():
                        return
                await anyio.sleep(0.05)


def _quiet(server: ServerProcess) -> None:
    assert server.returncode is None
    assert "Traceback" not in server.output, server.output


@fault(63)
async def test_a_message_of_a_gibibyte_is_refused_at_its_header(server: ServerProcess) -> None:
    await _answers(server)
    before = server.rss_bytes()
    async with H2Peer(server.grpc_address) as peer:
        stream = peer.call(UPLOAD)
        peer.message(stream, b"x" * 10_000, end_stream=False, length=1 << 30)
        await peer.flush()
        headers: dict[str, str] = {}
        with anyio.fail_after(60):
            while "grpc-status" not in headers:
                events = await peer.events()
                assert events is not None
                for event in events:
                    if isinstance(event, ResponseReceived | TrailersReceived):
                        headers |= {str(key): str(value) for key, value in event.headers}
        assert headers["grpc-status"] == "8"
        # It keeps on sending all the same, as much as it may.
        with anyio.fail_after(60), contextlib.suppress(ConnectionError):
            for _ in range(400):
                other = peer.call(UPLOAD)
                peer.message(other, b"x" * 16_000, end_stream=False, length=1 << 30)
                await peer.flush()
                if await peer.events() is None:
                    break
    error = wire.unpack_error(8, "", _binary(headers[wire.ERROR_KEY]))
    assert type(error) is LimitError
    assert "1073741824 bytes" in str(error)
    assert server.rss_bytes() - before < 24e6
    await _answers(server)
    _quiet(server)


def _binary(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


@fault(65)
async def test_a_flood_of_resets_delays_nobody_else(server: ServerProcess) -> None:
    await _answers(server)
    before = server.rss_bytes()
    async with H2Peer(server.grpc_address) as peer, connect(server.grpc_address) as stubs:
        await stubs.server.get_server_info(pb.GetServerInfoRequest())
        worst = 0.0
        done = anyio.Event()

        async def victim() -> None:
            nonlocal worst
            while not done.is_set():
                begun = _cpu_s(server)
                await stubs.server.get_server_info(pb.GetServerInfoRequest())
                # Whatever it does before it answers delays the caller.
                worst = max(worst, _cpu_s(server) - begun)

        flood = bytearray()
        for _ in range(20_000):
            peer.h2.reset_stream(peer.call(INFO))
            flood += peer.h2.data_to_send()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(victim)
            with anyio.fail_after(60):
                try:
                    peer.writer.write(flood)
                    await peer.writer.drain()
                    while await peer.reader.read(1 << 16):
                        pass
                except ConnectionError:
                    pass
                else:
                    assert peer.reader.at_eof(), "the flood was taken"
            done.set()
    with anyio.fail_after(60):
        while "a flood of stream resets" not in server.output:
            await anyio.sleep(0.02)
    assert worst < 0.5
    assert server.rss_bytes() - before < 24e6
    _quiet(server)


async def test_a_flood_of_pings_ends_the_connection(server: ServerProcess) -> None:
    async with H2Peer(server.grpc_address) as peer:
        for i in range(10_000):
            peer.h2.ping(i.to_bytes(8, "big"))
        with anyio.fail_after(60):
            try:
                await peer.flush()
                while await peer.reader.read(1 << 16):
                    pass
            except ConnectionError:
                pass
    with anyio.fail_after(60):
        while "a flood of pings" not in server.output:  # it is said on another way than the connection's end
            await anyio.sleep(0.02)
    await _answers(server)


@fault(28)
async def test_a_reader_of_the_feed_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", send_timeout_s=0.5) as server:
        async with connect(server.grpc_address) as stubs, H2Peer(server.grpc_address) as peer:
            token = (await stubs.watch.list(pb.ListRequest())).token
            text = "x" * 1000
            await _fill(stubs, 120, text)
            before = server.rss_bytes()
            # More than its window of 64 KiB, which is never widened.
            stream = peer.call(WATCH)
            peer.message(stream, bytes(pb.WatchRequest(token=token)))
            await peer.flush()
            resets: list[StreamReset] = []
            with anyio.fail_after(60):
                while not resets:
                    events = await peer.events()
                    assert events is not None, "its other calls may go on"
                    resets += [event for event in events if isinstance(event, StreamReset)]
            assert resets[0].stream_id == stream
            assert server.rss_bytes() - before < 24e6
            await stubs.server.get_server_info(pb.GetServerInfoRequest())
        _quiet(server)


@fault(28)
async def test_a_reader_of_events_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", send_timeout_s=0.5) as server:
        async with connect(server.grpc_address) as stubs:
            token = (await stubs.watch.list(pb.ListRequest())).token
            text = "x" * 16_000
            await _fill(stubs, 700, text)
            host, _, port = server.http_address.rpartition(":")
            # However much the machine would keep for a reader, this one has it keep little.
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            sock.connect((host, int(port)))
            reader, writer = await asyncio.open_connection(sock=sock, limit=1)
            writer.write(f"GET /api/v1/changes?token={token} HTTP/1.1\r\nHost: {server.http_address}\r\n\r\n".encode())
            await _scraped(server, 'modelbox_slow_readers_total{protocol="http"} 1.0')
            received = 0
            with anyio.fail_after(60):
                try:
                    while data := await reader.read(1 << 20):
                        received += len(data)
                except ConnectionError:
                    pass
            assert received < 700 * 16_000
            writer.transport.abort()
        _quiet(server)


@fault(66)
async def test_silent_connections_are_ended(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", hello_timeout_s=2) as server:
        streams = []
        for address, says in (
            (server.grpc_address, b""),
            (server.grpc_address, b"PRI * HTTP/2.0\r\n"),
            (server.http_address, b""),
            (server.http_address, b"GET /healthz HTTP/1.1\r\nHost: 127"),
        ):
            host, _, port = address.rpartition(":")
            for _ in range(50):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(says)
                streams.append((reader, writer))
        with anyio.fail_after(60):
            for reader, writer in streams:
                try:
                    while await reader.read(1 << 16):
                        pass
                except ConnectionError:
                    pass
                writer.transport.abort()
        await _answers(server)
        _quiet(server)


async def test_a_client_that_said_hello_may_be_silent(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", hello_timeout_s=1.5) as server:
        async with connect(server.grpc_address) as stubs:
            await stubs.server.get_server_info(pb.GetServerInfoRequest())
            transport = stubs.channel._protocol.connection._transport  # type: ignore[union-attr]  # it is connected
            await anyio.sleep(2)
            await stubs.server.get_server_info(pb.GetServerInfoRequest())
            assert stubs.channel._protocol.connection._transport is transport  # type: ignore[union-attr]


@fault(66)
async def test_connections_beyond_the_limit_are_closed_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", max_connections=3) as server:
        async with H2Peer(server.grpc_address) as a, H2Peer(server.grpc_address) as b, H2Peer(server.grpc_address) as c:
            for peer in (a, b, c):
                assert await peer.events() is not None
            # It may be closed before it says hello.
            with contextlib.suppress(ConnectionError):
                async with H2Peer(server.grpc_address) as fourth:
                    with anyio.fail_after(60):
                        assert await fourth.events() is None
        with anyio.fail_after(60):
            while True:
                try:
                    await _answers(server)
                except (OSError, StreamTerminatedError):
                    continue
                break


@pytest.mark.parametrize("port", ["grpc", "http", "metrics"])
async def test_an_address_has_its_share_of_connections_and_no_more(tmp_path: Path, port: str) -> None:
    with ServerProcess(tmp_path / "data", max_connections=40, max_connections_per_address=5) as server:
        address = {"grpc": server.grpc_address, "http": server.http_address, "metrics": server.metrics_address}[port]
        host, _, number = address.rpartition(":")
        greedy = []
        for _ in range(12):
            greedy.append(await asyncio.open_connection(host, int(number), local_addr=("127.0.0.7", 0)))
        refused = 0

        async def listen(reader: asyncio.StreamReader) -> None:
            nonlocal refused
            # Those of gRPC say hello, those of HTTP say nothing, unless they are closed.
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass
            refused += 1

        async with anyio.create_task_group() as tasks:
            for reader, _ in greedy:
                tasks.start_soon(listen, reader)
            with anyio.fail_after(60):
                while refused < 7:
                    await anyio.sleep(0.01)
            # Whoever is closed is closed at once.
            await _scraped(server, "modelbox_connections_refused 7.0")
            assert refused == 7
            tasks.cancel_scope.cancel()
        # Another address has a share of its own.
        reader, writer = await asyncio.open_connection(host, int(number), local_addr=("127.0.0.8", 0))
        writer.write(
            PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
            if port == "grpc"
            else b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        )
        with anyio.fail_after(60):
            assert await reader.read(9)
        writer.close()
        for _, opened in greedy:
            opened.transport.abort()
        await _scraped(server, "modelbox_connections_refused 7.0")
        _quiet(server)


_HELLO_OF_TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The beginning of a client's first message, which announces 512 bytes."""


@fault(66)
@pytest.mark.parametrize("port", ["grpc", "http", "metrics"])
async def test_handshakes_that_never_end_count_in_the_share_of_their_address(tmp_path: Path, port: str) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server", "127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    if port == "grpc":
        trusting.set_alpn_protocols(["h2"])
    with ServerProcess(
        tmp_path / "data",
        tls_cert=pair.certificate,
        tls_key=pair.key,
        max_connections=40,
        max_connections_per_address=5,
        hello_timeout_s=60,
    ) as server:
        address = {"grpc": server.grpc_address, "http": server.http_address, "metrics": server.metrics_address}[port]
        host, _, number = address.rpartition(":")
        async with contextlib.AsyncExitStack() as stack:
            flood = []
            for one in range(60):
                reader, writer = await asyncio.open_connection(host, int(number), local_addr=("127.0.0.7", 0))
                stack.callback(writer.transport.abort)
                flood.append((reader, writer))
                if one % 2:
                    with contextlib.suppress(ConnectionError):
                        writer.write(_HELLO_OF_TLS)

            async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await asyncio.open_connection(
                    host, int(number), local_addr=(address, 0), ssl=trusting, server_hostname="127.0.0.1"
                )
                stack.callback(writer.close)
                stack.callback(writer.transport.abort)
                return reader, writer

            # Another address is served at once.
            for _ in range(3):
                with anyio.fail_after(60):
                    reader, writer = await connected("127.0.0.2")
                    writer.write(
                        PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
                        if port == "grpc"
                        else b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
                    )
                    assert await reader.read(9)
            await _scraped(server, "modelbox_connections_refused 55.0", trusting=authority.certificate)
            # Those of the flood that were taken are its share, and whichever ends makes room for another.
            with anyio.fail_after(60):
                while len(held := [w for r, w in flood if not (r.at_eof() or r.exception())]) > 5:
                    await anyio.sleep(0.02)
            assert len(held) == 5
            held[0].transport.abort()
            with anyio.fail_after(60):
                while True:
                    try:
                        await connected("127.0.0.7")
                    except OSError:
                        continue
                    break
        _quiet(server)


_SLOW_BODY = b"POST /api/v1/experiments HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"


async def test_calls_beyond_what_a_server_takes_are_told_to_come_again(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", max_calls=2, call_timeout_s=60) as server:
        host, _, port = server.http_address.rpartition(":")
        slow = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        for _, writer in slow:
            writer.write(_SLOW_BODY)
        await _scraped(server, 'modelbox_api_running{protocol="http"} 2.0')
        async with aiohttp.ClientSession() as http, connect(server.grpc_address) as stubs:
            async with http.get(f"{server.url}/api/v1/members") as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "1")
                assert (await response.json())["code"] == "busy.queue_full"
            with pytest.raises(GRPCError) as raised:
                await stubs.server.get_server_info(pb.GetServerInfoRequest())
            assert raised.value.status is Status.RESOURCE_EXHAUSTED
            # Who asks whether it is well is told.
            async with http.get(f"{server.url}/healthz") as response:
                assert response.status == 200
            for _, writer in slow:
                writer.transport.abort()
            await _scraped(server, 'modelbox_api_running{protocol="http"} 0.0')
            async with http.get(f"{server.url}/api/v1/members") as response:
                assert response.status == 200
        await _answers(server)
        await _scraped(server, "modelbox_calls_refused 2.0")
        _quiet(server)


async def test_a_body_that_does_not_come_has_its_time(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", call_timeout_s=1) as server:
        host, _, port = server.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(_SLOW_BODY)
        with anyio.fail_after(60):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b"its body included" in answer
        writer.close()
        _quiet(server)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /api/v1/experiments HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10737418240\r\n\r\n", b"413"),
        (b"POST /api/v1/experiments HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"400"),
    ],
    ids=["a body of 10 GiB", "a negative length", "a header of 70 kB", "a path of 70 kB"],
)
async def test_what_http_announces_too_much_of(shared_server: ServerProcess, head: bytes, status: bytes) -> None:
    host, _, port = shared_server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    line = b""

    async def listen() -> None:
        nonlocal line
        line = await reader.readline()

    # Heard while there is more to say: whoever asks only afterwards may find that the connection has gone.
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            writer.write(head + b"{" * (2 << 20))
            with contextlib.suppress(ConnectionError):
                await writer.drain()
    assert line.split()[1] == status, line
    writer.transport.abort()
    await _answers(shared_server)
    _quiet(shared_server)


async def test_calls_beyond_the_limit_of_a_connection_are_refused(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", max_streams=5) as server:
        async with H2Peer(server.grpc_address) as peer:
            while peer.h2.remote_settings.max_concurrent_streams != 5:
                assert await peer.events() is not None
            peer.h2.remote_settings.max_concurrent_streams = 1000  # as if it had never been told
            peer.h2.remote_settings.acknowledge()
            for _ in range(6):
                peer.call(UPLOAD)
            await peer.flush()
            ended = False
            with anyio.fail_after(60):
                while not ended:
                    events = await peer.events()
                    ended = events is None or any(isinstance(e, StreamReset | ConnectionTerminated) for e in events)
        await _answers(server)
        _quiet(server)


@fault(64)
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + b"\x00" * 512,
        PREFACE + b"\xff" * 40_000,
        PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x04\x01\x05\x00\x00\x00\x01zzzz",
    ],
    ids=["http1", "tls", "overlong frame", "bad headers"],
)
async def test_what_is_not_http2_ends_the_connection(shared_server: ServerProcess, data: bytes) -> None:
    host, _, port = shared_server.grpc_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    with anyio.fail_after(60):
        try:
            while await reader.read(1 << 16):
                pass
        except ConnectionError:
            pass
    writer.transport.abort()
    await _answers(shared_server)
    _quiet(shared_server)


@fault(64)
async def test_compressed_messages_are_refused(shared_server: ServerProcess) -> None:
    async with H2Peer(shared_server.grpc_address) as peer:
        stream = peer.call(INFO)
        peer.h2.send_data(stream, b"\x01\x00\x00\x00\x02zz", end_stream=True)
        await peer.flush()
        headers: dict[str, str] = {}
        with anyio.fail_after(60):
            while "grpc-status" not in headers:
                for event in await peer.events() or []:
                    if isinstance(event, ResponseReceived | TrailersReceived):
                        headers |= {str(key): str(value) for key, value in event.headers}
        assert headers["grpc-status"] == "12"
    _quiet(shared_server)


async def test_a_call_without_a_message_is_invalid(shared_server: ServerProcess) -> None:
    async with H2Peer(shared_server.grpc_address) as peer:
        peer.call(INFO, end_stream=True)
        await peer.flush()
        headers: dict[str, str] = {}
        with anyio.fail_after(60):
            while "grpc-status" not in headers:
                for event in await peer.events() or []:
                    if isinstance(event, ResponseReceived | TrailersReceived):
                        headers |= {str(key): str(value) for key, value in event.headers}
        assert headers["grpc-status"] == "3"
    _quiet(shared_server)
