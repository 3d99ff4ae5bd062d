"""Who is at the other end of a connection, as far as the connection itself says."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from typing import Any

__all__ = ("UNKNOWN", "Peer", "peer_of")

_KINDS = {"DNS": "dns", "URI": "uri", "email": "email", "IP Address": "ip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The other end.

    Attributes:
        address: Without a port; empty if there is none. Behind a balancer it is the balancer's.
        certificate_names: The names (SANs) in the client's certificate, which was checked; each says of what kind it
            is: ``dns:ci.example.org``, ``uri:spiffe://example.org/ci``, ``email:ci@example.org``, ``ip:192.0.2.7``.
    """

    address: str = ""
    certificate_names: tuple[str, ...] = ()


UNKNOWN = Peer()


def peer_of(transport: asyncio.BaseTransport | None) -> Peer:
    """Who is at the other end of ``transport``; cheap enough for every request."""
    if transport is None:
        return UNKNOWN
    certificate = transport.get_extra_info("peercert")
    return Peer(
        address=_address(transport.get_extra_info("peername")),
        certificate_names=_names(certificate) if certificate else (),
    )


def _address(peername: Any) -> str:
    if not isinstance(peername, tuple) or not peername:
        return ""
    text = str(peername[0]).partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _names(certificate: Any) -> tuple[str, ...]:
    names = [f"{_KINDS[kind]}:{value}" for kind, value in certificate.get("subjectAltName", ()) if kind in _KINDS]
    return tuple(dict.fromkeys(names))
