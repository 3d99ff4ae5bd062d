"""grpclib's HTTP/2 side with the limits that it lacks.

Owns what happens below a call: message size (refused at the length prefix, before a byte of it is kept), connections,
streams per connection, silent and dead peers, floods of resets and control frames. Refuses to know any service.

Invariant: what one connection can make the server hold is bounded by its windows, its streams and one message each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import anyio
from grpclib.config import Configuration
from grpclib.protocol import Connection, EventsProcessor, H2Protocol, Stream
from grpclib.server import Handler
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import PingAckReceived, PingReceived, RemoteSettingsChanged, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from modelbox._serving.peers import peer_of
from modelbox._serving.shares import ConnectionShares, nobody
from modelbox.errors import LimitError

__all__ = ("ConnectionTable", "GuardedProtocol", "Limits")

_LOG = logging.getLogger(__name__)
_SLICE = 16 << 10
"""Fed to HTTP/2 at a time, so that a flood is noticed after at most this much of it."""
_MAX_HEADER_BYTES = 16 << 10
_CLOSE_GRACE_S = 5.0
_CORK_BYTES = 64 << 10
_GOODBYE = b"goodbye!"
_SENT_POLL_S = 0.01
_LATE_S = 0.1
"""A timer that comes later than this tells of a loop that stood still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may do.

    Attributes:
        max_message_bytes: Of one message, without its prefix.
        max_connections_per_address: Of one peer; 0 for as many as in all.
        shared_address: Which addresses are those of many peers; see `ConnectionShares`.
        hello_timeout_s: Until the first settings of a new connection.
        keepalive_s: Pause between pings; half as long to answer.
        stream_window_bytes: Unread bytes of one stream.
        connection_window_bytes: Unread bytes of all streams; at least 16 streams' windows, so that one stream that
            nobody reads does not block the others.
        resets: Streams that may be reset at once; ``resets_per_s`` more each second. For control frames ten times that.
    """

    max_message_bytes: int = 8 << 20
    max_connections: int = 2000
    max_connections_per_address: int = 0
    shared_address: Callable[[str], bool] = nobody
    max_streams: int = 200
    hello_timeout_s: float = 5.0
    keepalive_s: float = 20.0
    stream_window_bytes: int = 4 << 20
    connection_window_bytes: int = 64 << 20
    resets: float = 200.0
    resets_per_s: float = 50.0

    def configuration(self) -> Configuration:
        """The part that grpclib understands."""
        return Configuration(
            _keepalive_time=self.keepalive_s,
            _keepalive_timeout=self.keepalive_s / 2,
            _keepalive_permit_without_calls=True,
            _http2_max_pings_without_data=0,
            _http2_min_sent_ping_interval_without_data=self.keepalive_s / 2,
            http2_connection_window_size=self.connection_window_bytes,
            http2_stream_window_size=self.stream_window_bytes,
        )


class ConnectionTable:
    """The open connections of one server.

    Args:
        limits: How many there may be.

    Attributes:
        shares: Where they are counted.
    """

    def __init__(self, limits: Limits) -> None:
        self._open: dict[GuardedProtocol, str] = {}
        self.shares = ConnectionShares(
            limits.max_connections, limits.max_connections_per_address, shared=limits.shared_address
        )

    @property
    def refused(self) -> int:
        """How many were one too many."""
        return self.shares.refused

    def all(self) -> tuple[GuardedProtocol, ...]:
        """Those open now."""
        return tuple(self._open)

    def admit(self, protocol: GuardedProtocol, address: str) -> bool:
        """Notes a new connection; false where it is one too many."""
        if not self.shares.admit(address):
            return False
        self._open[protocol] = address
        return True

    def discard(self, protocol: GuardedProtocol) -> None:
        """Forgets a connection; again is no error."""
        address = self._open.pop(protocol, None)
        if address is not None:
            self.shares.leave(address)


class _Bucket:
    """Lets ``burst`` through at once and ``per_s`` after that."""

    __slots__ = ("_at", "_level", "burst", "per_s")

    def __init__(self, burst: float, per_s: float) -> None:
        self.burst = burst
        self.per_s = per_s
        self._level = 0.0
        self._at = time.monotonic()

    def take(self) -> bool:
        """Counts one; false when it is one too many."""
        now = time.monotonic()
        self._level = max(0.0, self._level - (now - self._at) * self.per_s) + 1
        self._at = now
        return self._level <= self.burst


class _Corked:
    """A transport that sends what is written in one turn of the event loop as one packet.

    grpclib writes the headers, the message and the trailers of an answer on their own, each a system call and a wake-up
    of the peer: a third of a short call's time.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pending: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not data:
            return
        if not self._pending:
            self._loop.call_soon(self.flush)
        self._pending.append(data)
        self._size += len(data)
        if self._size >= _CORK_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            data = b"".join(self._pending)
            self._pending.clear()
            self._size = 0
            if not self._transport.is_closing():
                self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._pending.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class _GuardedStream(Stream):
    """A stream that refuses a message by its announced length."""

    max_message_bytes: int

    async def recv_data(self, size: int) -> bytes:
        if size > self.max_message_bytes:
            raise LimitError(
                f"a message of {size} bytes, more than the {self.max_message_bytes} allowed: send files as a stream of "
                "chunks, or over HTTP",
                max_message_bytes=self.max_message_bytes,
            )
        return await super().recv_data(size)


class _GuardedConnection(Connection):
    """Makes guarded streams, and never waits long for a peer that does not read."""

    max_message_bytes: int

    def create_stream(self, *, stream_id: int | None = None, wrapper: Any = None) -> Stream:
        stream = _GuardedStream(self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper)
        stream.max_message_bytes = self.max_message_bytes
        return stream

    def close(self) -> None:
        if hasattr(self, "_transport"):
            # Closing waits for what is buffered to be sent, for ever if nobody reads.
            transport = self._transport
            asyncio.get_running_loop().call_later(_CLOSE_GRACE_S, transport.abort)
        super().close()


class _GuardedEvents(EventsProcessor):
    """Counts what peers may do in moderation only."""

    def __init__(
        self, handler: Handler, connection: Connection, limits: Limits, flooded: Callable[[str], None]
    ) -> None:
        super().__init__(handler, connection)
        self._flooded = flooded
        self._resets = _Bucket(limits.resets, limits.resets_per_s)
        self._control = _Bucket(limits.resets * 10, limits.resets_per_s * 10)
        self.goodbye = asyncio.Event()

    def process_stream_reset(self, event: StreamReset) -> None:
        if event.stream_id in self.streams:
            super().process_stream_reset(event)
        if not self._resets.take():
            self._flooded("stream resets")

    def process_ping_received(self, event: PingReceived) -> None:
        super().process_ping_received(event)
        if not self._control.take():
            self._flooded("pings")

    def process_ping_ack_received(self, event: PingAckReceived) -> None:
        super().process_ping_ack_received(event)
        if event.ping_data == _GOODBYE:
            self.goodbye.set()

    def process_remote_settings_changed(self, event: RemoteSettingsChanged) -> None:
        super().process_remote_settings_changed(event)
        if not self._control.take():
            self._flooded("settings")


class _Parting(asyncio.Protocol):
    """The rest of a connection after GOAWAY: nothing of what comes is looked at."""

    def __init__(self, parted: GuardedProtocol) -> None:
        self._parted = parted
        self.ended = asyncio.Event()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.ended.set()
        self._parted.connection_lost(exc)


class GuardedProtocol(H2Protocol):
    """One connection of a peer."""

    processor: _GuardedEvents

    def __init__(
        self,
        handler: Handler,
        config: Configuration,
        h2_config: H2Configuration,
        limits: Limits,
        table: ConnectionTable,
    ) -> None:
        super().__init__(handler, config, h2_config)
        self._limits = limits
        self._table = table
        self._hello: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._dead = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello, unless there are too many connections."""
        self._transport = cast(asyncio.Transport, transport)
        if not self._table.admit(self, peer_of(self._transport).address):
            self._abort()
            return
        limits = self._limits
        h2 = H2Connection(config=self.h2_config)
        h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            },
        )
        h2.decoder.max_header_list_size = _MAX_HEADER_BYTES
        h2.initiate_connection()
        h2.increment_flow_control_window(limits.connection_window_bytes - 65_535)
        self._corked = _Corked(self._transport)
        self.connection = _GuardedConnection(h2, cast(asyncio.Transport, self._corked), config=self.config)
        self.connection.max_message_bytes = limits.max_message_bytes
        self.connection.flush()
        self.connection.initialize()
        self.processor = _GuardedEvents(cast(Handler, self.handler), self.connection, limits, self._flooded)
        self._wait_for_hello()

    def _wait_for_hello(self) -> None:
        """Gives the peer its time, and again where the loop stood still: what has come then is still to be read."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._limits.hello_timeout_s

        def over() -> None:
            if loop.time() - due > _LATE_S:
                self._wait_for_hello()
            else:
                self._abort()

        self._hello = loop.call_later(self._limits.hello_timeout_s, over)

    def data_received(self, data: bytes) -> None:
        """Takes bytes, in slices."""
        if len(data) <= _SLICE:
            self._feed(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _SLICE):
            self._feed(bytes(view[start : start + _SLICE]))

    def _feed(self, data: bytes) -> None:
        if self._dead:
            return
        connection = self.connection
        try:
            events = connection.feed(data)
            # h2 looks at a frame's length only when the whole frame is there, be it 16 MiB.
            if len(connection._connection.incoming_buffer._data) > connection._connection.max_inbound_frame_size + 9:
                raise ProtocolError("a frame longer than allowed")
        except (ProtocolError, UnicodeDecodeError) as exc:
            # h2 reads some headers as ASCII before it looks whether they are.
            _LOG.debug("a peer broke the HTTP/2 protocol: %s", exc)
            # The rest of the clean-up comes with the loss of the connection.
            self._abort()
            return
        connection.flush()
        for event in events:
            if self._dead:
                return
            if self._hello is not None and isinstance(event, RemoteSettingsChanged):
                self._hello.cancel()
                self._hello = None
            if type(event) in self.processor.processors:
                self.processor.process(event)
        if not self._dead:
            connection.flush()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancels what still runs for the peer."""
        self._dead = True
        self._table.discard(self)
        if self._hello is not None:
            self._hello.cancel()
        if hasattr(self, "processor"):
            super().connection_lost(exc)

    async def wait_sent(self) -> None:
        """Waits until everything that was written has left for the peer, however slowly that reads."""
        transport = self._transport
        while not self._dead and transport is not None and not transport.is_closing():
            self._corked.flush()
            if not transport.get_write_buffer_size():
                return
            await anyio.sleep(_SENT_POLL_S)

    async def say_goodbye(self, *, timeout: float) -> None:
        """Sends GOAWAY and closes; for a peer whose calls have ended.

        A client that finds the end of a call and GOAWAY in one packet takes the call for lost (grpclib does). So GOAWAY
        goes only after the peer has answered a ping, and with that has read everything before it.

        What a peer sent meanwhile was not begun, as GOAWAY tells it.

        Args:
            timeout: Seconds to wait for the answer, and again for the peer to close.
        """
        if self._dead or self.connection.is_closing():
            return
        self.connection._connection.ping(_GOODBYE)
        self.connection.flush()
        with anyio.move_on_after(timeout):
            await self.processor.goodbye.wait()
        if self._dead or self.connection.is_closing():
            return
        self.connection._connection.close_connection(error_code=ErrorCodes.NO_ERROR)
        self.connection.flush()
        self._corked.flush()
        # A socket that is closed before everything was read resets the connection, and that can overtake GOAWAY.
        parting = _Parting(self)
        assert self._transport is not None
        self._transport.set_protocol(parting)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        with anyio.move_on_after(timeout):
            await parting.ended.wait()
        if not self._dead:
            self.connection.close()

    def _flooded(self, what: str) -> None:
        _LOG.warning("closed a gRPC connection: a flood of %s", what)
        self._abort()

    def _abort(self) -> None:
        self._dead = True
        if self._transport is not None:
            self._transport.abort()
