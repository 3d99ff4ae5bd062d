"""SQLite: the two files of a data directory, and the lock that keeps them for one process.

``modelbox.db`` holds everything but metrics; ``metrics.db`` holds those, with a writer of its own, so that neither
waits for the other's disk. Readers of the first see the second attached, under the names of its tables, as other
databases have all tables in one; the two are not one snapshot. Each is a `modelbox.runtime.store.sqlite_file`.

Invariant: a second process is refused by a lock file, which is held from before the first file opens until after the
last one has closed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
from anyio import to_thread
from sqlalchemy import Connection

from modelbox.errors import ConfigError, StorageError
from modelbox.runtime.store.database import DatabaseObserver
from modelbox.runtime.store.history import create_head
from modelbox.runtime.store.migrate import MAIN, METRICS, migrate
from modelbox.runtime.store.sqlite_file import SqliteFile

__all__ = ("SqliteDatabase",)

T = TypeVar("T")

_METRIC_READERS = 2
_METRIC_SEARCHERS = 1
_NETWORK_FILESYSTEMS = frozenset(["nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "ceph", "9p", "afs"])


class SqliteDatabase:
    """`modelbox.runtime.store.database.Database` in a directory; `metrics` is the one of the metrics.

    Use as an async context manager: entering takes the directory's lock and brings the schemas up to date.

    Args:
        directory: Made with mode 0700 if need be. Must be on a local file system.
        observe: Told how long functions and commits take.
        observe_metrics: The same of the metrics' file.

    Raises:
        ConfigError: On entering: another process uses the directory, it cannot be used, or a newer release made it.
        StorageError: On entering: a file is damaged.
    """

    def __init__(
        self,
        directory: Path,
        *,
        observe: DatabaseObserver | None = None,
        observe_metrics: DatabaseObserver | None = None,
    ) -> None:
        self._directory = directory
        metrics = directory / "metrics.db"
        self.metrics = SqliteFile(
            metrics,
            prepare=_prepare_metrics,
            has_feed=False,
            readers=_METRIC_READERS,
            searchers=_METRIC_SEARCHERS,
            observe=observe_metrics,
        )
        self._main = SqliteFile(
            directory / "modelbox.db", prepare=_prepare_main, attached={"metrics": metrics}, observe=observe
        )
        self._stack = AsyncExitStack()
        self._lock_fd: int | None = None

    @property
    def path(self) -> Path:
        """The main file."""
        return self._main.path

    @property
    def failure(self) -> StorageError | None:
        """Why a writer stopped for good, None while both work."""
        return self._main.failure or self.metrics.failure

    @property
    def aside(self) -> Self:
        """See `MainDatabase.aside`: there is one writer."""
        return self

    @property
    def trouble(self) -> str:
        """See `MainDatabase.trouble`."""
        return "" if self.failure is None else str(self.failure)

    def gauges(self) -> Mapping[str, tuple[str, Callable[[], float]]]:
        """See `MainDatabase.gauges`; there is nothing that could run short."""
        return {}

    async def wait_failed(self) -> StorageError:
        """Returns once a writer has stopped for good: time to exit, non-zero."""
        failures: list[StorageError] = []
        async with anyio.create_task_group() as tasks:

            async def watch(file: SqliteFile) -> None:
                failures.append(await file.wait_failed())
                tasks.cancel_scope.cancel()

            for file in (self._main, self.metrics):
                tasks.start_soon(watch, file, name=f"watch {file.path.name}")
        return failures[0]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(self._unlock)
            await to_thread.run_sync(self._take)
            await stack.enter_async_context(self.metrics)
            await stack.enter_async_context(self._main)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.write`."""
        return await self._main.write(fn)

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.read`."""
        return await self._main.read(fn)

    async def scan(self, fn: Callable[[Connection], T]) -> T:
        """See `Database.scan`."""
        return await self._main.scan(fn)

    async def search(self, fn: Callable[[Connection], T], *, limit_s: float) -> T:
        """See `Database.search`."""
        return await self._main.search(fn, limit_s=limit_s)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """See `Database.on_commit`; not told of metrics."""
        self._main.on_commit(callback)

    def _take(self) -> None:
        self._lock_fd = _take(self._directory)

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def _prepare_main(connection: Connection) -> None:
    migrate(connection, MAIN)
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    create_head(connection)
    connection.exec_driver_sql("COMMIT")


def _prepare_metrics(connection: Connection) -> None:
    migrate(connection, METRICS)


# -- the directory -------------------------------------------------------------------------------------------------


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Keeps a data directory for this process, which no server may be using; made if need be.

    Raises:
        ConfigError: Another process has it, or it cannot be used.
    """
    fd = _take(directory)
    try:
        yield
    finally:
        os.close(fd)


def _take(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _lock(directory)
    except OSError as exc:
        raise ConfigError(f"cannot use {directory} for data: {exc.strerror}") from exc


def _lock(directory: Path) -> int:
    """Takes the directory for this process; the lock goes with the process, however it ends.

    Raises:
        ConfigError: Another process has it, or the directory is on a network file system.
    """
    filesystem = _filesystem_of(directory)
    if filesystem in _NETWORK_FILESYSTEMS:
        raise ConfigError(
            f"{directory} is on a network file system ({filesystem}), where SQLite loses data: choose a local directory"
        )
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(directory / "modelbox.lock", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise ConfigError(
            f"another server (process {holder}) uses the data directory {directory.absolute()}: "
            "stop it, or choose another directory",
            pid=holder,
            directory=str(directory.absolute()),
        ) from exc
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _filesystem_of(directory: Path) -> str:
    """The type of the file system, empty where the system does not tell."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    target = directory.resolve()
    best, found = -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or not kinds:
            continue
        point = Path(fields[4].replace("\\040", " "))
        if (target == point or point in target.parents) and len(point.parts) > best:
            best, found = len(point.parts), kinds[0]
    return found
