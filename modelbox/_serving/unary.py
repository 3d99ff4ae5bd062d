"""Unary gRPC calls without the machinery of streams: for methods that are called often.

HTTP/2 in Python costs 0.3 ms for one call, most of it in h2's and grpclib's objects for a stream that lives for one
message each way. Here the frames of such a call are read and written directly: its headers are recognised by their
bytes, its message is handed to an asynchronous function, the answer is one write. Everything else of the connection
(settings, pings, other methods) goes to h2 and grpclib as before, frame by frame.

What is shared with h2 stays consistent: the header table (all blocks are decoded in order; answers never change the
peer's), the connection's windows, the highest stream. A stream belongs to one of both sides for its whole life.

Invariants, beside those of `guard`: one call holds one message of at most ``max_message_bytes`` each way; a call ends
when its peer does not read its answer for ``stall_s``, or sends its message slower than `_LEAST_BYTES_PER_S`; a peer's
calls, read or unread, are at most ``max_streams``. Calls begin only while the answers that the peer has not taken, and
those that are likely to come of the calls under way (`_MAX_RUNNING` at most), are at most `_MAX_OWED` bytes; until then
requests wait, and what they hold is bounded by the connection's window, which is not given back for them. What breaks
the rules of one stream ends that call; what leaves the connection's own state in doubt ends the connection.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from grpclib.metadata import Deadline, encode_grpc_message
from grpclib.protocol import H2Protocol
from grpclib.server import Handler
from h2.connection import H2Connection
from h2.exceptions import FlowControlError
from hpack.exceptions import HPACKError

from modelbox._serving.grpc import REFUSED, STOPPING, GrpcServer, Servable
from modelbox._serving.guard import GuardedProtocol, Limits
from modelbox._serving.headers import HeaderDecoder, literal
from modelbox._serving.peers import UNKNOWN, Peer, peer_of
from modelbox.errors import DeadlineExceeded, InvalidError, LimitError

__all__ = ("COMPRESSED", "DirectMethod", "DirectServer", "Failure", "SoonMethod")

_LOG = logging.getLogger(__name__)

DirectMethod = Callable[[bytes | memoryview, float | None], Coroutine[Any, Any, bytes]]
"""Answers one message with one; the second argument is what is left of the caller's deadline, in seconds."""

SoonMethod = Callable[[bytes | memoryview, float | None, Callable[[bytes | Exception], None]], bool]
"""The same without a task: the answer or an exception goes to the third argument, once, later and on the event loop.
False where nothing was begun, so that the `DirectMethod` has to."""

_PREFACE_BYTES = 24
_FRAME = struct.Struct(">HBBBL")
_PREFIX = struct.Struct(">BI")
_DATA, _HEADERS, _RST_STREAM, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 7, 8, 9
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_NO_ERROR, _PROTOCOL_ERROR, _FLOW_CONTROL_ERROR, _STREAM_CLOSED, _REFUSED_STREAM, _ENHANCE_YOUR_CALM = 0, 1, 3, 5, 7, 11
_MAX_WINDOW = (1 << 31) - 1
_ID = (1 << 31) - 1
_UNIMPLEMENTED, _UNAVAILABLE = 12, 14
_MAX_DEBT = 1 << 20
"""Bytes of errors and control frames for a peer that does not read, which no window holds back."""
_MAX_OWED = 32 << 20
"""Bytes of answers for one peer at a time; one answer may be larger."""
_MAX_RUNNING = 128
"""Calls of one peer under way at a time, whatever their answers are taken to be."""
_FIRST_ANSWER_BYTES = 1 << 20
"""How large a connection's answers are taken to be before there was one."""
_WRITE_BYTES = 1 << 18
_LEAST_BYTES_PER_S = 64 << 10
"""Speed at which a message has to come, as long as nothing of ours holds it back."""

COMPRESSED = (
    "compressed messages are not taken: send them with grpc-encoding identity (tritonclient: no compression_algorithm)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a call fails.

    Attributes:
        status: Of gRPC.
        text: For the caller.
        metadata: Trailers; bytes for keys that end with ``-bin``.
    """

    status: int
    text: str
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Head:
    """What a block of headers asks for."""

    method: DirectMethod
    soon: SoonMethod | None
    timeout_s: float | None
    context: Context | None


class _Call:
    """One call."""

    __slots__ = (
        "answer",
        "body",
        "complete",
        "done",
        "expected",
        "head",
        "marked",
        "moved_at",
        "sent",
        "stream_id",
        "task",
        "unacknowledged",
        "window",
    )

    def __init__(self, stream_id: int, head: _Head, done: asyncio.Future[None], now: float) -> None:
        self.stream_id = stream_id
        self.head = head
        self.done = done
        self.moved_at = now
        self.body: bytes | bytearray = b""
        self.complete = False
        # What had come of it at `moved_at`.
        self.marked = 0
        self.expected = -1
        self.unacknowledged = 0
        self.task: asyncio.Task[None] | None = None
        self.answer: memoryview | None = None
        self.sent = 0
        # What window updates of this stream have added.
        self.window = 0


class _DirectProtocol(GuardedProtocol):
    """One connection of a peer.

    Args:
        methods: By path.
        soon: The same; what these do not begin, ``methods`` do.
        fail: What becomes of an exception; logs it where nobody expected it.
        stall_s: See the module.
        context_of: See `DirectServer`.
    """

    def __init__(
        self,
        *arguments: Any,
        methods: Mapping[str, DirectMethod],
        soon: Mapping[str, SoonMethod],
        fail: Callable[[Exception], Failure],
        stall_s: float,
        context_of: Callable[[Mapping[str, str], Peer], Context] | None,
    ) -> None:
        super().__init__(*arguments)
        self._context_of = context_of
        self._methods = methods
        self._soon = soon
        self._fail_with = fail
        self._stall_s = stall_s
        self._peer = UNKNOWN
        self._preface = _PREFACE_BYTES
        self._rest = b""
        self._continues = False
        self._calls: dict[int, _Call] = {}
        self._blocked: dict[int, _Call] = {}
        self._debt = 0
        self._waiting: deque[tuple[_Call, bytes | memoryview]] = deque()
        self._running = 0
        self._owed = 0
        self._likely = _FIRST_ANSWER_BYTES
        self._unacknowledged = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._goaway = b""
        self._step = int(stall_s * _LEAST_BYTES_PER_S)
        self._loop = asyncio.get_running_loop()

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello."""
        super().connection_made(transport)
        if self._dead:
            return
        self._peer = peer_of(transport)
        h2 = self.connection._connection
        headers = HeaderDecoder(self._read_head, h2.decoder.max_header_list_size)
        headers.max_allowed_table_size = h2.decoder.max_allowed_table_size
        h2.decoder = headers
        self._headers = headers
        self._h2: H2Connection = h2
        # Kept here, as h2 forgets the connection's transport when it closes.
        self._write: Callable[[bytes], None] = self.connection._transport.write

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends the peer's calls."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._waiting.clear()
        for call in tuple(self._calls.values()):
            self._drop(call)
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The peer reads again."""
        super().resume_writing()
        self._debt = 0
        self._unblock()

    def data_received(self, data: bytes) -> None:
        """Takes bytes: whole frames go to whom they concern."""
        if self._preface:
            start, data = data[: self._preface], data[self._preface :]
            self._preface -= len(start)
            self._feed(start)
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        max_frame = self._h2.max_inbound_frame_size if not self._dead else 0
        while not self._dead and end - at >= 9:
            high, low, kind, flags, stream_id = _FRAME.unpack_from(data, at)
            length = high << 8 | low
            if length > max_frame:
                _LOG.debug("a peer sent a frame of %d bytes", length)
                self._abort()
                return
            after = at + 9 + length
            if after > end:
                break
            stream_id &= _ID
            if self._continues or not self._take(kind, flags, stream_id, data, at + 9, after):
                if kind in (_HEADERS, _CONTINUATION):
                    self._continues = not flags & _END_HEADERS
                self._feed(data[at:after])
                if self._blocked:
                    # It may have been a window update, or settings that change windows.
                    self._unblock()
            at = after
        self._rest = data[at:] if at < end else b""

    def _take(self, kind: int, flags: int, stream_id: int, data: bytes, start: int, end: int) -> bool:
        """Handles a frame of one of our calls; false if it is none."""
        if kind == _DATA:
            call = self._calls.get(stream_id)
            if call is not None:
                return self._take_data(call, flags, data, start, end)
        elif kind == _HEADERS:
            if stream_id > self._h2.highest_inbound_stream_id and stream_id & 1:
                return flags == _END_HEADERS and self._open(stream_id, data[start:end])
            call = self._calls.get(stream_id)
            if call is not None:
                return self._take_trailers(call, flags, data[start:end])
        elif kind == _RST_STREAM and stream_id in self._calls:
            self._drop(self._calls[stream_id])
            if not self.processor._resets.take():
                self._flooded("stream resets")
            return True
        elif kind == _WINDOW_UPDATE and stream_id in self._calls and end - start == 4:
            return self._widen(self._calls[stream_id], int.from_bytes(data[start:end], "big") & _ID)
        elif kind == _GOAWAY and self._calls and end - start >= 8 and not any(data[start + 4 : start + 8]):
            # The peer opens no more streams, and waits for those that it has: h2 would drop them.
            self._goaway = _FRAME.pack(0, 8, _GOAWAY, 0, 0) + data[start : start + 8]
            return True
        # Streams that are over: h2 knows its own, the others were ours.
        if not stream_id or not stream_id & 1 or kind not in (_DATA, _RST_STREAM, _WINDOW_UPDATE):
            return False
        h2 = self._h2
        if stream_id > h2.highest_inbound_stream_id or stream_id in h2.streams or stream_id in h2._closed_streams:
            return False
        if kind == _DATA:
            self._acknowledge(end - start)
        elif kind == _RST_STREAM and not self.processor._resets.take():
            self._flooded("stream resets")
        return True

    # -- requests

    def _read_head(self, headers: list[tuple[str, str]]) -> _Head | None:
        found = dict(headers)
        path = found.get(":path", "")
        method = self._methods.get(path)
        if (
            method is None
            or found.get(":method") != "POST"
            or found.get("te") != "trailers"
            or found.get("content-type") not in ("application/grpc", "application/grpc+proto")
            or not {":scheme", ":path", ":method"} <= found.keys()
            or len(found) != len(headers)
        ):
            return None
        # Malformed deadlines raise ValueError; grpclib answers them.
        deadline = Deadline.from_headers(headers)
        return _Head(
            method,
            self._soon.get(path),
            deadline.time_remaining() if deadline is not None else None,
            self._context_of(found, self._peer) if self._context_of is not None else None,
        )

    def _open(self, stream_id: int, block: bytes) -> bool:
        try:
            head = self._headers.look(block)
        except HPACKError as exc:
            _LOG.debug("a peer sent broken headers: %s", exc)
            self._abort()
            return True
        if head is None:
            return False
        h2 = self._h2
        h2.highest_inbound_stream_id = stream_id
        if len(self._calls) + len(h2.streams) >= self._limits.max_streams:
            self._reset(stream_id, _REFUSED_STREAM)
            if not self.processor._resets.take():
                self._flooded("calls beyond the limit")
            return True
        loop = self._loop
        call = _Call(stream_id, head, loop.create_future(), loop.time())
        self._calls[stream_id] = call
        # A stop of the server waits for it.
        handler = cast(Handler, self.handler)
        handler._tasks[cast(Any, call)] = cast(Any, call.done)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._stall_s / 4, self._sweep)
        if cast(Any, handler).stopping:
            self._fail_as(call, Failure(status=_UNAVAILABLE, text=STOPPING, metadata=REFUSED))
        return True

    def _take_trailers(self, call: _Call, flags: int, block: bytes) -> bool:
        """Trailers of a request: gRPC has none."""
        if flags != _END_HEADERS | _END_STREAM:
            self._abort()
            return True
        try:
            # Later blocks may refer to what this one has put into the table.
            self._headers.decode(block, raw=True)
        except HPACKError as exc:
            _LOG.debug("a peer sent broken headers: %s", exc)
            self._abort()
            return True
        if call.complete:
            self._end(call, _STREAM_CLOSED)
        else:
            self._fail(call, InvalidError("a call has no trailers"))
        return True

    def _end(self, call: _Call, code: int) -> None:
        """Resets the call's stream, and forgets it."""
        self._reset(call.stream_id, code)
        self._drop(call)
        if not self.processor._resets.take():
            self._flooded("broken calls")

    def _take_data(self, call: _Call, flags: int, data: bytes, start: int, end: int) -> bool:
        self._acknowledge(end - start)
        if self._dead:
            return True
        if call.complete:
            # Data after the end of the stream.
            self._end(call, _STREAM_CLOSED)
            return True
        call.unacknowledged += end - start
        if flags & _PADDED and end > start:
            padding = data[start] + 1
            if padding > end - start:
                self._abort()
                return True
            start, end = start + 1, end - padding + 1
        if not call.body:
            call.body = data[start:end]
        else:
            if type(call.body) is bytes:
                call.body = bytearray(call.body)
            call.body += memoryview(data)[start:end]
        size = len(call.body) - 5
        if size - call.marked >= self._step or flags & _END_STREAM:
            call.moved_at, call.marked = self._loop.time(), size
        if call.expected < 0 <= size and not self._begin(call):
            return True
        if 0 <= call.expected < size:
            self._fail(call, InvalidError("a unary call takes one message"))
        elif flags & _END_STREAM:
            if size == call.expected and size >= 0:
                message = call.body[5:] if type(call.body) is bytes else memoryview(call.body)[5:]
                call.body = b""
                call.complete = True
                if self._waiting or not self._may_begin():
                    self._waiting.append((call, message))
                else:
                    self._start(call, message, call.head.timeout_s)
            else:
                what = "ended in the middle of its message" if call.body else "has no message"
                self._fail(call, InvalidError(f"the call {what}"))
        elif call.unacknowledged >= self._limits.stream_window_bytes >> 1:
            self._update_window(call.stream_id, call.unacknowledged)
            call.unacknowledged = 0
        return True

    def _begin(self, call: _Call) -> bool:
        """Reads the message's prefix; false when the call failed."""
        compressed, call.expected = _PREFIX.unpack_from(call.body)
        allowed = self._limits.max_message_bytes
        if compressed:
            self._fail_as(call, Failure(status=_UNIMPLEMENTED, text=COMPRESSED))
            return False
        if call.expected > allowed:
            text = f"a message of {call.expected} bytes, more than the {allowed} allowed"
            self._fail(call, LimitError(text, max_message_bytes=allowed))
            return False
        return True

    def _may_begin(self) -> bool:
        if not self._owed and not self._running:
            return True
        likely = self._owed + (self._running + 1) * self._likely
        return self._running < _MAX_RUNNING and likely <= _MAX_OWED

    def _start(self, call: _Call, message: bytes | memoryview, timeout_s: float | None) -> None:
        self._running += 1
        head, context = call.head, call.head.context
        if head.soon is not None:
            done = partial(self._answer_soon, call)
            if (
                head.soon(message, timeout_s, done)
                if context is None
                else context.run(head.soon, message, timeout_s, done)
            ):
                return
        call.task = self._loop.create_task(
            self._run(call, message, timeout_s),
            name="unary call",
            # Calls with the same headers share what they mean, and nothing else.
            context=context.copy() if context is not None else None,
        )
        # However it ends: a task that is cancelled before its first step never runs.
        call.task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._running -= 1
        if self._waiting:
            self._start_waiting()

    def _answer_soon(self, call: _Call, outcome: bytes | Exception) -> None:
        """Answers a call that has no task."""
        self._running -= 1
        if call.stream_id in self._calls:
            if isinstance(outcome, Exception):
                self._fail(call, outcome)
            else:
                self._likely = max(len(outcome), self._likely >> 1)
                self._answer(call, outcome)
        if self._waiting:
            self._start_waiting()

    def _start_waiting(self) -> None:
        """Begins what waited for answers to be taken."""
        while self._waiting and not self._dead and self._may_begin():
            call, message = self._waiting.popleft()
            if call.stream_id not in self._calls:
                continue
            timeout_s = call.head.timeout_s
            if timeout_s is not None:
                timeout_s = max(0.0, timeout_s - (self._loop.time() - call.moved_at))
            self._start(call, message, timeout_s)
        if not self._waiting and self._unacknowledged:
            size, self._unacknowledged = self._unacknowledged, 0
            self._give_back(size)

    async def _run(self, call: _Call, message: bytes | memoryview, timeout_s: float | None) -> None:
        try:
            answer = await call.head.method(message, timeout_s)
        except Exception as exc:
            self._fail(call, exc)
        else:
            self._likely = max(len(answer), self._likely >> 1)
            if call.stream_id in self._calls:
                self._answer(call, answer)

    # -- answers

    def _answer(self, call: _Call, answer: bytes) -> None:
        size = len(answer) + 5
        h2 = self._h2
        if size <= h2.max_outbound_frame_size and not self._blocked and size <= self._room(call):
            h2.outbound_flow_control_window -= size
            stream_id = call.stream_id
            self._write(
                b"".join(
                    (
                        self._header_frames(stream_id, _ANSWER_HEAD),
                        _FRAME.pack(size >> 8, size & 0xFF, _DATA, 0, stream_id),
                        _PREFIX.pack(0, len(answer)),
                        answer,
                        _FRAME.pack(0, len(_ANSWER_TAIL), _HEADERS, _END_HEADERS | _END_STREAM, stream_id),
                        _ANSWER_TAIL,
                    )
                )
            )
            self._close(call)
            return
        self._tell(self._header_frames(call.stream_id, _ANSWER_HEAD))
        call.answer = memoryview(_PREFIX.pack(0, len(answer)) + answer)
        self._owed += size
        self._blocked[call.stream_id] = call
        self._unblock()

    def _room(self, call: _Call) -> int:
        """Bytes that the peer takes of this answer now."""
        if not self.connection.write_ready.is_set():
            return 0
        h2 = self._h2
        own = h2.remote_settings.initial_window_size + call.window - call.sent
        return min(own, h2.outbound_flow_control_window)

    def _unblock(self) -> None:
        """Sends what the windows allow of the answers that wait."""
        for call in tuple(self._blocked.values()):
            while not self._dead and (room := self._room(call)) > 0:
                if self._send_part(call, min(room, _WRITE_BYTES)):
                    self._close(call)
                    break

    def _send_part(self, call: _Call, room: int) -> bool:
        """Sends up to ``room`` bytes of an answer; true when that was the rest."""
        answer = call.answer
        assert answer is not None
        h2 = self._h2
        chunk = answer[call.sent : call.sent + room]
        h2.outbound_flow_control_window -= len(chunk)
        call.sent += len(chunk)
        self._owed -= len(chunk)
        call.moved_at = self._loop.time()
        frame = h2.max_outbound_frame_size
        parts: list[bytes | memoryview] = []
        for at in range(0, len(chunk), frame):
            piece = chunk[at : at + frame]
            parts += (_FRAME.pack(len(piece) >> 8, len(piece) & 0xFF, _DATA, 0, call.stream_id), piece)
        over = call.sent == len(answer)
        if over:
            parts += (
                _FRAME.pack(0, len(_ANSWER_TAIL), _HEADERS, _END_HEADERS | _END_STREAM, call.stream_id),
                _ANSWER_TAIL,
            )
        self._write(b"".join(parts))
        return over

    def _header_frames(self, stream_id: int, block: bytes, flags: int = 0) -> bytes:
        """The frames of a block of headers."""
        h2 = self._h2
        if h2.encoder.header_table.resized:
            # The peer has made its table smaller, and the next block has to say that we know.
            block = h2.encoder.encode([]) + block
        size, most = len(block), h2.max_outbound_frame_size
        if size <= most:
            return _FRAME.pack(size >> 8, size & 0xFF, _HEADERS, flags | _END_HEADERS, stream_id) + block
        parts: list[bytes] = []
        for at in range(0, size, most):
            part = block[at : at + most]
            last = _END_HEADERS if at + most >= size else 0
            kind = _CONTINUATION if at else _HEADERS
            parts += (_FRAME.pack(len(part) >> 8, len(part) & 0xFF, kind, last | (0 if at else flags), stream_id), part)
        return b"".join(parts)

    def _widen(self, call: _Call, increment: int) -> bool:
        call.window += increment
        own = self._h2.remote_settings.initial_window_size + call.window - call.sent
        if not increment or own > _MAX_WINDOW:
            self._end(call, _FLOW_CONTROL_ERROR if increment else _PROTOCOL_ERROR)
        elif self._blocked:
            self._unblock()
        return True

    def _fail(self, call: _Call, error: Exception) -> None:
        self._fail_as(call, self._fail_with(error))

    def _fail_as(self, call: _Call, failure: Failure) -> None:
        if call.stream_id not in self._calls:
            return
        block = bytearray(_ANSWER_HEAD)
        block += literal("grpc-status", str(failure.status))
        block += literal("grpc-message", encode_grpc_message(failure.text.strip()))
        for key, value in failure.metadata.items():
            plain = b64encode(value).rstrip(b"=").decode() if isinstance(value, bytes) else value
            block += literal(key, plain)
        self._tell(self._header_frames(call.stream_id, bytes(block), _END_STREAM))
        if not call.complete:
            # The rest of the message is not wanted.
            self._reset(call.stream_id, _NO_ERROR)
        self._close(call)

    # -- ends

    def _close(self, call: _Call) -> None:
        """Forgets a call."""
        self._calls.pop(call.stream_id, None)
        if self._blocked.pop(call.stream_id, None) is not None and call.answer is not None:
            self._owed -= len(call.answer) - call.sent
            call.answer = None
        cast(Handler, self.handler)._tasks.pop(cast(Any, call), None)
        if not call.done.done():
            call.done.set_result(None)
        if self._waiting:
            self._start_waiting()
        if self._goaway and not self._calls:
            goaway, self._goaway = self._goaway, b""
            # When the answer has left.
            self._loop.call_soon(self._feed, goaway)

    def _drop(self, call: _Call) -> None:
        """Ends a call of which nobody wants to know any more."""
        self._close(call)
        if call.task is not None:
            call.task.cancel()

    def _sweep(self) -> None:
        """Ends calls whose peer keeps them waiting."""
        self._sweeper = None
        if not self._calls or self._dead:
            return
        now = self._loop.time()
        late = now - self._stall_s
        for call in tuple(self._calls.values()):
            if self._waiting and not call.complete:
                # It is our window that its message waits for, if anything.
                call.moved_at = now
            if call.moved_at > late:
                continue
            if call.answer is not None:
                _LOG.info("cut off a reader of a gRPC call that does not read")
                if not self.connection.write_ready.is_set():
                    self._abort()
                    return
                self._reset(call.stream_id, _ENHANCE_YOUR_CALM)
                self._drop(call)
            elif not call.complete:
                self._fail(call, DeadlineExceeded(f"the message did not come within {self._stall_s:g} s"))
        self._sweeper = self._loop.call_later(self._stall_s / 4, self._sweep)

    # -- frames

    def _acknowledge(self, size: int) -> None:
        """Accounts for received data, and gives the peer's window back."""
        if not size:
            return
        window = self._h2._inbound_flow_control_window_manager
        try:
            window.window_consumed(size)
        except FlowControlError:
            self._abort()
            return
        if self._waiting:
            self._unacknowledged += size
        else:
            self._give_back(size)

    def _give_back(self, size: int) -> None:
        increment = self._h2._inbound_flow_control_window_manager.process_bytes(size)
        if increment:
            self._update_window(0, increment)

    def _update_window(self, stream_id: int, increment: int) -> None:
        self._tell(_FRAME.pack(0, 4, _WINDOW_UPDATE, 0, stream_id) + increment.to_bytes(4, "big"))

    def _reset(self, stream_id: int, code: int) -> None:
        self._tell(_FRAME.pack(0, 4, _RST_STREAM, 0, stream_id) + code.to_bytes(4, "big"))

    def _tell(self, data: bytes) -> None:
        """Writes what no window holds back; not without end to a peer that does not read."""
        if not self.connection.write_ready.is_set():
            self._debt += len(data)
            if self._debt > _MAX_DEBT:
                self._flooded("calls whose answers nobody reads")
                return
        self._write(data)


_ANSWER_HEAD = b"\x88" + literal("content-type", "application/grpc+proto")
"""``:status 200`` from the static table, and the type."""
_ANSWER_TAIL = literal("grpc-status", "0")


class DirectServer(GrpcServer):
    """A `GrpcServer` with methods that are answered directly.

    Args:
        services: What else is served; for paths in ``methods``, too, where a call is unusual.
        limits: What peers may do.
        codec: Of ``services``.
        methods: By path.
        soon: Of some of ``methods``, without a task for each call.
        fail: What becomes of an exception of theirs; logs it where nobody expected it.
        stall_s: How long a peer may keep a call waiting, seconds.
        context_of: What a call's headers, and who sends them, say to its method, as a context that the method runs in;
            asked once for equal headers of one connection.
        endless: See `GrpcServer`.
        on_stop: The same.
    """

    def __init__(
        self,
        services: Collection[Servable],
        *,
        limits: Limits,
        codec: Any,
        methods: Mapping[str, DirectMethod],
        fail: Callable[[Exception], Failure],
        soon: Mapping[str, SoonMethod] | None = None,
        stall_s: float = 60.0,
        context_of: Callable[[Mapping[str, str], Peer], Context] | None = None,
        endless: tuple[str, ...] = (),
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(services, limits=limits, codec=codec, endless=endless, on_stop=on_stop)
        self._direct = {
            "methods": dict(methods),
            "soon": dict(soon or {}),
            "fail": fail,
            "stall_s": stall_s,
            "context_of": context_of,
        }

    def _make_protocol(self, handler: Handler) -> H2Protocol:
        return _DirectProtocol(
            handler, self._config, self._h2_config, self._limits, self._table, **cast(Any, self._direct)
        )
