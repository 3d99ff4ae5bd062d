"""Addresses for going past the server, as a server may get them wrong."""

from __future__ import annotations

from typing import Any

import pytest

from modelbox._transport.direct import DirectFailed, DirectTransfers, direct_parts
from modelbox._transport.security import Security
from modelbox.config import load_client_config
from modelbox.errors import ProtocolError
from modelbox.manifest import ManifestFile
from modelbox.refs import Digest


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def part(**changes: Any) -> dict[str, Any]:
    return {"offset": 0, "size_bytes": 5, "url": "http://store/x?X-Amz-Signature=abc", "headers": {}, **changes}


def test_parts_that_follow_each_other() -> None:
    first, second = direct_parts({"parts": [part(), part(offset=5, size_bytes=2)]}, "the server")
    assert (first.offset, first.size_bytes, second.offset) == (0, 5, 5)
    assert "abc" not in repr(first)
    assert direct_parts({"parts": []}, "the server") == []


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"parts": None},
        {"parts": [{}]},
        {"parts": [part(offset="x")]},
        {"parts": [part(headers=None)]},
        {"parts": [part(url="file:///etc/passwd")]},
        {"parts": [part(url="http:///x")]},
        {"parts": [part(url="http://key:abc@store/x")]},
        {"parts": [part(), part(offset=6)]},
    ],
)
def test_answers_that_cannot_be_read(answer: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        direct_parts(answer, "the server")
    assert "abc" not in f"{caught.value} {caught.value.__cause__}"


async def test_a_store_that_cannot_be_reached_is_left_alone_for_a_while() -> None:
    config = load_client_config(url="http://127.0.0.1:9")
    transfers = DirectTransfers(config, Security(config))
    file = ManifestFile(path="w", size_bytes=2 << 20, digest=Digest("sha256:" + 64 * "a"))
    assert transfers.may_read(file, 0)
    assert transfers.may_send(8 << 20)
    with pytest.raises(DirectFailed) as caught:
        async with transfers.open("http://127.0.0.1:9/x?X-Amz-Signature=abc", file, 0):
            pass
    assert "abc" not in str(caught.value)
    assert not transfers.may_read(file, 0)
    assert not transfers.may_send(8 << 20)
    await transfers.aclose()


def test_small_files_are_not_worth_it() -> None:
    config = load_client_config(url="http://127.0.0.1:9")
    transfers = DirectTransfers(config, Security(config))
    file = ManifestFile(path="w", size_bytes=(1 << 20) - 1, digest=Digest("sha256:" + 64 * "a"))
    assert not transfers.may_read(file, 0)
    assert not transfers.may_send((8 << 20) - 1)
