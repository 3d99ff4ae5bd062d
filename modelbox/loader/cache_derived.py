"""Files that a runtime made of a version (an optimised graph, weights as external data), kept beside it in the cache.

Owns one directory per (version, key) with a record of its files' sizes and digests. It appears whole, by one rename,
or not at all. Nothing derived is ever needed: whatever is doubtful is dropped and made again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path

from modelbox.errors import CacheError
from modelbox.loader import disk
from modelbox.loader.cache_layout import Layout
from modelbox.refs import Digest

__all__ = ("DerivedWriter", "find_derived", "hash_derived")

_RECORD = ".modelbox-derived.json"
_MAX_RECORD = 1 << 20


class DerivedWriter:
    """A private directory to fill with derived files.

    Concurrency: one thread at a time. Use as a context manager to `abort` on the way out unless committed.

    Attributes:
        directory: Where to write; plain files, no directories inside.
    """

    def __init__(self, layout: Layout, target: Path) -> None:
        self._layout = layout
        self._target = target
        self.directory = layout.temp("derived.")
        with disk.cache_errors("creating a directory", self.directory):
            os.mkdir(self.directory, 0o700)
            self._lock: int | None = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            disk.flock(self._lock, shared=False, wait=False)

    def commit(self) -> Path:
        """Hashes the files, makes them read-only and durable, and gives the directory its name.

        If another process committed the same key meanwhile, that one is kept and returned.

        Raises:
            CacheError: The disk refused, or the directory holds something else than files; it was aborted.
        """
        try:
            with disk.cache_errors("storing derived files", self._target):
                self._seal()
                disk.make_directory(self._target.parent)
                for _ in range(5):
                    try:
                        os.rename(self.directory, self._target)
                    except OSError as exc:
                        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                            raise
                        if find_derived(self._target) is not None:
                            return self._target
                        self._layout.discard(self._target)
                    else:
                        disk.sync_directory(self._target.parent)
                        return self._target
            raise CacheError(f"{self._target} keeps changing under us: another program writes to the cache")
        finally:
            self.abort()

    def abort(self) -> None:
        """Removes what was written. Idempotent, and nothing after `commit`."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                disk.remove(self.directory)
            os.close(lock)

    def __enter__(self) -> DerivedWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()

    def _seal(self) -> None:
        files: dict[str, dict[str, object]] = {}
        for name in sorted(os.listdir(self.directory)):
            path = self.directory / name
            digest = disk.hash_file(path)  # Refuses links and directories.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                disk.seal(fd)
                os.fsync(fd)
                files[name] = {"size_bytes": os.fstat(fd).st_size, "digest": digest}
            finally:
                os.close(fd)
        if not files:
            raise CacheError(f"nothing was written to {self.directory}, so there is nothing to keep")
        fd = disk.create_file(self.directory / _RECORD)
        try:
            disk.write_whole(fd, json.dumps({"files": files}, sort_keys=True).encode())
            disk.seal(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        disk.sync_directory(self.directory)


def find_derived(directory: Path) -> Path | None:
    """``directory`` if its record and all of its files are there and unchanged since they were committed."""
    try:
        disk.check_directory(directory)
    except FileNotFoundError:
        return None
    files = _record(directory)
    if files is None:
        return None
    for name, (size_bytes, _) in files.items():
        try:
            status = os.lstat(directory / name)
        except FileNotFoundError:
            return None
        sound = stat.S_ISREG(status.st_mode) and disk.is_ours(status) and disk.is_sealed(status)
        if not sound or status.st_size != size_bytes:
            return None
    return directory


def hash_derived(directory: Path) -> tuple[bool, int]:
    """Whether every file still has the digest of the record, and how many bytes were hashed."""
    done = 0
    try:
        files = _record(directory)
        for name, (size_bytes, digest) in (files or {}).items():
            if disk.hash_file(directory / name) != digest:
                return False, done
            done += size_bytes
    except OSError:
        return False, done
    return bool(files), done


def _record(directory: Path) -> dict[str, tuple[int, Digest]] | None:
    try:
        raw = json.loads(disk.read_file(directory / _RECORD, _MAX_RECORD))
        files = {str(name): (int(f["size_bytes"]), Digest(f["digest"])) for name, f in raw["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, AttributeError, RecursionError):
        return None
    return None if any({"/", "\0"} & set(name) for name in files) else files
