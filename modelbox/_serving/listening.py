"""How a socket that is bound begins to accept: with or without TLS, for every protocol alike."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from aiohttp import web
from aiohttp.web_runner import BaseSite

__all__ = ("BACKLOG", "BoundSite", "listen")

BACKLOG = 1024
_SHUTDOWN_S = 2.0
"""For a peer to say good-bye as TLS wants it."""


async def listen(
    factory: Callable[[], asyncio.BaseProtocol],
    sock: socket.socket,
    *,
    tls: ssl.SSLContext | None,
    handshake_timeout_s: float,
) -> asyncio.Server:
    """Begins to accept on ``sock``.

    Args:
        factory: Makes what reads a connection; with TLS only after its handshake.
        sock: Bound already.
        tls: None for plaintext.
        handshake_timeout_s: Seconds for the whole handshake of TLS.
    """
    loop = asyncio.get_running_loop()
    if tls is None:
        return await loop.create_server(factory, sock=sock, backlog=BACKLOG)
    return await loop.create_server(
        factory,
        sock=sock,
        backlog=BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=handshake_timeout_s,
        ssl_shutdown_timeout=_SHUTDOWN_S,
    )


class BoundSite(BaseSite):
    """An HTTP application of aiohttp on a socket that is bound already; see `listen`."""

    def __init__(
        self, runner: web.AppRunner, sock: socket.socket, *, tls: ssl.SSLContext | None, handshake_timeout_s: float
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=BACKLOG)
        self._sock = sock
        self._handshake_timeout_s = handshake_timeout_s

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
        self._server = await listen(
            server, self._sock, tls=self._ssl_context, handshake_timeout_s=self._handshake_timeout_s
        )
