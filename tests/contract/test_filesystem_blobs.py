"""Blobs in a directory: the contract on every loop, and what is on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from modelbox.errors import LimitError, ServerBusy, StorageError
from modelbox.refs import Digest
from modelbox.runtime.blobs import filesystem
from modelbox.runtime.blobs.filesystem import FilesystemBlobs
from tests.faults.registry import fault

from .blob_stores import DATA, UPLOAD, BlobStoreContract, digest_of, get, put


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[FilesystemBlobs]:
    async with FilesystemBlobs(tmp_path) as opened:
        yield opened


class TestBlobs(BlobStoreContract):
    pass


async def test_a_blob_is_read_only_and_named_by_its_digest(tmp_path: Path, blobs: FilesystemBlobs) -> None:
    digest = await put(blobs, DATA)
    name = digest.removeprefix("sha256:")
    path = tmp_path / "blobs" / "sha256" / name[:2] / name
    assert blobs.local_path(digest) == path
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_of_two_servers_one_writes_an_upload(
    tmp_path: Path, blobs: FilesystemBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelbox.runtime.blobs.filesystem._OTHER_WRITER_S", 0.2)
    async with FilesystemBlobs(tmp_path) as other:
        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(DATA[:2_000_000])
            with pytest.raises(ServerBusy, match="another server takes this upload"):
                async with other.open_upload(UPLOAD):
                    pass
        async with other.open_upload(UPLOAD) as writer:
            assert writer.offset == 2_000_000


async def test_who_waited_for_an_upload_that_was_completed_spoils_nothing(
    tmp_path: Path, blobs: FilesystemBlobs
) -> None:
    async with FilesystemBlobs(tmp_path) as other, anyio.create_task_group() as tasks:
        seen = []

        async def wait() -> None:
            async with other.open_upload(UPLOAD) as late:
                seen.append(late.offset)
                await late.write(b"other bytes")

        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(DATA)
            tasks.start_soon(wait)
            await anyio.sleep(0.1)
            await writer.commit(digest_of(DATA), len(DATA))
    assert seen == [0]
    assert await get(blobs, digest_of(DATA)) == DATA


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
async def test_a_request_that_ends_while_its_upload_is_opened_lets_go_of_it(
    tmp_path: Path, blobs: FilesystemBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, opened = threading.Event(), threading.Event()
    open_alone = filesystem._open_alone

    def told(path: Path, flags: int) -> int:
        opening.set()
        fd = open_alone(path, flags)
        opened.set()
        return fd

    async with FilesystemBlobs(tmp_path) as other:

        async def enter() -> None:
            async with other.open_upload(UPLOAD):
                pytest.fail("it was cancelled before")

        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(DATA)
            monkeypatch.setattr(filesystem, "_open_alone", told)
            # As a server does whose peer is gone: no shield keeps this out.
            entering = asyncio.create_task(enter())
            while not opening.is_set():
                await anyio.sleep(0.001)
            entering.cancel()
            await anyio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert await anyio.to_thread.run_sync(opened.wait, 60)
        async with other.open_upload(UPLOAD) as writer:
            assert writer.offset == len(DATA)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
async def test_a_request_that_ends_while_its_upload_is_checked_leaves_the_file_to_the_check(
    blobs: FilesystemBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(fd: int) -> None:
        begun.set()
        assert go_on.wait(60)
        fsync(fd)

    async def upload() -> None:
        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(DATA)
            await writer.commit(digest_of(DATA), len(DATA))

    monkeypatch.setattr("os.fsync", slow)
    uploading = asyncio.create_task(upload())
    while not begun.is_set():
        await anyio.sleep(0.001)
    uploading.cancel()
    await anyio.sleep(0.01)
    assert not uploading.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert await get(blobs, digest_of(DATA)) == DATA


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
async def test_a_request_that_ends_while_its_blob_is_opened_leaves_no_file_open(
    blobs: FilesystemBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await put(blobs, DATA)
    opening, go_on = threading.Event(), threading.Event()
    open_blob = filesystem._open_blob
    path = blobs.local_path(digest)
    assert path is not None
    seen: list[bool] = []

    def slow(path: Path, digest: Digest) -> object:
        opening.set()
        assert go_on.wait(60)
        opened = open_blob(path, digest)
        seen.append(is_open())
        return opened

    def is_open() -> bool:
        found = []
        for link in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/self/fd/{link}"))
        return os.path.realpath(path) in found

    monkeypatch.setattr(filesystem, "_open_blob", slow)
    reading = asyncio.create_task(get(blobs, digest))
    while not opening.is_set():
        await anyio.sleep(0.001)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    go_on.set()
    with anyio.fail_after(60):
        # The thread may come later.
        while not seen or is_open():
            await anyio.sleep(0.001)
    assert seen == [True]


async def test_another_process_goes_on_with_an_upload(tmp_path: Path, blobs: FilesystemBlobs) -> None:
    async with blobs.open_upload(UPLOAD) as writer:
        await writer.write(DATA[:2_000_000])
    async with FilesystemBlobs(tmp_path) as other:
        async with other.open_upload(UPLOAD) as writer:
            assert writer.offset == 2_000_000
            await writer.write(DATA[2_000_000:])
            await writer.commit(digest_of(DATA), len(DATA))
        assert await get(other, digest_of(DATA)) == DATA


async def test_bytes_that_rotted_between_two_processes_are_found(tmp_path: Path, blobs: FilesystemBlobs) -> None:
    async with blobs.open_upload(UPLOAD) as writer:
        await writer.write(DATA[:2_000_000])
    with (tmp_path / "uploads" / UPLOAD).open("r+b") as file:
        file.write(bytes([DATA[0] ^ 1]))
    async with FilesystemBlobs(tmp_path) as other:
        with pytest.raises(Exception, match="were announced"):
            async with other.open_upload(UPLOAD) as writer:
                await writer.write(DATA[2_000_000:])
                await writer.commit(digest_of(DATA), len(DATA))
        assert await other.find_size(digest_of(DATA)) is None


async def test_a_full_disk_keeps_what_fits_and_goes_on_later(blobs: FilesystemBlobs) -> None:
    # A file size limit fails writes as a full disk does: a short write first, then an error.
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, old[1]))
        with pytest.raises(LimitError, match="full"):
            async with blobs.open_upload(UPLOAD) as writer:
                for start in range(0, len(DATA), 1 << 20):
                    await writer.write(DATA[start : start + (1 << 20)])
                await writer.commit(digest_of(DATA), len(DATA))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    kept = await blobs.upload_offset(UPLOAD)
    assert kept == 2 << 20
    async with blobs.open_upload(UPLOAD) as writer:
        assert writer.offset == kept
        await writer.write(DATA[kept:])
        await writer.commit(digest_of(DATA), len(DATA))
    assert await get(blobs, digest_of(DATA)) == DATA


@fault(33)
async def test_an_fsync_that_fails_discards_the_upload(
    tmp_path: Path, blobs: FilesystemBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        await put(blobs, DATA)
    assert await blobs.find_size(digest_of(DATA)) is None
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_symlinks_are_not_followed(tmp_path: Path, blobs: FilesystemBlobs) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "uploads" / UPLOAD).symlink_to(victim)
    with pytest.raises(StorageError):
        async with blobs.open_upload(UPLOAD) as writer:
            await writer.write(b"x")
    assert victim.read_bytes() == b"precious"
    path = blobs.local_path(digest_of(b"precious"))
    assert path is not None
    path.parent.mkdir()
    path.symlink_to(victim)
    assert await blobs.find_size(digest_of(b"precious")) is None
    with pytest.raises(StorageError):
        await get(blobs, digest_of(b"precious"))


@fault(38)
async def test_bytes_are_on_disk_before_their_name(
    tmp_path: Path, blobs: FilesystemBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power failure asks for: sync the file, rename it, sync the directories."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(fd: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{fd}"))
        # Other threads of this process sync files of their own.
        if target.is_relative_to(tmp_path):
            calls.append(f"fsync {target.relative_to(tmp_path)}")
        fsync(fd)

    def seen_replace(old: Path, new: Path) -> None:
        if Path(new).is_relative_to(tmp_path):
            calls.append(f"rename to {new.relative_to(tmp_path)}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    name = (await put(blobs, DATA)).removeprefix("sha256:")
    assert calls == [
        f"fsync uploads/{UPLOAD}",
        f"rename to blobs/sha256/{name[:2]}/{name}",
        f"fsync blobs/sha256/{name[:2]}",
        "fsync blobs/sha256",
    ]


async def test_what_was_uploaded_again_a_moment_before_is_put_back(
    tmp_path: Path, blobs: FilesystemBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remover looks, is paused, the bytes are uploaded again, the remover goes on."""
    digest = await put(blobs, DATA)
    entry = await blobs.find_blob(digest)
    assert entry is not None
    rename = os.rename

    def late(old: Path, new: Path) -> None:
        if not Path(old).is_relative_to(tmp_path):
            return rename(old, new)
        fresh = tmp_path / "fresh"
        fresh.write_bytes(DATA)
        os.replace(fresh, old)
        rename(old, new)

    monkeypatch.setattr(os, "rename", late)
    assert not await blobs.delete(entry)
    monkeypatch.undo()
    assert await get(blobs, digest) == DATA
    assert list((tmp_path / "removed").iterdir()) == []


async def test_a_start_puts_back_what_a_crash_left_half_removed(tmp_path: Path, blobs: FilesystemBlobs) -> None:
    digest, other = await put(blobs, DATA), await put(blobs, DATA[:9])
    for number, moved in enumerate((digest, other)):
        path = blobs.local_path(moved)
        assert path is not None
        os.rename(path, tmp_path / "removed" / f"{path.name}.{number:016x}")
    await put(blobs, DATA[:9])
    async with FilesystemBlobs(tmp_path) as again:
        assert await get(again, digest) == DATA
        assert await get(again, other) == DATA[:9]
        assert list((tmp_path / "removed").iterdir()) == []


async def test_only_blobs_are_listed(tmp_path: Path, blobs: FilesystemBlobs) -> None:
    digest = await put(blobs, b"one")
    path = blobs.local_path(digest)
    assert path is not None
    (path.parent / "README").write_text("no blob")
    (path.parent / ("f" * 64 if path.parent.name != "ff" else "0" * 64)).write_text("in the wrong directory")
    (path.parent / f"{path.parent.name}{'0' * 62}").symlink_to(path)
    assert [entry.digest async for entry in blobs.iter_blobs()] == [digest]
