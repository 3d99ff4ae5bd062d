"""Rules, protected aliases and approvals, from the client and over HTTP to the database and back."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from modelbox.client import Client
from modelbox.errors import ApprovalNeeded, AuthError, ConflictError, InvalidError, NotFoundError, RuleError
from modelbox.rules import AliasProtection, Rule
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("shared") / "server"
    with ServerProcess(directory, protected_aliases="prod*,live") as process:
        yield process


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


@pytest.fixture
async def ada(shared_server: ServerProcess) -> AsyncIterator[Client]:
    async with Client(shared_server.url, actor="ada") as opened:
        yield opened


@pytest.fixture
async def bo(shared_server: ServerProcess) -> AsyncIterator[Client]:
    async with Client(shared_server.url, actor="bo") as opened:
        yield opened


async def publish(client: Client, path: str, directory: Path, content: str, **parts: Any) -> int:
    file = directory / "weights.bin"
    file.write_text(content)
    made = await client.publish(path, {"weights.bin": file}, framework="other", **parts)
    return made.item.version


async def test_a_rule_from_its_making_to_its_end(ada: Client, ns: str, tmp_path: Path) -> None:
    rule = await ada.set_rule(ns, labels=["team"], owner=True)
    assert replace(rule, updated_at=None) == Rule(scope=ns, labels=("team",), owner=True, updated_by="ada")
    with pytest.raises(RuleError) as raised:
        await publish(ada, f"{ns}/m", tmp_path, "one")
    missing = raised.value.fields["missing"]
    assert isinstance(missing, list)
    assert [one["what"] for one in missing] == ["label", "owner"]
    with pytest.raises(NotFoundError):
        await ada.get_model(f"{ns}/m")
    # As the error says.
    await ada.create_model(f"{ns}/m", owner="speech")
    assert await publish(ada, f"{ns}/m", tmp_path, "one", labels={"team": "asr"}) == 1
    promoting = await ada.set_rule(f"{ns}/m", alias="prod*", metadata=["report"], description=True)
    assert await ada.list_rules(ns) == (rule, promoting)
    (metadata, description) = await ada.check_rules(f"{ns}/m@1", alias="prod-eu")
    assert (metadata.key, metadata.scope, description.what) == ("report", f"{ns}/m", "description")
    with pytest.raises(RuleError):
        await ada.promote(f"{ns}/m@prod", 1)
    await ada.update_version(f"{ns}/m@1", description="first", metadata={"report": {"wer": 0.1}})
    assert await ada.check_rules(f"{ns}/m@1", alias="prod-eu") == ()
    await ada.promote(f"{ns}/m@prod", 1)
    await ada.delete_rule(f"{ns}/m", alias="prod*")
    with pytest.raises(NotFoundError, match=f"rules there are: {ns}$"):
        await ada.delete_rule(f"{ns}/m", alias="prod*")
    with pytest.raises(InvalidError, match="asks for nothing"):
        await ada.set_rule(ns)


async def test_a_move_from_its_request_to_its_end(ada: Client, bo: Client, ns: str, tmp_path: Path) -> None:
    for content in ("one", "two"):
        await publish(ada, f"{ns}/m", tmp_path, content)
    await ada.promote(f"{ns}/m@prod", 1)
    protection = await ada.protect_alias(ns, "prod", approval=True)
    assert await ada.list_protections(f"{ns}/m") == (
        AliasProtection(scope="", alias="prod*"),
        AliasProtection(scope="", alias="live"),
        protection,
    )
    with pytest.raises(ApprovalNeeded) as raised:
        await ada.promote(f"{ns}/m@prod", 2, reason="better")
    request = str(raised.value.fields["request"])
    assert f"modelbox aliases approve {ns}/m {request}" in str(raised.value)
    with pytest.raises(ApprovalNeeded) as raised:
        await ada.promote(f"{ns}/m@prod", 2, reason="better")
    assert raised.value.fields["request"] == request
    (waiting,) = [one async for one in bo.iter_alias_requests(f"{ns}/m", "prod")]
    assert (waiting.id, waiting.requested_by, waiting.reason, waiting.state) == (request, "ada", "better", "pending")
    with pytest.raises(AuthError, match="somebody else"):
        await ada.approve_alias(f"{ns}/m", request)
    approved = await bo.approve_alias(f"{ns}/m", request, comment="looks fine")
    assert (approved.state, approved.decided_by, approved.comment) == ("approved", "bo", "looks fine")
    assert (await ada.get_version(f"{ns}/m@prod")).version == 2
    with pytest.raises(ConflictError):
        await bo.reject_alias(f"{ns}/m", request)
    assert (await ada.rollback(f"{ns}/m@prod")).version == 1
    states = [one.state async for one in ada.iter_alias_requests(f"{ns}/m", everything=True)]
    assert states == ["bypassed", "approved"]
    await ada.unprotect_alias(ns, "prod")
    await ada.delete_alias(f"{ns}/m@prod")
    with pytest.raises(ConflictError, match="protected_aliases"):
        await ada.unprotect_alias(ns, "live")


async def test_the_same_over_http(shared_server: ServerProcess, ada: Client, ns: str, tmp_path: Path) -> None:
    for content in ("one", "two"):
        await publish(ada, f"{ns}/m", tmp_path, content)
    base = f"{shared_server.url}/api/v1"
    model = f"{base}/models/{ns}/m"

    async with aiohttp.ClientSession(headers={"modelbox-actor": "cy"}) as http:

        async def ask(method: str, url: str, status: int = 200, **parts: Any) -> Any:
            async with http.request(method, url, **parts) as answer:
                assert answer.status == status, await answer.text()
                return await answer.json()

        made = await ask("PUT", f"{base}/rules", json={"scope": ns, "alias": "prod*", "labels": ["team"]})
        assert (made["labels"], made["signed"], made["updated_by"]) == (["team"], False, "cy")
        assert [one["alias"] for one in (await ask("GET", f"{base}/rules?scope={ns}/m"))["items"]] == ["prod*"]
        wrong = await ask("PUT", f"{base}/rules", status=400, json={"scope": ns, "label": ["team"]})
        assert "unknown field" in wrong["message"]
        lacking = await ask("GET", f"{model}/rules/missing?version=1&alias=prod")
        assert lacking["items"][0]["fix"] == f"modelbox labels set {ns}/m@1 team=TEXT"
        await ask("GET", f"{model}/rules/missing", status=400)
        await ask("DELETE", f"{base}/rules?scope={ns}&alias=prod*")
        await ask("DELETE", f"{base}/rules?scope={ns}&alias=prod*", status=404)

        protected = {"scope": f"{ns}/m", "alias": "blue", "approval": True}
        assert (await ask("PUT", f"{base}/protections", json=protected))["approval"]
        listed = (await ask("GET", f"{base}/protections?scope={ns}"))["items"]
        assert [one["alias"] for one in listed] == ["prod*", "live", "blue"]
        requests = []
        for version in (1, 2):
            with pytest.raises(ApprovalNeeded) as raised:
                await ada.promote(f"{ns}/m@blue", version)
            requests.append(raised.value.fields["request"])
        waiting = await ask("GET", f"{model}/requests?alias=blue&page_size=1")
        assert [one["id"] for one in waiting["items"]] == [requests[1]]
        after = await ask("GET", f"{model}/requests?alias=blue&page_size=1&page_token={waiting['next_page_token']}")
        assert [one["id"] for one in after["items"]] == [requests[0]]
        rejected = await ask("POST", f"{model}/requests/{requests[0]}/reject", json={"comment": "old"})
        assert (rejected["state"], rejected["decided_by"], rejected["comment"]) == ("rejected", "cy", "old")
        assert (await ask("POST", f"{model}/requests/{requests[1]}/approve", json={}))["state"] == "approved"
        conflict = await ask("POST", f"{model}/requests/{requests[1]}/approve", status=409, json={})
        assert conflict["fields"]["current"]["state"] == "approved"
        assert (await ask("GET", f"{model}/requests"))["items"] == []
        assert len((await ask("GET", f"{model}/requests?all=true"))["items"]) == 2
        await ask("DELETE", f"{base}/protections?scope={ns}/m&alias=blue")
    assert (await ada.get_version(f"{ns}/m@blue")).version == 2
