"""Brings the files of a version into the cache, once, whatever breaks on the way.

Owns single flight (one fetch per version in a process, one per blob on a host as far as locks work), resuming, and the
limits of size, disk and patience. Refuses to trust: nothing becomes visible before its size and digest are right.
How one stream becomes one blob is `modelbox.loader.transfer`.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.abc
import anyio.to_thread
from anyio import AsyncContextManagerMixin

from modelbox.errors import (
    ClientClosed,
    DeadlineExceeded,
    IntegrityError,
    LimitError,
    ModelBoxError,
    NotFoundError,
    ServerBusy,
    Unavailable,
)
from modelbox.loader.cache import BlobLock, Cache
from modelbox.loader.transfer import receive
from modelbox.manifest import MAX_TOTAL_BYTES, ManifestFile
from modelbox.objects import ModelVersion
from modelbox.ports import ModelSource
from modelbox.refs import Digest

__all__ = ("DownloadOptions", "Downloader", "ProgressCallback")

T = TypeVar("T")

ProgressCallback = Callable[[int, int], None]
"""Called on the event loop with the bytes that are here and the bytes in all; must return at once."""

_LOG = logging.getLogger(__name__)
_CLEANUP_S = 30.0
_BREAKS = (Unavailable, DeadlineExceeded, ServerBusy)
_ENOUGH = 1 << 16
"""Bytes that count as progress: on a network that breaks every connection early, a large file still arrives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """How patient a download is.

    Attributes:
        max_version_bytes: Larger versions are refused before anything is allocated.
        files_at_once: Files of one version that are fetched side by side.
        attempts: Tries in a row without progress (64 KiB, or the end of the file) before a fetch fails.
        backoff_s: The pause before the second try is random between 0 and this, then twice as long each time.
        max_backoff_s: No pause is longer, but for what a busy server asks for.
        min_bytes_per_s: A stream that is slower than this over ``stall_s`` seconds is broken off and resumed.
        stall_s: See above; also how long another process may go without progress before its work is done again here.
        poll_s: How often to look whether another process has finished a blob.
    """

    max_version_bytes: int = MAX_TOTAL_BYTES
    files_at_once: int = 4
    attempts: int = 5
    backoff_s: float = 0.5
    max_backoff_s: float = 15.0
    min_bytes_per_s: int = 1024
    stall_s: float = 30.0
    poll_s: float = 0.1


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    """One fetch and whoever waits for it; changed on the event loop only."""

    version: ModelVersion
    total: int
    done: int = 0
    waiters: int = 0
    listeners: list[ProgressCallback] = field(default_factory=list)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    finished: anyio.Event = field(default_factory=anyio.Event)
    begin: anyio.Lock = field(default_factory=anyio.Lock)
    download_id: str | None = None
    path: Path | None = None
    error: Exception | None = None

    def advance(self, size_bytes: int) -> None:
        """Notes progress and tells it."""
        self.done += size_bytes
        for listener in tuple(self.listeners):
            try:
                listener(self.done, self.total)
            except Exception:
                _LOG.exception("a progress callback failed and is not called again")
                self.listeners.remove(listener)


class Downloader(AsyncContextManagerMixin):
    """Fetches versions; an async context manager, which owns the tasks that do it.

    Args:
        source: The server.
        cache: Where files go; opened.
        options: How patient to be.

    Concurrency: any number of tasks of one event loop may call `fetch`.
    """

    def __init__(self, source: ModelSource, cache: Cache, options: DownloadOptions | None = None) -> None:
        self._source = source
        self._cache = cache
        self._options = options or DownloadOptions()
        self._jobs: dict[Digest, _Job] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._threads: anyio.CapacityLimiter | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Downloader, None]:
        # Two stages per file, and a few for whoever looks something up beside them.
        self._threads = anyio.CapacityLimiter(2 * self._options.files_at_once + 4)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield self
            except Exception as exc:
                failure = exc  # Raised below, where the task group does not wrap it.
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def fetch(self, version: ModelVersion, on_progress: ProgressCallback | None = None) -> Path:
        """Returns the directory with all files of ``version``, complete and verified; fetches what is missing.

        Calls for the same version share one fetch. Nothing is asked of the server if the cache has everything. The
        version is leased only until this returns: whoever goes on to use the files takes a `Cache.lease` *before*.

        Args:
            version: What to fetch.
            on_progress: Called with bytes here and bytes in all, from 0 up; falls back when a file has to be fetched
                again because its bytes were wrong.

        Raises:
            IntegrityError: The manifest is not the one that its digest names, or a file was wrong twice.
            LimitError: The version is larger than allowed.
            CacheError: The disk is full, read-only, or not ours.
            TransportError: The server did not answer, or broke off again and again.
            NotFoundError: The server no longer has it.
            ClientClosed: The downloader is closed.

        Cancellation:
            Leaves the fetch to the other callers; without others it is cancelled, and neither a temporary file nor a
            lease is left when this raises. Files that were complete stay in the cache.
        """
        tasks = self._tasks
        if tasks is None:
            raise ClientClosed("the downloader is not open: use it as `async with Downloader(...) as downloader`")
        self._check(version)
        job = self._jobs.get(version.digest)
        if job is None:
            sizes = {file.digest: file.size_bytes for file in version.manifest.files}
            job = self._jobs[version.digest] = _Job(version=version, total=sum(sizes.values()))
            tasks.start_soon(self._run, job, name=f"fetch {version.ref}")
        job.waiters += 1
        if on_progress is not None:
            job.listeners.append(on_progress)
        try:
            await job.finished.wait()
        finally:
            job.waiters -= 1
            if on_progress in job.listeners:
                job.listeners.remove(on_progress)
            if not job.waiters and not job.finished.is_set():
                self._forget(job)  # So that a caller who comes now begins anew, and not with a dying one.
                job.scope.cancel()
                with anyio.move_on_after(_CLEANUP_S, shield=True) as bound:
                    await job.finished.wait()
                if bound.cancelled_caught:
                    _LOG.warning("the cancelled fetch of %s still waits for the disk", version.ref)
        if job.path is not None:
            return job.path
        raise _again(job.error or ClientClosed("the downloader was closed during the fetch"))

    def _check(self, version: ModelVersion) -> None:
        manifest = version.manifest
        if manifest.digest != version.digest:
            raise IntegrityError(
                f"{version.ref} is said to be {version.digest}, but its manifest is {manifest.digest}",
                expected=version.digest,
                actual=manifest.digest,
            )
        if len({(file.digest, file.size_bytes) for file in manifest.files}) > len({f.digest for f in manifest.files}):
            raise IntegrityError(f"{version.ref} declares one content with two sizes", digest=version.digest)
        limit = self._options.max_version_bytes
        if manifest.size_bytes > limit:
            raise LimitError(
                f"{version.ref} has {manifest.size_bytes} bytes, more than the {limit} that this client allows",
                needed=manifest.size_bytes,
                limit=limit,
            )

    def _forget(self, job: _Job) -> None:
        if self._jobs.get(job.version.digest) is job:
            del self._jobs[job.version.digest]

    async def _run(self, job: _Job) -> None:
        try:
            with job.scope:
                job.path = await self._fetch(job)
        except Exception as exc:
            job.error = exc
        finally:
            self._forget(job)
            job.finished.set()

    async def _fetch(self, job: _Job) -> Path:
        manifest = job.version.manifest
        lease = await self._thread(self._cache.lease, job.version.digest)
        try:
            tree = await self._thread(self._cache.find_tree, manifest)
            if tree is not None:
                job.advance(job.total)
                return tree
            tries = 3
            while True:
                job.done = 0
                await self._fetch_files(job)
                tries -= 1
                try:
                    return await self._thread(self._cache.materialise, manifest)
                except NotFoundError:
                    # Where locks do not work, another process may have pruned what we had just fetched.
                    if not tries:
                        raise
        finally:
            with anyio.CancelScope(shield=True):
                await self._thread(lease.release)

    async def _fetch_files(self, job: _Job) -> None:
        missing = await self._thread(self._missing, job)
        job.advance(job.total - sum(file.size_bytes for file in missing))
        if not missing:
            return
        await self._thread(self._cache.make_room, sum(file.size_bytes for file in missing))
        await self._thread(self._cache.save_manifest, job.version.manifest)
        failures: list[Exception] = []

        async def work() -> None:
            while missing:
                try:
                    await self._fetch_file(job, missing.pop())
                except Exception as exc:
                    failures.append(exc)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for _ in range(min(self._options.files_at_once, len(missing))):
                tasks.start_soon(work, name=f"fetch files of {job.version.ref}")
        if failures:
            raise failures[0]

    def _missing(self, job: _Job) -> list[ManifestFile]:
        files = {file.digest: file for file in job.version.manifest.files}.values()
        missing = [file for file in files if not self._cache.has_blob(file.digest, file.size_bytes)]
        return sorted(missing, key=lambda file: file.size_bytes)  # The largest is popped first.

    async def _fetch_file(self, job: _Job, file: ManifestFile) -> None:
        """One blob: by this process, or by waiting for another one that does it already."""
        options = self._options
        furthest, since = -1, anyio.current_time()
        lock: BlobLock | None = None
        while lock is None:
            done, lock, partial = await self._thread(self._claim, file)
            if done:
                job.advance(file.size_bytes)
                return
            if lock is not None:
                break
            if partial > furthest:
                furthest, since = partial, anyio.current_time()
            elif anyio.current_time() - since > options.stall_s:
                break  # Its owner hangs. Rather twice than never: each writer has a file of its own.
            await anyio.sleep(options.poll_s * random.uniform(0.5, 1.5))
        try:
            await self._transfer(job, file)
        finally:
            if lock is not None:
                with anyio.CancelScope(shield=True):
                    await self._thread(lambda: lock.release(unlink=True))

    def _claim(self, file: ManifestFile) -> tuple[bool, BlobLock | None, int]:
        """Whether the blob is here; if not, its lock; if that is taken, how far its owner is."""
        if self._cache.has_blob(file.digest, file.size_bytes):
            return True, None, 0
        lock = self._cache.lock_blob(file.digest)
        if lock is None:
            return False, None, self._cache.partial_bytes(file.digest)
        if self._cache.has_blob(file.digest, file.size_bytes):  # Finished between the two looks.
            lock.release(unlink=True)
            return True, None, 0
        return False, lock, 0

    async def _transfer(self, job: _Job, file: ManifestFile) -> None:
        """Downloads one blob: resumes after breaks, and begins once more from the start if the bytes were wrong."""
        writer = await self._thread(self._cache.new_blob, file)
        tries, wrong, stored = 0, False, 0

        def advance(size_bytes: int) -> None:
            nonlocal stored
            stored += size_bytes
            job.advance(size_bytes)

        try:
            while True:
                before = writer.offset
                try:
                    if writer.missing:
                        download_id = await self._begin(job)
                        stream = self._source.open_file(
                            job.version, file, offset=writer.offset, download_id=download_id
                        )
                        await receive(
                            stream,
                            writer,
                            thread=self._thread,
                            advance=advance,
                            stall_s=self._options.stall_s,
                            min_bytes_per_s=self._options.min_bytes_per_s,
                        )
                    await self._thread(writer.commit)
                    return
                except _BREAKS as exc:
                    tries = 1 if writer.offset - before >= _ENOUGH or not writer.missing else tries + 1
                    if tries >= self._options.attempts:
                        raise
                    _LOG.info("%s: %s; going on at byte %d", job.version.ref, exc, writer.offset)
                    await anyio.sleep(self._pause(tries, exc))
                except IntegrityError as exc:
                    if wrong:
                        raise
                    wrong = True
                    _LOG.warning("%s: %s; fetching it once more", job.version.ref, exc)
                    advance(-stored)
                    await self._thread(writer.abort)
                    writer = await self._thread(self._cache.new_blob, file)
        finally:
            with anyio.CancelScope(shield=True):
                await self._thread(writer.abort)

    async def _begin(self, job: _Job) -> str:
        async with job.begin:
            if job.download_id is None:
                job.download_id = await self._source.begin_download(job.version)
            return job.download_id

    def _pause(self, tries: int, exc: ModelBoxError) -> float:
        options = self._options
        asked = exc.fields.get("retry_after_s")
        least = float(asked) if isinstance(asked, int | float) and math.isfinite(asked) else 0.0
        return max(least, random.uniform(0.0, min(options.max_backoff_s, options.backoff_s * 2 ** (tries - 1))))

    async def _thread(self, fn: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(fn, *args, limiter=self._threads)


def _again(error: Exception) -> Exception:
    """The error, fresh for each waiter: one object raised in several tasks would mix their tracebacks."""
    if not isinstance(error, ModelBoxError):
        return error
    copy = type(error)(error.message, **error.fields)
    copy.__cause__ = error
    return copy
