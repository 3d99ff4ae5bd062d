"""A load generator for the Open Inference Protocol: callers without a pause, over HTTP/1.1 or over gRPC.

Nothing of a client library is in it: requests are written as bytes that were made before, an answer is cut out of the
stream by its length, and the next request leaves in the same tick. It says how much of a core it took itself
(`Taken.busy`): a figure whose callers are near 1 is one of the callers, not of the server.

Owns the wire only; `bench.oip` knows what is in the bodies. Whatever is no answer of success ends the measurement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, Protocol, cast

__all__ = ("Answered", "Connection", "Exchange", "GrpcConnection", "HttpConnection", "Taken", "call", "keep_calling")

Answered = Callable[[bytes], None]

_READ_BYTES = 64 << 20
_LARGEST_WINDOW = (1 << 31) - 1
_FRAME = 9


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a caller says.

    Attributes:
        first: The body of its first request.
        follow: Makes the next body of an answer; None to say the same again.
    """

    first: bytes
    follow: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What callers saw: seconds of each call, the time they all took, and the share of a core they needed."""

    latencies: tuple[float, ...]
    seconds: float
    busy: float

    @property
    def per_s(self) -> float:
        """Calls per second."""
        return len(self.latencies) / self.seconds


class Connection(Protocol):
    """A way to the server, which one or several callers share."""

    def send(self, body: bytes, answered: Answered) -> None:
        """Sends a request; ``answered`` gets the answer's body."""
        ...

    @property
    def broken(self) -> asyncio.Future[None]:
        """Fails when the connection or a call on it does."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


async def call(connection: Connection, body: bytes) -> bytes:
    """One request, and its answer.

    Raises:
        ConnectionError: There is none, or it says that the call failed.
    """
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    connection.send(body, answer.set_result)
    await _first(answer, [connection])
    return answer.result()


async def keep_calling(connections: Sequence[Connection], exchange: Exchange, *, seconds: float) -> Taken:
    """One caller for each item of ``connections`` (which may repeat), for ``seconds`` seconds.

    Raises:
        ConnectionError: A call failed.
    """
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    busy, began = process_time(), perf_counter()
    took: list[float] = []
    callers = [_Caller(connection, exchange, took, began + seconds) for connection in connections]
    left = len(callers)

    def leave() -> None:
        nonlocal left
        left -= 1
        if not left:
            finished.set_result(None)

    for caller in callers:
        caller.start(leave)
    await _first(finished, connections)
    passed = perf_counter() - began
    return Taken(tuple(took), passed, (process_time() - busy) / passed)


async def _first(wanted: asyncio.Future[Any], connections: Sequence[Connection]) -> None:
    broken: set[asyncio.Future[Any]] = {connection.broken for connection in connections}
    done, _ = await asyncio.wait({wanted, *broken}, return_when=asyncio.FIRST_COMPLETED)
    for future in done & broken:
        future.result()


class _Caller:
    __slots__ = ("_began", "_body", "_connection", "_end", "_follow", "_leave", "_took")

    def __init__(self, connection: Connection, exchange: Exchange, took: list[float], end: float) -> None:
        self._connection = connection
        self._body = exchange.first
        self._follow = exchange.follow
        self._took = took
        self._end = end
        self._began = 0.0
        self._leave: Callable[[], None]

    def start(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self._began = perf_counter()
        self._connection.send(self._body, self._answered)

    def _answered(self, answer: bytes) -> None:
        now = perf_counter()
        self._took.append(now - self._began)
        if now >= self._end:
            self._leave()
            return
        if self._follow is not None:
            self._body = self._follow(answer)
            now = perf_counter()
        self._began = now
        self._connection.send(self._body, self._answered)


class _Base(asyncio.Protocol):
    def __init__(self) -> None:
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by its type.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed the connection ({exc or 'without an error'})")

    def close(self) -> None:
        """Ends the connection."""
        self.broken.cancel()
        self._transport.close()

    def _fail(self, why: str) -> None:
        if not self.broken.done():
            self.broken.set_exception(ConnectionError(why))


class HttpConnection(_Base):
    """One caller's connection over HTTP/1.1, kept open.

    Args:
        head: The request's first lines, without the body's length and without the line that ends them.
    """

    def __init__(self, head: bytes) -> None:
        super().__init__()
        self._head = head + b"Content-Length: "
        self._answered: Answered
        self._data: bytes | bytearray = b""
        self._begin = 0
        self._end = 0

    @classmethod
    async def open(cls, address: str, path: str, *, headers: Sequence[str] = ()) -> HttpConnection:
        """Connects to ``host:port``, for POST requests to ``path``."""
        host, _, port = address.rpartition(":")
        head = "\r\n".join((f"POST {path} HTTP/1.1", f"Host: {address}", *headers, "")).encode()
        _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(head), host, int(port))
        return connection

    def send(self, body: bytes, answered: Answered) -> None:
        """Sends a request; the one before must have been answered."""
        self._answered = answered
        self._transport.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))

    def data_received(self, data: bytes) -> None:
        if self._data:
            self._data += data
        elif self._end or b"\r\n\r\n" not in data or len(data) > 1 << 12:
            self._data = bytearray(data)
        else:
            self._data = data
        if not self._end and not self._read_head():
            return
        if len(self._data) < self._end:
            if type(self._data) is bytes:
                self._data = bytearray(self._data)
            return
        answer = bytes(self._data[self._begin : self._end])
        self._data, self._end = b"", 0
        self._answered(answer)

    def _read_head(self) -> bool:
        at = self._data.find(b"\r\n\r\n")
        if at < 0:
            return False
        head = bytes(self._data[:at])
        if not head.startswith(b"HTTP/1.1 200"):
            self._fail(f"a call failed: {bytes(self._data[:400])!r}")
            return False
        self._begin = at + 4
        found = head.lower().find(b"\r\ncontent-length:")
        if found < 0:
            # In chunks, of which each is preceded by its length and the last one is empty.
            if not self._data.endswith(b"\r\n0\r\n\r\n"):
                return False
            self._data = _unchunked(bytes(self._data[self._begin :]))
            self._begin, self._end = 0, len(self._data)
            return True
        length = head[found + 17 :].partition(b"\r\n")[0]
        self._end = self._begin + int(length)
        return True


class GrpcConnection(_Base):
    """One connection of HTTP/2, which all callers share, as those of one gRPC channel do.

    Args:
        authority: Of the server.
        path: Of the method; a unary one.
    """

    def __init__(self, authority: str, path: str) -> None:
        super().__init__()
        # HPACK without its tables: what never changes need not be made anew (RFC 7541, 6.2.2 and appendix A).
        self._head = b"".join(
            (
                b"\x83\x86",  # POST, http
                b"\x04" + _text(path),
                b"\x01" + _text(authority),
                b"\x0f\x10" + _text("application/grpc"),
                b"\x00" + _text("te") + _text("trailers"),
            )
        )
        self._data = bytearray()
        self._calls: dict[int, _Call] = {}
        self._next = 1
        self._window = 65_535
        self._stream_window = 65_535
        self._largest_frame = 16_384
        self._unread = 0

    @classmethod
    async def open(cls, address: str, path: str) -> GrpcConnection:
        """Connects to ``host:port`` and waits for the server's settings."""
        host, _, port = address.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(lambda: cls(address, path), host, int(port))
        await asyncio.sleep(0.1)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        settings = b"\x00\x02" + bytes(4) + b"\x00\x04" + _LARGEST_WINDOW.to_bytes(4)
        window = (_LARGEST_WINDOW - 65_535).to_bytes(4)
        self._transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, settings) + _frame(8, 0, 0, window))

    def send(self, body: bytes, answered: Answered) -> None:
        """Sends a message."""
        number, self._next = self._next, self._next + 2
        started = self._calls[number] = _Call(number, b"\0%s%s" % (len(body).to_bytes(4), body), answered)
        started.window = self._stream_window
        self._transport.write(_frame(1, 4, number, self._head) + self._some_of(started))

    def data_received(self, data: bytes) -> None:
        self._data += data
        received = self._data
        at = 0
        while len(received) - at >= _FRAME:
            end = at + _FRAME + int.from_bytes(received[at : at + 3])
            if len(received) < end:
                break
            number = int.from_bytes(received[at + 5 : at + 9])
            self._take(received[at + 3], received[at + 4], number, bytes(received[at + _FRAME : end]))
            at = end
        del received[:at]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind <= 1:
            answered = self._calls[number]
            if kind == 0:
                answered.received.append(payload)
                self._unread += len(payload)
                if self._unread > _READ_BYTES:
                    self._transport.write(_frame(8, 0, 0, self._unread.to_bytes(4)))
                    self._unread = 0
            if flags & 1:
                del self._calls[number]
                message = b"".join(answered.received)
                if message:
                    answered.answered(message[5:])
                else:
                    self._fail("a call failed: the answer holds no message")
        elif kind == 3 or kind == 7:
            self._fail(f"the server ended a call or the connection: {payload!r}")
        elif kind == 4 and not flags & 1:
            self._settle(payload)
        elif kind == 6 and not flags & 1:
            self._transport.write(_frame(6, 1, 0, payload))
        elif kind == 8:
            more = int.from_bytes(payload)
            if number == 0:
                self._window += more
                for waiting in tuple(self._calls.values()):
                    self._go_on(waiting)
            elif number in self._calls:
                self._calls[number].window += more
                self._go_on(self._calls[number])

    def _settle(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            value = int.from_bytes(payload[at + 2 : at + 6])
            match int.from_bytes(payload[at : at + 2]):
                case 4:
                    for waiting in self._calls.values():
                        waiting.window += value - self._stream_window
                    self._stream_window = value
                case 5:
                    self._largest_frame = value
        self._transport.write(_frame(4, 1, 0, b""))

    def _go_on(self, waiting: _Call) -> None:
        if waiting.sent < len(waiting.body) and (more := self._some_of(waiting)):
            self._transport.write(more)

    def _some_of(self, call: _Call) -> bytes:
        """As many DATA frames of a message as the server takes now."""
        frames: list[bytes] = []
        size = len(call.body)
        while call.sent < size:
            part = min(size - call.sent, self._window, call.window, self._largest_frame)
            if part <= 0:
                break
            last = call.sent + part == size
            frames.append(_frame(0, 1 if last else 0, call.number, call.body[call.sent : call.sent + part]))
            call.sent += part
            call.window -= part
            self._window -= part
        return b"".join(frames)


class _Call:
    __slots__ = ("answered", "body", "number", "received", "sent", "window")

    def __init__(self, number: int, body: bytes, answered: Answered) -> None:
        self.number = number
        self.body = body
        self.answered = answered
        self.sent = 0
        self.window = 0
        self.received: list[bytes] = []


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return b"%s%c%c%s%s" % (len(payload).to_bytes(3), kind, flags, number.to_bytes(4), payload)


def _unchunked(data: bytes) -> bytes:
    pieces: list[bytes] = []
    while (size := int(data[: (at := data.index(b"\r\n"))], 16)) > 0:
        pieces.append(data[at + 2 : at + 2 + size])
        data = data[at + 4 + size :]
    return b"".join(pieces)


def _text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) >= 127:
        raise ValueError(f"a header field of {len(raw)} bytes is too long for this generator")
    return bytes([len(raw)]) + raw
