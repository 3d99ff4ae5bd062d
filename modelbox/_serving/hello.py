"""Ends HTTP connections whose peer never sends a request, and those that are too many.

aiohttp takes any number of connections, and waits for the head of the first request without a limit, so that a few
hundred silent sockets would stay for ever. Later requests are bounded by its keep-alive timeout.
"""

from __future__ import annotations

import time

import anyio
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from modelbox._serving.shares import ConnectionShares, limit_http

__all__ = ("HelloWatch",)


class HelloWatch:
    """Watches the connections of one server.

    Args:
        timeout_s: Until the whole head of the first request.
        shares: Which connections there may be; None for any number.
    """

    def __init__(self, timeout_s: float, shares: ConnectionShares | None = None) -> None:
        self._timeout_s = timeout_s
        self.shares = shares
        self._since: dict[RequestHandler, float] = {}
        self._greeted: set[RequestHandler] = set()

    def limit(self, server: web.Server) -> None:
        """Has ``server`` close what is one too many; before its first connection."""
        if self.shares is not None:
            limit_http(server, self.shares)

    def greet(self, request: web.BaseRequest) -> None:
        """Notes that a connection has sent a request."""
        self._greeted.add(request.protocol)

    def sweep(self, server: web.Server) -> int:
        """Ends those that had their time; returns how many."""
        now = time.monotonic()
        live = set(server.connections)
        self._greeted &= live
        self._since = {connection: self._since.get(connection, now) for connection in live - self._greeted}
        late = [connection for connection, since in self._since.items() if now - since >= self._timeout_s]
        for connection in late:
            if connection.transport is not None:
                connection.transport.abort()
        return len(late)

    async def run(self, server: web.Server) -> None:
        """Sweeps until it is cancelled."""
        while True:
            await anyio.sleep(self._timeout_s / 4)
            self.sweep(server)
