"""How a socket that is bound begins to accept: with or without TLS, for every protocol alike.

Invariant: a connection counts from the moment it is accepted, not from the end of its handshake.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

from aiohttp import web
from aiohttp.web_runner import BaseSite

from modelbox._serving.peers import address_of_peer
from modelbox._serving.shares import ConnectionShares

__all__ = ("BACKLOG", "BoundSite", "Listener", "listen")

_LOG = logging.getLogger(__name__)

BACKLOG = 1024
_SHUTDOWN_S = 2.0
"""For a peer to say good-bye as TLS wants it."""
_ACCEPT_AT_ONCE = 100
_NO_ROOM = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
_PAUSE_S = 1.0
"""Until a process without another file descriptor may have one."""


class Listener(Protocol):
    """What accepts connections."""

    def close(self) -> None:
        """Accepts no more; idempotent. Connections that are open stay."""


async def listen(
    factory: Callable[[], asyncio.BaseProtocol],
    sock: socket.socket,
    *,
    tls: ssl.SSLContext | None,
    handshake_timeout_s: float,
    shares: ConnectionShares | None = None,
) -> Listener:
    """Begins to accept on ``sock``.

    Args:
        factory: Makes what reads a connection; with TLS only after its handshake.
        sock: Bound already.
        tls: None for plaintext.
        handshake_timeout_s: Seconds for the whole handshake of TLS.
        shares: What ``factory`` makes has to `ConnectionShares.admit` itself. A connection whose handshake is under way
            counts there, too, and is closed at once where it is one too many. None for any number.
    """
    if tls is None:
        return await asyncio.get_running_loop().create_server(factory, sock=sock, backlog=BACKLOG)
    return _TlsListener(factory, sock, tls, handshake_timeout_s=handshake_timeout_s, shares=shares)


class _TlsListener:
    """Accepts connections that begin by a handshake of TLS.

    Servers of event loops say whose a connection is when its handshake has ended, and until then take any number of
    them: a peer that never ends it would have more connections than its share, each with the state of its handshake.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        tls: ssl.SSLContext,
        *,
        handshake_timeout_s: float,
        shares: ConnectionShares | None,
    ) -> None:
        self._factory = factory
        self._sock = sock
        self._tls = tls
        self._handshake_timeout_s = handshake_timeout_s
        self._shares = shares
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._begin()

    def close(self) -> None:
        """Accepts no more, and breaks handshakes off. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for task in self._handshakes:
            task.cancel()

    def _begin(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                connection, peername = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in _NO_ROOM:
                    raise
                _LOG.error("no connection can be accepted for now: %s", exc.strerror)
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(_PAUSE_S, self._begin)
                return
            connection.setblocking(False)
            address = address_of_peer(peername)
            if self._shares is not None and not self._shares.admit(address):
                connection.close()
                continue
            start = _Start(self._factory, partial(self._shares.leave, address) if self._shares is not None else None)
            task = self._loop.create_task(self._shake(connection, start), name="handshake of TLS")
            self._handshakes.add(task)
            task.add_done_callback(partial(self._shaken, connection, start))

    async def _shake(self, connection: socket.socket, start: _Start) -> None:
        start.taken = True
        try:
            await self._loop.connect_accepted_socket(
                lambda: start,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except Exception as exc:
            # Whatever a peer makes of it, it is the peer's business: it has told it, or is gone.
            _LOG.debug("a handshake of TLS failed: %s", exc)

    def _shaken(self, connection: socket.socket, start: _Start, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        start.leave()
        if not start.taken:
            # Cancelled before its first step; later on the socket is its transport's.
            connection.close()


class _Start(asyncio.Protocol):
    """A connection until the end of its handshake, counted from its acceptance on.

    Attributes:
        taken: Whether somebody looks after its socket.
    """

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], leave: Callable[[], None] | None) -> None:
        self._factory = factory
        self._leave = leave
        self.taken = False

    def leave(self) -> None:
        """Counts the handshake out; again is no error."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hands over to what reads the connection, which takes the place that is free now."""
        self.leave()
        reader = self._factory()
        cast(asyncio.Transport, transport).set_protocol(reader)
        reader.connection_made(transport)


class BoundSite(BaseSite):
    """An HTTP application of aiohttp on a socket that is bound already; see `listen`."""

    def __init__(
        self,
        runner: web.AppRunner,
        sock: socket.socket,
        *,
        tls: ssl.SSLContext | None,
        handshake_timeout_s: float,
        shares: ConnectionShares | None = None,
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=BACKLOG)
        self._sock = sock
        self._handshake_timeout_s = handshake_timeout_s
        self._shares = shares

    @property
    def name(self) -> str:
        """Where it listens."""
        host, port = self._sock.getsockname()[:2]
        scheme = "https" if self._ssl_context is not None else "http"
        return f"{scheme}://{host}:{port}"

    async def start(self) -> None:
        """Begins to accept."""
        await super().start()
        server = self._runner.server
        assert server is not None
        listener = await listen(
            server,
            self._sock,
            tls=self._ssl_context,
            handshake_timeout_s=self._handshake_timeout_s,
            shares=self._shares,
        )
        # Nothing but `close` is called.
        self._server = cast(asyncio.AbstractServer, listener)
