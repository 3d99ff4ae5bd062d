"""Where things are in the cache's directory, and how they get there: finished in ``tmp/`` first, then renamed.

Pure paths but for `Layout.store` and `Layout.discard`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from modelbox.loader import disk
from modelbox.refs import Digest, parse_digest

__all__ = ("Layout",)


@dataclass(frozen=True, slots=True)
class Layout:
    """The names below one cache directory; see `modelbox.loader.cache` for the picture."""

    root: Path

    def parts(self) -> tuple[Path, ...]:
        """Every directory that a cache always has, outer ones first."""
        blobs = self.root / "blobs"
        return (blobs, blobs / "sha256", self.manifests, self.trees, self.all_derived, self.refs, self.leases,
                self.locks, self.tmp)  # fmt: skip

    @property
    def blobs(self) -> Path:
        """``blobs/sha256``."""
        return self.root / "blobs" / "sha256"

    @property
    def manifests(self) -> Path:
        """``manifests``."""
        return self.root / "manifests"

    @property
    def trees(self) -> Path:
        """``trees``."""
        return self.root / "trees"

    @property
    def all_derived(self) -> Path:
        """``derived``."""
        return self.root / "derived"

    @property
    def refs(self) -> Path:
        """``refs``."""
        return self.root / "refs"

    @property
    def leases(self) -> Path:
        """``leases``."""
        return self.root / "leases"

    @property
    def locks(self) -> Path:
        """``locks``."""
        return self.root / "locks"

    @property
    def tmp(self) -> Path:
        """``tmp``."""
        return self.root / "tmp"

    def blob(self, digest: Digest) -> Path:
        """The content with this digest."""
        hexes = hex_of(digest)
        return self.blobs / hexes[:2] / hexes

    def manifest(self, digest: Digest) -> Path:
        """The manifest with this digest."""
        return self.manifests / f"{hex_of(digest)}.json"

    def tree(self, digest: Digest) -> Path:
        """The files of the version with this manifest digest."""
        return self.trees / hex_of(digest)

    def derived(self, digest: Digest, key: str) -> Path:
        """What was made of the version under ``key``."""
        return self.all_derived / hex_of(digest) / key

    def lease(self, digest: Digest) -> Path:
        """The lease file of the version with this manifest digest."""
        return self.leases / hex_of(digest)

    def lock(self, digest: Digest) -> Path:
        """The download lock of the blob with this digest."""
        return self.locks / hex_of(digest)

    def partial_prefix(self, digest: Digest) -> str:
        """How the names of unfinished copies of a blob begin."""
        return f"blob.{hex_of(digest)}."

    def temp(self, prefix: str) -> Path:
        """A name in ``tmp/`` that nobody else uses."""
        return self.tmp / f"{prefix}{os.getpid()}.{secrets.token_hex(8)}"

    def store(self, path: Path, data: bytes) -> None:
        """Writes a small file atomically and durably; equal content that is there already is left alone."""
        with contextlib.suppress(OSError):
            if disk.read_file(path, len(data) + 1) == data:
                return
        temp = self.temp("file.")
        try:
            fd = disk.create_file(temp)
            try:
                disk.write_whole(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(temp, path)
            disk.sync_directory(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temp)
            raise

    def discard(self, path: Path) -> None:
        """Takes a file or directory away from its name at once, then removes it."""
        grave = self.temp("gone.")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, grave)
            disk.remove(grave)


def hex_of(digest: Digest) -> str:
    """The 64 digits of a digest, checked, as they stand in file names."""
    return parse_digest(digest).removeprefix("sha256:")
