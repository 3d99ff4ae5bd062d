"""Secrets planted everywhere that can hold one, and looked for everywhere that something comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelbox.sync
from modelbox.errors import ModelBoxError
from tests.faults.registry import fault
from tests.onnx_models import add_constant
from tests.server import ServerProcess
from tests.servers.postgres import PostgresServer
from tests.servers.s3 import S3Bucket
from tests.sidecar import SidecarProcess


class _Outputs:
    """What came out, by where."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def add(self, where: str, text: str) -> None:
        self._texts[where] = self._texts.get(where, "") + text

    def check(self, secrets: dict[str, str]) -> None:
        assert all(len(secret) > 10 for secret in secrets.values())
        assert all(self._texts.values()), [where for where, text in self._texts.items() if not text]
        found = [
            (name, where) for name, secret in secrets.items() for where, text in self._texts.items() if secret in text
        ]
        assert not found, found


def _ask(outputs: _Outputs, where: str, url: str, body: object = None, **headers: str) -> None:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            outputs.add(where, f"{answer.headers}{answer.read().decode()}")
    except urllib.error.HTTPError as exc:
        outputs.add(where, f"{exc.headers}{exc.read().decode()}")


def _run(outputs: _Outputs, where: str, *arguments: str, **env: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODELBOX_")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env={**inherited, **env}, check=False
    )
    outputs.add(where, f"{done.returncode} {done.stdout} {done.stderr}")


@pytest.fixture
def planted(postgres_server: PostgresServer, s3_bucket: S3Bucket, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that knows as many secrets as one can, and tells all that it has to tell."""
    url = postgres_server.new_database(migrated=True)
    with ServerProcess(
        tmp_path / "data",
        env={"MODELBOX_DATABASE_URL": url, **s3_bucket.env},
        blobs_url=s3_bucket.url,
        s3_endpoint=s3_bucket.endpoint,
        s3_presign="true",
        access="on",
        log_level="debug",
    ) as server:
        yield server
    postgres_server.drop_database(url)


@fault(70)
@pytest.mark.timeout(300)
def test_no_secret_comes_out_anywhere(
    planted: ServerProcess, postgres_server: PostgresServer, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    outputs = _Outputs()
    admin = (planted.data_dir / "admin-token").read_text().strip()
    with modelbox.sync.Client(planted.url, token=admin, cache_dir=str(tmp_path / "cache")) as client:
        made = client.create_token("ci-bot", role="writer", namespaces=["langtech"], create_account=True)
        secrets = {
            "the database's password": postgres_server.password,
            "the S3 store's key": s3_bucket.secret_key,
            "the admin's token": admin.rpartition("_")[0].rpartition("_")[2],
            "another token": made.token.rpartition("_")[0].rpartition("_")[2],
        }
        outputs.add("reprs", f"{client!r} {client.config!r} {made!r}")
        path = tmp_path / "model.onnx"
        path.write_bytes(add_constant(1))
        client.publish("langtech/wav2vec", path, aliases=["prod"])
        client.download("langtech/wav2vec@prod", str(tmp_path / "files"))
        for spoilt in (lambda: client.resolve(f"langtech/{made.token}"), lambda: client.get_run(made.token)):
            with pytest.raises(ModelBoxError) as raised:
                spoilt()
            outputs.add("errors", json.dumps(raised.value.to_dict()))
        outputs.add("audit", "".join(str(one) for one in client.iter_audit()))
        outputs.add("tokens", "".join(str(one) for one in client.iter_tokens()))
    bearer = {"Authorization": f"Bearer {made.token}"}
    for where, route in (
        ("a token in the query", f"/api/v1/models/langtech/x/versions/1?token={made.token}"),
        ("a token in the path", f"/api/v1/runs/{made.token}"),
        ("a token as a page's", f"/api/v1/experiments?page_token={made.token}"),
        ("the feed", f"/api/v1/changes?token={made.token}"),
    ):
        _ask(outputs, where, planted.url + route, **bearer)
    _ask(outputs, "a spoilt token", planted.url + "/api/v1/whoami", Authorization=f"Bearer {made.token[:-1]}")
    _ask(outputs, "a token that is no bearer's", planted.url + "/api/v1/whoami", Authorization=f"Basic {made.token}")
    _ask(outputs, "a token in a body", planted.url + "/api/v1/experiments", {"namespace": made.token}, **bearer)
    _ask(outputs, "metrics", planted.metrics_url)
    with SidecarProcess(
        tmp_path, planted.url, "langtech/wav2vec@prod", log_level="debug", env={"MODELBOX_TOKEN": made.token}
    ) as sidecar:
        _ask(outputs, "the sidecar's metrics", sidecar.metrics_url)
        _ask(outputs, "the sidecar", f"{sidecar.http_url}/v2/models/{made.token}")
        outputs.add("the sidecar's log", sidecar.output)
    cli = {"MODELBOX_URL": planted.url, "MODELBOX_CACHE_DIR": str(tmp_path / "cache")}
    for where, arguments in (
        ("doctor", ["doctor"]),
        ("an unknown option", ["models", "list", f"--token={made.token}"]),
    ):
        _run(outputs, f"command line: {where}", "modelbox", *arguments, MODELBOX_TOKEN=made.token, **cli)
    _run(outputs, "command line: a traceback", "modelbox", "models", "show", made.token, MODELBOX_TRACEBACK="1", **cli)
    _run(outputs, "command line: a spoilt token", "modelbox", "whoami", MODELBOX_TOKEN=f"{made.token}x", **cli)
    # A server that cannot start has the most to tell.
    wrong = postgres_server.url("nowhere").replace(postgres_server.password, f"{postgres_server.password}-wrong")
    for where, env in (
        ("a wrong password", {"MODELBOX_DATABASE_URL": wrong}),
        ("a wrong database", {"MODELBOX_DATABASE_URL": postgres_server.url("nowhere")}),
        ("a wrong bucket", {"MODELBOX_BLOBS_URL": "s3://not-there", "MODELBOX_S3_ENDPOINT": s3_bucket.endpoint}),
    ):
        settings = ("--data-dir", str(tmp_path / "other"), "--log-level", "debug", "--database-connect-timeout-s", "1")
        _run(outputs, f"start: {where}", "modelbox.runtime", *settings, **env, **s3_bucket.env)
    assert planted.running
    planted.terminate()
    outputs.add("the server's log", planted.output)
    outputs.check(secrets)
