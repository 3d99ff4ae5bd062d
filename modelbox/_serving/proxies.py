"""Whose calls come through proxies: what a balancer says of who connected to it, and whom to believe that.

Every proxy on the way adds, at the end of ``X-Forwarded-For``, the address that it was called from. What stands before
the last address that none of our proxies has was written by somebody else, and is never looked at.

Invariant: nothing that a peer says changes its address, unless the peer is one of the proxies that the settings name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from modelbox._serving.settings import Kind, SettingError
from modelbox.refs import shown

__all__ = ("FORWARDED_FOR", "NETWORKS", "NO_PROXIES", "TrustedProxies", "read_networks")

FORWARDED_FOR = "x-forwarded-for"
"""The header, and the key in the metadata of gRPC."""

_MOST_HOPS = 32
_BRACKETS = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?")
_WITH_PORT = re.compile(r"([0-9.]{7,15}):[0-9]{1,5}")

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def read_networks(value: Any) -> tuple[str, ...]:
    """The networks of a setting: a list, or a text with commas or spaces between them.

    Raises:
        ValueError: Something is no network; `SettingError` says which.
    """
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError
    found: dict[str, None] = {}
    for item in items:
        if not isinstance(item, str):
            raise ValueError
        try:
            network = ipaddress.ip_network(item)
        except ValueError as exc:
            raise SettingError(f"{shown(item)} is none, or goes on behind its prefix") from exc
        if not network.prefixlen:
            raise SettingError(f"{shown(item)} is everybody, and everybody could say any address")
        found[str(network)] = None
    return tuple(found)


NETWORKS = Kind(read=read_networks, allowed="addresses or networks such as 10.0.3.0/24, with commas between, or empty")


class TrustedProxies:
    """The proxies that are believed.

    Args:
        networks: Their addresses, as `read_networks` gives them.
    """

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._networks: tuple[_Network, ...] = tuple(ipaddress.ip_network(network) for network in networks)

    def trusts(self, address: str) -> bool:
        """Whether ``address`` is one of theirs."""
        if not self._networks:
            return False
        read = _read(address)
        return read is not None and self._has(read)

    def caller(self, address: str, forwarded: Sequence[str]) -> str:
        """Where a call comes from.

        Args:
            address: Of the peer.
            forwarded: The values of `FORWARDED_FOR` that came with the call, in their order.

        Returns:
            The last address in them that is no proxy's; where all are, the first. That of the peer, if it is no proxy
            or what it says cannot be read.
        """
        if not forwarded or not self.trusts(address):
            return address
        hops = ",".join(forwarded).rsplit(",", _MOST_HOPS)
        if len(hops) > _MOST_HOPS:
            # The first one is not of one piece, and longer ways than that do not exist.
            hops = ["", *hops[1:]]
        read: _Address | None = None
        for hop in reversed(hops):
            read = _read(hop.strip(" \t"))
            if read is None:
                return address
            if not self._has(read):
                break
        return str(read)

    def _has(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


NO_PROXIES = TrustedProxies()


def _read(text: str) -> _Address | None:
    """An address, with or without a port; None for everything else."""
    match = _BRACKETS.fullmatch(text) or _WITH_PORT.fullmatch(text)
    bare = match[1] if match is not None else text
    if "%" in bare or (match is not None and (":" in bare) != text.startswith("[")):
        return None
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
