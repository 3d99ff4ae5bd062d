"""The client's calls against a real server, on every event loop."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from modelbox.client import Client
from modelbox.engine import Engine
from modelbox.errors import (
    ClientClosed,
    ConfigError,
    ConflictError,
    InUseError,
    InvalidError,
    LimitError,
    NotFoundError,
    RefError,
)
from modelbox.signature import Signature, TensorSpec
from tests.server import ServerProcess


@pytest.fixture
def ns() -> str:
    return f"ns-{secrets.token_hex(4)}"


@pytest.fixture
async def client(shared_server: ServerProcess) -> AsyncIterator[Client]:
    async with Client(shared_server.url, actor="ada@test") as opened:
        yield opened


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"weights")
    return path


async def publish(client: Client, path: str, weights: Path, text: str, *, aliases: tuple[str, ...] = ()) -> int:
    weights.write_text(text)
    return (await client.publish(path, weights, framework="raw", aliases=aliases, reason=text)).item.version


async def test_a_model_is_made_once_and_edited(client: Client, ns: str) -> None:
    created = await client.create_model(
        f"{ns}/m", owner="ada", task="asr", labels={"a": "1", "b": "2"}, metadata={"k": [1, {"x": None}]}
    )
    assert not created.existed
    again = await client.create_model(f"{ns}/m", owner="other")
    assert again.existed
    assert again.item == created.item
    edited = await client.update_model(
        f"{ns}/m", owner="grace", labels={"c": "3"}, remove_labels=["a"], metadata={"n": 1.5}, remove_metadata=["k"]
    )
    assert (edited.owner, edited.task) == ("grace", "asr")
    assert edited.labels == {"b": "2", "c": "3"}
    assert edited.metadata == {"n": 1.5}
    assert edited.mod_rev > created.item.mod_rev
    assert await client.get_model(f"{ns}/m") == edited


async def test_lists_come_page_by_page(client: Client, ns: str) -> None:
    async with anyio.create_task_group() as group:
        for number in range(130):
            group.start_soon(client.create_model, f"{ns}/m{number:03}")
    assert [model.name async for model in client.iter_models(ns)] == [f"m{number:03}" for number in range(130)]
    assert ns in [namespace.name async for namespace in client.iter_namespaces()]


async def test_a_version_carries_what_was_said_of_it(client: Client, ns: str, weights: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="y", dtype="int64", shape=(-1,)),),
    )
    created = await client.publish(
        f"{ns}/m",
        weights,
        framework="raw",
        signature=signature,
        entrypoint="weights.bin",
        description="first",
        labels={"a": "1"},
        metadata={"k": True},
        metrics={"wer": 0.25},
        aliases=["prod", "staging"],
        reason="why not",
    )
    version = created.item
    assert not created.existed
    assert version.version == 1
    assert version.manifest.signature == signature
    assert (version.description, version.labels, version.metadata) == ("first", {"a": "1"}, {"k": True})
    assert version.metrics == {"wer": 0.25}
    assert version.created_by == "ada@test"
    for ref in (f"{ns}/m", f"{ns}/m@prod", f"{ns}/m@1", f"{ns}/m@{version.digest}"):
        assert await client.get_version(ref) == version
    edited = await client.update_version(f"{ns}/m@1", metrics={"cer": 0.1}, remove_metrics=["wer"], description="2nd")
    assert (edited.metrics, edited.description) == ({"cer": 0.1}, "2nd")
    assert edited.digest == version.digest


async def test_publishing_the_same_again_says_so(client: Client, ns: str, weights: Path) -> None:
    first = await client.publish(f"{ns}/m", weights, framework="raw")
    again = await client.publish(f"{ns}/m", weights, framework="raw", aliases=["prod"])
    assert again.existed
    assert again.item.version == first.item.version
    assert (await client.resolve(f"{ns}/m@prod")).version.version == 1


async def test_aliases_move_by_compare_and_set_and_back(client: Client, ns: str, weights: Path) -> None:
    path, prod = f"{ns}/m", f"{ns}/m@prod"
    await publish(client, path, weights, "one")
    await publish(client, path, weights, "two")
    first = await client.promote(prod, 1, expected_mod_rev=0, reason="start")
    with pytest.raises(ConflictError):
        await client.promote(prod, 2, expected_mod_rev=0)
    second = await client.promote(prod, 2, expected_mod_rev=first.mod_rev, reason="better")
    with pytest.raises(ConflictError) as caught:
        await client.promote(prod, 1, expected_mod_rev=first.mod_rev)
    assert caught.value.fields["current"]
    resolved = await client.resolve(prod)
    assert resolved.alias == second
    assert resolved.version.version == 2
    back = await client.rollback(prod, reason="worse")
    assert back.version == 1
    assert {alias.name: alias.version for alias in await client.list_aliases(path)} == {"latest": 2, "prod": 1}
    moves = [move async for move in client.iter_alias_moves(path, "prod")]
    assert [(move.from_version, move.to_version) for move in moves] == [(2, 1), (1, 2), (None, 1)]
    assert [move.moved_by for move in moves] == ["ada@test"] * 3
    then = [move async for move in client.iter_alias_moves(path, "prod", at=moves[1].moved_at)]
    assert then[0].to_version == 2
    long_ago = datetime.now(UTC) - timedelta(days=365)
    assert [move async for move in client.iter_alias_moves(path, "prod", at=long_ago)] == []
    await client.delete_alias(prod)
    with pytest.raises(NotFoundError):
        await client.resolve(prod)


async def test_what_an_alias_points_to_is_not_deleted(client: Client, ns: str, weights: Path) -> None:
    path = f"{ns}/m"
    await publish(client, path, weights, "one", aliases=("prod",))
    await publish(client, path, weights, "two")
    with pytest.raises(InUseError) as caught:
        await client.delete_version(f"{path}@1")
    assert caught.value.fields["held_by"]
    with pytest.raises(InUseError):
        await client.delete_model(path)
    await client.delete_version(f"{path}@2")
    assert [version.version async for version in client.iter_versions(path)] == [1]
    assert (await client.resolve(path)).version.version == 1
    await client.delete_alias(f"{path}@prod")
    await client.delete_model(path)
    with pytest.raises(NotFoundError):
        await client.get_model(path)


async def test_not_found_says_what_exists(client: Client, ns: str, weights: Path) -> None:
    await publish(client, f"{ns}/wav2vec", weights, "one", aliases=("prod",))
    with pytest.raises(NotFoundError) as caught:
        await client.get_model(f"{ns}/wav3vec")
    assert f"{ns}/wav2vec" in str(caught.value.fields["exists"])
    with pytest.raises(NotFoundError, match="prod"):
        await client.resolve(f"{ns}/wav2vec@production")
    with pytest.raises(NotFoundError):
        await client.get_version(f"{ns}/wav2vec@9")


async def test_bad_names_are_refused_before_anything_is_sent(weights: Path) -> None:
    # Nobody listens there: whatever reached the network would be Unavailable.
    async with Client("http://127.0.0.1:1", request_timeout_s=1) as client:
        for path in ("wav2vec", "a/b/c", "A/b", "a/..", "a/b@prod", "a/b\0"):
            with pytest.raises(InvalidError):
                await client.create_model(path)
            with pytest.raises(InvalidError):
                await client.publish(path, weights)
        for ref in ("a/b", "a/b@1", "a/b@sha256:0"):
            with pytest.raises(InvalidError):
                await client.promote(ref, 1)
        for ref in ("a/b", "a/b@prod"):
            with pytest.raises(InvalidError):
                await client.delete_version(ref)
        with pytest.raises(RefError):
            await client.resolve("a/b@@")
        with pytest.raises(InvalidError):
            client.changes("token", list_first=True)


async def test_the_server_refuses_what_breaks_a_limit(client: Client, ns: str) -> None:
    with pytest.raises(InvalidError):
        await client.promote(f"{ns}/m@latest", 1)
    with pytest.raises(InvalidError):
        await client.create_model(f"{ns}/m", metadata={"nan": float("nan")})
    with pytest.raises(LimitError, match="65536"):
        await client.create_model(f"{ns}/m", metadata={"big": "x" * 70_000})


async def test_artifacts_are_attached_listed_and_deleted(client: Client, ns: str, weights: Path) -> None:
    await publish(client, f"{ns}/m", weights, "one")
    stored = await client.upload_artifact(f"{ns}/m@1", "report", weights, labels={"kind": "eval"})
    assert not stored.existed
    assert (await client.upload_artifact(f"{ns}/m@1", "report", weights)).existed
    tracked = await client.track_artifact(f"{ns}/m", "data", [weights])
    assert tracked.item.files[0].uri == weights.as_uri()
    assert tracked.item.files[0].digest == stored.item.files[0].digest
    listed = [artifact async for artifact in client.iter_artifacts(ns)]
    assert {artifact.name for artifact in listed} == {"report", "data"}
    assert [artifact.name async for artifact in client.iter_artifacts(f"{ns}/m@1")] == ["report"]
    assert await client.get_artifact(stored.item.id) == stored.item
    weights.write_text("other")
    with pytest.raises(ConflictError):
        await client.upload_artifact(f"{ns}/m@1", "report", weights)
    await client.delete_artifact(stored.item.id)
    with pytest.raises(NotFoundError):
        await client.get_artifact(stored.item.id)


async def test_a_closed_client_says_so(shared_server: ServerProcess, ns: str) -> None:
    client = Client(shared_server.url)
    async with client:
        await client.create_model(f"{ns}/m")
    await client.aclose()
    with pytest.raises(ClientClosed):
        await client.get_model("a/b")
    with pytest.raises(ClientClosed):
        async with client:
            pass


async def test_a_shared_engine_outlives_its_clients(shared_server: ServerProcess, ns: str) -> None:
    engine = Engine()
    try:
        for number in range(2):
            async with Client(shared_server.url, engine=engine) as client:
                await client.create_model(f"{ns}/m{number}")
        assert not engine.closed
    finally:
        await engine.aclose()


async def test_settings_that_cannot_be_used_are_refused_at_the_door() -> None:
    with pytest.raises(ConfigError, match="ftp://nowhere"):
        async with Client("ftp://nowhere"):
            pass


def test_one_client_serves_several_threads_and_loops(shared_server: ServerProcess, ns: str) -> None:
    client = Client(shared_server.url)

    async def work(name: str) -> str:
        return (await client.create_model(f"{ns}/{name}")).item.name

    def run(name: str, backend: str) -> str:
        return anyio.run(work, name, backend=backend)

    async def in_threads() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, run, "t0", "asyncio")
            group.start_soon(anyio.to_thread.run_sync, run, "t1", "trio")
        assert {model.name async for model in client.iter_models(ns)} == {"t0", "t1"}
        await client.aclose()

    anyio.run(in_threads)


def test_a_forked_child_makes_its_own_connections(shared_server: ServerProcess, ns: str) -> None:
    client = Client(shared_server.url)

    async def work(name: str) -> bool:
        return (await client.create_model(f"{ns}/{name}")).existed

    assert anyio.run(work, "parent") is False
    if (pid := os.fork()) == 0:
        code = 1
        try:
            code = 0 if anyio.run(work, "parent") is True and anyio.run(work, "child") is False else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert anyio.run(work, "child") is True
    anyio.run(client.aclose)
