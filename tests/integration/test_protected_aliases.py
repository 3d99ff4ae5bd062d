"""Protected aliases and approvals with real accounts and tokens, against a real server with access control."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from modelbox.client import Client
from modelbox.errors import ApprovalNeeded, AuthError, ConflictError, ModelBoxError, NotFoundError, RuleError
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("shared") / "server"
    with ServerProcess(directory, access="on") as process:
        yield process


@dataclass(frozen=True, slots=True)
class World:
    """A namespace of its own, and a client for everybody in it."""

    ns: str
    url: str
    tokens: dict[str, str]
    clients: dict[str, Client]

    def __getattr__(self, name: str) -> Client:
        return self.clients[name]

    @property
    def model(self) -> str:
        return f"{self.ns}/m"


@pytest.fixture
async def world(shared_server: ServerProcess, tmp_path: Path) -> AsyncIterator[World]:
    ns = f"ns-{secrets.token_hex(4)}"
    root = (shared_server.data_dir / "admin-token").read_text().strip()
    roles = {"reader": "reader", "writer": "writer", "pat": "promoter", "pia": "promoter", "ada": "admin"}
    tokens: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(Client(shared_server.url, token=root))
        for name, role in roles.items():
            account = f"{name}-{ns}"
            made = await admin.create_token(account, role=role, namespaces=[ns], create_account=True)
            tokens[name] = made.token
        again = await admin.create_token(f"pat-{ns}")
        tokens["pat2"] = again.token
        other = await admin.create_token(f"eve-{ns}", role="admin", namespaces=[f"{ns}-other"], create_account=True)
        tokens["eve"] = other.token
        clients = {
            name: await stack.enter_async_context(Client(shared_server.url, token=token))
            for name, token in tokens.items()
        }
        for content in ("one", "two", "three"):
            file = tmp_path / "weights.bin"
            file.write_text(content)
            await clients["writer"].publish(f"{ns}/m", {"weights.bin": file}, framework="other", aliases=["staging"])
        yield World(ns=ns, url=shared_server.url, tokens=tokens, clients=clients)


async def refused(call: Awaitable[object], error: type[ModelBoxError] = AuthError) -> ModelBoxError:
    with pytest.raises(error) as raised:
        await call
    assert type(raised.value) is error
    return raised.value


async def test_who_moves_what_the_settings_protect(world: World, tmp_path: Path) -> None:
    prod = f"{world.model}@prod"
    error = await refused(world.writer.promote(prod, 1))
    assert (error.fields["role"], "promoter" in str(error)) == ("promoter", True)
    assert (await world.pat.promote(prod, 1)).moved_by == f"pat-{world.ns}"
    await world.pat.promote(prod, 2)
    file = tmp_path / "weights.bin"
    file.write_text("four")
    calls: list[Awaitable[object]] = [
        world.reader.promote(f"{world.model}@staging", 1),
        world.reader.promote(prod, 1),
        world.writer.rollback(prod),
        world.writer.delete_alias(prod),
        world.writer.promote(f"{world.model}@prod-eu", 1),
        world.writer.publish(world.model, {"weights.bin": file}, framework="other", aliases=["prod"]),
        world.writer.protect_alias(world.ns, "staging"),
        world.pat.protect_alias(world.ns, "staging"),
        world.pat.set_rule(world.ns, owner=True),
        world.writer.delete_rule(world.ns),
    ]
    for call in calls:
        await refused(call)
    # Who may not see the model does not learn whether it is there, nor what protects it.
    calls = [
        world.eve.promote(prod, 1),
        world.eve.list_aliases(world.model),
        world.eve.check_rules(f"{world.model}@1", alias="prod"),
        world.eve.approve_alias(world.model, "req_none"),
        world.eve.list_rules(world.model),
    ]
    for call in calls:
        await refused(call, NotFoundError)
    assert (await world.reader.get_version(prod)).version == 2
    await world.writer.promote(f"{world.model}@staging", 1)
    assert (await world.pat.rollback(prod)).version == 1


async def test_two_promoters_are_two_accounts(world: World) -> None:
    blue = f"{world.model}@blue"
    await world.ada.protect_alias(world.ns, "blue", approval=True)
    await refused(world.writer.promote(blue, 1))
    error = await refused(world.pat.promote(blue, 1, reason="ready"), ApprovalNeeded)
    request = str(error.fields["request"])
    (waiting,) = [one async for one in world.reader.iter_alias_requests(world.model)]
    assert (waiting.id, waiting.requested_by) == (request, f"pat-{world.ns}")
    # Another token of the same account is the same person; a writer is no promoter; an outsider sees nothing.
    for nobody in (world.pat, world.pat2, world.writer, world.reader):
        await refused(nobody.approve_alias(world.model, request))
    await refused(world.eve.approve_alias(world.model, request), NotFoundError)
    await refused(world.writer.reject_alias(world.model, request))
    # What a program says of itself counts for nothing.
    headers = {"authorization": f"Bearer {world.tokens['pat']}", "modelbox-actor": f"pia-{world.ns}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        approve = f"{world.url}/api/v1/models/{world.model}/requests/{request}/approve"
        async with http.post(approve, json={}) as answer:
            assert answer.status == 403
    await refused(world.reader.get_version(blue), NotFoundError)
    assert (await world.pia.approve_alias(world.model, request)).decided_by == f"pia-{world.ns}"
    alias = next(one for one in await world.reader.list_aliases(world.model) if one.name == "blue")
    assert (alias.version, alias.moved_by, alias.reason) == (
        1,
        f"pia-{world.ns}",
        f"ready (asked for by pat-{world.ns})",
    )
    await refused(world.ada.approve_alias(world.model, request), ConflictError)
    # A request of one's own is taken back also with another token.
    error = await refused(world.pat.promote(blue, 2), ApprovalNeeded)
    assert (await world.pat2.reject_alias(world.model, str(error.fields["request"]))).state == "rejected"


async def test_rules_hold_for_admins_too(world: World) -> None:
    await world.ada.set_rule(world.model, alias="*", labels=["reviewed"])
    await refused(world.ada.promote(f"{world.model}@staging", 1), RuleError)
    assert [one.scope for one in await world.reader.list_rules(world.ns)] == [world.model]
    assert await world.eve.list_rules() == ()
    await world.writer.update_version(f"{world.model}@1", labels={"reviewed": "yes"})
    await world.ada.promote(f"{world.model}@staging", 1)


async def test_what_was_refused_is_in_the_audit_log(shared_server: ServerProcess, world: World, tmp_path: Path) -> None:
    prod = f"{world.model}@prod"
    file = tmp_path / "weights.bin"
    file.write_text("four")
    await world.pat.promote(prod, 1)
    for _ in range(2):
        await refused(world.writer.promote(prod, 2))
    await refused(world.writer.rollback(prod))
    await refused(world.writer.delete_alias(prod))
    await refused(world.writer.publish(world.model, {"weights.bin": file}, framework="other", aliases=["prod"]))
    # What waits was not refused; to approve it oneself was.
    await world.ada.protect_alias(world.model, "blue", approval=True)
    error = await refused(world.pat.promote(f"{world.model}@blue", 1), ApprovalNeeded)
    await refused(world.pat.approve_alias(world.model, str(error.fields["request"])))
    # A server that stops writes what it has counted.
    shared_server.restart()
    async with Client(shared_server.url, token=world.tokens["ada"]) as admin:
        found = [one async for one in admin.iter_audit(denials=True, namespace=world.ns)]
    seen: Counter[tuple[str, str, str]] = Counter()
    for one in found:
        assert isinstance(one.after, dict)
        seen[one.actor.partition("-")[0], one.object, str(one.after["method"])] += int(str(one.after["count"]))
    assert seen == {
        ("writer", prod, "RegistryService/MoveAlias"): 2,
        ("writer", prod, "RegistryService/RollbackAlias"): 1,
        ("writer", prod, "RegistryService/DeleteAlias"): 1,
        ("writer", prod, "RegistryService/PublishVersion"): 1,
        ("pat", f"{world.model}@blue", "RuleService/ApproveAliasRequest"): 1,
    }
