"""Last-known-good records: what a reference pointed to when it last worked, so that a start needs no server.

One small file per record, checksummed, replaced atomically, with the record before it as ``.bak``. A torn or foreign
file is never an error: it reads as the backup, or as nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelbox.errors import InvalidError
from modelbox.loader import disk
from modelbox.objects import ModelVersion, from_json, to_json
from modelbox.refs import Digest

__all__ = ("Quarantined", "RefState", "iter_states", "load_state", "save_state")

_MAX_BYTES = 64 << 20
_FORMAT = "modelbox-ref 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A version that was refused for good, until the alias moves again (``mod_rev``)."""

    digest: Digest
    mod_rev: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefState:
    """What is remembered of one reference at one server.

    Attributes:
        ref: The reference's text.
        server_id: The installation that answered.
        version: The last version that served.
        alias_mod_rev: The revision of the alias's move that pointed to it (the version's for a pinned reference).
        token: Resume token of the change feed, up to which ``version`` is known to be right.
        previous: What served before, kept for going back.
        quarantine: What was refused.
    """

    ref: str
    server_id: str
    version: ModelVersion
    alias_mod_rev: int
    token: str = ""
    previous: ModelVersion | None = None
    quarantine: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    key: str
    state: RefState


def save_state(directory: Path, scratch: Path, key: str, state: RefState) -> None:
    """Replaces the record of ``key``; either the old or the new one is there at any moment.

    Args:
        directory: Where records live.
        scratch: For the temporary file, on the same volume.
        key: What tells two records apart, such as the server's URL and the reference.
        state: The new record.
    """
    body = json.dumps(to_json(_Record(key=key, state=state)), separators=(",", ":")).encode()
    path = _path(directory, key)
    temp = scratch / f"ref.{secrets.token_hex(8)}"
    try:
        fd = disk.create_file(temp)
        try:
            disk.write_whole(fd, f"{_FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode() + body)
            os.fsync(fd)
        finally:
            os.close(fd)
        if _read(path) is not None:  # Never let a torn file push out a sound backup.
            _keep_backup(path, scratch)
        os.replace(temp, path)
        disk.sync_directory(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise


def load_state(directory: Path, key: str) -> RefState | None:
    """The record of ``key``, or the one before it if that is damaged, or None."""
    path = _path(directory, key)
    for candidate in (path, _backup(path)):
        record = _read(candidate)
        if record is not None and record.key == key:
            return record.state
    return None


def iter_states(directory: Path) -> Iterator[tuple[Path, RefState | None]]:
    """Every record file and what it holds; None for a damaged one."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(directory.glob("*.json")):
            record = _read(path)
            yield path, None if record is None else record.state


def _path(directory: Path, key: str) -> Path:
    return directory / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _backup(path: Path) -> Path:
    return path.with_suffix(".json.bak")


def _keep_backup(path: Path, scratch: Path) -> None:
    temp = scratch / f"bak.{secrets.token_hex(8)}"
    try:
        os.link(path, temp, follow_symlinks=False)
        os.replace(temp, _backup(path))
    except OSError:
        # A file system without hard links has no backup; the record itself is still replaced atomically.
        pass
    finally:
        # Renaming a link onto a link of the same file leaves both.
        with contextlib.suppress(OSError):
            os.unlink(temp)


def _read(path: Path) -> _Record | None:
    try:
        data = disk.read_file(path, _MAX_BYTES)
        head, _, body = data.partition(b"\n")
        if head != f"{_FORMAT} {hashlib.sha256(body).hexdigest()}".encode():
            return None
        return from_json(_Record, json.loads(body))
    except (OSError, ValueError, InvalidError, RecursionError):
        return None
