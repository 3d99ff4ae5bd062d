"""Uploads, downloads and artifacts through the service, over SQLite and a directory."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from modelbox.errors import (
    ConflictError,
    IntegrityError,
    InvalidError,
    LimitError,
    NotFoundError,
    StorageError,
)
from modelbox.objects import ArtifactFile, NewArtifact, NewVersion
from modelbox.refs import ModelRef
from tests.faults.registry import fault

from .server_core import Core, chunks, digest_of, manifest, open_core

DATA = random.Random(3).randbytes(3_000_000)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path / "data") as opened:
        yield opened


async def test_an_upload_resumes_after_a_break(core: Core) -> None:
    begun = await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
    assert (begun.offset, begun.complete) == (0, False)

    def break_at(offset: int) -> None:
        if offset > 1_500_000:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await core.artifacts.write_upload(begun.id, 0, chunks(DATA, before=break_at))
    again = await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
    assert again.id == begun.id
    assert 1_500_000 < again.offset < len(DATA)
    assert again == await core.artifacts.upload_offset(begun.id)
    done = await core.artifacts.write_upload(begun.id, again.offset, chunks(DATA[again.offset :]))
    assert done.complete
    assert (await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))).complete


async def test_an_upload_resumes_after_a_restart(core: Core, tmp_path: Path) -> None:
    async with open_core(tmp_path / "other") as first:
        begun = await first.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
        part = await first.artifacts.write_upload(begun.id, 0, chunks(DATA[:1_000_000]))
        assert (part.offset, part.complete) == (1_000_000, False)
    async with open_core(tmp_path / "other") as second:
        again = await second.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
        assert (again.id, again.offset) == (begun.id, 1_000_000)
        assert (await second.artifacts.write_upload(begun.id, 1_000_000, chunks(DATA[1_000_000:]))).complete


async def test_who_lost_the_answer_hears_it_again(core: Core) -> None:
    done = await core.upload(DATA)
    assert (await core.artifacts.upload_offset(done.id)).complete
    assert (await core.artifacts.write_upload(done.id, len(DATA), chunks(b""))).complete


@fault(68)
async def test_knowing_a_digest_grants_nothing(core: Core) -> None:
    await core.upload(DATA, namespace="theirs")
    assert not (await core.artifacts.begin_upload("ours", digest_of(DATA), len(DATA))).complete
    assert (await core.upload(DATA, namespace="ours")).complete


async def test_a_wrong_offset_says_the_right_one(core: Core) -> None:
    begun = await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
    await core.artifacts.write_upload(begun.id, 0, chunks(DATA[:500]))
    for offset in (0, 499, 501):
        with pytest.raises(ConflictError) as caught:
            await core.artifacts.write_upload(begun.id, offset, chunks(DATA))
        assert caught.value.fields["current"] == 500


@pytest.mark.parametrize("sent", [DATA[:-1] + b"?", DATA + b"?"])
async def test_wrong_bytes_discard_the_upload(core: Core, sent: bytes) -> None:
    begun = await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
    with pytest.raises(IntegrityError):
        await core.artifacts.write_upload(begun.id, 0, chunks(sent))
    with pytest.raises(NotFoundError):
        await core.artifacts.upload_offset(begun.id)
    assert list((core.directory / "uploads").iterdir()) == []
    assert await core.blobs.find_size(digest_of(DATA)) is None
    assert (await core.upload(DATA)).complete


async def test_an_empty_file(core: Core) -> None:
    assert (await core.upload(b"")).complete
    assert (await core.publish(b"")).item.manifest.size_bytes == 0


async def test_a_newer_writer_displaces_the_older_one(core: Core) -> None:
    begun = await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
    stuck = anyio.Event()
    outcome: list[object] = []

    async def half_then_silence() -> AsyncIterator[bytes]:
        yield DATA[:1_000_000]
        stuck.set()
        await anyio.sleep_forever()

    async def older() -> None:
        try:
            outcome.append(await core.artifacts.write_upload(begun.id, 0, half_then_silence()))
        except ConflictError as exc:
            outcome.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(older)
        await stuck.wait()
        with pytest.raises(ConflictError) as caught:
            await core.artifacts.write_upload(begun.id, 0, chunks(DATA))
        assert caught.value.fields["current"] == 1_000_000
        assert (await core.artifacts.write_upload(begun.id, 1_000_000, chunks(DATA[1_000_000:]))).complete
    assert isinstance(outcome[0], ConflictError)


async def test_a_cancelled_upload_keeps_its_bytes_and_leaves_no_turn(core: Core) -> None:
    begun = await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
    with anyio.CancelScope() as scope:

        async def cancelled() -> AsyncIterator[bytes]:
            yield DATA[:1_000_000]
            scope.cancel()
            await anyio.sleep_forever()

        await core.artifacts.write_upload(begun.id, 0, cancelled())
    assert scope.cancelled_caught
    assert (await core.artifacts.upload_offset(begun.id)).offset == 1_000_000
    assert (await core.artifacts.write_upload(begun.id, 1_000_000, chunks(DATA[1_000_000:]))).complete
    assert core.artifacts._turns == {}


@pytest.mark.parametrize(
    ("namespace", "digest", "size", "error"),
    [
        ("../x", digest_of(b"a"), 1, InvalidError),
        ("n\0s", digest_of(b"a"), 1, InvalidError),
        ("ns", "sha256:ABC", 1, InvalidError),
        ("ns", "md5:" + "a" * 64, 1, InvalidError),
        ("ns", digest_of(b"a"), -1, InvalidError),
        ("ns", digest_of(b"a"), 1 << 62, LimitError),
    ],
)
async def test_bad_uploads_are_refused_before_anything_is_written(
    core: Core, namespace: str, digest: str, size: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await core.artifacts.begin_upload(namespace, digest, size)
    assert list((core.directory / "uploads").iterdir()) == []


@pytest.mark.parametrize("upload_id", ["", "../../etc/passwd", "upl_" + "0" * 24, "x" * 10_000, "a\0b"])
async def test_unknown_upload_ids(core: Core, upload_id: str) -> None:
    with pytest.raises((NotFoundError, InvalidError, LimitError)):
        await core.artifacts.write_upload(upload_id, 0, chunks(b"x"))
    assert list((core.directory / "uploads").iterdir()) == []


async def test_idle_uploads_are_swept(core: Core) -> None:
    begun = await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
    await core.artifacts.write_upload(begun.id, 0, chunks(DATA[:500]))
    core.clock.advance(days=2)
    assert await core.artifacts.sweep_uploads() == 0
    path = core.directory / "uploads" / begun.id
    os.utime(path, (0, 0))
    assert await core.artifacts.sweep_uploads() == 1
    assert not path.exists()
    with pytest.raises(NotFoundError):
        await core.artifacts.upload_offset(begun.id)


@fault(34)
async def test_publishing_needs_the_bytes_even_where_a_row_says_so(core: Core) -> None:
    await core.upload(DATA)
    path = core.blobs.local_path(digest_of(DATA))
    assert path is not None
    path.unlink()
    with pytest.raises(NotFoundError, match="upload them first"):
        await core.registry.publish_version(NewVersion(namespace="ns", model="m", manifest=manifest(DATA)), actor="")
    # The way out is what the message says.
    assert (await core.publish(DATA)).item.version == 1


async def test_reading_a_version_counts_once_per_download(core: Core) -> None:
    await core.publish(DATA, b"small")
    ref = ModelRef.parse("ns/m@1")

    async def downloads() -> int:
        batch = await core.feed_store.read_after(0, limit=1000, max_bytes=1 << 20)
        return sum(change.kind == "download" for revision in batch.revisions for change in revision.changes)

    download = await core.artifacts.begin_download(ref, actor="bob")
    for path in ("file0.bin", "file1.bin"):
        opened = await core.artifacts.open_version_file(ref, path, download_id=download.id, actor="bob")
        assert opened.download is None
    assert await downloads() == 1
    opened = await core.artifacts.open_version_file(ref, "file0.bin", actor="bob")
    assert await downloads() == 2
    assert opened.local_path is not None
    assert opened.local_path.read_bytes() == b"".join([chunk async for chunk in opened.read()]) == DATA
    assert b"".join([chunk async for chunk in opened.read(5, 10)]) == DATA[5:15]
    await core.artifacts.open_version_file(ref, "file0.bin", actor="bob", offset=7)
    assert await downloads() == 2
    for offset, length in ((-1, None), (0, len(DATA) + 1), (len(DATA) + 1, None)):
        with pytest.raises(InvalidError):
            opened.read(offset, length)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a\0b", "", "a//b", "a\\b", "./a"])
async def test_paths_that_escape_are_refused(core: Core, path: str) -> None:
    await core.publish(DATA)
    with pytest.raises(InvalidError):
        await core.artifacts.open_version_file(ModelRef.parse("ns/m"), path, actor="")


async def test_lost_bytes_are_an_error_of_the_storage(core: Core) -> None:
    await core.publish(DATA)
    path = core.blobs.local_path(digest_of(DATA))
    assert path is not None
    path.unlink()
    with pytest.raises(StorageError, match="not in the blob store"):
        await core.artifacts.open_version_file(ModelRef.parse("ns/m"), "file0.bin", actor="")


async def test_artifacts_stored_and_tracked(core: Core) -> None:
    await core.upload(DATA)
    stored = ArtifactFile(path="dir/a.bin", size_bytes=len(DATA), digest=digest_of(DATA))
    tracked = ArtifactFile(path="b", size_bytes=9, digest=digest_of(b"nine"), uri="s3://bucket/nine")
    made = await core.artifacts.create_artifact(
        NewArtifact(parent="ns", name="data", files=(stored, tracked)), actor="ann"
    )
    opened = await core.artifacts.open_artifact_file(made.item.id, "dir/a.bin")
    assert b"".join([chunk async for chunk in opened.read()]) == DATA
    with pytest.raises(InvalidError) as caught:
        await core.artifacts.open_artifact_file(made.item.id, "b")
    assert caught.value.fields["uri"] == "s3://bucket/nine"
    page = await core.artifacts.list_artifacts(namespace="ns", page_size=1)
    assert (page.items, page.next_token) == ((made.item,), "")
    await core.artifacts.delete_artifact(made.item.id, actor="ann")
    with pytest.raises(NotFoundError):
        await core.artifacts.get_artifact(made.item.id)


@pytest.mark.parametrize(
    ("parent", "name", "files"),
    [
        ("ns/m@prod", "a", (ArtifactFile(path="a", size_bytes=1, digest=digest_of(b"a")),)),
        ("..", "a", (ArtifactFile(path="a", size_bytes=1, digest=digest_of(b"a")),)),
        ("ns", "../a", (ArtifactFile(path="a", size_bytes=1, digest=digest_of(b"a")),)),
        ("ns", "a", ()),
        ("ns", "a", (ArtifactFile(path="../a", size_bytes=1, digest=digest_of(b"a")),)),
        ("ns", "a", (ArtifactFile(path="a", size_bytes=-1, digest=digest_of(b"a")),)),
        ("ns", "a", (ArtifactFile(path="a", size_bytes=1, digest=digest_of(b"a"), uri="no scheme"),)),
        ("ns", "a", (ArtifactFile(path="a", size_bytes=1, digest=digest_of(b"a"), uri="x:\n"),)),
        ("ns", "a", (ArtifactFile(path="a", size_bytes=1, digest=digest_of(b"a"), uri="x:y"),) * 2),
    ],
)
async def test_bad_artifacts_are_refused(core: Core, parent: str, name: str, files: tuple[ArtifactFile, ...]) -> None:
    with pytest.raises(InvalidError):
        await core.artifacts.create_artifact(NewArtifact(parent=parent, name=name, files=files), actor="")
    assert (await core.feed_store.head()).rev == 0


async def test_time_of_a_download_is_the_clocks(core: Core) -> None:
    await core.publish(DATA)
    core.clock.advance(hours=1)
    download = await core.artifacts.begin_download(ModelRef.parse("ns/m"), actor="bob")
    assert download.started_at - (await core.registry.get_model("ns", "m")).created_at == timedelta(hours=1)


async def test_two_writers_of_the_last_bytes_both_hear_that_it_is_complete(core: Core) -> None:
    begun = await core.artifacts.begin_upload("ns", digest_of(DATA), len(DATA))
    outcomes: list[bool] = []

    async def write(delay: int) -> None:
        for _ in range(delay):
            await anyio.lowlevel.checkpoint()
        try:
            outcomes.append((await core.artifacts.write_upload(begun.id, 0, chunks(DATA))).complete)
        except ConflictError as exc:
            outcomes.append(exc.fields["current"] is None)

    # However the two meet, nobody is told of a state that is not there, and the bytes are.
    for delay in (0, 1, 5, 25, 125):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, 0)
            tasks.start_soon(write, delay)
    assert (await core.artifacts.upload_offset(begun.id)).complete
    assert await core.blobs.find_size(digest_of(DATA)) == len(DATA)
    assert list((core.directory / "uploads").iterdir()) == []
    assert True in outcomes
