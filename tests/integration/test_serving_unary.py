"""Calls that bypass h2 and grpclib: the same connection, the same rules, and peers that break them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import grpc.aio
import h2.settings
import hpack
import numpy as np
import pytest
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.events import (
    DataReceived,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

from modelbox._proto import inference as pb
from modelbox._serving.codec import WireCodec
from modelbox._serving.guard import Limits
from modelbox._serving.headers import literal
from modelbox._serving.unary import DirectServer, Failure
from modelbox.errors import ModelBoxError
from tests.h2_peer import H2Peer

ECHO, SLOW, LARGE, FAILING, PLAIN, SOON = "/t/Echo", "/t/Slow", "/t/Large", "/t/Failing", "/t/Plain", "/t/Soon"
LARGE_BYTES = 200_000
_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", ECHO),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Methods:
    """What the server answers, and what became of slow calls."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self.cancelled = 0
        self.large_calls = 0
        self.timeouts: list[float | None] = []
        self.text = "grün kaputt " * 20
        self.soon_done: list[Callable[[bytes | Exception], None]] = []

    def __mapping__(self) -> dict[str, Handler]:
        return {
            PLAIN: Handler(self.plain, Cardinality.UNARY_UNARY, pb.ModelMetadataRequest, pb.ModelMetadataResponse),
            ECHO: Handler(self.unusual, Cardinality.UNARY_UNARY, pb.ModelMetadataRequest, pb.ModelMetadataResponse),
        }

    async def plain(self, stream: Any) -> None:
        message = await stream.recv_message()
        marks = [stream.metadata.get("mark", "")]
        await stream.send_message(pb.ModelMetadataResponse(name=message.name, versions=marks))

    async def unusual(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(pb.ModelMetadataResponse(name="by grpclib"))

    async def echo(self, message: bytes | memoryview, timeout_s: float | None) -> bytes:
        self.timeouts.append(timeout_s)
        return bytes(message)

    async def slow(self, message: bytes | memoryview, timeout_s: float | None) -> bytes:
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended.set()
        return bytes(message)

    async def large(self, message: bytes | memoryview, timeout_s: float | None) -> bytes:
        self.large_calls += 1
        return b"z" * LARGE_BYTES

    def soon(
        self, message: bytes | memoryview, timeout_s: float | None, done: Callable[[bytes | Exception], None]
    ) -> bool:
        if bytes(message) == b"wait":
            return False
        self.soon_done.append(done)
        outcome = ModelBoxError(self.text) if bytes(message) == b"fail" else b"soon " + bytes(message)
        if bytes(message) != b"keep":
            asyncio.get_running_loop().call_soon(done, outcome)
        return True

    async def failing(self, message: bytes | memoryview, timeout_s: float | None) -> bytes:
        raise ModelBoxError(self.text)


def fail(error: Exception) -> Failure:
    return Failure(status=9, text=str(error), metadata={"plain": "a b", "bytes-bin": b"\0\xff" * 100})


class Serving:
    def __init__(self, server: DirectServer, address: str, methods: Methods) -> None:
        self.server = server
        self.address = address
        self.methods = methods

    def channel(self) -> Channel:
        host, _, port = self.address.rpartition(":")
        return Channel(host, int(port))


@asynccontextmanager
async def serving(*, stall_s: float = 60.0, **limits: Any) -> AsyncIterator[Serving]:
    methods = Methods()
    server = DirectServer(
        [methods],
        limits=Limits(**limits),
        codec=WireCodec(),
        methods={
            ECHO: methods.echo,
            SLOW: methods.slow,
            LARGE: methods.large,
            FAILING: methods.failing,
            SOON: methods.echo,
        },
        soon={SOON: methods.soon},
        fail=fail,
        stall_s=stall_s,
    )
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    await server.listen(sock)
    try:
        yield Serving(server, f"127.0.0.1:{sock.getsockname()[1]}", methods)
    finally:
        methods.go_on.set()
        with anyio.move_on_after(1):
            while server.connections:
                await anyio.sleep(0.005)
        with anyio.fail_after(60):
            await server.aclose(grace_s=1)


class Answer:
    """What came on one stream."""

    def __init__(self) -> None:
        self.body = b""
        self.headers: dict[str, str] = {}
        self.reset: int | None = None
        self.ended = False

    @property
    def status(self) -> str:
        return self.headers.get("grpc-status", "")


async def collect(peer: H2Peer, *streams: int, until: Any = None) -> list[Answer]:
    """Reads until all streams ended, or ``until(answers)``."""
    found = {stream: Answer() for stream in streams}
    with anyio.fail_after(60):
        while not all(answer.ended for answer in found.values()) and not (until and until(found)):
            events = await peer.events()
            assert events is not None, "the server closed the connection"
            for event in events:
                answer = found.get(getattr(event, "stream_id", 0) or 0)
                if answer is None:
                    continue
                if isinstance(event, DataReceived):
                    answer.body += event.data
                elif isinstance(event, ResponseReceived | TrailersReceived):
                    answer.headers |= {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, StreamEnded):
                    answer.ended = True
                elif isinstance(event, StreamReset):
                    answer.reset, answer.ended = int(event.error_code or 0), True
    return list(found.values())


def framed(body: bytes) -> bytes:
    return struct.pack(">?I", False, len(body)) + body


async def works(at: Serving) -> None:
    """A second, well-behaved client is served."""
    async with H2Peer(at.address) as peer:
        stream = peer.call(ECHO)
        peer.message(stream, b"fine")
        await peer.flush()
        [answer] = await collect(peer, stream)
        assert answer.body == framed(b"fine")
        assert answer.status == "0"


# -- what clients do


@pytest.mark.parametrize("size", [0, 1, 11, 16_384, 70_000, 9 << 20])
async def test_messages_of_any_size_go_there_and_back(size: int) -> None:
    body = np.random.default_rng(size).bytes(size)
    async with serving(max_message_bytes=16 << 20) as at:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(at.address, options=options) as channel:
            echo: Any = channel.unary_unary(ECHO)
            assert await echo(body) == body
            assert await asyncio.gather(*(echo(body[:70_000]) for _ in range(50))) == [body[:70_000]] * 50


async def test_calls_without_a_task_answer_fail_or_leave_it_to_the_method() -> None:
    async with serving() as at, grpc.aio.insecure_channel(at.address) as channel:
        soon: Any = channel.unary_unary(SOON)
        assert await asyncio.gather(*(soon(b"%d" % n) for n in range(50))) == [b"soon %d" % n for n in range(50)]
        assert await soon(b"wait") == b"wait"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(b"fail")
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            at.methods.text.strip(),
        )
        assert await soon(b"after") == b"soon after"


async def test_an_answer_for_a_caller_without_a_task_that_has_gone_is_dropped() -> None:
    async with serving() as at:
        async with H2Peer(at.address) as peer:
            gone, kept = peer.call(SOON), peer.call(SOON)
            peer.message(gone, b"keep")
            peer.message(kept, b"keep")
            await peer.flush()
            with anyio.fail_after(60):
                while len(at.methods.soon_done) < 2:
                    await anyio.sleep(0.005)
            peer.h2.reset_stream(gone)
            # What comes behind it is answered after it was heard.
            peer.h2.ping(b"12345678")
            await peer.flush()
            with anyio.fail_after(60):
                while not any(isinstance(event, PingAckReceived) for event in await peer.events() or ()):
                    pass
            for done in at.methods.soon_done:
                done(b"late")
            [answer] = await collect(peer, kept)
            assert (answer.body, answer.status) == (framed(b"late"), "0")
        await works(at)


async def test_calls_of_both_kinds_share_a_connection_and_its_header_table() -> None:
    rng = np.random.default_rng(5)
    async with serving() as at, grpc.aio.insecure_channel(at.address) as channel:
        echo: Any = channel.unary_unary(ECHO)
        plain: Any = channel.unary_unary(PLAIN)

        async def one(number: int) -> None:
            # Values that repeat are remembered by both sides, and new ones push old ones out.
            mark = f"{'m' * int(rng.integers(300))}{number % 7}"
            if number % 3:
                body = f"echo {number}".encode()
                timeout = float(rng.integers(100, 1000)) if number % 2 else None
                assert await echo(body, metadata=[("mark", mark)], timeout=timeout) == body
            else:
                request = bytes(pb.ModelMetadataRequest(name=str(number)))
                found = pb.ModelMetadataResponse.parse(await plain(request, metadata=[("mark", mark)]))
                assert (found.name, found.versions) == (str(number), [mark])

        for start in range(0, 600, 20):
            await asyncio.gather(*(one(number) for number in range(start, start + 20)))


async def test_deadlines_reach_the_method() -> None:
    async with serving() as at, grpc.aio.insecure_channel(at.address) as channel:
        echo: Any = channel.unary_unary(ECHO)
        await echo(b"")
        await echo(b"", timeout=100)
        none, some = at.methods.timeouts
        assert none is None
        assert some is not None
        assert 50 < some < 110  # clients round up


async def test_errors_come_with_text_and_trailers() -> None:
    async with serving() as at, grpc.aio.insecure_channel(at.address) as channel:
        failing: Any = channel.unary_unary(FAILING)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await failing(b"x")
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == ("grün kaputt " * 20).strip()
        trailers = dict(caught.value.trailing_metadata() or ())
        assert trailers["plain"] == "a b"
        assert trailers["bytes-bin"] == b"\0\xff" * 100


async def test_grpclib_calls_directly_too() -> None:
    async with serving() as at, at.channel() as channel:
        method = UnaryUnaryMethod(channel, ECHO, pb.ModelMetadataRequest, pb.ModelMetadataRequest)
        assert (await method(pb.ModelMetadataRequest(name="n"))).name == "n"
        failing = UnaryUnaryMethod(channel, FAILING, pb.ModelMetadataRequest, pb.ModelMetadataRequest)
        with pytest.raises(GRPCError) as caught:
            await failing(pb.ModelMetadataRequest())
        assert caught.value.status is Status.FAILED_PRECONDITION


async def test_unusual_headers_go_to_grpclib() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        stream = peer.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", ECHO),
            (":authority", "test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("mark", "one"),
            ("mark", "two"),
        ]
        peer.h2.send_headers(stream, headers)
        peer.message(stream, b"")
        await peer.flush()
        [answer] = await collect(peer, stream)
        assert b"by grpclib" in answer.body
        await works(at)


async def test_headers_in_pieces_and_padding_are_understood() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        stream = peer.call(ECHO)
        peer.h2.send_data(stream, framed(b"padded")[:7], pad_length=40)
        peer.h2.send_data(stream, framed(b"padded")[7:], pad_length=0)
        peer.h2.send_data(stream, b"", end_stream=True, pad_length=9)
        # A block that takes CONTINUATION frames.
        long = peer.h2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", PLAIN), (":authority", "a"), ("te", "trailers")]
        headers += [("content-type", "application/grpc"), ("mark", "m" * 10)]
        peer.h2.max_outbound_frame_size = 16
        peer.h2.send_headers(long, headers)
        peer.h2.max_outbound_frame_size = 16_384
        peer.message(long, bytes(pb.ModelMetadataRequest(name="n")))
        last = peer.call(ECHO)
        peer.message(last, b"after")
        await peer.flush()
        first, second, third = await collect(peer, stream, long, last)
        assert first.body == framed(b"padded")
        assert pb.ModelMetadataResponse.parse(second.body[5:]).versions == ["m" * 10]
        assert third.body == framed(b"after")


async def test_a_message_in_single_bytes_arrives() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        stream = peer.call(ECHO)
        for byte in framed(b"bit by bit"):
            peer.h2.send_data(stream, bytes([byte]))
        peer.h2.send_data(stream, b"", end_stream=True)
        for byte in peer.h2.data_to_send():
            peer.writer.write(bytes([byte]))
            await peer.writer.drain()
            await anyio.lowlevel.checkpoint()
        [answer] = await collect(peer, stream)
        assert answer.body == framed(b"bit by bit")


# -- windows


async def test_an_answer_waits_for_the_windows_of_stream_and_connection() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        stream = peer.call(LARGE)
        peer.message(stream, b"")
        await peer.flush()
        [answer] = await collect(peer, stream, until=lambda found: len(found[stream].body) == 65_535)
        body = answer.body
        peer.h2.increment_flow_control_window(100_000)
        await peer.flush()
        peer.h2.increment_flow_control_window(1000, stream)
        await peer.flush()
        [answer] = await collect(peer, stream, until=lambda found: len(found[stream].body) == 1000)
        body += answer.body
        # Now the settings widen every stream, and then the connection is the limit.
        peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
        await peer.flush()
        [answer] = await collect(peer, stream, until=lambda found: len(found[stream].body) == 99_000)
        body += answer.body
        other = peer.call(ECHO)
        peer.message(other, b"also")
        await peer.flush()
        peer.h2.increment_flow_control_window(1 << 20)
        await peer.flush()
        answer, beside = await collect(peer, stream, other)
        assert body + answer.body == framed(b"z" * LARGE_BYTES)
        assert answer.status == "0"
        assert beside.body == framed(b"also")


async def test_windows_of_requests_are_given_back() -> None:
    async with serving(max_message_bytes=64 << 20) as at, H2Peer(at.address) as peer:
        # As much as the windows of stream (4 MiB) and connection (64 MiB) would hold only together with updates.
        events = await peer.events()
        assert events is not None
        stream = peer.call(LARGE)
        body = framed(b"r" * (20 << 20))
        sent = 0
        with anyio.fail_after(60):
            while sent < len(body):
                room = min(peer.h2.local_flow_control_window(stream), 16_384, len(body) - sent)
                if not room:
                    events = await peer.events()
                    assert events is not None
                    assert not any(isinstance(event, StreamReset) for event in events)
                    continue
                peer.h2.send_data(stream, body[sent : sent + room], end_stream=sent + room == len(body))
                sent += room
                if peer.h2.local_flow_control_window(stream) < 16_384:
                    await peer.flush()
            await peer.flush()
        [answer] = await collect(peer, stream, until=lambda found: len(found[stream].body) > 60_000)
        assert answer.body[5:8] == b"zzz"


async def test_a_window_that_overflows_resets_the_call_alone() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        stream = peer.call(SLOW)
        peer.message(stream, b"")
        other = peer.call(ECHO)
        peer.message(other, b"fine")
        await peer.flush()
        with anyio.fail_after(60):
            await at.methods.started.wait()
        peer.writer.write(struct.pack(">HBBBLL", 0, 4, 8, 0, stream, (1 << 31) - 1))
        answer, beside = await collect(peer, stream, other)
        assert answer.reset == 3
        assert beside.status == "0"
        with anyio.fail_after(60):
            await at.methods.ended.wait()
        assert at.methods.cancelled == 1


# -- what breaks the rules


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", "9", "has no message"),
        (b"\0\0", "9", "ended in the middle"),
        (framed(b"abc")[:-1], "9", "ended in the middle"),
        (framed(b"abc") + b"d", "9", "takes one message"),
        (framed(b"") + framed(b""), "9", "takes one message"),
        (b"\1" + framed(b"abc")[1:], "12", "compressed"),
        (struct.pack(">?I", False, 1 << 30) + b"abc", "9", "more than the 1024 allowed"),
    ],
)
async def test_what_is_no_message_is_refused(body: bytes, status: str, text: str) -> None:
    async with serving(max_message_bytes=1024) as at, H2Peer(at.address) as peer:
        stream = peer.call(ECHO)
        peer.h2.send_data(stream, body, end_stream=True)
        good = peer.call(ECHO)
        peer.message(good, b"good")
        await peer.flush()
        answer, beside = await collect(peer, stream, good)
        assert answer.status == status
        assert text in answer.headers["grpc-message"].replace("%20", " ")
        assert beside.body == framed(b"good")


async def test_what_follows_a_refused_message_is_ignored_and_its_window_given_back() -> None:
    async with serving(max_message_bytes=1024, connection_window_bytes=128 << 10) as at, H2Peer(at.address) as peer:
        await peer.events()
        updates = 0
        for _ in range(20):
            stream = peer.call(ECHO)
            peer.h2.send_data(stream, struct.pack(">?I", False, 1 << 20) + b"x" * 10_000)
            # Sent by a peer that has not seen the refusal yet.
            wire = peer.h2.data_to_send() + struct.pack(">HBBBL", 0x27, 0x10, 0, 0, stream) + b"x" * 10_000
            peer.writer.write(wire)
            await peer.writer.drain()
            [answer] = await collect(peer, stream)
            assert answer.status == "9"
        stream = peer.call(ECHO)
        peer.message(stream, b"still here")
        await peer.flush()
        while not updates:
            events = await peer.events()
            assert events is not None
            updates += sum(isinstance(event, WindowUpdated | StreamEnded) for event in events)


async def test_a_reset_and_a_lost_connection_cancel_what_runs() -> None:
    async with serving() as at:
        async with H2Peer(at.address) as peer:
            stream = peer.call(SLOW)
            peer.message(stream, b"")
            await peer.flush()
            with anyio.fail_after(60):
                await at.methods.started.wait()
                peer.h2.reset_stream(stream)
                await peer.flush()
                await at.methods.ended.wait()
            assert at.methods.cancelled == 1
            at.methods.started.clear()
            at.methods.ended.clear()
            stream = peer.call(SLOW)
            peer.message(stream, b"")
            await peer.flush()
            with anyio.fail_after(60):
                await at.methods.started.wait()
        with anyio.fail_after(60):
            await at.methods.ended.wait()
        assert at.methods.cancelled == 2
        assert at.server.running == 0
        await works(at)


@pytest.mark.parametrize("complete", [True, False])
async def test_a_flood_of_resets_ends_the_connection(complete: bool) -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        with contextlib.suppress(ConnectionError), anyio.fail_after(60):
            while await _still_open(peer):
                for _ in range(50):
                    stream = peer.call(SLOW)
                    if complete:
                        peer.message(stream, b"")
                    peer.h2.reset_stream(stream)
                await peer.flush()
        await works(at)


async def _still_open(peer: H2Peer) -> bool:
    with anyio.move_on_after(0.01):
        return await peer.events() is not None
    return True


async def test_calls_beyond_the_limit_are_refused_and_the_others_answered() -> None:
    async with serving(max_streams=3) as at, H2Peer(at.address) as peer:
        # Not told the limit yet, as it were.
        streams = [peer.call(SLOW) for _ in range(5)]
        for stream in streams:
            peer.message(stream, b"s")
        await peer.flush()
        refused = await collect(peer, *streams[3:])
        assert [answer.reset for answer in refused] == [7, 7]
        at.methods.go_on.set()
        assert [answer.status for answer in await collect(peer, *streams[:3])] == ["0"] * 3


async def test_a_peer_that_never_reads_is_cut_off() -> None:
    async with serving(stall_s=0.4, max_streams=100_000) as at, H2Peer(at.address) as peer:
        peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
        peer.h2.increment_flow_control_window((1 << 31) - 1 - 65_535)
        for _ in range(150):
            peer.message(peer.call(LARGE), b"")
        peer.writer.write(peer.h2.data_to_send())
        with anyio.fail_after(60):
            while not at.server.connections:
                await anyio.sleep(0.01)
            while at.server.connections:
                await anyio.sleep(0.01)
        await works(at)


async def test_calls_wait_while_answers_are_unread() -> None:
    # What was asked for has 200 MB, of which the peer takes nothing at first.
    async with serving(max_streams=1000) as at, H2Peer(at.address) as peer:
        streams = [peer.call(LARGE) for _ in range(1000)]
        for stream in streams:
            peer.message(stream, b"")
        await peer.flush()
        with anyio.fail_after(60):
            while at.methods.large_calls <= 20:
                await anyio.sleep(0.01)
            before = -1
            while at.methods.large_calls != before:
                before = at.methods.large_calls
                await anyio.sleep(0.2)
        assert before <= (32 << 20) // LARGE_BYTES + 2
        # Another connection has a bound of its own.
        await works(at)
        # What waited begins as soon as there is room again, and a call that was given up never does.
        peer.h2.reset_stream(streams[-1], 8)
        peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
        peer.h2.increment_flow_control_window((1 << 31) - 1 - 65_535)
        await peer.flush()
        answers = await collect(peer, *streams[:-1])
        assert {answer.status for answer in answers} == {"0"}
        assert {len(answer.body) for answer in answers} == {LARGE_BYTES + 5}
        assert at.methods.large_calls == 999
        stream = peer.call(ECHO)
        peer.message(stream, b"again")
        await peer.flush()
        [again] = await collect(peer, stream)
        assert again.body == framed(b"again")


async def test_a_peer_that_asks_for_errors_and_never_reads_is_cut_off() -> None:
    async with serving(max_streams=1_000_000) as at:
        _, writer = await asyncio.open_connection(*at.address.rsplit(":", 1))
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # of the reading side
        peer = H2Peer(at.address)
        peer.h2.initiate_connection()
        stream = peer.call(FAILING)
        peer.message(stream, b"")
        peer.call(FAILING)
        writer.write(peer.h2.data_to_send())
        headers = [(":method", "POST"), (":scheme", "http"), (":path", FAILING), (":authority", "test")]
        headers += [("te", "trailers"), ("content-type", "application/grpc")]
        block = peer.h2.encoder.encode(headers)
        with contextlib.suppress(ConnectionError), anyio.fail_after(100):
            while True:
                for _ in range(200):
                    stream += 4
                    writer.write(struct.pack(">HBBBL", 0, len(block), 1, 4, stream) + block)
                    writer.write(struct.pack(">HBBBL", 0, 5, 0, 1, stream) + framed(b""))
                await writer.drain()
        writer.transport.abort()
        await works(at)


async def test_an_unfinished_message_ends_in_time() -> None:
    async with serving(stall_s=0.3) as at, H2Peer(at.address) as peer:
        stream = peer.call(ECHO)
        peer.message(stream, b"begin", length=1000, end_stream=False)
        silent = peer.call(ECHO)
        await peer.flush()
        answers = await collect(peer, stream, silent)
        assert all("did not come within" in a.headers["grpc-message"].replace("%20", " ") for a in answers)
        await works(at)


async def test_a_message_that_trickles_in_ends_in_time_and_a_steady_one_does_not() -> None:
    # The steady one sends several times what it must, until the other one has ended, and then the rest.
    async with serving(stall_s=2) as at, H2Peer(at.address) as peer:
        slow, steady = peer.call(ECHO), peer.call(FAILING)
        left = 6_000_000
        peer.message(slow, b"", length=1 << 20, end_stream=False)
        peer.message(steady, b"", length=left, end_stream=False)
        await peer.flush()
        heard = asyncio.create_task(collect(peer, slow, steady))
        with anyio.fail_after(60):
            while left:
                going = not peer.h2.streams[slow].closed
                if going:
                    peer.h2.send_data(slow, b"t")
                part = min(16_000, left)
                if going and left < 1_000_000:
                    part = 0  # a machine on which that takes so long; it has sent enough for a while
                if part and peer.h2.local_flow_control_window(steady) >= part:
                    left -= part
                    peer.h2.send_data(steady, bytes(part), end_stream=not left)
                await peer.flush()
                await anyio.sleep(0.03 if going else 0)
            trickled, came = await heard
        assert "did not come within" in trickled.headers["grpc-message"].replace("%20", " ")
        assert came.status == "9"
        assert "kaputt" in came.headers["grpc-message"]


async def test_data_and_trailers_behind_a_message_end_their_call_alone() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        over, trailed, beside = peer.call(SLOW), peer.call(ECHO), peer.call(SLOW)
        for stream in (over, beside):
            peer.message(stream, b"")
        peer.message(trailed, b"half", length=8, end_stream=False)
        peer.h2.send_headers(trailed, [("x-new", "in the table")], end_stream=True)
        await peer.flush()
        with anyio.fail_after(60):
            await at.methods.started.wait()
        peer.writer.write(struct.pack(">HBBBL", 0, 3, 0, 0, over) + b"abc")
        # Its headers refer to what those trailers have put into the table.
        plain = peer.h2.get_next_available_stream_id()
        peer.h2.send_headers(plain, [*_HEADERS, ("x-new", "in the table")])
        peer.message(plain, b"after")
        await peer.flush()
        ended, refused, later = await collect(peer, over, trailed, plain)
        at.methods.go_on.set()
        [fine] = await collect(peer, beside)
        assert ended.reset == 5
        assert "no trailers" in refused.headers["grpc-message"].replace("%20", " ")
        assert (fine.status, later.status, later.body) == ("0", "0", framed(b"after"))


async def test_a_goodbye_of_the_peer_lets_its_calls_end() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        stream = peer.call(SLOW)
        peer.message(stream, b"late")
        await peer.flush()
        with anyio.fail_after(60):
            await at.methods.started.wait()
            peer.writer.write(struct.pack(">HBBBLLL", 0, 11, 7, 0, 0, 0, 0) + b"bye")
            await anyio.sleep(0.05)
            assert at.server.connections == 1
            at.methods.go_on.set()
            [answer] = await collect(peer, stream)
            assert answer.body == framed(b"late")
            while at.server.connections:
                await anyio.sleep(0.005)
        assert at.methods.cancelled == 0


async def test_a_goodbye_because_of_an_error_ends_the_calls() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        peer.message(peer.call(SLOW), b"late")
        await peer.flush()
        with anyio.fail_after(60):
            await at.methods.started.wait()
            peer.writer.write(struct.pack(">HBBBLLL", 0, 8, 7, 0, 0, 0, 2))
            await at.methods.ended.wait()
        assert at.methods.cancelled == 1


async def test_a_smaller_table_of_headers_is_acknowledged_in_the_next_answer() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        strict = peer.h2.decoder
        for size in (0, 100, 4096, 0):
            peer.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: size})
            stream = peer.call(ECHO)
            peer.message(stream, b"")
            await peer.flush()
            # A decoder that insists on the change being said, as hpack's does.
            [answer] = await collect(peer, stream)
            assert answer.status == "0"
            assert strict.max_allowed_table_size == size
            assert strict.header_table.maxsize <= size
            for path in (FAILING, PLAIN, ECHO):
                other = peer.call(path)
                peer.message(other, b"")
                await peer.flush()
                [answer] = await collect(peer, other)
                assert answer.status in ("0", "9")


async def test_large_trailers_go_in_pieces() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        at.methods.text = "long " * 12_000
        stream = peer.call(FAILING)
        peer.message(stream, b"")
        await peer.flush()
        [answer] = await collect(peer, stream)
        assert answer.status == "9"
        assert len(answer.headers["grpc-message"]) == 59_999
        await works(at)


@pytest.mark.parametrize(
    "broken",
    [
        struct.pack(">HBBBL", 0xFFFF, 0xFF, 0, 0, 1),  # a frame of 16 MiB
        struct.pack(">HBBBL", 0, 5, 0, 0, 0) + b"12345",  # data on stream 0
        struct.pack(">HBBBL", 0, 5, 0, 0, 99) + b"12345",  # data on a stream that was never opened
        struct.pack(">HBBBL", 0, 5, 1, 4, 99) + b"\xff\xff\xff\xff\xff",  # headers that do not decode
        struct.pack(">HBBBL", 0, 5, 1, 4, 2) + b"\x82\x82\x82\x82\x82",  # headers on an even stream
        struct.pack(">HBBBL", 0, 1, 9, 4, 1) + b"\x82",  # a continuation of nothing
        struct.pack(">HBBBL", 0, 3, 8, 0, 0) + b"\0\0\0",  # a window update of the wrong length
    ],
)
async def test_broken_frames_end_the_connection_only(broken: bytes) -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        stream = peer.call(ECHO)
        peer.message(stream, b"before")
        await peer.flush()
        [answer] = await collect(peer, stream)
        assert answer.status == "0"
        peer.writer.write(broken)
        with anyio.fail_after(60):
            while at.server.connections:
                await anyio.sleep(0.01)
        await works(at)


async def test_any_bytes_leave_the_server_working(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(11)
    async with serving(stall_s=1.0) as at:
        for _ in range(150):
            peer = H2Peer(at.address)
            peer.h2.initiate_connection()
            for _ in range(int(rng.integers(1, 5))):
                peer.message(peer.call([ECHO, PLAIN, LARGE][rng.integers(3)]), b"")
            wire = bytearray(peer.h2.data_to_send())
            for _ in range(int(rng.integers(1, 8))):
                wire[int(rng.integers(24, len(wire)))] = int(rng.integers(256))
            for _ in range(int(rng.integers(0, 4))):
                # Frames in form, of random kinds, on streams that may exist.
                size = int(rng.integers(0, 12))
                wire += struct.pack(
                    ">HBBBL", 0, size, int(rng.integers(11)), int(rng.integers(256)), int(rng.integers(9))
                ) + rng.bytes(size)
            _, writer = await asyncio.open_connection(*at.address.rsplit(":", 1))
            for start in range(0, len(wire), 40):
                writer.write(bytes(wire[start : start + 40]))
                await anyio.lowlevel.checkpoint()
            writer.transport.abort()
        await works(at)
        with anyio.fail_after(60):
            while at.server.connections:
                await anyio.sleep(0.01)
        assert at.server.running == 0
    assert not [record for record in caplog.records if record.exc_info and "unary" in str(record.exc_info)]


# -- stops


async def test_a_stop_waits_for_calls_that_run_and_for_messages_on_their_way() -> None:
    async with serving() as at, H2Peer(at.address) as peer:
        runs = peer.call(SLOW)
        peer.message(runs, b"ran")
        comes = peer.call(ECHO)
        peer.message(comes, b"half", end_stream=False, length=8)
        await peer.flush()
        with anyio.fail_after(60):
            await at.methods.started.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: at.server.aclose(grace_s=60))
                await anyio.sleep(0.05)
                assert at.server.running == 2
                peer.h2.send_data(comes, b"more", end_stream=True)
                await peer.flush()
                at.methods.go_on.set()
                first, second = await collect(peer, runs, comes)
        assert first.body == framed(b"ran")
        assert second.body == framed(b"halfmore")


async def test_a_stop_cancels_what_does_not_end() -> None:
    async with serving() as at, at.channel() as channel:
        slow = UnaryUnaryMethod(channel, SLOW, pb.ModelMetadataRequest, pb.ModelMetadataRequest)
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                with pytest.raises((StreamTerminatedError, GRPCError)):
                    await slow(pb.ModelMetadataRequest(name="n"))

            tasks.start_soon(call)
            with anyio.fail_after(60):
                await at.methods.started.wait()
                assert await at.server.aclose(grace_s=0.05) == 1
                await at.methods.ended.wait()
        assert at.methods.cancelled == 1


def test_written_headers_are_read_by_hpack() -> None:
    for size in (0, 1, 126, 127, 128, 300, 20_000):
        block = literal("grpc-message", "v" * size)
        [(name, value)] = hpack.Decoder().decode(block)
        assert (str(name), str(value)) == ("grpc-message", "v" * size)
