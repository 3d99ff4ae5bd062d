"""What a connection says of its other end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelbox._serving.peers import UNKNOWN, peer_of


class Wire(asyncio.BaseTransport):
    """A transport that says what it is told to."""

    def __init__(self, **info: Any) -> None:
        super().__init__(info)


@pytest.mark.parametrize(
    ("peername", "address"),
    [
        (("192.0.2.7", 4711), "192.0.2.7"),
        (("2001:db8::7", 4711, 0, 0), "2001:db8::7"),
        (("::ffff:192.0.2.7", 4711, 0, 0), "192.0.2.7"),
        (("fe80::7%eth0", 4711, 0, 2), "fe80::7"),
        ("/run/modelbox/sidecar.sock", ""),
        ("", ""),
        ((), ""),
        (None, ""),
    ],
)
def test_an_address_is_said_in_one_way(peername: Any, address: str) -> None:
    assert peer_of(Wire(peername=peername)).address == address


def test_names_say_of_what_kind_they_are() -> None:
    certificate = {
        "subject": ((("commonName", "admin"),),),
        "subjectAltName": (
            ("DNS", "ci.example.org"),
            ("URI", "spiffe://example.org/ci"),
            ("email", "ci@example.org"),
            ("IP Address", "192.0.2.7"),
            ("DNS", "ci.example.org"),
            ("DirName", ((("commonName", "root"),),)),
        ),
    }
    assert peer_of(Wire(peercert=certificate)).certificate_names == (
        "dns:ci.example.org",
        "uri:spiffe://example.org/ci",
        "email:ci@example.org",
        "ip:192.0.2.7",
    )


@pytest.mark.parametrize("certificate", [None, {}, {"subject": ()}])
def test_without_a_certificate_there_are_no_names(certificate: Any) -> None:
    assert peer_of(Wire(peercert=certificate)).certificate_names == ()


def test_where_there_is_no_connection_nobody_is_known() -> None:
    assert peer_of(None) is UNKNOWN
