"""How one blob comes into the cache: written beside its place, hashed on the way, named only when it is right.

Owns the order of durability: bytes on disk, then the name, then the directory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from modelbox.loader import disk
from modelbox.loader.cache_layout import Layout
from modelbox.loader.verify import FileVerifier
from modelbox.manifest import ManifestFile

__all__ = ("BlobWriter",)

Chunk = bytes | bytearray | memoryview


class BlobWriter:
    """One blob on its way into the cache; bytes are hashed as they are written.

    The unfinished file is private to this writer and locked, so that no clean-up takes it away; it goes with `abort`,
    or an hour after its process died.

    Concurrency: one thread at a time, but for `check` and `store`, which may run side by side.
    """

    def __init__(self, layout: Layout, file: ManifestFile) -> None:
        self._layout = layout
        self._verifier = FileVerifier(file)
        self._file = file
        self.path = layout.temp(layout.partial_prefix(file.digest))
        with disk.cache_errors("creating a file", self.path):
            self._fd: int | None = disk.create_file(self.path)
            disk.flock(self._fd, shared=False, wait=False)

    @property
    def offset(self) -> int:
        """How many bytes were taken: where a broken download goes on."""
        return self._verifier.offset

    @property
    def missing(self) -> int:
        """How many bytes are still to come."""
        return self._verifier.missing

    def write(self, data: Chunk) -> None:
        """Appends bytes.

        Raises:
            IntegrityError: More bytes than the manifest declares; they were not taken.
            CacheError: The disk refused them; abort this writer.
        """
        self.check((data,))
        self.store((data,))

    def check(self, chunks: Sequence[Chunk]) -> None:
        """The first half of `write`: counts and hashes. May run beside `store` of the bytes before."""
        for chunk in chunks:
            self._verifier.feed(chunk)

    def store(self, chunks: Sequence[Chunk]) -> None:
        """The second half of `write`: appends what was checked to the file."""
        if self._fd is None:
            raise ValueError("the writer was committed or aborted")
        with disk.cache_errors("writing", self.path):
            disk.write_chunks(self._fd, chunks)

    def commit(self) -> Path:
        """Verifies what was written and gives it its name; durable on return.

        Raises:
            IntegrityError: Size or digest are wrong; the writer was aborted.
            CacheError: The disk refused; the writer was aborted.
        """
        fd = self._fd
        if fd is None:
            raise ValueError("the writer was committed or aborted")
        try:
            self._verifier.finish()
            blob = self._layout.blob(self._file.digest)
            with disk.cache_errors("storing a file", blob):
                disk.make_directory(blob.parent)
                disk.seal(fd)
                os.fsync(fd)
                # Replacing a blob by an equal one is harmless: who has the old one open keeps it.
                os.replace(self.path, blob)
                disk.sync_directory(blob.parent)
        except BaseException:
            self.abort()
            raise
        self._close()
        return blob

    def abort(self) -> None:
        """Removes what was written. Idempotent, and nothing after `commit`."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
