"""Access control on a real server: from the first start to the way back in, over gRPC, HTTP and the command line."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from modelbox.access import Grant, Role
from modelbox.client import Client
from modelbox.errors import (
    AuthError,
    ConflictError,
    NotAuthenticated,
    NotFoundError,
)
from modelbox.feed import Change, Kind
from modelbox.sync import Client as SyncClient
from modelbox.tokens import Token
from tests.cli import Cli
from tests.faults.registry import fault, record_figure
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with access control."""
    with ServerProcess(tmp_path_factory.mktemp("guarded") / "server", access="on", log_level="debug") as process:
        yield process


@pytest.fixture
def root(guarded: ServerProcess) -> str:
    return (guarded.data_dir / "admin-token").read_text().strip()


@pytest.fixture
async def admin(guarded: ServerProcess, root: str) -> AsyncIterator[Client]:
    async with Client(guarded.url, token=root) as opened:
        yield opened


@pytest.fixture
def name() -> str:
    return f"a-{secrets.token_hex(4)}"


async def http(server: ServerProcess, method: str, path: str, token: str = "", **request: Any) -> tuple[int, Any, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{server.url}/api/v1/{path}", headers=headers, **request) as answer,
    ):
        return answer.status, await answer.json(), answer.headers


async def test_the_first_admins_token_is_in_a_file_and_in_no_log(guarded: ServerProcess, root: str) -> None:
    assert "admin-token" in guarded.output
    async with Client(guarded.url, token=root) as client:
        who = await client.whoami()
    assert (who.access, who.name, who.grants) == (True, "admin", (Grant(role=Role.ADMIN),))
    assert who.token_id == Token.parse(root).kid
    assert who.address == "127.0.0.1"
    assert Token.parse(root).secret not in guarded.output


async def test_without_a_token_and_with_a_bad_one_nobody_is_let_in(guarded: ServerProcess) -> None:
    for token in ("", Token.new().reveal()):
        async with Client(guarded.url, token=token) as client:
            with pytest.raises(NotAuthenticated):
                await client.whoami()
        status, body, headers = await http(guarded, "GET", "whoami", token)
        assert (status, body["code"], headers["WWW-Authenticate"]) == (401, "auth.unknown", "Bearer")


async def test_accounts_roles_and_tokens_from_the_client(guarded: ServerProcess, admin: Client, name: str) -> None:
    made = await admin.create_account(name, description="Ada", certificate_names=[f"{name}.example"])
    assert (made.existed, made.item.description, made.item.created_by) == (False, "Ada", "admin")
    assert (await admin.create_account(name)).existed
    assert (await admin.update_account(name, description="Ada L.")).certificate_names == (f"{name}.example",)
    assert (await admin.update_account(name, certificate_names=[])).certificate_names == ()
    assert name in [one.name async for one in admin.iter_accounts()]
    given = await admin.grant_role(name, "writer", namespace=name)
    assert (given.role, given.granted_by) == (Role.WRITER, "admin")
    await admin.grant_role(name, "promoter", namespace=name, model="m")
    assert [one.model async for one in admin.iter_grants(account=name)] == ["", "m"]
    token = await admin.create_token(name, description="laptop", expires_in_s=3600)
    assert [one.id async for one in admin.iter_tokens(account=name)] == [token.info.id]
    async with Client(guarded.url, token=token.token, actor="somebody else") as ada:
        assert (await ada.whoami()).expires_at == token.info.expires_at
        await ada.create_model(f"{name}/m")
        with pytest.raises(AuthError) as denied:
            await ada.create_account("eve")
        assert denied.value.fields["role"] == "admin"
        with pytest.raises(NotFoundError):
            await ada.get_model(f"{name}-other/m")
        own = await ada.create_token(role="reader", namespaces=[name])
        async with Client(guarded.url, token=own.token) as reader:
            assert (await reader.get_model(f"{name}/m")).name == "m"
            with pytest.raises(AuthError):
                await reader.create_model(f"{name}/n")
        assert (await ada.revoke_token(own.info.id)).revoked_by == name
    assert [one.revoked_by async for one in admin.iter_tokens(account=name, include_ended=True)] == [name, ""]
    assert await admin.revoke_role(name, namespace=name, model="m")
    assert not await admin.revoke_role(name, namespace=name, model="m")
    with pytest.raises(ConflictError):
        await admin.revoke_role("admin")
    await admin.delete_account(name)
    with pytest.raises(NotFoundError):
        await admin.delete_account(name)


async def test_the_same_over_http(guarded: ServerProcess, root: str, name: str) -> None:
    status, made, _ = await http(guarded, "POST", "accounts", root, json={"name": name, "description": "Ada"})
    assert (status, made["existed"], made["item"]["description"]) == (201, False, "Ada")
    assert (await http(guarded, "POST", "accounts", root, json={"name": name}))[0] == 200
    status, changed, _ = await http(guarded, "PATCH", f"accounts/{name}", root, json={"description": "Ada L."})
    assert (status, changed["description"]) == (200, "Ada L.")
    grant = {"account": name, "namespace": name, "role": "writer"}
    status, given, _ = await http(guarded, "PUT", "roles", root, json=grant)
    assert (status, given["role"], given["model"]) == (200, "writer", "")
    new = {"account": name, "role": "reader", "namespaces": [name], "expires_in_s": 120}
    status, token, headers = await http(guarded, "POST", "tokens", root, json=new)
    assert (status, token["info"]["role"], headers["Cache-Control"]) == (201, "reader", "no-store")
    status, who, _ = await http(guarded, "GET", "whoami", token["token"])
    assert (status, who["name"]) == (200, name)
    assert who["grants"] == [{"namespace": name, "model": "", "role": "reader"}]
    for path in ("accounts", f"roles?account={name}", f"tokens?account={name}&include_ended=true"):
        status, page, _ = await http(guarded, "GET", path, token["token"])
        assert (status, len(page["items"])) == (200, 1)
        assert token["token"].split("_")[2] not in str(page)
    status, ended, _ = await http(guarded, "DELETE", f"tokens/{token['info']['id']}", root)
    assert (status, ended["revoked_by"]) == (200, "admin")
    assert (await http(guarded, "GET", "whoami", token["token"]))[0] == 401
    assert (await http(guarded, "DELETE", f"roles?account={name}&namespace={name}", root))[1] == {"revoked": True}
    assert (await http(guarded, "DELETE", f"accounts/{name}", root))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "accounts", {"name": "Not A Name"}),
        ("POST", "accounts", {"name": "server"}),
        ("POST", "accounts", {"name": "ada", "admin": True}),
        ("POST", "accounts", {"name": 7}),
        ("POST", "accounts", {"name": "ada", "certificate_names": "ada.example"}),
        ("POST", "accounts", {"name": "ada", "certificate_names": ["a\nb"]}),
        ("PATCH", "accounts/admin", {"name": "ada"}),
        ("PATCH", "accounts/..%2f", {"disabled": True}),
        ("PUT", "roles", {"account": "admin", "role": "god"}),
        ("PUT", "roles", {"account": "admin", "model": "m", "role": "reader"}),
        ("PUT", "roles", {"account": "admin", "namespace": "*", "role": "reader"}),
        ("POST", "tokens", {"account": "admin", "role": "god"}),
        ("POST", "tokens", {"account": "admin", "expires_in_s": 0}),
        ("POST", "tokens", {"account": "admin", "expires_in_s": "long"}),
        ("POST", "tokens", {"account": "admin", "namespaces": ["A"]}),
        ("POST", "tokens", {"account": "admin", "token": "mine"}),
        ("DELETE", "tokens/not-an-id", None),
        ("GET", "tokens?page_token=x", None),
    ],
)
async def test_what_cannot_be_right_is_refused(
    guarded: ServerProcess, root: str, method: str, path: str, body: dict[str, object] | None
) -> None:
    status, answer, _ = await http(guarded, method, path, root, json=body)
    assert (status, answer["code"]) == (400, "invalid"), answer


@fault(68)
async def test_a_token_in_the_address_is_no_token(guarded: ServerProcess, root: str) -> None:
    for path in (f"whoami?token={root}", f"whoami?access_token={root}", f"whoami?authorization=Bearer%20{root}"):
        status, body, _ = await http(guarded, "GET", path)
        assert (status, body["code"]) == (401, "auth.unknown")
    async with aiohttp.ClientSession() as session:
        url = guarded.url.replace("http://", f"http://ada:{root}@")
        async with session.get(f"{url}/api/v1/whoami") as answer:
            assert answer.status == 401


@fault(68)
async def test_a_revoke_ends_a_watch_and_every_later_call(guarded: ServerProcess, admin: Client, name: str) -> None:
    made = await admin.create_token(name, role="reader", namespaces=[name], create_account=True)
    assert made.account_created
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {made.token}"}) as session:
        async with session.get(f"{guarded.url}/api/v1/changes?namespace={name}") as stream:
            assert stream.status == 200
            assert await stream.content.readline()
            begun = anyio.current_time()
            await admin.revoke_token(made.info.id)
            with anyio.fail_after(60):
                async for _ in stream.content:
                    pass
            record_figure(68, f"a watch ends {anyio.current_time() - begun:.1f} s after the revoke")
        async with session.get(f"{guarded.url}/api/v1/whoami") as answer:
            assert answer.status == 401


async def test_admins_see_changes_of_access_in_the_feed_and_no_secret_in_them(
    guarded: ServerProcess, admin: Client, name: str
) -> None:
    await admin.create_model(f"{name}/m")
    async with admin.changes(namespace=name, list_first=True) as listed:
        with anyio.fail_after(60):
            await anext(listed)
            await anext(listed)
            # What follows the list has a place in history.
            await admin.create_model(f"{name}/l")
            await anext(listed)
        place = listed.token
    made = await admin.create_token(name, role="writer", namespaces=[name], create_account=True)
    inside = await admin.create_token(name, role="admin", namespaces=[name])
    told: list[Change] = []
    with anyio.fail_after(60):
        async with admin.changes(place, kinds=[Kind.ACCESS.value]) as changes:
            async for change in changes:
                assert isinstance(change, Change)
                told.append(change)
                if change.object == f"token:{inside.info.id}":
                    break
    assert [(change.namespace, change.object, change.action, change.actor) for change in told] == [
        ("", f"account:{name}", "created", "admin"),
        (name, f"role:{name}:{name}", "created", "admin"),
        (name, f"token:{made.info.id}", "created", "admin"),
        (name, f"token:{inside.info.id}", "created", "admin"),
    ]
    assert Token.parse(made.token).secret not in str(told)
    # A writer of the namespace is told of what is in it, and not of who may do what there.
    async with Client(guarded.url, token=made.token) as writer:
        with anyio.fail_after(60):
            async with writer.changes(namespace=name, list_first=True) as changes:
                seen = [await anext(changes)]
                await admin.create_token(name, role="reader", namespaces=[name])
                await admin.create_model(f"{name}/n")
                while not isinstance(seen[-1], Change) or seen[-1].object != f"{name}/n":
                    seen.append(await anext(changes))
    assert all(isinstance(change, Change) and change.kind != "access" for change in seen)


def test_the_blocking_client_and_the_command_line(
    guarded: ServerProcess,
    root: str,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MODELBOX_URL", guarded.url)
    monkeypatch.setenv("MODELBOX_TOKEN", root)
    monkeypatch.setenv("MODELBOX_CACHE_DIR", str(tmp_path / "cache"))
    cli = Cli(capsys)
    assert "made" in cli("accounts", "create", name, "--description", "Ada")
    assert "exists already" in cli("accounts", "create", name)
    assert "promoter" in cli("roles", "grant", name, "promoter", f"{name}/m")
    assert cli.json("roles", "list", "--account", name)[0]["model"] == "m"
    printed = cli("tokens", "create", name, "--role", "reader", "--namespace", name, "--expires", "30d").strip()
    token = Token.parse(printed)
    listed = cli("tokens", "list", name)
    assert token.kid in listed
    assert token.secret not in listed
    monkeypatch.setenv("MODELBOX_TOKEN", printed)
    assert cli.json("whoami")["token_id"] == token.kid
    assert f"reader of {name}/m" in cli("whoami")
    details = {check["check"]: check["detail"] for check in cli.json("doctor")}
    assert f"as {name}: reader of {name}/m" in details["server, gRPC"]
    assert "admin" in cli("accounts", "create", "eve", code=7)
    monkeypatch.setenv("MODELBOX_TOKEN", root)
    assert token.kid in cli("tokens", "revoke", token.kid)
    other = cli.json("tokens", "create", name)["token"]
    assert Token.parse(other).kid in cli("tokens", "revoke", "--account", name)
    assert "disabled" in cli("accounts", "update", name, "--disable")
    assert "taken away" in cli("roles", "revoke", name, f"{name}/m")
    assert "had no role" in cli("roles", "revoke", name, f"{name}/m")
    cli("roles", "grant", name, "reader", code=2)
    cli("roles", "grant", name, "reader", name, "--everywhere", code=2)
    cli("tokens", "revoke", code=2)
    cli("accounts", "delete", name, code=2)
    assert "removed" in cli("accounts", "delete", name, "--yes")
    with SyncClient(guarded.url, token=root) as client:
        assert client.whoami().name == "admin"
        assert name not in [one.name for one in client.iter_accounts()]
    monkeypatch.setenv("MODELBOX_TOKEN", other)
    assert "not known" in cli("whoami", code=7)


def test_the_way_back_in_and_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, given = tmp_path / "data", tmp_path / "secret"
    token = Token.new()
    given.write_text(token.reveal())
    monkeypatch.setenv("MODELBOX_CACHE_DIR", str(tmp_path / "cache"))
    cli = Cli(capsys)
    with ServerProcess(data, access="on", admin_token_file=given) as server:
        with SyncClient(server.url, token=token.reveal()) as client:
            assert client.whoami().token_id == token.kid
            client.revoke_token(token.kid)
            with pytest.raises(NotAuthenticated):
                client.whoami()
        assert not (data / "admin-token").exists()
        assert "process" in cli("server", "admin-token", "--data-dir", str(data), code=2)
        server.terminate()
        printed = cli("server", "admin-token", "--data-dir", str(data)).strip()
        server.restart()
        with SyncClient(server.url, token=printed) as client:
            assert client.whoami().name == "admin"
        with SyncClient(server.url, token=token.reveal()) as client, pytest.raises(NotAuthenticated):
            client.whoami()


def test_a_data_directory_that_others_can_look_into_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "something").touch()
    data.chmod(0o755)
    process = ServerProcess(data)
    process.spawn()
    assert process.wait() == 2
    assert f"chmod o-rwx {data}" in process.output
    assert "Traceback" not in process.output


def test_without_access_control_nobody_can_be_given_any(server: ServerProcess) -> None:
    with SyncClient(server.url, actor="ada@desk") as client:
        who = client.whoami()
        assert (who.access, who.name) == (False, "ada@desk")
        for attempt in (lambda: client.create_account("eve"), lambda: client.create_token("eve", role="admin")):
            with pytest.raises(AuthError, match="access = on"):
                attempt()
    assert not (server.data_dir / "admin-token").exists()
