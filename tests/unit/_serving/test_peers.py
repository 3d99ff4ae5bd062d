"""What a connection says of its other end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def names_of(*names: tuple[str, Any]) -> tuple[str, ...]:
    return peer_of(Wire(peercert={"subject": (), "subjectAltName": names})).certificate_names


def test_names_are_those_of_the_certificate() -> None:
    certificate = {
        "subject": ((("commonName", "admin"),),),
        "subjectAltName": (
            ("DNS", "ci.example.org"),
            ("DNS", "*.gpu_1.example.org"),
            ("URI", "spiffe://example.org/ci"),
            ("email", "ci@example.org"),
            ("IP Address", "192.0.2.7"),
            ("IP Address", "2001:DB8:0:0:0:0:0:7"),
            ("DNS", "ci.example.org"),
            ("DirName", ((("commonName", "root"),),)),
            ("Registered ID", "1.2.3"),
        ),
    }
    assert peer_of(Wire(peercert=certificate)).certificate_names == (
        "ci.example.org",
        "*.gpu_1.example.org",
        "spiffe://example.org/ci",
        "ci@example.org",
        "192.0.2.7",
        "2001:db8::7",
    )


@pytest.mark.parametrize("kind", ["DNS", "URI", "email", "IP Address"])
@pytest.mark.parametrize(
    ("meant", "text"),
    [
        ("DNS", "ci.example.org"),
        ("URI", "spiffe://example.org/ci"),
        ("URI", "urn:ci"),
        ("email", "ci@example.org"),
        ("IP Address", "192.0.2.7"),
        ("IP Address", "2001:db8::7"),
        ("IP Address", "fe80::"),
        ("", "a name"),
        ("", ""),
        ("", "a@b@c"),
    ],
)
def test_a_name_passes_for_no_other_kind(kind: str, meant: str, text: str) -> None:
    assert names_of((kind, text)) == ((text,) if kind == meant else ())


@given(text=st.text(max_size=30) | st.from_regex(r"[a-f0-9.:@/*-]{1,20}", fullmatch=True))
def test_no_text_is_a_name_of_two_kinds(text: str) -> None:
    assert sum(names_of((kind, text)) != () for kind in ("DNS", "URI", "email", "IP Address")) <= 1


@pytest.mark.parametrize("certificate", [None, {}, {"subject": ()}])
def test_without_a_certificate_there_are_no_names(certificate: Any) -> None:
    assert peer_of(Wire(peercert=certificate)).certificate_names == ()


def test_where_there_is_no_connection_nobody_is_known() -> None:
    assert peer_of(None) is UNKNOWN
