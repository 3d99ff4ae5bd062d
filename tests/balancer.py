"""A small TCP balancer for tests: what stands in front of several servers.

It asks each server's ``/readyz``. One that is not ready gets no new connections and keeps those that it has; one that
does not answer in time loses them as well. That is what the balancers do that people use, with shorter times.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

__all__ = ("Balancer",)

_ASK_EVERY_S = 0.05
_ANSWER_S = 15.0
_CHUNK = 1 << 16


class _State(enum.Enum):
    READY = enum.auto()
    NOT_READY = enum.auto()
    GONE = enum.auto()


class _Backend:
    def __init__(self, *, grpc: str, http: str) -> None:
        self.grpc = grpc
        self.http = http
        self.state = _State.GONE
        self.connections: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        for writer in tuple(self.connections):
            writer.transport.abort()


class Balancer:
    """Spreads connections over servers in turn; runs in a thread of its own. Use as a context manager."""

    def __init__(self) -> None:
        self._backends: list[_Backend] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="balancer", daemon=True)
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self.grpc_address = ""
        self.http_address = ""

    @property
    def url(self) -> str:
        """Base address of HTTP, as a client takes it."""
        return f"http://{self.http_address}"

    def add(self, *, grpc: str, http: str) -> None:
        """Has a server take part, by its own addresses."""
        asyncio.run_coroutine_threadsafe(self._add(_Backend(grpc=grpc, http=http)), self._loop).result(60)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        grpc = await asyncio.start_server(self._handler(lambda one: one.grpc), "127.0.0.1", 0)
        http = await asyncio.start_server(self._handler(lambda one: one.http), "127.0.0.1", 0)
        self.grpc_address, self.http_address = (
            "{}:{}".format(*server.sockets[0].getsockname()) for server in (grpc, http)
        )
        self._started.set()
        await self._stop.wait()
        for server in (grpc, http):
            server.close()
        for one in self._backends:
            one.cut()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _add(self, one: _Backend) -> None:
        one.state = await _ask(one.http)
        self._backends.append(one)
        self._tasks.append(self._loop.create_task(self._ask_for_ever(one)))

    # -- health ----------------------------------------------------------------------------------------------------

    async def _ask_for_ever(self, one: _Backend) -> None:
        while True:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    one.state = await _ask(one.http)
            except TimeoutError:
                one.state = _State.GONE
                one.cut()
            except (OSError, ValueError, asyncio.IncompleteReadError):
                one.state = _State.GONE
            await asyncio.sleep(_ASK_EVERY_S)

    # -- connections -----------------------------------------------------------------------------------------------

    def _handler(
        self, address_of: Callable[[_Backend], str]
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._connect(reader, writer, address_of))
            task.add_done_callback(lambda done: None if done.cancelled() else done.exception())

        return accept

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address_of: Callable[[_Backend], str]
    ) -> None:
        for one in self._in_turn():
            host, _, port = address_of(one).rpartition(":")
            try:
                async with asyncio.timeout(_ANSWER_S):
                    other_reader, other_writer = await asyncio.open_connection(host, int(port))
            except (OSError, TimeoutError):
                continue
            one.connections |= {writer, other_writer}
            try:
                await asyncio.gather(_pump(reader, other_writer), _pump(other_reader, writer))
            finally:
                one.connections -= {writer, other_writer}
                for end in (writer, other_writer):
                    # What was taken from one end still goes to the other.
                    end.close()
            return
        writer.transport.abort()

    def _in_turn(self) -> Iterator[_Backend]:
        self._turn += 1
        count = len(self._backends)
        for place in range(count):
            one = self._backends[(self._turn + place) % count]
            if one.state is _State.READY:
                yield one


async def _ask(address: str) -> _State:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readuntil(b"\r\n")
        return _State.READY if line.split()[1] == b"200" else _State.NOT_READY
    finally:
        writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies one direction to its end; a broken connection ends the other direction too."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError, NotImplementedError):
            writer.write_eof()
    except OSError:
        writer.transport.abort()
