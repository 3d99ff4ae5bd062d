"""The audit log of a real server with access control: who did what, what was refused, and what was tampered with."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio.to_thread
import pytest

from modelbox.audit import AuditEntry
from modelbox.client import Client
from modelbox.errors import AuthError, NotAuthenticated, NotFoundError
from modelbox.sync import Client as SyncClient
from modelbox.tokens import Token
from tests.cli import Cli
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("audited") / "server", access="on") as process:
        yield process


@pytest.fixture(scope="module")
def tokens(guarded: ServerProcess) -> dict[str, str]:
    return prepare(guarded)


def prepare(server: ServerProcess) -> dict[str, str]:
    """Tokens of the first admin, and of accounts with a role in the namespace `left`; their names are the roles'."""
    root = (server.data_dir / "admin-token").read_text().strip()
    found = {"root": root}
    with SyncClient(server.url, token=root) as client:
        for namespace in ("left", "right"):
            client.create_model(f"{namespace}/m", owner="first")
        for role in ("reader", "writer", "admin"):
            client.create_account(f"left-{role}")
            client.grant_role(f"left-{role}", role, namespace="left")
            found[role] = client.create_token(f"left-{role}").token
    return found


@pytest.fixture
async def root(guarded: ServerProcess, tokens: dict[str, str]) -> AsyncIterator[Client]:
    async with Client(guarded.url, token=tokens["root"]) as client:
        yield client


async def all_of(client: Client, **wanted: Any) -> list[AuditEntry]:
    return [entry async for entry in client.iter_audit(**wanted)]


async def http(server: ServerProcess, path: str, token: str, **headers: str) -> tuple[int, str, Any]:
    sent = {"Authorization": f"Bearer {token}", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}/api/v1/{path}", headers=sent) as answer,
    ):
        return answer.status, await answer.text(), answer.headers


async def test_a_change_says_who_from_where_and_what_was_before(
    guarded: ServerProcess, tokens: dict[str, str], root: Client
) -> None:
    await root.create_model("left/own", owner="first")
    async with Client(guarded.url, token=tokens["writer"], actor="somebody else") as writer:
        await writer.update_model("left/own", owner="second")
    (entry,) = await all_of(root, object="left/own", actions=["updated"])
    assert (entry.actor, entry.address, entry.namespace, entry.kind) == ("left-writer", "127.0.0.1", "left", "model")
    assert entry.token_id == Token.parse(tokens["writer"]).kid
    assert isinstance(entry.before, dict)
    assert isinstance(entry.after, dict)
    assert (entry.before["owner"], entry.after["owner"]) == ("first", "second")
    assert len(entry.request_id) == 16
    assert await all_of(root, request_id=entry.request_id) == [entry]
    assert entry in await all_of(root, token_id=entry.token_id, address="127.0.0.1")
    # Who may do what is in it, and no secret.
    grants = json.dumps([entry.after for entry in await all_of(root, kinds=["access"], namespace="left")])
    assert all(f"left-{role}" in grants for role in ("reader", "writer", "admin"))
    everything = json.dumps([(str(entry.before), str(entry.after)) for entry in await all_of(root)])
    assert not [name for name, token in tokens.items() if Token.parse(token).secret in everything]


async def test_admins_of_a_namespace_read_theirs_and_others_nothing(
    guarded: ServerProcess, tokens: dict[str, str], root: Client
) -> None:
    everything = await all_of(root)
    assert {entry.namespace for entry in everything} == {"", "left", "right"}
    async with Client(guarded.url, token=tokens["admin"]) as admin:
        # The server may have written what it had counted of refusals in between.
        theirs = [entry for entry in await all_of(admin) if entry.rev <= everything[0].rev]
        assert theirs == [entry for entry in everything if entry.namespace == "left"]
        assert await all_of(admin, namespace="right") == await all_of(admin, namespace="nowhere") == []
    for role in ("reader", "writer"):
        async with Client(guarded.url, token=tokens[role]) as client:
            with pytest.raises(AuthError, match="admin"):
                await all_of(client)
        assert (await http(guarded, "audit/export", tokens[role]))[0] == 403
    assert (await http(guarded, "audit", "nobody's"))[0] == 401


async def test_pages_and_lines_over_http(guarded: ServerProcess, tokens: dict[str, str], root: Client) -> None:
    status, text, _ = await http(
        guarded, "audit?namespace=left&kind=model&page_size=1&oldest_first=true", tokens["root"]
    )
    page = json.loads(text)
    assert (status, len(page["items"]), page["items"][0]["action"]) == (200, 1, "created")
    assert page["items"][0].keys() >= {"before", "after", "actor", "address", "token_id", "request_id", "chain"}
    expected = [(entry.rev, entry.idx) for entry in await all_of(root, namespace="left", oldest_first=True)]
    status, text, headers = await http(guarded, "audit/export?namespace=left", tokens["root"])
    assert (status, headers["Content-Type"]) == (200, "application/x-ndjson")
    *lines, last, end = text.split("\n")
    assert (last, end) == ("", "")
    # The server may have written what it had counted of refusals in between.
    assert [(one["rev"], one["idx"]) for one in map(json.loads, lines)][: len(expected)] == expected
    status, text, headers = await http(guarded, "audit?since=yesterday", tokens["root"], **{"X-Request-Id": "mine-7"})
    assert (status, headers["X-Request-Id"]) == (400, "mine-7")
    assert "since" in json.loads(text)["message"]


async def test_every_refusal_names_the_call(guarded: ServerProcess, tokens: dict[str, str]) -> None:
    seen = set()
    async with Client(guarded.url, token=tokens["reader"]) as reader:
        for _ in range(3):
            with pytest.raises(NotFoundError) as caught:
                await reader.get_model("left/none")
            seen.add(caught.value.request_id)
    assert len(seen) == 3
    assert all(len(one) == 16 for one in seen)
    # What would spoil a log is not taken for a name.
    _, _, headers = await http(guarded, "audit", tokens["root"], **{"X-Request-Id": "a b"})
    assert len(headers["X-Request-Id"]) == 16


async def test_refusals_are_in_the_log_of_whom_they_concern(
    guarded: ServerProcess, tokens: dict[str, str], tmp_path: Path
) -> None:
    files = tmp_path / "weights.bin"
    files.write_bytes(b"weights")
    async with Client(guarded.url, token=tokens["reader"]) as reader:
        ids = []
        for _ in range(3):
            with pytest.raises(AuthError) as caught:
                await reader.update_model("left/m", owner="mine")
            ids.append(caught.value.request_id)
        with pytest.raises(NotFoundError):
            await reader.get_model("right/m")
    async with Client(guarded.url, token=tokens["writer"]) as writer:
        # What only the registry knows: the alias is protected.
        await writer.publish("left/m", files)
        with pytest.raises(AuthError, match="promoter"):
            await writer.promote("left/m@prod", 1)
    assert (await http(guarded, "audit?namespace=left", tokens["writer"]))[0] == 403
    async with Client(guarded.url, token=Token.new().reveal()) as nobody:
        with pytest.raises(NotAuthenticated):
            await nobody.get_model("left/m")
    # A server that stops writes what it has counted.
    guarded.restart()
    async with Client(guarded.url, token=tokens["admin"]) as admin:
        entries = await all_of(admin, denials=True, object="left/m", actor="left-reader")
    # One, or two where a minute was over in the middle.
    entry, counts = entries[-1], [one.after["count"] for one in entries if isinstance(one.after, dict)]
    denial = entry.after
    assert isinstance(denial, dict)
    assert (entry.actor, entry.address, entry.action, entry.request_id) == (
        "left-reader",
        "127.0.0.1",
        "denied",
        ids[0],
    )
    assert entry.token_id == Token.parse(tokens["reader"]).kid
    assert (denial["method"], denial["permission"]) == ("RegistryService/UpdateModel", "write")
    assert sum(int(str(count)) for count in counts) == 3
    assert len(counts) == len(entries) <= 2
    async with Client(guarded.url, token=tokens["root"]) as client:
        denials = await all_of(client, denials=True)
    assert ("right", "right/m", "left-reader") in [(one.namespace, one.object, one.actor) for one in denials]
    found = [
        (one.actor, one.after["method"], one.after["permission"]) for one in denials if isinstance(one.after, dict)
    ]
    assert ("left-writer", "RegistryService/MoveAlias", "promote") in found
    assert ("left-writer", "GET /api/v1/audit", "admin") in found
    unknown = [one for one in denials if isinstance(one.after, dict) and one.after["permission"] == "authentication"]
    assert unknown
    assert {(one.actor, one.token_id, one.address) for one in unknown} == {("", "", "127.0.0.1")}


@pytest.fixture
def tampered(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose database is going to be spoilt."""
    with ServerProcess(tmp_path / "server", access="on") as process:
        yield process


async def test_tampering_is_found_by_the_check_and_a_rewritten_history_by_an_export(
    tampered: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = await anyio.to_thread.run_sync(prepare, tampered)
    async with Client(tampered.url, token=tokens["writer"]) as writer:
        await writer.update_model("left/m", owner="second")
    monkeypatch.setenv("MODELBOX_URL", tampered.url)
    monkeypatch.setenv("MODELBOX_TOKEN", tokens["root"])
    cli = Cli(capsys)

    async def run(*argv: str, code: int = 0) -> str:
        return await anyio.to_thread.run_sync(lambda: cli(*argv, code=code))

    export = tmp_path / "audit.jsonl"
    await run("audit", "export", "--file", str(export))
    assert export.stat().st_mode & 0o777 == 0o600
    # The server may have written what it had counted of refusals in between.
    assert (await run("audit", "export")).startswith(export.read_text())
    assert "exists" in await run("audit", "export", "--file", str(export), code=2)
    assert (await run("audit", "verify", str(export))).endswith(" entries are as they were, 0 are not\n")
    refused = json.loads(await run("models", "show", "left/none", "--output", "json", code=3))
    assert (refused["code"], len(refused["request_id"])) == ("not_found", 16)
    listed = await run("audit", "list", "--object", "left/m", "--action", "updated")
    assert "owner: first -> second" in listed
    tampered.terminate()
    database = sqlite3.connect(tampered.data_dir / "modelbox.db")
    query = "SELECT rev FROM feed_changes WHERE object = 'left/m' AND action = 'updated'"
    (rev,) = database.execute(query).fetchone()
    database.execute("UPDATE feed_changes SET actor = 'left-admin' WHERE rev = ?", (rev,))
    database.commit()
    monkeypatch.delenv("MODELBOX_URL")
    await run("server", "fsck", "--data-dir", str(tampered.data_dir), code=6)
    database.close()
    tampered.restart()
    monkeypatch.setenv("MODELBOX_URL", tampered.url)
    async with Client(tampered.url, token=tokens["root"]) as client:
        report = await client.check_space()
        assert [(one.kind, one.subject) for one in report.findings] == [("feed", "feed")]
        assert f"revision {rev} of the change feed was altered" in report.findings[0].detail
        assert "by left-admin" in report.findings[0].detail
    await run("audit", "verify", str(export), code=6)
