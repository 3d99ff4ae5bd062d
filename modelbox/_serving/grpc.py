"""The gRPC server: grpclib's, guarded, with a drain that loses no call.

Owns the order of a stop: new connections and calls are refused, running handlers finish within their time, what they
sent is taken by its peer, then that peer gets GOAWAY and its connection is closed. Peers do not wait for one another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, Protocol, cast
from weakref import WeakSet

import anyio
from grpclib.const import Handler as Method
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.protocol import H2Protocol, Stream
from grpclib.server import Handler, Server
from h2.exceptions import H2Error

from modelbox._serving.guard import ConnectionTable, GuardedProtocol, Limits
from modelbox._serving.listening import Listener, listen

__all__ = ("REFUSED", "STOPPING", "GrpcServer", "Servable")

_LOG = logging.getLogger(__name__)
_CANCEL_GRACE_S = 5.0
_GOODBYE_S = 1.0
STOPPING = "the server is stopping and takes no more calls"
"""What callers are told who come too late; as it is in a header, plain ASCII."""
REFUSED: Mapping[str, bytes] = {
    "modelbox-error-bin": json.dumps(
        {"code": "busy", "message": STOPPING, "fields": {"retry_after_s": 0.1}}, separators=(",", ":")
    ).encode()
}
"""The same for our clients, as `modelbox._wire.pack_error` would: the call did not begin and can be repeated."""


class Servable(Protocol):
    """A service's methods by path."""

    def __mapping__(self) -> dict[str, Method]:
        """The methods."""


class _Handler(Handler):
    """The calls of one connection."""

    endless: tuple[str, ...] = ()
    stopping = False
    """No more calls are taken."""

    def accept(self, stream: Stream, headers: Any, release_stream: Callable[[], Any]) -> None:
        """Begins a call."""
        if self.stopping:
            self._tasks[stream] = self.loop.create_task(_refuse(stream, release_stream), name="refused gRPC call")
            return
        super().accept(stream, headers, release_stream)
        if self.endless and dict(headers).get(":path", "").startswith(self.endless):
            self._ambient.add(self._tasks[stream])

    @property
    def running(self) -> list[asyncio.Future[None]]:
        """The calls that have not ended."""
        return [task for task in self._tasks.values() if not task.done()]

    @cached_property
    def _ambient(self) -> WeakSet[asyncio.Task[None]]:
        return WeakSet()

    def end_endless(self) -> None:
        """Cancels the calls that would not end by themselves."""
        for task in self._ambient:
            task.cancel()


async def _refuse(stream: Stream, release_stream: Callable[[], Any]) -> None:
    """Ends a call that comes too late, so that its caller may make it elsewhere."""
    try:
        headers = [(":status", "200"), ("content-type", "application/grpc+proto")]
        headers += [("grpc-status", str(Status.UNAVAILABLE.value)), ("grpc-message", STOPPING)]
        headers += [(key, b64encode(value).rstrip(b"=").decode()) for key, value in REFUSED.items()]
        with contextlib.suppress(H2Error):
            await stream.send_headers(headers, end_stream=True)
            if stream.closable:
                stream.reset_nowait()
    finally:
        release_stream()


class GrpcServer(Server):
    """Serves ``services`` on sockets that are bound already.

    Args:
        services: What to serve.
        limits: What peers may do.
        codec: How bytes become messages.
        endless: Beginnings of the paths whose calls last as long as their callers like, such as a watch of the health;
            a stop ends them at once.
        on_stop: Called when a stop begins, for calls that should end then of themselves.
    """

    def __init__(
        self,
        services: Collection[Servable],
        *,
        limits: Limits,
        codec: CodecBase,
        endless: tuple[str, ...] = (),
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(services, codec=codec, config=limits.configuration())
        self._endless = endless
        self._on_stop = on_stop
        self._stopping = False
        self._limits = limits
        self._table = ConnectionTable(limits)
        self._listeners: list[Listener] = []

    @property
    def connections(self) -> int:
        """Open connections, with those whose handshake is under way."""
        return len(self._table.shares)

    @property
    def refused(self) -> int:
        """Connections that were closed at once, as there were too many."""
        return self._table.refused

    @property
    def running(self) -> int:
        """Handlers that have not ended."""
        return sum(not task.done() for handler in self._handlers for task in handler._tasks.values())

    def _protocol_factory(self) -> H2Protocol:
        self.__gc_step__()
        handler = _Handler(self._mapping, self._codec, None, self.__dispatch__)
        handler.endless = self._endless
        handler.stopping = self._stopping
        self._handlers.add(handler)
        return self._make_protocol(handler)

    def _make_protocol(self, handler: Handler) -> H2Protocol:
        """One connection, whose calls ``handler`` runs."""
        return GuardedProtocol(handler, self._config, self._h2_config, self._limits, self._table)

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begins to accept on ``sock``; with ``tls``, connections begin by its handshake."""
        self._listeners.append(
            await listen(
                self._protocol_factory,
                sock,
                tls=tls,
                handshake_timeout_s=self._limits.hello_timeout_s,
                shares=self._table.shares,
            )
        )

    def stop_listening(self) -> None:
        """Refuses new connections."""
        for listener in self._listeners:
            listener.close()

    async def aclose(self, *, grace_s: float) -> int:
        """Stops: handlers get ``grace_s`` seconds to end, then they are cancelled.

        Returns:
            How many had to be cancelled.
        """
        self.stop_listening()
        self._stopping = True
        for handler in tuple(self._handlers):
            if isinstance(handler, _Handler):
                handler.stopping = True
                handler.end_endless()
        if self._on_stop is not None:
            self._on_stop()
        end = anyio.current_time() + grace_s
        cut_off = 0

        async def part_with(protocol: GuardedProtocol) -> None:
            nonlocal cut_off
            handler = cast(_Handler, protocol.handler)
            with anyio.CancelScope(deadline=end):
                while running := handler.running:
                    await asyncio.wait(running)
                await protocol.wait_sent()
            cut_off += len(handler.running)
            await protocol.say_goodbye(timeout=_GOODBYE_S)

        async with anyio.create_task_group() as tasks:
            for protocol in self._table.all():
                tasks.start_soon(part_with, protocol, name="stop serving a gRPC peer")
        for handler in self._handlers:
            handler.close()
        with anyio.move_on_after(_CANCEL_GRACE_S, shield=True) as scope:
            for handler in tuple(self._handlers):
                await handler.wait_closed()
        if scope.cancelled_caught:
            _LOG.warning("gRPC handlers did not end within %s s after they were cancelled", _CANCEL_GRACE_S)
        return cut_off
