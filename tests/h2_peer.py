"""A peer that speaks HTTP/2 by hand, to do what no gRPC library would."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from types import TracebackType

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event


class H2Peer:
    """One connection. Windows are never widened, and nothing is acknowledged, unless a test does it.

    Args:
        address: Of the server, ``host:port``.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))

    async def __aenter__(self) -> H2Peer:
        self.reader, self.writer = await asyncio.open_connection(self._host, self._port)
        self.h2.initiate_connection()
        await self.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.transport.abort()

    async def flush(self) -> None:
        """Sends what is pending."""
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def events(self) -> list[Event] | None:
        """What came with the next bytes; None at the end of the connection."""
        try:
            data = await self.reader.read(1 << 16)
        except ConnectionError:
            return None
        if not data:
            return None
        found = self.h2.receive_data(data)
        with contextlib.suppress(ConnectionError):
            # What the server said is told, whether it still listens or not.
            await self.flush()
        return found

    def call(self, path: str, *, end_stream: bool = False) -> int:
        """Begins a gRPC call; returns its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            stream_id,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "test"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ],
            end_stream=end_stream,
        )
        return stream_id

    def message(self, stream_id: int, data: bytes, *, end_stream: bool = True, length: int | None = None) -> None:
        """Sends one message, or the beginning of one of ``length`` bytes."""
        prefix = struct.pack(">?I", False, len(data) if length is None else length)
        self.h2.send_data(stream_id, prefix + data, end_stream=end_stream)
