"""Servers for files and servers for the rest, on one database and one directory."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelbox
from modelbox.errors import InvalidError
from tests.cli import Cli
from tests.onnx_models import add_constant
from tests.replicas import Replica
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def servers(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Replica, Replica]]:
    """One without files, one with nothing else."""
    url, shared = postgres_server.new_database(migrated=True), tmp_path_factory.mktemp("roles")
    env = {"MODELBOX_DATABASE_URL": url}
    # The one with files is there when the other one first looks.
    with Replica(shared, env=env, role="blobs", replica_name="files") as files:
        with Replica(shared, env=env, role="control", replica_name="control") as control:
            yield control, files
    postgres_server.drop_database(url)


def ask(server: Replica, method: str, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    host, _, port = server.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


async def test_a_client_finds_the_files_by_itself(servers: tuple[Replica, Replica], tmp_path: Path) -> None:
    control, files = servers
    (tmp_path / "model.onnx").write_bytes(add_constant(3))
    async with modelbox.Client(control.url, cache_dir=str(tmp_path / "cache")) as client:
        await client.publish("roles/model", str(tmp_path / "model.onnx"), aliases=["prod"])
        model = await client.load("roles/model@prod")
        assert model.version == 1
        await client.download("roles/model@1", str(tmp_path / "files"))
    assert (tmp_path / "files" / "model.onnx").read_bytes() == add_constant(3)
    path = "/api/v1/models/roles/model/versions/1/files/model.onnx"
    # Others are led there.
    status, headers, _ = ask(control, "GET", path)
    assert (status, headers["Location"]) == (307, f"http://{files.http_address}{path}")
    assert ask(files, "GET", path)[2] == add_constant(3)


async def test_a_server_for_files_does_nothing_else(servers: tuple[Replica, Replica], tmp_path: Path) -> None:
    _, files = servers
    status, _, body = ask(files, "GET", "/api/v1/models/roles/model/versions/1")
    assert status == 400
    assert "this server has role blobs" in json.loads(body)["message"]
    assert ask(files, "GET", "/readyz")[0] == 200
    async with modelbox.Client(files.url, cache_dir=str(tmp_path / "cache")) as client:
        with pytest.raises(InvalidError, match="this server has role blobs"):
            await client.create_model("roles/other")
        assert [member.role for member in await client.list_members()] == ["control", "blobs"]


def test_the_command_lists_them(servers: tuple[Replica, Replica], capsys: pytest.CaptureFixture[str]) -> None:
    control, _ = servers
    cli = Cli(capsys)
    found = cli.json("server", "members", "--url", control.url)
    assert [(one["name"], one["role"], one["state"], one["alive"]) for one in found] == [
        ("control", "control", "ready", True),
        ("files", "blobs", "ready", True),
    ]
    table = cli("server", "members", "--url", control.url)
    assert "control" in table
    assert "files" in table
