"""File operations that the cache trusts: private directories, no links followed, durable renames, locks.

Owns the translation of ``OSError`` into `CacheError` with advice, and `FileLock`. Invariants:

* Nothing here follows a symbolic link in the last part of a path, and nothing is used that belongs to another user
  (root's is fine: root needs no trick).
* A lock is advice. Where the file system has no ``flock``, everything built on this still has to be correct.
* ``sealed`` files carry one fixed modification time: whoever writes into one afterwards breaks the seal, so that a
  changed file is noticed by one ``lstat`` instead of hashing it at every use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from modelbox.errors import CacheError
from modelbox.refs import Digest

READ_BYTES = 1 << 20
_IOV_MAX = 512
_SEAL_NS = 1_000_000_000 * 10**9
_NO_FLOCK = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
_DENIED = (errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_error(exc: OSError, doing: str, path: Path) -> CacheError:
    """The `CacheError` for ``exc``, with what the user can do about it."""
    code = exc.errno or 0
    if code in _FULL:
        advice = "free some space, run `modelbox cache prune`, or point MODELBOX_CACHE_DIR to a larger volume"
    elif code == errno.EROFS:
        advice = "the volume is read-only and does not hold this model: point MODELBOX_CACHE_DIR to a writable place"
    elif code in _DENIED:
        advice = "this user may not write there: change its owner, or point MODELBOX_CACHE_DIR to another place"
    elif code in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        advice = "something else than the cache's own file is there: remove it"
    else:
        advice = "run `modelbox cache verify`, or remove the directory: it is only a cache"
    text = os.strerror(code) if code else str(exc)
    return CacheError(
        f"{doing} failed at {path}: {text}; {advice}", path=str(path), errno=errno.errorcode.get(code, "")
    )


@contextlib.contextmanager
def cache_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an ``OSError`` of the block into a `CacheError`."""
    try:
        yield
    except OSError as exc:
        raise cache_error(exc, doing, path) from exc


def is_ours(status: os.stat_result) -> bool:
    """Whether the file belongs to this user or to root."""
    return status.st_uid in (os.geteuid(), 0)


def check_directory(path: Path) -> None:
    """Refuses a directory that is a link, is somebody else's, or that others can write to.

    Raises:
        CacheError: It must not be trusted, and how to put it right.
        FileNotFoundError: There is nothing.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(
            f"{path} is not a directory (links are not followed inside a cache): remove it", path=str(path)
        )
    if not is_ours(status):
        raise CacheError(
            f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}: point MODELBOX_CACHE_DIR to a "
            "directory of this user, for example one inside of it",
            path=str(path),
        )
    if status.st_mode & 0o022:
        raise CacheError(
            f"{path} can be written to by other users (mode {stat.S_IMODE(status.st_mode):04o}), who could "
            f"plant a model: run `chmod 700 {path}`, or name a directory inside of it",
            path=str(path),
        )


def make_directory(path: Path) -> None:
    """Makes ``path`` (mode 0700) if it is absent, and checks it; its parent exists."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    check_directory(path)


def sync_directory(path: Path) -> None:
    """Makes renames and unlinks inside ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create_file(path: Path) -> int:
    """Opens a new private file for writing; it must not exist. Returns the descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def read_file(path: Path, limit: int) -> bytes:
    """Reads a small regular file of ours, at most ``limit`` bytes of it."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not is_ours(status):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        data = bytearray()
        while len(data) < limit and (chunk := file.read(min(READ_BYTES, limit - len(data)))):
            data += chunk
    return bytes(data)


def write_whole(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Writes all of ``data``, however the kernel splits it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_chunks(fd: int, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
    """Writes all chunks in order, many with one call."""
    for start in range(0, len(chunks), _IOV_MAX):
        group = chunks[start : start + _IOV_MAX]
        written = os.writev(fd, group)
        if written < sum(map(len, group)):  # Interrupted, or the disk is nearly full: the rest one by one.
            for chunk in group:
                skip = min(written, len(chunk))
                written -= skip
                write_whole(fd, memoryview(chunk)[skip:])


def hash_file(path: Path) -> Digest:
    """SHA-256 of a regular file's content, without following links and with constant memory."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        digest = hashlib.sha256()
        buffer = bytearray(READ_BYTES)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return Digest(f"sha256:{digest.hexdigest()}")


def seal(fd: int) -> None:
    """Marks an open file as finished: read-only, with the seal's modification time."""
    os.fchmod(fd, 0o444)
    os.utime(fd, ns=(_SEAL_NS, _SEAL_NS))


def reseal(path: Path, status: os.stat_result) -> bool:
    """Seals the file again if it is still the one of ``status``; false if the disk does not let us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            now = os.fstat(fd)
            if (now.st_dev, now.st_ino, now.st_mtime_ns) != (status.st_dev, status.st_ino, status.st_mtime_ns):
                return False
            seal(fd)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def is_sealed(status: os.stat_result) -> bool:
    """Whether nobody wrote to the file since `seal`."""
    return status.st_mtime_ns == _SEAL_NS


def remove(path: Path) -> None:
    """Removes a file or a whole directory if it is there; links are removed, never followed."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        if exc.errno not in (errno.EISDIR, errno.EPERM) or not stat.S_ISDIR(os.lstat(path).st_mode):
            raise
        # Another process may be removing the same tree.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


class FileLock:
    """An advisory lock on a file or directory; closing it, or dying, lets go.

    Concurrency: each lock has its own open file, so two of one process exclude each other as two processes do. A
    forked child keeps what its parent held until both have let go.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd

    @classmethod
    def acquire(cls, path: Path, *, shared: bool, wait: bool) -> FileLock | None:
        """Locks the file at ``path``, which is made if absent; None if it is taken and ``wait`` is false.

        Where the file system does not lock, the lock is granted: it is advice, not protection.
        """
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or not is_ours(status):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if not flock(fd, shared=shared, wait=wait):
                    os.close(fd)
                    return None
                if _is_at(path, status):
                    return cls(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # Its last holder unlinked it while we waited: the name means another file now.

    @classmethod
    def acquire_existing(cls, path: Path) -> FileLock | None:
        """A shared lock on a file that is there already, without writing anything; None if there is none."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        flock(fd, shared=True, wait=False)
        return cls(path, fd)

    def touch(self) -> None:
        """Sets the lock file's modification time to now."""
        if self._fd is not None:
            os.utime(self._fd)

    def release(self, *, unlink: bool = False) -> None:
        """Lets go; with ``unlink`` the file is removed first (only for exclusive locks). Idempotent."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if unlink:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
        finally:
            # No LOCK_UN: it would also take the lock from a forked child that shares the open file.
            os.close(fd)


def flock(fd: int, *, shared: bool, wait: bool) -> bool:
    """Locks an open file; False if it is taken. A file system without locks grants everything."""
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_FLOCK:
            raise
    return True


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        now = os.lstat(path)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)
