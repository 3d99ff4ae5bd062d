"""Who is at the other end of a connection, as far as the connection itself says."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from dataclasses import dataclass
from typing import Any

__all__ = ("UNKNOWN", "Peer", "address_of_peer", "peer_of")

# No text is a name of two kinds: whoever may have a certificate with one cannot pass for another one's.
_SHAPES = {
    "DNS": re.compile(r"[A-Za-z0-9*_.-]+"),
    "URI": re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+"),
    "email": re.compile(r"[^@:\s]+@[^@:\s]+"),
    "IP Address": re.compile(r"[0-9A-Fa-f.:]+"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The other end.

    Attributes:
        address: Without a port; empty if there is none. Behind a balancer it is the balancer's: what that says of
            others, `modelbox._serving.proxies` reads.
        certificate_names: The names (SANs) in the client's certificate, which was checked: ``ci.example.org``,
            ``spiffe://example.org/ci``, ``ci@example.org``, ``192.0.2.7``. Those that could be of another kind are not
            among them.
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
        address=address_of_peer(transport.get_extra_info("peername")),
        certificate_names=_names(certificate) if certificate else (),
    )


def address_of_peer(peername: Any) -> str:
    """The address in what a socket says of its other end; empty if there is none."""
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
    found: dict[str, None] = {}
    for kind, value in certificate.get("subjectAltName", ()):
        shape = _SHAPES.get(kind)
        if shape is None or not isinstance(value, str) or shape.fullmatch(value) is None:
            continue
        address = _is_address(value)
        if address == (kind == "IP Address"):
            found[str(ipaddress.ip_address(value)) if address else value] = None
    return tuple(found)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
