"""The boundary that every gRPC call of the sidecar passes: what waits for a peer is bounded, errors become statuses.

Owns the statuses, trailers and texts of failed calls, and the end of peers that neither read nor write. Unexpected
exceptions are logged here, once, and leave as INTERNAL without details.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Stream
from h2.errors import ErrorCodes

from modelbox._serving.unary import COMPRESSED, Failure
from modelbox._wire.errors import ERROR_KEY, pack_error
from modelbox.errors import DeadlineExceeded, InvalidError, ModelBoxError
from modelbox.sidecar.oip.status import retry_after_s, statuses_of

__all__ = ("PeerStream", "bounded", "failure_of", "failure_text")

_LOG = logging.getLogger(__name__)
_STALL_S = 60.0
"""Without any progress of the peer, within one message."""
_MAX_TEXT = 1000


class _SlowReader(Exception):
    """The peer does not read its answer."""


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
            await self._func(PeerStream(stream, patient=self._patient))
        except _SlowReader:
            _LOG.info("cut off a reader of %s that does not read", self._path)
            _cut_off(stream)
        except (GRPCError, StreamTerminatedError):
            # A status as it is; or the peer went away, and grpclib ends the call.
            raise
        except Exception as exc:
            await _fail(stream, exc, self._path)


def failure_text(error: Exception, what: str) -> str:
    """What a caller reads of ``error``; an unexpected one is logged, and named by a number only."""
    if isinstance(error, ModelBoxError):
        return error.message
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
    return Failure(status=int(statuses_of(error).grpc), text=error.message[:_MAX_TEXT], metadata=metadata)


async def _fail(stream: Stream[Any, Any], error: Exception, what: str) -> None:
    failure = failure_of(error, what)
    try:
        with anyio.fail_after(_STALL_S):
            await stream.send_trailing_metadata(
                status=Status(failure.status), status_message=failure.text, metadata=failure.metadata
            )
    except TimeoutError:
        _cut_off(stream)


def _cut_off(stream: Stream[Any, Any]) -> None:
    """Resets a call's stream; where the peer does not read at all, its connection."""
    inner = stream._stream
    if not inner.connection.write_ready.is_set():
        inner._transport.abort()
    elif inner.closable:
        inner.reset_nowait(ErrorCodes.ENHANCE_YOUR_CALM)
    stream._cancel_done = True
