"""One connection of the HTTP server, as long as its requests are plain ones.

Plain requests, which is what the clients of model servers send, are read here: one pass over the head by a strict
pattern, then ``Content-Length`` bytes. That costs a quarter of what a general server does for the same request.
Whatever is not plain (chunked bodies, ``Expect``, ``Upgrade``, HTTP/1.0, repeated or malformed fields ...) is never
interpreted: its connection is handed to aiohttp before a byte of the request was taken, and ends with its answer.

Invariants: one request at a time is in work; the next one is read when the peer has taken the answer. What a peer can
make us hold is bounded: a head, a body, one answer. A peer that is gone cancels its call.

Concurrency: belongs to one event loop of asyncio.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import anyio

from modelbox._serving.peers import peer_of
from modelbox.errors import DeadlineExceeded, LimitError, ServerBusy
from modelbox.sidecar.oip.routes import HttpAnswer, HttpRequest, failure
from modelbox.sidecar.oip.tensors import Buffer

if TYPE_CHECKING:
    from modelbox.sidecar.oip.http import HttpServer

__all__ = ("KEEPALIVE_S", "LEAST_BYTES_PER_S", "LINGER_S", "Connection", "Head", "State", "parse_head", "too_large")

_LOG = logging.getLogger(__name__)

KEEPALIVE_S = 600.0
"""Seconds without a request after which a connection is closed."""
LINGER_S = 2.0
"""Seconds for a peer to stop sending after its last answer."""
LEAST_BYTES_PER_S = 64 << 10
"""Speed at which a body has to come."""

_MAX_HEAD_BYTES = 32 << 10
_KNOWN_HEADS = 1024
_KNOWN_HEAD_BYTES = 1 << 10
_JOIN_BELOW = 64 << 10
_READ_AHEAD = 64 << 10

# RFC 9112 without everything optional: no folded lines, no whitespace around names, no bare line feeds.
_HEAD = re.compile(rb"(GET|POST) (/[!-~]*) HTTP/1\.1((?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*)*)\r\n\r\n")
_FIELD = re.compile(rb"\r\n([^:]+):[\t ]*([^\r]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")
_NOT_PLAIN = ("transfer-encoding", "expect", "upgrade", "trailer", "te")
_CLOSE = "Connection: close\r\n"
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Head:
    """The first lines of a plain request."""

    __slots__ = ("close", "headers", "length", "method", "path")

    def __init__(self, method: str, path: str, headers: Mapping[str, str], length: int, *, close: bool) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.length = length
        self.close = close


def parse_head(data: Buffer) -> Head | None:
    """The head at the beginning of ``data``; None when it is not a plain one."""
    match = _HEAD.match(data)
    if match is None:
        return None
    method, target, block = match.groups()
    fields = [(name.decode().lower(), value.decode("latin-1").rstrip(" \t")) for name, value in _FIELD.findall(block)]
    headers = dict(fields)
    if len(headers) != len(fields) or any(name in headers for name in _NOT_PLAIN) or "host" not in headers:
        return None
    length = headers.get("content-length", "0")
    connection = headers.get("connection", "").lower()
    if _LENGTH.fullmatch(length) is None or connection not in ("", "keep-alive", "close"):
        return None
    path = target.decode().partition("?")[0]
    return Head(method.decode(), path, headers, int(length), close=connection == "close")


class State(Enum):
    """What a connection is doing."""

    NEW = "new"
    """Nothing came yet."""
    READING = "reading"
    """Part of a request came."""
    BUSY = "busy"
    """A request is in work."""
    WRITING = "writing"
    """The peer has not taken its answer."""
    IDLE = "idle"
    """Between requests."""
    LINGERING = "lingering"
    """The last answer was written; what still comes is dropped."""


class Connection(asyncio.Protocol):
    """One connection with plain requests."""

    __slots__ = (
        "_address",
        "_begun",
        "_close",
        "_data",
        "_held",
        "_mark",
        "_need",
        "_paused",
        "_reading_paused",
        "_scope",
        "_server",
        "_transport",
        "_waiter",
        "_wanted",
        "state",
    )

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._address: str | None = None
        self._scope = anyio.CancelScope()
        self._waiter: asyncio.Future[None] | None = None
        self._data: bytes | bytearray = b""
        self._need = 1
        self._held = 0
        self._wanted = 0
        self._paused = False
        self._reading_paused = False
        self._close = False
        self._mark = 0
        self._begun = server.now
        self.state = State.NEW

    # -- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to serve, unless there are too many already."""
        # uvloop's is none by its type.
        self._transport = transport = cast(asyncio.Transport, transport)
        server = self._server
        address = peer_of(transport).address
        if server.draining or not server.shares.admit(address):
            whose = "" if server.draining or server.shares.full else f" of {address}"
            text = f"{server.connections} connections are open, and no more{whose} are taken"
            busy = ServerBusy(text, retry_after_s=1.0)
            transport.write(b"".join(self._encoded(failure(busy), close=True)))
            transport.close()
            return
        self._address = address
        server.plain.add(self)
        server.tasks.start_soon(self._serve, name="HTTP connection")

    def data_received(self, data: bytes) -> None:
        """Takes bytes; wakes the task when they may complete something."""
        if self.state is State.LINGERING:
            return
        if self._data:
            if type(self._data) is bytes:
                self._data = bytearray(self._data)
            self._data += data
            self._held += len(data)
            self._server.held_bytes += len(data)
        else:
            self._data = data
        if self.state is State.BUSY or self.state is State.WRITING:
            if len(self._data) > _READ_AHEAD and not self._reading_paused:
                self._reading_paused = True
                self._transport.pause_reading()
        elif len(self._data) >= self._need or self._server.held_bytes > self._server.max_held_bytes:
            self._wake()

    def eof_received(self) -> bool | None:
        """Ends the connection."""
        # A peer that sends no more wants no answer either: the protocol has no use for half-closed connections.
        return None

    def pause_writing(self) -> None:
        """The peer is slower than we are."""
        self._paused = True

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._paused = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels what the peer was waiting for."""
        self._scope.cancel()
        self._release()
        self._server.forget(self)
        self._leave()

    def _leave(self) -> None:
        """Counts the connection out."""
        address, self._address = self._address, None
        if address is not None:
            self._server.shares.leave(address)

    # -- called by the server

    def drain(self) -> None:
        """Closes the connection as soon as it has no request."""
        self._close = True
        if self.state in (State.NEW, State.IDLE):
            self._transport.close()

    def abort(self) -> None:
        """Closes the connection now."""
        self._transport.abort()

    def check_time(self) -> None:
        """Cuts off a peer that took too long."""
        server = self._server
        waited_s = server.now - self._begun
        match self.state:
            case State.NEW:
                late = waited_s > server.idle_timeout_s
            case State.READING:
                late = waited_s > server.idle_timeout_s + self._wanted / LEAST_BYTES_PER_S
            case State.WRITING:
                left = self._transport.get_write_buffer_size()
                if left != self._mark:
                    self._mark, self._begun = left, server.now
                    return
                late = waited_s > server.idle_timeout_s
            case State.IDLE:
                late = waited_s > KEEPALIVE_S
            case State.LINGERING:
                late = waited_s > LINGER_S
            case _:
                late = False
        if late:
            if self.state is State.READING:
                self._transport.write(b"".join(self._encoded(failure(_late()), close=True)))
                self._transport.close()
            else:
                self._transport.abort()

    # -- requests

    async def _serve(self) -> None:
        with self._scope:
            try:
                await self._serve_requests()
            except Exception:
                _LOG.exception("an HTTP connection failed unexpectedly")
                self._transport.abort()

    async def _serve_requests(self) -> None:
        server, transport = self._server, self._transport
        while True:
            if not self._data:
                self._enter(State.NEW if self.state is State.NEW else State.IDLE)
                if self._close:
                    transport.close()
                    return
                await self._wait()
                continue
            head, start = self._find_head()
            if head is None:
                if start < 0:
                    self._hand_over()
                    return
                await self._wait_for_more()
                continue
            end = start + head.length
            self._wanted = head.length
            if head.length > server.max_body_bytes:
                self._finish(failure(too_large(server.max_body_bytes)))
                return
            if len(self._data) < end:
                self._need = end
                if server.held_bytes > server.max_held_bytes:
                    self._finish(failure(ServerBusy("too many large requests are on their way", retry_after_s=1.0)))
                    return
                await self._wait_for_more()
                continue
            body = self._take(start, end)
            self._enter(State.BUSY)
            answer = await server.routes.answer(HttpRequest(head.method, head.path, head.headers, body))
            if transport.is_closing():
                return  # the peer went away while its request was answered; uvloop refuses to write then
            if self._reading_paused:
                self._reading_paused = False
                transport.resume_reading()
            close = head.close or self._close
            parts = self._encoded(answer, close=close)
            if len(parts) == 1:
                transport.write(parts[0])
            else:
                transport.writelines(parts)
            if self._paused:
                self._enter(State.WRITING)
                while self._paused:
                    await self._wait()
            if close:
                transport.close()
                return
            self._need = 1
            self._enter(State.IDLE)

    def _enter(self, state: State) -> None:
        self.state = state
        self._begun = self._server.now
        self._mark = 0

    async def _wait_for_more(self) -> None:
        if self.state is not State.READING:
            self._enter(State.READING)
        await self._wait()

    async def _wait(self) -> None:
        self._waiter = self._server.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _find_head(self) -> tuple[Head | None, int]:
        """The head, and where the body begins.

        Without a head: -1 for a request that is not plain, 0 for one that is not there yet.
        """
        data = self._data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._need = len(data) + 1
            return None, -1 if len(data) > _MAX_HEAD_BYTES else 0
        end += 4
        if end > _KNOWN_HEAD_BYTES:
            head = parse_head(data) if end <= _MAX_HEAD_BYTES else None
            return head, -1 if head is None else end
        # Clients say the same again and again.
        text = bytes(data[:end])
        known = self._server.heads
        head = known.get(text)
        if head is None:
            head = parse_head(text)
            if head is None:
                return None, -1
            if len(known) >= _KNOWN_HEADS:
                known.clear()
            known[text] = head
        return head, end

    def _take(self, start: int, end: int) -> Buffer:
        """The body; what follows it stays."""
        data = self._data
        self._release()
        if end == len(data):
            self._data = b""
            return data[start:] if end - start < _JOIN_BELOW else memoryview(data)[start:]
        self._data = bytes(data[end:])
        return bytes(data[start:end])

    def _release(self) -> None:
        self._server.held_bytes -= self._held
        self._held = 0

    def _hand_over(self) -> None:
        """Has aiohttp go on with this connection, from the beginning of the request on."""
        data = bytes(self._data)
        self._data = b""
        self._release()
        other = self._server.other()
        other.leave = self._leave
        self._transport.set_protocol(other)
        self._server.forget(self)
        other.connection_made(self._transport)
        other.data_received(data)

    def _finish(self, answer: HttpAnswer) -> None:
        """Answers a request whose rest nobody will read."""
        self._transport.writelines(self._encoded(answer, close=True))
        # Closed at once, the answer would be lost to a peer that is still sending.
        self._data = b""
        self._release()
        self._enter(State.LINGERING)

    def _encoded(self, answer: HttpAnswer, *, close: bool) -> list[Buffer]:
        size = answer.size
        extra = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()])
        head = (
            f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, '')}\r\nContent-Type: {answer.content_type}\r\n"
            f"Content-Length: {size}\r\nDate: {self._server.date}\r\n{extra}{_CLOSE if close else ''}\r\n"
        ).encode("latin-1")
        if size < _JOIN_BELOW:
            return [b"".join([head, *answer.parts])]
        return [head, *answer.parts]


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the request did not come in time")


def too_large(limit: int) -> LimitError:
    """The error for a body of more than ``limit`` bytes."""
    return LimitError(f"the body has more than the {limit} bytes that are allowed: max_request_mb")
