"""Checks bytes against what a manifest says of them, while they arrive.

Sans-I/O: bytes in, exceptions out. Refuses to look at more than the declared size, so that a peer that sends without
end is stopped at the first byte too many.
"""

from __future__ import annotations

import hashlib

from modelbox.errors import IntegrityError
from modelbox.manifest import ManifestFile
from modelbox.refs import shown

__all__ = ("FileVerifier",)


class FileVerifier:
    """Counts and hashes one file.

    Concurrency: not thread-safe; one feeder at a time. Hashing more than 2 KiB at once releases the GIL.
    """

    __slots__ = ("_digest", "_file", "_seen")

    def __init__(self, file: ManifestFile) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._seen = 0

    @property
    def offset(self) -> int:
        """How many bytes were taken; also where to go on after a break."""
        return self._seen

    @property
    def missing(self) -> int:
        """How many bytes are still to come."""
        return self._file.size_bytes - self._seen

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes.

        Raises:
            IntegrityError: The file is longer than declared; the chunk was not taken.
        """
        if len(chunk) > self.missing:
            raise IntegrityError(
                f"{shown(self._file.path)} is longer than the {self._file.size_bytes} bytes that its manifest declares",
                path=self._file.path,
                expected=self._file.size_bytes,
            )
        self._digest.update(chunk)
        self._seen += len(chunk)

    def finish(self) -> None:
        """Confirms that all bytes were there and are the right ones.

        Raises:
            IntegrityError: The file is shorter than declared, or its digest is another one.
        """
        if self.missing:
            raise IntegrityError(
                f"{shown(self._file.path)} has {self._seen} bytes, its manifest declares {self._file.size_bytes}",
                path=self._file.path,
                expected=self._file.size_bytes,
                actual=self._seen,
            )
        actual = f"sha256:{self._digest.hexdigest()}"
        if actual != self._file.digest:
            raise IntegrityError(
                f"{shown(self._file.path)} has the digest {actual}, its manifest declares {self._file.digest}",
                path=self._file.path,
                expected=self._file.digest,
                actual=actual,
            )
