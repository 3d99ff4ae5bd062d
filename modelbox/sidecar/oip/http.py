"""The HTTP server of the Open Inference Protocol: listening, time limits and the drain.

Owns the set of connections and what they may hold together. Plain requests are read by `http_connection`; what is not
plain is read by aiohttp and answered by the same `Routes`.

Invariants: bodies that are on their way are bounded, each and all together. Who does not get on with a request, or does
not read an answer, is cut off after ``idle_timeout_s``.

Concurrency: belongs to one event loop of asyncio.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import anyio
import anyio.abc
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from anyio import AsyncContextManagerMixin

from modelbox._serving.hello import HelloWatch
from modelbox._serving.listening import Listener, listen
from modelbox._serving.process import hide_versions
from modelbox._serving.shares import ConnectionShares
from modelbox.errors import DeadlineExceeded, InvalidError, ModelBoxError
from modelbox.refs import shown
from modelbox.sidecar.oip.http_connection import (
    KEEPALIVE_S,
    LEAST_BYTES_PER_S,
    LINGER_S,
    Connection,
    Head,
    State,
    too_large,
)
from modelbox.sidecar.oip.routes import HttpAnswer, HttpRequest, Routes, failure

__all__ = ("HttpServer",)

_SWEEP_S = 1.0
_HANDSHAKE_S = 5.0
_MAX_CONNECTIONS = 10_000

# aiohttp logs every piece of garbage that a peer sends with a traceback. What goes wrong here is logged by `Routes`.
_UNUSUAL_LOG = logging.getLogger(__name__ + ".unusual")
_UNUSUAL_LOG.addFilter(lambda record: record.levelno >= logging.CRITICAL)


class _UnusualHandler(RequestHandler):
    """aiohttp's connection, which answers what it cannot read as everything else is answered.

    Attributes:
        leave: Counts the connection out, at its end.
    """

    __slots__ = ("leave",)

    def __init__(self, manager: web.Server, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self.leave: Callable[[], None] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection has ended."""
        super().connection_lost(exc)
        leave, self.leave = self.leave, None
        if leave is not None:
            leave()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is on its way already")
        if status >= 500:
            _UNUSUAL_LOG.critical("an HTTP request failed unexpectedly", exc_info=exc)
            answer = failure(ModelBoxError("the sidecar failed unexpectedly: see its log"))
        else:
            answer = failure(InvalidError("this is no HTTP request that can be understood"), status=status)
        response = _other_response(answer)
        response.force_close()
        return response


class _UnusualServer(web.Server):
    def __call__(self) -> _UnusualHandler:
        return _UnusualHandler(self, loop=self._loop, **self._kwargs)


class HttpServer(AsyncContextManagerMixin):
    """Serves `Routes` on sockets that are bound already; an asynchronous context manager.

    Args:
        routes: What the paths do.
        max_body_bytes: Of one request.
        shares: How many connections there may be; those beyond are answered 503 and closed.
        idle_timeout_s: Seconds that a client may leave a request unfinished or an answer unread.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        max_body_bytes: int = 64 << 20,
        shares: ConnectionShares | None = None,
        idle_timeout_s: float = 30.0,
    ) -> None:
        self.routes = routes
        self.max_body_bytes = max_body_bytes
        self.shares = shares if shares is not None else ConnectionShares(_MAX_CONNECTIONS)
        self.idle_timeout_s = idle_timeout_s
        self.max_held_bytes = max(16 * max_body_bytes, 256 << 20)
        self.held_bytes = 0
        self.draining = False
        self.now = time.monotonic()
        self.date = formatdate(usegmt=True)
        self.heads: dict[bytes, Head] = {}
        self.plain: set[Connection] = set()
        self._listeners: list[Listener] = []
        self._ended = anyio.Event()
        self._hello = HelloWatch(idle_timeout_s)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[HttpServer]:
        self.loop = asyncio.get_running_loop()
        hide_versions()
        self.other = _UnusualServer(
            self._answer_other,
            access_log=None,
            logger=_UNUSUAL_LOG,
            auto_decompress=False,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_S,
        )
        async with anyio.create_task_group() as self.tasks:
            self.tasks.start_soon(self._sweep, name="HTTP time limits")
            try:
                yield self
            finally:
                self.stop_listening()
                for connection in tuple(self.plain):
                    connection.abort()
                with anyio.move_on_after(LINGER_S, shield=True):
                    await self.other.shutdown(0)
                self.tasks.cancel_scope.cancel()

    @property
    def connections(self) -> int:
        """Open connections, with those whose handshake is under way."""
        return len(self.shares)

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begins to accept on ``sock``; with ``tls``, connections begin by its handshake."""
        self._listeners.append(
            await listen(
                lambda: Connection(self),
                sock,
                tls=tls,
                handshake_timeout_s=min(_HANDSHAKE_S, self.idle_timeout_s),
                shares=self.shares,
            )
        )

    def stop_listening(self) -> None:
        """Refuses new connections; idempotent."""
        for listener in self._listeners:
            listener.close()

    async def aclose(self, *, grace_s: float) -> int:
        """Stops: requests get ``grace_s`` seconds to end, then they are cancelled.

        Returns:
            How many had to be cancelled.
        """
        self.stop_listening()
        self.draining = True
        for connection in tuple(self.plain):
            connection.drain()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.other.shutdown, grace_s, name="drain unusual HTTP")
            with anyio.move_on_after(grace_s):
                while self.plain:
                    self._ended = anyio.Event()
                    await self._ended.wait()
        cut_off = [connection for connection in self.plain if connection.state in (State.BUSY, State.WRITING)]
        for connection in tuple(self.plain):
            connection.abort()
        return len(cut_off)

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self.plain.discard(connection)
        if not self.plain:
            self._ended.set()

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(min(_SWEEP_S, self.idle_timeout_s / 4))
            self.now = time.monotonic()
            self.date = formatdate(usegmt=True)
            for connection in tuple(self.plain):
                connection.check_time()
            self._hello.sweep(self.other)

    # -- what is not plain

    async def _answer_other(self, request: web.BaseRequest) -> web.StreamResponse:
        self._hello.greet(request)
        try:
            body = await self._read_other(request)
        except ModelBoxError as exc:
            response = _other_response(failure(exc))
            response.force_close()
            return response
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers.setdefault(name.lower(), value)
        method = "GET" if request.method == "HEAD" else request.method
        answer = await self.routes.answer(HttpRequest(method, request.rel_url.raw_path, headers, body))
        response = _other_response(answer)
        # aiohttp gives the head of a next request all the time in the world.
        response.force_close()
        return response

    async def _read_other(self, request: web.BaseRequest) -> bytearray:
        if request.content_length is not None and request.content_length > self.max_body_bytes:
            raise too_large(self.max_body_bytes)
        if "Expect" in request.headers:
            if request.headers["Expect"].lower() != "100-continue":
                raise InvalidError(f"the expectation {shown(request.headers['Expect'])} cannot be met")
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # Which is not part of the answer.
            request.writer.output_size = 0
        body = bytearray()
        chunks = request.content.iter_any()
        allowed_s = self.idle_timeout_s
        began = time.monotonic()
        while True:
            left_s = began + allowed_s + len(body) / LEAST_BYTES_PER_S - time.monotonic()
            chunk: bytes | None = None
            with anyio.move_on_after(max(left_s, 0.0)) as scope:
                try:
                    chunk = await _next_chunk(chunks)
                except web.RequestPayloadError as exc:
                    raise InvalidError(f"the request's body cannot be read: {exc}") from exc
            if scope.cancelled_caught:
                raise DeadlineExceeded("the request's body did not come in time")
            if chunk is None:
                return body
            body += chunk
            if len(body) > self.max_body_bytes:
                raise too_large(self.max_body_bytes)


async def _next_chunk(chunks: AsyncIterator[bytes]) -> bytes | None:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        return None


def _other_response(answer: HttpAnswer) -> web.Response:
    headers = {"Content-Type": answer.content_type, **answer.headers}
    return web.Response(status=answer.status, body=b"".join(answer.parts), headers=headers)
