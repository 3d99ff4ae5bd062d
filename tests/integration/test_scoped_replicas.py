"""Of two servers with one database: what one of them is told of access, the other one's watches follow."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import anyio
import pytest

from modelbox._proto.modelbox import v1 as pb
from tests.permissions.world import Live, live_server, make_token

SECONDS = 60
"""More than it may take; it takes one."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def lines_until(stream: aiohttp.StreamReader, wanted: bytes) -> list[bytes]:
    lines: list[bytes] = []
    with anyio.fail_after(SECONDS):
        while data := await stream.readline():
            lines.append(data)
            if wanted in data:
                return lines
    raise AssertionError(f"the stream ended: {lines[-4:]}")


async def watch_elsewhere(here: Live, there: Live) -> None:
    async with here.caller(here.admin) as admin, aiohttp.ClientSession(there.url) as session:
        token = await make_token(admin, "replicated", [("reader", "seen", "")])
        info = pb.CreateTokenResponse.parse((await admin.do("AccessService/CreateToken", account="replicated")).body)
        assert info.info is not None
        headers = {"authorization": f"Bearer {info.token}"}
        async with session.get("/api/v1/changes", headers=headers) as response:
            await lines_until(response.content, b"event: bookmark")
            for namespace in ("hidden", "seen"):
                await admin.do("RegistryService/CreateModel", namespace=namespace, name="m")
            told = await lines_until(response.content, b'"object":"seen/m"')
            assert not any(b"hidden" in line for line in told)
            await admin.do("AccessService/RevokeToken", id=info.info.id)
            await lines_until(response.content, b'"reason":"authz"')
        async with session.get("/api/v1/changes", headers=headers) as response:
            assert response.status == 401
        # The account's other token is good for another watch, which ends when the account has no role any more.
        headers = {"authorization": f"Bearer {token}"}
        async with session.get("/api/v1/changes", headers=headers) as response:
            await lines_until(response.content, b"event: bookmark")
            await admin.do("AccessService/RevokeRole", account="replicated", namespace="seen")
            await lines_until(response.content, b'"reason":"authz"')


async def test_a_revoke_ends_watches_at_the_other_server(postgres_migrated_url: str, tmp_path: Path) -> None:
    settings = {"database_url": postgres_migrated_url, "admin_token_file": str(tmp_path / "admin-token")}
    blobs = f"file://{tmp_path / 'blobs'}"
    with live_server(tmp_path / "a", blobs_url=blobs, **settings) as here:
        with live_server(tmp_path / "b", blobs_url=blobs, **settings) as there:
            await watch_elsewhere(here, there)
