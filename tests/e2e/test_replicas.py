"""Several servers on one PostgreSQL and one directory of files: together they are one server that does not go away."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import modelbox
from modelbox.feed import Change
from tests.onnx_models import add_constant
from tests.replicas import Replicas
from tests.servers.postgres import PostgresServer

X = {"x": np.zeros((1, 4), np.float32)}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def pair(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two servers, for tests that leave them as they were."""
    url = postgres_server.new_database(migrated=True)
    with Replicas(url, tmp_path_factory.mktemp("pair"), advertised=False) as replicas:
        yield replicas
    postgres_server.drop_database(url)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


async def test_what_one_wrote_the_other_knows_and_tells(pair: Replicas, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    async with (
        modelbox.Client(pair[0].url, cache_dir=str(tmp_path / "a")) as one,
        modelbox.Client(pair[1].url, cache_dir=str(tmp_path / "b")) as two,
    ):
        for constant in (1, 2):
            path.write_bytes(add_constant(constant))
            await one.publish("both/model", str(path))
        moved = await one.promote("both/model@prod", 1)
        feed = one.changes(objects=["both/model"], list_first=True)
        async for item in feed:
            if isinstance(item, Change) and item.state.get("mod_rev") == moved.mod_rev:
                break
        token = feed.token
        await feed.aclose()
        # Each reads at once what the other wrote, and a place in the feed of one is good at the other.
        revs = []
        for number in range(20):
            writer, reader = (one, two) if number % 2 else (two, one)
            moved = await writer.promote("both/model@prod", 2 - number % 2)
            revs.append(moved.mod_rev)
            found = await reader.resolve("both/model@prod")
            assert (found.mod_rev, found.version.version) == (moved.mod_rev, moved.version)
        assert revs == sorted(revs)
        told = []
        with anyio.fail_after(60):
            async for item in two.changes(token=token, objects=["both/model"], kinds=["alias"]):
                assert isinstance(item, Change)
                told.append(item.rev)
                if item.rev == revs[-1]:
                    break
        assert told == revs
        # Bytes that were sent to one are read from the other.
        await two.download("both/model@2", str(tmp_path / "files"))
        assert (tmp_path / "files" / "model.onnx").read_bytes() == add_constant(2)


async def test_an_upload_that_one_began_the_other_ends(pair: Replicas) -> None:
    data = bytes(range(256)) * 10_000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    def call(replica: int, method: str, path: str, body: bytes, **headers: str) -> Any:
        request = urllib.request.Request(
            f"{pair[replica].url}/api/v1/{path}",
            data=body,
            method=method,
            headers={"Content-Type": "application/octet-stream", **headers},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    begin = json.dumps({"namespace": "parts", "digest": digest, "size_bytes": len(data)}).encode()
    upload = call(0, "POST", "uploads", begin)
    path = f"uploads/{upload['upload_id']}"
    half = len(data) // 2
    assert call(0, "PATCH", path, data[:half], **{"Upload-Offset": "0"})["offset"] == half
    assert call(1, "POST", "uploads", begin)["offset"] == half
    assert call(1, "PATCH", path, data[half:], **{"Upload-Offset": str(half)})["complete"]
    assert call(0, "POST", "uploads", begin)["complete"]


async def test_each_lists_both_and_one_of_them_keeps_house(pair: Replicas) -> None:
    # Whoever does takes the lease a moment after it is ready.
    with anyio.fail_after(60):
        while not any(one["leases"] for one in get(f"{pair[0].url}/api/v1/members")["members"]):
            await anyio.sleep(0.05)
    for replica in pair:
        members = get(f"{replica.url}/api/v1/members")["members"]
        assert [(one["name"], one["role"], one["state"], one["alive"]) for one in members] == [
            ("replica0", "all", "ready", True),
            ("replica1", "all", "ready", True),
        ]
        assert sorted(name for one in members for name in one["leases"]) == ["housekeeping"]
        assert {one["grpc_address"] for one in members} == {one.grpc_address for one in pair}
