"""What goes wrong on the wire, in our own words, and when to try again.

Owns the translation of grpclib's, aiohttp's and the operating system's errors (`map_errors`) and the one place where
calls are repeated (`Retries`): idempotent calls and such that never left this machine, errors that say so, with full
jitter, bounded by attempts, by the caller's deadline, and by a budget, so that a server in trouble is not met with more
calls than before (at most a tenth more).
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
import anyio
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.exceptions import ProtocolError as GrpclibProtocolError

from modelbox.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidError,
    ModelBoxError,
    ProtocolError,
    Unavailable,
)

__all__ = ("Call", "ConnectFailed", "Retries", "backoff_s", "map_errors", "os_error_text", "unpacked")

T = TypeVar("T")
_R = TypeVar("_R")
_ATTEMPTS = 4
_BASE_S = 0.1
_CAP_S = 2.0
_BUDGET = 10.0
_REFUND = 0.1
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
_OUR_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")


class ConnectFailed(OSError):
    """No connection came about, so nothing was sent."""


@contextmanager
def map_errors(what: str) -> Iterator[None]:
    """Raises what a transport raises as errors of `modelbox.errors`.

    Covers a single step as well as the iteration of a stream; put no caller's code inside.

    Args:
        what: Whom we talk to, for the text: "the server at http://…".
    """
    task = asyncio.current_task()
    cancels = task.cancelling() if task is not None else 0
    try:
        yield
    except (ModelBoxError, asyncio.CancelledError):
        raise
    except Exception as exc:
        error = _translated(exc, what)
        if error is None:
            raise
        # grpclib wakes a waiting task by cancelling it. That cancellation ends here, or every later timeout in this
        # task would take it for its own.
        while task is not None and task.cancelling() > cancels:
            task.uncancel()
        raise error from exc


def _translated(exc: Exception, what: str) -> ModelBoxError | None:
    match exc:
        case ConnectFailed():
            return Unavailable(f"{what} cannot be reached: {exc}. Is it running?")
        case GRPCError():
            # Without our own trailer: whoever holds the stream has looked for it before.
            return Unavailable(f"{what} ended the call: {exc.message or exc.status.name}")
        case StreamTerminatedError():
            return Unavailable(f"the connection to {what} broke: {exc}")
        case GrpclibProtocolError():
            return ProtocolError(f"{what} does not speak as agreed: {exc}")
        case aiohttp.ClientConnectorCertificateError() if isinstance(exc.certificate_error, ssl.SSLError):
            return Unavailable(f"{what} cannot be reached: {_tls_text(exc.certificate_error)}")
        case aiohttp.ClientConnectorSSLError() if isinstance(exc.os_error, ssl.SSLError):
            return Unavailable(f"{what} cannot be reached: {_tls_text(exc.os_error)}")
        case aiohttp.ClientConnectorError():
            return Unavailable(f"{what} cannot be reached: {os_error_text(exc.os_error)}. Is it running?")
        case aiohttp.ConnectionTimeoutError():
            return Unavailable(f"{what} cannot be reached: it does not answer")
        case aiohttp.InvalidURL():
            return ConfigError(f"{what}: this is not an address")
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
            return Unavailable(f"the connection to {what} broke: {str(exc) or type(exc).__name__}")
        case aiohttp.ClientError():
            return ProtocolError(f"{what} does not speak as agreed: {exc}")
        case TimeoutError():
            return DeadlineExceeded(f"{what} did not answer in time")
        case OSError():
            return Unavailable(f"the connection to {what} broke: {exc}")
    return None


def os_error_text(exc: OSError) -> str:
    """What the system says of ``exc``; asyncio puts addresses in its place."""
    if isinstance(exc, ssl.SSLError):
        return _tls_text(exc)
    if exc.errno is not None and exc.errno > 0:
        return os.strerror(exc.errno)
    return exc.strerror or str(exc)


def _tls_text(exc: ssl.SSLError) -> str:
    """What to do about a handshake that failed; its numbers are no errors of the system."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        what = exc.verify_message.rstrip(".")
        return f"its certificate is not believed ({what}); tls_ca says which authorities are"
    reason = exc.reason or str(exc)
    if reason in _NO_TLS:
        return "it does not speak TLS there: does its address begin with http://?"
    if any(word in reason for word in _OUR_CERTIFICATE):
        return f"it does not take this client's certificate ({_plain(reason)}): see tls_client_cert"
    return f"no TLS connection came about ({_plain(reason)})"


def _plain(reason: str) -> str:
    return reason.replace("_", " ").lower()


def unpacked(unpack: Callable[[T], _R], message: T, what: str) -> _R:
    """Reads an answer with a function of `modelbox._wire`.

    Raises:
        ProtocolError: It is not what the protocol allows.
    """
    try:
        return unpack(message)
    except InvalidError as exc:
        raise ProtocolError(f"{what} sent an answer that cannot be read: {exc}") from exc


def backoff_s(attempt: int, *, base_s: float = _BASE_S, cap_s: float = _CAP_S) -> float:
    """How long to wait before attempt ``attempt`` (from 1): full jitter below a doubling limit."""
    return random.uniform(0, min(cap_s, base_s * 2 ** min(attempt - 1, 30)))


class Call:
    """One call's attempts: how much time is left, and whether anything was sent.

    Attributes:
        deadline: On anyio's clock.
        sent: Set by the attempt once its request may have reached the server.
    """

    __slots__ = ("deadline", "sent")

    def __init__(self, timeout_s: float) -> None:
        self.deadline = anyio.current_time() + timeout_s
        self.sent = False

    @property
    def remaining_s(self) -> float:
        """Seconds left, 0 or less when the deadline has passed."""
        return self.deadline - anyio.current_time()


class Retries:
    """Repeats calls to one server; see the module."""

    def __init__(self) -> None:
        self._budget = _BUDGET

    async def run(self, attempt: Callable[[Call], Awaitable[T]], *, timeout_s: float, idempotent: bool, what: str) -> T:
        """Runs ``attempt`` until it succeeds, fails for good, or its time is over.

        Raises:
            DeadlineExceeded: The time is over.
            ModelBoxError: The last attempt's error.
        """
        call = Call(timeout_s)
        heard = ""
        for number in range(1, _ATTEMPTS + 1):
            call.sent = False
            try:
                with anyio.fail_after(max(0.0, call.remaining_s)):
                    result = await attempt(call)
            except TimeoutError as exc:
                if isinstance(exc, ModelBoxError):
                    raise
                raise DeadlineExceeded(f"{what} did not answer within {timeout_s:g} s{heard}") from exc
            except ModelBoxError as exc:
                pause_s = max(backoff_s(number), _retry_after_s(exc))
                repeatable = exc.retryable and (idempotent or not call.sent or exc.code == "busy")
                if not repeatable or number == _ATTEMPTS or self._budget < 1 or pause_s >= call.remaining_s:
                    raise
                self._budget -= 1
                heard = f"; before that: {exc}"
                await anyio.sleep(pause_s)
            else:
                self._budget = min(_BUDGET, self._budget + _REFUND)
                return result
        raise AssertionError("the last attempt returns or raises")


def _retry_after_s(error: ModelBoxError) -> float:
    value = error.fields.get("retry_after_s", 0)
    return min(float(value), 60.0) if isinstance(value, int | float) and value > 0 else 0.0
