"""A TCP proxy that does to connections what networks do.

The vocabulary is Toxiproxy's: each `Toxic` acts on the bytes of one direction, ``down`` (from the server) or ``up``.
Toxics may be set and cleared at any time, and act on connections that are open. What is random comes from a seed.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeVar

__all__ = (
    "Bandwidth",
    "Corrupt",
    "Direction",
    "FaultProxy",
    "HalfOpen",
    "Hang",
    "Latency",
    "LimitData",
    "Refuse",
    "ResetPeer",
    "Slicer",
    "Toxic",
)

Direction = Literal["down", "up"]
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Every block comes later by ``delay_s``, and by up to ``jitter_s`` more."""

    delay_s: float
    jitter_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """No more than so many bytes a second."""

    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Nothing passes, and nothing ends, as long as it is set; then what waited goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetPeer:
    """The connection is reset once so many bytes have passed in this direction since it was opened."""

    after_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitData:
    """The connection ends in order once so many bytes have passed in this direction since it was opened."""

    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicer:
    """Blocks come in slices of this size, each in a segment of its own."""

    size_bytes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfOpen:
    """What is sent is lost, and its sender is not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt:
    """One bit flips of the byte at this place of the direction's bytes."""

    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """New connections are reset at once; open ones go on."""


T = TypeVar("T")
Toxic = Latency | Bandwidth | Hang | ResetPeer | LimitData | Slicer | HalfOpen | Corrupt | Refuse


class _Connection:
    """One connection through the proxy; belongs to the proxy's loop."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.passed = {"down": 0, "up": 0}

    def reset(self) -> None:
        for writer in (self.client, self.server):
            _reset(writer)


class FaultProxy:
    """Passes bytes to one address and back; runs in a thread of its own. Use as a context manager.

    Attributes:
        connections: How many were accepted.
        resets: How many of them a toxic reset.
        passed_bytes: How much went each way.
    """

    def __init__(self, target: str = "", *, seed: int = 1) -> None:
        self.target = target
        self.connections = 0
        self.resets = 0
        self.passed_bytes = {"down": 0, "up": 0}
        self.port = 0
        self._random = random.Random(seed)
        self._toxics: dict[Direction, list[Toxic]] = {"down": [], "up": []}
        self._open: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)

    @property
    def address(self) -> str:
        """``host:port`` of the proxy."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """As a base address of HTTP."""
        return f"http://{self.address}"

    def add(self, *toxics: Toxic, direction: Direction = "down") -> None:
        """Sets toxics beside those that are set."""
        self._call(lambda: self._toxics[direction].extend(toxics))

    def clear(self) -> None:
        """Takes all toxics away."""
        self._call(self._clear)

    def cut(self) -> None:
        """Resets every open connection."""
        self._call(self._cut)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def _call(self, change: Callable[[], object]) -> None:
        done = threading.Event()

        def apply() -> None:
            change()
            # Whoever waits looks again.
            self._changed.set()
            self._changed = asyncio.Event()
            done.set()

        self._loop.call_soon_threadsafe(apply)
        assert done.wait(60)

    def _clear(self) -> None:
        for toxics in self._toxics.values():
            toxics.clear()

    def _cut(self) -> None:
        for connection in tuple(self._open):
            connection.reset()

    # -- the proxy's own loop --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        self._cut()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._find(Refuse, "down") or self._find(Refuse, "up"):
            self.resets += 1
            _reset(writer)
            return
        host, _, port = self.target.rpartition(":")
        try:
            other_reader, other_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(writer)
            return
        connection = _Connection(writer, other_writer)
        self._open.add(connection)
        try:
            await asyncio.gather(
                self._pump(reader, other_writer, "up", connection),
                self._pump(other_reader, writer, "down", connection),
            )
        except OSError:
            connection.reset()
        finally:
            self._open.discard(connection)
            for end in (writer, other_writer):
                end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction, connection: _Connection
    ) -> None:
        while block := await reader.read(_BLOCK_BYTES):
            for data in self._sliced(block, direction):
                if not await self._pass(data, writer, direction, connection):
                    return
        while self._find(Hang, direction):
            await self._changed.wait()
        if writer.can_write_eof():
            writer.write_eof()

    def _sliced(self, block: bytes, direction: Direction) -> list[bytes]:
        slicer = self._find(Slicer, direction)
        size = slicer.size_bytes if slicer is not None else len(block)
        return [block[at : at + size] for at in range(0, len(block), size)]

    async def _pass(
        self, data: bytes, writer: asyncio.StreamWriter, direction: Direction, connection: _Connection
    ) -> bool:
        """Sends one piece on as the toxics want; False when the connection is at its end."""
        while self._find(Hang, direction):
            await self._changed.wait()
        if latency := self._find(Latency, direction):
            await asyncio.sleep(latency.delay_s + self._random.uniform(0, latency.jitter_s))
        if bandwidth := self._find(Bandwidth, direction):
            await asyncio.sleep(len(data) / bandwidth.bytes_per_s)
        at = connection.passed[direction]
        ends = False
        if reset := self._find(ResetPeer, direction):
            data, ends = data[: max(0, reset.after_bytes - at)], at + len(data) > reset.after_bytes
        if limit := self._find(LimitData, direction):
            data, ends = data[: max(0, limit.bytes - at)], at + len(data) >= limit.bytes
        corrupt = self._find(Corrupt, direction)
        if corrupt and at <= corrupt.offset < at + len(data):
            place = corrupt.offset - at
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        connection.passed[direction] += len(data)
        self.passed_bytes[direction] += len(data)
        if not self._find(HalfOpen, direction):
            writer.write(data)
            await writer.drain()
        if ends and reset:
            self.resets += 1
            connection.reset()
        elif ends:
            for end in (connection.client, connection.server):
                end.close()
        return not ends

    def _find(self, kind: type[T], direction: Direction) -> T | None:
        return next((toxic for toxic in self._toxics[direction] if isinstance(toxic, kind)), None)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as a machine does that knows nothing of it: with RST, and what was not sent yet is lost."""
    end: socket.socket | None = writer.get_extra_info("socket")
    if end is not None and end.fileno() >= 0:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
