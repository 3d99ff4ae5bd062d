"""Blobs as files of a directory.

Layout: ``blobs/sha256/ab/<64 hex>``, mode 0444, ``uploads/<id>`` for what is on its way, and ``removed/`` for what is
about to go. Invariants:

* A name below ``blobs`` appears by rename only, after size and hash were checked and the bytes were synced; then the
  directories are synced. A crash leaves a whole blob or none.
* Names are made of digests and of ids that the server made, never of user text.
* One server at a time writes an upload, by a lock on its file (on NFS: version 4).
* An fsync that failed is never repeated on the same file: the upload is discarded.
* A blob is removed by moving it to ``removed`` first. If that took other bytes than meant, for they were uploaded
  again a moment before, they are put back; so does the next start where a crash came between.

Hashing and writing run in threads while the next bytes arrive; an upload holds at most 4 MiB in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
from anyio import to_thread

from modelbox.errors import (
    ConfigError,
    IntegrityError,
    InvalidError,
    LimitError,
    ModelBoxError,
    ServerBusy,
    StorageError,
)
from modelbox.refs import Digest, parse_digest, shown
from modelbox.runtime.ports import BlobEntry, SignedPart

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ("CHUNK_BYTES", "FilesystemBlobs")

K = TypeVar("K", bound=str)

CHUNK_BYTES = 1 << 20
_QUEUED_BLOCKS = 2
_PUSH_BYTES = 16 << 20
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UPLOAD_ID = re.compile(r"[a-z]{1,8}_[0-9a-f]{8,32}")
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
_KNOWN_HASHES = 256
_OTHER_WRITER_S = 3.0
_LOOK_S = 0.05


class FilesystemBlobs:
    """`modelbox.runtime.ports.BlobStore` in a directory of this host.

    Use as an async context manager: entering makes the directories.

    Args:
        directory: Holds ``blobs``, ``uploads`` and ``removed``; one file system.
        reserve_bytes: Room on the disk that uploads leave to others (the database).
        threads: How many blobs are written or read at the same moment.
    """

    def __init__(self, directory: Path, *, reserve_bytes: int = 64 << 20, threads: int = 16) -> None:
        self._blobs = directory / "blobs" / "sha256"
        self._uploads = directory / "uploads"
        self._removed = directory / "removed"
        self._reserve_bytes = reserve_bytes
        self._limiter = anyio.CapacityLimiter(threads)
        # What uploads of this process hashed so far, so that going on need not read their files again.
        self._hashes: OrderedDict[str, tuple[int, _Hash]] = OrderedDict()

    async def __aenter__(self) -> Self:
        await to_thread.run_sync(self._make_directories)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hashes.clear()

    def _make_directories(self) -> None:
        try:
            # The first is made by itself: the parents of another would be open to others.
            for directory in (self._uploads.parent, self._blobs.parent, self._blobs, self._uploads, self._removed):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for entry in os.scandir(self._removed):
                self._put_back(Path(entry.path))
        except OSError as exc:
            raise ConfigError(f"cannot keep blobs in {self._blobs.parent.parent}: {exc.strerror}") from exc

    # -- blobs -----------------------------------------------------------------------------------------------------

    async def find_size(self, digest: Digest) -> int | None:
        """See `BlobStore.find_size`."""
        return (await self.find_sizes([digest])).get(digest)

    async def find_sizes(self, digests: Sequence[Digest]) -> dict[Digest, int]:
        """See `BlobStore.find_sizes`."""
        paths = {digest: self._path(digest) for digest in digests}
        return await to_thread.run_sync(_sizes, paths, limiter=self._limiter)

    async def check_room(self, size_bytes: int) -> None:
        """See `BlobStore.check_room`."""
        found = await to_thread.run_sync(os.statvfs, self._uploads, limiter=self._limiter)
        free = found.f_bavail * found.f_frsize
        if free < size_bytes + self._reserve_bytes:
            raise LimitError(
                f"{size_bytes} bytes do not fit: {free} are free, {self._reserve_bytes} of them are kept in reserve",
                free=free,
            )

    def local_path(self, digest: Digest) -> Path | None:
        """See `BlobStore.local_path`."""
        return self._path(digest)

    async def read(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See `BlobStore.read`."""
        blob = await to_thread.run_sync(_open_blob, self._path(digest), digest, limiter=self._limiter)
        left = length
        while left is None or left > 0:
            wanted = CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)
            try:
                chunk = await to_thread.run_sync(blob.read, wanted, offset, limiter=self._limiter)
            except OSError as exc:
                raise StorageError(f"reading {digest} failed: {exc.strerror}") from exc
            if not chunk:
                if left:
                    raise StorageError(f"{digest} ends at byte {offset}, {left} bytes too early")
                return
            offset += len(chunk)
            left = None if left is None else left - len(chunk)
            yield chunk

    async def find_blob(self, digest: Digest) -> BlobEntry | None:
        """See `BlobStore.find_blob`."""
        return await to_thread.run_sync(_entry, self._path(digest), digest, limiter=self._limiter)

    async def iter_blobs(self) -> AsyncIterator[BlobEntry]:
        """See `BlobStore.iter_blobs`; one of the 256 directories at a time is in memory."""
        for part in range(256):
            directory = self._blobs / f"{part:02x}"
            for entry in await to_thread.run_sync(_entries, directory, limiter=self._limiter):
                yield entry

    async def delete(self, entry: BlobEntry) -> bool:
        """See `BlobStore.delete`."""
        return await to_thread.run_sync(self._delete, entry, limiter=self._limiter)

    def _delete(self, entry: BlobEntry) -> bool:
        path = self._path(entry.digest)
        found = _entry(path, entry.digest)
        if found is None or found.generation != entry.generation:
            return False
        removed = self._removed / f"{path.name}.{secrets.token_hex(8)}"
        try:
            os.rename(path, removed)
            taken = _entry(removed, entry.digest)
            if taken is not None and taken.generation != entry.generation:
                self._put_back(removed)
                return False
            _unlink(removed)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise StorageError(f"removing {entry.digest} failed: {exc.strerror}") from exc
        return True

    def _put_back(self, removed: Path) -> None:
        name = removed.name.partition(".")[0]
        if _BLOB_NAME.fullmatch(name):
            # Whoever uploaded the bytes once more meanwhile has made a file as good as this one.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(removed, self._blobs / name[:2] / name, follow_symlinks=False)
        _unlink(removed)

    async def sign_read(self, digest: Digest) -> str:
        """See `BlobStore.sign_read`: only the server reads a directory."""
        return ""

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def sign_upload(self, upload_id: str, digest: Digest, size_bytes: int) -> tuple[SignedPart, ...]:
        """See `BlobStore.sign_upload`: only the server writes a directory."""
        return ()

    async def upload_offset(self, upload_id: str) -> int:
        """See `BlobStore.upload_offset`."""
        path = self._upload_path(upload_id)
        return (await to_thread.run_sync(_sizes, {upload_id: path}, limiter=self._limiter)).get(upload_id, 0)

    def open_upload(self, upload_id: str) -> _Writer:
        """See `BlobStore.open_upload`."""
        return _Writer(self, upload_id, self._upload_path(upload_id), self._limiter)

    async def discard_upload(self, upload_id: str) -> None:
        """See `BlobStore.discard_upload`."""
        self._hashes.pop(upload_id, None)
        await to_thread.run_sync(_unlink, self._upload_path(upload_id), limiter=self._limiter)

    async def sweep_uploads(self, *, idle_s: float) -> frozenset[str]:
        """See `BlobStore.sweep_uploads`."""
        return await to_thread.run_sync(_sweep, self._uploads, time.time() - idle_s, limiter=self._limiter)

    def _upload_path(self, upload_id: str) -> Path:
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise InvalidError(f"{shown(upload_id)} is not an upload id")
        return self._uploads / upload_id

    def _path(self, digest: Digest) -> Path:
        name = parse_digest(digest).removeprefix("sha256:")
        return self._blobs / name[:2] / name

    def _take_hash(self, upload_id: str, size: int) -> _Hash | None:
        offset, known = self._hashes.pop(upload_id, (-1, None))
        return known if offset == size else None

    def _keep_hash(self, upload_id: str, size: int, known: _Hash) -> None:
        self._hashes[upload_id] = (size, known)
        while len(self._hashes) > _KNOWN_HASHES:
            self._hashes.popitem(last=False)

    def _publish(self, part: Path, digest: Digest) -> None:
        target = self._path(digest)
        fresh = not target.parent.exists()
        target.parent.mkdir(exist_ok=True, mode=0o700)
        os.replace(part, target)
        _fsync_directory(target.parent)
        if fresh:
            _fsync_directory(self._blobs)


class _Writer:
    """One upload's `modelbox.runtime.ports.BlobWriter`: a task feeds a thread while the next bytes arrive.

    The task is shielded and ends when the block is left, after the few blocks that are queued; so what was taken from
    the peer is kept whatever ends the block. No thread works on the file when the block has been left.
    """

    def __init__(self, store: FilesystemBlobs, upload_id: str, path: Path, limiter: anyio.CapacityLimiter) -> None:
        self._store = store
        self._id = upload_id
        self._path = path
        self._limiter = limiter
        self._fd = -1
        self._hash = hashlib.sha256()
        self._offset = 0
        self._pushed = 0
        self._buffer = bytearray()
        self._queued = 0
        self._error: ModelBoxError | None = None
        self._published = False
        self._send, self._receive = anyio.create_memory_object_stream[bytes](_QUEUED_BLOCKS)
        self._progress = anyio.Event()
        self._tasks = anyio.create_task_group()

    @property
    def offset(self) -> int:
        """Bytes that are written and hashed."""
        return self._offset

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        try:
            await self._in_task(self._open)
        except BaseException as exc:
            await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        self._tasks.start_soon(self._consume, name=f"upload {self._id}")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._send.close()
        try:
            # An ordinary failure of the block is not the task group's business, and must not come out wrapped.
            if isinstance(exc, Exception):
                await self._tasks.__aexit__(None, None, None)
            else:
                await self._tasks.__aexit__(exc_type, exc, traceback)
        finally:
            self._receive.close()
            if self._fd >= 0:
                os.close(self._fd)
                if not self._published and self._error is None:
                    self._store._keep_hash(self._id, self._offset, self._hash)

    async def write(self, data: bytes) -> None:
        """See `BlobWriter.write`."""
        self._raise_error()
        if not self._buffer and len(data) >= CHUNK_BYTES:
            await self._hand_over(data)
            return
        self._buffer += data
        if len(self._buffer) >= CHUNK_BYTES:
            block = bytes(self._buffer)
            self._buffer.clear()
            await self._hand_over(block)

    async def flush(self) -> None:
        """See `BlobWriter.flush`."""
        if self._buffer:
            block = bytes(self._buffer)
            self._buffer.clear()
            await self._hand_over(block)
        while self._queued:
            await self._progress.wait()
        self._raise_error()

    async def commit(self, digest: Digest, size_bytes: int) -> None:
        """See `BlobWriter.commit`."""
        await self.flush()
        await self._in_task(partial(self._finish, digest, size_bytes))

    async def _in_task(self, fn: Callable[[], None]) -> None:
        """Runs ``fn`` in a thread, and to its end before the block is left, whatever becomes of the caller.

        A server of HTTP whose peer is gone cancels as asyncio does, which no shield keeps out: without a task between
        the two, the thread would go on with a file that nobody closes, or that is closed already.
        """
        ended = anyio.Event()
        failures: list[Exception] = []

        async def run() -> None:
            with anyio.CancelScope(shield=True):
                try:
                    await to_thread.run_sync(fn, limiter=self._limiter)
                except Exception as exc:
                    failures.append(exc)
            ended.set()

        self._tasks.start_soon(run, name=f"file of the upload {self._id}")
        await ended.wait()
        if failures:
            raise failures[0]

    async def _hand_over(self, block: bytes) -> None:
        self._queued += 1
        try:
            await self._send.send(block)
        except BaseException:
            self._queued -= 1
            raise

    async def _consume(self) -> None:
        with anyio.CancelScope(shield=True):
            async for block in self._receive:
                await self._append(block)
                self._queued -= 1
                self._progress.set()
                self._progress = anyio.Event()
            if self._buffer:
                await self._append(bytes(self._buffer))

    async def _append(self, block: bytes) -> None:
        if self._error is not None:
            return
        try:
            await to_thread.run_sync(self._append_in_thread, block, limiter=self._limiter)
        except ModelBoxError as exc:
            self._error = exc

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # -- in a thread -----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = _open_alone(self._path, flags)
        except OSError as exc:
            raise _failure(exc, "opening an upload") from exc
        try:
            size = os.fstat(fd).st_size
            known = self._store._take_hash(self._id, size)
            if known is not None:
                self._hash = known
            else:
                while block := os.pread(fd, CHUNK_BYTES, self._offset):
                    self._hash.update(block)
                    self._offset += len(block)
            self._offset = self._pushed = size
        except OSError as exc:
            os.close(fd)
            raise _failure(exc, "reading an upload") from exc
        self._fd = fd

    def _append_in_thread(self, block: bytes) -> None:
        view = memoryview(block)
        written = 0
        try:
            while written < len(view):
                written += os.pwrite(self._fd, view[written:], self._offset + written)
        except OSError as exc:
            # Keep what is whole and hashed; the file and the hash must not part ways.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._offset)
            raise _failure(exc, "writing an upload") from exc
        self._hash.update(view)
        self._offset += len(view)
        if self._offset - self._pushed >= _PUSH_BYTES:
            self._push()

    def _push(self) -> None:
        """Has the disk begin to write what is in memory, so that the sync at the end finds little left to do."""
        if hasattr(os, "posix_fadvise"):
            # Pages that were not written yet stay in memory: asking for their removal starts that and no more. An error
            # of the disk is told by the sync.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, self._pushed, self._offset - self._pushed, os.POSIX_FADV_DONTNEED)
        self._pushed = self._offset

    def _finish(self, digest: Digest, size_bytes: int) -> None:
        actual = f"sha256:{self._hash.hexdigest()}"
        if self._offset != size_bytes or actual != digest:
            raise IntegrityError(
                f"the upload has {self._offset} bytes of {actual}, but {size_bytes} bytes of {digest} were announced",
                expected=digest,
                actual=actual,
            )
        try:
            os.fsync(self._fd)
            os.fchmod(self._fd, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            self._store._publish(self._path, digest)
        except OSError as exc:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._error = _failure(exc, "storing an upload")
            raise self._error from exc
        self._published = True


def _open_alone(path: Path, flags: int) -> int:
    """Opens an upload that no other server writes; one that ends meanwhile is waited for.

    Two that wrote at once would each verify what it got itself, and not what is in the file.
    """
    until = time.monotonic() + _OTHER_WRITER_S
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(fd)
            with contextlib.suppress(FileNotFoundError):
                there = path.lstat()
                if (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino):
                    return fd
            # It was completed or discarded while we waited: the descriptor is of what has another name now.
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(fd)
                raise ServerBusy("another server takes this upload: try again", retry_after_s=1.0) from None
            time.sleep(_LOOK_S)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _failure(exc: OSError, doing: str) -> ModelBoxError:
    if exc.errno in _FULL:
        return LimitError(
            f"{doing} failed, the disk is full: make room, then continue", what="disk", reason=exc.strerror
        )
    return StorageError(f"{doing} failed: {exc.strerror}")


def _sizes(paths: dict[K, Path]) -> dict[K, int]:
    found = {}
    for key, path in paths.items():
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            found[key] = status.st_size
    return found


def _entry(path: Path, digest: Digest) -> BlobEntry | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StorageError(f"looking at {digest} failed: {exc.strerror}") from exc
    if not stat.S_ISREG(status.st_mode):
        return None
    return BlobEntry(
        digest=digest,
        size_bytes=status.st_size,
        stored_at=_EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000),
        generation=f"{status.st_ino}-{status.st_mtime_ns}",
    )


def _entries(directory: Path) -> list[BlobEntry]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StorageError(f"listing {directory} failed: {exc.strerror}") from exc
    found = [
        _entry(directory / name, Digest(f"sha256:{name}"))
        for name in names
        if _BLOB_NAME.fullmatch(name) and name[:2] == directory.name
    ]
    return [entry for entry in found if entry is not None]


class _Blob:
    """A file that is closed when nobody holds it any more; a thread that reads it may outlast its caller."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size_bytes: int, offset: int) -> bytes:
        return os.pread(self._fd, size_bytes, offset)

    def __del__(self) -> None:
        os.close(self._fd)


def _open_blob(path: Path, digest: Digest) -> _Blob:
    try:
        return _Blob(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError as exc:
        raise StorageError(f"{digest} cannot be opened: {exc.strerror}") from exc


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _sweep(uploads: Path, before: float) -> frozenset[str]:
    kept = set()
    for entry in os.scandir(uploads):
        try:
            if entry.stat(follow_symlinks=False).st_mtime < before:
                os.unlink(entry.path)
            else:
                kept.add(entry.name)
        except FileNotFoundError:
            continue
    return frozenset(kept)


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
