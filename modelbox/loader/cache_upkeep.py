"""Keeps the cache small and honest: what is in it, is it still right, what can go.

Works on the directory alone, beside any number of processes that use it: entries may come and go while it looks.
Refuses to remove what is leased. Removal only unlinks, so whatever is open or mapped stays whole.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from modelbox.errors import CacheError, InvalidError
from modelbox.loader import disk
from modelbox.loader.cache_derived import hash_derived
from modelbox.loader.cache_layout import Layout, hex_of
from modelbox.loader.cache_state import iter_states
from modelbox.manifest import Manifest
from modelbox.refs import Digest

__all__ = ("CacheEntry", "CacheProblem", "CacheReport", "prune", "read_manifest", "scrub", "sweep", "usage")

STALE_S = 3600.0
"""Unfinished work that nobody touched for so long, in seconds, and that nobody has locked, is litter."""
_MAX_MANIFEST = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One version in the cache.

    Attributes:
        digest: Of its manifest.
        names: ``namespace/model@7`` of every record that names it as current or previous; may be empty.
        size_bytes: Its files and what was derived from them; files that versions share are counted in each.
        files: How many files its manifest lists.
        complete: All of them are here.
        leased: Some process uses it now.
        last_used_at: When it was last taken or left.
    """

    digest: Digest
    names: tuple[str, ...]
    size_bytes: int
    files: int
    complete: bool
    leased: bool
    last_used_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheProblem:
    """Something that was not what it should be, and whether it was removed."""

    path: str
    reason: str
    removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """What `scrub` saw."""

    files: int
    size_bytes: int
    problems: tuple[CacheProblem, ...]


def read_manifest(layout: Layout, digest: Digest) -> Manifest | None:
    """The manifest with this digest, if it is here and unchanged."""
    try:
        manifest = Manifest.from_json(disk.read_file(layout.manifest(digest), _MAX_MANIFEST))
    except (OSError, InvalidError):
        return None
    return manifest if manifest.digest == digest else None


def usage(layout: Layout) -> list[CacheEntry]:
    """Every version that the cache knows, least recently used first."""
    names: dict[Digest, list[str]] = {}
    for _, state in iter_states(layout.refs):
        for version in () if state is None else (state.version, state.previous):
            if version is not None and str(version.ref) not in names.setdefault(version.digest, []):
                names[version.digest].append(str(version.ref))
    entries = []
    for digest in _digests(layout):
        manifest = read_manifest(layout, digest)
        held = {} if manifest is None else {f.digest: f.size_bytes for f in manifest.files}
        here = {d: size for d, size in held.items() if _size(layout.blob(d)) == size}
        entries.append(
            CacheEntry(
                digest=digest,
                names=tuple(names.get(digest, ())),
                size_bytes=sum(here.values())
                + _tree_size(layout.all_derived / hex_of(digest))
                + _copied_size(layout.tree(digest)),
                files=0 if manifest is None else len(manifest.files),
                complete=bool(held) and len(here) == len(held) and layout.tree(digest).is_dir(),
                leased=_is_leased(layout, digest),
                last_used_at=datetime.fromtimestamp(_last_used(layout, digest), UTC),
            )
        )
    return sorted(entries, key=lambda entry: entry.last_used_at)


def prune(layout: Layout, max_bytes: int, *, keep_named: bool = False) -> int:
    """Removes versions until at most ``max_bytes`` of files are left; returns how many bytes went.

    Versions without a record go before those that a reference may come back to, which stay with ``keep_named``; then
    the least recently used one.
    """
    before = total = _total(layout)
    if total > max_bytes:
        total -= _remove_orphans(layout)
    for entry in sorted(usage(layout), key=lambda entry: (bool(entry.names), entry.last_used_at)):
        if total <= max_bytes:
            break
        if keep_named and entry.names:
            break
        if not entry.leased and _remove_version(layout, entry.digest):
            total = _total(layout)
    return before - total


def make_free(layout: Layout, size_bytes: int) -> int:
    """Removes what no reference may come back to until ``size_bytes`` more are free; returns how many bytes went."""
    return prune(layout, max(0, _total(layout) - size_bytes), keep_named=True)


def scrub(layout: Layout, *, remove: bool) -> CacheReport:
    """Hashes every file; removes (with ``remove``) what is wrong, so that it is fetched or made again."""
    problems: list[CacheProblem] = []
    files = size_bytes = 0

    def wrong(path: Path, reason: str) -> None:
        removed = False
        if remove:
            with contextlib.suppress(OSError):
                layout.discard(path)
                removed = not os.path.lexists(path)
        problems.append(CacheProblem(path=str(path), reason=reason, removed=removed))

    sound: set[tuple[int, int]] = set()  # By inode: a tree's hard links need not be hashed once more.
    for path in _blob_files(layout):
        files += 1
        reason, status = _check_file(path, Digest(f"sha256:{path.name}"))
        if status is not None:
            size_bytes += status.st_size
        if reason:
            wrong(path, reason)
        elif status is not None:
            sound.add((status.st_dev, status.st_ino))
    for digest in _digests(layout):
        manifest = read_manifest(layout, digest)
        if manifest is None and os.path.lexists(layout.manifest(digest)):
            wrong(layout.manifest(digest), "the manifest does not have the digest that names it")
        tree = layout.tree(digest)
        if manifest is None or not os.path.lexists(tree):
            continue
        for file in manifest.files:
            path = tree / file.path
            status = _lstat(path)
            if status is None or (status.st_dev, status.st_ino) not in sound:
                files += 1
                reason, _ = _check_file(path, file.digest)
                if reason:
                    wrong(tree, f"{file.path}: {reason}")
                    break
    for parent in _children(layout.all_derived):
        for path in _children(parent):
            right, count = hash_derived(path)
            files, size_bytes = files + 1, size_bytes + count
            if not right:
                wrong(path, "the derived files are not what their record says")
    for path, state in iter_states(layout.refs):
        files += 1
        if state is None:
            wrong(path, "the last-known-good record is damaged")
    return CacheReport(files=files, size_bytes=size_bytes, problems=tuple(problems))


def sweep(layout: Layout, *, older_than_s: float = STALE_S) -> int:
    """Removes what dead processes left in ``tmp/`` and ``locks/``; returns how many things went."""
    gone = 0
    deadline = time.time() - older_than_s
    for path in (*_children(layout.tmp), *_children(layout.locks)):
        with contextlib.suppress(OSError, CacheError):
            if os.lstat(path).st_mtime < deadline and _is_abandoned(path):
                disk.remove(path)
                gone += 1
    return gone


def _is_abandoned(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True  # A link, or a file that even its owner cannot read: nobody works on it.
    try:
        return disk.flock(fd, shared=False, wait=False)
    finally:
        os.close(fd)


def _remove_version(layout: Layout, digest: Digest) -> bool:
    lock = disk.FileLock.acquire(layout.lease(digest), shared=False, wait=False)
    if lock is None:
        return False
    try:
        layout.discard(layout.tree(digest))
        layout.discard(layout.all_derived / hex_of(digest))
        manifest = read_manifest(layout, digest)
        layout.discard(layout.manifest(digest))
        if manifest is not None:
            needed = _needed_blobs(layout)
            for file in manifest.files:
                if file.digest not in needed:
                    layout.discard(layout.blob(file.digest))
    finally:
        lock.release(unlink=True)
    return True


def _remove_orphans(layout: Layout) -> int:
    """Blobs that belong to no version and have been so for a while (a download notes its version first)."""
    gone = 0
    needed = _needed_blobs(layout)
    deadline = time.time() - STALE_S
    for path in _blob_files(layout):
        status = _lstat(path)
        # The change time, not the modification time: that one is the seal.
        if status is not None and status.st_ctime < deadline and Digest(f"sha256:{path.name}") not in needed:
            layout.discard(path)
            gone += status.st_size
    return gone


def _needed_blobs(layout: Layout) -> set[Digest]:
    manifests = (read_manifest(layout, digest) for digest in _digests(layout))
    return {file.digest for manifest in manifests if manifest is not None for file in manifest.files}


def _digests(layout: Layout) -> list[Digest]:
    """Every version of which anything is here."""
    hexes = {path.name.removesuffix(".json") for path in _children(layout.manifests)}
    hexes |= {path.name for path in (*_children(layout.trees), *_children(layout.all_derived))}
    return [Digest(f"sha256:{name}") for name in sorted(hexes) if _is_hex(name)]


def _is_hex(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _is_leased(layout: Layout, digest: Digest) -> bool:
    try:
        fd = os.open(layout.lease(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not disk.flock(fd, shared=False, wait=False)
    finally:
        os.close(fd)


def _last_used(layout: Layout, digest: Digest) -> float:
    for path in (layout.lease(digest), layout.manifest(digest), layout.tree(digest)):
        status = _lstat(path)
        if status is not None:
            return status.st_mtime
    return 0.0


def _check_file(path: Path, digest: Digest) -> tuple[str, os.stat_result | None]:
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file", None
        if not disk.is_ours(status):
            return "it belongs to another user", status
        return ("" if disk.hash_file(path) == digest else "its content does not have its digest"), status
    except OSError as exc:
        return f"it cannot be read: {exc.strerror}", None


def _total(layout: Layout) -> int:
    blobs = sum(_size(path) or 0 for path in _blob_files(layout))
    return blobs + _tree_size(layout.all_derived) + sum(_copied_size(path) for path in _children(layout.trees))


def _blob_files(layout: Layout) -> Iterator[Path]:
    for shard in _children(layout.blobs):
        yield from (path for path in _children(shard) if _is_hex(path.name))


def _children(path: Path) -> list[Path]:
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return []
        return [path / name for name in sorted(os.listdir(path))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _tree_size(path: Path) -> int:
    if not (children := _children(path)):
        return _size(path) or 0
    return sum(_tree_size(child) for child in children)


def _copied_size(path: Path) -> int:
    """What a version's files take beside their blobs: nothing, but where hard links do not work."""
    status = _lstat(path)
    if status is None:
        return 0
    if stat.S_ISDIR(status.st_mode):
        return sum(_copied_size(child) for child in _children(path))
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0


def _size(path: Path) -> int | None:
    status = _lstat(path)
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
