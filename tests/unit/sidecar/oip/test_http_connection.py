"""Heads of plain requests: whatever is read here is read as aiohttp would read it, and the rest is left to aiohttp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelbox.sidecar.oip.http_connection import parse_head

_NAMES = st.text("abcXYZ-09_!", min_size=1, max_size=8).filter(lambda name: name.lower() not in ("te", "host"))
_VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


@given(
    st.sampled_from(["GET", "POST"]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30),
    st.dictionaries(_NAMES, _VALUES, max_size=5),
    st.integers(0, 10**14),
    st.binary(max_size=20),
)
def test_plain_heads(method: str, target: str, fields: dict[str, str], length: int, rest: bytes) -> None:
    lower = {name.lower(): value for name, value in fields.items()}
    lines = [f"{method} /{target} HTTP/1.1", "Host: a", f"CONTENT-length:{length} "]
    lines += [f"{name}:\t{value}" for name, value in fields.items()]
    data = "\r\n".join([*lines, "", ""]).encode("latin-1")
    head = parse_head(data + rest)
    if len(lower) < len(fields):
        assert head is None
        return
    assert head is not None
    assert (head.method, head.path, head.length, head.close) == (method, f"/{target}".partition("?")[0], length, False)
    assert {name: head.headers[name] for name in lower} == {name: value.strip(" \t") for name, value in lower.items()}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_not(data: bytes) -> None:
    head = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n")
    if head is not None:
        # Nothing that another reader could take for the end of a line or of the head came along.
        assert b"\n" not in data.replace(b"\r\n", b"")
        assert not any(set("\r\n\0") & set(name + value) for name, value in head.headers.items())


@pytest.mark.parametrize(
    "lines",
    [
        "GET / HTTP/1.0\r\nHost: a",
        "PUT / HTTP/1.1\r\nHost: a",
        "GET http://a/ HTTP/1.1\r\nHost: a",
        "GET  / HTTP/1.1\r\nHost: a",
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b",
        "GET / HTTP/1.1\r\nHost : a",
        "GET / HTTP/1.1\r\nHost: a\r\n folded",
        "GET / HTTP/1.1\nHost: a",
        "GET / HTTP/1.1\r\nHost: a\nX: b",
        "GET / HTTP/1.1\r\nHost: a\rX: b",
        "GET / HTTP/1.1\r\nHost: a\r\n: b",
        "GET / HTTP/1.1\r\nHost: a\0",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ²",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity",
        "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\nContent-Length: 1",
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade",
    ],
)
def test_heads_that_are_left_to_aiohttp(lines: str) -> None:
    assert parse_head(f"{lines}\r\n\r\n".encode("latin-1")) is None


def test_connection_close() -> None:
    head = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n")
    assert head is not None
    assert head.close
