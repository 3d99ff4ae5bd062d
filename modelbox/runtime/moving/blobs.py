"""Copying blobs by digest from one store to another; every copy is hashed on its way.

A copy that was broken off goes on where it ended: its upload has an id made of the digest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import anyio
from anyio import to_thread

from modelbox.errors import IntegrityError, StorageError
from modelbox.refs import Digest, parse_digest
from modelbox.runtime.blobs.filesystem import CHUNK_BYTES
from modelbox.runtime.moving.lines import read_rows
from modelbox.runtime.moving.manifest import TableFile
from modelbox.runtime.ports import BlobStore
from modelbox.runtime.store.schema import blobs as blobs_table

__all__ = ("ExportedBlobs", "blob_path", "check_blobs", "copy_blobs", "iter_blobs", "size_of_blob", "upload_id_of")

Blob = tuple[Digest, int]

_BATCH = 500
_AT_ONCE = 4
_SHOWN = 10


def iter_blobs(directory: Path, file: TableFile) -> Iterator[Blob]:
    """Digest and size of every blob of an export."""
    with open(directory / file.file, "rb") as lines:
        for line in lines:
            for row in read_rows(blobs_table, file.columns, line):
                yield parse_digest(row["digest"]), row["size_bytes"]


class BlobSource(Protocol):
    """What is copied from: part of `modelbox.runtime.ports.BlobStore`."""

    async def find_sizes(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """Lengths of those that are here."""

    def read(self, digest: Digest, *, offset: int, length: int | None) -> AsyncIterator[bytes]:
        """Bytes from ``offset`` on."""


class ExportedBlobs:
    """The files of an export, for reading: its disk need not be writable."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def find_sizes(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """See `BlobSource.find_sizes`."""
        found = await to_thread.run_sync(lambda: [(one, size_of_blob(self._directory, one)) for one in digests])
        return {digest: size for digest, size in found if size is not None}

    async def read(self, digest: Digest, *, offset: int, length: int | None) -> AsyncIterator[bytes]:
        """See `BlobSource.read`."""
        path = blob_path(digest)
        try:
            fd = os.open(self._directory / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                end = os.fstat(fd).st_size if length is None else offset + length
                while offset < end:
                    chunk = await to_thread.run_sync(os.pread, fd, min(CHUNK_BYTES, end - offset), offset)
                    if not chunk:
                        raise IntegrityError(f"{path} ends at byte {offset:,}")
                    offset += len(chunk)
                    yield chunk
            finally:
                os.close(fd)
        except OSError as exc:
            raise StorageError(f"{path} cannot be read: {exc.strerror}") from exc


def blob_path(digest: Digest) -> str:
    """Where a blob is below the directory of an export."""
    name = digest.removeprefix("sha256:")
    return f"blobs/sha256/{name[:2]}/{name}"


def size_of_blob(directory: Path, digest: Digest) -> int | None:
    """The length of a blob of an export, None if it is not there."""
    try:
        status = (directory / blob_path(digest)).lstat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def upload_id_of(digest: Digest) -> str:
    """The upload by which a blob is copied."""
    return f"copy_{digest.removeprefix('sha256:')[:32]}"


async def copy_blobs(
    source: BlobSource, target: BlobStore, blobs: Callable[[], Iterable[Blob]], *, say: Callable[[str], None]
) -> int:
    """Copies blobs that the target does not have; returns their number. Memory does not grow with it.

    Args:
        source: Where they are.
        target: Where they are to be.
        blobs: Gives their digests and sizes, twice the same.
        say: Told what is about to be done.

    Raises:
        StorageError: Some are not in the source, or have another size; nothing is copied then.
        IntegrityError: The bytes of one are not what its digest says.
        LimitError: There is no room for them.

    Cancellation: whole blobs stay, and of those that are on their way what is written.
    """
    missing = size_bytes = 0
    lost: list[str] = []
    lost_count = 0
    for batch in _batches(blobs()):
        wanted = await _missing(target, batch)
        found = await source.find_sizes([digest for digest, _ in wanted]) if wanted else {}
        for digest, size in wanted:
            if found.get(digest) != size:
                lost_count += 1
                if len(lost) < _SHOWN:
                    what = f"has {found[digest]} bytes instead of {size}" if digest in found else "is missing"
                    lost.append(f"\n  {digest} {what}")
        missing += len(wanted)
        size_bytes += sum(size for _, size in wanted)
    if lost:
        more = f"\n  and {lost_count - len(lost)} more" if lost_count > len(lost) else ""
        raise StorageError(
            f"{lost_count} of the files that the database names are not where they should be:{''.join(lost)}{more}"
        )
    if not missing:
        return 0
    await target.check_room(size_bytes)
    say(f"copying files: {missing:,}, {size_bytes:,} bytes")
    for batch in _batches(blobs()):
        wanted = await _missing(target, batch)
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        try:
            async with anyio.create_task_group() as tasks:
                for digest, size in wanted:
                    tasks.start_soon(_copy, source, target, digest, size, limiter, name="copy a blob")
        except BaseExceptionGroup as group:
            # Several that fail at once do so for one reason, such as a full disk.
            raise _first(group) from group
    return missing


async def check_blobs(target: BlobStore, blobs: Iterable[Blob]) -> None:
    """Looks whether all are there.

    Raises:
        IntegrityError: One is not, or has another size.
    """
    for batch in _batches(blobs):
        for digest, size in await _missing(target, batch):
            raise IntegrityError(f"{digest}, of {size} bytes, did not arrive, or was removed again: run it once more")


def _batches(blobs: Iterable[Blob]) -> Iterator[Sequence[Blob]]:
    rest = iter(blobs)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


async def _missing(target: BlobStore, batch: Sequence[Blob]) -> list[Blob]:
    there = await target.find_sizes([digest for digest, _ in batch])
    return [(digest, size) for digest, size in batch if there.get(digest) != size]


async def _copy(
    source: BlobSource, target: BlobStore, digest: Digest, size: int, limiter: anyio.CapacityLimiter
) -> None:
    upload = upload_id_of(digest)
    async with limiter:
        try:
            async with target.open_upload(upload) as writer:
                if writer.offset <= size:
                    async for chunk in source.read(digest, offset=writer.offset, length=size - writer.offset):
                        await writer.write(chunk)
                await writer.commit(digest, size)
        except IntegrityError:
            with anyio.CancelScope(shield=True):
                await target.discard_upload(upload)
            raise
