"""A spool on disk, as it is delivered: batches in order, a cursor behind them, what is delivered removed.

Works beside the owner that goes on writing, and on what an owner left behind; then the lock of the spool must be held
(`adopt`). Everything here blocks.

Invariants: a batch comes again until `advance` was called with it. The cursor may lag behind, never lead: after a crash
some records are delivered once more, with the same numbers. An artifact may be left for later, so that a long upload
holds up nothing (`leave_upload`): it is in a list on disk before the cursor passes it. A damaged record hides what
follows it in its segment, and nothing else; that is counted and said.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelbox.errors import InvalidError
from modelbox.spool.disk import replace_file, sync_file
from modelbox.spool.format import HEADER, Decoded, FilesRecord, decode, encode_files
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operations_of
from modelbox.tracking import Operation

__all__ = ("Batch", "Spool", "SpoolAbout", "adopt", "find_spools", "read_about", "sweep")

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_BATCH = 1000
"""Operations that are delivered together: of so many the server can tell again what it refused."""
_CURSOR = struct.Struct("<QI")
_FORMAT = 1
_ID_CHARS = 32
_STALE_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolAbout:
    """Whose a spool is.

    Attributes:
        url: Address of the server that it is for.
        actor: In whose name it is delivered.
        host: Where its owner runs, or ran.
        pid: Process id of its owner there.
        refused: Whether it holds what a server has refused before, see `modelbox.spool.aside`.
    """

    spool: str
    directory: Path
    url: str
    actor: str
    host: str
    pid: int
    created_us: int
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is to be delivered next: operations, or one artifact.

    Attributes:
        last_seq: Of its records.
        count: Of its records.
        unreadable: Operations that cannot be read, by number.
    """

    operations: tuple[Operation, ...]
    files: FilesRecord | None
    unreadable: tuple[tuple[int, InvalidError], ...]
    last_seq: int
    count: int
    segment: str
    end: int


class Spool:
    """The delivering end of one spool.

    Args:
        directory: Of the spool.
        log: Its writing end, if this process owns it.

    Attributes:
        damaged_bytes: What could not be read, so far.
        delivered_seq: Everything up to this record is delivered, artifacts included.
        uploads: Artifacts that the cursor has passed and that are not uploaded yet, oldest first.
    """

    def __init__(self, directory: Path, log: SpoolLog | None = None) -> None:
        self.id = directory.name
        self.directory = directory
        self.damaged_bytes = 0
        self._log = log
        self._segment = ""
        self._at = 0
        self._names: dict[int, str] = {}
        self._fd = -1
        self._uploads_lock = threading.Lock()
        self._passed_seq = self._read_cursor()
        self.uploads: tuple[FilesRecord, ...] = self._read_uploads()
        self.delivered_seq = 0
        self._count_delivered()

    @property
    def left(self) -> int:
        """About how many records are not delivered; exactly 0 if none is. Only where this process owns the spool."""
        assert self._log is not None
        return max(0, self._log.last_seq - self._passed_seq) + len(self.uploads)

    def next_batch(self) -> Batch | None:
        """What comes next; None if there is nothing now.

        Raises:
            OSError: The disk fails.
        """
        while True:
            live, live_end = self._log.tail() if self._log is not None else ("", 0)
            if not self._segment and not self._open_next(""):
                return None
            is_live = self._segment == live
            # Nothing beyond: a frame may be on its way into the file.
            end = live_end if is_live else os.fstat(self._fd).st_size
            decoded = self._decode(end)
            if decoded.count:
                return self._batch(decoded)
            if decoded.size_bytes and not decoded.damage and self._at + decoded.size_bytes < end:
                self._at += decoded.size_bytes  # only names, or what was delivered before
                continue
            left = end - self._at - decoded.size_bytes
            if is_live and not decoded.damage:
                self._at += decoded.size_bytes
                return None
            if left > 0:
                self._damaged(left, decoded.damage or "a record that was not written whole")
            if is_live or not self._open_next(self._segment):
                # The damaged rest stays behind us; whoever owns the segment goes on in it.
                self._at = end
                if self._log is not None and not is_live:
                    # The disk refused another segment: it may be for want of the room that this one takes.
                    done = self._segment
                    self.close()
                    self._remove_segment(done)
                return None

    def _decode(self, end: int) -> Decoded:
        if self._at < len(HEADER):
            if end < len(HEADER):
                return Decoded()
            if os.pread(self._fd, len(HEADER), 0) != HEADER:
                decoded = Decoded()
                decoded.damage = "another beginning than a spool's segment has"
                return decoded
            self._at = len(HEADER)
        size = _READ_BYTES
        while True:
            data = os.pread(self._fd, min(size, end - self._at), self._at)
            decoded = decode(data, self._names, after_seq=self._passed_seq, max_operations=_BATCH)
            if decoded.size_bytes or decoded.damage or len(data) < size:
                return decoded
            size *= 4  # a record that is longer than that

    def _batch(self, decoded: Decoded) -> Batch:
        try:
            operations, unreadable = operations_of(decoded, self._names)
        except KeyError:
            # A name is gone with a damaged record that its point outlived; its segment says nothing more.
            self._damaged(decoded.size_bytes, "a point without its name")
            operations, unreadable = [], []
        return Batch(
            operations=tuple(operations),
            files=decoded.files,
            unreadable=tuple(unreadable),
            last_seq=decoded.last_seq,
            count=decoded.count,
            segment=self._segment,
            end=self._at + decoded.size_bytes,
        )

    def advance(self, batch: Batch) -> None:
        """Goes on behind ``batch``, and removes what is not needed any more."""
        self._at = batch.end
        with self._uploads_lock:
            later = any(record.seq == batch.last_seq for record in self.uploads)
            self._passed_seq = batch.last_seq
            self._count_delivered()
        if batch.files is not None and not later:
            self._remove_files(batch.files)
        self._write_cursor()
        for name in self._segments():
            if name >= batch.segment:
                break
            self._remove_segment(name)

    def leave_upload(self, record: FilesRecord) -> None:
        """Has an artifact uploaded later; to be called before `advance` with its batch.

        Raises:
            OSError: The list cannot be written: it must be uploaded now.
        """
        with self._uploads_lock:
            if all(record.seq != other.seq for other in self.uploads):
                self._write_uploads((*self.uploads, record))

    def next_upload(self) -> FilesRecord | None:
        """The oldest artifact that the cursor has passed and that is not uploaded yet."""
        with self._uploads_lock:
            first = self.uploads[0] if self.uploads else None
            return first if first is not None and first.seq <= self._passed_seq else None

    def uploaded(self, record: FilesRecord) -> None:
        """Takes an artifact from the list, and its files away.

        Raises:
            OSError: The list cannot be written.
        """
        # Or a power cut might bring it back, without its files.
        sync_file(self.directory / "cursor", self.directory)
        with self._uploads_lock:
            self._write_uploads(tuple(other for other in self.uploads if other.seq != record.seq))
        self._remove_files(record)

    def _write_uploads(self, uploads: tuple[FilesRecord, ...]) -> None:
        path = self.directory / "uploads"
        if uploads:
            replace_file(path, HEADER + b"".join(encode_files(record) for record in uploads))
        else:
            path.unlink(missing_ok=True)
        self.uploads = uploads
        self._count_delivered()

    def _read_uploads(self) -> tuple[FilesRecord, ...]:
        try:
            data = (self.directory / "uploads").read_bytes()
        except OSError:
            return ()
        found: list[FilesRecord] = []
        at = len(HEADER)
        while at < len(data):
            decoded = decode(data[at:], {})
            if decoded.files is None:
                self._damaged(len(data) - at, decoded.damage or "a list of uploads that ends too early")
                break
            found.append(decoded.files)
            at += decoded.size_bytes
        return tuple(found)

    def _count_delivered(self) -> None:
        self.delivered_seq = min([self._passed_seq, *(record.seq - 1 for record in self.uploads)])

    def pending(self) -> tuple[int, int, bool]:
        """How many records are not delivered, the bytes that they take, and whether some cannot be read; reads all."""
        later = [record for record in self.uploads if record.seq <= self._passed_seq]
        count, size = len(later), sum(file.size_bytes for record in later for file in record.files if file.copied)
        damaged = self.damaged_bytes > 0
        for name in self._segments():
            try:
                data = (self.directory / name).read_bytes()
            except FileNotFoundError:
                continue
            names: dict[int, str] = {}
            at = len(HEADER)
            while at < len(data):
                decoded = decode(data[at : at + _READ_BYTES], names, after_seq=self._passed_seq)
                if not decoded.size_bytes:
                    decoded = decode(data[at:], names, after_seq=self._passed_seq)
                if decoded.count:
                    size += decoded.size_bytes
                    count += decoded.count
                if decoded.files is not None:
                    size += sum(file.size_bytes for file in decoded.files.files if file.copied)
                if not decoded.size_bytes:
                    damaged = True
                    break
                at += decoded.size_bytes
        return count, size, damaged

    @property
    def passed_seq(self) -> int:
        """Up to where records were looked at, delivered or left for later."""
        return self._passed_seq

    def open_runs(self) -> dict[str, bytes]:
        """Runs that the owner began and did not end; with the operation that ends one, if it had come that far."""
        found: dict[str, bytes] = {}
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self.directory / "open")):
                if not name.endswith(".part"):
                    found[name] = (self.directory / "open" / name).read_bytes()
        return found

    def run_ended(self, run_id: str) -> None:
        """Notes that the server knows of the end of a run that was open."""
        with contextlib.suppress(OSError):
            (self.directory / "open" / run_id).unlink()

    def path_of(self, local: str) -> Path:
        """Where a file of an artifact lies."""
        return self.directory / local

    def remove(self) -> None:
        """Takes the spool away; it must be delivered and its lock held."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def close(self) -> None:
        """Closes what is open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._segment = ""

    # --- files -------------------------------------------------------------------------------------------------------

    def _segments(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.directory) if name.endswith(".seg"))
        except FileNotFoundError:
            return []

    def _open_next(self, after: str) -> bool:
        for name in self._segments():
            if name > after:
                fd = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC)
                self.close()
                self._fd, self._segment, self._at, self._names = fd, name, 0, {}
                return True
        return False

    def _remove_segment(self, name: str) -> None:
        path = self.directory / name
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            if self._log is not None:
                self._log.released(size)

    def _remove_files(self, record: FilesRecord) -> None:
        copied = [file for file in record.files if file.copied]
        for file in copied:
            with contextlib.suppress(OSError):
                self.path_of(file.local).unlink()
        if copied:
            top = Path(*Path(copied[0].local).parts[:2])
            shutil.rmtree(self.directory / top, ignore_errors=True)
            if self._log is not None:
                self._log.released(sum(file.size_bytes for file in copied))

    def _read_cursor(self) -> int:
        with contextlib.suppress(OSError, struct.error):
            data = (self.directory / "cursor").read_bytes()
            seq, crc = _CURSOR.unpack_from(data)
            if zlib.crc32(data[:8]) == crc:
                return int(seq)
        return 0

    def _write_cursor(self) -> None:
        data = struct.pack("<Q", self._passed_seq)
        try:
            fd = os.open(self.directory / "cursor", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, data + struct.pack("<I", zlib.crc32(data)), 0)
            finally:
                os.close(fd)
        except OSError:
            # On a full disk, delivered segments must be removed all the same. The server knows what it has had.
            _log.debug("the cursor of the spool %s lags behind", self.directory, exc_info=True)

    def _damaged(self, size_bytes: int, why: str) -> None:
        self.damaged_bytes += size_bytes
        _log.warning(
            "%d bytes of the spool %s cannot be read: %s in %s at byte %d",
            size_bytes,
            self.directory,
            why,
            self._segment,
            self._at,
        )


def find_spools(parent: Path) -> list[SpoolAbout]:
    """The spools below ``parent``, oldest first."""
    found: list[SpoolAbout] = []
    try:
        names = os.listdir(parent)
    except OSError:
        return found
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            found.append(read_about(parent / name))
    return sorted(found, key=lambda about: (about.created_us, about.spool))


def read_about(directory: Path) -> SpoolAbout:
    """Whose the spool is.

    Raises:
        OSError: It is gone.
        ValueError: A newer ModelBox wrote it, or it is none.
    """
    try:
        read = json.loads((directory / "about.json").read_text(encoding="utf-8"))
        if read["format"] != _FORMAT or read["spool"] != directory.name:
            raise ValueError("not a spool that this version reads")
        return SpoolAbout(
            spool=str(read["spool"]),
            directory=directory,
            url=str(read["url"]),
            actor=str(read["actor"]),
            host=str(read["host"]),
            pid=int(read["pid"]),
            created_us=int(read["created_us"]),
            refused=bool(read.get("refused", False)),
        )
    except (KeyError, TypeError, OverflowError, RecursionError) as exc:
        raise ValueError("not a spool") from exc


def sweep(parent: Path) -> None:
    """Removes what is left of spools whose making or removal was broken off more than an hour ago."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            directory = parent / name
            if len(name) != _ID_CHARS or (directory / "about.json").exists():
                continue
            with contextlib.suppress(OSError):
                if directory.stat().st_mtime < time.time() - _STALE_S:
                    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def adopt(directory: Path) -> Iterator[Spool | None]:
    """The spool of an owner that is gone, locked; None while its owner lives or somebody else delivers it."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        _held.add(fd)
        if not (directory / "about.json").exists():  # removed by whoever had the lock before us
            yield None
            return
        spool = Spool(directory)
        try:
            yield spool
        finally:
            spool.close()
    finally:
        _held.discard(fd)
        os.close(fd)


# A forked child would hold the lock for as long as it lives.
_held: set[int] = set()


def _let_go() -> None:
    for fd in _held:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
