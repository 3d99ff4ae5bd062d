"""What a server refused because it knows nothing of what it is about, kept aside for another try.

To a token with fewer roles than before, what it may not see any more is not there (docs/access.md). So a record that is
refused for that reason is not lost: it goes into a spool of its own beside the one that it was in, which only
`modelbox.spool.delivery.push_spools` delivers, when somebody asks for it. What is refused again then goes into another
one, so that the server takes its number anew.

Owns the making of such spools. Records keep their numbers; artifacts have a spool apart, as they are uploaded beside
everything else. Everything here blocks.

Invariants: what is kept is on disk before the spool that it was in goes on behind it. Kept again after a crash, it is
kept once, or is points, which a server takes once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from modelbox.errors import Unavailable
from modelbox.spool.disk import make_private, replace_file, sync_directory
from modelbox.spool.format import HEADER, FilesRecord, decode, encode_files, encode_operation
from modelbox.spool.operations import operation_data
from modelbox.spool.reader import SpoolAbout, read_about
from modelbox.tracking import Operation

__all__ = ("keep_files", "keep_operations")

_JOIN_BELOW = 1 << 20
"""A segment is written anew with what comes as long as it is smaller."""


def keep_operations(directory: Path, operations: Sequence[Operation], *, max_bytes: int | None) -> bool:
    """Keeps operations of a spool that were refused.

    Args:
        directory: Of the spool.
        operations: In the order of their numbers, which are greater than those of the batches before.
        max_bytes: Of all that is kept of this spool; None for any number.

    Returns:
        Whether there was room for them.

    Raises:
        Unavailable: What is kept already is being delivered: come again.
        OSError: The disk fails or is full.
    """
    with _locked(directory, "operations") as aside:
        first = operations[0].seq
        segments = sorted(aside.glob("*.seg"))
        kept = b""
        target = aside / f"{first:020d}.seg"
        if segments and (segments[-1].name >= target.name or segments[-1].stat().st_size < _JOIN_BELOW):
            # What a crash let come a second time replaces what it was the first time.
            target = segments.pop()
            kept = _before(target.read_bytes(), first)
        new = b"".join(encode_operation(one.seq, operation_data(one.payload)) for one in operations)
        used = sum(segment.stat().st_size for segment in segments) + len(HEADER) + len(kept)
        if max_bytes is not None and used + len(new) > max_bytes:
            return False
        replace_file(target, HEADER + kept + new)
        return True


def keep_files(directory: Path, record: FilesRecord, *, max_bytes: int | None) -> bool:
    """The same for an artifact that was refused; copies of its files are moved.

    See `keep_operations`.
    """
    with _locked(directory, "artifacts") as aside:
        if max_bytes is not None:
            used = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
            if used + sum(file.size_bytes for file in record.files if file.copied) > max_bytes:
                return False
        replace_file(aside / f"{record.seq:020d}.seg", HEADER + encode_files(record))
        for place in {Path(*Path(file.local).parts[:2]) for file in record.files if file.copied}:
            if (directory / place).exists():
                (aside / place).parent.mkdir(exist_ok=True)
                os.replace(directory / place, aside / place)
                sync_directory((aside / place).parent)
        return True


def _before(data: bytes, seq: int) -> bytes:
    """The records of a segment with smaller numbers."""
    read = decode(data[len(HEADER) :], {}, max_operations=len(data))
    return b"".join(encode_operation(one.seq, one.data) for one in read.operations if one.seq < seq)


@contextlib.contextmanager
def _locked(directory: Path, what: str) -> Iterator[Path]:
    """The directory of what is kept aside of a spool, locked."""
    about = read_about(directory)
    name = hashlib.sha256(f"{about.spool}:{what} aside".encode()).hexdigest()[:32]
    aside = directory.parent / name
    make_private(aside)
    fd = os.open(aside / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Unavailable(f"what is kept in {aside} is being delivered") from exc
        except OSError:
            # No flock here: then nobody else can have it either.
            pass
        if not os.fstat(fd).st_nlink:
            raise Unavailable(f"what was kept in {aside} has just been delivered")
        if not (aside / "about.json").exists():
            replace_file(aside / "about.json", _described(replace(about, spool=name, directory=aside)))
            sync_directory(aside.parent)
        yield aside
    finally:
        # A child that was forked meanwhile has the same lock, which closing alone would leave to it.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _described(about: SpoolAbout) -> bytes:
    return json.dumps(
        {
            "format": 1,
            "spool": about.spool,
            "url": about.url,
            "actor": about.actor,
            "host": about.host,
            "pid": about.pid,
            "created_us": time.time_ns() // 1000,
            "refused": True,
        },
        indent=1,
    ).encode()
