"""Retention, locks, quotas, collections and checks, from the client to the disk and back."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from modelbox.client import Client
from modelbox.errors import InUseError, InvalidError, LimitError, NotFoundError
from modelbox.retention import Best, BestMode, RetentionPolicy
from modelbox.space import Collected, SpaceCheck
from tests.server import ServerProcess


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Bytes that nobody has go as soon as they are asked for; nothing goes by itself."""
    directory = tmp_path_factory.mktemp("shared") / "server"
    with ServerProcess(directory, blob_grace_s=1, retention_interval_s=86400) as process:
        yield process


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


@pytest.fixture
async def client(shared_server: ServerProcess) -> AsyncIterator[Client]:
    async with Client(shared_server.url, actor="ada@test") as opened:
        yield opened


async def publish(client: Client, path: str, directory: Path, *contents: str) -> None:
    for content in contents:
        file = directory / "weights.bin"
        file.write_text(content)
        await client.publish(path, {"weights.bin": file}, framework="other")


async def test_a_policy_a_plan_and_a_run(client: Client, ns: str, tmp_path: Path) -> None:
    await publish(client, f"{ns}/m", tmp_path, "one", "two", "three", "four")
    await client.promote(f"{ns}/m@prod", 1)
    lock = await client.lock_version(f"{ns}/m@2", reason="audit")
    assert (lock.version, lock.reason, lock.locked_by) == (2, "audit", "ada@test")
    assert await client.list_locks(ns) == (lock,)
    best = (Best(metric="wer", count=2, mode=BestMode.MIN),)
    what_if = RetentionPolicy(scope=ns, keep_last=1)
    plan = {one.name: one async for one in client.iter_retention_plan(ns, policy=what_if)}
    assert {name.rpartition("@")[2]: one.keep for name, one in plan.items()} == {
        "4": True,
        "3": False,
        "2": True,
        "1": True,
    }
    assert plan[f"{ns}/m@2"].reasons == ("held: locked by ada@test: audit",)
    assert plan[f"{ns}/m@3"].size_bytes == 5
    made = await client.set_retention(ns, keep_last=1, keep_best=best, keep_younger_s=0.001)
    assert await client.get_retention(ns) == made
    assert (made.keep_best, made.keep_younger_s, made.updated_by) == (best, 0.001, "ada@test")
    assert await client.list_retention(ns) == (made,)
    assert (await client.run_retention(ns)).versions == 1
    assert [one.version async for one in client.iter_versions(f"{ns}/m")] == [4, 2, 1]
    with pytest.raises(InUseError, match="locked"):
        await client.delete_version(f"{ns}/m@2")
    assert await client.unlock_version(f"{ns}/m@2")
    await client.delete_retention(ns)
    with pytest.raises(NotFoundError):
        await client.get_retention(ns)


async def test_nonsense_is_refused(client: Client, ns: str) -> None:
    with pytest.raises(InvalidError, match="rule"):
        await client.set_retention(ns)
    with pytest.raises(InvalidError, match="kind"):
        await client.set_retention(ns, kind="everything", keep_last=1)
    with pytest.raises(InvalidError, match="keep_last"):
        await client.set_retention(ns, keep_last=0)
    with pytest.raises(InvalidError, match="quota"):
        await client.set_quota(ns, -1)
    with pytest.raises(NotFoundError):
        await client.lock_version(f"{ns}/m@1")


async def test_a_quota_refuses_and_says_by_how_much(client: Client, ns: str, tmp_path: Path) -> None:
    await client.set_quota(ns, 10)
    await publish(client, f"{ns}/m", tmp_path, "12345678")
    with pytest.raises(LimitError, match=r"quota of .* is 10 bytes, 8 are used, 5 more"):
        await publish(client, f"{ns}/m", tmp_path, "abcde")
    (quota,) = await client.list_quotas(ns)
    assert (quota.limit_bytes, quota.used_bytes) == (10, 8)
    usage = {one.path: one async for one in client.iter_usage()}
    assert (usage[ns].bytes_held, usage[ns].quota_bytes, usage[ns].versions) == (8, 10, 1)
    assert [(one.path, one.bytes_versions) async for one in client.iter_usage(ns)] == [(f"{ns}/m", 8)]
    await client.delete_quota(ns)
    await publish(client, f"{ns}/m", tmp_path, "abcde")


async def test_what_was_deleted_is_collected_and_can_be_published_again(
    client: Client, ns: str, tmp_path: Path
) -> None:
    await publish(client, f"{ns}/m", tmp_path, f"{ns} one", f"{ns} two")
    await client.delete_version(f"{ns}/m@1")
    before = await client.space_totals()
    seen: list[Collected] = []
    dry = await client.collect_garbage(dry_run=True, on_progress=seen.append)
    assert dry.done
    assert dry.dry_run
    assert (await client.space_totals()).blobs == before.blobs
    while (await client.collect_garbage()).blobs == 0:
        # The grace time of a second is not over yet.
        pass
    assert (await client.space_totals()).blobs < before.blobs
    await publish(client, f"{ns}/m", tmp_path, f"{ns} one")
    said: list[SpaceCheck] = []
    report = await client.check_space(checksums=True, on_progress=said.append)
    assert report.findings == ()
    assert report.checked["blobs"] >= 2
    assert report.checked["feed"] > 0
    assert report.bytes_read >= 2 * len(f"{ns} one")
    assert {one.stage for one in said} >= {"blobs"}


async def test_the_same_over_http(shared_server: ServerProcess, client: Client, ns: str, tmp_path: Path) -> None:
    await publish(client, f"{ns}/m", tmp_path, "one", "two", "three")
    async with aiohttp.ClientSession(f"{shared_server.url}/api/v1/", headers={"modelbox-actor": "bob"}) as http:

        async def call(method: str, path: str, status: int = 200, **said: object) -> dict[str, object]:
            async with http.request(method, path, **said) as answer:  # type: ignore[arg-type]
                assert answer.status == status, await answer.text()
                found: dict[str, object] = await answer.json()
                return found

        lock = await call("PUT", f"models/{ns}/m/versions/1/lock", json={"reason": "audit"})
        assert (lock["version"], lock["reason"]) == (1, "audit")
        assert (await call("GET", "locks", params={"scope": ns}))["items"] == [lock]
        policy = await call("PUT", "retention", json={"scope": ns, "kind": "versions", "keep_last": 1})
        assert policy["keep_last"] == 1
        await call("PUT", "retention", 400, json={"scope": ns})
        assert (await call("GET", "retention", params={"namespace": ns}))["items"] == [policy]
        plan = (await call("GET", "retention/plan", params={"scope": ns}))["items"]
        assert isinstance(plan, list)
        assert [one["keep"] for one in plan] == [True, False, True]
        assert (await call("POST", "retention/run", params={"scope": ns}))["versions"] == 1
        assert await call("DELETE", f"models/{ns}/m/versions/1/lock") == {"unlocked": True}
        await call("DELETE", f"models/{ns}/m/versions/x/lock", 400)
        await call("DELETE", "retention", params={"scope": ns})
        await call("DELETE", "retention", 404, params={"scope": ns})
        quota = await call("PUT", f"quotas/{ns}", json={"limit_bytes": 1000})
        assert quota["limit_bytes"] == 1000
        assert (await call("GET", "quotas", params={"namespace": ns}))["items"] == [quota]
        usage = (await call("GET", "space", params={"namespace": ns}))["items"]
        assert isinstance(usage, list)
        assert [one["path"] for one in usage] == [f"{ns}/m"]
        await call("DELETE", f"quotas/{ns}")
        assert set(await call("GET", "space/totals")) == {"blobs", "bytes_blobs", "uploads", "removals"}
