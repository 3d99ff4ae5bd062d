"""How many connections a server takes, in all and from one address.

An address beyond its share is refused while others are still served: a broken program, or somebody's attack, takes what
one address may have and no more. Addresses of IPv6 count by their /64, which is what one machine usually has.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from modelbox._serving.peers import peer_of

__all__ = ("ConnectionShares", "limit_http", "nobody")

_SHARED_BITS = 64


def nobody(address: str) -> bool:
    """No address is one of those."""
    return False


class ConnectionShares:
    """Counts the open connections of one listening socket.

    Args:
        max_connections: In all.
        max_per_address: From one address; 0 for as many as in all.
        shared: Which addresses are those of many, and have no share: as many as in all.
    """

    def __init__(
        self, max_connections: int, max_per_address: int = 0, *, shared: Callable[[str], bool] = nobody
    ) -> None:
        self._max = max_connections
        self._shared = shared
        self._max_per_address = max_per_address or max_connections
        self._by_address: Counter[str] = Counter()
        self._open = 0
        self.refused = 0

    def __len__(self) -> int:
        return self._open

    @property
    def full(self) -> bool:
        """Whether no address may have another one."""
        return self._open >= self._max

    def admit(self, address: str) -> bool:
        """Counts a new connection; false, and not counted, where it is one too many. Pair it with `leave`."""
        key = _key(address)
        taken = self._by_address.get(key, 0)
        if self._open >= self._max or (taken >= self._max_per_address and not self._shared(address)):
            self.refused += 1
            return False
        self._open += 1
        self._by_address[key] = taken + 1
        return True

    def leave(self, address: str) -> None:
        """Counts a connection out that was admitted."""
        key = _key(address)
        self._open -= 1
        self._by_address[key] -= 1
        if not self._by_address[key]:
            del self._by_address[key]


def limit_http(server: web.Server, shares: ConnectionShares) -> None:
    """Has a server of aiohttp close connections at once that are too many; before the first of them."""
    made, lost = server.connection_made, server.connection_lost
    admitted: dict[RequestHandler, str] = {}

    def connection_made(handler: RequestHandler, transport: asyncio.Transport) -> None:
        address = peer_of(transport).address
        if shares.admit(address):
            admitted[handler] = address
        else:
            transport.abort()
        made(handler, transport)

    def connection_lost(handler: RequestHandler, exc: BaseException | None = None) -> None:
        address = admitted.pop(handler, None)
        if address is not None:
            shares.leave(address)
        lost(handler, exc)

    server.connection_made = connection_made  # type: ignore[method-assign]  # it has no other hook
    server.connection_lost = connection_lost  # type: ignore[method-assign]


def _key(address: str) -> str:
    if ":" not in address:
        return address
    whole = int(ipaddress.IPv6Address(address))
    return str(ipaddress.IPv6Network((whole >> _SHARED_BITS << _SHARED_BITS, _SHARED_BITS)))
