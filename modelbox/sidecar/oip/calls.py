"""The boundary that every gRPC call of the sidecar passes: what waits for a peer is bounded, errors become statuses.

Owns the statuses, trailers and texts of failed calls, the end of peers that neither read nor write, and what the
streams of one connection may hold together. Unexpected exceptions are logged here, once, and leave as INTERNAL without
details; what fails because its peer is gone is nobody's concern.
"""

from __future__ import annotations

import logging
import secrets
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Stream
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from modelbox._serving.unary import COMPRESSED, Failure
from modelbox._wire.errors import ERROR_KEY, pack_error
from modelbox.errors import DeadlineExceeded, InvalidError, ModelBoxError
from modelbox.redaction import redact
from modelbox.sidecar.oip.status import retry_after_s, statuses_of

__all__ = ("Allowance", "PeerStream", "bounded", "failure_of", "failure_text")

_LOG = logging.getLogger(__name__)
_STALL_S = 60.0
"""Without any progress of the peer, within one message."""
_MAX_TEXT = 1000
_LEAST_BYTES_PER_S = 64 << 10
"""Speed at which a message has to come, beside that."""
_PREFIX = struct.Struct(">?I")


class _SlowReader(Exception):
    """The peer does not read its answer."""


class Allowance:
    """What the messages of one connection's streams may hold together, from their announcement to their answer.

    Args:
        max_messages: At a time.
        max_bytes: Of requests that are on their way or in work, and of answers that were not sent; one message alone
            may be larger.

    Concurrency: belongs to one event loop. First come, first served.
    """

    __slots__ = ("_max_bytes", "_max_messages", "_waiting", "messages", "size")

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[int, anyio.Event]] = deque()
        self.messages = 0
        self.size = 0

    async def take(self, size: int) -> None:
        """Waits until there is room for a message of ``size`` bytes; answer it with `give`.

        Cancellation: nothing is taken.
        """
        if not self._waiting and self._fits(size):
            self.messages += 1
            self.size += size
            return
        turn = (size, anyio.Event())
        self._waiting.append(turn)
        try:
            await turn[1].wait()
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
                self._admit()
            else:
                self.give(size)
            raise

    def give(self, size: int) -> None:
        """The message is answered, or its stream over."""
        self.messages -= 1
        self.size -= size
        self._admit()

    def change(self, before: int, after: int) -> None:
        """In the place of a request there is its answer now."""
        self.size += after - before
        self._admit()

    def _fits(self, size: int) -> bool:
        return not self.messages or (self.messages < self._max_messages and self.size + size <= self._max_bytes)

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            self.messages += 1
            self.size += size
            turn.set()


class PeerStream:
    """A call's stream, with a bound on every step that waits for the peer.

    Args:
        stream: Of grpclib.
        patient: Whether the peer may take as long as it likes until its next message: for streams.
    """

    __slots__ = ("_patient", "_stream")

    def __init__(self, stream: Stream[Any, Any], *, patient: bool) -> None:
        self._stream = stream
        self._patient = patient

    @property
    def remaining_s(self) -> float | None:
        """Until the deadline that the caller set."""
        deadline = self._stream.deadline
        return deadline.time_remaining() if deadline is not None else None

    async def find_message(self) -> Any:
        """The next message; None at the end of the stream."""
        try:
            if self._patient:
                return await self._stream.recv_message()
            with anyio.fail_after(_STALL_S):
                return await self._stream.recv_message()
        except NotImplementedError as exc:
            raise GRPCError(Status.UNIMPLEMENTED, COMPRESSED) from exc
        except AssertionError as exc:
            raise InvalidError("the stream ended in the middle of a message") from exc
        except TimeoutError as exc:
            raise DeadlineExceeded(f"the message did not come within {_STALL_S:.0f} s") from exc

    @property
    def connection(self) -> object:
        """What it has in common with the other streams of its peer's connection."""
        return self._stream._stream.connection

    @property
    def has_data(self) -> bool:
        """Whether bytes have come that nobody has read."""
        buffer = self._stream._stream.buffer
        return buffer._acked_size > 0 or any(data.data_size for data in buffer._unacked._queue)  # type: ignore[attr-defined]

    async def find_announced(self) -> int | None:
        """Waits for the next message to begin, as long as the peer likes.

        Returns:
            Its bytes, to be read with `read_announced`; None at the end of the stream.

        Cancellation: what has come of the announcement is kept.
        """
        try:
            prefix = await self._stream._stream.recv_data(_PREFIX.size)
        except AssertionError as exc:
            raise InvalidError("the stream ended in the middle of a message") from exc
        if not prefix:
            return None
        compressed, size = _PREFIX.unpack(prefix)
        if compressed:
            raise GRPCError(Status.UNIMPLEMENTED, COMPRESSED)
        return int(size)

    async def read_announced(self, size: int) -> Any:
        """The message that `find_announced` found.

        Raises:
            InvalidError: It is none, or its end did not come.
            LimitError: It is larger than allowed.
            DeadlineExceeded: It did not come in time.
        """
        stream = self._stream
        allowed_s = _STALL_S + size / _LEAST_BYTES_PER_S
        try:
            with anyio.fail_after(allowed_s):
                data = await stream._stream.recv_data(size)
        except AssertionError as exc:
            raise InvalidError("the stream ended in the middle of a message") from exc
        except TimeoutError as exc:
            raise DeadlineExceeded(f"the message did not come within {allowed_s:.0f} s") from exc
        if len(data) < size:
            raise InvalidError("the stream ended in the middle of a message")
        return stream._codec.decode(data, stream._recv_type)

    async def recv_message(self) -> Any:
        """The one message of a call."""
        message = await self.find_message()
        if message is None:
            raise InvalidError("the call has no message")
        return message

    async def send_message(self, message: Any) -> None:
        """Sends an answer."""
        try:
            with anyio.fail_after(_STALL_S):
                await self._stream.send_message(message)
        except TimeoutError as exc:
            raise _SlowReader from exc

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.find_message()) is not None:
            yield message


def bounded(methods: Mapping[str, Handler]) -> dict[str, Handler]:
    """``methods`` behind the boundary; their functions get a `PeerStream`."""
    return {path: method._replace(func=_Bounded(path, method)) for path, method in methods.items()}


class _Bounded:
    def __init__(self, path: str, method: Handler) -> None:
        self._path = path
        self._func: Callable[[Any], Awaitable[None]] = method.func
        self._patient = method.cardinality.client_streaming

    async def __call__(self, stream: Stream[Any, Any]) -> None:
        try:
            await self._answer(stream)
        except Exception as exc:
            if _is_cancelled(stream):
                raise anyio.get_cancelled_exc_class() from exc
            raise
        if _is_cancelled(stream):
            # grpclib logs a call that was cancelled and ends otherwise.
            raise anyio.get_cancelled_exc_class()

    async def _answer(self, stream: Stream[Any, Any]) -> None:
        try:
            await self._func(PeerStream(stream, patient=self._patient))
        except _SlowReader:
            _LOG.info("cut off a reader of %s that does not read", self._path)
            _cut_off(stream)
        except (GRPCError, StreamTerminatedError):
            # A status as it is; or the peer went away, and grpclib ends the call.
            raise
        except Exception as exc:
            if _is_gone(stream):
                _LOG.debug("the peer of %s is gone: %s", self._path, exc)
                stream._cancel_done = True
            else:
                await _fail(stream, exc, self._path)


def failure_text(error: Exception, what: str) -> str:
    """What a caller reads of ``error``; an unexpected one is logged, and named by a number only."""
    if isinstance(error, ModelBoxError):
        return redact(error.message)
    request_id = secrets.token_hex(6)
    _LOG.exception("%s failed unexpectedly (request %s)", what, request_id, exc_info=error)
    return f"the sidecar failed unexpectedly: see its log, request {request_id}"


def failure_of(error: Exception, what: str) -> Failure:
    """How a call ends because of ``error``."""
    if not isinstance(error, ModelBoxError):
        error = ModelBoxError(failure_text(error, what))
    metadata: dict[str, str | bytes] = {ERROR_KEY: pack_error(error)}
    pause_s = retry_after_s(error)
    if pause_s is not None:
        metadata["retry-after"] = f"{pause_s:g}"
    return Failure(
        status=int(statuses_of(error).grpc), text=redact(error.message)[:_MAX_TEXT].strip(), metadata=metadata
    )


async def _fail(stream: Stream[Any, Any], error: Exception, what: str) -> None:
    failure = failure_of(error, what)
    try:
        with anyio.fail_after(_STALL_S):
            await stream.send_trailing_metadata(
                status=Status(failure.status), status_message=failure.text, metadata=failure.metadata
            )
    except TimeoutError:
        _cut_off(stream)
    except (ProtocolError, StreamTerminatedError):
        # It went away meanwhile.
        stream._cancel_done = True


def _is_gone(stream: Stream[Any, Any]) -> bool:
    """Whether nobody is there any more to take an answer."""
    return not stream._stream.closable


def _is_cancelled(stream: Stream[Any, Any]) -> bool:
    """Whether grpclib has cancelled the call: its peer is gone or has reset it, or its deadline is over."""
    wrapper = stream._stream.wrapper
    return wrapper is not None and wrapper._error is not None


def _cut_off(stream: Stream[Any, Any]) -> None:
    """Resets a call's stream; where the peer does not read at all, its connection."""
    inner = stream._stream
    if not inner.connection.write_ready.is_set():
        inner._transport.abort()
    elif inner.closable:
        inner.reset_nowait(ErrorCodes.ENHANCE_YOUR_CALM)
    stream._cancel_done = True
