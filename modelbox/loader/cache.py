"""The local cache of model files, shared by every process of a user.

Owns the directory and what may appear in it::

    blobs/sha256/ab/<hex>          one file per content, read-only, complete or absent
    manifests/<hex>.json           what a version is made of (named by its own digest)
    trees/<hex>/<path> …           a version's files by name: hard links to blobs (copies where links do not work)
    derived/<hex>/<key>/ …         what a runtime made of a version, such as an optimised graph
    refs/<hex>.json[.bak]          last-known-good records, see `cache_state`
    leases/<hex>                   shared locks of whoever uses a version; the modification time is its last use
    locks/<hex>                    exclusive locks of whoever downloads a blob
    tmp/                           everything unfinished; only `os.rename` moves a thing out of it

Invariants:

* Whatever stands under its final name was complete, verified and on disk before it got that name. So a crash, a full
  disk or a second process leaves nothing half-made, only litter in ``tmp/``.
* Correctness never rests on a lock: without them work is done twice, not wrongly.
* Nothing is ever written to or truncated under its final name, only unlinked: open and mapped files stay whole.
* Files that were changed by somebody else (their seal is broken) are hashed again before use and dropped if wrong.

Blocking, for threads: every method does file I/O. All failures of the disk are `CacheError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from pathlib import Path

from modelbox.errors import CacheError, IntegrityError, InvalidError, NotFoundError
from modelbox.loader import cache_upkeep, disk
from modelbox.loader.cache_blob import BlobWriter
from modelbox.loader.cache_derived import DerivedWriter, find_derived
from modelbox.loader.cache_layout import Layout
from modelbox.loader.cache_state import Quarantined, RefState, load_state, save_state
from modelbox.loader.cache_upkeep import CacheEntry, CacheReport
from modelbox.loader.verify import FileVerifier
from modelbox.manifest import Manifest, ManifestFile
from modelbox.refs import Digest, parse_digest

__all__ = (
    "BlobLock",
    "BlobWriter",
    "Cache",
    "CacheEntry",
    "CacheReport",
    "DerivedWriter",
    "Lease",
    "Quarantined",
    "RefState",
)

BlobLock = disk.FileLock
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES)
_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


class Lease:
    """Keeps one version from being pruned until `release`, in this process and in every other.

    Concurrency: any thread may release it. Dying releases it, too.
    """

    __slots__ = ("_lock", "digest")

    def __init__(self, digest: Digest, lock: disk.FileLock | None) -> None:
        self.digest = digest
        self._lock = lock

    def release(self) -> None:
        """Lets the version be pruned again, and notes its last use. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.touch()
            lock.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class Cache:
    """A content-addressed directory of verified model files.

    Args:
        directory: Where it lives; made with mode 0700 by `open` if absent.
        max_bytes: What `make_room` keeps the cache below, in bytes; None for no limit but the disk's.

    Concurrency: every method may be called by any thread of any process at any time.
    """

    def __init__(self, directory: Path | str, *, max_bytes: int | None = None) -> None:
        self.directory = Path(os.path.realpath(Path(directory).expanduser()))
        self.max_bytes = max_bytes
        self._layout = Layout(self.directory)
        self._read_only = False
        # What this process hashed because its seal was broken and could not be renewed.
        self._hashed: dict[Path, tuple[int, int, int, int]] = {}

    @property
    def read_only(self) -> bool:
        """Whether nothing can be added: models that are complete still load."""
        return self._read_only

    def open(self) -> None:
        """Makes or checks the directory, and removes what dead processes left unfinished for over an hour.

        Raises:
            CacheError: It cannot be made, belongs to another user, or can be written to by others.
        """
        try:
            os.makedirs(self.directory.parent, exist_ok=True)
            disk.make_directory(self.directory)
            for part in self._layout.parts():
                disk.make_directory(part)
            if not os.access(self._layout.tmp, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as exc:
            if exc.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not self._layout.trees.is_dir():
                raise disk.cache_error(exc, "opening the cache", self.directory) from exc
            self._read_only = True
            disk.check_directory(self.directory)
            disk.check_directory(self._layout.trees)
            return
        cache_upkeep.sweep(self._layout)

    # -- blobs ----------------------------------------------------------------------------------------------------

    def has_blob(self, digest: Digest, size_bytes: int) -> bool:
        """Whether the blob is here and sound; a damaged one is removed."""
        path = self._layout.blob(digest)
        with disk.cache_errors("reading", path):
            if self._is_sound(path, digest, size_bytes):
                return True
            # A sound file that somebody declares with another size stays: the declaration is wrong.
            if not self._read_only and not _is_untouched(path):
                disk.remove(path)
            return False

    def new_blob(self, file: ManifestFile) -> BlobWriter:
        """Begins to write the content of ``file``.

        Raises:
            CacheError: The disk refused, or the cache is read-only.
        """
        self._refuse_if_read_only()
        return BlobWriter(self._layout, file)

    def lock_blob(self, digest: Digest) -> BlobLock | None:
        """Says to other processes that this one downloads the blob; None if one does already.

        Release it with ``unlink=True``. Only saves work: nothing goes wrong without it.
        """
        self._refuse_if_read_only()
        path = self._layout.lock(digest)
        with disk.cache_errors("locking", path):
            return disk.FileLock.acquire(path, shared=False, wait=False)

    def partial_bytes(self, digest: Digest) -> int:
        """How far the furthest unfinished copy of a blob is, of whichever process."""
        most = 0
        prefix = self._layout.partial_prefix(digest)
        with contextlib.suppress(OSError), os.scandir(self._layout.tmp) as entries:
            for entry in entries:
                if entry.name.startswith(prefix):
                    with contextlib.suppress(OSError):
                        most = max(most, entry.stat(follow_symlinks=False).st_size)
        return most

    def make_room(self, size_bytes: int) -> None:
        """Prunes until ``size_bytes`` more fit below ``max_bytes``, and checks that the disk has them.

        On a disk that is too full, versions go that no reference may come back to.

        Raises:
            CacheError: They can never fit, or the disk is too full.
        """
        self._refuse_if_read_only()
        if self.max_bytes is not None:
            if size_bytes > self.max_bytes:
                raise CacheError(
                    f"{size_bytes} bytes do not fit into a cache of at most {self.max_bytes}: raise its limit "
                    "(cache_max_bytes, MODELBOX_CACHE_MAX_BYTES)",
                    needed=size_bytes,
                    limit=self.max_bytes,
                )
            self.prune(self.max_bytes - size_bytes)
        with disk.cache_errors("asking for free space", self.directory):
            free = shutil.disk_usage(self.directory).free
            if free < size_bytes:
                cache_upkeep.make_free(self._layout, size_bytes - free)
                free = shutil.disk_usage(self.directory).free
        if free < size_bytes:
            raise CacheError(
                f"{size_bytes} bytes are needed at {self.directory} and {free} are free: free some space, run "
                "`modelbox cache prune`, or point MODELBOX_CACHE_DIR to a larger volume",
                needed=size_bytes,
                free=free,
            )

    # -- versions -------------------------------------------------------------------------------------------------

    def find_tree(self, manifest: Manifest) -> Path | None:
        """The directory with all files of a version, if it is here, complete and unchanged."""
        tree = self._layout.tree(manifest.digest)
        with disk.cache_errors("reading", tree):
            try:
                disk.check_directory(tree)
                for parent in sorted({path for file in manifest.files for path in _parents(file.path)}):
                    disk.check_directory(tree / parent)
            except FileNotFoundError:
                return None
            sound = all(self._is_sound(tree / file.path, file.digest, file.size_bytes) for file in manifest.files)
            return tree if sound else None

    def materialise(self, manifest: Manifest) -> Path:
        """Makes the directory with all files of a version, by hard links to its blobs, and returns it.

        Hold a `lease` on the version before this and for as long as the files are used.

        Raises:
            NotFoundError: Blobs are missing; ``fields["missing"]`` lists the paths.
            CacheError: The disk refused, or the cache is read-only and incomplete.
        """
        tree = self.find_tree(manifest)
        if tree is not None:
            return tree
        self._refuse_if_read_only()
        missing = [f.path for f in manifest.files if not self.has_blob(f.digest, f.size_bytes)]
        if missing:
            raise NotFoundError(
                f"{len(missing)} of {len(manifest.files)} files of {manifest.digest} are not in the cache: fetch them",
                missing=missing[:10],
            )
        self.save_manifest(manifest)
        tree = self._layout.tree(manifest.digest)
        build = self._layout.temp("tree.")
        with disk.cache_errors("linking files", build):
            os.mkdir(build, 0o700)
            try:
                for file in manifest.files:
                    self._place(file, build)
                for _ in range(5):
                    try:
                        os.rename(build, tree)
                    except OSError as exc:
                        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                            raise
                        if self.find_tree(manifest) is not None:
                            return tree  # Another process was faster.
                        self._layout.discard(tree)  # An unsound one: out of the way, unlinked, never changed.
                    else:
                        disk.sync_directory(tree.parent)
                        return tree
            finally:
                disk.remove(build)
        raise CacheError(f"{tree} keeps changing under us: another program writes to the cache", path=str(tree))

    def save_manifest(self, manifest: Manifest) -> None:
        """Notes what a version is made of, so that pruning knows which blobs belong to it."""
        path = self._layout.manifest(manifest.digest)
        with disk.cache_errors("storing a manifest", path):
            self._layout.store(path, manifest.to_json())

    def find_manifest(self, digest: Digest) -> Manifest | None:
        """What a version is made of, if the cache knows it."""
        return cache_upkeep.read_manifest(self._layout, digest)

    def lease(self, manifest_digest: Digest) -> Lease:
        """Keeps a version from being pruned; also counts as a use of it.

        Raises:
            CacheError: The disk refused.
        """
        path = self._layout.lease(parse_digest(manifest_digest))
        if self._read_only:
            return Lease(manifest_digest, disk.FileLock.acquire_existing(path))
        with disk.cache_errors("locking", path):
            lock = disk.FileLock.acquire(path, shared=True, wait=True)
            if lock is not None:
                lock.touch()
            return Lease(manifest_digest, lock)

    # -- derived files --------------------------------------------------------------------------------------------

    def find_derived(self, manifest_digest: Digest, key: str) -> Path | None:
        """The directory that was committed under ``key``, if it is here and unchanged."""
        path = self._layout.derived(manifest_digest, _check_key(key))
        with disk.cache_errors("reading", path):
            return find_derived(path)

    def new_derived(self, manifest_digest: Digest, key: str) -> DerivedWriter:
        """Begins a directory of files made from a version: fill ``.directory``, then ``commit()`` or ``abort()``.

        Args:
            manifest_digest: The version that they are made from; they are pruned with it.
            key: What else they depend on (runtime version, options): letters, digits, dot, dash and underscore.

        Raises:
            CacheError: The disk refused, or the cache is read-only.
        """
        self._refuse_if_read_only()
        return DerivedWriter(self._layout, self._layout.derived(manifest_digest, _check_key(key)))

    # -- last-known-good ------------------------------------------------------------------------------------------

    def save_ref(self, key: str, state: RefState) -> None:
        """Replaces the last-known-good record of ``key``, durably; a read-only cache keeps what it has.

        Raises:
            CacheError: The disk refused; the old record is still there.
        """
        if self._read_only:
            return
        with disk.cache_errors("storing a record", self._layout.refs):
            save_state(self._layout.refs, self._layout.tmp, key, state)

    def load_ref(self, key: str) -> RefState | None:
        """The last-known-good record of ``key``; None if there is none that can be read."""
        return load_state(self._layout.refs, key)

    # -- upkeep ---------------------------------------------------------------------------------------------------

    def usage(self) -> list[CacheEntry]:
        """What is in the cache, by version, least recently used first."""
        with disk.cache_errors("reading", self.directory):
            return cache_upkeep.usage(self._layout)

    def verify(self) -> CacheReport:
        """Hashes everything again and removes what is not what it should be.

        Slow on purpose (about 1 GB/s); meant for `modelbox cache verify` and for a background scrub.
        """
        with disk.cache_errors("reading", self.directory):
            return cache_upkeep.scrub(self._layout, remove=not self._read_only)

    def prune(self, max_bytes: int) -> int:
        """Removes versions until at most ``max_bytes`` are left; returns how many bytes went.

        Versions that no record names go first, then the least recently used; what is leased stays, whatever the limit.
        """
        self._refuse_if_read_only()
        with disk.cache_errors("removing files", self.directory):
            return cache_upkeep.prune(self._layout, max_bytes)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _refuse_if_read_only(self) -> None:
        if self._read_only:
            raise CacheError(
                f"the cache at {self.directory} is read-only and does not hold what is asked for: point "
                "MODELBOX_CACHE_DIR to a writable place",
                path=str(self.directory),
            )

    def _is_sound(self, path: Path, digest: Digest, size_bytes: int) -> bool:
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISREG(status.st_mode) or not disk.is_ours(status) or status.st_size != size_bytes:
            return False
        if disk.is_sealed(status):
            return True
        # Written to, or copied here without its times: find out by hashing, and seal it again if it is right.
        mark = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        if self._hashed.get(path) == mark:
            return True
        if disk.hash_file(path) != digest:
            return False
        if self._read_only or not disk.reseal(path, status):
            self._hashed[path] = mark
        return True

    def _place(self, file: ManifestFile, build: Path) -> None:
        target = build / file.path
        for parent in _parents(file.path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(build / parent, 0o700)
        try:
            os.link(self._layout.blob(file.digest), target, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in _NO_LINK:
                raise
            self._copy(file, target)

    def _copy(self, file: ManifestFile, target: Path) -> None:
        verifier = FileVerifier(file)
        source = os.open(self._layout.blob(file.digest), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            copy = disk.create_file(target)
            try:
                while chunk := os.read(source, disk.READ_BYTES):
                    verifier.feed(chunk)
                    disk.write_whole(copy, chunk)
                verifier.finish()
                disk.seal(copy)
                os.fsync(copy)
            finally:
                os.close(copy)
        except IntegrityError as exc:
            raise CacheError(f"a cached file changed while it was copied: {exc}", path=file.path) from exc
        finally:
            os.close(source)


def _is_untouched(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and disk.is_ours(status) and disk.is_sealed(status)


def _parents(path: str) -> list[str]:
    """The directories above a manifest path, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key) or ".." in key:
        raise InvalidError(
            f"{key[:100]!a} is not a valid key for derived files: letters, digits, dot, dash, underscore"
        )
    return key
